/* SPDX-License-Identifier: MIT */
/* Memory that runs out while a disk comes from or goes to an NBD server, as in test_malloc_ops.c.  The server is in this program
 * (fake-libnbd.h), so what runs out is ours alone and libnbd's where it tells us. */
#include "../unit/unit.h"

#include <errno.h>

#include "../support/fake-libnbd.h"
#include "base/math.h"
#include "base/zero.h"
#include "malloc-scene.h"
#include "ops/ops.h"

static bool is_zero(uint64_t offset)
{
    return memory_is_zero(fake_export.content + offset, fake_export.range_bytes);
}

static int begin(void **state)
{
    scene_begin(state);
    fake_export = (struct fake_export){.size = DISK_BYTES, .min_block = 4096, .range_bytes = 4096, .is_zero = is_zero};
    fake_export.content = calloc(1, DISK_BYTES);
    assert_non_null(fake_export.content);
    return 0;
}

static int end(void **state)
{
    free(fake_export.content);
    return scene_end(state);
}

/* A thread that there is no memory for is "try again". */
static int open_export(uint32_t flags, vhdx_disk **disk)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;

    o.flags = flags | VHDX_OPEN_NBD | VHDX_OPEN_RAW;
    int r = disk_open("nbd://nobody", &o, disk);
    return r == -EAGAIN ? -ENOMEM : r;
}

/* Closing flushes what was written, and may fail. */
static int close_export(vhdx_disk *disk, int r)
{
    int closed = disk_close(disk);
    return r < 0 ? r : closed;
}

static int act_from_server(void *opaque)
{
    struct scene *s = opaque;
    struct vhdx_copy_options o = with_workers();
    vhdx_disk *disk;

    int r = open_export(0, &disk);
    if (r < 0)
        return r;
    r = ops_copy_to_new_file(disk, s->target, &o);
    return close_export(disk, r);
}

static void judge_from_server(void *opaque, int result)
{
    struct scene *s = opaque;

    judge_target(s, result);
    if (result == 0)
        must_hold_content(s, s->target, VHDX_OPEN_RAW);
}

static void test_from_server(void **state)
{
    struct scene *s = *state;

    memcpy(fake_export.content, s->content, DISK_BYTES);
    malloc_sweep(&(struct malloc_sweep){.prepare = no_target, .act = act_from_server, .judge = judge_from_server}, s);
}

/* What was there before must go, so it is not zeros. */
static void prepare_into_server(void *opaque)
{
    struct scene *s = opaque;

    memset(fake_export.content, 0xee, DISK_BYTES);
    s->disk = must_open(s->child, 0);
}

static int act_into_server(void *opaque)
{
    struct scene *s = opaque;
    vhdx_disk *disk;

    int r = open_export(VHDX_OPEN_WRITE, &disk);
    if (r < 0)
        return r;
    r = ops_copy_to_disk(s->disk, disk, NULL);
    if (r == 0)
        r = disk_flush(disk);
    return close_export(disk, r);
}

static void judge_into_server(void *opaque, int result)
{
    struct scene *s = opaque;

    assert_succeeds(disk_close(s->disk));
    if (result == 0)
        assert_memory_equal(fake_export.content, s->content, DISK_BYTES);
}

static void test_into_server(void **state)
{
    malloc_sweep(
        &(struct malloc_sweep){.prepare = prepare_into_server, .act = act_into_server, .judge = judge_into_server},
        *state);
}

/* A part of a minimal block is written with the rest of it, and read out of it. */
static void prepare_part(void *opaque)
{
    (void)opaque;
    memset(fake_export.content, 0xee, 8192);
}

static int act_part(void *opaque)
{
    uint8_t bytes[1024];
    vhdx_disk *disk;

    (void)opaque;
    int r = open_export(VHDX_OPEN_WRITE, &disk);
    if (r < 0)
        return r;
    memset(bytes, 1, sizeof bytes);
    r = disk_pwritev(disk, &(struct iovec){bytes, sizeof bytes}, 1, 4096 - 512, 0);
    if (r == 0)
        r = disk_zero(disk, 512, 512, 0);
    if (r == 0)
        r = disk_pread(disk, bytes, 512, 4096);
    if (r == 0)
        assert_int_equal(bytes[0], 1);
    return close_export(disk, r);
}

static void judge_part(void *opaque, int result)
{
    (void)opaque;
    for (unsigned i = 0; i < 8192; i++) {
        uint8_t wanted = i >= 512 && i < 1024 ? 0 : i >= 4096 - 512 && i < 4096 + 512 ? 1 : 0xee;
        if (result == 0 || wanted == 0xee)
            assert_int_equal(fake_export.content[i], wanted);
    }
}

static void test_part_of_a_block(void **state)
{
    malloc_sweep(&(struct malloc_sweep){.prepare = prepare_part, .act = act_part, .judge = judge_part}, *state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_from_server, begin, end),
        cmocka_unit_test_setup_teardown(test_into_server, begin, end),
        cmocka_unit_test_setup_teardown(test_part_of_a_block, begin, end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
