/* SPDX-License-Identifier: MIT */
/* Plans of new images and the bytes of their structures (format sections 1.4, 5.2, 7.4, 9.1, appendix B). */
#include "unit.h"

#include <errno.h>

#include "base/le.h"
#include "base/math.h"
#include "format/identifier.h"
#include "format/parent-locator.h"
#include "image/mib-set.h"
#include "ops/new-image.h"

static struct vhdx_create_options options_of(uint64_t block_size, uint32_t sector_size)
{
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;

    o.block_size = (uint32_t)block_size;
    o.logical_sector_size = sector_size;
    return o;
}

static struct new_image plan_of(const struct vhdx_create_options *o, uint64_t virtual_size)
{
    struct new_image n;

    assert_succeeds(new_image_init(&n, o));
    assert_succeeds(new_image_plan(&n, virtual_size));
    return n;
}

/* ---- places ---- */

static void windows_layout_is_the_default(void **state)
{
    static uint8_t raw[REGION_TABLE_RAW_BYTES];
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;
    struct new_image n = plan_of(&o, GIB(10));

    (void)state;
    assert_int_equal(n.values.block_size, MIB(32));
    assert_int_equal(n.values.logical_sector_size, 512);
    assert_int_equal(n.values.physical_sector_size, 4096);
    assert_int_equal(n.log_length, MIB(1));
    assert_int_equal(n.metadata_offset, MIB(2));
    assert_int_equal(n.bat_offset, MIB(3));
    assert_int_equal(n.payload_offset, MIB(4));
    assert_int_equal(n.file_length, MIB(4));
    new_image_encode_region_table(&n, raw);
    assert_int_equal(le32_get(raw + 4), 0xc66b8cae);
}

/* The table of format section 5.2. */
static void bat_regions_have_the_size_they_need(void **state)
{
    static const struct {
        uint64_t virtual_size;
        uint32_t block_mib, sector_size;
        uint64_t nr_entries;
        uint32_t region_mib;
    } rows[] = {
        {MIB(3), 2, 512, 2, 1},
        {GIB(1), 32, 512, 32, 1},
        {GIB(4), 32, 512, 128, 1},
        {GIB(4) + 512, 32, 512, 130, 1},
        {GIB(127), 32, 512, 4095, 1},
        {GIB(127) + 512, 32, 512, 4096, 1},
        {GIB(127), 2, 512, 65055, 1},
        {GIB(127), 32, 4096, 4067, 1},
        {GIB(256), 1, 512, 262207, 3},
        {TIB(1), 32, 512, 33023, 1},
        {TIB(1), 1, 4096, 1048607, 9},
        {TIB(64), 256, 512, 278527, 3},
        {TIB(64), 32, 512, 2113535, 17},
        {TIB(64), 2, 512, 33570815, 257},
        {TIB(64), 1, 512, 67125247, 513},
        {TIB(64), 1, 4096, 67110911, 513},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
        struct vhdx_create_options o = options_of(MIB(rows[i].block_mib), rows[i].sector_size);
        struct new_image n = plan_of(&o, rows[i].virtual_size);
        assert_int_equal(n.geometry.nr_bat_entries, rows[i].nr_entries);
        assert_int_equal(n.bat_length, MIB(rows[i].region_mib));
        assert_int_equal(n.payload_offset, MIB(3) + MIB(rows[i].region_mib));
    }
}

static void fixed_images_have_space_for_whole_blocks(void **state)
{
    struct vhdx_create_options o = options_of(MIB(2), 512);

    (void)state;
    o.subformat = VHDX_FIXED;
    struct new_image n = plan_of(&o, MIB(4) + 512);
    assert_true(new_image_is_fixed(&n));
    assert_int_equal(n.values.parameter_flags, PARAMETER_LEAVE_ALLOCATED);
    assert_int_equal(n.file_length, n.payload_offset + 3 * MIB(2));
}

static void a_larger_log_moves_the_rest(void **state)
{
    struct vhdx_create_options o = options_of(MIB(2), 512);

    (void)state;
    o.log_size = (uint32_t)GIB(1);
    struct new_image n = plan_of(&o, MIB(4));
    assert_int_equal(new_image_log_end(&n), MIB(1) + GIB(1));
    assert_int_equal(n.metadata_offset, MIB(1) + GIB(1));
    assert_int_equal(n.file_length, MIB(3) + GIB(1));
}

