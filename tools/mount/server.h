/* SPDX-License-Identifier: MIT */
/* The process that serves a mount. */
#ifndef MOUNT_SERVER_H
#define MOUNT_SERVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "mount/partitions.h"
#include "mount/plan.h"
#include "mount/usage.h"

struct fuse_session;

/* A file that shows a range of the disk. */
struct shown_file {
    char name[16];
    uint64_t start, length; /* bytes */
};

enum { MAX_SHOWN_FILES = 1 + MAX_PARTITIONS };

struct server {
    const struct mount_plan *plan;
    vhdx_disk *disk;
    struct usage usage;
    uint32_t sector_bytes;
    struct fuse_session *session;
    dev_t fuse_device; /* of the FUSE mount; 0: not known */
    int status_fd;
    char *status_text;

    /* files[0 .. nr_files) never change once nr_files says that they are there. */
    struct shown_file files[MAX_SHOWN_FILES];
    _Atomic uint32_t nr_files;

    _Atomic int64_t changed_ns; /* when the disk was changed last, since the epoch */
    atomic_bool unflushed;      /* something was changed since the last flush began, or that is to be tried again */
    atomic_uint nr_reported;    /* failed requests that were reported */
    atomic_int nr_open;         /* open files */
    atomic_bool leave_when_unused;

    /* control.c */
    pthread_t main_thread, control_thread;
    int client_fd;
    int event_fd;     /* something of this happened: */
    atomic_bool over; /* the session loop has ended */
};

/* Open the image, mount, serve until the end, close.  client_fd: the socket to the client.  The exit status of the process;
 * everything has been reported. */
int server_run(const struct mount_plan *plan, int client_fd);

/* Is our FUSE mount still what is mounted on its folder?  It may have been detached, and others may have mounted there since. */
bool server_is_mounted(const struct server *server);

/* Can the kernel send requests still?  As long as anybody uses the mount it can. */
bool server_is_connected(const struct server *server);

/* As vhdx_flush().  After a failure that may pass it is tried again some time later (D10), if nobody does so before. */
int server_flush(struct server *server);

/* ---- control.c ---- */

/* Block the signals that the control thread handles; before any thread is started. */
void control_block_signals(void);

/* 0 or a negative errno. */
int control_start(struct server *server);

/* Wake the control thread; it looks what there is to do. */
void control_wake(struct server *server);

/* After the session loop has ended.  True: the mount had become ready. */
bool control_stop(struct server *server);

/* ---- requests.c ---- */

/* 0 or a negative errno; server->session is to be destroyed. */
int session_create(struct server *server);

#endif
