/* SPDX-License-Identifier: MIT */
/* What vhdx_zero() does to space: VHDX_NO_HOLE keeps or gets it, VHDX_FAST_ZERO writes no zeros and fails before anything
 * changed. */
#include "../unit/unit.h"

#include <errno.h>

#include "base/math.h"
#include "crash-run.h"
#include "image/image.h"

static const struct crash_setup dynamic = {
    .sector_size = 512, .block_mib = 1, .log_mib = 1, .virtual_mib = 16, .nr_blocks = 8, .block_stride = 1};
static const struct crash_setup fixed = {
    .sector_size = 512, .block_mib = 1, .log_mib = 1, .virtual_mib = 16, .nr_blocks = 8, .block_stride = 1, .fixed = true};

static void begin(struct crash_run *run, const struct crash_setup *setup)
{
    crash_run_init(run, setup, 1);
    assert_succeeds(crash_run_open(run));
}

static void finish(struct crash_run *run)
{
    assert_null(crash_run_read_back(run));
    assert_succeeds(crash_run_close(run));
    crash_run_destroy(run);
}

/* Zero as the history knows it, but with flags. */
static int zero(struct crash_run *run, uint64_t offset, uint64_t bytes, uint32_t flags)
{
    struct history *h = &run->history;
    uint32_t no = history_begin(h, REQUEST_ZERO, offset, bytes, false, recording_nr_steps(&run->recording));
    int r = disk_zero(&run->disk, offset, bytes, flags);

    history_end(h, no, r == 0, recording_nr_steps(&run->recording));
    return r;
}

static unsigned block_state(struct crash_run *run, uint64_t block_no)
{
    struct bat_entry e;

    assert_succeeds(bat_lookup(run->img, block_no, &e));
    return e.state;
}

static void arm(struct crash_run *run, enum fault_kind kind, uint64_t nth)
{
    fault_arm(&run->fault, &(struct fault_plan){.kind = kind, .nth = nth, .forever = true, .error = -ENOTSUP});
}

/* Bytes that the run wrote into the file since step from, tables and log not counted. */
static uint64_t payload_written(struct crash_run *run, size_t from)
{
    uint64_t bytes = 0;

    for (size_t i = from; i < run->recording.nr_steps; i++) {
        const struct step *s = &run->recording.steps[i];
        if (s->kind == STEP_WRITE && s->offset >= image_plan_blocks_offset(&run->plan))
            bytes += s->bytes;
    }
    return bytes;
}

static void without_flags_whole_blocks_give_up_their_space(void **state)
{
    struct crash_run run;

    (void)state;
    begin(&run, &dynamic);
    assert_succeeds(crash_run_write(&run, 0, MIB(3), false));
    assert_succeeds(zero(&run, 512, MIB(2), 0));
    assert_int_equal(block_state(&run, 0), PAYLOAD_FULLY_PRESENT);
    assert_int_equal(block_state(&run, 1), PAYLOAD_ZERO);
    assert_int_equal(block_state(&run, 2), PAYLOAD_FULLY_PRESENT);
    finish(&run);
}

static void no_hole_keeps_space_and_gets_it(void **state)
{
    struct crash_run run;

    (void)state;
    begin(&run, &dynamic);
    assert_succeeds(crash_run_write(&run, 0, MIB(2), false));
    size_t before = recording_nr_steps(&run.recording);
    assert_succeeds(zero(&run, 512, MIB(4), VHDX_NO_HOLE));
    for (uint64_t n = 0; n < 5; n++)
        assert_int_equal(block_state(&run, n), PAYLOAD_FULLY_PRESENT);
    assert_int_equal(block_state(&run, 5), PAYLOAD_NOT_PRESENT);
    assert_int_equal(payload_written(&run, before), 0);
    bool punched = false;
    for (size_t i = before; i < run.recording.nr_steps; i++)
        punched |= run.recording.steps[i].kind == STEP_PUNCH;
    assert_false(punched);
    finish(&run);
}

