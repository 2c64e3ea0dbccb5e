/* SPDX-License-Identifier: MIT */
/* The region table (format section 3; hostile input rows 44, 45, 47 to 49, 51). */
#include "unit.h"

#include "base/crc32c.h"
#include "base/le.h"
#include "format/region-table.h"

/* Appendix B: what Windows writes, checksum 0xC66B8CAE. */
static const char windows_hex[] =
    "72 65 67 69 ae 8c 6b c6 02 00 00 00 00 00 00 00"
    "66 77 c2 2d 23 f6 00 42 9d 64 11 5e 9b fd 4a 08 00 00 30 00 00 00 00 00 00 00 10 00 01 00 00 00"
    "06 a2 7c 8b 90 47 9a 4b b8 fe 57 5f 05 0f 88 6e 00 00 20 00 00 00 00 00 00 00 10 00 01 00 00 00";

static uint8_t raw[REGION_TABLE_RAW_BYTES], again[REGION_TABLE_RAW_BYTES];

static void windows_table(void)
{
    memset(raw, 0, sizeof raw);
    assert_int_equal(bytes_from_hex(windows_hex, raw, sizeof raw), 80);
}

static void correct_checksum(void)
{
    le32_put(raw + 4, crc32c_with_hole(raw, sizeof raw, 4));
}

static struct region bat(uint64_t file_offset, uint32_t required_flags)
{
    return (struct region){region_id_bat, file_offset, MIB(1), required_flags};
}

static struct region metadata(uint64_t file_offset, uint32_t required_flags)
{
    return (struct region){region_id_metadata, file_offset, MIB(1), required_flags};
}

static struct region unknown(void)
{
    return (struct region){{{0xde, 0xad}}, MIB(4), MIB(1), 0};
}

static void golden_table_decodes(void **state)
{
    struct region r;
    char text[VHDX_GUID_TEXT_BYTES];

    (void)state;
    windows_table();
    assert_true(region_table_is_valid(raw));
    assert_true(region_table_reserved_is_zero(raw));
    assert_int_equal(region_table_nr_entries(raw), 2);
    region_table_entry(raw, 0, &r);
    assert_true(guid_equal(&r.id, &region_id_bat));
    assert_int_equal(r.file_offset, MIB(3));
    assert_int_equal(r.length, MIB(1));
    assert_int_equal(r.required_flags, REGION_REQUIRED);
    region_table_entry(raw, 1, &r);
    assert_true(guid_equal(&r.id, &region_id_metadata));
    assert_int_equal(r.file_offset, MIB(2));
    assert_true(region_is_known(&r));
    guid_format(&region_id_bat, text);
    assert_string_equal(text, "2dc27766-f623-4200-9d64-115e9bfd4a08");
    guid_format(&region_id_metadata, text);
    assert_string_equal(text, "8b7ca206-4790-4b9a-b8fe-575f050f886e");
}

static void golden_tables_encode(void **state)
{
    (void)state;
    windows_table();
    memset(again, 0xaa, sizeof again);
    region_table_encode((struct region[]){bat(MIB(3), 1), metadata(MIB(2), 1)}, 2, again);
    assert_memory_equal(raw, again, sizeof raw);

    region_table_encode((struct region[]){bat(MIB(2), 0), metadata(MIB(3), 0)}, 2, again); /* QEMU */
    assert_int_equal(le32_get(again + 4), 0x2c6fce83);
    region_table_encode((struct region[]){metadata(MIB(2), 1), bat(MIB(3), 1)}, 2, again); /* Disk2vhd */
    assert_int_equal(le32_get(again + 4), 0x1c142859);
}

/* Row 44: the checksum covers all 64 KiB. */
static void every_byte_counts_for_validity(void **state)
{
    (void)state;
    windows_table();
    for (size_t i = 0; i < sizeof raw; i += i < 128 ? 1 : 509) {
        raw[i] ^= 1;
        assert_false(region_table_is_valid(raw));
        raw[i] ^= 1;
    }
    raw[sizeof raw - 1] = 1;
    assert_false(region_table_is_valid(raw));
    correct_checksum();
    assert_true(region_table_is_valid(raw)); /* space behind the entries may hold anything */
    assert_true(region_table_reserved_is_zero(raw));
    raw[0] = 'R';
    correct_checksum();
    assert_false(region_table_is_valid(raw));
}

