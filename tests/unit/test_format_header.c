/* SPDX-License-Identifier: MIT */
/* The file headers (format section 2; hostile input rows 5 to 16). */
#include "unit.h"

#include "base/crc32c.h"
#include "base/le.h"
#include "format/header.h"

/* Appendix B: the current header of an image that Windows never closed. */
static const char golden_hex[] = "68 65 61 64 bf 95 9a ef 09 00 00 00 00 00 00 00"
                                 "bc 91 87 b9 d8 45 5b 44 ad e6 5c be 55 0f 22 90"
                                 "b8 9d bc 8f fd 2c b8 45 96 88 1c 6f ed bc 72 30"
                                 "3c 74 fc e6 ed 81 e8 4f bf 54 69 8e d5 7b a0 b8"
                                 "00 00 01 00 00 00 10 00 00 00 10 00 00 00 00 00";

static void golden(uint8_t raw[HEADER_RAW_BYTES])
{
    memset(raw, 0, HEADER_RAW_BYTES);
    assert_int_equal(bytes_from_hex(golden_hex, raw, HEADER_RAW_BYTES), 80);
}

/* A legal header with a clean log. */
static struct header good(void)
{
    return (struct header){.sequence_no = 7, .version = 1, .log_length = MIB(1), .log_offset = MIB(1)};
}

static struct header good_dirty(void)
{
    struct header h = good();
    h.log_guid.bytes[5] = 1;
    return h;
}

static void golden_header_decodes(void **state)
{
    uint8_t raw[HEADER_RAW_BYTES];
    struct header h;
    char text[VHDX_GUID_TEXT_BYTES];

    (void)state;
    golden(raw);
    assert_true(header_is_valid(raw));
    header_decode(raw, &h);
    assert_int_equal(h.sequence_no, 9);
    guid_format(&h.file_write_guid, text);
    assert_string_equal(text, "b98791bc-45d8-445b-ade6-5cbe550f2290");
    guid_format(&h.data_write_guid, text);
    assert_string_equal(text, "8fbc9db8-2cfd-45b8-9688-1c6fedbc7230");
    guid_format(&h.log_guid, text);
    assert_string_equal(text, "e6fc743c-81ed-4fe8-bf54-698ed57ba0b8");
    assert_int_equal(h.log_version, 0);
    assert_int_equal(h.version, 1);
    assert_int_equal(h.log_length, 0x100000);
    assert_int_equal(h.log_offset, 0x100000);
    assert_true(h.reserved_is_zero);
    assert_true(header_log_is_dirty(&h));
    assert_succeeds(header_check_version(&h));
    assert_succeeds(header_check_log(&h, MIB(36)));
}

static void golden_header_encodes(void **state)
{
    uint8_t raw[HEADER_RAW_BYTES], again[HEADER_RAW_BYTES];
    struct header h;

    (void)state;
    golden(raw);
    header_decode(raw, &h);
    memset(again, 0xaa, sizeof again);
    header_encode(&h, again);
    assert_memory_equal(raw, again, sizeof raw);
}

/* Row 5, and row 6: the checksum covers every one of the 4096 bytes. */
static void every_byte_counts_for_validity(void **state)
{
    uint8_t raw[HEADER_RAW_BYTES];

    (void)state;
    golden(raw);
    for (size_t i = 0; i < sizeof raw; i++) {
        raw[i] ^= 0x10;
        assert_false(header_is_valid(raw));
        raw[i] ^= 0x10;
    }
    assert_true(header_is_valid(raw));
}

static void a_right_checksum_does_not_replace_the_signature(void **state)
{
    uint8_t raw[HEADER_RAW_BYTES];

    (void)state;
    golden(raw);
    raw[0] = 'H';
    le32_put(raw + 4, crc32c_with_hole(raw, sizeof raw, 4));
    assert_false(header_is_valid(raw));
}

