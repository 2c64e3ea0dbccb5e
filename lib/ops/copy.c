/* SPDX-License-Identifier: MIT */
#include "ops/ops.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/math.h"
#include "ops/copy-disk.h"
#include "ops/copy-source.h"
#include "ops/copy-target.h"
#include "ops/copy-work.h"
#include "ops/new-file.h"
#include "ops/orphans.h"
#include "storage/storage.h"

/* Zeros that must be written, at a time, so that cancelling works; cut where no block of a target is. */
#define ZERO_PIECE_BYTES GIB(1)

struct copy_job {
    struct copy_work work; /* first, so that one is found by the other; its lock protects the cursor and what follows it */
    struct vhdx_disk *disk;
    struct copy_target target;
    uint64_t start; /* file offset of guest offset 0 */
    struct extent_cursor cursor;
    uint64_t zeros_from, zeros_to; /* zeros taken from the cursor and not yet given to a worker */
};

/* The next piece that somebody must do something about. */
static int take_piece(struct copy_work *work, struct copy_task *task)
{
    struct copy_job *job = (struct copy_job *)work;
    struct vhdx_extent *piece = &task->extent;

    while (job->zeros_from == job->zeros_to) {
        int r = copy_next_piece(&job->cursor, COPY_PIECE_BYTES, piece);
        if (r <= 0 || (piece->flags & VHDX_EXTENT_DATA))
            return r;
        if (!job->target.is_zero || job->target.takes_all) {
            job->zeros_from = piece->guest_offset;
            job->zeros_to = piece->guest_offset + piece->length;
        } else {
            work->done_bytes += piece->length;
        }
    }
    *piece = (struct vhdx_extent){.guest_offset = job->zeros_from,
                                  .length = min_u64(job->zeros_to, align_down(job->zeros_from, ZERO_PIECE_BYTES) + ZERO_PIECE_BYTES) -
                                            job->zeros_from,
                                  .flags = VHDX_EXTENT_ZERO};
    job->zeros_from += piece->length;
    return 1;
}

static int64_t copy_piece(struct copy_work *work, const struct copy_task *task, uint8_t *buffer)
{
    struct copy_job *job = (struct copy_job *)work;
    const struct vhdx_extent *piece = &task->extent;
    uint64_t offset = job->start + piece->guest_offset;
    int r = piece->flags & VHDX_EXTENT_DATA ? copy_target_piece(&job->target, job->disk, piece, offset, buffer)
                                            : copy_target_zero(&job->target, offset, piece->length);

    return r < 0 ? r : (int64_t)piece->length;
}

int copy_disk(struct vhdx_disk *disk, struct storage *file, uint64_t start, bool is_zero,
              const struct vhdx_copy_options *options)
{
    struct copy_job job = {.disk = disk, .start = start};
    int r = extent_cursor_init(&job.cursor, disk, 0, disk->size);

    if (r < 0)
        return r;
    copy_target_init(&job.target, file, is_zero, options);
    r = copy_work_run(&job.work, take_piece, copy_piece, options, disk->size);
    extent_cursor_done(&job.cursor);
    return r;
}

/* ---- to a file or device ---- */

/* Give the target its size, and find out whether it reads as zeros. */
static int prepare_target(struct storage *file, uint64_t size, bool *is_zero)
{
    struct stat st;
    uint64_t length;
    int r = storage_length(file, &length);

    if (r < 0)
        return r;
    if (fstat(file->fd, &st) < 0)
        return fail_errno("looking at the target");
    if (S_ISBLK(st.st_mode)) {
        if (length < size)
            return fail(-ENOSPC, "the target device has %" PRIu64 " bytes, the disk needs %" PRIu64, length, size);
        return 0;
    }
    if (!*is_zero && length > 0)
        r = storage_truncate(file, 0);
    *is_zero = true;
    if (r == 0)
        r = storage_truncate(file, size);
    return r;
}

/* Under whatever name it was opened. */
int copy_check_not_source(const struct vhdx_disk *disk, const struct storage *target)
{
    const struct layer *same = disk_find_layer(disk, &target->identity);

    return same ? fail(-EINVAL, "the target is the same file as %s, which is being copied", same->path) : 0;
}

/* The target, which nobody else uses, gets the disk; a regular file that does not get all of it ends up empty. */
static int copy_into_file(vhdx_disk *disk, struct storage *file, const struct vhdx_copy_options *o)
{
    struct error_text message;
    bool is_zero = o->target_is_zero;

    if (o->progress && o->progress(o->opaque, 0, disk->size) != 0)
        return fail(-ECANCELED, "cancelled before anything was copied");
    int r = copy_target_failed(o, prepare_target(file, disk->size, &is_zero));
    if (r == 0)
        r = copy_disk(disk, file, 0, is_zero, o);
    if (r < 0) {
        error_save(&message);
        storage_truncate(file, 0); /* a device cannot be cut */
        error_restore(&message);
    }
    return r;
}

static const struct vhdx_copy_options default_options = VHDX_COPY_OPTIONS_INIT;

int ops_copy_to_file(vhdx_disk *disk, int fd, const struct vhdx_copy_options *options)
{
    const struct vhdx_copy_options *o = options ? options : &default_options;
    struct storage *file;
    int r = copy_check_options(o);

    if (r < 0)
        return r;
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) == O_WRONLY)
        return fail(-EBADF, "the target's descriptor is not open for reading too, without which it cannot be locked");
    int own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0); /* the storage closes it; locks stay with fd */
    if (own_fd < 0)
        return fail_errno("cannot use file descriptor %d", fd);
    r = storage_posix_from_fd(own_fd, true, true, &file);
    if (r < 0)
        return r;
    r = copy_check_not_source(disk, file);
    if (r == 0)
        r = copy_target_failed(o, storage_lock(file, STORAGE_LOCK_EXCLUSIVE));
    if (r == 0)
        r = copy_target_failed(o, orphans_refuse_fd(file));
    if (r == 0)
        r = copy_into_file(disk, file, o);
    storage_close(file);
    return r;
}

/* ---- to a new file ---- */

int ops_copy_to_new_file(vhdx_disk *disk, const char *path, const struct vhdx_copy_options *options)
{
    const struct vhdx_copy_options *o = options ? options : &default_options;
    struct new_file f;
    int r = copy_check_options(o);

    if (r == 0)
        r = copy_target_failed(o, new_file_begin(&f, path, OLD_FILE_STAYS));
    if (r < 0)
        return r;
    bool is_zero = true;
    r = copy_target_failed(o, prepare_target(f.file, disk->size, &is_zero));
    if (r == 0)
        r = copy_disk(disk, f.file, 0, is_zero, o);
    if (r == 0)
        r = copy_target_failed(o, storage_flush(f.file));
    if (r == 0)
        r = copy_target_failed(o, new_file_publish(&f));
    new_file_end(&f);
    return r;
}
