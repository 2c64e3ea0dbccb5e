/* SPDX-License-Identifier: MIT */
/* Content of the upper images into the target.  Whatever any of them defines goes there, the uppermost first to be asked; what
 * none defines is the target's own, or its parents', already. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/write-child.h"
#include "image/image.h"
#include "image/writer.h"
#include "ops/copy-source.h"
#include "ops/copy-target.h"
#include "ops/copy-work.h"
#include "ops/merge.h"
#include "storage/storage.h"

struct merge_job {
    struct copy_work work; /* first, so that one is found by the other; its lock protects the walk */
    struct merge *m;
    struct copy_target to;
    struct extent_cursor cursor;
    struct vhdx_extent held; /* a piece taken and not given to a worker yet; length 0: none */
};

/* ---- the walk ---- */

/* The next thing that an upper image defines, of one kind; zeros as long as possible.  1, 0 at the end, or a negative code. */
static int next_defined(struct merge_job *job, struct vhdx_extent *piece)
{
    int r;

    do
        r = extent_cursor_next(&job->cursor, UINT64_MAX, piece);
    while (r > 0 && piece->depth >= job->m->nr_upper);
    if (r > 0 && (piece->flags & VHDX_EXTENT_DATA))
        r = copy_cut_piece(&job->cursor, COPY_PIECE_BYTES, piece);
    return r;
}

static int take_piece(struct merge_job *job, struct vhdx_extent *piece)
{
    int r = 1;

    if (job->held.length > 0)
        *piece = job->held;
    else
        r = next_defined(job, piece);
    job->held.length = 0;
    if (r <= 0 || (piece->flags & VHDX_EXTENT_DATA))
        return r;
    while ((r = next_defined(job, &job->held)) > 0 && !(job->held.flags & VHDX_EXTENT_DATA) &&
           job->held.guest_offset == piece->guest_offset + piece->length)
        piece->length += job->held.length;
    if (r <= 0)
        job->held.length = 0;
    return r < 0 ? r : 1;
}

static int walk_begin(struct merge_job *job, struct merge *m)
{
    *job = (struct merge_job){.m = m};
    copy_target_init(&job->to, merge_target_image(m)->file, false, m->options);
    job->to.sparse_bytes = 0; /* zeros have to replace what is there */
    return extent_cursor_init(&job->cursor, &m->view, 0, m->view.size);
}

/* ---- zeros ---- */

typedef int zeros_fn(struct merge *m, uint64_t guest_offset, uint64_t bytes, void *opaque);

/* What of the range the target, with its parents, does not read as zeros. */
static int for_each_nonzero(struct merge *m, uint64_t guest_offset, uint64_t bytes, zeros_fn *fn, void *opaque)
{
    struct extent_cursor c;
    struct vhdx_extent e;
    int r = extent_cursor_init(&c, m->target, guest_offset, bytes);

    if (r < 0)
        return r;
    while ((r = extent_cursor_next(&c, UINT64_MAX, &e)) > 0) {
        if (e.flags & VHDX_EXTENT_DATA)
            r = fn(m, e.guest_offset, e.length, opaque);
        if (r < 0)
            break;
    }
    extent_cursor_done(&c);
    return r;
}

static int discard(struct merge *m, uint64_t guest_offset, uint64_t bytes, void *opaque)
{
    (void)opaque;
    return disk_discard(m->target, guest_offset, bytes, 0); /* reads as zeros, and gives its space back */
}

static int count_zeros(struct merge *m, uint64_t guest_offset, uint64_t bytes, void *opaque)
{
    uint64_t *sum = opaque;

    (void)m;
    (void)guest_offset;
    *sum += bytes;
    return 0;
}

/* ---- data ---- */

/* A piece inside one of the target's blocks. */
struct part {
    struct merge_job *job;
    struct vhdx_extent extent;
    uint8_t *buffer;
};

static int put_part(void *opaque, uint64_t bytes, uint64_t file_offset)
{
    struct part *p = opaque;

    (void)bytes; /* all of it */
    return copy_target_piece(&p->job->to, &p->job->m->view, &p->extent, file_offset, p->buffer);
}

