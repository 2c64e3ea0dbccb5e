/* SPDX-License-Identifier: MIT */
#include "image/page-cache.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "format/layout.h"

/*
 * Locks: one mutex for each shard, a leaf of the lock order, never held across a fetch.  It protects everything in its
 * struct shard and the slots' states; a slot's data is written only by the thread that put it into SLOT_LOADING, while
 * it is in that state, and read under the mutex.
 *
 * A shard is an open hash of slots by page number; a slot is given up by the clock algorithm.
 */
enum { NR_SHARDS = 16, NR_BUCKETS = 64, MIN_PAGES_PER_SHARD = 2 };

enum slot_state { SLOT_LOADING, SLOT_READY };

struct slot {
    uint64_t page_no;
    enum slot_state state;
    bool used_lately;
    bool has_space;
    unsigned holds; /* a held slot is not given up */
    struct slot *next_in_bucket;
    struct slot *next_on_clock; /* a ring */
    uint8_t data[PAGE_BYTES];
};

struct shard {
    pthread_mutex_t lock;
    pthread_cond_t loaded; /* some slot left SLOT_LOADING */
    struct slot *buckets[NR_BUCKETS];
    struct slot *hand;
    size_t nr_slots, max_slots;
};

struct page_cache {
    page_fetch_fn *fetch;
    void *opaque;
    struct shard shards[NR_SHARDS];
};

static struct shard *shard_of(struct page_cache *cache, uint64_t page_no)
{
    return &cache->shards[page_no % NR_SHARDS];
}

static struct slot **bucket_of(struct shard *shard, uint64_t page_no)
{
    return &shard->buckets[page_no / NR_SHARDS % NR_BUCKETS];
}

int page_cache_new(size_t max_pages, page_fetch_fn *fetch, void *opaque, struct page_cache **result)
{
    struct page_cache *cache = calloc(1, sizeof *cache);

    *result = NULL;
    if (!cache)
        return fail_memory("the page cache");
    cache->fetch = fetch;
    cache->opaque = opaque;
    for (unsigned i = 0; i < NR_SHARDS; i++) {
        pthread_mutex_init(&cache->shards[i].lock, NULL); /* cannot fail with default attributes on Linux */
        pthread_cond_init(&cache->shards[i].loaded, NULL);
    }
    page_cache_set_limit(cache, max_pages);
    *result = cache;
    return 0;
}

void page_cache_free(struct page_cache *cache)
{
    if (!cache)
        return;
    for (unsigned i = 0; i < NR_SHARDS; i++) {
        struct shard *shard = &cache->shards[i];
        for (size_t n = shard->nr_slots; n > 0; n--) {
            struct slot *gone = shard->hand;
            shard->hand = gone->next_on_clock;
            free(gone);
        }
        pthread_cond_destroy(&shard->loaded);
        pthread_mutex_destroy(&shard->lock);
    }
    free(cache);
}

static struct slot *find_slot(struct shard *shard, uint64_t page_no)
{
    struct slot *s = *bucket_of(shard, page_no);

    while (s && s->page_no != page_no)
        s = s->next_in_bucket;
    return s;
}

static void unhash(struct shard *shard, struct slot *s)
{
    struct slot **p = bucket_of(shard, s->page_no);

    while (*p != s)
        p = &(*p)->next_in_bucket;
    *p = s->next_in_bucket;
}

/* A slot that is nobody's: a fresh one below the limit, else the next that the clock finds idle.  Loading and held slots are
 * passed over; if there is nothing else the limit yields. */
static struct slot *claim_slot(struct shard *shard)
{
    if (shard->nr_slots >= shard->max_slots) {
        for (size_t n = 2 * shard->nr_slots; n > 0; n--) {
            struct slot *s = shard->hand;
            shard->hand = s->next_on_clock;
            if (s->state == SLOT_LOADING || s->holds > 0)
                continue;
            if (!s->used_lately) {
                unhash(shard, s);
                return s;
            }
            s->used_lately = false;
        }
    }
    struct slot *s = malloc(sizeof *s);
    if (!s)
        return NULL;
    if (shard->hand) {
        s->next_on_clock = shard->hand->next_on_clock;
        shard->hand->next_on_clock = s;
    } else {
        s->next_on_clock = shard->hand = s;
    }
    shard->nr_slots++;
    return s;
}

/* Take a slot that could not be filled off the clock. */
static void drop_slot(struct shard *shard, struct slot *s)
{
    struct slot *before = s;

    while (before->next_on_clock != s)
        before = before->next_on_clock;
    before->next_on_clock = s->next_on_clock;
    if (shard->hand == s)
        shard->hand = before == s ? NULL : before;
    shard->nr_slots--;
    free(s);
}

void page_cache_set_limit(struct page_cache *cache, size_t max_pages)
{
    for (unsigned i = 0; i < NR_SHARDS; i++) {
        struct shard *shard = &cache->shards[i];
        shard->max_slots = max_u64(max_pages / NR_SHARDS, MIN_PAGES_PER_SHARD);
        while (shard->nr_slots > shard->max_slots) { /* none of them is loading: nobody reads meanwhile */
            struct slot *gone = shard->hand;
            unhash(shard, gone);
            drop_slot(shard, gone);
        }
    }
}

