/* SPDX-License-Identifier: MIT */
/* Regular files and block devices.
 *
 * Capabilities are not asked for but tried: the first "not supported" switches a fast path off for good. */
#include "storage/posix.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/math.h"
#include "vhdx.h"

/* Linux moves no more than this in one call, whatever the architecture (2 GiB minus a page). */
#define TRANSFER_MAX ((size_t)0x7ffff000)

/* struct storage_identity.device of block devices, whose inode is then the device number: two nodes in
 * different places may be one device.  No file system has this number. */
#define DEVICE_IDENTITY (UINT64_MAX - 1)

/* ---- transfers ---- */

/* How far a transfer in several system calls has come. */
struct cursor {
    const struct iovec *iov; /* the first buffer that is not done */
    int nr_iov;
    size_t skip; /* bytes of it that are done */
};

/* Fill batch for the next system call and return how many buffers it has; 0: all is done.  Empty buffers are
 * left out, because a call with nothing to move returns 0 as at the end of the file. */
static int cursor_batch(const struct cursor *c, struct iovec batch[IOV_MAX])
{
    size_t total = 0, skip = c->skip;
    int nr = 0;

    for (int i = 0; i < c->nr_iov && nr < IOV_MAX && total < TRANSFER_MAX; i++) {
        size_t bytes = (size_t)min_u64(c->iov[i].iov_len - skip, TRANSFER_MAX - total);

        if (bytes > 0)
            batch[nr++] = (struct iovec){(uint8_t *)c->iov[i].iov_base + skip, bytes};
        total += bytes;
        skip = 0;
    }
    return nr;
}

static void cursor_advance(struct cursor *c, size_t bytes)
{
    bytes += c->skip;
    while (c->nr_iov > 0 && bytes >= c->iov->iov_len) {
        bytes -= c->iov->iov_len;
        c->iov++;
        c->nr_iov--;
    }
    c->skip = bytes;
}

/* All but the first *got bytes, which are there already. */
static int preadv_in_batches(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset,
                             size_t *got)
{
    struct cursor c = {iov, nr_iov, 0};
    struct iovec batch[IOV_MAX];
    int nr;

    cursor_advance(&c, *got);
    while ((nr = cursor_batch(&c, batch)) > 0) {
        ssize_t n = preadv(s->fd, batch, nr, (off_t)(offset + *got));

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno("cannot read at file offset 0x%" PRIx64, offset + *got);
        if (n == 0)
            break;
        *got += (size_t)n;
        cursor_advance(&c, (size_t)n);
    }
    return 0;
}

static int posix_preadv(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset, size_t *got)
{
    *got = 0;
    if (nr_iov == 1) { /* the hot path (S1): pread is cheaper than preadv, and hardly ever short */
        ssize_t n = pread(s->fd, iov->iov_base, iov->iov_len, (off_t)offset);

        if (n > 0)
            *got = (size_t)n;
        if (*got == iov->iov_len)
            return 0;
    }
    return preadv_in_batches(s, iov, nr_iov, offset, got);
}

/* n <= 0 is what writing at offset gave. */
static int write_error(ssize_t n, uint64_t offset)
{
    if (n == 0)
        errno = EIO; /* never with something to write; going on could go on for ever */
    return fail_errno("cannot write at file offset 0x%" PRIx64, offset);
}

/* All but the first done bytes, which are there already. */
static int pwritev_in_batches(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset, size_t done)
{
    struct cursor c = {iov, nr_iov, 0};
    struct iovec batch[IOV_MAX];
    int nr;

    cursor_advance(&c, done);
    offset += done;
    while ((nr = cursor_batch(&c, batch)) > 0) {
        ssize_t n = pwritev(s->fd, batch, nr, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return write_error(n, offset);
        offset += (size_t)n;
        cursor_advance(&c, (size_t)n);
    }
    return 0;
}

static int posix_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset)
{
    ssize_t n = 0;

    if (nr_iov == 1 && iov->iov_len > 0) { /* as in posix_preadv() */
        n = pwrite(s->fd, iov->iov_base, iov->iov_len, (off_t)offset);
        if (n == (ssize_t)iov->iov_len)
            return 0;
        if (n == 0 || (n < 0 && errno != EINTR))
            return write_error(n, offset);
    }
    return pwritev_in_batches(s, iov, nr_iov, offset, n > 0 ? (size_t)n : 0);
}

