/* SPDX-License-Identifier: MIT */
/* Memory that runs out during the operations that change images in place, or what they are called: as in test_malloc_ops.c. */
#include "../unit/unit.h"


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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_merge, scene_begin_work, scene_end),
        cmocka_unit_test_setup_teardown(test_flatten, scene_begin_work, scene_end),
        cmocka_unit_test_setup_teardown(test_rebase, scene_begin_work, scene_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
