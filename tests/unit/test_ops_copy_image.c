/* SPDX-License-Identifier: MIT */
/* Copying into a new image: where blocks come to lie, that the identifier comes last, and that no failure of the storage is
 * taken for success, in one thread and in many. */
#include "folder-test.h"
#include "image-test.h"
#include "storage-test.h"

#include <fcntl.h>
#include <unistd.h>

#include "disk/disk.h"
#include "ops/copy-image.h"
#include "ops/new-image.h"

enum { NR_BLOCKS = 40 }; /* of 1 MiB; the disk ends inside the last one */
static const uint64_t disk_bytes = NR_BLOCKS * MIB(1) - 5 * 512;

static char path[SCRATCH_PATH_BYTES + 16];

/* Blocks 3, 6, 9, ... hold data; 4, 8, ... hold stored zeros; the rest are holes. */
static bool has_data(uint64_t block_no)
{
    return block_no % 3 == 0 && block_no > 0;
}

static int set_up(void **state)
{
    uint8_t *content = exact_bytes(MIB(1));

    make_folder(state);
    snprintf(path, sizeof path, "%s/disk.raw", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    assert_true(fd >= 0);
    for (uint64_t block_no = 0; block_no < NR_BLOCKS; block_no++) {
        memset(content, 0, MIB(1));
        if (has_data(block_no)) /* far from the beginning, so that looking for it takes a while */
            memset(content + KIB(700), (int)block_no, KIB(100));
        if (has_data(block_no) || block_no % 4 == 0)
            assert_int_equal(pwrite(fd, content, MIB(1), (off_t)MIB(block_no)), MIB(1));
    }
    assert_int_equal(ftruncate(fd, (off_t)disk_bytes), 0);
    assert_int_equal(close(fd), 0);
    free(content);
    return 0;
}

/* ---- one copy ---- */

struct copy {
    enum vhdx_subformat subformat;
    bool stream;
    uint32_t nr_threads, sparse_bytes;
    vhdx_progress_fn *progress;
    void *opaque;
};

static int run_copy(const struct copy *c, struct storage *s)
{
    struct vhdx_create_options create = VHDX_CREATE_OPTIONS_INIT;
    struct vhdx_copy_options copy = VHDX_COPY_OPTIONS_INIT;
    struct vhdx_open_options open_options = VHDX_OPEN_OPTIONS_INIT;
    struct new_image n;
    vhdx_disk *disk;

    create.subformat = c->subformat;
    create.block_size = (uint32_t)MIB(1);
    copy.nr_threads = c->nr_threads;
    copy.sparse_bytes = c->sparse_bytes;
    copy.progress = c->progress;
    copy.opaque = c->opaque;
    assert_succeeds(new_image_init(&n, &create));
    if (c->stream) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        int r = copy_stream_into(s, &n, fd, 0, &copy);
        close(fd);
        return r;
    }
    open_options.flags = VHDX_OPEN_RAW;
    assert_succeeds(disk_open(path, &open_options, &disk));
    assert_succeeds(new_image_plan(&n, disk->size));
    int r = copy_disk_into(s, &n, disk, VHDX_PREALLOC_OFF, &copy);
    disk_close(disk);
    return r;
}

static const struct copy copies[] = {
    {VHDX_DYNAMIC, false, 1, 4096, NULL, NULL}, {VHDX_DYNAMIC, false, 4, 4096, NULL, NULL},
    {VHDX_FIXED, false, 1, 4096, NULL, NULL},   {VHDX_FIXED, false, 4, 4096, NULL, NULL},
    {VHDX_DYNAMIC, true, 1, 4096, NULL, NULL},  {VHDX_FIXED, true, 1, 4096, NULL, NULL},
    {VHDX_DYNAMIC, false, 3, 0, NULL, NULL},    {VHDX_DYNAMIC, true, 1, 0, NULL, NULL},
};

/* ---- tests ---- */

static void expect_content(struct image *img, uint64_t block_no, const struct bat_entry *e)
{
    uint8_t *bytes = exact_bytes(MIB(1)), *wanted = exact_bytes(MIB(1));

    if (has_data(block_no))
        memset(wanted + KIB(700), (int)block_no, KIB(100));
    assert_succeeds(read_payload(img, bytes, MIB(1), e->file_offset));
    assert_memory_equal(bytes, wanted, MIB(1));
    free(bytes);
    free(wanted);
}

