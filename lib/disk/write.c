/* SPDX-License-Identifier: MIT */
#include "disk/disk.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/iov.h"
#include "disk/write-child.h"
#include "disk/write-raw.h"
#include "image/image.h"
#include "image/writer.h"
#include "storage/storage.h"

/* The image that takes the changes, ready for them; NULL with *error set otherwise. */
static struct image *writable_image(struct vhdx_disk *disk, uint32_t flags, int *error)
{
    struct image *img = disk->layers[0].img;

    if (!img || !img->writer)
        *error = fail(-EROFS, "the disk was opened for reading only");
    else if (flags & ~(uint32_t)VHDX_FUA)
        *error = fail(-EINVAL, "unknown flags 0x%" PRIx32, flags);
    else
        *error = writer_check(img);
    return *error < 0 ? NULL : img;
}

static bool is_raw(const struct vhdx_disk *disk)
{
    return !disk->layers[0].img;
}

int disk_check_writable(struct vhdx_disk *disk)
{
    int r;

    if (is_raw(disk))
        return raw_check_writable(disk);
    writable_image(disk, 0, &r);
    return r;
}

static int check_range(const struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length)
{
    if (range_fits(guest_offset, length, disk->size))
        return 0;
    return fail(-EINVAL, "%" PRIu64 " bytes at %" PRIu64 " reach beyond the end of the disk, %" PRIu64 " bytes", length,
                guest_offset, disk->size);
}

int write_piece(struct image *img, struct iov_position *p, uint64_t bytes, uint64_t file_offset)
{
    while (bytes > 0) {
        struct iovec slice[IOV_SLICE];
        int nr_slice;
        size_t n = iov_take(p, bytes, slice, &nr_slice);
        int r = storage_pwritev(img->file, slice, nr_slice, file_offset);
        if (r < 0)
            return r;
        file_offset += n;
        bytes -= n;
    }
    return 0;
}

static int write_part(struct image *img, struct iov_position *p, uint64_t guest_offset, uint64_t bytes)
{
    const struct geometry *g = &img->geometry;
    struct inflight_ticket ticket = inflight_enter(&img->writer->inflight); /* the place stays this block's until we leave */
    uint64_t place;
    int r = block_for_write(img, guest_offset >> g->block_shift, &place);

    if (r == 0)
        r = write_piece(img, p, bytes, place + (guest_offset & (g->block_size - 1)));
    inflight_leave(ticket);
    return r;
}

static int write_once(struct vhdx_disk *disk, struct iov_position *p, uint64_t guest_offset, uint64_t bytes)
{
    struct image *img = disk->layers[0].img;

    return image_has_parent(img) ? child_write(disk, p, guest_offset, bytes) : write_part(img, p, guest_offset, bytes);
}

/* Inside one block.  Where there is no space (D10), what was given up before may be room once its loss is durable (D3): then once
 * more from the beginning, after this request has left, since its own presence keeps such space. */
static int write_in_block(struct vhdx_disk *disk, struct iov_position *p, uint64_t guest_offset, uint64_t bytes)
{
    struct image *img = disk->layers[0].img;
    uint64_t commits_begun = writer_commits_begun(img);
    const struct iov_position start = *p;
    int r = write_once(disk, p, guest_offset, bytes);

    if (is_no_space(r) && writer_make_room(img, commits_begun)) {
        *p = start;
        r = write_once(disk, p, guest_offset, bytes);
    }
    return r;
}

int disk_pwritev(struct vhdx_disk *disk, const struct iovec *iov, int nr_iov, uint64_t guest_offset, uint32_t flags)
{
    if (is_raw(disk))
        return raw_pwritev(disk, iov, nr_iov, guest_offset, flags);

    struct iov_position p = {.iov = iov};
    uint64_t count;
    int r = iov_count(iov, nr_iov, &count);
    struct image *img = r < 0 ? NULL : writable_image(disk, flags, &r);

    if (r == 0)
        r = check_range(disk, guest_offset, count);
    if (r < 0 || count == 0)
        return r;
    r = writer_begin(img);
    for (uint64_t end = guest_offset + count; r == 0 && guest_offset < end;) {
        const struct geometry *g = &img->geometry;
        uint64_t bytes = min_u64(end - guest_offset, g->block_size - (guest_offset & (g->block_size - 1)));
        r = write_in_block(disk, &p, guest_offset, bytes);
        guest_offset += bytes;
    }
    return r == 0 && (flags & VHDX_FUA) ? writer_commit(img) : r;
}

/* ---- zeros ---- */

/* Zero a part of a block: in place if it has one; without one it reads as zeros. */
static int zero_part(struct image *img, uint64_t guest_offset, uint64_t bytes, unsigned ways)
{
    const struct geometry *g = &img->geometry;
    struct inflight_ticket ticket = inflight_enter(&img->writer->inflight);
    struct bat_entry e;
    int r = bat_lookup(img, guest_offset >> g->block_shift, &e);

    if (r == 0 && e.state == PAYLOAD_FULLY_PRESENT)
        r = writer_make_zero(img, e.file_offset + (guest_offset & (g->block_size - 1)), bytes, ways);
    inflight_leave(ticket);
    return r;
}

/* Zero a part of a block, or all of it, and leave it with space of its own. */
static int zero_with_space(struct image *img, uint64_t guest_offset, uint64_t bytes, unsigned ways)
{
    const struct geometry *g = &img->geometry;
    struct inflight_ticket ticket = inflight_enter(&img->writer->inflight);
    struct bat_entry e;
    uint64_t place;
    int r = bat_lookup(img, guest_offset >> g->block_shift, &e);

    if (r == 0 && ways & ZERO_FAST && e.state != PAYLOAD_FULLY_PRESENT) /* it could be somebody's old space, to be cleared first */
        r = fail(-EOPNOTSUPP, "block %" PRIu64 " has no space yet", guest_offset >> g->block_shift);
    if (r == 0)
        r = block_for_write(img, guest_offset >> g->block_shift, &place);
    if (r == 0)
        r = writer_make_zero(img, place + (guest_offset & (g->block_size - 1)), bytes, ways);
    inflight_leave(ticket);
    return r;
}

