/* SPDX-License-Identifier: MIT */
#include "image-builder.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/le.h"
#include "base/zero.h"
#include "doubles.h"
#include "format/log-entry.h"
#include "format/parent-locator.h"
#include "storage/storage.h"
#include "vhdx.h"

static void must(int result)
{
    if (result < 0) {
        fprintf(stderr, "building an image: %s\n", error_message());
        abort();
    }
}

static void *must_allocate(size_t bytes)
{
    void *p = calloc(1, bytes);

    if (!p)
        abort();
    return p;
}

/* ---- bytes ---- */

void build_bytes(struct storage *s, uint64_t file_offset, const void *bytes, size_t nr)
{
    must(storage_pwrite(s, bytes, nr, file_offset));
}

void build_fill(struct storage *s, uint64_t file_offset, uint8_t byte, size_t nr)
{
    uint8_t *bytes = must_allocate(nr);

    memset(bytes, byte, nr);
    build_bytes(s, file_offset, bytes, nr);
    free(bytes);
}

void build_number(struct storage *s, uint64_t file_offset, uint64_t value, unsigned bytes)
{
    uint8_t raw[8];

    le64_put(raw, value);
    build_bytes(s, file_offset, raw, bytes);
}

void build_reseal(struct storage *s, uint64_t file_offset, size_t bytes)
{
    uint8_t *raw = must_allocate(bytes);

    must(storage_pread(s, raw, bytes, file_offset));
    build_number(s, file_offset + 4, crc32c_with_hole(raw, bytes, 4), 4);
    free(raw);
}

/* Leave out pages of zeros: the file reads as zeros there already. */
static void write_sparse(struct storage *s, uint64_t file_offset, const uint8_t *bytes, size_t nr)
{
    for (size_t at = 0; at < nr; at += PAGE_BYTES) {
        size_t n = min_u64(PAGE_BYTES, nr - at);
        if (!memory_is_zero(bytes + at, n))
            build_bytes(s, file_offset + at, bytes + at, n);
    }
}

struct storage *build_copy(struct storage *s)
{
    struct storage *copy;

    must(storage_memory_new(NULL, 0, &copy));
    must(double_copy(s, copy));
    return copy;
}

/* ---- the plan ---- */

struct geometry image_plan_geometry(const struct image_plan *p)
{
    struct geometry g;

    geometry_init(&g, p->values.virtual_size, p->values.block_size, p->values.logical_sector_size,
                  p->values.parameter_flags & PARAMETER_HAS_PARENT);
    return g;
}

void image_plan_init(struct image_plan *p, uint64_t virtual_size, uint32_t block_size, uint32_t sector_size,
                     const char *const (*locator)[2], uint32_t nr_locator)
{
    *p = (struct image_plan){
        .values = {.block_size = block_size,
                   .parameter_flags = locator ? PARAMETER_HAS_PARENT : 0,
                   .virtual_size = virtual_size,
                   .disk_id = {"the disk itself"},
                   .logical_sector_size = sector_size,
                   .physical_sector_size = 4096},
        .locator = locator,
        .nr_locator = nr_locator,
        .header = {.sequence_no = 9,
                   .file_write_guid = {"file write guid"},
                   .data_write_guid = {"data write guid"},
                   .version = 1,
                   .log_length = MIB(1),
                   .log_offset = MIB(1)},
        .metadata_offset = MIB(2),
        .metadata_length = MIB(1),
        .bat_offset = MIB(3),
    };
    struct geometry g = image_plan_geometry(p);
    p->bat_length = (uint32_t)align_up(g.nr_bat_entries * BAT_ENTRY_BYTES, OBJECT_ALIGNMENT);
    p->file_length = image_plan_blocks_offset(p);
}

uint64_t image_plan_blocks_offset(const struct image_plan *p)
{
    return max_u64(p->bat_offset + p->bat_length, p->metadata_offset + p->metadata_length);
}

/* ---- structures ---- */

void build_header(struct storage *s, unsigned n, const struct header *h)
{
    uint8_t raw[HEADER_RAW_BYTES];

    header_encode(h, raw);
    build_bytes(s, HEADER_OFFSET(n), raw, sizeof raw);
}

