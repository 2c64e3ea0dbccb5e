/* SPDX-License-Identifier: MIT */
/* Log replay as the format section 4 describes it, written a second time in the most simple-minded way, to
 * hold the library's against.  Slow; sound for logs with up to MODEL_ENTRIES entries, others are given up. */
#ifndef VHDX_FUZZ_LOG_MODEL_H
#define VHDX_FUZZ_LOG_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "format/header.h"
#include "fuzz-file.h"

enum { MODEL_ENTRIES = 512, MODEL_STEPS = 32768 };

struct model_entry {
    uint32_t log_offset, length, tail; /* bytes */
    uint64_t sequence_no;
    uint32_t nr_descriptors;
    uint64_t flushed_file_offset, last_file_offset;
};

/* One descriptor to be replayed. */
struct model_step {
    uint64_t file_offset, length; /* bytes */
    bool zero;
    uint64_t data_sector, descriptor; /* file offsets */
};

struct log_model {
    const struct fuzz_file *file;
    struct header header;
    bool given_up;
    uint64_t work;                             /* bytes of everything that had to be looked at as an entry */
    struct model_entry entries[MODEL_ENTRIES]; /* all valid ones, in ring order */
    unsigned nr_entries;

    int verdict;                      /* 0, VHDX_E_LOG or VHDX_E_TRUNCATED; all below only if 0 */
    unsigned sequence[MODEL_ENTRIES]; /* indices of the active entries, from tail to head */
    unsigned nr_sequence;
    struct model_step steps[MODEL_STEPS]; /* in order, without those that change nothing */
    unsigned nr_steps;
    uint64_t file_length; /* after replay */
};

/* header has passed header_check_log(). */
void log_model_build(struct log_model *m, const struct fuzz_file *file, const struct header *header);

/* A page as it is after replay, bytes behind file_length included, as zeros. */
void log_model_page(const struct log_model *m, uint64_t page_no, uint8_t page[PAGE_BYTES]);

/* Is the page one that the log changes? */
bool log_model_changes(const struct log_model *m, uint64_t page_no);

#endif
