/* SPDX-License-Identifier: MIT */
/* Decoded structures as an indented tree: "name: value" lines, array elements after a dash. */
#ifndef TREE_H
#define TREE_H

#include <stdio.h>

#include "vhdx.h"

struct tree {
    FILE *out;
    int depth;      /* containers that are open */
    int dashes_due; /* how many elements begin with the next line */
};

/* To be used with a struct tree as opaque. */
extern const struct vhdx_dump_sink tree_sink;

#endif
