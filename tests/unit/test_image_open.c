/* SPDX-License-Identifier: MIT */
/* Opening: identifier, headers, log, and what changes or fails meanwhile (format sections 1, 2, 4.8 and 9.2;
 * hostile input rows 1 to 17, 41, 42, 88 and 105 to 107). */
#include "image-test.h"

#include "image/overlay.h"

/* 16 MiB in blocks of 1 MiB: everything before 4 MiB is structures. */
static struct image_plan small_plan(void)
{
    struct image_plan p;

    image_plan_init(&p, MIB(16), MIB(1), 512, NULL, 0);
    p.file_length = MIB(8);
    return p;
}

static struct image_plan dirty_plan(void)
{
    struct image_plan p = small_plan();
    p.header.log_guid = (guid){"log of the test"};
    return p;
}

/* A log entry with one page or none, which makes dirty_plan()'s image sound. */
static void put_entry(struct storage *s, const struct image_plan *p, uint64_t sequence_no, uint64_t target,
                      const uint8_t *page)
{
    const struct build_change change = {.file_offset = target, .page = page};
    const struct build_entry e = {.sequence_no = sequence_no,
                                  .log_guid = p->header.log_guid,
                                  .last = p->file_length,
                                  .changes = &change,
                                  .nr_changes = page ? 1 : 0};
    build_log_entry(s, &p->header, &e);
}

static void a_sound_image_opens(void **state)
{
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);
    struct image *img = MUST_OPEN(s, 0);

    (void)state;
    assert_int_equal(img->geometry.virtual_size, MIB(16));
    assert_int_equal(img->geometry.block_size, MIB(1));
    assert_int_equal(img->geometry.sector_size, 512);
    assert_int_equal(img->header.sequence_no, 9);
    assert_int_equal(img->file_length, MIB(8));
    assert_int_equal(img->nr_regions, 2);
    assert_int_equal(img->bat->file_offset, MIB(3));
    assert_int_equal(img->metadata->file_offset, MIB(2));
    assert_string_equal(img->creator, "Unit");
    assert_null(img->overlay);
    assert_false(image_has_parent(img));
    image_close(img);
    image_close(NULL);
    storage_close(s);
}

/* ---- the identifier and the file (rows 1 to 4, 88) ---- */

static void other_files_are_told_apart(void **state)
{
    struct storage *s;

    (void)state;
    assert_succeeds(storage_memory_new(NULL, 0, &s));
    EXPECT_REFUSED(s, 0, VHDX_E_NOT_VHDX, "not a VHDX image", "offset 0");
    build_bytes(s, 0, "QFI\xfb\0\0\0\3", 8);
    EXPECT_REFUSED(s, 0, VHDX_E_NOT_VHDX, "QCOW2", "offset 0");
    build_bytes(s, 0, "vhdxfilE", 8);
    assert_succeeds(storage_truncate(s, MIB(3)));
    EXPECT_REFUSED(s, 0, VHDX_E_NOT_VHDX, "not a VHDX image", "offset 0");
    storage_close(s);
}

static void short_files_are_truncated(void **state)
{
    static const uint64_t lengths[] = {8, 519, 520, 0x10000, 0x20fff, 0x4ffff, 0x50000, 0xfffff};
    struct image_plan p = small_plan();

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(lengths); i++) {
        struct storage *s = build_memory_image(&p);
        char length[32];
        assert_succeeds(storage_truncate(s, lengths[i]));
        snprintf(length, sizeof length, "0x%llx", (unsigned long long)lengths[i]);
        EXPECT_REFUSED(s, 0, VHDX_E_TRUNCATED, length, "cut short");
        storage_close(s);
    }
}

/* Wherever the file is cut, opening says so. */
static void files_cut_inside_a_structure_are_truncated(void **state)
{
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);

    (void)state;
    for (uint64_t length = MIB(1); length < MIB(4); length += 0x3ff00) {
        assert_succeeds(storage_truncate(s, length));
        EXPECT_REFUSED(s, 0, VHDX_E_TRUNCATED, "0x", "");
    }
    storage_close(s);
}

