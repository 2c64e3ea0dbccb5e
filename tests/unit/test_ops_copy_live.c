/* SPDX-License-Identifier: MIT */
/* Copying, comparing and reading out a disk through a handle that is being written at the same time (D3): space that one block
 * gave up meanwhile belongs to another, and a copy must not show that one's data. */
#include "folder-test.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/math.h"
#include "disk/disk.h"
#include "image/image.h"
#include "image/writer.h"
#include "ops/ops.h"

enum { NR_BLOCKS = 16 }; /* of 1 MiB */

static vhdx_disk *disk;
static uint8_t block[MIB(1)];

/* Every byte of a block says which one it is. */
static int write_block(uint64_t no)
{
    static uint8_t bytes[MIB(1)]; /* one thread writes */
    struct iovec iov = {bytes, sizeof bytes};

    memset(bytes, (int)(no + 1), sizeof bytes);
    return disk_pwritev(disk, &iov, 1, no * MIB(1), 0);
}

static vhdx_disk *open_disk(uint32_t flags)
{
    struct vhdx_open_options options = VHDX_OPEN_OPTIONS_INIT;
    vhdx_disk *d;

    options.flags = flags;
    assert_succeeds(disk_open(in_folder("disk.vhdx"), &options, &d));
    return d;
}

static int set_up(void **state)
{
    struct vhdx_create_options options = VHDX_CREATE_OPTIONS_INIT;

    make_folder(state);
    options.virtual_size = 2 * NR_BLOCKS * MIB(1);
    options.block_size = (uint32_t)MIB(1);
    assert_succeeds(ops_create(in_folder("disk.vhdx"), &options));
    disk = open_disk(VHDX_OPEN_WRITE);
    for (uint64_t no = 0; no < NR_BLOCKS; no++)
        assert_succeeds(write_block(no));
    assert_succeeds(disk_flush(disk));
    return 0;
}

static int tear_down(void **state)
{
    assert_succeeds(disk_close(disk));
    return remove_folder(state);
}

