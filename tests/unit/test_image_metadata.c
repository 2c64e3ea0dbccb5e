/* SPDX-License-Identifier: MIT */
/* The metadata region while an image is opened (format section 7; hostile input rows 53 to 75, 90 to 96,
 * 108). */
#include "image-test.h"

static const guid strange_id = {"strange item"};

static struct image_plan small_plan(void)
{
    struct image_plan p;

    image_plan_init(&p, MIB(16), MIB(1), 512, NULL, 0);
    return p;
}

static const char *const good_locator[][2] = {
    {"relative_path", ".\\parent.vhdx"},
    {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
};

static struct image_plan child_plan(void)
{
    struct image_plan p;

    image_plan_init(&p, MIB(16), MIB(1), 512, good_locator, ARRAY_LENGTH(good_locator));
    return p;
}

/* Open an image after nr bytes at file_offset were overwritten: it must be refused. */
static void expect_patched(const struct image_plan *p, uint64_t file_offset, uint64_t value, unsigned bytes,
                           int code, const char *text, const char *where)
{
    struct storage *s = build_memory_image(p);

    image_close(MUST_OPEN(s, 0)); /* or else the patch proves nothing */
    build_number(s, file_offset, value, bytes);
    EXPECT_REFUSED(s, 0, code, text, where);
    storage_close(s);
}

static void the_table_itself(void **state)
{
    struct image_plan p = small_plan();

    (void)state;
    expect_patched(&p, MIB(2), 'M', 1, VHDX_E_METADATA, "signature", "0x200000");
    expect_patched(&p, MIB(2) + 10, 2048, 2, VHDX_E_METADATA, "2048", "0x200000");
    expect_patched(&p, MIB(2) + 10, 0, 2, VHDX_E_METADATA, "missing", "0x200000");
    p.metadata_length = (uint32_t)MIB(128); /* row 54 */
    p.bat_offset = MIB(1024);
    p.file_length = MIB(1026);
    struct storage *s = build_memory_image(&p);
    image_close(MUST_OPEN(s, 0));
    storage_close(s);
    p.metadata_length += (uint32_t)MIB(1);
    s = build_memory_image(&p);
    EXPECT_REFUSED(s, 0, VHDX_E_LIMIT, "0x8100000", "0x200000");
    storage_close(s);
}

/* Rows 57 to 62: index 0 is File Parameters at 64 KiB of the region, index 1 Virtual Disk Size 32 bytes
 * behind. */
static void impossible_items_are_refused(void **state)
{
    struct image_plan p = small_plan();
    const uint64_t entry = build_item_entry_offset(&p, 0), other = build_item_entry_offset(&p, 1);

    (void)state;
    expect_patched(&p, entry + 16, 65535, 4, VHDX_E_METADATA, "", "0x200020");
    expect_patched(&p, entry + 16, 0, 4, VHDX_E_METADATA, "", "0x200020");
    expect_patched(&p, entry + 16, MIB(1) - 7, 4, VHDX_E_METADATA, "", "0x200020");
    expect_patched(&p, entry + 16, UINT32_MAX, 4, VHDX_E_METADATA, "", "0x200020");
    expect_patched(&p, entry + 16, UINT32_MAX - 7, 4, VHDX_E_METADATA, "",
                   "0x200020"); /* the sum is 0 in 32 bits */
    expect_patched(&p, entry + 20, MIB(1) + 1, 4, VHDX_E_METADATA, "", "0x200020");
    expect_patched(&p, entry + 20, UINT32_MAX, 4, VHDX_E_METADATA, "", "0x200020");
    expect_patched(&p, entry + 20, 0, 4, VHDX_E_METADATA, "", "0x200020");
    expect_patched(&p, other + 16, 65536 + 7, 4, VHDX_E_METADATA, "overlaps", "0x200000");
    expect_patched(&p, other + 16, 65536, 4, VHDX_E_METADATA, "overlaps", "0x200000");
    expect_patched(&p, entry, 0, 8, VHDX_E_UNSUPPORTED, "required", "0x200020"); /* no known item any more */

    struct storage *s = build_memory_image(&p); /* the very end of the region is fine */
    build_number(s, entry + 16, MIB(1) - 8, 4);
    build_number(s, MIB(3) - 8, MIB(1), 4);
    image_close(MUST_OPEN(s, 0));
    build_fill(s, entry, 0, 16);
    EXPECT_REFUSED(s, 0, VHDX_E_METADATA, "all zeros", "0x200020");
    storage_close(s);
}

static void each_item_must_be_there_and_of_its_length(void **state)
{
    struct image_plan p = small_plan();

    (void)state;
    for (unsigned k = METADATA_FILE_PARAMETERS; k < METADATA_PARENT_LOCATOR; k++) {
        uint64_t entry = build_item_entry_offset(&p, k);
        char where[32];
        snprintf(where, sizeof where, "0x%llx", (unsigned long long)entry);
        expect_patched(&p, entry + 20, metadata_rules[k].length + 1, 4, VHDX_E_METADATA,
                       metadata_rules[k].name, where);
        expect_patched(&p, entry + 20, metadata_rules[k].length - 1, 4, VHDX_E_METADATA,
                       metadata_rules[k].name, where);

        struct storage *s = build_memory_image(&p);
        build_number(s, entry + 24, VHDX_METADATA_USER, 4); /* a user item of that name is another item */
        EXPECT_REFUSED(s, 0, VHDX_E_METADATA, metadata_rules[k].name, "missing");
        build_number(s, entry + 24, 0, 4); /* flags are not what identifies it (10.4) */
        image_close(MUST_OPEN(s, 0));
        storage_close(s);
    }
}

/* Rows 68 to 73. */
static void impossible_values_are_refused(void **state)
{
    static const struct {
        enum metadata_known item;
        uint64_t value;
        unsigned bytes;
    } bad[] = {
        {METADATA_FILE_PARAMETERS, 0, 4},
        {METADATA_FILE_PARAMETERS, MIB(1) - 1, 4},
        {METADATA_FILE_PARAMETERS, KIB(512), 4},
        {METADATA_FILE_PARAMETERS, MIB(3), 4},
        {METADATA_FILE_PARAMETERS, MIB(512), 4},
        {METADATA_FILE_PARAMETERS, UINT32_MAX, 4},
        {METADATA_FILE_PARAMETERS, UINT64_C(1) << 31, 4},
        {METADATA_VIRTUAL_DISK_SIZE, 0, 8},
        {METADATA_VIRTUAL_DISK_SIZE, MIB(16) + 256, 8},
        {METADATA_VIRTUAL_DISK_SIZE, TIB(64) + 512, 8},
        {METADATA_VIRTUAL_DISK_SIZE, UINT64_MAX - 511, 8},
        {METADATA_LOGICAL_SECTOR_SIZE, 0, 4},
        {METADATA_LOGICAL_SECTOR_SIZE, 1024, 4},
        {METADATA_LOGICAL_SECTOR_SIZE, 513, 4},
        {METADATA_LOGICAL_SECTOR_SIZE, UINT32_MAX, 4},
        {METADATA_PHYSICAL_SECTOR_SIZE, 0, 4},
        {METADATA_PHYSICAL_SECTOR_SIZE, 8192, 4},
    };
    struct image_plan p = small_plan();

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++)
        expect_patched(&p, build_item_offset(&p, bad[i].item), bad[i].value, bad[i].bytes, VHDX_E_METADATA,
                       metadata_rules[bad[i].item].name, "");
    image_plan_init(&p, 5 * 4096, MIB(1), 4096, NULL, 0);
    expect_patched(&p, build_item_offset(&p, METADATA_VIRTUAL_DISK_SIZE), 5 * 4096 + 512, 8, VHDX_E_METADATA,
                   "4096", "");
}