static void files_too_long_to_be_true_are_refused(void **state)
{
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);

    (void)state;
    assert_succeeds(storage_truncate(s, UINT64_C(1) << 50)); /* sparse: costs nothing (row 107) */
    image_close(MUST_OPEN(s, 0));
    assert_succeeds(storage_truncate(s, (UINT64_C(1) << 50) + 1));
    EXPECT_REFUSED(s, 0, VHDX_E_LIMIT, "0x4000000000001", "");
    assert_succeeds(storage_truncate(s, INT64_MAX));
    EXPECT_REFUSED(s, 0, VHDX_E_LIMIT, "0x7fffffffffffffff", "");
    storage_close(s);
}

static void any_length_behind_the_structures_will_do(void **state)
{
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);

    (void)state;
    for (uint64_t length = MIB(4); length < MIB(4) + 2000; length += 111) { /* Disk2vhd: 260 MiB + 512 */
        assert_succeeds(storage_truncate(s, length));
        image_close(MUST_OPEN(s, 0));
    }
    storage_close(s);
}

/* Row 4: 256 units without NUL, half a surrogate pair, control characters. */
static void a_hostile_creator_is_made_harmless(void **state)
{
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);

    (void)state;
    build_fill(s, 8, 0xd8, 512); /* U+D8D8 everywhere */
    struct image *img = MUST_OPEN(s, 0);
    assert_int_equal(strlen(img->creator), 256 * 3);
    image_close(img);
    build_bytes(s, 8, "\x1b\0[\0\n\0\0\0", 8);
    img = MUST_OPEN(s, 0);
    assert_string_equal(img->creator, "\xef\xbf\xbd[\xef\xbf\xbd");
    image_close(img);
    storage_close(s);
}

/* ---- headers (rows 5 to 10) ---- */

static void the_newer_header_counts_in_either_slot(void **state)
{
    for (unsigned newer = 0; newer < 2; newer++) {
        struct image_plan p = small_plan();
        struct storage *s = build_memory_image(&p);
        struct header h = p.header;
        (void)state;
        h.sequence_no = UINT64_MAX;
        h.data_write_guid.bytes[0] ^= 1;
        build_header(s, newer, &h);
        h.sequence_no = INT64_MAX;
        h.data_write_guid.bytes[0] ^= 2;
        build_header(s, !newer, &h);
        struct image *img = MUST_OPEN(s, 0);
        assert_int_equal(img->header.sequence_no, UINT64_MAX);
        assert_int_equal(img->header.data_write_guid.bytes[0], p.header.data_write_guid.bytes[0] ^ 1);
        image_close(img);
        storage_close(s);
    }
}

static void one_good_header_is_enough(void **state)
{
    static const uint64_t places[] = {0, 4, 8, 79, 80, 4095}; /* signature, checksum, fields, reserved */
    struct image_plan p = small_plan();

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
        for (unsigned damaged = 0; damaged < 2; damaged++) {
            struct storage *s = build_memory_image(&p);
            build_fill(s, HEADER_OFFSET(damaged) + places[i], 0xa5, 1);
            struct image *img = MUST_OPEN(s, 0);
            assert_int_equal(img->header.sequence_no, damaged ? 8 : 9);
            image_close(img);
            build_fill(s, HEADER_OFFSET(!damaged) + places[i], 0xa5, 1);
            EXPECT_REFUSED(s, 0, VHDX_E_HEADER, "0x10000", "0x20000");
            storage_close(s);
        }
    }
}

static void an_unreadable_header_is_as_good_as_a_damaged_one(void **state)
{
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);
    struct image *img;

    (void)state;
    for (unsigned n = 0; n < 2; n++) { /* reads: identifier, header 1, header 2 */
        fault_arm(&test_fault, &(struct fault_plan){.kind = FAULT_READ, .nth = 2 + n, .error = -EIO});
        img = MUST_OPEN(s, 0);
        assert_int_equal(img->header.sequence_no, n == 0 ? 9 : 8);
        image_close(img);
    }
    fault_arm(&test_fault,
              &(struct fault_plan){.kind = FAULT_READ, .nth = 2, .forever = true, .error = -EIO});
    assert_int_equal(open_image(s, 0, &img), -EIO);
    fault_arm(&test_fault, NULL);
    storage_close(s);
}

