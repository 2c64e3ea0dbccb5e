/* SPDX-License-Identifier: MIT */
/* What the driver for NBD exports keeps of a server's word about zeros.  The server is in this program (fake-libnbd.h); real ones
 * are in tests/e2e/test_nbd_client.py. */
#include "unit.h"

#include "base/math.h"
#include "fake-libnbd.h"
#include "storage/nbd.h"

enum { RANGE_BYTES = 512, MAX_KEPT = 65536 };

static bool every_other_range(uint64_t offset)
{
    return offset / RANGE_BYTES % 2 == 0;
}

static bool first_half(uint64_t offset)
{
    return offset < fake_export.size / 2;
}

static struct storage *open_export(uint64_t size, bool is_zero(uint64_t offset))
{
    struct storage *s;

    fake_export = (struct fake_export){.size = size, .min_block = RANGE_BYTES, .range_bytes = RANGE_BYTES, .is_zero = is_zero};
    assert_succeeds(storage_nbd_open("nbd://nobody", true, &s));
    return s;
}

/* All that a server says at once may be more than anybody has memory for: what is kept has a limit, and the rest is asked for when it
 * is wanted. */
static void test_more_ranges_than_are_kept(void **state)
{
    const uint64_t nr_ranges = 3 * MAX_KEPT + 1001; /* zeros, data, zeros, ... */
    struct storage *s = open_export(nr_ranges * RANGE_BYTES, every_other_range);
    const struct nbd_extents *kept = &nbd_of(s)->extents;
    uint64_t start, end;

    (void)state;
    for (uint64_t no = 1; no < nr_ranges; no += 2) {
        assert_succeeds(storage_next_data(s, (no - 1) * RANGE_BYTES, &start, &end));
        assert_int_equal(start, no * RANGE_BYTES);
        assert_int_equal(end, (no + 1) * RANGE_BYTES);
        assert_true(kept->nr_allocated <= MAX_KEPT);
    }
    assert_succeeds(storage_next_data(s, (nr_ranges - 1) * RANGE_BYTES, &start, &end));
    assert_true(start == end);
    assert_int_equal(fake_export.nr_questions, div_round_up(nr_ranges, MAX_KEPT)); /* and all that is kept is used */
    storage_close(s);
}

/* What was written is not zero any more, whatever the server said before. */
static void test_writing_forgets(void **state)
{
    struct storage *s = open_export(MIB(1), first_half);
    uint8_t bytes[RANGE_BYTES] = {1};
    uint64_t start, end;

    (void)state;
    for (unsigned round = 1; round <= 3; round++) {
        assert_succeeds(storage_next_data(s, 0, &start, &end));
        assert_succeeds(storage_next_data(s, KIB(4), &start, &end));
        assert_int_equal(start, MIB(1) / 2);
        assert_int_equal(end, MIB(1));
        assert_int_equal(fake_export.nr_questions, round);
        assert_succeeds(round == 1 ? storage_pwrite(s, bytes, sizeof bytes, 0) : storage_zero(s, 0, sizeof bytes));
    }
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_more_ranges_than_are_kept),
        cmocka_unit_test(test_writing_forgets),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
