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

/* What one thread takes at a time. */
struct copy_task {
    struct vhdx_extent extent; /* of the disk; as much of it as who takes it needs to know */
    uint64_t ticket;           /* for those whose tasks have an order */
};

/* Take the next task, with the lock held.  1, 0 if nothing is left, or a negative code. */
typedef int copy_take_fn(struct copy_work *work, struct copy_task *task);

/* Do it, without the lock.  Returns how many bytes of the work that was, if not told to copy_work_done() already; or a negative
 * code.  buffer has COPY_BUFFER_BYTES and is the thread's own. */
typedef int64_t copy_do_fn(struct copy_work *work, const struct copy_task *task, uint8_t *buffer);

struct copy_work {
    vhdx_progress_fn *progress;
    void *opaque;
    uint64_t total_bytes;
    copy_take_fn *take_task;
    copy_do_fn *do_task;

    pthread_mutex_t lock; /* protects the rest, and what the user of this puts beside it */
    pthread_cond_t changed; /* for that user; also signalled when error is set */
    uint64_t done_bytes;
    int error;
    struct error_text error_text;
};

/* Do the work in as many threads as o says and the work is worth.  Returns its error, with its message. */
int copy_work_run(struct copy_work *work, copy_take_fn *take_task, copy_do_fn *do_task, const struct vhdx_copy_options *o,
                  uint64_t total_bytes);

/* So many bytes are done, whether or not anything had to be moved.  -ECANCELED.  With the lock held. */
int copy_work_done(struct copy_work *work, uint64_t bytes);

#endif
