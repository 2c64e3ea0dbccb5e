/* SPDX-License-Identifier: MIT */
/* The metadata table, item by item, with the values of those that the format defines. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/le.h"
#include "base/utf16.h"
#include "format/parent-locator.h"
#include "ops/dump.h"

enum { CHS_BYTES = 8 };

static uint64_t entry_offset(const struct dump *d, uint32_t index)
{
    return d->metadata.file_offset + 32 + UINT64_C(32) * index;
}

/* ---- loading ---- */

/* Decode the fixed items that are sound; false unless all are there. */
static bool load_values(const struct dump *d, struct metadata_values *values)
{
    unsigned nr_found = 0;

    for (uint32_t i = 0; i < metadata_table_nr_entries(d->items); i++) {
        struct metadata_entry e;
        uint8_t raw[16];
        metadata_table_entry(d->items, i, &e);
        enum metadata_known known = metadata_identify(&e);
        if (known > METADATA_PHYSICAL_SECTOR_SIZE ||
            metadata_entry_check(&e, i, entry_offset(d, i), d->metadata.length) < 0)
            continue;
        if (file_view_pread(&d->view, raw, e.length, d->metadata.file_offset + e.offset) < 0)
            continue;
        metadata_value_decode(known, raw, values);
        nr_found |= 1u << known;
    }
    return nr_found == (2u << METADATA_PHYSICAL_SECTOR_SIZE) - 1;
}

int dump_load_metadata(struct dump *d)
{
    struct metadata_values values;

    if (!d->has_metadata)
        return 0;
    d->items = malloc(METADATA_TABLE_RAW_BYTES);
    if (!d->items)
        return fail_memory("the metadata table");
    if (file_view_pread(&d->view, d->items, METADATA_TABLE_RAW_BYTES, d->metadata.file_offset) < 0) {
        free(d->items);
        d->items = NULL;
        return 0;
    }
    if (metadata_table_check(d->items, d->metadata.file_offset) < 0 || !load_values(d, &values) ||
        metadata_values_check(&values) < 0)
        return 0;
    geometry_init(&d->geometry, values.virtual_size, values.block_size, values.logical_sector_size,
                  values.parameter_flags & PARAMETER_HAS_PARENT);
    d->has_geometry = true;
    return 0;
}

/* ---- values ---- */

/* buf of text_bytes is scratch for both strings. */
static void dump_pair(const struct dump *d, const uint8_t *item, uint32_t index, char *text,
                      size_t text_bytes)
{
    struct locator_pair pair;

    locator_pair(item, index, &pair);
    give_begin(d, NULL);
    utf16_display(item + pair.key_offset, pair.key_length / 2, text, text_bytes);
    give_text(d, "key", text);
    utf16_display(item + pair.value_offset, pair.value_length / 2, text, text_bytes);
    give_text(d, "value", text);
    give_end(d);
}

static int dump_locator(const struct dump *d, const uint8_t *item, uint32_t length, uint64_t at)
{
    size_t text_bytes = UTF8_BYTES_FOR_UNITS(UINT16_MAX / 2);

    if (locator_check_structure(item, length, at) < 0) {
        give_error(d, VHDX_E_METADATA);
        return 0;
    }
    char *text = malloc(text_bytes);
    if (!text)
        return fail_memory("the parent locator");
    guid type = guid_get(item);
    give_guid(d, "locator-type", &type);
    give_begin_array(d, "pairs");
    for (uint32_t i = 0; i < locator_nr_pairs(item); i++)
        dump_pair(d, item, i, text, text_bytes);
    give_end(d);
    free(text);
    return give_error(d, locator_check(item, length, at));
}

static void dump_parameters(const struct dump *d, const struct metadata_values *v)
{
    give_bytes(d, "block-size", v->block_size);
    give_bool(d, "leave-blocks-allocated", v->parameter_flags & PARAMETER_LEAVE_ALLOCATED);
    give_bool(d, "has-parent", v->parameter_flags & PARAMETER_HAS_PARENT);
    if (v->parameter_flags & ~(uint32_t)PARAMETER_KNOWN_FLAGS)
        give_hex(d, "reserved-bits", v->parameter_flags & ~(uint32_t)PARAMETER_KNOWN_FLAGS);
}

