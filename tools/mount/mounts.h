/* SPDX-License-Identifier: MIT */
/* What is mounted where, and unmounting it. */
#ifndef MOUNT_MOUNTS_H
#define MOUNT_MOUNTS_H

#include <stdbool.h>
#include <sys/types.h>

#define FUSE_SUBTYPE "vhdx"
#define FUSE_TYPE "fuse." FUSE_SUBTYPE

/* Where --fs puts the folders of the FUSE mounts that it needs. */
#define RUNTIME_FOLDER "/run/vhdx"

struct mount_point {
    char *path, *type, *source;
    dev_t device; /* nobody else's as long as the mount, or a user of it, is there */
    uid_t owner;  /* of a FUSE mount: who made it */
    bool read_only;
};

/* What is mounted at path, the topmost if there are several.  1: found, to be freed; 0: nothing is; or a negative errno. */
int mount_point_find(const char *path, struct mount_point *found);
void mount_point_free(struct mount_point *point);

/* The absolute path of a folder that may be a mount point whose server has died.  To be freed; NULL: errno says why. */
char *mount_path(const char *path);

/* If device is a loop device, the path of its file (to be freed), else NULL. */
char *loop_backing_file(const char *device);

/* Is what is mounted at path a file system on a loop device on a file in folder? */
bool mount_lies_in(const char *path, const char *folder);

enum { UNMOUNT_TEXT_BYTES = 512 };

/* Unmount the FUSE mount at path, as root or through fusermount3.  lazy: let those who use it go on, but nobody else come.
 * 0, -EBUSY, or another negative errno; then why has the reason in words.  No path of the mount itself is looked at. */
int unmount_fuse(const char *path, bool lazy, char why[UNMOUNT_TEXT_BYTES]);

/* What may end the wait for a program: whenever something is to be read from fd, heard() reads it all and says whether it does.
 * So it is asked, too, when patience() ms have passed (-1: for ever) in which nothing was.
 * The program does not hear the signals that end programs then: a session that ends, or a terminal, sends them to everybody, and
 * whether its work is to be broken off is decided here. */
struct interruption {
    int fd;
    int (*patience)(const void *opaque);
    bool (*heard)(void *opaque);
    void *opaque;
};

/* Unmount the file system at path by umount(8), which writes out what it holds and may take long.  The same results; -EINTR: it
 * is not waited for any longer, as the interruption (NULL: there is none) says. */
int unmount_fs(const char *path, bool lazy, const struct interruption *interruption, char why[UNMOUNT_TEXT_BYTES]);

/* Run a program without input, found in the usual places.  Its exit status; or a negative errno.  error_fd: its stderr; -1: ours.
 */
int run_program(const char *const argv[], int error_fd);

#endif
