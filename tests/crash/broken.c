/* SPDX-License-Identifier: MIT */
#include "broken.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "image/image.h"
#include "image/page-cache.h"
#include "image/writer.h"
#include "storage/storage.h"

enum broken_rule broken_rule;
struct image *broken_image;

int __real_log_writer_append(struct log_writer *w, const struct log_page *pages, uint32_t nr, const struct log_lengths *lengths);
int __wrap_log_writer_append(struct log_writer *w, const struct log_page *pages, uint32_t nr, const struct log_lengths *lengths);
int __real_log_writer_start(struct log_writer *w, struct storage *file, uint64_t log_offset, uint32_t log_length,
                            const struct log_lengths *lengths);
int __wrap_log_writer_start(struct log_writer *w, struct storage *file, uint64_t log_offset, uint32_t log_length,
                            const struct log_lengths *lengths);
int __real_header_pair_write(struct storage *file, struct header_pair *pair, const struct header *wanted);
int __wrap_header_pair_write(struct storage *file, struct header_pair *pair, const struct header *wanted);
int __real_space_take(struct space *space, uint64_t nr_mib, uint64_t *first_mib, enum space_content *content);
int __wrap_space_take(struct space *space, uint64_t nr_mib, uint64_t *first_mib, enum space_content *content);
void __real_space_release(struct space *space, uint64_t first_mib, uint64_t nr_mib, uint64_t commit_no);
void __wrap_space_release(struct space *space, uint64_t first_mib, uint64_t nr_mib, uint64_t commit_no);
int __real_storage_pwrite(struct storage *s, const void *buf, size_t bytes, uint64_t offset);
int __wrap_storage_pwrite(struct storage *s, const void *buf, size_t bytes, uint64_t offset);
int __real_storage_flush(struct storage *s);
int __wrap_storage_flush(struct storage *s);
int __real_storage_punch(struct storage *s, uint64_t offset, uint64_t bytes);
int __wrap_storage_punch(struct storage *s, uint64_t offset, uint64_t bytes);

int __real_bat_lookup(struct image *img, uint64_t block_no, struct bat_entry *e);
int __wrap_bat_lookup(struct image *img, uint64_t block_no, struct bat_entry *e);
int __real_block_drop(struct image *img, uint64_t block_no, unsigned state);
int __wrap_block_drop(struct image *img, uint64_t block_no, unsigned state);
void __real_block_set_entry(struct image *img, uint64_t block_no, unsigned state, uint64_t place);
void __wrap_block_set_entry(struct image *img, uint64_t block_no, unsigned state, uint64_t place);
int __real_block_claim(struct image *img, struct block_claim *c);
int __wrap_block_claim(struct image *img, struct block_claim *c);
int __real_block_publish(struct image *img, struct block_claim *c);
int __wrap_block_publish(struct image *img, struct block_claim *c);

int __real_writer_make_zero(struct image *img, uint64_t offset, uint64_t bytes, unsigned ways);
int __wrap_writer_make_zero(struct image *img, uint64_t offset, uint64_t bytes, unsigned ways);

static struct storage *unwritten_entry; /* BROKEN_GUID_BEFORE_ENTRY: holds it */
static bool in_header_pair;
static unsigned headers_written;

static bool breaks(const struct storage *s, enum broken_rule rule)
{
    return broken_rule == rule && broken_image && s == broken_image->file;
}

int __wrap_log_writer_append(struct log_writer *w, const struct log_page *pages, uint32_t nr, const struct log_lengths *lengths)
{
    struct log_lengths changed = *lengths;
    uint32_t last_entry = w->last_entry;
    int r = 0;

    if (breaks(w->file, BROKEN_HOME_BEFORE_LOG)) {
        for (uint32_t i = 0; r == 0 && i < nr; i++)
            r = __real_storage_pwrite(w->file, pages[i].bytes, PAGE_BYTES, pages[i].file_offset);
    }
    if (breaks(w->file, BROKEN_TAIL_NOT_PUBLISHED))
        w->last_entry = 0;
    if (breaks(w->file, BROKEN_LAST_OFFSET))
        changed.last_offset = broken_image->bat->file_offset + broken_image->bat->length;
    if (r == 0)
        r = __real_log_writer_append(w, pages, nr, &changed);
    w->last_entry = last_entry;
    return r;
}

