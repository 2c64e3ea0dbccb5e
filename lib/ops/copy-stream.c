/* SPDX-License-Identifier: MIT */
#include "ops/ops.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"
#include "base/math.h"
#include "ops/copy-source.h"
#include "ops/copy-target.h"

#define BUFFER_BYTES MIB(1)

static int write_all(int fd, const uint8_t *p, size_t bytes, uint64_t guest_offset)
{
    while (bytes > 0) {
        ssize_t n = write(fd, p, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) { /* somebody made the pipe non-blocking */
            struct pollfd wait = {.fd = fd, .events = POLLOUT};
            poll(&wait, 1, -1);
            continue;
        }
        if (n < 0)
            return fail_errno("writing to the output at offset %" PRIu64, guest_offset);
        p += n;
        bytes -= (size_t)n;
        guest_offset += (uint64_t)n;
    }
    return 0;
}

static int send_piece(vhdx_disk *disk, const struct vhdx_extent *piece, int fd, uint8_t *buffer,
                      const uint8_t *zeros, const struct vhdx_copy_options *o)
{
    for (uint64_t from = 0; from < piece->length;) {
        size_t n = min_u64(BUFFER_BYTES, piece->length - from);
        int r = 0;
        if (piece->flags & VHDX_EXTENT_DATA)
            r = extent_pread(disk, piece, from, buffer, n);
        if (r == 0)
            r = copy_target_failed(o, write_all(fd, piece->flags & VHDX_EXTENT_DATA ? buffer : zeros, n, piece->guest_offset + from));
        if (r < 0)
            return r;
        from += n;
        if (o->progress && o->progress(o->opaque, piece->guest_offset + from, disk->size) != 0)
            return fail(-ECANCELED, "cancelled after %" PRIu64 " of %" PRIu64 " bytes", piece->guest_offset + from,
                        disk->size);
    }
    return 0;
}

int ops_copy_to_stream(vhdx_disk *disk, int fd, const struct vhdx_copy_options *options)
{
    static const struct vhdx_copy_options defaults = VHDX_COPY_OPTIONS_INIT;
    const struct vhdx_copy_options *o = options ? options : &defaults;
    uint8_t *buffer = NULL, *zeros = NULL;
    struct extent_cursor c;
    struct vhdx_extent piece;

    int r = copy_check_options(o);
    if (r == 0)
        r = extent_cursor_init(&c, disk, 0, disk->size);
    if (r < 0)
        return r;
    buffer = malloc(BUFFER_BYTES);
    zeros = calloc(1, BUFFER_BYTES);
    if (!buffer || !zeros)
        r = fail_memory("copying");
    while (r == 0 && (r = copy_next_piece(&c, MIB(64), &piece)) > 0)
        r = send_piece(disk, &piece, fd, buffer, zeros, o);
    free(buffer);
    free(zeros);
    extent_cursor_done(&c);
    return r;
}
