/* SPDX-License-Identifier: MIT */
/* The log: every intact entry, of this session and of earlier ones, and what a replay of the active ones
 * changes. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "image/log-search.h"
#include "image/log-replay.h"
#include "image/overlay.h"
#include "ops/dump.h"
#include "storage/storage.h"

enum { MAX_ENTRIES = 4096, MAX_DESCRIPTORS = 256, MAX_RANGES = 4096, SCAN_BYTES = 65536 };

/* Listing the entries of one session costs a walk through the ring, so all sessions together may cost so
 * much. */
#define MAX_SCANNED_BYTES GIB(1)

struct log_dump {
    const struct dump *d;
    struct log_sequence all;    /* of all sessions, by log offset */
    struct log_sequence active; /* empty: nothing to replay, or it cannot be */
    guid *sessions;             /* log GUIDs seen */
    size_t nr_sessions;
    bool left_out; /* there are more sessions than may be listed */
    uint64_t nr_descriptors;
};

/* ---- collecting ---- */

static bool is_seen(const struct log_dump *l, const guid *session)
{
    for (size_t i = 0; i < l->nr_sessions; i++) {
        if (guid_equal(&l->sessions[i], session))
            return true;
    }
    return false;
}

static int append_entries(struct log_dump *l, const struct log_sequence *more)
{
    size_t nr = l->all.nr_entries + more->nr_entries;
    struct log_entry *entries = reallocarray(l->all.entries, nr + 1, sizeof *entries);

    if (!entries)
        return fail_memory("log entries");
    l->all.entries = entries;
    for (size_t i = 0; i < more->nr_entries; i++)
        entries[l->all.nr_entries++] = more->entries[i];
    return 0;
}

static int add_session(struct log_dump *l, const guid *session)
{
    uint64_t length = l->d->header.log_length;
    struct log_sequence more = {0};

    if ((l->nr_sessions + 1) * length > MAX_SCANNED_BYTES) {
        l->left_out = true;
        return 0;
    }
    guid *sessions = reallocarray(l->sessions, l->nr_sessions + 1, sizeof *sessions);
    if (!sessions)
        return fail_memory("log entries");
    l->sessions = sessions;
    sessions[l->nr_sessions++] = *session;
    int r = log_list(l->d->view.file, &l->d->header, session, &more);
    if (r == 0)
        r = append_entries(l, &more);
    log_sequence_free(&more);
    return r == VHDX_E_LOG ? 0 : r; /* a ring built to cost time: show what else there is */
}

/* Whatever looks like an entry names its session. */
static int collect_piece(struct log_dump *l, const uint8_t *piece, uint64_t bytes)
{
    struct log_entry_header h;
    int r = 0;

    for (uint64_t at = 0; r == 0 && !l->left_out && at < bytes; at += LOG_SECTOR_BYTES) {
        if (log_entry_header_decode(piece + at, &h) &&
            log_entry_header_plausible(&h, &h.log_guid, l->d->header.log_length) && !is_seen(l, &h.log_guid))
            r = add_session(l, &h.log_guid);
    }
    return r;
}

static int compare_log_offset(const void *a, const void *b)
{
    uint32_t x = ((const struct log_entry *)a)->log_offset, y = ((const struct log_entry *)b)->log_offset;
    return x < y ? -1 : x > y;
}

static int collect(struct log_dump *l)
{
    const struct header *h = &l->d->header;
    uint8_t *piece = malloc(SCAN_BYTES);
    int r = piece ? 0 : fail_memory("reading the log");

    for (uint64_t at = 0, start = 0, end = 0; r == 0 && at < h->log_length;) {
        if (h->log_offset + at >= end) { /* to ask again inside the same data is dear on some file systems */
            r = storage_next_data(l->d->view.file, h->log_offset + at, &start, &end);
            if (r < 0 || start == end || start >= h->log_offset + h->log_length)
                break;
            at = max_u64(at, align_down(start - h->log_offset, LOG_SECTOR_BYTES));
        }
        uint64_t n = min_u64(SCAN_BYTES, h->log_length - at);
        r = storage_pread(l->d->view.file, piece, n, h->log_offset + at);
        if (r == 0)
            r = collect_piece(l, piece, n);
        at += n;
    }
    if (r == 0 && l->all.nr_entries > 0)
        qsort(l->all.entries, l->all.nr_entries, sizeof *l->all.entries, compare_log_offset);
    free(piece);
    return r;
}

/* ---- entries ---- */

static bool is_active(const struct log_dump *l, const struct log_entry *e)
{
    for (size_t i = 0; i < l->active.nr_entries; i++) {
        if (l->active.entries[i].log_offset == e->log_offset)
            return true;
    }
    return false;
}

static int dump_descriptor(void *opaque, const struct log_entry *entry, const struct log_descriptor *desc,
                           uint64_t descriptor_offset, uint64_t data_sector)
{
    struct log_dump *l = opaque;

    (void)entry;
    if (l->nr_descriptors++ == MAX_DESCRIPTORS)
        return 1;
    give_begin(l->d, NULL);
    give_text(l->d, "kind", desc->kind == LOG_DESCRIPTOR_ZERO ? "zero" : "data");
    give_hex(l->d, "descriptor-offset", descriptor_offset);
    give_hex(l->d, "offset", desc->file_offset);
    give_number(l->d, "length", desc->length);
    if (desc->kind == LOG_DESCRIPTOR_DATA)
        give_hex(l->d, "data-sector", data_sector);
    /* Anything goes behind the end of the file until the whole sequence is known; only places are judged
     * here. */
    give_error(l->d, log_descriptor_check(desc, descriptor_offset, l->all.log_offset, l->all.log_length,
                                          UINT64_MAX));
    give_end(l->d);
    return 0;
}

