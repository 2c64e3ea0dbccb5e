/* SPDX-License-Identifier: MIT */
/* Log entries (format sections 4.2 to 4.4; hostile input rows 18 to 21, 23, 25, 27, 29 to 34). */
#include "unit.h"

#include "base/crc32c.h"
#include "base/le.h"
#include "format/log-entry.h"

/* Section 4.3: an entry of an image that Windows 10 never closed, at log offset 0x7000. */
static const char golden_header_hex[] = "6c 6f 67 65  9f b1 67 a9  00 20 00 00  00 50 00 00"
                                        "57 e5 3f 06 64 a2 1c 01   01 00 00 00  00 00 00 00"
                                        "3c 74 fc e6 ed 81 e8 4f bf 54 69 8e d5 7b a0 b8"
                                        "00 00 40 02 00 00 00 00   00 00 40 02 00 00 00 00";
static const char golden_descriptor_hex[] = "64 65 73 63  00 00 00 00  06 00 40 00 00 00 00 00"
                                            "00 00 30 00 00 00 00 00   57 e5 3f 06 64 a2 1c 01";
static const char golden_log_guid[] = "e6fc743c-81ed-4fe8-bf54-698ed57ba0b8";
#define GOLDEN_SEQUENCE_NO UINT64_C(0x011ca264063fe557)

enum { GOLDEN_BYTES = 8192 };

/* The page that it carries: block 0 fully present at 4 MiB, blocks 3, 9 and 31 zero. */
static void golden_page(uint8_t page[PAGE_BYTES])
{
    memset(page, 0, PAGE_BYTES);
    le64_put(page, 0x400006);
    page[8 * 3] = page[8 * 9] = page[8 * 31] = 2;
}

static struct log_entry_header golden_header(void)
{
    struct log_entry_header h = {
        .checksum = 0xa967b19f,
        .entry_length = GOLDEN_BYTES,
        .tail = 0x5000,
        .sequence_no = GOLDEN_SEQUENCE_NO,
        .nr_descriptors = 1,
        .flushed_file_offset = MIB(36),
        .last_file_offset = MIB(36),
    };
    assert_int_equal(guid_parse(golden_log_guid, &h.log_guid), 0);
    return h;
}

static struct log_descriptor golden_descriptor(void)
{
    return (struct log_descriptor){
        .kind = LOG_DESCRIPTOR_DATA,
        .file_offset = MIB(3),
        .length = PAGE_BYTES,
        .sequence_no = GOLDEN_SEQUENCE_NO,
        .leading = {6, 0, 0x40},
    };
}

/* ---- golden bytes ---- */

static void golden_entry_decodes(void **state)
{
    uint8_t raw[LOG_HEADER_BYTES], raw_descriptor[LOG_DESCRIPTOR_BYTES];
    struct log_entry_header h, expected = golden_header();
    struct log_descriptor d, expected_descriptor = golden_descriptor();

    (void)state;
    assert_int_equal(bytes_from_hex(golden_header_hex, raw, sizeof raw), sizeof raw);
    assert_true(log_entry_header_decode(raw, &h));
    assert_int_equal(h.checksum, expected.checksum);
    assert_int_equal(h.entry_length, expected.entry_length);
    assert_int_equal(h.tail, expected.tail);
    assert_true(h.sequence_no == expected.sequence_no);
    assert_int_equal(h.nr_descriptors, expected.nr_descriptors);
    assert_int_equal(h.reserved, 0);
    assert_true(guid_equal(&h.log_guid, &expected.log_guid));
    assert_int_equal(h.flushed_file_offset, expected.flushed_file_offset);
    assert_int_equal(h.last_file_offset, expected.last_file_offset);
    assert_true(log_entry_header_plausible(&h, &expected.log_guid, MIB(1)));

    assert_int_equal(bytes_from_hex(golden_descriptor_hex, raw_descriptor, sizeof raw_descriptor),
                     sizeof raw_descriptor);
    assert_true(log_descriptor_decode(raw_descriptor, &d));
    assert_int_equal(d.kind, LOG_DESCRIPTOR_DATA);
    assert_int_equal(d.file_offset, expected_descriptor.file_offset);
    assert_int_equal(d.length, PAGE_BYTES);
    assert_true(d.sequence_no == GOLDEN_SEQUENCE_NO);
    assert_memory_equal(d.leading, expected_descriptor.leading, 8);
    assert_memory_equal(d.trailing, expected_descriptor.trailing, 4);
    assert_succeeds(log_descriptor_check(&d, 0x107040, MIB(1), MIB(1), MIB(36)));
}

