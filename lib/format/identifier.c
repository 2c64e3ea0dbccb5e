/* SPDX-License-Identifier: MIT */
#include "format/identifier.h"

#include <string.h>
#include <strings.h>

#include "base/le.h"
#include "base/math.h"
#include "base/utf16.h"
#include "base/zero.h"
#include "vhdx.h"

static const char vhdx_signature[] = "vhdxfile";

enum { AT_CREATOR = 8 };

bool identifier_signature_valid(const uint8_t *first)
{
    return memcmp(first, vhdx_signature, strlen(vhdx_signature)) == 0;
}

size_t identifier_creator(const uint8_t *first, char *utf8, size_t utf8_bytes)
{
    return utf16_display(first + AT_CREATOR, IDENTIFIER_CREATOR_UNITS, utf8, utf8_bytes);
}

void identifier_encode(const char *creator, uint8_t raw[IDENTIFIER_RAW_BYTES])
{
    memset(raw, 0, IDENTIFIER_RAW_BYTES);
    memcpy(raw, vhdx_signature, strlen(vhdx_signature));
    for (size_t i = 0; i < IDENTIFIER_CREATOR_UNITS && creator[i]; i++)
        le16_put(raw + AT_CREATOR + 2 * i, (uint8_t)creator[i]);
}

/* ---- what other files are ---- */

struct bytes {
    const uint8_t *p;
    size_t length;
};

static bool has_at(const struct bytes *b, size_t at, const void *wanted, size_t wanted_bytes)
{
    return range_fits(at, wanted_bytes, b->length) && memcmp(b->p + at, wanted, wanted_bytes) == 0;
}

struct magic {
    size_t at, length;
    const char *bytes;
    enum vhdx_file_kind kind;
    const char *what;
};

/* clang-format off */
#define MAGIC(at, bytes, kind, what) {at, sizeof(bytes) - 1, bytes, kind, what}
/* clang-format on */
#define COMPRESSED(bytes, what) MAGIC(0, bytes, VHDX_KIND_COMPRESSED, what "; decompress it first")

