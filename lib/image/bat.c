/* SPDX-License-Identifier: MIT */
#include "image/image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/error.h"
#include "base/le.h"
#include "image/mib-set.h"
#include "image/page-cache.h"

int bat_read(struct image *img, uint64_t bat_index, uint32_t nr, uint64_t *raw)
{
    while (nr > 0) {
        uint8_t bytes[64 * BAT_ENTRY_BYTES];
        uint64_t offset = bat_entry_offset(img, bat_index);
        uint32_t n = (uint32_t)min_u64(nr, ARRAY_LENGTH(bytes) / BAT_ENTRY_BYTES);
        n = (uint32_t)min_u64(n, (PAGE_BYTES - offset % PAGE_BYTES) / BAT_ENTRY_BYTES);
        int r = page_cache_read(img->pages, bytes, n * BAT_ENTRY_BYTES, offset);
        if (r < 0)
            return fail_in(r, "BAT entry %" PRIu64 " at 0x%" PRIx64, bat_index, offset);
        for (uint32_t i = 0; i < n; i++)
            *raw++ = le64_get(bytes + i * BAT_ENTRY_BYTES);
        bat_index += n;
        nr -= n;
    }
    return 0;
}

/* The reserved range that [offset, offset + bytes) touches, if any. */
static const struct reserved_range *find_reserved(const struct image *img, uint64_t offset, uint64_t bytes)
{
    size_t low = 0, high = img->nr_reserved;

    while (low < high) { /* the first range that ends behind offset */
        size_t middle = low + (high - low) / 2;
        if (img->reserved[middle].end > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low < img->nr_reserved && img->reserved[low].start < offset + bytes ? &img->reserved[low] : NULL;
}

/* Payload in the header area, the log or a region would be read as disk content, and written over later (row 83). */
static int check_apart(const struct image *img, const char *what, uint64_t no, uint64_t entry_offset,
                       uint64_t offset, uint64_t bytes)
{
    const struct reserved_range *r = find_reserved(img, offset, bytes);

    if (r)
        return fail(VHDX_E_BAT,
                    "BAT entry at 0x%" PRIx64 ": %s %" PRIu64 " at 0x%" PRIx64 " overlaps the headers, log or region at "
                    "0x%" PRIx64 "..0x%" PRIx64 "; the table is damaged, \"vhdx check\" lists everything wrong",
                    entry_offset, what, no, offset, r->start, r->end);
    return 0;
}

static int judge_payload(const struct image *img, uint64_t block_no, uint64_t raw)
{
    uint64_t place = bat_entry_offset(img, bat_index_of_block(&img->geometry, block_no));
    struct bat_entry e = bat_entry_decode(raw);
    int r = payload_entry_check(&img->geometry, block_no, raw, place, img->file_length, NULL);

    if (r == 0 && payload_owns_space(&e))
        r = check_apart(img, "payload block", block_no, place, e.file_offset, img->geometry.block_size);
    return r;
}

static int judge_bitmap(const struct image *img, uint64_t chunk_no, uint64_t raw)
{
    uint64_t place = bat_entry_offset(img, bat_index_of_bitmap(&img->geometry, chunk_no));
    struct bat_entry e = bat_entry_decode(raw);
    int r = bitmap_entry_check(&img->geometry, chunk_no, raw, place, img->file_length);

    if (r == 0 && e.state == BITMAP_PRESENT)
        r = check_apart(img, "sector bitmap block", chunk_no, place, e.file_offset, BITMAP_BLOCK_BYTES);
    return r;
}

int bat_judge(const struct image *img, uint64_t block_no, uint64_t raw, struct bat_entry *e)
{
    *e = bat_entry_decode(raw);
    return raw == 0 ? 0 : judge_payload(img, block_no, raw);
}

void bat_remember(struct image *img, uint64_t block_no, const struct bat_entry *e)
{
    _Atomic uint64_t *slot = &img->lookaside[block_no % LOOKASIDE_SLOTS];

    if (e->state == PAYLOAD_FULLY_PRESENT)
        atomic_store(slot, UINT64_C(1) << 63 | block_no << 30 | e->file_offset / OBJECT_ALIGNMENT);
    else if (bat_lookaside(img, block_no) != 0)
        atomic_store(slot, 0);
}

struct lookup {
    struct image *img;
    uint64_t block_no, entry_offset;
    struct bat_entry e;
    int result;
};

/* Under the page's lock: an entry that changes meanwhile cannot be remembered as it was. */
static void look_up_in_page(void *opaque, const uint8_t page[PAGE_BYTES])
{
    struct lookup *l = opaque;

    l->result = bat_judge(l->img, l->block_no, le64_get(page + l->entry_offset % PAGE_BYTES), &l->e);
    if (l->result == 0)
        bat_remember(l->img, l->block_no, &l->e);
}

int bat_lookup(struct image *img, uint64_t block_no, struct bat_entry *e)
{
    uint64_t index = bat_index_of_block(&img->geometry, block_no), place = bat_lookaside(img, block_no);
    struct lookup l = {.img = img, .block_no = block_no, .entry_offset = bat_entry_offset(img, index)};

    if (place != 0) {
        *e = (struct bat_entry){.state = PAYLOAD_FULLY_PRESENT, .file_offset = place, .reserved_is_zero = true};
        return 0;
    }
    int r = page_cache_look(img->pages, l.entry_offset, look_up_in_page, &l);
    if (r < 0)
        return fail_in(r, "BAT entry %" PRIu64 " at 0x%" PRIx64, index, l.entry_offset);
    *e = l.e;
    return l.result;
}

int bat_bitmap_entry(struct image *img, uint64_t chunk_no, struct bat_entry *e)
{
    uint64_t raw;
    int r = bat_read(img, bat_index_of_bitmap(&img->geometry, chunk_no), 1, &raw);

    if (r == 0)
        r = judge_bitmap(img, chunk_no, raw);
    *e = bat_entry_decode(r < 0 ? 0 : raw);
    return r;
}

int bat_lookup_bitmap(struct image *img, uint64_t chunk_no, struct bat_entry *e)
{
    uint64_t index = bat_index_of_bitmap(&img->geometry, chunk_no);
    int r = bat_bitmap_entry(img, chunk_no, e);

    if (r < 0)
        return r;
    if (e->state != BITMAP_PRESENT)
        return fail(VHDX_E_BITMAP,
                    "BAT entry %" PRIu64 " at 0x%" PRIx64 ": chunk %" PRIu64 " has partially present blocks but no sector "
                    "bitmap block (state %u); which sectors belong to the parent is lost",
                    index, bat_entry_offset(img, index), chunk_no, e->state);
    return 0;
}

int bat_skip_holes(struct image *img, uint64_t bat_index, uint64_t end_index, uint64_t *next)
{
    uint64_t start, end, at = bat_entry_offset(img, bat_index);
    int r = image_next_data(img, at, &start, &end);

    if (r == 0 && img->writer && (start == end || start > at)) {
        /* Pages that were changed and are not in their places yet are holes in the file only.  Then the file is asked again: what
         * came home before the held pages were looked at is seen now. */
        uint64_t held = page_cache_next_held(img->pages, at);
        r = image_next_data(img, at, &start, &end);
        if (r == 0 && held < img->bat->file_offset + img->bat->length && (start == end || held < start)) {
            start = max_u64(held, at);
            end = start + PAGE_BYTES;
        }
    }
    if (r < 0)
        return fail_in(r, "BAT at 0x%" PRIx64, img->bat->file_offset);
    *next = start == end ? end_index : min_u64(end_index, (start - img->bat->file_offset) / BAT_ENTRY_BYTES);
    return 0;
}

/* ---- looking through the whole table ---- */

/* Move *index on to the next entry that exists on disk, if it begins a page.  *known_end: entries below are known to exist, so
 * that a dense table is not asked about page by page, which some file systems answer slowly. */
static int walk_holes(struct image *img, uint64_t *index, uint64_t end_index, uint64_t *known_end)
{
    uint64_t start, end;

    if (*index % BAT_ENTRIES_PER_PAGE != 0 || *index < *known_end)
        return 0;
    if (img->writer)
        return bat_skip_holes(img, *index, end_index, index);
    int r = image_next_data(img, bat_entry_offset(img, *index), &start, &end);
    if (r < 0)
        return fail_in(r, "BAT at 0x%" PRIx64, img->bat->file_offset);
    *index = start == end ? end_index : min_u64(end_index, (start - img->bat->file_offset) / BAT_ENTRY_BYTES);
    *known_end = (end - img->bat->file_offset) / BAT_ENTRY_BYTES;
    return 0;
}

enum { OWNER_TEXT_BYTES = 40 };

struct verification {
    struct image *img;
    struct mib_set used;
    uint64_t entries_left;
    struct bat_tally tally;
    uint64_t chunk_end; /* number behind the last chunk whose bitmap block is known to be there; 0: none yet */
};

static bool entry_owns(const struct geometry *g, uint64_t bat_index, uint64_t raw, uint64_t offset, uint64_t bytes)
{
    struct bat_entry e = bat_entry_decode(raw);
    uint64_t no;
    bool bitmap = bat_index_is_bitmap(g, bat_index, &no);
    bool owns = bitmap ? g->has_parent && e.state == BITMAP_PRESENT : payload_owns_space(&e);

    return owns && ranges_overlap(offset, bytes, e.file_offset, bitmap ? BITMAP_BLOCK_BYTES : g->block_size);
}

/* "BAT entry N" for an entry before bat_index that owns a MiB of [offset, offset + bytes).  It is for a message, and hostile
 * tables may be large, so there is an end to looking. */
static void name_other_owner(struct verification *v, uint64_t bat_index, uint64_t offset, uint64_t bytes, char text[OWNER_TEXT_BYTES])
{
    uint64_t raw[64], left = 16 * 1024, known_end = 0;

    snprintf(text, OWNER_TEXT_BYTES, "another BAT entry");
    for (uint64_t i = 0; i < bat_index && left > 0;) {
        if (walk_holes(v->img, &i, bat_index, &known_end) < 0 || i >= bat_index)
            return;
        uint32_t n = (uint32_t)min_u64(ARRAY_LENGTH(raw) - i % ARRAY_LENGTH(raw), bat_index - i);
        if (bat_read(v->img, i, n, raw) < 0)
            return;
        for (uint32_t k = 0; k < n; k++) {
            if (entry_owns(&v->img->geometry, i + k, raw[k], offset, bytes)) {
                snprintf(text, OWNER_TEXT_BYTES, "BAT entry %" PRIu64, i + k);
                return;
            }
        }
        i += n;
        left -= min_u64(n, left);
    }
}

static int fail_overlap(struct verification *v, uint64_t bat_index, uint64_t offset, uint64_t bytes)
{
    char other[OWNER_TEXT_BYTES];

    name_other_owner(v, bat_index, offset, bytes, other);
    return fail(VHDX_E_BAT,
                "BAT entry %" PRIu64 " at 0x%" PRIx64 ": the space 0x%" PRIx64 "..0x%" PRIx64 " that it points to belongs to %s "
                "too; the table is damaged, \"vhdx check\" lists everything wrong",
                bat_index, bat_entry_offset(v->img, bat_index), offset, offset + bytes, other);
}

static int claim(struct verification *v, uint64_t bat_index, uint64_t offset, uint64_t bytes)
{
    bool clash;
    int r = mib_set_add(&v->used, offset / OBJECT_ALIGNMENT, bytes / OBJECT_ALIGNMENT, &clash);

    if (r == 0 && clash)
        r = fail_overlap(v, bat_index, offset, bytes);
    return r;
}

/* A partially present block is no use without its chunk's bitmap block (5.5, row 86). */
static int verify_bitmap_of(struct verification *v, uint64_t chunk_no)
{
    struct bat_entry bitmap;

    if (v->chunk_end == chunk_no + 1)
        return 0;
    v->chunk_end = chunk_no + 1;
    return bat_lookup_bitmap(v->img, chunk_no, &bitmap);
}

static int verify_entry(struct verification *v, uint64_t bat_index, uint64_t raw)
{
    const struct geometry *g = &v->img->geometry;
    struct bat_entry e = bat_entry_decode(raw);
    uint64_t no;

    if (bat_index_is_bitmap(g, bat_index, &no)) {
        if (!g->has_parent)
            return 0; /* other writers leave garbage there (10.3) */
        int r = judge_bitmap(v->img, no, raw);
        return r == 0 && e.state == BITMAP_PRESENT ? claim(v, bat_index, e.file_offset, BITMAP_BLOCK_BYTES) : r;
    }
    if (no >= g->nr_blocks)
        return 0; /* padding of the last chunk */
    v->tally.states[e.state]++;
    int r = judge_payload(v->img, no, raw);
    if (r == 0 && e.state == PAYLOAD_PARTIALLY_PRESENT)
        r = verify_bitmap_of(v, chunk_of_block(g, no));
    return r == 0 && payload_owns_space(&e) ? claim(v, bat_index, e.file_offset, g->block_size) : r;
}

/* Every entry that exists on disk, until the budget ends: then *done stays false. */
static int verify_entries(struct verification *v, bool *done)
{
    uint64_t end = v->img->geometry.nr_bat_entries, known_end = 0, *at = &v->tally.end;

    while (*at < end) {
        uint64_t raw[64];
        int r = walk_holes(v->img, at, end, &known_end);
        if (r < 0 || *at >= end) {
            *done = r == 0;
            return r;
        }
        uint32_t n = (uint32_t)min_u64(ARRAY_LENGTH(raw) - *at % ARRAY_LENGTH(raw), end - *at);
        if (v->entries_left < n)
            return 0;
        v->entries_left -= n;
        r = bat_read(v->img, *at, n, raw);
        for (uint32_t k = 0; r == 0 && k < n; k++)
            r = raw[k] == 0 ? 0 : verify_entry(v, *at + k, raw[k]);
        if (r < 0)
            return r;
        *at += n;
    }
    *done = true;
    return 0;
}

int bat_verify(struct image *img, uint64_t max_entries, bool *done)
{
    struct verification v = {.img = img, .entries_left = max_entries};

    *done = false;
    int r = mib_set_init(&v.used, div_round_up(img->file_length, OBJECT_ALIGNMENT) + MAX_BLOCK_BYTES / OBJECT_ALIGNMENT);
    if (r == 0)
        r = verify_entries(&v, done);
    if (r == 0)
        img->tally = v.tally;
    mib_set_free(&v.used);
    return r;
}

int bat_collect_used(struct image *img, struct mib_set *used)
{
    struct verification v = {.img = img, .entries_left = UINT64_MAX};
    bool done = false, clash = false;

    int r = mib_set_init(&v.used, MAX_FILE_BYTES / OBJECT_ALIGNMENT);
    for (size_t i = 0; r == 0 && i < img->nr_reserved; i++)
        r = mib_set_add(&v.used, img->reserved[i].start / OBJECT_ALIGNMENT,
                        (img->reserved[i].end - img->reserved[i].start) / OBJECT_ALIGNMENT, &clash);
    if (r == 0)
        r = verify_entries(&v, &done);
    *used = v.used;
    return r;
}

/* ---- counting ---- */

/* The entries from tally->end to the end of their page, or of the table. */
static void count_in_page(const struct geometry *g, const uint8_t page[PAGE_BYTES], struct bat_tally *tally)
{
    uint64_t no;

    do {
        uint64_t raw = le64_get(page + tally->end % BAT_ENTRIES_PER_PAGE * BAT_ENTRY_BYTES);
        if (raw != 0 && !bat_index_is_bitmap(g, tally->end, &no) && no < g->nr_blocks)
            tally->states[bat_entry_decode(raw).state]++;
    } while (++tally->end % BAT_ENTRIES_PER_PAGE != 0 && tally->end < g->nr_bat_entries);
}

int bat_count_states(struct image *img, uint64_t counts[8])
{
    const struct geometry *g = &img->geometry;
    struct bat_tally t = img->writer ? (struct bat_tally){0} : img->tally;
    uint64_t known_end = 0, nr_zero = g->nr_blocks;
    uint8_t page[PAGE_BYTES];

    while (t.end < g->nr_bat_entries) {
        int r = walk_holes(img, &t.end, g->nr_bat_entries, &known_end);
        if (r < 0)
            return r;
        if (t.end == g->nr_bat_entries)
            break;
        r = page_cache_peek(img->pages, page, bat_entry_offset(img, t.end));
        if (r < 0)
            return fail_in(r, "BAT entry %" PRIu64 " at 0x%" PRIx64, t.end, bat_entry_offset(img, t.end));
        count_in_page(g, page, &t);
    }
    for (unsigned i = 0; i < 8; i++) {
        counts[i] = t.states[i];
        nr_zero -= counts[i];
    }
    counts[PAYLOAD_NOT_PRESENT] += nr_zero;
    return 0;
}
