/* SPDX-License-Identifier: MIT */
/* Memory that runs out during the operations on whole images: each allocation fails, once or with all later
 * ones.  The operation fails with -ENOMEM, leaves what was there valid and nothing half made behind, and does
 * its work when it is asked again. */
#include "../unit/unit.h"

#include <unistd.h>

#include "base/math.h"
#include "disk/disk.h"
#include "malloc-scene.h"
#include "ops/ops.h"

/* ---- making images ---- */

static int act_create(void *opaque)
{
    struct scene *s = opaque;

    return scene_create(s->target, s->subformat, s->subformat == VHDX_DIFFERENCING ? s->child : NULL);
}

static void judge_created(void *opaque, int result)
{
    judge_target(opaque, result);
    if (result == 0)
        assert_sound(((struct scene *)opaque)->target);
}

static void test_create(void **state)
{
    static const enum vhdx_subformat subformats[] = {VHDX_DYNAMIC, VHDX_FIXED, VHDX_DIFFERENCING};
    struct scene *s = *state;

    for (size_t i = 0; i < ARRAY_LENGTH(subformats); i++) {
        s->subformat = subformats[i];
        malloc_sweep(&(struct malloc_sweep){.prepare = no_target, .act = act_create, .judge = judge_created},
                     s);
    }
}

/* ---- converting ---- */

static int act_to_raw(void *opaque)
{
    struct scene *s = opaque;
    struct vhdx_copy_options o = with_workers();

    return ops_copy_to_new_file(s->disk, s->target, &o);
}

static int act_to_image(void *opaque)
{
    struct scene *s = opaque;
    struct vhdx_copy_options o = with_workers();
    struct vhdx_create_options c = VHDX_CREATE_OPTIONS_INIT;

    c.block_size = MIB(1);
    c.subformat = s->subformat;
    return ops_copy_to_image(s->disk, s->target, &c, &o);
}

static int act_compare(void *opaque)
{
    struct scene *s = opaque;
    struct vhdx_compare_result result;
    int r = ops_compare(s->disk, s->disk, &result, NULL, NULL);

    if (r == 0)
        assert_true(result.identical);
    return r;
}

static void judge_comparison(void *opaque, int result)
{
    (void)result;
    assert_succeeds(disk_close(((struct scene *)opaque)->disk));
}

static void test_convert(void **state)
{
    struct scene *s = *state;

    malloc_sweep(
        &(struct malloc_sweep){.prepare = prepare_conversion, .act = act_to_raw, .judge = judge_conversion},
        s);
    for (int fixed = 0; fixed < 2; fixed++) {
        s->subformat = fixed ? VHDX_FIXED : VHDX_DYNAMIC;
        malloc_sweep(&(struct malloc_sweep){.prepare = prepare_conversion,
                                            .act = act_to_image,
                                            .judge = judge_conversion},
                     s);
    }
    malloc_sweep(
        &(struct malloc_sweep){.prepare = prepare_conversion, .act = act_compare, .judge = judge_comparison},
        s);
}

/* ---- looking ---- */

/* No finding may blame the image for what was ours. */
static void refuse_finding(void *opaque, const struct vhdx_finding *finding)
{
    (void)opaque;
    if (finding->severity > VHDX_INFO) {
        print_error("%s\n", finding->message);
        _fail(__FILE__, __LINE__);
    }
}

static int act_check(void *opaque)
{
    struct scene *s = opaque;
    struct vhdx_check_result result = {.struct_bytes = sizeof result};
    int r = ops_check(s->child, NULL, refuse_finding, NULL, &result, NULL, NULL);

    if (r == 0)
        assert_true(result.usable);
    return r;
}

static void test_check(void **state)
{
    malloc_sweep(&(struct malloc_sweep){.act = act_check}, *state);
}

static int act_survey(void *opaque)
{
    struct scene *s = opaque;

    return ops_survey_new(s->folder, NULL, 0, NULL, NULL, &s->survey);
}

/* Complete, or none. */
static void judge_survey(void *opaque, int result)
{
    struct scene *s = opaque;
    struct vhdx_survey_image image = {.struct_bytes = sizeof image};

    if (result < 0) {
        assert_null(s->survey);
        return;
    }
    for (size_t i = 0; i < 2; i++) {
        assert_succeeds(ops_survey_image(s->survey, i, &image));
        assert_int_equal(image.error, 0);
        assert_int_equal(image.link, i == 0 ? VHDX_LINK_NONE : VHDX_LINK_OK);
        assert_int_equal(image.parent, i == 0 ? VHDX_NO_IMAGE : 0);
    }
    ops_survey_free(s->survey);
}

static void test_survey(void **state)
{
    malloc_sweep(&(struct malloc_sweep){.act = act_survey, .judge = judge_survey}, *state);
}

static void see_begin(void *opaque, const char *what, bool is_array)
{
    (void)opaque, (void)what, (void)is_array;
}

static void see_end(void *opaque)
{
    (void)opaque;
}

static void see_number(void *opaque, const char *what, uint64_t value, enum vhdx_number_style style)
{
    (void)opaque, (void)what, (void)value, (void)style;
}

static void see_text(void *opaque, const char *what, const char *value)
{
    (void)opaque, (void)what, (void)value;
}

static void see_boolean(void *opaque, const char *what, bool value)
{
    (void)opaque, (void)what, (void)value;
}

static int act_dump(void *opaque)
{
    static const struct vhdx_dump_sink sink = {see_begin, see_end, see_number, see_text, see_boolean};
    struct scene *s = opaque;
    struct vhdx_dump_options o = {.struct_bytes = sizeof o, .parts = VHDX_DUMP_ALL, .nr_blocks = 8};

    return ops_dump(s->child, NULL, &o, &sink, NULL);
}

static void test_dump(void **state)
{
    malloc_sweep(&(struct malloc_sweep){.act = act_dump}, *state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_create, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(test_convert, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(test_check, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(test_survey, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(test_dump, scene_begin, scene_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
