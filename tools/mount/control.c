/* SPDX-License-Identifier: MIT */
/* The thread beside the session loop: it takes the client through its steps, and ends the mount on signals, when the client
 * fails, and when the file system inside is gone.
 *
 * The first signal lets those who use the mount finish: it is unmounted, or if they hold it, detached, so that nobody else
 * comes.  One that insists does not wait for them.  Nothing acknowledged is lost either way: it is in the image, which is closed
 * properly afterwards.  But a file system inside then loses what it has not written yet, so that insisting has to be meant. */
#define FUSE_USE_VERSION 312

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "mount/mounts.h"
#include "mount/notify.h"
#include "mount/protocol.h"
#include "mount/report.h"
#include "mount/server.h"

enum {
    KICK_MS = 20,
    CLEAR_MS = 100, /* how often to look whether mount(8) has ended */
    LAST_CLOSE_MS = 10, /* ... and whether the kernel has let go of the mount; for a second in all: */
    MAX_LAST_CLOSES = 100,
    /* Changes that nobody flushes are flushed after so long: as a disk's cache drains by itself, and because discarded space goes
     * back to the host with a flush, which not every file system sends after its discards. */
    FLUSH_MS = 5000,
    /* A signal that comes sooner after the end has begun does not insist: sessions that end and terminals that close send several
     * at once, and so does whoever presses ^C. */
    INSIST_MS = 2000,
};

struct control {
    struct server *server;
    int signal_fd;
    bool ready;      /* the client has said that all is set up */
    bool leaving;    /* the end has begun */
    bool may_insist; /* ... so long ago that signals insist: see hear_insistence() */
    uint64_t leaving_since_ms; /* of CLOCK_MONOTONIC */
    bool fuse_left;  /* the FUSE mount is unmounted or detached */
    bool clearing;   /* mount(8) may still be at work for a client that has gone */
    bool forced;     /* the session loop ends without waiting for users */
    bool flush_failed; /* the last time */
};

static void termination_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
}

static void ignore_wakeup(int signal_no)
{
    (void)signal_no;
}