void build_regions(struct storage *s, unsigned n, const struct region *regions, uint32_t nr)
{
    uint8_t *raw = must_allocate(REGION_TABLE_RAW_BYTES);

    region_table_encode(regions, nr, raw);
    build_bytes(s, REGION_TABLE_OFFSET(n), raw, REGION_TABLE_RAW_BYTES);
    free(raw);
}

uint64_t build_region_entry_offset(unsigned copy, uint32_t index)
{
    return REGION_TABLE_OFFSET(copy) + 16 + UINT64_C(32) * index;
}

uint64_t build_item_entry_offset(const struct image_plan *p, uint32_t index)
{
    return p->metadata_offset + 32 + UINT64_C(32) * index;
}

/* Fixed items lie 32 bytes apart, from the first byte behind the table on. */
static uint32_t item_place(enum metadata_known item)
{
    return METADATA_TABLE_RAW_BYTES + 32 * (uint32_t)item;
}

uint64_t build_item_offset(const struct image_plan *p, enum metadata_known item)
{
    return p->metadata_offset + item_place(item);
}

static void build_region_tables(const struct image_plan *p, struct storage *to)
{
    struct region *regions = must_allocate((p->nr_regions + 2) * sizeof *regions);

    regions[0] = (struct region){region_id_bat, p->bat_offset, p->bat_length, REGION_REQUIRED};
    regions[1] = (struct region){region_id_metadata, p->metadata_offset, p->metadata_length, REGION_REQUIRED};
    for (uint32_t i = 0; i < p->nr_regions; i++)
        regions[2 + i] = p->regions[i];
    for (unsigned n = 0; n < 2; n++)
        build_regions(to, n, regions, 2 + p->nr_regions);
    free(regions);
}

static void build_metadata(const struct image_plan *p, struct storage *to)
{
    struct metadata_entry *entries =
        must_allocate((METADATA_PARENT_LOCATOR + 1 + p->nr_items) * sizeof *entries);
    uint8_t *raw = must_allocate(METADATA_TABLE_RAW_BYTES), *item = must_allocate(MAX_METADATA_ITEM_BYTES);
    uint32_t nr = 0, end = item_place(METADATA_PARENT_LOCATOR);

    for (enum metadata_known k = METADATA_FILE_PARAMETERS; k < METADATA_PARENT_LOCATOR; k++) {
        uint32_t length = metadata_value_encode(k, &p->values, item);
        entries[nr++] =
            (struct metadata_entry){metadata_rules[k].id, item_place(k), length, metadata_rules[k].flags, 0};
        build_bytes(to, build_item_offset(p, k), item, length);
    }
    if (p->locator) {
        const struct metadata_rule *rule = &metadata_rules[METADATA_PARENT_LOCATOR];
        uint32_t length = locator_encode(p->locator, p->nr_locator, item, MAX_METADATA_ITEM_BYTES);
        assert(length > 0);
        entries[nr++] = (struct metadata_entry){rule->id, end, length, rule->flags, 0};
        build_bytes(to, p->metadata_offset + end, item, length);
        end += length;
    }
    for (uint32_t i = 0; i < p->nr_items; i++) {
        const struct build_item *it = &p->items[i];
        entries[nr++] = (struct metadata_entry){it->id, it->length ? end : 0, it->length, it->flags, 0};
        if (it->length)
            build_bytes(to, p->metadata_offset + end, it->data, it->length);
        end += it->length;
    }
    metadata_table_encode(entries, nr, raw);
    write_sparse(to, p->metadata_offset, raw, METADATA_TABLE_RAW_BYTES);
    free(entries);
    free(raw);
    free(item);
}

void build_image(const struct image_plan *p, struct storage *to)
{
    struct header older = p->header;

    must(storage_truncate(to, p->file_length));
    build_bytes(to, IDENTIFIER_OFFSET, "vhdxfileU\0n\0i\0t\0", 16);
    older.sequence_no--;
    build_header(to, 0, &older);
    build_header(to, 1, &p->header);
    build_region_tables(p, to);
    build_metadata(p, to);
}

struct storage *build_memory_image(const struct image_plan *p)
{
    struct storage *s;

