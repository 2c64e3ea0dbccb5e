/* SPDX-License-Identifier: MIT */
/* Rules 57 to 66, 70 and 76: the block allocation table (format section 5).
 *
 * The table is read in pieces and only where the file has data, so the time goes with what is there and not
 * with the size that the disk claims (H2).  Entries that are left out are zero: NOT_PRESENT, or no bitmap
 * block. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/le.h"
#include "ops/check.h"

enum { PIECE_BYTES = 65536, PIECE_ENTRIES = PIECE_BYTES / BAT_ENTRY_BYTES };

struct bat_check {
    struct check *c;
    const struct geometry *g;
    uint64_t nr_entries; /* that the disk needs and the region holds */
    uint8_t *piece;      /* PIECE_BYTES */

    /* The chunk that is being walked. */
    uint64_t chunk_no;
    uint64_t nr_partial, first_partial; /* PARTIALLY_PRESENT blocks, and the first one's number */
    uint8_t *partial;                   /* a bit for each block of the chunk */

    /* What QEMU's bug leaves behind (10.3). */
    uint64_t last_index, last_offset; /* of the last payload entry with space */
    uint64_t nr_twins, first_twin;    /* neighbours with one offset; file offset of the first's entry */
    uint64_t nr_strays, first_stray;  /* bitmap slots that hold payload entries */
};

static uint64_t index_offset(const struct bat_check *b, uint64_t index)
{
    return b->c->bat.file_offset + index * BAT_ENTRY_BYTES;
}

/* ---- payload ---- */

static enum rule rule_of_payload(const struct geometry *g, const struct bat_entry *e)
{
    bool known = e->state <= PAYLOAD_UNMAPPED || e->state == PAYLOAD_FULLY_PRESENT ||
                 (e->state == PAYLOAD_PARTIALLY_PRESENT && g->has_parent);

    if (!known)
        return RULE_PAYLOAD_STATE;
    return e->file_offset == 0 ? RULE_PRESENT_OFFSET : RULE_BLOCK_PLACE;
}

/* Rules 58 to 62.  true: the entry owns the space that it names. */
static bool judge_payload(struct bat_check *b, uint64_t block_no, uint64_t raw, uint64_t at)
{
    struct check *c = b->c;
    struct bat_entry e = bat_entry_decode(raw);
    bool short_block;

    if (!e.reserved_is_zero) { /* say so, then judge the rest */
        report(c, RULE_BAT_RESERVED, at,
               "BAT entry at 0x%" PRIx64 " (block %" PRIu64 "): 0x%016" PRIx64 " has reserved bits set", at,
               block_no, raw);
        c->ownership_known = false;
        raw = bat_entry_encode(e.state, e.file_offset);
    }
    if (payload_entry_check(b->g, block_no, raw, at, c->view.length, &short_block) < 0) {
        report_failure(c, rule_of_payload(b->g, &e), at);
        c->ownership_known = false;
        return false;
    }
    if (short_block)
        report_as(c, RULE_BLOCK_PLACE, VHDX_WARNING, true, at,
                  "BAT entry at 0x%" PRIx64 " (block %" PRIu64 "): the file ends at 0x%" PRIx64
                  ", inside this last block but behind the end of the disk",
                  at, block_no, c->view.length);
    if ((e.state == PAYLOAD_NOT_PRESENT || e.state == PAYLOAD_ZERO) && e.file_offset != 0)
        report(c, RULE_ABSENT_OFFSET, at,
               "BAT entry at 0x%" PRIx64 " (block %" PRIu64 "): state %s with offset 0x%" PRIx64
               ", which should be zero; Hyper-V refuses such files",
               at, block_no, payload_state_name(e.state), e.file_offset);
    return payload_owns_space(&e);
}

static void look_for_twin(struct bat_check *b, uint64_t index, uint64_t offset)
{
    if (index == b->last_index + 1 && offset == b->last_offset && b->nr_twins++ == 0)
        b->first_twin = index_offset(b, index);
    b->last_index = index;
    b->last_offset = offset;
}

static int take_payload(struct bat_check *b, uint64_t index, uint64_t block_no, uint64_t raw)
{
    uint64_t at = index_offset(b, index), in_chunk;
    struct bat_entry e = bat_entry_decode(raw);
    struct check *c = b->c;

    if (block_no >= b->g->nr_blocks) {
        report_as(c, RULE_BAT_PADDING, VHDX_WARNING, true, at,
                  "BAT entry at 0x%" PRIx64 ": 0x%016" PRIx64 " is for block %" PRIu64
                  ", behind the end of the disk",
                  at, raw, block_no);
        return 0;
    }
    c->nr_fully_present += e.state == PAYLOAD_FULLY_PRESENT;
    if (!judge_payload(b, block_no, raw, at))
        return 0;
    c->result.allocated_blocks++;
    look_for_twin(b, index, e.file_offset);
    if (e.state == PAYLOAD_PARTIALLY_PRESENT) {
        in_chunk = block_no & ((UINT64_C(1) << b->g->chunk_shift) - 1);
        if (b->nr_partial++ == 0)
            b->first_partial = block_no;
        b->partial[in_chunk / 8] |= (uint8_t)(1u << (in_chunk % 8));
    }
    return check_space_claim(c, e.file_offset, b->g->block_size, at, "block", block_no);
}

