/* SPDX-License-Identifier: MIT */
/* What the guest did to its disk, and what it may therefore find there after a crash (D4, D5).
 *
 * The disk is huge; only the blocks of a short list are ever touched.  Sectors of 512 bytes, whatever the disk's own are, since
 * that is what a device keeps whole; a cell is one of those in one of the listed blocks.  Every written sector carries the number
 * of the request and of the sector, so that whatever turns up says where it comes from. */
#ifndef VHDX_TESTS_HISTORY_H
#define VHDX_TESTS_HISTORY_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/layout.h"

enum { CELL_BYTES = 512, MAX_LISTED_BLOCKS = 512 };

enum request_kind { REQUEST_WRITE, REQUEST_ZERO, REQUEST_DISCARD, REQUEST_FLUSH };

struct request {
    enum request_kind kind;
    bool fua;
    uint64_t guest_offset, bytes;
    size_t first_step, end_step; /* length of the recording when it began and when it had returned */
    uint64_t began, returned;    /* times, counted through all requests; returned 0: not successfully */
};

struct history {
    pthread_mutex_t mutex; /* guards what is added to: requests and the time */
    uint64_t block_bytes;
    uint32_t nr_blocks;
    uint64_t blocks[MAX_LISTED_BLOCKS]; /* block numbers, ascending */
    struct request *requests;
    uint32_t nr_requests, request_capacity;
    uint64_t time;

    /* For judging; made by history_index(). */
    uint64_t nr_cells;
    uint32_t *first;  /* of each cell: where its part of list begins; nr_cells + 1 */
    uint32_t *list;   /* requests that changed the cell, ascending */
    uint32_t *floor;  /* of each cell: where in list what is durable stands, +1; 0: the beginning */
    uint8_t *zero_ok; /* of each cell: it may read as zeros */
    uint32_t *pages_needed; /* of each listed block: pages that must hold something */
    size_t at_step;
    uint32_t *base; /* of each cell: 1 + the request of an earlier life that it held at the beginning; 0: zeros */
    uint32_t *below; /* the same of what the parents hold; NULL: there are none */
};

void history_init(struct history *h, uint64_t block_bytes, const uint64_t *blocks, uint32_t nr_blocks);
void history_destroy(struct history *h);

/* Index of the block in the list, -1 if it is not there. */
int history_find(const struct history *h, uint64_t block_no);

/* Enter a request; returns its number.  first_step: length of the recording now. */
uint32_t history_begin(struct history *h, enum request_kind kind, uint64_t guest_offset, uint64_t bytes, bool fua,
                       size_t first_step);
void history_end(struct history *h, uint32_t request_no, bool success, size_t end_step);

/* The bytes of a write. */
void history_fill(uint32_t request_no, uint64_t guest_offset, uint64_t bytes, uint8_t *data);

/* The request was none of the guest's. */
void history_forget(struct history *h, uint32_t request_no);

/* Get ready to judge; then go to the moment after nr_steps steps of the recording, never back. */
void history_index(struct history *h);
void history_go(struct history *h, size_t nr_steps);

/* May cell hold this now?  NULL, or why not. */
const char *history_judge(const struct history *h, uint64_t cell, const uint8_t bytes[CELL_BYTES]);

/* The same for what a parent shows: id as in below. */
const char *history_judge_id(const struct history *h, uint64_t cell, uint32_t id);

/* Before there is a child: what was written into its parents so far, below[] of each cell. */
void history_begin_child(struct history *h, const uint32_t *below);

/* A page of zeros at this cell? */
static inline bool history_zero_page_ok(const struct history *h, uint64_t first_cell)
{
    for (unsigned i = 0; i < PAGE_BYTES / CELL_BYTES; i++) {
        if (!h->zero_ok[first_cell + i])
            return false;
    }
    return true;
}

/* Which request wrote it: number + 1, or 0 for zeros.  Only for what history_judge() let pass. */
uint32_t history_identify(const uint8_t bytes[CELL_BYTES]);

/* Begin anew with a disk that holds base (history_identify() of each cell); requests go on counting. */
void history_restart(struct history *h, const uint32_t *base);

#endif
