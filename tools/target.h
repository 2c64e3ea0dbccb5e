/* SPDX-License-Identifier: MIT */
/* The file, block device or pipe that a raw disk is written to.
 *
 * An unfinished copy never stays behind looking like a whole one: a new file has no name until it is complete, a file
 * that was overwritten is left empty. */
#ifndef TARGET_H
#define TARGET_H

#include <stdbool.h>

#include "vhdx.h"

enum target_policy {
    TARGET_CREATE,    /* must not exist, unless it is a device or pipe */
    TARGET_OVERWRITE, /* may exist; what is in it goes */
};

enum target_kind {
    TARGET_NEW,    /* a regular file that does not exist yet */
    TARGET_FILE,   /* a regular file that does */
    TARGET_DEVICE, /* a block device */
    TARGET_STREAM, /* anything that takes bytes in order only */
};

struct target {
    const char *path;
    enum target_kind kind;
    int fd; /* -1 for TARGET_NEW */
};

/* 0 if path is no file that the disk source lies in; else say which it is and return -1. */
int target_check_not_source(const char *path, vhdx_disk *source);

/* Open path ("-" is stdout) for writing the disk source, none of whose files it may be, without changing anything.  0; or
 * -1, and what is wrong has been reported.  path must stay valid until target_close(). */
int target_open(struct target *target, const char *path, enum target_policy policy, vhdx_disk *source);

/* Copy the disk.  Returns a code of the library. */
int target_copy(const struct target *target, vhdx_disk *source, const struct vhdx_copy_options *options);

/* Make the copy durable.  0; or -1, reported, and a file is empty. */
int target_sync(const struct target *target);

void target_close(struct target *target);

#endif
