/* SPDX-License-Identifier: MIT */
#include "template.h"

#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "format/header.h"
#include "format/metadata.h"
#include "format/parent-locator.h"
#include "format/region-table.h"

static const guid log_guid = {"fuzzer's log id"};
static const guid data_write_guid = {"fuzzer's data id"};
#define DATA_WRITE_GUID_TEXT "{7a7a7566-7265-7327-2064-617461206964}"

enum { NR_BLOCKS = 6 };

static void put_headers(struct fuzz_file *file, bool dirty)
{
    struct header h = {
        .sequence_no = 7,
        .file_write_guid = {"fuzzer's file id"},
        .data_write_guid = data_write_guid,
        .version = 1,
        .log_length = TEMPLATE_LOG_BYTES,
        .log_offset = TEMPLATE_LOG_OFFSET,
    };
    uint8_t raw[HEADER_RAW_BYTES];

    if (dirty)
        h.log_guid = log_guid;
    for (unsigned n = 0; n < 2; n++, h.sequence_no++) {
        header_encode(&h, raw);
        fuzz_file_put(file, HEADER_OFFSET(n), raw, sizeof raw);
    }
}

static void put_region_tables(struct fuzz_file *file)
{
    static uint8_t raw[REGION_TABLE_RAW_BYTES]; /* the same for all */

    if (raw[0] == 0) {
        struct region regions[] = {
            {region_id_bat, TEMPLATE_BAT_OFFSET, MIB(1), REGION_REQUIRED},
            {region_id_metadata, TEMPLATE_METADATA_OFFSET, MIB(1), REGION_REQUIRED},
        };
        region_table_encode(regions, ARRAY_LENGTH(regions), raw);
    }
    for (unsigned n = 0; n < 2; n++)
        fuzz_file_put(file, REGION_TABLE_OFFSET(n), raw, PAGE_BYTES); /* the rest is zeros */
}

static uint32_t put_locator(struct fuzz_file *file, uint64_t offset)
{
    static const char *const pairs[][2] = {
        {"parent_linkage", DATA_WRITE_GUID_TEXT},
        {"relative_path", ".\\parent.vhdx"},
        {"parent_linkage2", "{00000000-0000-0000-0000-000000000000}"},
        {"absolute_win32_path", "C:\\parent.vhdx"},
    };
    uint8_t raw[1024];
    uint32_t length = locator_encode(pairs, ARRAY_LENGTH(pairs), raw, sizeof raw);

    fuzz_file_put(file, offset, raw, length);
    return length;
}

static void put_metadata(struct fuzz_file *file, const struct metadata_values *values)
{
    struct metadata_entry items[8];
    uint8_t table[METADATA_TABLE_RAW_BYTES], raw[16];
    uint32_t nr = 0, at = METADATA_TABLE_RAW_BYTES;

    for (unsigned k = METADATA_FILE_PARAMETERS; k <= METADATA_PHYSICAL_SECTOR_SIZE; k++) {
        uint32_t length = metadata_value_encode(k, values, raw);
        fuzz_file_put(file, TEMPLATE_METADATA_OFFSET + at, raw, length);
        items[nr++] = (struct metadata_entry){metadata_rules[k].id, at, length, metadata_rules[k].flags, 0};
        at += length;
    }
    if (values->parameter_flags & PARAMETER_HAS_PARENT) {
        uint32_t length = put_locator(file, TEMPLATE_METADATA_OFFSET + at);
        items[nr++] = (struct metadata_entry){metadata_rules[METADATA_PARENT_LOCATOR].id, at, length, 4, 0};
        at += length;
    }
    items[nr++] = (struct metadata_entry){{"a user's item id"}, at, 5, VHDX_METADATA_USER, 0};
    fuzz_file_put(file, TEMPLATE_METADATA_OFFSET + at, "hello", 5);
    metadata_table_encode(items, nr, table);
    fuzz_file_put(file, TEMPLATE_METADATA_OFFSET, table, PAGE_BYTES); /* the rest is zeros */
}

void template_set_bat(struct template *t, uint64_t bat_index, unsigned state, uint64_t file_offset)
{
    uint8_t raw[BAT_ENTRY_BYTES];

    le64_put(raw, bat_entry_encode(state, file_offset));
    fuzz_file_put(t->file, TEMPLATE_BAT_OFFSET + bat_index * BAT_ENTRY_BYTES, raw, sizeof raw);
}

static uint64_t payload_place(const struct template *t, uint64_t n)
{
    return TEMPLATE_PAYLOAD_OFFSET + n * t->geometry.block_size;
}

