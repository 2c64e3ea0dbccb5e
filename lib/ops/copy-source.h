/* SPDX-License-Identifier: MIT */
/* What both ways of copying out share: a walk over the disk in pieces that are either to be read or known to be zeros, the
 * holes of sparse image files included. */
#ifndef VHDX_OPS_COPY_SOURCE_H
#define VHDX_OPS_COPY_SOURCE_H

#include "disk/disk.h"

/* The next piece of at most max_data bytes to be read, or of zeros of any length.  1, 0 at the end, or a negative code. */
int copy_next_piece(struct extent_cursor *c, uint64_t max_data, struct vhdx_extent *piece);

/* Shorten an extent of data that the cursor has just given, and move the cursor back, so that it is such a piece.  1 or a
 * negative code. */
int copy_cut_piece(struct extent_cursor *c, uint64_t max_data, struct vhdx_extent *piece);

int copy_check_options(const struct vhdx_copy_options *options);

#endif
