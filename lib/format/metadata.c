/* SPDX-License-Identifier: MIT */
#include "format/metadata.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/le.h"
#include "base/zero.h"
#include "format/hint.h"
#include "vhdx.h"

static const uint8_t signature[8] = {'m', 'e', 't', 'a', 'd', 'a', 't', 'a'};

enum {
    AT_RESERVED = 8,
    AT_ENTRY_COUNT = 10,
    AT_RESERVED2 = 12,
    AT_ENTRIES = 32,
    ENTRY_BYTES = 32,
    ENTRY_AT_OFFSET = 16,
    ENTRY_AT_LENGTH = 20,
    ENTRY_AT_FLAGS = 24,
    ENTRY_AT_RESERVED = 28,
};

static_assert(AT_ENTRIES + MAX_METADATA_ITEMS * ENTRY_BYTES == METADATA_TABLE_RAW_BYTES,
              "2047 entries fill it");

#define KNOWN_FLAGS (uint32_t)(VHDX_METADATA_USER | VHDX_METADATA_VIRTUAL_DISK | VHDX_METADATA_REQUIRED)
#define OF_FILE     VHDX_METADATA_REQUIRED
#define OF_DISK     (VHDX_METADATA_REQUIRED | VHDX_METADATA_VIRTUAL_DISK)

/* clang-format off */
const struct metadata_rule metadata_rules[NR_METADATA_KNOWN] = {
    [METADATA_FILE_PARAMETERS] =
        {{{0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b}},
         "File Parameters", 8, OF_FILE},
    [METADATA_VIRTUAL_DISK_SIZE] =
        {{{0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8}},
         "Virtual Disk Size", 8, OF_DISK},
    [METADATA_VIRTUAL_DISK_ID] =
        {{{0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46}},
         "Virtual Disk ID", 16, OF_DISK},
    [METADATA_LOGICAL_SECTOR_SIZE] =
        {{{0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f}},
         "Logical Sector Size", 4, OF_DISK},
    [METADATA_PHYSICAL_SECTOR_SIZE] =
        {{{0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56}},
         "Physical Sector Size", 4, OF_DISK},
    [METADATA_PARENT_LOCATOR] =
        {{{0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c}},
         "Parent Locator", 0, OF_FILE},
    [METADATA_CHS] =
        {{{0xbc, 0xd7, 0x02, 0xda, 0x3a, 0x3d, 0x3c, 0x42, 0xac, 0x88, 0x2a, 0x36, 0xab, 0x21, 0x47, 0x9b}},
         "CHS Parameters", 0, 0},
    [METADATA_PMEM_LABEL] =
        {{{0x8a, 0xae, 0xe1, 0x10, 0x7e, 0x4b, 0x69, 0x41, 0xa4, 0x0f, 0xcd, 0x70, 0xde, 0x92, 0x83, 0x93}},
         "PMEM Label Storage", 0, 0},
    [METADATA_INCOMPLETE] =
        {{{0xf0, 0x85, 0xcc, 0x71, 0x69, 0x1b, 0x28, 0x4e, 0x95, 0x58, 0xc3, 0xbf, 0x83, 0xae, 0x75, 0xd3}},
         "Incomplete File", 0, OF_FILE},
};
/* clang-format on */

enum metadata_known metadata_identify(const struct metadata_entry *e)
{
    int known = 0;

    if (e->flags & VHDX_METADATA_USER)
        return METADATA_UNKNOWN;
    while (known < NR_METADATA_KNOWN && !guid_equal(&e->id, &metadata_rules[known].id))
        known++;
    return known;
}

/* ---- the table ---- */

int metadata_table_check(const uint8_t raw[METADATA_TABLE_RAW_BYTES], uint64_t region_offset)
{
    if (memcmp(raw, signature, sizeof signature) != 0)
        return fail(VHDX_E_METADATA,
                    "metadata table at 0x%" PRIx64 ": the signature \"metadata\" is missing; " HINT_DAMAGED,
                    region_offset);
    if (le16_get(raw + AT_ENTRY_COUNT) > MAX_METADATA_ITEMS)
        return fail(VHDX_E_METADATA,
                    "metadata table at 0x%" PRIx64 ": EntryCount %u is more than 2047; " HINT_DAMAGED,
                    region_offset, le16_get(raw + AT_ENTRY_COUNT));
    return 0;
}