/* Blocks of every state that the kind of image may have, with something in them. */
static void put_blocks(struct template *t, enum template_kind kind)
{
    static const unsigned states[][NR_BLOCKS] = {
        [TEMPLATE_DYNAMIC] = {PAYLOAD_FULLY_PRESENT, PAYLOAD_ZERO, PAYLOAD_NOT_PRESENT, PAYLOAD_FULLY_PRESENT,
                              PAYLOAD_UNMAPPED, PAYLOAD_UNDEFINED},
        [TEMPLATE_DIFFERENCING] = {PAYLOAD_PARTIALLY_PRESENT, PAYLOAD_NOT_PRESENT, PAYLOAD_ZERO,
                                   PAYLOAD_PARTIALLY_PRESENT, PAYLOAD_FULLY_PRESENT, PAYLOAD_UNMAPPED},
        [TEMPLATE_FIXED] = {PAYLOAD_FULLY_PRESENT, PAYLOAD_FULLY_PRESENT, PAYLOAD_FULLY_PRESENT,
                            PAYLOAD_FULLY_PRESENT, PAYLOAD_FULLY_PRESENT, PAYLOAD_FULLY_PRESENT},
    };
    uint8_t some[64];
    unsigned nr_placed = 0;

    for (unsigned i = 0; i < NR_BLOCKS && i < t->geometry.nr_blocks; i++) {
        unsigned state = states[kind][i];
        bool placed = state == PAYLOAD_FULLY_PRESENT || state == PAYLOAD_PARTIALLY_PRESENT;
        uint64_t place = placed ? payload_place(t, nr_placed++) : 0;
        template_set_bat(t, bat_index_of_block(&t->geometry, i), state, place);
        memset(some, 0xa0 + (int)i + 8 * t->geometry.has_parent, sizeof some);
        if (placed)
            fuzz_file_put(t->file, place + 480, some, sizeof some);
    }
    if (kind == TEMPLATE_DIFFERENCING) {
        static const uint8_t bits[] = {0x01, 0xff, 0xff, 0x0f, 0x00, 0x00, 0x55, 0x80};
        template_set_bat(t, bat_index_of_bitmap(&t->geometry, 0), BITMAP_PRESENT, TEMPLATE_BITMAP_OFFSET);
        fuzz_file_put(t->file, TEMPLATE_BITMAP_OFFSET, bits, sizeof bits);
        fuzz_file_put(t->file, TEMPLATE_BITMAP_OFFSET + bitmap_slice_offset(&t->geometry, 3), bits,
                      sizeof bits);
    }
}

/* Two entries: block 2 gets a place, half of block 0's first sectors become zeros, and the parameters are
 * written again. */
static void put_log(struct template *t)
{
    static struct template_entry e;
    uint8_t page[PAGE_BYTES];

    e.header = (struct log_entry_header){.flushed_file_offset = MIB(5), .last_file_offset = t->file->length};
    e.nr_descriptors = e.nr_pages = 0;
    fuzz_file_get(t->file, TEMPLATE_BAT_OFFSET, page, sizeof page);
    le64_put(page + 2 * BAT_ENTRY_BYTES,
             bat_entry_encode(PAYLOAD_FULLY_PRESENT, payload_place(t, NR_BLOCKS - 1)));
    template_entry_page(&e, TEMPLATE_BAT_OFFSET, page);
    template_entry_zero(&e, TEMPLATE_PAYLOAD_OFFSET, PAGE_BYTES);
    e.header.sequence_no = ++t->sequence_no;
    template_put_entry(t, &e, t->log_position);

    e.nr_descriptors = e.nr_pages = 0;
    fuzz_file_get(t->file, TEMPLATE_ITEMS_OFFSET, page, sizeof page);
    template_entry_page(&e, TEMPLATE_ITEMS_OFFSET, page);
    e.header.sequence_no = ++t->sequence_no;
    template_put_entry(t, &e, t->log_position);
}

static uint64_t disk_size(unsigned choice, uint32_t block_size, uint32_t sector_size)
{
    switch (choice) {
    case 0:
        return (uint64_t)NR_BLOCKS * block_size;
    case 1:
        return (uint64_t)(NR_BLOCKS - 1) * block_size + 3 * sector_size;
    case 2:
        return SECTORS_PER_CHUNK * sector_size * 2 + block_size;
    default: /* as much as a BAT of 1 MiB can hold */
        return min_u64(MAX_VIRTUAL_BYTES, UINT64_C(100000) * block_size);
    }
}

