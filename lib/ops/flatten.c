/* SPDX-License-Identifier: MIT */
/* Everything that a guest reads from the parents is copied up; then the parent goes (format section 9.12).  The content stays,
 * and so does the identity. */
#include "ops/flatten.h"

#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/disk.h"
#include "disk/info.h"
#include "disk/write-child.h"
#include "format/parent-locator.h"
#include "image/drop-parent.h"
#include "image/image.h"
#include "image/writer.h"
#include "ops/copy-source.h"
#include "ops/copy-target.h"
#include "ops/copy-work.h"
#include "ops/ops.h"

struct flatten_job {
    struct copy_work work; /* first, so that one is found by the other; its lock protects the cursor */
    struct vhdx_disk *disk;
    struct copy_target to;
    struct extent_cursor cursor;
};

static struct image *image_of(const struct flatten_job *job)
{
    return job->disk->layers[0].img;
}

/* ---- a range that is the parents' ---- */

struct range {
    struct flatten_job *job;
    uint64_t start; /* guest offset */
    uint8_t *buffer;
};

/* What the parents have in the range, to its place in the file. */
static int put_range(void *opaque, uint64_t bytes, uint64_t file_offset)
{
    struct range *range = opaque;
    struct flatten_job *job = range->job;
    struct vhdx_extent piece;
    struct extent_cursor c;
    int r = extent_cursor_init_below(&c, job->disk, 1, range->start, bytes);

    if (r < 0)
        return r;
    while ((r = copy_next_piece(&c, COPY_PIECE_BYTES, &piece)) > 0) {
        uint64_t place = file_offset + (piece.guest_offset - range->start);
        r = piece.flags & VHDX_EXTENT_DATA ? copy_target_piece(&job->to, job->disk, &piece, place, range->buffer)
                                           : writer_make_zero(image_of(job), place, piece.length, ZERO_BY_HOLE);
        if (r < 0)
            break;
    }
    extent_cursor_done(&c);
    return r;
}

static int copy_up(struct flatten_job *job, uint64_t start, uint64_t end, uint8_t *buffer)
{
    struct range range = {.job = job, .start = start, .buffer = buffer};
    return child_change(job->disk, put_range, &range, start, end - start);
}

/* ---- blocks ---- */

/* Copy all stretches of the block that the image does not define itself. */
static int64_t complete_block(struct copy_work *work, const struct copy_task *task, uint8_t *buffer)
{
    struct flatten_job *job = (struct flatten_job *)work;
    uint64_t missing = task->extent.guest_offset, end = missing + task->extent.length;
    struct extent_cursor c;
    struct vhdx_extent e;
    int r = extent_cursor_init(&c, job->disk, missing, end - missing);

    if (r < 0)
        return r;
    while ((r = extent_cursor_next(&c, UINT64_MAX, &e)) > 0) {
        if (e.depth > 0)
            continue; /* missing grows */
        r = e.guest_offset > missing ? copy_up(job, missing, e.guest_offset, buffer) : 0;
        missing = e.guest_offset + e.length;
        if (r < 0)
            break;
    }
    extent_cursor_done(&c);
    return r < 0 || missing == end ? r : copy_up(job, missing, end, buffer);
}

/* Does the block, at the first piece of the parents in it, need space?  One that is not present at all and reads as zeros does
 * not: that is what such a block means without a parent. */
static int needs_space(struct flatten_job *job, const struct vhdx_extent *piece)
{
    struct bat_entry e;
    int r = 1;

    if (!(piece->flags & VHDX_EXTENT_DATA)) {
        r = bat_lookup(image_of(job), piece->guest_offset >> image_of(job)->geometry.block_shift, &e);
        r = r < 0 ? r : e.state == PAYLOAD_PARTIALLY_PRESENT;
    }
    return r;
}