/* ---- bitmap blocks ---- */

/* Rules 64 and 76: bitmap entries mean nothing without a parent. */
static void take_stray(struct bat_check *b, uint64_t index, uint64_t chunk_no, uint64_t raw)
{
    uint64_t at = index_offset(b, index);
    unsigned state = bat_entry_decode(raw).state;

    report(b->c, RULE_BITMAP_UNUSED, at,
           "BAT entry at 0x%" PRIx64 " (bitmap of chunk %" PRIu64 "): 0x%016" PRIx64
           " should be zero in an image without parent; it is ignored",
           at, chunk_no, raw);
    if ((state == PAYLOAD_ZERO || state == PAYLOAD_FULLY_PRESENT) && b->nr_strays++ == 0)
        b->first_stray = at;
}

/* Rules 66 and 67, for a chunk whose entries have all been seen. */
static int judge_chunk(struct bat_check *b, uint64_t chunk_no, uint64_t bitmap_at, bool present,
                       uint64_t bitmap_offset)
{
    struct check *c = b->c;

    if (b->nr_partial > 0 && !present)
        report(c, RULE_BITMAP_MISSING, bitmap_at,
               "BAT entry at 0x%" PRIx64 " (bitmap of chunk %" PRIu64
               "): no sector bitmap block, but %" PRIu64 " blocks from %" PRIu64
               " on are partially present: which of their sectors are the parent's is lost",
               bitmap_at, chunk_no, b->nr_partial, b->first_partial);
    if (b->nr_partial == 0 && present)
        report(c, RULE_BITMAP_IDLE, bitmap_at,
               "BAT entry at 0x%" PRIx64 " (bitmap of chunk %" PRIu64
               "): no block of the chunk is partially present, so its "
               "sector bitmap block at 0x%" PRIx64 " is not needed",
               bitmap_at, chunk_no, bitmap_offset);
    return present ? check_bitmap(c, chunk_no, bitmap_offset, b->partial, b->nr_partial) : 0;
}

static void forget_chunk(struct bat_check *b)
{
    if (b->nr_partial > 0)
        memset(b->partial, 0, div_round_up(UINT64_C(1) << b->g->chunk_shift, 8));
    b->nr_partial = 0;
}

/* Rule 65, then the chunk's. */
static int take_bitmap(struct bat_check *b, uint64_t index, uint64_t chunk_no, uint64_t raw)
{
    uint64_t at = index_offset(b, index);
    struct bat_entry e = bat_entry_decode(raw);
    bool present = e.state == BITMAP_PRESENT;
    int r = 0;

    if (!b->g->has_parent) {
        take_stray(b, index, chunk_no, raw);
        return 0;
    }
    if (bitmap_entry_check(b->g, chunk_no, raw, at, b->c->view.length) < 0) {
        report_failure(b->c, RULE_BITMAP_ENTRY, at);
        b->c->ownership_known = false;
        forget_chunk(b); /* that its bitmap is unusable has been told */
        return 0;
    }
    if (present)
        r = check_space_claim(b->c, e.file_offset, BITMAP_BLOCK_BYTES, at, "bitmap of chunk", chunk_no);
    if (r == 0)
        r = judge_chunk(b, chunk_no, at, present, e.file_offset);
    forget_chunk(b);
    return r;
}

/* The walk has left the chunk without seeing an entry for its bitmap. */
static int leave_chunk(struct bat_check *b)
{
    uint64_t index = bat_index_of_bitmap(b->g, b->chunk_no);
    int r = 0;

    if (b->nr_partial > 0 && index < b->nr_entries)
        r = judge_chunk(b, b->chunk_no, index_offset(b, index), false, 0);
    forget_chunk(b);
    return r;
}

/* ---- the walk ---- */

static int take_entry(struct bat_check *b, uint64_t index, uint64_t raw)
{
    uint64_t no, chunk_no;
    bool bitmap = bat_index_is_bitmap(b->g, index, &no);
    int r = 0;

    chunk_no = bitmap ? no : chunk_of_block(b->g, no);
    if (chunk_no != b->chunk_no) {
        r = leave_chunk(b);
        b->chunk_no = chunk_no;
    }
    if (r < 0)
        return r;
    return bitmap ? take_bitmap(b, index, no, raw) : take_payload(b, index, no, raw);
}

static int tell_progress(struct bat_check *b, uint64_t done)
{
    struct check *c = b->c;

    if (c->progress && c->progress(c->progress_opaque, done, b->nr_entries) != 0)
        return fail(-ECANCELED, "cancelled");
    return 0;
}

