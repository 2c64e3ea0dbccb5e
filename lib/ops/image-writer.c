/* SPDX-License-Identifier: MIT */
#include "ops/image-writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/math.h"
#include "image/mib-set.h"
#include "storage/storage.h"

#define ZERO_BUFFER_BYTES MIB(1)
#define BAT_BUFFER_BYTES  KIB(64)

/* ---- length and space ---- */

static int set_length(const struct new_image *n, struct storage *s)
{
    int r = storage_truncate(s, n->file_length);

    return r == -EFBIG && new_image_is_fixed(n) ? fail_in(r, "a fixed image, where a dynamic one would not need such a length") : r;
}

static int reserve(const struct new_image *n, struct storage *s)
{
    int r = -1;

    errno = EOPNOTSUPP;
    if (s->fd >= 0) {
        do
            r = fallocate(s->fd, 0, (off_t)HEADER_AREA_BYTES, (off_t)(n->file_length - HEADER_AREA_BYTES));
        while (r < 0 && errno == EINTR);
    }
    if (r == 0)
        return 0;
    if (errno == EOPNOTSUPP || errno == ENOSYS)
        return fail(-ENOTSUP, "the file system cannot reserve space; use --preallocate=full to write zeros instead");
    return fail_errno("cannot reserve %" PRIu64 " bytes", n->file_length);
}

static int fill(const struct new_image *n, struct storage *s, vhdx_progress_fn *progress, void *opaque)
{
    uint8_t *zeros = calloc(1, ZERO_BUFFER_BYTES);
    int r = zeros ? 0 : fail_memory("zeros to write");

    /* Both ends are MiB. */
    for (uint64_t at = HEADER_AREA_BYTES; r == 0 && at < n->file_length; at += ZERO_BUFFER_BYTES) {
        r = storage_pwrite(s, zeros, ZERO_BUFFER_BYTES, at);
        if (r == 0 && progress && progress(opaque, at, n->file_length) != 0)
            r = fail(-ECANCELED, "cancelled after %" PRIu64 " of %" PRIu64 " bytes", at, n->file_length);
    }
    free(zeros);
    return r;
}

int image_preallocate(const struct new_image *n, struct storage *s, enum vhdx_preallocation preallocation,
                      vhdx_progress_fn *progress, void *opaque)
{
    int r = set_length(n, s);

    if (r < 0 || preallocation == VHDX_PREALLOC_OFF)
        return r;
    return preallocation == VHDX_PREALLOC_FALLOC ? reserve(n, s) : fill(n, s, progress, opaque);
}

/* ---- structures ---- */

static int write_region_tables(const struct new_image *n, struct storage *s)
{
    uint8_t *raw = malloc(REGION_TABLE_RAW_BYTES);
    int r = raw ? 0 : fail_memory("a region table");

    if (r == 0)
        new_image_encode_region_table(n, raw);
    for (unsigned copy = 0; r == 0 && copy < 2; copy++)
        r = storage_pwrite(s, raw, REGION_TABLE_RAW_BYTES, REGION_TABLE_OFFSET(copy));
    free(raw);
    return r;
}

static int write_metadata(const struct new_image *n, struct storage *s)
{
    uint8_t *raw = malloc(new_image_metadata_bytes(n));
    int r = raw ? 0 : fail_memory("metadata");

    if (r == 0)
        r = new_image_encode_metadata(n, raw);
    if (r == 0)
        r = storage_pwrite(s, raw, new_image_metadata_bytes(n), n->metadata_offset);
    free(raw);
    return r;
}

static int write_headers(const struct new_image *n, struct storage *s)
{
    uint8_t raw[HEADER_RAW_BYTES];
    int r = 0;

    for (unsigned copy = 0; r == 0 && copy < 2; copy++) {
        new_image_encode_header(n, copy, raw);
        r = storage_pwrite(s, raw, sizeof raw, HEADER_OFFSET(copy));
    }
    return r;
}

/* Parts of the table without any entry stay holes, so that an empty image of any size costs nothing. */
static int write_bat(const struct new_image *n, struct storage *s, const struct mib_set *present)
{
    uint8_t *raw = malloc(BAT_BUFFER_BYTES);
    struct new_bat at = {0};
    int r = raw ? 0 : fail_memory("the block allocation table");

    while (r == 0 && at.bat_index < n->geometry.nr_bat_entries) {
        uint64_t offset = n->bat_offset + at.bat_index * BAT_ENTRY_BYTES;
        uint64_t nr = min_u64(BAT_BUFFER_BYTES / BAT_ENTRY_BYTES, n->geometry.nr_bat_entries - at.bat_index);
        if (new_image_encode_bat(n, present, &at, nr, raw))
            r = storage_pwrite(s, raw, nr * BAT_ENTRY_BYTES, offset);
    }
    free(raw);
    return r;
}

int image_write_tables(const struct new_image *n, struct storage *s, const struct mib_set *present)
{
    bool fixed = new_image_is_fixed(n);
    int r = set_length(n, s);

    if (r == 0)
        r = write_region_tables(n, s);
    if (r == 0)
        r = write_metadata(n, s);
    if (r == 0 && (fixed || (present && present->count > 0)))
        r = write_bat(n, s, fixed ? NULL : present);
    return r < 0 ? r : write_headers(n, s);
}

int image_seal(struct storage *s)
{
    uint8_t *raw = malloc(IDENTIFIER_RAW_BYTES);
    int r = raw ? storage_flush(s) : fail_memory("the identifier");

    if (r == 0) {
        new_image_encode_identifier(raw);
        r = storage_pwrite(s, raw, IDENTIFIER_RAW_BYTES, IDENTIFIER_OFFSET);
    }
    if (r == 0)
        r = storage_flush(s);
    free(raw);
    return r;
}
