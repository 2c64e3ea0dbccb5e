/* SPDX-License-Identifier: MIT */
/* Where pieces of a disk are copied to: a file that stays sparse, and shares blocks with the source where the file systems
 * can.  Any thread, many at once, in ranges that do not overlap. */
#ifndef VHDX_OPS_COPY_TARGET_H
#define VHDX_OPS_COPY_TARGET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/math.h"
#include "vhdx.h"

struct storage;

#define COPY_PIECE_BYTES  MIB(4)   /* what is best copied at a time */
#define COPY_BUFFER_BYTES KIB(256) /* read, looked at for zeros and written while it is in the processor's cache */

struct copy_target {
    struct storage *file;  /* the caller's */
    bool is_zero;          /* reads as zeros where nothing was written */
    uint32_t sparse_bytes; /* runs of zeros this long or longer are left out; 0: none */
    bool takes_all;        /* zeros get space too, also those that the source does not store */
    bool reflink_always;
    atomic_bool try_reflink;
    atomic_bool try_copy_range; /* let the kernel copy */
    const struct vhdx_copy_options *options;
};

void copy_target_init(struct copy_target *t, struct storage *file, bool is_zero, const struct vhdx_copy_options *o);

/* If r is an error, note for the caller of the operation that it was the target's.  Returns r. */
int copy_target_failed(const struct vhdx_copy_options *o, int r);

/* Write bytes at offset, leaving out what is zero. */
int copy_target_write(struct copy_target *t, const uint8_t *p, size_t bytes, uint64_t offset);

/* Make a range read as zeros, with or without space of its own. */
int copy_target_zero(struct copy_target *t, uint64_t offset, uint64_t bytes);

/* Copy what a VHDX_EXTENT_DATA piece of disk stores to offset.  buffer has COPY_BUFFER_BYTES. */
int copy_target_piece(struct copy_target *t, struct vhdx_disk *disk, const struct vhdx_extent *piece, uint64_t offset,
                      uint8_t *buffer);

#endif
