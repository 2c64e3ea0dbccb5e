/* SPDX-License-Identifier: MIT */
#include "ops/new-file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "ops/file-access.h"
#include "ops/orphans.h"
#include "storage/storage.h"

enum { PROC_PATH_BYTES = 32 };

/* ---- what is there ---- */

static int refuse_existing(const char *path, const struct stat *st, bool replace)
{
    struct stat target;

    if (S_ISDIR(st->st_mode))
        return fail(-EISDIR, "this is a folder; give the name of a file in it");
    if (!S_ISREG(st->st_mode) && !S_ISLNK(st->st_mode))
        return fail(-EINVAL, "there is a device, pipe or socket of this name; an image is a regular file");
    if (S_ISLNK(st->st_mode) && stat(path, &target) < 0 && errno == ENOENT)
        return fail(-EEXIST, "there is a link of this name that leads nowhere; remove it first");
    return replace ? 0 : fail(-EEXIST, "the file exists already; --force overwrites it");
}

/* Open and lock what is to be replaced, without changing it.  The folder's permissions are enough to replace it, but who may not
 * write a file is not expected to do away with its content. */
static int take_old(struct new_file *f, const char *path, enum new_file_old old)
{
    int r = storage_posix_open(path, old != OLD_FILE_IS_KEPT ? POSIX_OPEN_WRITABLE : 0, &f->old);

    if (old != OLD_FILE_IS_KEPT && (r == -EACCES || r == -EPERM || r == -EROFS))
        return fail(r, "you may not write the file that is there (%s), so it is not replaced", strerror(-r));
    return r < 0 ? r : storage_lock(f->old, STORAGE_LOCK_EXCLUSIVE);
}

/* Judge what path leads to; *real is the path to use, to be freed. */
static int look_at_target(struct new_file *f, const char *path, enum new_file_old old, char **real)
{
    bool replace = old != OLD_FILE_STAYS;
    struct stat st;
    int r = replace ? stat(path, &st) : lstat(path, &st);
    bool exists = r == 0;

    if (r < 0 && errno == ENOENT && replace && lstat(path, &st) == 0) {
        r = refuse_existing(path, &st, replace);
        return r < 0 ? r : fail(-EEXIST, "another program put a file there at this moment; try again");
    }
    if (r < 0 && errno != ENOENT)
        return fail_errno("cannot look at it");
    if (!exists && (old == OLD_FILE_IS_KEPT || old == OLD_FILE_DROPPED))
        return fail(-ENOENT, "another program took it away at this moment; try again");
    r = exists ? refuse_existing(path, &st, replace) : 0;
    if (r == 0) {
        *real = exists ? realpath(path, NULL) : strdup(path);
        r = *real ? 0 : fail_errno("cannot follow the path");
    }
    return r == 0 && exists ? take_old(f, *real, old) : r;
}

/* ---- begin ---- */

