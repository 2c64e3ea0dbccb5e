/* SPDX-License-Identifier: MIT */
#include "by-name.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "disk/open-beneath.h"
#include "disk/open-within.h"
#include "require.h"
#include "storage/storage.h"

/* Should one of them be renamed or changed, this no longer compiles, rather than letting names reach the file
 * system. */
__typeof__(storage_posix_open) __wrap_storage_posix_open;
__typeof__(storage_posix_open_locked) __wrap_storage_posix_open_locked;
__typeof__(storage_posix_from_fd) __wrap_storage_posix_from_fd;
__typeof__(open_beneath) __wrap_open_beneath;
__typeof__(open_anywhere) __wrap_open_anywhere;
__typeof__(open_within) __wrap_open_within;

static struct fuzz_file *child_file, *parent_file;

void by_name_set(struct fuzz_file *child, struct fuzz_file *parent)
{
    child_file = child;
    parent_file = parent;
}

int __wrap_storage_posix_open(const char *path, unsigned flags, struct storage **s)
{
    *s = NULL;
    REQUIRE(strcmp(path, CHILD_PATH) == 0 && !(flags & POSIX_OPEN_WRITABLE), "%s is opened, flags %x", path,
            flags);
    *s = fuzz_file_open(child_file);
    return 0;
}

int __wrap_storage_posix_open_locked(const char *path, unsigned flags, enum storage_lock lock, struct storage **s)
{
    (void)lock;
    return __wrap_storage_posix_open(path, flags, s);
}

/* The descriptor is the one that open_beneath() gave out, opened anew. */
int __wrap_storage_posix_from_fd(int fd, bool writable, bool allow_device, struct storage **s)
{
    close(fd);
    REQUIRE(parent_file && !writable && !allow_device, "a parent is opened, writable %d", writable);
    *s = fuzz_file_open(parent_file);
    return 0;
}

/* Is this a path that may be looked up at all (format section 8.5)? */
static void require_harmless(const char *path)
{
    REQUIRE(path[0] != '\0' && strlen(path) < 4096, "path of %zu bytes", strlen(path));
    for (const char *p = path; *p; p++)
        REQUIRE((unsigned char)*p >= 0x20 && *p != 0x7f && *p != ':' && *p != '\\', "byte 0x%02x in a path",
                (unsigned char)*p);
}

/* Some file stands for the parent, so that the search can hold it in its hands; it is empty and never read.
 */
int __wrap_open_beneath(struct folder_names *names, const char *folder, const char *relative)
{
    static int stand_in = -1;

    (void)names;
    if (folder[0] != '\0') { /* a parent that lies below the child's folder has its own parent beside it */
        require_harmless(folder);
        REQUIRE(folder[0] != '/' && !strstr(folder, ".."), "parent looked for in %s", folder);
    }
    REQUIRE(relative[0] != '/', "absolute path %s", relative);
    require_harmless(relative);
    if (strncmp(relative, "..", 2) == 0)
        return -EXDEV;
    if (!parent_file)
        return -ENOENT;
    if (stand_in < 0)
        stand_in = memfd_create("parent", MFD_CLOEXEC);
    int fd = stand_in < 0 ? -1 : dup(stand_in);
    return fd < 0 ? -errno : fd;
}

int __wrap_open_anywhere(const char *folder, const char *path)
{
    (void)folder;
    require_harmless(path);
    return -ENOENT;
}

/* What leaves the child's folder leaves everything here, since nobody named another one. */
int __wrap_open_within(const struct allowed_roots *roots, const char *folder, const char *path)
{
    (void)roots;
    (void)folder;
    require_harmless(path);
    return -EXDEV;
}
