/* SPDX-License-Identifier: MIT */
/* The region tables while an image is opened (format section 3; hostile input rows 44 to 52). */
#include "image-test.h"

/* 16 MiB in blocks of 1 MiB: everything before 4 MiB is structures. */
static struct image_plan small_plan(void)
{
    struct image_plan p;

    image_plan_init(&p, MIB(16), MIB(1), 512, NULL, 0);
    p.file_length = MIB(8);
    return p;
}

static void one_good_region_table_is_enough(void **state)
{
    static const uint64_t places[] = {0, 4, 16, 0xffff};
    struct image_plan p = small_plan();

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
        for (unsigned damaged = 0; damaged < 2; damaged++) {
            struct storage *s = build_memory_image(&p);
            build_fill(s, REGION_TABLE_OFFSET(damaged) + places[i], 0xa5, 1);
            image_close(MUST_OPEN(s, 0));
            build_fill(s, REGION_TABLE_OFFSET(!damaged) + places[i], 0xa5, 1);
            EXPECT_REFUSED(s, 0, VHDX_E_REGION, "0x30000", "0x40000");
            storage_close(s);
        }
    }
}

static void too_many_regions_make_a_copy_invalid(void **state)
{
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);

    (void)state;
    build_number(s, REGION_TABLE_OFFSET(0) + 8, 2048, 4);
    build_reseal(s, REGION_TABLE_OFFSET(0), REGION_TABLE_RAW_BYTES);
    image_close(MUST_OPEN(s, 0));
    build_number(s, REGION_TABLE_OFFSET(1) + 8, UINT32_MAX, 4);
    build_reseal(s, REGION_TABLE_OFFSET(1), REGION_TABLE_RAW_BYTES);
    EXPECT_REFUSED(s, 0, VHDX_E_REGION, "0x30000", "0x40000");
    storage_close(s);
}

static void the_first_good_copy_counts(void **state)
{
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);

    (void)state;
    build_regions(s, 1, NULL, 0); /* sound, and different */
    image_close(MUST_OPEN(s, 0));
    build_fill(s, REGION_TABLE_OFFSET(0), 0, 1);
    EXPECT_REFUSED(s, 0, VHDX_E_REGION, "region table at 0x40000",
                   "no BAT region"); /* QEMU would fail earlier */
    storage_close(s);
}

static void an_unreadable_copy_is_as_good_as_a_damaged_one(void **state)
{
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);
    struct image *img;

    (void)state;
    fault_arm(&test_fault, &(struct fault_plan){.kind = FAULT_READ, .nth = 4, .error = -EIO});
    image_close(MUST_OPEN(s, 0));
    fault_arm(&test_fault,
              &(struct fault_plan){.kind = FAULT_READ, .nth = 4, .forever = true, .error = -EIO});
    assert_int_equal(open_image(s, 0, &img), -EIO);
    fault_arm(&test_fault, NULL);
    storage_close(s);
}

static const guid strange_id = {"strange region"};

