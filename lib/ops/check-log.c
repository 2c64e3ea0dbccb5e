/* SPDX-License-Identifier: MIT */
/* Rules 14 to 19: a dirty log (format section 4).  If it can be replayed, everything that is judged
 * afterwards is seen through an overlay as it will be after replay; if not, as it is on disk. */
#include <inttypes.h>

#include "base/error.h"
#include "image/log-replay.h"
#include "image/log-search.h"
#include "image/overlay.h"
#include "ops/check.h"

struct log_check {
    struct check *c;
    const struct log_sequence *sequence;
    uint64_t bound; /* no descriptor may reach beyond (4.7 step 3) */
    bool replayable;
};

static uint64_t entry_offset(const struct log_sequence *s, const struct log_entry *e)
{
    return s->log_offset + e->log_offset;
}

/* Rules 15 and 16. */
static void judge_lengths(struct log_check *l)
{
    struct check *c = l->c;
    const struct log_entry *head = log_sequence_head(l->sequence);
    uint64_t at = entry_offset(l->sequence, head);

    if (c->view.real_length < head->header.flushed_file_offset) {
        report(c, RULE_LOG_FLUSHED_LENGTH, at + 48,
               "log entry at 0x%" PRIx64 " says that the file had at least 0x%" PRIx64
               " bytes, but it has 0x%" PRIx64 ": it was cut short, restore it from a backup",
               at, head->header.flushed_file_offset, c->view.real_length);
        l->replayable = false;
    }
    if (c->view.real_length < head->header.last_file_offset)
        report(c, RULE_LOG_LAST_LENGTH, at + 56,
               "log entry at 0x%" PRIx64 ": structures reach to 0x%" PRIx64 ", but the file has 0x%" PRIx64
               " bytes; replay will extend it",
               at, head->header.last_file_offset, c->view.real_length);
}

/* How far behind the sequence's start a log offset lies. */
static uint64_t distance_of(const struct log_sequence *s, uint32_t log_offset)
{
    return ((uint64_t)log_offset + s->log_length - s->entries[0].log_offset) % s->log_length;
}

/* Does an entry begin there?  Distances ascend with the entries. */
static bool has_entry_at(const struct log_sequence *s, uint64_t distance)
{
    size_t low = 0, high = s->nr_entries;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint64_t there = distance_of(s, s->entries[middle].log_offset);
        if (there == distance)
            return true;
        if (there < distance)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

/* Rule 19.  The head's Tail is on a boundary or there would be no sequence; what older entries name may have
 * been overwritten since, unless it lies between the sequence's start and the entry itself. */
static void judge_tail(struct log_check *l, const struct log_entry *e)
{
    const struct log_sequence *s = l->sequence;
    uint64_t to_tail = distance_of(s, e->header.tail);

    if (to_tail < distance_of(s, e->log_offset) && !has_entry_at(s, to_tail))
        report(l->c, RULE_LOG_TAIL, entry_offset(s, e) + 12,
               "log entry at 0x%" PRIx64 ": Tail 0x%" PRIx32 " is inside another entry", entry_offset(s, e),
               e->header.tail);
}

static void judge_entry(struct log_check *l, const struct log_entry *e)
{
    uint64_t at = entry_offset(l->sequence, e);
    const struct log_entry_header *h = &e->header;

    if (h->reserved != 0)
        report(l->c, RULE_LOG_RESERVED, at + 28, "log entry at 0x%" PRIx64 ": the reserved field is not zero",
               at);
    if (!is_aligned(h->flushed_file_offset, OBJECT_ALIGNMENT) ||
        !is_aligned(h->last_file_offset, OBJECT_ALIGNMENT))
        report(l->c, RULE_LOG_RESERVED, at + 48,
               "log entry at 0x%" PRIx64 ": FlushedFileOffset 0x%" PRIx64 " and LastFileOffset 0x%" PRIx64
               " should be multiples of 1 MiB",
               at, h->flushed_file_offset, h->last_file_offset);
    if (h->last_file_offset > MAX_FILE_BYTES) {
        report(l->c, RULE_LOG_TARGET, at + 56,
               "log entry at 0x%" PRIx64 ": LastFileOffset 0x%" PRIx64
               " is beyond any file that this library reads",
               at, h->last_file_offset);
        l->replayable = false;
    }
    l->bound = max_u64(l->bound, h->last_file_offset);
    judge_tail(l, e);
}

/* Rule 18. */
static int judge_descriptor(void *opaque, const struct log_entry *entry, const struct log_descriptor *d,
                            uint64_t descriptor_offset, uint64_t data_sector)
{
    struct log_check *l = opaque;
    int r = log_descriptor_check(d, descriptor_offset, l->sequence->log_offset, l->sequence->log_length,
                                 l->bound);

    (void)entry;
    (void)data_sector;
    if (r < 0) {
        report_failure(l->c, RULE_LOG_TARGET, descriptor_offset);
        l->replayable = false;
    }
    if (d->kind == LOG_DESCRIPTOR_ZERO && d->reserved != 0)
        report(l->c, RULE_LOG_RESERVED, descriptor_offset + 4,
               "zero descriptor at 0x%" PRIx64 ": the reserved field is not zero", descriptor_offset);
    return 0;
}

static int replay(struct check *c)
{
    struct overlay *o;
    int r = log_replay_overlay(c->view.file, &c->header, c->view.real_length, &o);

    if (r == 0)
        file_view_set_overlay(&c->view, o);
    else if (is_format_error(r))
        report_failure(c, RULE_LOG_TARGET, c->header.log_offset);
    return is_format_error(r) ? 0 : r;
}

static int judge_sequence(struct check *c, const struct log_sequence *sequence)
{
    struct log_check l = {.c = c, .sequence = sequence, .bound = c->view.real_length, .replayable = true};

    judge_lengths(&l);
    for (size_t i = 0; i < sequence->nr_entries; i++)
        judge_entry(&l, &sequence->entries[i]);
    int r = log_for_each_descriptor(c->view.file, sequence, judge_descriptor, &l);
    return r == 0 && l.replayable ? replay(c) : r;
}

int check_log(struct check *c)
{
    struct log_sequence sequence = {0};

    if (!c->header_usable || !header_log_is_dirty(&c->header))
        return 0;
    if (check_has_flag(c, VHDX_OPEN_REFUSE_DIRTY))
        return fail(VHDX_E_LOG_DIRTY, "the log at 0x%" PRIx64 " is dirty, and replay was forbidden",
                    c->header.log_offset);
    if (!c->log_place_usable || c->header.log_version != 0)
        return 0; /* told with the header */
    int r = log_search(c->view.file, &c->header, &sequence);
    if (r == 0) {
        r = judge_sequence(c, &sequence);
    } else if (is_format_error(r)) {
        report_failure(c, RULE_LOG_SEQUENCE, c->header.log_offset);
        r = 0;
    }
    log_sequence_free(&sequence);
    return r;
}
