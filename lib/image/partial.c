/* SPDX-License-Identifier: MIT */
/* Writing into blocks that are there in part, with a bit for each sector that is (docs/writing.md, "Differencing images"; format
 * sections 5.7, 6). */
#include "image/writer.h"

#include <errno.h>
#include <inttypes.h>

#include "base/le.h"
#include "base/math.h"
#include "image/image.h"
#include "image/page-cache.h"

/* ---- bits ---- */

/* A run of bits in a bitmap block. */
struct bit_run {
    uint64_t bitmap;     /* file offset of the bitmap block */
    uint64_t first, end; /* bits in it */
};

static struct bit_run bits_of_sectors(const struct geometry *g, uint64_t bitmap, uint64_t block_no, uint64_t first, uint64_t end)
{
    uint64_t slice = bitmap_slice_offset(g, block_no) * 8;
    return (struct bit_run){.bitmap = bitmap, .first = slice + first, .end = slice + end};
}

static uint64_t sectors_per_block(const struct geometry *g)
{
    return g->block_size / g->sector_size;
}

/* Those that the guest can see: fewer in a short last block. */
static uint64_t visible_sectors(const struct geometry *g, uint64_t block_no)
{
    return block_visible_bytes(g, block_no) / g->sector_size;
}

/* The part of the run that lies in the page of its first bit: where that page is, and the bits in it. */
static uint64_t first_page(const struct bit_run *run, uint64_t *first, uint64_t *end)
{
    const uint64_t per_page = PAGE_BYTES * 8;
    uint64_t page_no = run->first / per_page;

    *first = run->first % per_page;
    *end = min_u64(run->end - page_no * per_page, per_page);
    return run->bitmap + page_no * PAGE_BYTES;
}

struct bits_look {
    uint64_t first, end;
    bool wanted, same;
};

static void look_at_bits(void *opaque, const uint8_t page[PAGE_BYTES])
{
    struct bits_look *l = opaque;
    bool value;

    l->same = bitmap_run(page, l->first, l->end, &value) == l->end - l->first && value == l->wanted;
}

/* Are all bits of the run as wanted?  May read a page. */
static int bits_are(struct image *img, struct bit_run run, bool wanted, bool *answer)
{
    *answer = true;
    while (*answer && run.first < run.end) {
        struct bits_look l = {.wanted = wanted};
        uint64_t page = first_page(&run, &l.first, &l.end);
        int r = page_cache_look(img->pages, page, look_at_bits, &l);
        if (r < 0)
            return fail_in(r, "sector bitmap block at 0x%" PRIx64, run.bitmap);
        *answer = l.same;
        run.first += l.end - l.first;
    }
    return 0;
}

struct bits_edit {
    uint64_t first, end;
    bool value;
};

static void edit_bits(void *opaque, uint8_t page[PAGE_BYTES])
{
    const struct bits_edit *e = opaque;

    for (uint64_t bit = e->first; bit < e->end;) {
        bool whole_byte = bit % 8 == 0 && e->end - bit >= 8;
        uint8_t mask = whole_byte ? 0xff : (uint8_t)(1u << bit % 8);
        page[bit / 8] = e->value ? page[bit / 8] | mask : page[bit / 8] & (uint8_t)~mask;
        bit += whole_byte ? 8 : 1;
    }
}

/* With meta locked and the pages in a set that it was locked with. */
static void set_bits(struct image *img, struct bit_run run, bool value)
{
    while (run.first < run.end) {
        struct bits_edit e = {.value = value};
        uint64_t page = first_page(&run, &e.first, &e.end);
        page_mark_dirty(img, page);
        page_cache_edit(img->pages, page, edit_bits, &e);
        run.first += e.end - e.first;
    }
}

static int add_bits(struct image *img, struct page_set *set, const struct bit_run *run)
{
    return page_set_add(img, set, run->bitmap + run->first / 8, (run->end - 1) / 8 - run->first / 8 + 1);
}

static int add_entry(struct image *img, struct page_set *set, uint64_t bat_index)
{
    return page_set_add(img, set, bat_entry_offset(img, bat_index), BAT_ENTRY_BYTES);
}

/* ---- bitmap blocks ---- */

static void put_entry(void *opaque, uint8_t page[PAGE_BYTES])
{
    const uint64_t *at_and_raw = opaque;
    le64_put(page + at_and_raw[0], at_and_raw[1]);
}

