/* SPDX-License-Identifier: MIT */
/* The NBD driver's own struct, shared by nbd.c, nbd-connection.c and nbd-extents.c only. */
#ifndef VHDX_STORAGE_NBD_H
#define VHDX_STORAGE_NBD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "storage/libnbd.h"
#include "storage/storage.h"

enum { NBD_MAX_MIN_BLOCK = 65536 }; /* bytes; what the protocol allows */

/* What the server said last about what is zero: ranges one behind the other. */
struct nbd_extents {
    pthread_mutex_t lock; /* protects the rest; held while the server is asked */
    uint64_t start;       /* of the first range, bytes */
    uint64_t *ends;       /* ascending; range i ends there and is of the other kind than range i - 1 */
    size_t nr, nr_allocated;
    bool first_is_zero;
    bool cannot_ask; /* the server does not tell: everything may be data */
};

struct nbd {
    struct storage base;
    struct libnbd api;
    struct nbd_handle *handle;
    uint64_t size;
    uint32_t min_block;   /* bytes, power of two: offsets and lengths of requests are multiples */
    uint32_t max_payload; /* bytes, multiple of min_block */
    bool can_flush, can_zero;

    /* One thread moves the bytes of all requests; who makes a request waits for its answer.  So any number of them are under
     * way on the one connection at the same time. */
    pthread_t mover;
    int wake; /* eventfd: there is something for the mover to do */
    atomic_bool stop;
    pthread_mutex_t lost_lock;
    struct error_text lost; /* by lost_lock: why the connection is gone, "" while it is not known */

    pthread_rwlock_t edges; /* writing a part of a minimal block, which means to read it first: for itself alone */

    pthread_mutex_t flush_mutex;
    int flush_error; /* by flush_mutex; code of the flush that failed, 0 if none did */

    struct nbd_extents extents;
};

static inline struct nbd *nbd_of(struct storage *s)
{
    return (struct nbd *)s;
}

/* ---- nbd-connection.c ---- */

/* Connect, and learn what the export is like. */
int nbd_connect(struct nbd *n, const char *uri, bool writable);
void nbd_disconnect(struct nbd *n);

/* One request each, within the server's limits, from any thread. */
int nbd_request_read(struct nbd *n, void *buf, size_t bytes, uint64_t offset);
int nbd_request_write(struct nbd *n, const void *buf, size_t bytes, uint64_t offset);
int nbd_request_zero(struct nbd *n, uint64_t bytes, uint64_t offset, bool keep_space);
int nbd_request_flush(struct nbd *n);
int nbd_request_extents(struct nbd *n, uint64_t bytes, uint64_t offset, nbd_extent_callback take);

/* ---- nbd-extents.c ---- */

int nbd_next_data(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end);

/* Something was changed: what the server said may no longer be true. */
void nbd_extents_forget(struct nbd *n);

#endif
