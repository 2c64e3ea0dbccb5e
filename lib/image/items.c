/* SPDX-License-Identifier: MIT */
#include "image/items.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "image/image.h"
#include "image/writer.h"

/* How the items are to be.  New bytes always go where no item lies that stays, so a table that is not changed yet does not see
 * them; the table's pages are what switches. */
struct new_items {
    struct image *img;
    struct metadata_entry *entries;
    uint32_t nr;
    const struct item_change **sources; /* by entry: where its bytes come from; NULL: they stay */
    uint8_t *old_table, *table;         /* raw */
    uint8_t *locator; /* NULL: stays */
    uint32_t locator_length;
};

enum { ITEM_ALIGNMENT = 8, TABLE_PAGES = METADATA_TABLE_RAW_BYTES / PAGE_BYTES, PIECE_PAGES = 32 };

static bool is_same_item(const struct metadata_entry *e, const struct item_change *c)
{
    return guid_equal(&e->id, &c->id) && !((e->flags ^ c->flags) & VHDX_METADATA_USER);
}

/* ---- the list ---- */

static struct metadata_entry *find_entry(struct new_items *n, const struct item_change *c)
{
    for (uint32_t i = 0; i < n->nr; i++) {
        if (is_same_item(&n->entries[i], c))
            return &n->entries[i];
    }
    return NULL;
}

static void remove_entry(struct new_items *n, struct metadata_entry *e)
{
    size_t at = (size_t)(e - n->entries), behind = n->nr - at - 1;

    memmove(e, e + 1, behind * sizeof *e);
    memmove(n->sources + at, n->sources + at + 1, behind * sizeof(struct item_change *));
    n->nr--;
}

static int apply_change(struct new_items *n, const struct item_change *c)
{
    struct metadata_entry *e = find_entry(n, c);

    if (c->remove) {
        if (e)
            remove_entry(n, e);
        return 0;
    }
    if (c->length > MAX_METADATA_ITEM_BYTES)
        return fail(VHDX_E_LIMIT, "a metadata item of %" PRIu32 " bytes is longer than 1 MiB", c->length);
    if (!e) {
        if (n->nr == MAX_METADATA_ITEMS)
            return fail(VHDX_E_LIMIT, "metadata table at 0x%" PRIx64 ": it has %d items already, the most that is possible",
                        n->img->metadata->file_offset, MAX_METADATA_ITEMS);
        e = &n->entries[n->nr++];
    }
    *e = (struct metadata_entry){.id = c->id, .flags = c->flags, .length = c->length};
    n->sources[e - n->entries] = c;
    return 0;
}

/* 7.1: what every reader may refuse. */
static int check_limits(const struct new_items *n)
{
    uint64_t bytes[2] = {0, 0};
    uint32_t nr_user = 0;

    for (uint32_t i = 0; i < n->nr; i++) {
        bool user = n->entries[i].flags & VHDX_METADATA_USER;
        nr_user += user;
        bytes[user] += n->entries[i].length;
    }
    if (nr_user > MAX_USER_ITEMS || n->nr - nr_user > MAX_METADATA_ITEMS - MAX_USER_ITEMS ||
        max_u64(bytes[0], bytes[1]) > MAX_METADATA_CATEGORY_BYTES)
        return fail(VHDX_E_LIMIT, "%" PRIu32 " metadata items with %" PRIu64 " bytes, more than an image may have", n->nr,
                    bytes[0] + bytes[1]);
    return 0;
}

/* ---- places ---- */

struct span {
    uint32_t start, end; /* bytes in the region */
};

