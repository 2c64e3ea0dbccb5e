/* SPDX-License-Identifier: MIT */
#include "disk-model.h"

#include <inttypes.h>

#include "base/error.h"
#include "base/le.h"
#include "base/math.h"
#include "image/image.h"
#include "require.h"
#include "vhdx.h"

struct truth {
    uint32_t flags, depth; /* as in struct vhdx_extent */
    uint64_t file_offset;
    bool unknown; /* only the storage knows */
};

/* One entry of a table, zero where the file ends before. */
static uint64_t bytes_at(struct image *img, uint64_t offset, unsigned bytes)
{
    uint8_t raw[8] = {0};

    if (offset >= img->file_length)
        return 0;
    int r = image_pread(img, raw, (size_t)min_u64(bytes, img->file_length - offset), offset);
    REQUIRE(r == 0, "0x%" PRIx64 ": %s", offset, error_message());
    return le64_get(raw);
}

enum answer { ANSWER_DATA, ANSWER_ZERO, ANSWER_ABSENT, ANSWER_PARENT };

/* What one image says; *place is where the byte is stored. */
static enum answer ask(struct image *img, uint64_t guest_offset, uint64_t *place)
{
    uint64_t block_size = img->values.block_size, sector_size = img->values.logical_sector_size;
    uint64_t chunk_ratio = (UINT64_C(1) << 23) * sector_size / block_size;
    uint64_t block = guest_offset / block_size, chunk = block / chunk_ratio;
    uint64_t entry = bytes_at(img, img->bat->file_offset + 8 * (block + chunk), 8);
    bool has_parent = img->values.parameter_flags & 2;

    *place = entry / MIB(1) * MIB(1) + guest_offset % block_size;
    switch (entry % 8) {
    case 0:
        return has_parent ? ANSWER_PARENT : ANSWER_ABSENT;
    case 6:
        return ANSWER_DATA;
    case 7:
        break;
    default:
        return ANSWER_ZERO;
    }
    uint64_t bitmap = bytes_at(img, img->bat->file_offset + 8 * ((chunk + 1) * chunk_ratio + chunk), 8);
    uint64_t sector = guest_offset % (chunk_ratio * block_size) / sector_size;
    uint64_t byte = bytes_at(img, bitmap / MIB(1) * MIB(1) + sector / 8, 1);
    return byte >> sector % 8 & 1 ? ANSWER_DATA : ANSWER_PARENT;
}

static struct truth find_truth(struct vhdx_disk *disk, uint64_t guest_offset)
{
    struct truth t = {0};

    for (; t.depth < disk->nr_layers; t.depth++) {
        const struct layer *layer = &disk->layers[t.depth];
        if (guest_offset >= layer->size) {
            t.flags = VHDX_EXTENT_ZERO;
            return t;
        }
        if (!layer->img) {
            t.unknown = true;
            return t;
        }
        enum answer a = ask(layer->img, guest_offset, &t.file_offset);
        if (a == ANSWER_DATA) {
            t.flags = VHDX_EXTENT_DATA | VHDX_EXTENT_PRESENT;
            return t;
        }
        t.file_offset = 0;
        if (a != ANSWER_PARENT) {
            t.flags = VHDX_EXTENT_ZERO | (a == ANSWER_ZERO ? VHDX_EXTENT_PRESENT : 0);
            return t;
        }
    }
    REQUIRE(false, "byte %" PRIu64 " is a parent's that was not opened", guest_offset);
    return t;
}

void require_truth(struct vhdx_disk *disk, const struct vhdx_extent *e, uint64_t guest_offset)
{
    struct truth t = find_truth(disk, guest_offset);
    uint64_t place = e->flags & VHDX_EXTENT_DATA ? e->file_offset + (guest_offset - e->guest_offset) : 0;

    REQUIRE(e->depth == t.depth && (t.unknown || (e->flags == t.flags && place == t.file_offset)),
            "byte %" PRIu64 ": flags %x, depth %u, file offset 0x%" PRIx64 ", should be %x, %u, 0x%" PRIx64,
            guest_offset, e->flags, e->depth, place, t.flags, t.depth, t.file_offset);
}

void require_items_apart(const struct vhdx_disk *disk, uint32_t depth)
{
    enum { MAX_ITEMS = 40 };
    const struct image *img = disk->layers[depth].img;

    for (uint32_t i = 0; i < img->nr_items && i < MAX_ITEMS; i++) {
        const struct metadata_entry *a = &img->items[i];
        for (uint32_t k = 0; k < i; k++) {
            const struct metadata_entry *b = &img->items[k];
            REQUIRE(a->length == 0 || b->length == 0 ||
                        !ranges_overlap(a->offset, a->length, b->offset, b->length),
                    "items %u and %u overlap", i, k);
        }
    }
}

void require_payload_apart(const struct vhdx_disk *disk, const struct vhdx_extent *e)
{
    const struct image *img = disk->layers[e->depth].img;

    if (!img || !(e->flags & VHDX_EXTENT_DATA))
        return;
    REQUIRE(e->file_offset >= MIB(1), "payload in the headers, at 0x%" PRIx64, e->file_offset);
    for (uint32_t i = 0; i < img->nr_regions; i++)
        REQUIRE(
            !ranges_overlap(e->file_offset, e->length, img->regions[i].file_offset, img->regions[i].length),
            "payload at 0x%" PRIx64 " in region %u", e->file_offset, i);
    if (img->header.log_length > 0 && header_check_log(&img->header, img->file_length) == 0)
        REQUIRE(!ranges_overlap(e->file_offset, e->length, img->header.log_offset, img->header.log_length),
                "payload at 0x%" PRIx64 " in the log", e->file_offset);
}
