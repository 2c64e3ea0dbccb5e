/* SPDX-License-Identifier: MIT */
#define FUSE_USE_VERSION 312

#include "mount/server.h"

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <syslog.h>
#include <unistd.h>

#include "cmd.h"
#include "mount/mounts.h"
#include "mount/report.h"
#include "mount/status.h"
#include "output.h"

/* Each waits for one request's I/O at a time. */
enum { MAX_THREADS = 32 };

/* libfuse says some things in pieces. */
static void report_libfuse(enum fuse_log_level level, const char *format, va_list args)
{
    static _Thread_local char text[1024];
    size_t used = strlen(text);

    if (level > FUSE_LOG_WARNING)
        return;
    vsnprintf(text + used, sizeof text - used, format, args);
    char *end = strchr(text, '\n');
    if (!end && strlen(text) < sizeof text - 1)
        return;
    if (end)
        *end = '\0';
    report(level <= FUSE_LOG_ERR ? LOG_ERR : LOG_WARNING, NULL, "%s", strncmp(text, "fuse: ", 6) == 0 ? text + 6 : text);
    text[0] = '\0';
}

static int open_disk(struct server *server)
{
    const struct mount_plan *plan = server->plan;
    struct vhdx_info info = {.struct_bytes = sizeof info};
    struct stat st;
    int code = vhdx_open(plan->image, plan->open_options, &server->disk);

    if (code < 0) {
        char *message = strdup(library_message(code));
        print_open_error(plan->image, SOURCE_VHDX, code, message);
        free(message);
        return code;
    }
    code = vhdx_get_info(server->disk, 0, &info);
    if (code == 0)
        code = usage_init(&server->usage, server->disk);
    if (code < 0) {
        print_library_error(plan->image, code);
        return code;
    }
    server->sector_bytes = info.logical_sector_size;
    server->files[0] = (struct shown_file){.name = "disk", .length = vhdx_size(server->disk)};
    server->nr_files = 1;
    if (stat(plan->image, &st) == 0)
        server->changed_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    return 0;
}

static int create_status(struct server *server)
{
    server->status_fd = status_create();
    if (server->status_fd >= 0)
        server->status_text = status_describe(server->status_fd, server->plan->image_path, server->plan->fs_dir);
    if (!server->status_text) {
        report(LOG_ERR, server->plan->image, "out of memory");
        return -ENOMEM;
    }
    return 0;
}

/* Answer requests until the mount is gone.  True: the mount had become ready. */
static bool serve(struct server *server)
{
    struct fuse_loop_config *config = fuse_loop_cfg_create();

    if (!config || control_start(server) < 0) {
        report(LOG_ERR, server->plan->image, "out of memory");
        fuse_loop_cfg_destroy(config);
        return false;
    }
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_max_threads(config, MAX_THREADS);
    int code = fuse_session_loop_mt(server->session, config);
    if (code < 0)
        report(LOG_ERR, server->plan->image, "the FUSE connection failed: %s", strerror(-code));
    bool ready = control_stop(server);
    fuse_loop_cfg_destroy(config);
    return ready;
}

int server_flush(struct server *server)
{
    atomic_store(&server->unflushed, false); /* first: what is written meanwhile may not be in it */
    int code = vhdx_flush(server->disk);
    /* Other failures are for good: no more changes are taken (D9). */
    if ((code == -ENOSPC || code == -EDQUOT) && !atomic_exchange(&server->unflushed, true))
        control_wake(server);
    return code;
}

/* ---- the connection ---- */

/* A read of the connection says ENODEV when the mount has gone, and ECONNABORTED when it goes while a request is being handed
 * over, the last close for example.  libfuse knows the first as the end, and would call the second a failure. */
static ssize_t read_request(int fd, void *buffer, size_t buffer_bytes, void *userdata)
{
    (void)userdata;
    ssize_t n = read(fd, buffer, buffer_bytes);

    if (n < 0 && errno == ECONNABORTED)
        errno = ENODEV;
    return n;
}

