/* SPDX-License-Identifier: MIT */
/* Is memory all zero?  By ISA-L. */
#ifndef VHDX_BASE_ZERO_H
#define VHDX_BASE_ZERO_H

#include <stdbool.h>
#include <stddef.h>

bool memory_is_zero(const void *p, size_t length);

#endif
