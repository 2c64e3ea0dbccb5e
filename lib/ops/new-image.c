/* SPDX-License-Identifier: MIT */
#include "ops/new-image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/le.h"
#include "base/math.h"
#include "format/identifier.h"
#include "image/mib-set.h"

#define DEFAULT_BLOCK_BYTES    MIB(32) /* as Windows */
#define DEFAULT_CHILD_BYTES    MIB(2)  /* block size, as Windows */
#define DEFAULT_LOGICAL_BYTES  512
#define DEFAULT_PHYSICAL_BYTES 4096
#define DEFAULT_LOG_BYTES      MIB(1)

/* Windows' places (7.4), in the order of the table. */
static const struct {
    enum metadata_known item;
    uint32_t offset; /* in the region */
} item_places[] = {
    {METADATA_FILE_PARAMETERS, 0x10000},      {METADATA_VIRTUAL_DISK_SIZE, 0x10008},
    {METADATA_LOGICAL_SECTOR_SIZE, 0x10010},  {METADATA_PHYSICAL_SECTOR_SIZE, 0x10014},
    {METADATA_VIRTUAL_DISK_ID, 0x10018},
};

enum { LOCATOR_AT = 0x10028, ITEM_ALIGNMENT = 8 };

/* ---- options ---- */

static uint32_t or_default(uint32_t value, uint64_t fallback)
{
    return value ? value : (uint32_t)fallback;
}

static int check_subformat(const struct vhdx_create_options *o)
{
    bool child = o->subformat == VHDX_DIFFERENCING;

    if (o->subformat != VHDX_DYNAMIC && o->subformat != VHDX_FIXED && !child)
        return fail(-EINVAL, "create options: subformat %d is none of VHDX_DYNAMIC, VHDX_FIXED and VHDX_DIFFERENCING",
                    (int)o->subformat);
    if (child != (o->parent != NULL) || (!child && (o->parent_open || o->parent_windows_path)))
        return fail(-EINVAL, "create options: a differencing image needs a parent, and no other image has one");
    if (o->preallocation > VHDX_PREALLOC_FULL)
        return fail(-EINVAL, "create options: %d is no way of preallocation", (int)o->preallocation);
    if (o->preallocation != VHDX_PREALLOC_OFF && o->subformat != VHDX_FIXED)
        return fail(-EINVAL, "only fixed images can be preallocated: a dynamic one has no space for its blocks yet");
    return 0;
}

static int check_sector_size(const char *which, uint32_t bytes)
{
    if (bytes == 512 || bytes == 4096)
        return 0;
    return fail(-EINVAL, "the %s sector size can be 512 or 4096 bytes, not %" PRIu32, which, bytes);
}

static int check_sizes(const struct new_image *n)
{
    uint32_t block_size = n->values.block_size, log_length = n->log_length;

    if (!is_power_of_two(block_size) || block_size < MIN_BLOCK_BYTES || block_size > MAX_BLOCK_BYTES)
        return fail(-EINVAL, "the block size can be a power of two from 1 MiB to 256 MiB, not %" PRIu32 " bytes", block_size);
    if (!is_aligned(log_length, OBJECT_ALIGNMENT) || log_length > MAX_LOG_BYTES)
        return fail(-EINVAL, "the log size can be a multiple of 1 MiB up to 1 GiB, not %" PRIu32 " bytes", log_length);
    int r = check_sector_size("logical", n->values.logical_sector_size);
    return r < 0 ? r : check_sector_size("physical", n->values.physical_sector_size);
}

static int choose_guids(struct new_image *n, const struct vhdx_guid *disk_id)
{
    int r = guid_random(&n->file_write_guid);

    if (r == 0)
        r = guid_random(&n->data_write_guid);
    if (disk_id && guid_is_zero(disk_id))
        return fail(-EINVAL, "create options: a disk id of all zeros identifies nothing");
    if (disk_id)
        n->values.disk_id = *disk_id;
    else if (r == 0)
        r = guid_random(&n->values.disk_id);
    return r;
}

int new_image_refuse_child(const struct vhdx_create_options *o)
{
    if (o->subformat != VHDX_DIFFERENCING)
        return 0;
    return fail(-EINVAL, "what is copied into a new image is the whole disk, so it cannot be a differencing image");
}