    must(storage_memory_new(NULL, 0, &s));
    build_image(p, s);
    return s;
}

void build_block(const struct image_plan *p, struct storage *s, uint64_t block_no, unsigned state,
                 uint64_t file_offset)
{
    struct geometry g = image_plan_geometry(p);

    build_number(s, p->bat_offset + bat_index_of_block(&g, block_no) * BAT_ENTRY_BYTES,
                 bat_entry_encode(state, file_offset), BAT_ENTRY_BYTES);
}

void build_bitmap(const struct image_plan *p, struct storage *s, uint64_t chunk_no, unsigned state,
                  uint64_t file_offset)
{
    struct geometry g = image_plan_geometry(p);

    build_number(s, p->bat_offset + bat_index_of_bitmap(&g, chunk_no) * BAT_ENTRY_BYTES,
                 bat_entry_encode(state, file_offset), BAT_ENTRY_BYTES);
}

void build_bits(struct storage *s, uint64_t file_offset, uint64_t first_bit, uint64_t nr, bool value)
{
    for (uint64_t bit = first_bit; bit < first_bit + nr; bit++) {
        uint8_t byte;
        must(storage_pread(s, &byte, 1, file_offset + bit / 8));
        byte = (uint8_t)((byte & ~(1u << (bit % 8))) | (unsigned)value << (bit % 8));
        build_bytes(s, file_offset + bit / 8, &byte, 1);
    }
}

/* ---- log entries ---- */

void build_entry_seal(uint8_t *raw, uint32_t bytes)
{
    le32_put(raw + LOG_CHECKSUM_AT, crc32c_with_hole(raw, bytes, LOG_CHECKSUM_AT));
}

uint8_t *build_entry_bytes(const struct build_entry *e, uint32_t *bytes)
{
    uint64_t sectors = log_nr_descriptor_sectors(e->nr_changes), next = sectors;

    for (uint32_t i = 0; i < e->nr_changes; i++)
        sectors += e->changes[i].page != NULL;
    *bytes = (uint32_t)(sectors * LOG_SECTOR_BYTES);
    uint8_t *raw = must_allocate(*bytes);
    const struct log_entry_header h = {.entry_length = *bytes,
                                       .tail = e->tail,
                                       .sequence_no = e->sequence_no,
                                       .nr_descriptors = e->nr_changes,
                                       .log_guid = e->log_guid,
                                       .flushed_file_offset = e->flushed,
                                       .last_file_offset = e->last};

    log_entry_header_encode(&h, raw);
    for (uint32_t i = 0; i < e->nr_changes; i++) {
        const struct build_change *c = &e->changes[i];
        struct log_descriptor d = {.kind = c->page ? LOG_DESCRIPTOR_DATA : LOG_DESCRIPTOR_ZERO,
                                   .file_offset = c->file_offset,
                                   .length = c->page ? PAGE_BYTES : c->zero_bytes,
                                   .sequence_no = e->sequence_no};
        if (c->page) {
            memcpy(d.leading, c->page, sizeof d.leading);
            memcpy(d.trailing, c->page + PAGE_BYTES - sizeof d.trailing, sizeof d.trailing);
            log_data_sector_encode(c->page, e->sequence_no, raw + next++ * LOG_SECTOR_BYTES);
        }
        log_descriptor_encode(&d, raw + LOG_HEADER_BYTES + i * LOG_DESCRIPTOR_BYTES);
    }
    build_entry_seal(raw, *bytes);
    return raw;
}

void build_log_bytes(struct storage *s, const struct header *h, uint32_t log_offset, const uint8_t *raw,
                     uint32_t bytes)
{
    for (uint32_t at = 0; at < bytes; at += LOG_SECTOR_BYTES)
        build_bytes(s, h->log_offset + (log_offset + at) % h->log_length, raw + at, LOG_SECTOR_BYTES);
}

uint32_t build_log_entry(struct storage *s, const struct header *h, const struct build_entry *e)
{
    uint32_t bytes;
    uint8_t *raw = build_entry_bytes(e, &bytes);

    build_log_bytes(s, h, e->log_offset, raw, bytes);
    free(raw);
    return bytes;
}
