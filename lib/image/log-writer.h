/* SPDX-License-Identifier: MIT */
/* Writing the log (format sections 4.2, 4.10 to 4.12).
 *
 * The ring holds at most three entries that matter: the one before the last, whose pages the last one's flush made durable in
 * their places; the last; and the one being written.  Each entry's Tail names the entry before it, so the tail is published by
 * every entry (W4, W5), and an entry is never longer than a third of the ring, so there is always room.
 *
 * Not thread-safe: the commit lock guards it. */
#ifndef VHDX_IMAGE_LOG_WRITER_H
#define VHDX_IMAGE_LOG_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/guid.h"
#include "format/layout.h"

struct storage;

/* The image of a page, as it is to be at file_offset. */
struct log_page {
    uint64_t file_offset;
    const uint8_t *bytes; /* PAGE_BYTES */
};

/* What FlushedFileOffset and LastFileOffset are to say (4.11, W9, D11). */
struct log_lengths {
    uint64_t durable_length; /* of the file, bytes */
    uint64_t last_offset;    /* end of everything that is allocated once the entry is applied */
};

enum { LOG_MAX_PAGES = 1024 };

struct log_writer {
    struct storage *file;
    uint64_t log_offset; /* bytes */
    uint32_t log_length;
    guid log_guid;
    uint64_t sequence_no; /* of the last durable entry */
    uint32_t last_entry;  /* log offset of the last durable entry: the next one's Tail */
    uint32_t tail_disk;   /* the last durable entry's Tail: the ring from here to head must stay */
    uint32_t head;        /* where the next entry goes */
    uint32_t pending_length; /* bytes of the entry that was written but is not durable, or 0 */
    uint8_t *buffer;
};

/* Memory for a log of this length, so that what follows needs none. */
int log_writer_allocate(struct log_writer *w, uint32_t log_length);

/* With that, begin a session: a fresh GUID and an empty entry at the start of the ring, durable when this returns 0.  The headers
 * must say that the log is clean, and may name log_guid only afterwards (W2). */
int log_writer_start(struct log_writer *w, struct storage *file, uint64_t log_offset, uint32_t log_length,
                     const struct log_lengths *lengths);
void log_writer_free(struct log_writer *w);

/* Pages that one entry can hold. */
uint32_t log_writer_max_pages(uint32_t log_length);

/* Write one entry of nr pages, all different.  Not durable: flush, then call log_writer_commit().  After -ENOSPC it may be tried
 * again: nothing in the ring refers to what was written. */
int log_writer_append(struct log_writer *w, const struct log_page *pages, uint32_t nr,
                      const struct log_lengths *lengths);

/* The entry last appended has become durable, and the pages of the entry before it in their places. */
void log_writer_commit(struct log_writer *w);

#endif
