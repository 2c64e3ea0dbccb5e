/* SPDX-License-Identifier: MIT */
/* lib/base: checksums, GUIDs, UTF-16, arithmetic, endian loads, error text, zero detection. */
#include "unit.h"

#include <errno.h>
#include <pthread.h>

#include "base/crc32c.h"
#include "base/guid.h"
#include "base/le.h"
#include "base/math.h"
#include "base/utf16.h"
#include "base/zero.h"

/* ---- crc32c ---- */

static uint32_t crc32c(const void *data, size_t length)
{
    return crc32c_end(crc32c_feed((uint32_t)CRC32C_START, data, length));
}

static void crc32c_has_the_check_values(void **state)
{
    static const uint8_t zeros[4096];

    (void)state;
    assert_int_equal(crc32c("123456789", 9), 0xe3069283);
    assert_int_equal(crc32c(zeros, 32), 0x8a9136aa);
    assert_int_equal(crc32c(zeros, 4096), 0x98f94189);
    assert_int_equal(crc32c(zeros, 0), 0);
}

static void crc32c_can_be_fed_in_pieces(void **state)
{
    uint32_t running = (uint32_t)CRC32C_START;

    (void)state;
    running = crc32c_feed(running, "1234", 4);
    running = crc32c_feed(running, "", 0);
    running = crc32c_feed(running, "56789", 5);
    assert_int_equal(crc32c_end(running), 0xe3069283);
}

static void crc32c_takes_its_hole_as_zero(void **state)
{
    uint8_t data[64], holed[64];

    (void)state;
    for (size_t hole = 0; hole + 4 <= sizeof data; hole++) {
        for (size_t i = 0; i < sizeof data; i++)
            data[i] = holed[i] = (uint8_t)(i * 7 + 1);
        memset(holed + hole, 0, 4);
        assert_int_equal(crc32c_with_hole(data, sizeof data, hole), crc32c(holed, sizeof holed));
    }
}

/* ---- GUIDs ---- */

static const char bat_text[] = "2dc27766-f623-4200-9d64-115e9bfd4a08";
static const guid bat_guid = {
    {0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08}};

static void guid_text_is_in_mixed_order(void **state)
{
    char text[VHDX_GUID_TEXT_BYTES];

    (void)state;
    guid_format(&bat_guid, text);
    assert_string_equal(text, bat_text);
}

static void guid_parse_takes_any_case_and_braces(void **state)
{
    static const char *const texts[] = {
        "2dc27766-f623-4200-9d64-115e9bfd4a08", "2DC27766-F623-4200-9D64-115E9BFD4A08",
        "{2dc27766-f623-4200-9d64-115e9bfd4a08}", "{2Dc27766-F623-4200-9d64-115E9bFD4a08}"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
        guid g;
        assert_int_equal(guid_parse(texts[i], &g), 0);
        assert_true(guid_equal(&g, &bat_guid));
    }
}

static void guid_parse_refuses_all_else(void **state)
{
    static const char *const texts[] = {
        "",
        "{",
        "{}",
        "2dc27766-f623-4200-9d64-115e9bfd4a0",    /* short */
        "2dc27766-f623-4200-9d64-115e9bfd4a088",  /* long */
        "2dc27766-f623-4200-9d64-115e9bfd4a08 ",  /* blank behind */
        " 2dc27766-f623-4200-9d64-115e9bfd4a08",  /* blank before */
        "2dc27766f6234200-9d64-115e9bfd4a08",     /* dashes missing */
        "2dc27766-f623-4200-9d64-115e9bfd4a0g",   /* no hex digit */
        "{2dc27766-f623-4200-9d64-115e9bfd4a08",  /* brace open */
        "{2dc27766-f623-4200-9d64-115e9bfd4a08)", /* wrong brace */
        "2dc27766-f623-4200-9d64-115e9bfd4a08}",  /* brace never opened */
        "{2dc27766-f623-4200-9d64-115e9bfd4a08}}",
        "2dc27766-f623-4200-9d64",
        "2dc2776-6f623-4200-9d64-115e9bfd4a08", /* dash displaced */
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
        guid g;
        char *text = strdup(texts[i]); /* of exact length, so that reading on is seen */
        assert_int_equal(guid_parse(text, &g), -EINVAL);
        free(text);
    }
}

static void guid_zero_and_equality_look_at_all_bytes(void **state)
{
    (void)state;
    for (int i = 0; i < 16; i++) {
        guid g = {{0}}, zero = {{0}};
        assert_true(guid_is_zero(&g));
        g.bytes[i] = 1;
        assert_false(guid_is_zero(&g));
        assert_false(guid_equal(&g, &zero));
        uint8_t raw[16];
        guid_put(raw, &g);
        guid again = guid_get(raw);
        assert_true(guid_equal(&g, &again));
    }
}

/* ---- UTF-16 ---- */

/* Units as bytes on disk, in memory of exact size. */
static uint8_t *units(size_t nr, const uint16_t *from)
{
    uint8_t *p = exact_bytes(2 * nr);

    for (size_t i = 0; i < nr; i++)
        le16_put(p + 2 * i, from[i]);
    return p;
}