static int compare_spans(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

/* What may not be overwritten, sorted: the table, what stays, and unless everything goes into one log entry also what goes. */
static uint32_t taken_spans(const struct new_items *n, bool in_one_entry, struct span *spans)
{
    uint32_t nr = 0;

    spans[nr++] = (struct span){0, METADATA_TABLE_RAW_BYTES};
    for (uint32_t i = 0; i < n->nr; i++) {
        const struct metadata_entry *e = &n->entries[i];
        if (e->length > 0 && e->offset > 0)
            spans[nr++] = (struct span){e->offset, e->offset + e->length};
    }
    for (uint32_t i = 0; !in_one_entry && i < n->img->nr_items; i++) {
        const struct metadata_entry *e = &n->img->items[i];
        if (e->length > 0)
            spans[nr++] = (struct span){e->offset, e->offset + e->length};
    }
    qsort(spans, nr, sizeof *spans, compare_spans);
    return nr;
}

/* The first gap that is long enough, or 0. */
static uint32_t find_gap(const struct span *spans, uint32_t nr, uint32_t region_length, uint32_t bytes)
{
    uint64_t end = 0;

    for (uint32_t i = 0; i < nr; i++) {
        if (spans[i].start > end && spans[i].start - end >= bytes)
            return (uint32_t)end;
        end = max_u64(end, align_up(spans[i].end, ITEM_ALIGNMENT));
    }
    return range_fits(end, bytes, region_length) ? (uint32_t)end : 0;
}

/* Give each new item its place. */
static int place_items(struct new_items *n, bool in_one_entry)
{
    struct span *spans = calloc((size_t)n->nr + n->img->nr_items + 2, sizeof *spans);
    int r = spans ? 0 : fail_memory("the metadata items");

    for (uint32_t i = 0; i < n->nr; i++) {
        if (n->sources[i])
            n->entries[i].offset = 0;
    }
    for (uint32_t i = 0; r == 0 && i < n->nr; i++) {
        if (!n->sources[i] || n->entries[i].length == 0)
            continue;
        uint32_t nr = taken_spans(n, in_one_entry, spans);
        n->entries[i].offset = find_gap(spans, nr, n->img->metadata->length, n->entries[i].length);
        if (n->entries[i].offset == 0)
            r = fail(-ENOSPC, "metadata region at 0x%" PRIx64 ": there is no room for an item of %" PRIu32
                     " bytes; convert the image into a new one", n->img->metadata->file_offset, n->entries[i].length);
    }
    free(spans);
    return r;
}

/* ---- writing ---- */

static uint64_t place_of(const struct new_items *n, uint32_t i)
{
    return n->img->metadata->file_offset + n->entries[i].offset;
}

/* The items' bytes, then the pages of the table that change. */
static size_t list_edits(const struct new_items *n, bool items, struct metadata_edit *edits)
{
    size_t nr = 0;

    for (uint32_t i = 0; items && i < n->nr; i++) {
        if (n->sources[i] && n->entries[i].length > 0)
            edits[nr++] = (struct metadata_edit){place_of(n, i), n->sources[i]->bytes, n->entries[i].length};
    }
    for (size_t at = 0; at < METADATA_TABLE_RAW_BYTES; at += PAGE_BYTES) {
        if (memcmp(n->table + at, n->old_table + at, PAGE_BYTES) != 0)
            edits[nr++] = (struct metadata_edit){n->img->metadata->file_offset + at, n->table + at, PAGE_BYTES};
    }
    return nr;
}

/* Nothing refers to it yet, so it may take several entries of the log. */
static int write_item_in_pieces(const struct new_items *n, uint32_t i)
{
    const uint8_t *bytes = n->sources[i]->bytes;
    int r = 0;

    for (size_t done = 0; r == 0 && done < n->entries[i].length;) {
        size_t piece = min_u64(PIECE_PAGES * PAGE_BYTES, n->entries[i].length - done);
        struct metadata_edit edit = {place_of(n, i) + done, bytes + done, piece};
        r = image_edit_metadata(n->img, &edit, 1);
        done += piece;
    }
    return r;
}

static int write_items(const struct new_items *n, bool in_one_entry)
{
    struct metadata_edit *edits = calloc((size_t)n->nr + TABLE_PAGES, sizeof *edits);
    int r = edits ? 0 : fail_memory("the metadata items");

    for (uint32_t i = 0; r == 0 && !in_one_entry && i < n->nr; i++) {
        if (n->sources[i])
            r = write_item_in_pieces(n, i);
    }
    if (r == 0)
        r = image_edit_metadata(n->img, edits, list_edits(n, in_one_entry, edits));
    free(edits);
    return r;
}

/* Pages that the items' bytes may touch, and the table's. */
static uint64_t count_pages(const struct new_items *n)
{
    uint64_t pages = TABLE_PAGES;

    for (uint32_t i = 0; i < n->nr; i++) {
        if (n->sources[i])
            pages += n->entries[i].length / PAGE_BYTES + 2;
    }
    return pages;
}

/* ---- what is in memory ---- */

/* A copy of the parent locator that is to be, if there is one among the changes. */
static int copy_locator(struct new_items *n, const struct item_change *changes, size_t nr)
{
    for (size_t i = 0; i < nr; i++) {
        struct metadata_entry e = {.id = changes[i].id, .flags = changes[i].flags};
        if (metadata_identify(&e) != METADATA_PARENT_LOCATOR || changes[i].remove || !n->img->locator)
            continue;
        n->locator = malloc(changes[i].length + 1);
        if (!n->locator)
            return fail_memory("the parent locator");
        memcpy(n->locator, changes[i].bytes, changes[i].length);
        n->locator_length = changes[i].length;
    }
    return 0;
}

static void take_over(struct new_items *n)
{
    struct image *img = n->img;

    free(img->items);
    img->items = n->entries;
    img->nr_items = n->nr;
    n->entries = NULL;
    if (n->locator) {
        free(img->locator);
        img->locator = n->locator;
        img->locator_length = n->locator_length;
        n->locator = NULL;
    }
}

/* ---- all together ---- */

static int prepare(struct new_items *n, const struct item_change *changes, size_t nr)
{
    struct image *img = n->img;
    int r = 0;

    n->nr = img->nr_items;
    n->entries = calloc(img->nr_items + nr + 1, sizeof *n->entries);
    n->sources = calloc(img->nr_items + nr + 1, sizeof *n->sources);
    n->old_table = malloc(METADATA_TABLE_RAW_BYTES);
    n->table = malloc(METADATA_TABLE_RAW_BYTES);
    if (!n->entries || !n->sources || !n->old_table || !n->table)
        return fail_memory("the metadata items");
    memcpy(n->entries, img->items, img->nr_items * sizeof *n->entries);
    for (size_t i = 0; r == 0 && i < nr; i++)
        r = apply_change(n, &changes[i]);
    if (r == 0)
        r = check_limits(n);
    if (r == 0)
        r = copy_locator(n, changes, nr);
    return r < 0 ? r : image_read_metadata(img, n->old_table, METADATA_TABLE_RAW_BYTES, img->metadata->file_offset);
}

int image_change_items(struct image *img, const struct item_change *changes, size_t nr)
{
    struct new_items n = {.img = img};
    int r = prepare(&n, changes, nr);

    if (r == 0) {
        bool in_one_entry = count_pages(&n) <= PAGE_SET_MAX;
        r = place_items(&n, in_one_entry);
        if (r == 0) {
            metadata_table_encode(n.entries, n.nr, n.table);
            r = write_items(&n, in_one_entry);
        }
    }
    if (r == 0)
        take_over(&n);
    free(n.locator);
    free(n.entries);
    free(n.sources);
    free(n.old_table);
    free(n.table);
    return r;
}

struct item_change item_change_known(enum metadata_known item, const void *bytes, uint32_t length)
{
    const struct metadata_rule *rule = &metadata_rules[item];

    return (struct item_change){.id = rule->id, .flags = rule->flags, .bytes = bytes, .length = length};
}
