/* SPDX-License-Identifier: MIT */
/* What other requests may do to a write, a commit or a read between two of its steps. */
#include "moments.h"

#include <pthread.h>
#include <unistd.h>

#include "format/log-entry.h"
#include "ops/copy-disk.h"

static void commit_twice(struct image *img)
{
    assert_succeeds(writer_commit(img));
    allocate_block(img, 0);
    assert_succeeds(writer_commit(img)); /* writes home what the first one logged, and lets go of it */
}

/* A table page is a hole of the file, and changed in memory; then it is written home and let go just after the file was asked for
 * holes.  What it says must not be overlooked. */
static void test_page_comes_home_while_holes_are_looked_for(void **state)
{
    struct run run;

    (void)state;
    make_plan(GIB(64));
    struct image *img = open_hooked(build_memory_image(&plan));
    uint64_t block_no = 32768 + 5; /* on a table page of its own, far from what is stored of the first ones */
    allocate_block(img, block_no);
    for (unsigned n = 0; n < 2; n++) {
        hook.after_next_data = n == 0 ? NULL : commit_twice;
        assert_succeeds(image_resolve(img, 0, GIB(64), &run));
        assert_null(hook.after_next_data);
        assert_int_equal(run.kind, RUN_ZERO);
        assert_true(run.length <= block_no * MIB(1));
    }
    close_image(img);
}

static void drop_64_blocks(struct image *img)
{
    for (uint64_t no = 100; no < 164; no++)
        assert_succeeds(block_drop(img, no, PAYLOAD_ZERO));
}

/* While a block's new space is made zero, others give up so many blocks that the list of freed space is full: the block's old
 * anchor must find room on it all the same. */
static void test_list_of_freed_space_fills_up_meanwhile(void **state)
{
    uint64_t place;

    (void)state;
    make_plan(GIB(1));
    struct storage *s = build_memory_image(&plan);
    uint64_t blocks = image_plan_blocks_offset(&plan);
    build_block(&plan, s, 7, PAYLOAD_UNMAPPED, blocks + MIB(1)); /* the MiB before it is idle */
    for (uint64_t no = 100; no < 164; no++)
        build_block(&plan, s, no, PAYLOAD_FULLY_PRESENT, blocks + MIB(2 + no - 100));
    assert_succeeds(storage_truncate(s, blocks + MIB(66)));
    struct image *img = open_hooked(s);
    assert_succeeds(writer_begin(img));
    hook.before_zero = drop_64_blocks;
    assert_succeeds(block_for_write(img, 7, &place)); /* into idle space */
    assert_null(hook.before_zero);
    close_image(img);
}

static void fill_the_dirty_set(struct image *img)
{
    for (uint64_t n = 1; n <= img->writer->max_dirty; n++)
        allocate_block(img, n * BAT_ENTRIES_PER_PAGE);
    assert_int_equal(img->writer->nr_dirty, img->writer->max_dirty);
}

/* While a block's new space is made zero, others change as many pages as a log entry holds. */
static void test_dirty_set_fills_up_meanwhile(void **state)
{
    (void)state;
    struct image *img = make_image(64 * 1024, 1);
    hook.before_zero = fill_the_dirty_set;
    allocate_block(img, 3);
    assert_null(hook.before_zero);
    close_image(img);
}

static struct {
    pthread_t thread;
    _Atomic bool is_done;
    int r;
    uint64_t place;
} other;

static void *write_block_3_too(void *opaque)
{
    other.r = block_for_write(opaque, 3, &other.place);
    other.is_done = true;
    return NULL;
}

/* Who does not wait for us is soon done. */
static void let_another_write_block_3(struct image *img)
{
    other.is_done = false;
    assert_int_equal(pthread_create(&other.thread, NULL, write_block_3_too, img), 0);
    for (unsigned n = 0; n < 100 && !other.is_done; n++)
        usleep(1000);
}

