/* SPDX-License-Identifier: MIT */
/* Links to parents: what is recorded, and that after a crash the old link stands or the new one. */
#include "image-test.h"

#include "disk/info.h"
#include "format/parent-locator.h"
#include "image/writer.h"
#include "ops/relink.h"

static const char *const locator[][2] = {
    {"parent_linkage", "{F88D4D92-6FCC-408D-9BEF-9B7C89F15C89}"},
    {"absolute_win32_path", "C:\\base.vhdx"},
    {"somebody's", "note"},
    {"relative_path", ".\\base.vhdx"},
};

static const guid new_id = {"new"}, newer_id = {"newer"};

static struct storage *make_image(struct image_plan *plan)
{
    image_plan_init(plan, MIB(64), (uint32_t)MIB(1), 512, locator, 4);
    return build_memory_image(plan);
}

static void expect_text(const struct image *img, const char *key, const char *value)
{
    struct locator_pair pair;
    char text[200];

    assert_int_equal(locator_find(img->locator, key, &pair), value != NULL);
    if (value) {
        assert_succeeds(locator_text(img->locator, pair.value_offset, pair.value_length, text, sizeof text));
        assert_string_equal(text, value);
    }
}

static guid linkage_of(const struct image *img, guid *linkage2)
{
    guid linkage;

    locator_linkage(img->locator, &linkage, linkage2);
    return linkage;
}

/* The two identities of a merge; paths stay. */
static void test_identities(void **state)
{
    struct image_plan plan;
    guid second;

    (void)state;
    struct storage *s = make_image(&plan);
    struct image *img = MUST_OPEN(s, IMAGE_WRITABLE);
    guid old = linkage_of(img, &second);
    struct new_link link = {.linkage = old, .linkage2 = new_id};
    assert_int_equal(relink_is_needed(img, &link), 1);
    assert_succeeds(writer_begin_invisible(img));
    assert_succeeds(relink(img, &link));
    assert_int_equal(relink_is_needed(img, &link), 0);
    assert_succeeds(image_close(img));
    img = MUST_OPEN(s, 0);
    guid first = linkage_of(img, &second);
    assert_true(guid_equal(&first, &old) && guid_equal(&second, &new_id));
    assert_true(linkage_accepts(&first, &second, &old) && linkage_accepts(&first, &second, &new_id));
    assert_false(linkage_accepts(&first, &second, &newer_id));
    expect_text(img, "absolute_win32_path", "C:\\base.vhdx");
    expect_text(img, "relative_path", ".\\base.vhdx");
    expect_text(img, "somebody's", "note");
    assert_true(guid_equal(&img->header.data_write_guid, &plan.header.data_write_guid));
    image_close(img);
    storage_close(s);
}

static void test_paths(void **state)
{
    struct image_plan plan;
    guid second;

    (void)state;
    struct storage *s = make_image(&plan);
    struct image *img = MUST_OPEN(s, IMAGE_WRITABLE);
    assert_succeeds(writer_begin_invisible(img));
    struct new_link link = {.linkage = new_id, .relative_path = "..\\x\\y.vhdx", .windows_path = "D:\\y.vhdx"};
    assert_succeeds(relink(img, &link));
    expect_text(img, "absolute_win32_path", "D:\\y.vhdx");
    link.windows_path = NULL;
    assert_succeeds(relink(img, &link));
    assert_succeeds(image_close(img));
    img = MUST_OPEN(s, 0);
    guid first = linkage_of(img, &second);
    assert_true(guid_equal(&first, &new_id) && guid_is_zero(&second));
    expect_text(img, "absolute_win32_path", NULL);
    expect_text(img, "relative_path", "..\\x\\y.vhdx");
    expect_text(img, "somebody's", "note");
    image_close(img);
    storage_close(s);
}

static void test_path_that_is_no_text(void **state)
{
    struct image_plan plan;
    struct new_link link = {.linkage = new_id, .relative_path = ".\\\xff.vhdx"};

    (void)state;
    struct storage *s = make_image(&plan);
    struct image *img = MUST_OPEN(s, IMAGE_WRITABLE);
    assert_fails(relink_is_needed(img, &link), -EINVAL, "UTF-8");
    assert_succeeds(writer_begin_invisible(img));
    assert_fails(relink(img, &link), -EINVAL, "UTF-8");
    assert_succeeds(image_close(img));
    img = MUST_OPEN(s, 0);
    expect_text(img, "relative_path", ".\\base.vhdx");
    image_close(img);
    storage_close(s);
}

/* Power fails at any moment of: first both identities, then the new one and another path. */
static void test_crash(void **state)
{
    struct image_plan plan;
    struct recording recording;
    struct storage *recorder;
    guid second;

    (void)state;
    struct storage *s = make_image(&plan);
    assert_succeeds(recording_init(&recording, s));
    assert_succeeds(recorder_wrap(&recording, s, &recorder));
    struct image *img = MUST_OPEN(recorder, IMAGE_WRITABLE);
    guid old = linkage_of(img, &second);
    assert_succeeds(writer_begin_invisible(img));
    assert_succeeds(relink(img, &(struct new_link){.linkage = old, .linkage2 = new_id}));
    assert_succeeds(writer_commit(img));
    size_t both = recording_nr_steps(&recording);
    assert_succeeds(relink(img, &(struct new_link){.linkage = new_id, .relative_path = ".\\a rather longer name.vhdx"}));
    assert_succeeds(writer_commit(img));
    size_t last = recording_nr_steps(&recording);
    assert_succeeds(image_close(img));
    storage_close(recorder);
    for (size_t step = 0; step <= recording.nr_steps; step++) {
        for (uint64_t seed = 0; seed < 20; seed++) {
            struct storage *left;
            assert_succeeds(powerloss_random(&recording, step, step * 100 + seed, &left));
            img = MUST_OPEN(left, 0);
            guid first = linkage_of(img, &second);
            bool takes_old = linkage_accepts(&first, &second, &old), takes_new = linkage_accepts(&first, &second, &new_id);
            assert_true(takes_old || takes_new);
            assert_true(step >= both || takes_old);
            assert_true(step < both || takes_new);
            assert_true(step < last || !takes_old);
            expect_text(img, "relative_path", takes_old ? ".\\base.vhdx" : ".\\a rather longer name.vhdx");
            image_close(img);
            storage_close(left);
        }
    }
    recording_destroy(&recording);
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identities),
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_path_that_is_no_text),
        cmocka_unit_test(test_crash),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
