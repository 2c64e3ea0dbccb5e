/* SPDX-License-Identifier: MIT */
/* Giving blocks space and taking it from them (docs/writing.md, "Space"). */
#include "image/writer.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/le.h"
#include "base/math.h"
#include "image/image.h"
#include "image/page-cache.h"
#include "storage/storage.h"

static uint64_t entry_offset(const struct image *img, uint64_t block_no)
{
    return bat_entry_offset(img, bat_index_of_block(&img->geometry, block_no));
}

static bool is_filling(const struct writer *w, uint64_t key)
{
    for (uint32_t i = 0; i < w->nr_filling; i++) {
        if (w->filling[i] == key)
            return true;
    }
    return false;
}

static void end_filling(struct writer *w, uint64_t key)
{
    for (uint32_t i = 0; i < w->nr_filling; i++) {
        if (w->filling[i] == key) {
            w->filling[i] = w->filling[--w->nr_filling];
            break;
        }
    }
    pthread_cond_broadcast(&w->changed);
}

struct entry_edit {
    struct image *img;
    uint64_t block_no, raw;
    size_t in_page;
};

/* Page and lookaside change together under the shard's lock, so nobody can remember the old place afterwards. */
static void edit_entry(void *opaque, uint8_t page[PAGE_BYTES])
{
    struct entry_edit *e = opaque;
    struct bat_entry entry = bat_entry_decode(e->raw);

    le64_put(page + e->in_page, e->raw);
    bat_remember(e->img, e->block_no, &entry);
}

void block_set_entry(struct image *img, uint64_t block_no, unsigned state, uint64_t place)
{
    uint64_t offset = entry_offset(img, block_no);
    struct entry_edit e = {
        .img = img, .block_no = block_no, .raw = bat_entry_encode(state, place), .in_page = offset % PAGE_BYTES};

    page_mark_dirty(img, offset);
    page_cache_edit(img->pages, offset, edit_entry, &e);
}

int block_lock(struct image *img, uint64_t key, const struct page_set *set)
{
    struct writer *w = img->writer;
    int r;

    while ((r = meta_lock(img, set)) == 0 && is_filling(w, key)) {
        pthread_cond_wait(&w->changed, &w->meta);
        meta_unlock(img); /* the room may be gone */
    }
    return r;
}

/* Lock meta with block_no's page held; *e is its entry now. */
static int lock_entry(struct image *img, uint64_t block_no, struct bat_entry *e, struct page_set *set)
{
    set->nr = 0;
    int r = page_set_add(img, set, entry_offset(img, block_no), BAT_ENTRY_BYTES);
    if (r == 0)
        r = block_lock(img, block_no, set);
    if (r == 0) {
        r = bat_lookup(img, block_no, e);
        if (r == 0)
            return 0;
        meta_unlock(img);
    }
    page_set_release(img, set);
    return r;
}

static void unlock_entry(struct image *img, struct page_set *set)
{
    meta_unlock(img);
    page_set_release(img, set);
}

/* Free what an entry owned, once the commit that will carry the present change is durable. */
static void release_space(struct image *img, const struct bat_entry *e)
{
    struct writer *w = img->writer;

    if (payload_owns_space(e))
        space_release(&w->space, e->file_offset / OBJECT_ALIGNMENT, img->geometry.block_size / OBJECT_ALIGNMENT,
                      atomic_load(&w->started) + 1);
}

/* As writer_make_zero(), by what the storage can do without being given the zeros. */
static int make_zero_at_once(struct image *img, uint64_t offset, uint64_t bytes, unsigned ways)
{
    int r = ways & ZERO_BY_HOLE ? storage_punch(img->file, offset, bytes) : storage_zero(img->file, offset, bytes);

    if (r == 0 || r == -ENOSPC || r == -EIO || ways & ZERO_NO_HOLE)
        return r;
    return ways & ZERO_BY_HOLE ? storage_zero(img->file, offset, bytes) : storage_punch(img->file, offset, bytes);
}

