/* SPDX-License-Identifier: MIT */
/* vhdx convert, into a disk that exists. */
#ifndef CONVERT_INTO_H
#define CONVERT_INTO_H

#include <stdint.h>

#include "vhdx.h"

/* Copy source, which was opened as source_name, into the disk target_name, an NBD export or a file that exists, to be opened with
 * flags (enum vhdx_open_flags).  Returns the exit status; what is wrong has been reported. */
int convert_into(vhdx_disk *source, const char *source_name, const char *target_name, uint32_t flags,
                 struct vhdx_copy_options *copy_options);

#endif
