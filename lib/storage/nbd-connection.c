/* SPDX-License-Identifier: MIT */
/* The connection to an NBD server: one handle of libnbd, a thread that moves its bytes, and requests from any thread. */
#include "storage/nbd.h"

#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/math.h"

#define MAX_PAYLOAD MIB(32) /* what every server takes that says nothing else */

/* How soon a connection counts as lost whose other end is silent in TCP itself: a server may be slow, its kernel is not. */
enum {
    KEEPALIVE_IDLE_SECONDS = 30,
    KEEPALIVE_INTERVAL_SECONDS = 10,
    KEEPALIVE_PROBES = 6,
};

/* libnbd's explanation of its last failure in this thread, without the name of its function, which tells users nothing. */
static const char *explanation(const struct nbd *n)
{
    const char *text = n->api.get_error(), *colon = text ? strchr(text, ':') : NULL;

    if (!text)
        return "unknown error";
    if (strncmp(text, "nbd_", 4) == 0 && colon && colon[1] == ' ')
        return colon + 2;
    return text;
}

static int explained_code(const struct nbd *n)
{
    int code = n->api.get_errno();

    return code > 0 ? -code : -EIO;
}

/* ---- the mover ---- */

static void note_loss(struct nbd *n, const char *why)
{
    pthread_mutex_lock(&n->lost_lock);
    if (n->lost.text[0] == '\0')
        snprintf(n->lost.text, sizeof n->lost.text, "%s", why);
    pthread_mutex_unlock(&n->lost_lock);
}

static void wake_mover(struct nbd *n)
{
    const uint64_t one = 1;

    if (write(n->wake, &one, sizeof one) < 0)
        return; /* EAGAIN: it has been woken more often than it can count */
}

/* Let libnbd do what the socket is ready for. */
static void move(struct nbd *n, short ready)
{
    unsigned direction = n->api.aio_get_direction(n->handle); /* others may have changed it meanwhile */
    int r = 0;

    if ((direction & LIBNBD_AIO_DIRECTION_READ) && (ready & (POLLIN | POLLHUP | POLLERR)))
        r = n->api.aio_notify_read(n->handle);
    else if ((direction & LIBNBD_AIO_DIRECTION_WRITE) && (ready & (POLLOUT | POLLHUP | POLLERR)))
        r = n->api.aio_notify_write(n->handle);
    if (r < 0) {
        struct error_text why; /* the explanation itself lasts until the next call */
        snprintf(why.text, sizeof why.text, "%s", explanation(n));
        if (n->api.aio_is_dead(n->handle) != 0) /* else another thread was quicker, and there was nothing to do */
            note_loss(n, why.text);
    }
}

/* Until told to stop, or nothing can come any more: libnbd has then answered all requests with an error. */
static void *mover(void *opaque)
{
    struct nbd *n = opaque;

    while (!atomic_load(&n->stop) && n->api.aio_is_dead(n->handle) == 0 && n->api.aio_is_closed(n->handle) == 0) {
        unsigned direction = n->api.aio_get_direction(n->handle);
        struct pollfd fds[2] = {{.fd = n->api.aio_get_fd(n->handle)}, {.fd = n->wake, .events = POLLIN}};
        uint64_t count;

        if (direction & LIBNBD_AIO_DIRECTION_READ)
            fds[0].events |= POLLIN;
        if (direction & LIBNBD_AIO_DIRECTION_WRITE)
            fds[0].events |= POLLOUT;
        if (poll(fds, 2, -1) < 0)
            continue; /* EINTR, or no memory for a moment */
        if (fds[1].revents && read(n->wake, &count, sizeof count) < 0)
            continue; /* EAGAIN */
        if (fds[0].revents)
            move(n, fds[0].revents);
    }
    return NULL;
}

