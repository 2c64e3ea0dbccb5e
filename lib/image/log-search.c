/* SPDX-License-Identifier: MIT */
#include "image/log-search.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "storage/storage.h"

/*
 * Entries form chains: one follows another where it ends, with the next sequence number.  Only the last entry of a chain
 * can be a head, and it is one if its Tail names an entry of its own chain.  The newest head wins.  Each entry is
 * judged once and each chain walked once, so the search is linear; what a hostile ring can still cost, entries that lie
 * inside each other, is bounded by a budget of checksummed bytes.
 */
enum { CHUNK_BYTES = 64 * 1024 };
#define SCAN_BYTES MIB(1)
#define BUDGET_BYTES(log_length) (2 * (uint64_t)(log_length) + MIB(64))

struct ring {
    struct storage *file;
    uint64_t offset; /* in the file, bytes */
    uint32_t length; /* bytes */
    guid log_guid;
    uint64_t budget; /* bytes that may still be checksummed */
    uint8_t *chunk;  /* CHUNK_BYTES */
};

struct entry_list {
    struct log_entry *entries; /* ascending by log_offset */
    size_t nr, capacity;
};

/* Read bytes, at most CHUNK_BYTES, of the ring from log_offset on; a piece that passes the ring's end goes on at its start. */
static int ring_read(const struct ring *g, uint8_t *buf, uint32_t bytes, uint32_t log_offset)
{
    uint32_t first = (uint32_t)min_u64(bytes, g->length - log_offset);
    int r = storage_pread(g->file, buf, first, g->offset + log_offset);

    if (r == 0 && first < bytes)
        r = storage_pread(g->file, buf + first, bytes - first, g->offset);
    return r < 0 ? fail_in(r, "log at 0x%" PRIx64, g->offset) : 0;
}

static uint32_t ring_add(const struct ring *g, uint32_t log_offset, uint64_t bytes)
{
    return (uint32_t)((log_offset + bytes) % g->length);
}

/* How far the walk through one entry's sectors has come. */
struct entry_walk {
    const struct log_entry_header *header;
    uint64_t sector;          /* number of the next sector in the entry */
    uint64_t nr_descriptor_sectors;
    uint64_t descriptors_left;
    uint64_t nr_data;         /* data descriptors seen, then data sectors still to come */
    uint32_t running_crc;
};

/* E8 for the descriptors of one sector. */
static bool descriptors_ok(struct entry_walk *w, const uint8_t *sector)
{
    const uint8_t *p = sector + (w->sector == 0 ? LOG_HEADER_BYTES : 0);
    struct log_descriptor d;

    for (; p < sector + LOG_SECTOR_BYTES && w->descriptors_left > 0; p += LOG_DESCRIPTOR_BYTES) {
        if (!log_descriptor_decode(p, &d) || d.sequence_no != w->header->sequence_no)
            return false;
        w->nr_data += d.kind == LOG_DESCRIPTOR_DATA;
        w->descriptors_left--;
    }
    return true;
}

/* E8 to E10 and the checksum for one sector. */
static bool sector_ok(struct entry_walk *w, uint8_t *sector)
{
    if (w->sector < w->nr_descriptor_sectors) {
        if (!descriptors_ok(w, sector))
            return false;
        if (w->sector == 0)
            memset(sector + LOG_CHECKSUM_AT, 0, 4);
        if (w->sector + 1 == w->nr_descriptor_sectors &&
            (w->nr_descriptor_sectors + w->nr_data) * LOG_SECTOR_BYTES != w->header->entry_length)
            return false; /* E9 */
    } else if (!log_data_sector_is_valid(sector, w->header->sequence_no)) {
        return false;
    }
    w->running_crc = crc32c_feed(w->running_crc, sector, LOG_SECTOR_BYTES);
    w->sector++;
    return true;
}

