/* SPDX-License-Identifier: MIT */
/* How many bytes of a range of the disk are allocated, for st_blocks.
 *
 * Asking for the map each time would walk the tables of 64 TiB for every stat(2).  So the disk is cut into windows whose counts
 * are kept until something in the window changes, and one question spends a bounded time on windows that are not known.  Those
 * that are still unknown then count as allocated: programs that copy files (tar, cp) take a file with few blocks for a sparse
 * one, so too many is safe where too few is not. */
#ifndef MOUNT_USAGE_H
#define MOUNT_USAGE_H

#include <pthread.h>
#include <stdint.h>

#include "vhdx.h"

/* The sectors of one bitmap block, so that a window never needs more than one of each layer. */
#define USAGE_WINDOW_BYTES (UINT64_C(4) << 30)

struct usage {
    vhdx_disk *disk;
    uint64_t disk_bytes;
    uint64_t nr_windows;
    _Atomic uint64_t *windows; /* allocated bytes of each, or UNKNOWN, or COUNTING */
    pthread_mutex_t counting;  /* one counts at a time: see usage.c */
};

/* 0 or -ENOMEM. */
int usage_init(struct usage *usage, vhdx_disk *disk);
void usage_destroy(struct usage *usage);

/* What is allocated in the range may have changed.  To be called after the change.  Any thread, without waiting. */
void usage_changed(struct usage *usage, uint64_t guest_offset, uint64_t length);

/* Allocated bytes in the range, which lies inside the disk.  Any thread. */
uint64_t usage_count(struct usage *usage, uint64_t guest_offset, uint64_t length);

#endif
