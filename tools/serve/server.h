/* SPDX-License-Identifier: MIT */
/* The nbdkit that "vhdx serve" runs, with this project's plugin, and what the plugin tells about the image. */
#ifndef VHDX_SERVE_SERVER_H
#define VHDX_SERVE_SERVER_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "serve/transport.h"

enum { CONTROL_LINE_BYTES = 4096 };

struct server {
    pid_t pid;
    bool running;
    int wait_status; /* once it is not running */
    int control_fd;  /* to and from the plugin; -1: at its end */
    char line[CONTROL_LINE_BYTES];
    size_t line_bytes;
    bool ready;     /* the image is open, clients are being served */
    bool closed;    /* it was closed without a problem */
    int failure;    /* code of the library's; 0: none was reported */
    char *message;  /* owned; what belongs to it */
    char *did;      /* owned; "connections=1 reads=2 ...": what was served */
};

struct server_settings {
    const char *image;
    bool tls, verify_peer;
    const char *tls_certificates;
    int input;        /* its standard input; -1: ours */
    sigset_t signals; /* what the child is to start with */
};

/* Start it.  0, or -1 after saying what is missing. */
int server_start(struct server *s, const struct server_settings *settings, const struct transport *t);

/* Take what there is on control_fd. */
void server_read(struct server *s);

/* Ask it to end: it answers what it has begun, then closes the image. */
void server_stop(struct server *s);

/* Note that it has ended. */
void server_ended(struct server *s, int wait_status);

void server_free(struct server *s);

/* In a child between fork and exec: signals as they were, and end if vhdx does, whatever ends it. */
void child_prepare(pid_t parent, const sigset_t *signals);

#endif