int writer_make_zero(struct image *img, uint64_t offset, uint64_t bytes, unsigned ways)
{
    static const uint8_t zeros[64 * 1024];
    int r = make_zero_at_once(img, offset, bytes, ways);

    if (r == 0 || r == -ENOSPC || r == -EIO)
        return r;
    if (ways & ZERO_FAST)
        return fail(-EOPNOTSUPP, "the file system cannot make zeros without writing them");
    r = 0;
    while (r == 0 && bytes > 0) {
        size_t n = min_u64(bytes, sizeof zeros);
        r = storage_pwrite(img->file, zeros, n, offset);
        offset += n;
        bytes -= n;
    }
    return r;
}

/* With meta locked and space taken that holds somebody's old data: make it zeros first, and have that flushed before the entry is
 * logged (D2).  Others who want the block wait.  Unlocks meta meanwhile.  -EAGAIN: look at the entry again. */
static int fill(struct image *img, uint64_t key, uint64_t place, uint64_t bytes)
{
    struct writer *w = img->writer;

    if (w->nr_filling == MAX_FILLING) {
        pthread_cond_wait(&w->changed, &w->meta);
        return -EAGAIN; /* nothing said that the block was taken, so somebody else may have given it space meanwhile */
    }
    w->filling[w->nr_filling++] = key;
    pthread_mutex_unlock(&w->meta);
    int r = writer_make_zero(img, place, bytes, 0);
    pthread_mutex_lock(&w->meta);
    end_filling(w, key);
    w->data_first = true;
    return r;
}

int block_take_space(struct image *img, uint64_t key, uint64_t bytes, const struct page_set *set, bool zeros, uint64_t *place)
{
    struct writer *w = img->writer;
    uint64_t nr_mib = bytes / OBJECT_ALIGNMENT, first_mib;
    enum space_content content;

    int r = space_take(&w->space, nr_mib, &first_mib, &content);
    if (r < 0)
        return r;
    *place = first_mib * OBJECT_ALIGNMENT;
    img->file_length = max_u64(img->file_length, w->space.end_mib * OBJECT_ALIGNMENT);
    if (!zeros || content == SPACE_ZEROS)
        return 0;
    r = fill(img, key, *place, bytes);
    if (r == 0 && !page_set_fits(img, set)) /* others dirtied pages meanwhile */
        r = -EAGAIN;
    if (r < 0)
        space_give_back(&w->space, first_mib, nr_mib, SPACE_FOREIGN);
    return r;
}

int block_allocate(struct image *img, uint64_t block_no, const struct bat_entry *e, const struct page_set *set, uint64_t *place)
{
    struct space *space = &img->writer->space;
    int r = space_reserve_freed(space);

    if (r == 0)
        r = block_take_space(img, block_no, img->geometry.block_size, set, true, place);
    if (r < 0)
        return r;
    r = space_reserve_freed(space); /* again: others may have freed space while ours was made zeros */
    if (r < 0) {
        space_give_back(space, *place / OBJECT_ALIGNMENT, img->geometry.block_size / OBJECT_ALIGNMENT, SPACE_FOREIGN);
        return r;
    }
    release_space(img, e); /* a soft anchor */
    block_set_entry(img, block_no, PAYLOAD_FULLY_PRESENT, *place);
    return 0;
}

int block_for_write(struct image *img, uint64_t block_no, uint64_t *place)
{
    struct page_set set;
    struct bat_entry e;
    int r;

    *place = bat_lookaside(img, block_no);
    if (*place != 0)
        return 0;
    do {
        r = lock_entry(img, block_no, &e, &set);
        if (r < 0)
            return r;
        if (e.state == PAYLOAD_FULLY_PRESENT)
            *place = e.file_offset;
        else
            r = block_allocate(img, block_no, &e, &set, place);
        unlock_entry(img, &set);
    } while (r == -EAGAIN);
    return r < 0 ? fail_in(r, "block %" PRIu64, block_no) : 0;
}

int block_drop(struct image *img, uint64_t block_no, unsigned state)
{
    struct writer *w = img->writer;
    struct page_set set;
    struct bat_entry e;

    int r = lock_entry(img, block_no, &e, &set);
    if (r < 0)
        return r;
    if (payload_owns_space(&e) || (image_has_parent(img) && e.state == PAYLOAD_NOT_PRESENT)) { /* else it reads as zeros already */
        r = space_reserve_freed(&w->space);
        if (r == 0) {
            release_space(img, &e);
            block_set_entry(img, block_no, state, 0);
        }
    }
    unlock_entry(img, &set);
    return r;
}
