/* SPDX-License-Identifier: MIT */
/* Walking through a caller's buffers. */
#ifndef VHDX_DISK_IOV_H
#define VHDX_DISK_IOV_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* How far a transfer has come. */
struct iov_position {
    const struct iovec *iov;
    size_t in_first; /* bytes of iov[0] that are done */
};

enum { IOV_SLICE = 64 };

/* The next bytes, at most so many, as buffers of their own; returns how many they are, and moves on behind them.  The buffers
 * must hold that many. */
size_t iov_take(struct iov_position *p, uint64_t bytes, struct iovec slice[IOV_SLICE], int *nr_slice);

/* Copy the next bytes, which there must be, into to, and move on behind them. */
void iov_copy(struct iov_position *p, uint8_t *to, size_t bytes);

/* Total length of the buffers; -EINVAL beyond SSIZE_MAX. */
int iov_count(const struct iovec *iov, int nr_iov, uint64_t *count);

#endif