static void reserved_bytes_are_noticed_but_legal(void **state)
{
    static const size_t places[] = {80, 2000, 4095};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
        uint8_t raw[HEADER_RAW_BYTES];
        struct header h;
        golden(raw);
        raw[places[i]] = 1;
        le32_put(raw + 4, crc32c_with_hole(raw, sizeof raw, 4));
        assert_true(header_is_valid(raw));
        header_decode(raw, &h);
        assert_false(h.reserved_is_zero);
    }
}

/* ---- choosing (2.2) ---- */

static void encode_sequence(uint64_t sequence_no, uint8_t raw[HEADER_RAW_BYTES])
{
    struct header h = good();

    h.sequence_no = sequence_no;
    header_encode(&h, raw);
}

static void the_higher_sequence_number_is_current(void **state)
{
    static const uint64_t pairs[][2] = {
        {0, 1}, {14, 15}, {5, UINT64_C(1) << 63}, {0xffffffff, 0x100000000}, {1, UINT64_MAX}};
    uint8_t low[HEADER_RAW_BYTES], high[HEADER_RAW_BYTES];

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(pairs); i++) {
        encode_sequence(pairs[i][0], low);
        encode_sequence(pairs[i][1], high);
        assert_int_equal(header_choose(low, high), 1);
        assert_int_equal(header_choose(high, low), 0);
    }
}

static void one_valid_copy_is_enough(void **state)
{
    uint8_t a[HEADER_RAW_BYTES], b[HEADER_RAW_BYTES];

    (void)state;
    encode_sequence(5, a);
    encode_sequence(6, b);
    b[100] = 1; /* breaks the checksum of the newer one */
    assert_int_equal(header_choose(a, b), 0);
    assert_int_equal(header_choose(b, a), 1);
    assert_int_equal(header_choose(a, NULL), 0);
    assert_int_equal(header_choose(NULL, a), 1);
}

static void no_valid_copy_is_an_error(void **state)
{
    uint8_t a[HEADER_RAW_BYTES], b[HEADER_RAW_BYTES];

    (void)state;
    encode_sequence(5, a);
    memset(b, 0, sizeof b);
    a[100] = 1;
    assert_fails(header_choose(a, b), VHDX_E_HEADER,
                 "copy 1 at 0x10000 has a wrong checksum, copy 2 at 0x20000 lacks the signature");
    assert_fails(header_choose(NULL, b), VHDX_E_HEADER, "copy 1 at 0x10000 cannot be read");
    assert_fails(header_choose(NULL, NULL), VHDX_E_HEADER, "copy 2 at 0x20000 cannot be read");
}

/* Row 7; Disk2vhd writes two equal headers (10.2). */
static void equal_sequence_numbers_need_equal_bytes(void **state)
{
    uint8_t a[HEADER_RAW_BYTES], b[HEADER_RAW_BYTES];
    struct header h = good();

    (void)state;
    encode_sequence(1, a);
    encode_sequence(1, b);
    assert_int_equal(header_choose(a, b), 0);
    h.sequence_no = 1;
    h.data_write_guid.bytes[0] = 1;
    header_encode(&h, b);
    assert_fails(header_choose(a, b), VHDX_E_HEADER, "both have sequence number 1");
}

/* ---- judging ---- */

/* Row 9. */
static void other_versions_are_refused(void **state)
{
    static const uint16_t versions[] = {0, 2, 0x100, 0xffff};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(versions); i++) {
        struct header h = good();
        h.version = versions[i];
        assert_fails(header_check_version(&h), VHDX_E_UNSUPPORTED, "Version is");
    }
}

/* Row 10. */
static void log_version_counts_only_for_a_dirty_log(void **state)
{
    struct header h = good();

    (void)state;
    h.log_version = 1;
    assert_succeeds(header_check_version(&h));
    h = good_dirty();
    assert_succeeds(header_check_version(&h));
    h.log_version = 1;
    assert_fails(header_check_version(&h), VHDX_E_UNSUPPORTED, "LogVersion is 1");
}