uint32_t metadata_table_nr_entries(const uint8_t raw[METADATA_TABLE_RAW_BYTES])
{
    return le16_get(raw + AT_ENTRY_COUNT);
}

void metadata_table_entry(const uint8_t raw[METADATA_TABLE_RAW_BYTES], uint32_t index,
                          struct metadata_entry *e)
{
    assert(index < MAX_METADATA_ITEMS);
    const uint8_t *entry = raw + AT_ENTRIES + index * ENTRY_BYTES;

    *e = (struct metadata_entry){
        .id = guid_get(entry),
        .offset = le32_get(entry + ENTRY_AT_OFFSET),
        .length = le32_get(entry + ENTRY_AT_LENGTH),
        .flags = le32_get(entry + ENTRY_AT_FLAGS),
        .reserved = le32_get(entry + ENTRY_AT_RESERVED),
    };
}

/* What lies behind the last entry may be anything: Windows leaves old entries there (7.1). */
bool metadata_table_reserved_is_zero(const uint8_t raw[METADATA_TABLE_RAW_BYTES])
{
    if (le16_get(raw + AT_RESERVED) != 0 || !memory_is_zero(raw + AT_RESERVED2, AT_ENTRIES - AT_RESERVED2))
        return false;
    for (uint32_t i = 0; i < metadata_table_nr_entries(raw); i++) {
        struct metadata_entry e;
        metadata_table_entry(raw, i, &e);
        if (e.reserved != 0 || (e.flags & ~KNOWN_FLAGS))
            return false;
    }
    return true;
}

void metadata_table_encode(const struct metadata_entry *entries, uint32_t nr,
                           uint8_t raw[METADATA_TABLE_RAW_BYTES])
{
    assert(nr <= MAX_METADATA_ITEMS);
    memset(raw, 0, METADATA_TABLE_RAW_BYTES);
    memcpy(raw, signature, sizeof signature);
    le16_put(raw + AT_ENTRY_COUNT, (uint16_t)nr);
    for (uint32_t i = 0; i < nr; i++) {
        uint8_t *entry = raw + AT_ENTRIES + i * ENTRY_BYTES;
        guid_put(entry, &entries[i].id);
        le32_put(entry + ENTRY_AT_OFFSET, entries[i].offset);
        le32_put(entry + ENTRY_AT_LENGTH, entries[i].length);
        le32_put(entry + ENTRY_AT_FLAGS, entries[i].flags);
        le32_put(entry + ENTRY_AT_RESERVED, entries[i].reserved);
    }
}

/* ---- one entry ---- */

/* Its place in the region (7.1); where says which entry it is. */
static int check_place(const struct metadata_entry *e, const char *where, uint64_t region_length)
{
    if (e->length > MAX_METADATA_ITEM_BYTES)
        return fail(VHDX_E_METADATA, "%s: Length 0x%" PRIx32 " is more than 1 MiB; " HINT_DAMAGED, where,
                    e->length);
    if (e->length == 0 && e->offset != 0)
        return fail(VHDX_E_METADATA, "%s: Length is 0, but Offset is 0x%" PRIx32 "; " HINT_DAMAGED, where,
                    e->offset);
    if (e->length != 0 && e->offset < METADATA_TABLE_RAW_BYTES)
        return fail(VHDX_E_METADATA, "%s: Offset 0x%" PRIx32 " lies in the metadata table; " HINT_DAMAGED,
                    where, e->offset);
    if (!range_fits(e->offset, e->length, region_length))
        return fail(VHDX_E_METADATA,
                    "%s: Offset 0x%" PRIx32 ", Length 0x%" PRIx32 ", leaves the metadata region of 0x%" PRIx64
                    " bytes; " HINT_DAMAGED,
                    where, e->offset, e->length, region_length);
    return 0;
}

