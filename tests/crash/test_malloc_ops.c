/* SPDX-License-Identifier: MIT */
/* Memory that runs out during the operations on whole images: each allocation fails, once or with all later
 * ones.  The operation fails with -ENOMEM, leaves what was there valid and nothing half made behind, and does
 * its work when it is asked again. */
#include "../unit/unit.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/math.h"
#include "disk/disk.h"
#include "malloc-sweep.h"
#include "ops/ops.h"

enum { PATH_BYTES = SCRATCH_PATH_BYTES + 32, DISK_BYTES = 4 * 1024 * 1024 };

/* A disk in two images, and what is made of them. */
struct scene {
    char folder[SCRATCH_PATH_BYTES];
    char parent[PATH_BYTES], child[PATH_BYTES];           /* as they are at first */
    char work_parent[PATH_BYTES], work_child[PATH_BYTES]; /* copies to be worked on */
    char target[PATH_BYTES];
    enum vhdx_subformat subformat;
    vhdx_disk *disk;
    struct vhdx_survey *survey;
    uint8_t *content;
};

static uint8_t buffer[DISK_BYTES];

static void fill(vhdx_disk *disk, uint8_t with, uint64_t bytes, uint64_t offset)
{
    memset(buffer, with, bytes);
    assert_succeeds(disk_pwritev(disk, &(struct iovec){buffer, bytes}, 1, offset, 0));
}

static int create(const char *path, enum vhdx_subformat subformat, const char *parent)
{
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;

    o.subformat = subformat;
    o.virtual_size = parent ? 0 : DISK_BYTES;
    o.block_size = MIB(1);
    o.parent = parent;
    return ops_create(path, &o);
}

static vhdx_disk *must_open(const char *path, uint32_t flags)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    vhdx_disk *disk;

    o.flags = flags;
    assert_succeeds(disk_open(path, &o, &disk));
    return disk;
}

static void must_hold_content(const struct scene *s, const char *path, uint32_t flags)
{
    vhdx_disk *disk = must_open(path, flags);

    assert_int_equal(disk->size, DISK_BYTES);
    assert_succeeds(disk_pread(disk, buffer, DISK_BYTES, 0));
    assert_succeeds(disk_close(disk));
    assert_memory_equal(buffer, s->content, DISK_BYTES);
}

static void name(char path[PATH_BYTES], const struct scene *s, const char *in_folder)
{
    snprintf(path, PATH_BYTES, "%s/%s", s->folder, in_folder);
}

static int begin(void **state)
{
    struct scene *s = calloc(1, sizeof *s);

    assert_non_null(s);
    s->content = malloc(DISK_BYTES);
    assert_non_null(s->content);
    malloc_sweep_folder(s->folder);
    name(s->parent, s, "parent.vhdx");
    name(s->child, s, "child.vhdx");
    name(s->target, s, "target");
    assert_succeeds(create(s->parent, VHDX_DYNAMIC, NULL));
    vhdx_disk *disk = must_open(s->parent, VHDX_OPEN_WRITE);
    fill(disk, 1, MIB(1), 0);
    fill(disk, 2, KIB(64), MIB(1));
    assert_succeeds(disk_close(disk));
    assert_succeeds(create(s->child, VHDX_DIFFERENCING, s->parent));
    disk = must_open(s->child, VHDX_OPEN_WRITE);
    fill(disk, 3, KIB(64), KIB(100));
    fill(disk, 4, KIB(64), MIB(3) - KIB(32));
    assert_succeeds(disk_zero(disk, MIB(1), MIB(1), 0));
    assert_succeeds(disk_pread(disk, s->content, DISK_BYTES, 0));
    assert_succeeds(disk_close(disk));
    *state = s;
    return 0;
}

static int end(void **state)
{
    struct scene *s = *state;

    scratch_remove(s->folder);
    free(s->content);
    free(s);
    return 0;
}

static void no_target(void *opaque)
{
    struct scene *s = opaque;

    if (unlink(s->target) < 0)
        assert_int_equal(errno, ENOENT);
}

/* Only what succeeded has left a file, and nothing else of it is in the folder: two images and perhaps the
 * target. */
static void judge_target(struct scene *s, int result)
{
    assert_int_equal(access(s->target, F_OK) == 0, result == 0);
    assert_int_equal(scratch_nr_names(s->folder), result == 0 ? 3 : 2);
}