/* Signals are the business of the program's own threads. */
static int start_mover(struct nbd *n)
{
    sigset_t all, before;

    n->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (n->wake < 0)
        return fail_errno("cannot use an NBD server: eventfd");
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = pthread_create(&n->mover, NULL, mover, n);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r == 0)
        return 0;
    close(n->wake);
    n->wake = -1;
    return fail(-r, "cannot use an NBD server: no thread: %s", strerror(r));
}

/* ---- requests ---- */

struct request {
    sem_t done;
    int error; /* errno */
};

/* In the mover, or whoever makes a request, with libnbd's lock held. */
static int complete(void *opaque, int *error)
{
    struct request *r = opaque;

    r->error = *error;
    sem_post(&r->done);
    return 1; /* libnbd may forget it */
}

/* How to be told, for the next request. */
static nbd_completion_callback begin(struct request *r)
{
    r->error = 0;
    sem_init(&r->done, 0, 0);
    return (nbd_completion_callback){.callback = complete, .user_data = r};
}

static int fail_lost(struct nbd *n, int code, const char *what, uint64_t bytes, uint64_t offset)
{
    struct error_text lost;

    pthread_mutex_lock(&n->lost_lock);
    lost = n->lost;
    pthread_mutex_unlock(&n->lost_lock);
    return fail(code, "cannot %s %" PRIu64 " bytes at offset 0x%" PRIx64 " of the export: the connection to the NBD server is lost%s%s",
                what, bytes, offset, lost.text[0] ? ": " : "", lost.text);
}

/* Wait for the request that began as cookie says, and free r. */
static int finish(struct nbd *n, struct request *r, int64_t cookie, const char *what, uint64_t bytes, uint64_t offset)
{
    int code = 0;

    if (cookie < 0) { /* it was not sent at all */
        bool lost = n->api.aio_is_dead(n->handle) != 0 || n->api.aio_is_closed(n->handle) != 0;
        code = lost ? fail_lost(n, -EIO, what, bytes, offset)
                    : fail(explained_code(n), "cannot %s %" PRIu64 " bytes at offset 0x%" PRIx64 " of the export: %s", what, bytes,
                           offset, explanation(n));
    } else {
        wake_mover(n);
        while (sem_wait(&r->done) < 0) /* EINTR */
            ;
        if (r->error == ENOTCONN || r->error == ESHUTDOWN)
            code = fail_lost(n, -EIO, what, bytes, offset);
        else if (r->error != 0)
            code = fail(-r->error, "cannot %s %" PRIu64 " bytes at offset 0x%" PRIx64 " of the export: the NBD server answers: %s", what,
                        bytes, offset, strerror(r->error));
    }
    sem_destroy(&r->done);
    return code;
}

int nbd_request_read(struct nbd *n, void *buf, size_t bytes, uint64_t offset)
{
    struct request r;
    int64_t cookie = n->api.aio_pread(n->handle, buf, bytes, offset, begin(&r), 0);

    return finish(n, &r, cookie, "read", bytes, offset);
}

int nbd_request_write(struct nbd *n, const void *buf, size_t bytes, uint64_t offset)
{
    struct request r;
    int64_t cookie = n->api.aio_pwrite(n->handle, buf, bytes, offset, begin(&r), 0);

    return finish(n, &r, cookie, "write", bytes, offset);
}

int nbd_request_zero(struct nbd *n, uint64_t bytes, uint64_t offset, bool keep_space)
{
    struct request r;
    int64_t cookie = n->api.aio_zero(n->handle, bytes, offset, begin(&r), keep_space ? LIBNBD_CMD_FLAG_NO_HOLE : 0);

    return finish(n, &r, cookie, "zero", bytes, offset);
}

int nbd_request_flush(struct nbd *n)
{
    struct request r;
    int64_t cookie = n->api.aio_flush(n->handle, begin(&r), 0);

    return finish(n, &r, cookie, "flush", n->size, 0);
}

int nbd_request_extents(struct nbd *n, uint64_t bytes, uint64_t offset, nbd_extent_callback take)
{
    struct request r;
    int64_t cookie = n->api.aio_block_status(n->handle, bytes, offset, take, begin(&r), 0);

    return finish(n, &r, cookie, "look for zeros in", bytes, offset);
}

