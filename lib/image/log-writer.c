/* SPDX-License-Identifier: MIT */
#include "image/log-writer.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/le.h"
#include "format/log-entry.h"
#include "storage/storage.h"

/* A third of the ring for each entry, less one sector each, which keeps the reserve of 4.10 and an empty first entry free. */
uint32_t log_writer_max_pages(uint32_t log_length)
{
    uint32_t sectors = log_length / LOG_SECTOR_BYTES / 3 - 1;
    uint32_t nr = sectors;

    while (log_nr_descriptor_sectors(nr) + nr > sectors)
        nr--;
    return nr < LOG_MAX_PAGES ? nr : LOG_MAX_PAGES;
}

static uint32_t entry_bytes(uint32_t nr_pages)
{
    return (uint32_t)((log_nr_descriptor_sectors(nr_pages) + nr_pages) * LOG_SECTOR_BYTES);
}

static int random_bytes(void *buf, size_t bytes)
{
    ssize_t n;

    do
        n = getrandom(buf, bytes, 0);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)bytes ? 0 : fail_errno("getting random bytes for a log GUID");
}

/* Lay the entry out in the buffer. */
static void encode(struct log_writer *w, uint32_t tail, const struct log_page *pages, uint32_t nr,
                   const struct log_lengths *lengths)
{
    struct log_entry_header h = {
        .entry_length = entry_bytes(nr),
        .tail = tail,
        .sequence_no = w->sequence_no + 1,
        .nr_descriptors = nr,
        .log_guid = w->log_guid,
        .flushed_file_offset = align_down(lengths->durable_length, OBJECT_ALIGNMENT),
        .last_file_offset = align_up(lengths->last_offset, OBJECT_ALIGNMENT),
    };
    uint8_t *sectors = w->buffer + log_nr_descriptor_sectors(nr) * LOG_SECTOR_BYTES;

    memset(w->buffer, 0, (size_t)(sectors - w->buffer));
    log_entry_header_encode(&h, w->buffer);
    for (uint32_t i = 0; i < nr; i++) {
        struct log_descriptor d = {.kind = LOG_DESCRIPTOR_DATA,
                                   .file_offset = pages[i].file_offset,
                                   .length = PAGE_BYTES,
                                   .sequence_no = h.sequence_no};
        memcpy(d.leading, pages[i].bytes, sizeof d.leading);
        memcpy(d.trailing, pages[i].bytes + PAGE_BYTES - sizeof d.trailing, sizeof d.trailing);
        log_descriptor_encode(&d, w->buffer + LOG_HEADER_BYTES + (size_t)i * LOG_DESCRIPTOR_BYTES);
        log_data_sector_encode(pages[i].bytes, h.sequence_no, sectors + (size_t)i * LOG_SECTOR_BYTES);
    }
    le32_put(w->buffer + LOG_CHECKSUM_AT, crc32c_with_hole(w->buffer, h.entry_length, LOG_CHECKSUM_AT));
}

/* Write the buffer at the head; an entry that passes the ring's end goes on at its start. */
static int write_entry(struct log_writer *w, uint32_t bytes)
{
    uint32_t first = (uint32_t)min_u64(bytes, w->log_length - w->head);
    int r = storage_pwrite(w->file, w->buffer, first, w->log_offset + w->head);

    if (r == 0 && first < bytes)
        r = storage_pwrite(w->file, w->buffer + first, bytes - first, w->log_offset);
    return r < 0 ? fail_in(r, "log at 0x%" PRIx64, w->log_offset) : 0;
}

int log_writer_allocate(struct log_writer *w, uint32_t log_length)
{
    *w = (struct log_writer){.buffer = malloc(entry_bytes(log_writer_max_pages(log_length)))};
    return w->buffer ? 0 : fail_memory("the log");
}

int log_writer_start(struct log_writer *w, struct storage *file, uint64_t log_offset, uint32_t log_length,
                     const struct log_lengths *lengths)
{
    uint64_t start;

    *w = (struct log_writer){.file = file, .log_offset = log_offset, .log_length = log_length, .buffer = w->buffer};
    int r = random_bytes(&w->log_guid, sizeof w->log_guid);
    if (r == 0)
        r = random_bytes(&start, sizeof start);
    if (r < 0)
        return r;
    w->sequence_no = start >> 2; /* far below 2^63, so it cannot run over (4.9) */
    encode(w, 0, NULL, 0, lengths);
    w->pending_length = LOG_SECTOR_BYTES;
    r = write_entry(w, LOG_SECTOR_BYTES);
    if (r == 0)
        r = storage_flush(file);
    if (r == 0)
        log_writer_commit(w);
    return r;
}

void log_writer_free(struct log_writer *w)
{
    free(w->buffer);
    w->buffer = NULL;
}

int log_writer_append(struct log_writer *w, const struct log_page *pages, uint32_t nr,
                      const struct log_lengths *lengths)
{
    uint32_t bytes = entry_bytes(nr);
    uint32_t used = (w->head + w->log_length - w->tail_disk) % w->log_length;

    assert(nr <= log_writer_max_pages(w->log_length));
    assert(w->log_length - used >= bytes + LOG_SECTOR_BYTES); /* W4: never over what the durable tail still names */
    encode(w, w->last_entry, pages, nr, lengths);
    w->pending_length = bytes;
    return write_entry(w, bytes);
}

void log_writer_commit(struct log_writer *w)
{
    assert(w->pending_length > 0);
    w->tail_disk = w->last_entry;
    w->last_entry = w->head;
    w->head = (w->head + w->pending_length) % w->log_length;
    w->sequence_no++;
    w->pending_length = 0;
}