/* Disk2vhd writes two identical headers; two different ones leave nobody to know. */
static void headers_of_one_number_must_be_identical(void **state)
{
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);

    (void)state;
    build_header(s, 0, &p.header);
    image_close(MUST_OPEN(s, 0));
    p.header.file_write_guid.bytes[3] ^= 1;
    build_header(s, 0, &p.header);
    EXPECT_REFUSED(s, 0, VHDX_E_HEADER, "0x10000", "sequence number 9");
    build_fill(s, HEADER_OFFSET(1), 0, 4); /* but then it is known */
    image_close(MUST_OPEN(s, 0));
    storage_close(s);
}

static void versions_of_the_current_header_must_be_known(void **state)
{
    struct image_plan p = small_plan();
    struct storage *s = build_memory_image(&p);
    struct header old = p.header;

    (void)state;
    old.sequence_no = 8;
    old.version = 7;
    old.log_version = 7;
    build_header(s, 0, &old);
    image_close(MUST_OPEN(s, 0)); /* the other one does not matter */
    p.header.log_version = 1;
    build_header(s, 1, &p.header);
    image_close(MUST_OPEN(s, 0)); /* nor does the log's while it is clean */
    p.header.log_guid.bytes[15] = 1;
    build_header(s, 1, &p.header);
    EXPECT_REFUSED(s, 0, VHDX_E_UNSUPPORTED, "LogVersion is 1", "header");
    p.header.version = 2;
    build_header(s, 1, &p.header);
    EXPECT_REFUSED(s, 0, VHDX_E_UNSUPPORTED, "Version is 2", "header");
    storage_close(s);
}

/* ---- the log (rows 11 to 17, 41, 42) ---- */

static void a_log_at_an_impossible_place(void **state)
{
    static const struct {
        uint64_t offset;
        uint32_t length;
        int dirty_code;
        int clean_code; /* only the limit counts for a clean log, and that the log may not lie over a region
                         */
        const char *text;
    } cases[] = {
        {MIB(1), 0, VHDX_E_HEADER, 0, "LogLength is 0"},
        {MIB(1) + 512, MIB(1), VHDX_E_HEADER, 0, "0x100200"},
        {MIB(1), MIB(1) + 4096, VHDX_E_HEADER, 0, "0x101000"},
        {0, MIB(1), VHDX_E_HEADER, 0, "LogOffset 0x0"},
        {MIB(1), (uint32_t)GIB(1) + MIB(1), VHDX_E_LIMIT, VHDX_E_LIMIT, "0x40100000"},
        {MIB(1), UINT32_MAX, VHDX_E_LIMIT, VHDX_E_LIMIT, "0xffffffff"},
        {MIB(8), MIB(1), VHDX_E_TRUNCATED, 0, "0x800000"},
        {MIB(7), MIB(2), VHDX_E_TRUNCATED, 0, "0x700000"},
        {UINT64_C(1) << 63, MIB(1), VHDX_E_HEADER, 0, "0x8000000000000000"},
        {UINT64_MAX - MIB(1) + 1, MIB(1), VHDX_E_HEADER, 0, "0xfffffffffff00000"},
        {INT64_MAX - MIB(1) + 1, MIB(1), VHDX_E_TRUNCATED, 0, "0x7ffffffffff00000"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        for (int dirty = 0; dirty < 2; dirty++) {
            struct image_plan p = small_plan();
            p.header.log_offset = cases[i].offset;
            p.header.log_length = cases[i].length;
            p.header.log_guid.bytes[0] = (uint8_t)dirty;
            struct storage *s = build_memory_image(&p);
            int code = dirty ? cases[i].dirty_code : cases[i].clean_code;
            if (code)
                EXPECT_REFUSED(s, 0, code, cases[i].text, "header");
            else
                image_close(MUST_OPEN(s, 0));
            storage_close(s);
        }
    }
}

static void a_log_may_lie_anywhere_else(void **state)
{
    static const uint64_t offsets[] = {MIB(1), MIB(4), MIB(6), MIB(7)};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(offsets); i++) {
        struct image_plan p = dirty_plan();
        p.header.log_offset = offsets[i];
        struct storage *s = build_memory_image(&p);
        put_entry(s, &p, 3, 0, NULL);
        struct image *img = MUST_OPEN(s, 0);
        assert_non_null(img->overlay);
        image_close(img);
        storage_close(s);
    }
}