/* Give the chunk a bitmap block, with meta locked.  It is zeros, durably before its entry, so it may be logged with the entries
 * of blocks that rely on it or before them (rule 1 of section 6).  It is never given up, so nothing of W8 can happen to it. */
static int allocate_bitmap(struct image *img, uint64_t chunk_no, const struct page_set *set, uint64_t *place)
{
    uint64_t offset = bat_entry_offset(img, bat_index_of_bitmap(&img->geometry, chunk_no));
    int r = block_take_space(img, bitmap_key(chunk_no), BITMAP_BLOCK_BYTES, set, true, place);

    if (r < 0)
        return r;
    uint64_t at_and_raw[2] = {offset % PAGE_BYTES, bat_entry_encode(BITMAP_PRESENT, *place)};
    page_mark_dirty(img, offset);
    page_cache_edit(img->pages, offset, put_entry, at_and_raw);
    return 0;
}

static int ensure_bitmap_once(struct image *img, uint64_t chunk_no, uint64_t *place)
{
    struct page_set set = {0};
    struct bat_entry e;

    int r = add_entry(img, &set, bat_index_of_bitmap(&img->geometry, chunk_no));
    if (r == 0)
        r = block_lock(img, bitmap_key(chunk_no), &set);
    if (r == 0) {
        r = bat_bitmap_entry(img, chunk_no, &e);
        if (r == 0 && e.state == BITMAP_PRESENT)
            *place = e.file_offset;
        else if (r == 0)
            r = allocate_bitmap(img, chunk_no, &set, place);
        meta_unlock(img);
    }
    page_set_release(img, &set);
    return r;
}

/* The chunk's bitmap block, made if there is none yet. */
static int ensure_bitmap(struct image *img, uint64_t chunk_no, uint64_t *place)
{
    struct bat_entry e;
    int r = bat_bitmap_entry(img, chunk_no, &e);

    *place = e.file_offset;
    if (r < 0 || e.state == BITMAP_PRESENT)
        return r;
    do
        r = ensure_bitmap_once(img, chunk_no, place);
    while (r == -EAGAIN);
    return r < 0 ? fail_in(r, "sector bitmap block of chunk %" PRIu64, chunk_no) : 0;
}

/* ---- claims ---- */

/* Does the claim complete one of the sectors [first, end) with what the parents hold? */
static bool merges(const struct block_claim *c, uint32_t first, uint32_t end)
{
    return (c->merge_head && c->first >= first && c->first < end) || (c->merge_tail && c->end - 1 >= first && c->end - 1 < end);
}

/* May both write at a time?  Whole sectors may come in any order (C2); but who completes a sector must neither miss what another
 * writes into it meanwhile nor write over it. */
static bool conflict(const struct block_claim *a, const struct block_claim *b)
{
    uint32_t first = a->first > b->first ? a->first : b->first;
    uint32_t end = a->end < b->end ? a->end : b->end;

    return a->block_no == b->block_no && first < end && (merges(a, first, end) || merges(b, first, end));
}

static bool is_free(const struct writer *w, const struct block_claim *c)
{
    for (const struct block_claim *other = w->claims; other; other = other->next) {
        if (conflict(c, other))
            return false;
    }
    return true;
}

static bool has_company(const struct writer *w, uint64_t block_no)
{
    for (const struct block_claim *other = w->claims; other; other = other->next) {
        if (other->block_no == block_no)
            return true;
    }
    return false;
}

static void leave_claim(struct writer *w, struct block_claim *c)
{
    struct block_claim **p = &w->claims;

    while (*p != c)
        p = &(*p)->next;
    *p = c->next;
    c->claimed = false;
    pthread_cond_broadcast(&w->changed);
}

/* Will the block's visible sectors all be there once the claim's are?  Looked at from the claim's end on, where a sequential
 * writer has not been yet. */
static int completes(struct image *img, const struct block_claim *c, uint64_t bitmap, bool *answer)
{
    const struct geometry *g = &img->geometry;
    int r = bits_are(img, bits_of_sectors(g, bitmap, c->block_no, c->end, visible_sectors(g, c->block_no)), true, answer);

    if (r == 0 && *answer)
        r = bits_are(img, bits_of_sectors(g, bitmap, c->block_no, 0, c->first), true, answer);
    return r;
}

