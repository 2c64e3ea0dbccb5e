/* SPDX-License-Identifier: MIT */
#include "history.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/le.h"
#include "base/math.h"

#define MARK UINT64_C(0x7264736563746f72) /* in the high bits of nothing else that a file holds */

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

static uint64_t cells_per_block(const struct history *h)
{
    return h->block_bytes / CELL_BYTES;
}

void history_init(struct history *h, uint64_t block_bytes, const uint64_t *blocks, uint32_t nr_blocks)
{
    *h = (struct history){.block_bytes = block_bytes, .nr_blocks = nr_blocks};
    pthread_mutex_init(&h->mutex, NULL);
    memcpy(h->blocks, blocks, nr_blocks * sizeof *blocks);
    h->nr_cells = nr_blocks * cells_per_block(h);
    h->base = must(calloc(h->nr_cells, sizeof *h->base));
}

static void drop_index(struct history *h)
{
    free(h->first);
    free(h->list);
    free(h->floor);
    free(h->zero_ok);
    free(h->pages_needed);
    h->first = h->list = h->floor = h->pages_needed = NULL;
    h->zero_ok = NULL;
    h->at_step = 0;
}

void history_destroy(struct history *h)
{
    drop_index(h);
    free(h->base);
    free(h->below);
    free(h->requests);
    pthread_mutex_destroy(&h->mutex);
}

int history_find(const struct history *h, uint64_t block_no)
{
    for (uint32_t i = 0; i < h->nr_blocks; i++) {
        if (h->blocks[i] == block_no)
            return (int)i;
    }
    return -1;
}

uint32_t history_begin(struct history *h, enum request_kind kind, uint64_t guest_offset, uint64_t bytes, bool fua,
                       size_t first_step)
{
    pthread_mutex_lock(&h->mutex);
    if (h->nr_requests == h->request_capacity) {
        h->request_capacity = h->request_capacity ? 2 * h->request_capacity : 256;
        h->requests = must(reallocarray(h->requests, h->request_capacity, sizeof *h->requests));
    }
    uint32_t no = h->nr_requests++;
    h->requests[no] = (struct request){.kind = kind, .fua = fua, .guest_offset = guest_offset, .bytes = bytes,
                                       .first_step = first_step, .end_step = SIZE_MAX, .began = ++h->time};
    pthread_mutex_unlock(&h->mutex);
    return no;
}

void history_end(struct history *h, uint32_t request_no, bool success, size_t end_step)
{
    pthread_mutex_lock(&h->mutex);
    if (success) {
        h->requests[request_no].returned = ++h->time;
        h->requests[request_no].end_step = end_step;
    }
    pthread_mutex_unlock(&h->mutex);
}

/* ---- sectors ---- */

static uint64_t word(uint64_t request_no, uint64_t sector_no, unsigned i)
{
    return (request_no + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ (sector_no + i) * UINT64_C(0xbf58476d1ce4e5b9);
}

static void fill_sector(uint8_t *to, uint64_t request_no, uint64_t sector_no)
{
    le64_put(to, MARK);
    le64_put(to + 8, request_no);
    le64_put(to + 16, sector_no);
    for (unsigned i = 3; i < CELL_BYTES / 8; i++)
        le64_put(to + (size_t)8 * i, word(request_no, sector_no, i));
}

void history_fill(uint32_t request_no, uint64_t guest_offset, uint64_t bytes, uint8_t *data)
{
    for (uint64_t at = 0; at < bytes; at += CELL_BYTES)
        fill_sector(data + at, request_no, (guest_offset + at) / CELL_BYTES);
}

void history_forget(struct history *h, uint32_t request_no)
{
    h->requests[request_no] = (struct request){.kind = REQUEST_FLUSH};
}

static bool is_zero(const uint8_t *bytes)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, CELL_BYTES - 1) == 0;
}

uint32_t history_identify(const uint8_t bytes[CELL_BYTES])
{
    return is_zero(bytes) ? 0 : (uint32_t)le64_get(bytes + 8) + 1;
}

static uint64_t sector_of_cell(const struct history *h, uint64_t cell)
{
    return h->blocks[cell / cells_per_block(h)] * cells_per_block(h) + cell % cells_per_block(h);
}

