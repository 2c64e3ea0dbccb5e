/* SPDX-License-Identifier: MIT */
/* Changing a raw disk: guest offsets are those of its file. */
#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/disk.h"
#include "disk/iov.h"
#include "disk/write-raw.h"
#include "storage/storage.h"

int raw_check_writable(const struct vhdx_disk *disk)
{
    return disk->layers[0].raw->writable ? 0 : fail(-EROFS, "the disk was opened for reading only");
}

static int check_change(const struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags, uint32_t known)
{
    if (flags & ~known)
        return fail(-EINVAL, "unknown flags 0x%" PRIx32, flags);
    if (!range_fits(guest_offset, length, disk->size))
        return fail(-EINVAL, "%" PRIu64 " bytes at %" PRIu64 " reach beyond the end of the disk, %" PRIu64 " bytes", length, guest_offset,
                    disk->size);
    return raw_check_writable(disk);
}

static int end_change(struct vhdx_disk *disk, int r, uint32_t flags)
{
    return r == 0 && (flags & VHDX_FUA) ? raw_flush(disk) : r;
}

int raw_pwritev(struct vhdx_disk *disk, const struct iovec *iov, int nr_iov, uint64_t guest_offset, uint32_t flags)
{
    uint64_t count;
    int r = iov_count(iov, nr_iov, &count);

    if (r == 0)
        r = check_change(disk, guest_offset, count, flags, VHDX_FUA);
    if (r == 0)
        r = storage_pwritev(disk->layers[0].raw, iov, nr_iov, guest_offset);
    return end_change(disk, r, flags);
}

static int write_zeros(struct storage *file, uint64_t offset, uint64_t bytes)
{
    static const uint8_t zeros[64 * 1024];
    int r = 0;

    while (r == 0 && bytes > 0) {
        size_t n = min_u64(bytes, sizeof zeros);
        r = storage_pwrite(file, zeros, n, offset);
        offset += n;
        bytes -= n;
    }
    return r;
}

/* hole: the space may go, or it has to stay. */
static int make_zero(struct storage *file, uint64_t offset, uint64_t bytes, bool hole, bool fast)
{
    int r = hole ? storage_punch(file, offset, bytes) : storage_zero(file, offset, bytes);

    if (r == 0 || r == -ENOSPC || r == -EIO)
        return r;
    if (fast)
        return fail(-EOPNOTSUPP, "zeros would have to be written here");
    return write_zeros(file, offset, bytes);
}

int raw_zero(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags)
{
    int r = check_change(disk, guest_offset, length, flags, VHDX_FUA | VHDX_NO_HOLE | VHDX_FAST_ZERO);

    if (r == 0 && length > 0)
        r = make_zero(disk->layers[0].raw, guest_offset, length, !(flags & VHDX_NO_HOLE), flags & VHDX_FAST_ZERO);
    return end_change(disk, r, flags);
}

int raw_discard(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags)
{
    int r = check_change(disk, guest_offset, length, flags, VHDX_FUA);

    if (r == 0 && length > 0)
        r = make_zero(disk->layers[0].raw, guest_offset, length, true, false);
    return end_change(disk, r, flags);
}

int raw_flush(struct vhdx_disk *disk)
{
    int r = raw_check_writable(disk);

    return r < 0 ? r : storage_flush(disk->layers[0].raw);
}
