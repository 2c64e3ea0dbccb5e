/* SPDX-License-Identifier: MIT */
/* The parent locator item (format section 8.1; hostile input rows 90 to 96). */
#include "unit.h"

#include <errno.h>

#include "base/le.h"
#include "base/utf16.h"
#include "format/parent-locator.h"

/* Appendix B and section 8.2: what Windows writes into a differencing image. */
static const char windows_hex[] = "b7ef4ab09ed1814ab78925b8e9445913 0000 0500"
                                  "50000000 6c000000 1c00 4c00   b8000000 de000000 2600 5600"
                                  "34010000 4e010000 1a00 2200   70010000 86010000 1600 b200"
                                  "38020000 56020000 1e00 4c00";
static const char *const windows_pairs[][2] = {
    {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
    {"absolute_win32_path", "C:\\Projects\\dfvfs\\test_data\\fat-parent.vhdx"},
    {"relative_path", ".\\fat-parent.vhdx"},
    {"volume_path",
     "\\\\?\\Volume{5e0bd954-71b2-4bff-a928-082af7ab0f8f}\\Projects\\dfvfs\\test_data\\fat-parent.vhdx"},
    {"parent_linkage2", "{00000000-0000-0000-0000-000000000000}"},
};
static const char linkage_text[] = "f88d4d92-6fcc-408d-9bef-9b7c89f15c89";

enum { WINDOWS_BYTES = 674, ITEM_OFFSET = 0x210028, TABLE = 20, ENTRY = 12 };

/* The item in memory of exactly its size. */
static uint8_t *encode(const char *const (*pairs)[2], uint32_t nr, uint32_t *length)
{
    static uint8_t raw[MIB(1)];

    *length = locator_encode(pairs, nr, raw, sizeof raw);
    assert_int_not_equal(*length, 0);
    uint8_t *item = exact_bytes(*length);
    memcpy(item, raw, *length);
    return item;
}

static uint8_t *windows_item(uint32_t *length)
{
    return encode(windows_pairs, ARRAY_LENGTH(windows_pairs), length);
}

/* ---- good items ---- */

static void golden_item_encodes(void **state)
{
    uint8_t golden[80];
    uint32_t length;
    uint8_t *item = windows_item(&length);

    (void)state;
    assert_int_equal(length, WINDOWS_BYTES);
    assert_int_equal(bytes_from_hex(windows_hex, golden, sizeof golden), sizeof golden);
    assert_memory_equal(item, golden, sizeof golden);
    free(item);
}

static void golden_item_decodes(void **state)
{
    uint32_t length;
    uint8_t *item = windows_item(&length);
    char text[UTF8_BYTES_FOR_UNITS(200)];

    (void)state;
    assert_succeeds(locator_check(item, length, ITEM_OFFSET));
    assert_int_equal(locator_nr_pairs(item), 5);
    for (uint32_t i = 0; i < 5; i++) {
        struct locator_pair pair, found;
        locator_pair(item, i, &pair);
        assert_succeeds(locator_text(item, pair.key_offset, pair.key_length, text, sizeof text));
        assert_string_equal(text, windows_pairs[i][0]);
        assert_succeeds(locator_text(item, pair.value_offset, pair.value_length, text, sizeof text));
        assert_string_equal(text, windows_pairs[i][1]);
        assert_true(locator_find(item, windows_pairs[i][0], &found));
        assert_memory_equal(&found, &pair, sizeof pair);
    }
    free(item);
}

static void keys_are_found_exactly(void **state)
{
    static const char *const absent[] = {
        "", "parent", "parent_linkage3", "Parent_linkage", "relative_path ", "relative_pat"};
    uint32_t length;
    uint8_t *item = windows_item(&length);
    struct locator_pair pair;

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(absent); i++)
        assert_false(locator_find(item, absent[i], &pair));
    free(item);
}