/* Where the file system cannot zero, data is written, since a hole would be none the guest asked for. */
static void no_hole_writes_zeros_rather_than_punch(void **state)
{
    const struct crash_setup *setups[] = {&dynamic, &fixed};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(setups); i++) {
        struct crash_run run;
        begin(&run, setups[i]);
        assert_succeeds(crash_run_write(&run, 0, MIB(1), false));
        arm(&run, FAULT_ZERO, 1);
        size_t before = recording_nr_steps(&run.recording);
        assert_succeeds(zero(&run, 1024, 5120, setups[i]->fixed ? 0 : VHDX_NO_HOLE));
        assert_int_equal(payload_written(&run, before), 5120);
        assert_int_equal(fault_count(&run.fault, FAULT_PUNCH), 0);
        finish(&run);
    }
}

static void parts_are_punched_where_they_cannot_be_zeroed(void **state)
{
    struct crash_run run;

    (void)state;
    begin(&run, &dynamic);
    assert_succeeds(crash_run_write(&run, 0, MIB(1), false));
    arm(&run, FAULT_ZERO, 1);
    size_t before = recording_nr_steps(&run.recording);
    assert_succeeds(zero(&run, 4096, 8192, VHDX_FAST_ZERO));
    assert_int_equal(fault_count(&run.fault, FAULT_PUNCH), 1);
    assert_int_equal(payload_written(&run, before), 0);
    finish(&run);
}

static void fast_zero_fails_before_anything_changes(void **state)
{
    const struct crash_setup *setups[] = {&dynamic, &fixed};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(setups); i++) {
        struct crash_run run;
        begin(&run, setups[i]);
        assert_succeeds(crash_run_write(&run, 0, MIB(4), true));
        arm(&run, FAULT_ANY, 1); /* neither zeroing nor punching, nor anything else that changes the file */
        size_t before = recording_nr_steps(&run.recording);
        assert_fails(disk_zero(&run.disk, MIB(1), MIB(1) + 512, VHDX_FAST_ZERO), -EOPNOTSUPP, "without writing them");
        assert_fails(disk_zero(&run.disk, 512, MIB(3), VHDX_FAST_ZERO), -EOPNOTSUPP, "without writing them");
        assert_fails(disk_zero(&run.disk, 0, 512, VHDX_FAST_ZERO | VHDX_NO_HOLE), -EOPNOTSUPP, "without writing them");
        assert_int_equal(recording_nr_steps(&run.recording), before);
        if (!setups[i]->fixed) {
            assert_fails(disk_zero(&run.disk, MIB(6), MIB(1), VHDX_FAST_ZERO | VHDX_NO_HOLE), -EOPNOTSUPP, "block 6 has no space");
            assert_int_equal(block_state(&run, 6), PAYLOAD_NOT_PRESENT);
            arm(&run, FAULT_PUNCH, 1);
            assert_succeeds(zero(&run, MIB(1), MIB(1), VHDX_FAST_ZERO)); /* whole blocks need only their table's page */
            assert_int_equal(fault_count(&run.fault, FAULT_PUNCH) + fault_count(&run.fault, FAULT_ZERO) +
                                 fault_count(&run.fault, FAULT_WRITE),
                             0);
            assert_int_equal(block_state(&run, 1), PAYLOAD_ZERO);
        }
        fault_arm(&run.fault, NULL);
        assert_succeeds(zero(&run, 512, MIB(3), VHDX_FAST_ZERO | VHDX_NO_HOLE * (setups[i]->fixed)));
        finish(&run);
    }
}

static void flags_that_do_not_belong_are_refused(void **state)
{
    struct crash_run run;
    char x = 7;
    struct iovec iov = {&x, 1};

    (void)state;
    begin(&run, &dynamic);
    assert_fails(disk_zero(&run.disk, 0, 512, 8), -EINVAL, "unknown flags 0x8");
    assert_fails(disk_discard(&run.disk, 0, 512, VHDX_NO_HOLE), -EINVAL, "unknown flags");
    assert_fails(disk_discard(&run.disk, 0, 512, VHDX_FAST_ZERO), -EINVAL, "unknown flags");
    assert_fails(disk_pwritev(&run.disk, &iov, 1, 0, VHDX_FAST_ZERO), -EINVAL, "unknown flags");
    finish(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_flags_whole_blocks_give_up_their_space),
        cmocka_unit_test(no_hole_keeps_space_and_gets_it),
        cmocka_unit_test(no_hole_writes_zeros_rather_than_punch),
        cmocka_unit_test(parts_are_punched_where_they_cannot_be_zeroed),
        cmocka_unit_test(fast_zero_fails_before_anything_changes),
        cmocka_unit_test(flags_that_do_not_belong_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