/* ---- the index ---- */

/* Call fn for the cells of a request. */
static void each_cell(const struct history *h, const struct request *q, void (*fn)(struct history *, uint64_t, uint32_t),
                      struct history *to, uint32_t no)
{
    for (uint64_t at = q->guest_offset; at < q->guest_offset + q->bytes; at += CELL_BYTES) {
        int i = history_find(h, at / h->block_bytes);
        if (i < 0) {
            at = align_down(at, h->block_bytes) + h->block_bytes - CELL_BYTES; /* a discard over blocks not listed */
            continue;
        }
        fn(to, (uint64_t)i * cells_per_block(h) + at % h->block_bytes / CELL_BYTES, no);
    }
}

static void count_cell(struct history *h, uint64_t cell, uint32_t no)
{
    (void)no;
    h->first[cell + 1]++;
}

static void enter_cell(struct history *h, uint64_t cell, uint32_t no)
{
    h->list[h->first[cell] + h->floor[cell]++] = no;
}

/* May the cell be zeros after at_step steps? */
static void weigh_cell(struct history *h, uint64_t cell)
{
    uint32_t nr = h->first[cell + 1] - h->first[cell], floor = h->floor[cell];
    const uint32_t *list = h->list + h->first[cell];
    bool ok = floor == 0 && h->base[cell] == 0;

    for (uint32_t i = floor > 0 ? floor - 1 : 0; !ok && i < nr; i++)
        ok = h->requests[list[i]].kind != REQUEST_WRITE && h->requests[list[i]].first_step < h->at_step;
    h->zero_ok[cell] = ok;
}

static void weigh_all(struct history *h)
{
    uint64_t per_page = PAGE_BYTES / CELL_BYTES, per_block = cells_per_block(h);

    memset(h->pages_needed, 0, h->nr_blocks * sizeof *h->pages_needed);
    for (uint64_t cell = 0; cell < h->nr_cells; cell++)
        weigh_cell(h, cell);
    for (uint64_t cell = 0; cell < h->nr_cells; cell += per_page)
        h->pages_needed[cell / per_block] += !history_zero_page_ok(h, cell);
}

void history_index(struct history *h)
{
    drop_index(h);
    h->first = must(calloc(h->nr_cells + 1, sizeof *h->first));
    h->floor = must(calloc(h->nr_cells, sizeof *h->floor));
    h->zero_ok = must(calloc(h->nr_cells, 1));
    h->pages_needed = must(calloc(h->nr_blocks, sizeof *h->pages_needed));
    for (uint32_t no = 0; no < h->nr_requests; no++)
        if (h->requests[no].kind != REQUEST_FLUSH)
            each_cell(h, &h->requests[no], count_cell, h, no);
    for (uint64_t cell = 0; cell < h->nr_cells; cell++)
        h->first[cell + 1] += h->first[cell];
    h->list = must(calloc((size_t)h->first[h->nr_cells] + 1, sizeof *h->list));
    for (uint32_t no = 0; no < h->nr_requests; no++)
        if (h->requests[no].kind != REQUEST_FLUSH)
            each_cell(h, &h->requests[no], enter_cell, h, no);
    memset(h->floor, 0, h->nr_cells * sizeof *h->floor);
    weigh_all(h);
}

/* A flush has returned: what had returned before it began cannot be lost any more. */
static void raise_floors(struct history *h, uint64_t began)
{
    for (uint64_t cell = 0; cell < h->nr_cells; cell++) {
        const uint32_t *list = h->list + h->first[cell];
        uint32_t nr = h->first[cell + 1] - h->first[cell];
        for (uint32_t i = nr; i > h->floor[cell]; i--) {
            const struct request *q = &h->requests[list[i - 1]];
            if (q->returned > 0 && q->returned < began) {
                h->floor[cell] = i;
                break;
            }
        }
    }
}

static void raise_own(struct history *h, uint64_t cell, uint32_t no)
{
    const uint32_t *list = h->list + h->first[cell];

    for (uint32_t i = h->first[cell + 1] - h->first[cell]; i > h->floor[cell]; i--) {
        if (list[i - 1] == no)
            h->floor[cell] = i;
    }
}

