/* SPDX-License-Identifier: MIT */
/* Others make children of the files of a merge while it looks for them: each of the two succeeds with everything whole, or is
 * refused. */
#include "unit.h"

#include <unistd.h>

#include "base/math.h"
#include "disk/disk.h"
#include "ops/ops.h"
#include "scratch.h"
#include "storage/storage.h"

enum { BASE, MIDDLE, TOP, KID, NR_IMAGES };

static const char *const names[NR_IMAGES] = {"base.vhdx", "middle.vhdx", "top.vhdx", "kid.vhdx"};
static char top_folder[SCRATCH_PATH_BYTES];
static char paths[NR_IMAGES][2 * SCRATCH_PATH_BYTES];

/* ---- the images ---- */

static int make_child(int which, int parent)
{
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;

    o.subformat = parent < 0 ? VHDX_DYNAMIC : VHDX_DIFFERENCING;
    o.virtual_size = parent < 0 ? MIB(8) : 0;
    o.parent = parent < 0 ? NULL : paths[parent];
    return ops_create(paths[which], &o);
}

/* Each image has its number at a place of its own. */
static void mark(int which)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    uint8_t bytes[4096];
    vhdx_disk *disk;

    memset(bytes, which + 1, sizeof bytes);
    o.flags = VHDX_OPEN_WRITE;
    assert_succeeds(disk_open(paths[which], &o, &disk));
    struct iovec iov = {bytes, sizeof bytes};
    assert_succeeds(disk_pwritev(disk, &iov, 1, MIB((uint64_t)which), 0));
    assert_succeeds(disk_close(disk));
}

/* base - middle - top */
static void make_images(void)
{
    scratch_make(top_folder);
    for (int i = 0; i < NR_IMAGES; i++)
        snprintf(paths[i], sizeof paths[i], "%s/%s", top_folder, names[i]);
    for (int i = BASE; i <= TOP; i++) {
        assert_succeeds(make_child(i, i - 1));
        mark(i);
    }
}

/* It shows the marks of all images up to `last`, and none of those above. */
static void must_show(int which, int last)
{
    uint8_t byte;
    vhdx_disk *disk;

    assert_succeeds(disk_open(paths[which], NULL, &disk));
    for (int i = BASE; i <= TOP; i++) {
        assert_succeeds(disk_pread(disk, &byte, 1, MIB((uint64_t)i)));
        assert_int_equal(byte, i <= last ? i + 1 : 0);
    }
    disk_close(disk);
}

static bool exists(int which)
{
    return access(paths[which], F_OK) == 0;
}

/* ---- what others do meanwhile ---- */

static int kid_parent;
static int kid_code;    /* what making it returned; 1: nobody has tried */
static long calls_left; /* progress is called so often before; -1: it is not then that others come */
static bool before_lock;

static void make_kid(void)
{
    kid_code = make_child(KID, kid_parent);
}

static int on_progress(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque, (void)done, (void)total;
    if (calls_left >= 0 && calls_left-- == 0)
        make_kid();
    return 0;
}

int __real_storage_lock(struct storage *s, enum storage_lock lock);
int __wrap_storage_lock(struct storage *s, enum storage_lock lock);
int __wrap_storage_lock(struct storage *s, enum storage_lock lock)
{
    if (before_lock && lock == STORAGE_LOCK_EXCLUSIVE) {
        before_lock = false;
        make_kid();
    }
    return __real_storage_lock(s, lock);
}

/* ---- merging ---- */

static int merge(int which, int into)
{
    struct vhdx_merge_options o = VHDX_MERGE_OPTIONS_INIT;

    o.into = paths[into];
    o.remove = true;
    o.nr_threads = 1;
    o.progress = on_progress;
    return ops_merge(paths[which], &o, NULL);
}

struct scene {
    int merged, into, kid_parent;
};

static const struct scene scenes[] = {
    {MIDDLE, BASE, BASE},   /* a child of the target */
    {MIDDLE, BASE, MIDDLE}, /* of the merged image, which comes along */
    {TOP, BASE, MIDDLE},    /* of an image between */
};

static void begin(const struct scene *s)
{
    make_images();
    kid_parent = s->kid_parent;
    kid_code = 1;
    calls_left = -1;
    before_lock = false;
}

/* Whatever happened, who was there and who came show what they should. */
static void must_be_whole(const struct scene *s, int result)
{
    if (result == 0) {
        assert_false(exists(s->merged));
        must_show(s->into, s->merged);
    } else {
        for (int i = BASE; i <= TOP; i++)
            must_show(i, i);
    }
    if (result == 0 && s->merged == MIDDLE)
        must_show(TOP, TOP);
    assert_int_equal(exists(KID), kid_code == 0);
    if (kid_code == 0)
        must_show(KID, s->kid_parent);
}

/* ---- tests ---- */

enum { NR_CALLS = 10 }; /* for the files and the links, and some of the copy */

/* Whenever that is. */
static void test_child_comes_while_it_looks(void **state)
{
    (void)state;
    for (size_t n = 0; n < ARRAY_LENGTH(scenes); n++) {
        for (long nr = 0; nr < NR_CALLS; nr++) {
            begin(&scenes[n]);
            calls_left = nr;
            int r = merge(scenes[n].merged, scenes[n].into);
            if (r != 0 && r != VHDX_E_CHAIN && r != VHDX_E_LOCKED)
                assert_succeeds(r);
            if (kid_code != 0)
                assert_int_equal(kid_code, VHDX_E_LOCKED);
            must_be_whole(&scenes[n], r);
            scratch_remove(top_folder);
        }
    }
}

static void test_child_comes_before_the_locks(void **state)
{
    (void)state;
    for (size_t n = 0; n < ARRAY_LENGTH(scenes); n++) {
        begin(&scenes[n]);
        before_lock = true;
        int r = merge(scenes[n].merged, scenes[n].into);
        if (scenes[n].kid_parent != scenes[n].merged)
            assert_fails(r, VHDX_E_CHAIN, "kid.vhdx");
        else
            assert_succeeds(r);
        assert_succeeds(kid_code);
        must_be_whole(&scenes[n], r);
        scratch_remove(top_folder);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_child_comes_while_it_looks),
        cmocka_unit_test(test_child_comes_before_the_locks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
