/* SPDX-License-Identifier: MIT */
#include "ops/ops.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "base/zero.h"
#include "ops/copy-source.h"
#include "storage/storage.h"

#define BUFFER_BYTES KIB(256)
#define PIECE_BYTES MIB(64)

/* One side of the comparison: the piece at hand, and how much of it is done. */
struct side {
    vhdx_disk *disk;
    struct extent_cursor cursor;
    struct vhdx_extent piece;
    uint64_t done; /* bytes of piece */
    uint8_t *buffer;
};

struct comparison {
    struct side sides[2];
    uint64_t at, end; /* guest offsets; end is the longer disk's */
    vhdx_progress_fn *progress;
    void *opaque;
};

/* Make sure that a piece is at hand that reaches beyond at; behind the disk's end it is zeros. */
static int refill(struct side *s, uint64_t at, uint64_t end)
{
    if (s->done < s->piece.length)
        return 0;
    int r = copy_next_piece(&s->cursor, PIECE_BYTES, &s->piece);
    s->done = 0;
    if (r == 0)
        s->piece = (struct vhdx_extent){.guest_offset = at, .length = end - at, .flags = VHDX_EXTENT_ZERO};
    return r < 0 ? r : 0;
}

static bool is_data(const struct side *s)
{
    return s->piece.flags & VHDX_EXTENT_DATA;
}

/* Do both pieces lie at the same place of the same file, as with two children of one parent? */
static bool same_bytes(const struct side *a, const struct side *b)
{
    const struct storage *x = layer_file(&a->disk->layers[a->piece.depth]);
    const struct storage *y = layer_file(&b->disk->layers[b->piece.depth]);

    return is_data(a) && is_data(b) && is_same_file(&x->identity, &y->identity) &&
           a->piece.file_offset + a->done == b->piece.file_offset + b->done;
}

/* The first differing byte of bytes at both sides' positions; bytes if there is none. */
static int64_t first_difference(struct side sides[2], size_t bytes)
{
    static const uint8_t zeros[4096];

    for (unsigned i = 0; i < 2; i++) {
        int r = is_data(&sides[i]) ? extent_pread(sides[i].disk, &sides[i].piece, sides[i].done, sides[i].buffer, bytes) : 0;
        if (r < 0)
            return r;
    }
    if (is_data(&sides[0]) && is_data(&sides[1])) {
        if (memcmp(sides[0].buffer, sides[1].buffer, bytes) == 0)
            return (int64_t)bytes;
    } else if (memory_is_zero(sides[is_data(&sides[0]) ? 0 : 1].buffer, bytes)) {
        return (int64_t)bytes;
    }
    for (size_t i = 0; i < bytes; i++) {
        const uint8_t *a = is_data(&sides[0]) ? &sides[0].buffer[i] : zeros;
        const uint8_t *b = is_data(&sides[1]) ? &sides[1].buffer[i] : zeros;
        if (*a != *b)
            return (int64_t)i;
    }
    return (int64_t)bytes;
}

/* Compare the stretch for which both sides have one piece.  1: equal so far; 0: *difference found. */
static int compare_stretch(struct comparison *c, uint64_t *difference)
{
    struct side *a = &c->sides[0], *b = &c->sides[1];
    uint64_t bytes = min_u64(a->piece.length - a->done, b->piece.length - b->done);

    if ((!is_data(a) && !is_data(b)) || same_bytes(a, b)) {
        a->done += bytes;
        b->done += bytes;
        c->at += bytes;
        return 1;
    }
    size_t n = min_u64(bytes, BUFFER_BYTES);
    int64_t equal = first_difference(c->sides, n);
    if (equal < 0)
        return (int)equal;
    if ((uint64_t)equal < n) {
        *difference = c->at + (uint64_t)equal;
        return 0;
    }
    a->done += n;
    b->done += n;
    c->at += n;
    return 1;
}

static int compare_all(struct comparison *c, struct vhdx_compare_result *result)
{
    while (c->at < c->end) {
        int r = refill(&c->sides[0], c->at, c->end);
        if (r == 0)
            r = refill(&c->sides[1], c->at, c->end);
        if (r == 0)
            r = compare_stretch(c, &result->first_difference);
        if (r <= 0)
            return r;
        if (c->progress && c->progress(c->opaque, c->at, c->end) != 0)
            return fail(-ECANCELED, "cancelled after %" PRIu64 " of %" PRIu64 " bytes", c->at, c->end);
    }
    result->identical = true;
    return 0;
}

int ops_compare(vhdx_disk *a, vhdx_disk *b, struct vhdx_compare_result *result, vhdx_progress_fn *progress,
                void *opaque)
{
    struct comparison c = {.sides = {{.disk = a}, {.disk = b}},
                           .end = max_u64(a->size, b->size),
                           .progress = progress,
                           .opaque = opaque};
    unsigned nr_cursors = 0;
    int r = 0;

    *result = (struct vhdx_compare_result){.size_a = a->size, .size_b = b->size};
    for (; r == 0 && nr_cursors < 2; nr_cursors++) {
        struct side *s = &c.sides[nr_cursors];
        r = extent_cursor_init(&s->cursor, s->disk, 0, s->disk->size);
        if (r < 0)
            break;
        s->buffer = malloc(BUFFER_BYTES);
        if (!s->buffer)
            r = fail_memory("comparing");
    }
    if (r == 0)
        r = compare_all(&c, result);
    for (unsigned i = 0; i < nr_cursors; i++) {
        extent_cursor_done(&c.sides[i].cursor);
        free(c.sides[i].buffer);
    }
    return r;
}