static int open_folder(struct new_file *f, const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    char *folder = slash == path ? strdup("/") : slash ? strndup(path, (size_t)(slash - path)) : strdup(".");

    if (!folder)
        return fail_memory("a path");
    int r = 0;
    if (*name == '\0')
        r = fail(-EISDIR, "this names a folder; give the name of a file in it");
    else if (strlen(name) > NAME_MAX)
        r = fail(-ENAMETOOLONG, "the name of the file is longer than %d bytes", NAME_MAX);
    else if ((f->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        r = fail_errno("cannot open the folder %s", folder);
    else
        memcpy(f->name, name, strlen(name) + 1);
    free(folder);
    return r;
}

static int choose_temporary(char temporary[NEW_FILE_TEMPORARY_BYTES])
{
    uint64_t random;

    if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
        return fail_errno("cannot make up a name: no random numbers");
    snprintf(temporary, NEW_FILE_TEMPORARY_BYTES, ".vhdx-%016" PRIx64 ".tmp", random);
    return 0;
}

bool new_file_is_temporary(const char *name)
{
    size_t digits = strncmp(name, ".vhdx-", 6) == 0 ? strspn(name + 6, "0123456789abcdef") : 0;

    return digits == 16 && strcmp(name + 6 + digits, ".tmp") == 0;
}

static void proc_path(int fd, char path[PROC_PATH_BYTES])
{
    snprintf(path, PROC_PATH_BYTES, "/proc/self/fd/%d", fd);
}

/* What replaces another file gets that one's permissions, and nobody may come before. */
static mode_t first_mode(const struct new_file *f)
{
    return f->old ? 0600 : 0666;
}

/* A file without a name, which /proc can give one later; -1: not here. */
static int open_unnamed(int folder, mode_t mode)
{
    char path[PROC_PATH_BYTES];
    int fd = openat(folder, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, mode);

    if (fd < 0)
        return -1;
    proc_path(fd, path);
    if (access(path, F_OK) == 0)
        return fd;
    close(fd);
    return -1;
}

static int open_new(struct new_file *f)
{
    int fd = open_unnamed(f->folder, first_mode(f));

    if (fd < 0) {
        int r = choose_temporary(f->temporary);
        if (r < 0)
            return r;
        fd = openat(f->folder, f->temporary, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, first_mode(f));
        if (fd < 0) {
            r = fail_errno("cannot create a file in its folder");
            f->temporary[0] = '\0';
            return r;
        }
    }
    return storage_posix_from_fd(fd, true, false, &f->file);
}

int new_file_begin(struct new_file *f, const char *path, enum new_file_old old)
{
    char *real = NULL;

    *f = (struct new_file){.folder = -1};
    int r = look_at_target(f, path, old, &real);
    if (r == 0 && f->old && old == OLD_FILE_GOES)
        r = orphans_refuse(f->old, real);
    if (r == 0)
        r = open_folder(f, real);
    if (r == 0)
        r = open_new(f);
    if (r == 0 && f->old)
        r = file_access_inherit(f->file->fd, f->old->fd);
    free(real);
    if (r < 0)
        new_file_end(f);
    return r;
}

/* ---- publish ---- */

static int name_taken(void)
{
    return fail(-EEXIST, "somebody else made a file of this name meanwhile, which was left alone");
}

/* Give the unnamed file a name that nothing has yet. */
static int link_unnamed(struct new_file *f, const char *name)
{
    char path[PROC_PATH_BYTES];

    proc_path(f->file->fd, path);
    if (linkat(AT_FDCWD, path, f->folder, name, AT_SYMLINK_FOLLOW) == 0)
        return 0;
    return errno == EEXIST ? name_taken() : fail_errno("cannot give the new file its name");
}

/* Not every file system knows RENAME_NOREPLACE (NFS does not); a link does the same in two steps. */
static int rename_to_free_name(struct new_file *f)
{
    int r = renameat2(f->folder, f->temporary, f->folder, f->name, RENAME_NOREPLACE);

    if (r < 0 && (errno == EINVAL || errno == ENOSYS)) {
        r = linkat(f->folder, f->temporary, f->folder, f->name, 0);
        if (r == 0)
            unlinkat(f->folder, f->temporary, 0);
    }
    if (r < 0)
        return errno == EEXIST ? name_taken() : fail_errno("cannot give the new file its name");
    f->temporary[0] = '\0';
    return 0;
}

static int rename_over_old(struct new_file *f)
{
    struct stat st;
    int r = 0;

    if (f->temporary[0] == '\0') {
        r = choose_temporary(f->temporary);
        if (r == 0)
            r = link_unnamed(f, f->temporary);
        if (r < 0) {
            f->temporary[0] = '\0';
            return r;
        }
    }
    /* Only what was looked at and locked may go. */
    if (fstatat(f->folder, f->name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !is_file_of(&st, &f->old->identity))
        return fail(-EEXIST, "somebody else replaced or removed the file meanwhile; nothing was overwritten");
    if (renameat(f->folder, f->temporary, f->folder, f->name) < 0)
        return fail_errno("cannot replace the old file");
    f->temporary[0] = '\0';
    return 0;
}

int new_file_publish(struct new_file *f)
{
    int r = f->old             ? rename_over_old(f)
            : f->temporary[0] ? rename_to_free_name(f)
                               : link_unnamed(f, f->name);

    if (r == 0 && fsync(f->folder) < 0 && errno != EINVAL && errno != ENOTSUP)
        return fail_errno("the image is complete, but a power failure may still undo its name");
    return r;
}

void new_file_end(struct new_file *f)
{
    struct error_text message;

    error_save(&message);
    if (f->temporary[0])
        unlinkat(f->folder, f->temporary, 0);
    storage_close(f->file);
    storage_close(f->old);
    if (f->folder >= 0)
        close(f->folder);
    error_restore(&message);
    *f = (struct new_file){.folder = -1};
}
