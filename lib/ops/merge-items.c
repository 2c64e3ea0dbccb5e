/* SPDX-License-Identifier: MIT */
/* 7.2: what belongs to the disk and not to the file goes with its content. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "image/image.h"
#include "image/items.h"
#include "image/writer.h"
#include "ops/merge.h"

struct item_changes {
    struct item_change *list;
    uint8_t **bytes; /* owned, as the rest */
    size_t nr;
};

/* Some writers set the wrong flags for the items that every image has. */
static bool belongs_to_disk(const struct metadata_entry *e)
{
    enum metadata_known known = metadata_identify(e);

    if (known != METADATA_UNKNOWN)
        return known == METADATA_VIRTUAL_DISK_SIZE || known == METADATA_VIRTUAL_DISK_ID || known == METADATA_LOGICAL_SECTOR_SIZE ||
               known == METADATA_PHYSICAL_SECTOR_SIZE ||
               (known != METADATA_FILE_PARAMETERS && known != METADATA_PARENT_LOCATOR && (e->flags & VHDX_METADATA_VIRTUAL_DISK));
    return e->flags & VHDX_METADATA_VIRTUAL_DISK;
}

static bool is_same_item(const struct metadata_entry *a, const struct metadata_entry *b)
{
    return guid_equal(&a->id, &b->id) && !((a->flags ^ b->flags) & VHDX_METADATA_USER);
}

static const struct metadata_entry *find(const struct image *img, const struct metadata_entry *wanted)
{
    for (uint32_t i = 0; i < img->nr_items; i++) {
        if (is_same_item(&img->items[i], wanted))
            return &img->items[i];
    }
    return NULL;
}

static int read_item(struct image *img, const struct metadata_entry *e, uint8_t **bytes)
{
    *bytes = malloc(e->length ? e->length : 1); /* at most 1 MiB, and inside the region */
    if (!*bytes)
        return fail_memory("a metadata item");
    uint64_t place = img->metadata->file_offset + e->offset;
    int r = e->length == 0 ? 0 : img->writer ? image_read_metadata(img, *bytes, e->length, place)
                                             : image_pread(img, *bytes, e->length, place);
    return r < 0 ? fail_in(r, "metadata item") : 0;
}

/* Strict in what is written, whatever the source says. */
static uint32_t flags_of(const struct metadata_entry *e)
{
    enum metadata_known known = metadata_identify(e);

    return known != METADATA_UNKNOWN && metadata_rules[known].flags ? metadata_rules[known].flags : e->flags;
}

/* Nothing need be written where both say the same. */
static int is_equal(struct image *img, const struct metadata_entry *there, const struct metadata_entry *e, const uint8_t *bytes)
{
    uint8_t *present;

    if (!there || there->length != e->length || there->flags != flags_of(e))
        return 0;
    int r = read_item(img, there, &present);
    if (r == 0)
        r = memcmp(present, bytes, e->length) == 0;
    free(present);
    return r;
}

static int take_over(struct item_changes *c, struct image *from, struct image *to, const struct metadata_entry *e)
{
    const struct metadata_entry *there = find(to, e);

    int r = read_item(from, e, &c->bytes[c->nr]);
    if (r == 0)
        r = is_equal(to, there, e, c->bytes[c->nr]);
    if (r != 0) {
        free(c->bytes[c->nr]);
        c->bytes[c->nr] = NULL;
        return r < 0 ? r : 0;
    }
    c->list[c->nr] = (struct item_change){.id = e->id, .flags = flags_of(e), .bytes = c->bytes[c->nr], .length = e->length};
    c->nr++;
    return 0;
}

static int list_changes(struct item_changes *c, struct image *from, struct image *to)
{
    int r = 0;

    c->list = calloc((size_t)from->nr_items + to->nr_items + 1, sizeof *c->list);
    c->bytes = calloc((size_t)from->nr_items + to->nr_items + 1, sizeof *c->bytes);
    if (!c->list || !c->bytes)
        return fail_memory("the metadata items");
    for (uint32_t i = 0; i < to->nr_items; i++) {
        const struct metadata_entry *e = &to->items[i];
        if (belongs_to_disk(e) && !find(from, e))
            c->list[c->nr++] = (struct item_change){.id = e->id, .flags = e->flags, .remove = true};
    }
    for (uint32_t i = 0; r == 0 && i < from->nr_items; i++) {
        if (belongs_to_disk(&from->items[i]))
            r = take_over(c, from, to, &from->items[i]);
    }
    return r;
}

int merge_items(struct merge *m)
{
    struct item_changes c = {0};
    int r = list_changes(&c, m->upper[0], merge_target_image(m));

    if (r == 0 && c.nr > 0)
        r = image_change_items(merge_target_image(m), c.list, c.nr);
    for (size_t i = 0; i < c.nr; i++)
        free(c.bytes[i]);
    free(c.list);
    free(c.bytes);
    return r;
}