static void a_log_over_a_region_is_refused(void **state)
{
    for (int dirty = 0; dirty < 2; dirty++) {
        for (uint64_t offset = MIB(2); offset < MIB(4); offset += MIB(1)) {
            struct image_plan p = dirty ? dirty_plan() : small_plan();
            (void)state;
            p.header.log_offset = offset;
            p.metadata_offset = MIB(2);
            struct storage *s = build_memory_image(&p);
            if (dirty && offset == MIB(3)) /* an entry there is a BAT page at the same time */
                put_entry(s, &p, 3, 0, NULL);
            if (!dirty || offset == MIB(3))
                EXPECT_REFUSED(s, 0, VHDX_E_REGION, "overlaps", offset == MIB(2) ? "0x200000" : "0x300000");
            else
                EXPECT_REFUSED(s, 0, VHDX_E_LOG, "log at 0x200000", "");
            storage_close(s);
        }
    }
}

static void a_dirty_log_is_replayed_or_refused_as_told(void **state)
{
    struct image_plan p = dirty_plan();
    struct storage *s = build_memory_image(&p);
    uint8_t page[PAGE_BYTES] = {0};
    struct bat_entry e;

    (void)state;
    EXPECT_REFUSED(s, 0, VHDX_E_LOG, "log at 0x100000", "none of its 0 intact entries"); /* row 41 */
    EXPECT_REFUSED(s, IMAGE_REFUSE_DIRTY, VHDX_E_LOG_DIRTY, "log at 0x100000", "");
    le64_put(page, MIB(5) | PAYLOAD_FULLY_PRESENT);
    put_entry(s, &p, 3, p.bat_offset, page);
    EXPECT_REFUSED(s, IMAGE_REFUSE_DIRTY, VHDX_E_LOG_DIRTY, "log at 0x100000", "");
    struct image *img = MUST_OPEN(s, 0);
    assert_succeeds(bat_lookup(img, 0, &e));
    assert_int_equal(e.state, PAYLOAD_FULLY_PRESENT);
    assert_int_equal(e.file_offset, MIB(5));
    image_close(img);

    p.header.log_guid = (guid){{0}}; /* a clean header: the same entries mean nothing */
    build_header(s, 1, &p.header);
    img = MUST_OPEN(s, IMAGE_REFUSE_DIRTY);
    assert_null(img->overlay);
    assert_succeeds(bat_lookup(img, 0, &e));
    assert_int_equal(e.state, PAYLOAD_NOT_PRESENT);
    image_close(img);
    storage_close(s);
}

/* Before replay the region tables and the metadata may be torn (3.4 rule 1). */
static void everything_is_read_as_it_is_after_replay(void **state)
{
    struct image_plan p = dirty_plan();
    struct storage *s = build_memory_image(&p);
    uint8_t pages[4][PAGE_BYTES];
    const uint64_t places[4] = {0x30000, 0x40000, MIB(2), MIB(2) + 65536};
    struct build_change changes[4];

    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        assert_succeeds(storage_pread(s, pages[i], PAGE_BYTES, places[i]));
        changes[i] = (struct build_change){.file_offset = places[i], .page = pages[i]};
        build_fill(s, places[i], 0x77, PAGE_BYTES);
    }
    const struct build_entry e = {
        .sequence_no = 4, .log_guid = p.header.log_guid, .last = MIB(9), .changes = changes, .nr_changes = 4};
    build_log_entry(s, &p.header, &e);
    struct image *img = MUST_OPEN(s, 0);
    assert_int_equal(img->geometry.virtual_size, MIB(16));
    assert_int_equal(img->file_length, MIB(9));
    image_close(img);
    storage_close(s);
}

/* ---- a file that changes, and errors ---- */