static int open_copy(void)
{
    int fd = open(in_folder("copy"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    assert_true(fd >= 0);
    return fd;
}

/* Of a block there is what it held or zeros, sector by sector, and nothing of others. */
static void judge_copy(int fd)
{
    for (uint64_t no = 0; no < 2 * NR_BLOCKS; no++) {
        ssize_t n = pread(fd, block, sizeof block, (off_t)(no * MIB(1)));
        assert_true(n >= 0);
        for (ssize_t i = 0; i < n; i += 512) {
            if (block[i] != 0 && block[i] != (uint8_t)(no + 1)) {
                print_error("block %u, byte %zd: there is data of block %u\n", (unsigned)no, i, block[i] - 1U);
                _fail(__FILE__, __LINE__);
            }
        }
    }
}

/* Give the space of these blocks to others, as many further on. */
static int recycle(uint64_t first, uint64_t end, uint64_t to)
{
    int r = disk_discard(disk, first * MIB(1), (end - first) * MIB(1), 0);

    for (unsigned n = 0; r == 0 && n < 4; n++)
        r = disk_flush(disk);
    for (uint64_t no = to; r == 0 && no < to + end - first; no++)
        r = write_block(no);
    return r;
}

/* ---- at the worst moment ---- */

/* When something of the disk has been copied, the place of what comes next is known already. */
static int recycle_once(void *opaque, uint64_t done, uint64_t total)
{
    bool *recycled = opaque;

    (void)total;
    if (done > 0 && !*recycled) {
        *recycled = true;
        assert_succeeds(recycle(2, NR_BLOCKS, NR_BLOCKS + 2));
        assert_int_equal(disk->layers[0].img->writer->space.nr_freed, 0); /* the copy keeps no space from being used again */
    }
    return 0;
}

typedef int copy_fn(vhdx_disk *source, int fd, const struct vhdx_copy_options *options);

static void copy_while_space_is_recycled(copy_fn *copy)
{
    struct vhdx_copy_options options = VHDX_COPY_OPTIONS_INIT;
    bool recycled = false;
    int fd = open_copy();

    options.nr_threads = 1; /* one piece after the other */
    options.progress = recycle_once;
    options.opaque = &recycled;
    assert_succeeds(copy(disk, fd, &options));
    assert_true(recycled);
    judge_copy(fd);
    close(fd);
}

static void test_stream(void **state)
{
    (void)state;
    copy_while_space_is_recycled(ops_copy_to_stream);
}

static void test_file(void **state)
{
    (void)state;
    copy_while_space_is_recycled(ops_copy_to_file);
}

/* Equal as long as nothing was overwritten but by zeros: what is not there any more must not be compared with. */
static void test_compare(void **state)
{
    struct vhdx_compare_result result;
    struct vhdx_open_options raw = VHDX_OPEN_OPTIONS_INIT;
    bool recycled = false;
    vhdx_disk *other;
    int fd = open_copy();

    (void)state;
    raw.flags = VHDX_OPEN_RAW;
    for (uint64_t no = 0; no < NR_BLOCKS; no++) {
        memset(block, (int)(no < 2 ? no + 1 : 0), sizeof block);
        assert_int_equal(pwrite(fd, block, sizeof block, (off_t)(no * MIB(1))), sizeof block);
    }
    assert_int_equal(ftruncate(fd, 2 * NR_BLOCKS * MIB(1)), 0);
    close(fd);
    assert_succeeds(disk_open(in_folder("copy"), &raw, &other));
    assert_succeeds(ops_compare(disk, other, &result, recycle_once, &recycled));
    assert_true(recycled);
    assert_false(result.identical); /* behind the blocks that gave up their space there are new ones now */
    assert_int_equal(result.first_difference, (NR_BLOCKS + 2) * MIB(1));
    assert_succeeds(disk_close(other));
}

/* ---- threads ---- */

struct changer {
    pthread_t thread;
    atomic_bool stop;
    atomic_uint nr_steps;
    atomic_int result;
};

/* Move four blocks after four, all the time. */
static void *change(void *opaque)
{
    struct changer *c = opaque;

    for (unsigned n = 0; !c->stop && c->result == 0; n++) {
        uint64_t first = n * 4 % (2 * NR_BLOCKS);
        c->result = recycle(first, first + 4, (first + NR_BLOCKS) % (2 * NR_BLOCKS));
        c->nr_steps++;
    }
    return NULL;
}

/* Between any two pieces much moves, so that what is known of the next ones is out of date. */
static int wait_for_change(void *opaque, uint64_t done, uint64_t total)
{
    struct changer *c = opaque;
    unsigned before = c->nr_steps;

    (void)done;
    (void)total;
    while (c->nr_steps - before < 3 && c->result == 0)
        sched_yield();
    return 0;
}

static int count_extent(void *opaque, const struct vhdx_extent *e)
{
    *(uint64_t *)opaque += e->length;
    return 0;
}

static void test_copies_of_a_busy_disk(void **state)
{
    enum { NR_COPIES = 5 };
    struct vhdx_copy_options options = VHDX_COPY_OPTIONS_INIT;
    struct changer c = {.stop = false};
    int fd = open_copy();

    (void)state;
    options.nr_threads = 2;
    options.progress = wait_for_change;
    options.opaque = &c;
    assert_int_equal(pthread_create(&c.thread, NULL, change, &c), 0);
    for (unsigned n = 0; n < NR_COPIES; n++) {
        uint64_t mapped = 0;
        assert_succeeds(ops_copy_to_file(disk, fd, &options));
        judge_copy(fd);
        assert_succeeds(disk_map(disk, 0, disk->size, count_extent, &mapped));
        assert_int_equal(mapped, disk->size);
    }
    c.stop = true;
    pthread_join(c.thread, NULL);
    assert_int_equal(c.result, 0);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_stream, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_compare, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_copies_of_a_busy_disk, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
