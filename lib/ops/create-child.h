/* SPDX-License-Identifier: MIT */
/* What a new differencing image takes from its parent (format sections 8.2, 9.1). */
#ifndef VHDX_OPS_CREATE_CHILD_H
#define VHDX_OPS_CREATE_CHILD_H

#include "ops/new-image.h"
#include "vhdx.h"

struct new_child {
    struct vhdx_disk *parent; /* open, and so locked, until child_end() */
    struct new_item *items;
    uint32_t nr_items;
    uint8_t *locator;
};

/* Open the parent that options name, and prepare n, for the plan, to be its child at path.  *virtual_size is what the child's
 * size is to be.  child_end() must come, also after failures. */
int child_begin(struct new_child *c, struct new_image *n, const char *path, const struct vhdx_create_options *options,
                uint64_t *virtual_size);
void child_end(struct new_child *c);

/* The path from folder to file, both absolute and without links, as relative_path has it: "..\dir\file", ".\file".  -EINVAL: it
 * has characters that such a path cannot hold; -ENAMETOOLONG. */
int child_relative_path(const char *folder, const char *file, char *to, size_t bytes);

#endif