static void tables_can_lie_behind_the_payload(void **state)
{
    struct vhdx_create_options o = options_of(MIB(2), 512);
    struct new_image n;

    (void)state;
    assert_succeeds(new_image_init(&n, &o));
    assert_succeeds(new_image_plan_behind_payload(&n, MIB(20), 3));
    assert_int_equal(n.payload_offset, MIB(2));
    assert_int_equal(n.metadata_offset, MIB(8));
    assert_int_equal(n.bat_offset, MIB(9));
    assert_int_equal(n.file_length, MIB(10));
}

/* ---- what is refused ---- */

#define REFUSES(member, value, code, text)                                                                           \
    do {                                                                                                             \
        struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;                                                     \
        struct new_image n;                                                                                          \
        o.member = (value);                                                                                          \
        assert_fails(new_image_init(&n, &o), code, text);                                                            \
    } while (0)

static void impossible_options_are_refused(void **state)
{
    static const guid zero;

    (void)state;
    REFUSES(struct_bytes, 8, -EINVAL, "VHDX_CREATE_OPTIONS_INIT");
    REFUSES(subformat, VHDX_DIFFERENCING, -EINVAL, "needs a parent");
    REFUSES(parent, "parent.vhdx", -EINVAL, "no other image has one");
    REFUSES(parent_windows_path, "C:\\parent.vhdx", -EINVAL, "no other image has one");
    REFUSES(subformat, VHDX_RAW, -EINVAL, "subformat 3");
    REFUSES(preallocation, VHDX_PREALLOC_FALLOC, -EINVAL, "only fixed images");
    REFUSES(preallocation, VHDX_PREALLOC_FULL, -EINVAL, "only fixed images");
    REFUSES(preallocation, (enum vhdx_preallocation)3, -EINVAL, "no way of preallocation");
    REFUSES(block_size, (uint32_t)KIB(512), -EINVAL, "not 524288 bytes");
    REFUSES(block_size, (uint32_t)MIB(3), -EINVAL, "power of two");
    REFUSES(block_size, (uint32_t)MIB(512), -EINVAL, "256 MiB");
    REFUSES(logical_sector_size, 1024, -EINVAL, "logical sector size can be 512 or 4096 bytes, not 1024");
    REFUSES(physical_sector_size, 8192, -EINVAL, "physical sector size can be 512 or 4096 bytes, not 8192");
    REFUSES(log_size, (uint32_t)MIB(1) + 4096, -EINVAL, "multiple of 1 MiB");
    REFUSES(log_size, (uint32_t)(GIB(1) + MIB(1)), -EINVAL, "up to 1 GiB");
    REFUSES(disk_id, &zero, -EINVAL, "all zeros");
}

static void impossible_sizes_are_refused_with_the_next_possible_ones(void **state)
{
    struct vhdx_create_options o = options_of(MIB(1), 4096);
    struct new_image n;

    (void)state;
    assert_succeeds(new_image_init(&n, &o));
    assert_fails(new_image_plan(&n, 0), -EINVAL, "from one sector to 64 TiB");
    assert_fails(new_image_plan(&n, TIB(64) + 4096), -EINVAL, "not 70368744181760 bytes");
    assert_fails(new_image_plan(&n, 1000), -EINVAL, "the next valid size is 4096");
    assert_fails(new_image_plan(&n, 8192 + 512), -EINVAL, "the next valid sizes are 8192 and 12288");
    assert_fails(new_image_plan_behind_payload(&n, 1000, 1), -EINVAL, "the next valid size is 4096");
    assert_succeeds(new_image_plan(&n, 4096));
    assert_succeeds(new_image_plan(&n, TIB(64)));
}

/* ---- bytes ---- */

/* Appendix B, without the stale sixth slot; PSS and LSS as Windows has them. */
static const char windows_table[] = "6d657461646174610000050000000000000000000000000000000000000000 00"
                                    "3767a1ca36fa434db3b633f0aa44e76b 00000100 08000000 04000000 00000000"
                                    "2442a52f1bcd7648b2115dbed83bf4b8 08000100 08000000 06000000 00000000"
                                    "1dbf41816fa90947ba47f233a8faab5f 10000100 04000000 06000000 00000000"
                                    "c748a3cd5d4471449cc9e9885251c556 14000100 04000000 06000000 00000000"
                                    "ab12cabee6b2234593efc309e000c746 18000100 10000000 06000000 00000000";
static const char windows_items[] = "00000002 00000000  0000008002000000 00020000 00100000"
                                    "0102030405060708090a0b0c0d0e0f10";

