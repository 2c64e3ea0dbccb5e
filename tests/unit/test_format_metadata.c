/* SPDX-License-Identifier: MIT */
/* The metadata table and the fixed items (format section 7; hostile input rows 55 to 60, 65 to 74). */
#include "unit.h"

#include "base/le.h"
#include "format/metadata.h"

/* Appendix B: what Windows writes; the sixth entry is a stale copy behind the five that count. */
static const char windows_hex[] = "6d65746164617461 0000 0500 00000000 00000000 00000000 00000000 00000000"
                                  "3767a1ca36fa434db3b633f0aa44e76b 00000100 08000000 04000000 00000000"
                                  "2442a52f1bcd7648b2115dbed83bf4b8 08000100 08000000 06000000 00000000"
                                  "1dbf41816fa90947ba47f233a8faab5f 10000100 04000000 06000000 00000000"
                                  "c748a3cd5d4471449cc9e9885251c556 14000100 04000000 06000000 00000000"
                                  "ab12cabee6b2234593efc309e000c746 18000100 10000000 06000000 00000000"
                                  "ab12cabee6b2234593efc309e000c746 18000100 10000000 06000000 00000000";

static const struct {
    enum metadata_known item;
    uint32_t offset, length, flags;
} windows_items[] = {
    {METADATA_FILE_PARAMETERS, 0x10000, 8, 4},     {METADATA_VIRTUAL_DISK_SIZE, 0x10008, 8, 6},
    {METADATA_LOGICAL_SECTOR_SIZE, 0x10010, 4, 6}, {METADATA_PHYSICAL_SECTOR_SIZE, 0x10014, 4, 6},
    {METADATA_VIRTUAL_DISK_ID, 0x10018, 16, 6},
};

static uint8_t raw[METADATA_TABLE_RAW_BYTES], again[METADATA_TABLE_RAW_BYTES];

static void windows_table(void)
{
    memset(raw, 0, sizeof raw);
    assert_int_equal(bytes_from_hex(windows_hex, raw, sizeof raw), 7 * 32);
}

/* ---- the table ---- */

static void golden_table_decodes(void **state)
{
    (void)state;
    windows_table();
    assert_succeeds(metadata_table_check(raw, MIB(2)));
    assert_true(metadata_table_reserved_is_zero(raw));
    assert_int_equal(metadata_table_nr_entries(raw), 5);
    for (uint32_t i = 0; i < 5; i++) {
        struct metadata_entry e;
        metadata_table_entry(raw, i, &e);
        assert_int_equal(metadata_identify(&e), windows_items[i].item);
        assert_int_equal(e.offset, windows_items[i].offset);
        assert_int_equal(e.length, windows_items[i].length);
        assert_int_equal(e.flags, windows_items[i].flags);
        assert_int_equal(e.reserved, 0);
        const struct metadata_rule *rule = &metadata_rules[windows_items[i].item];
        assert_int_equal(rule->length, e.length);
        assert_int_equal(rule->flags, e.flags);
        assert_succeeds(metadata_entry_check(&e, i, MIB(2) + 32 + 32 * i, MIB(1)));
    }
}

static void golden_table_encodes(void **state)
{
    struct metadata_entry entries[5];

    (void)state;
    windows_table();
    for (uint32_t i = 0; i < 5; i++)
        metadata_table_entry(raw, i, &entries[i]);
    memset(again, 0xaa, sizeof again);
    metadata_table_encode(entries, 5, again);
    memset(raw + 6 * 32, 0, 32); /* the stale entry */
    assert_memory_equal(raw, again, sizeof raw);
}

static void a_full_table_round_trips(void **state)
{
    static struct metadata_entry entries[MAX_METADATA_ITEMS];
    struct metadata_entry e;

    (void)state;
    for (uint32_t i = 0; i < MAX_METADATA_ITEMS; i++)
        entries[i] = (struct metadata_entry){{{(uint8_t)i, (uint8_t)(i >> 8), 1}}, i, i + 1, i & 7, i * 3};
    metadata_table_encode(entries, MAX_METADATA_ITEMS, raw);
    assert_succeeds(metadata_table_check(raw, 0));
    for (uint32_t i = 0; i < MAX_METADATA_ITEMS; i++) {
        metadata_table_entry(raw, i, &e);
        assert_memory_equal(&e, &entries[i], sizeof e);
    }
}

/* Row 55. */
static void the_signature_is_needed(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        windows_table();
        raw[i] ^= 0x20;
        assert_fails(metadata_table_check(raw, MIB(2)), VHDX_E_METADATA,
                     "metadata table at 0x200000: the signature");
    }
}