int __wrap_log_writer_start(struct log_writer *w, struct storage *file, uint64_t log_offset, uint32_t log_length,
                            const struct log_lengths *lengths)
{
    if (!breaks(file, BROKEN_GUID_BEFORE_ENTRY))
        return __real_log_writer_start(w, file, log_offset, log_length, lengths);
    int r = storage_memory_new(NULL, 0, &unwritten_entry);
    if (r == 0)
        r = __real_log_writer_start(w, unwritten_entry, log_offset, log_length, lengths);
    w->file = file;
    return r;
}

int __wrap_header_pair_write(struct storage *file, struct header_pair *pair, const struct header *wanted)
{
    uint8_t entry[LOG_SECTOR_BYTES];
    bool ends_session = guid_is_zero(&wanted->log_guid) && !guid_is_zero(&pair->current.log_guid);
    int r = 0;

    if (breaks(file, BROKEN_CUT_EARLY) && ends_session)
        r = storage_truncate(file, broken_image->bat->file_offset + broken_image->bat->length);
    in_header_pair = true;
    headers_written = 0;
    if (r == 0)
        r = __real_header_pair_write(file, pair, wanted);
    in_header_pair = false;
    if (r == 0 && unwritten_entry) {
        r = storage_pread(unwritten_entry, entry, sizeof entry, wanted->log_offset);
        if (r == 0)
            r = __real_storage_pwrite(file, entry, sizeof entry, wanted->log_offset);
        storage_close(unwritten_entry);
        unwritten_entry = NULL;
    }
    return r;
}

int __wrap_space_take(struct space *space, uint64_t nr_mib, uint64_t *first_mib, enum space_content *content)
{
    int r = __real_space_take(space, nr_mib, first_mib, content);

    if (breaks(space->file, BROKEN_FOREIGN_AS_ZEROS))
        *content = SPACE_ZEROS;
    return r;
}

void __wrap_space_release(struct space *space, uint64_t first_mib, uint64_t nr_mib, uint64_t commit_no)
{
    if (breaks(space->file, BROKEN_REUSE_AT_ONCE) &&
        __real_storage_punch(space->file, first_mib * OBJECT_ALIGNMENT, nr_mib * OBJECT_ALIGNMENT) == 0)
        space_give_back(space, first_mib, nr_mib, SPACE_ZEROS);
    else
        __real_space_release(space, first_mib, nr_mib, commit_no);
}

int __wrap_storage_pwrite(struct storage *s, const void *buf, size_t bytes, uint64_t offset)
{
    if (breaks(s, BROKEN_ONE_HEADER) && in_header_pair && headers_written++ == 1)
        return 0;
    if (breaks(s, BROKEN_HOME_NEVER) && offset >= broken_image->bat->file_offset &&
        offset < broken_image->bat->file_offset + broken_image->bat->length)
        return 0;
    return __real_storage_pwrite(s, buf, bytes, offset);
}

int __wrap_storage_flush(struct storage *s)
{
    if (breaks(s, BROKEN_NO_FLUSH) && broken_image->writer->state == WRITER_LOGGING)
        return 0;
    if (breaks(s, BROKEN_NO_FLUSH_BEFORE_ENTRY) && broken_image->writer->pending.data_first)
        return 0;
    return __real_storage_flush(s);
}

int __wrap_storage_punch(struct storage *s, uint64_t offset, uint64_t bytes)
{
    return breaks(s, BROKEN_NO_PUNCH) ? 0 : __real_storage_punch(s, offset, bytes);
}

/* ---- children ---- */

