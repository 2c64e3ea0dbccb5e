/* SPDX-License-Identifier: MIT */
/* The changes of write.c, to a disk that is a raw file. */
#ifndef VHDX_DISK_WRITE_RAW_H
#define VHDX_DISK_WRITE_RAW_H

#include <stdint.h>
#include <sys/uio.h>

struct vhdx_disk;

/* -EROFS unless it was opened for writing. */
int raw_check_writable(const struct vhdx_disk *disk);

int raw_pwritev(struct vhdx_disk *disk, const struct iovec *iov, int nr_iov, uint64_t guest_offset, uint32_t flags);
int raw_zero(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags);
int raw_discard(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags);
int raw_flush(struct vhdx_disk *disk);

#endif