/* A failed fdatasync may have thrown the data away and reports that to one caller only, so the first failure
 * stands for ever (D9).  That is also why flushes run one at a time: of two at once the other one could see
 * success.  EINTR is no exception, it can hide an error that was reported together with it. */
static int posix_flush(struct storage *s)
{
    struct posix *p = posix_of(s);
    int r = 0;

    pthread_mutex_lock(&p->flush_mutex);
    if (p->flush_error) {
        errno = p->flush_error;
        r = fail_errno("cannot flush: an earlier flush failed, what was written since may be lost");
    } else if (fdatasync(s->fd) < 0) {
        p->flush_error = errno;
        r = fail_errno("cannot flush, what was written may be lost");
    }
    pthread_mutex_unlock(&p->flush_mutex);
    return r;
}

/* ---- lengths ---- */

static int posix_length(struct storage *s, uint64_t *bytes)
{
    struct stat st;

    if (posix_of(s)->is_device) {
        if (ioctl(s->fd, BLKGETSIZE64, bytes) < 0)
            return fail_errno("cannot find out the size of the block device");
        return 0;
    }
    if (fstat(s->fd, &st) < 0)
        return fail_errno("cannot find out the length of the file");
    *bytes = (uint64_t)st.st_size;
    return 0;
}

static int posix_usage(struct storage *s, uint64_t *bytes)
{
    struct stat st;

    if (fstat(s->fd, &st) < 0)
        return fail_errno("cannot find out the disk usage of the file");
    *bytes = (uint64_t)st.st_blocks * 512; /* the unit of st_blocks, whatever the file system's blocks */
    return 0;
}

/* The process may have a limit, too (setrlimit(2)), which is not the file system's fault. */
static int too_large(uint64_t bytes)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur)
        return fail(-EFBIG, "a file of %" PRIu64 " bytes is beyond the limit of %" PRIu64 " bytes that was set for this process (ulimit -f): "
                    "File too large", bytes, (uint64_t)limit.rlim_cur);
    return fail(-EFBIG, "the file system cannot hold a file of %" PRIu64 " bytes (File too large); XFS, Btrfs and tmpfs can", bytes);
}

static int posix_truncate(struct storage *s, uint64_t bytes)
{
    int r;

    if (posix_of(s)->is_device)
        return fail(-ENOTSUP, "cannot set the length to %" PRIu64 " bytes: a block device keeps its size",
                    bytes);
    do
        r = ftruncate(s->fd, (off_t)bytes);
    while (r < 0 && errno == EINTR);
    if (r < 0 && errno == EFBIG)
        return too_large(bytes);
    if (r < 0)
        return fail_errno("cannot set the length of the file to %" PRIu64 " bytes", bytes);
    return 0;
}

/* ---- zeros and holes ---- */

static bool not_supported(int error)
{
    return error == EOPNOTSUPP || error == ENOTSUP || error == ENOSYS || error == ENOTTY;
}

static int cannot(const char *what, uint64_t offset, uint64_t bytes)
{
    return fail(-ENOTSUP, "cannot %s %" PRIu64 " bytes at file offset 0x%" PRIx64 ": not supported here",
                what, bytes, offset);
}

/* On block devices, too, both modes promise zeros, unlike BLKDISCARD.  Devices take whole sectors only and
 * say EINVAL to others, which is an answer for this range alone. */
