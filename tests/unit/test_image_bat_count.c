/* SPDX-License-Identifier: MIT */
/* Counting the blocks of an open image by state, which "vhdx info" waits for. */
#include "image-test.h"

#include "image/writer.h"

enum { PRESENT = PAYLOAD_FULLY_PRESENT };

static const char *const locator[][2] = {
    {"relative_path", ".\\parent.vhdx"},
    {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
};

static void states_are_counted(void **state)
{
    struct image_plan p;
    uint64_t counts[8], expected[8] = {0}, random = 4711;

    (void)state;
    image_plan_init(&p, GIB(9), MIB(2), 512, locator, ARRAY_LENGTH(locator)); /* 4608 blocks, 3 chunks */
    struct storage *s = build_memory_image(&p);
    for (uint64_t block_no = 0; block_no < 4608; block_no++) {
        unsigned kind = (unsigned)(random_next(&random) % 8);
        if (block_no > 1000 && block_no < 3000)
            kind = 0;
        build_block(&p, s, block_no, kind, kind == 0 ? 0 : MIB(9999)); /* not judged */
        expected[kind]++;
    }
    build_bitmap(&p, s, 1, BITMAP_PRESENT, MIB(7));
    struct image *img = MUST_OPEN(s, IMAGE_UNVERIFIED);
    assert_succeeds(bat_count_states(img, counts));
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(counts[i], expected[i]);
    image_close(img);
    storage_close(s);
}

/* A block of 1 MiB on each of so many pages of the table. */
static struct storage *scattered_image(uint64_t nr_pages)
{
    struct image_plan p;

    image_plan_init(&p, MIB(nr_pages * BAT_ENTRIES_PER_PAGE), (uint32_t)MIB(1), 512, NULL, 0);
    const uint64_t at = image_plan_blocks_offset(&p);
    p.file_length = at + MIB(nr_pages);
    struct storage *s = build_memory_image(&p);
    for (uint64_t i = 0; i < nr_pages; i++)
        build_block(&p, s, i * BAT_ENTRIES_PER_PAGE + i % 77, PRESENT, at + MIB(i));
    return s;
}

static void expect_present(struct image *img, uint64_t nr)
{
    uint64_t counts[8];

    assert_succeeds(bat_count_states(img, counts));
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(counts[i], i == PRESENT ? nr : i == PAYLOAD_NOT_PRESENT ? img->geometry.nr_blocks - nr : 0);
}

/* Opening looks through tables of up to 256 pages, and more of them than the cache keeps here. */
static void what_opening_went_through_is_not_read_again(void **state)
{
    struct storage *s = scattered_image(200);
    struct image *img = MUST_OPEN(s, 0);

    (void)state;
    fault_arm(&test_fault, NULL);
    expect_present(img, 200);
    expect_present(img, 200);
    assert_int_equal(fault_count(&test_fault, FAULT_READ), 0);
    assert_int_equal(fault_count(&test_fault, FAULT_NEXT_DATA), 0);
    image_close(img);
    storage_close(s);
}

/* Of a larger table the rest is read, each page once, and pushes nothing out of the cache. */
static void counting_goes_on_where_opening_stopped(void **state)
{
    struct storage *s = scattered_image(300);
    struct image *img = MUST_OPEN(s, 0);
    uint64_t raw;

    (void)state;
    fault_arm(&test_fault, NULL);
    expect_present(img, 300);
    assert_in_range(fault_count(&test_fault, FAULT_READ), 300 - 256, 301 - 256);
    assert_in_range(fault_count(&test_fault, FAULT_NEXT_DATA), 1, 301 - 256 + 1);
    fault_arm(&test_fault, NULL);
    assert_succeeds(bat_read(img, 255 * BAT_ENTRIES_PER_PAGE, 1, &raw));
    assert_int_equal(fault_count(&test_fault, FAULT_READ), 0);
    expect_present(img, 300);
    image_close(img);
    img = MUST_OPEN(s, IMAGE_UNVERIFIED);
    expect_present(img, 300);
    image_close(img);
    storage_close(s);
}

static void what_is_written_counts(void **state)
{
    struct storage *s = scattered_image(20);
    struct image *img = MUST_OPEN(s, IMAGE_WRITABLE);
    uint64_t place;

    (void)state;
    expect_present(img, 20);
    assert_succeeds(writer_begin(img));
    assert_succeeds(block_for_write(img, 200, &place)); /* on a page with others */
    expect_present(img, 21);
    assert_succeeds(writer_commit(img));
    expect_present(img, 21);
    assert_succeeds(block_drop(img, 0, PAYLOAD_NOT_PRESENT));
    expect_present(img, 20);
    assert_succeeds(block_drop(img, 200, PAYLOAD_NOT_PRESENT));
    expect_present(img, 19);
    assert_succeeds(image_close(img));
    img = MUST_OPEN(s, 0);
    expect_present(img, 19);
    image_close(img);
    storage_close(s);
}

static void errors_come_with_the_place(void **state)
{
    struct storage *s = scattered_image(300);
    struct image *img = MUST_OPEN(s, 0);
    uint64_t counts[8];

    (void)state;
    fault_arm(&test_fault, &(struct fault_plan){.kind = FAULT_READ, .nth = 2, .error = -EIO});
    assert_fails(bat_count_states(img, counts), -EIO, "BAT entry 131584 at 0x401000");
    fault_arm(&test_fault, &(struct fault_plan){.kind = FAULT_NEXT_DATA, .nth = 1, .error = -EIO});
    assert_fails(bat_count_states(img, counts), -EIO, "BAT at 0x300000");
    fault_arm(&test_fault, NULL);
    expect_present(img, 300);
    image_close(img);
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_are_counted),
        cmocka_unit_test(what_opening_went_through_is_not_read_again),
        cmocka_unit_test(counting_goes_on_where_opening_stopped),
        cmocka_unit_test(what_is_written_counts),
        cmocka_unit_test(errors_come_with_the_place),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
