/* SPDX-License-Identifier: MIT */
/* Puts a planned image into an empty file, in the order of format section 9.1: nothing but the payload and these calls is
 * written before image_seal(), so that until then no reader takes the file for a VHDX.
 *
 *     image_preallocate()  image_write_tables()  image_seal() */
#ifndef VHDX_OPS_IMAGE_WRITER_H
#define VHDX_OPS_IMAGE_WRITER_H

#include "ops/new-image.h"
#include "vhdx.h"

struct storage;

/* Give the file its length, and it all the space that preallocation asks for.  Fixed images only, except for
 * VHDX_PREALLOC_OFF.  -ENOSPC, -EFBIG; -ENOTSUP: the file system reserves no space. */
int image_preallocate(const struct new_image *n, struct storage *s, enum vhdx_preallocation preallocation,
                      vhdx_progress_fn *progress, void *opaque);

/* Give the file its length; write region tables, metadata, BAT and headers.  Of a dynamic image the blocks of present
 * (NULL: none) have space, of a fixed one all. */
int image_write_tables(const struct new_image *n, struct storage *s, const struct mib_set *present);

/* Make everything durable, then the identifier. */
int image_seal(struct storage *s);

#endif
