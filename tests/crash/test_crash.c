/* SPDX-License-Identifier: MIT */
/* What is left of an image when the power fails at any moment of a workload: it opens, and every sector reads as D5 says.  With
 * the argument "long" each workload runs for VHDX_SEEDS seeds. */
#include "crash-sessions.h"

#include <errno.h>

#include "base/math.h"
#include "image/image.h"

static const struct crash_setup small = {
    .sector_size = 512, .block_mib = 1, .log_mib = 1, .virtual_mib = 64, .nr_blocks = 6, .block_stride = 1};

static const struct crash_budget every_subset = {.exhaustive = 16384, .random = 8, .open_every = 16};
static const struct crash_budget by_chance = {.random = 30, .open_every = 16};
static const struct crash_budget few = {.random = 6, .open_every = 16};

/* ---- certain requests ---- */

static void test_full_device(void **state)
{
    struct crash_setup setup = small;
    struct crash_run run;
    uint64_t nr_states = 0, length;

    (void)state;
    setup.device_mib = 4 + 2;
    crash_run_init(&run, &setup, 1);
    assert_succeeds(crash_run_open(&run));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 0), 512, false));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 1), 512, false));
    assert_fails(crash_run_write(&run, crash_block(&run, 2), 512, false), -ENOSPC, "cannot grow beyond its 6 MiB");
    assert_succeeds(crash_run_write(&run, crash_block(&run, 1) + 512, 512, true));
    assert_succeeds(crash_run_discard(&run, crash_block(&run, 0), MIB(1), false));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 2), 512, false)); /* into what was given up, whose loss it makes durable */
    assert_fails(crash_run_write(&run, crash_block(&run, 0), 512, false), -ENOSPC, "cannot grow beyond its 6 MiB");
    must_pass(&run, 1, crash_run_read_back(&run));
    assert_succeeds(crash_run_close(&run));
    assert_succeeds(storage_length(run.file, &length));
    assert_int_equal(length, MIB(setup.device_mib));
    judge(&run, 1, &by_chance, &nr_states);
    crash_run_destroy(&run);
    all_states += nr_states;
}

/* As many table pages as an entry can hold, and more. */
static void test_full_entries(void **state)
{
    static const struct crash_budget budget = {.random = 4, .open_every = 16};
    struct crash_setup setup = small;

    (void)state;
    for (setup.log_mib = 1; setup.log_mib <= (long_run ? 3u : 1u); setup.log_mib++) {
        setup.virtual_mib = 1024 * 1024;
        setup.nr_blocks = 190;
        setup.block_stride = 1024;
        struct crash_run run;
        uint64_t nr_states = 0;
        crash_run_init(&run, &setup, first_seed);
        assert_succeeds(crash_run_open(&run));
        for (unsigned round = 0; round < 2; round++) {
            for (uint32_t i = 0; i < setup.nr_blocks; i++)
                assert_succeeds(crash_run_write(&run, crash_block(&run, i) + round * 512, 512, false));
            assert_succeeds(crash_run_flush(&run));
            for (uint32_t i = 0; i < setup.nr_blocks; i += 2)
                assert_succeeds(crash_run_discard(&run, crash_block(&run, i), MIB(1), false));
        }
        assert_succeeds(crash_run_close(&run));
        judge(&run, first_seed, &budget, &nr_states);
        crash_run_destroy(&run);
        print_message("# %" PRIu64 " crash states\n", nr_states);
        all_states += nr_states;
    }
}

/* ---- order at the beginning and the end ---- */

/* D7: a disk that was opened and read, but not written, keeps every byte. */
static void test_untouched(void **state)
{
    struct crash_run run;

    (void)state;
    crash_run_init(&run, &small, 1);
    assert_succeeds(crash_run_open(&run));
    must_pass(&run, 1, crash_run_read_back(&run));
    assert_succeeds(crash_run_flush(&run));
    assert_succeeds(crash_run_close(&run));
    assert_int_equal(run.recording.nr_steps, 0);
    crash_run_destroy(&run);
}

/* D7: before anything else changes, both headers with new identities, each flushed by itself. */
static void test_headers_first(void **state)
{
    struct crash_run run;
    struct header h;

    (void)state;
    crash_run_init(&run, &small, 1);
    assert_succeeds(crash_run_open(&run));
    assert_succeeds(crash_run_write(&run, 0, 512, false));
    assert_true(run.recording.nr_steps > 4);
    for (unsigned i = 0; i < 4; i += 2) {
        const struct step *step = &run.recording.steps[i];
        assert_int_equal(step[0].kind, STEP_WRITE);
        assert_int_equal(step[0].offset, HEADER_OFFSET(i / 2)); /* the copy that does not count first: that is copy 0 */
        assert_int_equal(step[1].kind, STEP_FLUSH);
        header_decode(step[0].data, &h);
        assert_true(guid_is_zero(&h.log_guid));
        assert_false(guid_equal(&h.file_write_guid, &run.plan.header.file_write_guid));
        assert_false(guid_equal(&h.data_write_guid, &run.plan.header.data_write_guid));
    }
    assert_succeeds(crash_run_close(&run));
    crash_run_destroy(&run);
}