static void linkage_of(const char *linkage, const char *linkage2, guid *g, guid *g2)
{
    const char *pairs[][2] = {{"parent_linkage", linkage}, {"parent_linkage2", linkage2}};
    uint32_t length;
    uint8_t *item = encode((const char *const(*)[2])pairs, linkage2 ? 2 : 1, &length);

    assert_succeeds(locator_check(item, length, ITEM_OFFSET));
    locator_linkage(item, g, g2);
    free(item);
}

static void linkage_is_parsed(void **state)
{
    guid g, g2, expected;

    (void)state;
    assert_int_equal(guid_parse(linkage_text, &expected), 0);
    linkage_of("{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}", NULL, &g, &g2);
    assert_true(guid_equal(&g, &expected));
    assert_true(guid_is_zero(&g2)); /* absent */
    linkage_of("{F88D4D92-6FCC-408D-9BEF-9B7C89F15C89}", "{00000000-0000-0000-0000-000000000000}", &g, &g2);
    assert_true(guid_equal(&g, &expected));
    assert_true(guid_is_zero(&g2));
    linkage_of("f88d4d92-6fcc-408d-9bef-9b7c89f15c89", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}", &g, &g2);
    assert_true(guid_equal(&g2, &expected));
    linkage_of("f88d4d92-6fcc-408d-9bef-9b7c89f15c89", "not a GUID", &g, &g2);
    assert_true(guid_is_zero(&g2));
}

static void text_of_any_length_and_alphabet_passes(void **state)
{
    static char longest[32767 + 1];
    const char *pairs[][2] = {
        {"parent_linkage", linkage_text}, {"\xc3\xa9\xe2\x82\xac", "\xf0\x9f\x98\x80"}, {"long", longest}};
    char *text = exact_bytes(UTF8_BYTES_FOR_UNITS(65535 / 2));
    struct locator_pair pair;
    uint32_t length;

    (void)state;
    memset(longest, 'x', sizeof longest - 1);
    uint8_t *item = encode((const char *const(*)[2])pairs, 3, &length);
    assert_succeeds(locator_check(item, length, ITEM_OFFSET));
    assert_true(locator_find(item, "long", &pair));
    assert_int_equal(pair.value_length, 65534);
    assert_succeeds(locator_text(item, pair.value_offset, pair.value_length, text, sizeof longest));
    assert_string_equal(text, longest);
    assert_fails(locator_text(item, pair.value_offset, pair.value_length, text, sizeof longest - 1),
                 -ENAMETOOLONG, "length 65534");
    locator_pair(item, 1, &pair);
    assert_succeeds(locator_text(item, pair.value_offset, pair.value_length, text, 5));
    assert_string_equal(text, pairs[1][1]);
    free(text);
    free(item);
}

static void odd_places_and_shared_bytes_are_legal(void **state)
{
    uint32_t length;
    uint8_t *item = windows_item(&length);
    uint8_t *shifted = exact_bytes(length + 1);
    guid g, g2;

    (void)state;
    memcpy(shifted, item, 80);
    memcpy(shifted + 81, item + 80, length - 80);
    for (uint32_t i = 0; i < 5; i++) {
        uint8_t *entry = shifted + TABLE + i * ENTRY;
        le32_put(entry, le32_get(entry) + 1);
        le32_put(entry + 4, le32_get(entry + 4) + 1);
    }
    /* parent_linkage2 gets the very bytes of parent_linkage's value */
    memcpy(shifted + TABLE + 4 * ENTRY + 4, shifted + TABLE + 4, 4);
    assert_succeeds(locator_check(shifted, length + 1, ITEM_OFFSET));
    locator_linkage(shifted, &g, &g2);
    assert_true(guid_equal(&g, &g2));
    free(shifted);
    free(item);
}

/* ---- violations ---- */

