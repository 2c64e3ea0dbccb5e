/* SPDX-License-Identifier: MIT */
/* What the parts of the nbdkit plugin share.  See nbdkit-plugin(3) for the life of a plugin. */
#ifndef NBDKIT_VHDX_PLUGIN_H
#define NBDKIT_VHDX_PLUGIN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "vhdx.h"

/* ---- parameters.c ---- */

enum access {
    ACCESS_AUTO,  /* read until a client comes that may write: only then does nbdkit say whether it was started with -r */
    ACCESS_READ,  /* never write */
    ACCESS_WRITE, /* open for writing before the first client comes */
};

struct parameters {
    char *file, *parent; /* owned; absolute, since nbdkit changes its folder */
    char **parent_dirs;  /* owned, absolute */
    size_t nr_parent_dirs;
    bool allow_parent_path, force_share;
    enum access access;
    bool access_is_set;
    int control_fd; /* -1: none */
    char **removed; /* owned, absolute: sockets and folders that go when the server ends */
    int *removed_fds; /* as many: what they were when serving began, held so that nothing else can be taken for it; -1: nothing */
    size_t nr_removed;
};

extern struct parameters parameters;

int parameters_take(const char *key, const char *value);
int parameters_complete(void);
void parameters_free(void);
extern const char parameters_help[];

/* ---- served.c ---- */

/* Requests that succeeded, and all that failed. */
struct counts {
    atomic_uint_fast64_t reads, read_bytes, writes, write_bytes, zeros, zero_bytes, trims, trim_bytes, flushes, questions, failures;
};

/* One client.  The disk is everybody's. */
struct connection {
    struct connection *next; /* of those that are there */
    vhdx_disk *disk;       /* between served_request() and served_answer(): at all other times it may have been closed */
    bool writable;
    uint64_t size;         /* bytes */
    uint32_t physical_sector_size;
    atomic_uint nr_requests; /* that the library is working on */
    struct counts counts;
};

/* Open the disk as the parameters say.  0, or -1 with the reason reported. */
int served_open(void);

/* Serving begins.  0 or -1. */
int served_begin(void);

/* A client that is, or is not, for reading only.  NULL with the reason reported; or without, if the disk was closed for good. */
struct connection *served_connect(bool readonly);
void served_disconnect(struct connection *c);

/* Before and after a request.  false: no more of them are taken, and nbdkit has the error. */
bool served_request(struct connection *c);
void served_answer(struct connection *c);

/* Close the disk for good and say what became of it.  Clients may still be there, or come: no request of theirs is taken any
 * more. Does nothing the second time. */
void served_close(void);

/* Free what belongs to connections that nbdkit never closes: those that did not hang up by themselves. */
void served_free(void);

/* The same although nbdkit is stuck with so many clients; ends the process. */
_Noreturn void served_abandon(unsigned nr_clients);

/* Is any request being worked on?  *nr_done: how many are done. */
bool served_is_working(uint64_t *nr_done);

const char *served_description(void);

/* Report that the library failed with code, to the log. */
void report_error(int code) __attribute__((cold));

/* ---- control.c ---- */

/* A line for whoever runs the server. */
void control_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Watch for the end; stop watching.  0 or -1. */
int control_begin(void);
void control_end(void);

/* ---- extents.c ---- */

/* As nbdkit's .extents: block status of a range.  0, or what vhdx_map() says, or 1 if nbdkit has reported an error. */
int extents_collect(vhdx_disk *disk, uint64_t offset, uint64_t length, bool only_one, struct nbdkit_extents *extents);

#endif
