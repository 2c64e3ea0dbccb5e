/* SPDX-License-Identifier: MIT */
/* Where a disk differs from one of its parents.  Whatever an image between the two defines is a candidate; tables alone decide
 * that, and what both sides know to be zeros is none. */
#include "ops/ops.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "base/zero.h"
#include "disk/disk.h"

#define BUFFER_BYTES KIB(256)
#define UNIT_BYTES KIB(4) /* what is told apart when content is compared */

struct diff {
    struct vhdx_disk *disk;
    uint32_t since;
    struct extent_cursor here, there; /* there: from `since` on */
    struct vhdx_extent a, b; /* what both say of the place at which both are */
    uint64_t at, end, start;
    bool verify;
    uint8_t *buffers[2];
    struct vhdx_extent gathered; /* length 0: nothing yet */
    vhdx_extent_fn *fn;
    void *opaque;
    vhdx_progress_fn *progress;
    void *progress_opaque;
};

/* ---- what is found ---- */

static int hand_over(struct diff *d)
{
    int r = d->gathered.length > 0 ? d->fn(d->opaque, &d->gathered) : 0;
    d->gathered.length = 0;
    return r;
}

/* A difference: bytes of the extent at hand, from `from` on. */
static int found(struct diff *d, uint64_t from, uint64_t bytes)
{
    struct vhdx_extent e = d->a;

    e.guest_offset += from;
    e.length = bytes;
    if (e.flags & VHDX_EXTENT_DATA)
        e.file_offset += from;
    if (d->gathered.length > 0 && d->gathered.guest_offset + d->gathered.length == e.guest_offset &&
        extents_join(&d->gathered, &e)) {
        d->gathered.length += bytes;
        return 0;
    }
    int r = hand_over(d);
    d->gathered = e;
    return r;
}

/* ---- content ---- */

static int read_side(struct vhdx_disk *disk, const struct vhdx_extent *e, uint64_t at, uint8_t *buffer, size_t bytes)
{
    if (!(e->flags & VHDX_EXTENT_DATA)) {
        memset(buffer, 0, bytes);
        return 0;
    }
    return extent_pread(disk, e, at - e->guest_offset, buffer, bytes);
}

static int compare_units(struct diff *d, uint64_t at, size_t bytes)
{
    int r = 0;

    for (size_t done = 0; r == 0 && done < bytes;) {
        size_t n = min_u64(UNIT_BYTES - (at + done) % UNIT_BYTES, bytes - done);
        if (memcmp(d->buffers[0] + done, d->buffers[1] + done, n) != 0)
            r = found(d, at + done - d->a.guest_offset, n);
        done += n;
    }
    return r;
}

static int report_progress(struct diff *d, uint64_t at)
{
    if (d->progress && d->progress(d->progress_opaque, at - d->start, d->end - d->start) != 0)
        return fail(-ECANCELED, "cancelled after %" PRIu64 " of %" PRIu64 " bytes", at - d->start, d->end - d->start);
    return 0;
}

static int compare_content(struct diff *d, uint64_t bytes)
{
    int r = 0;

    for (uint64_t at = d->at, end = d->at + bytes; r == 0 && at < end;) {
        size_t n = min_u64(BUFFER_BYTES - at % BUFFER_BYTES, end - at);
        r = read_side(d->disk, &d->a, at, d->buffers[0], n);
        if (r == 0)
            r = read_side(d->disk, &d->b, at, d->buffers[1], n);
        if (r == 0)
            r = compare_units(d, at, n);
        at += n;
        if (r == 0)
            r = report_progress(d, at);
    }
    return r;
}

/* ---- the walk ---- */

/* The stretch for which both sides say one thing each. */
static int judge_stretch(struct diff *d, uint64_t bytes)
{
    bool data_here = d->a.flags & VHDX_EXTENT_DATA, data_there = d->b.flags & VHDX_EXTENT_DATA;

    if (d->a.depth >= d->since || (!data_here && !data_there))
        return 0;
    return d->verify ? compare_content(d, bytes) : found(d, d->at - d->a.guest_offset, bytes);
}

static int walk(struct diff *d)
{
    int r = 0;

    while (r == 0 && d->at < d->end) {
        if (d->at >= d->a.guest_offset + d->a.length)
            r = extent_cursor_next(&d->here, UINT64_MAX, &d->a);
        if (r >= 0 && d->at >= d->b.guest_offset + d->b.length)
            r = extent_cursor_next(&d->there, UINT64_MAX, &d->b); /* behind the parent's end: zeros */
        if (r < 0)
            return r;
        uint64_t bytes = min_u64(d->a.guest_offset + d->a.length, d->b.guest_offset + d->b.length) - d->at;
        r = judge_stretch(d, bytes);
        d->at += bytes;
        if (r == 0)
            r = report_progress(d, d->at);
    }
    return r == 0 ? hand_over(d) : r;
}

static int run(struct diff *d, uint64_t length)
{
    int r = extent_cursor_init(&d->here, d->disk, d->start, length);

    if (r < 0)
        return r;
    r = extent_cursor_init_below(&d->there, d->disk, d->since, d->start, length);
    if (r == 0) {
        r = walk(d);
        extent_cursor_done(&d->there);
    }
    extent_cursor_done(&d->here);
    return r;
}

int ops_diff(vhdx_disk *disk, uint32_t since, uint64_t guest_offset, uint64_t length, uint32_t flags, vhdx_extent_fn *fn,
             void *opaque, vhdx_progress_fn *progress, void *progress_opaque)
{
    struct diff d = {.disk = disk, .since = since, .at = guest_offset, .start = guest_offset, .fn = fn, .opaque = opaque,
                     .verify = flags & VHDX_DIFF_VERIFY, .progress = progress, .progress_opaque = progress_opaque};
    int r = 0;

    if (since == 0 || since >= disk->nr_layers)
        return fail(-EINVAL, "depth %" PRIu32 " is none of a parent in a chain of %" PRIu32 " images", since, disk->nr_layers);
    if (flags & ~(uint32_t)VHDX_DIFF_VERIFY)
        return fail(-EINVAL, "unknown flags 0x%" PRIx32, flags);
    d.end = guest_offset + length; /* judged with the range, when the cursor is made */
    for (unsigned i = 0; d.verify && r == 0 && i < 2; i++) {
        d.buffers[i] = malloc(BUFFER_BYTES);
        if (!d.buffers[i])
            r = fail_memory("comparing");
    }
    if (r == 0)
        r = run(&d, length);
    free(d.buffers[0]);
    free(d.buffers[1]);
    return r;
}
