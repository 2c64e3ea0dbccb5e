/* SPDX-License-Identifier: MIT */
/* The metadata page cache under many threads (contracts C1, C3 and C6).  ThreadSanitizer runs this too. */
#include "unit.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/math.h"
#include "format/layout.h"
#include "image/page-cache.h"

enum { NR_THREADS = 16 };

/* ---- a source of pages, each filled with its own number ---- */

struct source {
    struct page_cache *cache;
    atomic_uint nr_fetches, nr_loading, most_loading;
    atomic_bool failing;
    unsigned delay_us;              /* how long a fetch takes */
    pthread_barrier_t *all_loading; /* fetches wait here for each other, if set */
    uint64_t gate_page_no;          /* the fetch of this page waits until the gate is opened, if has_gate */
    bool has_gate;
    atomic_bool gate_open, at_gate;
};

static int fetch(void *opaque, void *buf, size_t bytes, uint64_t file_offset)
{
    struct source *s = opaque;
    uint64_t page_no = file_offset / PAGE_BYTES;
    unsigned loading = ++s->nr_loading, most = s->most_loading;

    s->nr_fetches++;
    while (loading > most && !atomic_compare_exchange_weak(&s->most_loading, &most, loading))
        ;
    if (s->delay_us)
        usleep(s->delay_us);
    if (s->all_loading)
        pthread_barrier_wait(s->all_loading);
    if (s->has_gate && page_no == s->gate_page_no) {
        s->at_gate = true;
        while (!s->gate_open)
            usleep(100);
    }
    for (size_t i = 0; i < bytes; i += sizeof page_no)
        memcpy((uint8_t *)buf + i, &page_no, sizeof page_no);
    s->nr_loading--;
    return s->failing ? fail(-EIO, "page %llu", (unsigned long long)page_no) : 0;
}

static void begin(struct source *s, size_t max_pages)
{
    memset(s, 0, sizeof *s);
    assert_succeeds(page_cache_new(max_pages, fetch, s, &s->cache));
    alarm(300); /* a thread that is never woken ends the program */
}

/* ---- threads ---- */

struct worker {
    struct source *s;
    pthread_barrier_t *start;
    unsigned no;
    unsigned nr_good, nr_failed, nr_wrong;
};

typedef void work_fn(struct worker *w);

struct start_arguments {
    struct worker *w;
    work_fn *work;
};

static void *run(void *opaque)
{
    struct start_arguments *a = opaque;

    pthread_barrier_wait(a->w->start);
    a->work(a->w);
    return NULL;
}

/* cmocka's assertions belong to the main thread, so workers count. */
static void run_all(struct source *s, work_fn *work, struct worker workers[NR_THREADS])
{
    pthread_t threads[NR_THREADS];
    struct start_arguments arguments[NR_THREADS];
    pthread_barrier_t start;

    pthread_barrier_init(&start, NULL, NR_THREADS);
    for (unsigned i = 0; i < NR_THREADS; i++) {
        workers[i] = (struct worker){.s = s, .start = &start, .no = i};
        arguments[i] = (struct start_arguments){&workers[i], work};
        assert_int_equal(pthread_create(&threads[i], NULL, run, &arguments[i]), 0);
    }
    for (unsigned i = 0; i < NR_THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&start);
}

static void read_one(struct worker *w, uint64_t page_no)
{
    uint64_t got = UINT64_MAX;
    int r = page_cache_read(w->s->cache, &got, sizeof got, page_no * PAGE_BYTES + w->no * 8);

    w->nr_good += r == 0 && got == page_no;
    w->nr_wrong += r == 0 && got != page_no;
    w->nr_failed += r == -EIO;
}

/* ---- tests ---- */

static void read_page_7(struct worker *w)
{
    read_one(w, 7);
}

static void a_page_that_all_want_is_loaded_once(void **state)
{
    struct worker workers[NR_THREADS];
    struct source s;

    (void)state;
    begin(&s, 64);
    s.delay_us = 50000;
    run_all(&s, read_page_7, workers);
    assert_int_equal(s.nr_fetches, 1);
    for (unsigned i = 0; i < NR_THREADS; i++)
        assert_int_equal(workers[i].nr_good, 1);
    page_cache_free(s.cache);
}