/* While a block's new space is made zero, another thread wants the block: it waits, and both have the same one. */
static void test_two_want_a_block_at_once(void **state)
{
    (void)state;
    struct image *img = make_image(64, 1);
    hook.before_zero = let_another_write_block_3;
    uint64_t place = allocate_block(img, 3);
    assert_null(hook.before_zero);
    assert_int_equal(pthread_join(other.thread, NULL), 0);
    assert_int_equal(other.r, 0);
    assert_int_equal(other.place, place);
    close_image(img);
}

/* ---- freed space ---- */

static void drop_block_1(struct image *img)
{
    drop_block(img, 1);
}

/* A block that is given up when a commit has taken its snapshot is not lost with that commit, so its space stays. */
static void test_dropped_behind_the_snapshot(void **state)
{
    (void)state;
    struct image *img = make_image(64, 0);
    hook.can_punch = true;
    allocate_block(img, 1);
    assert_succeeds(writer_commit(img));
    allocate_block(img, 2);
    hook.before_flush = drop_block_1;
    assert_succeeds(writer_commit(img));
    assert_null(hook.before_flush);
    assert_int_equal(hook.punched, 0);
    assert_succeeds(writer_commit(img));
    assert_int_equal(hook.punched, MIB(1));
    close_image(img);
}

static uint64_t place_of_5;

static void allocate_block_5(struct image *img)
{
    place_of_5 = allocate_block(img, 5);
}

/* Punched space is given to nobody before the flush that makes the punch durable has come back. */
static void test_space_taken_during_the_flush_of_its_punch(void **state)
{
    (void)state;
    struct image *img = make_image(64, 0);
    hook.can_punch = true;
    uint64_t place = allocate_block(img, 1);
    assert_succeeds(writer_commit(img));
    drop_block(img, 1);
    assert_succeeds(writer_commit(img));
    assert_int_equal(hook.punched, MIB(1));
    hook.before_flush = allocate_block_5;
    assert_succeeds(writer_commit(img));
    assert_null(hook.before_flush);
    assert_int_not_equal(place_of_5, place);
    assert_int_equal(allocate_block(img, 6), place);
    close_image(img);
}

static void allocate_block_2(struct image *img)
{
    allocate_block(img, 2);
}

/* What changes in a page behind the snapshot is not in the page that is written home: no entry holds it yet (D1). */
static void test_changed_between_snapshot_and_home(void **state)
{
    uint64_t raw[3];

    (void)state;
    struct image *img = make_image(4096, 2);
    allocate_block(img, 1);
    assert_succeeds(writer_commit(img));
    allocate_block(img, 2048);
    assert_true(img->writer->data_first); /* so that there is a flush between the two */
    hook.before_flush = allocate_block_2;
    assert_succeeds(writer_commit(img));
    assert_null(hook.before_flush);
    assert_succeeds(storage_pread(hook.inner, raw, sizeof raw, plan.bat_offset));
    assert_int_not_equal(le64_get((uint8_t *)&raw[1]), 0);
    assert_int_equal(le64_get((uint8_t *)&raw[2]), 0);
    close_image(img);
}

static void grow_the_file(struct image *img)
{
    uint64_t end_mib = img->writer->space.end_mib;

    for (uint64_t no = 100; img->writer->space.end_mib == end_mib; no++)
        allocate_block(img, no);
}

/* A file that grows while it is flushed is not known to be that long (D11). */
static void test_file_grows_during_a_flush(void **state)
{
    (void)state;
    for (unsigned n = 0; n < 2; n++) {
        struct image *img = make_image(1024, 0);
        hook.can_punch = true;
        allocate_block(img, 1);
        if (n == 0)
            assert_succeeds(writer_commit(img)); /* then the next one has nothing to log */
        uint64_t length = img->writer->space.end_mib * MIB(1);
        hook.before_flush = grow_the_file;
        assert_succeeds(writer_commit(img));
        assert_null(hook.before_flush);
        assert_true(img->writer->space.end_mib * MIB(1) > length);
        assert_int_equal(img->writer->durable_length, length);
        close_image(img);
    }
}

