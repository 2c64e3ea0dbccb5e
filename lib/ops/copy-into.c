/* SPDX-License-Identifier: MIT */
/* Copying into a disk that exists. */
#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/disk.h"
#include "image/image.h"
#include "ops/copy-disk.h"
#include "ops/copy-source.h"
#include "ops/copy-target.h"
#include "ops/ops.h"
#include "ops/orphans.h"
#include "storage/storage.h"

/* ---- an image as what is copied to ---- */

/* The virtual disk in an image, as a storage: only the changes that copying makes. */
struct disk_storage {
    struct storage base;
    struct vhdx_disk *disk;
};

static struct vhdx_disk *disk_of(struct storage *s)
{
    return ((struct disk_storage *)s)->disk;
}

static int disk_storage_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset)
{
    return disk_pwritev(disk_of(s), iov, nr_iov, offset, 0);
}

/* What space whole blocks keep is decided by the image's type. */
static int disk_storage_punch(struct storage *s, uint64_t offset, uint64_t bytes)
{
    return disk_zero(disk_of(s), offset, bytes, 0);
}

static int disk_storage_zero(struct storage *s, uint64_t offset, uint64_t bytes)
{
    return disk_zero(disk_of(s), offset, bytes, VHDX_NO_HOLE);
}

static const struct storage_ops disk_storage_ops = {
    .name = "disk",
    .pwritev = disk_storage_pwritev,
    .punch = disk_storage_punch,
    .zero = disk_storage_zero,
};

/* ---- what the target held ---- */

/* Make what the image stores of the first bytes zeros, so that its blocks give up their space and get new one in the order in
 * which they are copied.  Blocks that are zero already cost nothing, however many there are. */
static int zero_stored(struct vhdx_disk *target, uint64_t bytes, const struct vhdx_copy_options *o)
{
    struct extent_cursor c;
    struct vhdx_extent e;
    int r = extent_cursor_init(&c, target, 0, bytes);

    if (r < 0)
        return r;
    while ((r = extent_cursor_next(&c, UINT64_MAX, &e)) > 0) {
        r = e.flags & VHDX_EXTENT_DATA ? disk_zero(target, e.guest_offset, e.length, 0) : 0;
        if (r == 0 && o->progress && o->progress(o->opaque, 0, bytes) != 0)
            r = fail(-ECANCELED, "cancelled before anything was copied, with part of what the target held gone already");
        if (r < 0)
            break;
    }
    extent_cursor_done(&c);
    return r;
}

static int copy_into_image(struct vhdx_disk *source, struct vhdx_disk *target, const struct vhdx_copy_options *o)
{
    struct disk_storage adapter = {
        .base = {.ops = &disk_storage_ops, .identity = layer_file(&target->layers[0])->identity, .writable = true, .fd = -1},
        .disk = target,
    };
    bool fixed = target->layers[0].img->values.parameter_flags & PARAMETER_LEAVE_ALLOCATED;
    bool is_zero = o->target_is_zero;

    if (!fixed && !is_zero) {
        int r = zero_stored(target, source->size, o);
        if (r < 0)
            return copy_target_failed(o, r);
        is_zero = true;
    }
    return copy_disk(source, &adapter.base, 0, is_zero, o);
}

int ops_copy_to_disk(vhdx_disk *source, vhdx_disk *target, const struct vhdx_copy_options *options)
{
    static const struct vhdx_copy_options defaults = VHDX_COPY_OPTIONS_INIT;
    const struct vhdx_copy_options *o = options ? options : &defaults;
    struct layer *layer = &target->layers[0];

    int r = copy_check_options(o);
    if (r == 0)
        r = copy_check_not_source(source, layer_file(layer));
    if (r < 0)
        return r;
    if (target->size < source->size)
        return copy_target_failed(o, fail(-ENOSPC, "the target has %" PRIu64 " bytes, the disk needs %" PRIu64, target->size,
                                          source->size));
    r = disk_check_writable(target);
    if (r == 0 && layer->raw)
        r = orphans_refuse_fd(layer->raw); /* the file may be an image all the same */
    if (r < 0)
        return copy_target_failed(o, r);
    return layer->img ? copy_into_image(source, target, o) : copy_disk(source, layer->raw, 0, o->target_is_zero, o);
}