/* Rows 105 and 106: what was there is never taken for zeros, whether or not the log is dirty. */
static void a_file_that_shrinks_while_open_is_an_error(void **state)
{
    for (int dirty = 0; dirty < 2; dirty++) {
        struct image_plan p;
        uint8_t buf[PAGE_BYTES];
        uint64_t raw;
        struct run run;
        (void)state;
        image_plan_init(&p, GIB(64), MIB(1), 512, NULL, 0);
        if (dirty)
            p.header.log_guid = (guid){"log of the test"};
        p.file_length = MIB(8);
        struct storage *s = build_memory_image(&p);
        put_entry(s, &p, 3, 0, NULL);
        build_block(&p, s, 0, PAYLOAD_FULLY_PRESENT, MIB(6));
        build_fill(s, MIB(6), 0x11, MIB(1));
        struct image *img = MUST_OPEN(s, 0);
        assert_succeeds(read_payload(img, buf, sizeof buf, MIB(7) - sizeof buf));
        assert_succeeds(storage_truncate(s, MIB(7) - 100));
        assert_succeeds(read_payload(img, buf, sizeof buf, MIB(6)));
        assert_fails(read_payload(img, buf, sizeof buf, MIB(7) - sizeof buf), VHDX_E_TRUNCATED,
                     "shrank from 0x800000");
        assert_succeeds(storage_truncate(s, MIB(3) + 100));
        assert_int_equal(bat_read(img, 70000, 1, &raw), VHDX_E_TRUNCATED);
        assert_int_equal(image_resolve(img, GIB(40), GIB(1), &run), VHDX_E_TRUNCATED);
        assert_int_equal(image_resolve(img, MIB(1), GIB(60), &run), VHDX_E_TRUNCATED); /* the hole is none */
        image_close(img);
        storage_close(s);
    }
}

static void every_error_while_opening_is_passed_on(void **state)
{
    for (int dirty = 0; dirty < 2; dirty++) {
        struct image_plan p = dirty ? dirty_plan() : small_plan();
        struct storage *s = build_memory_image(&p);
        struct image *img;
        unsigned nr_survived = 0;
        (void)state;
        build_block(&p, s, 3, PAYLOAD_FULLY_PRESENT, MIB(5));
        put_entry(s, &p, 3, 0, NULL);
        for (uint64_t n = 1;; n++) {
            fault_arm(&test_fault, &(struct fault_plan){.kind = FAULT_ANY, .nth = n, .error = -EIO});
            int r = open_image(s, 0, &img);
            if (fault_injected(&test_fault) == 0) {
                assert_succeeds(r);
                image_close(img);
                break;
            }
            if (r == 0) /* one copy of the headers or of the region table */
                nr_survived++;
            else
                assert_int_equal(r, -EIO);
            image_close(img);
        }
        fault_arm(&test_fault, NULL);
        assert_int_equal(nr_survived, 3);
        storage_close(s);
    }
}

/* Nor does anybody guess what a file is whose end cannot be read. */
static void a_foreign_file_that_cannot_be_read_is_an_error(void **state)
{
    struct storage *s;
    struct image *img;

    (void)state;
    assert_succeeds(storage_memory_new(NULL, 0, &s));
    assert_succeeds(storage_truncate(s, MIB(4)));
    for (uint64_t n = 1; n <= 2; n++) { /* reads: beginning, end */
        fault_arm(&test_fault, &(struct fault_plan){.kind = FAULT_READ, .nth = n, .error = -EIO});
        assert_int_equal(open_image(s, 0, &img), -EIO);
    }
    fault_arm(&test_fault, NULL);
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sound_image_opens),
        cmocka_unit_test(other_files_are_told_apart),
        cmocka_unit_test(short_files_are_truncated),
        cmocka_unit_test(files_cut_inside_a_structure_are_truncated),
        cmocka_unit_test(files_too_long_to_be_true_are_refused),
        cmocka_unit_test(any_length_behind_the_structures_will_do),
        cmocka_unit_test(a_hostile_creator_is_made_harmless),
        cmocka_unit_test(the_newer_header_counts_in_either_slot),
        cmocka_unit_test(one_good_header_is_enough),
        cmocka_unit_test(an_unreadable_header_is_as_good_as_a_damaged_one),
        cmocka_unit_test(headers_of_one_number_must_be_identical),
        cmocka_unit_test(versions_of_the_current_header_must_be_known),
        cmocka_unit_test(a_log_at_an_impossible_place),
        cmocka_unit_test(a_log_may_lie_anywhere_else),
        cmocka_unit_test(a_log_over_a_region_is_refused),
        cmocka_unit_test(a_dirty_log_is_replayed_or_refused_as_told),
        cmocka_unit_test(everything_is_read_as_it_is_after_replay),
        cmocka_unit_test(a_file_that_shrinks_while_open_is_an_error),
        cmocka_unit_test(every_error_while_opening_is_passed_on),
        cmocka_unit_test(a_foreign_file_that_cannot_be_read_is_an_error),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
