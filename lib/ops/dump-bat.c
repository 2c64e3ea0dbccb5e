/* SPDX-License-Identifier: MIT */
/* The entries of the block allocation table for a range of blocks, and of the sector bitmaps that belong to
 * them. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/le.h"
#include "ops/dump.h"

enum {
    PIECE_ENTRIES = BAT_ENTRIES_PER_PAGE, /* read at once: bitmap entries lie far apart */
    /* So many blocks are listed one by one; in a longer list neighbours with equal entries that name no place
       are one. */
    MAX_LISTED_SINGLY = 65536,
};

struct bat_dump {
    const struct dump *d;
    const struct geometry *g;
    uint64_t nr_entries; /* that the disk needs and the region holds */
    bool merge;
    uint8_t *piece; /* PAGE_BYTES: entries from piece_index on */
    uint64_t piece_index, piece_nr;
    uint64_t asked_page; /* of the table: holes are as long as pages at least */
};

static uint64_t index_offset(const struct bat_dump *b, uint64_t index)
{
    return b->d->bat.file_offset + index * BAT_ENTRY_BYTES;
}

static int read_entry(struct bat_dump *b, uint64_t index, uint64_t *raw)
{
    if (index < b->piece_index || index >= b->piece_index + b->piece_nr) {
        uint64_t nr = min_u64(PIECE_ENTRIES, b->nr_entries - index);
        b->piece_nr = 0;
        int r = file_view_pread(&b->d->view, b->piece, nr * BAT_ENTRY_BYTES, index_offset(b, index));
        if (r < 0)
            return r;
        b->piece_index = index;
        b->piece_nr = nr;
    }
    *raw = le64_get(b->piece + (index - b->piece_index) * BAT_ENTRY_BYTES);
    return 0;
}

static void give_entry(const struct bat_dump *b, uint64_t index, uint64_t raw, const char *state_name)
{
    struct bat_entry e = bat_entry_decode(raw);

    give_hex(b->d, "entry-offset", index_offset(b, index));
    give_number(b->d, "state", e.state);
    give_text(b->d, "state-name", state_name);
    give_hex(b->d, "offset", e.file_offset);
    if (!e.reserved_is_zero)
        give_hex(b->d, "raw", raw);
}

/* Blocks from block_no on, below end, whose entries lie in a hole of the file. */
static uint64_t count_holes(struct bat_dump *b, uint64_t block_no, uint64_t end)
{
    uint64_t start, stop, no, index = bat_index_of_block(b->g, block_no);

    if (!b->merge || index >= b->nr_entries || index / BAT_ENTRIES_PER_PAGE == b->asked_page)
        return 0;
    b->asked_page = index / BAT_ENTRIES_PER_PAGE;
    if (file_view_next_data(&b->d->view, index_offset(b, index), &start, &stop) < 0)
        return 0;
    uint64_t data_index = start == stop ? b->nr_entries : (start - b->d->bat.file_offset) / BAT_ENTRY_BYTES;
    if (bat_index_is_bitmap(b->g, min_u64(data_index, b->nr_entries), &no))
        no = (no + 1) << b->g->chunk_shift;
    return no > block_no ? min_u64(no, end) - block_no : 0;
}

/* Blocks with one entry. */
struct block_run {
    uint64_t first, nr;
    uint64_t raw;
    bool missing; /* there is no entry */
};

/* Read the entry of block_no; what lies in a hole of the file comes as a run, below end. */
static struct block_run next_run(struct bat_dump *b, uint64_t block_no, uint64_t end)
{
    struct block_run run = {.first = block_no, .nr = max_u64(1, count_holes(b, block_no, end))};
    uint64_t index = bat_index_of_block(b->g, block_no);

    if (run.nr > 1)
        return run;
    run.missing = index >= b->nr_entries || read_entry(b, index, &run.raw) < 0;
    return run;
}

static bool can_merge(const struct bat_dump *b, const struct block_run *run, const struct block_run *next)
{
    return b->merge && run->nr > 0 && run->missing == next->missing && run->raw == next->raw &&
           bat_entry_decode(run->raw).file_offset == 0;
}

