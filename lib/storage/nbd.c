/* SPDX-License-Identifier: MIT */
/* An export of an NBD server.
 *
 * Its length is given, nobody can be kept out of it, and every request has to keep to the server's block size: what does not is
 * read, and for writing read, changed and written, in whole minimal blocks. */
#include "storage/nbd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"

/* struct storage_identity.device of exports: two handles are never known to be the same one.  No file system has it. */
#define NBD_IDENTITY (UINT64_MAX - 2)

#define ZERO_BYTES GIB(1) /* zeros asked for at a time, so that no single request lasts for ever */

/* What can be asked for at once. */
struct part {
    size_t bytes;
    bool whole; /* minimal blocks, else it is a part of one */
};

static struct part first_part(const struct nbd *n, uint64_t offset, size_t left)
{
    size_t in_block = offset & (n->min_block - 1);

    if (in_block == 0 && left >= n->min_block)
        return (struct part){(size_t)min_u64(align_down(left, n->min_block), n->max_payload), true};
    return (struct part){(size_t)min_u64(n->min_block - in_block, left), false};
}

/* ---- reading ---- */

/* A part of one minimal block. */
static int read_in_block(struct nbd *n, uint8_t *buf, size_t bytes, uint64_t offset)
{
    size_t in_block = offset & (n->min_block - 1);
    uint8_t *block = malloc(n->min_block);

    if (!block)
        return fail_memory("a block of an NBD export");
    int r = nbd_request_read(n, block, n->min_block, offset - in_block);
    if (r == 0)
        memcpy(buf, block + in_block, bytes);
    free(block);
    return r;
}

static int read_range(struct nbd *n, uint8_t *buf, size_t left, uint64_t offset)
{
    int r = 0;

    while (r == 0 && left > 0) {
        struct part p = first_part(n, offset, left);
        r = p.whole ? nbd_request_read(n, buf, p.bytes, offset) : read_in_block(n, buf, p.bytes, offset);
        buf += p.bytes;
        offset += p.bytes;
        left -= p.bytes;
    }
    return r;
}

static int nbd_preadv(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset, size_t *got)
{
    struct nbd *n = nbd_of(s);

    *got = 0;
    for (int i = 0; i < nr_iov && offset < n->size; i++) {
        size_t bytes = (size_t)min_u64(iov[i].iov_len, n->size - offset);
        int r = read_range(n, iov[i].iov_base, bytes, offset);
        if (r < 0)
            return r;
        *got += bytes;
        offset += bytes;
    }
    return 0;
}

/* ---- writing ---- */

/* A part of one minimal block; the edges lock is held for writing. */
static int write_in_block(struct nbd *n, const uint8_t *buf, size_t bytes, uint64_t offset)
{
    size_t in_block = offset & (n->min_block - 1);
    uint8_t *block = malloc(n->min_block);

    if (!block)
        return fail_memory("a block of an NBD export");
    int r = nbd_request_read(n, block, n->min_block, offset - in_block);
    if (r == 0) {
        memcpy(block + in_block, buf, bytes);
        r = nbd_request_write(n, block, n->min_block, offset - in_block);
    }
    free(block);
    return r;
}

static int write_parts(struct nbd *n, const uint8_t *buf, size_t left, uint64_t offset)
{
    int r = 0;

    while (r == 0 && left > 0) {
        struct part p = first_part(n, offset, left);
        r = p.whole ? nbd_request_write(n, buf, p.bytes, offset) : write_in_block(n, buf, p.bytes, offset);
        buf += p.bytes;
        offset += p.bytes;
        left -= p.bytes;
    }
    return r;
}

/* Whoever writes a part of a block must not write back what somebody else has just changed beside it (C2). */
static int write_range(struct nbd *n, const uint8_t *buf, size_t bytes, uint64_t offset)
{
    if (is_aligned(offset | bytes, n->min_block))
        pthread_rwlock_rdlock(&n->edges);
    else
        pthread_rwlock_wrlock(&n->edges);
    int r = write_parts(n, buf, bytes, offset);
    pthread_rwlock_unlock(&n->edges);
    return r;
}

static int check_inside(const struct nbd *n, uint64_t offset, uint64_t bytes)
{
    if (range_fits(offset, bytes, n->size))
        return 0;
    return fail(-ENOSPC, "the NBD export has %llu bytes and cannot grow", (unsigned long long)n->size);
}

static int nbd_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset)
{
    struct nbd *n = nbd_of(s);
    int r = 0;

    for (int i = 0; r == 0 && i < nr_iov; i++) {
        r = check_inside(n, offset, iov[i].iov_len);
        if (r == 0)
            r = write_range(n, iov[i].iov_base, iov[i].iov_len, offset);
        offset += iov[i].iov_len;
    }
    nbd_extents_forget(n);
    return r;
}

/* ---- zeros ---- */

