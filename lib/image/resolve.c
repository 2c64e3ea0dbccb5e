/* SPDX-License-Identifier: MIT */
#include "image/image.h"

#include <inttypes.h>

#include "base/error.h"
#include "image/page-cache.h"

/* A block that lies here in part: the run of sectors whose bits are equal, as far as one bitmap page tells. */
static int resolve_partial(struct image *img, uint64_t guest_offset, uint64_t max_length, const struct bat_entry *e,
                           struct run *run)
{
    const struct geometry *g = &img->geometry;
    uint64_t block_no = guest_offset >> g->block_shift;
    uint64_t in_block = guest_offset & (g->block_size - 1);
    uint8_t bits[PAGE_BYTES];
    struct bat_entry bitmap;
    bool here;

    int r = bat_lookup_bitmap(img, chunk_of_block(g, block_no), &bitmap);
    if (r < 0)
        return r;
    uint64_t first = bitmap_slice_offset(g, block_no) * 8 + in_block / g->sector_size; /* bit in the bitmap block */
    uint64_t byte = first / 8;
    uint64_t in_sector = in_block % g->sector_size;
    uint64_t wanted = div_round_up(in_sector + min_u64(max_length, g->block_size - in_block), g->sector_size);
    uint64_t available = (PAGE_BYTES - byte % PAGE_BYTES) * 8 - first % 8;
    uint64_t nr_bits = min_u64(wanted, available);
    size_t bytes = div_round_up(first % 8 + nr_bits, 8);

    r = page_cache_read(img->pages, bits, bytes, bitmap.file_offset + byte);
    if (r < 0)
        return fail_in(r, "sector bitmap block at 0x%" PRIx64, bitmap.file_offset);
    nr_bits = bitmap_run(bits, first % 8, first % 8 + nr_bits, &here);
    run->kind = here ? RUN_DATA : RUN_PARENT;
    run->present = here;
    run->file_offset = here ? e->file_offset + in_block : 0;
    run->length = min_u64(max_length, nr_bits * g->sector_size - in_sector);
    return 0;
}

/* What a block that is not partially present says, from its first wanted byte to its end. */
static struct run whole_block_run(const struct geometry *g, const struct bat_entry *e, uint64_t in_block)
{
    struct run run = {.kind = RUN_ZERO, .present = true, .length = g->block_size - in_block};

    if (e->state == PAYLOAD_FULLY_PRESENT) {
        run.kind = RUN_DATA;
        run.file_offset = e->file_offset + in_block;
    } else if (e->state == PAYLOAD_NOT_PRESENT) {
        run.present = false; /* the only state that lets the parent through; 1, 2 and 3 hide it (5.4) */
        if (g->has_parent)
            run.kind = RUN_PARENT;
    }
    return run;
}

static bool continues(const struct run *run, const struct run *next)
{
    return run->kind == next->kind && run->present == next->present &&
           (run->kind != RUN_DATA || run->file_offset + run->length == next->file_offset);
}

/* Lengthen run, which ends where *block_no begins, by the blocks that continue it, to the end of a BAT page at most.
 * *block_no moves along; *ended: the run met something else. */
static int extend_in_page(struct image *img, uint64_t max_length, struct run *run, uint64_t *block_no, bool *ended)
{
    const struct geometry *g = &img->geometry;
    uint64_t index = bat_index_of_block(g, *block_no);
    uint64_t in_page = bat_entry_offset(img, index) % PAGE_BYTES / BAT_ENTRY_BYTES;
    uint64_t page_end = min_u64(g->nr_bat_entries, index + BAT_ENTRIES_PER_PAGE - in_page);
    uint64_t raw[64];

    *ended = false;
    while (index < page_end && run->length < max_length) {
        uint64_t wanted = ((max_length - run->length) >> g->block_shift) + 2; /* perhaps a bitmap entry between */
        uint32_t n = (uint32_t)min_u64(min_u64(ARRAY_LENGTH(raw), wanted), page_end - index);
        int r = bat_read(img, index, n, raw);
        if (r < 0)
            return r;
        for (uint32_t i = 0; i < n && run->length < max_length; i++) {
            struct bat_entry e;
            if (index + i != bat_index_of_block(g, *block_no))
                continue; /* a bitmap block's, between two chunks */
            if (raw[i] == 0 && !run->present) { /* most of a large disk */
                run->length += g->block_size;
                ++*block_no;
                continue;
            }
            /* An impossible entry ends the run too; the call that begins there reports it. */
            *ended = bat_judge(img, *block_no, raw[i], &e) < 0 || e.state == PAYLOAD_PARTIALLY_PRESENT;
            struct run next = whole_block_run(g, &e, 0);
            if (*ended || (*ended = !continues(run, &next)))
                return 0;
            run->length += next.length;
            ++*block_no;
        }
        index += n;
    }
    return 0;
}

/* Lengthen a run of blocks that are not present over the part of the BAT that does not even exist on disk. */
static int extend_over_hole(struct image *img, struct run *run, uint64_t block_no)
{
    const struct geometry *g = &img->geometry;
    uint64_t next, no = g->nr_blocks;

    int r = bat_skip_holes(img, bat_index_of_block(g, block_no), g->nr_bat_entries, &next);
    if (r < 0)
        return r;
    if (next < g->nr_bat_entries && bat_index_is_bitmap(g, next, &no))
        no = (no + 1) << g->chunk_shift; /* the block behind the bitmap's entry */
    if (no > block_no)
        run->length += (no - block_no) << g->block_shift;
    return 0;
}

static int extend_run(struct image *img, uint64_t block_no, uint64_t max_length, struct run *run)
{
    bool ended;
    int r = extend_in_page(img, max_length, run, &block_no, &ended);

    if (r == 0 && !ended && run->length < max_length && !run->present)
        r = extend_over_hole(img, run, block_no);
    return r;
}

int image_resolve(struct image *img, uint64_t guest_offset, uint64_t max_length, struct run *run)
{
    const struct geometry *g = &img->geometry;
    uint64_t block_no = guest_offset >> g->block_shift;
    struct bat_entry e;

    int r = bat_lookup(img, block_no, &e);
    if (r < 0)
        return r;
    if (e.state == PAYLOAD_PARTIALLY_PRESENT)
        return resolve_partial(img, guest_offset, max_length, &e, run);
    *run = whole_block_run(g, &e, guest_offset & (g->block_size - 1));
    if (run->length < max_length)
        r = extend_run(img, block_no + 1, max_length, run);
    run->length = min_u64(run->length, max_length);
    return r;
}
