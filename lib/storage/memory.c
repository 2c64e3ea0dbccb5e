/* SPDX-License-Identifier: MIT */
/* A file in memory.
 *
 * It is a sorted array of the pieces of 64 KiB that were ever written; what lies between them is a hole and
 * reads as zeros.  Memory and time depend on these pieces alone, never on the length or on the length of a
 * range to be punched.  No piece lies wholly at or behind the end of the file, and bytes behind the end are
 * zero, so that growing needs no work. */
#include "storage/storage.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"

#define PIECE_BYTES KIB(64)

/* struct storage_identity.device of all files in memory, whose inode is their address; no file system has
 * this number. */
#define MEMORY_IDENTITY UINT64_MAX

struct piece {
    uint64_t no; /* of the piece that starts at no * PIECE_BYTES */
    uint8_t *bytes;
};

struct memory {
    struct storage base;
    pthread_rwlock_t lock; /* guards all below */
    uint64_t length;
    struct piece *pieces; /* ascending by no */
    size_t nr_pieces, room;
};

static struct memory *memory_of(struct storage *s)
{
    return (struct memory *)s;
}

/* Index of the first piece whose number is at least no. */
static size_t find(const struct memory *m, uint64_t no)
{
    size_t low = 0, high = m->nr_pieces;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (m->pieces[middle].no < no)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The bytes of piece no, NULL if it is a hole. */
static uint8_t *lookup(const struct memory *m, uint64_t no)
{
    size_t i = find(m, no);

    return i < m->nr_pieces && m->pieces[i].no == no ? m->pieces[i].bytes : NULL;
}

/* Make the hole at piece no a piece of zeros. */
static uint8_t *insert(struct memory *m, uint64_t no)
{
    if (m->nr_pieces == m->room) {
        size_t room = m->room ? m->room * 2 : 16;
        struct piece *grown = reallocarray(m->pieces, room, sizeof *grown);

        if (!grown)
            return NULL;
        m->pieces = grown;
        m->room = room;
    }
    uint8_t *bytes = calloc(1, PIECE_BYTES);
    if (!bytes)
        return NULL;

    size_t i = find(m, no);
    memmove(m->pieces + i + 1, m->pieces + i, (m->nr_pieces - i) * sizeof *m->pieces);
    m->pieces[i] = (struct piece){no, bytes};
    m->nr_pieces++;
    return bytes;
}

/* How many of bytes from offset on lie in offset's piece. */
static size_t within_piece(uint64_t offset, uint64_t bytes)
{
    return (size_t)min_u64(bytes, PIECE_BYTES - offset % PIECE_BYTES);
}

static void read_out(const struct memory *m, uint8_t *to, size_t bytes, uint64_t offset)
{
    while (bytes > 0) {
        size_t n = within_piece(offset, bytes);
        const uint8_t *from = lookup(m, offset / PIECE_BYTES);

        if (from)
            memcpy(to, from + offset % PIECE_BYTES, n);
        else
            memset(to, 0, n);
        to += n;
        offset += n;
        bytes -= n;
    }
}

static int memory_preadv(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset, size_t *got)
{
    struct memory *m = memory_of(s);

    *got = 0;
    pthread_rwlock_rdlock(&m->lock);
    for (int i = 0; i < nr_iov && offset < m->length; i++) {
        size_t n = (size_t)min_u64(iov[i].iov_len, m->length - offset);

        if (n > 0)
            read_out(m, iov[i].iov_base, n, offset);
        offset += n;
        *got += n;
    }
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

static int write_in(struct memory *m, const uint8_t *from, size_t bytes, uint64_t offset)
{
    while (bytes > 0) {
        size_t n = within_piece(offset, bytes);
        uint8_t *to = lookup(m, offset / PIECE_BYTES);

        if (!to && !(to = insert(m, offset / PIECE_BYTES)))
            return fail_memory("a file in memory");
        memcpy(to + offset % PIECE_BYTES, from, n);
        from += n;
        offset += n;
        bytes -= n;
        m->length = max_u64(m->length, offset);
    }
    return 0;
}

static int memory_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset)
{
    struct memory *m = memory_of(s);
    int r = 0;

    pthread_rwlock_wrlock(&m->lock);
    for (int i = 0; i < nr_iov && r == 0; i++) {
        if (iov[i].iov_len > 0)
            r = write_in(m, iov[i].iov_base, iov[i].iov_len, offset);
        offset += iov[i].iov_len;
    }
    pthread_rwlock_unlock(&m->lock);
    return r;
}

static int memory_flush(struct storage *s)
{
    (void)s;
    return 0;
}

static int memory_length(struct storage *s, uint64_t *bytes)
{
    struct memory *m = memory_of(s);

    pthread_rwlock_rdlock(&m->lock);
    *bytes = m->length;
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

static int memory_usage(struct storage *s, uint64_t *bytes)
{
    struct memory *m = memory_of(s);

    pthread_rwlock_rdlock(&m->lock);
    *bytes = m->nr_pieces * PIECE_BYTES;
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

/* Zero what is stored of [offset, end); drop: pieces that hold nothing else become holes. */
static void clear(struct memory *m, uint64_t offset, uint64_t end, bool drop)
{
    size_t first = find(m, offset / PIECE_BYTES);
    size_t last = find(m, div_round_up(end, PIECE_BYTES));
    size_t kept = first;

    for (size_t i = first; i < last; i++) {
        uint64_t piece = m->pieces[i].no * PIECE_BYTES;
        uint64_t from = max_u64(offset, piece), to = min_u64(end, piece + PIECE_BYTES);

        if (drop && from == piece && (to == piece + PIECE_BYTES || to >= m->length)) {
            free(m->pieces[i].bytes);
            continue;
        }
        memset(m->pieces[i].bytes + (from - piece), 0, to - from);
        m->pieces[kept++] = m->pieces[i];
    }
    if (kept == last)
        return;
    memmove(m->pieces + kept, m->pieces + last, (m->nr_pieces - last) * sizeof *m->pieces);
    m->nr_pieces -= last - kept;
}

static int memory_truncate(struct storage *s, uint64_t bytes)
{
    struct memory *m = memory_of(s);

    pthread_rwlock_wrlock(&m->lock);
    if (bytes < m->length)
        clear(m, bytes, m->length, true);
    m->length = bytes;
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

static int memory_punch(struct storage *s, uint64_t offset, uint64_t bytes)
{
    struct memory *m = memory_of(s);

    pthread_rwlock_wrlock(&m->lock);
    clear(m, offset, offset + bytes, true);
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

static int memory_zero(struct storage *s, uint64_t offset, uint64_t bytes)
{
    struct memory *m = memory_of(s);

    pthread_rwlock_wrlock(&m->lock);
    clear(m, offset, offset + bytes, false);
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

static int memory_next_data(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end)
{
    struct memory *m = memory_of(s);

    pthread_rwlock_rdlock(&m->lock);
    size_t i = find(m, offset / PIECE_BYTES);

    *start = *end = m->length;
    if (i < m->nr_pieces && offset < m->length) {
        uint64_t no = m->pieces[i].no;

        *start = max_u64(offset, no * PIECE_BYTES);
        while (i < m->nr_pieces && m->pieces[i].no == no) {
            i++;
            no++;
        }
        *end = min_u64(no * PIECE_BYTES, m->length);
    }
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

/* Nobody else can have this file open. */
static int memory_lock(struct storage *s, enum storage_lock lock)
{
    (void)s;
    (void)lock;
    return 0;
}

static void memory_close(struct storage *s)
{
    struct memory *m = memory_of(s);

    for (size_t i = 0; i < m->nr_pieces; i++)
        free(m->pieces[i].bytes);
    free(m->pieces);
    pthread_rwlock_destroy(&m->lock);
    free(m);
}

static const struct storage_ops memory_ops = {
    .name = "memory",
    .preadv = memory_preadv,
    .pwritev = memory_pwritev,
    .flush = memory_flush,
    .length = memory_length,
    .truncate = memory_truncate,
    .punch = memory_punch,
    .zero = memory_zero,
    .next_data = memory_next_data,
    .usage = memory_usage,
    .lock = memory_lock,
    .close = memory_close,
};

int storage_memory_new(const void *data, size_t bytes, struct storage **s)
{
    struct memory *m = calloc(1, sizeof *m);

    *s = NULL;
    if (!m)
        return fail_memory("a file in memory");
    m->base = (struct storage){
        .ops = &memory_ops,
        .identity = {.device = MEMORY_IDENTITY, .inode = (uintptr_t)m},
        .writable = true,
        .fd = -1,
    };
    pthread_rwlock_init(&m->lock, NULL);
    int r = data ? storage_pwrite(&m->base, data, bytes, 0) : 0;
    if (r < 0)
        memory_close(&m->base);
    else
        *s = &m->base;
    return r;
}
