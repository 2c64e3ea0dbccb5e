/* SPDX-License-Identifier: MIT */
/* The metadata page cache, one thread; test_threads_page_cache.c has the many. */
#include "unit.h"

#include <errno.h>

#include "base/le.h"
#include "base/math.h"
#include "format/layout.h"
#include "image/page-cache.h"

/* Where pages come from: each holds its own number all over. */
struct source {
    uint64_t nr_fetches, last_offset;
    uint64_t fail_page_no; /* this page cannot be read */
    int error;
};

static int fetch(void *opaque, void *buf, size_t bytes, uint64_t file_offset)
{
    struct source *s = opaque;
    uint64_t page_no = file_offset / PAGE_BYTES;

    assert_int_equal(bytes, PAGE_BYTES);
    assert_int_equal(file_offset % PAGE_BYTES, 0);
    s->nr_fetches++;
    s->last_offset = file_offset;
    if (s->error && page_no == s->fail_page_no) {
        memset(buf, 0xee, bytes / 2); /* rubbish that nobody may see */
        return fail(s->error, "page %llu", (unsigned long long)page_no);
    }
    for (size_t i = 0; i < bytes; i += sizeof page_no)
        memcpy((uint8_t *)buf + i, &page_no, sizeof page_no);
    return 0;
}

static struct page_cache *new_cache(size_t max_pages, struct source *s)
{
    struct page_cache *cache;

    *s = (struct source){0};
    assert_succeeds(page_cache_new(max_pages, fetch, s, &cache));
    return cache;
}

static void read_page(struct page_cache *cache, uint64_t page_no)
{
    uint64_t got = 0;

    assert_succeeds(page_cache_read(cache, &got, sizeof got, page_no * PAGE_BYTES + page_no % 500 * 8));
    assert_int_equal(got, page_no);
}

/* How many of the pages [0, nr) are fetched anew when all are read once. */
static uint64_t misses(struct page_cache *cache, struct source *s, uint64_t nr)
{
    uint64_t before = s->nr_fetches;

    for (uint64_t i = nr; i-- > 0;)
        read_page(cache, i);
    return s->nr_fetches - before;
}

static void a_page_is_fetched_once(void **state)
{
    struct source s;
    struct page_cache *cache = new_cache(64, &s);
    uint8_t buf[PAGE_BYTES];

    (void)state;
    assert_succeeds(page_cache_read(cache, buf, 8, 7 * PAGE_BYTES + 4088));
    assert_int_equal(s.last_offset, 7 * PAGE_BYTES);
    assert_succeeds(page_cache_read(cache, buf, sizeof buf, 7 * PAGE_BYTES));
    for (size_t i = 0; i < sizeof buf; i++)
        assert_int_equal(buf[i], i % 8 ? 0 : 7);
    read_page(cache, 7);
    assert_int_equal(s.nr_fetches, 1);
    page_cache_free(cache);
}

static void offsets_of_huge_files_are_kept_apart(void **state)
{
    struct source s;
    struct page_cache *cache = new_cache(64, &s);

    (void)state;
    for (unsigned shift = 0; shift <= 38; shift++)
        read_page(cache, UINT64_C(1) << shift);
    read_page(cache, 0);
    page_cache_free(cache);
}

/* 16 shards of 4: never more than 64 pages stay. */
static void memory_is_bounded(void **state)
{
    struct source s;
    struct page_cache *cache = new_cache(64, &s);

    (void)state;
    for (uint64_t i = 0; i < 10000; i++)
        read_page(cache, i % 1000);
    assert_true(misses(cache, &s, 1000) >= 1000 - 64);
    page_cache_free(cache);
}

static void what_fits_stays(void **state)
{
    struct source s;
    struct page_cache *cache = new_cache(64, &s);

    (void)state;
    assert_int_equal(misses(cache, &s, 64), 64);
    for (unsigned i = 0; i < 10; i++)
        assert_int_equal(misses(cache, &s, 64), 0);
    page_cache_free(cache);
}

/* A page that is used all the time survives a walk over everything else. */
static void what_is_used_outlives_what_is_not(void **state)
{
    struct source s;
    struct page_cache *cache = new_cache(64, &s);
    uint64_t hot = 5, before;

    (void)state;
    read_page(cache, hot);
    before = s.nr_fetches;
    for (uint64_t i = 1; i < 2000; i++) {
        read_page(cache, 16 * i + hot); /* all of them in the same shard */
        read_page(cache, hot);
    }
    assert_true(s.nr_fetches - before < 1999 + 1999 / 8);
    page_cache_free(cache);
}

