/* SPDX-License-Identifier: MIT */
/* The beginning of changing an image: replay, identities, log (docs/writing.md, "State of a writable image"). */
#include "image/writer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/guid.h"
#include "base/math.h"
#include "image/image.h"
#include "image/overlay.h"
#include "storage/storage.h"

/* ---- replay ---- */

/* What is a hole is zeros already, and may be longer than any disk. */
static int write_zeros(struct storage *file, uint64_t start, uint64_t end)
{
    static const uint8_t zeros[64 * 1024];
    uint64_t data_end;
    int r = 0;

    while (r == 0 && start < end) {
        r = storage_next_data(file, start, &start, &data_end);
        if (r < 0 || start == data_end)
            return r;
        data_end = min_u64(data_end, end);
        for (size_t n; r == 0 && start < data_end; start += n) {
            n = min_u64(sizeof zeros, data_end - start);
            r = storage_pwrite(file, zeros, n, start);
        }
    }
    return r;
}

/* A few bytes of a hostile log can say this of a file as long as files may be, so it may neither take space nor time for what is
 * zeros already (H2): behind the former end growing the file made it so, before that a hole will do. */
static int replay_zeros(struct image *img, uint64_t start, uint64_t end)
{
    end = min_u64(end, img->overlay->stored_length);
    if (start >= end || storage_punch(img->file, start, end - start) == 0)
        return 0;
    return write_zeros(img->file, start, end);
}

/* What an older entry logged may lie behind the end that the newest one tells, if the file was cut meanwhile: then it is in no
 * structure, and readers do not see it either (4.8). */
static int replay_page(struct image *img, uint64_t start)
{
    uint8_t page[PAGE_BYTES];
    size_t bytes = min_u64(sizeof page, img->overlay->file_length - min_u64(start, img->overlay->file_length));

    if (bytes == 0)
        return 0;
    int r = overlay_pread(img->overlay, img->file, page, bytes, start);
    return r < 0 ? r : storage_pwrite(img->file, page, bytes, start);
}

static int replay_range(struct image *img, const struct overlay_range *range)
{
    int r = range->data_sector == 0 ? replay_zeros(img, range->start, range->end) : replay_page(img, range->start);

    return r < 0 ? fail_in(r, "replaying the log at 0x%" PRIx64, range->start) : 0;
}

/* 4.7 steps 5 to 9. */
static int replay(struct image *img)
{
    struct header_pair pair = {.current = img->header, .slot = img->header_slot};
    struct header next = img->header;
    uint64_t length;

    int r = guid_random(&next.file_write_guid);
    if (r == 0)
        r = header_pair_write(img->file, &pair, &next); /* LogGuid and DataWriteGuid stay */
    if (r == 0)
        r = storage_length(img->file, &length);
    if (r == 0 && length < img->overlay->file_length)
        r = storage_truncate(img->file, img->overlay->file_length);
    for (size_t i = 0; r == 0 && i < img->overlay->nr_ranges; i++)
        r = replay_range(img, &img->overlay->ranges[i]);
    if (r == 0)
        r = storage_flush(img->file);
    if (r < 0)
        return r;
    next = pair.current;
    memset(&next.log_guid, 0, sizeof next.log_guid);
    r = header_pair_write(img->file, &pair, &next);
    if (r < 0)
        return r;
    img->header = pair.current;
    img->header_slot = pair.slot;
    overlay_free(img->overlay);
    img->overlay = NULL;
    img->replayed = true;
    return 0;
}

/* ---- attaching ---- */

static int refuse(uint64_t file_offset, const char *what)
{
    return fail(VHDX_E_UNSUPPORTED, "%s at 0x%" PRIx64 ": it uses bits that this release does not know, so the image can be read but not "
                "written; convert it into a new one", what, file_offset);
}

/* What may be read in spite of unknown parts must not be written (format sections 3.4, 7.1, 7.4). */
static int check_writable(const struct image *img)
{
    for (uint32_t i = 0; i < img->nr_regions; i++) {
        if (img->regions[i].required_flags & ~(uint32_t)REGION_REQUIRED)
            return refuse(REGION_TABLE_OFFSET(0), "region table");
    }
    for (uint32_t i = 0; i < img->nr_items; i++) {
        if ((img->items[i].flags & ~7u) != 0 || img->items[i].reserved != 0)
            return refuse(img->metadata->file_offset, "metadata table");
    }
    if (img->values.parameter_flags & ~(uint32_t)PARAMETER_KNOWN_FLAGS)
        return refuse(img->metadata->file_offset, "metadata item \"File Parameters\"");
    if (img->header.log_length == 0)
        return fail(VHDX_E_UNSUPPORTED, "header: the image has no log, and without one it cannot be written safely; convert it into a new one");
    return header_check_log(&img->header, img->file_length);
}

int writer_attach(struct image *img)
{
    int r = check_writable(img);

    if (r == 0 && img->overlay)
        r = replay(img); /* what was read through the overlay stays true: the file now says the same */
    if (r < 0)
        return r;
    struct writer *w = aligned_alloc(_Alignof(struct writer), sizeof *w); /* its counters have cache lines of their own */
    if (!w)
        return fail_memory("writing");
    memset(w, 0, sizeof *w);
    w->max_dirty = log_writer_max_pages(img->header.log_length);
    w->pending.bytes = malloc((size_t)w->max_dirty * PAGE_BYTES);
    w->previous.bytes = malloc((size_t)w->max_dirty * PAGE_BYTES);
    w->headers = (struct header_pair){.current = img->header, .slot = img->header_slot};
    w->file_guid_renewed = img->replayed;
    pthread_mutex_init(&w->session, NULL);
    pthread_mutex_init(&w->commit, NULL);
    pthread_mutex_init(&w->meta, NULL);
    pthread_cond_init(&w->changed, NULL);
    img->writer = w;
    if (!w->pending.bytes || !w->previous.bytes) {
        writer_detach(img);
        return fail_memory("writing");
    }
    return 0;
}