/* Change one field of the Windows item, then judge it. */
#define WITH(change, code, text)                                                                             \
    do {                                                                                                     \
        uint32_t length;                                                                                     \
        uint8_t *item = windows_item(&length);                                                               \
        uint8_t *entry1 = item + TABLE + ENTRY; /* absolute_win32_path, its key at 0xb8, value at 0xde */    \
        (void)entry1;                                                                                        \
        change;                                                                                              \
        assert_fails(locator_check(item, length, ITEM_OFFSET), code, text);                                  \
        free(item);                                                                                          \
    } while (0)

/* Row 90. */
static void short_items_are_refused(void **state)
{
    (void)state;
    for (uint32_t length = 0; length < TABLE; length++) {
        uint8_t *item = exact_bytes(length);
        assert_fails(locator_check(item, length, ITEM_OFFSET), VHDX_E_METADATA, "parent locator at 0x210028");
        free(item);
    }
}

/* Row 91. */
static void the_number_of_pairs_is_judged(void **state)
{
    (void)state;
    WITH(le16_put(item + 18, 0), VHDX_E_METADATA, "KeyValueCount is 0");
    WITH(le16_put(item + 18, 257), VHDX_E_LIMIT, "KeyValueCount 257");
    WITH(le16_put(item + 18, 65535), VHDX_E_LIMIT, "KeyValueCount 65535");
    WITH(le16_put(item + 18, 55), VHDX_E_METADATA, "55 entries do not fit in its 674 bytes");
    WITH(le16_put(item + 18, 54), VHDX_E_METADATA, "lies in the table of entries");

    uint8_t *item = exact_bytes(TABLE + ENTRY - 1); /* the table ends one byte behind the item */
    guid_put(item, &locator_type_vhdx);
    le16_put(item + 18, 1);
    assert_fails(locator_check(item, TABLE + ENTRY - 1, ITEM_OFFSET), VHDX_E_METADATA,
                 "1 entries do not fit");
    free(item);
}

static void as_many_pairs_as_allowed_pass(void **state)
{
    static char keys[MAX_LOCATOR_PAIRS + 1][8];
    static const char *pairs[MAX_LOCATOR_PAIRS + 1][2];
    static uint8_t raw[65536];
    uint32_t length;

    (void)state;
    for (unsigned i = 0; i <= MAX_LOCATOR_PAIRS; i++) {
        snprintf(keys[i], sizeof keys[i], "key%u", i);
        pairs[i][0] = i == 0 ? "parent_linkage" : keys[i];
        pairs[i][1] = linkage_text;
    }
    uint8_t *item = encode((const char *const(*)[2])pairs, MAX_LOCATOR_PAIRS, &length);
    assert_succeeds(locator_check(item, length, ITEM_OFFSET));
    free(item);
    assert_int_equal(locator_encode((const char *const(*)[2])pairs, MAX_LOCATOR_PAIRS + 1, raw, sizeof raw),
                     0);
}

/* Row 92. */
static void ranges_of_strings_are_judged(void **state)
{
    (void)state;
    WITH(le16_put(entry1 + 8, 0), VHDX_E_METADATA, "entry 1 at 0x210048: the key at byte 184, length 0");
    WITH(le16_put(entry1 + 8, 37), VHDX_E_METADATA, "length 37, is empty or of odd length");
    WITH(le16_put(entry1 + 10, 0), VHDX_E_METADATA, "the value at byte 222, length 0");
    WITH(le16_put(entry1 + 10, 85), VHDX_E_METADATA, "length 85, is empty or of odd length");
    WITH(le32_put(entry1, 0), VHDX_E_METADATA, "the key at byte 0, length 38, lies in the table");
    WITH(le32_put(entry1, 79), VHDX_E_METADATA, "the key at byte 79");
    WITH(le32_put(entry1 + 4, 0), VHDX_E_METADATA, "the value at byte 0, length 86, lies in the table");
    WITH(le32_put(entry1, WINDOWS_BYTES - 37), VHDX_E_METADATA,
         "the key at byte 637, length 38, leaves the item");
    WITH(le32_put(entry1, UINT32_MAX), VHDX_E_METADATA, "leaves the item");
    WITH(le32_put(entry1, UINT32_MAX - 37), VHDX_E_METADATA, "leaves the item"); /* would overflow to 0 */
    WITH(le32_put(entry1 + 4, WINDOWS_BYTES), VHDX_E_METADATA, "the value at byte 674");
    WITH(le16_put(entry1 + 10, 65534), VHDX_E_METADATA, "length 65534, leaves the item");
    WITH(length--, VHDX_E_METADATA, "entry 4 at 0x21006c: the value");
}