/* Row 56. */
static void entry_count_is_limited(void **state)
{
    (void)state;
    windows_table();
    le16_put(raw + 10, 2047);
    assert_succeeds(metadata_table_check(raw, MIB(2)));
    le16_put(raw + 10, 2048);
    assert_fails(metadata_table_check(raw, MIB(2)), VHDX_E_METADATA, "EntryCount 2048");
    le16_put(raw + 10, 65535);
    assert_fails(metadata_table_check(raw, MIB(2)), VHDX_E_METADATA, "EntryCount 65535");
}

static void reserved_fields_are_noticed(void **state)
{
    static const size_t places[] = {8, 9, 12, 31, 32 + 28, 5 * 32 + 31, /* Flags: */ 32 + 24, 5 * 32 + 27};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
        windows_table();
        raw[places[i]] |= 0x80;
        assert_false(metadata_table_reserved_is_zero(raw));
    }
    windows_table();
    raw[6 * 32 + 28] = 1; /* of the stale entry */
    assert_true(metadata_table_reserved_is_zero(raw));
}

/* ---- identities ---- */

static void known_items_have_their_guids(void **state)
{
    static const char *const ids[NR_METADATA_KNOWN] = {
        [METADATA_FILE_PARAMETERS] = "caa16737-fa36-4d43-b3b6-33f0aa44e76b",
        [METADATA_VIRTUAL_DISK_SIZE] = "2fa54224-cd1b-4876-b211-5dbed83bf4b8",
        [METADATA_VIRTUAL_DISK_ID] = "beca12ab-b2e6-4523-93ef-c309e000c746",
        [METADATA_LOGICAL_SECTOR_SIZE] = "8141bf1d-a96f-4709-ba47-f233a8faab5f",
        [METADATA_PHYSICAL_SECTOR_SIZE] = "cda348c7-445d-4471-9cc9-e9885251c556",
        [METADATA_PARENT_LOCATOR] = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c",
        [METADATA_CHS] = "da02d7bc-3d3a-423c-ac88-2a36ab21479b",
        [METADATA_PMEM_LABEL] = "10e1ae8a-4b7e-4169-a40f-cd70de928393",
        [METADATA_INCOMPLETE] = "71cc85f0-1b69-4e28-9558-c3bf83ae75d3",
    };

    (void)state;
    for (int i = 0; i < NR_METADATA_KNOWN; i++) {
        struct metadata_entry e = {.flags = VHDX_METADATA_REQUIRED};
        assert_int_equal(guid_parse(ids[i], &e.id), 0);
        assert_int_equal(metadata_identify(&e), i);
        assert_non_null(metadata_rules[i].name);
        e.flags = 0;
        assert_int_equal(metadata_identify(&e), i);
        e.flags = VHDX_METADATA_USER; /* another name space */
        assert_int_equal(metadata_identify(&e), METADATA_UNKNOWN);
        e.flags = 0;
        e.id.bytes[15]++;
        assert_int_equal(metadata_identify(&e), METADATA_UNKNOWN);
    }
}

/* ---- one entry ---- */

static const guid foreign = {{0xfe, 0xed}};

