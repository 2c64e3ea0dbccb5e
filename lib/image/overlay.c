/* SPDX-License-Identifier: MIT */
#include "image/overlay.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "format/log-entry.h"
#include "storage/storage.h"

/*
 * Building: "later changes win" over intervals.  The ends of all changes cut the file into cells; changes are painted
 * newest first, each onto the cells that are still bare.  A union-find over the cells leads past painted ones, so a cell
 * is visited once and a log full of overlapping zero ranges costs no more than a sort.
 */
struct painter {
    uint64_t *borders; /* sorted, distinct: cell i is [borders[i], borders[i + 1]) */
    size_t nr_borders;
    uint32_t *next_bare; /* union-find; nr_borders - 1 stands for "none" */
    uint32_t *owner;     /* change that painted the cell, plus 1; 0: bare */
};

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void sort_borders(struct painter *p, const struct overlay_range *changes, size_t nr)
{
    size_t kept = 0;

    for (size_t i = 0; i < nr; i++) {
        p->borders[2 * i] = changes[i].start;
        p->borders[2 * i + 1] = changes[i].end;
    }
    qsort(p->borders, 2 * nr, sizeof *p->borders, compare_u64);
    for (size_t i = 0; i < 2 * nr; i++) {
        if (kept == 0 || p->borders[i] != p->borders[kept - 1])
            p->borders[kept++] = p->borders[i];
    }
    p->nr_borders = kept;
}

static uint32_t find_bare(struct painter *p, uint32_t cell)
{
    uint32_t root = cell;

    while (p->next_bare[root] != root)
        root = p->next_bare[root];
    while (p->next_bare[cell] != root) {
        uint32_t up = p->next_bare[cell];
        p->next_bare[cell] = root;
        cell = up;
    }
    return root;
}

static uint32_t cell_at(const struct painter *p, uint64_t border)
{
    const uint64_t *b = bsearch(&border, p->borders, p->nr_borders, sizeof *p->borders, compare_u64);
    return (uint32_t)(b - p->borders);
}

static void paint(struct painter *p, const struct overlay_range *changes, size_t nr)
{
    for (size_t i = 0; i < p->nr_borders; i++)
        p->next_bare[i] = (uint32_t)i;
    for (size_t i = nr; i-- > 0;) {
        if (changes[i].start == changes[i].end)
            continue;
        uint32_t end = cell_at(p, changes[i].end);
        for (uint32_t c = find_bare(p, cell_at(p, changes[i].start)); c < end; c = find_bare(p, c)) {
            p->owner[c] = (uint32_t)i + 1;
            p->next_bare[c] = c + 1;
        }
    }
}

/* Cells of one owner that touch become one range again; a page is never cut, since all borders are page borders. */
static void collect(const struct painter *p, const struct overlay_range *changes, struct overlay *o)
{
    for (size_t c = 0; c + 1 < p->nr_borders; c++) {
        if (p->owner[c] == 0)
            continue;
        const struct overlay_range *from = &changes[p->owner[c] - 1];
        struct overlay_range *last = o->nr_ranges > 0 ? &o->ranges[o->nr_ranges - 1] : NULL;
        if (last && last->end == p->borders[c] && last->data_sector == 0 && from->data_sector == 0) {
            last->end = p->borders[c + 1];
            continue;
        }
        struct overlay_range *r = &o->ranges[o->nr_ranges++];
        *r = *from;
        r->start = p->borders[c];
        r->end = p->borders[c + 1];
    }
}

/* So that looking for data never walks along zeros: a log may hold hundreds of thousands of zero ranges (H2). */
static int index_pages(struct overlay *o)
{
    o->next_page = calloc(o->nr_ranges + 1, sizeof *o->next_page);
    if (!o->next_page)
        return fail_memory("the changes in the log");
    o->next_page[o->nr_ranges] = o->nr_ranges;
    for (size_t i = o->nr_ranges; i-- > 0;)
        o->next_page[i] = o->ranges[i].data_sector != 0 ? i : o->next_page[i + 1];
    return 0;
}

int overlay_build(const struct overlay_range *changes, size_t nr, uint64_t stored_length, uint64_t file_length,
                  struct overlay **result)
{
    struct painter p = {0};
    struct overlay *o = calloc(1, sizeof *o);
    size_t slots = nr > 0 ? nr : 1;
    int r = 0;