/* Whoever waited for a page that could not be read tries for itself; the error is not kept. */
static void a_failed_page_fails_for_each_and_heals(void **state)
{
    struct worker workers[NR_THREADS];
    struct source s;

    (void)state;
    begin(&s, 64);
    s.delay_us = 2000;
    s.failing = true;
    run_all(&s, read_page_7, workers);
    assert_int_equal(s.nr_fetches, NR_THREADS);
    assert_int_equal(s.most_loading, 1); /* one after the other */
    for (unsigned i = 0; i < NR_THREADS; i++)
        assert_int_equal(workers[i].nr_failed, 1);
    s.failing = false;
    run_all(&s, read_page_7, workers);
    assert_int_equal(s.nr_fetches, NR_THREADS + 1);
    for (unsigned i = 0; i < NR_THREADS; i++)
        assert_int_equal(workers[i].nr_good, 1);
    page_cache_free(s.cache);
}

/* Thread 0 waits for its page; the others read pages of the same shard, and only then is it let go. */
static void read_around_the_gate(struct worker *w)
{
    if (w->no == 0) {
        read_one(w, 32);
        return;
    }
    while (!w->s->at_gate)
        usleep(100);
    for (uint64_t i = 1; i < 100; i++)
        read_one(w, 32 + 16 * i);
    if (w->no == 1)
        w->s->gate_open = true;
}

static void a_slow_page_holds_up_nobody_else(void **state)
{
    struct worker workers[NR_THREADS];
    struct source s;

    (void)state;
    begin(&s, 64);
    s.has_gate = true;
    s.gate_page_no = 32;
    run_all(&s, read_around_the_gate, workers); /* or the alarm rings */
    assert_int_equal(workers[0].nr_good, 1);
    for (unsigned i = 1; i < NR_THREADS; i++)
        assert_int_equal(workers[i].nr_good, 99);
    page_cache_free(s.cache);
}

static void read_its_own_page(struct worker *w)
{
    read_one(w, 16 * w->no);
}

/* More pages of one shard are being loaded at once than it may keep. */
static void the_limit_yields_to_threads_that_load(void **state)
{
    struct worker workers[NR_THREADS];
    pthread_barrier_t all;
    struct source s;

    (void)state;
    begin(&s, 0);
    pthread_barrier_init(&all, NULL, NR_THREADS);
    s.all_loading = &all;
    run_all(&s, read_its_own_page, workers); /* or the alarm rings */
    assert_int_equal(s.most_loading, NR_THREADS);
    for (unsigned i = 0; i < NR_THREADS; i++)
        assert_int_equal(workers[i].nr_good, 1);
    pthread_barrier_destroy(&all);
    page_cache_free(s.cache);
}

static void read_at_random(struct worker *w)
{
    uint64_t random = 0x1000 + w->no;

    for (unsigned i = 0; i < 4000; i++) {
        read_one(w, random_next(&random) % (i % 2 ? 200 : 20));
        if (w->no == 0 && i % 100 == 0)
            w->s->failing = !w->s->failing;
    }
}

static void random_reads_are_right_or_fail(void **state)
{
    struct worker workers[NR_THREADS];
    struct source s;

    (void)state;
    for (size_t max_pages = 0; max_pages <= 128; max_pages += 64) {
        unsigned nr_good = 0, nr_failed = 0;
        begin(&s, max_pages);
        run_all(&s, read_at_random, workers);
        for (unsigned i = 0; i < NR_THREADS; i++) {
            assert_int_equal(workers[i].nr_wrong, 0);
            assert_int_equal(workers[i].nr_good + workers[i].nr_failed, 4000);
            nr_good += workers[i].nr_good;
            nr_failed += workers[i].nr_failed;
        }
        assert_true(nr_good > 0 && nr_failed > 0);
        page_cache_free(s.cache);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_page_that_all_want_is_loaded_once),
        cmocka_unit_test(a_failed_page_fails_for_each_and_heals),
        cmocka_unit_test(a_slow_page_holds_up_nobody_else),
        cmocka_unit_test(the_limit_yields_to_threads_that_load),
        cmocka_unit_test(random_reads_are_right_or_fail),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
