/* SPDX-License-Identifier: MIT */
#include "crash-reader.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "base/math.h"
#include "format/log-entry.h"

static const char *wrong(const char *what, uint64_t value)
{
    static _Thread_local char text[256];

    snprintf(text, sizeof text, "%s 0x%" PRIx64, what, value);
    return text;
}

/* ---- the log ---- */

struct ring {
    const uint8_t *bytes;
    uint32_t length;
    const guid *log_guid;
    uint8_t entry[MAX_LOG_BYTES >> 6]; /* one entry, laid out straight */
};

static void straighten(struct ring *ring, uint32_t at, uint32_t bytes)
{
    uint32_t first = (uint32_t)min_u64(bytes, ring->length - at);

    memcpy(ring->entry, ring->bytes + at, first);
    memcpy(ring->entry + first, ring->bytes, bytes - first);
}

/* 4.4: is there an entry at log offset at?  It is in ring->entry then. */
static bool entry_at(struct ring *ring, uint32_t at, struct log_entry_header *e)
{
    struct log_descriptor d;
    uint64_t nr_data = 0;

    if (!log_entry_header_decode(ring->bytes + at, e) || !log_entry_header_plausible(e, ring->log_guid, ring->length) ||
        e->entry_length > sizeof ring->entry)
        return false;
    straighten(ring, at, e->entry_length);
    if (crc32c_with_hole(ring->entry, e->entry_length, LOG_CHECKSUM_AT) != e->checksum)
        return false;
    uint64_t sectors = log_nr_descriptor_sectors(e->nr_descriptors);
    for (uint32_t i = 0; i < e->nr_descriptors; i++) {
        if (!log_descriptor_decode(ring->entry + LOG_HEADER_BYTES + (size_t)i * LOG_DESCRIPTOR_BYTES, &d) ||
            d.sequence_no != e->sequence_no)
            return false;
        if (d.kind == LOG_DESCRIPTOR_DATA &&
            !log_data_sector_is_valid(ring->entry + (sectors + nr_data++) * LOG_SECTOR_BYTES, e->sequence_no))
            return false;
    }
    return (sectors + nr_data) * LOG_SECTOR_BYTES == e->entry_length;
}

static const char *replay_entry(struct ring *ring, const struct log_entry_header *e, struct crash_view *view)
{
    uint64_t sectors = log_nr_descriptor_sectors(e->nr_descriptors), nr_data = 0;
    struct log_descriptor d;

    for (uint32_t i = 0; i < e->nr_descriptors; i++) {
        log_descriptor_decode(ring->entry + LOG_HEADER_BYTES + (size_t)i * LOG_DESCRIPTOR_BYTES, &d);
        if (d.kind != LOG_DESCRIPTOR_DATA)
            return wrong("the log zeroes", d.file_offset);
        if (view->nr_replayed == MAX_REPLAYED)
            return wrong("too many logged pages", view->nr_replayed);
        log_page_rebuild(ring->entry + (sectors + nr_data++) * LOG_SECTOR_BYTES, d.leading, d.trailing,
                         view->replayed[view->nr_replayed].bytes);
        view->replayed[view->nr_replayed++].file_offset = d.file_offset;
    }
    return NULL;
}

/* Follow head's sequence from its tail; true if it is whole.  Its pages are in view then. */
static bool replay_sequence(struct ring *ring, uint32_t head_at, const struct log_entry_header *head, struct crash_view *view,
                            const char **error)
{
    uint32_t at = head->tail;
    uint64_t wanted = 0;

    view->nr_replayed = 0;
    for (unsigned n = 0; n < ring->length / LOG_SECTOR_BYTES; n++) {
        struct log_entry_header e;
        if (!entry_at(ring, at, &e) || (wanted != 0 && e.sequence_no != wanted))
            return false;
        *error = replay_entry(ring, &e, view);
        if (*error || at == head_at)
            return e.sequence_no == head->sequence_no;
        wanted = e.sequence_no + 1;
        at = (at + e.entry_length) % ring->length;
    }
    return false;
}

