/* SPDX-License-Identifier: MIT */
#include "io-request.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "output.h"

int io_trouble(const struct io_context *io, const char *format, ...)
{
    char *message = NULL;
    va_list args;

    va_start(args, format);
    if (vasprintf(&message, format, args) < 0)
        message = NULL;
    va_end(args);
    print_error(io->name, "%s%s", io->where, message ? message : "out of memory");
    free(message);
    return -1;
}

int io_library_trouble(const struct io_context *io, const char *what, int code)
{
    return io_trouble(io, "%s failed: %s", what, library_message(code));
}

/* ---- numbers as qemu-io shows them ---- */

const char *io_amount(double bytes, char text[IO_AMOUNT_BYTES])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t unit = 0;

    for (; bytes >= 1024 && unit + 1 < sizeof units / sizeof *units; unit++)
        bytes /= 1024;
    int n = snprintf(text, IO_AMOUNT_BYTES, "%.3f", bytes);
    if (n > 4 && strcmp(text + n - 4, ".000") == 0)
        n -= 4;
    snprintf(text + n, IO_AMOUNT_BYTES - (size_t)n, " %s", units[unit]);
    return text;
}

double io_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void io_report(const struct io_context *io, const struct io_request *r, const char *verb, double seconds)
{
    char done[IO_AMOUNT_BYTES], rate[IO_AMOUNT_BYTES], took[IO_AMOUNT_BYTES];
    double per_second = seconds > 0 ? 1 / seconds : 0; /* what moved nothing took no time */

    if (r->quiet || io->quiet)
        return;
    if (seconds < 60)
        snprintf(took, sizeof took, "%05.2f sec", seconds);
    else
        snprintf(took, sizeof took, "%02u:%02u:%05.2f", (unsigned)(seconds / 3600), (unsigned)(seconds / 60) % 60,
                 seconds - 60 * (double)(uint64_t)(seconds / 60));
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", verb, r->length, r->length, r->offset);
    printf("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n", io_amount((double)r->length, done), took,
           io_amount((double)r->length * per_second, rate), per_second);
}

/* ---- ranges ---- */

size_t io_piece_bytes(const struct io_request *r, uint64_t done)
{
    return r->length - done < IO_PIECE_BYTES ? (size_t)(r->length - done) : IO_PIECE_BYTES;
}

bool io_in_disk(const struct io_context *io, const struct io_request *r)
{
    uint64_t size = vhdx_size(io->disk);

    if (r->offset <= size && r->length <= size - r->offset)
        return true;
    io_trouble(io, "%" PRIu64 " bytes at offset %" PRIu64 " reach beyond the end of the disk, %" PRIu64 " bytes", r->length,
               r->offset, size);
    return false;
}