/* Bring page_no in.  Called and left with the shard locked; on success *result is ready. */
static int load_page(struct page_cache *cache, struct shard *shard, uint64_t page_no, struct slot **result)
{
    struct slot *s = claim_slot(shard);

    if (!s)
        return fail_memory("the page cache");
    s->page_no = page_no;
    s->holds = 0;
    s->has_space = false;
    s->state = SLOT_LOADING;
    s->used_lately = true;
    s->next_in_bucket = *bucket_of(shard, page_no);
    *bucket_of(shard, page_no) = s;

    pthread_mutex_unlock(&shard->lock);
    int r = cache->fetch(cache->opaque, s->data, PAGE_BYTES, page_no * PAGE_BYTES);
    pthread_mutex_lock(&shard->lock);

    s->state = SLOT_READY;
    if (r < 0) {
        unhash(shard, s);
        drop_slot(shard, s);
        s = NULL;
    }
    pthread_cond_broadcast(&shard->loaded);
    *result = s;
    return r;
}

/* Lock the shard of the page at file_offset and find or load the page.  On failure nothing is locked. */
static int lock_page(struct page_cache *cache, uint64_t file_offset, struct shard **result, struct slot **slot)
{
    uint64_t page_no = file_offset / PAGE_BYTES;
    struct shard *shard = shard_of(cache, page_no);
    struct slot *s;
    int r = 0;

    pthread_mutex_lock(&shard->lock);
    while ((s = find_slot(shard, page_no)) && s->state == SLOT_LOADING)
        pthread_cond_wait(&shard->loaded, &shard->lock); /* the slot may be gone afterwards: look again */
    if (!s)
        r = load_page(cache, shard, page_no, &s);
    if (r < 0) {
        pthread_mutex_unlock(&shard->lock);
        return r;
    }
    s->used_lately = true;
    *result = shard;
    *slot = s;
    return 0;
}

int page_cache_read(struct page_cache *cache, void *buf, size_t bytes, uint64_t file_offset)
{
    struct shard *shard;
    struct slot *s;
    int r = lock_page(cache, file_offset, &shard, &s);

    if (r < 0)
        return r;
    memcpy(buf, s->data + file_offset % PAGE_BYTES, bytes);
    pthread_mutex_unlock(&shard->lock);
    return 0;
}

int page_cache_look(struct page_cache *cache, uint64_t file_offset, page_look_fn *fn, void *opaque)
{
    struct shard *shard;
    struct slot *s;
    int r = lock_page(cache, file_offset, &shard, &s);

    if (r < 0)
        return r;
    fn(opaque, s->data);
    pthread_mutex_unlock(&shard->lock);
    return 0;
}

int page_cache_peek(struct page_cache *cache, uint8_t page[PAGE_BYTES], uint64_t file_offset)
{
    uint64_t page_no = file_offset / PAGE_BYTES;
    struct shard *shard = shard_of(cache, page_no);

    pthread_mutex_lock(&shard->lock);
    struct slot *s = find_slot(shard, page_no);
    bool here = s && s->state == SLOT_READY;
    if (here)
        memcpy(page, s->data, PAGE_BYTES);
    pthread_mutex_unlock(&shard->lock);
    return here ? 0 : cache->fetch(cache->opaque, page, PAGE_BYTES, page_no * PAGE_BYTES);
}

int page_cache_hold(struct page_cache *cache, uint64_t file_offset)
{
    struct shard *shard;
    struct slot *s;
    int r = lock_page(cache, file_offset, &shard, &s);

    if (r < 0)
        return r;
    s->holds++;
    pthread_mutex_unlock(&shard->lock);
    return 0;
}

/* Lock the shard of a held page, which is therefore there. */
static struct slot *lock_held(struct page_cache *cache, uint64_t file_offset, struct shard **shard)
{
    uint64_t page_no = file_offset / PAGE_BYTES;

    *shard = shard_of(cache, page_no);
    pthread_mutex_lock(&(*shard)->lock);
    struct slot *s = find_slot(*shard, page_no);
    assert(s && s->holds > 0);
    return s;
}

void page_cache_release(struct page_cache *cache, uint64_t file_offset)
{
    struct shard *shard;
    struct slot *s = lock_held(cache, file_offset, &shard);

    s->holds--;
    pthread_mutex_unlock(&shard->lock);
}

bool page_cache_has_space(struct page_cache *cache, uint64_t file_offset)
{
    struct shard *shard;
    bool answer = lock_held(cache, file_offset, &shard)->has_space;

    pthread_mutex_unlock(&shard->lock);
    return answer;
}

void page_cache_note_space(struct page_cache *cache, uint64_t file_offset)
{
    struct shard *shard;

    lock_held(cache, file_offset, &shard)->has_space = true;
    pthread_mutex_unlock(&shard->lock);
}

void page_cache_edit(struct page_cache *cache, uint64_t file_offset, page_edit_fn *fn, void *opaque)
{
    struct shard *shard;
    struct slot *s = lock_held(cache, file_offset, &shard);

    fn(opaque, s->data);
    pthread_mutex_unlock(&shard->lock);
}

uint64_t page_cache_next_held(struct page_cache *cache, uint64_t file_offset)
{
    uint64_t first = file_offset / PAGE_BYTES, best = UINT64_MAX / PAGE_BYTES;

    for (unsigned i = 0; i < NR_SHARDS; i++) {
        struct shard *shard = &cache->shards[i];
        pthread_mutex_lock(&shard->lock);
        struct slot *s = shard->hand;
        for (size_t n = shard->nr_slots; n > 0; n--, s = s->next_on_clock) {
            if (s->holds > 0 && s->page_no >= first && s->page_no < best)
                best = s->page_no;
        }
        pthread_mutex_unlock(&shard->lock);
    }
    return best == UINT64_MAX / PAGE_BYTES ? UINT64_MAX : best * PAGE_BYTES;
}
