/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io-request.h"

enum { DEFAULT_PATTERN = 0xcd };

/* The bytes that a write writes: one byte value, or a file, over and over. */
struct source {
    int fd; /* -1: the value */
    uint64_t file_bytes;
    const char *name;
};

static int source_open(const struct io_context *io, const struct io_request *r, struct source *s)
{
    struct stat st;

    *s = (struct source){.fd = -1, .name = r->source};
    if (!r->source)
        return 0;
    s->fd = open(r->source, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0)
        return io_trouble(io, "-s %s: %s", r->source, strerror(errno));
    if (fstat(s->fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
        s->file_bytes = (uint64_t)st.st_size;
        return 0;
    }
    close(s->fd);
    return io_trouble(io, "-s %s: it has to be a file with something in it", r->source);
}

static int source_fill(const struct io_context *io, const struct source *s, uint8_t *buf, uint64_t at, size_t bytes)
{
    while (s->fd >= 0 && bytes > 0) {
        uint64_t from = at % s->file_bytes;
        size_t want = s->file_bytes - from < bytes ? (size_t)(s->file_bytes - from) : bytes;
        ssize_t n = pread(s->fd, buf, want, (off_t)from);
        if (n <= 0)
            return io_trouble(io, "-s %s: %s", s->name, n < 0 ? strerror(errno) : "it became shorter");
        buf += n;
        at += (size_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

static int write_data(const struct io_context *io, const struct io_request *r, double *seconds)
{
    size_t capacity = io_piece_bytes(r, 0);
    uint8_t *buf = malloc(capacity ? capacity : 1);
    struct source source = {.fd = -1};
    int result = buf ? source_open(io, r, &source) : io_trouble(io, "out of memory");

    if (result == 0)
        memset(buf, r->pattern < 0 ? DEFAULT_PATTERN : r->pattern, capacity);
    for (uint64_t done = 0; done < r->length && result == 0;) {
        size_t n = io_piece_bytes(r, done);
        result = source_fill(io, &source, buf, done, n);
        if (result < 0)
            break;
        double start = io_now();
        int code = vhdx_pwrite(io->disk, buf, n, r->offset + done, r->fua ? VHDX_FUA : 0);
        *seconds += io_now() - start;
        if (code < 0)
            result = io_library_trouble(io, "write", code);
        done += n;
    }
    if (source.fd >= 0)
        close(source.fd);
    free(buf);
    return result;
}

/* -u lets go of the space where it can, so it is a discard, which in this library reads as zeros like any other. */
static int write_zeroes(const struct io_context *io, const struct io_request *r, double *seconds)
{
    uint32_t flags = r->fua ? VHDX_FUA : 0;
    double start = io_now();
    int code = r->unmap ? vhdx_discard(io->disk, r->offset, r->length, flags)
                        : vhdx_zero(io->disk, r->offset, r->length, flags);

    *seconds += io_now() - start;
    return code < 0 ? io_library_trouble(io, "write", code) : 0;
}

int io_run_write(const struct io_context *io, struct io_request *r, char **arguments)
{
    double seconds = 0;

    (void)arguments;
    if (r->zeroes + (r->pattern >= 0) + (r->source != NULL) > 1)
        return io_trouble(io, "-P, -s and -z exclude each other");
    if (r->unmap && !r->zeroes)
        return io_trouble(io, "-u requires -z to be specified");
    if (!io_in_disk(io, r))
        return -1;
    int result = r->zeroes ? write_zeroes(io, r, &seconds) : write_data(io, r, &seconds);
    if (result == 0)
        io_report(io, r, "wrote", seconds);
    return result;
}

int io_run_discard(const struct io_context *io, struct io_request *r, char **arguments)
{
    double start = io_now();

    (void)arguments;
    if (!io_in_disk(io, r))
        return -1;
    int code = vhdx_discard(io->disk, r->offset, r->length, r->fua ? VHDX_FUA : 0);
    if (code < 0)
        return io_library_trouble(io, "discard", code);
    io_report(io, r, "discard", io_now() - start);
    return 0;
}

int io_run_flush(const struct io_context *io, struct io_request *r, char **arguments)
{
    int code = vhdx_flush(io->disk);

    (void)r;
    (void)arguments;
    return code < 0 ? io_library_trouble(io, "flush", code) : 0;
}
