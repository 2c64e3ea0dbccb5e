/* SPDX-License-Identifier: MIT */
/* How "vhdx umount" finds the server of a mount and learns what became of the image.
 *
 * The folder of a mount has a file that it does not list, STATUS_FILE.  It names the server's process and a descriptor of that
 * process: a file in memory, into which the server writes its last word when the image is closed.  Whoever opens that file (by
 * /proc) before the unmount can wait for the process to end and then read it.  Nothing of this stays behind, wherever either
 * side is killed, and nobody else can pretend to be the server. */
#ifndef MOUNT_STATUS_H
#define MOUNT_STATUS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define STATUS_FILE ".vhdx-mount"

/* ---- the server's side ---- */

/* The descriptor for the last word, or a negative errno. */
int status_create(void);

/* What STATUS_FILE contains, to be freed; NULL: no memory.  fs_dir: as in struct mount_plan. */
char *status_describe(int status_fd, const char *image, const char *fs_dir);

/* The image is closed; error: what went wrong, NULL for nothing. */
void status_finish(int status_fd, const char *error);

/* ---- the side of umount ---- */

struct server_handle {
    int process_fd, result_fd;
    bool ends_itself; /* as soon as the file system inside is unmounted */
    char image[4096];
};

/* Find the server of the mount at fuse_dir, which belongs to the user owner.  0; -ENOTCONN: it has died; -ENOENT: no mount of
 * ours; or another negative errno. */
int server_find(struct server_handle *server, const char *fuse_dir, uid_t owner);
void server_forget(struct server_handle *server);

/* Wait until it has ended, or a signal arrives, or timeout_ms have passed (-1: never).  True: it has. */
bool server_wait(const struct server_handle *server, int timeout_ms);

/* After it has ended.  True: the image was closed as it should be; else message says what is known. */
bool server_result(const struct server_handle *server, char *message, size_t message_bytes);

#endif