/* Each wrong entry, in place of the BAT's (index 0) or as a third one. */
static void impossible_regions_are_refused(void **state)
{
    const struct region bat = {region_id_bat, MIB(3), MIB(1), 1},
                        metadata = {region_id_metadata, MIB(2), MIB(1), 1};
    const struct {
        struct region bat, other; /* other: none if its length is 0 and its offset too */
        int code;
        const char *text, *where;
    } cases[] = {
        {{region_id_bat, MIB(3), MIB(1), 1},
         {region_id_bat, MIB(5), MIB(1), 1},
         VHDX_E_REGION,
         "twice",
         "0x30000"},
        {bat, {region_id_metadata, MIB(5), MIB(1), 1}, VHDX_E_REGION, "twice", "0x30000"},
        {{region_id_bat, MIB(3) + 4096, MIB(1), 1}, {{{0}}, 0, 0, 0}, VHDX_E_REGION, "0x301000", "0x30010"},
        {{region_id_bat, 0, MIB(1), 1}, {{{0}}, 0, 0, 0}, VHDX_E_REGION, "0x0", "0x30010"},
        {{region_id_bat, MIB(3), 0, 1}, {{{0}}, 0, 0, 0}, VHDX_E_REGION, "zero", "0x30010"},
        {{region_id_bat, MIB(3), MIB(1) + 1, 1}, {{{0}}, 0, 0, 0}, VHDX_E_REGION, "0x100001", "0x30010"},
        {{region_id_bat, UINT64_MAX - MIB(1) + 1, MIB(1), 1},
         {{{0}}, 0, 0, 0},
         VHDX_E_REGION,
         "0xfffffffffff00000",
         "0x30010"},
        {{region_id_bat, (UINT64_C(1) << 63) - MIB(1), MIB(1), 1},
         {{{0}}, 0, 0, 0},
         VHDX_E_REGION,
         "beyond",
         "0x30010"},
        {{region_id_bat, MIB(8), MIB(1), 1}, {{{0}}, 0, 0, 0}, VHDX_E_TRUNCATED, "0x800000", "0x30010"},
        {{region_id_bat, MIB(3), MIB(6), 1}, {{{0}}, 0, 0, 0}, VHDX_E_TRUNCATED, "0x600000", "0x30010"},
        {{region_id_bat, MIB(2), MIB(1), 1}, {{{0}}, 0, 0, 0}, VHDX_E_REGION, "0x200000", "overlaps"},
        {{region_id_bat, MIB(1), MIB(1), 1},
         {{{0}}, 0, 0, 0},
         VHDX_E_REGION,
         "0x100000",
         "overlaps"}, /* the log */
        {bat, {strange_id, MIB(3), MIB(1), 0}, VHDX_E_REGION, "0x300000", "overlaps"},
        {bat, {strange_id, MIB(5), MIB(1), 1}, VHDX_E_UNSUPPORTED, "unknown", "0x30050"},
        {bat, {strange_id, MIB(5), 0, 0}, VHDX_E_REGION, "zero", "0x30050"},
        {bat, {strange_id, UINT64_MAX - MIB(1) + 1, MIB(1), 0}, VHDX_E_REGION, "beyond", "0x30050"},
        {bat, {strange_id, 4096, MIB(1), 0}, VHDX_E_REGION, "0x1000", "0x30050"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct image_plan p = small_plan();
        struct storage *s = build_memory_image(&p);
        const struct region regions[] = {cases[i].bat, metadata, cases[i].other};
        bool other = cases[i].other.length || cases[i].other.file_offset;
        build_regions(s, 0, regions, other ? 3 : 2);
        EXPECT_REFUSED(s, 0, cases[i].code, cases[i].text, cases[i].where);
        storage_close(s);
    }
}

static void both_regions_must_be_there(void **state)
{
    const struct region bat = {region_id_bat, MIB(3), MIB(1), 1},
                        metadata = {region_id_metadata, MIB(2), MIB(1), 1};
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);

    (void)state;
    build_regions(s, 0, &bat, 1);
    EXPECT_REFUSED(s, 0, VHDX_E_REGION, "no metadata region", "0x30000");
    build_regions(s, 0, &metadata, 1);
    EXPECT_REFUSED(s, 0, VHDX_E_REGION, "no BAT region", "0x30000");
    build_regions(s, 0, NULL, 0);
    EXPECT_REFUSED(s, 0, VHDX_E_REGION, "region", "0x30000");
    storage_close(s);
}

/* Unknown optional regions are kept, their space reserved; QEMU sets no Required bit; the order is free. */
static void odd_region_tables_are_read(void **state)
{
    const struct region regions[] = {
        {strange_id, MIB(1024), MIB(64), 0}, /* behind the end: not ours to judge */
        {region_id_metadata, MIB(2), MIB(1), 0},
        {{"another region"}, MIB(6), MIB(1), 0xfffffffe},
        {region_id_bat, MIB(3), MIB(1), 0}};
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);
    struct bat_entry e;

    (void)state;
    build_regions(s, 0, regions, 4);
    struct image *img = MUST_OPEN(s, 0);
    assert_int_equal(img->nr_regions, 4);
    assert_ptr_equal(img->bat, &img->regions[3]);
    assert_int_equal(img->nr_reserved, 6);
    for (size_t i = 1; i < img->nr_reserved; i++)
        assert_true(img->reserved[i - 1].end <= img->reserved[i].start);
    image_close(img);
    build_block(&p, s, 0, PAYLOAD_FULLY_PRESENT, MIB(6));
    EXPECT_REFUSED(s, 0, VHDX_E_BAT, "0x600000", "BAT entry at 0x300000");
    img = MUST_OPEN(s, IMAGE_UNVERIFIED);
    assert_int_equal(bat_lookup(img, 0, &e), VHDX_E_BAT);
    image_close(img);
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_good_region_table_is_enough),
        cmocka_unit_test(too_many_regions_make_a_copy_invalid),
        cmocka_unit_test(the_first_good_copy_counts),
        cmocka_unit_test(an_unreadable_copy_is_as_good_as_a_damaged_one),
        cmocka_unit_test(impossible_regions_are_refused),
        cmocka_unit_test(both_regions_must_be_there),
        cmocka_unit_test(odd_region_tables_are_read),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
