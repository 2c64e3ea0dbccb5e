/* SPDX-License-Identifier: MIT */
#include "crash-file.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "base/math.h"
#include "doubles.h"

enum { NR_PAGES = CRASH_FILE_BYTES / PAGE_BYTES };

struct crash_undo {
    uint64_t page_no;
    uint8_t *bytes; /* NULL: the page was not stored */
};

struct handle {
    struct storage base;
    struct crash_file *file;
};

static struct crash_file *file_of(struct storage *s)
{
    return ((struct handle *)s)->file;
}

static void die(bool bad)
{
    if (bad)
        abort(); /* out of memory, or a file too long for this double: nothing that a test would want to see */
}

static void save(struct crash_file *f, uint64_t page_no)
{
    if (f->epoch == 0 || f->epochs[page_no] == f->epoch)
        return;
    f->epochs[page_no] = f->epoch;
    if (f->nr_undo == f->undo_capacity) {
        f->undo_capacity = f->undo_capacity ? 2 * f->undo_capacity : 1024;
        f->undo = reallocarray(f->undo, f->undo_capacity, sizeof *f->undo);
        die(!f->undo);
    }
    struct crash_undo *u = &f->undo[f->nr_undo++];
    *u = (struct crash_undo){.page_no = page_no};
    if (f->present[page_no]) {
        u->bytes = malloc(PAGE_BYTES);
        die(!u->bytes);
        memcpy(u->bytes, f->bytes + page_no * PAGE_BYTES, PAGE_BYTES);
    }
}

static void put(struct crash_file *f, const uint8_t *from, uint64_t bytes, uint64_t offset)
{
    die(!range_fits(offset, bytes, CRASH_FILE_BYTES));
    for (uint64_t at = offset; at < offset + bytes;) {
        uint64_t page_no = at / PAGE_BYTES, n = min_u64(PAGE_BYTES - at % PAGE_BYTES, offset + bytes - at);
        save(f, page_no);
        f->present[page_no] = 1;
        memcpy(f->bytes + at, from + (at - offset), n);
        at += n;
    }
    f->length = max_u64(f->length, offset + bytes);
}

static void clear(struct crash_file *f, uint64_t offset, uint64_t end)
{
    for (uint64_t at = offset; at < end;) {
        uint64_t page_no = at / PAGE_BYTES, n = min_u64(PAGE_BYTES - at % PAGE_BYTES, end - at);
        if (f->present[page_no]) {
            save(f, page_no);
            memset(f->bytes + at, 0, n);
            if (n == PAGE_BYTES)
                f->present[page_no] = 0;
        }
        at += n;
    }
}

/* ---- the storage ---- */

static int do_preadv(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset, size_t *got)
{
    struct crash_file *f = file_of(s);

    *got = 0;
    for (int i = 0; i < nr_iov && offset < f->length; i++) {
        size_t n = (size_t)min_u64(iov[i].iov_len, f->length - offset);
        if (n > 0)
            memcpy(iov[i].iov_base, f->bytes + offset, n);
        offset += n;
        *got += n;
    }
    return 0;
}

static int do_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset)
{
    for (int i = 0; i < nr_iov; i++) {
        put(file_of(s), iov[i].iov_base, iov[i].iov_len, offset);
        offset += iov[i].iov_len;
    }
    return 0;
}

static int do_flush(struct storage *s)
{
    (void)s;
    return 0;
}

static int do_length(struct storage *s, uint64_t *bytes)
{
    *bytes = file_of(s)->length;
    return 0;
}

static int do_truncate(struct storage *s, uint64_t bytes)
{
    struct crash_file *f = file_of(s);

    die(bytes > CRASH_FILE_BYTES);
    if (bytes < f->length)
        clear(f, bytes, f->length);
    f->length = bytes;
    return 0;
}

static int do_clear(struct storage *s, uint64_t offset, uint64_t bytes)
{
    struct crash_file *f = file_of(s);

    if (offset < f->length)
        clear(f, offset, min_u64(offset + bytes, f->length));
    return 0;
}

static int do_next_data(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end)
{
    struct crash_file *f = file_of(s);
    uint64_t last = div_round_up(f->length, PAGE_BYTES);

    *start = *end = f->length;
    if (offset >= f->length)
        return 0;
    const uint8_t *hit = memchr(f->present + offset / PAGE_BYTES, 1, last - offset / PAGE_BYTES);
    if (!hit)
        return 0;
    uint64_t page_no = (uint64_t)(hit - f->present);
    const uint8_t *hole = memchr(hit, 0, last - page_no);
    *start = max_u64(offset, page_no * PAGE_BYTES);
    *end = hole ? min_u64((uint64_t)(hole - f->present) * PAGE_BYTES, f->length) : f->length;
    return 0;
}

static int do_usage(struct storage *s, uint64_t *bytes)
{
    return do_length(s, bytes);
}

static int do_lock(struct storage *s, enum storage_lock lock)
{
    (void)s;
    (void)lock;
    return 0;
}

static void do_close(struct storage *s)
{
    free(s);
}

static const struct storage_ops crash_file_ops = {
    .name = "crash file",
    .preadv = do_preadv,
    .pwritev = do_pwritev,
    .flush = do_flush,
    .length = do_length,
    .truncate = do_truncate,
    .punch = do_clear,
    .zero = do_clear,
    .next_data = do_next_data,
    .usage = do_usage,
    .lock = do_lock,
    .close = do_close,
};

struct storage *crash_file_open(struct crash_file *f)
{
    struct handle *h = malloc(sizeof *h);

    die(!h);
    *h = (struct handle){.base = f->base, .file = f};
    return &h->base;
}

struct crash_file *crash_file_new(void)
{
    struct crash_file *f = calloc(1, sizeof *f);

    die(!f);
    f->base = (struct storage){
        .ops = &crash_file_ops, .identity = {.device = UINT64_MAX, .inode = (uintptr_t)f}, .writable = true, .fd = -1};
    f->bytes = mmap(NULL, CRASH_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    f->present = calloc(NR_PAGES, sizeof *f->present);
    f->epochs = calloc(NR_PAGES, sizeof *f->epochs);
    die(f->bytes == MAP_FAILED || !f->present || !f->epochs);
    return f;
}

void crash_file_free(struct crash_file *f)
{
    crash_file_rollback(f);
    munmap(f->bytes, CRASH_FILE_BYTES);
    free(f->present);
    free(f->epochs);
    free(f->undo);
    free(f);
}

void crash_file_load(struct crash_file *f, struct storage *from)
{
    struct storage *to = crash_file_open(f);

    crash_file_rollback(f);
    do_truncate(to, 0);
    die(double_copy(from, to) < 0);
    storage_close(to);
}

void crash_file_mark(struct crash_file *f)
{
    f->epoch = ++f->last_epoch;
    f->length_before = f->length;
}

void crash_file_rollback(struct crash_file *f)
{
    if (f->epoch == 0)
        return;
    for (size_t i = 0; i < f->nr_undo; i++) {
        struct crash_undo *u = &f->undo[i];
        uint8_t *page = f->bytes + u->page_no * PAGE_BYTES;
        f->present[u->page_no] = u->bytes != NULL;
        if (u->bytes)
            memcpy(page, u->bytes, PAGE_BYTES);
        else
            memset(page, 0, PAGE_BYTES);
        free(u->bytes);
    }
    f->nr_undo = 0;
    f->epoch = 0;
    f->length = f->length_before;
}