static void metadata_is_as_windows_writes_it(void **state)
{
    static const guid disk_id = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;
    uint8_t wanted[256];

    (void)state;
    o.disk_id = &disk_id;
    struct new_image n = plan_of(&o, GIB(10));
    assert_int_equal(new_image_metadata_bytes(&n), 0x10028);
    uint8_t *raw = exact_bytes(0x10028);
    assert_succeeds(new_image_encode_metadata(&n, raw));
    size_t bytes = bytes_from_hex(windows_table, wanted, sizeof wanted);
    assert_int_equal(bytes, 32 + 5 * 32);
    assert_memory_equal(raw, wanted, bytes);
    for (size_t i = bytes; i < 0x10000; i++)
        assert_int_equal(raw[i], 0);
    bytes = bytes_from_hex(windows_items, wanted, sizeof wanted);
    assert_int_equal(bytes, 0x28);
    assert_memory_equal(raw + 0x10000, wanted, bytes);
    free(raw);
}

/* What making children will need. */
static void a_parent_locator_finds_its_place(void **state)
{
    static const char *const pairs[][2] = {{"parent_linkage", "{b04aefb7-d19e-4a81-b789-25b8e9445913}"},
                                           {"relative_path", ".\\parent.vhdx"}};
    uint8_t locator[1024];
    struct vhdx_create_options o = options_of(MIB(2), 512);
    struct metadata_entry e;
    struct new_image n;

    (void)state;
    assert_succeeds(new_image_init(&n, &o));
    n.values.parameter_flags |= PARAMETER_HAS_PARENT;
    n.locator = locator;
    n.locator_length = locator_encode(pairs, ARRAY_LENGTH(pairs), locator, sizeof locator);
    assert_true(n.locator_length > 0);
    assert_succeeds(new_image_plan(&n, MIB(3)));
    assert_int_equal(n.geometry.nr_bat_entries, 2049); /* 5.2, with the bitmap's entry */
    uint8_t *raw = exact_bytes(new_image_metadata_bytes(&n));
    assert_succeeds(new_image_encode_metadata(&n, raw));
    assert_int_equal(metadata_table_nr_entries(raw), 6);
    metadata_table_entry(raw, 5, &e);
    assert_int_equal(metadata_identify(&e), METADATA_PARENT_LOCATOR);
    assert_int_equal(e.offset, 0x10028);
    assert_int_equal(e.length, n.locator_length);
    assert_int_equal(e.flags, VHDX_METADATA_REQUIRED);
    assert_memory_equal(raw + e.offset, locator, e.length);
    assert_succeeds(metadata_entry_check(&e, 5, 0, n.metadata_length));
    free(raw);
}

static void headers_differ_in_their_number_only(void **state)
{
    struct vhdx_create_options o = options_of(MIB(2), 512);
    uint8_t raw[2][HEADER_RAW_BYTES];
    struct header h[2];

    (void)state;
    o.log_size = (uint32_t)MIB(3);
    struct new_image n = plan_of(&o, MIB(3));
    for (unsigned copy = 0; copy < 2; copy++) {
        new_image_encode_header(&n, copy, raw[copy]);
        assert_true(header_is_valid(raw[copy]));
        header_decode(raw[copy], &h[copy]);
        assert_int_equal(h[copy].sequence_no, copy);
        assert_int_equal(h[copy].version, 1);
        assert_int_equal(h[copy].log_offset, MIB(1));
        assert_int_equal(h[copy].log_length, MIB(3));
        assert_false(header_log_is_dirty(&h[copy]));
    }
    assert_int_equal(header_choose(raw[0], raw[1]), 1);
    assert_memory_equal(raw[0] + 16, raw[1] + 16, HEADER_RAW_BYTES - 16);
    assert_false(guid_equal(&h[0].file_write_guid, &h[0].data_write_guid));
}

static void guids_are_new_each_time_and_of_version_4(void **state)
{
    struct vhdx_create_options o = options_of(MIB(2), 512);
    struct new_image a = plan_of(&o, MIB(3)), b = plan_of(&o, MIB(3));
    char text[VHDX_GUID_TEXT_BYTES];

    (void)state;
    assert_false(guid_equal(&a.values.disk_id, &b.values.disk_id));
    assert_false(guid_equal(&a.file_write_guid, &b.file_write_guid));
    assert_false(guid_equal(&a.data_write_guid, &b.data_write_guid));
    guid_format(&a.values.disk_id, text);
    assert_int_equal(text[14], '4');
    assert_non_null(strchr("89ab", text[19]));
}

