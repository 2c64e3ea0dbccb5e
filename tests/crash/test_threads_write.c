/* SPDX-License-Identifier: MIT */
/* Many threads write, zero, discard, read and flush one disk; then it is judged as it is, after closing, and after crashes. */
#include "../unit/unit.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/math.h"
#include "crash-run.h"
#include "image/image.h"
#include "image/writer.h"

/* ThreadSanitizer is to see the threads; judging crash states, by one thread, is for the other builds. */
#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define THREADS_ONLY 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) && !defined(THREADS_ONLY)
#define THREADS_ONLY 1
#endif
#ifndef THREADS_ONLY
#define THREADS_ONLY 0
#endif

enum { NR_THREADS = 16, NR_REQUESTS = 60 };

struct worker {
    pthread_t thread;
    struct crash_run *run;
    unsigned no;
    bool overlap; /* all want the same sectors */
    bool in_sectors; /* or parts of them, sectors being larger than what one writes */
    uint64_t random;
    int result;
};

static const struct crash_setup setup = {
    .sector_size = 512, .block_mib = 1, .log_mib = 1, .virtual_mib = 64, .nr_blocks = 20, .block_stride = 1};

/* The first four blocks are everybody's, in slices if nobody is to overlap; the others belong to one thread each. */
static int one_request(struct worker *w)
{
    struct crash_run *run = w->run;
    uint64_t own = crash_block(run, 4 + w->no), kind = random_next(&w->random) % 16;
    uint64_t shared = crash_block(run, (uint32_t)(random_next(&w->random) % 4)) + random_next(&w->random) % 8 * 512;
    uint8_t buf[4096];

    if (w->in_sectors)
        shared = align_down(shared, MIB(1)) + random_next(&w->random) % 32 * NR_THREADS * 512 + w->no * 512;
    else if (!w->overlap)
        shared += w->no * KIB(4);
    if (kind < 2)
        return crash_run_flush(run);
    if (kind < 3)
        return disk_pread(&run->disk, buf, sizeof buf, crash_block(run, (uint32_t)(random_next(&w->random) % 20)));
    if (kind < 5)
        return crash_run_discard(run, own, MIB(1), kind == 3);
    if (kind < 6 && w->overlap)
        return crash_run_zero(run, align_down(shared, MIB(1)), MIB(1), false);
    if (kind < 10)
        return crash_run_write(run, own + random_next(&w->random) % 4 * 512, 1024, kind == 7);
    return crash_run_write(run, shared, 512, kind == 10);
}

static void *work(void *opaque)
{
    struct worker *w = opaque;

    for (unsigned n = 0; w->result == 0 && n < NR_REQUESTS; n++)
        w->result = one_request(w);
    return NULL;
}

static void run_workers(struct crash_run *run, bool overlap, uint64_t seed)
{
    bool in_sectors = !overlap && run->setup.sector_size > 512;

    struct worker workers[NR_THREADS];

    for (unsigned i = 0; i < NR_THREADS; i++) {
        workers[i] = (struct worker){.run = run, .no = i, .overlap = overlap, .in_sectors = in_sectors, .random = (seed * 64 + i) * 2654435761u + 1};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < NR_THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_int_equal(workers[i].result, 0);
    }
}

static void must_pass(const char *error)
{
    if (error)
        print_error("%s\n", error);
    assert_null(error);
}

/* Nobody can say in which order requests of several threads into one sector came: any of them may be there. */
static void forget_order(struct crash_run *run)
{
    for (uint32_t no = 0; no < run->history.nr_requests; no++)
        run->history.requests[no].returned = 0;
}

