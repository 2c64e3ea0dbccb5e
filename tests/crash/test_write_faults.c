/* SPDX-License-Identifier: MIT */
/* What a failing device does to writing: each storage call of a workload fails, once or from then on.  D9: nobody believes a
 * flush again that has failed; D10: without space the image stays consistent and works again when there is some; D4, D5 hold for
 * what is found afterwards, with and without a crash.  With an argument: children. */
#include "../unit/unit.h"

#include <errno.h>
#include <inttypes.h>

#include "base/math.h"
#include "crash-run.h"
#include "image/image.h"
#include "image/writer.h"

static struct crash_setup setup = {
    .sector_size = 512, .block_mib = 1, .log_mib = 1, .virtual_mib = 64, .nr_blocks = 5, .block_stride = 1};

static void must_pass(const char *error, uint64_t n)
{
    if (error)
        print_error("fault %" PRIu64 ": %s\n", n, error);
    assert_null(error);
}

static const char *judge(struct crash_run *run, uint64_t *nr_states)
{
    const struct crash_budget budget = {.random = run->parents ? 1 : 3, .open_every = run->parents ? 32 : 8};

    return crash_run_judge(run, &budget, nr_states);
}

/* Requests that go on whatever happens.  Once one has found the image poisoned, all later changes must be refused. */
static void stubborn_requests(struct crash_run *run, unsigned nr, bool *failed)
{
    for (unsigned n = 0; n < nr; n++) {
        bool poisoned = run->img->writer->state == WRITER_POISONED;
        int r = crash_run_random(run, 1);
        *failed |= r < 0;
        if (poisoned)
            assert_int_equal(r, -EIO);
    }
}

/* After a failed flush nobody knows what is durable, and after a failed write to headers, log or tables not what is there (D9).
 * A failed write of payload is the request's own. */
static bool must_poison(const struct crash_run *run, const struct fault_plan *plan)
{
    if (plan->kind == FAULT_FLUSH)
        return true;
    return plan->kind == FAULT_WRITE && plan->error == -EIO && !plan->forever &&
           run->fault.write_offset < image_plan_blocks_offset(&run->plan);
}

/* One life with a fault; false: there was none. */
static bool one_life(const struct fault_plan *plan, unsigned nr_before, uint64_t *nr_states)
{
    struct crash_run run;
    bool failed = false;

    crash_run_init(&run, &setup, 7);
    assert_succeeds(crash_run_open(&run));
    assert_succeeds(crash_run_random(&run, nr_before));
    fault_arm(&run.fault, plan);
    stubborn_requests(&run, 50, &failed);
    bool struck = fault_injected(&run.fault) > 0;
    bool poisoned = run.img->writer->state == WRITER_POISONED;
    assert_true(poisoned || !struck || !must_poison(&run, plan));
    if (struck && !plan->forever && plan->error == -ENOSPC && plan->kind == FAULT_WRITE) {
        if (!poisoned) { /* only a write to the headers, which must not be in doubt, may do that */
            assert_succeeds(crash_run_flush(&run));
            must_pass(crash_run_read_back(&run), plan->nth);
        }
    }
    fault_arm(&run.fault, NULL);
    if (plan->kind == FAULT_RESERVE) { /* it comes before anything is written that could be in doubt (D10) */
        assert_false(poisoned);
        assert_succeeds(crash_run_write(&run, 0, 512, true));
    }
    if (!poisoned || plan->kind == FAULT_FLUSH)
        must_pass(crash_run_read_back(&run), plan->nth); /* reads go on */
    if (poisoned) {
        assert_int_equal(crash_run_flush(&run), -EIO); /* also now that the device works again */
        assert_int_equal(crash_run_write(&run, 0, 512, true), -EIO);
    }
    int closed = crash_run_close(&run);
    assert_int_equal(closed < 0, poisoned);
    must_pass(judge(&run, nr_states), plan->nth);
    must_pass(crash_run_crash(&run), plan->nth);
    assert_succeeds(crash_run_open(&run));
    must_pass(crash_run_read_back(&run), plan->nth);
    assert_succeeds(crash_run_random(&run, 5));
    assert_succeeds(crash_run_close(&run));
    must_pass(judge(&run, nr_states), plan->nth);
    must_pass(crash_run_check_parents(&run), plan->nth);
    crash_run_destroy(&run);
    return struck;
}

/* From the very first change on, and with the log running already. */
static void each_fault(struct fault_plan plan)
{
    uint64_t nr_states = 0, n, nr_faults = 0;
    const unsigned stride = moment_stride();

    for (unsigned nr_before = 0; nr_before <= 5; nr_before += 5) {
        for (n = 1 + nr_before % stride; plan.nth = n, one_life(&plan, nr_before, &nr_states); n += stride)
            nr_faults++;
    }
    print_message("# %" PRIu64 " faults, %" PRIu64 " crash states\n", nr_faults, nr_states);
    assert_true(nr_faults > 0);
}

static void test_faults(void **state)
{
    for (const struct fault_plan *plan = *state; plan->error; plan++)
        each_fault(*plan);
}