static int dump_entry(struct log_dump *l, const struct log_entry *e)
{
    const struct dump *d = l->d;
    const struct log_entry_header *h = &e->header;

    give_begin(d, NULL);
    give_hex(d, "offset", l->all.log_offset + e->log_offset);
    give_hex(d, "log-offset", e->log_offset);
    give_bool(d, "active", is_active(l, e));
    give_hex(d, "checksum", h->checksum);
    give_number(d, "length", h->entry_length);
    give_hex(d, "tail", h->tail);
    give_number(d, "sequence-number", h->sequence_no);
    give_guid(d, "log-guid", &h->log_guid);
    give_hex(d, "flushed-file-offset", h->flushed_file_offset);
    give_hex(d, "last-file-offset", h->last_file_offset);
    give_number(d, "descriptor-count", h->nr_descriptors);
    give_begin_array(d, "descriptors");
    l->nr_descriptors = 0;
    int r = log_entry_for_each_descriptor(d->view.file, &l->all, e, dump_descriptor, l);
    give_end(d);
    if (r > 0)
        give_number(d, "descriptors-left-out", h->nr_descriptors - MAX_DESCRIPTORS);
    r = give_error(d, r < 0 ? r : 0);
    give_end(d);
    return r;
}

static int dump_entries(struct log_dump *l)
{
    size_t nr = min_u64(l->all.nr_entries, MAX_ENTRIES);
    int r = 0;

    give_begin_array(l->d, "entries");
    for (size_t i = 0; r == 0 && i < nr; i++)
        r = dump_entry(l, &l->all.entries[i]);
    give_end(l->d);
    if (nr < l->all.nr_entries)
        give_number(l->d, "entries-left-out", l->all.nr_entries - nr);
    if (l->left_out)
        give_text(l->d, "error", "the log holds entries of more sessions than are shown");
    return r;
}

/* ---- replay ---- */

static void dump_changes(const struct dump *d, const struct overlay *o)
{
    size_t nr = min_u64(o->nr_ranges, MAX_RANGES);

    give_bytes(d, "file-length", o->file_length);
    give_begin_array(d, "changes");
    for (size_t i = 0; i < nr; i++) {
        const struct overlay_range *r = &o->ranges[i];
        give_begin(d, NULL);
        give_text(d, "kind", r->data_sector == 0 ? "zero" : "data");
        give_hex(d, "offset", r->start);
        give_number(d, "length", r->end - r->start);
        if (r->data_sector != 0)
            give_hex(d, "data-sector", r->data_sector);
        give_end(d);
    }
    give_end(d);
    if (nr < o->nr_ranges)
        give_number(d, "changes-left-out", o->nr_ranges - nr);
}

static int dump_replay(const struct log_dump *l)
{
    const struct dump *d = l->d;
    struct overlay *o = NULL;

    give_begin(d, "replay");
    int r = log_replay_overlay(d->view.file, &d->header, d->view.real_length, &o);
    if (r == 0) {
        give_hex(d, "tail", l->active.entries[0].log_offset);
        give_hex(d, "head", log_sequence_head(&l->active)->log_offset);
        give_number(d, "entries", l->active.nr_entries);
        dump_changes(d, o);
    }
    overlay_free(o);
    r = give_error(d, r);
    give_end(d);
    return r;
}

/* ---- the whole ---- */

static int dump_ring(struct log_dump *l)
{
    const struct dump *d = l->d;
    bool dirty = header_log_is_dirty(&d->header);

    l->all.log_offset = d->header.log_offset;
    l->all.log_length = d->header.log_length;
    int r = collect(l);
    if (r == 0 && dirty)
        r = give_error(d, log_search(d->view.file, &d->header, &l->active));
    else
        r = give_error(d, r);
    if (r == 0)
        r = dump_entries(l);
    if (r == 0 && l->active.nr_entries > 0)
        r = dump_replay(l);
    return r;
}

int dump_log(struct dump *d)
{
    struct log_dump l = {.d = d};
    int r = 0;

    give_begin(d, "log");
    if (d->current_header < 0) {
        give_text(d, "error", "without a valid header nobody knows where the log is");
        give_end(d);
        return 0;
    }
    give_hex(d, "offset", d->header.log_offset);
    give_bytes(d, "length", d->header.log_length);
    give_guid(d, "log-guid", &d->header.log_guid);
    give_bool(d, "dirty", header_log_is_dirty(&d->header));
    r = header_check_log(&d->header, d->view.real_length);
    if (r < 0)
        r = give_error(d, r);
    else if (d->header.log_length > 0)
        r = dump_ring(&l);
    give_end(d);
    log_sequence_free(&l.all);
    log_sequence_free(&l.active);
    free(l.sessions);
    return r;
}
