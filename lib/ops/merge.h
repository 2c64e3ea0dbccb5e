/* SPDX-License-Identifier: MIT */
/* Merging upper images of a chain into a lower one (format section 9.10).
 *
 *   merge.c        the order of steps, on open images
 *   merge-copy.c   content
 *   merge-items.c  metadata that belongs to the disk
 *
 * The public call finds, locks, opens and removes the files around that: merge-files.h.
 *
 * At every moment the chain opens and shows what it did: the link to the target accepts its identity before and after each change
 * of it, and what is copied into the target is what the images above show there already.  In the end the target has the identity
 * of the uppermost image, since it has its content; so whoever was a child of that accepts the target. */
#ifndef VHDX_OPS_MERGE_H
#define VHDX_OPS_MERGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/guid.h"
#include "disk/disk.h"

struct image;

struct merge {
    struct image **upper; /* the merged images, uppermost first; open for writing */
    char **paths;         /* theirs, for messages */
    uint32_t nr_upper;
    struct vhdx_disk *target; /* open for writing, with its own parents */
    struct layer *layers;     /* upper, then the target's; the list is owned */
    struct vhdx_disk view;    /* all of them; what the target says in it counts for nothing */
    const struct vhdx_copy_options *options;
};

/* What there is to be done. */
struct merge_cost {
    uint64_t copy_bytes;  /* of payload */
    uint64_t zero_bytes;  /* that become zeros in the target and are not yet */
    uint64_t space_bytes; /* that the target's file may grow by */
};

/* ---- merge.c ---- */

/* Prepare m, whose first four members and options are set, and see that the images fit: VHDX_E_CHAIN.  merge_done() must come. */
int merge_begin(struct merge *m);
void merge_done(struct merge *m);

/* Was everything copied already, and only what comes after that is left? */
bool merge_is_complete(const struct merge *m);

/* Do it.  When this has returned 0 the target, once closed, is complete; the merged images still show the same, and may go. */
int merge_run(struct merge *m);

/* ---- merge-copy.c ---- */

int merge_count(struct merge *m, struct merge_cost *cost);
int merge_content(struct merge *m, const struct merge_cost *cost);

/* ---- merge-items.c ---- */

/* Give the target what metadata of the uppermost image belongs to the disk; the session must have begun. */
int merge_items(struct merge *m);

static inline struct image *merge_target_image(const struct merge *m)
{
    return m->target->layers[0].img;
}

#endif
