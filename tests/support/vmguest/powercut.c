/* SPDX-License-Identifier: MIT */
/* Preloaded into a server: writes down every change of one file and every flush of it, for powercut.py, which makes from
 * that what the file could be after a power cut.  VHDX_POWERCUT_IMAGE names the file, VHDX_POWERCUT_LOG where to write.
 *
 * SIGKILL takes away what a process has in memory, never what it has given to the kernel: without this a server that
 * forgets to flush would look as good as one that does not.
 *
 * One record for each step: five little-endian words, kind, offset, bytes, fallocate's mode, and for a flush the number of
 * steps that had returned when it began, then a write's data.  Changes run one at a time, so that their order is true. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#pragma GCC visibility push(default) /* what the server is to find here in place of libc's */

enum kind { STEP_WRITE = 1, STEP_TRUNCATE, STEP_FALLOCATE, STEP_FLUSH };

static ssize_t (*real_pwritev)(int, const struct iovec *, int, off64_t);
static int (*real_fallocate)(int, int, off64_t, off64_t);
static int (*real_ftruncate)(int, off64_t);
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct stat image;
static uint64_t nr_steps;
static int log_fd = -1;

__attribute__((noreturn)) static void die(const char *what)
{
    fprintf(stderr, "powercut: %s: %m\n", what);
    abort();
}

static void *symbol(const char *name)
{
    void *function = dlsym(RTLD_NEXT, name);

    if (!function)
        die(name);
    return function;
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("VHDX_POWERCUT_IMAGE"), *log_path = getenv("VHDX_POWERCUT_LOG");

    real_pwritev = (ssize_t (*)(int, const struct iovec *, int, off64_t))symbol("pwritev64");
    real_fallocate = (int (*)(int, int, off64_t, off64_t))symbol("fallocate64");
    real_ftruncate = (int (*)(int, off64_t))symbol("ftruncate64");
    real_fdatasync = (int (*)(int))symbol("fdatasync");
    real_fsync = (int (*)(int))symbol("fsync");
    if (!path || !log_path)
        return;
    if (stat(path, &image) < 0)
        die(path);
    log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        die(log_path);
}

static int is_image(int fd)
{
    struct stat st;

    return log_fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == image.st_dev && st.st_ino == image.st_ino;
}

static void put(const void *data, size_t bytes)
{
    for (const char *p = data; bytes > 0;) {
        ssize_t n = write(log_fd, p, bytes);

        if (n <= 0)
            die("cannot write the log");
        p += n;
        bytes -= (size_t)n;
    }
}

static void put_step(enum kind kind, off64_t offset, uint64_t bytes, int mode, uint64_t covers)
{
    uint64_t words[5] = {kind, (uint64_t)offset, bytes, (uint64_t)mode, covers};

    put(words, sizeof words);
    nr_steps++;
}

ssize_t pwritev64(int fd, const struct iovec *iov, int nr_iov, off64_t offset)
{
    if (!is_image(fd))
        return real_pwritev(fd, iov, nr_iov, offset);
    pthread_mutex_lock(&mutex);
    ssize_t n = real_pwritev(fd, iov, nr_iov, offset);
    int error = errno;
    if (n > 0) {
        size_t left = (size_t)n;

        put_step(STEP_WRITE, offset, left, 0, 0);
        for (int i = 0; left > 0; i++) {
            size_t piece = iov[i].iov_len < left ? iov[i].iov_len : left;

            put(iov[i].iov_base, piece);
            left -= piece;
        }
    }
    pthread_mutex_unlock(&mutex);
    errno = error;
    return n;
}

int fallocate64(int fd, int mode, off64_t offset, off64_t bytes)
{
    if (!is_image(fd))
        return real_fallocate(fd, mode, offset, bytes);
    pthread_mutex_lock(&mutex);
    int r = real_fallocate(fd, mode, offset, bytes), error = errno;
    if (r == 0)
        put_step(STEP_FALLOCATE, offset, (uint64_t)bytes, mode, 0);
    pthread_mutex_unlock(&mutex);
    errno = error;
    return r;
}

int ftruncate64(int fd, off64_t bytes)
{
    if (!is_image(fd))
        return real_ftruncate(fd, bytes);
    pthread_mutex_lock(&mutex);
    int r = real_ftruncate(fd, bytes), error = errno;
    if (r == 0)
        put_step(STEP_TRUNCATE, bytes, 0, 0, 0);
    pthread_mutex_unlock(&mutex);
    errno = error;
    return r;
}

static int flush(int fd, int (*real)(int))
{
    if (!is_image(fd))
        return real(fd);
    pthread_mutex_lock(&mutex);
    uint64_t covers = nr_steps;
    pthread_mutex_unlock(&mutex);

    int r = real(fd), error = errno;
    if (r == 0) {
        pthread_mutex_lock(&mutex);
        put_step(STEP_FLUSH, 0, 0, 0, covers);
        pthread_mutex_unlock(&mutex);
    }
    errno = error;
    return r;
}

int fdatasync(int fd)
{
    return flush(fd, real_fdatasync);
}

int fsync(int fd)
{
    return flush(fd, real_fsync);
}

/* Not used on images.  If that changes, this must not go on as if it knew everything. */
ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
    struct iovec iov = {(void *)data, bytes};

    return pwritev64(fd, &iov, 1, offset);
}

ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t bytes, unsigned flags)
{
    (void)from, (void)from_offset, (void)to, (void)to_offset, (void)bytes, (void)flags;
    errno = EOPNOTSUPP; /* callers then read and write */
    return -1;
}