static int store_in_block(struct part *p)
{
    struct image *img = merge_target_image(p->job->m);
    const struct geometry *g = &img->geometry;
    struct inflight_ticket ticket = inflight_enter(&img->writer->inflight); /* the place stays this block's until we leave */
    uint64_t place;

    int r = block_for_write(img, p->extent.guest_offset >> g->block_shift, &place);
    if (r == 0)
        r = put_part(p, p->extent.length, place + (p->extent.guest_offset & (g->block_size - 1)));
    inflight_leave(ticket);
    return r;
}

static int store_part(struct part *p)
{
    struct vhdx_disk *target = p->job->m->target;

    if (image_has_parent(target->layers[0].img))
        return child_change(target, put_part, p, p->extent.guest_offset, p->extent.length);
    return store_in_block(p);
}

static int store_piece(struct merge_job *job, const struct vhdx_extent *piece, uint8_t *buffer)
{
    const struct geometry *g = &merge_target_image(job->m)->geometry;
    int r = 0;

    for (uint64_t done = 0; r == 0 && done < piece->length;) {
        struct part p = {.job = job, .extent = *piece, .buffer = buffer};
        p.extent.guest_offset += done;
        p.extent.file_offset += done;
        p.extent.length = min_u64(piece->length - done, g->block_size - (p.extent.guest_offset & (g->block_size - 1)));
        r = store_part(&p);
        done += p.extent.length;
    }
    return r;
}

static int take_task(struct copy_work *work, struct copy_task *task)
{
    return take_piece((struct merge_job *)work, &task->extent);
}

static int64_t merge_piece(struct copy_work *work, const struct copy_task *task, uint8_t *buffer)
{
    struct merge_job *job = (struct merge_job *)work;
    const struct vhdx_extent *piece = &task->extent;

    if (!(piece->flags & VHDX_EXTENT_DATA))
        return for_each_nonzero(job->m, piece->guest_offset, piece->length, discard, NULL); /* no bytes of the work */
    int r = store_piece(job, piece, buffer);
    return r < 0 ? r : (int64_t)piece->length;
}

int merge_content(struct merge *m, const struct merge_cost *cost)
{
    struct merge_job job;
    int r = walk_begin(&job, m);

    if (r < 0)
        return r;
    r = copy_work_run(&job.work, take_task, merge_piece, m->options, cost->copy_bytes);
    extent_cursor_done(&job.cursor);
    return r;
}

/* ---- what it costs ---- */

/* Blocks of the target that the piece needs space for; *counted_to keeps one from being counted for two pieces. */
static int count_space(struct merge *m, const struct vhdx_extent *piece, uint64_t *counted_to, uint64_t *bytes)
{
    struct image *img = merge_target_image(m);
    const struct geometry *g = &img->geometry;
    uint64_t first = max_u64(piece->guest_offset >> g->block_shift, *counted_to);
    uint64_t end = ((piece->guest_offset + piece->length - 1) >> g->block_shift) + 1;
    struct bat_entry e;

    for (uint64_t no = first; no < end; no++) {
        int r = bat_lookup(img, no, &e);
        if (r < 0)
            return r;
        if (e.state != PAYLOAD_FULLY_PRESENT && e.state != PAYLOAD_PARTIALLY_PRESENT)
            *bytes += g->block_size;
    }
    *counted_to = max_u64(*counted_to, end);
    return 0;
}

int merge_count(struct merge *m, struct merge_cost *cost)
{
    struct merge_job job;
    struct vhdx_extent piece;
    uint64_t counted_to = 0;
    int r = walk_begin(&job, m);

    *cost = (struct merge_cost){0};
    if (r < 0)
        return r;
    while ((r = take_piece(&job, &piece)) > 0) {
        if (piece.flags & VHDX_EXTENT_DATA) {
            cost->copy_bytes += piece.length;
            r = count_space(m, &piece, &counted_to, &cost->space_bytes);
        } else {
            r = for_each_nonzero(m, piece.guest_offset, piece.length, count_zeros, &cost->zero_bytes);
        }
        if (r == 0 && m->options->progress && m->options->progress(m->options->opaque, 0, 0) != 0)
            r = fail(-ECANCELED, "cancelled before anything was changed");
        if (r < 0)
            break;
    }
    extent_cursor_done(&job.cursor);
    return r;
}
