/* SPDX-License-Identifier: MIT */
#include "ops/file-view.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "disk/disk.h"
#include "format/identifier.h"
#include "image/overlay.h"
#include "image/probe.h"
#include "storage/storage.h"

/* Neither signature nor header: say what it is instead. */
static int fail_not_vhdx(const struct file_view *v)
{
    const char *what;
    int r = image_probe(v->file, &what);

    if (r < 0)
        return r;
    return fail(VHDX_E_NOT_VHDX,
                "no \"vhdxfile\" signature at offset 0x0 and no valid header at 0x%" PRIx64 " or 0x%" PRIx64
                ": this is %s",
                HEADER_OFFSET(0), HEADER_OFFSET(1), what);
}

/* One copy of the header; one that cannot be read counts as damaged, unless neither can (2.2 rule 1). */
static int read_header_copy(struct file_view *v, unsigned n)
{
    uint8_t *raw = malloc(HEADER_RAW_BYTES);

    if (!raw)
        return fail_memory("a header");
    int r = storage_pread(v->file, raw, HEADER_RAW_BYTES, HEADER_OFFSET(n));
    if (r == 0)
        v->header_copies[n] = raw;
    else
        free(raw);
    return r;
}

static int look(struct file_view *v)
{
    struct header h;

    v->identifier = malloc(IDENTIFIER_RAW_BYTES);
    if (!v->identifier)
        return fail_memory("the file identifier");
    int r = storage_length(v->file, &v->real_length);
    if (r == 0)
        r = storage_pread_zero_fill(v->file, v->identifier, IDENTIFIER_RAW_BYTES, IDENTIFIER_OFFSET, NULL);
    if (r < 0)
        return r;
    v->length = v->real_length;
    v->signature_valid = identifier_signature_valid(v->identifier);

    int r0 = read_header_copy(v, 0), r1 = read_header_copy(v, 1);
    if (r0 < 0 && r1 < 0 && !is_format_error(r1))
        return r1;
    if (r0 == -ENOMEM || r1 == -ENOMEM)
        return fail_memory("a header");
    if (!v->signature_valid && file_view_choose_header(v, &h) < 0)
        return fail_not_vhdx(v);
    return 0;
}

int file_view_open(const char *path, const struct vhdx_open_options *options, struct file_view *v)
{
    uint32_t flags = options ? options->flags : 0;

    *v = (struct file_view){0};
    if (options && options->struct_bytes != sizeof *options)
        return fail(-EINVAL, "open options: struct_bytes is %zu, not %zu; begin with VHDX_OPEN_OPTIONS_INIT",
                    options->struct_bytes, sizeof *options);
    if (flags & VHDX_OPEN_RAW)
        return fail(-EINVAL, "a raw disk has no structures to look at; leave VHDX_OPEN_RAW out");
    int r = disk_open_file(path, flags & VHDX_OPEN_NBD, &v->file);
    if (r == 0 && !(flags & VHDX_OPEN_FORCE_SHARE))
        r = storage_lock(v->file, STORAGE_LOCK_SHARED);
    if (r == 0)
        r = look(v);
    if (r < 0)
        file_view_close(v);
    return r;
}

void file_view_close(struct file_view *v)
{
    overlay_free(v->overlay);
    storage_close(v->file);
    free(v->identifier);
    free(v->header_copies[0]);
    free(v->header_copies[1]);
    *v = (struct file_view){0};
}

void file_view_set_overlay(struct file_view *v, struct overlay *o)
{
    v->overlay = o;
    v->length = o->file_length;
}

int file_view_pread(const struct file_view *v, void *buf, size_t bytes, uint64_t offset)
{
    return v->overlay ? overlay_pread(v->overlay, v->file, buf, bytes, offset)
                      : storage_pread(v->file, buf, bytes, offset);
}

int file_view_next_data(const struct file_view *v, uint64_t offset, uint64_t *start, uint64_t *end)
{
    return v->overlay ? overlay_next_data(v->overlay, v->file, offset, start, end)
                      : storage_next_data(v->file, offset, start, end);
}

int file_view_choose_header(const struct file_view *v, struct header *h)
{
    int n = header_choose(v->header_copies[0], v->header_copies[1]);

    if (n >= 0)
        header_decode(v->header_copies[n], h);
    return n;
}