/* Is there a whole entry (E7 to E10) at log_offset, where a plausible header h was found?  1, 0 or a negative code. */
static int entry_is_valid(struct ring *g, uint32_t log_offset, const struct log_entry_header *h)
{
    struct entry_walk w = {
        .header = h,
        .nr_descriptor_sectors = log_nr_descriptor_sectors(h->nr_descriptors),
        .descriptors_left = h->nr_descriptors,
        .running_crc = (uint32_t)CRC32C_START,
    };

    for (uint32_t done = 0; done < h->entry_length;) {
        uint32_t n = (uint32_t)min_u64(CHUNK_BYTES, h->entry_length - done);
        if (g->budget < n)
            return fail(VHDX_E_LOG,
                        "log at 0x%" PRIx64 ": its entries lie inside each other, far more than its %" PRIu32
                        " bytes would have to be read; no program writes such a log, restore the file from a backup",
                        g->offset, g->length);
        g->budget -= n;
        int r = ring_read(g, g->chunk, n, ring_add(g, log_offset, done));
        if (r < 0)
            return r;
        for (uint32_t at = 0; at < n; at += LOG_SECTOR_BYTES) {
            if (!sector_ok(&w, g->chunk + at))
                return 0;
        }
        done += n;
    }
    return crc32c_end(w.running_crc) == h->checksum;
}

static int list_append(struct entry_list *list, uint32_t log_offset, const struct log_entry_header *h)
{
    if (list->nr == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        struct log_entry *entries = reallocarray(list->entries, capacity, sizeof *entries);
        if (!entries)
            return fail_memory("log entries");
        list->entries = entries;
        list->capacity = capacity;
    }
    list->entries[list->nr++] = (struct log_entry){.log_offset = log_offset, .header = *h};
    return 0;
}

/* Judge every sector of one piece of the ring as the possible start of an entry. */
static int scan_piece(struct ring *g, const uint8_t *piece, uint32_t log_offset, uint32_t bytes,
                      struct entry_list *list)
{
    struct log_entry_header h;

    for (uint32_t at = 0; at < bytes; at += LOG_SECTOR_BYTES) {
        if (!log_entry_header_decode(piece + at, &h) || !log_entry_header_plausible(&h, &g->log_guid, g->length))
            continue;
        int r = entry_is_valid(g, log_offset + at, &h);
        if (r > 0)
            r = list_append(list, log_offset + at, &h);
        if (r < 0)
            return r;
    }
    return 0;
}

/* All valid entries of the ring.  Holes of the file cannot hold any and are not read. */
static int scan_ring(struct ring *g, struct entry_list *list)
{
    uint8_t *piece = malloc(SCAN_BYTES);
    int r = piece ? 0 : fail_memory("reading the log");

    for (uint32_t at = 0; r == 0 && at < g->length;) {
        uint64_t start, end;
        r = storage_next_data(g->file, g->offset + at, &start, &end);
        if (r < 0 || start == end || start >= g->offset + g->length)
            break;
        if (start > g->offset + at)
            at = (uint32_t)align_down(start - g->offset, LOG_SECTOR_BYTES);
        uint32_t n = (uint32_t)min_u64(SCAN_BYTES, g->length - at);
        n = (uint32_t)min_u64(n, align_up(end - g->offset - at, LOG_SECTOR_BYTES));
        r = ring_read(g, piece, n, at);
        if (r == 0)
            r = scan_piece(g, piece, at, n, list);
        at += n;
    }
    free(piece);
    return r;
}

/* ---- chains ---- */

struct chain_link {
    uint32_t follower; /* index of the entry that follows, or NONE */
    uint32_t terminal; /* index of the last entry of the chain */
    uint64_t distance; /* bytes from this entry's start to the end of the last */
};

enum { NONE = UINT32_MAX };

static int compare_log_offset(const void *key, const void *element)
{
    uint32_t k = *(const uint32_t *)key, e = ((const struct log_entry *)element)->log_offset;
    return k < e ? -1 : k > e;
}

static uint32_t entry_at(const struct entry_list *list, uint32_t log_offset)
{
    if (list->nr == 0)
        return NONE;
    const struct log_entry *e =
        bsearch(&log_offset, list->entries, list->nr, sizeof *list->entries, compare_log_offset);
    return e ? (uint32_t)(e - list->entries) : NONE;
}

struct by_sequence {
    uint64_t sequence_no;
    uint32_t index;
};

static int compare_descending(const void *a, const void *b)
{
    uint64_t x = ((const struct by_sequence *)a)->sequence_no, y = ((const struct by_sequence *)b)->sequence_no;
    return x > y ? -1 : x < y;
}