/* Built from its values, the entry has the bytes and the checksum that Windows wrote. */
static void golden_entry_encodes(void **state)
{
    static uint8_t entry[GOLDEN_BYTES];
    uint8_t expected[LOG_HEADER_BYTES + LOG_DESCRIPTOR_BYTES], page[PAGE_BYTES], rebuilt[PAGE_BYTES];
    struct log_entry_header h = golden_header();
    struct log_descriptor d = golden_descriptor();

    (void)state;
    golden_page(page);
    log_entry_header_encode(&h, entry);
    log_descriptor_encode(&d, entry + LOG_HEADER_BYTES);
    log_data_sector_encode(page, GOLDEN_SEQUENCE_NO, entry + LOG_SECTOR_BYTES);
    assert_int_equal(le32_get(entry + LOG_CHECKSUM_AT), 0);
    assert_int_equal(crc32c_with_hole(entry, sizeof entry, LOG_CHECKSUM_AT), h.checksum);
    le32_put(entry + LOG_CHECKSUM_AT, h.checksum);

    bytes_from_hex(golden_header_hex, expected, sizeof expected);
    bytes_from_hex(golden_descriptor_hex, expected + LOG_HEADER_BYTES, LOG_DESCRIPTOR_BYTES);
    assert_memory_equal(entry, expected, sizeof expected);
    static const uint8_t first[8] = {0x64, 0x61, 0x74, 0x61, 0x64, 0xa2, 0x1c, 0x01};
    static const uint8_t last[4] = {0x57, 0xe5, 0x3f, 0x06};
    assert_memory_equal(entry + 4096, first, sizeof first);
    assert_memory_equal(entry + 4096 + 4092, last, sizeof last);

    assert_true(log_data_sector_is_valid(entry + LOG_SECTOR_BYTES, GOLDEN_SEQUENCE_NO));
    log_page_rebuild(entry + LOG_SECTOR_BYTES, d.leading, d.trailing, rebuilt);
    assert_memory_equal(rebuilt, page, sizeof page);
}

/* ---- the entry header ---- */

static void entry_header_round_trips(void **state)
{
    struct log_entry_header h = {0,
                                 0x11223000,
                                 0x44556000,
                                 UINT64_C(0x8877665544332211),
                                 0x99aabbcc,
                                 0xddeeff00,
                                 {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}},
                                 MIB(77),
                                 TIB(5)};
    struct log_entry_header again;
    uint8_t raw[LOG_HEADER_BYTES], raw_again[LOG_HEADER_BYTES];

    (void)state;
    memset(raw, 0xaa, sizeof raw);
    log_entry_header_encode(&h, raw);
    assert_true(log_entry_header_decode(raw, &again));
    log_entry_header_encode(&again, raw_again);
    assert_memory_equal(raw, raw_again, sizeof raw);
    assert_int_equal(again.entry_length, h.entry_length);
    assert_int_equal(again.tail, h.tail);
    assert_true(again.sequence_no == h.sequence_no);
    assert_int_equal(again.nr_descriptors, h.nr_descriptors);
    assert_int_equal(again.reserved, h.reserved);
    assert_true(guid_equal(&again.log_guid, &h.log_guid));
    assert_true(again.flushed_file_offset == h.flushed_file_offset);
    assert_true(again.last_file_offset == h.last_file_offset);
}