/* ---- connecting ---- */

/* What the server demands of requests.  Of one that demands nothing, the careful assumption. */
static int learn_limits(struct nbd *n)
{
    int64_t min = n->api.get_block_size(n->handle, LIBNBD_SIZE_MINIMUM);
    int64_t max = n->api.get_block_size(n->handle, LIBNBD_SIZE_MAXIMUM);

    if (min <= 0)
        min = n->size % 512 == 0 ? 512 : 1;
    if (max <= 0 || max > (int64_t)MAX_PAYLOAD)
        max = MAX_PAYLOAD;
    max = (int64_t)align_down((uint64_t)max, (uint64_t)min);
    if (!is_power_of_two((uint64_t)min) || min > NBD_MAX_MIN_BLOCK || max < min)
        return fail(-EPROTO, "the NBD server demands blocks of at least %" PRId64 " and at most %" PRId64 " bytes, which is impossible", min,
                    max);
    if (n->size % (uint64_t)min != 0)
        return fail(-EPROTO, "the NBD server exports %" PRIu64 " bytes in blocks of %" PRId64 ", so that the last ones cannot be reached",
                    n->size, min);
    n->min_block = (uint32_t)min;
    n->max_payload = (uint32_t)max;
    return 0;
}

static int learn_export(struct nbd *n, bool writable)
{
    int64_t size = n->api.get_size(n->handle);

    if (size < 0)
        return fail(explained_code(n), "the size of the export: %s", explanation(n));
    n->size = (uint64_t)size;
    if (writable && n->api.is_read_only(n->handle) != 0)
        return fail(-EROFS, "the NBD server exports it for reading only");
    n->can_flush = n->api.can_flush(n->handle) > 0;
    n->can_zero = n->api.can_zero(n->handle) > 0;
    n->extents.cannot_ask = n->api.can_meta_context(n->handle, LIBNBD_CONTEXT_BASE_ALLOCATION) <= 0;
    return learn_limits(n);
}

/* A server whose machine or network is gone says nothing: find out, or whoever waits for an answer would do so for ever.  Not
 * every socket is TCP, and the connection is as good as before where these cannot be had.  (TCP_USER_TIMEOUT would find out
 * sooner while we send, but ends the connection to a server, too, whose disk is so slow that it does not receive for as long.) */
static void watch_peer(const struct nbd *n)
{
    static const struct {
        int level, name, value;
    } options[] = {
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS},
        {IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS},
        {IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES},
    };
    int fd = n->api.aio_get_fd(n->handle);

    for (size_t i = 0; fd >= 0 && i < sizeof options / sizeof *options; i++) {
        if (setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof options[i].value) < 0)
            break;
    }
}

int nbd_connect(struct nbd *n, const char *uri, bool writable)
{
    n->wake = -1;
    n->handle = n->api.create();
    if (!n->handle)
        return fail(explained_code(n), "cannot use an NBD server: %s", explanation(n));
    /* A URI may name files with keys: it comes from the user (vhdx.h, VHDX_OPEN_NBD). */
    if (n->api.set_uri_allow_local_file(n->handle, true) < 0 ||
        n->api.add_meta_context(n->handle, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 || n->api.connect_uri(n->handle, uri) < 0)
        return fail(explained_code(n), "cannot connect to the NBD server: %s", explanation(n));
    watch_peer(n);
    int r = learn_export(n, writable);
    return r < 0 ? r : start_mover(n);
}

void nbd_disconnect(struct nbd *n)
{
    if (n->wake >= 0) {
        atomic_store(&n->stop, true);
        wake_mover(n);
        pthread_join(n->mover, NULL);
        close(n->wake);
    }
    if (n->handle) {
        n->api.aio_disconnect(n->handle, 0); /* the polite word; that nobody may be there to hear it is no matter */
        n->api.close(n->handle);
    }
}
