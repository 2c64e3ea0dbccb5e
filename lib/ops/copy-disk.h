/* SPDX-License-Identifier: MIT */
/* Copying a disk as it is into a range of a file. */
#ifndef VHDX_OPS_COPY_DISK_H
#define VHDX_OPS_COPY_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "vhdx.h"

struct storage;

/* Guest offset g goes to file offset start + g.  is_zero: the file reads as zeros there.  The options have been judged. */
int copy_disk(struct vhdx_disk *disk, struct storage *file, uint64_t start, bool is_zero,
              const struct vhdx_copy_options *options);

/* -EINVAL if file is one that disk lies in: emptying it would destroy what is about to be copied. */
int copy_check_not_source(const struct vhdx_disk *disk, const struct storage *file);

#endif