/* Rows 57 to 60. */
static void place_in_the_region_is_judged(void **state)
{
    static const struct {
        uint32_t offset, length;
        uint64_t region_length;
        const char *text; /* NULL: legal */
    } cases[] = {
        {65536, 100, MIB(1), NULL},
        {65536, MIB(1), MIB(2), NULL},
        {MIB(1) - 1, 1, MIB(1), NULL},
        {0, 0, MIB(1), NULL},
        {65535, 1, MIB(1), "Offset 0xffff lies in the metadata table"},
        {0, 1, MIB(1), "Offset 0x0 lies in the metadata table"},
        {65536, MIB(1) + 1, MIB(4), "Length 0x100001 is more than 1 MiB"},
        {65536, UINT32_MAX, MIB(4), "Length 0xffffffff is more than 1 MiB"},
        {MIB(1), 1, MIB(1), "leaves the metadata region of 0x100000 bytes"},
        {MIB(1) - 1, 2, MIB(1), "leaves the metadata region"},
        {UINT32_MAX, 2, MIB(1), "leaves the metadata region"}, /* overflows 32 bits */
        {UINT32_MAX, 1, MIB(128), "leaves the metadata region"},
        {65536, 0, MIB(1), "Length is 0, but Offset is 0x10000"},
        {1, 0, MIB(1), "Length is 0, but Offset is 0x1"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct metadata_entry e = {foreign, cases[i].offset, cases[i].length, 0, 0};
        int result = metadata_entry_check(&e, 3, 0x200080, cases[i].region_length);
        if (!cases[i].text) {
            assert_succeeds(result);
            continue;
        }
        assert_fails(result, VHDX_E_METADATA, cases[i].text);
        assert_non_null(strstr(error_message(), "entry 3 at 0x200080 (0000edfe-"));
    }
}

static void an_all_zero_id_is_refused(void **state)
{
    struct metadata_entry e = {{{0}}, 65536, 8, 0, 0};

    (void)state;
    assert_fails(metadata_entry_check(&e, 0, 0x200020, MIB(1)), VHDX_E_METADATA, "all zeros");
}

/* Row 65. */
static void unknown_required_items_are_refused(void **state)
{
    struct metadata_entry e = {foreign, 65536, 8, VHDX_METADATA_REQUIRED, 0};

    (void)state;
    assert_fails(metadata_entry_check(&e, 0, 0x200020, MIB(1)), VHDX_E_UNSUPPORTED, "required");
    e.flags |= VHDX_METADATA_USER;
    assert_fails(metadata_entry_check(&e, 0, 0x200020, MIB(1)), VHDX_E_UNSUPPORTED, "required");
    e.id = metadata_rules[METADATA_FILE_PARAMETERS].id; /* a user item of that name is not the known one */
    assert_fails(metadata_entry_check(&e, 0, 0x200020, MIB(1)), VHDX_E_UNSUPPORTED, "required");
    e.flags = VHDX_METADATA_USER | VHDX_METADATA_VIRTUAL_DISK;
    assert_succeeds(metadata_entry_check(&e, 0, 0x200020, MIB(1)));
    e.offset = 3; /* a malformed one is called malformed */
    e.flags = VHDX_METADATA_REQUIRED;
    assert_fails(metadata_entry_check(&e, 0, 0x200020, MIB(1)), VHDX_E_METADATA, "Offset");
}

static void required_items_of_openvmm_are_let_be(void **state)
{
    static const enum metadata_known items[] = {METADATA_CHS, METADATA_PMEM_LABEL};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(items); i++) {
        struct metadata_entry e = {metadata_rules[items[i]].id, 65536, 8, VHDX_METADATA_REQUIRED, 0};
        assert_succeeds(metadata_entry_check(&e, 0, 0x200020, MIB(1)));
    }
}

/* Row 66. */
static void the_mark_of_an_unfinished_file_is_refused(void **state)
{
    struct metadata_entry e = {metadata_rules[METADATA_INCOMPLETE].id, 0, 0, VHDX_METADATA_REQUIRED, 0};

    (void)state;
    assert_fails(metadata_entry_check(&e, 5, 0x2000c0, MIB(1)), VHDX_E_INCOMPLETE, "did not finish");
}

/* Rows 67 and 74. */
static void fixed_items_have_fixed_lengths(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(windows_items); i++) {
        const struct metadata_rule *rule = &metadata_rules[windows_items[i].item];
        struct metadata_entry e = {rule->id, 65536, rule->length, rule->flags, 0};
        assert_succeeds(metadata_entry_check(&e, 0, 0x200020, MIB(1)));
        e.length--;
        assert_fails(metadata_entry_check(&e, 0, 0x200020, MIB(1)), VHDX_E_METADATA, rule->name);
        e.length += 2;
        assert_fails(metadata_entry_check(&e, 0, 0x200020, MIB(1)), VHDX_E_METADATA, "Length is");
        e.length = e.offset = 0;
        assert_fails(metadata_entry_check(&e, 0, 0x200020, MIB(1)), VHDX_E_METADATA, "Length is 0, not");
    }
    struct metadata_entry locator = {metadata_rules[METADATA_PARENT_LOCATOR].id, 65536, 674, 4, 0};
    assert_succeeds(metadata_entry_check(&locator, 0, 0x200020, MIB(1)));
}

/* ---- values ---- */

static const struct metadata_values good = {
    .block_size = MIB(32),
    .parameter_flags = 0,
    .virtual_size = GIB(1),
    .disk_id = {{1, 2, 3}},
    .logical_sector_size = 512,
    .physical_sector_size = 4096,
};