/* E1. */
static void another_signature_is_no_entry(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct log_entry_header h;
        uint8_t raw[LOG_HEADER_BYTES];
        bytes_from_hex(golden_header_hex, raw, sizeof raw);
        raw[i] ^= 1;
        assert_false(log_entry_header_decode(raw, &h));
    }
}

/* E2 to E6: rows 23, 18, 20, 21, 19.  The log is 1 MiB long. */
static void implausible_headers_are_no_entries(void **state)
{
#define IMPLAUSIBLE(change)                                                                                  \
    do {                                                                                                     \
        struct log_entry_header h = golden_header();                                                         \
        guid log_guid = h.log_guid;                                                                          \
        assert_true(log_entry_header_plausible(&h, &log_guid, MIB(1)));                                      \
        change;                                                                                              \
        assert_false(log_entry_header_plausible(&h, &log_guid, MIB(1)));                                     \
    } while (0)

    (void)state;
    IMPLAUSIBLE(h.log_guid.bytes[0]++);
    IMPLAUSIBLE(log_guid.bytes[15]++);
    IMPLAUSIBLE(h.entry_length = 0);
    IMPLAUSIBLE(h.entry_length = 4095);
    IMPLAUSIBLE(h.entry_length = 8193);
    IMPLAUSIBLE(h.entry_length = MIB(1) + 4096);
    IMPLAUSIBLE(h.entry_length = UINT32_MAX - 4095);
    IMPLAUSIBLE(h.tail = 1);
    IMPLAUSIBLE(h.tail = MIB(1));
    IMPLAUSIBLE(h.tail = UINT32_MAX - 4095);
    IMPLAUSIBLE(h.sequence_no = 0);
    IMPLAUSIBLE(h.nr_descriptors = 255); /* 64 + 32 * 254 fills two sectors */
    IMPLAUSIBLE(h.nr_descriptors = UINT32_MAX);
    IMPLAUSIBLE(h.nr_descriptors = 0x08000000); /* times 32 overflows 32 bits to 0 */
#undef IMPLAUSIBLE
}

static void headers_at_the_limits_are_plausible(void **state)
{
    struct log_entry_header h = golden_header();

    (void)state;
    h.nr_descriptors = 254;
    assert_true(log_entry_header_plausible(&h, &h.log_guid, MIB(1)));
    h.nr_descriptors = 0;
    h.entry_length = 4096;
    h.tail = MIB(1) - 4096;
    h.sequence_no = UINT64_MAX;
    assert_true(log_entry_header_plausible(&h, &h.log_guid, MIB(1)));
    h.entry_length = MIB(1);
    h.reserved = 1; /* E13: tolerated, as are crooked offsets */
    h.flushed_file_offset = h.last_file_offset = 1;
    assert_true(log_entry_header_plausible(&h, &h.log_guid, MIB(1)));
}

/* 4.2 and Appendix C. */
static void descriptor_sectors(void **state)
{
    static const uint64_t rows[][2] = {
        {0, 1}, {1, 1}, {126, 1}, {127, 2}, {254, 2}, {255, 3}, {382, 3}, {383, 4}, {UINT32_MAX, 33554433}};
    static const uint64_t sectors_with_data[][2] = {{1, 2},     {17, 18},   {32, 33},
                                                    {126, 127}, {127, 129}, {253, 255}};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++)
        assert_int_equal(log_nr_descriptor_sectors(rows[i][0]), rows[i][1]);
    for (size_t i = 0; i < ARRAY_LENGTH(sectors_with_data); i++)
        assert_int_equal(log_nr_descriptor_sectors(sectors_with_data[i][0]) + sectors_with_data[i][0],
                         sectors_with_data[i][1]);
}

/* ---- descriptors ---- */

