/* SPDX-License-Identifier: MIT */
/* Memory that runs out during the operations on whole images: each allocation fails, once or with all later
 * ones.  The operation fails with -ENOMEM, leaves what was there valid and nothing half made behind, and does
 * its work when it is asked again. */
#include "../unit/unit.h"

#include <sys/mman.h>
#include <unistd.h>

#include "base/math.h"
#include "disk/disk.h"
#include "malloc-scene.h"
#include "ops/ops.h"
#include "ops/survey.h"

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

static void prepare_stream(void *opaque)
{
    struct scene *s = opaque;

    no_target(s);
    assert_int_equal(lseek(s->fd, 0, SEEK_SET), 0);
}

static int act_from_stream(void *opaque)
{
    struct scene *s = opaque;
    struct vhdx_create_options c = VHDX_CREATE_OPTIONS_INIT;

    c.block_size = MIB(1);
    c.subformat = s->subformat;
    c.virtual_size = s->subformat == VHDX_FIXED ? DISK_BYTES : 0; /* else the stream's end tells */
    return ops_copy_stream_to_image(s->fd, s->target, &c, NULL);
}

static void judge_stream(void *opaque, int result)
{
    struct scene *s = opaque;

    judge_target(s, result);
    if (result == 0)
        must_hold_content(s, s->target, 0);
}

static int act_to_stream(void *opaque)
{
    struct scene *s = opaque;

    return ops_copy_to_stream(s->disk, s->fd, NULL);
}

static void judge_comparison(void *opaque, int result)
{
    (void)result;
    assert_succeeds(disk_close(((struct scene *)opaque)->disk));
}

static void prepare_reading(void *opaque)
{
    struct scene *s = opaque;

    s->disk = must_open(s->child, 0);
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
        &(struct malloc_sweep){.prepare = prepare_reading, .act = act_compare, .judge = judge_comparison},
        s);
}

/* Through descriptors: a pipe's other end may be any program. */
static void test_streams(void **state)
{
    struct scene *s = *state;

    s->fd = memfd_create("stream", MFD_CLOEXEC);
    assert_true(s->fd >= 0);
    malloc_sweep(
        &(struct malloc_sweep){.prepare = prepare_reading, .act = act_to_stream, .judge = judge_comparison},
        s);
    assert_int_equal(pwrite(s->fd, s->content, DISK_BYTES, 0), DISK_BYTES);
    assert_int_equal(ftruncate(s->fd, DISK_BYTES), 0);
    for (int fixed = 0; fixed < 2; fixed++) {
        s->subformat = fixed ? VHDX_FIXED : VHDX_DYNAMIC;
        malloc_sweep(&(struct malloc_sweep){.prepare = prepare_stream,
                                            .act = act_from_stream,
                                            .judge = judge_stream},
                     s);
    }
    close(s->fd);
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

static int add_length(void *opaque, const struct vhdx_extent *e)
{
    struct scene *s = opaque;

    s->nr_bytes += e->length;
    return 0;
}

static int act_diff(void *opaque)
{
    struct scene *s = opaque;

    s->nr_bytes = 0;
    return ops_diff(s->disk, 1, 0, s->disk->size, VHDX_DIFF_VERIFY, add_length, s, NULL, NULL);
}

/* What scene_begin() wrote into the child: two parts of 64 KiB, and zeros where the parent has as much. */
static void judge_diff(void *opaque, int result)
{
    struct scene *s = opaque;

    if (result == 0)
        assert_int_equal(s->nr_bytes, 3 * KIB(64));
    assert_succeeds(disk_close(s->disk));
}

static void test_diff(void **state)
{
    malloc_sweep(&(struct malloc_sweep){.prepare = prepare_reading, .act = act_diff, .judge = judge_diff},
                 *state);
}

static int act_open(void *opaque)
{
    struct scene *s = opaque;
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    vhdx_disk *disk;
    int r = disk_open(s->child, &o, &disk);

    return r < 0 ? r : disk_close(disk);
}

/* A parent that there is no memory to look for is not one that is missing. */
static void test_open(void **state)
{
    struct scene *s = *state;
    char in_another_case[PATH_BYTES];

    malloc_sweep(&(struct malloc_sweep){.act = act_open}, s);
    scene_name(in_another_case, s, "Parent.VHDX");
    assert_int_equal(rename(s->parent, in_another_case), 0);
    malloc_sweep(&(struct malloc_sweep){.act = act_open}, s);
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

static int act_survey_below(void *opaque)
{
    struct scene *s = opaque;

    return ops_survey_new(s->folder, NULL, VHDX_SURVEY_BELOW | VHDX_SURVEY_UNREADABLE, NULL, NULL, &s->survey);
}

static void judge_survey_below(void *opaque, int result)
{
    struct scene *s = opaque;
    struct vhdx_survey_image image = {.struct_bytes = sizeof image};
    unsigned nr_roots = 0;

    if (result < 0) {
        assert_null(s->survey);
        return;
    }
    assert_int_equal(s->survey->nr_images, 3);
    for (size_t i = 0; i < 3; i++) {
        assert_succeeds(ops_survey_image(s->survey, i, &image));
        assert_int_equal(image.error, 0);
        if (image.link == VHDX_LINK_NONE)
            nr_roots++;
        else
            assert_int_equal(image.link, s->link);
    }
    assert_int_equal(nr_roots, 1);
    ops_survey_free(s->survey);
}

/* Two children, one in a folder below, find their parent by its name in another case, then by its identity. */
static void test_survey_below(void **state)
{
    struct scene *s = *state;
    char renamed[2][PATH_BYTES];

    copy_file(s->child, s->work_child);
    scene_name(renamed[0], s, "Parent.VHDX");
    scene_name(renamed[1], s, "moved.vhdx");
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(rename(i == 0 ? s->parent : renamed[0], renamed[i]), 0);
        s->link = i == 0 ? VHDX_LINK_OK : VHDX_LINK_MOVED;
        malloc_sweep(&(struct malloc_sweep){.act = act_survey_below, .judge = judge_survey_below}, s);
    }
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
        cmocka_unit_test_setup_teardown(test_streams, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(test_diff, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(test_check, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(test_open, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(test_survey, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(test_survey_below, scene_begin_work, scene_end),
        cmocka_unit_test_setup_teardown(test_dump, scene_begin, scene_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
