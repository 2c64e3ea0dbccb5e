/* SPDX-License-Identifier: MIT */
#include "ops/copy-target.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/error.h"
#include "base/zero.h"
#include "disk/disk.h"
#include "image/image.h"
#include "image/overlay.h"
#include "storage/storage.h"

enum { CLONE_ALIGNMENT = 4096 };

void copy_target_init(struct copy_target *t, struct storage *file, bool is_zero, const struct vhdx_copy_options *o)
{
    t->file = file;
    t->is_zero = is_zero;
    t->sparse_bytes = o->sparse_bytes;
    t->takes_all = o->sparse_bytes == 0;
    t->options = o;
    t->reflink_always = o->reflink == VHDX_REFLINK_ALWAYS;
    bool may_share = o->reflink != VHDX_REFLINK_NEVER && !t->takes_all; /* holes are shared as holes */
    atomic_init(&t->try_reflink, may_share);
    atomic_init(&t->try_copy_range, may_share); /* it may share blocks, too */
}

int copy_target_failed(const struct vhdx_copy_options *o, int r)
{
    if (r < 0 && o->target_failed)
        __atomic_store_n(o->target_failed, true, __ATOMIC_RELAXED); /* by any of the workers */
    return r;
}

static int write_target(struct copy_target *t, const uint8_t *p, size_t bytes, uint64_t offset)
{
    return copy_target_failed(t->options, storage_pwrite(t->file, p, bytes, offset));
}

/* ---- zeros ---- */

/* Whatever a quick way fails with, writing tells; but for space, of which it would need more. */
int copy_target_zero(struct copy_target *t, uint64_t offset, uint64_t bytes)
{
    static const uint8_t zeros[64 * 1024];

    if (!t->takes_all && (t->is_zero || storage_punch(t->file, offset, bytes) == 0))
        return 0;
    int r = storage_zero(t->file, offset, bytes);
    if (r == 0 || r == -ENOSPC)
        return copy_target_failed(t->options, r);
    while (bytes > 0) {
        size_t n = min_u64(bytes, sizeof zeros);
        r = write_target(t, zeros, n, offset);
        if (r < 0)
            return r;
        offset += n;
        bytes -= n;
    }
    return 0;
}

/* Length of the run of units, from at on, that are all zero or all not; unit borders are the target's. */
static size_t zero_run(const uint8_t *p, size_t bytes, size_t at, uint64_t offset, size_t unit, bool *zero)
{
    size_t end = at;

    while (end < bytes) {
        size_t n = min_u64(bytes - end, unit - (offset + end) % unit);
        bool z = memory_is_zero(p + end, n);
        if (end == at)
            *zero = z;
        else if (z != *zero)
            break;
        end += n;
    }
    return end - at;
}

