/* SPDX-License-Identifier: MIT */
/* What a command has changed, as one JSON document. */
#ifndef CHANGE_REPORT_H
#define CHANGE_REPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "vhdx.h"

/* A disk was copied.  Sizes that the target itself tells are taken from there. */
void report_copied(const char *source, const char *target, bool is_image, uint64_t size);

/* What a child records of its parent. */
struct link_state {
    bool has_parent;
    struct vhdx_guid linkage;
    char *text; /* all of it, owned; NULL: unknown */
    uint64_t disk_usage; /* of the child's file, bytes */
};

/* Unknown if the image cannot be read: whoever changes it will say why. */
void link_state_read(const char *name, struct link_state *state);
void link_state_free(struct link_state *state);

/* The link of child leads to parent now (NULL: it has none), and was as before says; in a dry run it would, and is_due says
 * whether anything is to be done for that. */
void report_linked(const char *child, const char *parent, const struct link_state *before, bool is_dry_run, bool is_due);

#endif