void history_go(struct history *h, size_t nr_steps)
{
    bool changed = false;
    size_t before = h->at_step;

    h->at_step = nr_steps;
    for (uint32_t no = 0; no < h->nr_requests; no++) {
        const struct request *q = &h->requests[no];
        changed |= q->kind != REQUEST_FLUSH && q->first_step < nr_steps && q->first_step + 1 >= before;
        if (q->returned == 0 || q->end_step > nr_steps || (before > 0 && q->end_step <= before))
            continue;
        if (q->kind == REQUEST_FLUSH)
            raise_floors(h, q->began);
        else if (q->fua)
            each_cell(h, q, raise_own, h, no);
        changed |= q->kind == REQUEST_FLUSH || q->fua;
    }
    if (changed)
        weigh_all(h);
}

static const char *complain(const struct history *h, uint64_t cell, const char *what, uint64_t found)
{
    static _Thread_local char text[256];
    uint32_t floor = h->floor[cell];

    snprintf(text, sizeof text, "guest sector %" PRIu64 " (block %" PRIu64 ") %s %" PRIu64 "; durable is request %" PRId64,
             sector_of_cell(h, cell), h->blocks[cell / cells_per_block(h)], what, found,
             floor > 0 ? (int64_t)h->list[h->first[cell] + floor - 1] : (int64_t)h->base[cell] - 1);
    return text;
}

/* The content of that request, in its beginning durable already or of a request that is not older than what is. */
static bool may_hold(const struct history *h, uint64_t cell, uint64_t no)
{
    if (h->floor[cell] == 0 && h->base[cell] == no + 1)
        return true;
    for (uint32_t i = h->floor[cell] > 0 ? h->floor[cell] - 1 : 0; i < h->first[cell + 1] - h->first[cell]; i++) {
        uint32_t other = h->list[h->first[cell] + i];
        if (other == no && h->requests[no].kind == REQUEST_WRITE && h->requests[no].first_step < h->at_step)
            return true;
    }
    return false;
}

const char *history_judge(const struct history *h, uint64_t cell, const uint8_t bytes[CELL_BYTES])
{
    uint8_t wanted[CELL_BYTES];
    uint64_t no = le64_get(bytes + 8), sector_no = sector_of_cell(h, cell);

    if (is_zero(bytes))
        return h->zero_ok[cell] ? NULL : complain(h, cell, "is zeros instead of a write, code", 0);
    if (le64_get(bytes) != MARK)
        return complain(h, cell, "holds no written sector but", le64_get(bytes));
    if (le64_get(bytes + 16) != sector_no)
        return complain(h, cell, "holds what belongs to sector", le64_get(bytes + 16));
    fill_sector(wanted, no, sector_no);
    if (memcmp(bytes, wanted, CELL_BYTES) != 0)
        return complain(h, cell, "is torn in itself, request", no);
    return may_hold(h, cell, no) ? NULL : complain(h, cell, "holds what was overwritten, request", no);
}

const char *history_judge_id(const struct history *h, uint64_t cell, uint32_t id)
{
    if (h->floor[cell] == 0 && h->base[cell] == id)
        return NULL; /* the usual case, quickly */
    if (id == 0)
        return h->zero_ok[cell] ? NULL : complain(h, cell, "is zeros, stored or not, instead of a write, code", 0);
    return may_hold(h, cell, id - 1) ? NULL : complain(h, cell, "shows the parent's, request", id - 1);
}

void history_begin_child(struct history *h, const uint32_t *below)
{
    h->below = must(malloc(h->nr_cells * sizeof *below));
    memcpy(h->below, below, h->nr_cells * sizeof *below);
    history_restart(h, below);
}

void history_restart(struct history *h, const uint32_t *base)
{
    drop_index(h);
    memmove(h->base, base, h->nr_cells * sizeof *base);
    for (uint32_t no = 0; no < h->nr_requests; no++)
        h->requests[no] = (struct request){.kind = REQUEST_FLUSH}; /* what counts of it is in base */
}
