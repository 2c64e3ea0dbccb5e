/* SPDX-License-Identifier: MIT */
#include "image/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "image/image.h"

/* The copy that counts (3.4): the first if it is valid, else the second.  A copy that cannot be read is invalid. */
static int read_table(struct image *img, uint8_t *raw, uint64_t *copy_offset)
{
    int r = 0;

    for (unsigned n = 0; n < 2; n++) {
        *copy_offset = REGION_TABLE_OFFSET(n);
        r = image_pread(img, raw, REGION_TABLE_RAW_BYTES, *copy_offset);
        if (r == 0 && region_table_is_valid(raw))
            return 0;
    }
    if (r < 0 && r != VHDX_E_TRUNCATED)
        return fail_in(r, "region tables");
    return fail(VHDX_E_REGION,
                "region tables at 0x%" PRIx64 " and 0x%" PRIx64 ": neither copy has the right signature and checksum; "
                "the file is damaged, restore it from a backup",
                REGION_TABLE_OFFSET(0), REGION_TABLE_OFFSET(1));
}

static int compare_region_id(const void *a, const void *b)
{
    const struct region *const *x = a, *const *y = b;
    return memcmp((*x)->id.bytes, (*y)->id.bytes, sizeof(*x)->id.bytes);
}

static int check_unique(const struct image *img, uint64_t copy_offset)
{
    const struct region **sorted = calloc(img->nr_regions + 1, sizeof *sorted);
    int r = 0;

    if (!sorted)
        return fail_memory("the region table");
    for (uint32_t i = 0; i < img->nr_regions; i++)
        sorted[i] = &img->regions[i];
    qsort(sorted, img->nr_regions, sizeof *sorted, compare_region_id);
    for (uint32_t i = 1; r == 0 && i < img->nr_regions; i++) {
        if (guid_equal(&sorted[i - 1]->id, &sorted[i]->id)) {
            char text[VHDX_GUID_TEXT_BYTES];
            guid_format(&sorted[i]->id, text);
            r = fail(VHDX_E_REGION, "region table at 0x%" PRIx64 ": region %s is listed twice; the table is damaged",
                     copy_offset, text);
        }
    }
    free(sorted);
    return r;
}

static int compare_start(const void *a, const void *b)
{
    uint64_t x = ((const struct reserved_range *)a)->start, y = ((const struct reserved_range *)b)->start;
    return x < y ? -1 : x > y;
}

/* Header area, log and regions, sorted; they may not overlap (3.4 rule 9). */
static int lay_out_reserved(struct image *img, uint64_t copy_offset)
{
    img->reserved = calloc(img->nr_regions + 2, sizeof *img->reserved);
    if (!img->reserved)
        return fail_memory("the region table");
    img->reserved[img->nr_reserved++] = (struct reserved_range){0, HEADER_AREA_BYTES};
    if (img->header.log_length > 0 && header_check_log(&img->header, img->file_length) == 0)
        img->reserved[img->nr_reserved++] =
            (struct reserved_range){img->header.log_offset, img->header.log_offset + img->header.log_length};
    for (uint32_t i = 0; i < img->nr_regions; i++)
        img->reserved[img->nr_reserved++] = (struct reserved_range){
            img->regions[i].file_offset, img->regions[i].file_offset + img->regions[i].length};
    qsort(img->reserved, img->nr_reserved, sizeof *img->reserved, compare_start);
    for (size_t i = 1; i < img->nr_reserved; i++) {
        const struct reserved_range *a = &img->reserved[i - 1], *b = &img->reserved[i];
        if (a->end > b->start)
            return fail(VHDX_E_REGION,
                        "region table at 0x%" PRIx64 ": what lies at 0x%" PRIx64 "..0x%" PRIx64
                        " overlaps what lies at 0x%" PRIx64 "..0x%" PRIx64
                        " (header area, log and regions must be apart); the table or the header is damaged",
                        copy_offset, a->start, a->end, b->start, b->end);
    }
    return 0;
}

static int find_known(struct image *img, uint64_t copy_offset)
{
    for (uint32_t i = 0; i < img->nr_regions; i++) {
        if (guid_equal(&img->regions[i].id, &region_id_bat))
            img->bat = &img->regions[i];
        else if (guid_equal(&img->regions[i].id, &region_id_metadata))
            img->metadata = &img->regions[i];
    }
    if (!img->bat || !img->metadata)
        return fail(VHDX_E_REGION, "region table at 0x%" PRIx64 ": no %s region among its %" PRIu32 " entries",
                    copy_offset, img->bat ? "metadata" : "BAT", img->nr_regions);
    return 0;
}

int regions_load(struct image *img)
{
    uint8_t *raw = malloc(REGION_TABLE_RAW_BYTES);
    uint64_t copy_offset;
    int r = raw ? read_table(img, raw, &copy_offset) : fail_memory("the region table");

    if (r < 0)
        goto out;
    img->nr_regions = region_table_nr_entries(raw);
    img->regions = calloc(img->nr_regions + 1, sizeof *img->regions);
    if (!img->regions) {
        r = fail_memory("the region table");
        goto out;
    }
    for (uint32_t i = 0; r == 0 && i < img->nr_regions; i++) {
        region_table_entry(raw, i, &img->regions[i]);
        r = region_check(&img->regions[i], i, copy_offset, img->file_length);
    }
    if (r == 0)
        r = check_unique(img, copy_offset);
    if (r == 0)
        r = find_known(img, copy_offset);
    if (r == 0)
        r = lay_out_reserved(img, copy_offset);
out:
    free(raw);
    return r;
}
