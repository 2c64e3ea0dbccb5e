/* SPDX-License-Identifier: MIT */
/* Changing pages of tables and metadata, several in one log entry (docs/writing.md, "One commit, one entry, one flush"). */
#include "image/writer.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/math.h"
#include "image/image.h"
#include "image/page-cache.h"
#include "storage/storage.h"

/* ---- sets of pages ---- */

static bool set_has(const struct page_set *set, uint64_t page_offset)
{
    for (uint32_t i = 0; i < set->nr; i++) {
        if (set->offsets[i] == page_offset)
            return true;
    }
    return false;
}

/* Bring the page in and make sure that it can be written home without finding the disk full (D10). */
static int hold_page(struct image *img, uint64_t page_offset)
{
    int r = page_cache_hold(img->pages, page_offset);

    if (r < 0 || page_cache_has_space(img->pages, page_offset))
        return r;
    r = storage_reserve(img->file, page_offset, PAGE_BYTES);
    if (r < 0) {
        page_cache_release(img->pages, page_offset);
        return fail_in(r, "table page at 0x%" PRIx64, page_offset);
    }
    page_cache_note_space(img->pages, page_offset);
    return 0;
}

int page_set_add(struct image *img, struct page_set *set, uint64_t file_offset, uint64_t bytes)
{
    for (uint64_t at = align_down(file_offset, PAGE_BYTES); at < file_offset + bytes; at += PAGE_BYTES) {
        if (set_has(set, at))
            continue;
        if (set->nr == PAGE_SET_MAX)
            return fail(-E2BIG, "a change of more than %d table pages at a time", PAGE_SET_MAX);
        int r = hold_page(img, at);
        if (r < 0)
            return r;
        set->offsets[set->nr++] = at;
    }
    return 0;
}

void page_set_release(struct image *img, struct page_set *set)
{
    while (set->nr > 0)
        page_cache_release(img->pages, set->offsets[--set->nr]);
}

/* ---- the dirty set ---- */

static bool is_dirty(const struct writer *w, uint64_t page_offset)
{
    for (uint32_t i = 0; i < w->nr_dirty; i++) {
        if (w->dirty[i] == page_offset)
            return true;
    }
    return false;
}

bool page_set_fits(const struct image *img, const struct page_set *set)
{
    const struct writer *w = img->writer;
    uint32_t nr_new = 0;

    for (uint32_t i = 0; i < set->nr; i++)
        nr_new += !is_dirty(w, set->offsets[i]);
    return nr_new <= w->max_dirty - w->nr_dirty;
}

void page_mark_dirty(struct image *img, uint64_t file_offset)
{
    struct writer *w = img->writer;
    uint64_t page_offset = align_down(file_offset, PAGE_BYTES);

    if (is_dirty(w, page_offset))
        return;
    assert(w->nr_dirty < w->max_dirty);
    page_cache_hold(img->pages, page_offset); /* resident, since the caller holds it: cannot fail */
    w->dirty[w->nr_dirty++] = page_offset;
}

int meta_lock(struct image *img, const struct page_set *set)
{
    struct writer *w = img->writer;

    for (;;) {
        pthread_mutex_lock(&w->meta);
        if (w->state != WRITER_POISONED && page_set_fits(img, set))
            return 0;
        pthread_mutex_unlock(&w->meta);
        int r = writer_commit(img); /* makes room; says so if the image is poisoned */
        if (r < 0)
            return r;
    }
}

void meta_unlock(struct image *img)
{
    pthread_mutex_unlock(&img->writer->meta);
}

/* ---- bytes of metadata ---- */

static void put_bytes(void *opaque, uint8_t page[PAGE_BYTES])
{
    const struct metadata_edit *part = opaque;

    memcpy(page + part->file_offset % PAGE_BYTES, part->bytes, part->length);
}

static void edit_one(struct image *img, const struct metadata_edit *edit)
{
    for (size_t done = 0; done < edit->length;) {
        uint64_t at = edit->file_offset + done;
        struct metadata_edit part = {.file_offset = at, .bytes = (const uint8_t *)edit->bytes + done,
                                     .length = min_u64(edit->length - done, PAGE_BYTES - at % PAGE_BYTES)};
        page_mark_dirty(img, at);
        page_cache_edit(img->pages, at, put_bytes, &part);
        done += part.length;
    }
}

int image_edit_metadata(struct image *img, const struct metadata_edit *edits, size_t nr)
{
    struct page_set set = {0};
    int r = 0;

    for (size_t i = 0; r == 0 && i < nr; i++)
        r = page_set_add(img, &set, edits[i].file_offset, edits[i].length);
    if (r == 0)
        r = meta_lock(img, &set);
    if (r == 0) {
        for (size_t i = 0; i < nr; i++)
            edit_one(img, &edits[i]);
        meta_unlock(img);
    }
    page_set_release(img, &set);
    return r;
}

int image_read_metadata(struct image *img, void *buf, size_t bytes, uint64_t file_offset)
{
    for (size_t done = 0; done < bytes;) {
        uint64_t at = file_offset + done;
        size_t n = min_u64(bytes - done, PAGE_BYTES - at % PAGE_BYTES);
        int r = page_cache_read(img->pages, (uint8_t *)buf + done, n, at);
        if (r < 0)
            return r;
        done += n;
    }
    return 0;
}
