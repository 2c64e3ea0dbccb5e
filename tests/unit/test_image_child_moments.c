/* SPDX-License-Identifier: MIT */
/* What other requests may do to a write into an image with a parent, or to a copy of it, between two of its steps. */
#include "moments.h"

#include "base/zero.h"
#include "ops/copy-disk.h"

static const char *const locator[][2] = {
    {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
    {"relative_path", ".\\parent.vhdx"},
};

struct chain {
    struct image_plan plan;
    struct storage *parent_file, *file;
    struct layer layers[2];
};

/* A parent with 0x50 in its first four blocks, and an empty child. */
static struct image *open_chain_of(struct chain *c, uint64_t size)
{
    image_plan_init(&c->plan, size, (uint32_t)MIB(1), 512, NULL, 0);
    c->parent_file = build_memory_image(&c->plan);
    uint64_t blocks = image_plan_blocks_offset(&c->plan);
    for (uint64_t no = 0; no < 4; no++)
        build_block(&c->plan, c->parent_file, no, PAYLOAD_FULLY_PRESENT, blocks + MIB(no));
    build_fill(c->parent_file, blocks, 0x50, MIB(4));
    image_plan_init(&c->plan, size, (uint32_t)MIB(1), 512, locator, 2);
    c->file = build_memory_image(&c->plan);
    hook.payload_offset = image_plan_blocks_offset(&c->plan);
    hook.can_punch = true;
    struct image *img = open_hooked(c->file);
    c->layers[0] = (struct layer){.img = img, .size = size};
    c->layers[1] = (struct layer){.img = MUST_OPEN(c->parent_file, 0), .size = size};
    disk = (struct vhdx_disk){.layers = c->layers, .nr_layers = 2, .size = size};
    return img;
}

static struct image *open_chain(struct chain *c)
{
    return open_chain_of(c, MIB(64));
}

static void close_chain(struct chain *c)
{
    close_image(c->layers[0].img);
    image_close(c->layers[1].img);
    storage_close(c->parent_file);
}

static void write_block(uint64_t block_no, uint8_t byte)
{
    struct iovec iov = {malloc(MIB(1)), MIB(1)};

    assert_non_null(iov.iov_base);
    memset(iov.iov_base, byte, MIB(1));
    assert_succeeds(disk_pwritev(&disk, &iov, 1, MIB(block_no), 0));
    free(iov.iov_base);
}

static void discard_block_1(struct image *img)
{
    assert_succeeds(disk_discard(&disk, MIB(1), MIB(1), 0));
    assert_succeeds(writer_commit(img));
}

/* A block that was dropped while it was written stays dropped: its place is about to become another block's. */
static void dropped_while_written(bool whole)
{
    struct chain c;

    struct image *img = open_chain(&c);
    write_bytes(3, 0x33); /* the bitmap block is there */
    assert_succeeds(writer_commit(img));
    hook.before_payload = discard_block_1;
    if (whole)
        write_block(1, 0x11);
    else
        write_bytes(1, 0x11);
    assert_null(hook.before_payload);
    for (unsigned n = 0; n < 4; n++)
        assert_succeeds(writer_commit(img));
    write_block(2, 0x22);
    expect_bytes(1, 0);
    expect_bytes(2, 0x22);
    expect_bytes(3, 0x33);
    expect_bytes(0, 0x50);
    close_chain(&c);
}

static void test_dropped_while_written(void **state)
{
    (void)state;
    dropped_while_written(true);
    dropped_while_written(false);
}

/* ---- a short last block ---- */

enum { SHORT_BLOCK = 3, SHORT_BY = 16 * 1024, VISIBLE = 1024 * 1024 - SHORT_BY };

/* Number 3 is short, its space comes from somebody who left 0xee there, and the bitmap block is there. */
static struct image *open_short(struct chain *c)
{
    image_close(open_chain_of(c, MIB(4) - SHORT_BY));
    uint64_t blocks = image_plan_blocks_offset(&c->plan);
    build_block(&c->plan, c->file, 1, PAYLOAD_FULLY_PRESENT, blocks + MIB(3));
    build_fill(c->file, blocks, 0xee, MIB(4));
    hook.can_punch = false; /* or it would be cleared before */
    c->layers[0].img = open_hooked(c->file);
    write_bytes(2, 0x22);
    assert_succeeds(writer_commit(c->layers[0].img));
    return c->layers[0].img;
}

/* All of it is here, so it is fully present, and behind the disk's end there is nothing that a grown disk could show (format
 * section 6, rule 4). */
static void expect_short_is_whole(struct image *img)
{
    static uint8_t rest[SHORT_BY];
    struct bat_entry e;

    assert_succeeds(bat_lookup(img, SHORT_BLOCK, &e));
    assert_int_equal(e.state, PAYLOAD_FULLY_PRESENT);
    assert_succeeds(storage_pread(hook.inner, rest, sizeof rest, e.file_offset + VISIBLE));
    assert_true(memory_is_zero(rest, sizeof rest));
}

static void write_short(uint8_t byte, uint64_t in_block, size_t bytes)
{
    struct iovec iov = {malloc(bytes), bytes};

    assert_non_null(iov.iov_base);
    memset(iov.iov_base, byte, bytes);
    assert_succeeds(disk_pwritev(&disk, &iov, 1, MIB(SHORT_BLOCK) + in_block, 0));
    free(iov.iov_base);
}

static void write_second_half(struct image *img)
{
    (void)img;
    write_short(0x22, VISIBLE / 2, VISIBLE / 2);
}

/* Two write a half each, and neither sees the other's bits when it begins. */
static void test_two_complete_a_short_block(void **state)
{
    struct chain c;
    uint8_t bytes[512];

    (void)state;
    struct image *img = open_short(&c);
    hook.before_payload = write_second_half;
    write_short(0x11, 0, VISIBLE / 2);
    assert_null(hook.before_payload);
    expect_short_is_whole(img);
    assert_succeeds(disk_pread(&disk, bytes, sizeof bytes, MIB(SHORT_BLOCK)));
    assert_int_equal(bytes[0], 0x11);
    assert_succeeds(disk_pread(&disk, bytes, sizeof bytes, MIB(SHORT_BLOCK) + VISIBLE - sizeof bytes));
    assert_int_equal(bytes[0], 0x22);
    close_chain(&c);
}

/* A third of it, and what disk/write-child.c does between the two calls. */
static void claim_third(struct image *img, unsigned n, struct block_claim *claim)
{
    uint64_t third = VISIBLE / 512 / 3 * 512;

    *claim = (struct block_claim){.block_no = SHORT_BLOCK, .in_block = n * third, .bytes = n == 2 ? VISIBLE - 2 * third : third};
    assert_succeeds(block_claim(img, claim));
    assert_true(claim->claimed);
}

static void publish(struct image *img, struct block_claim *claim)
{
    if (claim->zero_rest)
        assert_succeeds(writer_make_zero(img, claim->place + VISIBLE, SHORT_BY, ZERO_BY_HOLE));
    assert_succeeds(block_publish(img, claim));
}

/* Three at once, in whatever order they end; the last third is tried twice if it fails first. */
static void test_three_complete_a_short_block(void **state)
{
    static const unsigned orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};

    (void)state;
    for (unsigned i = 0; i < 2 * ARRAY_LENGTH(orders); i++) {
        const unsigned *order = orders[i / 2];
        struct block_claim claims[3];
        struct bat_entry e;
        struct chain c;

        struct image *img = open_short(&c);
        struct inflight_ticket ticket = inflight_enter(&img->writer->inflight);
        for (unsigned n = 0; n < 3; n++)
            claim_third(img, n, &claims[n]);
        publish(img, &claims[order[0]]);
        publish(img, &claims[order[1]]);
        if (i % 2 == 1) {
            block_abandon(img, &claims[order[2]]);
            claim_third(img, order[2], &claims[order[2]]);
        }
        assert_succeeds(bat_lookup(img, SHORT_BLOCK, &e));
        assert_int_equal(e.state, PAYLOAD_PARTIALLY_PRESENT);
        publish(img, &claims[order[2]]);
        expect_short_is_whole(img);
        inflight_leave(ticket);
        close_chain(&c);
    }
}

