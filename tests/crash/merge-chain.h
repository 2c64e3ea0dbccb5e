/* SPDX-License-Identifier: MIT */
/* A chain of random images in memory that is merged, and what a crash in the middle may leave of its files. */
#ifndef VHDX_TESTS_MERGE_CHAIN_H
#define VHDX_TESTS_MERGE_CHAIN_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/disk.h"
#include "doubles.h"

enum { MERGE_MAX_LAYERS = 20 };

struct merge_setup {
    uint32_t nr_layers, into; /* into: depth of the target */
    uint32_t sector_size;
    uint64_t bytes;
    uint32_t nr_threads; /* 0: 1 */
};

struct merge_chain {
    struct merge_setup setup;
    uint8_t *bytes; /* what the guest reads */
    uint8_t *states[MERGE_MAX_LAYERS]; /* the same of each layer for itself, as far as it is merged */
    uint64_t size;
    struct storage *files[MERGE_MAX_LAYERS]; /* uppermost first */
    struct fault faults[MERGE_MAX_LAYERS];   /* in front of them, and of their recorders */
    struct recording recordings[MERGE_MAX_LAYERS];
    struct timeline timeline;
    bool recorded;
};

void merge_chain_make(struct merge_chain *c, const struct merge_setup *setup, uint64_t seed);
void merge_chain_free(struct merge_chain *c);

/* From here on the timeline has what merging does. */
void merge_chain_record(struct merge_chain *c);

/* Merge, as the public call does but for files; 0 or the first error.  *was_complete: there was nothing to copy. */
int merge_chain_merge(struct merge_chain *c, bool *was_complete);

/* Make the uppermost image independent of the others. */
int merge_chain_flatten(struct merge_chain *c);

/* NULL, or what is wrong with the uppermost image after that: it has a parent, another identity, a dirty log, other content. */
const char *merge_chain_judge_flat(struct merge_chain *c);

/* What could be left of the files after so many moments; the same setup, not recorded. */
void merge_chain_crash(const struct merge_chain *c, size_t nr_moments, uint64_t seed, struct merge_chain *left);

/* NULL, or what is wrong: a link that does not fit, or other content.  first: depth of the image that is read, 0 or the target's.
 */
const char *merge_chain_judge(struct merge_chain *c, uint32_t first);

/* NULL, or why the target is not complete: identity, content, a dirty log. */
const char *merge_chain_judge_merged(struct merge_chain *c);

#endif