static const char *replay(const struct crash_file *f, struct crash_view *view)
{
    static struct ring ring; /* large; one thread at a time judges */
    struct log_entry_header e;
    const char *error = NULL;
    uint64_t below = UINT64_MAX;

    ring.bytes = f->bytes + view->header.log_offset;
    ring.length = view->header.log_length;
    ring.log_guid = &view->header.log_guid;
    for (;;) { /* heads, newest first */
        uint32_t best_at = 0;
        uint64_t best = 0;
        for (uint32_t at = 0; at < ring.length; at += LOG_SECTOR_BYTES) {
            if (f->present[(view->header.log_offset + at) / PAGE_BYTES] && log_entry_header_decode(ring.bytes + at, &e) &&
                guid_equal(&e.log_guid, ring.log_guid) && e.sequence_no < below && e.sequence_no > best) {
                best = e.sequence_no;
                best_at = at;
            }
        }
        if (best == 0)
            return wrong("the headers name a log without a sequence at", view->header.log_offset);
        below = best;
        if (!entry_at(&ring, best_at, &e) || !replay_sequence(&ring, best_at, &e, view, &error))
            continue;
        if (e.flushed_file_offset > f->length)
            return wrong("the file is shorter than the log promises", f->length);
        view->length = max_u64(view->length, e.last_file_offset);
        return error;
    }
}

/* ---- the BAT ---- */

static const uint8_t *page_after_replay(const struct crash_file *f, const struct crash_view *view, uint64_t offset)
{
    for (uint32_t i = view->nr_replayed; i-- > 0;) {
        if (view->replayed[i].file_offset == offset)
            return view->replayed[i].bytes;
    }
    return f->present[offset / PAGE_BYTES] ? f->bytes + offset : NULL;
}

static const char *own(const struct image_plan *plan, const struct crash_view *view, uint8_t *owned, uint64_t offset, uint64_t bytes)
{
    if (offset < image_plan_blocks_offset(plan) || !range_fits(offset, bytes, view->length))
        return wrong("outside of the file lies what is at", offset);
    for (uint64_t mib = 0; mib < bytes / OBJECT_ALIGNMENT; mib++) {
        if (owned[offset / OBJECT_ALIGNMENT + mib]++)
            return wrong("overlap at", offset);
    }
    return NULL;
}

static const char *take_entry(const struct image_plan *plan, const struct geometry *g, const struct history *h, uint64_t block_no,
                              uint64_t raw, struct crash_view *view, uint8_t *owned)
{
    struct bat_entry e = bat_entry_decode(raw);
    int i = history_find(h, block_no);

    if (i < 0)
        return wrong("an entry for a block that nobody touched:", block_no);
    if (!e.reserved_is_zero)
        return wrong("reserved bits in the entry of block", block_no);
    view->states[i] = e.state;
    if (e.state == PAYLOAD_ZERO || e.state == PAYLOAD_UNMAPPED)
        return e.file_offset ? wrong("an anchor of block", block_no) : NULL;
    if (e.state != PAYLOAD_FULLY_PRESENT && !(g->has_parent && e.state == PAYLOAD_PARTIALLY_PRESENT))
        return wrong("impossible state of block", block_no);
    view->places[i] = e.file_offset;
    return own(plan, view, owned, e.file_offset, g->block_size);
}

static const char *take_bitmap(const struct image_plan *plan, const struct geometry *g, uint64_t chunk_no, uint64_t raw,
                               struct crash_view *view, uint8_t *owned)
{
    struct bat_entry e = bat_entry_decode(raw);

    if (!g->has_parent || chunk_no >= MAX_CRASH_CHUNKS || e.state != BITMAP_PRESENT || !e.reserved_is_zero)
        return wrong("an impossible bitmap entry", raw);
    view->bitmaps[chunk_no] = e.file_offset;
    return own(plan, view, owned, e.file_offset, BITMAP_BLOCK_BYTES);
}

