/* SPDX-License-Identifier: MIT */
/* Finding a child's parent by its identity, wherever it lies. */
#ifndef REBASE_FIND_H
#define REBASE_FIND_H

#include <stdbool.h>

struct found_parent {
    char *path;     /* to be freed */
    bool is_linked; /* the child's relative path leads there already */
};

/* Find the parent of the image name in folder and below.  An error is reported and returned; then there is no path. */
int find_parent(const char *name, const char *folder, struct found_parent *found);

#endif