/* Row 11. */
static void a_log_of_no_length_must_be_clean(void **state)
{
    struct header h = good();

    (void)state;
    h.log_length = 0;
    assert_succeeds(header_check_log(&h, MIB(2)));
    h.log_offset = 12345; /* means nothing then */
    assert_succeeds(header_check_log(&h, MIB(2)));
    h = good_dirty();
    h.log_length = 0;
    assert_fails(header_check_log(&h, MIB(2)), VHDX_E_HEADER, "LogLength is 0");
}

/* Rows 12 to 16, for clean and dirty logs alike. */
static void log_place_is_judged(void **state)
{
    static const struct {
        uint64_t offset;
        uint32_t length;
        uint64_t file_length;
        int code;
        const char *text;
    } cases[] = {
        {MIB(1), MIB(1), MIB(2), 0, ""},
        {MIB(1), GIB(1), GIB(1) + MIB(1), 0, ""},
        {MIB(1) + 4096, MIB(1), MIB(9), VHDX_E_HEADER, "LogOffset 0x101000 is not a multiple"},
        {0, MIB(1), MIB(9), VHDX_E_HEADER, "LogOffset 0x0"},
        {MIB(1), MIB(1) + 4096, MIB(9), VHDX_E_HEADER, "LogLength 0x101000 is not a multiple"},
        {MIB(1), 4096, MIB(9), VHDX_E_HEADER, "LogLength 0x1000"},
        {MIB(1), GIB(1) + MIB(1), GIB(9), VHDX_E_LIMIT, "LogLength 0x40100000"},
        {MIB(1), 0xffffffff, GIB(9), VHDX_E_LIMIT, "LogLength 0xffffffff"}, /* limit before alignment */
        {MIB(1), MIB(1), MIB(2) - 1, VHDX_E_TRUNCATED, "the end of the file at 0x1fffff"},
        {MIB(2), MIB(1), MIB(2), VHDX_E_TRUNCATED, "the log at 0x200000"},
        {MIB(3), MIB(1), MIB(2), VHDX_E_TRUNCATED, "the log at 0x300000"},
        {UINT64_C(1) << 63, MIB(1), MIB(9), VHDX_E_HEADER, "LogOffset 0x8000000000000000"},
        {UINT64_MAX - MIB(1) + 1, MIB(1), MIB(9), VHDX_E_HEADER, "LogOffset 0xfffffffffff00000"},
        {INT64_MAX - MIB(1) + 1, MIB(1), MIB(9), VHDX_E_TRUNCATED, "the log at 0x7ffffffffff00000"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct header headers[2] = {good(), good_dirty()};
        for (size_t dirty = 0; dirty < 2; dirty++) {
            headers[dirty].log_offset = cases[i].offset;
            headers[dirty].log_length = cases[i].length;
            int result = header_check_log(&headers[dirty], cases[i].file_length);
            if (cases[i].code == 0)
                assert_succeeds(result);
            else
                assert_fails(result, cases[i].code, cases[i].text);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_header_decodes),
        cmocka_unit_test(golden_header_encodes),
        cmocka_unit_test(every_byte_counts_for_validity),
        cmocka_unit_test(a_right_checksum_does_not_replace_the_signature),
        cmocka_unit_test(reserved_bytes_are_noticed_but_legal),
        cmocka_unit_test(the_higher_sequence_number_is_current),
        cmocka_unit_test(one_valid_copy_is_enough),
        cmocka_unit_test(no_valid_copy_is_an_error),
        cmocka_unit_test(equal_sequence_numbers_need_equal_bytes),
        cmocka_unit_test(other_versions_are_refused),
        cmocka_unit_test(log_version_counts_only_for_a_dirty_log),
        cmocka_unit_test(a_log_of_no_length_must_be_clean),
        cmocka_unit_test(log_place_is_judged),
    };
    return cmocka_run_group_tests_name("format/header", tests, NULL, NULL);
}
