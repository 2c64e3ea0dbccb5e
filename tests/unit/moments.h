/* SPDX-License-Identifier: MIT */
/* What other requests may do between two steps of one request: a storage that calls back while an operation is under way, so that
 * the worst moment comes every time, in one thread. */
#ifndef VHDX_TESTS_MOMENTS_H
#define VHDX_TESTS_MOMENTS_H

#include "image-test.h"

#include <errno.h>
#include <inttypes.h>

#include "disk/disk.h"
#include "image/writer.h"

/* ---- a storage that calls back ---- */

static struct {
    struct storage *inner;
    void (*after_next_data)(struct image *img);
    void (*before_zero)(struct image *img);
    void (*before_flush)(struct image *img);
    void (*before_payload)(struct image *img); /* read or write behind payload_offset */
    uint64_t payload_offset;
    struct image *img;
    bool can_punch;
    uint64_t punched, written; /* bytes */
    unsigned nr_reserved;      /* calls */
    bool punched_locked;       /* meta was held during one of them */
    uint64_t full_at;          /* there is no space for the page at this file offset; 0: there is for all */
} hook;

/* Once. */
static inline void call(void (**fn)(struct image *))
{
    void (*now)(struct image *) = *fn;

    *fn = NULL;
    if (now)
        now(hook.img);
}

static inline int hook_preadv(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset, size_t *got)
{
    (void)s;
    if (offset >= hook.payload_offset)
        call(&hook.before_payload);
    return storage_preadv(hook.inner, iov, nr_iov, offset, got);
}

static inline int hook_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset)
{
    (void)s;
    if (hook.full_at && offset / PAGE_BYTES == hook.full_at / PAGE_BYTES)
        return fail(-ENOSPC, "no space for a write at 0x%" PRIx64, offset);
    if (offset >= hook.payload_offset)
        call(&hook.before_payload);
    for (int i = 0; i < nr_iov; i++)
        hook.written += iov[i].iov_len;
    return storage_pwritev(hook.inner, iov, nr_iov, offset);
}

static inline int hook_flush(struct storage *s)
{
    (void)s;
    call(&hook.before_flush);
    return storage_flush(hook.inner);
}

static inline int hook_length(struct storage *s, uint64_t *bytes)
{
    (void)s;
    return storage_length(hook.inner, bytes);
}

static inline int hook_truncate(struct storage *s, uint64_t bytes)
{
    (void)s;
    return storage_truncate(hook.inner, bytes);
}

static inline int hook_punch(struct storage *s, uint64_t offset, uint64_t bytes)
{
    (void)s;
    if (!hook.can_punch)
        return -ENOTSUP;
    hook.punched += bytes;
    if (hook.img && hook.img->writer) {
        if (pthread_mutex_trylock(&hook.img->writer->meta) == 0)
            pthread_mutex_unlock(&hook.img->writer->meta);
        else
            hook.punched_locked = true;
    }
    return storage_punch(hook.inner, offset, bytes);
}

static inline int hook_reserve(struct storage *s, uint64_t offset, uint64_t bytes)
{
    (void)s;
    hook.nr_reserved++;
    if (hook.full_at >= offset && hook.full_at < offset + bytes)
        return fail(-ENOSPC, "no space to reserve at 0x%" PRIx64, offset);
    return 0;
}

static inline int hook_zero(struct storage *s, uint64_t offset, uint64_t bytes)
{
    (void)s;
    call(&hook.before_zero);
    return storage_zero(hook.inner, offset, bytes);
}

static inline int hook_next_data(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end)
{
    (void)s;
    int r = storage_next_data(hook.inner, offset, start, end);
    call(&hook.after_next_data);
    return r;
}

static inline void hook_close(struct storage *s)
{
    free(s);
}

static const struct storage_ops hook_ops = {
    .name = "hook",
    .preadv = hook_preadv,
    .pwritev = hook_pwritev,
    .flush = hook_flush,
    .length = hook_length,
    .truncate = hook_truncate,
    .punch = hook_punch,
    .reserve = hook_reserve,
    .zero = hook_zero,
    .next_data = hook_next_data,
    .close = hook_close,
};

static inline struct image *open_hooked(struct storage *inner)
{
    struct storage *s = calloc(1, sizeof *s);
    struct image *img;

    assert_non_null(s);
    *s = *inner;
    s->ops = &hook_ops;
    hook.inner = inner;
    hook.img = NULL; /* the one of before is gone */
    assert_succeeds(image_open(s, IMAGE_WRITABLE, 64, &img));
    hook.img = img;
    return img;
}

static inline uint64_t allocate_block(struct image *img, uint64_t block_no)
{
    uint64_t place;

    assert_succeeds(writer_begin(img));
    assert_succeeds(block_for_write(img, block_no, &place));
    return place;
}

static inline void drop_block(struct image *img, uint64_t block_no)
{
    assert_succeeds(block_drop(img, block_no, PAYLOAD_ZERO));
}

/* How the image that is open was made. */
static struct image_plan plan;

/* Plan an image of bytes in blocks of one MiB. */
static inline void make_plan(uint64_t bytes)
{
    image_plan_init(&plan, bytes, (uint32_t)MIB(1), 512, NULL, 0);
}

/* Open an image of nr_mib blocks, with nr_idle MiBs that belong to nobody before the first block that is there, number 0. */
static inline struct image *make_image(uint64_t nr_mib, uint64_t nr_idle)
{
    make_plan(MIB(nr_mib));
    struct storage *s = build_memory_image(&plan);
    uint64_t blocks = image_plan_blocks_offset(&plan);
    if (nr_idle > 0)
        build_block(&plan, s, 0, PAYLOAD_FULLY_PRESENT, blocks + MIB(nr_idle));
    assert_succeeds(storage_truncate(s, blocks + MIB(nr_idle + (nr_idle > 0))));
    hook.payload_offset = blocks;
    return open_hooked(s);
}

/* And what it lies in. */
static inline void close_image(struct image *img)
{
    hook.after_next_data = hook.before_zero = hook.before_flush = hook.before_payload = NULL;
    hook.can_punch = false;
    hook.punched = hook.written = 0;
    assert_succeeds(image_close(img));
    storage_close(hook.inner);
}

/* ---- the disk in it ---- */

static struct layer layer;
static struct vhdx_disk disk;

static inline void make_disk(struct image *img)
{
    layer = (struct layer){.img = img, .size = img->geometry.virtual_size};
    disk = (struct vhdx_disk){.layers = &layer, .nr_layers = 1, .size = layer.size};
}

static inline void write_bytes(uint64_t block_no, uint8_t byte)
{
    uint8_t bytes[4096];
    struct iovec iov = {bytes, sizeof bytes};

    memset(bytes, byte, sizeof bytes);
    assert_succeeds(disk_pwritev(&disk, &iov, 1, MIB(block_no), 0));
}

static inline void expect_bytes(uint64_t block_no, uint8_t byte)
{
    uint8_t bytes[4096], wanted[4096];

    memset(wanted, byte, sizeof wanted);
    assert_succeeds(disk_pread(&disk, bytes, sizeof bytes, MIB(block_no)));
    assert_memory_equal(bytes, wanted, sizeof bytes);
}

#endif