static int zero_blocks(struct nbd *n, uint64_t offset, uint64_t end, bool keep_space)
{
    int r = 0;

    pthread_rwlock_rdlock(&n->edges);
    for (uint64_t bytes; r == 0 && offset < end; offset += bytes) {
        bytes = min_u64(end - offset, ZERO_BYTES);
        r = nbd_request_zero(n, bytes, offset, keep_space);
    }
    pthread_rwlock_unlock(&n->edges);
    return r;
}

/* Whole blocks by the server, what is left at the ends by writing. */
static int make_zeros(struct storage *s, uint64_t offset, uint64_t bytes, bool keep_space)
{
    static const uint8_t zeros[NBD_MAX_MIN_BLOCK];
    struct nbd *n = nbd_of(s);
    uint64_t end = offset + bytes, first = align_up(offset, n->min_block), last = align_down(end, n->min_block);

    int r = check_inside(n, offset, bytes);
    if (r == 0 && (!n->can_zero || first >= last))
        return fail(-ENOTSUP, "the NBD server cannot zero %llu bytes at once", (unsigned long long)bytes);
    if (r == 0 && first > offset)
        r = write_range(n, zeros, (size_t)(first - offset), offset);
    if (r == 0)
        r = zero_blocks(n, first, last, keep_space);
    if (r == 0 && end > last)
        r = write_range(n, zeros, (size_t)(end - last), last);
    nbd_extents_forget(n);
    return r;
}

static int nbd_punch(struct storage *s, uint64_t offset, uint64_t bytes)
{
    return make_zeros(s, offset, bytes, false);
}

static int nbd_zero_range(struct storage *s, uint64_t offset, uint64_t bytes)
{
    return make_zeros(s, offset, bytes, true);
}

/* ---- the rest ---- */

/* The first failure stands for ever (D9), as with files.  A server without a flush command has nothing that could be lost. */
static int nbd_flush_all(struct storage *s)
{
    struct nbd *n = nbd_of(s);
    int r = 0;

    if (!n->can_flush)
        return 0;
    pthread_mutex_lock(&n->flush_mutex);
    if (n->flush_error)
        r = fail(n->flush_error, "cannot flush: an earlier flush failed, what was written since may be lost");
    else
        r = n->flush_error = nbd_request_flush(n);
    pthread_mutex_unlock(&n->flush_mutex);
    return r;
}

static int nbd_length(struct storage *s, uint64_t *bytes)
{
    *bytes = nbd_of(s)->size;
    return 0;
}

static int nbd_truncate(struct storage *s, uint64_t bytes)
{
    return fail(-ENOTSUP, "cannot set the length to %llu bytes: an NBD export keeps its size %llu", (unsigned long long)bytes,
                (unsigned long long)nbd_of(s)->size);
}

static int nbd_usage(struct storage *s, uint64_t *bytes)
{
    (void)s;
    *bytes = STORAGE_USAGE_UNKNOWN;
    return 0;
}

/* The protocol has no locks. */
static int nbd_lock(struct storage *s, enum storage_lock lock)
{
    (void)s;
    (void)lock;
    return 0;
}

static void nbd_close_export(struct storage *s)
{
    struct nbd *n = nbd_of(s);

    nbd_disconnect(n);
    pthread_mutex_destroy(&n->lost_lock);
    pthread_rwlock_destroy(&n->edges);
    pthread_mutex_destroy(&n->flush_mutex);
    pthread_mutex_destroy(&n->extents.lock);
    free(n->extents.ends);
    free(n);
}

static const struct storage_ops nbd_ops = {
    .name = "nbd",
    .preadv = nbd_preadv,
    .pwritev = nbd_pwritev,
    .flush = nbd_flush_all,
    .length = nbd_length,
    .truncate = nbd_truncate,
    .punch = nbd_punch,
    .zero = nbd_zero_range,
    .next_data = nbd_next_data,
    .usage = nbd_usage,
    .lock = nbd_lock,
    .close = nbd_close_export,
};

int storage_nbd_open(const char *uri, bool writable, struct storage **s)
{
    struct nbd *n = calloc(1, sizeof *n);
    struct error_text message;

    *s = NULL;
    if (!n)
        return fail_memory("an NBD connection");
    n->base = (struct storage){
        .ops = &nbd_ops,
        .identity = {.device = NBD_IDENTITY, .inode = (uintptr_t)n},
        .writable = writable,
        .fd = -1,
    };
    pthread_mutex_init(&n->lost_lock, NULL);
    pthread_rwlock_init(&n->edges, NULL);
    pthread_mutex_init(&n->flush_mutex, NULL);
    pthread_mutex_init(&n->extents.lock, NULL);
    n->wake = -1;
    int r = libnbd_load(&n->api);
    if (r == 0)
        r = nbd_connect(n, uri, writable);
    if (r < 0) {
        error_save(&message);
        nbd_close_export(&n->base);
        error_restore(&message);
        return r;
    }
    *s = &n->base;
    return 0;
}