/* Rows 53 and 76: what the geometry needs, not what the region claims. */
static void the_bat_must_be_large_enough(void **state)
{
    struct image_plan p;

    (void)state;
    image_plan_init(&p, GIB(127), MIB(1), 512, NULL, 0); /* 130048 blocks in 31 whole chunks and a part */
    assert_int_equal(p.bat_length, MIB(1));
    expect_patched(&p, build_item_offset(&p, METADATA_VIRTUAL_DISK_SIZE), GIB(129), 8, VHDX_E_BAT,
                   "1048576 bytes long", "BAT at 0x300000");
    image_plan_init(&p, MIB(131041), MIB(1), 512, NULL, 0); /* exactly 131072 entries, and one more */
    expect_patched(&p, build_item_offset(&p, METADATA_VIRTUAL_DISK_SIZE), MIB(131042), 8, VHDX_E_BAT,
                   "needs 1048584", "BAT at 0x300000");
    image_plan_init(&p, TIB(64), MIB(1), 512, NULL, 0);
    assert_int_equal(p.bat_length, MIB(513));
    struct storage *s = build_memory_image(&p);
    struct image *img = MUST_OPEN(s, 0);
    assert_int_equal(img->geometry.nr_bat_entries, 67125247);
    image_close(img);
    storage_close(s);
    p.bat_length = (uint32_t)MIB(4095); /* surplus is ignored */
    p.file_length = image_plan_blocks_offset(&p);
    s = build_memory_image(&p);
    image_close(MUST_OPEN(s, 0));
    storage_close(s);
    image_plan_init(&p, TIB(64), MIB(256), 512, NULL, 0);
    p.bat_length -= (uint32_t)MIB(1);
    p.file_length = image_plan_blocks_offset(&p);
    s = build_memory_image(&p);
    EXPECT_REFUSED(s, 0, VHDX_E_BAT, "2228216", "BAT at 0x300000");
    storage_close(s);
}

