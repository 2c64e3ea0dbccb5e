/* SPDX-License-Identifier: MIT */
/* Changing parts of blocks of an image whose parents show through where it holds nothing (docs/writing.md, "Differencing
 * images"). */
#ifndef VHDX_DISK_WRITE_CHILD_H
#define VHDX_DISK_WRITE_CHILD_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/iov.h"

struct vhdx_disk;

/* All of these change the first layer, inside one of its blocks, which has parents, and whose writer has begun. */

/* Change whole sectors in the caller's own way: put is called once, to bring the bytes to file_offset. */
typedef int child_put_fn(void *opaque, uint64_t bytes, uint64_t file_offset);
int child_change(struct vhdx_disk *disk, child_put_fn *put, void *opaque, uint64_t guest_offset, uint64_t bytes);

/* Write the next bytes of from. */
int child_write(struct vhdx_disk *disk, struct iov_position *from, uint64_t guest_offset, uint64_t bytes);

/* Make a part read as zeros, in the ways of enum zero_ways.  with_space: leave it with space of its own, also where it reads as
 * zeros. */
int child_zero(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t bytes, unsigned ways, bool with_space);

/* Drop a whole block: it is to read as zeros, in this state, whatever the parents hold. */
int child_drop(struct vhdx_disk *disk, uint64_t block_no, unsigned state);

#endif
