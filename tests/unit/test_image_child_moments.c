/* SPDX-License-Identifier: MIT */
/* What other requests may do to a write into an image with a parent between two of its steps. */
#include "moments.h"

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
static struct image *open_chain(struct chain *c)
{
    image_plan_init(&c->plan, MIB(64), (uint32_t)MIB(1), 512, NULL, 0);
    c->parent_file = build_memory_image(&c->plan);
    uint64_t blocks = image_plan_blocks_offset(&c->plan);
    for (uint64_t no = 0; no < 4; no++)
        build_block(&c->plan, c->parent_file, no, PAYLOAD_FULLY_PRESENT, blocks + MIB(no));
    build_fill(c->parent_file, blocks, 0x50, MIB(4));
    image_plan_init(&c->plan, MIB(64), (uint32_t)MIB(1), 512, locator, 2);
    c->file = build_memory_image(&c->plan);
    hook.payload_offset = image_plan_blocks_offset(&c->plan);
    hook.can_punch = true;
    struct image *img = open_hooked(c->file);
    c->layers[0] = (struct layer){.img = img, .size = MIB(64)};
    c->layers[1] = (struct layer){.img = MUST_OPEN(c->parent_file, 0), .size = MIB(64)};
    disk = (struct vhdx_disk){.layers = c->layers, .nr_layers = 2, .size = MIB(64)};
    return img;
}

static void close_chain(struct chain *c)
{
    close_image(c->layers[0].img, c->file);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dropped_while_written),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
