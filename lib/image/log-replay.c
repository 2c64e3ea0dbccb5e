/* SPDX-License-Identifier: MIT */
#include "image/log-replay.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "image/log-search.h"
#include "image/overlay.h"
#include "storage/storage.h"

/* More zero descriptors than any writer needs: a whole 16 MiB log of nothing else. */
enum { MAX_CHANGES = 1 << 19 };

struct change_list {
    struct overlay_range *changes;
    size_t nr, capacity;
    uint64_t log_offset;
    uint32_t log_length;
    uint64_t bound; /* no descriptor may reach beyond (4.7 step 3) */
};

static int append_change(struct change_list *list, const struct overlay_range *change)
{
    if (list->nr == MAX_CHANGES)
        return fail(VHDX_E_LIMIT, "log at 0x%" PRIx64 ": more than %d changes to replay", list->log_offset,
                    MAX_CHANGES);
    if (list->nr == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 256;
        struct overlay_range *changes = reallocarray(list->changes, capacity, sizeof *changes);
        if (!changes)
            return fail_memory("the changes in the log");
        list->changes = changes;
        list->capacity = capacity;
    }
    list->changes[list->nr++] = *change;
    return 0;
}

static int take_descriptor(void *opaque, const struct log_entry *entry, const struct log_descriptor *d,
                           uint64_t descriptor_offset, uint64_t data_sector)
{
    struct change_list *list = opaque;
    struct overlay_range change = {.start = d->file_offset, .data_sector = data_sector};
    int r = log_descriptor_check(d, descriptor_offset, list->log_offset, list->log_length, list->bound);

    (void)entry;
    if (r < 0)
        return r;
    if (d->length == 0)
        return 0;
    change.end = d->file_offset + d->length;
    for (unsigned i = 0; i < sizeof change.leading; i++)
        change.leading[i] = d->leading[i];
    for (unsigned i = 0; i < sizeof change.trailing; i++)
        change.trailing[i] = d->trailing[i];
    return append_change(list, &change);
}

/* The lengths that the entries promise: what the file must have, and what it will have. */
static int check_lengths(const struct log_sequence *sequence, uint64_t file_length, uint64_t *bound)
{
    const struct log_entry_header *head = &log_sequence_head(sequence)->header;

    if (file_length < head->flushed_file_offset)
        return fail(VHDX_E_TRUNCATED,
                    "log at 0x%" PRIx64 ": its newest entry says that the file had at least 0x%" PRIx64
                    " bytes, but it has 0x%" PRIx64 "; it was cut short, restore it from a backup",
                    sequence->log_offset, head->flushed_file_offset, file_length);
    *bound = file_length;
    for (size_t i = 0; i < sequence->nr_entries; i++) {
        const struct log_entry *e = &sequence->entries[i];
        if (e->header.last_file_offset > MAX_FILE_BYTES)
            return fail(VHDX_E_LOG,
                        "log entry at 0x%" PRIx64 ": LastFileOffset 0x%" PRIx64 " is beyond the limit of 0x%" PRIx64,
                        sequence->log_offset + e->log_offset, e->header.last_file_offset, MAX_FILE_BYTES);
        *bound = max_u64(*bound, e->header.last_file_offset);
    }
    return 0;
}

int log_replay_overlay(struct storage *file, const struct header *h, uint64_t file_length, struct overlay **o)
{
    struct log_sequence sequence;
    struct change_list list = {.log_offset = h->log_offset, .log_length = h->log_length};

    *o = NULL;
    int r = log_search(file, h, &sequence);
    if (r == 0)
        r = check_lengths(&sequence, file_length, &list.bound);
    if (r == 0)
        r = log_for_each_descriptor(file, &sequence, take_descriptor, &list);
    if (r == 0)
        r = overlay_build(list.changes, list.nr, file_length,
                          max_u64(file_length, log_sequence_head(&sequence)->header.last_file_offset), o);
    free(list.changes);
    log_sequence_free(&sequence);
    return r;
}
