/* SPDX-License-Identifier: MIT */
/* A raw disk from a pipe into a new image.  Its size is known at its end, so the payload comes directly behind the log, and
 * metadata and BAT behind the payload. */
#include "ops/copy-image.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"
#include "base/math.h"
#include "base/zero.h"
#include "image/mib-set.h"
#include "ops/copy-source.h"
#include "ops/copy-target.h"
#include "ops/image-writer.h"
#include "ops/new-file.h"
#include "ops/ops.h"
#include "storage/storage.h"

#define INPUT_BYTES MIN_BLOCK_BYTES /* so that what is read at a time lies in one block */

struct input_job {
    struct copy_target target;
    struct new_image *plan;
    const struct vhdx_copy_options *options;
    int fd;
    uint64_t limit;         /* bytes that the disk can have */
    uint64_t at;            /* bytes read so far */
    struct mib_set present; /* numbers of the blocks that have a place */
};

/* Waiting for a slow pipe can be cancelled, too. */
static int wait_for_input(struct input_job *job)
{
    enum { PATIENCE_MS = 500 };
    const struct vhdx_copy_options *o = job->options;
    struct pollfd wait = {.fd = job->fd, .events = POLLIN};
    int nr_ready;

    do {
        if (o->progress && o->progress(o->opaque, job->at, 0) != 0)
            return fail(-ECANCELED, "cancelled after %" PRIu64 " bytes", job->at);
        nr_ready = poll(&wait, 1, PATIENCE_MS);
    } while (nr_ready == 0 || (nr_ready < 0 && errno == EINTR));
    return nr_ready < 0 ? fail_errno("waiting for the input") : 0;
}

/* Read bytes, fewer only at the end. */
static int read_input(struct input_job *job, uint8_t *p, size_t bytes, size_t *got)
{
    *got = 0;
    while (*got < bytes) {
        int r = wait_for_input(job);
        if (r < 0)
            return r;
        ssize_t n = read(job->fd, p + *got, bytes - *got);
        if (n == 0)
            break;
        if (n > 0)
            *got += (size_t)n;
        else if (errno != EINTR && errno != EAGAIN)
            return fail_errno("reading the input at offset %" PRIu64, job->at + *got);
    }
    return 0;
}

/* Where what comes at job->at belongs.  The blocks of a fixed image have their places already, those of a dynamic one get
 * them as they come. */
static int find_place(struct input_job *job, uint64_t *offset)
{
    const uint32_t block_size = job->plan->values.block_size;
    uint64_t block_no = job->at / block_size, index = block_no;
    bool clash;
    int r = 0;

    if (!new_image_is_fixed(job->plan)) {
        if (!mib_set_has(&job->present, block_no))
            r = mib_set_add(&job->present, block_no, 1, &clash);
        index = job->present.count - 1; /* the one that was placed last is the one being filled */
    }
    *offset = new_image_log_end(job->plan) + index * block_size + job->at % block_size;
    return r;
}

static int store_input(struct input_job *job, const uint8_t *p, size_t bytes)
{
    uint64_t offset;

    if (bytes > job->limit - job->at)
        return fail(-EINVAL, "the input is longer than the disk can be, %" PRIu64 " bytes", job->limit);
    int r = 0;
    if (job->target.sparse_bytes == 0 || !memory_is_zero(p, bytes)) {
        r = find_place(job, &offset);
        if (r == 0)
            r = copy_target_write(&job->target, p, bytes, offset);
    }
    job->at += bytes;
    return r;
}

static int copy_input(struct input_job *job)
{
    uint8_t *buffer = malloc(INPUT_BYTES);
    int r = buffer ? 0 : fail_memory("copying");
    size_t got = INPUT_BYTES;

    while (r == 0 && got == INPUT_BYTES) {
        r = read_input(job, buffer, INPUT_BYTES, &got);
        if (r == 0)
            r = store_input(job, buffer, got);
    }
    free(buffer);
    if (r == 0 && job->options->progress) /* the last word */
        job->options->progress(job->options->opaque, job->at, job->at);
    if (r == 0 && job->at == 0)
        return fail(-EINVAL, "the input is empty, and a disk has at least one sector");
    return r;
}

int copy_stream_into(struct storage *s, struct new_image *n, int fd, uint64_t virtual_size,
                     const struct vhdx_copy_options *o)
{
    struct input_job job = {.plan = n, .options = o, .fd = fd};
    int r = mib_set_init(&job.present, MAX_VIRTUAL_BYTES / n->values.block_size);

    if (r < 0)
        return r;
    copy_target_init(&job.target, s, true, o);
    job.limit = virtual_size ? virtual_size : MAX_VIRTUAL_BYTES;
    r = copy_input(&job);
    if (r == 0)
        r = new_image_plan_behind_payload(n, virtual_size ? virtual_size : align_up(job.at, n->values.logical_sector_size),
                                          job.present.count);
    if (r == 0)
        r = copy_target_failed(o, image_write_tables(n, s, &job.present));
    mib_set_free(&job.present);
    return r < 0 ? r : copy_target_failed(o, image_seal(s));
}

/* What can be judged before the first byte was read. */
static int check_options(struct new_image *n, const struct vhdx_create_options *options)
{
    int r = new_image_refuse_child(options);

    if (r == 0)
        r = new_image_init(n, options);
    if (r == 0 && options->preallocation != VHDX_PREALLOC_OFF)
        return fail(-EINVAL, "the space for a stream cannot be preallocated, since its length is not known");
    if (r == 0 && options->virtual_size != 0)
        r = new_image_plan(n, options->virtual_size);
    return r;
}

int ops_copy_stream_to_image(int fd, const char *path, const struct vhdx_create_options *create_options,
                             const struct vhdx_copy_options *copy_options)
{
    static const struct vhdx_copy_options defaults = VHDX_COPY_OPTIONS_INIT;
    const struct vhdx_copy_options *o = copy_options ? copy_options : &defaults;
    struct new_image n;
    struct new_file f;

    int r = copy_check_options(o);
    if (r == 0)
        r = check_options(&n, create_options);
    if (r == 0)
        r = copy_target_failed(o, new_file_begin(&f, path, create_options->replace ? OLD_FILE_GOES : OLD_FILE_STAYS));
    if (r < 0)
        return r;
    r = copy_stream_into(f.file, &n, fd, create_options->virtual_size, o);
    if (r == 0)
        r = copy_target_failed(o, new_file_publish(&f));
    new_file_end(&f);
    return r;
}