int new_image_init(struct new_image *n, const struct vhdx_create_options *o)
{
    bool child = o->subformat == VHDX_DIFFERENCING;

    if (o->struct_bytes != sizeof *o)
        return fail(-EINVAL, "create options: struct_bytes is %zu, not %zu; begin with VHDX_CREATE_OPTIONS_INIT",
                    o->struct_bytes, sizeof *o);
    *n = (struct new_image){
        .values = {.block_size = or_default(o->block_size, child ? DEFAULT_CHILD_BYTES : DEFAULT_BLOCK_BYTES),
                   .parameter_flags = child ? PARAMETER_HAS_PARENT : o->subformat == VHDX_FIXED ? PARAMETER_LEAVE_ALLOCATED : 0,
                   .logical_sector_size = or_default(o->logical_sector_size, DEFAULT_LOGICAL_BYTES),
                   .physical_sector_size = or_default(o->physical_sector_size, DEFAULT_PHYSICAL_BYTES)},
        .log_length = or_default(o->log_size, DEFAULT_LOG_BYTES),
    };
    int r = check_subformat(o);
    if (r == 0)
        r = check_sizes(n);
    return r < 0 ? r : choose_guids(n, o->disk_id);
}

/* ---- the plan ---- */

static int check_virtual_size(uint64_t size, uint32_t sector)
{
    if (size == 0 || size > MAX_VIRTUAL_BYTES)
        return fail(-EINVAL, "the virtual size can be from one sector to 64 TiB (%" PRIu64 " bytes), not %" PRIu64 " bytes",
                    MAX_VIRTUAL_BYTES, size);
    if (is_aligned(size, sector))
        return 0;
    if (size < sector)
        return fail(-EINVAL, "the virtual size %" PRIu64 " is no multiple of the logical sector size %" PRIu32
                    "; the next valid size is %" PRIu32, size, sector, sector);
    return fail(-EINVAL, "the virtual size %" PRIu64 " is no multiple of the logical sector size %" PRIu32
                "; the next valid sizes are %" PRIu64 " and %" PRIu64, size, sector, align_down(size, sector),
                align_up(size, sector));
}

/* Everything that does not depend on what comes first. */
static int measure(struct new_image *n, uint64_t virtual_size)
{
    const struct metadata_values *v = &n->values;
    int r = check_virtual_size(virtual_size, v->logical_sector_size);

    if (r < 0)
        return r;
    n->values.virtual_size = virtual_size;
    geometry_init(&n->geometry, virtual_size, v->block_size, v->logical_sector_size,
                  v->parameter_flags & PARAMETER_HAS_PARENT);
    n->metadata_length = (uint32_t)align_up(new_image_metadata_bytes(n), OBJECT_ALIGNMENT);
    n->bat_length = (uint32_t)align_up(n->geometry.nr_bat_entries * BAT_ENTRY_BYTES, OBJECT_ALIGNMENT);
    return 0;
}

int new_image_plan(struct new_image *n, uint64_t virtual_size)
{
    int r = measure(n, virtual_size);

    if (r < 0)
        return r;
    n->metadata_offset = new_image_log_end(n);
    n->bat_offset = n->metadata_offset + n->metadata_length;
    n->payload_offset = n->bat_offset + n->bat_length;
    new_image_set_stored(n, new_image_is_fixed(n) ? n->geometry.nr_blocks : 0);
    return 0;
}

void new_image_set_stored(struct new_image *n, uint64_t nr_stored)
{
    n->file_length = n->payload_offset + (nr_stored << n->geometry.block_shift);
}

int new_image_plan_behind_payload(struct new_image *n, uint64_t virtual_size, uint64_t nr_stored)
{
    int r = measure(n, virtual_size);

    if (r < 0)
        return r;
    if (new_image_is_fixed(n))
        nr_stored = n->geometry.nr_blocks;
    n->payload_offset = new_image_log_end(n);
    n->metadata_offset = n->payload_offset + (nr_stored << n->geometry.block_shift);
    n->bat_offset = n->metadata_offset + n->metadata_length;
    n->file_length = n->bat_offset + n->bat_length;
    return 0;
}

/* ---- bytes ---- */

void new_image_encode_identifier(uint8_t raw[IDENTIFIER_RAW_BYTES])
{
    identifier_encode("vhdx " VHDX_VERSION, raw);
}