/* Enter the claim on a block that is partially present at e; meta is locked.  -EAGAIN: somebody was in the way; look again. */
static int enter_claim(struct image *img, struct block_claim *c, const struct bat_entry *e)
{
    const struct geometry *g = &img->geometry;
    struct writer *w = img->writer;
    struct bat_entry bitmap;
    bool head_is_here = false, tail_is_here = false, short_block = block_visible_bytes(g, c->block_no) < g->block_size;

    int r = bat_lookup_bitmap(img, chunk_of_block(g, c->block_no), &bitmap);
    if (r == 0)
        r = bits_are(img, bits_of_sectors(g, bitmap.file_offset, c->block_no, c->first, c->first + 1), true, &head_is_here);
    if (r == 0)
        r = bits_are(img, bits_of_sectors(g, bitmap.file_offset, c->block_no, c->end - 1, c->end), true, &tail_is_here);
    if (r == 0 && short_block) /* it may be promoted, and then its rest has to be zeros (rule 4 of section 6) */
        r = completes(img, c, bitmap.file_offset, &c->zero_rest);
    if (r < 0)
        return r;
    uint64_t end = c->in_block + c->bytes;
    c->merge_head = !head_is_here && (c->in_block % g->sector_size != 0 || (c->end - c->first == 1 && end % g->sector_size != 0));
    c->merge_tail = !tail_is_here && c->end - c->first > 1 && end % g->sector_size != 0;
    if (!is_free(w, c)) {
        pthread_cond_wait(&w->changed, &w->meta);
        return -EAGAIN;
    }
    /* Nobody knows who will be the last of several.  So all but the first to come make the rest zeros: the first one is the last only
     * after the others. */
    c->zero_rest |= short_block && has_company(w, c->block_no);
    c->place = e->file_offset;
    c->claimed = true;
    c->next = w->claims;
    w->claims = c;
    return 0;
}

/* A block that is not present becomes partially present, with no sector in it yet; meta is locked.  What its space holds is
 * nobody's to see, so this may be logged at once (9.4), and nothing has to be made zero. */
static int begin_partial(struct image *img, const struct block_claim *c, const struct page_set *set, uint64_t bitmap, struct bat_entry *e)
{
    const struct geometry *g = &img->geometry;
    struct bit_run slice = bits_of_sectors(g, bitmap, c->block_no, 0, sectors_per_block(g));
    bool clear;

    int r = bits_are(img, slice, false, &clear);
    if (r == 0)
        r = block_take_space(img, c->block_no, g->block_size, set, false, &e->file_offset);
    if (r < 0)
        return r;
    if (!clear) /* left over from an earlier life: in the same entry as the state that gives bits their meaning (rule 2) */
        set_bits(img, slice, false);
    e->state = PAYLOAD_PARTIALLY_PRESENT;
    block_set_entry(img, c->block_no, e->state, e->file_offset);
    return 0;
}

/* Without a lock: is there nothing to be done but write?  Bits are never taken back while the block stays what it is, and a place
 * is not given to others while a request is in flight.  *e: the entry. */
static int find_in_place(struct image *img, struct block_claim *c, struct bat_entry *e, bool *found)
{
    const struct geometry *g = &img->geometry;
    struct bat_entry bitmap;

    *found = false;
    int r = bat_lookup(img, c->block_no, e);
    if (r < 0)
        return r;
    c->place = e->file_offset;
    *found = e->state == PAYLOAD_FULLY_PRESENT;
    if (e->state != PAYLOAD_PARTIALLY_PRESENT)
        return 0;
    r = bat_lookup_bitmap(img, chunk_of_block(g, c->block_no), &bitmap);
    return r < 0 ? r : bits_are(img, bits_of_sectors(g, bitmap.file_offset, c->block_no, c->first, c->end), true, found);
}

/* With meta locked and the entry, if it was not partially present before, in the set. */
static int claim_locked(struct image *img, struct block_claim *c, const struct page_set *set, uint64_t bitmap)
{
    struct bat_entry e;
    int r = bat_lookup(img, c->block_no, &e);

    if (r < 0)
        return r;
    if (e.state == PAYLOAD_FULLY_PRESENT) {
        c->place = e.file_offset;
        return 0;
    }
    if (e.state != PAYLOAD_PARTIALLY_PRESENT && set->nr == 0)
        return -EAGAIN; /* dropped since we looked */
    if (e.state == PAYLOAD_NOT_PRESENT && !c->zeros_below)
        r = begin_partial(img, c, set, bitmap, &e);
    else if (e.state != PAYLOAD_PARTIALLY_PRESENT)
        return block_allocate(img, c->block_no, &e, set, &c->place); /* it reads as zeros: never partially present (5.7) */
    return r < 0 ? r : enter_claim(img, c, &e);
}

