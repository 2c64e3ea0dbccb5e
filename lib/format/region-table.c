/* SPDX-License-Identifier: MIT */
#include "format/region-table.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/le.h"
#include "format/hint.h"
#include "vhdx.h"

static const uint8_t signature[4] = {'r', 'e', 'g', 'i'};

enum {
    AT_CHECKSUM = 4,
    AT_ENTRY_COUNT = 8,
    AT_RESERVED = 12,
    AT_ENTRIES = 16,
    ENTRY_BYTES = 32,
    ENTRY_AT_FILE_OFFSET = 16,
    ENTRY_AT_LENGTH = 24,
    ENTRY_AT_REQUIRED = 28,
};

static_assert(AT_ENTRIES + MAX_REGIONS * ENTRY_BYTES <= REGION_TABLE_RAW_BYTES, "all entries fit");

const guid region_id_bat = {
    {0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08}};
const guid region_id_metadata = {
    {0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e}};

static uint32_t checksum(const uint8_t *raw)
{
    return crc32c_with_hole(raw, REGION_TABLE_RAW_BYTES, AT_CHECKSUM);
}

bool region_table_is_valid(const uint8_t raw[REGION_TABLE_RAW_BYTES])
{
    return memcmp(raw, signature, sizeof signature) == 0 && checksum(raw) == le32_get(raw + AT_CHECKSUM) &&
           le32_get(raw + AT_ENTRY_COUNT) <= MAX_REGIONS;
}

uint32_t region_table_nr_entries(const uint8_t raw[REGION_TABLE_RAW_BYTES])
{
    return le32_get(raw + AT_ENTRY_COUNT);
}

void region_table_entry(const uint8_t raw[REGION_TABLE_RAW_BYTES], uint32_t index, struct region *r)
{
    assert(index < MAX_REGIONS);
    const uint8_t *entry = raw + AT_ENTRIES + index * ENTRY_BYTES;

    *r = (struct region){
        .id = guid_get(entry),
        .file_offset = le64_get(entry + ENTRY_AT_FILE_OFFSET),
        .length = le32_get(entry + ENTRY_AT_LENGTH),
        .required_flags = le32_get(entry + ENTRY_AT_REQUIRED),
    };
}

/* What lies behind the last entry may be anything (3.2). */
bool region_table_reserved_is_zero(const uint8_t raw[REGION_TABLE_RAW_BYTES])
{
    if (le32_get(raw + AT_RESERVED) != 0)
        return false;
    for (uint32_t i = 0; i < region_table_nr_entries(raw); i++) {
        struct region r;
        region_table_entry(raw, i, &r);
        if (r.required_flags & ~(uint32_t)REGION_REQUIRED)
            return false;
    }
    return true;
}

void region_table_encode(const struct region *regions, uint32_t nr, uint8_t raw[REGION_TABLE_RAW_BYTES])
{
    assert(nr <= MAX_REGIONS);
    memset(raw, 0, REGION_TABLE_RAW_BYTES);
    memcpy(raw, signature, sizeof signature);
    le32_put(raw + AT_ENTRY_COUNT, nr);
    for (uint32_t i = 0; i < nr; i++) {
        uint8_t *entry = raw + AT_ENTRIES + i * ENTRY_BYTES;
        guid_put(entry, &regions[i].id);
        le64_put(entry + ENTRY_AT_FILE_OFFSET, regions[i].file_offset);
        le32_put(entry + ENTRY_AT_LENGTH, regions[i].length);
        le32_put(entry + ENTRY_AT_REQUIRED, regions[i].required_flags);
    }
    le32_put(raw + AT_CHECKSUM, checksum(raw));
}

static const char *region_name(const struct region *r, char text[VHDX_GUID_TEXT_BYTES])
{
    if (guid_equal(&r->id, &region_id_bat))
        return "BAT";
    if (guid_equal(&r->id, &region_id_metadata))
        return "metadata";
    guid_format(&r->id, text);
    return text;
}

/* "region table entry 1 at 0x30030 (metadata)" */
static void describe(const struct region *r, uint32_t index, uint64_t copy_offset, char *text,
                     size_t text_bytes)
{
    char id[VHDX_GUID_TEXT_BYTES];

    snprintf(text, text_bytes, "region table entry %" PRIu32 " at 0x%" PRIx64 " (%s)", index,
             copy_offset + AT_ENTRIES + (uint64_t)index * ENTRY_BYTES, region_name(r, id));
}

int region_check(const struct region *r, uint32_t index, uint64_t copy_offset, uint64_t file_length)
{
    char entry[128];

    describe(r, index, copy_offset, entry, sizeof entry);
    if (!is_aligned(r->file_offset, OBJECT_ALIGNMENT))
        return fail(VHDX_E_REGION, "%s: FileOffset 0x%" PRIx64 " is not a multiple of 1 MiB; " HINT_DAMAGED,
                    entry, r->file_offset);
    if (r->file_offset < HEADER_AREA_BYTES)
        return fail(VHDX_E_REGION, "%s: FileOffset 0x%" PRIx64 " lies in the header area; " HINT_DAMAGED,
                    entry, r->file_offset);
    if (r->length == 0 || !is_aligned(r->length, OBJECT_ALIGNMENT))
        return fail(VHDX_E_REGION,
                    "%s: Length 0x%" PRIx32 " is zero or not a multiple of 1 MiB; " HINT_DAMAGED, entry,
                    r->length);
    if (!range_fits(r->file_offset, r->length, INT64_MAX))
        return fail(VHDX_E_REGION,
                    "%s: FileOffset 0x%" PRIx64 " is beyond what any file can hold; " HINT_DAMAGED, entry,
                    r->file_offset);
    if (region_is_known(r) && !range_fits(r->file_offset, r->length, file_length))
        return fail(VHDX_E_TRUNCATED,
                    "%s: the region at 0x%" PRIx64 ", length 0x%" PRIx32
                    ", ends behind the end of the file at 0x%" PRIx64 "; " HINT_TRUNCATED,
                    entry, r->file_offset, r->length, file_length);
    if (!region_is_known(r) && (r->required_flags & REGION_REQUIRED))
        return fail(VHDX_E_UNSUPPORTED,
                    "%s: the region is required to read the file, but unknown; " HINT_UNSUPPORTED, entry);
    return 0;
}