static void descriptors_round_trip(void **state)
{
    const struct log_descriptor descriptors[] = {
        {.kind = LOG_DESCRIPTOR_ZERO,
         .file_offset = MIB(5),
         .length = MIB(1),
         .sequence_no = UINT64_C(1) << 40},
        {.kind = LOG_DESCRIPTOR_ZERO,
         .file_offset = TIB(1),
         .length = TIB(2),
         .sequence_no = 3,
         .reserved = 0x01020304},
        {.kind = LOG_DESCRIPTOR_DATA,
         .file_offset = MIB(2),
         .length = PAGE_BYTES,
         .sequence_no = UINT64_MAX,
         .leading = {1, 2, 3, 4, 5, 6, 7, 8},
         .trailing = {9, 10, 11, 12}},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(descriptors); i++) {
        const struct log_descriptor *d = &descriptors[i];
        uint8_t raw[LOG_DESCRIPTOR_BYTES];
        struct log_descriptor again;
        memset(raw, 0xaa, sizeof raw);
        log_descriptor_encode(d, raw);
        assert_true(log_descriptor_decode(raw, &again));
        assert_int_equal(again.kind, d->kind);
        assert_true(again.file_offset == d->file_offset);
        assert_true(again.length == d->length);
        assert_true(again.sequence_no == d->sequence_no);
        assert_int_equal(again.reserved, d->reserved);
        assert_memory_equal(again.leading, d->leading, sizeof d->leading);
        assert_memory_equal(again.trailing, d->trailing, sizeof d->trailing);
    }
}

static void zero_descriptor_bytes(void **state)
{
    static const char hex[] = "7a 65 72 6f 00 00 00 00  00 00 10 00 00 00 00 00"
                              "00 00 50 00 00 00 00 00  08 07 06 05 04 03 02 01";
    uint8_t expected[LOG_DESCRIPTOR_BYTES], raw[LOG_DESCRIPTOR_BYTES];
    struct log_descriptor d = {.kind = LOG_DESCRIPTOR_ZERO,
                               .file_offset = MIB(5),
                               .length = MIB(1),
                               .sequence_no = UINT64_C(0x0102030405060708)};

    (void)state;
    bytes_from_hex(hex, expected, sizeof expected);
    log_descriptor_encode(&d, raw);
    assert_memory_equal(raw, expected, sizeof raw);
}

/* E8: row 25. */
static void unknown_descriptors_are_refused(void **state)
{
    static const char *const signatures[] = {"data", "DESC", "loge", "zerp", "desd", "\0\0\0\0"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(signatures); i++) {
        uint8_t raw[LOG_DESCRIPTOR_BYTES] = {0};
        struct log_descriptor d;
        memcpy(raw, signatures[i], 4);
        assert_false(log_descriptor_decode(raw, &d));
    }
}

/* E11, E12, 4.7 step 3: rows 29 to 34.  The log lies at 4 MiB and is 1 MiB long; the file can end at 16 MiB.
 */
