/* SPDX-License-Identifier: MIT */
#include "disk/open-beneath.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "disk/folder-names.h"

static int call_openat2(int dir, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
    int fd;

    do /* EAGAIN: something was renamed while the kernel looked for ".." */
        fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
    while (fd < 0 && (errno == EINTR || errno == EAGAIN));
    return fd < 0 ? -errno : fd;
}

/* A handle on name in the folder at.  -EXDEV: it is a link. */
static int step(int at, const char *name)
{
    struct stat st;
    int fd = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC); /* with O_PATH a link itself is opened */
    int r = fd < 0 || fstat(fd, &st) < 0 ? -errno : S_ISLNK(st.st_mode) ? -EXDEV : 0;

    if (r < 0 && fd >= 0)
        close(fd);
    return r < 0 ? r : fd;
}

/* Kernels before 5.6 and some sandboxes have no openat2: go name by name, following no link and no "..". */
static int walk(int dir, const char *path, int flags)
{
    char name[NAME_MAX + 1];
    int at = step(dir, ".");

    while (at >= 0 && *path) {
        size_t n = strcspn(path, "/");
        int next = -ENAMETOOLONG;
        if (n <= NAME_MAX) {
            memcpy(name, path, n);
            name[n] = '\0';
            next = strcmp(name, "..") == 0 ? -EXDEV : step(at, name);
        }
        close(at);
        at = next;
        path += n + (path[n] == '/');
    }
    if (at >= 0 && flags != O_PATH) { /* a folder to be listed */
        int fd = openat(at, ".", flags | O_CLOEXEC);
        int saved = errno;
        close(at);
        at = fd < 0 ? -saved : fd;
    }
    return at;
}

static int openat_beneath(int dir, const char *path, int flags)
{
    int fd = call_openat2(dir, path, (uint64_t)flags, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS);

    if (fd == -ENOSYS || fd == -EPERM)
        fd = walk(dir, path, flags);
    return fd;
}

static int match_case(struct folder_names *names, int dir, const char *folder, char name[NAME_MAX + 1])
{
    int fd = openat_beneath(dir, *folder ? folder : ".", O_RDONLY | O_DIRECTORY);
    return fd < 0 ? -ENOENT : folder_names_match(names, fd, name);
}

/* Windows does not care about case (8.5 rule 9): rebuild path name by name as the file system spells it. */
static int openat_any_case(struct folder_names *names, int dir, const char *path)
{
    char spelled[PATH_MAX] = "", name[NAME_MAX + 1];

    while (*path) {
        size_t n = strcspn(path, "/"), length = strlen(spelled);
        if (n > NAME_MAX)
            return -ENAMETOOLONG;
        memcpy(name, path, n);
        name[n] = '\0';
        char with_name[PATH_MAX + NAME_MAX + 2];
        snprintf(with_name, sizeof with_name, "%s%s%s", spelled, length > 0 ? "/" : "", name);
        int fd = openat_beneath(dir, with_name, O_PATH);
        int r = fd == -ENOENT ? match_case(names, dir, spelled, name) : fd;
        if (fd >= 0)
            close(fd);
        if (r < 0)
            return r;
        snprintf(with_name, sizeof with_name, "%s%s%s", spelled, length > 0 ? "/" : "", name);
        if (strlen(with_name) >= sizeof spelled)
            return -ENAMETOOLONG;
        memcpy(spelled, with_name, strlen(with_name) + 1);
        path += n + (path[n] == '/');
    }
    return openat_beneath(dir, spelled, O_PATH);
}

static int open_folder(const char *folder)
{
    int dir = open(*folder ? folder : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return dir < 0 ? -errno : dir;
}

int open_beneath(struct folder_names *names, const char *folder, const char *relative)
{
    int dir = open_folder(folder);

    if (dir < 0)
        return dir;
    int fd = openat_beneath(dir, relative, O_PATH);
    if (fd == -ENOENT)
        fd = openat_any_case(names, dir, relative);
    close(dir);
    return fd;
}

int open_anywhere(const char *folder, const char *path)
{
    int dir = open_folder(folder);

    if (dir < 0)
        return dir;
    int fd = call_openat2(dir, path, O_PATH, RESOLVE_NO_MAGICLINKS);
    if (fd == -ENOSYS || fd == -EPERM) {
        fd = openat(dir, path, O_PATH | O_CLOEXEC);
        fd = fd < 0 ? -errno : fd;
    }
    close(dir);
    return fd;
}

int open_regular(int handle)
{
    char link[64];
    struct stat st;

    if (fstat(handle, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    int fd = open(link, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* the very file that was judged */
    return fd < 0 ? -errno : fd;
}