static int claim_once(struct image *img, struct block_claim *c)
{
    const struct geometry *g = &img->geometry;
    struct page_set set = {0};
    uint64_t bitmap = 0;
    struct bat_entry e;
    bool found;

    int r = find_in_place(img, c, &e, &found);
    if (r < 0 || found)
        return r;
    if (e.state == PAYLOAD_NOT_PRESENT && !c->zeros_below) {
        r = ensure_bitmap(img, chunk_of_block(g, c->block_no), &bitmap);
        struct bit_run slice = bits_of_sectors(g, bitmap, c->block_no, 0, sectors_per_block(g));
        if (r == 0)
            r = add_bits(img, &set, &slice);
    }
    if (r == 0 && e.state != PAYLOAD_PARTIALLY_PRESENT)
        r = add_entry(img, &set, bat_index_of_block(g, c->block_no));
    if (r == 0)
        r = block_lock(img, c->block_no, &set);
    if (r == 0) {
        r = claim_locked(img, c, &set, bitmap);
        meta_unlock(img);
    }
    page_set_release(img, &set);
    return r;
}

int block_claim(struct image *img, struct block_claim *c)
{
    const struct geometry *g = &img->geometry;
    int r;

    c->first = (uint32_t)(c->in_block / g->sector_size);
    c->end = (uint32_t)div_round_up(c->in_block + c->bytes, g->sector_size);
    do {
        c->claimed = c->merge_head = c->merge_tail = c->zero_rest = false;
        r = claim_once(img, c);
    } while (r == -EAGAIN);
    return r < 0 ? fail_in(r, "block %" PRIu64, c->block_no) : 0;
}

/* ---- what was written becomes visible ---- */

/* The claim covers all that the guest can see of the block, and may say so without bits. */
static bool is_whole(const struct geometry *g, const struct block_claim *c)
{
    return c->first == 0 && c->end == visible_sectors(g, c->block_no) &&
           (c->end == sectors_per_block(g) || c->zero_rest);
}

/* With meta locked; the block is what it was when it was claimed. */
static void make_visible(struct image *img, const struct block_claim *c, uint64_t bitmap)
{
    const struct geometry *g = &img->geometry;
    bool all = is_whole(g, c);

    img->writer->data_first = true; /* D2, rule 3: what was written has returned, and is flushed before this is logged */
    if (!all) {
        set_bits(img, bits_of_sectors(g, bitmap, c->block_no, c->first, c->end), true);
        if (completes(img, c, bitmap, &all) < 0) /* what cannot be told now is no harm: the bits say it */
            all = false;
    }
    if (all) /* promotion changes the entry alone (rule 4) */
        block_set_entry(img, c->block_no, PAYLOAD_FULLY_PRESENT, c->place);
}

int block_publish(struct image *img, struct block_claim *c)
{
    const struct geometry *g = &img->geometry;
    struct page_set set = {0};
    struct bat_entry e, bitmap;

    int r = bat_lookup_bitmap(img, chunk_of_block(g, c->block_no), &bitmap);
    struct bit_run bits = bits_of_sectors(g, bitmap.file_offset, c->block_no, c->first, c->end);
    if (r == 0)
        r = add_entry(img, &set, bat_index_of_block(g, c->block_no));
    if (r == 0 && !is_whole(g, c))
        r = add_bits(img, &set, &bits);
    if (r == 0)
        r = meta_lock(img, &set);
    if (r == 0) {
        r = bat_lookup(img, c->block_no, &e);
        /* Promoted or dropped meanwhile: then there is nothing to tell, for all of it is visible, or gone as if it had come
         * later.  A place cannot have become another life's, since the request is still in flight. */
        if (r == 0 && e.state == PAYLOAD_PARTIALLY_PRESENT && e.file_offset == c->place)
            make_visible(img, c, bitmap.file_offset);
        leave_claim(img->writer, c);
        meta_unlock(img);
    } else {
        block_abandon(img, c);
    }
    page_set_release(img, &set);
    return r < 0 ? fail_in(r, "block %" PRIu64, c->block_no) : 0;
}

void block_abandon(struct image *img, struct block_claim *c)
{
    pthread_mutex_lock(&img->writer->meta);
    leave_claim(img->writer, c);
    pthread_mutex_unlock(&img->writer->meta);
}