/* The next block that has to be completed. */
static int take_block(struct copy_work *work, struct copy_task *task)
{
    struct flatten_job *job = (struct flatten_job *)work;
    const struct geometry *g = &image_of(job)->geometry;
    struct vhdx_extent piece;
    int r;

    while ((r = copy_next_piece(&job->cursor, UINT64_MAX, &piece)) > 0) {
        r = piece.depth > 0 ? needs_space(job, &piece) : 0;
        if (r < 0)
            return r;
        if (r > 0) {
            uint64_t start = align_down(piece.guest_offset, g->block_size), end = min_u64(start + g->block_size, job->disk->size);
            task->extent.guest_offset = start;
            task->extent.length = end - start;
            work->done_bytes = max_u64(work->done_bytes, piece.guest_offset);
            job->cursor.at = end;
            return 1;
        }
    }
    return r;
}

int flatten_disk(struct vhdx_disk *disk, const struct vhdx_copy_options *o)
{
    struct image *img = disk->layers[0].img;
    struct flatten_job job = {.disk = disk};
    int r = writer_begin_invisible(img);

    if (r < 0)
        return r;
    copy_target_init(&job.to, img->file, false, o);
    job.to.sparse_bytes = 0; /* what the space held before has to go */
    r = extent_cursor_init(&job.cursor, disk, 0, disk->size);
    if (r < 0)
        return r;
    r = copy_work_run(&job.work, take_block, complete_block, o, disk->size);
    extent_cursor_done(&job.cursor);
    if (r == 0)
        r = writer_commit(img);
    return r < 0 ? r : image_drop_parent(img);
}

/* ---- with files ---- */

static int check_options(const struct vhdx_flatten_options *o)
{
    if (o->struct_bytes != sizeof *o)
        return fail(-EINVAL, "flatten options: struct_bytes is %zu, not %zu; begin with VHDX_FLATTEN_OPTIONS_INIT", o->struct_bytes,
                    sizeof *o);
    if (o->open && (o->open->flags & ~(uint32_t)VHDX_OPEN_ALLOW_PARENT_PATH))
        return fail(-EINVAL, "flatten options: of the flags for opening only VHDX_OPEN_ALLOW_PARENT_PATH makes sense");
    return 0;
}

/* A merge of the image that did not come to its end left a part of it in the parent, which nothing but this image's link tells.
 */
static int refuse_merging(const struct vhdx_disk *disk)
{
    const guid *parent = &disk->layers[1].img->header.data_write_guid;
    guid linkage, linkage2;

    locator_linkage(disk->layers[0].img->locator, &linkage, &linkage2);
    bool has_all = guid_equal(parent, &linkage2) && guid_equal(parent, &disk->layers[0].img->header.data_write_guid);
    if (!linkage_is_merging(&linkage, &linkage2) || has_all)
        return 0;
    return fail(VHDX_E_CHAIN,
                "a merge of this image into its parent %s was begun and did not come to its end, and without this image that one would stay a "
                "mixture; complete it first with the same command, 'vhdx snapshot --delete' or 'vhdx merge --delete'", disk->layers[1].path);
}

int ops_flatten(const char *path, const struct vhdx_flatten_options *options)
{
    static const struct vhdx_flatten_options defaults = VHDX_FLATTEN_OPTIONS_INIT;
    const struct vhdx_flatten_options *o = options ? options : &defaults;
    struct vhdx_open_options open = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_copy_options copy = VHDX_COPY_OPTIONS_INIT;
    struct vhdx_disk *disk;
    struct error_text text;

    int r = check_options(o);
    if (r == 0 && o->open)
        open = *o->open;
    open.flags |= VHDX_OPEN_WRITE;
    if (r == 0)
        r = disk_open(path, &open, &disk);
    if (r < 0)
        return r;
    copy.nr_threads = o->nr_threads;
    copy.reflink = o->reflink;
    copy.progress = o->progress;
    copy.opaque = o->opaque;
    if (disk->nr_layers == 1)
        r = fail(-EINVAL, "the image has no parent that it could be made independent of");
    else
        r = refuse_merging(disk);
    if (r == 0)
        r = flatten_disk(disk, &copy);
    error_save(&text);
    int closed = disk_close(disk);
    if (r < 0)
        error_restore(&text);
    return r < 0 ? r : closed;
}