/* The next piece at or after *index that the file has data in; *nr 0: there is none before end. */
static int next_piece(struct bat_check *b, uint64_t *index, uint64_t end, uint64_t *nr)
{
    uint64_t start, stop, bat = b->c->bat.file_offset;
    int r = file_view_next_data(&b->c->view, index_offset(b, *index), &start, &stop);

    *nr = 0;
    if (r < 0 || start == stop || start >= index_offset(b, end))
        return r;
    *index = max_u64(*index, (start - bat) / BAT_ENTRY_BYTES);
    *nr = min_u64(PIECE_ENTRIES, end - *index);
    *nr = min_u64(*nr, div_round_up(stop - bat, BAT_ENTRY_BYTES) - *index);
    return file_view_pread(&b->c->view, b->piece, *nr * BAT_ENTRY_BYTES, index_offset(b, *index));
}

static int walk(struct bat_check *b)
{
    uint64_t index = 0, nr = 0;

    while (index < b->nr_entries) {
        int r = next_piece(b, &index, b->nr_entries, &nr);
        for (uint64_t i = 0; r == 0 && i < nr; i++) {
            uint64_t raw = le64_get(b->piece + i * BAT_ENTRY_BYTES);
            if (raw != 0)
                r = take_entry(b, index + i, raw);
        }
        if (r == 0)
            r = tell_progress(b, nr > 0 ? index + nr : b->nr_entries);
        if (r < 0)
            return r;
        if (nr == 0)
            break;
        index += nr;
    }
    return leave_chunk(b);
}

/* Rule 70 for what lies behind the entries that the disk needs. */
static int walk_padding(struct bat_check *b)
{
    uint64_t index = b->nr_entries, end = b->c->bat.length / BAT_ENTRY_BYTES, nr;
    uint64_t nr_set = 0, first = 0;

    while (index < end) {
        int r = next_piece(b, &index, end, &nr);
        if (r < 0)
            return r;
        if (nr == 0)
            break;
        for (uint64_t i = 0; i < nr; i++) {
            if (le64_get(b->piece + i * BAT_ENTRY_BYTES) != 0 && nr_set++ == 0)
                first = index_offset(b, index + i);
        }
        index += nr;
    }
    if (nr_set > 0)
        report(b->c, RULE_BAT_PADDING, first,
               "BAT at 0x%" PRIx64 ": %" PRIu64 " entries behind the %" PRIu64
               " that the disk needs are not zero, the first at "
               "0x%" PRIx64,
               b->c->bat.file_offset, nr_set, b->nr_entries, first);
    return 0;
}

static void judge_shift(struct bat_check *b)
{
    if (b->g->has_parent)
        return; /* QEMU writes no differencing images */
    if (b->nr_twins > 0)
        report_as(b->c, RULE_BAT_SHIFT, VHDX_ERROR, false, b->first_twin,
                  "BAT entry at 0x%" PRIx64 ": the same offset as the entry before, %" PRIu64
                  " times in all: QEMU before 8.0 damages tables this way; restore the image from a backup",
                  b->first_twin, b->nr_twins);
    else if (b->nr_strays > 0)
        report(b->c, RULE_BAT_SHIFT, b->first_stray,
               "BAT entry at 0x%" PRIx64 ": %" PRIu64
               " bitmap entries look like payload entries, as QEMU before 8.0 leaves them; "
               "compare the disk's content with its source",
               b->first_stray, b->nr_strays);
}

/* Rule 57. */
static void judge_size(struct bat_check *b)
{
    uint64_t needed = b->g->nr_bat_entries * BAT_ENTRY_BYTES;
    struct check *c = b->c;

    b->nr_entries = min_u64(b->g->nr_bat_entries, c->bat.length / BAT_ENTRY_BYTES);
    if (c->bat.length < needed) {
        report(c, RULE_BAT_SIZE, c->bat.file_offset,
               "BAT at 0x%" PRIx64 ": %" PRIu32 " bytes long, but a disk of %" PRIu64
               " bytes in blocks of %" PRIu32 " needs %" PRIu64,
               c->bat.file_offset, c->bat.length, b->g->virtual_size, b->g->block_size, needed);
        c->ownership_known = false;
    }
}

int check_bat(struct check *c)
{
    struct bat_check b = {.c = c, .g = &c->geometry, .last_index = UINT64_MAX - 1};
    int r = check_space_init(c);

    if (r < 0 || !c->bat_usable || !c->geometry_usable)
        return r;
    /* A log that could not be replayed may give any block its place. */
    c->ownership_known = c->header_usable && (!header_log_is_dirty(&c->header) || c->view.overlay);
    b.piece = malloc(PIECE_BYTES);
    b.partial = calloc(div_round_up(UINT64_C(1) << b.g->chunk_shift, 8), 1);
    if (!b.piece || !b.partial) {
        r = fail_memory("the BAT");
        goto out;
    }
    judge_size(&b);
    r = walk(&b);
    if (r == 0)
        r = walk_padding(&b);
    if (r == 0)
        judge_shift(&b);
out:
    free(b.piece);
    free(b.partial);
    return r;
}
