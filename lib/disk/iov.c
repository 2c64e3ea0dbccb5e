/* SPDX-License-Identifier: MIT */
#include "disk/iov.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"

size_t iov_take(struct iov_position *p, uint64_t bytes, struct iovec slice[IOV_SLICE], int *nr_slice)
{
    size_t taken = 0;

    *nr_slice = 0;
    while (taken < bytes && *nr_slice < IOV_SLICE) {
        size_t n = min_u64(bytes - taken, p->iov->iov_len - p->in_first);
        if (n > 0)
            slice[(*nr_slice)++] = (struct iovec){(uint8_t *)p->iov->iov_base + p->in_first, n};
        taken += n;
        p->in_first += n;
        if (p->in_first == p->iov->iov_len) {
            p->iov++;
            p->in_first = 0;
        }
    }
    return taken;
}

void iov_copy(struct iov_position *p, uint8_t *to, size_t bytes)
{
    while (bytes > 0) {
        struct iovec slice[IOV_SLICE];
        int nr_slice;
        bytes -= iov_take(p, bytes, slice, &nr_slice);
        for (int i = 0; i < nr_slice; i++) {
            memcpy(to, slice[i].iov_base, slice[i].iov_len);
            to += slice[i].iov_len;
        }
    }
}

int iov_count(const struct iovec *iov, int nr_iov, uint64_t *count)
{
    *count = 0;
    for (int i = 0; i < nr_iov; i++) {
        if (!add_u64(*count, iov[i].iov_len, count) || *count > SSIZE_MAX)
            return fail(-EINVAL, "the buffers are longer than %zd bytes in all", SSIZE_MAX);
    }
    return 0;
}