/* Closing cuts the file: no moment may have a log that promises what is cut off.  All that the last blocks held is discarded. */
static void test_cut_at_close(void **state)
{
    static const struct crash_budget budget = {.exhaustive = 65536, .random = 100, .open_every = 4};
    struct crash_run run;
    uint64_t nr_states = 0;

    (void)state;
    crash_run_init(&run, &small, 1);
    assert_succeeds(crash_run_open(&run));
    for (uint32_t i = 0; i < 6; i++)
        assert_succeeds(crash_run_write(&run, crash_block(&run, i), 1024, false));
    assert_succeeds(crash_run_flush(&run));
    assert_succeeds(crash_run_discard(&run, crash_block(&run, 2), MIB(4), true));
    assert_succeeds(crash_run_close(&run));
    judge(&run, 1, &budget, &nr_states);
    uint64_t length;
    assert_succeeds(storage_length(run.file, &length));
    assert_int_equal(length, image_plan_blocks_offset(&run.plan) + MIB(2));
    must_pass(&run, 1, crash_run_crash(&run));
    crash_run_destroy(&run);
    all_states += nr_states;
}

/* The log finds no space once; what was allocated meanwhile must neither be lost nor given to somebody else. */
static void test_log_write_without_space(void **state)
{
    static const struct crash_budget budget = {.exhaustive = 4096, .random = 100, .open_every = 4};
    struct crash_run run;
    uint64_t nr_states = 0;

    (void)state;
    crash_run_init(&run, &small, 1);
    assert_succeeds(crash_run_open(&run));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 0), 1024, true));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 1), 1024, false));
    fault_arm(&run.fault, &(struct fault_plan){.kind = FAULT_WRITE, .nth = 1, .error = -ENOSPC, .bytes_done = 512});
    assert_int_equal(crash_run_flush(&run), -ENOSPC);
    assert_succeeds(crash_run_discard(&run, crash_block(&run, 1), MIB(1), false));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 2), 1024, false));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 1) + 4096, 1024, false));
    assert_succeeds(crash_run_flush(&run));
    must_pass(&run, 1, crash_run_read_back(&run));
    assert_succeeds(crash_run_close(&run));
    judge(&run, 1, &budget, &nr_states);
    crash_run_destroy(&run);
    all_states += nr_states;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        /* every subset of what was not flushed */
        sessions_test(test_every_subset, {.nr_blocks = 4}, 4, 14, &every_subset, 1),
        sessions_test(test_every_subset_without_punching, {.nr_blocks = 3, .cannot_punch = true}, 4, 14, &every_subset, 1),

        /* by chance */
        sessions_test(test_dynamic, {0}, 4, 100, &by_chance, 1),
        sessions_test(test_dynamic_4096, {.sector_size = 4096}, 4, 80, &by_chance, 1),
        sessions_test(test_no_punch, {.cannot_punch = true}, 4, 100, &by_chance, 1),
        sessions_test(test_fixed, {.fixed = true, .nr_blocks = 6, .virtual_mib = 6}, 3, 60, &by_chance, 1),
        sessions_test(test_large_blocks, {.block_mib = 8, .log_mib = 2, .nr_blocks = 4}, 3, 80, &by_chance, 1),
        /* entries of a few table pages each: the ring wraps several times */
        sessions_test(test_ring_wraps, {.virtual_mib = 16 * 1024, .nr_blocks = 12, .block_stride = 1024}, 2, 700, &few, 1),

        /* A block device keeps its length and is full of old data, with a block more than the disk has, so that what was given up
         * and not flushed yet is needed soon, or with so few that it gets full. */
        sessions_test(test_device, {.nr_blocks = 6, .device_mib = 4 + 6 + 1}, 3, 60, &by_chance, 1),
        sessions_test(test_small_device, {.nr_blocks = 3, .device_mib = 4 + 8}, 3, 60, &by_chance, 1),

        cmocka_unit_test(test_full_device),
        cmocka_unit_test(test_full_entries),
        cmocka_unit_test(test_untouched),
        cmocka_unit_test(test_headers_first),
        cmocka_unit_test(test_cut_at_close),
        cmocka_unit_test(test_log_write_without_space),
    };

    (void)argv;
    long_run = argc > 1;
    if (long_run)
        nr_seeds = crash_seeds(20, &first_seed);
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    print_message("# %" PRIu64 " crash states in all\n", all_states);
    return r;
}
