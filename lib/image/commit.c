/* SPDX-License-Identifier: MIT */
/* Making changes durable: one commit, one log entry, one flush (docs/writing.md). */
#include "image/writer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"
#include "image/image.h"
#include "image/page-cache.h"
#include "storage/storage.h"

int writer_poison(struct image *img, int code)
{
    struct writer *w = img->writer;

    pthread_mutex_lock(&w->meta);
    if (w->state != WRITER_POISONED)
        error_save(&w->poison);
    w->state = WRITER_POISONED;
    pthread_mutex_unlock(&w->meta);
    return code;
}

int writer_check(struct image *img)
{
    struct writer *w = img->writer;

    if (w->state != WRITER_POISONED)
        return 0;
    pthread_mutex_lock(&w->meta);
    struct error_text why = w->poison;
    pthread_mutex_unlock(&w->meta);
    return fail(-EIO,
                "an earlier write to log or tables failed (%.600s), so no more changes are taken; close the image and open it again: "
                "its log brings back everything that was flushed",
                why.text);
}

/* ---- the snapshot ---- */

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void copy_page(void *opaque, uint8_t page[PAGE_BYTES])
{
    memcpy(opaque, page, PAGE_BYTES);
}

/* Copy all dirty pages; their holds go over to the snapshot. */
static void take_snapshot(struct image *img)
{
    struct writer *w = img->writer;
    struct snapshot *s = &w->pending;

    pthread_mutex_lock(&w->meta);
    s->nr = w->nr_dirty;
    memcpy(s->offsets, w->dirty, w->nr_dirty * sizeof *s->offsets);
    qsort(s->offsets, s->nr, sizeof *s->offsets, compare_u64);
    for (uint32_t i = 0; i < s->nr; i++)
        page_cache_edit(img->pages, s->offsets[i], copy_page, s->bytes + (size_t)i * PAGE_BYTES);
    s->data_first = w->data_first;
    s->last_offset = w->space.fresh_mib * OBJECT_ALIGNMENT;
    w->nr_dirty = 0;
    w->data_first = false;
    pthread_mutex_unlock(&w->meta);
}

static bool contains(const struct snapshot *s, uint64_t offset)
{
    return s->nr > 0 && bsearch(&offset, s->offsets, s->nr, sizeof *s->offsets, compare_u64);
}

/* Write the previous commit's pages to their places, from its snapshot (W3).  What the pending entry holds in a newer version is
 * left to it (W5: it supersedes them, and stays in the sequence until it has been written home itself). */
static int write_home(struct image *img)
{
    struct writer *w = img->writer;

    for (uint32_t i = 0; i < w->previous.nr; i++) {
        if (contains(&w->pending, w->previous.offsets[i]))
            continue;
        int r = storage_pwrite(img->file, w->previous.bytes + (size_t)i * PAGE_BYTES, PAGE_BYTES, w->previous.offsets[i]);
        if (r < 0)
            return fail_in(r, "table page at 0x%" PRIx64, w->previous.offsets[i]);
    }
    return 0;
}

static int append_pending(struct image *img)
{
    struct writer *w = img->writer;
    struct log_page pages[LOG_MAX_PAGES];
    struct log_lengths lengths = {.durable_length = w->durable_length, .last_offset = w->pending.last_offset};

    for (uint32_t i = 0; i < w->pending.nr; i++)
        pages[i] = (struct log_page){w->pending.offsets[i], w->pending.bytes + (size_t)i * PAGE_BYTES};
    return log_writer_append(&w->log, pages, w->pending.nr, &lengths);
}

/* The pending entry is durable, the previous pages are in their places. */
static void turn_over(struct image *img)
{
    struct writer *w = img->writer;
    struct snapshot free_one = w->previous;

    log_writer_commit(&w->log);
    for (uint32_t i = 0; i < w->previous.nr; i++)
        page_cache_release(img->pages, w->previous.offsets[i]);
    w->previous = w->pending;
    w->pending = free_one;
    w->pending.nr = 0;
}

/* A flush has completed: freed space moves on.  Punching it may take long, and nobody who allocates waits for it (C3). */
static void advance_space(struct image *img)
{
    struct writer *w = img->writer;
    uint64_t offset, bytes;
    size_t at = 0;

    pthread_mutex_lock(&w->meta);
    space_advance(&w->space, &w->inflight, atomic_load(&w->started));
    while (space_next_to_punch(&w->space, &at, &offset, &bytes)) {
        pthread_mutex_unlock(&w->meta);
        int r = storage_punch(img->file, offset, bytes);
        pthread_mutex_lock(&w->meta);
        space_note_punched(&w->space, at, r == 0);
    }
    pthread_mutex_unlock(&w->meta);
}

/* Flush; what was written before is durable, and freed space moves on. */
static int flush_file(struct image *img, bool everything_logged)
{
    struct writer *w = img->writer;

    pthread_mutex_lock(&w->meta);
    uint64_t length = w->space.end_mib * OBJECT_ALIGNMENT;
    pthread_mutex_unlock(&w->meta);
    int r = storage_flush(img->file);
    if (r < 0)
        return writer_poison(img, r);
    w->durable_length = length;
    if (everything_logged)
        advance_space(img);
    return 0;
}

