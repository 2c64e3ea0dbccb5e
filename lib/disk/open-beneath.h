/* SPDX-License-Identifier: MIT */
/* Opening a path that comes from an image so that it cannot lead out of a folder: neither by "..", nor by symbolic links,
 * nor by being swapped while it is looked at (format section 8.5 rules 5 to 7). */
#ifndef VHDX_DISK_OPEN_BENEATH_H
#define VHDX_DISK_OPEN_BENEATH_H

struct folder_names;

/* A handle (O_PATH) on what relative names below folder, exactly or, if there is no such name, as the only one that
 * differs in case alone.  names: listings to look that up in, and to add to; may be NULL.  -EXDEV: it leads out of the folder;
 * without openat2 any link and any ".." counts as that.  Other -errno; no message is recorded. */
int open_beneath(struct folder_names *names, const char *folder, const char *relative);

/* A handle on path (taken from folder if it is relative) wherever it leads, but not by magic links where the kernel can
 * tell them (openat2). */
int open_anywhere(const char *folder, const char *path);

/* A descriptor for reading the regular file behind handle.  -EINVAL: it is no regular file; it was not touched. */
int open_regular(int handle);

#endif