static void a_limit_of_nothing_still_works(void **state)
{
    struct source s;
    struct page_cache *cache = new_cache(0, &s);

    (void)state;
    for (uint64_t i = 0; i < 500; i++)
        read_page(cache, i * 7 % 100);
    page_cache_free(cache);
    page_cache_free(NULL);
}

/* Opening a chain gives the first image all of the budget, and takes most of it back when parents are found.
 */
static void a_lower_limit_gives_pages_up(void **state)
{
    struct source s;
    struct page_cache *cache = new_cache(512, &s);

    (void)state;
    assert_int_equal(misses(cache, &s, 512), 512);
    page_cache_set_limit(cache, 64);
    assert_true(misses(cache, &s, 512) >= 512 - 64);
    page_cache_set_limit(cache, 512);
    misses(cache, &s, 512);
    assert_int_equal(misses(cache, &s, 512), 0);
    page_cache_free(cache);
}

static void fill_page(void *opaque, uint8_t page[PAGE_BYTES])
{
    memset(page, *(const int *)opaque, PAGE_BYTES);
}

/* Passing by leaves no trace, and sees what was changed here. */
static void peeking_keeps_nothing(void **state)
{
    struct source s;
    struct page_cache *cache = new_cache(64, &s);
    uint8_t page[PAGE_BYTES];
    int changed = 0xab;

    (void)state;
    misses(cache, &s, 64);
    for (uint64_t i = 64; i < 1000; i++) {
        assert_succeeds(page_cache_peek(cache, page, i * PAGE_BYTES + 8));
        assert_int_equal(le64_get(page + PAGE_BYTES - 8), i);
    }
    assert_int_equal(s.nr_fetches, 1000);
    assert_int_equal(misses(cache, &s, 64), 0);
    assert_succeeds(page_cache_hold(cache, 7 * PAGE_BYTES));
    page_cache_edit(cache, 7 * PAGE_BYTES, fill_page, &changed);
    assert_succeeds(page_cache_peek(cache, page, 7 * PAGE_BYTES));
    assert_int_equal(page[0], changed);
    assert_int_equal(page[PAGE_BYTES - 1], changed);
    page_cache_release(cache, 7 * PAGE_BYTES);
    s.fail_page_no = 100;
    s.error = -EIO;
    assert_fails(page_cache_peek(cache, page, 100 * PAGE_BYTES), -EIO, "page 100");
    page_cache_free(cache);
}

static void errors_are_not_cached(void **state)
{
    struct source s;
    struct page_cache *cache = new_cache(64, &s);
    uint64_t got;

    (void)state;
    s.fail_page_no = 3;
    s.error = -EIO;
    read_page(cache, 2);
    for (unsigned i = 0; i < 3; i++)
        assert_fails(page_cache_read(cache, &got, sizeof got, 3 * PAGE_BYTES), -EIO, "page 3");
    assert_int_equal(s.nr_fetches, 4);
    s.error = 0;
    read_page(cache, 3);
    read_page(cache, 3);
    read_page(cache, 2);
    assert_int_equal(s.nr_fetches, 5);
    page_cache_free(cache);
}

/* Failing pages between others, in a cache that is full: the ring of slots must stay whole. */
static void errors_do_not_upset_eviction(void **state)
{
    struct source s;
    struct page_cache *cache = new_cache(32, &s);
    uint64_t random = 77, got;

    (void)state;
    for (unsigned i = 0; i < 20000; i++) {
        uint64_t page_no = random_next(&random) % 200;
        s.fail_page_no = random_next(&random) % 200;
        s.error = -EIO;
        int r = page_cache_read(cache, &got, sizeof got, page_no * PAGE_BYTES);
        assert_true(r == 0 || (r == -EIO && page_no == s.fail_page_no));
        if (r == 0)
            assert_int_equal(got, page_no);
    }
    page_cache_free(cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_page_is_fetched_once),
        cmocka_unit_test(offsets_of_huge_files_are_kept_apart),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(what_fits_stays),
        cmocka_unit_test(what_is_used_outlives_what_is_not),
        cmocka_unit_test(a_limit_of_nothing_still_works),
        cmocka_unit_test(a_lower_limit_gives_pages_up),
        cmocka_unit_test(peeking_keeps_nothing),
        cmocka_unit_test(errors_are_not_cached),
        cmocka_unit_test(errors_do_not_upset_eviction),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