/* ---- further items (rows 61 to 66, 108) ---- */

static int open_with(const struct build_item *items, uint32_t nr)
{
    struct image_plan p = small_plan();
    struct image *img;

    p.items = items;
    p.nr_items = nr;
    p.metadata_length = (uint32_t)MIB(100);
    p.bat_offset = MIB(102);
    p.file_length = MIB(103);
    struct storage *s = build_memory_image(&p);
    int r = open_image(s, 0, &img);
    image_close(img);
    storage_close(s);
    return r;
}

static void unknown_items_are_refused_only_if_required(void **state)
{
    struct build_item item = {strange_id, 0, "abc", 3};

    (void)state;
    assert_succeeds(open_with(&item, 1));
    item.flags = VHDX_METADATA_USER | VHDX_METADATA_VIRTUAL_DISK;
    assert_succeeds(open_with(&item, 1));
    item.length = 0;
    assert_succeeds(open_with(&item, 1));
    item.flags = 0xfffffff8;
    assert_succeeds(open_with(&item, 1));
    item.flags = VHDX_METADATA_REQUIRED;
    assert_fails(open_with(&item, 1), VHDX_E_UNSUPPORTED, "0x2000c0");
    item.id = metadata_rules[METADATA_CHS].id; /* other programs' items, known to be harmless */
    assert_succeeds(open_with(&item, 1));
    item.id = metadata_rules[METADATA_PMEM_LABEL].id;
    assert_succeeds(open_with(&item, 1));
}

static void an_image_that_was_never_finished_is_refused(void **state)
{
    const struct build_item item = {metadata_rules[METADATA_INCOMPLETE].id, VHDX_METADATA_REQUIRED, NULL, 0};

    (void)state;
    assert_fails(open_with(&item, 1), VHDX_E_INCOMPLETE, "0x2000c0");
}

static void items_of_one_name_are_refused(void **state)
{
    struct build_item items[] = {{strange_id, 0, "abc", 3}, {strange_id, VHDX_METADATA_USER, "def", 3}};

    (void)state;
    assert_succeeds(open_with(items, 2)); /* the user's names are a space of their own */
    items[0].flags = VHDX_METADATA_USER | VHDX_METADATA_VIRTUAL_DISK;
    assert_fails(open_with(items, 2), VHDX_E_METADATA, "twice");
    items[0].id = metadata_rules[METADATA_VIRTUAL_DISK_ID].id;
    items[0].flags = 0;
    items[0].data = "0123456789abcdef";
    items[0].length = 16;
    assert_fails(open_with(items, 2), VHDX_E_METADATA, "twice");
    assert_non_null(strstr(error_message(), "0x200000"));
}

static void items_are_limited_in_number_and_bytes(void **state)
{
    struct build_item *items = exact_bytes(2047 * sizeof *items);
    uint8_t *big = exact_bytes(MIB(1));

    (void)state;
    for (uint32_t i = 0; i < 2047; i++) {
        items[i] = (struct build_item){{"item"}, VHDX_METADATA_USER, "x", 1};
        le32_put(items[i].id.bytes + 8, i);
    }
    assert_succeeds(open_with(items, 1024));
    assert_fails(open_with(items, 1025), VHDX_E_METADATA, "1025 user items");
    for (uint32_t i = 1024; i < 2042; i++)
        items[i].flags = 0;
    assert_succeeds(open_with(items, 2042)); /* with the five that are always there the table is full */
    for (uint32_t i = 0; i < 80; i++) {
        items[i].data = big;
        items[i].length = (uint32_t)MIB(1);
        items[i].flags = i % 2 ? VHDX_METADATA_USER : 0;
    }
    items[0].length -= 40; /* those five have so many bytes */
    assert_succeeds(open_with(items, 80));
    items[0].length++;
    assert_fails(open_with(items, 80), VHDX_E_LIMIT, "41943041 bytes");
    items[0].length--;
    items[80].data = big;
    items[80].length = 1;
    assert_fails(open_with(items, 81), VHDX_E_LIMIT, "0x200000");
    free(items);
    free(big);
}

/* ---- the parent locator ---- */

