/* SPDX-License-Identifier: MIT */
/* The file system inside: a loop device on a file of the mount, and mount(8) on that. */
#ifndef MOUNT_LOOP_H
#define MOUNT_LOOP_H

#include <stdint.h>

#include "mount/plan.h"

enum { LOOP_DEVICE_BYTES = 32 };

/* Make a loop device of file, with sectors of sector_bytes, that goes away with its last user.  Its descriptor, which keeps it
 * till then, and its path in device; or a negative errno. */
int loop_attach(const char *file, uint32_t sector_bytes, bool read_only, char device[LOOP_DEVICE_BYTES]);

/* Mount the file system on device at plan->fs_dir.  0; or -1, reported. */
int mount_device(const struct mount_plan *plan, const char *device);

#endif