/* Row 93. */
static void strings_must_be_utf16(void **state)
{
    (void)state;
    WITH(le16_put(item + 0xb8, 0), VHDX_E_METADATA, "the key at byte 184, length 38, is not UTF-16");
    WITH(le16_put(item + 0xde, 0xd800), VHDX_E_METADATA, "the value at byte 222, length 86, is not UTF-16");
    WITH(le16_put(item + 0xde + 84, 0xd800), VHDX_E_METADATA, "is not UTF-16"); /* its end cuts a pair */
    WITH(le16_put(item + 0xde + 84, 0), VHDX_E_METADATA, "is not UTF-16");      /* NUL at the end */
    WITH(le16_put(item + 0xde, 0xdc00), VHDX_E_METADATA, "is not UTF-16");
}

/* Row 94. */
static void keys_must_be_unique(void **state)
{
    const char *pairs[][2] = {{"parent_linkage", linkage_text}, {"a", "1"}, {"b", "2"}, {"a", "3"}};
    uint32_t length;
    uint8_t *item = encode((const char *const(*)[2])pairs, 4, &length);

    (void)state;
    assert_fails(locator_check(item, length, ITEM_OFFSET), VHDX_E_METADATA,
                 "entries 1 and 3 have the same key");
    free(item);
    pairs[3][0] = "A"; /* case counts */
    item = encode((const char *const(*)[2])pairs, 4, &length);
    assert_succeeds(locator_check(item, length, ITEM_OFFSET));
    free(item);
}

/* Row 95. */
static void other_types_are_refused(void **state)
{
    char text[VHDX_GUID_TEXT_BYTES];

    (void)state;
    guid_format(&locator_type_vhdx, text);
    assert_string_equal(text, "b04aefb7-d19e-4a81-b789-25b8e9445913");
    for (int i = 0; i < 16; i++)
        WITH(item[i] ^= 1, VHDX_E_UNSUPPORTED, "LocatorType");
}

/* Row 96. */
static void parent_linkage_must_be_a_guid(void **state)
{
    (void)state;
    WITH(item[0x50] = 'P', VHDX_E_METADATA, "the key parent_linkage is missing");
    WITH(item[0x6c] = '(', VHDX_E_METADATA, "the value of parent_linkage at 0x210094 is not a GUID");
    WITH(le16_put(item + TABLE + 10, 74), VHDX_E_METADATA, "is not a GUID");
    WITH(le16_put(item + TABLE + 10, 78), VHDX_E_METADATA, "is not a GUID");
    WITH(le16_put(item + 0x6c + 20, 0x20ac), VHDX_E_METADATA, "is not a GUID");
}

static void no_path_is_needed_here(void **state)
{
    const char *pairs[][2] = {{"parent_linkage", linkage_text}};
    uint32_t length;
    uint8_t *item = encode((const char *const(*)[2])pairs, 1, &length);

    (void)state;
    assert_succeeds(locator_check(item, length, ITEM_OFFSET));
    free(item);
}