/* What a file begins with.  Earlier rows win. */
static const struct magic magics[] = {
    MAGIC(0, "vhdxfile", VHDX_KIND_VHDX, "a VHDX image"),
    MAGIC(0, "QFI\xfb\0\0\0\1", VHDX_KIND_QCOW, "a QCOW image (QEMU, version 1)"),
    MAGIC(0, "QFI\xfb", VHDX_KIND_QCOW, "a QCOW2 image (QEMU)"),
    MAGIC(0, "QED\0", VHDX_KIND_QED, "a QED image (QEMU)"),
    MAGIC(0, "KDMV", VHDX_KIND_VMDK, "a VMDK image (VMware), sparse"),
    MAGIC(0, "COWD", VHDX_KIND_VMDK, "a VMDK image (VMware), copy-on-write of ESX"),
    MAGIC(0, "\xbe\xba\xfe\xca\0\0\0\0", VHDX_KIND_VMDK, "a VMDK image (VMware), space-efficient sparse"),
    MAGIC(0x40, "\x7f\x10\xda\xbe", VHDX_KIND_VDI, "a VDI image (VirtualBox)"),
    MAGIC(0, "EVF\x09\r\n\xff\0", VHDX_KIND_EWF, "an EWF image (EnCase E01)"),
    MAGIC(0, "EVF2\r\n\x81\0", VHDX_KIND_EWF, "an EWF image (EnCase Ex01)"),
    MAGIC(0, "LVF\x09\r\n\xff\0", VHDX_KIND_EWF, "an EWF file of logical evidence (EnCase L01)"),
    MAGIC(0, "LEF2\r\n\x81\0", VHDX_KIND_EWF, "an EWF file of logical evidence (EnCase Lx01)"),
    COMPRESSED("\x1f\x8b\x08", "a file compressed by gzip"),
    COMPRESSED("BZh", "a file compressed by bzip2"),
    COMPRESSED("\xfd\x37zXZ\0", "a file compressed by xz"),
    COMPRESSED("\x28\xb5\x2f\xfd", "a file compressed by zstd"),
    COMPRESSED("\x04\x22\x4d\x18", "a file compressed by lz4"),
    COMPRESSED("LZIP", "a file compressed by lzip"),
    COMPRESSED("PK\x03\x04", "a ZIP archive"),
    COMPRESSED("PK\x05\x06", "an empty ZIP archive"),
    COMPRESSED("7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    COMPRESSED("Rar!\x1a\x07", "a RAR archive"),
    COMPRESSED("MSCF\0\0\0\0", "a cabinet archive"),
    MAGIC(0, "WithoutFreeSpace", VHDX_KIND_UNKNOWN, "a Parallels image"),
    MAGIC(0, "WithouFreSpacExt", VHDX_KIND_UNKNOWN, "a Parallels image"),
    MAGIC(0, "MSWIM\0\0\0", VHDX_KIND_UNKNOWN, "a WIM image (Windows deployment)"),
    MAGIC(257, "ustar", VHDX_KIND_UNKNOWN, "a tar archive, perhaps an appliance (OVA); unpack it first"),
};

static const struct magic *find_magic(const struct bytes *file, const struct magic *table, size_t nr)
{
    for (size_t i = 0; i < nr; i++)
        if (has_at(file, table[i].at, table[i].bytes, table[i].length))
            return &table[i];
    return NULL;
}

/* VHD: a footer of 512 bytes, in old files 511, ends the file; all but fixed disks begin with its copy. */
static bool is_vhd_footer(const struct bytes *b, size_t at, const char **what)
{
    static const char *const by_type[] = {
        [2] = "a VHD (Virtual PC) image, fixed",
        [3] = "a VHD (Virtual PC) image, dynamic",
        [4] = "a VHD (Virtual PC) image, differencing",
    };
    enum { AT_DISK_TYPE = 60 };

    if (!has_at(b, at, "conectix", 8))
        return false;
    *what = "a VHD (Virtual PC) image";
    for (unsigned type = 2; type < ARRAY_LENGTH(by_type); type++) {
        const uint8_t big_endian[4] = {0, 0, 0, (uint8_t)type};
        if (has_at(b, at + AT_DISK_TYPE, big_endian, sizeof big_endian))
            *what = by_type[type];
    }
    return true;
}

static bool ends_as_vhd(const struct bytes *last, const char **what)
{
    return (last->length >= 512 && is_vhd_footer(last, last->length - 512, what)) ||
           (last->length >= 511 && is_vhd_footer(last, last->length - 511, what));
}

/* The text file that names a VMDK's extents; VMware's own case of its first line is not everybody's. */
static bool is_vmdk_descriptor(const struct bytes *first)
{
    static const char line[] = "# Disk DescriptorFile";

    return first->length >= sizeof line - 1 &&
           strncasecmp((const char *)first->p, line, sizeof line - 1) == 0;
}

/* ---- raw disks ---- */

enum {
    BOOT_SECTOR_BYTES = 512,
    PARTITIONS_AT = 446,
    PARTITION_BYTES = 16,
    PARTITION_AT_TYPE = 4,
    MBR_PARTITIONS = 4,
    BEGINNING_BYTES = 4096, /* that are zero where nobody has put a boot sector or partition table */
};

static bool has_boot_signature(const struct bytes *first)
{
    return has_at(first, BOOT_SECTOR_BYTES - 2, "\x55\xaa", 2);
}

/* File systems that fill a volume without partitions; those with a boot sector must come before is_mbr(). */
static const struct magic volumes[] = {
    MAGIC(3, "NTFS    ", VHDX_KIND_UNKNOWN, "a raw volume with an NTFS file system"),
    MAGIC(3, "-FVE-FS-", VHDX_KIND_UNKNOWN, "a raw volume encrypted by BitLocker"),
    MAGIC(3, "EXFAT   ", VHDX_KIND_UNKNOWN, "a raw volume with an exFAT file system"),
    MAGIC(54, "FAT1", VHDX_KIND_UNKNOWN, "a raw volume with a FAT file system"),
    MAGIC(82, "FAT32   ", VHDX_KIND_UNKNOWN, "a raw volume with a FAT file system"),
    MAGIC(0, "XFSB", VHDX_KIND_UNKNOWN, "a raw volume with an XFS file system"),
    MAGIC(0, "LUKS\xba\xbe", VHDX_KIND_UNKNOWN, "a raw volume encrypted by LUKS"),
    MAGIC(1080, "\x53\xef", VHDX_KIND_UNKNOWN, "a raw volume with an ext file system"),
    MAGIC(32769, "CD001", VHDX_KIND_UNKNOWN, "an ISO 9660 image (CD or DVD)"),
};

/* GPT: its header in the second sector, or the partition of type EE that shields it in the MBR. */
static bool is_gpt(const struct bytes *first)
{
    if (has_at(first, 512, "EFI PART", 8) || has_at(first, 4096, "EFI PART", 8))
        return true;
    for (unsigned i = 0; has_boot_signature(first) && i < MBR_PARTITIONS; i++)
        if (first->p[PARTITIONS_AT + i * PARTITION_BYTES + PARTITION_AT_TYPE] == 0xee)
            return true;
    return false;
}

/* A partition is active or not, and at least one has a type. */
static bool is_mbr(const struct bytes *first)
{
    bool any = false;

    if (!has_boot_signature(first))
        return false;
    for (unsigned i = 0; i < MBR_PARTITIONS; i++) {
        const uint8_t *partition = first->p + PARTITIONS_AT + i * PARTITION_BYTES;
        if ((partition[0] & 0x7f) != 0)
            return false;
        any = any || partition[PARTITION_AT_TYPE] != 0;
    }
    return any;
}

static const char *describe_raw(const struct bytes *first)
{
    const struct magic *volume = find_magic(first, volumes, ARRAY_LENGTH(volumes));

    if (volume)
        return volume->what;
    if (is_gpt(first))
        return "a raw disk with a partition table (GPT)";
    if (is_mbr(first))
        return "a raw disk with a partition table (MBR)";
    if (memory_is_zero(first->p, min_u64(first->length, BEGINNING_BYTES)))
        return "a file that begins with zeros, such as an empty raw disk or an incomplete copy";
    return "a file of unknown kind";
}

int identifier_probe(const uint8_t *first, size_t first_bytes, const uint8_t *last, size_t last_bytes,
                     const char **what)
{
    struct bytes beginning = {first, first_bytes}, end = {last, last_bytes};

    if (first_bytes == 0) {
        *what = "an empty file";
        return VHDX_KIND_EMPTY;
    }
    const struct magic *magic = find_magic(&beginning, magics, ARRAY_LENGTH(magics));
    if (magic) {
        *what = magic->what;
        return magic->kind;
    }
    if (is_vmdk_descriptor(&beginning)) {
        *what = "a VMDK image (VMware), the text file that describes it";
        return VHDX_KIND_VMDK;
    }
    if (is_vhd_footer(&beginning, 0, what) || ends_as_vhd(&end, what))
        return VHDX_KIND_VHD;
    *what = has_at(&end, 0, "koly", 4) ? "an Apple disk image (DMG)" : describe_raw(&beginning);
    return VHDX_KIND_UNKNOWN;
}
