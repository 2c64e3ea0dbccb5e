/* SPDX-License-Identifier: MIT */
#include "ops/copy-image.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/math.h"
#include "base/zero.h"
#include "image/image.h"
#include "image/mib-set.h"
#include "ops/copy-disk.h"
#include "ops/copy-source.h"
#include "ops/copy-target.h"
#include "ops/copy-work.h"
#include "ops/image-writer.h"
#include "ops/new-file.h"
#include "ops/ops.h"
#include "storage/storage.h"

/*
 * A dynamic image gets a place only for blocks that hold anything but zeros, unless it takes all, in guest order.  Workers take
 * whole blocks, look for their first data side by side, then decide in turn who gets the next place, and copy side by side again.
 */
struct image_job {
    struct copy_work work; /* first, so that one is found by the other; its lock protects what follows the plan */
    struct vhdx_disk *disk;
    struct copy_target target;
    const struct new_image *plan;

    struct extent_cursor cursor;
    uint64_t next_ticket, turn; /* blocks are numbered as they are taken; the one whose turn it is may decide */
    struct mib_set present;     /* block numbers */
};

/* ---- dynamic: one block ---- */

static uint64_t block_no(const struct image_job *job, const struct copy_task *task)
{
    return task->extent.guest_offset >> job->plan->geometry.block_shift;
}

/* The next block that stores anything, or has to have space; the task is what of it may hold data. */
static int take_block(struct copy_work *work, struct copy_task *task)
{
    struct image_job *job = (struct image_job *)work;
    unsigned shift = job->plan->geometry.block_shift;
    struct vhdx_extent piece;
    int r;

    while ((r = copy_next_piece(&job->cursor, UINT64_MAX, &piece)) > 0) {
        if (!(piece.flags & VHDX_EXTENT_DATA) && !job->target.takes_all) {
            work->done_bytes += piece.length;
            continue;
        }
        task->extent.guest_offset = piece.guest_offset;
        job->cursor.at = min_u64((block_no(job, task) + 1) << shift, job->disk->size);
        task->extent.length = job->cursor.at - piece.guest_offset;
        task->ticket = job->next_ticket++;
        return 1;
    }
    return r;
}

/* Does a piece store anything but zeros?  1, 0 or a negative code. */
static int piece_has_data(struct vhdx_disk *disk, const struct vhdx_extent *piece, uint8_t *buffer)
{
    for (uint64_t from = 0; from < piece->length;) {
        size_t n = min_u64(COPY_BUFFER_BYTES, piece->length - from);
        int r = extent_pread(disk, piece, from, buffer, n);
        if (r < 0)
            return r;
        if (!memory_is_zero(buffer, n))
            return 1;
        from += n;
    }
    return 0;
}

/* Wait for the turn and take the next place, if the block needs one; with the lock held.  1: it got *place; 0: it needs
 * none, or somebody failed. */
static int take_place(struct image_job *job, const struct copy_task *task, bool needed, uint64_t *place)
{
    bool clash;
    int r = 0;

    while (job->turn != task->ticket && job->work.error == 0)
        pthread_cond_wait(&job->work.changed, &job->work.lock);
    if (job->work.error)
        return 0;
    if (needed) {
        *place = job->plan->payload_offset + (job->present.count << job->plan->geometry.block_shift);
        r = mib_set_add(&job->present, block_no(job, task), 1, &clash);
    }
    job->turn++;
    pthread_cond_broadcast(&job->work.changed);
    return r < 0 ? r : needed;
}

/* The next piece of the block with data, past zeros.  A block that is to be written without leaving anything out needs no
 * look at its content.  1, 0 at the end, or a negative code. */
static int find_data(struct image_job *job, struct extent_cursor *c, struct vhdx_extent *piece, uint8_t *buffer)
{
    int r;

    while ((r = copy_next_piece(c, COPY_PIECE_BYTES, piece)) > 0) {
        if (job->target.takes_all)
            return 1;
        if (!(piece->flags & VHDX_EXTENT_DATA))
            continue;
        r = piece_has_data(job->disk, piece, buffer);
        if (r != 0)
            return r;
    }
    return r;
}

/* From the piece on that was found. */
static int copy_rest(struct image_job *job, const struct copy_task *task, uint64_t place, struct extent_cursor *c,
                     struct vhdx_extent *piece, uint8_t *buffer)
{
    uint64_t block_start = block_no(job, task) << job->plan->geometry.block_shift;
    int r;

    do {
        uint64_t offset = place + (piece->guest_offset - block_start);
        r = piece->flags & VHDX_EXTENT_DATA ? copy_target_piece(&job->target, job->disk, piece, offset, buffer)
                                            : copy_target_zero(&job->target, offset, piece->length);
        if (r == 0) {
            pthread_mutex_lock(&job->work.lock);
            r = copy_work_done(&job->work, piece->length);
            bool stop = job->work.error != 0;
            pthread_mutex_unlock(&job->work.lock);
            if (stop)
                return r;
        }
    } while (r == 0 && (r = copy_next_piece(c, COPY_PIECE_BYTES, piece)) > 0);
    return r;
}

