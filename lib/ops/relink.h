/* SPDX-License-Identifier: MIT */
/* Changing what a differencing image records of its parent (format sections 8.2, 9.10, 9.11). */
#ifndef VHDX_OPS_RELINK_H
#define VHDX_OPS_RELINK_H

#include "base/guid.h"

struct image;

struct new_link {
    guid linkage, linkage2;     /* DataWriteGuids that the parent may have; linkage2 zero: none */
    const char *relative_path;  /* NULL: all recorded paths stay; else they go, being stale, for this one */
    const char *windows_path;   /* with relative_path: absolute_win32_path; NULL: none */
};

/* Record link in img, in one log entry; what other programs keep in the locator stays.  The session must have begun; durable with
 * the next writer_commit().  */
int relink(struct image *img, const struct new_link *link);

/* Would relink() change anything?  1, 0 or a negative code. */
int relink_is_needed(const struct image *img, const struct new_link *link);

/* relink() if it is needed, in a session that begin (writer_begin() or another) begins. */
int relink_if_needed(struct image *img, const struct new_link *link, int begin(struct image *img));

/* The relative path from the image at child_path to the file at parent_path, as 8.3 has it, to be freed. */
int link_path(const char *child_path, const char *parent_path, char **relative);

#endif
