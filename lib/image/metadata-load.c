/* SPDX-License-Identifier: MIT */
#include "image/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/parent-locator.h"
#include "image/image.h"

static uint64_t entry_offset(const struct image *img, uint32_t index)
{
    return img->metadata->file_offset + 32 + UINT64_C(32) * index;
}

static int read_table(struct image *img, uint8_t *raw)
{
    if (img->metadata->length < MIN_METADATA_REGION_BYTES || img->metadata->length > MAX_METADATA_REGION_BYTES)
        return fail(img->metadata->length < MIN_METADATA_REGION_BYTES ? VHDX_E_METADATA : VHDX_E_LIMIT,
                    "metadata region at 0x%" PRIx64 ": length 0x%" PRIx32 " is not between 64 KiB and 128 MiB",
                    img->metadata->file_offset, img->metadata->length);
    int r = image_pread(img, raw, METADATA_TABLE_RAW_BYTES, img->metadata->file_offset);
    return r < 0 ? fail_in(r, "metadata table") : metadata_table_check(raw, img->metadata->file_offset);
}

static int compare_offset(const void *a, const void *b)
{
    const struct metadata_entry *const *x = a, *const *y = b;
    return (*x)->offset < (*y)->offset ? -1 : (*x)->offset > (*y)->offset;
}

static int compare_id(const void *a, const void *b)
{
    const struct metadata_entry *const *x = a, *const *y = b;
    int r = memcmp((*x)->id.bytes, (*y)->id.bytes, sizeof(*x)->id.bytes);
    if (r != 0)
        return r;
    return (int)((*x)->flags & VHDX_METADATA_USER) - (int)((*y)->flags & VHDX_METADATA_USER);
}

/* Items may neither overlap nor share a name (7.1).  sorted holds pointers to all items, in any order. */
static int check_disjoint(const struct image *img, const struct metadata_entry **sorted)
{
    qsort(sorted, img->nr_items, sizeof *sorted, compare_id);
    for (uint32_t i = 1; i < img->nr_items; i++) {
        if (compare_id(&sorted[i - 1], &sorted[i]) == 0) {
            char text[VHDX_GUID_TEXT_BYTES];
            guid_format(&sorted[i]->id, text);
            return fail(VHDX_E_METADATA, "metadata table at 0x%" PRIx64 ": item %s is listed twice",
                        img->metadata->file_offset, text);
        }
    }
    qsort(sorted, img->nr_items, sizeof *sorted, compare_offset);
    uint64_t end = 0;
    for (uint32_t i = 0; i < img->nr_items; i++) {
        if (sorted[i]->length == 0)
            continue;
        if (sorted[i]->offset < end)
            return fail(VHDX_E_METADATA,
                        "metadata table at 0x%" PRIx64 ": the item at 0x%" PRIx32 " of the region overlaps the one that "
                        "ends at 0x%" PRIx64,
                        img->metadata->file_offset, sorted[i]->offset, end);
        end = (uint64_t)sorted[i]->offset + sorted[i]->length;
    }
    return 0;
}

/* Limits over all items: 1024 user items, 40 MiB for each of the two name spaces. */
static int check_totals(const struct image *img)
{
    uint64_t bytes[2] = {0, 0};
    uint32_t nr_user = 0;

    for (uint32_t i = 0; i < img->nr_items; i++) {
        bool user = img->items[i].flags & VHDX_METADATA_USER;
        nr_user += user;
        bytes[user] += img->items[i].length;
    }
    if (nr_user > MAX_USER_ITEMS)
        return fail(VHDX_E_METADATA, "metadata table at 0x%" PRIx64 ": %" PRIu32 " user items, more than the %d allowed",
                    img->metadata->file_offset, nr_user, MAX_USER_ITEMS);
    if (max_u64(bytes[0], bytes[1]) > MAX_METADATA_CATEGORY_BYTES)
        return fail(VHDX_E_LIMIT, "metadata table at 0x%" PRIx64 ": %" PRIu64 " bytes of items, beyond the limit of %" PRIu64,
                    img->metadata->file_offset, max_u64(bytes[0], bytes[1]), MAX_METADATA_CATEGORY_BYTES);
    return 0;
}

static int load_entries(struct image *img, const uint8_t *raw)
{
    img->nr_items = metadata_table_nr_entries(raw);
    img->items = calloc(img->nr_items + 1, sizeof *img->items);
    const struct metadata_entry **sorted = calloc(img->nr_items + 1, sizeof *sorted);
    int r = img->items && sorted ? 0 : fail_memory("the metadata table");

    for (uint32_t i = 0; r == 0 && i < img->nr_items; i++) {
        metadata_table_entry(raw, i, &img->items[i]);
        sorted[i] = &img->items[i];
        r = metadata_entry_check(&img->items[i], i, entry_offset(img, i), img->metadata->length);
    }
    if (r == 0)
        r = check_totals(img);
    if (r == 0)
        r = check_disjoint(img, sorted);
    free(sorted);
    return r;
}

static const struct metadata_entry *find_known(const struct image *img, enum metadata_known item)
{
    for (uint32_t i = 0; i < img->nr_items; i++) {
        if (metadata_identify(&img->items[i]) == item)
            return &img->items[i];
    }
    return NULL;
}

/* The five items that every image must have. */
static int load_values(struct image *img)
{
    for (enum metadata_known k = METADATA_FILE_PARAMETERS; k <= METADATA_PHYSICAL_SECTOR_SIZE; k++) {
        const struct metadata_entry *e = find_known(img, k);
        uint8_t raw[16];
        if (!e)
            return fail(VHDX_E_METADATA, "metadata table at 0x%" PRIx64 ": the item \"%s\" is missing",
                        img->metadata->file_offset, metadata_rules[k].name);
        int r = image_pread(img, raw, metadata_rules[k].length, img->metadata->file_offset + e->offset);
        if (r < 0)
            return fail_in(r, "metadata item \"%s\"", metadata_rules[k].name);
        metadata_value_decode(k, raw, &img->values);
    }
    return metadata_values_check(&img->values);
}

static int load_locator(struct image *img)
{
    const struct metadata_entry *e = find_known(img, METADATA_PARENT_LOCATOR);

    if (!(img->values.parameter_flags & PARAMETER_HAS_PARENT))
        return 0; /* a locator without the flag means nothing (7.4) */
    if (!e || e->length == 0)
        return fail(VHDX_E_METADATA,
                    "metadata table at 0x%" PRIx64 ": the image says that it has a parent, but the item \"%s\" is missing",
                    img->metadata->file_offset, metadata_rules[METADATA_PARENT_LOCATOR].name);
    uint64_t place = img->metadata->file_offset + e->offset;
    img->locator = malloc(e->length); /* at most 1 MiB, and inside the region */
    if (!img->locator)
        return fail_memory("the parent locator");
    img->locator_length = e->length;
    int r = image_pread(img, img->locator, e->length, place);
    return r < 0 ? fail_in(r, "parent locator") : locator_check(img->locator, e->length, place);
}

int metadata_load(struct image *img)
{
    uint8_t *raw = malloc(METADATA_TABLE_RAW_BYTES);
    int r = raw ? read_table(img, raw) : fail_memory("the metadata table");

    if (r == 0)
        r = load_entries(img, raw);
    free(raw);
    if (r == 0)
        r = load_values(img);
    if (r == 0)
        r = load_locator(img);
    return r;
}
