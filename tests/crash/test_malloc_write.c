/* SPDX-License-Identifier: MIT */
/* What is left of an image when memory runs out while it is opened, written and closed: each allocation
 * fails, once or with all later ones.  The request fails with -ENOMEM and can be asked for again; no image is
 * poisoned, for nothing is known to be lost. */
#include "../unit/unit.h"

#include <errno.h>
#include <inttypes.h>

#include "../support/malloc-fault.h"
#include "base/math.h"
#include "disk/disk.h"
#include "format/layout.h"
#include "image/space.h"
#include "malloc-sweep.h"
#include "ops/ops.h"
#include "storage/storage.h"

enum { UNIT = 512, NR_UNITS = 8 * 1024 * 1024 / UNIT }; /* the disk has eight blocks of 1 MiB */

enum request_kind { READ, WRITE, ZERO, DISCARD, FLUSH, MAP };

struct request {
    enum request_kind kind;
    uint64_t offset, bytes;
    uint8_t fill;
    uint32_t flags;
};

enum { PARENT_FILL = 1, CHILD_FILL = 2 };

static const struct request requests[] = {
    {READ, 0, MIB(8), 0, 0},
    {WRITE, KIB(64) + 512, 9 * 512, 3, 0},        /* both ends within sectors that only the parent has */
    {WRITE, MIB(1) + KIB(8), KIB(8), 4, 0},       /* a block that has nothing yet */
    {FLUSH, 0, 0, 0, 0},
    {WRITE, MIB(2), MIB(1), 5, 0},                /* a whole one */
    {WRITE, MIB(3) + 1024, KIB(32), 6, VHDX_FUA}, /* a hole in parent and child */
    {WRITE, 0, MIB(1), 7, 0},                     /* all that the first still lacked */
    {ZERO, MIB(1), KIB(64), 0, 0},
    {ZERO, MIB(5), MIB(1), 0, VHDX_NO_HOLE},
    {DISCARD, MIB(2), MIB(1), 0, 0},
    {MAP, 0, MIB(8), 0, 0},
    {FLUSH, 0, 0, 0, 0},
    {FLUSH, 0, 0, 0, 0},                    /* what was discarded is free from here on */
    {WRITE, MIB(6) + KIB(4), MIB(1), 8, 0}, /* two blocks */
    {ZERO, MIB(4) + 512, MIB(1), 0, VHDX_FUA},
    {READ, 0, MIB(8), 0, 0},
};

struct life {
    char folder[SCRATCH_PATH_BYTES], template[SCRATCH_PATH_BYTES + 16], path[SCRATCH_PATH_BYTES + 16];
    vhdx_disk *disk;
    uint32_t may_at_start[NR_UNITS], may[NR_UNITS]; /* bit n: the unit may be filled with n */
    bool failed[ARRAY_LENGTH(requests)];
};

static uint8_t buffer[MIB(8)];

static void expect(uint32_t *may, const struct request *r, bool failed)
{
    for (uint64_t i = r->offset / UNIT; i < (r->offset + r->bytes) / UNIT; i++)
        may[i] = (failed ? may[i] : 0) | UINT32_C(1) << r->fill;
}

/* Every unit of what was read is as it may be. */
static void judge_units(const uint32_t *may, const uint8_t *bytes)
{
    for (uint64_t i = 0; i < NR_UNITS; i++) {
        const uint8_t *unit = bytes + i * UNIT;
        if (unit[0] > 31 || !(may[i] >> unit[0] & 1) || memcmp(unit, unit + 1, UNIT - 1) != 0) {
            print_error("at 0x%" PRIx64 ": 0x%02x, and not one of 0x%x\n", i * UNIT, unit[0], may[i]);
            _fail(__FILE__, __LINE__);
        }
    }
}

static int ignore_extent(void *opaque, const struct vhdx_extent *e)
{
    (void)opaque;
    (void)e;
    return 0;
}

static int ask(struct life *l, const struct request *r)
{
    int result = -EINVAL;

    switch (r->kind) {
    case READ:
        result = disk_pread(l->disk, buffer, r->bytes, r->offset);
        if (result == 0)
            judge_units(l->may, buffer);
        return result;
    case WRITE:
        memset(buffer, r->fill, r->bytes);
        result = disk_pwritev(l->disk, &(struct iovec){buffer, r->bytes}, 1, r->offset, r->flags);
        break;
    case ZERO:
        result = disk_zero(l->disk, r->offset, r->bytes, r->flags);
        break;
    case DISCARD:
        result = disk_discard(l->disk, r->offset, r->bytes, r->flags);
        break;
    case FLUSH:
        return disk_flush(l->disk);
    case MAP:
        return disk_map(l->disk, r->offset, r->bytes, ignore_extent, NULL);
    }
    expect(l->may, r, result < 0);
    return result;
}