/* Nor does the first entry promise what the file, which ended inside its last block, was just made longer by (W9). */
static void test_first_entry_promises_what_is_durable(void **state)
{
    uint8_t raw[LOG_HEADER_BYTES];
    struct log_entry_header e;

    (void)state;
    make_plan(KIB(512));
    struct storage *s = build_memory_image(&plan);
    uint64_t blocks = image_plan_blocks_offset(&plan);
    build_block(&plan, s, 0, PAYLOAD_FULLY_PRESENT, blocks);
    assert_succeeds(storage_truncate(s, blocks + KIB(512)));
    struct image *img = open_hooked(s);
    assert_succeeds(writer_begin(img));
    assert_succeeds(storage_pread(s, raw, sizeof raw, plan.header.log_offset));
    assert_true(log_entry_header_decode(raw, &e));
    assert_true(e.flushed_file_offset <= blocks);
    assert_int_equal(e.last_file_offset, blocks + MIB(1));
    close_image(img);
}

/* ---- requests that are on their way ---- */

/* Block 1 is given up, and its space goes to block 2 as soon as may be. */
static void give_space_to_block_2(struct image *img)
{
    assert_succeeds(disk_discard(&disk, MIB(1), MIB(1), 0));
    for (unsigned n = 0; n < 4; n++)
        assert_succeeds(writer_commit(img));
    write_bytes(2, 0x22);
}

/* Who has looked up a place may read there, and write, whatever becomes of its block: it is nobody else's meanwhile (D3). */
static void space_in_use(bool can_punch, bool write)
{
    struct image *img = make_image(64, 0);
    make_disk(img);
    hook.can_punch = can_punch;
    write_bytes(1, 0x11);
    assert_succeeds(writer_commit(img));
    hook.before_payload = give_space_to_block_2;
    if (write)
        write_bytes(1, 0x33);
    else
        expect_bytes(1, 0x11);
    assert_null(hook.before_payload);
    expect_bytes(2, 0x22);
    expect_bytes(1, 0);
    for (unsigned n = 0; n < 4; n++)
        assert_succeeds(writer_commit(img));
    write_bytes(3, 0x44);
    bool reused = img->writer->space.fresh_mib == plan.file_length / MIB(1) + 2;
    assert_true(reused); /* the place is not lost */
    close_image(img);
}

/* Nor may a copy of the disk get what others write meanwhile into the space of a block that is gone. */
static void test_copying_says_that_it_reads(void **state)
{
    struct vhdx_copy_options o = VHDX_COPY_OPTIONS_INIT;
    struct storage *to;
    uint8_t byte;

    (void)state;
    struct image *img = make_image(64, 0);
    make_disk(img);
    hook.can_punch = true;
    write_bytes(1, 0x11);
    assert_succeeds(writer_commit(img));
    assert_succeeds(storage_memory_new(NULL, 0, &to));
    assert_succeeds(storage_truncate(to, MIB(64)));
    o.nr_threads = 1;
    hook.before_payload = give_space_to_block_2;
    assert_succeeds(copy_disk(&disk, to, 0, true, &o));
    assert_null(hook.before_payload);
    assert_succeeds(storage_pread(to, &byte, 1, MIB(1)));
    assert_int_not_equal(byte, 0x22);
    storage_close(to);
    close_image(img);
}

static void test_space_in_use_is_kept(void **state)
{
    (void)state;
    for (unsigned n = 0; n < 4; n++)
        space_in_use(n & 1, n & 2);
}

/* ---- space for tables and headers ---- */

/* Table pages are reserved once, not for each block that gets space. */
static void test_pages_are_reserved_once(void **state)
{
    enum { NR_BLOCKS = 1000, PER_COMMIT = 50 };

    (void)state;
    make_plan(GIB(1));
    struct image *img = open_hooked(build_memory_image(&plan));
    assert_succeeds(writer_begin(img));
    hook.nr_reserved = 0;
    for (uint64_t no = 0; no < NR_BLOCKS; no++) {
        allocate_block(img, no);
        if (no % PER_COMMIT == 0)
            assert_succeeds(writer_commit(img));
    }
    struct geometry g = image_plan_geometry(&plan);
    uint64_t nr_pages = (g.nr_bat_entries * BAT_ENTRY_BYTES - 1) / PAGE_BYTES + 1;
    assert_in_range(hook.nr_reserved, 1, nr_pages);
    close_image(img);
}

