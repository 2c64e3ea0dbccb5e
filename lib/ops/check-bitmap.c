/* SPDX-License-Identifier: MIT */
/* Rules 67 to 69: sector bitmap blocks (format section 6).  A slice means something only while its block is
 * PARTIALLY_PRESENT, so only those are read, and the bits behind the disk's end. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "ops/check.h"

enum { PIECE_BYTES = 65536 }; /* the longest slice */

/* Rule 68: a block that is partially present in name only. */
static void judge_slice(struct check *c, uint64_t block_no, const uint8_t *slice, uint64_t slice_offset)
{
    const struct geometry *g = &c->geometry;
    uint64_t nr_bits = block_visible_bytes(g, block_no) / g->sector_size;
    bool value;

    if (bitmap_run(slice, 0, nr_bits, &value) < nr_bits)
        return;
    report(c, RULE_BITMAP_UNIFORM, slice_offset,
           "sector bitmap at 0x%" PRIx64 " (block %" PRIu64
           "): partially present, but %s of its sectors are here",
           slice_offset, block_no, value ? "all" : "none");
}

static bool bit_is_set(const uint8_t *bits, uint64_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

/* The slices in one piece of the bitmap block, which begins at `from` bytes of it. */
static int judge_piece(struct check *c, uint64_t chunk_no, uint64_t bitmap_offset, uint64_t from,
                       const uint8_t *partial, uint8_t *piece)
{
    const struct geometry *g = &c->geometry;
    uint64_t slice_bytes = bitmap_slice_bytes(g);
    uint64_t first = from / slice_bytes, end = (from + PIECE_BYTES) / slice_bytes;
    bool loaded = false;

    for (uint64_t i = first; i < end; i++) {
        if (!bit_is_set(partial, i))
            continue;
        if (!loaded) {
            int r = file_view_pread(&c->view, piece, PIECE_BYTES, bitmap_offset + from);
            if (r < 0)
                return r;
            loaded = true;
        }
        judge_slice(c, (chunk_no << g->chunk_shift) + i, piece + (i - first) * slice_bytes,
                    bitmap_offset + i * slice_bytes);
    }
    return 0;
}

/* Rule 69, for the last chunk: sectors that the disk does not have. */
static int judge_beyond(struct check *c, uint64_t chunk_no, uint64_t bitmap_offset, uint8_t *piece)
{
    const struct geometry *g = &c->geometry;
    uint64_t at = g->virtual_size / g->sector_size - chunk_no * SECTORS_PER_CHUNK;
    bool value;

    while (at < SECTORS_PER_CHUNK) {
        uint64_t from = align_down(at / 8, PIECE_BYTES), end = (from + PIECE_BYTES) * 8;
        int r = file_view_pread(&c->view, piece, PIECE_BYTES, bitmap_offset + from);
        if (r < 0)
            return r;
        if (bitmap_run(piece, at - from * 8, (uint64_t)PIECE_BYTES * 8, &value) < end - at || value) {
            report(c, RULE_BITMAP_BEYOND, bitmap_offset + at / 8,
                   "sector bitmap at 0x%" PRIx64 " (chunk %" PRIu64
                   "): bits are set for sectors behind the end of the disk",
                   bitmap_offset, chunk_no);
            return 0;
        }
        at = end;
    }
    return 0;
}

int check_bitmap(struct check *c, uint64_t chunk_no, uint64_t bitmap_offset, const uint8_t *partial,
                 uint64_t nr_partial)
{
    uint8_t *piece = malloc(PIECE_BYTES);
    int r = piece ? 0 : fail_memory("a sector bitmap");

    for (uint64_t from = 0; r == 0 && nr_partial > 0 && from < BITMAP_BLOCK_BYTES; from += PIECE_BYTES)
        r = judge_piece(c, chunk_no, bitmap_offset, from, partial, piece);
    if (r == 0 && chunk_no + 1 == c->geometry.nr_chunks)
        r = judge_beyond(c, chunk_no, bitmap_offset, piece);
    free(piece);
    return r;
}