int copy_target_write(struct copy_target *t, const uint8_t *p, size_t bytes, uint64_t offset)
{
    if (t->sparse_bytes == 0)
        return write_target(t, p, bytes, offset);
    for (size_t at = 0, n; at < bytes; at += n) {
        bool zero = false;
        n = zero_run(p, bytes, at, offset, t->sparse_bytes, &zero);
        int r = zero ? copy_target_zero(t, offset + at, n) : write_target(t, p + at, n, offset + at);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- pieces ---- */

struct kernel_copy {
    int source, target; /* descriptors */
    off_t in, out;
    size_t bytes;
};

/* How much was copied, at least 1 byte; or -1: another way is needed. */
static int copy_range(void *opaque)
{
    struct kernel_copy *k = opaque;
    ssize_t n;

    do
        n = copy_file_range(k->source, &k->in, k->target, &k->out, k->bytes, 0);
    while (n < 0 && errno == EINTR);
    return n > 0 ? (int)n : -1;
}

/* Let the kernel copy what need not be looked at.  Returns how far it came: what fails is tried by hand, and told by that. */
static uint64_t copy_in_kernel(struct copy_target *t, struct vhdx_disk *disk, const struct vhdx_extent *piece, uint64_t offset,
                               uint64_t from, uint64_t to)
{
    const struct layer *layer = &disk->layers[piece->depth];
    const struct overlay *overlay = layer->img ? layer->img->overlay : NULL;
    int source = layer_file(layer)->fd;

    if (t->sparse_bytes != 0 || source < 0 || t->file->fd < 0 || !atomic_load(&t->try_copy_range) ||
        (overlay && overlay_touches(overlay, piece->file_offset, piece->length)))
        return from;
    while (from < to) {
        struct kernel_copy k = {.source = source, .target = t->file->fd, .in = (off_t)(piece->file_offset + from),
                                .out = (off_t)(offset + from), .bytes = min_u64(to - from, COPY_PIECE_BYTES)};
        int n = extent_use(disk, piece, from, from + k.bytes, copy_range, &k); /* D3 */
        if (n < 0)
            atomic_store(&t->try_copy_range, false);
        if (n <= 0) /* 0: it was given up meanwhile, and what there is now is copied by hand */
            break;
        from += (uint64_t)n;
    }
    return from;
}

static int copy_by_hand(struct copy_target *t, struct vhdx_disk *disk, const struct vhdx_extent *piece, uint64_t offset,
                        uint64_t from, uint64_t to, uint8_t *buffer)
{
    from = copy_in_kernel(t, disk, piece, offset, from, to);
    while (from < to) {
        size_t n = min_u64(COPY_BUFFER_BYTES, to - from);
        int r = extent_pread(disk, piece, from, buffer, n);
        if (r == 0)
            r = copy_target_write(t, buffer, n, offset + from);
        if (r < 0)
            return r;
        from += n;
    }
    return 0;
}

struct clone {
    int fd; /* the target's */
    struct file_clone_range range;
};

/* 1: done; 0: another way will do; or -1: the file systems cannot. */
static int clone_range(void *opaque)
{
    struct clone *c = opaque;
    return ioctl(c->fd, FICLONERANGE, &c->range) == 0 ? 1 : -1;
}

/* Let the file system share the blocks.  1: done for [*from, *to) of the piece; 0: not possible, copy it all. */
static int clone_piece(struct copy_target *t, struct vhdx_disk *disk, const struct vhdx_extent *piece, uint64_t offset,
                       uint64_t *from, uint64_t *to)
{
    const struct layer *layer = &disk->layers[piece->depth];
    const struct overlay *overlay = layer->img ? layer->img->overlay : NULL;

    if (!atomic_load(&t->try_reflink) || (piece->file_offset ^ offset) % CLONE_ALIGNMENT != 0 ||
        (overlay && overlay_touches(overlay, piece->file_offset, piece->length)))
        return 0;
    *from = align_up(piece->file_offset, CLONE_ALIGNMENT) - piece->file_offset;
    *to = align_down(piece->file_offset + piece->length, CLONE_ALIGNMENT) - piece->file_offset;
    if (*from >= *to || *to > piece->length)
        return 0;
    struct clone c = {.fd = t->file->fd,
                      .range = {.src_fd = layer_file(layer)->fd,
                                .src_offset = piece->file_offset + *from,
                                .src_length = *to - *from,
                                .dest_offset = offset + *from}};
    int r = c.range.src_fd < 0 || c.fd < 0 ? -1 : extent_use(disk, piece, *from, *to, clone_range, &c);
    if (r >= 0)
        return r; /* 0: it was given up meanwhile, and what there is now is copied by hand */
    if (t->reflink_always)
        return fail(-EOPNOTSUPP, "the file systems cannot share blocks between image and target (FICLONERANGE at offset "
                    "%" PRIu64 " failed); use --reflink=auto to copy instead", piece->guest_offset);
    atomic_store(&t->try_reflink, false);
    return 0;
}

int copy_target_piece(struct copy_target *t, struct vhdx_disk *disk, const struct vhdx_extent *piece, uint64_t offset,
                      uint8_t *buffer)
{
    uint64_t from = 0, to = 0;
    int r = clone_piece(t, disk, piece, offset, &from, &to);

    if (r <= 0)
        return r < 0 ? r : copy_by_hand(t, disk, piece, offset, 0, piece->length, buffer);
    r = copy_by_hand(t, disk, piece, offset, 0, from, buffer);
    return r < 0 ? r : copy_by_hand(t, disk, piece, offset, to, piece->length, buffer);
}