/* ---- the first change ---- */

/* D7, W1: who we are now, before any other byte changes.  Of a merely read disk's content nothing changes yet, so that its
 * children stay valid (2.5), unless the change to come is visible. */
static int announce(struct image *img, const guid *data_write_guid)
{
    struct writer *w = img->writer;
    struct header next = w->headers.current;
    int r = w->file_guid_renewed ? 0 : guid_random(&next.file_write_guid);

    if (data_write_guid)
        next.data_write_guid = *data_write_guid;
    if (r == 0 && (data_write_guid || !w->file_guid_renewed))
        r = header_pair_write(img->file, &w->headers, &next);
    if (r == 0)
        w->file_guid_renewed = true;
    return r;
}

/* W2: the first entry, then the headers that name it. */
static int start_log(struct image *img)
{
    struct writer *w = img->writer;
    uint64_t length = w->space.end_mib * OBJECT_ALIGNMENT;
    struct log_lengths lengths = {.durable_length = 0, .last_offset = length};

    int r = log_writer_start(&w->log, img->file, img->header.log_offset, img->header.log_length, &lengths);
    if (r < 0)
        return r;
    w->durable_length = length; /* the flush in there covered it */
    struct header next = w->headers.current;
    next.log_guid = w->log.log_guid;
    return header_pair_write(img->file, &w->headers, &next);
}

/* D10: neither headers nor log run out of space later, when nobody could tell how far a write got. */
static int reserve_headers_and_log(struct image *img)
{
    for (unsigned slot = 0; slot < 2; slot++) {
        int r = storage_reserve(img->file, HEADER_OFFSET(slot), HEADER_RAW_BYTES);
        if (r < 0)
            return fail_in(r, "header at 0x%" PRIx64, (uint64_t)HEADER_OFFSET(slot));
    }
    int r = storage_reserve(img->file, img->header.log_offset, img->header.log_length);
    return r < 0 ? fail_in(r, "log at 0x%" PRIx64, img->header.log_offset) : 0;
}

/* From untouched to logging.  All that needs memory, or may miss space, comes before the first change. */
static int start(struct image *img, const guid *data_write_guid)
{
    struct writer *w = img->writer;
    struct mib_set used = {0};

    int r = bat_collect_used(img, &used); /* changes nothing: an image with overlaps stays as it is */
    if (r < 0) {
        mib_set_free(&used);
        return r;
    }
    r = space_init(&w->space, img->file, &used);
    if (r == 0)
        r = log_writer_allocate(&w->log, img->header.log_length);
    if (r == 0)
        r = reserve_headers_and_log(img);
    if (r < 0) { /* nothing was changed: the next write may try again */
        log_writer_free(&w->log);
        space_free_all(&w->space);
        return r;
    }
    bool fixed = image_is_fixed(img);
    r = announce(img, data_write_guid);
    if (r == 0)
        r = space_prepare(&w->space, fixed ? div_round_up(img->file_length, OBJECT_ALIGNMENT) : 0);
    if (r == 0)
        r = start_log(img);
    if (r < 0)
        return writer_poison(img, r);
    img->file_length = w->space.end_mib * OBJECT_ALIGNMENT;
    w->state = WRITER_LOGGING;
    return 0;
}

/* data_write_guid: NULL if the change to come is not visible. */
static int begin_locked(struct image *img, const guid *data_write_guid)
{
    struct writer *w = img->writer;
    int r = writer_check(img);

    if (r < 0)
        return r;
    if (w->state == WRITER_UNTOUCHED) {
        r = start(img, data_write_guid);
    } else if (data_write_guid) { /* the log goes on under its GUID */
        r = announce(img, data_write_guid);
        if (r < 0)
            writer_poison(img, r);
    }
    if (r == 0 && data_write_guid)
        w->data_guid_renewed = true; /* not before the log was started: others go on without the lock from here */
    return r;
}

int writer_begin(struct image *img)
{
    struct writer *w = img->writer;
    guid fresh;
    int r = 0;

    if (w->data_guid_renewed)
        return 0;
    pthread_mutex_lock(&w->session);
    if (!w->data_guid_renewed) {
        r = guid_random(&fresh);
        if (r == 0)
            r = begin_locked(img, &fresh);
    }
    pthread_mutex_unlock(&w->session);
    return r;
}

int writer_begin_invisible(struct image *img)
{
    struct writer *w = img->writer;

    if (w->state == WRITER_LOGGING)
        return 0;
    pthread_mutex_lock(&w->session);
    int r = begin_locked(img, NULL);
    pthread_mutex_unlock(&w->session);
    return r;
}

int writer_begin_as(struct image *img, const guid *data_write_guid)
{
    struct writer *w = img->writer;

    pthread_mutex_lock(&w->session);
    int r = begin_locked(img, data_write_guid);
    pthread_mutex_unlock(&w->session);
    return r;
}

struct header writer_header(struct image *img)
{
    struct writer *w = img->writer;

    pthread_mutex_lock(&w->session);
    struct header h = w->headers.current;
    pthread_mutex_unlock(&w->session);
    return h;
}
