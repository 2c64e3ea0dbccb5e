/* SPDX-License-Identifier: MIT */
/* Names that are spelled in another case than the file system spells them (format section 8.5 rule 9).
 *
 * Whether a folder has such a name is known when all of its names are, so each look-up for something that is not there lists the
 * folder.  Whoever looks for much keeps the listings: as they were when the folder was first asked about. */
#ifndef VHDX_DISK_FOLDER_NAMES_H
#define VHDX_DISK_FOLDER_NAMES_H

#include <limits.h>

struct folder_names;

/* NULL: no memory.  Used by one thread at a time. */
struct folder_names *folder_names_new(void);
void folder_names_free(struct folder_names *kept);

/* Put into name the only entry of the folder that equals it but for case.  fd: the folder, open for listing; owned.  kept may be
 * NULL: then nothing is.  -ENOENT if there is none, or more than one: then nobody can say which is meant.  -ENOMEM: nor is
 * it known whether there is. */
int folder_names_match(struct folder_names *kept, int fd, char name[NAME_MAX + 1]);

#endif