static void must_ask(struct life *l, const struct request *r)
{
    assert_succeeds(ask(l, r));
}

static int try_to_open(struct life *l, const char *path, uint32_t flags)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;

    o.flags = flags;
    int r = disk_open(path, &o, &l->disk);
    assert_int_equal(r == 0, l->disk != NULL);
    return r;
}

static void open_disk(struct life *l, const char *path)
{
    assert_succeeds(try_to_open(l, path, VHDX_OPEN_WRITE));
}

/* ---- the images ---- */

static void create(const char *path, const char *parent)
{
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;

    o.subformat = parent ? VHDX_DIFFERENCING : VHDX_DYNAMIC;
    o.virtual_size = parent ? 0 : MIB(8);
    o.block_size = MIB(1);
    o.logical_sector_size = parent ? 0 : 4096;
    o.parent = parent;
    assert_succeeds(ops_create(path, &o));
}

static void begin(struct life *l)
{
    malloc_sweep_folder(l->folder);
    snprintf(l->template, sizeof l->template, "%s/first.vhdx", l->folder);
    snprintf(l->path, sizeof l->path, "%s/disk.vhdx", l->folder);
    for (uint64_t i = 0; i < NR_UNITS; i++)
        l->may[i] = 1;
}

static void remember(struct life *l)
{
    memcpy(l->may_at_start, l->may, sizeof l->may);
}

static void begin_plain(struct life *l)
{
    begin(l);
    create(l->template, NULL);
    remember(l);
}

/* A child of a disk with some content. */
static void begin_child(struct life *l)
{
    char parent[SCRATCH_PATH_BYTES + 16];

    begin(l);
    snprintf(parent, sizeof parent, "%s/parent.vhdx", l->folder);
    create(parent, NULL);
    open_disk(l, parent);
    must_ask(l, &(struct request){WRITE, 0, MIB(2) + KIB(512), PARENT_FILL, 0});
    must_ask(l, &(struct request){WRITE, MIB(4), MIB(2), PARENT_FILL, 0});
    assert_succeeds(disk_close(l->disk));
    create(l->template, parent);
    remember(l);
}

/* The child has content too, some of it in its log only. */
static void begin_dirty_child(struct life *l)
{
    char original[SCRATCH_PATH_BYTES + 16];

    begin_child(l);
    snprintf(original, sizeof original, "%s/original.vhdx", l->folder);
    assert_int_equal(rename(l->template, original), 0);
    open_disk(l, original);
    must_ask(l, &(struct request){WRITE, KIB(16), KIB(32), CHILD_FILL, 0});
    must_ask(l, &(struct request){WRITE, MIB(4), MIB(1), CHILD_FILL, 0});
    must_ask(l, &(struct request){WRITE, MIB(7), KIB(4), CHILD_FILL, VHDX_FUA});
    copy_file(original, l->template);
    assert_succeeds(disk_close(l->disk));
    remember(l);
}

/* ---- deeds ---- */

static void prepare_closed(void *opaque)
{
    struct life *l = opaque;

    l->disk = NULL;
    memset(l->failed, 0, sizeof l->failed);
    memcpy(l->may, l->may_at_start, sizeof l->may);
    copy_file(l->template, l->path);
}

static void prepare_open(void *opaque)
{
    struct life *l = opaque;

    prepare_closed(l);
    open_disk(l, l->path);
}

static void prepare_written(void *opaque)
{
    prepare_open(opaque);
    for (size_t i = 0; i < ARRAY_LENGTH(requests); i++)
        must_ask(opaque, &requests[i]);
    must_ask(opaque, &(struct request){WRITE, MIB(5), KIB(4), 9, 0});
    must_ask(opaque, &(struct request){DISCARD, MIB(6), MIB(1), 0, 0});
}

static int act_open(void *opaque)
{
    struct life *l = opaque;
    int r = try_to_open(l, l->path, 0);

    return r == 0 ? ask(l, &requests[0]) : r;
}

static int act_open_for_writing(void *opaque)
{
    struct life *l = opaque;

    return try_to_open(l, l->path, VHDX_OPEN_WRITE);
}