static void utf16_decodes_one_to_four_bytes(void **state)
{
    static const uint16_t text[] = {'a', 0xe9, 0x20ac, 0xd83d, 0xde00, 0xffff};
    char utf8[UTF8_BYTES_FOR_UNITS(ARRAY_LENGTH(text))];
    uint8_t *p = units(ARRAY_LENGTH(text), text);

    (void)state;
    assert_int_equal(utf16_decode(p, ARRAY_LENGTH(text), utf8, sizeof utf8), 0);
    assert_string_equal(utf8, "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xef\xbf\xbf");
    assert_true(utf16_is_valid(p, ARRAY_LENGTH(text)));
    assert_int_equal(utf16_decode(p, 0, utf8, sizeof utf8), 0);
    assert_string_equal(utf8, "");
    free(p);
}

static void utf16_refuses_unpaired_surrogates_and_nul(void **state)
{
    static const struct {
        size_t nr;
        uint16_t units[3];
    } bad[] = {
        {1, {0xd83d}},                 /* high at the end */
        {2, {0xd83d, 'a'}},            /* high before a letter */
        {3, {0xd83d, 0xd83d, 0xde00}}, /* high before a pair */
        {1, {0xde00}},                 /* low alone */
        {3, {'a', 0xdfff, 'b'}},       /* low in the middle */
        {3, {'a', 0, 'b'}},            /* NUL inside */
        {2, {'a', 0}},                 /* NUL at the end */
    };
    char utf8[32];

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
        uint8_t *p = units(bad[i].nr, bad[i].units);
        assert_int_equal(utf16_decode(p, bad[i].nr, utf8, sizeof utf8), -EILSEQ);
        assert_false(utf16_is_valid(p, bad[i].nr));
        free(p);
    }
}

static void utf16_decode_says_when_there_is_no_room(void **state)
{
    static const uint16_t text[] = {'a', 0x20ac};
    uint8_t *p = units(2, text);

    (void)state;
    for (size_t room = 0; room < 5; room++) {
        char *utf8 = exact_bytes(room);
        assert_int_equal(utf16_decode(p, 2, utf8, room), -ENAMETOOLONG);
        free(utf8);
    }
    char utf8[5];
    assert_int_equal(utf16_decode(p, 2, utf8, sizeof utf8), 0);
    free(p);
}

static void utf16_display_replaces_what_cannot_be_shown(void **state)
{
    static const uint16_t text[] = {'a', 0xd800, '\n', 0x202e, 0x7f, 'b', 0, 'c'};
    uint8_t *p = units(ARRAY_LENGTH(text), text);
    char utf8[64], cut[4];

    (void)state;
    assert_int_equal(utf16_display(p, ARRAY_LENGTH(text), utf8, sizeof utf8), 4);
    assert_string_equal(utf8, "a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
                              "b");
    utf16_display(p, ARRAY_LENGTH(text), cut, sizeof cut);
    assert_string_equal(cut, "a"); /* never half a character */
    free(p);
}

/* ---- arithmetic and endian loads ---- */

static void range_fits_without_overflow(void **state)
{
    (void)state;
    assert_true(range_fits(0, 0, 0));
    assert_true(range_fits(0, 10, 10));
    assert_true(range_fits(10, 0, 10));
    assert_true(range_fits(9, 1, 10));
    assert_false(range_fits(9, 2, 10));
    assert_false(range_fits(11, 0, 10));
    assert_false(range_fits(1, UINT64_MAX, 10));
    assert_false(range_fits(UINT64_MAX, 1, UINT64_MAX));
    assert_true(range_fits(0, UINT64_MAX, UINT64_MAX));
}

static void sums_and_alignment(void **state)
{
    uint64_t sum;

    (void)state;
    assert_true(add_u64(UINT64_MAX - 1, 1, &sum));
    assert_true(sum == UINT64_MAX);
    assert_false(add_u64(UINT64_MAX, 1, &sum));
    assert_true(is_power_of_two(1) && is_power_of_two(UINT64_C(1) << 63));
    assert_false(is_power_of_two(0) || is_power_of_two(3));
    assert_true(is_aligned(0, 4096) && is_aligned(8192, 4096));
    assert_false(is_aligned(1, 4096));
    assert_int_equal(align_up(4097, 4096), 8192);
    assert_int_equal(align_up(4096, 4096), 4096);
    assert_int_equal(align_down(8191, 4096), 4096);
    assert_int_equal(div_round_up(0, 7), 0);
    assert_int_equal(div_round_up(14, 7), 2);
    assert_int_equal(div_round_up(15, 7), 3);
    assert_true(div_round_up(UINT64_MAX, 1) == UINT64_MAX);
    assert_int_equal(min_u64(1, 2), 1);
    assert_int_equal(max_u64(1, 2), 2);
    assert_true(TIB(64) == UINT64_C(1) << 46);
}