/* A sound item's bytes. */
static int dump_value(const struct dump *d, enum metadata_known known, const uint8_t *raw, uint32_t length,
                      uint64_t at)
{
    struct metadata_values v;

    if (known <= METADATA_PHYSICAL_SECTOR_SIZE)
        metadata_value_decode(known, raw, &v);
    switch (known) {
    case METADATA_FILE_PARAMETERS:
        dump_parameters(d, &v);
        return 0;
    case METADATA_VIRTUAL_DISK_SIZE:
        give_bytes(d, "virtual-size", v.virtual_size);
        return 0;
    case METADATA_VIRTUAL_DISK_ID:
        give_guid(d, "virtual-disk-id", &v.disk_id);
        return 0;
    case METADATA_LOGICAL_SECTOR_SIZE:
        give_bytes(d, "logical-sector-size", v.logical_sector_size);
        return 0;
    case METADATA_PHYSICAL_SECTOR_SIZE:
        give_bytes(d, "physical-sector-size", v.physical_sector_size);
        return 0;
    case METADATA_PARENT_LOCATOR:
        return dump_locator(d, raw, length, at);
    case METADATA_CHS:
        if (length == CHS_BYTES) {
            give_number(d, "heads-per-cylinder", le32_get(raw));
            give_number(d, "sectors-per-track", le32_get(raw + 4));
        }
        return 0;
    default: /* opaque */
        return 0;
    }
}

static int read_and_dump_value(const struct dump *d, const struct metadata_entry *e)
{
    enum metadata_known known = metadata_identify(e);
    uint64_t at = d->metadata.file_offset + e->offset;

    if (known == METADATA_UNKNOWN || e->length == 0)
        return 0;
    uint8_t *raw = malloc(e->length); /* at most 1 MiB: it was checked */
    if (!raw)
        return fail_memory("a metadata item");
    int r = file_view_pread(&d->view, raw, e->length, at);
    r = r < 0 ? give_error(d, r) : dump_value(d, known, raw, e->length, at);
    free(raw);
    return r;
}

/* ---- the table ---- */

/* *shown: the known items that were decoded, one bit each.  Entries of a damaged table may all name the same large item, which is
 * shown once. */
static int dump_item(const struct dump *d, uint32_t index, unsigned *shown)
{
    struct metadata_entry e;

    metadata_table_entry(d->items, index, &e);
    enum metadata_known known = metadata_identify(&e);
    give_begin(d, NULL);
    give_guid(d, "id", &e.id);
    give_text(d, "name", known == METADATA_UNKNOWN ? "unknown" : metadata_rules[known].name);
    give_hex(d, "offset", e.offset);
    give_number(d, "length", e.length);
    give_bool(d, "user", e.flags & VHDX_METADATA_USER);
    give_bool(d, "virtual-disk", e.flags & VHDX_METADATA_VIRTUAL_DISK);
    give_bool(d, "required", e.flags & VHDX_METADATA_REQUIRED);
    int r = metadata_entry_check(&e, index, entry_offset(d, index), d->metadata.length);
    if (r < 0) {
        r = give_error(d, r);
    } else if (known != METADATA_UNKNOWN && *shown & 1u << known) {
        give_text(d, "error", "an item of this name came before; this one is not decoded");
    } else {
        if (known != METADATA_UNKNOWN)
            *shown |= 1u << known;
        r = read_and_dump_value(d, &e);
    }
    give_end(d);
    return r;
}

int dump_metadata(struct dump *d)
{
    unsigned shown = 0;
    int r = 0;

    give_begin(d, "metadata");
    if (!d->items) {
        give_text(d, "error",
                  d->has_metadata ? "the metadata table cannot be read"
                                  : "there is no usable metadata region");
        give_end(d);
        return 0;
    }
    give_hex(d, "offset", d->metadata.file_offset);
    give_bytes(d, "length", d->metadata.length);
    r = metadata_table_check(d->items, d->metadata.file_offset);
    if (r < 0) {
        r = give_error(d, r);
        give_end(d);
        return r;
    }
    give_number(d, "entry-count", metadata_table_nr_entries(d->items));
    give_begin_array(d, "items");
    for (uint32_t i = 0; r == 0 && i < metadata_table_nr_entries(d->items); i++)
        r = dump_item(d, i, &shown);
    give_end(d);
    give_end(d);
    return r;
}
