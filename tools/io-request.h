/* SPDX-License-Identifier: MIT */
/* What the commands of "vhdx io" share: a request as its words asked for it, how it is done, and how that is told. */
#ifndef IO_REQUEST_H
#define IO_REQUEST_H

#include <stddef.h>

#include "io-command.h"

enum { IO_PIECE_BYTES = 4 << 20, IO_AMOUNT_BYTES = 48 };

/* What a line asks for. */
struct io_request {
    uint64_t offset, length;
    int pattern; /* -1: none given */
    const char *source;
    uint64_t verify_skip, verify_length; /* where in the range the pattern is looked for */
    bool verify_length_given, verify_skip_given;
    bool quiet, dump, fua, zeroes, unmap;
};

/* ---- io-request.c ---- */

/* Say what went wrong with the command, and return -1. */
int io_trouble(const struct io_context *io, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* The same of a call of the library that has returned code. */
int io_library_trouble(const struct io_context *io, const char *what, int code);

/* bytes in words: "1.500 MiB". */
const char *io_amount(double bytes, char text[IO_AMOUNT_BYTES]);

/* Seconds, from some moment on. */
double io_now(void);

/* The statistics of a request that is done, unless nobody wants them. */
void io_report(const struct io_context *io, const struct io_request *r, const char *verb, double seconds);

/* Does the range lie in the disk?  If not, that has been reported. */
bool io_in_disk(const struct io_context *io, const struct io_request *r);

/* How much to move next, at most IO_PIECE_BYTES. */
size_t io_piece_bytes(const struct io_request *r, uint64_t done);

/* ---- io-read.c, io-write.c ---- */

/* Do the request.  0, or -1 after the failure was reported.  They need no arguments but the range. */
int io_run_read(const struct io_context *io, struct io_request *r, char **arguments);
int io_run_write(const struct io_context *io, struct io_request *r, char **arguments);
int io_run_discard(const struct io_context *io, struct io_request *r, char **arguments);
int io_run_flush(const struct io_context *io, struct io_request *r, char **arguments);

#endif
