/* SPDX-License-Identifier: MIT */
/* What the tests of crashes share: sessions of random requests, each judged at every moment, and the next one begun on what a
 * crash has left. */
#ifndef VHDX_TESTS_CRASH_SESSIONS_H
#define VHDX_TESTS_CRASH_SESSIONS_H

#include "../unit/unit.h"

#include <inttypes.h>

#include "crash-run.h"

static unsigned nr_seeds = 1;
static uint64_t first_seed = 1, all_states;
static bool long_run;

static void must_pass(struct crash_run *run, uint64_t seed, const char *error)
{
    if (error) {
        print_error("seed %" PRIu64 ": %s\n", seed, error);
        crash_run_destroy(run);
        _fail(__FILE__, __LINE__);
    }
}

static void judge(struct crash_run *run, uint64_t seed, const struct crash_budget *budget, uint64_t *nr_states)
{
    must_pass(run, seed, crash_run_judge(run, budget, nr_states));
    must_pass(run, seed, crash_run_check_steps(run));
    must_pass(run, seed, crash_run_check_parents(run));
}

/* Sessions of random requests, each but the first on what a crash has left of the one before. */
static void random_sessions(const struct crash_setup *setup, unsigned nr_sessions, unsigned nr_requests,
                            const struct crash_budget *budget)
{
    uint64_t nr_states = 0;

    for (unsigned n = 0; n < nr_seeds; n++) {
        uint64_t seed = first_seed + n;
        struct crash_run run;
        crash_run_init(&run, setup, seed);
        for (unsigned session = 0; session < nr_sessions; session++) {
            if (session > 0)
                must_pass(&run, seed, crash_run_crash(&run));
            assert_succeeds(crash_run_open(&run));
            assert_succeeds(crash_run_random(&run, nr_requests));
            must_pass(&run, seed, crash_run_read_back(&run));
            assert_succeeds(crash_run_close(&run));
            judge(&run, seed, budget, &nr_states);
        }
        crash_run_destroy(&run);
    }
    print_message("# %" PRIu64 " crash states\n", nr_states);
    all_states += nr_states;
}

/* A row of a test program's table: sessions with one kind of image. */
struct sessions {
    struct crash_setup setup; /* what is 0 is as in the file's own "small" */
    unsigned nr_sessions, nr_requests;
    const struct crash_budget *budget;
    unsigned seeds_factor;
};

static const struct crash_setup small;

static void test_sessions(void **state)
{
    const struct sessions *s = *state;
    struct crash_setup setup = s->setup;

#define USUALLY_AS_SMALL(field) setup.field = setup.field != 0 ? setup.field : small.field
    USUALLY_AS_SMALL(sector_size);
    USUALLY_AS_SMALL(block_mib);
    USUALLY_AS_SMALL(log_mib);
    USUALLY_AS_SMALL(virtual_mib);
    USUALLY_AS_SMALL(nr_blocks);
    USUALLY_AS_SMALL(block_stride);
    USUALLY_AS_SMALL(nr_parents);
    USUALLY_AS_SMALL(parent_block_mib);
#undef USUALLY_AS_SMALL
    nr_seeds *= s->seeds_factor;
    random_sessions(&setup, s->nr_sessions, s->nr_requests, s->budget);
    nr_seeds /= s->seeds_factor;
}

/* sessions_test(name, {what is not as usual}, nr_sessions, nr_requests, budget, seeds_factor) */
#define sessions_test(name, ...) {#name, test_sessions, NULL, NULL, &(struct sessions){__VA_ARGS__}}

#endif