static void ranges_overlap_only_when_they_share_a_byte(void **state)
{
    (void)state;
    assert_true(ranges_overlap(10, 10, 19, 5));
    assert_true(ranges_overlap(19, 5, 10, 10));
    assert_true(ranges_overlap(0, 100, 50, 1));
    assert_false(ranges_overlap(10, 10, 20, 5));
    assert_false(ranges_overlap(20, 5, 10, 10));
}

static void le_is_little_endian(void **state)
{
    static const uint8_t expected[8] = {0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01};
    uint8_t raw[9] = {0};

    (void)state;
    le64_put(raw + 1, UINT64_C(0x0123456789abcdef));
    assert_memory_equal(raw + 1, expected, 8);
    assert_true(le64_get(raw + 1) == UINT64_C(0x0123456789abcdef));
    assert_int_equal(le32_get(raw + 1), 0x89abcdef);
    assert_int_equal(le16_get(raw + 1), 0xcdef);
    le32_put(raw + 1, 0x01020304);
    assert_int_equal(le32_get(raw + 1), 0x01020304);
    le16_put(raw + 1, 0x0506);
    assert_int_equal(le16_get(raw + 1), 0x0506);
}

/* ---- error text ---- */

static void fail_keeps_code_and_text(void **state)
{
    (void)state;
    assert_int_equal(fail(VHDX_E_BAT, "entry %d is bad", 7), VHDX_E_BAT);
    assert_string_equal(error_message(), "entry 7 is bad");
    assert_int_equal(fail(VHDX_E_LOG, "again: %s", error_message()),
                     VHDX_E_LOG); /* its own text as argument */
    assert_string_equal(error_message(), "again: entry 7 is bad");
    assert_int_equal(fail_in(VHDX_E_LOG, "file %s", "x"), VHDX_E_LOG);
    assert_string_equal(error_message(), "file x: again: entry 7 is bad");
}

static void fail_errno_adds_the_reason(void **state)
{
    (void)state;
    errno = ENOENT;
    assert_int_equal(fail_errno("cannot open %s", "x"), -ENOENT);
    assert_string_equal(error_message(), "cannot open x: No such file or directory");
    errno = 0;
    assert_true(fail_errno("nothing said") < 0);
    assert_int_equal(fail_memory("the moon"), -ENOMEM);
    assert_string_equal(error_message(), "out of memory for the moon");
}

static void long_messages_are_cut(void **state)
{
    char text[3 * ERROR_TEXT_BYTES];

    (void)state;
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    fail(-EIO, "%s", text);
    assert_int_equal(strlen(error_message()), ERROR_TEXT_BYTES - 1);
    fail_in(-EIO, "%s", text);
    assert_true(strlen(error_message()) < ERROR_TEXT_BYTES);
    errno = EIO;
    fail_errno("%s", text);
    assert_true(strlen(error_message()) < ERROR_TEXT_BYTES);
    assert_non_null(strstr(error_message(), "Input/output error")); /* the reason survives */
}

static void *fail_elsewhere(void *saved)
{
    fail(-EIO, "in the other thread");
    error_save(saved);
    return NULL;
}

static void messages_belong_to_their_thread(void **state)
{
    struct error_text saved;
    pthread_t thread;

    (void)state;
    fail(-EIO, "in this thread");
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &saved), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_string_equal(error_message(), "in this thread");
    error_restore(&saved);
    assert_string_equal(error_message(), "in the other thread");
}

/* ---- zero detection ---- */

static void memory_is_zero_sees_every_byte(void **state)
{
    (void)state;
    assert_true(memory_is_zero(NULL, 0));
    for (size_t length = 1; length < 150; length += 7) {
        uint8_t *p = exact_bytes(length);
        assert_true(memory_is_zero(p, length));
        for (size_t i = 0; i < length; i++) {
            p[i] = 0x80;
            assert_false(memory_is_zero(p, length));
            p[i] = 0;
        }
        free(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc32c_has_the_check_values),
        cmocka_unit_test(crc32c_can_be_fed_in_pieces),
        cmocka_unit_test(crc32c_takes_its_hole_as_zero),
        cmocka_unit_test(guid_text_is_in_mixed_order),
        cmocka_unit_test(guid_parse_takes_any_case_and_braces),
        cmocka_unit_test(guid_parse_refuses_all_else),
        cmocka_unit_test(guid_zero_and_equality_look_at_all_bytes),
        cmocka_unit_test(utf16_decodes_one_to_four_bytes),
        cmocka_unit_test(utf16_refuses_unpaired_surrogates_and_nul),
        cmocka_unit_test(utf16_decode_says_when_there_is_no_room),
        cmocka_unit_test(utf16_display_replaces_what_cannot_be_shown),
        cmocka_unit_test(range_fits_without_overflow),
        cmocka_unit_test(sums_and_alignment),
        cmocka_unit_test(ranges_overlap_only_when_they_share_a_byte),
        cmocka_unit_test(le_is_little_endian),
        cmocka_unit_test(fail_keeps_code_and_text),
        cmocka_unit_test(fail_errno_adds_the_reason),
        cmocka_unit_test(long_messages_are_cut),
        cmocka_unit_test(messages_belong_to_their_thread),
        cmocka_unit_test(memory_is_zero_sees_every_byte),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
