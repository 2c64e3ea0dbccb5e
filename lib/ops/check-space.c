/* SPDX-License-Identifier: MIT */
/* Rules 63 and 71 to 75: which MiB of the file belongs to what.
 *
 * WHAT COUNTS AS LEAKED (rule 73).  Space is leaked if a block could have lost it and the host still stores
 * bytes there (a hole of a sparse file costs nobody anything, and is what writers leave that give space back):
 * no table entry owns it, and
 *
 *   - it lies behind the beginning of the first payload or bitmap block, be it between blocks or behind the
 * last one; or
 *   - it lies in front of all blocks, and is a gap wide enough for a block and wider than the 4 MiB that QEMU
 * leaves between its regions and the first block (10.3).
 *
 * Smaller gaps between the structures at the beginning are layout.  In a fixed image nothing is leaked: it
 * was promised all its space, and QEMU's fixed images keep theirs where no entry points to it (10.3).  Both
 * are notes.  Nothing is said of leaks where entries are so wrong that one cannot tell what they own. */
#include <inttypes.h>

#include "base/error.h"
#include "ops/check.h"

#define LAYOUT_GAP_MIB 4

static uint64_t whole_mib(const struct check *c)
{
    return c->view.length / OBJECT_ALIGNMENT;
}

static uint64_t begun_mib(const struct check *c)
{
    return div_round_up(c->view.length, OBJECT_ALIGNMENT);
}

/* Fixed ranges may overlap (rule 27) and leave the file; what is left is disjoint again. */
static int claim_fixed(struct check *c)
{
    uint64_t done = 0;

    for (uint32_t i = 0; i < c->nr_fixed; i++) {
        uint64_t start = max_u64(done, c->fixed[i].start / OBJECT_ALIGNMENT);
        uint64_t end = min_u64(begun_mib(c), c->fixed[i].end / OBJECT_ALIGNMENT);
        bool clash;
        c->result.image_end_offset = max_u64(c->result.image_end_offset, c->fixed[i].end);
        if (start >= end)
            continue;
        int r = mib_set_add(&c->space, start, end - start, &clash);
        if (r < 0)
            return r;
        done = end;
    }
    return 0;
}

int check_space_init(struct check *c)
{
    c->first_payload = UINT64_MAX;
    if (c->view.length > MAX_FILE_BYTES) {
        report(c, RULE_OVERLAP, 0,
               "the file has 0x%" PRIx64 " bytes, more than the 0x%" PRIx64
               " that this library accepts; overlaps are not looked for",
               c->view.length, MAX_FILE_BYTES);
        return 0;
    }
    int r = mib_set_init(&c->space, begun_mib(c));
    if (r < 0)
        return r;
    c->space_usable = true;
    r = claim_fixed(c);
    c->fixed_mib = c->space.count;
    return r;
}

void check_space_free(struct check *c)
{
    if (c->space_usable)
        mib_set_free(&c->space);
}

/* The last fixed range that begins before end, if it reaches beyond start. */
static const struct fixed_range *find_fixed(const struct check *c, uint64_t start, uint64_t end)
{
    uint32_t low = 0, high = c->nr_fixed;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (c->fixed[middle].start < end)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 && c->fixed[low - 1].end > start ? &c->fixed[low - 1] : NULL;
}

int check_space_claim(struct check *c, uint64_t file_offset, uint64_t bytes, uint64_t entry_offset,
                const char *name, uint64_t no)
{
    uint64_t first = file_offset / OBJECT_ALIGNMENT, end = file_offset + bytes;
    bool clash;

    c->result.image_end_offset = max_u64(c->result.image_end_offset, end);
    c->first_payload = min_u64(c->first_payload, file_offset);
    if (!c->space_usable)
        return 0;
    uint64_t nr = min_u64(bytes / OBJECT_ALIGNMENT, begun_mib(c) - first); /* a last block may be cut short */
    int r = mib_set_add(&c->space, first, nr, &clash);
    if (r < 0 || !clash)
        return r;
    const struct fixed_range *f = find_fixed(c, file_offset, end);
    c->ownership_known = false;
    report(
        c, RULE_OVERLAP, entry_offset,
        "BAT entry at 0x%" PRIx64 " (%s %" PRIu64 "): its space 0x%" PRIx64 "..0x%" PRIx64 " overlaps %s%s",
        entry_offset, name, no, file_offset, end, f ? "the " : "that of an earlier entry", f ? f->what : "");
    return 0;
}

/* ---- fixed images ---- */

