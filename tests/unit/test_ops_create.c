/* SPDX-License-Identifier: MIT */
/* Creating an image in a storage: what is durable before what (format section 9.1), and what happens when the storage
 * fails or the power does. */
#include "image-test.h"
#include "storage-test.h"

#include "ops/create-child.h"
#include "ops/create.h"

static struct vhdx_create_options small_options(enum vhdx_subformat subformat, enum vhdx_preallocation preallocation)
{
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;

    o.subformat = subformat;
    o.preallocation = preallocation;
    o.virtual_size = MIB(3) + 512;
    o.block_size = (uint32_t)MIB(1);
    return o;
}

static void what_was_created_opens(void **state)
{
    struct vhdx_create_options o = small_options(VHDX_FIXED, VHDX_PREALLOC_OFF);
    struct storage *s = new_file(NULL, 0);
    struct bat_entry e;
    uint64_t length;

    (void)state;
    assert_succeeds(create_in(s, &o));
    assert_succeeds(storage_length(s, &length));
    assert_int_equal(length, MIB(8));
    struct image *img = MUST_OPEN(s, 0);
    assert_int_equal(img->geometry.virtual_size, MIB(3) + 512);
    assert_int_equal(img->header.sequence_no, 1);
    for (uint64_t block_no = 0; block_no < 4; block_no++) {
        assert_succeeds(bat_lookup(img, block_no, &e));
        assert_int_equal(e.state, PAYLOAD_FULLY_PRESENT);
        assert_int_equal(e.file_offset, MIB(4 + block_no));
    }
    image_close(img);
    storage_close(s);
}

/* Both flushes, and between them the identifier and nothing else. */
static void the_identifier_comes_last(void **state)
{
    struct vhdx_create_options o = small_options(VHDX_FIXED, VHDX_PREALLOC_FULL);
    struct storage *inner = new_file(NULL, 0), *s;
    struct recording rec;

    (void)state;
    assert_succeeds(recording_init(&rec, NULL));
    assert_succeeds(recorder_wrap(&rec, inner, &s));
    assert_succeeds(create_in(s, &o));
    assert_true(rec.nr_steps > 3);
    const struct step *last = &rec.steps[rec.nr_steps - 3];
    assert_int_equal(last[0].kind, STEP_FLUSH);
    assert_int_equal(last[1].kind, STEP_WRITE);
    assert_int_equal(last[1].offset, 0);
    assert_int_equal(last[1].bytes, IDENTIFIER_RAW_BYTES);
    assert_int_equal(last[2].kind, STEP_FLUSH);
    for (const struct step *step = rec.steps; step < last; step++) {
        assert_int_not_equal(step->kind, STEP_FLUSH);
        if (step->kind == STEP_WRITE)
            assert_true(step->offset >= HEADER_OFFSET(0));
    }
    storage_close(s);
    storage_close(inner);
    recording_destroy(&rec);
}

/* Whenever the power fails there is no VHDX, or all of it. */
static void power_loss_leaves_no_half_image(void **state)
{
    struct vhdx_create_options o = small_options(VHDX_FIXED, VHDX_PREALLOC_OFF);
    struct storage *inner = new_file(NULL, 0), *s, *found;
    unsigned nr_images = 0, nr_others = 0;
    struct recording rec;

    (void)state;
    assert_succeeds(recording_init(&rec, NULL));
    assert_succeeds(recorder_wrap(&rec, inner, &s));
    assert_succeeds(create_in(s, &o));
    for (size_t nr_steps = 0; nr_steps <= rec.nr_steps; nr_steps++) {
        for (uint64_t seed = 1; seed <= 20; seed++) {
            assert_succeeds(powerloss_random(&rec, nr_steps, seed, &found));
            if (has_identifier(found)) {
                image_close(MUST_OPEN(found, 0));
                nr_images++;
            } else {
                nr_others++;
            }
            storage_close(found);
        }
    }
    assert_true(nr_images >= 20 && nr_others >= 20);
    storage_close(s);
    storage_close(inner);
    recording_destroy(&rec);
}

