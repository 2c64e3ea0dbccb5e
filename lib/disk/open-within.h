/* SPDX-License-Identifier: MIT */
/* Opening a path that comes from an image where it may lead into any of several folders, and nowhere else (H4, format
 * section 8.5). */
#ifndef VHDX_DISK_OPEN_WITHIN_H
#define VHDX_DISK_OPEN_WITHIN_H

#include <stddef.h>

struct folder_names;

/* Real paths of folders that the user named.  Begin with all zero. */
struct allowed_roots {
    char **paths; /* owned; "" is the root of all */
    size_t nr;
    struct folder_names *names; /* borrowed; for open_beneath() */
};

/* folder may be NULL, or not exist: then nothing is allowed by it.  -ENOMEM. */
int allowed_roots_add(struct allowed_roots *roots, const char *folder);
void allowed_roots_free(struct allowed_roots *roots);

/* A handle (O_PATH) on what path names, taken from folder, if it lies in one of the roots.  "." , ".." and links are followed
 * name by name, and what lies outside of all roots is not looked at: no automount is set off there, no dead server asked, and
 * nobody learns whether something exists.  -EXDEV: it leads out of them; other -errno; no message is recorded. */
int open_within(const struct allowed_roots *roots, const char *folder, const char *path);

#endif
