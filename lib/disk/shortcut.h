/* SPDX-License-Identifier: MIT */
/* Reading a small piece through a long chain without asking every image of it.
 *
 * For units of the disk, as large as the smallest block of the chain, it is remembered which parent is the first to say anything
 * of the unit, and where the unit lies if it lies there whole; and below one that holds a part of it, which is the next.  Parents
 * do not change while they are open, so nothing has to be forgotten; the first image, which may change, is always asked. */
#ifndef VHDX_DISK_SHORTCUT_H
#define VHDX_DISK_SHORTCUT_H

#include <stdbool.h>
#include <stdint.h>

struct vhdx_disk;

/* Make disk, whose layers are complete, remember; without memory it reads as before. */
void shortcut_init(struct vhdx_disk *disk);

struct shortcut {
    uint32_t first_layer; /* none of those above it that were asked says anything of the range */
    uint64_t file_offset; /* where the range lies in first_layer; 0: not known */
};

/* A range inside one unit of which the first layer holds nothing: true, and *s; false if that is not so, or not known, or an
 * error, which the long way will find. */
bool shortcut_find(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t bytes, struct shortcut *s);

/* The same for what layer number from, 1 or more, and those below it say of a range inside the disk, whatever those above do. */
bool shortcut_below(struct vhdx_disk *disk, uint32_t from, uint64_t guest_offset, uint64_t bytes, struct shortcut *s);

#endif