/* Followers have higher sequence numbers, so going down through these every follower is finished before it is needed. */
static void link_chains(const struct ring *g, const struct entry_list *list, struct by_sequence *order,
                        struct chain_link *links)
{
    for (uint32_t i = 0; i < list->nr; i++)
        order[i] = (struct by_sequence){list->entries[i].header.sequence_no, i};
    qsort(order, list->nr, sizeof *order, compare_descending);
    for (size_t n = 0; n < list->nr; n++) {
        uint32_t i = order[n].index;
        const struct log_entry_header *h = &list->entries[i].header;
        uint32_t f = entry_at(list, ring_add(g, list->entries[i].log_offset, h->entry_length));
        if (f != NONE && (h->sequence_no == UINT64_MAX || list->entries[f].header.sequence_no != h->sequence_no + 1))
            f = NONE;
        links[i].follower = f;
        links[i].terminal = f == NONE ? i : links[f].terminal;
        links[i].distance = h->entry_length + (f == NONE ? 0 : links[f].distance);
    }
}

/* The entry that the head's Tail names, if head ends a complete sequence; else NONE. */
static uint32_t tail_of_head(const struct ring *g, const struct entry_list *list, const struct chain_link *links,
                             uint32_t head)
{
    if (links[head].follower != NONE)
        return NONE;
    uint32_t t = entry_at(list, list->entries[head].header.tail);
    return t != NONE && links[t].terminal == head && links[t].distance <= g->length ? t : NONE;
}

/* The index of the newest valid head's tail entry, NONE if there is no valid head, or a negative code. */
static int64_t find_active_tail(const struct ring *g, const struct entry_list *list, const struct chain_link *links)
{
    uint32_t best_head = NONE, best_tail = NONE, equal_head = NONE;

    for (uint32_t i = 0; i < list->nr; i++) {
        uint32_t t = tail_of_head(g, list, links, i);
        if (t == NONE)
            continue;
        uint64_t sequence_no = list->entries[i].header.sequence_no;
        if (best_head != NONE && sequence_no == list->entries[best_head].header.sequence_no) {
            equal_head = i; /* fatal, unless a newer one comes */
        } else if (best_head == NONE || sequence_no > list->entries[best_head].header.sequence_no) {
            best_head = i;
            best_tail = t;
            equal_head = NONE;
        }
    }
    if (equal_head != NONE)
        return fail(VHDX_E_LOG,
                    "log at 0x%" PRIx64 ": the entries at log offsets 0x%" PRIx32 " and 0x%" PRIx32
                    " both claim to be the newest, sequence number %" PRIu64
                    "; which counts cannot be told, restore the file from a backup",
                    g->offset, list->entries[best_head].log_offset, list->entries[equal_head].log_offset,
                    list->entries[best_head].header.sequence_no);
    return best_tail;
}

/* Fill sequence with the entries from tail on. */
static int take_sequence(const struct entry_list *list, const struct chain_link *links, uint32_t tail,
                         struct log_sequence *sequence)
{
    size_t nr = 0;

    for (uint32_t i = tail; i != NONE; i = links[i].follower)
        nr++;
    sequence->entries = calloc(nr, sizeof *sequence->entries);
    if (!sequence->entries)
        return fail_memory("log entries");
    for (uint32_t i = tail; i != NONE; i = links[i].follower)
        sequence->entries[sequence->nr_entries++] = list->entries[i];
    return 0;
}

static int choose_sequence(const struct ring *g, const struct entry_list *list, struct log_sequence *sequence)
{
    struct by_sequence *order = calloc(list->nr + 1, sizeof *order);
    struct chain_link *links = calloc(list->nr + 1, sizeof *links);
    int r;

    if (!order || !links) {
        r = fail_memory("log entries");
        goto out;
    }
    link_chains(g, list, order, links);
    int64_t tail = find_active_tail(g, list, links);
    if (tail < 0) {
        r = (int)tail;
    } else if (tail == NONE) {
        char text[VHDX_GUID_TEXT_BYTES];
        guid_format(&g->log_guid, text);
        r = fail(VHDX_E_LOG,
                 "log at 0x%" PRIx64 ": the header says that it must be replayed (log GUID %s), but none of its %zu "
                 "intact entries ends a complete sequence; %s",
                 g->offset, text, list->nr,
                 list->nr > 0 ? "the last changes to this file are lost, restore it from a backup or copy out what is readable"
                              : "if QEMU was killed while it wrote, it may have ended before its first entry, and then nothing is "
                                "lost and QEMU opens the file; otherwise the last changes are, restore it from a backup");
    } else {
        r = take_sequence(list, links, (uint32_t)tail, sequence);
    }
out:
    free(order);
    free(links);
    return r;
}