/* Row 45. */
static void entry_count_is_limited(void **state)
{
    struct region r;

    (void)state;
    memset(raw, 0, sizeof raw);
    memcpy(raw, "regi", 4);
    le32_put(raw + 8, 2047);
    le64_put(raw + 16 + 2046 * 32 + 16, MIB(77));
    correct_checksum();
    assert_true(region_table_is_valid(raw));
    region_table_entry(raw, 2046, &r);
    assert_int_equal(r.file_offset, MIB(77));

    static const uint32_t too_many[] = {2048, 0x10000, 0x80000000, UINT32_MAX};
    for (size_t i = 0; i < ARRAY_LENGTH(too_many); i++) {
        le32_put(raw + 8, too_many[i]);
        correct_checksum();
        assert_false(region_table_is_valid(raw));
    }
}

static void reserved_fields_are_noticed(void **state)
{
    (void)state;
    windows_table();
    raw[12] = 1; /* Reserved */
    assert_false(region_table_reserved_is_zero(raw));
    windows_table();
    raw[16 + 32 + 31] = 0x80; /* bit 31 of the second entry's Required */
    assert_false(region_table_reserved_is_zero(raw));
    windows_table();
    raw[16 + 28] = 0; /* QEMU leaves the bit itself away */
    assert_true(region_table_reserved_is_zero(raw));
}

static void good_regions_pass(void **state)
{
    struct region r = bat(MIB(3), 1);

    (void)state;
    assert_succeeds(region_check(&r, 0, 0x30000, MIB(4)));
    r = metadata(MIB(1), 0);
    assert_succeeds(region_check(&r, 0, 0x30000, MIB(2)));
    r = unknown();
    assert_succeeds(region_check(&r, 0, 0x30000, MIB(5)));
    assert_succeeds(region_check(&r, 0, 0x30000, MIB(1))); /* only known ones must be inside the file */
}

/* Rows 47 to 49. */
static void impossible_regions_are_refused(void **state)
{
    static const struct {
        uint64_t file_offset;
        uint32_t length;
        int code;
        const char *text;
    } cases[] = {
        {MIB(3) + 1, MIB(1), VHDX_E_REGION, "FileOffset 0x300001 is not a multiple"},
        {MIB(3) + 65536, MIB(1), VHDX_E_REGION, "FileOffset 0x310000 is not a multiple"},
        {0, MIB(1), VHDX_E_REGION, "FileOffset 0x0 lies in the header area"},
        {MIB(3), 0, VHDX_E_REGION, "Length 0x0 is zero"},
        {MIB(3), MIB(1) - 1, VHDX_E_REGION, "Length 0xfffff is zero or not"},
        {MIB(3), 65536, VHDX_E_REGION, "Length 0x10000 is zero or not"},
        {UINT64_MAX - MIB(1) + 1, MIB(1), VHDX_E_REGION, "beyond what any file"},
        {UINT64_MAX - MIB(1) + 1, MIB(2), VHDX_E_REGION, "beyond what any file"},
        {UINT64_C(1) << 63, MIB(1), VHDX_E_REGION, "beyond what any file"},
        {INT64_MAX - MIB(1) + 1, MIB(1), VHDX_E_REGION, "beyond what any file"},
        {MIB(7), MIB(2), VHDX_E_TRUNCATED, "the end of the file at 0x800000"},
        {MIB(8), MIB(1), VHDX_E_TRUNCATED, "the region at 0x800000"},
        {TIB(1), MIB(1), VHDX_E_TRUNCATED, "the region at 0x10000000000"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct region r = bat(cases[i].file_offset, 1);
        r.length = cases[i].length;
        assert_fails(region_check(&r, 1, 0x40000, MIB(8)), cases[i].code, cases[i].text);
        assert_non_null(strstr(error_message(), "entry 1 at 0x40030 (BAT)"));
        r.id.bytes[0]++; /* an unknown region is judged alike, but for the end of the file */
        if (cases[i].code == VHDX_E_REGION)
            assert_fails(region_check(&r, 1, 0x40000, MIB(8)), cases[i].code, cases[i].text);
    }
}

/* Row 51. */
static void unknown_required_regions_are_refused(void **state)
{
    struct region r = unknown();

    (void)state;
    assert_false(region_is_known(&r));
    r.required_flags = REGION_REQUIRED;
    assert_fails(region_check(&r, 0, 0x30000, MIB(8)), VHDX_E_UNSUPPORTED, "0000adde-0000-");
    r.required_flags = 0xfffffffe; /* other bits do not make it required */
    assert_succeeds(region_check(&r, 0, 0x30000, MIB(8)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_table_decodes),
        cmocka_unit_test(golden_tables_encode),
        cmocka_unit_test(every_byte_counts_for_validity),
        cmocka_unit_test(entry_count_is_limited),
        cmocka_unit_test(reserved_fields_are_noticed),
        cmocka_unit_test(good_regions_pass),
        cmocka_unit_test(impossible_regions_are_refused),
        cmocka_unit_test(unknown_required_regions_are_refused),
    };
    return cmocka_run_group_tests_name("format/region-table", tests, NULL, NULL);
}
