/* SPDX-License-Identifier: MIT */
#include "disk/shortcut.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "base/math.h"
#include "disk/disk.h"
#include "image/image.h"

/* A slot is one word, so it is never seen half changed: bits 0-29 the unit's place in MiB (MAX_FILE_BYTES), 0 if it does not lie
 * in one piece; bits 30-38 the layer; bits 39-47 the layer from which on the question was; bits 48-62 the unit's number, as far
 * as the slot's own does not say it; bit 63 set if in use. */
enum { SLOT_BITS = 14, NR_SLOTS = 1 << SLOT_BITS, LAYER_SHIFT = 30, FROM_SHIFT = 39, TAG_SHIFT = 48, LAYER_STRIDE = 4099 };

#define IN_USE (UINT64_C(1) << 63)

struct shortcuts {
    unsigned unit_shift;
    _Atomic uint64_t slots[NR_SLOTS];
};

void shortcut_init(struct vhdx_disk *disk)
{
    if (disk->nr_layers < 2 || disk->parent_left_out)
        return;
    disk->shortcuts = calloc(1, sizeof *disk->shortcuts);
    if (!disk->shortcuts)
        return;
    disk->shortcuts->unit_shift = disk->layers[0].img->geometry.block_shift;
    for (uint32_t i = 1; i < disk->nr_layers; i++) {
        if (disk->layers[i].img->geometry.block_shift < disk->shortcuts->unit_shift)
            disk->shortcuts->unit_shift = disk->layers[i].img->geometry.block_shift;
    }
}

static uint64_t key_of(uint64_t unit_no, uint32_t from)
{
    return IN_USE | unit_no >> SLOT_BITS << TAG_SHIFT | (uint64_t)from << FROM_SHIFT;
}

static _Atomic uint64_t *find_slot(struct shortcuts *all, uint64_t unit_no, uint32_t from)
{
    return &all->slots[(unit_no + (uint64_t)from * LAYER_STRIDE) % NR_SLOTS];
}

static bool read_slot(uint64_t slot, uint64_t key, uint32_t *layer, uint64_t *place)
{
    *layer = slot >> LAYER_SHIFT & 0x1ff;
    *place = (slot & 0x3fffffff) * OBJECT_ALIGNMENT;
    return slot >> FROM_SHIFT == key >> FROM_SHIFT;
}

/* Does the first layer leave the unit to its parents, at this moment? */
static bool falls_through(struct image *img, uint64_t guest_offset)
{
    struct bat_entry e;
    return bat_lookup(img, guest_offset >> img->geometry.block_shift, &e) == 0 && e.state == PAYLOAD_NOT_PRESENT;
}

/* Ask the parents one after the other, beginning with from.  False if they end inside the unit, or something is wrong: the long
 * way knows what to do. */
static bool descend(struct vhdx_disk *disk, uint32_t from, uint64_t start, uint64_t bytes, uint32_t *layer, uint64_t *place)
{
    struct bat_entry e;

    *place = 0;
    for (*layer = from; *layer < disk->nr_layers; ++*layer) {
        const struct layer *l = &disk->layers[*layer];
        const struct geometry *g = &l->img->geometry;
        if (!range_fits(start, bytes, l->size))
            return false;
        if (bat_lookup(l->img, start >> g->block_shift, &e) < 0)
            return false;
        if (e.state == PAYLOAD_FULLY_PRESENT)
            *place = e.file_offset + (start & (g->block_size - 1));
        if (e.state != PAYLOAD_NOT_PRESENT)
            return true;
    }
    --*layer; /* nobody has anything: what the last one says, zeros, is what it is */
    return true;
}

static bool in_one_unit(const struct shortcuts *all, uint64_t guest_offset, uint64_t bytes)
{
    return bytes > 0 && guest_offset >> all->unit_shift == (guest_offset + bytes - 1) >> all->unit_shift;
}

bool shortcut_below(struct vhdx_disk *disk, uint32_t from, uint64_t guest_offset, uint64_t bytes, struct shortcut *s)
{
    struct shortcuts *all = disk->shortcuts;
    uint64_t place;

    if (!all || from >= disk->nr_layers || !in_one_unit(all, guest_offset, bytes))
        return false;
    uint64_t unit_no = guest_offset >> all->unit_shift, key = key_of(unit_no, from);
    _Atomic uint64_t *slot = find_slot(all, unit_no, from);
    if (!read_slot(atomic_load_explicit(slot, memory_order_relaxed), key, &s->first_layer, &place)) {
        uint64_t start = unit_no << all->unit_shift;
        if (!descend(disk, from, start, min_u64(UINT64_C(1) << all->unit_shift, disk->size - start), &s->first_layer, &place))
            return false;
        uint64_t answer = key | (uint64_t)s->first_layer << LAYER_SHIFT | place / OBJECT_ALIGNMENT;
        atomic_store_explicit(slot, answer, memory_order_relaxed);
    }
    s->file_offset = place ? place + (guest_offset & ((UINT64_C(1) << all->unit_shift) - 1)) : 0;
    return true;
}

bool shortcut_find(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t bytes, struct shortcut *s)
{
    const struct shortcuts *all = disk->shortcuts;

    return all && range_fits(guest_offset, bytes, disk->size) && in_one_unit(all, guest_offset, bytes) &&
           falls_through(disk->layers[0].img, guest_offset) && shortcut_below(disk, 1, guest_offset, bytes, s);
}
