/* SPDX-License-Identifier: MIT */
#include "serve/stdio.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "output.h"

enum { MOVE_BYTES = 1 << 20 };

int stdio_begin(struct stdio_relay *r, int *input)
{
    int ends[2];

    *r = (struct stdio_relay){.to = -1};
    *input = -1;
    if (isatty(STDIN_FILENO)) {
        print_error(NULL, "--stdio is for programs that speak NBD, and standard input is a terminal");
        return -1;
    }
    if (pipe2(ends, O_CLOEXEC) < 0) {
        print_error(NULL, "cannot make a pipe: %s", strerror(errno));
        return -1;
    }
    *input = ends[0];
    r->to = ends[1];
    return 0;
}

void stdio_poll(const struct stdio_relay *r, struct pollfd *p)
{
    *p = (struct pollfd){.fd = -1};
    if (r->to >= 0 && r->full)
        *p = (struct pollfd){.fd = r->to, .events = POLLOUT};
    else if (r->to >= 0)
        *p = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
}

void stdio_move(struct stdio_relay *r)
{
    if (r->full) { /* no longer: see first whether there is something */
        r->full = false;
        return;
    }
    ssize_t n = splice(STDIN_FILENO, NULL, r->to, NULL, MOVE_BYTES, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
    if (n > 0 || (n < 0 && errno == EINTR))
        return;
    if (n < 0 && errno == EAGAIN)
        r->full = true; /* there was something to read */
    else
        stdio_stop(r); /* the client's end, or nobody reads it any more */
}

void stdio_stop(struct stdio_relay *r)
{
    if (r->to >= 0)
        close(r->to);
    r->to = -1;
}