/* ZERO and UNMAPPED pass for NOT_PRESENT when space is wanted. */
int __wrap_bat_lookup(struct image *img, uint64_t block_no, struct bat_entry *e)
{
    int r = __real_bat_lookup(img, block_no, e);

    if (r == 0 && breaks(img->file, BROKEN_ZERO_TO_PARTIAL) && (e->state == PAYLOAD_ZERO || e->state == PAYLOAD_UNMAPPED))
        e->state = PAYLOAD_NOT_PRESENT;
    return r;
}

/* Change the entry of a block that was just changed, so that its page is in the dirty set. */
static int set_entry_again(struct image *img, uint64_t block_no, unsigned state, uint64_t place)
{
    struct page_set set = {0};
    int r = page_set_add(img, &set, bat_entry_offset(img, bat_index_of_block(&img->geometry, block_no)), BAT_ENTRY_BYTES);

    if (r == 0)
        r = meta_lock(img, &set);
    if (r == 0) {
        __real_block_set_entry(img, block_no, state, place);
        meta_unlock(img);
    }
    page_set_release(img, &set);
    return r;
}

int __wrap_block_drop(struct image *img, uint64_t block_no, unsigned state)
{
    int r = __real_block_drop(img, block_no, state);

    return r == 0 && breaks(img->file, BROKEN_TRIM_TO_PARENT) ? set_entry_again(img, block_no, PAYLOAD_NOT_PRESENT, 0) : r;
}

static void set_all_bits(void *opaque, uint8_t page[PAGE_BYTES])
{
    const uint64_t *at_and_bytes = opaque;
    memset(page + at_and_bytes[0], 0xff, at_and_bytes[1]);
}

void __wrap_block_set_entry(struct image *img, uint64_t block_no, unsigned state, uint64_t place)
{
    struct bat_entry bitmap;

    if (breaks(img->file, BROKEN_STALE_BITS) && state == PAYLOAD_PARTIALLY_PRESENT &&
        bat_lookup_bitmap(img, chunk_of_block(&img->geometry, block_no), &bitmap) == 0) {
        uint64_t at = bitmap.file_offset + bitmap_slice_offset(&img->geometry, block_no);
        uint64_t at_and_bytes[2] = {at % PAGE_BYTES, bitmap_slice_bytes(&img->geometry)}; /* of 1 MiB blocks: inside one page */
        page_mark_dirty(img, at);
        page_cache_edit(img->pages, at, set_all_bits, at_and_bytes);
    }
    __real_block_set_entry(img, block_no, state, place);
}

int __wrap_block_claim(struct image *img, struct block_claim *c)
{
    c->zeros_below |= breaks(img->file, BROKEN_ZEROS_BELOW);
    int r = __real_block_claim(img, c);
    if (breaks(img->file, BROKEN_NO_MERGE))
        c->merge_head = c->merge_tail = false;
    if (r == 0 && c->claimed && breaks(img->file, BROKEN_BITS_BEFORE_DATA)) {
        r = __real_block_publish(img, c);
        if (r == 0)
            r = writer_commit(img); /* somebody else's */
    }
    return r;
}

int __wrap_block_publish(struct image *img, struct block_claim *c)
{
    uint64_t block_no = c->block_no, place = c->place;
    int r = __real_block_publish(img, c);

    return r == 0 && breaks(img->file, BROKEN_PROMOTION) ? set_entry_again(img, block_no, PAYLOAD_FULLY_PRESENT, place) : r;
}

int __wrap_writer_make_zero(struct image *img, uint64_t offset, uint64_t bytes, unsigned ways)
{
    uint64_t in_block = offset % img->geometry.block_size; /* blocks of 1 MiB are aligned in the file */

    if (breaks(img->file, BROKEN_REST_NOT_ZERO) && in_block > 0 && in_block + bytes == img->geometry.block_size)
        return 0;
    return __real_writer_make_zero(img, offset, bytes, ways);
}