static int collect_entries(struct storage *file, const struct header *h, const guid *log_guid, struct ring *g,
                           struct entry_list *list)
{
    *g = (struct ring){.file = file,
                       .offset = h->log_offset,
                       .length = h->log_length,
                       .log_guid = *log_guid,
                       .budget = BUDGET_BYTES(h->log_length),
                       .chunk = malloc(CHUNK_BYTES)};
    int r = g->chunk ? scan_ring(g, list) : fail_memory("reading the log");
    free(g->chunk);
    g->chunk = NULL;
    return r;
}

int log_search(struct storage *file, const struct header *h, struct log_sequence *sequence)
{
    struct ring g;
    struct entry_list list = {0};

    *sequence = (struct log_sequence){.log_offset = h->log_offset, .log_length = h->log_length};
    int r = collect_entries(file, h, &h->log_guid, &g, &list);
    if (r == 0) {
        sequence->nr_valid = list.nr;
        r = choose_sequence(&g, &list, sequence);
    }
    free(list.entries);
    return r;
}

int log_list(struct storage *file, const struct header *h, const guid *log_guid, struct log_sequence *all)
{
    struct ring g;
    struct entry_list list = {0};

    *all = (struct log_sequence){.log_offset = h->log_offset, .log_length = h->log_length};
    int r = collect_entries(file, h, log_guid, &g, &list);
    if (r < 0) {
        free(list.entries);
        return r;
    }
    all->entries = list.entries;
    all->nr_entries = all->nr_valid = list.nr;
    return 0;
}

void log_sequence_free(struct log_sequence *sequence)
{
    free(sequence->entries);
    sequence->entries = NULL;
    sequence->nr_entries = 0;
}

const struct log_entry *log_sequence_head(const struct log_sequence *sequence)
{
    return &sequence->entries[sequence->nr_entries - 1];
}

/* ---- walking descriptors ---- */

int log_entry_for_each_descriptor(struct storage *file, const struct log_sequence *sequence,
                                  const struct log_entry *entry, log_descriptor_fn *fn, void *opaque)
{
    const struct ring g = {.file = file, .offset = sequence->log_offset, .length = sequence->log_length};
    uint64_t nr_sectors = log_nr_descriptor_sectors(entry->header.nr_descriptors);
    uint64_t left = entry->header.nr_descriptors, nr_data = 0;
    uint8_t sector[LOG_SECTOR_BYTES];

    for (uint64_t s = 0; s < nr_sectors && left > 0; s++) {
        uint32_t at = ring_add(&g, entry->log_offset, s * LOG_SECTOR_BYTES);
        int r = ring_read(&g, sector, sizeof sector, at);
        if (r < 0)
            return r;
        for (uint32_t i = s == 0 ? LOG_HEADER_BYTES : 0; i < LOG_SECTOR_BYTES && left > 0; i += LOG_DESCRIPTOR_BYTES) {
            struct log_descriptor d;
            uint64_t place = g.offset + at + i, data_sector = 0;
            if (!log_descriptor_decode(sector + i, &d))
                return fail(VHDX_E_LOG, "log descriptor at 0x%" PRIx64 ": it changed while the log was read; "
                            "another program is writing to the file", place);
            if (d.kind == LOG_DESCRIPTOR_DATA) /* counted by data descriptors alone */
                data_sector = g.offset +
                              ring_add(&g, entry->log_offset, (nr_sectors + nr_data++) * LOG_SECTOR_BYTES);
            r = fn(opaque, entry, &d, place, data_sector);
            if (r != 0)
                return r;
            left--;
        }
    }
    return 0;
}

int log_for_each_descriptor(struct storage *file, const struct log_sequence *sequence, log_descriptor_fn *fn,
                            void *opaque)
{
    for (size_t i = 0; i < sequence->nr_entries; i++) {
        int r = log_entry_for_each_descriptor(file, sequence, &sequence->entries[i], fn, opaque);
        if (r != 0)
            return r;
    }
    return 0;
}
