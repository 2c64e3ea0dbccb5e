/* SPDX-License-Identifier: MIT */
#include "fuzz-file.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "require.h"

static struct fuzz_file *file_of(struct storage *s)
{
    return (struct fuzz_file *)s;
}

unsigned fuzz_file_find(const struct fuzz_file *f, uint64_t page_no)
{
    unsigned low = 0, high = f->nr_pages;

    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        if (f->page_no[middle] < page_no)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const uint8_t *fuzz_file_page(const struct fuzz_file *f, uint64_t page_no)
{
    unsigned i = fuzz_file_find(f, page_no);
    return i < f->nr_pages && f->page_no[i] == page_no ? f->slots[f->page_slot[i]] : NULL;
}

/* The page to be written, a hole becoming zeros; NULL if there is no more room. */
static uint8_t *make_page(struct fuzz_file *f, uint64_t page_no)
{
    unsigned i = fuzz_file_find(f, page_no), after = f->nr_pages - i;

    if (after > 0 && f->page_no[i] == page_no)
        return f->slots[f->page_slot[i]];
    if (f->nr_pages == FUZZ_FILE_PAGES)
        return NULL;
    memmove(f->page_no + i + 1, f->page_no + i, after * sizeof *f->page_no);
    memmove(f->page_slot + i + 1, f->page_slot + i, after * sizeof *f->page_slot);
    f->page_no[i] = page_no;
    f->page_slot[i] = (uint16_t)f->nr_pages;
    uint8_t *page = f->slots[f->nr_pages++];
    memset(page, 0, PAGE_BYTES);
    return page;
}

static size_t within_page(uint64_t offset, size_t bytes)
{
    return (size_t)min_u64(bytes, PAGE_BYTES - offset % PAGE_BYTES);
}

void fuzz_file_put(struct fuzz_file *f, uint64_t offset, const void *data, size_t bytes)
{
    const uint8_t *from = data;

    if (!range_fits(offset, bytes, INT64_MAX))
        return;
    while (bytes > 0) {
        size_t n = within_page(offset, bytes);
        uint8_t *page = make_page(f, offset / PAGE_BYTES);
        if (page)
            memcpy(page + offset % PAGE_BYTES, from, n);
        from += n;
        offset += n;
        bytes -= n;
    }
}

void fuzz_file_get(const struct fuzz_file *f, uint64_t offset, void *data, size_t bytes)
{
    uint8_t *to = data;

    if (offset >= f->length) {
        memset(to, 0, bytes);
        return;
    }
    if (bytes > f->length - offset) {
        size_t there = (size_t)(f->length - offset);
        memset(to + there, 0, bytes - there);
        bytes = there;
    }
    for (unsigned i = fuzz_file_find(f, offset / PAGE_BYTES); bytes > 0;) {
        uint64_t next = i < f->nr_pages ? f->page_no[i] * PAGE_BYTES : UINT64_MAX;
        size_t n;
        if (next <= offset) {
            n = within_page(offset, bytes);
            memcpy(to, f->slots[f->page_slot[i++]] + offset % PAGE_BYTES, n);
        } else {
            n = (size_t)min_u64(bytes, next - offset);
            memset(to, 0, n);
        }
        to += n;
        offset += n;
        bytes -= n;
    }
}

/* ---- as a storage ---- */

static int file_preadv(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset, size_t *got)
{
    struct fuzz_file *f = file_of(s);

    REQUIRE(f->nr_open > 0, "read after close");
    *got = 0;
    if (++f->nr_reads == f->fault_at)
        return fail(-EIO, "read number %u fails as planned", f->nr_reads);
    for (int i = 0; i < nr_iov && offset < f->length; i++) {
        size_t n = (size_t)min_u64(iov[i].iov_len, f->length - offset);
        fuzz_file_get(f, offset, iov[i].iov_base, n);
        offset += n;
        *got += n;
    }
    return 0;
}

static int file_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset)
{
    (void)s, (void)iov, (void)nr_iov;
    REQUIRE(false, "a write at 0x%llx to a file that is open for reading (D12)", (unsigned long long)offset);
    return -EROFS;
}

static int file_flush(struct storage *s)
{
    (void)s;
    REQUIRE(false, "a flush of a file that is open for reading (D12)");
    return -EROFS;
}

static int file_truncate(struct storage *s, uint64_t bytes)
{
    (void)s;
    REQUIRE(false, "a file that is open for reading is cut to 0x%llx (D12)", (unsigned long long)bytes);
    return -EROFS;
}

static int file_clear(struct storage *s, uint64_t offset, uint64_t bytes)
{
    (void)s, (void)bytes;
    REQUIRE(false, "space at 0x%llx of a file that is open for reading is cleared (D12)",
            (unsigned long long)offset);
    return -EROFS;
}

static int file_length(struct storage *s, uint64_t *bytes)
{
    *bytes = file_of(s)->length;
    return 0;
}

static int file_usage(struct storage *s, uint64_t *bytes)
{
    *bytes = (uint64_t)file_of(s)->nr_pages * PAGE_BYTES;
    return 0;
}

static int file_next_data(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end)
{
    const struct fuzz_file *f = file_of(s);
    unsigned i = fuzz_file_find(f, offset / PAGE_BYTES);

    *start = *end = f->length;
    if (offset >= f->length)
        return 0;
    if (f->hides_holes) {
        *start = offset;
        return 0;
    }
    if (i < f->nr_pages && f->page_no[i] * PAGE_BYTES < f->length) {
        uint64_t no = f->page_no[i];
        *start = max_u64(offset, no * PAGE_BYTES);
        for (; i < f->nr_pages && f->page_no[i] == no; i++)
            no++;
        *end = min_u64(no * PAGE_BYTES, f->length);
    }
    return 0;
}

static int file_lock(struct storage *s, enum storage_lock lock)
{
    (void)s;
    REQUIRE(lock != STORAGE_LOCK_EXCLUSIVE, "a file that is open for reading is locked as for writing");
    return 0;
}

static void file_close(struct storage *s)
{
    REQUIRE(file_of(s)->nr_open > 0, "closed twice");
    file_of(s)->nr_open--;
}

static const struct storage_ops file_ops = {
    .name = "fuzz",
    .preadv = file_preadv,
    .pwritev = file_pwritev,
    .flush = file_flush,
    .length = file_length,
    .truncate = file_truncate,
    .punch = file_clear,
    .zero = file_clear,
    .next_data = file_next_data,
    .usage = file_usage,
    .lock = file_lock,
    .close = file_close,
};

void fuzz_file_reset(struct fuzz_file *f)
{
    REQUIRE(f->nr_open == 0, "still open");
    f->length = 0;
    f->hides_holes = false;
    f->fault_at = f->nr_reads = f->nr_pages = 0;
}

struct storage *fuzz_file_open(struct fuzz_file *f)
{
    /* Marked as writable, so that a forbidden change arrives here rather than in storage.c's own check. */
    f->base = (struct storage){
        .ops = &file_ops,
        .identity = {.device = UINT64_MAX, .inode = (uintptr_t)f},
        .writable = true,
        .fd = -1,
    };
    f->nr_reads = 0;
    f->nr_open++;
    return &f->base;
}