static void threads_on(const struct crash_setup *s, bool overlap)
{
    const struct crash_budget budget = {.random = s->nr_parents > 0 ? 1 : 2, .open_every = s->nr_parents > 0 ? 128 : 16};
    struct crash_run run;
    uint64_t nr_states = 0, first;
    unsigned nr_seeds = crash_seeds(s->nr_parents > 0 ? 1 : 2, &first);

    for (uint64_t seed = first; seed < first + nr_seeds; seed++) {
        crash_run_init(&run, s, seed);
        for (unsigned session = 0; session < 2; session++) {
            assert_succeeds(crash_run_open(&run));
            run_workers(&run, overlap, seed * 2 + session);
            if (overlap)
                forget_order(&run);
            must_pass(crash_run_read_back(&run));
            assert_succeeds(crash_run_close(&run));
            if (overlap)
                forget_order(&run);
            if (!THREADS_ONLY)
                must_pass(crash_run_judge(&run, &budget, &nr_states));
            must_pass(crash_run_check_steps(&run));
            must_pass(crash_run_check_parents(&run));
            must_pass(crash_run_crash(&run));
        }
        crash_run_destroy(&run);
    }
    print_message("# %" PRIu64 " crash states\n", nr_states);
}

static void threads(bool overlap, bool cannot_punch)
{
    struct crash_setup s = setup;

    s.cannot_punch = cannot_punch;
    threads_on(&s, overlap);
}

static void test_shared_blocks(void **state)
{
    (void)state;
    threads(false, false);
}

static void test_shared_blocks_without_punching(void **state)
{
    (void)state;
    threads(false, true);
}

static void test_shared_sectors(void **state)
{
    (void)state;
    threads(true, false);
}

static void test_shared_sectors_without_punching(void **state)
{
    (void)state;
    threads(true, true);
}

/* ---- children ---- */

static struct crash_setup child_setup(uint32_t sector_size, bool left_behind)
{
    struct crash_setup s = setup;

    s.sector_size = sector_size;
    s.nr_parents = 2;
    s.parent_block_mib = 2;
    s.stale_bits = s.foreign_space = s.cannot_punch = left_behind;
    return s;
}

/* First writes of all threads into the same blocks (C4). */
static void test_child_shared_blocks(void **state)
{
    struct crash_setup s = child_setup(512, false);

    (void)state;
    threads_on(&s, false);
}

/* Each sector of 4096 bytes is written by eight threads, 512 bytes each: none may lose what another wrote. */
static void test_child_parts_of_sectors(void **state)
{
    struct crash_setup s = child_setup(4096, true);

    (void)state;
    threads_on(&s, false);
}

static void test_child_shared_sectors(void **state)
{
    struct crash_setup s = child_setup(4096, false);

    (void)state;
    threads_on(&s, true);
}

static atomic_bool racing;

int __real_storage_pwrite(struct storage *s, const void *buf, size_t bytes, uint64_t offset);
int __wrap_storage_pwrite(struct storage *s, const void *buf, size_t bytes, uint64_t offset);

/* Who completes a sector has read the rest of it, and lets others go on before it writes. */
int __wrap_storage_pwrite(struct storage *s, const void *buf, size_t bytes, uint64_t offset)
{
    if (racing)
        sched_yield();
    return __real_storage_pwrite(s, buf, bytes, offset);
}

/* Sector by sector: all threads write at the same time, the first one all of the sector if whole says so, the others a few bytes
 * of their own. */
struct sector_race {
    struct crash_run *run;
    pthread_barrier_t barrier;
    bool whole;
};

struct racer {
    pthread_t thread;
    struct sector_race *race;
    unsigned no;
    int result;
};

enum { NR_RACERS = 8, NR_RACES = 300, RACE_BYTES = 512 / NR_RACERS };

static void *race(void *opaque)
{
    struct racer *me = opaque;
    struct sector_race *r = me->race;
    uint8_t bytes[512];
    bool all = r->whole && me->no == 0;

    memset(bytes, 0x10 + (int)me->no, sizeof bytes);
    for (unsigned n = 0; n < NR_RACES; n++) {
        struct iovec iov = {bytes, all ? 512 : RACE_BYTES};
        pthread_barrier_wait(&r->barrier);
        int e = disk_pwritev(&r->run->disk, &iov, 1, n * UINT64_C(512) + (all ? 0 : me->no * RACE_BYTES), 0);
        if (e < 0)
            me->result = e;
    }
    return NULL;
}

