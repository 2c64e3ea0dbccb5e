/* SPDX-License-Identifier: MIT */
/* Merging chains: the right content, at every moment at which the power may fail, with every call that may fail, and again. */
#include "../unit/unit.h"

#include <errno.h>
#include <inttypes.h>

#include "base/math.h"
#include "crash-run.h"
#include "merge-chain.h"

static unsigned nr_seeds = 2;
static uint64_t first_seed = 1;

static void must_pass(const char *problem, const char *when, uint64_t seed, size_t moment)
{
    if (problem) {
        print_error("seed %" PRIu64 ", moment %zu, %s: %s\n", seed, moment, when, problem);
        _fail(__FILE__, __LINE__);
    }
}

static void must_merge(struct merge_chain *c, uint64_t seed, size_t moment)
{
    bool was_complete;

    if (merge_chain_merge(c, &was_complete) < 0)
        must_pass(error_message(), "merging", seed, moment);
    must_pass(merge_chain_judge(c, 0), "after merging", seed, moment);
    must_pass(merge_chain_judge_merged(c), "the target", seed, moment);
    assert_succeeds(merge_chain_merge(c, &was_complete));
    assert_true(was_complete);
}

static const struct merge_setup setups[] = {
    {.nr_layers = 2, .into = 1, .sector_size = 512, .bytes = MIB(5)},
    {.nr_layers = 2, .into = 1, .sector_size = 4096, .bytes = MIB(4) + 4096 * 3},
    {.nr_layers = 4, .into = 3, .sector_size = 512, .bytes = MIB(4)},
    {.nr_layers = 4, .into = 2, .sector_size = 512, .bytes = MIB(4)}, /* the target has a parent, too */
};

static void test_content(void **state)
{
    (void)state;
    for (size_t n = 0; n < ARRAY_LENGTH(setups); n++) {
        for (uint64_t seed = first_seed; seed < first_seed + 10 * nr_seeds; seed++) {
            struct merge_chain c;
            merge_chain_make(&c, &setups[n], seed);
            must_pass(merge_chain_judge(&c, 0), "before", seed, 0);
            must_merge(&c, seed, 0);
            merge_chain_free(&c);
        }
    }
}

static void test_deep(void **state)
{
    static const struct merge_setup deep = {.nr_layers = 16, .into = 15, .sector_size = 512, .bytes = MIB(4)};

    (void)state;
    for (uint64_t seed = first_seed; seed < first_seed + nr_seeds; seed++) {
        struct merge_chain c;
        merge_chain_make(&c, &deep, seed);
        must_merge(&c, seed, 0);
        merge_chain_free(&c);
    }
}

static void test_threads(void **state)
{
    static const struct merge_setup wide[] = {
        {.nr_layers = 3, .into = 2, .sector_size = 512, .bytes = MIB(40), .nr_threads = 4},
        {.nr_layers = 3, .into = 1, .sector_size = 4096, .bytes = MIB(40), .nr_threads = 4},
    };

    (void)state;
    for (size_t n = 0; n < ARRAY_LENGTH(wide); n++) {
        for (uint64_t seed = first_seed; seed < first_seed + nr_seeds; seed++) {
            struct merge_chain c;
            merge_chain_make(&c, &wide[n], seed);
            must_merge(&c, seed, 0);
            merge_chain_free(&c);
        }
    }
}

/* After each moment: the chain opens and shows what it did; and merging it again completes the merge. */
static void crash_everywhere(const struct merge_setup *setup, uint64_t seed, uint64_t states_each)
{
    struct merge_chain c, left;
    bool was_complete;

    merge_chain_make(&c, setup, seed);
    merge_chain_record(&c);
    assert_succeeds(merge_chain_merge(&c, &was_complete));
    assert_false(was_complete);
    print_message("# seed %" PRIu64 ": %zu moments\n", seed, c.timeline.nr_moments);
    for (size_t moment = seed % moment_stride(); moment <= c.timeline.nr_moments; moment += moment_stride()) {
        for (uint64_t n = 0; n < states_each; n++) {
            merge_chain_crash(&c, moment, seed * 1000003 + moment * 101 + n, &left);
            must_pass(merge_chain_judge(&left, 0), "after the crash", seed, moment);
            if (n == 0)
                must_merge(&left, seed, moment);
            merge_chain_free(&left);
        }
    }
    merge_chain_free(&c);
}

static void test_crash(void **state)
{
    (void)state;
    for (size_t n = 0; n < ARRAY_LENGTH(setups); n++) {
        for (uint64_t seed = first_seed; seed < first_seed + nr_seeds; seed++)
            crash_everywhere(&setups[n], seed, 2);
    }
}

/* A crash in the merge that follows a crash. */
static void test_crash_twice(void **state)
{
    (void)state;
    for (uint64_t seed = first_seed; seed < first_seed + 2 * nr_seeds; seed++) {
        struct merge_chain c, left;
        bool was_complete;
        merge_chain_make(&c, &setups[0], seed);
        for (unsigned n = 0; n < 4; n++) {
            merge_chain_record(&c);
            assert_succeeds(merge_chain_merge(&c, &was_complete));
            merge_chain_crash(&c, (size_t)(seed * 31 + n * 17) % (c.timeline.nr_moments + 1), seed + n, &left);
            must_pass(merge_chain_judge(&left, 0), "after a crash", seed, n);
            merge_chain_free(&c);
            c = left;
        }
        must_merge(&c, seed, 0);
        merge_chain_free(&c);
    }
}

