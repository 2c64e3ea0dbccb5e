/* SPDX-License-Identifier: MIT */
/* The crash tests find what they are there to find: each rule of writing is broken once, and a bad state must turn up; with no
 * rule broken the same workload leaves none. */
#include "../unit/unit.h"

#include <inttypes.h>

#include "base/math.h"
#include "broken.h"
#include "crash-run.h"
#include "image/image.h"

static const struct crash_budget every_subset = {.exhaustive = 1024, .random = 6, .open_every = 16};
static const struct crash_budget by_chance = {.random = 6, .open_every = 16}; /* for what takes many requests, or a rare state, to show */

static const struct crash_budget *budget_for(enum broken_rule rule)
{
    return rule == BROKEN_TAIL_NOT_PUBLISHED || rule == BROKEN_REST_NOT_ZERO ? &by_chance : &every_subset;
}

/* One session: enough commits to take the ring round, discards, blocks that come and go. */
static const char *one_session(struct crash_run *run, unsigned nr_requests, const struct crash_budget *budget, uint64_t *nr_states)
{
    assert_succeeds(crash_run_open(run));
    broken_image = run->img;
    int r = crash_run_random(run, nr_requests);
    const char *wrong = r == 0 && run->parents ? crash_run_read_back(run) : NULL; /* what is wrong before any crash */
    broken_image = run->img; /* also while it is closed */
    int closed = crash_run_close(run);
    broken_image = NULL;
    if (r < 0 || closed < 0)
        return error_message();
    if (wrong)
        return wrong;
    return crash_run_judge(run, budget, nr_states);
}

static const char *find_bad_state(enum broken_rule rule, const struct crash_setup *setup, unsigned nr_seeds, uint64_t *nr_states)
{
    const char *error = NULL;

    for (uint64_t seed = 1; !error && seed <= nr_seeds; seed++) {
        struct crash_run run;
        crash_run_init(&run, setup, seed);
        broken_rule = rule;
        for (unsigned session = 0; !error && session < 3; session++) {
            error = session > 0 ? crash_run_crash(&run) : NULL;
            if (!error)
                error = one_session(&run, rule == BROKEN_TAIL_NOT_PUBLISHED ? 800 : 160, budget_for(rule), nr_states);
        }
        broken_rule = BROKEN_NONE;
        crash_run_destroy(&run);
    }
    return error;
}

static struct crash_setup setup_of(bool cannot_punch, uint64_t stride)
{
    return (struct crash_setup){.sector_size = 512, .block_mib = 1, .log_mib = 1, .virtual_mib = 64 * stride, .nr_blocks = 6,
                                .block_stride = stride, .cannot_punch = cannot_punch};
}

static void must_be_found_in(enum broken_rule rule, const struct crash_setup *setup)
{
    uint64_t nr_states = 0;

    const char *error = find_bad_state(rule, setup, 10, &nr_states);
    print_message("# %s, in state %" PRIu64 "\n", error ? error : "nothing found", nr_states);
    assert_non_null(error);
}

static void must_be_found(enum broken_rule rule, bool cannot_punch, uint64_t stride)
{
    struct crash_setup setup = setup_of(cannot_punch, stride);
    must_be_found_in(rule, &setup);
}

static void nothing_is_found_in(const struct crash_setup *setup)
{
    uint64_t nr_states = 0;

    const char *error = find_bad_state(BROKEN_NONE, setup, 1, &nr_states);
    if (error)
        print_message("# %s\n", error);
    assert_null(error);
    assert_true(nr_states > 0);
}

/* The workloads of all tests below. */
static void test_nothing_broken(void **state)
{
    static const struct { bool cannot_punch; uint64_t stride; } variants[] = {{false, 1}, {true, 1}, {false, 1024}};

    (void)state;
    for (unsigned i = 0; i < ARRAY_LENGTH(variants); i++) {
        struct crash_setup setup = setup_of(variants[i].cannot_punch, variants[i].stride);
        nothing_is_found_in(&setup);
    }
}

static void test_home_before_log(void **state)
{
    (void)state;
    must_be_found(BROKEN_HOME_BEFORE_LOG, false, 1);
}

static void test_home_never(void **state)
{
    (void)state;
    must_be_found(BROKEN_HOME_NEVER, false, 1024);
}

static void test_tail_not_published(void **state)
{
    (void)state;
    must_be_found(BROKEN_TAIL_NOT_PUBLISHED, false, 1024);
}

static void test_no_flush_before_entry(void **state)
{
    (void)state;
    must_be_found(BROKEN_NO_FLUSH_BEFORE_ENTRY, true, 1);
}

static void test_foreign_as_zeros(void **state)
{
    (void)state;
    must_be_found(BROKEN_FOREIGN_AS_ZEROS, true, 1);
}

static void test_no_punch(void **state)
{
    (void)state;
    must_be_found(BROKEN_NO_PUNCH, false, 1);
}