static void race_for_sectors(bool whole)
{
    struct crash_setup s = child_setup(512, false);
    struct crash_run run;
    struct sector_race r = {.run = &run, .whole = whole};
    struct racer racers[NR_RACERS];
    uint8_t sector[512];

    crash_run_init(&run, &s, 3);
    assert_succeeds(crash_run_open(&run));
    pthread_barrier_init(&r.barrier, NULL, NR_RACERS);
    racing = true;
    for (unsigned i = 0; i < NR_RACERS; i++) {
        racers[i] = (struct racer){.race = &r, .no = i};
        assert_int_equal(pthread_create(&racers[i].thread, NULL, race, &racers[i]), 0);
    }
    for (unsigned i = 0; i < NR_RACERS; i++) {
        pthread_join(racers[i].thread, NULL);
        assert_int_equal(racers[i].result, 0);
    }
    racing = false;
    pthread_barrier_destroy(&r.barrier);
    for (unsigned n = 0; n < NR_RACES; n++) {
        assert_succeeds(disk_pread(&run.disk, sector, sizeof sector, n * UINT64_C(512)));
        for (unsigned i = 0; i < 512; i++) {
            uint8_t own = (uint8_t)(0x10 + i / RACE_BYTES);
            if (sector[i] == own || (whole && sector[i] == 0x10))
                continue;
            print_error("sector %u, byte %u is %#x: somebody's write was lost\n", n, i, sector[i]);
            _fail(__FILE__, __LINE__);
        }
    }
    assert_succeeds(crash_run_close(&run));
    crash_run_destroy(&run);
}

static void test_races_for_bytes(void **state)
{
    (void)state;
    race_for_sectors(false);
}

static void test_races_with_a_whole_sector(void **state)
{
    (void)state;
    race_for_sectors(true);
}

/* ---- a flush that is answered by somebody else's commit ---- */

/* Flushes of one storage wait here (--wrap). */
struct gate {
    struct storage *storage;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool closed;
    unsigned nr_waiting;
};

static struct gate gate = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

int __real_storage_flush(struct storage *s);
int __wrap_storage_flush(struct storage *s);

int __wrap_storage_flush(struct storage *s)
{
    pthread_mutex_lock(&gate.mutex);
    gate.nr_waiting += s == gate.storage;
    pthread_cond_broadcast(&gate.changed);
    while (s == gate.storage && gate.closed)
        pthread_cond_wait(&gate.changed, &gate.mutex);
    gate.nr_waiting -= s == gate.storage;
    pthread_mutex_unlock(&gate.mutex);
    return __real_storage_flush(s);
}

static void gate_set(struct storage *storage, bool closed)
{
    pthread_mutex_lock(&gate.mutex);
    gate.storage = storage;
    gate.closed = closed;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.mutex);
}

static void gate_wait(void)
{
    pthread_mutex_lock(&gate.mutex);
    while (gate.nr_waiting == 0)
        pthread_cond_wait(&gate.changed, &gate.mutex);
    pthread_mutex_unlock(&gate.mutex);
}

static void *flush_in_thread(void *opaque)
{
    struct worker *w = opaque;

    w->result = crash_run_flush(w->run);
    return NULL;
}

/* One thread's commit has taken its snapshot and waits for its flush.  Then others write into a new block, twice, and into the
 * block of that commit; a flush that begins now must not be answered by the waiting commit. */
static void test_flush_needs_own_commit(void **state)
{
    static const struct crash_budget budget = {.exhaustive = 4096, .random = 50, .open_every = 4};
    struct crash_run run;
    struct worker first = {.run = &run}, second = {.run = &run};
    uint64_t nr_states = 0;

    (void)state;
    crash_run_init(&run, &setup, 1);
    assert_succeeds(crash_run_open(&run));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 0), 512, true));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 1), 512, false));
    gate_set(run.file, true);
    assert_int_equal(pthread_create(&first.thread, NULL, flush_in_thread, &first), 0);
    gate_wait();
    assert_succeeds(crash_run_write(&run, crash_block(&run, 2), 512, false));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 2) + 512, 512, false));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 1) + 512, 512, false));
    assert_int_equal(pthread_create(&second.thread, NULL, flush_in_thread, &second), 0);
    gate_set(NULL, false);
    pthread_join(first.thread, NULL);
    pthread_join(second.thread, NULL);
    assert_int_equal(first.result, 0);
    assert_int_equal(second.result, 0);
    assert_succeeds(crash_run_close(&run));
    must_pass(crash_run_judge(&run, &budget, &nr_states));
    crash_run_destroy(&run);
    print_message("# %" PRIu64 " crash states\n", nr_states);
}

