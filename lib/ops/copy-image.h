/* SPDX-License-Identifier: MIT */
/* Copying into a new image in a storage, whatever that is; ops_copy_to_image() and its like do it in a file. */
#ifndef VHDX_OPS_COPY_IMAGE_H
#define VHDX_OPS_COPY_IMAGE_H

#include "vhdx.h"

struct new_image;
struct storage;

/* Make s, which is empty, the image that n plans, with the content of disk, whose size is not larger than the plan's.  The
 * options have been judged.  After a failure s holds no VHDX, or one that may not be durable. */
int copy_disk_into(struct storage *s, struct new_image *n, struct vhdx_disk *disk, enum vhdx_preallocation preallocation,
                   const struct vhdx_copy_options *options);

/* The same with what fd gives until its end; n was initialised, not planned.  virtual_size: of the disk, 0: as long as what
 * comes, rounded up to a sector. */
int copy_stream_into(struct storage *s, struct new_image *n, int fd, uint64_t virtual_size,
                     const struct vhdx_copy_options *options);

#endif