/* Whatever happens, the rest is asked for as well. */
static int act_requests(void *opaque)
{
    struct life *l = opaque;
    int first = 0;

    for (size_t i = 0; i < ARRAY_LENGTH(requests); i++) {
        int r = ask(l, &requests[i]);
        l->failed[i] = r < 0;
        if (r < 0 && r != -ENOMEM)
            return r;
        first = first < 0 ? first : r;
    }
    return first;
}

static int act_close(void *opaque)
{
    struct life *l = opaque;
    int r = disk_close(l->disk);

    l->disk = NULL;
    return r;
}

/* What is there is what was written, now and after it was opened anew; and it can be written. */
static void judge(void *opaque, int result)
{
    struct life *l = opaque;

    (void)result;
    for (size_t i = 0; i < ARRAY_LENGTH(requests); i++) {
        if (l->failed[i])
            must_ask(l, &requests[i]);
    }
    if (l->disk) {
        must_ask(l, &requests[0]);
        assert_succeeds(disk_close(l->disk));
    }
    assert_sound(l->path);
    open_disk(l, l->path);
    must_ask(l, &requests[0]);
    must_ask(l, &(struct request){WRITE, MIB(7) + KIB(512), KIB(4), 10, 0});
    must_ask(l, &requests[0]);
    assert_succeeds(disk_close(l->disk));
    assert_sound(l->path);
}

static struct life *life_new(void begin_image(struct life *))
{
    struct life *l = calloc(1, sizeof *l);

    assert_non_null(l);
    begin_image(l);
    return l;
}

static void life_free(struct life *l)
{
    scratch_remove(l->folder);
    free(l);
}

static void sweep(void begin_image(struct life *), void prepare(void *), int act(void *))
{
    struct life *l = life_new(begin_image);

    malloc_sweep(&(struct malloc_sweep){.prepare = prepare, .act = act, .judge = judge}, l);
    life_free(l);
}

static void test_open(void **state)
{
    (void)state;
    sweep(begin_dirty_child, prepare_closed, act_open);
}

static void test_open_for_writing(void **state)
{
    (void)state;
    sweep(begin_dirty_child, prepare_closed, act_open_for_writing);
}

static void test_requests(void **state)
{
    (void)state;
    sweep(begin_plain, prepare_open, act_requests);
}

static void test_requests_in_child(void **state)
{
    (void)state;
    sweep(begin_child, prepare_open, act_requests);
}

static void test_requests_in_dirty_child(void **state)
{
    (void)state;
    sweep(begin_dirty_child, prepare_open, act_requests);
}

/* Without an allocation in it that could fail. */
static void test_close_needs_no_memory(void **state)
{
    struct life *l = life_new(begin_dirty_child);

    (void)state;
    prepare_written(l);
    malloc_fault_arm(1, true);
    int r = act_close(l);
    assert_int_equal(malloc_fault_disarm(), 0);
    assert_succeeds(r);
    judge(l, r);
    life_free(l);
}

/* What could not be taken for want of memory is there for the next who asks, also where part of it had its
 * memory already. */
static void test_space_is_not_lost(void **state)
{
    struct mib_set used;
    struct storage *file;
    struct space space;
    enum space_content content;
    uint64_t at, nr_used = 32 * 1024 - 2; /* two more, and the set needs a further piece of memory */
    bool clash;

    (void)state;
    assert_succeeds(storage_memory_new(NULL, 0, &file));
    assert_succeeds(mib_set_init(&used, MAX_FILE_BYTES / MIB(1)));
    assert_succeeds(mib_set_add(&used, 0, nr_used, &clash));
    assert_succeeds(space_init(&space, file, &used));
    assert_succeeds(space_prepare(&space, 0));
    malloc_fault_arm(1, false);
    assert_fails(space_take(&space, 4, &at, &content), -ENOMEM, "used space");
    assert_int_equal(malloc_fault_disarm(), 1);
    assert_int_equal(space_end_of_use(&space), nr_used);
    assert_succeeds(space_take(&space, 4, &at, &content));
    assert_int_equal(at, nr_used);
    assert_int_equal(content, SPACE_ZEROS);
    assert_int_equal(space.used.count, nr_used + 4);
    space_free_all(&space);
    storage_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_open_for_writing),
        cmocka_unit_test(test_requests),
        cmocka_unit_test(test_requests_in_child),
        cmocka_unit_test(test_requests_in_dirty_child),
        cmocka_unit_test(test_close_needs_no_memory),
        cmocka_unit_test(test_space_is_not_lost),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
