/* SPDX-License-Identifier: MIT */
/* The descriptor of whoever runs nbdkit with this plugin, "vhdx serve" for one: a socket on which it is told how opening and
 * closing went, and which it ends when the server is to end.
 *
 * A signal alone does not do that: nbdkit waits, without end, for clients who have nothing to ask to hang up.  So the sockets of
 * clients are shut down here, for reading first: what they have asked for is done and answered, and nbdkit sees the end of their
 * requests.  Some client may not take his answers.  When nothing has moved for a while the image is closed nevertheless, and the
 * process ends; shutting his socket down for writing as well would make nbdkit 1.32 fail an assertion, with the image open. (With
 * nbdkit -s there are no such sockets; whoever runs it holds the other end of its standard input.) */
#include "plugin.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <linux/sockios.h>

/* How long clients may take over their answers, while no request is being worked on: without a sign of life, and altogether,
 * since one could be made to last for ever. */
enum { ROUND_MS = 50, MAX_STILL_ROUNDS = 3 * 1000 / ROUND_MS, MAX_ROUNDS = 60 * 1000 / ROUND_MS };

enum { LINE_BYTES = 2048, MAX_LISTENERS = 32 };

struct address {
    struct sockaddr_storage name;
    socklen_t bytes;
};

static struct {
    pthread_t thread;
    bool has_thread;
    pthread_mutex_t mutex; /* guards: */
    pthread_cond_t changed;
    bool ended;
    struct address listeners[MAX_LISTENERS]; /* written before the thread starts */
    unsigned nr_listeners;
} control = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* ---- telling ---- */

void control_say(const char *format, ...)
{
    char line[LINE_BYTES];
    va_list args;
    ssize_t sent;

    if (parameters.control_fd < 0)
        return;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (n >= (int)sizeof line) {
        n = sizeof line;
        line[n - 1] = '\n';
    }
    do
        sent = send(parameters.control_fd, line, (size_t)n, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0) /* whoever wanted to know is gone, and what happens to the image does not depend on it */
        nbdkit_debug("control-fd: %m");
}

/* ---- clients' sockets ---- */

static bool is_listening(int fd)
{
    int listening = 0;
    socklen_t bytes = sizeof listening;

    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes) == 0 && listening;
}

static bool get_name(int fd, struct address *a)
{
    memset(a, 0, sizeof *a);
    a->bytes = sizeof a->name;
    return getsockname(fd, (struct sockaddr *)&a->name, &a->bytes) == 0;
}

/* A client's socket bears the name of the one that it was accepted from; of an address for all interfaces, only the port. */
static bool is_from(const struct address *client, const struct address *listener)
{
    if (client->name.ss_family != listener->name.ss_family)
        return false;
    if (client->name.ss_family == AF_INET || client->name.ss_family == AF_INET6) /* the port lies in the same place in both */
        return memcmp((const char *)&client->name + 2, (const char *)&listener->name + 2, 2) == 0;
    return client->bytes == listener->bytes && memcmp(&client->name, &listener->name, client->bytes) == 0;
}

static bool is_client(int fd)
{
    struct address name;

    if (fd == parameters.control_fd || is_listening(fd) || !get_name(fd, &name))
        return false;
    for (unsigned i = 0; i < control.nr_listeners; i++) {
        if (is_from(&name, &control.listeners[i]))
            return true;
    }
    return false;
}

static int nr_descriptors(void)
{
    struct rlimit limit;

    return getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 65536 ? (int)limit.rlim_cur : 65536;
}

static void find_listeners(void)
{
    for (int fd = 0, end = nr_descriptors(); fd < end && control.nr_listeners < MAX_LISTENERS; fd++) {
        if (is_listening(fd) && get_name(fd, &control.listeners[control.nr_listeners]))
            control.nr_listeners++;
    }
}

/* What clients have yet to take, as far as the kernel has it.  With TCP it changes as they do; a Unix socket that nbdkit fills
 * again at once may look the same all the time. */
struct outstanding {
    unsigned nr_clients;
    uint64_t bytes;
};

static struct outstanding hang_up(void)
{
    struct outstanding o = {0};
    int bytes;

    for (int fd = 0, end = nr_descriptors(); fd < end; fd++) {
        if (!is_client(fd))
            continue;
        shutdown(fd, SHUT_RD);
        o.nr_clients++;
        if (ioctl(fd, SIOCOUTQ, &bytes) == 0)
            o.bytes += (unsigned)bytes;
    }
    return o;
}

/* ---- the thread ---- */

/* False once control_end() was called. */
static bool wait_a_round(void)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += ROUND_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&control.mutex);
    if (!control.ended)
        pthread_cond_timedwait(&control.changed, &control.mutex, &until);
    bool go_on = !control.ended;
    pthread_mutex_unlock(&control.mutex);
    return go_on;
}

static bool has_ended(void)
{
    pthread_mutex_lock(&control.mutex);
    bool ended = control.ended;
    pthread_mutex_unlock(&control.mutex);
    return ended;
}

/* Hang up, more than once since somebody may just be coming in, until nbdkit ends, then 0; or how many clients hold it up.  A
 * request that the disk is slow with is no client's fault: its answer is waited for, and then some time for that to be taken. */
static unsigned wait_for_clients(void)
{
    struct outstanding o, before = {0};
    uint64_t nr_done, nr_done_before = 0;

    for (unsigned nr_rounds = 0, nr_still = 0;;) {
        o = hang_up();
        if (!wait_a_round())
            return 0;
        bool working = served_is_working(&nr_done);
        bool still = !working && nr_done == nr_done_before && o.bytes == before.bytes && o.nr_clients == before.nr_clients;
        nr_still = still ? nr_still + 1 : 0;
        nr_rounds += !working;
        if (nr_still == MAX_STILL_ROUNDS || nr_rounds == MAX_ROUNDS)
            return o.nr_clients > 0 ? o.nr_clients : 1; /* the one on standard output has no such socket */
        before = o;
        nr_done_before = nr_done;
    }
}

static void *wait_for_end(void *opaque)
{
    struct pollfd fd = {.fd = parameters.control_fd, .events = POLLIN};

    (void)opaque;
    while (poll(&fd, 1, -1) < 0 && (errno == EINTR || errno == EAGAIN))
        ;
    if (has_ended())
        return NULL;
    nbdkit_shutdown();
    unsigned nr_clients = wait_for_clients();
    if (nr_clients == 0)
        return NULL;
    served_abandon(nr_clients);
}

int control_begin(void)
{
    if (parameters.control_fd < 0)
        return 0;
    control.ended = false;
    control.nr_listeners = 0;
    find_listeners();
    int error = pthread_create(&control.thread, NULL, wait_for_end, NULL);
    control.has_thread = error == 0;
    if (error == 0)
        return 0;
    nbdkit_error("control-fd: cannot start a thread: %s", strerror(error));
    return -1;
}

void control_end(void)
{
    if (!control.has_thread)
        return;
    pthread_mutex_lock(&control.mutex);
    control.ended = true;
    pthread_cond_signal(&control.changed);
    pthread_mutex_unlock(&control.mutex);
    shutdown(parameters.control_fd, SHUT_RD); /* wakes it if it still waits for a word; we can go on telling */
    pthread_join(control.thread, NULL);
    control.has_thread = false;
}
