/* SPDX-License-Identifier: MIT */
#include "malloc-scene.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/math.h"
#include "ops/ops.h"

static uint8_t buffer[DISK_BYTES];

void fill(vhdx_disk *disk, uint8_t with, uint64_t bytes, uint64_t offset)
{
    memset(buffer, with, bytes);
    assert_succeeds(disk_pwritev(disk, &(struct iovec){buffer, bytes}, 1, offset, 0));
}

int scene_create(const char *path, enum vhdx_subformat subformat, const char *parent)
{
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;

    o.subformat = subformat;
    o.virtual_size = parent ? 0 : DISK_BYTES;
    o.block_size = MIB(1);
    o.parent = parent;
    return ops_create(path, &o);
}

vhdx_disk *must_open(const char *path, uint32_t flags)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    vhdx_disk *disk;

    o.flags = flags;
    assert_succeeds(disk_open(path, &o, &disk));
    return disk;
}

void must_hold_content(const struct scene *s, const char *path, uint32_t flags)
{
    vhdx_disk *disk = must_open(path, flags);

    assert_int_equal(disk->size, DISK_BYTES);
    assert_succeeds(disk_pread(disk, buffer, DISK_BYTES, 0));
    assert_succeeds(disk_close(disk));
    assert_memory_equal(buffer, s->content, DISK_BYTES);
}

void scene_name(char path[PATH_BYTES], const struct scene *s, const char *in_folder)
{
    snprintf(path, PATH_BYTES, "%s/%s", s->folder, in_folder);
}

int scene_begin(void **state)
{
    struct scene *s = calloc(1, sizeof *s);

    assert_non_null(s);
    s->content = malloc(DISK_BYTES);
    assert_non_null(s->content);
    malloc_sweep_folder(s->folder);
    scene_name(s->parent, s, "parent.vhdx");
    scene_name(s->child, s, "child.vhdx");
    scene_name(s->target, s, "target");
    assert_succeeds(scene_create(s->parent, VHDX_DYNAMIC, NULL));
    vhdx_disk *disk = must_open(s->parent, VHDX_OPEN_WRITE);
    fill(disk, 1, MIB(1), 0);
    fill(disk, 2, KIB(64), MIB(1));
    assert_succeeds(disk_close(disk));
    assert_succeeds(scene_create(s->child, VHDX_DIFFERENCING, s->parent));
    disk = must_open(s->child, VHDX_OPEN_WRITE);
    fill(disk, 3, KIB(64), KIB(100));
    fill(disk, 4, KIB(64), MIB(3) - KIB(32));
    assert_succeeds(disk_zero(disk, MIB(1), MIB(1), 0));
    assert_succeeds(disk_pread(disk, s->content, DISK_BYTES, 0));
    assert_succeeds(disk_close(disk));
    *state = s;
    return 0;
}

int scene_begin_work(void **state)
{
    scene_begin(state);
    struct scene *s = *state;

    scene_name(s->work, s, "work");
    assert_int_equal(mkdir(s->work, 0700), 0);
    scene_name(s->work_parent, s, "work/parent.vhdx");
    scene_name(s->work_child, s, "work/child.vhdx");
    return 0;
}

int scene_end(void **state)
{
    struct scene *s = *state;

    scratch_remove(s->folder);
    free(s->content);
    free(s);
    return 0;
}

/* ---- for a sweep ---- */

void no_target(void *opaque)
{
    struct scene *s = opaque;

    if (unlink(s->target) < 0)
        assert_int_equal(errno, ENOENT);
}

/* Only what succeeded has left a file, and nothing else of it is in the folder: two images and perhaps the
 * target. */
void judge_target(struct scene *s, int result)
{
    assert_int_equal(access(s->target, F_OK) == 0, result == 0);
    assert_int_equal(scratch_nr_names(s->folder), result == 0 ? 3 : 2);
}

void prepare_conversion(void *opaque)
{
    struct scene *s = opaque;

    no_target(s);
    s->disk = must_open(s->child, 0);
}

struct vhdx_copy_options with_workers(void)
{
    struct vhdx_copy_options o = VHDX_COPY_OPTIONS_INIT;

    o.nr_threads = 4;
    return o;
}

void judge_conversion(void *opaque, int result)
{
    struct scene *s = opaque;

    assert_succeeds(disk_close(s->disk));
    judge_target(s, result);
    if (result == 0)
        must_hold_content(s, s->target, VHDX_OPEN_DETECT);
}

void prepare_work(void *opaque)
{
    struct scene *s = opaque;

    copy_file(s->parent, s->work_parent);
    copy_file(s->child, s->work_child);
}
