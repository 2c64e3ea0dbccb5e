/* SPDX-License-Identifier: MIT */
/* The file type identifier (format section 1.2; hostile input rows 3 and 4), and names for other files. */
#include "unit.h"

#include "base/le.h"
#include "base/utf16.h"
#include "format/identifier.h"

/* ---- VHDX ---- */

/* Only the bytes that may be used, so that sanitizers see any other. */
static uint8_t *identifier(const char *creator)
{
    uint8_t *first = exact_bytes(IDENTIFIER_USED_BYTES);

    memcpy(first, "vhdxfile", 8);
    for (size_t i = 0; creator[i]; i++)
        le16_put(first + 8 + 2 * i, (unsigned char)creator[i]);
    return first;
}

/* Row 3. */
static void every_letter_of_the_signature_counts(void **state)
{
    uint8_t *first = identifier("");

    (void)state;
    assert_true(identifier_signature_valid(first));
    for (int i = 0; i < 8; i++) {
        first[i] ^= 0x20;
        assert_false(identifier_signature_valid(first));
        first[i] ^= 0x20;
    }
    free(first);
}

static void creators_seen_in_the_wild(void **state)
{
    static const char *const creators[] = {"Microsoft Windows 6.2.9200.16384",
                                           "Microsoft Windows 10.0.20348.0", "QEMU v10.0.2", "d2v", ""};
    char text[1024];

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(creators); i++) {
        uint8_t *first = identifier(creators[i]);
        assert_int_equal(identifier_creator(first, text, sizeof text), 0);
        assert_string_equal(text, creators[i]);
        free(first);
    }
}

/* Row 4. */
static void a_creator_needs_no_nul_and_no_sense(void **state)
{
    uint8_t *first = identifier("");
    char text[UTF8_BYTES_FOR_UNITS(IDENTIFIER_CREATOR_UNITS)];

    (void)state;
    for (int i = 0; i < IDENTIFIER_CREATOR_UNITS; i++)
        le16_put(first + 8 + 2 * i, 0x20ac);
    assert_int_equal(identifier_creator(first, text, sizeof text), 0);
    assert_int_equal(strlen(text), 3 * IDENTIFIER_CREATOR_UNITS);
    for (int i = 0; i < IDENTIFIER_CREATOR_UNITS; i++)
        le16_put(first + 8 + 2 * i, 0xd800);
    assert_int_equal(identifier_creator(first, text, sizeof text), IDENTIFIER_CREATOR_UNITS);
    char small[5];
    identifier_creator(first, small, sizeof small);
    assert_string_equal(small, "\xef\xbf\xbd");
    le16_put(first + 8, '\x1b'); /* terminal escapes do not get through */
    assert_true(identifier_creator(first, text, sizeof text) > 0);
    assert_null(strchr(text, '\x1b'));
    free(first);
}

/* ---- other files ---- */

enum { SECTOR = 512 };

/* A file of so many bytes with text at offset; probe sees its first 64 KiB, and its last sector. */
struct sample {
    uint8_t *bytes;
    size_t length;
};

static struct sample sample(size_t length)
{
    return (struct sample){exact_bytes(length), length};
}

static void put(struct sample *s, size_t at, const char *text, size_t text_bytes)
{
    assert_true(at + text_bytes <= s->length);
    memcpy(s->bytes + at, text, text_bytes);
}

#define PUT(s, at, text) put(s, at, text, sizeof(text) - 1)

static int probe_part(const struct sample *s, size_t first_bytes, const char **what)
{
    size_t last_bytes = min_u64(s->length, SECTOR);
    uint8_t *first = exact_bytes(first_bytes), *last = exact_bytes(last_bytes);

    memcpy(first, s->bytes, first_bytes);
    memcpy(last, s->bytes + s->length - last_bytes, last_bytes);
    *what = NULL;
    int kind = identifier_probe(first, first_bytes, last, last_bytes, what);
    assert_non_null(*what);
    free(first);
    free(last);
    return kind;
}

/* Judge the sample, which is freed. */
static void expect_kind(struct sample *s, enum vhdx_file_kind kind, const char *text)
{
    const char *what;

    int result = probe_part(s, min_u64(s->length, 65536), &what);
    if (result != (int)kind || !strstr(what, text))
        print_error("kind is %d (%s), not %d (%s)\n", result, what, (int)kind, text);
    assert_int_equal(result, kind);
    assert_non_null(strstr(what, text));
    free(s->bytes);
}

