/* SPDX-License-Identifier: MIT */
#include "fake-libnbd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"
#include "storage/libnbd.h"

struct fake_export fake_export;

int __wrap_libnbd_load(struct libnbd *api);

/* libnbd needs memory for a handle and for each request; where that is made to run out, so it does here. */
static struct nbd_handle *fake_create(void)
{
    return malloc(1);
}

static void fake_close(struct nbd_handle *h)
{
    free(h);
}

static const char *fake_get_error(void)
{
    return "nbd_fake: no memory";
}

static int fake_get_errno(void)
{
    return ENOMEM; /* nothing else fails */
}

/* ---- what the export is like ---- */

static int yes(struct nbd_handle *h)
{
    (void)h;
    return 1;
}

static int no(struct nbd_handle *h)
{
    (void)h;
    return 0;
}

static int take_flag(struct nbd_handle *h, bool flag)
{
    (void)h, (void)flag;
    return 0;
}

static int take_text(struct nbd_handle *h, const char *text)
{
    (void)h, (void)text;
    return 0;
}

static int has_context(struct nbd_handle *h, const char *context)
{
    (void)h, (void)context;
    return fake_export.is_zero != NULL;
}

static int64_t get_size(struct nbd_handle *h)
{
    (void)h;
    return (int64_t)fake_export.size;
}

static int64_t get_block_size(struct nbd_handle *h, int which)
{
    (void)h;
    return which == LIBNBD_SIZE_MINIMUM ? fake_export.min_block : (int64_t)MIB(1);
}

static int no_socket(struct nbd_handle *h)
{
    (void)h;
    return -1;
}

static unsigned no_direction(struct nbd_handle *h)
{
    (void)h;
    return 0;
}

static int hang_up(struct nbd_handle *h, uint32_t flags)
{
    (void)h, (void)flags;
    return 0;
}

/* ---- requests ---- */

static int64_t begin(void)
{
    void *request = malloc(1);

    free(request);
    return request ? 1 : -1;
}

static int64_t end(int64_t cookie, nbd_completion_callback done)
{
    int error = 0;

    if (cookie > 0)
        done.callback(done.user_data, &error);
    return cookie;
}

static int64_t fake_pread(struct nbd_handle *h, void *buf, size_t count, uint64_t offset, nbd_completion_callback done, uint32_t flags)
{
    int64_t cookie = begin();

    (void)h, (void)flags;
    if (cookie > 0 && fake_export.content)
        memcpy(buf, fake_export.content + offset, count);
    else if (cookie > 0)
        memset(buf, 0, count);
    return end(cookie, done);
}

static int64_t fake_pwrite(struct nbd_handle *h, const void *buf, size_t count, uint64_t offset, nbd_completion_callback done,
                           uint32_t flags)
{
    int64_t cookie = begin();

    (void)h, (void)flags;
    if (cookie > 0 && fake_export.content)
        memcpy(fake_export.content + offset, buf, count);
    return end(cookie, done);
}

static int64_t fake_zero(struct nbd_handle *h, uint64_t count, uint64_t offset, nbd_completion_callback done, uint32_t flags)
{
    int64_t cookie = begin();

    (void)h, (void)flags;
    if (cookie > 0 && fake_export.content)
        memset(fake_export.content + offset, 0, count);
    return end(cookie, done);
}

static int64_t fake_flush(struct nbd_handle *h, nbd_completion_callback done, uint32_t flags)
{
    (void)h, (void)flags;
    return end(begin(), done);
}

/* Neighbours that are alike are one range, as servers do it. */
static int64_t fake_block_status(struct nbd_handle *h, uint64_t count, uint64_t offset, nbd_extent_callback take,
                                 nbd_completion_callback done, uint32_t flags)
{
    uint32_t *entries = malloc(count / fake_export.range_bytes * 2 * sizeof *entries + 2 * sizeof *entries);
    size_t nr = 0;
    int error = 0;

    (void)h, (void)flags;
    if (!entries)
        return -1;
    fake_export.nr_questions++;
    for (uint64_t at = offset; at < offset + count;) {
        uint64_t next = min_u64(align_down(at, fake_export.range_bytes) + fake_export.range_bytes, offset + count);
        uint32_t state = fake_export.is_zero(at) ? LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO : 0;
        if (nr > 0 && entries[nr - 1] == state) {
            entries[nr - 2] += (uint32_t)(next - at);
        } else {
            entries[nr++] = (uint32_t)(next - at);
            entries[nr++] = state;
        }
        at = next;
    }
    take.callback(take.user_data, LIBNBD_CONTEXT_BASE_ALLOCATION, offset, entries, nr, &error);
    free(entries);
    return end(1, done);
}

int __wrap_libnbd_load(struct libnbd *api)
{
    *api = (struct libnbd){
        .create = fake_create,
        .close = fake_close,
        .connect_uri = take_text,
        .get_error = fake_get_error,
        .get_errno = fake_get_errno,
        .set_uri_allow_local_file = take_flag,
        .add_meta_context = take_text,
        .can_meta_context = has_context,
        .get_size = get_size,
        .get_block_size = get_block_size,
        .is_read_only = no,
        .can_flush = yes,
        .can_zero = yes,
        .aio_pread = fake_pread,
        .aio_pwrite = fake_pwrite,
        .aio_flush = fake_flush,
        .aio_zero = fake_zero,
        .aio_block_status = fake_block_status,
        .aio_disconnect = hang_up,
        .aio_get_fd = no_socket,
        .aio_get_direction = no_direction,
        .aio_notify_read = no,
        .aio_notify_write = no,
        .aio_is_dead = no,
        .aio_is_closed = no,
    };
    return 0;
}