/* The n-th operation fails, n = 1, 2, ... until none does. */
static void every_failure_is_reported(void **state)
{
    static const enum vhdx_preallocation ways[] = {VHDX_PREALLOC_OFF, VHDX_PREALLOC_FULL};
    uint64_t nr_failures = 0;

    (void)state;
    for (size_t way = 0; way < ARRAY_LENGTH(ways); way++) {
        struct vhdx_create_options o = small_options(VHDX_FIXED, ways[way]);
        for (uint64_t nth = 1;; nth++) {
            struct storage *inner = new_file(NULL, 0), *s;
            struct fault fault;
            fault_init(&fault);
            assert_succeeds(fault_wrap(&fault, inner, &s));
            fault_arm(&fault, &(struct fault_plan){.kind = FAULT_ANY, .nth = nth, .error = -ENOSPC, .bytes_done = 5000});
            int r = create_in(s, &o);
            bool injected = fault_injected(&fault) > 0;
            assert_int_equal(r, injected ? -ENOSPC : 0);
            nr_failures += injected;
            storage_close(s);
            storage_close(inner);
            fault_destroy(&fault);
            if (!injected)
                break;
        }
    }
    assert_true(nr_failures > 20);
}

static int stop_at_half(void *opaque, uint64_t done, uint64_t total)
{
    *(unsigned *)opaque += 1;
    return done * 2 > total;
}

static void writing_zeros_can_be_cancelled(void **state)
{
    struct vhdx_create_options o = small_options(VHDX_FIXED, VHDX_PREALLOC_FULL);
    struct storage *s = new_file(NULL, 0);
    unsigned nr_calls = 0;

    (void)state;
    o.progress = stop_at_half;
    o.opaque = &nr_calls;
    assert_fails(create_in(s, &o), -ECANCELED, "cancelled after");
    assert_true(nr_calls > 1);
    assert_false(has_identifier(s));
    storage_close(s);
}

static void space_cannot_be_reserved_everywhere(void **state)
{
    struct vhdx_create_options o = small_options(VHDX_FIXED, VHDX_PREALLOC_FALLOC);
    struct storage *s = new_file(NULL, 0);

    (void)state;
    assert_fails(create_in(s, &o), -ENOTSUP, "--preallocate=full");
    assert_false(has_identifier(s));
    storage_close(s);
}

static void paths_between_folders(void **state)
{
    static const struct {
        const char *folder, *file, *expected;
    } cases[] = {
        {"/", "/parent.vhdx", ".\\parent.vhdx"},
        {"/", "/a/parent.vhdx", ".\\a\\parent.vhdx"},
        {"/a", "/parent.vhdx", "..\\parent.vhdx"},
        {"/a", "/a/parent.vhdx", ".\\parent.vhdx"},
        {"/a", "/ab/parent.vhdx", "..\\ab\\parent.vhdx"},
        {"/ab", "/a/parent.vhdx", "..\\a\\parent.vhdx"},
        {"/a/b/c", "/a/x/y", "..\\..\\x\\y"},
        {"/a/b", "/a/b", "..\\b"}, /* cannot be, but makes no harm */
    };
    char path[64];

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        assert_succeeds(child_relative_path(cases[i].folder, cases[i].file, path, sizeof path));
        assert_string_equal(path, cases[i].expected);
    }
    assert_fails(child_relative_path("/a:b", "/c\\d", path, sizeof path), -EINVAL, "backslash");
    assert_succeeds(child_relative_path("/a:b", "/a:b/d", path, sizeof path)); /* what is above both is not recorded */
    assert_fails(child_relative_path("/a/b", "/c/d", path, 8), -ENAMETOOLONG, "too long");
    assert_fails(child_relative_path("/a/b", "/c/d", path, 3), -ENAMETOOLONG, "too long");
    assert_succeeds(child_relative_path("/a/b", "/c/d", path, 10));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(paths_between_folders),
        cmocka_unit_test(what_was_created_opens),
        cmocka_unit_test(the_identifier_comes_last),
        cmocka_unit_test(power_loss_leaves_no_half_image),
        cmocka_unit_test(every_failure_is_reported),
        cmocka_unit_test(writing_zeros_can_be_cancelled),
        cmocka_unit_test(space_cannot_be_reserved_everywhere),
    };
    return cmocka_run_group_tests_name("ops/create", tests, init_test_fault, NULL);
}