static const char *walk_bat(const struct crash_file *f, const struct image_plan *plan, const struct history *h,
                            struct crash_view *view)
{
    struct geometry g = image_plan_geometry(plan);
    uint8_t owned[CRASH_FILE_BYTES / OBJECT_ALIGNMENT] = {0};
    uint64_t no;

    memset(view->states, 0, sizeof view->states);
    memset(view->places, 0, sizeof view->places);
    memset(view->bitmaps, 0, sizeof view->bitmaps);
    if (view->length > CRASH_FILE_BYTES)
        return wrong("a long file", view->length);
    for (uint64_t index = 0; index < g.nr_bat_entries; index += BAT_ENTRIES_PER_PAGE) {
        const uint8_t *page = page_after_replay(f, view, plan->bat_offset + index * BAT_ENTRY_BYTES);
        for (uint64_t i = index; page && i < min_u64(index + BAT_ENTRIES_PER_PAGE, g.nr_bat_entries); i++) {
            uint64_t raw = le64_get(page + (i - index) * BAT_ENTRY_BYTES);
            if (raw == 0)
                continue;
            const char *error = bat_index_is_bitmap(&g, i, &no) ? take_bitmap(plan, &g, no, raw, view, owned)
                                                                : take_entry(plan, &g, h, no, raw, view, owned);
            if (error)
                return error;
        }
    }
    return NULL;
}

/* ---- payload ---- */

static const char *judge_block(const struct crash_file *f, const struct history *h, uint32_t i, uint64_t place)
{
    uint64_t cells = h->block_bytes / CELL_BYTES, per_page = PAGE_BYTES / CELL_BYTES;
    static const uint8_t zeros[CELL_BYTES];

    for (uint64_t cell = i * cells; cell < (i + 1) * cells; cell += per_page) {
        uint64_t at = place + (cell - i * cells) * CELL_BYTES;
        if (place == 0 || !f->present[at / PAGE_BYTES]) {
            if (history_zero_page_ok(h, cell))
                continue;
            for (unsigned k = 0; k < per_page; k++) {
                const char *error = history_judge(h, cell + k, zeros);
                if (error)
                    return error;
            }
        }
        for (unsigned k = 0; place != 0 && k < per_page; k++) {
            const char *error = history_judge(h, cell + k, f->bytes + at + (uint64_t)k * CELL_BYTES);
            if (error)
                return error;
        }
    }
    return NULL;
}

/* ---- children ---- */

/* Is the sector that the cell lies in here? */
static bool cell_is_here(const struct crash_file *f, const struct geometry *g, const struct history *h, const struct crash_view *view,
                         uint64_t cell)
{
    uint64_t cells = h->block_bytes / CELL_BYTES, block_no = h->blocks[cell / cells];

    if (view->states[cell / cells] != PAYLOAD_PARTIALLY_PRESENT)
        return view->states[cell / cells] == PAYLOAD_FULLY_PRESENT;
    uint64_t bit = bitmap_slice_offset(g, block_no) * 8 + cell % cells * CELL_BYTES / g->sector_size;
    uint64_t at = view->bitmaps[chunk_of_block(g, block_no)] + bit / 8;
    const uint8_t *page = page_after_replay(f, view, align_down(at, PAGE_BYTES));
    return page && page[at % PAGE_BYTES] >> bit % 8 & 1;
}

/* What a cell that is not here shows. */
static uint32_t shown_below(const struct history *h, const struct crash_view *view, uint64_t cell)
{
    unsigned state = view->states[cell / (h->block_bytes / CELL_BYTES)];
    return state == PAYLOAD_NOT_PRESENT || state == PAYLOAD_PARTIALLY_PRESENT ? h->below[cell] : 0;
}

static const char *judge_rest(const struct crash_file *f, const struct crash_view *view, uint32_t i, uint64_t visible, uint64_t bytes)
{
    for (uint64_t at = view->places[i] + visible; view->states[i] == PAYLOAD_FULLY_PRESENT && at < view->places[i] + bytes; at++) {
        if (f->bytes[at] != 0)
            return wrong("not zeros behind the disk's end, at", at);
    }
    return NULL;
}