/* ---- making images ---- */

static int act_create(void *opaque)
{
    struct scene *s = opaque;

    return create(s->target, s->subformat, s->subformat == VHDX_DIFFERENCING ? s->child : NULL);
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

static void prepare_conversion(void *opaque)
{
    struct scene *s = opaque;

    no_target(s);
    s->disk = must_open(s->child, 0);
}

static struct vhdx_copy_options with_workers(void)
{
    struct vhdx_copy_options o = VHDX_COPY_OPTIONS_INIT;

    o.nr_threads = 4;
    return o;
}

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

static void judge_conversion(void *opaque, int result)
{
    struct scene *s = opaque;

    assert_succeeds(disk_close(s->disk));
    judge_target(s, result);
    if (result == 0)
        must_hold_content(s, s->target, VHDX_OPEN_DETECT);
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

/* ---- changing images in place ---- */

static int begin_work(void **state)
{
    begin(state);
    struct scene *s = *state;
    char folder[PATH_BYTES];

    name(folder, s, "work");
    assert_int_equal(mkdir(folder, 0700), 0);
    name(s->work_parent, s, "work/parent.vhdx");
    name(s->work_child, s, "work/child.vhdx");
    return 0;
}

static void prepare_work(void *opaque)
{
    struct scene *s = opaque;

    copy_file(s->parent, s->work_parent);
    copy_file(s->child, s->work_child);
}

static int act_merge(void *opaque)
{
    struct scene *s = opaque;
    struct vhdx_merge_options o = VHDX_MERGE_OPTIONS_INIT;
    struct vhdx_merge_result result = {.struct_bytes = sizeof result};

    o.nr_threads = 2;
    return ops_merge(s->work_child, &o, &result);
}

static int act_flatten(void *opaque)
{
    struct scene *s = opaque;
    struct vhdx_flatten_options o = VHDX_FLATTEN_OPTIONS_INIT;

    o.nr_threads = 2;
    return ops_flatten(s->work_child, &o);
}

static int act_rebase(void *opaque)
{
    struct scene *s = opaque;
    struct vhdx_rebase_options o = VHDX_REBASE_OPTIONS_INIT;

    o.parent = s->work_parent;
    o.parent_windows_path = "C:\\disks\\parent.vhdx";
    return ops_rebase(s->work_child, &o);
}

/* D13: valid, with the same content, and it can be done again. */
static void judge_merge(void *opaque, int result)
{
    struct scene *s = opaque;

    if (result < 0) {
        must_hold_content(s, s->work_child, 0);
        assert_succeeds(act_merge(s));
    }
    must_hold_content(s, s->work_parent, 0);
    assert_sound(s->work_parent);
}

static void judge_child(struct scene *s, int result, int act(void *))
{
    must_hold_content(s, s->work_child, 0);
    assert_sound(s->work_parent);
    if (result < 0)
        assert_succeeds(act(s));
    must_hold_content(s, s->work_child, 0);
    assert_sound(s->work_child);
}

static void judge_flattened(void *opaque, int result)
{
    judge_child(opaque, result, act_flatten);
}

static void judge_rebased(void *opaque, int result)
{
    judge_child(opaque, result, act_rebase);
}

static void test_merge(void **state)
{
    malloc_sweep(&(struct malloc_sweep){.prepare = prepare_work, .act = act_merge, .judge = judge_merge},
                 *state);
}

static void test_flatten(void **state)
{
    malloc_sweep(
        &(struct malloc_sweep){.prepare = prepare_work, .act = act_flatten, .judge = judge_flattened},
        *state);
}

static void test_rebase(void **state)
{
    malloc_sweep(&(struct malloc_sweep){.prepare = prepare_work, .act = act_rebase, .judge = judge_rebased},
                 *state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_create, begin, end),
        cmocka_unit_test_setup_teardown(test_convert, begin, end),
        cmocka_unit_test_setup_teardown(test_check, begin, end),
        cmocka_unit_test_setup_teardown(test_survey, begin, end),
        cmocka_unit_test_setup_teardown(test_dump, begin, end),
        cmocka_unit_test_setup_teardown(test_merge, begin_work, end),
        cmocka_unit_test_setup_teardown(test_flatten, begin_work, end),
        cmocka_unit_test_setup_teardown(test_rebase, begin_work, end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