static void values_round_trip(void **state)
{
    struct metadata_values decoded;

    (void)state;
    memset(&decoded, 0, sizeof decoded);
    for (size_t i = 0; i < ARRAY_LENGTH(windows_items); i++) {
        uint8_t item[16];
        uint32_t length = metadata_value_encode(windows_items[i].item, &good, item);
        assert_int_equal(length, windows_items[i].length);
        metadata_value_decode(windows_items[i].item, item, &decoded);
    }
    assert_int_equal(decoded.block_size, good.block_size);
    assert_int_equal(decoded.parameter_flags, good.parameter_flags);
    assert_int_equal(decoded.virtual_size, good.virtual_size);
    assert_true(guid_equal(&decoded.disk_id, &good.disk_id));
    assert_int_equal(decoded.logical_sector_size, good.logical_sector_size);
    assert_int_equal(decoded.physical_sector_size, good.physical_sector_size);
    assert_succeeds(metadata_values_check(&decoded));
}

static void values_lie_where_the_format_says(void **state)
{
    static const uint8_t parameters[8] = {0x00, 0x00, 0x20, 0x00, 0x02, 0x00, 0x00, 0x80};
    struct metadata_values values;

    (void)state;
    metadata_value_decode(METADATA_FILE_PARAMETERS, parameters, &values);
    assert_int_equal(values.block_size, MIB(2));
    assert_true(values.parameter_flags & PARAMETER_HAS_PARENT);
    assert_false(values.parameter_flags & PARAMETER_LEAVE_ALLOCATED);
    assert_int_equal(values.parameter_flags & ~(uint32_t)PARAMETER_KNOWN_FLAGS, 0x80000000);
}

/* Row 68. */
static void block_size_is_judged(void **state)
{
    static const uint32_t bad[] = {0,      1,        512,        MIB(1) / 2, MIB(1) + 1,
                                   MIB(3), MIB(512), 0x80000000, UINT32_MAX};
    struct metadata_values values = good;

    (void)state;
    for (uint64_t size = MIB(1); size <= MIB(256); size *= 2) {
        values.block_size = (uint32_t)size;
        assert_succeeds(metadata_values_check(&values));
    }
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
        values.block_size = bad[i];
        assert_fails(metadata_values_check(&values), VHDX_E_METADATA, "BlockSize");
    }
}

/* Rows 69 and 70. */
static void sector_sizes_are_judged(void **state)
{
    static const uint32_t bad[] = {0, 1, 511, 1024, 2048, 8192, UINT32_MAX};
    struct metadata_values values = good;

    (void)state;
    values.logical_sector_size = 4096;
    values.physical_sector_size = 512;
    assert_succeeds(metadata_values_check(&values));
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
        values = good;
        values.logical_sector_size = bad[i];
        assert_fails(metadata_values_check(&values), VHDX_E_METADATA, "Logical Sector Size");
        values = good;
        values.physical_sector_size = bad[i];
        assert_fails(metadata_values_check(&values), VHDX_E_METADATA, "Physical Sector Size");
    }
}

/* Rows 71 to 73. */
static void virtual_size_is_judged(void **state)
{
    static const uint64_t bad[] = {0, 511, 513, TIB(64) + 512, UINT64_MAX, UINT64_MAX - 511};
    struct metadata_values values = good;

    (void)state;
    values.virtual_size = TIB(64);
    assert_succeeds(metadata_values_check(&values));
    values.virtual_size = 512;
    assert_succeeds(metadata_values_check(&values));
    values.logical_sector_size = 4096;
    assert_fails(metadata_values_check(&values), VHDX_E_METADATA, "sector size 4096");
    values = good;
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
        values.virtual_size = bad[i];
        assert_fails(metadata_values_check(&values), VHDX_E_METADATA, "Virtual Disk Size");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_table_decodes),
        cmocka_unit_test(golden_table_encodes),
        cmocka_unit_test(a_full_table_round_trips),
        cmocka_unit_test(the_signature_is_needed),
        cmocka_unit_test(entry_count_is_limited),
        cmocka_unit_test(reserved_fields_are_noticed),
        cmocka_unit_test(known_items_have_their_guids),
        cmocka_unit_test(place_in_the_region_is_judged),
        cmocka_unit_test(an_all_zero_id_is_refused),
        cmocka_unit_test(unknown_required_items_are_refused),
        cmocka_unit_test(required_items_of_openvmm_are_let_be),
        cmocka_unit_test(the_mark_of_an_unfinished_file_is_refused),
        cmocka_unit_test(fixed_items_have_fixed_lengths),
        cmocka_unit_test(values_round_trip),
        cmocka_unit_test(values_lie_where_the_format_says),
        cmocka_unit_test(block_size_is_judged),
        cmocka_unit_test(sector_sizes_are_judged),
        cmocka_unit_test(virtual_size_is_judged),
    };
    return cmocka_run_group_tests_name("format/metadata", tests, NULL, NULL);
}
