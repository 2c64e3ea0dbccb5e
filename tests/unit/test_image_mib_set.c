/* SPDX-License-Identifier: MIT */
/* The set of MiB numbers that finds overlapping objects (format section 5.9, hostile input rows 82 to 88). */
#include "unit.h"

#include "base/math.h"
#include "image/mib-set.h"

static bool add(struct mib_set *set, uint64_t first, uint64_t nr)
{
    bool clash;

    assert_succeeds(mib_set_add(set, first, nr, &clash));
    return !clash;
}

static void every_shared_member_is_a_clash(void **state)
{
    struct mib_set set;

    (void)state;
    assert_succeeds(mib_set_init(&set, 100));
    assert_true(add(&set, 10, 5));
    assert_false(add(&set, 9, 2));
    assert_false(add(&set, 14, 1));
    assert_false(add(&set, 0, 100));
    assert_true(add(&set, 15, 1));
    assert_true(add(&set, 9, 1));
    assert_int_equal(set.count, 7);
    mib_set_free(&set);
}

/* Or else part of an object would stay behind in the set and accuse others. */
static void a_clash_adds_nothing(void **state)
{
    struct mib_set set;

    (void)state;
    assert_succeeds(mib_set_init(&set, 100));
    assert_true(add(&set, 20, 1));
    assert_false(add(&set, 15, 6));
    for (uint64_t mib = 15; mib < 20; mib++)
        assert_false(mib_set_has(&set, mib));
    assert_int_equal(set.count, 1);
    mib_set_free(&set);
}

static void nothing_lies_beyond_the_set(void **state)
{
    struct mib_set set;

    (void)state;
    assert_succeeds(mib_set_init(&set, 1));
    assert_false(mib_set_has(&set, UINT64_MAX));
    assert_false(add(&set, UINT64_MAX, 1));
    assert_false(add(&set, UINT64_MAX - 5, 100)); /* the sum overflows */
    assert_false(add(&set, 0, UINT64_MAX));
    assert_false(add(&set, UINT64_C(1) << 44, 1));
    mib_set_free(&set);
    assert_succeeds(mib_set_init(&set, 0));
    assert_false(add(&set, 0, 1));
    assert_true(add(&set, 0, 0));
    assert_int_equal(mib_set_next(&set, 0, true), UINT64_MAX);
    assert_int_equal(mib_set_next(&set, 7, false), 7);
    mib_set_free(&set);
}

/* The largest file that is accepted is 2^30 MiB long: its set may not cost memory for that (H2). */
static void memory_follows_the_members(void **state)
{
    struct mib_set set;
    const uint64_t nr = UINT64_C(1) << 30;

    (void)state;
    assert_succeeds(mib_set_init(&set, nr));
    assert_true(set.nr_leaves * sizeof *set.leaves < MIB(1));
    assert_true(add(&set, 0, 1));
    assert_true(add(&set, nr - 256, 256));
    uint64_t nr_leaves = 0;
    for (uint64_t i = 0; i < set.nr_leaves; i++)
        nr_leaves += set.leaves[i] != NULL;
    assert_int_equal(nr_leaves, 2);
    assert_int_equal(mib_set_next(&set, 1, true), nr - 256);
    assert_int_equal(mib_set_next(&set, 0, false), 1);
    assert_int_equal(mib_set_next(&set, nr - 256, false), nr);
    mib_set_free(&set);
}

/* Against a plain array, over the border between two leaves. */
static void random_sets_agree_with_an_array(void **state)
{
    enum { NR = 3 * 32768 };
    static bool model[NR];
    uint64_t random = 0x1234567, count = 0;
    struct mib_set set;

    (void)state;
    assert_succeeds(mib_set_init(&set, NR));
    memset(model, 0, sizeof model);
    for (unsigned step = 0; step < 3000; step++) {
        uint64_t nr = 1 + random_next(&random) % 256, first = random_next(&random) % (NR + 10);
        bool fits = range_fits(first, nr, NR);
        for (uint64_t i = 0; fits && i < nr; i++)
            fits = !model[first + i];
        assert_int_equal(add(&set, first, nr), fits);
        for (uint64_t i = 0; fits && i < nr; i++)
            model[first + i] = true;
        count += fits ? nr : 0;

        uint64_t from = random_next(&random) % NR, member = from, gap = from;
        while (member < NR && !model[member])
            member++;
        while (gap < NR && model[gap])
            gap++;
        assert_int_equal(mib_set_has(&set, from), model[from]);
        assert_int_equal(mib_set_next(&set, from, true), member < NR ? member : UINT64_MAX);
        assert_int_equal(mib_set_next(&set, from, false), gap);
    }
    assert_int_equal(set.count, count);
    mib_set_free(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shared_member_is_a_clash),  cmocka_unit_test(a_clash_adds_nothing),
        cmocka_unit_test(nothing_lies_beyond_the_set),     cmocka_unit_test(memory_follows_the_members),
        cmocka_unit_test(random_sets_agree_with_an_array),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