static void judge_fixed(struct check *c)
{
    const struct geometry *g = &c->geometry;
    uint64_t last = g->nr_blocks - 1;
    uint64_t needed =
        c->fixed_mib * OBJECT_ALIGNMENT + (last << g->block_shift) + block_visible_bytes(g, last);

    if (c->nr_fully_present < g->nr_blocks)
        report(c, RULE_FIXED_PRESENT, c->bat.file_offset,
               "BAT at 0x%" PRIx64 ": %" PRIu64 " of the %" PRIu64
               " blocks of a fixed image have no space of their own, as QEMU writes it",
               c->bat.file_offset, g->nr_blocks - c->nr_fully_present, g->nr_blocks);
    if (c->view.length < needed)
        report(c, RULE_FIXED_LENGTH, c->view.length,
               "the file has 0x%" PRIx64 " bytes; a fixed image of this size needs 0x%" PRIx64,
               c->view.length, needed);
}

/* ---- leaks ---- */

struct unowned {
    uint64_t leaked_mib, nr_leaks, first_leak; /* in MiB */
    uint64_t layout_mib, nr_gaps, first_gap;
};

/* How many MiB of [start, end) the host stores anything of. */
static int count_stored(const struct check *c, uint64_t start, uint64_t end, uint64_t *nr_mib)
{
    uint64_t at = start, data, hole;

    for (*nr_mib = 0; at < end; at = max_u64(at, div_round_up(hole, OBJECT_ALIGNMENT))) {
        int r = file_view_next_data(&c->view, at * OBJECT_ALIGNMENT, &data, &hole);
        if (r < 0 || data == hole || data >= end * OBJECT_ALIGNMENT)
            return r;
        at = data / OBJECT_ALIGNMENT;
        *nr_mib += min_u64(end, div_round_up(hole, OBJECT_ALIGNMENT)) - at;
    }
    return 0;
}

static int take_run(const struct check *c, uint64_t start, uint64_t end, struct unowned *u)
{
    uint64_t block_mib = c->geometry.block_size / OBJECT_ALIGNMENT, nr = end - start;
    bool behind_payload = c->first_payload <= start * OBJECT_ALIGNMENT;
    uint64_t stored = 0;

    if (!check_is_fixed(c) && (behind_payload || (nr > LAYOUT_GAP_MIB && nr >= block_mib))) {
        int r = count_stored(c, start, end, &stored);
        if (r < 0)
            return r;
    }
    if (stored > 0) {
        if (u->nr_leaks++ == 0)
            u->first_leak = start;
        u->leaked_mib += stored;
    } else {
        if (u->nr_gaps++ == 0)
            u->first_gap = start;
        u->layout_mib += nr;
    }
    return 0;
}

static int judge_leaks(struct check *c)
{
    struct unowned u = {0};

    for (uint64_t at = mib_set_next(&c->space, 0, false); at < whole_mib(c);) {
        uint64_t end = min_u64(mib_set_next(&c->space, at, true), whole_mib(c));
        int r = take_run(c, at, end, &u);
        if (r < 0)
            return r;
        at = mib_set_next(&c->space, end, false);
    }
    c->result.leaked_bytes = u.leaked_mib * OBJECT_ALIGNMENT;
    if (u.nr_leaks > 0)
        report(c, RULE_LEAK, u.first_leak * OBJECT_ALIGNMENT,
               "%" PRIu64 " MiB of the file belong to no block (holes: %" PRIu64 ", the first at 0x%" PRIx64
               "); compacting the image gives them back",
               u.leaked_mib, u.nr_leaks, u.first_leak * OBJECT_ALIGNMENT);
    if (u.nr_gaps > 0)
        report_as(c, RULE_LEAK, VHDX_INFO, false, u.first_gap * OBJECT_ALIGNMENT,
                  "%" PRIu64 " MiB of the file are free or set aside (holes: %" PRIu64
                  ", the first at 0x%" PRIx64 ")",
                  u.layout_mib, u.nr_gaps, u.first_gap * OBJECT_ALIGNMENT);
    return 0;
}

/* Rules 74 and 75. */
static void judge_end(struct check *c)
{
    uint64_t length = c->view.length, end = c->result.image_end_offset;

    if (!is_aligned(length, OBJECT_ALIGNMENT))
        report(c, RULE_LENGTH_ALIGNED, align_down(length, OBJECT_ALIGNMENT),
               "the file's length, %" PRIu64 " bytes, is not a multiple of 1 MiB", length);
    if (c->ownership_known && length > end)
        report(c, RULE_SPACE_BEHIND, end,
               "%" PRIu64 " bytes follow the last structure, which ends at 0x%" PRIx64, length - end, end);
}

int check_space(struct check *c)
{
    int r = 0;

    if (c->bat_usable && c->geometry_usable && c->space_usable) {
        if (check_is_fixed(c))
            judge_fixed(c);
        if (c->ownership_known)
            r = judge_leaks(c);
    }
    judge_end(c);
    return r;
}
