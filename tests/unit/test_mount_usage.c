/* SPDX-License-Identifier: MIT */
/* How much of a disk is allocated, which a question counts for a bounded time only. */
#include "unit.h"

#include <stdio.h>
#include <time.h>

#include "base/math.h"
#include "mount/usage.h"
#include "scratch.h"
#include "vhdx.h"

static char folder[SCRATCH_PATH_BYTES], image[SCRATCH_PATH_BYTES + 16];

static int set_up(void **state)
{
    (void)state;
    scratch_make(folder);
    snprintf(image, sizeof image, "%s/disk.vhdx", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

/* A second passes between any two looks at the clock, as for a thread that is not let run. */
int __wrap_clock_gettime(clockid_t id, struct timespec *now);

int __wrap_clock_gettime(clockid_t id, struct timespec *now)
{
    static time_t seconds;

    (void)id;
    *now = (struct timespec){.tv_sec = seconds++};
    return 0;
}

static vhdx_disk *open_disk(uint64_t size, uint64_t written_at)
{
    struct vhdx_create_options create = VHDX_CREATE_OPTIONS_INIT;
    struct vhdx_open_options options = VHDX_OPEN_OPTIONS_INIT;
    vhdx_disk *disk;

    create.virtual_size = size;
    create.block_size = (uint32_t)MIB(1);
    assert_succeeds(vhdx_create(image, &create));
    options.flags = VHDX_OPEN_WRITE;
    assert_succeeds(vhdx_open(image, &options, &disk));
    assert_succeeds(vhdx_pwrite(disk, "x", 1, written_at, 0));
    return disk;
}

static void a_small_disk_is_counted_at_once_however_late_it_is(void **state)
{
    vhdx_disk *disk = open_disk(MIB(24), MIB(5));
    struct usage usage;

    (void)state;
    assert_int_equal(usage_init(&usage, disk), 0);
    assert_int_equal(usage_count(&usage, 0, MIB(24)), MIB(1));
    usage_destroy(&usage);
    vhdx_close(disk);
}

static void each_question_gets_further_with_a_large_disk(void **state)
{
    const uint64_t size = MIB(1) << 20; /* 1 TiB: 256 windows */
    vhdx_disk *disk = open_disk(size, size - 1);
    struct usage usage;
    uint64_t before = size + 1, count;

    (void)state;
    assert_int_equal(usage_init(&usage, disk), 0);
    while ((count = usage_count(&usage, 0, size)) > MIB(1)) {
        assert_true(count < before);
        before = count;
    }
    assert_int_equal(count, MIB(1));
    usage_destroy(&usage);
    vhdx_close(disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_small_disk_is_counted_at_once_however_late_it_is, set_up, tear_down),
        cmocka_unit_test_setup_teardown(each_question_gets_further_with_a_large_disk, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("mount usage", tests, NULL, NULL);
}