/* Who allocates is not held up by freed space being punched (C3). */
static void test_punching_holds_nobody_up(void **state)
{
    enum { NR_BLOCKS = 8 };
    uint64_t first, again;

    (void)state;
    make_plan(GIB(1));
    hook.can_punch = true;
    struct image *img = open_hooked(build_memory_image(&plan));
    assert_succeeds(writer_begin(img));
    assert_succeeds(block_for_write(img, 0, &first));
    for (uint64_t no = 1; no < NR_BLOCKS; no++)
        allocate_block(img, no);
    hook.punched = 0;
    hook.punched_locked = false;
    for (uint64_t no = 0; no < NR_BLOCKS; no++)
        assert_succeeds(block_drop(img, no, PAYLOAD_ZERO));
    for (unsigned n = 0; n < 4; n++)
        assert_succeeds(writer_commit(img));
    assert_int_equal(hook.punched, NR_BLOCKS * MIB(1));
    assert_false(hook.punched_locked);
    assert_succeeds(block_for_write(img, 0, &again));
    assert_int_equal(again, first); /* what was punched is used again */
    close_image(img);
}

/* A header slot, or a part of the log, that is a hole of a full disk: nothing has been changed when that is found out, so the
 * next attempt may succeed (D10). */
static void test_no_space_for_headers_and_log(void **state)
{
    uint8_t before[2][HEADER_RAW_BYTES], after[2][HEADER_RAW_BYTES];

    (void)state;
    make_plan(GIB(1));
    const uint64_t log_offset = plan.header.log_offset;
    const struct { uint64_t full_at; const char *where; } holes[] = {
        {HEADER_OFFSET(0), "header at 0x10000"},
        {HEADER_OFFSET(1), "header at 0x20000"},
        {log_offset, "log at 0x100000"},
        {log_offset + plan.header.log_length - 1, "log at 0x100000"},
    };
    for (unsigned i = 0; i < ARRAY_LENGTH(holes); i++) {
        struct storage *s = build_memory_image(&plan);
        struct image *img = open_hooked(s);
        for (unsigned slot = 0; slot < 2; slot++)
            assert_succeeds(storage_pread(s, before[slot], sizeof before[slot], HEADER_OFFSET(slot)));
        hook.full_at = holes[i].full_at;
        assert_fails(writer_begin(img), -ENOSPC, holes[i].where);
        for (unsigned slot = 0; slot < 2; slot++)
            assert_succeeds(storage_pread(s, after[slot], sizeof after[slot], HEADER_OFFSET(slot)));
        assert_memory_equal(before, after, sizeof before);
        hook.full_at = 0;
        allocate_block(img, 0);
        close_image(img);
    }
}

/* ---- replay ---- */

/* A log says of a terabyte behind the file's end, and of a block in it, that it is zeros: that takes neither space nor time. */
static void replay_terabyte_of_zeros(bool can_punch)
{
    const guid log_guid = {"a log of zeros"};
    uint8_t block[MIB(1)], zeros[16] = {0};
    uint64_t usage;

    make_plan(GIB(1));
    plan.header.log_guid = log_guid;
    uint64_t blocks = image_plan_blocks_offset(&plan);
    plan.file_length = blocks + MIB(4);
    struct storage *s = build_memory_image(&plan);
    build_block(&plan, s, 0, PAYLOAD_FULLY_PRESENT, blocks);
    build_fill(s, blocks, 0x55, MIB(1));
    const struct build_change changes[] = {{.file_offset = blocks + MIB(1) / 2, .zero_bytes = TIB(1)}};
    build_log_entry(s, &plan.header, &(struct build_entry){.sequence_no = 5, .log_guid = log_guid, .flushed = plan.file_length,
                                                           .last = TIB(2), .changes = changes, .nr_changes = 1});
    hook.can_punch = can_punch;
    hook.punched = hook.written = 0;
    struct image *img = open_hooked(s);
    assert_true(img->replayed);
    assert_int_equal(img->file_length, TIB(2));
    assert_int_equal(hook.punched, can_punch ? MIB(4) - MIB(1) / 2 : 0);
    assert_true(hook.written <= 4 * HEADER_RAW_BYTES + (can_punch ? 0 : MIB(1) / 2));
    assert_succeeds(storage_pread(s, block, sizeof block, blocks));
    assert_int_equal(block[MIB(1) / 2 - 1], 0x55);
    assert_memory_equal(block + MIB(1) / 2, zeros, sizeof zeros);
    assert_memory_equal(block + MIB(1) - sizeof zeros, zeros, sizeof zeros);
    assert_succeeds(storage_usage(s, &usage));
    assert_true(usage < MIB(3));
    close_image(img);
}

