/* SPDX-License-Identifier: MIT */
#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "output.h"
#include "signals.h"

static int fail_system(const char *path, const char *what)
{
    print_error(path, "%s: %s", what, strerror(errno));
    return -1;
}

/* ---- opening ---- */

static int open_stdout(struct target *target)
{
    if (isatty(STDOUT_FILENO)) {
        print_error(target->path,
                    "a raw disk is nothing for a terminal; redirect standard output to a file or pipe");
        return -1;
    }
    target->kind = TARGET_STREAM;
    target->fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    return target->fd < 0 ? fail_system(target->path, "standard output") : 0;
}

/* O_EXCL: fail if the system itself uses it.  Other programs are kept out by locks, which need reading, too. */
static int open_device(struct target *target)
{
    target->kind = TARGET_DEVICE;
    target->fd = open(target->path, O_RDWR | O_EXCL | O_CLOEXEC);
    if (target->fd >= 0)
        return 0;
    if (errno == EBUSY) {
        print_error(target->path, "the device is in use: mounted, or part of a volume; unmount it first");
        return -1;
    }
    return fail_system(target->path, "cannot open the device for reading and writing");
}

static int open_file(struct target *target, enum target_policy policy)
{
    if (policy == TARGET_CREATE) {
        print_error(target->path, "the file exists already; --force overwrites it, -n writes into it");
        return -1;
    }
    target->kind = TARGET_FILE;
    target->fd = open(target->path, O_RDWR | O_CLOEXEC | O_NOCTTY);
    return target->fd < 0 ? fail_system(target->path, "cannot open for reading and writing") : 0;
}

static int open_stream(struct target *target, mode_t type)
{
    if (!S_ISFIFO(type) && !S_ISCHR(type)) {
        print_error(target->path, S_ISDIR(type) ? "a directory; give the name of a file in it"
                                                : "no file, block device or pipe");
        return -1;
    }
    target->kind = TARGET_STREAM;
    target->fd = open(target->path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
    return target->fd < 0 ? fail_system(target->path, "cannot open for writing") : 0;
}

static int open_path(struct target *target, enum target_policy policy)
{
    struct stat st;

    if (stat(target->path, &st) == 0) {
        if (S_ISBLK(st.st_mode))
            return open_device(target);
        return S_ISREG(st.st_mode) ? open_file(target, policy) : open_stream(target, st.st_mode);
    }
    if (errno != ENOENT)
        return fail_system(target->path, "cannot look at it");
    if (lstat(target->path, &st) == 0) {
        print_error(target->path, "a link that leads nowhere; remove it first");
        return -1;
    }
    target->kind = TARGET_NEW;
    return 0;
}

/* ---- looking at what was opened ---- */

static bool is_same_file(const struct stat *a, const struct stat *b)
{
    if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
        return a->st_rdev == b->st_rdev;
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static int check_not_source(const char *path, const struct stat *st, vhdx_disk *source)
{
    for (uint32_t depth = 0; depth < vhdx_chain_length(source); depth++) {
        const char *source_path = vhdx_image_path(source, depth);
        struct stat source_st;

        if (stat(source_path, &source_st) == 0 && is_same_file(st, &source_st)) {
            print_error(path, depth == 0 ? "source and target are the same file (%s)" : "the target is a parent of the source (%s)",
                        source_path);
            return -1;
        }
    }
    return 0;
}

int target_check_not_source(const char *path, vhdx_disk *source)
{
    struct stat st;

    return stat(path, &st) < 0 ? 0 : check_not_source(path, &st, source); /* what is not there will be seen */
}

static int check_target(const struct target *target, vhdx_disk *source)
{
    struct stat st;

    if (fstat(target->fd, &st) < 0)
        return fail_system(target->path, "cannot look at it");
    return check_not_source(target->path, &st, source);
}

int target_open(struct target *target, const char *path, enum target_policy policy, vhdx_disk *source)
{
    *target = (struct target){.path = path, .fd = -1};
    if ((strcmp(path, "-") == 0 ? open_stdout(target) : open_path(target, policy)) < 0)
        return -1;
    if (target->kind != TARGET_NEW && check_target(target, source) < 0) {
        target_close(target);
        return -1;
    }
    return 0;
}

/* ---- copying ---- */

int target_copy(const struct target *target, vhdx_disk *source, const struct vhdx_copy_options *options)
{
    switch (target->kind) {
    case TARGET_NEW:
        return vhdx_copy_to_new_file(source, target->path, options);
    case TARGET_STREAM:
        return vhdx_copy_to_stream(source, target->fd, options);
    default:
        return vhdx_copy_to_file(source, target->fd, options);
    }
}

int target_sync(const struct target *target)
{
    /* A new file is durable when it gets its name; pipes and terminals have nothing that could be synced. */
    if (target->kind == TARGET_NEW || fsync(target->fd) == 0 || errno == EINVAL || errno == EROFS || errno == ENOTSUP)
        return 0;
    fail_system(target->path, "cannot make the copy durable");
    if (target->kind == TARGET_FILE && ftruncate(target->fd, 0) < 0)
        fail_system(target->path, "the copy cannot be removed from the file");
    return -1;
}

void target_close(struct target *target)
{
    signals_set_cleanup(-1);
    if (target->fd >= 0)
        close(target->fd);
    target->fd = -1;
}