/* Bringing a dirty log into place fails at each of its calls; the next opening does it. */
static void test_faults_in_replay(void **state)
{
    uint64_t nr_states = 0, n = 1;
    bool struck = true;

    (void)state;
    for (; struck; n++) {
        struct crash_run run;
        crash_run_init(&run, &setup, 11);
        assert_succeeds(crash_run_open(&run));
        assert_succeeds(crash_run_random(&run, 40));
        assert_succeeds(crash_run_close(&run));
        recording_forget(&run.recording, 14); /* as if it had never been closed: the log is dirty */
        must_pass(crash_run_crash(&run), n);
        fault_arm(&run.fault, &(struct fault_plan){.kind = FAULT_ANY, .nth = n, .error = -EIO});
        int r = crash_run_open(&run);
        struck = fault_injected(&run.fault) > 0;
        fault_arm(&run.fault, NULL);
        if (r == 0)
            assert_succeeds(crash_run_close(&run));
        else
            assert_true(struck);
        assert_succeeds(crash_run_open(&run));
        must_pass(crash_run_read_back(&run), n);
        assert_succeeds(crash_run_random(&run, 5));
        assert_succeeds(crash_run_close(&run));
        must_pass(judge(&run, &nr_states), n);
        crash_run_destroy(&run);
    }
    print_message("# %" PRIu64 " faults, %" PRIu64 " crash states\n", n - 2, nr_states);
}

/* Closing fails at each of its calls: it says so, and what was flushed is there. */
static void test_faults_in_close(void **state)
{
    uint64_t nr_states = 0, n = 1;
    bool struck = true;

    (void)state;
    for (; struck; n++) {
        struct crash_run run;
        crash_run_init(&run, &setup, 11);
        assert_succeeds(crash_run_open(&run));
        assert_succeeds(crash_run_random(&run, 40));
        fault_arm(&run.fault, &(struct fault_plan){.kind = FAULT_ANY, .nth = n, .error = -EIO});
        int r = crash_run_close(&run);
        struck = fault_injected(&run.fault) > 0;
        if (!struck)
            assert_succeeds(r);
        fault_arm(&run.fault, NULL);
        must_pass(judge(&run, &nr_states), n);
        must_pass(crash_run_crash(&run), n);
        assert_succeeds(crash_run_open(&run));
        must_pass(crash_run_read_back(&run), n);
        assert_succeeds(crash_run_close(&run));
        crash_run_destroy(&run);
    }
    print_message("# %" PRIu64 " faults, %" PRIu64 " crash states\n", n - 2, nr_states);
}

/* While the disk is full nothing can be written, but what was there before stays and comes back when there is space. */
static void test_full_disk_recovers(void **state)
{
    struct crash_run run;
    uint64_t nr_states = 0;

    (void)state;
    crash_run_init(&run, &setup, 3);
    assert_succeeds(crash_run_open(&run));
    assert_succeeds(crash_run_write(&run, 0, 4096, false));
    assert_succeeds(crash_run_flush(&run));
    assert_succeeds(crash_run_write(&run, MIB(1), 4096, false)); /* its entry finds no space */
    fault_arm(&run.fault, &(struct fault_plan){.kind = FAULT_WRITE, .nth = 1, .forever = true, .error = -ENOSPC});
    for (unsigned n = 0; n < 3; n++) {
        assert_int_equal(crash_run_flush(&run), -ENOSPC);
        assert_int_equal(crash_run_write(&run, MIB(2), 512, false), -ENOSPC);
    }
    must_pass(crash_run_read_back(&run), 0);
    fault_arm(&run.fault, NULL);
    assert_succeeds(crash_run_write(&run, MIB(2), 512, false));
    assert_succeeds(crash_run_flush(&run));
    must_pass(crash_run_read_back(&run), 0);
    assert_succeeds(crash_run_close(&run));
    must_pass(judge(&run, &nr_states), 0);
    crash_run_destroy(&run);
}

/* ---- children ---- */

/* Each kind of call of a child fails: while bitmap blocks are allocated, slices with stale bits are cleared, payload is written,
 * bits are set, blocks promoted.  What the requests said is what is found. */
static void each_fault_in_child(struct fault_plan plan)
{
    const struct crash_setup plain = setup;

    setup.nr_parents = 1;
    setup.parent_block_mib = 2;
    setup.sector_size = 4096;
    setup.nr_blocks = 3;
    setup.stale_bits = setup.foreign_space = setup.cannot_punch = plan.kind == FAULT_ZERO || plan.forever;
    if (!setup.stale_bits) { /* a bitmap block for each */
        setup.block_stride = 4096;
        setup.virtual_mib = 4096 * setup.nr_blocks;
    }
    each_fault(plan);
    setup = plain;
}

static void test_faults_in_child(void **state)
{
    for (const struct fault_plan *plan = *state; plan->error; plan++)
        each_fault_in_child(*plan);
}

/* The parent cannot be read when a sector has to be completed: the write fails, nothing is poisoned, and what the sector shows
 * stays. */