static void beginnings_are_known(void **state)
{
#define BEGINNING(at, text, kind, what)                                                                      \
    {                                                                                                        \
        at, text, sizeof(text) - 1, kind, what                                                               \
    }
    static const struct {
        size_t at;
        const char *text;
        size_t text_bytes;
        enum vhdx_file_kind kind;
        const char *what;
    } rows[] = {
        BEGINNING(0, "vhdxfile", VHDX_KIND_VHDX, "VHDX"),
        BEGINNING(0, "QFI\xfb\0\0\0\1", VHDX_KIND_QCOW, "a QCOW image"),
        BEGINNING(0, "QFI\xfb\0\0\0\2", VHDX_KIND_QCOW, "a QCOW2 image"),
        BEGINNING(0, "QFI\xfb\0\0\0\3", VHDX_KIND_QCOW, "a QCOW2 image"),
        BEGINNING(0, "QED\0", VHDX_KIND_QED, "a QED image"),
        BEGINNING(0, "KDMV\1\0\0\0", VHDX_KIND_VMDK, "sparse"),
        BEGINNING(0, "COWD\1\0\0\0", VHDX_KIND_VMDK, "VMDK"),
        BEGINNING(0, "# Disk DescriptorFile\nversion=1\n", VHDX_KIND_VMDK, "text file"),
        BEGINNING(0, "# Disk Descriptorfile\r\n", VHDX_KIND_VMDK, "text file"),
        BEGINNING(0x40, "\x7f\x10\xda\xbe", VHDX_KIND_VDI, "VDI"),
        BEGINNING(0, "EVF\x09\x0d\x0a\xff\x00", VHDX_KIND_EWF, "E01"),
        BEGINNING(0, "EVF2\x0d\x0a\x81\x00", VHDX_KIND_EWF, "Ex01"),
        BEGINNING(0, "LVF\x09\x0d\x0a\xff\x00", VHDX_KIND_EWF, "L01"),
        BEGINNING(0, "\x1f\x8b\x08\x08", VHDX_KIND_COMPRESSED, "gzip; decompress it first"),
        BEGINNING(0, "BZh91AY&SY", VHDX_KIND_COMPRESSED, "bzip2; decompress it first"),
        BEGINNING(0, "\xfd\x37\x7a\x58\x5a\x00", VHDX_KIND_COMPRESSED, "xz; decompress it first"),
        BEGINNING(0, "\x28\xb5\x2f\xfd", VHDX_KIND_COMPRESSED, "zstd; decompress it first"),
        BEGINNING(0, "PK\x03\x04", VHDX_KIND_COMPRESSED, "ZIP archive; decompress it first"),
        BEGINNING(0, "\x37\x7a\xbc\xaf\x27\x1c", VHDX_KIND_COMPRESSED, "7-Zip archive; decompress it first"),
        BEGINNING(257, "ustar", VHDX_KIND_UNKNOWN, "tar"),
        BEGINNING(32769, "CD001", VHDX_KIND_UNKNOWN, "ISO 9660"),
        BEGINNING(1080, "\x53\xef", VHDX_KIND_UNKNOWN, "ext"),
        BEGINNING(0, "some text", VHDX_KIND_UNKNOWN, "unknown"),
    };
#undef BEGINNING

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
        struct sample s = sample(40000);
        put(&s, rows[i].at, rows[i].text, rows[i].text_bytes);
        expect_kind(&s, rows[i].kind, rows[i].what);
        struct sample shortest = sample(rows[i].at + rows[i].text_bytes);
        put(&shortest, rows[i].at, rows[i].text, rows[i].text_bytes);
        expect_kind(&shortest, rows[i].kind, rows[i].what);
    }
}

static void empty_and_zero_files(void **state)
{
    struct sample s = sample(0);

    (void)state;
    expect_kind(&s, VHDX_KIND_EMPTY, "empty");
    s = sample(1);
    expect_kind(&s, VHDX_KIND_UNKNOWN, "begins with zeros");
    s = sample(MIB(1));
    expect_kind(&s, VHDX_KIND_UNKNOWN, "begins with zeros");
}

/* ---- VHD ---- */

static void put_footer(struct sample *s, size_t at, uint8_t type)
{
    PUT(s, at, "conectix");
    s->bytes[at + 63] = type;
}

static void vhd_by_the_copy_at_the_beginning(void **state)
{
    static const struct {
        uint8_t type;
        const char *what;
    } rows[] = {{2, "fixed"}, {3, "dynamic"}, {4, "differencing"}, {9, "a VHD (Virtual PC) image"}};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
        struct sample s = sample(4096);
        put_footer(&s, 0, rows[i].type);
        expect_kind(&s, VHDX_KIND_VHD, rows[i].what);
    }
}

static void vhd_by_the_footer(void **state)
{
    struct sample s = sample(MIB(1) + 512);

    (void)state;
    put_footer(&s, MIB(1), 2);
    expect_kind(&s, VHDX_KIND_VHD, "fixed");
    s = sample(MIB(1) + 511); /* as Virtual PC before 2004 wrote it */
    put_footer(&s, MIB(1), 2);
    expect_kind(&s, VHDX_KIND_VHD, "fixed");
    s = sample(511);
    put_footer(&s, 0, 2);
    expect_kind(&s, VHDX_KIND_VHD, "fixed");
    s = sample(MIB(1)); /* the word alone, elsewhere in the last sector */
    PUT(&s, MIB(1) - 500, "conectix");
    expect_kind(&s, VHDX_KIND_UNKNOWN, "zeros");
}

