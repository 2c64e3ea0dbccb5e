/* SPDX-License-Identifier: MIT */
/* Which MiBs of the file are free, and what they hold (docs/writing.md, "Space").
 *
 * Everything at or behind fresh_mib has been zeros since the file was extended.  Below it, what is in neither set is idle: free,
 * with somebody's former data in it.  Space on its way from in use to clean stays in `used` and is on the list of freed extents.
 *
 * Not thread-safe: the meta lock guards it, and the commit lock what moves freed extents on. */
#ifndef VHDX_IMAGE_SPACE_H
#define VHDX_IMAGE_SPACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image/inflight.h"
#include "image/mib-set.h"

struct storage;

enum space_content { SPACE_ZEROS, SPACE_FOREIGN };

/* An extent that a block gave up. */
struct freed {
    uint64_t first_mib, nr_mib;
    uint64_t commit_no; /* the commit that makes the loss durable (D3, W7) */
    bool punching;      /* nobody can see it any more; space_next_to_punch() gives it out */
    bool punched;       /* reads as zeros; durable with the next flush */
    struct inflight_drain drain;
};

struct space {
    struct storage *file;
    struct mib_set used, clean;
    uint64_t fresh_mib, end_mib;
    struct freed *freed;
    size_t nr_freed, freed_capacity;
    uint64_t no_clean_run; /* no run of so many clean MiBs exists; UINT64_MAX: not known to be so */
    bool cannot_punch;
    bool keeps_length; /* a device or an export: no space is ever fresh */
    uint64_t least_mib; /* the file is never cut below: a fixed image keeps what it was promised */
};

/* Take over used, which holds all objects of the file; space_free_all() also after a failure.  Nothing after it needs memory but
 * taking and giving up. */
int space_init(struct space *space, struct storage *file, struct mib_set *used);
void space_free_all(struct space *space);

/* Where the file may be cut, MiB: behind its last object. */
uint64_t space_end_of_use(const struct space *space);

/* Cut the file behind its last object, so that what is added later is zeros, and punch all holes; both are durable with the next
 * flush, before which nothing may be taken.  keep_mib other than 0: the image is a fixed one; it keeps its holes, and so many MiB
 * at least.  A device or an export keeps its length: what lies behind the last object is idle. */
int space_prepare(struct space *space, uint64_t keep_mib);

/* Cut the file behind what is in use, where files can be cut. */
int space_cut(struct space *space);

/* Take nr_mib in one piece.  -ENOSPC, -EFBIG: the file cannot be extended; -ENOMEM; then nothing was taken. */
int space_take(struct space *space, uint64_t nr_mib, uint64_t *first_mib, enum space_content *content);

/* Undo a take whose place nobody has learnt of. */
void space_give_back(struct space *space, uint64_t first_mib, uint64_t nr_mib, enum space_content content);

/* Give up an extent whose owner is dropped by commit number commit_no.  Makes room on the list beforehand: */
int space_reserve_freed(struct space *space);
void space_release(struct space *space, uint64_t first_mib, uint64_t nr_mib, uint64_t commit_no);

/* A flush has completed that began when everything up to commit durable_commit_no was in the log: move freed extents on. */
void space_advance(struct space *space, struct inflight *inflight, uint64_t durable_commit_no);

/* Then: false, or a freed extent that is to be punched, which the caller does without the meta lock, since it may take long, and
 * tells what became of it.  *at, 0 at first, is the place in the list, to which others may add meanwhile; only one thread
 * advances and punches. */
bool space_next_to_punch(const struct space *space, size_t *at, uint64_t *offset, uint64_t *bytes);
void space_note_punched(struct space *space, size_t at, bool done);

#endif