/* Bring the pending snapshot into the log. */
static int log_pending(struct image *img)
{
    struct writer *w = img->writer;
    int r = 0;

    if (w->pending.data_first) {
        r = flush_file(img, false);
        if (r < 0)
            return r;
        w->pending.data_first = false;
    }
    r = write_home(img);
    if (r == 0)
        r = append_pending(img);
    if (r < 0)
        return is_no_space(r) ? r : writer_poison(img, r); /* nothing relies on what was written (D10) */
    r = storage_flush(img->file);
    if (r < 0)
        return writer_poison(img, r);
    turn_over(img);
    return 0;
}

static int commit_locked(struct image *img)
{
    struct writer *w = img->writer;
    bool flushed = false;
    int r = writer_check(img);

    if (r < 0)
        return r;
    if (w->pending.nr > 0) { /* left over from a time without space */
        r = log_pending(img);
        if (r < 0)
            return r;
    }
    take_snapshot(img);
    pthread_mutex_lock(&w->meta);
    uint64_t length = w->space.end_mib * OBJECT_ALIGNMENT;
    pthread_mutex_unlock(&w->meta);
    if (w->pending.nr > 0) {
        r = log_pending(img);
        flushed = true;
    }
    if (r == 0 && !flushed)
        return flush_file(img, true);
    if (r < 0)
        return r;
    w->durable_length = length;
    advance_space(img);
    return 0;
}

int writer_commit(struct image *img)
{
    struct writer *w = img->writer;
    uint64_t arrival = atomic_load(&w->started);
    int r = 0;

    if (w->state == WRITER_UNTOUCHED)
        return 0; /* nothing was written, so there is nothing to flush */
    pthread_mutex_lock(&w->commit);
    if (w->last_ok <= arrival) { /* else one that began after this call has done it all */
        uint64_t number = atomic_fetch_add(&w->started, 1) + 1;
        r = commit_locked(img);
        if (r == 0)
            w->last_ok = number;
    }
    pthread_mutex_unlock(&w->commit);
    return r;
}

/* ---- room ---- */

static bool has_freed_space(struct image *img)
{
    struct writer *w = img->writer;

    pthread_mutex_lock(&w->meta);
    bool freed = w->space.nr_freed > 0;
    pthread_mutex_unlock(&w->meta);
    return freed;
}

uint64_t writer_commits_begun(struct image *img)
{
    return atomic_load(&img->writer->started);
}

bool writer_make_room(struct image *img, uint64_t commits_begun)
{
    enum { NR_STEPS = 4 }; /* loss logged; requests of then gone (two, as new ones come); hole durable */
    struct error_text no_space;

    error_save(&no_space);
    for (unsigned step = 0; step < NR_STEPS && has_freed_space(img); step++) {
        if (writer_commit(img) < 0) {
            error_restore(&no_space);
            return false;
        }
    }
    return writer_commits_begun(img) > commits_begun; /* ours, or another thread's that was in time */
}

/* ---- the end ---- */

/* Put the last commit's pages into their places too. */
static int settle(struct image *img)
{
    struct writer *w = img->writer;
    int r = write_home(img);

    if (r == 0)
        r = storage_flush(img->file);
    if (r < 0)
        return writer_poison(img, r);
    for (uint32_t i = 0; i < w->previous.nr; i++)
        page_cache_release(img->pages, w->previous.offsets[i]);
    w->previous.nr = 0;
    for (unsigned step = 0; r == 0 && w->space.nr_freed > 0 && step < 3; step++)
        r = flush_file(img, true); /* nobody is in flight any more: all that was freed becomes clean */
    return r;
}

/* Clear the log GUID (W10), then cut what growing in large steps left over: no log entry can miss it any more. */
static int leave_clean(struct image *img)
{
    struct writer *w = img->writer;
    struct header clean = w->headers.current;

    memset(&clean.log_guid, 0, sizeof clean.log_guid);
    int r = header_pair_write(img->file, &w->headers, &clean);
    if (r == 0)
        r = space_cut(&w->space);
    if (r == 0)
        r = storage_flush(img->file);
    return r < 0 ? writer_poison(img, r) : 0;
}

int writer_detach(struct image *img)
{
    struct writer *w = img->writer;
    int r = 0;

    if (w->state != WRITER_UNTOUCHED) {
        r = writer_commit(img);
        pthread_mutex_lock(&w->commit);
        if (r == 0)
            r = settle(img);
        if (r == 0)
            r = leave_clean(img);
        pthread_mutex_unlock(&w->commit);
        log_writer_free(&w->log);
    }
    space_free_all(&w->space);
    free(w->pending.bytes);
    free(w->previous.bytes);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->meta);
    pthread_mutex_destroy(&w->commit);
    pthread_mutex_destroy(&w->session);
    free(w);
    img->writer = NULL;
    return r;
}
