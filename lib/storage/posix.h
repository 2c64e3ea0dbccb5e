/* SPDX-License-Identifier: MIT */
/* The POSIX driver's own struct, shared by posix.c and posix-lock.c only. */
#ifndef VHDX_STORAGE_POSIX_H
#define VHDX_STORAGE_POSIX_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "storage/storage.h"

/* Locked bytes of the image locking, see posix-lock.c. */
struct posix_claim {
    unsigned uses, forbids; /* bits */
};

struct posix {
    struct storage base;
    bool is_device;

    /* Set once when the kernel says so, never cleared; a stale false costs one system call. */
    atomic_bool cannot_reserve;
    atomic_bool cannot_punch, cannot_zero, cannot_seek_data;

    pthread_mutex_t flush_mutex; /* held while fdatasync runs, see posix_flush() */
    int flush_error;             /* errno of the flush that failed, 0 if none did; by flush_mutex */

    pthread_mutex_t lock_mutex;
    struct posix_claim held; /* by lock_mutex */
};

static inline struct posix *posix_of(struct storage *s)
{
    return (struct posix *)s;
}

int posix_lock(struct storage *s, enum storage_lock lock);

#endif