/* The guest's partition table begins a fixed VHD; its footer says what the file is. */
static void a_footer_outweighs_a_partition_table(void **state)
{
    struct sample s = sample(MIB(1) + 512);

    (void)state;
    PUT(&s, 510, "\x55\xaa");
    s.bytes[446 + 4] = 7;
    put_footer(&s, MIB(1), 2);
    expect_kind(&s, VHDX_KIND_VHD, "fixed");
}

static void a_vhdx_is_a_vhdx_whatever_it_ends_with(void **state)
{
    struct sample s = sample(MIB(1) + 512);

    (void)state;
    PUT(&s, 0, "vhdxfile");
    put_footer(&s, MIB(1), 2);
    expect_kind(&s, VHDX_KIND_VHDX, "VHDX");
}

/* ---- raw disks ---- */

static struct sample with_mbr(uint8_t status, uint8_t type)
{
    struct sample s = sample(MIB(1));

    s.bytes[0] = 0xfa; /* boot code */
    PUT(&s, 510, "\x55\xaa");
    s.bytes[446 + 16] = status;
    s.bytes[446 + 16 + 4] = type;
    return s;
}

static void partition_tables(void **state)
{
    struct sample s = with_mbr(0x80, 0x83);

    (void)state;
    expect_kind(&s, VHDX_KIND_UNKNOWN, "a raw disk with a partition table (MBR)");
    s = with_mbr(0, 7);
    expect_kind(&s, VHDX_KIND_UNKNOWN, "(MBR)");
    s = with_mbr(0, 0xee);
    expect_kind(&s, VHDX_KIND_UNKNOWN, "a raw disk with a partition table (GPT)");
    s = with_mbr(0, 0);
    PUT(&s, 512, "EFI PART");
    expect_kind(&s, VHDX_KIND_UNKNOWN, "(GPT)");
    s = sample(MIB(1));
    PUT(&s, 4096, "EFI PART"); /* sectors of 4096 bytes */
    expect_kind(&s, VHDX_KIND_UNKNOWN, "(GPT)");
    s = with_mbr(0x12, 7); /* no status of a partition */
    expect_kind(&s, VHDX_KIND_UNKNOWN, "unknown");
    s = with_mbr(0, 0); /* no partition at all */
    expect_kind(&s, VHDX_KIND_UNKNOWN, "unknown");
}

static void volumes_without_partitions(void **state)
{
    static const struct {
        size_t at;
        const char *name, *what;
    } rows[] = {{3, "NTFS    ", "NTFS"},
                {3, "EXFAT   ", "exFAT"},
                {54, "FAT16   ", "FAT"},
                {82, "FAT32   ", "FAT"},
                {0, "XFSB", "XFS"}};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
        struct sample s = with_mbr(0x80, 7);
        put(&s, rows[i].at, rows[i].name, strlen(rows[i].name));
        expect_kind(&s, VHDX_KIND_UNKNOWN, rows[i].what);
    }
}

/* A prefix of any length is judged without a look at what is not there. */
static void short_beginnings_are_safe(void **state)
{
    struct sample s = with_mbr(0x80, 0x83);
    const char *what;

    (void)state;
    for (size_t n = 0; n <= 600; n++) {
        int kind = probe_part(&s, n, &what);
        assert_int_equal(kind, n == 0 ? VHDX_KIND_EMPTY : VHDX_KIND_UNKNOWN);
    }
    free(s.bytes);
    for (size_t length = 0; length < 600; length++) {
        s = sample(length);
        probe_part(&s, length, &what);
        free(s.bytes);
    }
    s = sample(64);
    PUT(&s, 0, "# Disk DescriptorFile");
    for (size_t n = 1; n < strlen("# Disk DescriptorFile"); n++)
        assert_int_equal(probe_part(&s, n, &what), VHDX_KIND_UNKNOWN);
    free(s.bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_letter_of_the_signature_counts),
        cmocka_unit_test(creators_seen_in_the_wild),
        cmocka_unit_test(a_creator_needs_no_nul_and_no_sense),
        cmocka_unit_test(beginnings_are_known),
        cmocka_unit_test(empty_and_zero_files),
        cmocka_unit_test(vhd_by_the_copy_at_the_beginning),
        cmocka_unit_test(vhd_by_the_footer),
        cmocka_unit_test(a_footer_outweighs_a_partition_table),
        cmocka_unit_test(a_vhdx_is_a_vhdx_whatever_it_ends_with),
        cmocka_unit_test(partition_tables),
        cmocka_unit_test(volumes_without_partitions),
        cmocka_unit_test(short_beginnings_are_safe),
    };
    return cmocka_run_group_tests_name("format/identifier", tests, NULL, NULL);
}
