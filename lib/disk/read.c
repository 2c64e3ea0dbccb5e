/* SPDX-License-Identifier: MIT */
#include "disk/disk.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/iov.h"
#include "disk/shortcut.h"
#include "image/image.h"
#include "image/writer.h"
#include "storage/storage.h"

static int read_layer(const struct layer *layer, const struct iovec *iov, int nr_iov, uint64_t file_offset)
{
    size_t got;

    if (layer->img)
        return image_preadv_payload(layer->img, iov, nr_iov, file_offset);
    int r = storage_preadv(layer->raw, iov, nr_iov, file_offset, &got);
    for (int i = 0; r == 0 && i < nr_iov; i++) {
        if (got < iov[i].iov_len)
            return fail(VHDX_E_TRUNCATED, "the file shrank while it was open");
        got -= iov[i].iov_len;
    }
    return r;
}

static int read_extent(struct vhdx_disk *disk, const struct vhdx_extent *e, struct iov_position *p)
{
    const struct layer *layer = &disk->layers[e->depth];

    for (uint64_t done = 0; done < e->length;) {
        struct iovec slice[IOV_SLICE];
        int nr_slice, r = 0;
        size_t n = iov_take(p, e->length - done, slice, &nr_slice);
        if (e->flags & VHDX_EXTENT_DATA) {
            r = read_layer(layer, slice, nr_slice, e->file_offset + done);
        } else {
            for (int i = 0; i < nr_slice; i++)
                memset(slice[i].iov_base, 0, slice[i].iov_len);
        }
        if (r < 0)
            return e->depth > 0 ? fail_in(r, "parent %s", layer->path) : r;
        done += n;
    }
    return 0;
}

/* The hot path (S1): one buffer inside one block that is known to lie here whole.  False if it is anything else. */
static bool find_in_block(struct vhdx_disk *disk, size_t count, uint64_t guest_offset, uint64_t *file_offset)
{
    struct image *img = disk->layers[0].img;

    if (!img || !range_fits(guest_offset, count, disk->size))
        return false;
    uint64_t in_block = guest_offset & (img->geometry.block_size - 1);
    uint64_t place = bat_lookaside(img, guest_offset >> img->geometry.block_shift);
    *file_offset = place + in_block;
    return place != 0 && count <= img->geometry.block_size - in_block;
}

/* What the layers above first_layer are known to hold nothing of. */
static int read_by_extents(struct vhdx_disk *disk, uint32_t first_layer, const struct iovec *iov, uint64_t count,
                           uint64_t guest_offset)
{
    struct iov_position p = {.iov = iov};
    struct extent_cursor c;
    struct vhdx_extent e;
    int r = extent_cursor_init_below(&c, disk, first_layer, guest_offset, count);

    if (r < 0)
        return r;
    while ((r = extent_cursor_next(&c, UINT64_MAX, &e)) > 0) {
        r = read_extent(disk, &e, &p);
        if (r < 0)
            break;
    }
    extent_cursor_done(&c);
    return r;
}

static int read_now(struct vhdx_disk *disk, const struct iovec *iov, int nr_iov, uint64_t count, uint64_t guest_offset)
{
    uint64_t file_offset;
    struct shortcut s;

    if (count > 0 && find_in_block(disk, count, guest_offset, &file_offset))
        return image_preadv_payload(disk->layers[0].img, iov, nr_iov, file_offset);
    if (!shortcut_find(disk, guest_offset, count, &s))
        return read_by_extents(disk, 0, iov, count, guest_offset);
    if (s.file_offset == 0)
        return read_by_extents(disk, s.first_layer, iov, count, guest_offset);
    const struct layer *layer = &disk->layers[s.first_layer];
    int r = image_preadv_payload(layer->img, iov, nr_iov, s.file_offset);
    return r < 0 ? fail_in(r, "parent %s", layer->path) : 0;
}

int disk_preadv(struct vhdx_disk *disk, const struct iovec *iov, int nr_iov, uint64_t guest_offset)
{
    struct image *img = disk->layers[0].img;
    uint64_t count;
    int r = iov_count(iov, nr_iov, &count);

    if (r < 0)
        return r;
    if (!img || !img->writer)
        return read_now(disk, iov, nr_iov, count, guest_offset);
    struct inflight_ticket ticket = inflight_enter(&img->writer->inflight); /* what is found stays in its place until we leave */
    r = read_now(disk, iov, nr_iov, count, guest_offset);
    inflight_leave(ticket);
    return r;
}

int disk_pread(struct vhdx_disk *disk, void *buf, size_t count, uint64_t guest_offset)
{
    struct iovec iov = {buf, count};
    return disk_preadv(disk, &iov, 1, guest_offset);
}

/* Can the extent's bytes have got another owner since it was found?  Parents never change. */
static bool may_have_moved(const struct vhdx_disk *disk, const struct vhdx_extent *e)
{
    const struct image *img = disk->layers[0].img;
    return e->depth == 0 && img && img->writer;
}

int extent_pread(struct vhdx_disk *disk, const struct vhdx_extent *e, uint64_t from, void *buf, size_t count)
{
    if (may_have_moved(disk, e))
        return disk_pread(disk, buf, count, e->guest_offset + from); /* looks it up again, in flight meanwhile (D3) */
    struct vhdx_extent part = *e;
    struct iovec iov = {buf, count};
    struct iov_position p = {.iov = &iov};

    part.file_offset += from;
    part.length = count;
    return read_extent(disk, &part, &p);
}

/* Does the image still say of all of the range what the extent says? */
static bool still_there(struct image *img, uint64_t guest_offset, uint64_t length, uint64_t file_offset)
{
    struct run run;

    for (uint64_t done = 0; done < length; done += run.length) {
        if (image_resolve(img, guest_offset + done, length - done, &run) < 0 || run.kind != RUN_DATA ||
            run.file_offset != file_offset + done)
            return false;
    }
    return true;
}

int extent_use(struct vhdx_disk *disk, const struct vhdx_extent *e, uint64_t from, uint64_t to, extent_use_fn *fn, void *opaque)
{
    if (!may_have_moved(disk, e))
        return fn(opaque);
    struct image *img = disk->layers[0].img;
    struct inflight_ticket ticket = inflight_enter(&img->writer->inflight);
    int r = still_there(img, e->guest_offset + from, to - from, e->file_offset + from) ? fn(opaque) : 0;
    inflight_leave(ticket);
    return r;
}
