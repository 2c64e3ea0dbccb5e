/* SPDX-License-Identifier: MIT */
#include "mount/status.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GOOD_RESULT "closed\n"

/* ---- the server's side ---- */

int status_create(void)
{
    int fd = memfd_create("vhdx-mount-result", MFD_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

char *status_describe(int status_fd, const char *image, const char *fs_dir)
{
    char *text = NULL;

    /* One fact a line; the image comes last, since its name may hold anything. */
    if (asprintf(&text, "pid %ld\nresult-fd %d\nends-itself %d\nimage %s\n", (long)getpid(), status_fd, fs_dir != NULL,
                 image) < 0)
        return NULL;
    return text;
}

void status_finish(int status_fd, const char *error)
{
    /* Should this fail (it is memory), whoever waits finds no good result, and says so. */
    if (error)
        dprintf(status_fd, "%s\n", error);
    else
        dprintf(status_fd, GOOD_RESULT);
}

/* ---- the side of umount ---- */

/* What is opened may be anything that whoever made the mount has put there: no FIFO is waited for.  A descriptor, or a negative
 * errno. */
static int open_file(const char *path, int flags)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | flags);

    if (fd < 0)
        return -errno;
    int code = fstat(fd, &st) < 0 ? -errno : S_ISREG(st.st_mode) ? 0 : -ENOENT;
    if (code < 0)
        close(fd);
    return code < 0 ? code : fd;
}

/* Up to buf_bytes - 1 bytes from the start of fd, and a NUL.  0 or a negative errno. */
static int read_text(int fd, char *buf, size_t buf_bytes)
{
    size_t have = 0;

    while (have < buf_bytes - 1) {
        ssize_t n = pread(fd, buf + have, buf_bytes - 1 - have, (off_t)have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        have += (size_t)n;
    }
    buf[have] = '\0';
    return 0;
}

struct description {
    long pid;
    int result_fd, ends_itself;
    char image[4096];
};

static int read_description(const char *fuse_dir, struct description *d)
{
    char text[sizeof d->image + 256], *path;
    int image_at = 0;

    if (asprintf(&path, "%s/%s", fuse_dir, STATUS_FILE) < 0)
        return -ENOMEM;
    int fd = open_file(path, O_NOFOLLOW);
    free(path);
    if (fd < 0)
        return fd;
    int code = read_text(fd, text, sizeof text);
    close(fd);
    if (code < 0)
        return code;
    if (sscanf(text, "pid %ld\nresult-fd %d\nends-itself %d\nimage %n", &d->pid, &d->result_fd, &d->ends_itself, &image_at) !=
            3 || image_at == 0 || d->pid <= 0 || d->result_fd < 0)
        return -ENOENT;
    size_t length = strlen(text + image_at);
    if (length > 0 && text[image_at + (int)length - 1] == '\n')
        text[image_at + (int)--length] = '\0';
    snprintf(d->image, sizeof d->image, "%s", text + image_at);
    return 0;
}

/* The mount may be anybody's, and the process that it names anything: touch and wait for nothing that is not the owner's. */
static bool belongs_to(long pid, uid_t owner)
{
    char path[64];
    struct stat st;

    snprintf(path, sizeof path, "/proc/%ld", pid);
    return stat(path, &st) == 0 && st.st_uid == owner;
}

int server_find(struct server_handle *server, const char *fuse_dir, uid_t owner)
{
    struct description first, again;
    char path[64];

    server->process_fd = server->result_fd = -1;
    int code = read_description(fuse_dir, &first);
    if (code < 0)
        return code;
    server->process_fd = (int)syscall(SYS_pidfd_open, (pid_t)first.pid, 0);
    if (server->process_fd < 0)
        return errno == ESRCH ? -ENOTCONN : -errno;
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", first.pid, first.result_fd);
    code = belongs_to(first.pid, owner) ? 0 : -ENOENT;
    if (code == 0)
        code = server->result_fd = open_file(path, 0);
    if (code > 0)
        code = 0;
    /* It answers still, so the number was its own when we opened it. */
    if (code == 0)
        code = read_description(fuse_dir, &again);
    if (code == 0 && (again.pid != first.pid || again.result_fd != first.result_fd || !belongs_to(first.pid, owner)))
        code = -ENOENT;
    if (code < 0) {
        server_forget(server);
        return code;
    }
    server->ends_itself = first.ends_itself;
    memcpy(server->image, first.image, sizeof server->image);
    return 0;
}

void server_forget(struct server_handle *server)
{
    if (server->process_fd >= 0)
        close(server->process_fd);
    if (server->result_fd >= 0)
        close(server->result_fd);
    server->process_fd = server->result_fd = -1;
}

bool server_wait(const struct server_handle *server, int timeout_ms)
{
    struct pollfd ended = {.fd = server->process_fd, .events = POLLIN};

    return poll(&ended, 1, timeout_ms) == 1;
}

bool server_result(const struct server_handle *server, char *message, size_t message_bytes)
{
    if (read_text(server->result_fd, message, message_bytes) < 0 || message[0] == '\0') {
        snprintf(message, message_bytes, "the server was killed before it had closed the image: what was flushed is safe, later "
                                         "writes may be lost");
        return false;
    }
    bool good = strcmp(message, GOOD_RESULT) == 0;
    message[strcspn(message, "\n")] = '\0';
    return good;
}
