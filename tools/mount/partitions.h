/* SPDX-License-Identifier: MIT */
/* The partitions of a disk. */
#ifndef MOUNT_PARTITIONS_H
#define MOUNT_PARTITIONS_H

#include <stdint.h>

/* As many as Linux makes of one disk. */
enum { MAX_PARTITIONS = 256 };

struct partition {
    uint64_t start, length; /* bytes; inside the disk, length > 0 */
    uint32_t number;        /* from 1, unique */
};

struct partition_list {
    uint32_t count;
    struct partition partitions[MAX_PARTITIONS];
};

/* Read the partition table of the disk, of disk_bytes and sector_bytes, that the file at path shows; image names it in
 * messages.  A table that cannot be read, or entries that make no sense, are reported as warnings and leave the list
 * without them: the disk itself can be used whatever its table says. */
void partitions_read(const char *path, const char *image, uint64_t disk_bytes, uint32_t sector_bytes,
                     struct partition_list *list);

#endif