static void test_replaying_zeros_is_cheap(void **state)
{
    (void)state;
    replay_terabyte_of_zeros(true);
    replay_terabyte_of_zeros(false);
}

/* Since an entry was logged the file became shorter, and pages of it lay in what is gone (a bitmap block, say), one of them in
 * part.  They are nobody's, and do not stand in the way of the others. */
static void test_replaying_what_the_file_has_lost(void **state)
{
    const guid log_guid = {"a longer file"};
    static const uint8_t page[PAGE_BYTES] = {0x11};
    uint8_t got[PAGE_BYTES];
    uint64_t length;

    (void)state;
    make_plan(MIB(64));
    plan.header.log_guid = log_guid;
    uint64_t blocks = image_plan_blocks_offset(&plan);
    plan.file_length = blocks + MIB(4) + 512;
    struct storage *s = build_memory_image(&plan);
    build_block(&plan, s, 0, PAYLOAD_FULLY_PRESENT, blocks);
    const struct build_change lost[] = {{.file_offset = blocks + MIB(6), .page = page}, {.file_offset = blocks + MIB(4), .page = page}};
    const struct build_change kept = {.file_offset = blocks, .page = page};
    uint32_t next = build_log_entry(s, &plan.header, &(struct build_entry){.sequence_no = 5, .log_guid = log_guid, .last = blocks + MIB(8),
                                                                           .changes = lost, .nr_changes = 2});
    build_log_entry(s, &plan.header, &(struct build_entry){.log_offset = next, .sequence_no = 6, .log_guid = log_guid,
                                                           .last = plan.file_length, .changes = &kept, .nr_changes = 1});
    struct image *img = open_hooked(s);
    assert_true(img->replayed);
    assert_int_equal(img->file_length, plan.file_length);
    assert_succeeds(storage_length(s, &length));
    assert_int_equal(length, plan.file_length);
    assert_succeeds(storage_pread(s, got, sizeof got, blocks));
    assert_memory_equal(got, page, sizeof got);
    close_image(img);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page_comes_home_while_holes_are_looked_for),
        cmocka_unit_test(test_list_of_freed_space_fills_up_meanwhile),
        cmocka_unit_test(test_dirty_set_fills_up_meanwhile),
        cmocka_unit_test(test_two_want_a_block_at_once),
        cmocka_unit_test(test_dropped_behind_the_snapshot),
        cmocka_unit_test(test_space_taken_during_the_flush_of_its_punch),
        cmocka_unit_test(test_changed_between_snapshot_and_home),
        cmocka_unit_test(test_file_grows_during_a_flush),
        cmocka_unit_test(test_first_entry_promises_what_is_durable),
        cmocka_unit_test(test_space_in_use_is_kept),
        cmocka_unit_test(test_copying_says_that_it_reads),
        cmocka_unit_test(test_pages_are_reserved_once),
        cmocka_unit_test(test_punching_holds_nobody_up),
        cmocka_unit_test(test_no_space_for_headers_and_log),
        cmocka_unit_test(test_replaying_zeros_is_cheap),
        cmocka_unit_test(test_replaying_what_the_file_has_lost),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
