/* SPDX-License-Identifier: MIT */
/* A second reader for what is left of an image after a crash: header choice, log replay, BAT.  It shares lib/format with the
 * library and nothing else, and knows only what the crash tests make: one layout, a short list of blocks.  What parents hold it
 * is told by the history. */
#ifndef VHDX_TESTS_CRASH_READER_H
#define VHDX_TESTS_CRASH_READER_H

#include "crash-file.h"
#include "format/bat.h"
#include "format/header.h"
#include "history.h"
#include "image-builder.h"

enum { MAX_REPLAYED = 4096, MAX_CRASH_CHUNKS = 64 };

struct crash_view {
    struct header header;
    bool dirty;
    uint64_t length; /* of the file after replay, bytes */
    uint32_t nr_replayed;
    struct {
        uint64_t file_offset;
        uint8_t bytes[PAGE_BYTES];
    } replayed[MAX_REPLAYED]; /* in order: later ones win */
    unsigned states[MAX_LISTED_BLOCKS];
    uint64_t places[MAX_LISTED_BLOCKS]; /* file offsets of listed blocks, 0: none */
    uint64_t bitmaps[MAX_CRASH_CHUNKS]; /* file offsets of bitmap blocks, 0: none */
};

/* NULL, or what is wrong: the image cannot be opened, blocks overlap, or a sector holds what it must not. */
const char *crash_read(const struct crash_file *f, const struct image_plan *plan, const struct history *h,
                       struct crash_view *view);

/* What each cell holds, for history_restart(). */
void crash_identify(const struct crash_file *f, const struct image_plan *plan, const struct history *h, const struct crash_view *view,
                    uint32_t *base);

#endif
