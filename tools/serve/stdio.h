/* SPDX-License-Identifier: MIT */
/* Standard input of an nbdkit that serves there.
 *
 * nbdkit heeds no signal while it waits for a request on standard input: only the end of its input ends it.  That end we must be
 * able to give, and to give even when we are killed.  So we read what comes, and pass it on through a pipe of ours.  Answers,
 * which are the larger part for most who use a disk this way, go out directly. */
#ifndef SERVE_STDIO_H
#define SERVE_STDIO_H

#include <stdbool.h>

struct pollfd;

struct stdio_relay {
    int to;    /* our pipe to nbdkit; -1: none */
    bool full; /* that: nothing can be passed on until it takes more */
};

/* *input is what nbdkit is to have as standard input, to be closed when it has it.  0, or -1 after saying what is wrong. */
int stdio_begin(struct stdio_relay *r, int *input);

/* What to wait for. */
void stdio_poll(const struct stdio_relay *r, struct pollfd *p);

/* Pass on what there is. */
void stdio_move(struct stdio_relay *r);

/* No more requests. */
void stdio_stop(struct stdio_relay *r);

#endif