/* Whatever the bytes, nothing outside the item is touched, and what passes can be used. */
static void no_bytes_do_harm(void **state)
{
    uint64_t random = 4711;
    char *text = exact_bytes(UTF8_BYTES_FOR_UNITS(65535 / 2));

    (void)state;
    for (int round = 0; round < 20000; round++) {
        uint32_t length;
        uint8_t *item = windows_item(&length);
        for (uint64_t n = random_next(&random) % 4; n < 4; n++) {
            uint64_t r = random_next(&random);
            item[18 + r % 64] = (uint8_t)(r >> 32); /* count and entries */
        }
        if (locator_check(item, length, ITEM_OFFSET) == 0) {
            guid g, g2;
            locator_linkage(item, &g, &g2);
            for (uint32_t i = 0; i < locator_nr_pairs(item); i++) {
                struct locator_pair pair;
                locator_pair(item, i, &pair);
                assert_succeeds(locator_text(item, pair.key_offset, pair.key_length, text, 98302));
                assert_succeeds(locator_text(item, pair.value_offset, pair.value_length, text, 98302));
            }
        }
        free(item);
    }
    free(text);
}

/* ---- encoding ---- */

static void encode_says_when_there_is_no_room(void **state)
{
    (void)state;
    for (uint32_t room = 0; room < WINDOWS_BYTES; room++) {
        uint8_t *raw = exact_bytes(room);
        assert_int_equal(locator_encode(windows_pairs, 5, raw, room), 0);
        free(raw);
    }
    uint8_t *raw = exact_bytes(WINDOWS_BYTES);
    assert_int_equal(locator_encode(windows_pairs, 5, raw, WINDOWS_BYTES), WINDOWS_BYTES);
    free(raw);
}

static void encode_refuses_what_the_format_cannot_hold(void **state)
{
    static const char *const bad[] = {
        "",                 /* empty */
        "\x80",             /* tail without lead */
        "a\xc3",            /* lead without tail */
        "\xc3(",            /* wrong tail */
        "\xe2\x82",         /* cut short */
        "\xc0\x80",         /* overlong NUL */
        "\xc1\xbf",         /* overlong */
        "\xe0\x80\xaf",     /* overlong */
        "\xf0\x80\x80\xaf", /* overlong */
        "\xed\xa0\x80",     /* surrogate */
        "\xf4\x90\x80\x80", /* beyond Unicode */
        "\xf8\x88\x80\x80\x80",
        "\xff",
    };
    static char too_long[32768 + 1];
    static uint8_t raw[MIB(1)];

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
        const char *as_value[][2] = {{"key", bad[i]}};
        const char *as_key[][2] = {{bad[i], "value"}};
        assert_int_equal(locator_encode((const char *const(*)[2])as_value, 1, raw, sizeof raw), 0);
        assert_int_equal(locator_encode((const char *const(*)[2])as_key, 1, raw, sizeof raw), 0);
    }
    memset(too_long, 'x', sizeof too_long - 1);
    const char *pairs[][2] = {{"key", too_long}};
    assert_int_equal(locator_encode((const char *const(*)[2])pairs, 1, raw, sizeof raw), 0);
    assert_int_equal(locator_encode((const char *const(*)[2])pairs, 0, raw, sizeof raw), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_item_encodes),
        cmocka_unit_test(golden_item_decodes),
        cmocka_unit_test(keys_are_found_exactly),
        cmocka_unit_test(linkage_is_parsed),
        cmocka_unit_test(text_of_any_length_and_alphabet_passes),
        cmocka_unit_test(odd_places_and_shared_bytes_are_legal),
        cmocka_unit_test(short_items_are_refused),
        cmocka_unit_test(the_number_of_pairs_is_judged),
        cmocka_unit_test(as_many_pairs_as_allowed_pass),
        cmocka_unit_test(ranges_of_strings_are_judged),
        cmocka_unit_test(strings_must_be_utf16),
        cmocka_unit_test(keys_must_be_unique),
        cmocka_unit_test(other_types_are_refused),
        cmocka_unit_test(parent_linkage_must_be_a_guid),
        cmocka_unit_test(no_path_is_needed_here),
        cmocka_unit_test(no_bytes_do_harm),
        cmocka_unit_test(encode_says_when_there_is_no_room),
        cmocka_unit_test(encode_refuses_what_the_format_cannot_hold),
    };
    return cmocka_run_group_tests_name("format/parent-locator", tests, NULL, NULL);
}
