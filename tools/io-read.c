/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "io-request.h"

enum { DUMP_COLUMNS = 16 };

static int verify(const struct io_context *io, const struct io_request *r, const uint8_t *buf, uint64_t at, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (at + i < r->verify_skip || at + i - r->verify_skip >= r->verify_length || buf[i] == r->pattern)
            continue;
        return io_trouble(io,
                          "Pattern verification failed at offset %" PRIu64 ", %" PRIu64 " bytes: byte %" PRIu64
                          " is 0x%02x, not 0x%02x",
                          r->offset + r->verify_skip, r->verify_length, r->offset + at + i, buf[i], (unsigned)r->pattern);
    }
    return 0;
}

static void dump(const uint8_t *buf, uint64_t offset, size_t n)
{
    for (size_t line = 0; line < n; line += DUMP_COLUMNS) {
        size_t columns = n - line < DUMP_COLUMNS ? n - line : DUMP_COLUMNS;

        printf("%08" PRIx64 ":  ", offset + line);
        for (size_t i = 0; i < columns; i++)
            printf("%02x ", buf[line + i]);
        putchar(' ');
        for (size_t i = 0; i < columns; i++) {
            uint8_t c = buf[line + i];
            putchar((c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ? c : '.');
        }
        putchar('\n');
    }
}

int io_run_read(const struct io_context *io, struct io_request *r, char **arguments)
{
    (void)arguments;
    if ((r->verify_skip_given || r->verify_length_given) && r->pattern < 0)
        return io_trouble(io, "-s and -l need a pattern, -P");
    if (!r->verify_length_given)
        r->verify_length = r->length > r->verify_skip ? r->length - r->verify_skip : 0;
    if (r->verify_skip > r->length || r->verify_length > r->length - r->verify_skip)
        return io_trouble(io, "-s and -l lie outside of the range that is read");
    if (!io_in_disk(io, r))
        return -1;
    uint8_t *buf = malloc(IO_PIECE_BYTES);
    if (!buf)
        return io_trouble(io, "out of memory");
    double seconds = 0;
    int result = 0;
    bool verified = true;
    for (uint64_t done = 0; done < r->length && result == 0;) {
        size_t n = io_piece_bytes(r, done);
        double start = io_now();
        int code = vhdx_pread(io->disk, buf, n, r->offset + done);
        seconds += io_now() - start;
        if (code < 0)
            result = io_library_trouble(io, "read", code);
        else if (r->pattern >= 0 && verified)
            verified = verify(io, r, buf, done, n) == 0;
        if (result == 0 && r->dump)
            dump(buf, r->offset + done, n);
        done += n;
    }
    free(buf);
    if (result == 0)
        io_report(io, r, "read", seconds);
    return verified ? result : -1;
}
