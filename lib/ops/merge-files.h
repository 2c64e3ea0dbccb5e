/* SPDX-License-Identifier: MIT */
/* The files that one call of vhdx_merge() deals with.
 *
 *   merge-find.c    which they are: the chain down to the target, and the children that the target is to get, which are looked for
 *                   when the chain is locked already
 *   merge-open.c    locking and opening them for the work
 *   merge-finish.c  what comes after the content: links, names, and files that go
 *   merge-files.c   the public call
 */
#ifndef VHDX_OPS_MERGE_FILES_H
#define VHDX_OPS_MERGE_FILES_H

#include "base/guid.h"
#include "ops/merge.h"
#include "storage/storage.h"
#include "vhdx.h"

/* A file that is part of it. */
struct merge_file {
    char *path; /* owned */
    struct storage_identity identity;
    struct image *img; /* owned */
};

struct merge_files {
    const char *path;
    const struct vhdx_merge_options *options;
    struct vhdx_open_options open;
    struct merge_file *chain; /* the merged ones, uppermost first, then the target */
    uint32_t nr_merged;
    struct merge_file *children;
    size_t nr_children;
    struct vhdx_disk *target;
    struct image **upper;
    char **paths;
    guid uppermost_id, target_id; /* DataWriteGuids, as found */
    bool dirty;                   /* opening a file of the chain for writing changes it */
    struct merge merge;
    struct vhdx_copy_options copy;
    struct vhdx_merge_result result;
};

/* ---- merge-find.c ---- */

/* Open the chain as everybody does, which judges all links, to learn which files it has. */
int merge_find_chain(struct merge_files *f);

/* Find the children of the uppermost image.  VHDX_E_CHAIN: there are others, which would lose what they rest on.  Nobody makes
 * another one while the chain is locked.  May be called again. */
int merge_find_relatives(struct merge_files *f);

/* ---- merge-open.c ---- */

/* Lock and open what was found, and see that it still belongs together. */
int merge_open_chain(struct merge_files *f);
int merge_open_children(struct merge_files *f);
int merge_close_target(struct merge_files *f);

/* ---- merge-finish.c ---- */

/* What would keep merge_finish() from coming to its end should stop everything before it has begun. */
int merge_check_finish(const struct merge_files *f);

/* The target has the content and is durable: lead the children there, and remove or settle what was merged. */
int merge_finish(struct merge_files *f);

#endif