static void targets_are_judged(void **state)
{
    static const struct {
        uint64_t file_offset, length;
        const char *text; /* NULL: legal */
    } cases[] = {
        {MIB(2), 4096, NULL},
        {0x30000, 65536, NULL}, /* region tables are logged */
        {0x50000, 4096, NULL},
        {MIB(4) - 4096, 4096, NULL},
        {MIB(5), 4096, NULL},
        {MIB(16) - 4096, 4096, NULL},
        {MIB(5), MIB(11), NULL},
        {MIB(5), 0, NULL}, /* harmless */
        {0, 0, NULL},
        {MIB(4) + 4096, 0, NULL},
        {MIB(2) + 512, 4096, "target 0x200200, length 0x1000, is not in pages"},
        {MIB(2), 4097, "length 0x1001, is not in pages"},
        {MIB(2), 512, "length 0x200, is not in pages"},
        {UINT64_MAX - 4095, 4096, "ends behind 0x1000000"}, /* the sum overflows to 0 */
        {UINT64_MAX - 4095, UINT64_MAX - 4095, "ends behind 0x1000000"},
        {MIB(5), UINT64_MAX - MIB(5) - 4095 + MIB(1), "ends behind 0x1000000"},
        {MIB(16), 4096, "target 0x1000000, length 0x1000, ends behind"},
        {MIB(16) - 4096, 8192, "ends behind"},
        {TIB(1), 0, "ends behind"},
        {0, 4096, "lies in the identifier or the headers"},
        {0x10000, 4096, "lies in the identifier or the headers"},
        {0x2f000, 4096, "lies in the identifier or the headers"},
        {0x2f000, 8192, "lies in the identifier or the headers"},
        {MIB(4), 4096, "lies in the log itself at 0x400000"},
        {MIB(5) - 4096, 4096, "lies in the log itself"},
        {MIB(4) - 4096, 8192, "lies in the log itself"},
        {MIB(3), MIB(5), "lies in the log itself"},
        {0x30000, MIB(15), "lies in the log itself"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct log_descriptor d = {
            .kind = LOG_DESCRIPTOR_ZERO, .file_offset = cases[i].file_offset, .length = cases[i].length};
        int result = log_descriptor_check(&d, 0x400040, MIB(4), MIB(1), MIB(16));
        if (!cases[i].text) {
            assert_succeeds(result);
            continue;
        }
        assert_fails(result, VHDX_E_LOG, cases[i].text);
        assert_non_null(strstr(error_message(), "log descriptor at 0x400040"));
    }
}

/* ---- data sectors ---- */

/* E10: row 27. */
static void data_sectors_carry_the_sequence_number_twice(void **state)
{
    static const size_t decisive[] = {0, 1, 2, 3, 4, 5, 6, 7, 4092, 4093, 4094, 4095};
    uint8_t page[PAGE_BYTES] = {0}, raw[LOG_SECTOR_BYTES];

    (void)state;
    log_data_sector_encode(page, GOLDEN_SEQUENCE_NO, raw);
    assert_true(log_data_sector_is_valid(raw, GOLDEN_SEQUENCE_NO));
    assert_false(log_data_sector_is_valid(raw, GOLDEN_SEQUENCE_NO + 1));
    assert_false(log_data_sector_is_valid(raw, GOLDEN_SEQUENCE_NO + (UINT64_C(1) << 32)));
    for (size_t i = 0; i < ARRAY_LENGTH(decisive); i++) {
        raw[decisive[i]] ^= 1;
        assert_false(log_data_sector_is_valid(raw, GOLDEN_SEQUENCE_NO));
        raw[decisive[i]] ^= 1;
    }
    raw[8] ^= 1;
    raw[4091] ^= 1;
    assert_true(log_data_sector_is_valid(raw, GOLDEN_SEQUENCE_NO)); /* the checksum watches over these */
}

static void pages_round_trip(void **state)
{
    uint8_t page[PAGE_BYTES], raw[LOG_SECTOR_BYTES], rebuilt[PAGE_BYTES];
    uint64_t random = 99;

    (void)state;
    for (size_t i = 0; i < sizeof page; i++)
        page[i] = (uint8_t)random_next(&random);
    log_data_sector_encode(page, 12345, raw);
    memset(rebuilt, 0, sizeof rebuilt);
    log_page_rebuild(raw, page, page + PAGE_BYTES - 4, rebuilt);
    assert_memory_equal(rebuilt, page, sizeof page);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_entry_decodes),
        cmocka_unit_test(golden_entry_encodes),
        cmocka_unit_test(entry_header_round_trips),
        cmocka_unit_test(another_signature_is_no_entry),
        cmocka_unit_test(implausible_headers_are_no_entries),
        cmocka_unit_test(headers_at_the_limits_are_plausible),
        cmocka_unit_test(descriptor_sectors),
        cmocka_unit_test(descriptors_round_trip),
        cmocka_unit_test(zero_descriptor_bytes),
        cmocka_unit_test(unknown_descriptors_are_refused),
        cmocka_unit_test(targets_are_judged),
        cmocka_unit_test(data_sectors_carry_the_sequence_number_twice),
        cmocka_unit_test(pages_round_trip),
    };
    return cmocka_run_group_tests_name("format/log-entry", tests, NULL, NULL);
}