static void test_reuse_at_once(void **state)
{
    (void)state;
    must_be_found(BROKEN_REUSE_AT_ONCE, false, 1);
}

static void test_guid_before_entry(void **state)
{
    (void)state;
    must_be_found(BROKEN_GUID_BEFORE_ENTRY, false, 1);
}

static void test_one_header(void **state)
{
    (void)state;
    must_be_found(BROKEN_ONE_HEADER, false, 1);
}

static void test_no_flush(void **state)
{
    (void)state;
    must_be_found(BROKEN_NO_FLUSH, false, 1);
}

static void test_cut_early(void **state)
{
    (void)state;
    must_be_found(BROKEN_CUT_EARLY, false, 1);
}

static void test_last_offset(void **state)
{
    (void)state;
    must_be_found(BROKEN_LAST_OFFSET, false, 1);
}

/* ---- children ---- */

static struct crash_setup child_setup(bool left_behind)
{
    return (struct crash_setup){.sector_size = 512, .block_mib = 1, .log_mib = 1, .virtual_mib = 64, .nr_blocks = 3, .block_stride = 1,
                                .nr_parents = 1, .parent_block_mib = 2, .stale_bits = left_behind, .foreign_space = left_behind,
                                .cannot_punch = left_behind};
}

static void must_be_found_in_child(enum broken_rule rule)
{
    struct crash_setup setup = child_setup(false);
    must_be_found_in(rule, &setup);
}

static void test_nothing_broken_in_child(void **state)
{
    struct crash_setup setup = child_setup(false);

    (void)state;
    nothing_is_found_in(&setup);
    setup = child_setup(true);
    setup.sector_size = 4096;
    nothing_is_found_in(&setup);
}

static void test_bits_without_flush(void **state)
{
    (void)state;
    must_be_found_in_child(BROKEN_NO_FLUSH_BEFORE_ENTRY);
}

static void test_bits_before_data(void **state)
{
    (void)state;
    must_be_found_in_child(BROKEN_BITS_BEFORE_DATA);
}

static void test_stale_bits(void **state)
{
    (void)state;
    must_be_found_in_child(BROKEN_STALE_BITS);
}

static void test_zero_to_partial(void **state)
{
    (void)state;
    must_be_found_in_child(BROKEN_ZERO_TO_PARTIAL);
}

static void test_trim_to_parent(void **state)
{
    (void)state;
    must_be_found_in_child(BROKEN_TRIM_TO_PARENT);
}

static void test_promotion(void **state)
{
    (void)state;
    must_be_found_in_child(BROKEN_PROMOTION);
}

static void test_zeros_below(void **state)
{
    (void)state;
    must_be_found_in_child(BROKEN_ZEROS_BELOW);
}

static void test_no_merge(void **state)
{
    struct crash_setup setup = child_setup(false);

    (void)state;
    setup.sector_size = 4096;
    must_be_found_in(BROKEN_NO_MERGE, &setup);
}

/* A bitmap block on space that is not zeros. */
static void test_foreign_bitmap(void **state)
{
    struct crash_setup setup = child_setup(true);

    (void)state;
    setup.stale_bits = false;
    setup.block_stride = 4096;
    setup.virtual_mib = 4 * 4096;
    must_be_found_in(BROKEN_FOREIGN_AS_ZEROS, &setup);
}

static void test_rest_not_zero(void **state)
{
    struct crash_setup setup = child_setup(true);

    (void)state;
    setup.short_by = (uint32_t)(MIB(1) - KIB(16));
    setup.nr_blocks = 2;
    must_be_found_in(BROKEN_REST_NOT_ZERO, &setup);
}

static void test_child_home_before_log(void **state)
{
    (void)state;
    must_be_found_in_child(BROKEN_HOME_BEFORE_LOG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_broken),
        cmocka_unit_test(test_home_before_log),
        cmocka_unit_test(test_home_never),
        cmocka_unit_test(test_tail_not_published),
        cmocka_unit_test(test_no_flush_before_entry),
        cmocka_unit_test(test_foreign_as_zeros),
        cmocka_unit_test(test_no_punch),
        cmocka_unit_test(test_reuse_at_once),
        cmocka_unit_test(test_guid_before_entry),
        cmocka_unit_test(test_one_header),
        cmocka_unit_test(test_no_flush),
        cmocka_unit_test(test_cut_early),
        cmocka_unit_test(test_last_offset),
        cmocka_unit_test(test_nothing_broken_in_child),
        cmocka_unit_test(test_bits_without_flush),
        cmocka_unit_test(test_bits_before_data),
        cmocka_unit_test(test_stale_bits),
        cmocka_unit_test(test_zero_to_partial),
        cmocka_unit_test(test_trim_to_parent),
        cmocka_unit_test(test_promotion),
        cmocka_unit_test(test_zeros_below),
        cmocka_unit_test(test_no_merge),
        cmocka_unit_test(test_foreign_bitmap),
        cmocka_unit_test(test_rest_not_zero),
        cmocka_unit_test(test_child_home_before_log),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