/* ---- more blocks being made zero at a time than there is room to note ---- */

enum { NR_FILLERS = MAX_FILLING + 8 };

int __real_storage_zero(struct storage *s, uint64_t offset, uint64_t bytes);
int __wrap_storage_zero(struct storage *s, uint64_t offset, uint64_t bytes);

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned nr_waiting, wanted; /* go on when so many wait */
} barrier = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

int __wrap_storage_zero(struct storage *s, uint64_t offset, uint64_t bytes)
{
    pthread_mutex_lock(&barrier.mutex);
    if (barrier.wanted > 0 && s != NULL) {
        barrier.nr_waiting++;
        while (barrier.wanted > 0)
            pthread_cond_wait(&barrier.changed, &barrier.mutex);
    }
    pthread_mutex_unlock(&barrier.mutex);
    return __real_storage_zero(s, offset, bytes);
}

static void *write_in_thread(void *opaque)
{
    struct worker *w = opaque;
    unsigned block = w->no < MAX_FILLING ? w->no : MAX_FILLING; /* the last ones want one block together */

    w->result = crash_run_write(w->run, crash_block(w->run, block) + (w->no - block) * 512, 512, false);
    return NULL;
}

static void test_many_blocks_being_filled(void **state)
{
    static struct worker workers[NR_FILLERS];
    struct crash_setup s = setup;
    struct crash_run run;
    unsigned nr_waiting = 0;

    (void)state;
    s.cannot_punch = true;
    s.nr_blocks = NR_FILLERS;
    s.virtual_mib = 2 * NR_FILLERS;
    crash_run_init(&run, &s, 1);
    assert_succeeds(crash_run_open(&run));
    for (uint32_t i = 0; i < s.nr_blocks; i++)
        assert_succeeds(crash_run_write(&run, crash_block(&run, i), 512, false));
    for (uint32_t i = 0; i < s.nr_blocks; i++)
        assert_succeeds(crash_run_discard(&run, crash_block(&run, i), MIB(1), false));
    for (unsigned n = 0; n < 4; n++)
        assert_succeeds(crash_run_flush(&run)); /* the space becomes idle */
    barrier.wanted = MAX_FILLING;
    for (unsigned i = 0; i < NR_FILLERS; i++) {
        workers[i] = (struct worker){.run = &run, .no = i};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, write_in_thread, &workers[i]), 0);
    }
    while (nr_waiting < MAX_FILLING) {
        usleep(1000);
        pthread_mutex_lock(&barrier.mutex);
        nr_waiting = barrier.nr_waiting;
        pthread_mutex_unlock(&barrier.mutex);
    }
    usleep(100000); /* and the others have come as far as they can */
    pthread_mutex_lock(&barrier.mutex);
    barrier.wanted = 0;
    pthread_cond_broadcast(&barrier.changed);
    pthread_mutex_unlock(&barrier.mutex);
    for (unsigned i = 0; i < NR_FILLERS; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_int_equal(workers[i].result, 0);
    }
    must_pass(crash_run_read_back(&run));
    assert_succeeds(crash_run_close(&run));
    crash_run_destroy(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shared_blocks),
        cmocka_unit_test(test_shared_blocks_without_punching),
        cmocka_unit_test(test_shared_sectors),
        cmocka_unit_test(test_shared_sectors_without_punching),
        cmocka_unit_test(test_child_shared_blocks),
        cmocka_unit_test(test_child_parts_of_sectors),
        cmocka_unit_test(test_child_shared_sectors),
        cmocka_unit_test(test_races_for_bytes),
        cmocka_unit_test(test_races_with_a_whole_sector),
        cmocka_unit_test(test_flush_needs_own_commit),
        cmocka_unit_test(test_many_blocks_being_filled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