static void test_parent_cannot_be_read(void **state)
{
    struct crash_setup child = setup;
    uint64_t nr_states = 0, nr_failed = 0;
    struct crash_run run;

    (void)state;
    child.nr_parents = 2;
    child.parent_block_mib = 2;
    child.sector_size = 4096;
    crash_run_init(&run, &child, 5);
    assert_succeeds(crash_run_open(&run));
    for (uint32_t i = 0; i < child.nr_blocks; i++) {
        for (unsigned n = 0; n < 24; n++) {
            fault_arm(&run.parents->fault, &(struct fault_plan){.kind = FAULT_READ, .nth = 1, .forever = true, .error = -EIO});
            int r = crash_run_write(&run, crash_block(&run, i) + n * KIB(4) + 512, 1024, false);
            fault_arm(&run.parents->fault, NULL);
            if (r < 0)
                assert_int_equal(r, -EIO);
            nr_failed += r < 0;
        }
        must_pass(crash_run_read_back(&run), i);
    }
    assert_true(nr_failed > 0);
    assert_succeeds(crash_run_flush(&run));
    assert_succeeds(crash_run_write(&run, crash_block(&run, 1) + 512, 1024, true));
    must_pass(crash_run_read_back(&run), 0);
    assert_succeeds(crash_run_close(&run));
    must_pass(judge(&run, &nr_states), 0);
    crash_run_destroy(&run);
}

/* faults_test(name, plans...): a row of the table; .nth is counted up */
#define faults_test(name, ...)       {#name, test_faults, NULL, NULL, (struct fault_plan[]){__VA_ARGS__, {.error = 0}}}
#define child_faults_test(name, ...) {#name, test_faults_in_child, NULL, NULL, (struct fault_plan[]){__VA_ARGS__, {.error = 0}}}

int main(int argc, char **argv)
{
    const struct CMUnitTest of_children[] = {
        child_faults_test(test_child_failed_writes, {FAULT_WRITE, .error = -EIO, .bytes_done = 1024}),
        child_faults_test(test_child_no_space, {FAULT_WRITE, .error = -ENOSPC, .bytes_done = 512}),
        child_faults_test(test_child_failed_flushes, {FAULT_FLUSH, .error = -EIO}),
        child_faults_test(test_child_failed_zeroing, {FAULT_ZERO, .error = -EIO}),
        child_faults_test(test_child_failed_growth, {FAULT_TRUNCATE, .error = -ENOSPC}),
        child_faults_test(test_child_nothing_to_reserve, {FAULT_RESERVE, .error = -ENOSPC},
                          {FAULT_RESERVE, .error = -ENOSPC, .forever = true}),
        child_faults_test(test_child_failed_reads, {FAULT_READ, .error = -EIO}),
        child_faults_test(test_child_anything_fails_for_good, {FAULT_ANY, .error = -EIO, .forever = true}),
        cmocka_unit_test(test_parent_cannot_be_read),
    };
    const struct CMUnitTest tests[] = {
        faults_test(test_failed_writes, {FAULT_WRITE, .error = -EIO}),
        faults_test(test_torn_writes, {FAULT_WRITE, .error = -EIO, .bytes_done = 1024}),
        faults_test(test_writes_failing_for_good, {FAULT_WRITE, .error = -EIO, .forever = true}),
        faults_test(test_no_space, {FAULT_WRITE, .error = -ENOSPC, .bytes_done = 512}),
        faults_test(test_no_space_for_good, {FAULT_WRITE, .error = -ENOSPC, .forever = true}),
        faults_test(test_failed_flushes, {FAULT_FLUSH, .error = -EIO}),
        faults_test(test_flushes_failing_for_good, {FAULT_FLUSH, .error = -ENOSPC, .forever = true}),
        faults_test(test_failed_truncates, {FAULT_TRUNCATE, .error = -ENOSPC}, {FAULT_TRUNCATE, .error = -EIO, .forever = true}),
        faults_test(test_failed_punches, {FAULT_PUNCH, .error = -EIO}, {FAULT_PUNCH, .error = -ENOTSUP, .forever = true}),
        faults_test(test_nothing_to_reserve, {FAULT_RESERVE, .error = -ENOSPC},
                    {FAULT_RESERVE, .error = -ENOSPC, .forever = true}, {FAULT_RESERVE, .error = -EIO}),
        faults_test(test_failed_zeroing, {FAULT_ZERO, .error = -EIO}, {FAULT_ZERO, .error = -ENOTSUP, .forever = true}),
        faults_test(test_anything_fails, {FAULT_ANY, .error = -EIO}, {FAULT_ANY, .error = -EIO, .forever = true}),
        cmocka_unit_test(test_faults_in_replay),
        cmocka_unit_test(test_faults_in_close),
        cmocka_unit_test(test_full_disk_recovers),
    };

    (void)argv;
    return argc > 1 ? cmocka_run_group_tests(of_children, NULL, NULL) : cmocka_run_group_tests(tests, NULL, NULL);
}