    *result = NULL;
    p.borders = calloc(2 * slots, sizeof *p.borders);
    p.next_bare = calloc(2 * slots, sizeof *p.next_bare);
    p.owner = calloc(2 * slots, sizeof *p.owner);
    if (o)
        o->ranges = calloc(2 * slots, sizeof *o->ranges); /* n changes leave at most 2n - 1 ranges */
    if (!o || !o->ranges || !p.borders || !p.next_bare || !p.owner) {
        r = fail_memory("the changes in the log");
        goto out;
    }
    o->stored_length = stored_length;
    o->file_length = file_length;
    sort_borders(&p, changes, nr);
    paint(&p, changes, nr);
    collect(&p, changes, o);
    r = index_pages(o);
    if (r < 0)
        goto out;
    *result = o;
    o = NULL;
out:
    overlay_free(o);
    free(p.borders);
    free(p.next_bare);
    free(p.owner);
    return r;
}

void overlay_free(struct overlay *o)
{
    if (o) {
        free(o->ranges);
        free(o->next_page);
        free(o);
    }
}

/* Index of the first range that ends behind offset. */
static size_t first_behind(const struct overlay *o, uint64_t offset)
{
    size_t low = 0, high = o->nr_ranges;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (o->ranges[middle].end > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

bool overlay_touches(const struct overlay *o, uint64_t offset, uint64_t bytes)
{
    size_t i = first_behind(o, offset);
    return i < o->nr_ranges && bytes > 0 && o->ranges[i].start < offset + bytes;
}

/* Copy [offset, offset + bytes), which lies in range r, into buf. */
static int read_range(const struct overlay_range *r, struct storage *file, uint8_t *buf, size_t bytes,
                      uint64_t offset)
{
    uint8_t sector[LOG_SECTOR_BYTES], page[PAGE_BYTES];

    if (r->data_sector == 0) {
        memset(buf, 0, bytes);
        return 0;
    }
    int e = storage_pread(file, sector, sizeof sector, r->data_sector);
    if (e < 0)
        return e;
    log_page_rebuild(sector, r->leading, r->trailing, page);
    memcpy(buf, page + (offset - r->start), bytes);
    return 0;
}

/* What no range covers: the file's own bytes, and zeros where replay would lengthen it. */
static int read_beside(const struct overlay *o, struct storage *file, uint8_t *buf, size_t bytes, uint64_t offset)
{
    size_t stored = offset < o->stored_length ? min_u64(bytes, o->stored_length - offset) : 0;

    memset(buf + stored, 0, bytes - stored);
    return storage_pread(file, buf, stored, offset);
}

int overlay_pread(const struct overlay *o, struct storage *file, void *buf, size_t bytes, uint64_t offset)
{
    uint8_t *to = buf;

    if (!range_fits(offset, bytes, o->file_length))
        return fail(VHDX_E_TRUNCATED,
                    "the file ends at 0x%" PRIx64 " (after replay of its log), before the %zu bytes at 0x%" PRIx64
                    "; it was cut short, restore it from a backup",
                    o->file_length, bytes, offset);
    for (size_t i = first_behind(o, offset); bytes > 0;) {
        const struct overlay_range *next = i < o->nr_ranges ? &o->ranges[i] : NULL;
        size_t n = bytes;
        int e;
        if (next && next->start <= offset) {
            n = min_u64(n, next->end - offset);
            e = read_range(next, file, to, n, offset);
            i++;
        } else {
            if (next)
                n = min_u64(n, next->start - offset);
            e = read_beside(o, file, to, n, offset);
        }
        if (e < 0)
            return e;
        to += n;
        offset += n;
        bytes -= n;
    }
    return 0;
}

int overlay_next_data(const struct overlay *o, struct storage *file, uint64_t offset, uint64_t *start, uint64_t *end)
{
    int e = storage_next_data(file, offset, start, end);

    if (e < 0)
        return e;
    if (*start == *end && *end < o->stored_length)
        return fail(VHDX_E_TRUNCATED,
                    "the file shrank from 0x%" PRIx64 " to 0x%" PRIx64 " bytes while it was open; another program is "
                    "changing it",
                    o->stored_length, *end);
    if (*start == *end) /* the file itself has no more */
        *start = *end = max_u64(o->file_length, *end);
    size_t page = o->next_page[first_behind(o, offset)]; /* calling zeros data does no harm, overlooking data does */
    if (page < o->nr_ranges && o->ranges[page].start < *start) {
        *start = max_u64(o->ranges[page].start, offset);
        *end = max_u64(*start, min_u64(o->ranges[page].end, o->file_length)); /* a file need not end with a page */
    }
    return 0;
}
