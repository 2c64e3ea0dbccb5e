/* SPDX-License-Identifier: MIT */
/* What "vhdx mount" is to do. */
#ifndef MOUNT_PLAN_H
#define MOUNT_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "vhdx.h"

enum { PARTITION_ANY = -1, PARTITION_NONE = 0 }; /* the only one there is; the whole disk */

struct mount_plan {
    const char *image;      /* as the user wrote it, for messages */
    const char *image_path; /* absolute */
    const struct vhdx_open_options *open_options;
    const char *fuse_dir;     /* absolute: where the files are shown */
    const char *fuse_options; /* for the FUSE mount, comma separated; "" for none */
    bool read_only;
    bool may_cache; /* nobody can change the disk while it is mounted */
    bool foreground;
    uid_t uid; /* owner of what is shown */
    gid_t gid;
    mode_t umask;

    const char *fs_dir;     /* absolute: where the file system inside is mounted; NULL: it is not */
    const char *fs_options; /* for mount(8), comma separated; "" for none */
    int64_t partition;      /* which one holds it, or PARTITION_ANY, PARTITION_NONE */
};

#endif