void control_block_signals(void)
{
    struct sigaction wakeup = {.sa_handler = ignore_wakeup}; /* no SA_RESTART: it is there to interrupt */
    sigset_t set;

    termination_signals(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sigemptyset(&wakeup.sa_mask);
    sigaction(SIGUSR1, &wakeup, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* errors like others, so that the image is closed properly */
}

/* ---- signals that insist ---- */

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* The number of a signal that has come; 0: none has. */
static uint32_t next_signal(const struct control *c)
{
    struct signalfd_siginfo info;

    return read(c->signal_fd, &info, sizeof info) == sizeof info ? info.ssi_signo : 0;
}

/* Do signals that have come while we leave say that users are not to be waited for?  SIGHUP never does: it follows upon SIGTERM
 * when a session ends, and says only that there is no terminal any more.
 *
 * When a signal has come is not known.  One that is seen late may have come at once, if nobody listened or this thread was not let
 * run.  So the time is over only when none is left after it: those that are seen from then on have come after it, too. */
static bool hear_insistence(void *opaque)
{
    struct control *c = opaque;
    bool is_late = now_ms() - c->leaving_since_ms >= INSIST_MS, insisted = false;

    for (uint32_t signal_no; (signal_no = next_signal(c)) != 0;)
        insisted |= c->may_insist && signal_no != SIGHUP;
    c->may_insist |= is_late;
    return insisted;
}

/* Until when to listen in vain, in ms, so that the time is seen to be over; -1: for ever. */
static int insistence_patience(const void *opaque)
{
    const struct control *c = opaque;
    uint64_t passed = now_ms() - c->leaving_since_ms;

    return c->may_insist ? -1 : passed < INSIST_MS ? (int)(INSIST_MS - passed) : 0;
}

/* ---- leaving ---- */

static void begin_leaving(struct control *c)
{
    if (!c->leaving)
        c->leaving_since_ms = now_ms();
    c->leaving = true;
}

/* What lay on this mount is gone. */
static bool is_unused(const struct server *server)
{
    return atomic_load(&server->leave_when_unused) && atomic_load(&server->nr_open) == 0;
}

static void force(struct control *c)
{
    c->forced = c->leaving = true;
    fuse_session_exit(c->server->session);
}

static void report_users(const struct mount_plan *plan, const char *path)
{
    report(LOG_NOTICE, plan->image, "%s is still in use: it is detached, and the image is closed when the last user has left, or at a "
                                    "SIGTERM %d seconds from now or later", path, INSIST_MS / 1000);
}

/* The kernel tells of the last close a moment before it lets go of the mount: that is no user who stays. */
static int unmount_after_close(const struct server *server, char why[UNMOUNT_TEXT_BYTES])
{
    const struct timespec moment = {.tv_nsec = LAST_CLOSE_MS * 1000000L};
    int code = unmount_fuse(server->plan->fuse_dir, false, why);

    for (int n = 0; n < MAX_LAST_CLOSES && code == -EBUSY && is_unused(server); n++) {
        nanosleep(&moment, NULL);
        code = unmount_fuse(server->plan->fuse_dir, false, why);
    }
    return code;
}

static void leave_fuse(struct control *c, bool quietly)
{
    const struct mount_plan *plan = c->server->plan;
    char why[UNMOUNT_TEXT_BYTES];

    if (c->fuse_left)
        return;
    begin_leaving(c);
    if (!server_is_mounted(c->server)) { /* somebody was faster, and others may have mounted there since */
        if (!quietly && server_is_connected(c->server))
            report_users(plan, plan->fuse_dir);
        c->fuse_left = true;
        return;
    }
    int code = unmount_after_close(c->server, why);
    if (code == -EBUSY && plan->fs_dir && !c->ready) {
        c->clearing = true;
        return;
    }
    if (code == -EBUSY) {
        code = unmount_fuse(plan->fuse_dir, true, why);
        if (code == 0 && !quietly)
            report_users(plan, plan->fuse_dir);
    }
    if (code == 0 || code == -EINVAL) { /* -EINVAL: somebody was faster */
        c->fuse_left = true;
        return;
    }
    report(LOG_ERR, plan->image, "%s cannot be unmounted: %s", plan->fuse_dir, why);
    force(c);
}

/* Unmount the file system inside, if it is there; the loop device then closes its file, which ends the FUSE mount. */
static void leave_fs(struct control *c, bool quietly)
{
    const struct mount_plan *plan = c->server->plan;
    const struct interruption interruption = {
        .fd = c->signal_fd, .patience = insistence_patience, .heard = hear_insistence, .opaque = c};
    char why[UNMOUNT_TEXT_BYTES];

    begin_leaving(c);
    if (!mount_lies_in(plan->fs_dir, plan->fuse_dir)) {
        leave_fuse(c, quietly);
        return;
    }
    int code = unmount_fs(plan->fs_dir, false, &interruption, why);
    if (code == -EBUSY) {
        code = unmount_fs(plan->fs_dir, true, &interruption, why);
        if (code == 0)
            report_users(plan, plan->fs_dir);
    }
    if (code == -EINTR) {
        force(c);
        return;
    }
    if (code < 0 && mount_lies_in(plan->fs_dir, plan->fuse_dir)) /* nobody was faster */
        report(LOG_ERR, plan->image, "%s cannot be unmounted: %s", plan->fs_dir, why);
    if (code < 0) {
        leave_fuse(c, quietly);
        return;
    }
    atomic_store(&c->server->leave_when_unused, true);
    control_wake(c->server);
}

static void leave(struct control *c, bool quietly)
{
    const struct mount_plan *plan = c->server->plan;

    notify_manager("STOPPING=1");
    if (plan->fs_dir)
        leave_fs(c, quietly);
    else
        leave_fuse(c, quietly);
    /* Users may keep the mount for long, and whoever sent the signal may send a worse one. */
    if (!plan->read_only && vhdx_flush(c->server->disk) < 0)
        report(LOG_ERR, plan->image, "flushing failed: %s", vhdx_error_message());
    hear_insistence(c); /* nobody has listened since */
}

/* ---- the client ---- */

static void show_partitions(struct server *server, const struct partition_list *list)
{
    uint64_t disk_bytes = vhdx_size(server->disk);
    uint32_t count = atomic_load(&server->nr_files);

    for (uint32_t i = 0; i < list->count && count < MAX_SHOWN_FILES; i++) {
        const struct partition *p = &list->partitions[i];
        struct shown_file *file = &server->files[count];

        if (p->start >= disk_bytes || p->length == 0 || p->length > disk_bytes - p->start)
            continue;
        file->start = p->start;
        file->length = p->length;
        snprintf(file->name, sizeof file->name, "p%u", (unsigned)p->number);
        count++;
    }
    atomic_store(&server->nr_files, count);
}

/* Nothing of the caller's is held any more: terminal, folder, pipes. */
static void leave_terminal(const struct server *server)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    report_to_syslog();
    if (null >= 0) {
        for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
            dup2(null, fd);
        close(null);
    }
    setsid();
    if (chdir("/") < 0)
        report(LOG_WARNING, server->plan->image, "the working folder is still in use: %s", strerror(errno));
}

static void become_ready(struct control *c)
{
    struct server *server = c->server;

    c->ready = true;
    if (!server->plan->foreground)
        leave_terminal(server);
    message_send(server->client_fd, &(struct message){.kind = MESSAGE_BYE});
    notify_manager("READY=1");
    if (server->plan->fs_dir) {
        atomic_store(&server->leave_when_unused, true);
        control_wake(server); /* it may have been unmounted already */
    }
}

static void hear_client(struct control *c)
{
    struct server *server = c->server;
    struct message message;
    int code = message_receive(server->client_fd, &message);

    if (code <= 0 || (c->leaving && !c->ready)) {
        close(server->client_fd);
        server->client_fd = -1;
        if (!c->ready && !c->leaving) /* it has failed, and said why */
            leave(c, true);
        return;
    }
    if (message.kind == MESSAGE_PARTITIONS) {
        show_partitions(server, &message.partitions);
        message_send(server->client_fd, &(struct message){.kind = MESSAGE_SHOWN});
    } else if (message.kind == MESSAGE_READY) {
        become_ready(c);
    }
}

/* ---- the thread ---- */

static void hear_signal(struct control *c)
{
    if (c->leaving) {
        if (hear_insistence(c))
            force(c);
        return;
    }
    uint32_t signal_no = next_signal(c);
    if (signal_no == 0)
        return;
    if (!c->ready)
        report(LOG_ERR, c->server->plan->image, "stopped by signal %u before the mount was ready", signal_no);
    leave(c, !c->ready);
}

static void hear_event(struct control *c)
{
    struct server *server = c->server;
    uint64_t count;

    if (read(server->event_fd, &count, sizeof count) < 0)
        return;
    if (is_unused(server))
        leave_fuse(c, false);
}

static void flush_unflushed(struct control *c)
{
    struct server *server = c->server;

    if (!atomic_load(&server->unflushed))
        return;
    int code = server_flush(server);
    if (code < 0 && !c->flush_failed) /* said once, however often it is tried */
        report(LOG_ERR, server->plan->image, "flushing failed: %s", vhdx_error_message());
    c->flush_failed = code < 0;
}

/* What was to be done some time later, and that is now. */
static void do_idle_work(struct control *c)
{
    if (c->forced)
        return;
    if (c->leaving && hear_insistence(c))
        force(c);
    else if (c->clearing && !c->fuse_left)
        leave_fs(c, true);
    else
        flush_unflushed(c);
}

/* Until when to wait for something to happen, in ms. */
static int patience(const struct control *c)
{
    if (c->forced)
        return KICK_MS;
    if (c->clearing && !c->fuse_left)
        return CLEAR_MS;
    if (c->leaving && !c->may_insist)
        return insistence_patience(c);
    return atomic_load(&c->server->unflushed) ? FLUSH_MS : -1;
}

static void *control_run(void *opaque)
{
    struct control control = {.server = opaque}, *c = &control;
    struct server *server = opaque;
    sigset_t set;

    termination_signals(&set);
    control.signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    message_send(server->client_fd, &(struct message){
        .kind = MESSAGE_LIVE, .sector_bytes = server->sector_bytes, .disk_bytes = vhdx_size(server->disk)});
    while (!atomic_load(&server->over)) {
        struct pollfd fds[] = {
            {.fd = c->signal_fd, .events = POLLIN},
            {.fd = server->client_fd, .events = POLLIN},
            {.fd = server->event_fd, .events = POLLIN},
        };

        if (c->forced) /* the loop may have looked for the end just before it was told, and wait now */
            pthread_kill(server->main_thread, SIGUSR1);
        int nr_ready = poll(fds, 3, patience(c));
        if (nr_ready == 0)
            do_idle_work(c);
        if (nr_ready <= 0)
            continue;
        if (fds[0].revents)
            hear_signal(c);
        if (fds[1].revents)
            hear_client(c);
        if (fds[2].revents)
            hear_event(c);
    }
    if (c->signal_fd >= 0)
        close(c->signal_fd);
    return c->ready ? server : NULL;
}

int control_start(struct server *server)
{
    server->main_thread = pthread_self();
    server->event_fd = eventfd(0, EFD_CLOEXEC);
    if (server->event_fd < 0)
        return -errno;
    return -pthread_create(&server->control_thread, NULL, control_run, server);
}

void control_wake(struct server *server)
{
    const uint64_t one = 1;

    if (write(server->event_fd, &one, sizeof one) < 0) /* cannot fail: its counter never comes near the limit */
        return;
}

bool control_stop(struct server *server)
{
    void *ready = NULL;

    atomic_store(&server->over, true);
    control_wake(server);
    pthread_join(server->control_thread, &ready);
    close(server->event_fd);
    return ready != NULL;
}
