/* SPDX-License-Identifier: MIT */
/* What every driver would otherwise check for itself. */
#include "storage/storage.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "vhdx.h"

/* Kernel interfaces take signed offsets, so nothing can lie behind INT64_MAX. */
static int check_range(const char *what, uint64_t offset, uint64_t bytes)
{
    if (range_fits(offset, bytes, INT64_MAX))
        return 0;
    return fail(-EOVERFLOW,
                "cannot %s %" PRIu64 " bytes at file offset 0x%" PRIx64
                ": files end at 2^63-1 bytes at the latest",
                what, bytes, offset);
}

static int check_writable(const struct storage *s, const char *what)
{
    if (s->writable)
        return 0;
    return fail(-EROFS, "cannot %s the file: it is open for reading only", what);
}

static int check_change(const struct storage *s, const char *what, uint64_t offset, uint64_t bytes)
{
    int r = check_writable(s, what);

    return r < 0 ? r : check_range(what, offset, bytes);
}

/* Add up the buffers' lengths into *bytes. */
static int iov_total(const struct iovec *iov, int nr_iov, uint64_t *bytes)
{
    *bytes = 0;
    if (nr_iov < 0)
        return fail(-EINVAL, "%d buffers make no transfer", nr_iov);
    for (int i = 0; i < nr_iov; i++)
        if (!add_u64(*bytes, iov[i].iov_len, bytes) || *bytes > SIZE_MAX)
            return fail(-EINVAL, "the %d buffers of a transfer are longer than memory can be", nr_iov);
    return 0;
}

int storage_preadv(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset, size_t *got)
{
    uint64_t bytes;
    int r = iov_total(iov, nr_iov, &bytes);

    *got = 0;
    if (r == 0)
        r = check_range("read", offset, bytes);
    if (r < 0 || bytes == 0)
        return r;
    r = s->ops->preadv(s, iov, nr_iov, offset, got);
    assert(r < 0 || *got <= bytes);
    return r;
}

int storage_pread_zero_fill(struct storage *s, void *buf, size_t bytes, uint64_t offset, size_t *got)
{
    struct iovec iov = {.iov_base = buf, .iov_len = bytes};
    size_t there;
    int r = storage_preadv(s, &iov, 1, offset, &there);

    if (r < 0)
        return r;
    if (there < bytes)
        memset((uint8_t *)buf + there, 0, bytes - there);
    if (got)
        *got = there;
    return 0;
}

int storage_pread(struct storage *s, void *buf, size_t bytes, uint64_t offset)
{
    struct iovec iov = {.iov_base = buf, .iov_len = bytes};
    size_t got;
    int r = storage_preadv(s, &iov, 1, offset, &got);

    if (r < 0 || got == bytes)
        return r;
    return fail(VHDX_E_TRUNCATED,
                "the file ends too early: wanted %zu bytes at file offset 0x%" PRIx64 ", got %zu; "
                "it was cut off, look for a complete copy",
                bytes, offset, got);
}

int storage_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset)
{
    uint64_t bytes;
    int r = iov_total(iov, nr_iov, &bytes);

    if (r == 0)
        r = check_change(s, "write", offset, bytes);
    if (r < 0 || bytes == 0)
        return r;
    return s->ops->pwritev(s, iov, nr_iov, offset);
}

int storage_pwrite(struct storage *s, const void *buf, size_t bytes, uint64_t offset)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = bytes};

    return storage_pwritev(s, &iov, 1, offset);
}

int storage_flush(struct storage *s)
{
    return s->ops->flush(s);
}

int storage_length(struct storage *s, uint64_t *bytes)
{
    return s->ops->length(s, bytes);
}

int storage_truncate(struct storage *s, uint64_t bytes)
{
    int r = check_change(s, "resize", bytes, 0);

    return r < 0 ? r : s->ops->truncate(s, bytes);
}

int storage_punch(struct storage *s, uint64_t offset, uint64_t bytes)
{
    int r = check_change(s, "punch", offset, bytes);

    return r < 0 || bytes == 0 ? r : s->ops->punch(s, offset, bytes);
}

int storage_reserve(struct storage *s, uint64_t offset, uint64_t bytes)
{
    int r = check_change(s, "reserve", offset, bytes);

    return r < 0 || bytes == 0 || !s->ops->reserve ? r : s->ops->reserve(s, offset, bytes);
}

int storage_zero(struct storage *s, uint64_t offset, uint64_t bytes)
{
    int r = check_change(s, "zero", offset, bytes);

    return r < 0 || bytes == 0 ? r : s->ops->zero(s, offset, bytes);
}

int storage_next_data(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end)
{
    int r = check_range("look for data in", offset, 0);

    if (r < 0)
        return r;
    r = s->ops->next_data(s, offset, start, end);
    assert(r < 0 || *start <= *end);
    return r;
}

int storage_usage(struct storage *s, uint64_t *bytes)
{
    return s->ops->usage(s, bytes);
}

int storage_lock(struct storage *s, enum storage_lock lock)
{
    return s->ops->lock(s, lock);
}

void storage_close(struct storage *s)
{
    if (s)
        s->ops->close(s);
}