void new_image_encode_header(const struct new_image *n, unsigned copy, uint8_t raw[HEADER_RAW_BYTES])
{
    struct header h = {.sequence_no = copy,
                       .file_write_guid = n->file_write_guid,
                       .data_write_guid = n->data_write_guid,
                       .version = 1,
                       .log_length = n->log_length,
                       .log_offset = HEADER_AREA_BYTES};

    header_encode(&h, raw);
}

void new_image_encode_region_table(const struct new_image *n, uint8_t raw[REGION_TABLE_RAW_BYTES])
{
    const struct region regions[] = {
        {region_id_bat, n->bat_offset, n->bat_length, REGION_REQUIRED},
        {region_id_metadata, n->metadata_offset, n->metadata_length, REGION_REQUIRED},
    };

    region_table_encode(regions, ARRAY_LENGTH(regions), raw);
}

/* Where the first of the further items goes. */
static uint32_t items_offset(const struct new_image *n)
{
    return (uint32_t)align_up(LOCATOR_AT + n->locator_length, ITEM_ALIGNMENT);
}

uint32_t new_image_metadata_bytes(const struct new_image *n)
{
    uint32_t end = n->nr_items > 0 ? items_offset(n) : LOCATOR_AT + n->locator_length;

    for (uint32_t i = 0; i < n->nr_items; i++)
        end += (uint32_t)align_up(n->items[i].length, ITEM_ALIGNMENT);
    return end;
}

static struct metadata_entry table_entry(enum metadata_known item, uint32_t offset, uint32_t length)
{
    const struct metadata_rule *rule = &metadata_rules[item];

    return (struct metadata_entry){.id = rule->id, .offset = offset, .length = length, .flags = rule->flags};
}

/* Returns how many entries there are then. */
static uint32_t encode_further_items(const struct new_image *n, uint8_t *raw, struct metadata_entry *entries, uint32_t nr)
{
    uint32_t at = items_offset(n);

    for (uint32_t i = 0; i < n->nr_items; i++) {
        const struct new_item *item = &n->items[i];
        entries[nr++] = (struct metadata_entry){
            .id = item->id, .offset = item->length ? at : 0, .length = item->length, .flags = item->flags};
        if (item->length > 0)
            memcpy(raw + at, item->bytes, item->length);
        at += (uint32_t)align_up(item->length, ITEM_ALIGNMENT);
    }
    return nr;
}

int new_image_encode_metadata(const struct new_image *n, uint8_t *raw)
{
    struct metadata_entry *entries = calloc(ARRAY_LENGTH(item_places) + 1 + n->nr_items, sizeof *entries);
    uint32_t nr = 0;

    if (!entries)
        return fail_memory("the metadata table");
    memset(raw, 0, new_image_metadata_bytes(n));
    for (; nr < ARRAY_LENGTH(item_places); nr++) {
        uint32_t offset = item_places[nr].offset;
        uint32_t length = metadata_value_encode(item_places[nr].item, &n->values, raw + offset);
        entries[nr] = table_entry(item_places[nr].item, offset, length);
    }
    if (n->locator) {
        memcpy(raw + LOCATOR_AT, n->locator, n->locator_length);
        entries[nr++] = table_entry(METADATA_PARENT_LOCATOR, LOCATOR_AT, n->locator_length);
    }
    nr = encode_further_items(n, raw, entries, nr);
    metadata_table_encode(entries, nr, raw);
    free(entries);
    return 0;
}

/* Without the set every block has space. */
static bool has_space(const struct mib_set *present, uint64_t block_no)
{
    return !present || mib_set_has(present, block_no);
}

bool new_image_encode_bat(const struct new_image *n, const struct mib_set *present, struct new_bat *at, uint64_t nr,
                          uint8_t *raw)
{
    const struct geometry *g = &n->geometry;
    bool any = false;

    for (uint64_t i = 0; i < nr; i++, at->bat_index++) {
        uint64_t block_no, entry = 0;
        if (!bat_index_is_bitmap(g, at->bat_index, &block_no) && block_no < g->nr_blocks && has_space(present, block_no)) {
            entry = bat_entry_encode(PAYLOAD_FULLY_PRESENT, n->payload_offset + (at->nr_placed++ << g->block_shift));
            any = true;
        }
        le64_put(raw + i * BAT_ENTRY_BYTES, entry);
    }
    return any;
}