static int64_t copy_block(struct copy_work *work, const struct copy_task *task, uint8_t *buffer)
{
    struct image_job *job = (struct image_job *)work;
    struct vhdx_extent piece = {0};
    struct extent_cursor c;
    uint64_t place = 0;
    int r = extent_cursor_init(&c, job->disk, task->extent.guest_offset, task->extent.length);

    if (r < 0)
        return r;
    r = find_data(job, &c, &piece, buffer);
    if (r >= 0) {
        bool needed = r > 0;
        pthread_mutex_lock(&work->lock);
        r = take_place(job, task, needed, &place);
        if (r >= 0 && work->error == 0)
            work->done_bytes += needed ? piece.guest_offset - task->extent.guest_offset : task->extent.length;
        pthread_mutex_unlock(&work->lock);
    }
    if (r > 0)
        r = copy_rest(job, task, place, &c, &piece, buffer);
    extent_cursor_done(&c);
    return r;
}

/* ---- whole images ---- */

static int copy_dynamic(struct storage *s, struct new_image *n, struct vhdx_disk *disk, const struct vhdx_copy_options *o)
{
    struct image_job job = {.disk = disk, .plan = n};
    int r = mib_set_init(&job.present, n->geometry.nr_blocks);

    if (r < 0)
        return r;
    copy_target_init(&job.target, s, true, o);
    r = extent_cursor_init(&job.cursor, disk, 0, disk->size);
    if (r == 0) {
        r = copy_work_run(&job.work, take_block, copy_block, o, disk->size);
        extent_cursor_done(&job.cursor);
    }
    if (r == 0) {
        new_image_set_stored(n, job.present.count);
        r = copy_target_failed(o, image_write_tables(n, s, &job.present));
    }
    mib_set_free(&job.present);
    return r;
}

int copy_disk_into(struct storage *s, struct new_image *n, struct vhdx_disk *disk, enum vhdx_preallocation preallocation,
                   const struct vhdx_copy_options *o)
{
    int r = image_preallocate(n, s, preallocation, o->progress, o->opaque);

    if (r < 0)
        return copy_target_failed(o, r);
    if (new_image_is_fixed(n)) {
        r = copy_disk(disk, s, n->payload_offset, true, o);
        if (r == 0)
            r = copy_target_failed(o, image_write_tables(n, s, NULL));
    } else {
        r = copy_dynamic(s, n, disk, o);
    }
    return r < 0 ? r : copy_target_failed(o, image_seal(s));
}

/* ---- in a file ---- */

/* Our own lock on a source would be taken for another program's. */
static int refuse_source(struct vhdx_disk *disk, const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return 0;
    const struct layer *same = disk_find_layer(disk, &(struct storage_identity){st.st_dev, st.st_ino});
    if (!same)
        return 0;
    return fail(-EINVAL, same == disk->layers ? "source and target are the same file (%s)" : "the target is a parent of the source (%s)",
                same->path);
}

/* What the options leave open is as the source has it. */
static struct vhdx_create_options complete_options(const struct vhdx_disk *disk, const struct vhdx_create_options *options)
{
    struct vhdx_create_options o = *options;
    const struct image *img = disk->layers[0].img;

    if (img && o.logical_sector_size == 0)
        o.logical_sector_size = img->values.logical_sector_size;
    if (img && o.physical_sector_size == 0)
        o.physical_sector_size = img->values.physical_sector_size;
    return o;
}

static int plan_for_disk(struct new_image *n, const struct vhdx_disk *disk, const struct vhdx_create_options *o)
{
    int r = new_image_refuse_child(o);

    if (r == 0)
        r = new_image_init(n, o);
    if (r < 0)
        return r;
    if (o->virtual_size != 0 && o->virtual_size < disk->size)
        return fail(-EINVAL, "the disk has %" PRIu64 " bytes, an image of %" PRIu64 " bytes cannot hold it", disk->size,
                    o->virtual_size);
    if (o->virtual_size == 0 && disk->size > MAX_VIRTUAL_BYTES)
        return new_image_plan(n, disk->size);
    return new_image_plan(n, o->virtual_size ? o->virtual_size : align_up(disk->size, n->values.logical_sector_size));
}

int ops_copy_to_image(vhdx_disk *disk, const char *path, const struct vhdx_create_options *create_options,
                      const struct vhdx_copy_options *copy_options)
{
    static const struct vhdx_copy_options defaults = VHDX_COPY_OPTIONS_INIT;
    const struct vhdx_copy_options *o = copy_options ? copy_options : &defaults;
    struct vhdx_create_options complete = complete_options(disk, create_options);
    struct new_image n;
    struct new_file f;

    int r = copy_check_options(o);
    if (r == 0)
        r = plan_for_disk(&n, disk, &complete);
    if (r == 0)
        r = refuse_source(disk, path);
    if (r == 0)
        r = copy_target_failed(o, new_file_begin(&f, path, complete.replace ? OLD_FILE_GOES : OLD_FILE_STAYS));
    if (r < 0)
        return r;
    r = copy_disk_into(f.file, &n, disk, complete.preallocation, o);
    if (r == 0)
        r = copy_target_failed(o, new_file_publish(&f));
    new_file_end(&f);
    return r;
}