static void the_identifier_names_the_creator(void **state)
{
    uint8_t *raw = exact_bytes(IDENTIFIER_RAW_BYTES);
    char creator[1024];

    (void)state;
    memset(raw, 0xaa, IDENTIFIER_RAW_BYTES);
    new_image_encode_identifier(raw);
    assert_true(identifier_signature_valid(raw));
    assert_int_equal(identifier_creator(raw, creator, sizeof creator), 0);
    assert_string_equal(creator, "vhdx " VHDX_VERSION);
    for (size_t i = IDENTIFIER_USED_BYTES; i < IDENTIFIER_RAW_BYTES; i++)
        assert_int_equal(raw[i], 0);
    free(raw);
}

/* ---- BAT ---- */

static uint64_t entry(const uint8_t *raw, uint64_t index)
{
    return le64_get(raw + index * BAT_ENTRY_BYTES);
}

/* Entry 128 is the bitmap's of the first chunk: 4 GiB are 128 blocks. */
static void all_blocks_of_a_fixed_image_follow_each_other(void **state)
{
    struct vhdx_create_options o = options_of(MIB(32), 512);
    uint8_t raw[130 * BAT_ENTRY_BYTES];
    struct new_bat at = {0};

    (void)state;
    o.subformat = VHDX_FIXED;
    struct new_image n = plan_of(&o, GIB(4) + 512);
    assert_int_equal(n.geometry.nr_bat_entries, 130);
    assert_true(new_image_encode_bat(&n, NULL, &at, 100, raw)); /* in two pieces */
    assert_true(new_image_encode_bat(&n, NULL, &at, 30, raw + 100 * BAT_ENTRY_BYTES));
    for (uint64_t block_no = 0; block_no < 128; block_no++)
        assert_int_equal(entry(raw, block_no), (MIB(4) + block_no * MIB(32)) | PAYLOAD_FULLY_PRESENT);
    assert_int_equal(entry(raw, 128), 0);
    assert_int_equal(entry(raw, 129), (MIB(4) + 128 * MIB(32)) | PAYLOAD_FULLY_PRESENT);
    assert_int_equal(at.nr_placed, 129);
}

static void blocks_with_content_follow_each_other(void **state)
{
    struct vhdx_create_options o = options_of(MIB(32), 512);
    uint8_t raw[130 * BAT_ENTRY_BYTES];
    struct new_image n = plan_of(&o, GIB(4) + 512);
    struct new_bat at = {0};
    struct mib_set present;
    bool clash;

    (void)state;
    assert_succeeds(mib_set_init(&present, n.geometry.nr_blocks));
    assert_succeeds(mib_set_add(&present, 5, 1, &clash));
    assert_succeeds(mib_set_add(&present, 128, 1, &clash));
    assert_false(new_image_encode_bat(&n, &present, &at, 5, raw));
    assert_true(new_image_encode_bat(&n, &present, &at, 125, raw + 5 * BAT_ENTRY_BYTES));
    for (uint64_t i = 0; i < 130; i++)
        assert_int_equal(entry(raw, i), i == 5     ? MIB(4) | PAYLOAD_FULLY_PRESENT
                                        : i == 129 ? MIB(36) | PAYLOAD_FULLY_PRESENT
                                                   : 0);
    mib_set_free(&present);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_layout_is_the_default),
        cmocka_unit_test(bat_regions_have_the_size_they_need),
        cmocka_unit_test(fixed_images_have_space_for_whole_blocks),
        cmocka_unit_test(a_larger_log_moves_the_rest),
        cmocka_unit_test(tables_can_lie_behind_the_payload),
        cmocka_unit_test(impossible_options_are_refused),
        cmocka_unit_test(impossible_sizes_are_refused_with_the_next_possible_ones),
        cmocka_unit_test(metadata_is_as_windows_writes_it),
        cmocka_unit_test(a_parent_locator_finds_its_place),
        cmocka_unit_test(headers_differ_in_their_number_only),
        cmocka_unit_test(guids_are_new_each_time_and_of_version_4),
        cmocka_unit_test(the_identifier_names_the_creator),
        cmocka_unit_test(all_blocks_of_a_fixed_image_follow_each_other),
        cmocka_unit_test(blocks_with_content_follow_each_other),
    };
    return cmocka_run_group_tests_name("ops/new-image", tests, NULL, NULL);
}