static int allocate(struct storage *s, int mode, atomic_bool *known_bad, const char *what, uint64_t offset,
                    uint64_t bytes)
{
    int r;

    if (atomic_load_explicit(known_bad, memory_order_relaxed))
        return cannot(what, offset, bytes);
    do
        r = fallocate(s->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        return 0;
    if (not_supported(errno))
        atomic_store_explicit(known_bad, true, memory_order_relaxed);
    if (not_supported(errno) || errno == EINVAL)
        return cannot(what, offset, bytes);
    return fail_errno("cannot %s %" PRIu64 " bytes at file offset 0x%" PRIx64, what, bytes, offset);
}

static int posix_punch(struct storage *s, uint64_t offset, uint64_t bytes)
{
    return allocate(s, FALLOC_FL_PUNCH_HOLE, &posix_of(s)->cannot_punch, "punch", offset, bytes);
}

static int posix_zero(struct storage *s, uint64_t offset, uint64_t bytes)
{
    return allocate(s, FALLOC_FL_ZERO_RANGE, &posix_of(s)->cannot_zero, "zero", offset, bytes);
}

/* Where the file system cannot promise space there is none to promise: block devices have it, others take their chance. */
static int posix_reserve(struct storage *s, uint64_t offset, uint64_t bytes)
{
    struct posix *p = posix_of(s);
    int r = p->is_device ? 0 : allocate(s, 0, &p->cannot_reserve, "reserve", offset, bytes);

    return r == -ENOTSUP ? 0 : r;
}

/* lseek that gives length where there is nothing more of what it looks for. */
static int seek(struct storage *s, int whence, uint64_t offset, uint64_t length, uint64_t *found)
{
    off_t at = lseek(s->fd, (off_t)offset, whence);

    if (at >= 0)
        *found = max_u64(min_u64((uint64_t)at, length), offset);
    else if (errno == ENXIO)
        *found = length;
    else if (not_supported(errno) || errno == EINVAL)
        return -ENOTSUP;
    else
        return fail_errno("cannot look for data from file offset 0x%" PRIx64 " on", offset);
    return 0;
}

static int posix_next_data(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end)
{
    atomic_bool *known_bad = &posix_of(s)->cannot_seek_data;
    uint64_t length;
    int r = posix_length(s, &length);

    if (r < 0)
        return r;
    *start = min_u64(offset, length);
    *end = length;
    if (offset >= length || atomic_load_explicit(known_bad, memory_order_relaxed))
        return 0;
    r = seek(s, SEEK_DATA, offset, length, start);
    if (r == 0 && *start < length)
        r = seek(s, SEEK_HOLE, *start, length, end);
    if (r == -ENOTSUP) {
        atomic_store_explicit(known_bad, true, memory_order_relaxed);
        *start = offset;
        *end = length;
        r = 0;
    }
    /* The file system gave an empty range or the file changed meanwhile: all of the rest may be data. */
    if (r == 0 && *start == *end && *start < length)
        *end = length;
    return r;
}

/* ---- opening and closing ---- */

static void posix_close(struct storage *s)
{
    struct posix *p = posix_of(s);

    close(s->fd); /* gone whatever it says: after EINTR the number may be somebody else's already */
    pthread_mutex_destroy(&p->flush_mutex);
    pthread_mutex_destroy(&p->lock_mutex);
    free(p);
}

static const struct storage_ops posix_ops = {
    .name = "posix",
    .preadv = posix_preadv,
    .pwritev = posix_pwritev,
    .flush = posix_flush,
    .length = posix_length,
    .truncate = posix_truncate,
    .punch = posix_punch,
    .reserve = posix_reserve,
    .zero = posix_zero,
    .next_data = posix_next_data,
    .usage = posix_usage,
    .lock = posix_lock,
    .close = posix_close,
};

static int check_type(const struct stat *st, bool allow_device)
{
    if (S_ISREG(st->st_mode) || (S_ISBLK(st->st_mode) && allow_device))
        return 0;
    if (S_ISDIR(st->st_mode))
        return fail(-EISDIR, "this is a folder, an image is a file");
    if (S_ISBLK(st->st_mode))
        return fail(-EINVAL, "this is a block device, here only a regular file will do");
    return fail(-EINVAL, "this is a %s, not a regular file%s",
                S_ISFIFO(st->st_mode)   ? "FIFO"
                : S_ISSOCK(st->st_mode) ? "socket"
                : S_ISCHR(st->st_mode)  ? "character device"
                                        : "special file",
                allow_device ? " or block device" : "");
}

static int check_access(int flags, bool writable)
{
    int mode = flags & O_ACCMODE;

    if (mode == (writable ? O_RDONLY : O_WRONLY))
        return fail(-EBADF, "the descriptor is not open for %s", writable ? "writing" : "reading");
    if (writable && flags & O_APPEND) /* pwrite would append, whatever offset it is given */
        return fail(-EINVAL,
                    "the descriptor is open for appending, open it without O_APPEND (\">>\" in a shell)");
    return 0;
}

/* Everything that can go wrong with a descriptor, and what is to be known about its file. */
static int inspect(int fd, bool writable, bool allow_device, struct stat *st)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fstat(fd, st) < 0)
        return fail_errno("cannot use file descriptor %d", fd);

    int r = check_type(st, allow_device);
    return r < 0 ? r : check_access(flags, writable);
}

