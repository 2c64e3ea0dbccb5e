/* SPDX-License-Identifier: MIT */
/* vhdx umount: end a mount, and wait until its image is closed. */
#include "cmd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mount/mounts.h"
#include "mount/status.h"
#include "output.h"

static struct {
    int lazy;
} settings;

static const struct option options[] = {
    {'l', "lazy", OPTION_FLAG, &settings.lazy, NULL, "detach DIR now, even if it is in use; do not wait"},
    {0},
};

/* How long a server may take before the user is told why nothing happens. */
enum { PATIENCE_MS = 3000 };

/* What there is to unmount. */
struct target {
    char *fs_dir;      /* NULL: only the FUSE mount was asked for */
    char *fuse_dir;
    bool read_only, alive;
    struct server_handle server;
};

static bool is_fuse_mount(const struct mount_point *point)
{
    return strcmp(point->type, FUSE_TYPE) == 0;
}

/* If point is a file system on a loop device on a file of a FUSE mount of ours, that mount.  1, 0, or a negative errno. */
static int find_mount_below(const struct mount_point *point, struct mount_point *below)
{
    char *file = loop_backing_file(point->source), *slash = file ? strrchr(file, '/') : NULL;
    int code = 0;

    if (slash && slash > file) {
        *slash = '\0';
        code = mount_point_find(file, below);
        if (code == 1 && !is_fuse_mount(below)) {
            mount_point_free(below);
            code = 0;
        }
    }
    free(file);
    return code;
}

/* 0; or -1, reported. */
static int find_target(const char *name, const char *path, struct target *target)
{
    struct mount_point point, below;
    int code = mount_point_find(path, &point);

    if (code <= 0) {
        print_error(name, "%s", code < 0 ? strerror(-code) : "nothing is mounted here");
        return -1;
    }
    if (is_fuse_mount(&point)) {
        below = point;
    } else {
        code = find_mount_below(&point, &below);
        if (code == 1)
            target->fs_dir = strdup(point.path);
        mount_point_free(&point);
        if (code <= 0) {
            print_error(name, "%s", code < 0 ? strerror(-code) : "what is mounted here is not by 'vhdx mount'; umount(8) ends it");
            return -1;
        }
    }
    target->fuse_dir = strdup(below.path);
    target->read_only = below.read_only;
    code = server_find(&target->server, below.path, below.owner);
    target->alive = code == 0;
    mount_point_free(&below);
    if (code < 0 && code != -ENOTCONN && code != -ECONNABORTED) {
        print_error(name, "the server of the mount cannot be found: %s; umount(8) or 'fusermount3 -u' ends the mount, without "
                          "waiting for it", strerror(-code));
        return -1;
    }
    if (target->fs_dir && target->alive && !target->server.ends_itself) {
        print_error(name, "what is mounted here was mounted by hand, from a file in %s: umount(8) it first, then 'vhdx umount %s'",
                    target->fuse_dir, target->fuse_dir);
        return -1;
    }
    return 0;
}

static int report_unmount(const char *name, const char *path, int code, const char *why)
{
    if (code == 0)
        return 0;
    if (code == -EBUSY)
        print_error(name, "%s is in use: some program has a file or folder in it open, or a loop device is on it (fuser -m %s, "
                          "losetup -l); --lazy detaches it all the same", path, path);
    else
        print_error(name, "%s cannot be unmounted: %s", path, why);
    return -1;
}

/* 0; or -1, reported: then all is as before. */
static int unmount_target(const char *name, const struct target *target)
{
    char why[UNMOUNT_TEXT_BYTES];

    if (target->fs_dir) {
        int code = unmount_fs(target->fs_dir, settings.lazy, NULL, why);
        if (report_unmount(name, target->fs_dir, code, why) < 0)
            return -1;
        if (target->alive) /* the end of the loop device ends it */
            return 0;
    }
    /* Nobody can use what a dead server left, so a user's hold on it is no reason to keep it. */
    bool lazy = settings.lazy || !target->alive;
    int code = unmount_fuse(target->fuse_dir, lazy, why);
    return report_unmount(name, target->fuse_dir, code, why);
}

/* The exit status. */
static int await_server(const char *name, const struct target *target)
{
    char message[1024];

    if (!server_wait(&target->server, PATIENCE_MS)) {
        print_warning(name, "unmounted; the image is still being written, or a file of the mount in use: waiting (Ctrl-C stops the "
                            "waiting only)");
        while (!server_wait(&target->server, -1))
            continue;
    }
    if (server_result(&target->server, message, sizeof message))
        return EXIT_OK;
    print_error(target->server.image, "%s", message);
    return EXIT_TROUBLE;
}

static int end_target(const char *name, const struct target *target)
{
    if (unmount_target(name, target) < 0)
        return EXIT_TROUBLE;
    if (target->alive)
        return settings.lazy ? EXIT_OK : await_server(name, target);
    if (strncmp(target->fuse_dir, RUNTIME_FOLDER "/", strlen(RUNTIME_FOLDER "/")) == 0)
        rmdir(target->fuse_dir);
    if (target->read_only)
        return EXIT_OK;
    print_error(name, "unmounted, but the server had died before: what was flushed is safe and comes back from the image's log, "
                      "later writes may be lost");
    return EXIT_TROUBLE;
}

static int run(char **arguments)
{
    const char *name = arguments[0];
    struct target target = {.server = {.process_fd = -1, .result_fd = -1}};
    char *path = mount_path(name);
    int status = EXIT_TROUBLE;

    if (!path)
        print_error(name, "%s", strerror(errno));
    else if (find_target(name, path, &target) == 0)
        status = end_target(name, &target);
    server_forget(&target.server);
    free(target.fuse_dir);
    free(target.fs_dir);
    free(path);
    return status;
}

const struct command command_umount = {
    .name = "umount",
    .arguments = "DIR",
    .summary = "end a mount and wait until its image is closed",
    .description = "Unmount what 'vhdx mount' has mounted on DIR.  When this returns with success, everything\n"
                   "is durable and the image clean and unlocked.",
    .tables = {options},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
