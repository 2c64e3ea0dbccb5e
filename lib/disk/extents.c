/* SPDX-License-Identifier: MIT */
#include "disk/disk.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/shortcut.h"
#include "image/image.h"
#include "storage/storage.h"

int extent_cursor_init(struct extent_cursor *c, struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length)
{
    return extent_cursor_init_below(c, disk, 0, guest_offset, length);
}

int extent_cursor_init_below(struct extent_cursor *c, struct vhdx_disk *disk, uint32_t first_layer, uint64_t guest_offset,
                             uint64_t length)
{
    if (!range_fits(guest_offset, length, disk->size))
        return fail(-EINVAL, "%" PRIu64 " bytes at %" PRIu64 " reach beyond the end of the disk, %" PRIu64 " bytes",
                    length, guest_offset, disk->size);
    c->disk = disk;
    c->at = guest_offset;
    c->end = guest_offset + length;
    c->first_layer = first_layer;
    c->runs = c->inline_runs;
    if (disk->nr_layers > CURSOR_INLINE_LAYERS) {
        c->runs = malloc(disk->nr_layers * sizeof *c->runs);
        if (!c->runs)
            return fail_memory("walking a chain of images");
    }
    memset(c->asked, 0, sizeof c->asked);
    return 0;
}

void extent_cursor_done(struct extent_cursor *c)
{
    if (c->runs != c->inline_runs)
        free(c->runs);
}

/* A raw file holds data where the file system has any. */
static int resolve_raw(const struct layer *layer, uint64_t at, uint64_t max_length, struct run *run)
{
    uint64_t start, end;
    int r = storage_next_data(layer->raw, at, &start, &end);

    if (r < 0)
        return r;
    if (start == end && end < layer->size) /* what is gone must not be taken for zeros */
        return fail(VHDX_E_TRUNCATED,
                    "the file shrank from %" PRIu64 " to %" PRIu64 " bytes while it was open; another program is changing it",
                    layer->size, end);
    run->present = true;
    if (start > at || start == end) {
        run->kind = RUN_ZERO;
        run->length = start == end ? max_length : min_u64(max_length, start - at);
    } else {
        run->kind = RUN_DATA;
        run->file_offset = at;
        run->length = min_u64(max_length, end - at);
    }
    return 0;
}

/* What layer number n said last. */
static struct layer_run *run_of(struct extent_cursor *c, uint32_t n)
{
    uint64_t bit = UINT64_C(1) << n % 64;

    if (!(c->asked[n / 64] & bit))
        c->runs[n] = (struct layer_run){.told_from = UINT64_MAX};
    c->asked[n / 64] |= bit;
    return &c->runs[n];
}

/* Ask layer number n what it says of the range that begins at c->at. */
static int ask_layer(struct extent_cursor *c, uint32_t n)
{
    const struct layer *layer = &c->disk->layers[n];
    struct layer_run *cached = run_of(c, n);
    uint64_t max_length = min_u64(c->end, layer->size) - c->at;
    struct run run = {0};

    int r = layer->img ? image_resolve(layer->img, c->at, max_length, &run)
                       : resolve_raw(layer, c->at, max_length, &run);
    if (r < 0)
        return n > 0 ? fail_in(r, "parent %s", layer->path) : r;
    cached->start = c->at;
    cached->end = c->at + run.length;
    cached->file_offset = run.file_offset;
    cached->kind = run.kind;
    cached->present = run.present;
    return 0;
}

static int parent_is_needed(const struct extent_cursor *c)
{
    const struct layer *last = &c->disk->layers[c->disk->nr_layers - 1];
    return fail(VHDX_E_PARENT_NOT_FOUND,
                "%s: what lies at offset %" PRIu64 " of the disk is in its parent, which was not opened", last->path,
                c->at);
}

int extent_cursor_next(struct extent_cursor *c, uint64_t max_length, struct vhdx_extent *e)
{
    uint64_t end = min_u64(c->end, max_length < c->end - c->at ? c->at + max_length : c->end);
    uint32_t n = c->first_layer;

    if (c->at == c->end)
        return 0;
    *e = (struct vhdx_extent){.guest_offset = c->at};
    for (;; n++) {
        if (n == c->disk->nr_layers)
            return parent_is_needed(c);
        if (c->at >= c->disk->layers[n].size) {
            e->flags = VHDX_EXTENT_ZERO; /* a parent shorter than its child (5.6) */
            break;
        }
        struct layer_run *run = run_of(c, n);
        if (c->at < run->start || c->at >= run->end) {
            int r = ask_layer(c, n);
            if (r < 0)
                return r;
        }
        end = min_u64(end, run->end);
        if (run->kind == RUN_DATA) {
            e->flags = VHDX_EXTENT_DATA | VHDX_EXTENT_PRESENT;
            e->file_offset = run->file_offset + (c->at - run->start);
            break;
        }
        if (run->kind == RUN_ZERO) {
            e->flags = VHDX_EXTENT_ZERO | (run->present ? VHDX_EXTENT_PRESENT : 0);
            break;
        }
        struct shortcut s;
        if (shortcut_below(c->disk, n + 1, c->at, end - c->at, &s)) {
            n = s.first_layer - 1;
            continue;
        }
        /* Behind the parent's end zeros begin, so the extent cannot be longer than that. */
        if (n + 1 < c->disk->nr_layers && c->at < c->disk->layers[n + 1].size)
            end = min_u64(end, c->disk->layers[n + 1].size);
    }
    e->depth = n;
    e->length = end - c->at;
    c->at = end;
    return 1;
}

bool extents_join(const struct vhdx_extent *a, const struct vhdx_extent *b)
{
    return a->flags == b->flags && a->depth == b->depth &&
           (!(a->flags & VHDX_EXTENT_DATA) || a->file_offset + a->length == b->file_offset);
}

int disk_map(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, vhdx_extent_fn *fn, void *opaque)
{
    struct extent_cursor c;
    struct vhdx_extent next, gathered = {0};
    int r = extent_cursor_init(&c, disk, guest_offset, length);

    if (r < 0)
        return r;
    while ((r = extent_cursor_next(&c, UINT64_MAX, &next)) > 0) {
        if (gathered.length > 0 && extents_join(&gathered, &next)) {
            gathered.length += next.length;
            continue;
        }
        if (gathered.length > 0 && (r = fn(opaque, &gathered)) != 0)
            break;
        gathered = next;
    }
    if (r == 0 && gathered.length > 0)
        r = fn(opaque, &gathered);
    extent_cursor_done(&c);
    return r;
}