int storage_posix_from_fd(int fd, bool writable, bool allow_device, struct storage **s)
{
    struct stat st;
    int r = inspect(fd, writable, allow_device, &st);
    struct posix *p = r == 0 ? calloc(1, sizeof *p) : NULL;

    *s = NULL;
    if (!p) {
        if (fd >= 0)
            close(fd);
        return r < 0 ? r : fail_memory("an open file");
    }
    p->is_device = S_ISBLK(st.st_mode);
    p->base = (struct storage){
        .ops = &posix_ops,
        .identity.device = p->is_device ? DEVICE_IDENTITY : st.st_dev,
        .identity.inode = p->is_device ? st.st_rdev : st.st_ino,
        .writable = writable,
        .fd = fd,
    };
    pthread_mutex_init(&p->flush_mutex, NULL);
    pthread_mutex_init(&p->lock_mutex, NULL);
    *s = &p->base;
    return 0;
}

static int open_failed(const char *path, bool writable)
{
    int saved = errno;
    struct stat st;
    int r;

    /* What open says about sockets (ENXIO) and folders opened for writing depends on the kernel; the type
     * does not. */
    if ((saved == ENXIO || saved == EISDIR) && stat(path, &st) == 0 && (r = check_type(&st, true)) < 0)
        return r;
    bool for_writing = writable && (saved == EACCES || saved == EPERM || saved == EROFS) && faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) == 0;
    errno = saved;
    return fail_errno(for_writing ? "cannot open for writing" : "cannot open");
}

int storage_posix_open(const char *path, unsigned flags, struct storage **s)
{
    bool writable = flags & POSIX_OPEN_WRITABLE;
    int fd, status;

    *s = NULL;
    do /* O_NONBLOCK: opening a FIFO would wait for its other end */
        fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return open_failed(path, writable);

    int r = storage_posix_from_fd(fd, writable, true, s);
    if (r < 0)
        return r;
    status = fcntl(fd, F_GETFL);
    if (status < 0 || fcntl(fd, F_SETFL, status & ~O_NONBLOCK) < 0) {
        r = fail_errno("cannot set up the open file");
        storage_close(*s);
        *s = NULL;
    }
    return r;
}

/* Is it (still) what path leads to? */
static bool is_at(const struct storage *s, const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return false;
    if (S_ISBLK(st.st_mode))
        return s->identity.device == DEVICE_IDENTITY && s->identity.inode == st.st_rdev;
    return is_file_of(&st, &s->identity);
}

int storage_posix_open_locked(const char *path, unsigned flags, enum storage_lock lock, struct storage **s)
{
    enum { MAX_TRIES = 16 };

    for (unsigned n = 0; n < MAX_TRIES; n++) {
        int r = storage_posix_open(path, flags, s);
        if (r == 0)
            r = storage_lock(*s, lock);
        if (r == 0 && (lock == STORAGE_LOCK_NONE || is_at(*s, path)))
            return 0;
        storage_close(*s);
        *s = NULL;
        if (r < 0)
            return r;
    }
    return fail(VHDX_E_LOCKED, "another program puts one file after the other in its place; try again when it is done");
}