static void a_locator_goes_with_the_flag(void **state)
{
    struct image_plan p = child_plan();
    struct storage *s = build_memory_image(&p);
    struct image *img = MUST_OPEN(s, 0);

    (void)state;
    assert_true(image_has_parent(img));
    assert_non_null(img->locator);
    image_close(img);
    build_number(s, build_item_offset(&p, METADATA_FILE_PARAMETERS) + 4, 0, 4); /* superfluous: ignored */
    img = MUST_OPEN(s, 0);
    assert_false(image_has_parent(img));
    assert_null(img->locator);
    image_close(img);
    build_fill(s, build_item_offset(&p, METADATA_PARENT_LOCATOR), 0, 20); /* nor is it looked at */
    image_close(MUST_OPEN(s, 0));
    build_number(s, build_item_offset(&p, METADATA_FILE_PARAMETERS) + 4, 3, 4);
    EXPECT_REFUSED(s, 0, VHDX_E_UNSUPPORTED, "LocatorType", "0x2100a0");
    build_number(s, MIB(2) + 10, 5, 2); /* row 75: no such item */
    EXPECT_REFUSED(s, 0, VHDX_E_METADATA, "Parent Locator", "0x200000");
    storage_close(s);
}

/* Rows 90 to 96; test_format_locator.c has every way in which one can be wrong. */
static void hostile_locators_are_refused(void **state)
{
    struct image_plan p = child_plan();
    const uint64_t item = build_item_offset(&p, METADATA_PARENT_LOCATOR);

    (void)state;
    assert_int_equal(item, 0x2100a0);
    expect_patched(&p, build_item_entry_offset(&p, 5) + 20, 19, 4, VHDX_E_METADATA,
                   "parent locator at 0x2100a0", "19");
    expect_patched(&p, item + 18, 0, 2, VHDX_E_METADATA, "parent locator at 0x2100a0", "");
    expect_patched(&p, item + 18, 257, 2, VHDX_E_LIMIT, "parent locator at 0x2100a0", "257");
    expect_patched(&p, item + 18, 100, 2, VHDX_E_METADATA, "parent locator at 0x2100a0", "");
    expect_patched(&p, item + 20, UINT32_MAX, 4, VHDX_E_METADATA, "0x2100b4", "");
    expect_patched(&p, item + 28, 0xffff, 2, VHDX_E_METADATA, "0x2100b4", "");
    expect_patched(&p, item + 28, 13, 2, VHDX_E_METADATA, "odd", "0x2100b4");
    expect_patched(&p, item + 30, 0, 2, VHDX_E_METADATA, "empty", "0x2100b4");
    expect_patched(&p, item + 20 + 24, 0, 2, VHDX_E_METADATA, "UTF-16", "0x2100b4"); /* NUL in a key */
    expect_patched(&p, item + 20 + 24 + 26, 0xdc00, 2, VHDX_E_METADATA, "UTF-16",
                   "0x2100b4"); /* half a pair in a path */
    expect_patched(&p, item, 0, 1, VHDX_E_UNSUPPORTED, "LocatorType", "0x2100a0");
}

static void a_locator_needs_the_linkage(void **state)
{
    static const char *const without[][2] = {{"relative_path", "parent.vhdx"}, {"Parent_Linkage", "x"}};
    static const char *const no_guid[][2] = {{"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c8}"}};
    struct image_plan p;

    (void)state;
    image_plan_init(&p, MIB(16), MIB(1), 512, without, 2);
    struct storage *s = build_memory_image(&p);
    EXPECT_REFUSED(s, 0, VHDX_E_METADATA, "parent_linkage is missing", "0x2100a0");
    storage_close(s);
    image_plan_init(&p, MIB(16), MIB(1), 512, no_guid, 1);
    s = build_memory_image(&p);
    EXPECT_REFUSED(s, 0, VHDX_E_METADATA, "not a GUID", "0x2100a0");
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_itself),
        cmocka_unit_test(impossible_items_are_refused),
        cmocka_unit_test(each_item_must_be_there_and_of_its_length),
        cmocka_unit_test(impossible_values_are_refused),
        cmocka_unit_test(the_bat_must_be_large_enough),
        cmocka_unit_test(unknown_items_are_refused_only_if_required),
        cmocka_unit_test(an_image_that_was_never_finished_is_refused),
        cmocka_unit_test(items_of_one_name_are_refused),
        cmocka_unit_test(items_are_limited_in_number_and_bytes),
        cmocka_unit_test(a_locator_goes_with_the_flag),
        cmocka_unit_test(hostile_locators_are_refused),
        cmocka_unit_test(a_locator_needs_the_linkage),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