/* Places ascend without gaps, whichever thread was first. */
static void expect_image(const struct copy *c, struct storage *s)
{
    struct image *img = MUST_OPEN(s, 0);
    uint64_t payload = c->stream ? MIB(2) : MIB(4), nr_placed = 0, length;

    assert_int_equal(img->geometry.virtual_size, disk_bytes);
    for (uint64_t block_no = 0; block_no < NR_BLOCKS; block_no++) {
        bool stored = has_data(block_no) || c->subformat == VHDX_FIXED || c->sparse_bytes == 0;
        struct bat_entry e;
        assert_succeeds(bat_lookup(img, block_no, &e));
        assert_int_equal(e.state, stored ? PAYLOAD_FULLY_PRESENT : PAYLOAD_NOT_PRESENT);
        assert_int_equal(e.file_offset, stored ? payload + MIB(nr_placed) : 0);
        nr_placed += stored;
        if (stored)
            expect_content(img, block_no, &e);
    }
    image_close(img);
    assert_succeeds(storage_length(s, &length));
    assert_int_equal(length, MIB(4) + MIB(nr_placed));
}

static void blocks_lie_in_guest_order(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(copies); i++) {
        struct storage *s = new_file(NULL, 0);
        assert_succeeds(run_copy(&copies[i], s));
        expect_image(&copies[i], s);
        storage_close(s);
    }
}

static void zeros_inside_blocks_are_not_written(void **state)
{
    struct storage *s = new_file(NULL, 0);
    uint64_t start, end;

    (void)state;
    assert_succeeds(run_copy(&copies[1], s));
    assert_succeeds(storage_next_data(s, MIB(4), &start, &end)); /* memory has pieces of 64 KiB */
    assert_int_equal(start, MIB(4) + KIB(640));
    assert_int_equal(end, MIB(4) + KIB(832));
    storage_close(s);
}

static void the_identifier_comes_last(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(copies); i++) {
        struct storage *inner = new_file(NULL, 0), *s;
        struct recording rec;
        assert_succeeds(recording_init(&rec, NULL));
        assert_succeeds(recorder_wrap(&rec, inner, &s));
        assert_succeeds(run_copy(&copies[i], s));
        const struct step *last = &rec.steps[rec.nr_steps - 3];
        assert_int_equal(last[0].kind, STEP_FLUSH);
        assert_int_equal(last[1].kind, STEP_WRITE);
        assert_int_equal(last[1].offset, 0);
        assert_int_equal(last[2].kind, STEP_FLUSH);
        for (const struct step *step = rec.steps; step < last; step++)
            assert_false(step->kind == STEP_FLUSH || (step->kind == STEP_WRITE && step->offset < HEADER_OFFSET(0)));
        storage_close(s);
        storage_close(inner);
        recording_destroy(&rec);
    }
}

/* The n-th operation fails, n = 1, 2, ... until none does. */
static void every_failure_is_reported(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(copies); i++) {
        uint64_t nr_failures = 0;
        for (uint64_t nth = 1;; nth++) {
            struct storage *inner = new_file(NULL, 0), *s;
            struct fault fault;
            fault_init(&fault);
            assert_succeeds(fault_wrap(&fault, inner, &s));
            fault_arm(&fault, &(struct fault_plan){.kind = FAULT_ANY, .nth = nth, .error = -ENOSPC, .bytes_done = 600});
            int r = run_copy(&copies[i], s);
            bool injected = fault_injected(&fault) > 0;
            assert_int_equal(r, injected ? -ENOSPC : 0);
            if (!injected)
                expect_image(&copies[i], inner);
            nr_failures += injected;
            storage_close(s);
            storage_close(inner);
            fault_destroy(&fault);
            if (!injected)
                break;
        }
        assert_true(nr_failures > 10);
    }
}

struct watch {
    uint64_t last, stop_at;
    unsigned nr_calls;
};

static int watch_progress(void *opaque, uint64_t done, uint64_t total)
{
    struct watch *w = opaque;

    assert_true(done >= w->last);
    assert_true(total == 0 || done <= total);
    w->last = done;
    w->nr_calls++;
    return done >= w->stop_at;
}

static void progress_grows_to_the_size_and_can_cancel(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(copies); i++) {
        struct watch w = {.stop_at = UINT64_MAX};
        struct copy c = copies[i];
        struct storage *s = new_file(NULL, 0);
        c.progress = watch_progress;
        c.opaque = &w;
        assert_succeeds(run_copy(&c, s));
        assert_int_equal(w.last, disk_bytes);
        assert_true(w.nr_calls > 5);
        storage_close(s);

        s = new_file(NULL, 0);
        w = (struct watch){.stop_at = MIB(10)};
        assert_fails(run_copy(&c, s), -ECANCELED, "cancelled after");
        assert_false(has_identifier(s));
        storage_close(s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_lie_in_guest_order),
        cmocka_unit_test(zeros_inside_blocks_are_not_written),
        cmocka_unit_test(the_identifier_comes_last),
        cmocka_unit_test(every_failure_is_reported),
        cmocka_unit_test(progress_grows_to_the_size_and_can_cancel),
    };

    init_test_fault(NULL);
    return cmocka_run_group_tests_name("ops/copy-image", tests, set_up, remove_folder);
}
