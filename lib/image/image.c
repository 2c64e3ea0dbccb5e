/* SPDX-License-Identifier: MIT */
#include "image/image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/identifier.h"
#include "image/internal.h"
#include "image/log-replay.h"
#include "image/overlay.h"
#include "image/page-cache.h"
#include "image/probe.h"
#include "image/writer.h"
#include "storage/storage.h"

/* A BAT of up to 1 MiB on disk is looked through at every open, which takes about a millisecond and covers all but huge
 * disks with small blocks; a larger one is judged entry by entry as it is used (format section 5.9). */
enum { VERIFY_MAX_ENTRIES = 128 * 1024 };

/* The first bytes of the file: is it a VHDX at all? (H6: if not, say what it is.) */
static int load_identifier(struct image *img)
{
    uint8_t first[IDENTIFIER_USED_BYTES];
    const char *what;

    int r = storage_pread_zero_fill(img->file, first, sizeof first, IDENTIFIER_OFFSET, NULL);
    if (r < 0)
        return r;
    if (identifier_signature_valid(first)) {
        identifier_creator(first, img->creator, sizeof img->creator);
        return 0;
    }
    r = image_probe(img->file, &what);
    return r < 0 ? r : fail(VHDX_E_NOT_VHDX, "not a VHDX image (no \"vhdxfile\" at offset 0); it looks like %s", what);
}

static int check_file_length(const struct image *img)
{
    if (img->file_length < HEADER_AREA_BYTES)
        return fail(VHDX_E_TRUNCATED,
                    "the file has only 0x%" PRIx64 " bytes, less than the 1 MiB of headers that every VHDX begins "
                    "with; it was cut short, restore it from a backup",
                    img->file_length);
    if (img->file_length > MAX_FILE_BYTES)
        return fail(VHDX_E_LIMIT, "the file is 0x%" PRIx64 " bytes long, beyond the limit of 0x%" PRIx64,
                    img->file_length, MAX_FILE_BYTES);
    return 0;
}

/* Both copies, and which one counts (2.2).  A copy that cannot be read is as good as an invalid one. */
static int load_headers(struct image *img)
{
    uint8_t raw[2][HEADER_RAW_BYTES];
    int r[2];

    for (unsigned n = 0; n < 2; n++)
        r[n] = storage_pread(img->file, raw[n], sizeof raw[n], HEADER_OFFSET(n));
    if (r[0] < 0 && r[1] < 0)
        return fail_in(r[0], "both headers");
    int current = header_choose(r[0] < 0 ? NULL : raw[0], r[1] < 0 ? NULL : raw[1]);
    if (current < 0)
        return current;
    header_decode(raw[current], &img->header);
    img->header_slot = (unsigned)current;
    return header_check_version(&img->header);
}

/* A dirty log is replayed in memory (4.8); what is wrong with a clean one's place does no harm to reading, except that a
 * log that claims to be huge is refused at once. */
static int load_log(struct image *img, unsigned flags)
{
    int r = header_check_log(&img->header, img->file_length);

    if (!header_log_is_dirty(&img->header))
        return r == VHDX_E_LIMIT ? r : 0;
    if (r < 0)
        return r;
    if (flags & IMAGE_REFUSE_DIRTY)
        return fail(VHDX_E_LOG_DIRTY,
                    "log at 0x%" PRIx64 ": it holds changes that are not in place yet, and replay was not allowed",
                    img->header.log_offset);
    r = log_replay_overlay(img->file, &img->header, img->file_length, &img->overlay);
    if (r == 0)
        img->file_length = img->overlay->file_length;
    return r;
}

static int fetch_page(void *opaque, void *buf, size_t bytes, uint64_t file_offset)
{
    struct image *img = opaque;

    /* The last page of a file that is no multiple of PAGE_BYTES long may hold the end of a table. */
    if (!range_fits(file_offset, bytes, img->file_length) && file_offset < img->file_length) {
        size_t n = img->file_length - file_offset;
        memset((uint8_t *)buf + n, 0, bytes - n);
        bytes = n;
    }
    return image_pread(img, buf, bytes, file_offset);
}

static int load_geometry(struct image *img)
{
    geometry_init(&img->geometry, img->values.virtual_size, img->values.block_size, img->values.logical_sector_size,
                  img->values.parameter_flags & PARAMETER_HAS_PARENT);
    uint64_t needed = img->geometry.nr_bat_entries * BAT_ENTRY_BYTES;
    if (img->bat->length < needed)
        return fail(VHDX_E_BAT,
                    "BAT at 0x%" PRIx64 ": %" PRIu32 " bytes long, but a disk of %" PRIu64 " bytes in blocks of %" PRIu32
                    " needs %" PRIu64 "; the metadata or the region table is damaged",
                    img->bat->file_offset, img->bat->length, img->geometry.virtual_size, img->geometry.block_size,
                    needed);
    return 0;
}