static ssize_t write_reply(int fd, struct iovec *parts, int count, void *userdata)
{
    (void)userdata;
    return writev(fd, parts, count);
}

static const struct fuse_custom_io connection_io = {.read = read_request, .writev = write_reply};

static int mount_session(struct server *server)
{
    struct mount_point point;

    if (fuse_session_mount(server->session, server->plan->fuse_dir) < 0)
        return -1;
    if (fuse_session_custom_io(server->session, &connection_io, fuse_session_fd(server->session)) < 0) {
        report(LOG_ERR, server->plan->image, "out of memory");
        fuse_session_unmount(server->session);
        return -1;
    }
    if (mount_point_find(server->plan->fuse_dir, &point) == 1 && strcmp(point.type, FUSE_TYPE) == 0)
        server->fuse_device = point.device;
    mount_point_free(&point);
    return 0;
}

bool server_is_connected(const struct server *server)
{
    struct pollfd connection = {.fd = fuse_session_fd(server->session), .events = 0};

    return !(poll(&connection, 1, 0) == 1 && (connection.revents & POLLERR));
}

bool server_is_mounted(const struct server *server)
{
    struct mount_point point = {0};
    bool ours = server->fuse_device == 0 || /* nobody could tell: take what is there for ours */
                (mount_point_find(server->plan->fuse_dir, &point) == 1 && point.device == server->fuse_device);

    mount_point_free(&point);
    /* The number is given to others when the connection has ended, which is why that is asked afterwards. */
    return ours && server_is_connected(server);
}

/* End the connection, so that libfuse does not unmount what lies at the path by now: it leaves that alone if the descriptor of
 * the connection says POLLERR, as it does when the mount is gone, and a pipe without a reader says so too. */
static int sever(struct server *server)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    close(ends[0]);
    int r = dup3(ends[1], fuse_session_fd(server->session), O_CLOEXEC) < 0 ? -errno : 0;
    close(ends[1]);
    return r;
}

static void unmount_session(struct server *server)
{
    if (server_is_mounted(server) || sever(server) == 0)
        fuse_session_unmount(server->session); /* destroying the session closes what is not unmounted */
}

static bool mount_and_serve(struct server *server)
{
    bool ready = false;

    if (session_create(server) < 0)
        return false;
    if (mount_session(server) == 0) {
        ready = serve(server);
        unmount_session(server);
    }
    fuse_session_destroy(server->session);
    return ready;
}

/* True: everything is durable and in place. */
static bool close_disk(struct server *server)
{
    int code = vhdx_close(server->disk);

    if (code == 0) {
        if (server->status_fd >= 0)
            status_finish(server->status_fd, NULL);
        return true;
    }
    const char *message = library_message(code);
    report(LOG_ERR, server->plan->image, "the image was not closed properly; its log will bring back what was flushed: %s", message);
    if (server->status_fd >= 0)
        status_finish(server->status_fd, message);
    return false;
}

int server_run(const struct mount_plan *plan, int client_fd)
{
    struct server *server = calloc(1, sizeof *server);
    bool good = false;

    if (!server) {
        print_error(plan->image, "out of memory");
        return EXIT_TROUBLE;
    }
    server->plan = plan;
    server->client_fd = client_fd;
    server->status_fd = -1;
    fuse_set_log_func(report_libfuse);
    control_block_signals();
    /* What serves a block device must not wait for memory that only writing to that device can free.  Without the right to say
     * so there is no loop device on top either. */
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    if (open_disk(server) == 0 && create_status(server) == 0)
        good = mount_and_serve(server);
    if (server->disk && !close_disk(server))
        good = false;
    if (plan->fs_dir)
        rmdir(plan->fuse_dir);
    usage_destroy(&server->usage);
    free(server->status_text);
    if (server->client_fd >= 0)
        close(server->client_fd);
    free(server);
    return good ? EXIT_OK : EXIT_TROUBLE;
}