/* What the zeros of a request may cost, and what becomes of whole blocks. */
struct zeroing {
    unsigned ways;   /* enum zero_ways, for parts of blocks */
    unsigned state;  /* of whole blocks, which give up their space unless */
    bool in_place;   /* they are treated as parts are */
    bool with_space; /* what has no space gets some */
};

/* Inside one block. */
static int zero_once(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t bytes, const struct zeroing *z)
{
    struct image *img = disk->layers[0].img;
    const struct geometry *g = &img->geometry;
    uint64_t block_no = guest_offset >> g->block_shift;
    bool whole = is_aligned(guest_offset, g->block_size) && bytes == block_visible_bytes(g, block_no);

    if (whole && !z->in_place && !z->with_space)
        return g->has_parent ? child_drop(disk, block_no, z->state) : block_drop(img, block_no, z->state);
    if (g->has_parent)
        return child_zero(disk, guest_offset, bytes, z->ways, z->with_space);
    return z->with_space ? zero_with_space(img, guest_offset, bytes, z->ways) : zero_part(img, guest_offset, bytes, z->ways);
}

/* As write_in_block(). */
static int zero_in_block(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t bytes, const struct zeroing *z)
{
    struct image *img = disk->layers[0].img;
    uint64_t commits_begun = writer_commits_begun(img);
    int r = zero_once(disk, guest_offset, bytes, z);

    return is_no_space(r) && writer_make_room(img, commits_begun) ? zero_once(disk, guest_offset, bytes, z) : r;
}

/* Move *guest_offset over whole blocks, and what remains of the range, that read as zeros without being in this image: there are
 * many more of them on a large disk than blocks (S5). */
static int skip_zeros(struct vhdx_disk *disk, uint64_t *guest_offset, uint64_t end)
{
    uint64_t block_size = disk->layers[0].img->geometry.block_size;
    struct extent_cursor c;
    struct vhdx_extent e;

    int r = extent_cursor_init(&c, disk, *guest_offset, end - *guest_offset);
    if (r < 0)
        return r;
    r = extent_cursor_next(&c, UINT64_MAX, &e);
    extent_cursor_done(&c);
    if (r > 0 && (e.flags & VHDX_EXTENT_ZERO) && (e.depth > 0 || !(e.flags & VHDX_EXTENT_PRESENT))) {
        uint64_t next = *guest_offset + e.length;
        *guest_offset = next == end ? end : max_u64(*guest_offset, align_down(next, block_size));
    }
    return r < 0 ? r : 0;
}

static int zero_range(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t end, const struct zeroing *z)
{
    uint64_t block_size = disk->layers[0].img->geometry.block_size;
    int r = 0;

    while (r == 0 && guest_offset < end) {
        r = z->with_space || disk->parent_left_out ? 0 : skip_zeros(disk, &guest_offset, end);
        if (r < 0 || guest_offset == end)
            break;
        uint64_t bytes = min_u64(end - guest_offset, block_size - (guest_offset & (block_size - 1)));
        r = zero_in_block(disk, guest_offset, bytes, z);
        guest_offset += bytes;
    }
    return r;
}

static int make_zeros(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags, const struct zeroing *z)
{
    struct image *img = disk->layers[0].img;
    uint64_t end = guest_offset + length, tail = align_down(end, img->geometry.block_size);
    int r = writer_begin(img);

    if (z->ways & ZERO_FAST && tail > guest_offset && r == 0) { /* what could fail comes first, so that nothing was done then */
        r = zero_range(disk, tail, end, z);
        end = tail;
    }
    if (r == 0)
        r = zero_range(disk, guest_offset, end, z);
    return r == 0 && (flags & VHDX_FUA) ? writer_commit(img) : r;
}

int disk_zero(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags)
{
    if (is_raw(disk))
        return raw_zero(disk, guest_offset, length, flags);

    int r;
    struct image *img = writable_image(disk, flags & ~(uint32_t)(VHDX_NO_HOLE | VHDX_FAST_ZERO), &r);

    if (r == 0)
        r = check_range(disk, guest_offset, length);
    if (r < 0 || length == 0)
        return r;
    bool fixed = image_is_fixed(img);
    struct zeroing z = {.state = PAYLOAD_ZERO, .in_place = fixed, .with_space = flags & VHDX_NO_HOLE};
    z.ways = (z.in_place || z.with_space ? ZERO_NO_HOLE : 0) | (flags & VHDX_FAST_ZERO ? ZERO_FAST : 0);
    return make_zeros(disk, guest_offset, length, flags, &z);
}

int disk_discard(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags)
{
    if (is_raw(disk))
        return raw_discard(disk, guest_offset, length, flags);

    int r;
    struct image *img = writable_image(disk, flags, &r);

    if (r == 0)
        r = check_range(disk, guest_offset, length);
    if (r < 0 || length == 0)
        return r;
    bool fixed = image_is_fixed(img);
    struct zeroing z = {.ways = fixed ? ZERO_NO_HOLE : ZERO_BY_HOLE, .state = PAYLOAD_UNMAPPED, .in_place = fixed};
    return make_zeros(disk, guest_offset, length, flags, &z);
}

int disk_flush(struct vhdx_disk *disk)
{
    if (is_raw(disk))
        return raw_flush(disk);

    int r;
    struct image *img = writable_image(disk, 0, &r);

    return r < 0 ? r : writer_commit(img);
}