static int load(struct image *img, unsigned flags, size_t cache_pages)
{
    bool done;
    uint64_t length;
    int r = storage_length(img->file, &length);

    img->file_length = length;
    if (r == 0)
        r = load_identifier(img);
    if (r == 0)
        r = check_file_length(img);
    if (r == 0)
        r = load_headers(img);
    if (r == 0)
        r = load_log(img, flags);
    if (r == 0)
        r = regions_load(img);
    if (r == 0)
        r = metadata_load(img);
    if (r == 0)
        r = load_geometry(img);
    if (r == 0)
        r = page_cache_new(cache_pages, fetch_page, img, &img->pages);
    if (r == 0 && !(flags & IMAGE_UNVERIFIED))
        r = bat_verify(img, VERIFY_MAX_ENTRIES, &done);
    if (r == 0 && (flags & IMAGE_WRITABLE))
        r = writer_attach(img);
    return r;
}

int image_open(struct storage *file, unsigned flags, size_t cache_pages, struct image **result)
{
    struct image *img = calloc(1, sizeof *img);
    int r;

    *result = NULL;
    if (!img) {
        storage_close(file);
        return fail_memory("the image");
    }
    img->file = file;
    r = load(img, flags, cache_pages);
    if (r < 0) {
        image_close(img);
        return r;
    }
    *result = img;
    return 0;
}

int image_close(struct image *img)
{
    int r = 0;

    if (!img)
        return 0;
    if (img->writer)
        r = writer_detach(img);
    page_cache_free(img->pages);
    overlay_free(img->overlay);
    storage_close(img->file);
    free(img->regions);
    free(img->reserved);
    free(img->items);
    free(img->locator);
    free(img);
    return r;
}

int image_pread(struct image *img, void *buf, size_t bytes, uint64_t file_offset)
{
    if (img->overlay)
        return overlay_pread(img->overlay, img->file, buf, bytes, file_offset);
    return storage_pread(img->file, buf, bytes, file_offset);
}

/* Bytes that the file had when it was opened. */
static uint64_t stored_length(const struct image *img)
{
    return img->overlay ? img->overlay->stored_length : img->file_length;
}

/* Taking what is gone for zeros would show the guest a disk that never was. */
static int file_shrank(const struct image *img, uint64_t length)
{
    return fail(VHDX_E_TRUNCATED,
                "the file shrank from 0x%" PRIx64 " to 0x%" PRIx64 " bytes while it was open; another program is changing "
                "it",
                stored_length(img), length);
}

int image_next_data(struct image *img, uint64_t file_offset, uint64_t *start, uint64_t *end)
{
    if (img->overlay)
        return overlay_next_data(img->overlay, img->file, file_offset, start, end);
    uint64_t expected = img->writer ? 0 : img->file_length; /* a file that is written changes its length under our feet */
    int r = storage_next_data(img->file, file_offset, start, end);
    return r == 0 && *start == *end && *end < expected ? file_shrank(img, *end) : r;
}

static uint64_t iov_bytes(const struct iovec *iov, int nr_iov)
{
    uint64_t bytes = nr_iov > 0 ? iov[0].iov_len : 0;

    for (int i = 1; i < nr_iov; i++)
        bytes += iov[i].iov_len;
    return bytes;
}

static void iov_zero_from(const struct iovec *iov, int nr_iov, uint64_t at)
{
    for (int i = 0; i < nr_iov; i++) {
        if (at < iov[i].iov_len)
            memset((uint8_t *)iov[i].iov_base + at, 0, iov[i].iov_len - at);
        at -= min_u64(at, iov[i].iov_len);
    }
}

/* Payload under a page of the dirty log: nothing prevents a logged page from lying in a block (4.8). */
static int overlaid_payload(struct image *img, const struct iovec *iov, int nr_iov, uint64_t file_offset)
{
    for (int i = 0; i < nr_iov; i++) {
        uint64_t n = min_u64(iov[i].iov_len, img->file_length - min_u64(file_offset, img->file_length));
        int r = overlay_pread(img->overlay, img->file, iov[i].iov_base, n, file_offset);
        if (r < 0)
            return r;
        memset((uint8_t *)iov[i].iov_base + n, 0, iov[i].iov_len - n);
        file_offset += iov[i].iov_len;
    }
    return 0;
}

int image_preadv_payload(struct image *img, const struct iovec *iov, int nr_iov, uint64_t file_offset)
{
    uint64_t bytes = iov_bytes(iov, nr_iov);
    size_t got;

    if (img->overlay && overlay_touches(img->overlay, file_offset, bytes))
        return overlaid_payload(img, iov, nr_iov, file_offset);
    /* Straight to the driver (S1): that the range is possible was judged with the table entry. */
    int r = bytes > 0 ? img->file->ops->preadv(img->file, iov, nr_iov, file_offset, &got) : 0;
    if (r < 0 || bytes == 0)
        return r;
    if (got < bytes) {
        /* Behind the end of the file lies only what replay would add, or a cut last block (10.3). */
        uint64_t length;
        r = storage_length(img->file, &length);
        if (r < 0)
            return r;
        if (length < stored_length(img))
            return file_shrank(img, length);
        iov_zero_from(iov, nr_iov, got);
    }
    return 0;
}
