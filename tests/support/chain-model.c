/* SPDX-License-Identifier: MIT */
#include "chain-model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/shortcut.h"
#include "doubles.h"
#include "image-builder.h"
#include "image/image.h"
#include "storage/storage.h"

static const char *const locator[][2] = {
    {"relative_path", ".\\parent.vhdx"},
    {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
};

/* One layer while it is being made, on top of what its parents give. */
struct layer_build {
    struct image_plan plan;
    struct storage *file;
    uint32_t depth;
    uint64_t *random;
    uint64_t next_block; /* file offset of free space */
    uint8_t *bits;       /* of the first chunk, which is all there is */
    uint8_t *bytes;      /* the guest's view so far */
    struct model_sector *sectors;
};

static void must(int result)
{
    if (result < 0) {
        fprintf(stderr, "making a chain: %s\n", error_message());
        abort();
    }
}

static void *must_allocate(size_t bytes)
{
    void *p = calloc(1, bytes ? bytes : 1);

    if (!p)
        abort();
    return p;
}

static uint64_t below(uint64_t *random, uint64_t limit)
{
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return *random % limit;
}

/* Every byte of every layer is its own. */
static void fill(uint8_t *to, size_t nr, uint64_t salt)
{
    for (size_t i = 0; i < nr; i += 8) {
        uint64_t word = (salt + i) * UINT64_C(0x9e3779b97f4a7c15);
        word ^= word >> 29;
        memcpy(to + i, &word, min_u64(8, nr - i));
    }
}

/* Bits for one block: runs of all lengths. */
static void draw_bits(struct layer_build *b, uint64_t first_bit, uint64_t nr)
{
    bool value = below(b->random, 2);

    for (uint64_t at = 0; at < nr;) {
        uint64_t n = below(b->random, 4) ? 1 + below(b->random, 20) : 1 + below(b->random, nr);
        for (; n > 0 && at < nr; n--, at++) {
            uint64_t bit = first_bit + at;
            b->bits[bit / 8] = (uint8_t)((b->bits[bit / 8] & ~(1u << bit % 8)) | (unsigned)value << bit % 8);
        }
        value = !value;
    }
}

static bool bit_is_set(const struct layer_build *b, uint64_t guest_offset)
{
    uint64_t bit = guest_offset / b->plan.values.logical_sector_size;
    return b->bits[bit / 8] >> (bit % 8) & 1;
}

/* Write a whole block and let the guest see those of its sectors that are present. */
static void place_data(struct layer_build *b, uint64_t block_no, unsigned state, uint64_t visible)
{
    const uint32_t block_size = b->plan.values.block_size;
    uint64_t guest = block_no * block_size, place = b->next_block;
    uint8_t *data = must_allocate(block_size);

    b->next_block += block_size + (below(b->random, 3) ? 0 : MIB(1));
    fill(data, block_size, (uint64_t)b->depth << 48 ^ place << 8);
    build_bytes(b->file, place, data, block_size);
    build_block(&b->plan, b->file, block_no, state, place);
    for (uint64_t at = 0; at < visible; at += MODEL_SECTOR) {
        if (state == PAYLOAD_PARTIALLY_PRESENT && !bit_is_set(b, guest + at))
            continue;
        memcpy(b->bytes + guest + at, data + at, MODEL_SECTOR);
        b->sectors[(guest + at) / MODEL_SECTOR] =
            (struct model_sector){b->depth, VHDX_EXTENT_DATA | VHDX_EXTENT_PRESENT, place + at};
    }
    free(data);
}

static void place_zeros(struct layer_build *b, uint64_t block_no, unsigned state, uint64_t visible)
{
    uint64_t guest = block_no * b->plan.values.block_size;

    build_block(&b->plan, b->file, block_no, state, 0);
    if (state == PAYLOAD_NOT_PRESENT)
        return; /* the parent, or what stands there already */
    memset(b->bytes + guest, 0, visible);
    for (uint64_t at = 0; at < visible; at += MODEL_SECTOR)
        b->sectors[(guest + at) / MODEL_SECTOR] =
            (struct model_sector){b->depth, VHDX_EXTENT_ZERO | VHDX_EXTENT_PRESENT, 0};
}

static void build_blocks(struct layer_build *b)
{
    struct geometry g = image_plan_geometry(&b->plan);
    static const unsigned states[] = {0, 0, 0, 1, 2, 3, 6, 6, 7, 7, 7};
    uint64_t bitmap = b->next_block, sparse = below(b->random, 3); /* how much falls through to the parents */

    if (g.has_parent)
        b->next_block += MIB(1);
    for (uint64_t block_no = 0; block_no < g.nr_blocks; block_no++) {
        unsigned state = states[below(b->random, ARRAY_LENGTH(states) - (g.has_parent ? 0 : 3))];
        if (below(b->random, 3) < sparse)
            state = PAYLOAD_NOT_PRESENT;
        uint64_t sectors = g.block_size / g.sector_size;
        draw_bits(b, block_no * sectors, sectors); /* stale, unless the block is partially present */
        if (state >= PAYLOAD_FULLY_PRESENT)
            place_data(b, block_no, state, block_visible_bytes(&g, block_no));
        else
            place_zeros(b, block_no, state, block_visible_bytes(&g, block_no));
    }
    if (g.has_parent) {
        build_bitmap(&b->plan, b->file, 0, BITMAP_PRESENT, bitmap);
        build_bytes(b->file, bitmap, b->bits, MIB(1));
    }
}

/* Put a layer of so many bytes on top of the model, which is a parent of m->size bytes, or nothing. */
static void add_on_top(struct chain_model *m, const struct chain_model_options *o, uint32_t depth,
                       uint64_t size, uint64_t *random)
{
    bool has_parent = depth + 1 < o->nr_layers || o->leave_parent_out;
    struct layer_build b = {.depth = depth, .random = random, .bits = must_allocate(MIB(1))};
    struct image *img;

    image_plan_init(&b.plan, size, (uint32_t)MIB(1) << below(random, 2), o->sector_size,
                    has_parent ? locator : NULL, has_parent ? ARRAY_LENGTH(locator) : 0);
    b.next_block = image_plan_blocks_offset(&b.plan);
    b.plan.file_length = b.next_block;
    b.file = build_memory_image(&b.plan);
    b.bytes = must_allocate(size);
    b.sectors = must_allocate(size / MODEL_SECTOR * sizeof *b.sectors);
    if (m->bytes)
        memcpy(b.bytes, m->bytes, min_u64(size, m->size));
    for (uint64_t s = 0; s < size / MODEL_SECTOR; s++) {
        b.sectors[s] = (struct model_sector){depth + has_parent, VHDX_EXTENT_ZERO, 0};
        if (m->sectors && s < m->size / MODEL_SECTOR)
            b.sectors[s] = m->sectors[s];
    }
    build_blocks(&b);
    must(image_open(b.file, 0, 32, &img));
    m->disk->layers[depth] = (struct layer){.img = img, .path = strdup("layer"), .size = size};
    m->files[depth] = b.file;
    free(m->bytes);
    free(m->sectors);
    free(b.bits);
    m->bytes = b.bytes;
    m->sectors = b.sectors;
    m->size = size;
}

void chain_model_make(struct chain_model *m, const struct chain_model_options *o, uint64_t *random)
{
    uint64_t units = o->max_bytes / o->sector_size, size = o->max_bytes;

    *m = (struct chain_model){.nr_layers = o->nr_layers};
    m->disk = must_allocate(sizeof *m->disk);
    m->disk->layers = must_allocate(o->nr_layers * sizeof *m->disk->layers);
    m->disk->nr_layers = o->nr_layers;
    m->disk->parent_left_out = o->leave_parent_out;
    m->files = must_allocate(o->nr_layers * sizeof(struct storage *));
    for (uint32_t depth = o->nr_layers; depth-- > 0;) {
        if (!o->same_size && below(random, 2))
            size = (units / 2 + below(random, units / 2 + 1)) * o->sector_size;
        add_on_top(m, o, depth, size, random);
    }
    m->disk->size = m->size;
    shortcut_init(m->disk);
}

void chain_model_free(struct chain_model *m)
{
    free(m->bytes);
    free(m->sectors);
    free(m->files);
}
