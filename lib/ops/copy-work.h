/* SPDX-License-Identifier: MIT */
/* Threads that copy together: each takes what is next under the lock, and moves the bytes without it (C3).  The first error
 * of any ends the work of all. */
#ifndef VHDX_OPS_COPY_WORK_H
#define VHDX_OPS_COPY_WORK_H

#include <pthread.h>
#include <stdint.h>

#include "base/error.h"
#include "vhdx.h"

struct copy_work;

/* Called with the lock held, in each thread once; returns, with the lock held, when nothing is left to take or work->error is
 * set: 0, or what went wrong.  buffer has COPY_BUFFER_BYTES and is the thread's own. */
typedef int copy_work_fn(struct copy_work *work, uint8_t *buffer);

struct copy_work {
    vhdx_progress_fn *progress;
    void *opaque;
    uint64_t total_bytes;
    copy_work_fn *fn;

    pthread_mutex_t lock; /* protects the rest, and what the user of this puts beside it */
    pthread_cond_t changed; /* for that user; also signalled when error is set */
    uint64_t done_bytes;
    int error;
    struct error_text error_text;
};

/* Do the work in as many threads as o says and the work is worth.  Returns its error, with its message. */
int copy_work_run(struct copy_work *work, copy_work_fn *fn, const struct vhdx_copy_options *o, uint64_t total_bytes);

/* So many bytes are done, whether or not anything had to be moved.  -ECANCELED.  With the lock held. */
int copy_work_done(struct copy_work *work, uint64_t bytes);

#endif
