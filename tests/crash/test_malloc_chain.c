/* SPDX-License-Identifier: MIT */
/* Memory that runs out during the operations that change images in place, or what they are called: as in test_malloc_ops.c. */
#include "../unit/unit.h"


#include "base/math.h"
#include "malloc-scene.h"
#include "ops/ops.h"

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

/* ---- states ---- */

static int act_snapshot(void *opaque)
{
    struct scene *s = opaque;

    return ops_snapshot(s->work_child, "state.vhdx", NULL);
}

/* No state is there yet; the target is the one to come. */
static void prepare_snapshot(void *opaque)
{
    struct scene *s = opaque;

    scene_name(s->target, s, "work/state.vhdx");
    no_target(s);
    prepare_work(s);
}

static void judge_snapshot(void *opaque, int result)
{
    struct scene *s = opaque;

    if (result < 0) {
        must_hold_content(s, s->work_child, 0);
        assert_int_equal(scratch_nr_names(s->work), 2);
        assert_succeeds(act_snapshot(s));
    }
    assert_int_equal(scratch_nr_names(s->work), 3);
    must_hold_content(s, s->work_child, 0); /* which is the state's, too: nothing was written since */
}

static void test_snapshot(void **state)
{
    malloc_sweep(
        &(struct malloc_sweep){.prepare = prepare_snapshot, .act = act_snapshot, .judge = judge_snapshot},
        *state);
}

static int act_revert(void *opaque)
{
    struct scene *s = opaque;

    return ops_snapshot_revert(s->work_child, s->target, NULL);
}

/* Something was written since the state was kept. */
static void prepare_revert(void *opaque)
{
    struct scene *s = opaque;

    prepare_snapshot(s);
    assert_succeeds(act_snapshot(s));
    vhdx_disk *disk = must_open(s->work_child, VHDX_OPEN_WRITE);
    fill(disk, 9, KIB(64), 0);
    assert_succeeds(disk_close(disk));
}

static void judge_revert(void *opaque, int result)
{
    struct scene *s = opaque;
    uint8_t byte;

    assert_int_equal(scratch_nr_names(s->work), 3);
    if (result < 0) {
        vhdx_disk *disk = must_open(s->work_child, 0);
        assert_succeeds(disk_pread(disk, &byte, 1, 0));
        assert_int_equal(byte, 9); /* nothing is lost by half */
        assert_succeeds(disk_close(disk));
        assert_succeeds(act_revert(s));
    }
    assert_int_equal(scratch_nr_names(s->work), 3);
    must_hold_content(s, s->work_child, 0);
}

static void test_revert(void **state)
{
    malloc_sweep(&(struct malloc_sweep){.prepare = prepare_revert, .act = act_revert, .judge = judge_revert},
                 *state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_merge, scene_begin_work, scene_end),
        cmocka_unit_test_setup_teardown(test_flatten, scene_begin_work, scene_end),
        cmocka_unit_test_setup_teardown(test_rebase, scene_begin_work, scene_end),
        cmocka_unit_test_setup_teardown(test_snapshot, scene_begin_work, scene_end),
        cmocka_unit_test_setup_teardown(test_revert, scene_begin_work, scene_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
