/* SPDX-License-Identifier: MIT */
/* Finding the active sequence of a dirty log, and walking its descriptors (format sections 4.4 to 4.7). */
#ifndef VHDX_IMAGE_LOG_SEARCH_H
#define VHDX_IMAGE_LOG_SEARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/header.h"
#include "format/log-entry.h"

struct storage;

/* A valid entry. */
struct log_entry {
    uint32_t log_offset; /* bytes from the start of the log */
    struct log_entry_header header;
};

struct log_sequence {
    struct log_entry *entries; /* from tail to head: what must be replayed, in order */
    size_t nr_entries;
    size_t nr_valid;           /* intact entries with this LogGuid anywhere in the ring */
    uint64_t log_offset;       /* of the log, in the file, bytes */
    uint32_t log_length;       /* bytes */
};

/* Find the active sequence in the log that header h names, by the linear search of 4.6.2.  h must have passed
 * header_check_log().  VHDX_E_LOG: no valid sequence (sequence->nr_valid tells whether there were entries at all), two of
 * equal number, or a ring built to cost time.  -EIO and the like: the log could not be read. */
int log_search(struct storage *file, const struct header *h, struct log_sequence *sequence);
void log_sequence_free(struct log_sequence *sequence);

/* The newest entry. */
const struct log_entry *log_sequence_head(const struct log_sequence *sequence);

/* A descriptor of the sequence; data_sector is the file offset of its data sector, 0 for a zero descriptor.
 * descriptor_offset is its own file offset.  Return 0 to go on. */
typedef int log_descriptor_fn(void *opaque, const struct log_entry *entry, const struct log_descriptor *d,
                              uint64_t descriptor_offset, uint64_t data_sector);

/* Call fn for every descriptor, entries from tail to head. */
int log_for_each_descriptor(struct storage *file, const struct log_sequence *sequence, log_descriptor_fn *fn,
                            void *opaque);

/* The same for one entry. */
int log_entry_for_each_descriptor(struct storage *file, const struct log_sequence *sequence,
                                  const struct log_entry *entry, log_descriptor_fn *fn, void *opaque);

/* Every intact entry with log_guid, in ring order, whether active or not: for dump.  nr_entries of the result are
 * all of them. */
int log_list(struct storage *file, const struct header *h, const guid *log_guid, struct log_sequence *all);

#endif
