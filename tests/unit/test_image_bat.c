/* SPDX-License-Identifier: MIT */
/* The block allocation table of an open image (format section 5; hostile input rows 76 to 88). */
#include "image-test.h"

static const char *const locator[][2] = {
    {"relative_path", ".\\parent.vhdx"},
    {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
};

/* 16 blocks of 2 MiB; a dynamic image has its structures below 4 MiB, and the file ends at 64 MiB. */
static struct image_plan small_plan(bool has_parent)
{
    struct image_plan p;

    image_plan_init(&p, MIB(32), MIB(2), 512, has_parent ? locator : NULL,
                    has_parent ? ARRAY_LENGTH(locator) : 0);
    assert_int_equal(image_plan_blocks_offset(&p), MIB(4));
    p.file_length = MIB(64);
    return p;
}

enum { PRESENT = PAYLOAD_FULLY_PRESENT, PARTIAL = PAYLOAD_PARTIALLY_PRESENT };

/* ---- single entries (rows 77 to 81, 83, 85) ---- */

static void impossible_entries_are_refused(void **state)
{
    static const struct {
        bool has_parent;
        uint64_t raw;
        int code;
        const char *text;
    } cases[] = {
        {false, MIB(4) | PRESENT | 8, VHDX_E_BAT, "reserved bits"},
        {false, MIB(4) | PRESENT | 0x80000, VHDX_E_BAT, "reserved bits"},
        {false, 8, VHDX_E_BAT, "reserved bits"},
        {false, 4, VHDX_E_BAT, "reserved state"},
        {false, 5, VHDX_E_BAT, "reserved state"},
        {true, MIB(4) | 5, VHDX_E_BAT, "reserved state"},
        {false, PRESENT, VHDX_E_BAT, "needs an offset"},
        {true, PARTIAL, VHDX_E_BAT, "needs an offset"},
        {false, MIB(4) | PARTIAL, VHDX_E_BAT, "no parent"},
        {false, UINT64_C(0xfffffffffff00000) | PRESENT, VHDX_E_BAT, "beyond"},
        {false, (UINT64_C(1) << 63) | PRESENT, VHDX_E_BAT, "beyond"},
        {false, ((UINT64_C(1) << 63) - MIB(1)) | PRESENT, VHDX_E_BAT, "beyond"},
        {false, MIB(64) | PRESENT, VHDX_E_TRUNCATED, "0x4000000"},
        {false, MIB(63) | PRESENT, VHDX_E_TRUNCATED, "0x3f00000"},
        {false, TIB(256) | PRESENT, VHDX_E_TRUNCATED, "0x1000000000000"},
        {false, MIB(1) | PRESENT, VHDX_E_BAT, "0x100000..0x200000"}, /* the log */
        {false, MIB(2) | PRESENT, VHDX_E_BAT, "0x200000..0x300000"}, /* metadata */
        {false, MIB(3) | PRESENT, VHDX_E_BAT, "0x300000..0x400000"}, /* the BAT */
        {false, MIB(3) | PAYLOAD_UNMAPPED, VHDX_E_BAT, "0x300000"},  /* row 84: soft anchors */
        {false, MIB(63) | PAYLOAD_UNDEFINED, VHDX_E_TRUNCATED, "0x3f00000"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct image_plan p = small_plan(cases[i].has_parent);
        struct storage *s = build_memory_image(&p);
        struct bat_entry e;
        build_number(s, p.bat_offset + 5 * 8, cases[i].raw, 8);
        EXPECT_REFUSED(s, 0, cases[i].code, cases[i].text, "BAT entry at 0x300028");
        struct image *img = MUST_OPEN(s, IMAGE_UNVERIFIED); /* judged when it is used */
        assert_succeeds(bat_lookup(img, 4, &e));
        assert_fails(bat_lookup(img, 5, &e), cases[i].code, cases[i].text);
        image_close(img);
        storage_close(s);
    }
}

static void every_legal_entry_is_accepted(void **state)
{
    static const uint64_t legal[] = {0,
                                     1,
                                     2,
                                     3,
                                     MIB(4) | PRESENT,
                                     MIB(62) | PRESENT,
                                     MIB(4) | 1,
                                     MIB(4) | 3,
                                     MIB(2) | 0,
                                     MIB(1) | 2,
                                     UINT64_C(0xfffffffffff00000), /* ignored for 0 and 2 */
                                     UINT64_C(0xfffffffffff00000) | 2};

    (void)state;
    for (int has_parent = 0; has_parent < 2; has_parent++) {
        for (size_t i = 0; i < ARRAY_LENGTH(legal); i++) {
            struct image_plan p = small_plan(has_parent);
            struct storage *s = build_memory_image(&p);
            struct bat_entry e;
            build_number(s, p.bat_offset + 5 * 8, legal[i], 8);
            struct image *img = MUST_OPEN(s, 0);
            assert_succeeds(bat_lookup(img, 5, &e));
            assert_int_equal(e.state, legal[i] & 7);
            assert_int_equal(e.file_offset, legal[i] & ~UINT64_C(0xfffff));
            assert_succeeds(bat_lookup(img, 5, &e)); /* and again, from what is remembered */
            assert_int_equal(e.state, legal[i] & 7);
            assert_int_equal(e.file_offset, legal[i] & ~UINT64_C(0xfffff));
            image_close(img);
            storage_close(s);
        }
    }
}

/* Only what lies behind the disk's end may be missing from the file (10.3). */
static void a_last_block_may_be_cut_short(void **state)
{
    struct image_plan p = small_plan(false);
    uint8_t buf[1024];
    struct run run;

    (void)state;
    p.values.virtual_size = MIB(31) + 512; /* the last block shows 1 MiB + 512 */
    p.file_length = MIB(5) + 512;
    struct storage *s = build_memory_image(&p);
    build_block(&p, s, 15, PRESENT, MIB(4));
    build_fill(s, MIB(5), 0x22, 512);
    struct image *img = MUST_OPEN(s, 0);
    assert_succeeds(image_resolve(img, MIB(31), 512, &run));
    assert_int_equal(run.file_offset, MIB(5));
    assert_succeeds(read_payload(img, buf, 1024, MIB(5))); /* zeros behind the end of the file */
    assert_int_equal(buf[511], 0x22);
    for (size_t i = 512; i < 1024; i++)
        assert_int_equal(buf[i], 0);
    assert_succeeds(read_payload(img, buf, 100, MIB(6) - 100));
    for (size_t i = 0; i < 100; i++)
        assert_int_equal(buf[i], 0);
    image_close(img);
    assert_succeeds(storage_truncate(s, MIB(5) + 511));
    EXPECT_REFUSED(s, 0, VHDX_E_TRUNCATED, "0x400000", "0x300078");
    assert_succeeds(storage_truncate(s, MIB(5) + 512));
    build_block(&p, s, 15, 0, 0);
    build_block(&p, s, 14, PRESENT, MIB(4)); /* not for any other block */
    EXPECT_REFUSED(s, 0, VHDX_E_TRUNCATED, "0x400000", "0x300070");
    storage_close(s);
}

/* ---- bitmap entries (rows 78, 86, 87) ---- */

static void bitmap_entries_are_judged_in_differencing_images(void **state)
{
    static const struct {
        uint64_t raw;
        int code;
        const char *text;
    } bad[] = {
        {1, VHDX_E_BAT, "reserved state"},
        {MIB(10) | 2, VHDX_E_BAT, "reserved state"},
        {MIB(10) | 7, VHDX_E_BAT, "reserved state"},
        {BITMAP_PRESENT, VHDX_E_BAT, "needs an offset"},
        {MIB(10) | BITMAP_PRESENT | 0x10, VHDX_E_BAT, "reserved bits"},
        {MIB(64) | BITMAP_PRESENT, VHDX_E_TRUNCATED, "0x4000000"},
        {MIB(2) | BITMAP_PRESENT, VHDX_E_BAT, "0x200000..0x300000"},
    };
    struct image_plan p = small_plan(true);
    const uint64_t place = p.bat_offset + 2048 * 8; /* of chunk 0: 4 GiB are 2048 blocks */

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
        struct storage *s = build_memory_image(&p);
        struct bat_entry e;
        build_number(s, place, bad[i].raw, 8);
        EXPECT_REFUSED(s, 0, bad[i].code, bad[i].text, "BAT entry at 0x304000");
        struct image *img = MUST_OPEN(s, IMAGE_UNVERIFIED);
        assert_int_equal(bat_lookup_bitmap(img, 0, &e), bad[i].code);
        image_close(img);
        storage_close(s);
    }
    struct storage *s = build_memory_image(&p);
    build_bitmap(&p, s, 0, BITMAP_PRESENT, MIB(63)); /* a bitmap block is 1 MiB, whatever the block size */
    struct image *img = MUST_OPEN(s, 0);
    struct bat_entry e;
    assert_succeeds(bat_lookup_bitmap(img, 0, &e));
    assert_int_equal(e.file_offset, MIB(63));
    image_close(img);
    storage_close(s);
}

/* QEMU before 8.0 leaves payload entries in their slots (10.3). */
static void bitmap_entries_of_other_images_are_ignored(void **state)
{
    struct image_plan p;

    (void)state;
    image_plan_init(&p, GIB(5), MIB(2), 512, NULL, 0);
    p.file_length = MIB(64);
    struct storage *s = build_memory_image(&p);
    build_block(&p, s, 2047, PRESENT, MIB(8));
    build_bitmap(&p, s, 0, PRESENT, MIB(8));
    build_block(&p, s, 2048, PRESENT, MIB(10));
    struct image *img = MUST_OPEN(s, 0);
    uint64_t counts[8];
    assert_succeeds(bat_count_states(img, counts));
    assert_int_equal(counts[PRESENT], 2);
    image_close(img);
    storage_close(s);
}

static void a_partial_block_needs_its_bitmap(void **state)
{
    struct image_plan p;
    struct bat_entry e;
    struct run run;

    (void)state;
    image_plan_init(&p, GIB(9), MIB(2), 512, locator, ARRAY_LENGTH(locator));
    p.file_length = MIB(64);
    struct storage *s = build_memory_image(&p);
    build_block(&p, s, 2048, PARTIAL, MIB(4)); /* chunk 1 */
    build_block(&p, s, 2050, PARTIAL, MIB(6));
    build_bitmap(&p, s, 0, BITMAP_PRESENT, MIB(20)); /* not theirs */
    EXPECT_REFUSED(s, 0, VHDX_E_BITMAP, "chunk 1", "0x308008");
    struct image *img = MUST_OPEN(s, IMAGE_UNVERIFIED);
    assert_fails(bat_lookup_bitmap(img, 1, &e), VHDX_E_BITMAP, "chunk 1");
    assert_fails(image_resolve(img, GIB(4), MIB(1), &run), VHDX_E_BITMAP, "0x308008");
    image_close(img);
    build_bitmap(&p, s, 1, BITMAP_PRESENT, MIB(21));
    image_close(MUST_OPEN(s, 0));
    build_block(&p, s, 4096, PARTIAL, MIB(30)); /* chunk 2 */
    EXPECT_REFUSED(s, 0, VHDX_E_BITMAP, "chunk 2", "BAT entry 6146");
    storage_close(s);
}

/* Slots behind the disk's end, in its last chunk and behind all entries, may hold anything (5.9 rule 6). */
static void padding_is_ignored(void **state)
{
    struct image_plan p = small_plan(true);
    struct storage *s = build_memory_image(&p);

    (void)state;
    build_number(s, p.bat_offset + 16 * 8, UINT64_MAX, 8);
    build_number(s, p.bat_offset + 2047 * 8, UINT64_MAX, 8);
    build_number(s, p.bat_offset + 2049 * 8, UINT64_MAX, 8);
    for (unsigned flags = 0; flags <= IMAGE_UNVERIFIED; flags += IMAGE_UNVERIFIED) {
        struct image *img = MUST_OPEN(s, flags);
        uint64_t counts[8];
        assert_succeeds(bat_count_states(img, counts));
        assert_int_equal(counts[0], 16);
        assert_int_equal(counts[7], 0);
        image_close(img);
    }
    storage_close(s);
}

/* ---- overlaps (rows 82 to 84, 87) ---- */

static void overlaps_are_refused(void **state)
{
    static const struct {
        uint64_t a, b, bitmap;
        const char *text, *where;
    } cases[] = {
        {MIB(4) | PRESENT, MIB(4) | PRESENT, 0, "BAT entry 3 too", "BAT entry 9 at 0x300048"},
        {MIB(4) | PRESENT, MIB(5) | PRESENT, 0, "BAT entry 3 too", "0x500000..0x700000"},
        {MIB(5) | PRESENT, MIB(4) | PRESENT, 0, "BAT entry 3 too", "0x400000..0x600000"},
        {MIB(4) | 3, MIB(4) | PRESENT, 0, "BAT entry 3 too", "BAT entry 9 at 0x300048"},
        {MIB(4) | 1, MIB(5) | 3, 0, "BAT entry 3 too", "BAT entry 9 at 0x300048"},
        {MIB(4) | PRESENT, MIB(6) | PRESENT, MIB(7) | BITMAP_PRESENT, "BAT entry 9 too",
         "BAT entry 2048 at 0x304000"},
        {MIB(4) | PARTIAL, 0, MIB(4) | BITMAP_PRESENT, "BAT entry 3 too", "BAT entry 2048 at 0x304000"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct image_plan p = small_plan(true);
        struct storage *s = build_memory_image(&p);
        struct bat_entry e;
        build_number(s, p.bat_offset + 3 * 8, cases[i].a, 8);
        build_number(s, p.bat_offset + 9 * 8, cases[i].b, 8);
        build_number(s, p.bat_offset + 2048 * 8, cases[i].bitmap, 8);
        EXPECT_REFUSED(s, 0, VHDX_E_BAT, cases[i].text, cases[i].where);
        struct image *img = MUST_OPEN(s, IMAGE_UNVERIFIED);
        assert_succeeds(bat_lookup(img, 3, &e));
        assert_succeeds(bat_lookup(img, 9, &e));
        image_close(img);
        storage_close(s);
    }
}

/* Objects may touch: only bytes that two of them own are in dispute. */
static void neighbours_do_not_overlap(void **state)
{
    struct image_plan p = small_plan(true);

    (void)state;
    p.metadata_offset = MIB(8);
    p.bat_offset = MIB(16);
    struct storage *s = build_memory_image(&p);
    build_block(&p, s, 0, PRESENT,
                MIB(6)); /* right before the metadata, right behind them, right before the BAT, ... */
    build_block(&p, s, 1, PRESENT, MIB(9));
    build_block(&p, s, 2, PRESENT, MIB(14));
    build_block(&p, s, 3, PRESENT, MIB(17));
    build_block(&p, s, 4, PRESENT, MIB(2));
    build_block(&p, s, 5, PRESENT, MIB(62));
    build_bitmap(&p, s, 0, BITMAP_PRESENT, MIB(19));
    image_close(MUST_OPEN(s, 0));
    storage_close(s);
}

struct object {
    uint64_t start, end;
};

/* The plain way: each object against each other. */
static bool are_apart(const struct object *objects, unsigned nr)
{
    for (unsigned i = 0; i < nr; i++) {
        for (unsigned k = 0; k < i; k++) {
            if (objects[i].start < objects[k].end && objects[k].start < objects[i].end)
                return false;
        }
    }
    return true;
}

static void random_tables_are_judged_as_the_plain_way_does(void **state)
{
    uint64_t random = 0xb10c5, nr_good = 0;
    enum { NR = 1500 };

    (void)state;
    for (unsigned no = 0; no < NR; no++) {
        struct image_plan p = small_plan(no % 2);
        struct object objects[24] = {{0, MIB(1)}, {MIB(1), MIB(2)}, {MIB(2), MIB(3)}, {MIB(3), MIB(4)}};
        unsigned nr = 4, place = 4;
        struct storage *s;
        bool inside = true;
        p.file_length = MIB(40);
        s = build_memory_image(&p);
        for (uint64_t block_no = 0; block_no < 16; block_no++) {
            unsigned kind = (unsigned)(random_next(&random) % 16);
            if (kind < 8)
                continue;
            uint64_t offset = MIB(place);
            place += 2;
            if (random_next(&random) % 24 == 0) /* now and then somewhere else */
                offset = MIB(random_next(&random) % 42);
            build_block(&p, s, block_no, kind == 8 ? 1 : kind == 9 ? 3 : PRESENT, offset);
            if (offset == 0 && kind < 10)
                continue; /* no anchor */
            objects[nr++] = (struct object){offset, offset + MIB(2)};
            inside = inside && offset != 0 && offset + MIB(2) <= p.file_length;
        }
        if (p.locator && random_next(&random) % 2) {
            uint64_t offset = random_next(&random) % 3 ? MIB(39) : MIB(random_next(&random) % 41);
            build_bitmap(&p, s, 0, BITMAP_PRESENT, offset);
            objects[nr++] = (struct object){offset, offset + MIB(1)};
            inside = inside && offset != 0 && offset + MIB(1) <= p.file_length;
        }
        struct image *img;
        int r = open_image(s, 0, &img);
        bool good = inside && are_apart(objects, nr);
        if ((r == 0) != good)
            print_error("table %u: %d (%s), should be %s\n", no, r, error_message(), good ? "good" : "bad");
        assert_int_equal(r == 0, good);
        assert_true(r == 0 || r == VHDX_E_BAT || r == VHDX_E_TRUNCATED);
        nr_good += good;
        image_close(img);
        storage_close(s);
    }
    assert_in_range(nr_good, NR / 5, NR * 4 / 5);
}

/* ---- large tables ---- */

/* 64 TiB in blocks of 1 MiB: 67 million entries, of which two pieces exist on disk. */
static void a_huge_table_costs_what_exists_of_it(void **state)
{
    struct image_plan p;
    const uint64_t last = (UINT64_C(1) << 26) - 1;

    (void)state;
    image_plan_init(&p, TIB(64), MIB(1), 512, NULL, 0);
    p.file_length = image_plan_blocks_offset(&p) + MIB(8);
    const uint64_t first_block = image_plan_blocks_offset(&p);
    struct storage *s = build_memory_image(&p);
    build_block(&p, s, 77, PRESENT, first_block);
    build_block(&p, s, last, PRESENT, first_block + MIB(1));
    fault_arm(&test_fault, NULL);
    struct image *img = MUST_OPEN(s, 0);
    assert_true(fault_count(&test_fault, FAULT_READ) < 100);
    uint64_t counts[8], next;
    assert_succeeds(bat_count_states(img, counts));
    assert_int_equal(counts[PRESENT], 2);
    assert_int_equal(counts[0], last - 1);
    assert_true(fault_count(&test_fault, FAULT_READ) < 200);
    uint64_t end = img->geometry.nr_bat_entries;
    assert_succeeds(bat_skip_holes(img, 0, end, &next));
    assert_int_equal(next, 0);
    assert_succeeds(bat_skip_holes(img, 10000, end, &next));
    assert_true(next > 10000 && next <= end - 1);
    assert_succeeds(bat_skip_holes(img, 10000, 20000, &next));
    assert_int_equal(next, 20000);
    image_close(img);
    build_block(&p, s, last, PRESENT, first_block); /* found, however far apart */
    EXPECT_REFUSED(s, 0, VHDX_E_BAT, "BAT entry 77 too", "BAT entry 67125246");
    storage_close(s);
}

static void verification_keeps_to_its_budget(void **state)
{
    struct image_plan p;
    bool done;

    (void)state;
    image_plan_init(&p, GIB(8), MIB(1), 512, NULL, 0);
    p.file_length = MIB(64);
    struct storage *s = build_memory_image(&p);
    build_block(&p, s, 0, PRESENT, MIB(8));
    build_block(&p, s, 8191, PRESENT, MIB(8));
    struct image *img = MUST_OPEN(s, IMAGE_UNVERIFIED);
    assert_succeeds(bat_verify(img, 8000, &done)); /* what is behind was not looked at */
    assert_false(done);
    assert_succeeds(bat_verify(img, 0, &done));
    assert_false(done);
    assert_int_equal(bat_verify(img, 10000, &done), VHDX_E_BAT);
    image_close(img);
    build_block(&p, s, 8191, PRESENT, MIB(9));
    img = MUST_OPEN(s, 0);
    assert_succeeds(bat_verify(img, 10000, &done));
    assert_true(done);
    image_close(img);
    storage_close(s);
}

static void entries_are_read_over_page_borders(void **state)
{
    struct image_plan p;
    uint64_t raw[2000];

    (void)state;
    image_plan_init(&p, GIB(2), MIB(1), 512, NULL, 0);
    struct storage *s = build_memory_image(&p);
    for (uint64_t i = 0; i < 2048; i++)
        build_number(s, p.bat_offset + i * 8, MIB(i) | 2, 8);
    struct image *img = MUST_OPEN(s, 0);
    assert_succeeds(bat_read(img, 30, 2000, raw));
    for (uint64_t i = 0; i < 2000; i++)
        assert_int_equal(raw[i], MIB(i + 30) | 2);
    fault_arm(&test_fault,
              &(struct fault_plan){.kind = FAULT_READ, .nth = 1, .forever = true, .error = -EIO});
    assert_succeeds(bat_read(img, 30, 2000, raw)); /* from the cache */
    fault_arm(&test_fault, NULL);
    image_close(img);
    storage_close(s);
}

static void errors_are_passed_on_with_the_place(void **state)
{
    struct image_plan p = small_plan(true);
    struct storage *s = build_memory_image(&p);
    struct bat_entry e;
    uint64_t counts[8];
    bool done;

    (void)state;
    build_block(&p, s, 3, PRESENT, MIB(4)); /* or else the table is a hole, and nothing is read */
    struct image *img = MUST_OPEN(s, IMAGE_UNVERIFIED);
    fault_arm(&test_fault,
              &(struct fault_plan){.kind = FAULT_READ, .nth = 1, .forever = true, .error = -EIO});
    assert_fails(bat_lookup(img, 7, &e), -EIO, "BAT entry 7 at 0x300038");
    assert_fails(bat_lookup_bitmap(img, 0, &e), -EIO, "BAT entry 2048 at 0x304000");
    assert_int_equal(bat_count_states(img, counts), -EIO);
    assert_int_equal(bat_verify(img, 10000, &done), -EIO);
    fault_arm(&test_fault,
              &(struct fault_plan){.kind = FAULT_NEXT_DATA, .nth = 1, .forever = true, .error = -EIO});
    assert_fails(bat_count_states(img, counts), -EIO, "BAT at 0x300000");
    assert_int_equal(bat_verify(img, 10000, &done), -EIO);
    assert_false(done);
    fault_arm(&test_fault, NULL);
    assert_succeeds(bat_lookup(img, 7, &e));
    assert_succeeds(bat_lookup(img, 3, &e));
    assert_int_equal(e.state, PRESENT);
    image_close(img);
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(impossible_entries_are_refused),
        cmocka_unit_test(every_legal_entry_is_accepted),
        cmocka_unit_test(a_last_block_may_be_cut_short),
        cmocka_unit_test(bitmap_entries_are_judged_in_differencing_images),
        cmocka_unit_test(bitmap_entries_of_other_images_are_ignored),
        cmocka_unit_test(a_partial_block_needs_its_bitmap),
        cmocka_unit_test(padding_is_ignored),
        cmocka_unit_test(overlaps_are_refused),
        cmocka_unit_test(neighbours_do_not_overlap),
        cmocka_unit_test(random_tables_are_judged_as_the_plain_way_does),
        cmocka_unit_test(a_huge_table_costs_what_exists_of_it),
        cmocka_unit_test(verification_keeps_to_its_budget),
        cmocka_unit_test(entries_are_read_over_page_borders),
        cmocka_unit_test(errors_are_passed_on_with_the_place),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