void template_build(struct template *t, struct fuzz_file *file, uint8_t image_byte)
{
    static const unsigned block_shifts[] = {20, 21, 25, 28};
    enum template_kind kind = image_byte & 3;
    bool dirty = image_byte & 4;
    struct metadata_values values = {
        .block_size = UINT32_C(1) << block_shifts[image_byte >> 4 & 3],
        .parameter_flags = kind == TEMPLATE_DIFFERENCING ? PARAMETER_HAS_PARENT
                           : kind == TEMPLATE_FIXED      ? PARAMETER_LEAVE_ALLOCATED
                                                         : 0,
        .disk_id = {"fuzzer's disk id"},
        .logical_sector_size = image_byte & 8 ? 4096 : 512,
        .physical_sector_size = 4096,
    };
    values.virtual_size = disk_size(image_byte >> 6, values.block_size, values.logical_sector_size);

    *t = (struct template){.file = file, .sequence_no = 100};
    geometry_init(&t->geometry, values.virtual_size, values.block_size, values.logical_sector_size,
                  kind == TEMPLATE_DIFFERENCING);
    if (kind == TEMPLATE_EMPTY)
        return;
    file->length = payload_place(t, NR_BLOCKS);
    fuzz_file_put(file, IDENTIFIER_OFFSET, "vhdxfilef\0u\0z\0z\0", 16);
    put_headers(file, dirty);
    put_region_tables(file);
    put_metadata(file, &values);
    put_blocks(t, kind);
    if (dirty)
        put_log(t);
}

/* ---- log entries ---- */

bool template_entry_zero(struct template_entry *e, uint64_t file_offset, uint64_t length)
{
    if (e->nr_descriptors == TEMPLATE_ENTRY_DESCRIPTORS)
        return false;
    e->descriptors[e->nr_descriptors++] =
        (struct log_descriptor){.kind = LOG_DESCRIPTOR_ZERO, .file_offset = file_offset, .length = length};
    return true;
}

bool template_entry_page(struct template_entry *e, uint64_t file_offset, const uint8_t *page)
{
    if (e->nr_descriptors == TEMPLATE_ENTRY_DESCRIPTORS)
        return false;
    struct log_descriptor d = {.kind = LOG_DESCRIPTOR_DATA, .file_offset = file_offset, .length = PAGE_BYTES};
    memcpy(d.leading, page, sizeof d.leading);
    memcpy(d.trailing, page + PAGE_BYTES - sizeof d.trailing, sizeof d.trailing);
    memcpy(e->pages[e->nr_pages++], page, PAGE_BYTES);
    e->descriptors[e->nr_descriptors++] = d;
    return true;
}

void template_put_entry(struct template *t, struct template_entry *e, uint32_t log_offset)
{
    static uint8_t raw[(TEMPLATE_ENTRY_DESCRIPTORS + 4) * PAGE_BYTES];
    uint64_t nr_sectors = log_nr_descriptor_sectors(e->nr_descriptors);

    e->header.entry_length = (uint32_t)(nr_sectors + e->nr_pages) * LOG_SECTOR_BYTES;
    e->header.nr_descriptors = e->nr_descriptors;
    e->header.log_guid = log_guid;
    memset(raw, 0, nr_sectors * LOG_SECTOR_BYTES);
    log_entry_header_encode(&e->header, raw);
    for (unsigned i = 0; i < e->nr_descriptors; i++) {
        e->descriptors[i].sequence_no = e->header.sequence_no;
        log_descriptor_encode(&e->descriptors[i], raw + LOG_HEADER_BYTES + i * LOG_DESCRIPTOR_BYTES);
    }
    for (unsigned i = 0; i < e->nr_pages; i++)
        log_data_sector_encode(e->pages[i], e->header.sequence_no, raw + (nr_sectors + i) * LOG_SECTOR_BYTES);
    le32_put(raw + LOG_CHECKSUM_AT, crc32c_with_hole(raw, e->header.entry_length, LOG_CHECKSUM_AT));
    for (uint32_t at = 0; at < e->header.entry_length; at += LOG_SECTOR_BYTES)
        fuzz_file_put(t->file, TEMPLATE_LOG_OFFSET + (log_offset + at) % TEMPLATE_LOG_BYTES, raw + at,
                      LOG_SECTOR_BYTES);
    t->log_position = (uint32_t)((log_offset + e->header.entry_length) % TEMPLATE_LOG_BYTES);
}