/* Every call on every file fails once. */
static void fail_everywhere(const struct merge_setup *setup, uint64_t seed, enum fault_kind kind, int error, uint64_t step)
{
    for (uint32_t layer = 0; layer < setup->nr_layers; layer++) {
        for (uint64_t nth = 1, nr_calls = nth; nth <= nr_calls; nth += step * moment_stride()) {
            struct merge_chain c;
            bool was_complete;
            merge_chain_make(&c, setup, seed);
            fault_arm(&c.faults[layer], &(struct fault_plan){.kind = kind, .nth = nth, .error = error});
            int r = merge_chain_merge(&c, &was_complete);
            nr_calls = fault_count(&c.faults[layer], kind);
            if (fault_injected(&c.faults[layer]) > 0 && kind != FAULT_READ && kind != FAULT_WRITE)
                assert_int_equal(r, error); /* a lost header copy or a full disk may do without */
            fault_arm(&c.faults[layer], NULL);
            must_pass(merge_chain_judge(&c, 0), "after a failure", seed, nth);
            must_merge(&c, seed, nth);
            merge_chain_free(&c);
        }
    }
}

static void test_faults(void **state)
{
    (void)state;
    fail_everywhere(&setups[0], 1, FAULT_FLUSH, -EIO, 1);
    fail_everywhere(&setups[0], 2, FAULT_WRITE, -EIO, 3);
    fail_everywhere(&setups[0], 3, FAULT_WRITE, -ENOSPC, 3);
    fail_everywhere(&setups[2], 4, FAULT_READ, -EIO, 7);
    fail_everywhere(&setups[0], 5, FAULT_TRUNCATE, -ENOSPC, 1);
}

/* ---- flattening ---- */

static void must_flatten(struct merge_chain *c, uint64_t seed, size_t moment)
{
    if (merge_chain_flatten(c) < 0)
        must_pass(error_message(), "flattening", seed, moment);
    must_pass(merge_chain_judge_flat(c), "flattened", seed, moment);
}

static void test_flatten(void **state)
{
    (void)state;
    for (size_t n = 0; n < ARRAY_LENGTH(setups); n++) {
        for (uint64_t seed = first_seed; seed < first_seed + 10 * nr_seeds; seed++) {
            struct merge_chain c;
            merge_chain_make(&c, &setups[n], seed);
            must_flatten(&c, seed, 0);
            merge_chain_free(&c);
        }
    }
}

static void test_flatten_crash(void **state)
{
    (void)state;
    for (size_t n = 0; n < ARRAY_LENGTH(setups) - 1; n++) {
        for (uint64_t seed = first_seed; seed < first_seed + nr_seeds; seed++) {
            struct merge_chain c, left;
            merge_chain_make(&c, &setups[n], seed);
            merge_chain_record(&c);
            assert_succeeds(merge_chain_flatten(&c));
            for (size_t moment = seed % moment_stride(); moment <= c.timeline.nr_moments; moment += moment_stride()) {
                for (uint64_t k = 0; k < 2; k++) {
                    merge_chain_crash(&c, moment, seed * 1000003 + moment * 101 + k, &left);
                    must_pass(merge_chain_judge(&left, 0), "after the crash", seed, moment);
                    if (k == 0)
                        must_flatten(&left, seed, moment);
                    merge_chain_free(&left);
                }
            }
            merge_chain_free(&c);
        }
    }
}

static void test_flatten_faults(void **state)
{
    static const struct fault_plan plans[] = {
        {.kind = FAULT_FLUSH, .error = -EIO}, {.kind = FAULT_WRITE, .error = -ENOSPC}, {.kind = FAULT_WRITE, .error = -EIO}};

    (void)state;
    for (size_t n = 0; n < ARRAY_LENGTH(plans); n++) {
        struct fault_plan plan = plans[n];
        plan.nth = 1;
        for (uint64_t nr_calls = 1; plan.nth <= nr_calls; plan.nth += moment_stride() * (plan.kind == FAULT_FLUSH ? 1 : 3)) {
            struct merge_chain c;
            merge_chain_make(&c, &setups[1], n + 1);
            fault_arm(&c.faults[0], &plan);
            merge_chain_flatten(&c);
            nr_calls = fault_count(&c.faults[0], plan.kind);
            fault_arm(&c.faults[0], NULL);
            must_pass(merge_chain_judge(&c, 0), "after a failure", n, plan.nth);
            must_flatten(&c, n, plan.nth);
            merge_chain_free(&c);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest just_threads[] = {cmocka_unit_test(test_threads)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_content), cmocka_unit_test(test_deep),        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_crash),   cmocka_unit_test(test_crash_twice), cmocka_unit_test(test_faults),
        cmocka_unit_test(test_flatten), cmocka_unit_test(test_flatten_crash), cmocka_unit_test(test_flatten_faults),
    };

    if (argc > 1 && strcmp(argv[1], "long") == 0)
        nr_seeds = crash_seeds(100, &first_seed);
    if (argc > 1 && strcmp(argv[1], "threads") == 0)
        return cmocka_run_group_tests(just_threads, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