int metadata_entry_check(const struct metadata_entry *e, uint32_t index, uint64_t entry_offset,
                         uint64_t region_length)
{
    enum metadata_known known = metadata_identify(e);
    const struct metadata_rule *rule = known == METADATA_UNKNOWN ? NULL : &metadata_rules[known];
    char id[VHDX_GUID_TEXT_BYTES], where[128];

    guid_format(&e->id, id);
    snprintf(where, sizeof where, "metadata table entry %" PRIu32 " at 0x%" PRIx64 " (%s)", index,
             entry_offset, rule ? rule->name : id);

    if (known == METADATA_INCOMPLETE)
        return fail(VHDX_E_INCOMPLETE,
                    "%s: the program that created the file did not finish; create the image again", where);
    if (guid_is_zero(&e->id))
        return fail(VHDX_E_METADATA, "%s: ItemId is all zeros; " HINT_DAMAGED, where);
    int err = check_place(e, where, region_length);
    if (err)
        return err;
    if (!rule && (e->flags & VHDX_METADATA_REQUIRED))
        return fail(VHDX_E_UNSUPPORTED,
                    "%s: the item is required to read the file, but unknown; " HINT_UNSUPPORTED, where);
    if (rule && rule->length != 0 && e->length != rule->length)
        return fail(VHDX_E_METADATA, "%s: Length is %" PRIu32 ", not %" PRIu32 "; " HINT_DAMAGED, where,
                    e->length, rule->length);
    return 0;
}

/* ---- values ---- */

void metadata_value_decode(enum metadata_known item, const uint8_t *raw, struct metadata_values *values)
{
    switch (item) {
    case METADATA_FILE_PARAMETERS:
        values->block_size = le32_get(raw);
        values->parameter_flags = le32_get(raw + 4);
        break;
    case METADATA_VIRTUAL_DISK_SIZE:
        values->virtual_size = le64_get(raw);
        break;
    case METADATA_VIRTUAL_DISK_ID:
        values->disk_id = guid_get(raw);
        break;
    case METADATA_LOGICAL_SECTOR_SIZE:
        values->logical_sector_size = le32_get(raw);
        break;
    case METADATA_PHYSICAL_SECTOR_SIZE:
        values->physical_sector_size = le32_get(raw);
        break;
    default:
        assert(!"a fixed item");
    }
}

uint32_t metadata_value_encode(enum metadata_known item, const struct metadata_values *values, uint8_t *raw)
{
    switch (item) {
    case METADATA_FILE_PARAMETERS:
        le32_put(raw, values->block_size);
        le32_put(raw + 4, values->parameter_flags);
        break;
    case METADATA_VIRTUAL_DISK_SIZE:
        le64_put(raw, values->virtual_size);
        break;
    case METADATA_VIRTUAL_DISK_ID:
        guid_put(raw, &values->disk_id);
        break;
    case METADATA_LOGICAL_SECTOR_SIZE:
        le32_put(raw, values->logical_sector_size);
        break;
    case METADATA_PHYSICAL_SECTOR_SIZE:
        le32_put(raw, values->physical_sector_size);
        break;
    default:
        assert(!"a fixed item");
    }
    return metadata_rules[item].length;
}

static bool sector_size_is_legal(uint32_t bytes)
{
    return bytes == 512 || bytes == 4096;
}

int metadata_values_check(const struct metadata_values *values)
{
    if (!is_power_of_two(values->block_size) || values->block_size < MIN_BLOCK_BYTES ||
        values->block_size > MAX_BLOCK_BYTES)
        return fail(VHDX_E_METADATA,
                    "metadata item File Parameters: BlockSize 0x%" PRIx32
                    " is not a power of two from 1 MiB to 256 MiB; " HINT_DAMAGED,
                    values->block_size);
    if (!sector_size_is_legal(values->logical_sector_size))
        return fail(VHDX_E_METADATA,
                    "metadata item Logical Sector Size: %" PRIu32 " is neither 512 nor 4096; " HINT_DAMAGED,
                    values->logical_sector_size);
    if (!sector_size_is_legal(values->physical_sector_size))
        return fail(VHDX_E_METADATA,
                    "metadata item Physical Sector Size: %" PRIu32 " is neither 512 nor 4096; " HINT_DAMAGED,
                    values->physical_sector_size);
    if (values->virtual_size == 0 || values->virtual_size > MAX_VIRTUAL_BYTES)
        return fail(VHDX_E_METADATA,
                    "metadata item Virtual Disk Size: 0x%" PRIx64
                    " is zero or more than 64 TiB; " HINT_DAMAGED,
                    values->virtual_size);
    if (!is_aligned(values->virtual_size, values->logical_sector_size))
        return fail(VHDX_E_METADATA,
                    "metadata item Virtual Disk Size: 0x%" PRIx64
                    " is not a multiple of the logical sector size %" PRIu32 "; " HINT_DAMAGED,
                    values->virtual_size, values->logical_sector_size);
    return 0;
}
