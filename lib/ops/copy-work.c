/* SPDX-License-Identifier: MIT */
#include "ops/copy-work.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/math.h"
#include "format/layout.h"
#include "ops/copy-target.h"

enum { MAX_THREADS = 64, DEFAULT_MAX_THREADS = 8 };

static int report_progress(struct copy_work *work)
{
    if (work->progress && work->progress(work->opaque, work->done_bytes, work->total_bytes) != 0)
        return fail(-ECANCELED, "cancelled after %" PRIu64 " of %" PRIu64 " bytes", work->done_bytes, work->total_bytes);
    return 0;
}

int copy_work_done(struct copy_work *work, uint64_t bytes)
{
    work->done_bytes += bytes;
    return work->error ? 0 : report_progress(work);
}

/* Note the first error, with the lock held. */
static void stop_work(struct copy_work *work, int error)
{
    if (work->error == 0) {
        work->error = error;
        error_save(&work->error_text);
    }
    pthread_cond_broadcast(&work->changed);
}

/* Until nothing is left to take, or somebody failed; with the lock held, but for the tasks themselves. */
static int do_tasks(struct copy_work *work, uint8_t *buffer)
{
    int r = 0;

    while (r == 0 && work->error == 0) {
        struct copy_task task = {0};
        r = work->take_task(work, &task);
        if (r <= 0)
            return r;
        pthread_mutex_unlock(&work->lock);
        int64_t done = work->do_task(work, &task, buffer);
        pthread_mutex_lock(&work->lock);
        r = done < 0 ? (int)done : copy_work_done(work, (uint64_t)done);
    }
    return r;
}

static void *work_thread(void *opaque)
{
    struct copy_work *work = opaque;
    uint8_t *buffer = NULL;

    int r = posix_memalign((void **)&buffer, PAGE_BYTES, COPY_BUFFER_BYTES) == 0 ? 0 : fail_memory("copying");
    pthread_mutex_lock(&work->lock);
    if (r == 0)
        r = do_tasks(work, buffer);
    if (r < 0)
        stop_work(work, r);
    pthread_mutex_unlock(&work->lock);
    free(buffer);
    return NULL;
}

static uint32_t choose_threads(const struct vhdx_copy_options *o, uint64_t total_bytes)
{
    long nr_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t nr = o->nr_threads ? min_u64(o->nr_threads, MAX_THREADS)
                                : min_u64(nr_cpus > 0 ? (uint64_t)nr_cpus : 1, DEFAULT_MAX_THREADS);
    return (uint32_t)max_u64(1, min_u64(nr, div_round_up(total_bytes, COPY_PIECE_BYTES)));
}

/* The calling thread is one of the workers, so a system that gives no threads still copies. */
static void run_threads(struct copy_work *work, uint32_t nr_threads)
{
    pthread_t threads[MAX_THREADS];
    uint32_t nr_started = 0;

    while (nr_started + 1 < nr_threads && pthread_create(&threads[nr_started], NULL, work_thread, work) == 0)
        nr_started++;
    work_thread(work);
    while (nr_started > 0)
        pthread_join(threads[--nr_started], NULL);
}

int copy_work_run(struct copy_work *work, copy_take_fn *take_task, copy_do_fn *do_task, const struct vhdx_copy_options *o,
                  uint64_t total_bytes)
{
    work->progress = o->progress;
    work->opaque = o->opaque;
    work->total_bytes = total_bytes;
    work->take_task = take_task;
    work->do_task = do_task;
    work->done_bytes = 0;
    work->error = 0;
    pthread_mutex_init(&work->lock, NULL);
    pthread_cond_init(&work->changed, NULL);
    run_threads(work, choose_threads(o, total_bytes));
    pthread_cond_destroy(&work->changed);
    pthread_mutex_destroy(&work->lock);
    if (work->error < 0) {
        error_restore(&work->error_text);
        return work->error;
    }
    return report_progress(work); /* everything is done: the last word */
}