static const char *judge_child_block(const struct crash_file *f, const struct geometry *g, const struct history *h,
                                     const struct crash_view *view, uint32_t i)
{
    uint64_t cells = h->block_bytes / CELL_BYTES, visible = block_visible_bytes(g, h->blocks[i]);

    if (view->states[i] == PAYLOAD_PARTIALLY_PRESENT && view->bitmaps[chunk_of_block(g, h->blocks[i])] == 0)
        return wrong("no bitmap for block", h->blocks[i]);
    for (uint64_t cell = i * cells; cell < i * cells + visible / CELL_BYTES; cell++) {
        uint64_t at = view->places[i] + (cell - i * cells) * CELL_BYTES;
        bool here = view->states[i] >= PAYLOAD_FULLY_PRESENT && cell_is_here(f, g, h, view, cell);
        const char *error = NULL;
        if (!here)
            error = history_judge_id(h, cell, shown_below(h, view, cell));
        else if (f->present[at / PAGE_BYTES])
            error = history_judge(h, cell, f->bytes + at);
        else
            error = history_judge_id(h, cell, 0); /* nothing is stored there */
        if (error)
            return error;
    }
    return visible < h->block_bytes ? judge_rest(f, view, i, visible, h->block_bytes) : NULL;
}

static bool is_bitmap_page(const struct crash_view *view, uint64_t offset)
{
    for (unsigned c = 0; c < MAX_CRASH_CHUNKS; c++) {
        if (view->bitmaps[c] != 0 && range_fits(offset - view->bitmaps[c], PAGE_BYTES, BITMAP_BLOCK_BYTES))
            return true;
    }
    return false;
}

const char *crash_read(const struct crash_file *f, const struct image_plan *plan, const struct history *h,
                       struct crash_view *view)
{
    const uint8_t *raw[2] = {f->bytes + HEADER_OFFSET(0), f->bytes + HEADER_OFFSET(1)};
    int slot = header_choose(raw[0], raw[1]);
    struct geometry g = image_plan_geometry(plan);
    const char *error = NULL;

    if (slot < 0)
        return wrong("no header at", HEADER_OFFSET(0));
    header_decode(raw[slot], &view->header);
    view->dirty = header_log_is_dirty(&view->header);
    view->length = f->length;
    view->nr_replayed = 0;
    if (view->dirty)
        error = replay(f, view);
    if (!error)
        error = walk_bat(f, plan, h, view);
    for (uint32_t i = 0; !error && i < view->nr_replayed; i++) { /* also W8: no payload under an old page of a table */
        uint64_t offset = view->replayed[i].file_offset;
        if (!range_fits(offset - plan->bat_offset, PAGE_BYTES, plan->bat_length) && !is_bitmap_page(view, offset))
            error = wrong("the log changes what is no table, at", offset);
    }
    for (uint32_t i = 0; !error && i < h->nr_blocks; i++) {
        if (h->below)
            error = judge_child_block(f, &g, h, view, i);
        else if (view->places[i] != 0 || h->pages_needed[i] != 0)
            error = judge_block(f, h, i, view->places[i]);
    }
    return error;
}

void crash_identify(const struct crash_file *f, const struct image_plan *plan, const struct history *h, const struct crash_view *view,
                    uint32_t *base)
{
    uint64_t cells = h->block_bytes / CELL_BYTES;
    struct geometry g = image_plan_geometry(plan);

    for (uint64_t cell = 0; cell < h->nr_cells; cell++) {
        uint64_t place = view->places[cell / cells];
        if (h->below && !cell_is_here(f, &g, h, view, cell))
            base[cell] = shown_below(h, view, cell);
        else
            base[cell] = place ? history_identify(f->bytes + place + cell % cells * CELL_BYTES) : 0;
    }
}