static int dump_run(const struct bat_dump *b, const struct block_run *run)
{
    uint64_t index = bat_index_of_block(b->g, run->first);
    int r = 0;

    if (run->nr == 0)
        return 0;
    give_begin(b->d, NULL);
    give_number(b->d, "block", run->first);
    if (run->nr > 1)
        give_number(b->d, "blocks", run->nr);
    if (run->missing) {
        give_text(b->d, "error", "the entry lies behind the end of the BAT region, or cannot be read");
    } else {
        give_entry(b, index, run->raw, payload_state_name(bat_entry_decode(run->raw).state));
        r = payload_entry_check(b->g, run->first, run->raw, index_offset(b, index), b->d->view.length, NULL);
    }
    r = give_error(b->d, r);
    give_end(b->d);
    return r;
}

static int dump_blocks(struct bat_dump *b, uint64_t first, uint64_t end)
{
    struct block_run run = {0};
    int r = 0;

    give_begin_array(b->d, "blocks");
    for (uint64_t block_no = first; r == 0 && block_no < end;) {
        struct block_run next = next_run(b, block_no, end);
        block_no += next.nr;
        if (can_merge(b, &run, &next)) {
            run.nr += next.nr;
            continue;
        }
        r = dump_run(b, &run);
        run = next;
    }
    if (r == 0)
        r = dump_run(b, &run);
    give_end(b->d);
    return r;
}

static const char *bitmap_state_name(unsigned state)
{
    if (state == BITMAP_NOT_PRESENT)
        return "not-present";
    return state == BITMAP_PRESENT ? "present" : "reserved";
}

/* Without a parent only what should not be there is worth a line. */
static int dump_bitmap(struct bat_dump *b, uint64_t chunk_no)
{
    uint64_t raw, index = bat_index_of_bitmap(b->g, chunk_no);

    if (index >= b->nr_entries)
        return 0;
    int r = read_entry(b, index, &raw);
    if (r == 0 && raw == 0 && (!b->g->has_parent || b->merge))
        return 0;
    give_begin(b->d, NULL);
    give_number(b->d, "chunk", chunk_no);
    if (r == 0) {
        give_entry(b, index, raw, bitmap_state_name(bat_entry_decode(raw).state));
        if (b->g->has_parent)
            r = bitmap_entry_check(b->g, chunk_no, raw, index_offset(b, index), b->d->view.length);
    }
    r = give_error(b->d, r);
    give_end(b->d);
    return r;
}

static int dump_bitmaps(struct bat_dump *b, uint64_t first, uint64_t end)
{
    int r = 0;

    give_begin_array(b->d, "bitmaps");
    for (uint64_t c = chunk_of_block(b->g, first);
         r == 0 && first < end && c <= chunk_of_block(b->g, end - 1); c++)
        r = dump_bitmap(b, c);
    give_end(b->d);
    return r;
}

static int dump_range(struct bat_dump *b)
{
    const struct vhdx_dump_options *o = b->d->options;
    uint64_t first = min_u64(o->first_block, b->g->nr_blocks);
    uint64_t nr = min_u64(o->nr_blocks, b->g->nr_blocks - first);

    b->merge = nr > MAX_LISTED_SINGLY;
    if (o->first_block >= b->g->nr_blocks)
        give_error(b->d, fail(-EINVAL, "block %" PRIu64 " is beyond the end of the disk, which has %" PRIu64 " blocks", o->first_block,
                              b->g->nr_blocks));
    give_number(b->d, "total-blocks", b->g->nr_blocks);
    give_number(b->d, "entries", b->g->nr_bat_entries);
    give_number(b->d, "chunk-ratio", UINT64_C(1) << b->g->chunk_shift);
    int r = dump_blocks(b, first, first + nr);
    return r < 0 ? r : dump_bitmaps(b, first, first + nr);
}

int dump_bat(struct dump *d)
{
    struct bat_dump b = {.d = d, .g = &d->geometry, .asked_page = UINT64_MAX};
    int r = 0;

    give_begin(d, "bat");
    if (!d->has_bat) {
        give_text(d, "error", "there is no usable BAT region");
    } else {
        give_hex(d, "offset", d->bat.file_offset);
        give_bytes(d, "length", d->bat.length);
        if (!d->has_geometry)
            give_text(d, "error",
                      "without block size, sector size and disk size the entries have no meaning");
    }
    if (d->has_bat && d->has_geometry) {
        b.nr_entries = min_u64(d->geometry.nr_bat_entries, d->bat.length / BAT_ENTRY_BYTES);
        b.piece = malloc(PAGE_BYTES);
        r = b.piece ? dump_range(&b) : fail_memory("the BAT");
        free(b.piece);
    }
    give_end(d);
    return r;
}
