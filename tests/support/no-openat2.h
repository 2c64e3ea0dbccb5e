/* SPDX-License-Identifier: MIT */
/* A process whose kernel has no openat2, as before Linux 5.6 and in some sandboxes. */
#ifndef VHDX_TESTS_NO_OPENAT2_H
#define VHDX_TESTS_NO_OPENAT2_H

#include <stdbool.h>

bool has_openat2(void);

/* For the rest of the process, if the kernel lets itself be asked (seccomp); has_openat2() tells. */
void take_openat2_away(void);

#endif