/* ---- copying ---- */

static int write_block_1_once(void *opaque, uint64_t done, uint64_t total)
{
    bool *written = opaque;

    (void)total;
    if (done > 0 && !*written) {
        *written = true;
        write_block(1, 0x11);
    }
    return 0;
}

static void expect_block(struct storage *copy, uint64_t block_no, uint8_t byte)
{
    uint8_t bytes[4096];

    for (uint64_t at = 0; at < MIB(1); at += sizeof bytes) {
        assert_succeeds(storage_pread(copy, bytes, sizeof bytes, MIB(block_no) + at));
        for (size_t i = 0; i < sizeof bytes; i++)
            assert_int_equal(bytes[i], byte);
    }
}

/* A file was asked for its holes, and then a block came into one of them.  It held data before, by the parent, and does now: a copy
 * must not show zeros. */
static void test_block_comes_into_a_known_hole(void **state)
{
    struct vhdx_copy_options o = VHDX_COPY_OPTIONS_INIT;
    bool written = false;
    struct storage *to;
    struct vhdx_extent e;
    struct extent_cursor cursor;
    struct chain c;

    (void)state;
    open_chain(&c);
    image_close(c.layers[0].img);
    uint64_t blocks = image_plan_blocks_offset(&c.plan);
    build_block(&c.plan, c.file, 0, PAYLOAD_FULLY_PRESENT, blocks);          /* a hole, as is all up to block 5 */
    build_block(&c.plan, c.file, 5, PAYLOAD_FULLY_PRESENT, blocks + MIB(3)); /* two idle MiB: for the bitmap, and for the block */
    build_fill(c.file, blocks + MIB(3), 0x55, MIB(1));
    c.layers[0].img = open_hooked(c.file);
    assert_succeeds(storage_memory_new(NULL, 0, &to));
    build_fill(to, 0, 0xff, MIB(1));
    assert_succeeds(storage_truncate(to, MIB(64)));
    o.nr_threads = 1;
    o.progress = write_block_1_once;
    o.opaque = &written;
    assert_succeeds(copy_disk(&disk, to, 0, false, &o));
    assert_true(written);
    assert_succeeds(extent_cursor_init(&cursor, &disk, MIB(1), 512));
    assert_int_equal(extent_cursor_next(&cursor, 512, &e), 1);
    assert_int_equal(e.file_offset, blocks + MIB(2)); /* or this would be about something else */
    extent_cursor_done(&cursor);
    expect_block(to, 0, 0);
    expect_block(to, 1, 0x11);
    expect_block(to, 5, 0x55);
    storage_close(to);
    close_chain(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dropped_while_written),
        cmocka_unit_test(test_two_complete_a_short_block),
        cmocka_unit_test(test_three_complete_a_short_block),
        cmocka_unit_test(test_block_comes_into_a_known_hole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
