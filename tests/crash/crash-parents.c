/* SPDX-License-Identifier: MIT */
#include "crash-parents.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "image-builder.h"
#include "image/image.h"

static const char *const locator[][2] = {
    {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
    {"relative_path", ".\\parent.vhdx"},
};

static void must(int result)
{
    if (result < 0) {
        fprintf(stderr, "making parents: %s\n", error_message());
        abort();
    }
}

static uint64_t below_limit(uint64_t *random, uint64_t limit)
{
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return *random % limit;
}

static struct image *open_one(struct crash_parents *p, struct storage *file, unsigned flags)
{
    struct storage *s;
    struct image *img;

    must(fault_wrap(&p->fault, file, &s));
    must(image_open(s, flags, 64, &img));
    return img;
}

/* A write of the guest of those days: one run in a listed block. */
static void write_run(struct vhdx_disk *disk, struct history *h, uint32_t *below, uint32_t i, uint64_t at, uint64_t bytes)
{
    uint64_t guest = h->blocks[i] * h->block_bytes + at, cell = (i * h->block_bytes + at) / CELL_BYTES;
    struct iovec iov = {malloc(bytes), bytes};
    uint32_t no = history_begin(h, REQUEST_WRITE, guest, bytes, false, 0);

    history_fill(no, guest, bytes, iov.iov_base);
    must(disk_pwritev(disk, &iov, 1, guest, 0));
    free(iov.iov_base);
    for (uint64_t n = 0; n < bytes / CELL_BYTES; n++)
        below[cell + n] = no + 1;
}

/* Some blocks stay empty, some have data where guests write much, some everywhere, and some lose it again. */
static void fill_layer(struct vhdx_disk *disk, struct history *h, uint32_t *below, uint64_t *random)
{
    for (uint32_t i = 0; i < h->nr_blocks; i++) {
        uint64_t guest = h->blocks[i] * h->block_bytes, visible = min_u64(h->block_bytes, disk->size - guest);
        uint64_t kind = below_limit(random, 5);
        if (kind == 1)
            write_run(disk, h, below, i, 0, visible);
        for (unsigned n = 0; kind > 1 && n < 4; n++) {
            uint64_t at = below_limit(random, min_u64(visible, KIB(64)) / CELL_BYTES) * CELL_BYTES;
            write_run(disk, h, below, i, at, min_u64((1 + below_limit(random, 40)) * CELL_BYTES, visible - at));
        }
        if (kind == 4 && below_limit(random, 2) == 0) {
            must(disk_discard(disk, guest, visible, 0));
            memset(below + i * (h->block_bytes / CELL_BYTES), 0, visible / CELL_BYTES * sizeof *below);
        }
    }
}

struct crash_parents *crash_parents_new(const struct crash_parents_setup *setup, struct history *h)
{
    struct crash_parents *p = calloc(1, sizeof *p);
    uint32_t *below = calloc(h->nr_cells, sizeof *below);
    uint64_t random = setup->seed * 2654435761u + 99;

    if (!p || !below)
        abort();
    fault_init(&p->fault);
    p->nr = setup->nr;
    for (uint32_t n = p->nr; n-- > 0;) {
        struct image_plan plan;
        image_plan_init(&plan, setup->virtual_size, (uint32_t)MIB(setup->block_mib), setup->sector_size, n + 1 < p->nr ? locator : NULL,
                        ARRAY_LENGTH(locator));
        p->files[n] = build_memory_image(&plan);
        struct vhdx_disk disk = {.layers = p->layers + n, .nr_layers = p->nr - n, .size = setup->virtual_size};
        p->layers[n] = (struct layer){.img = open_one(p, p->files[n], IMAGE_WRITABLE), .path = strdup("parent"), .size = disk.size};
        fill_layer(&disk, h, below, &random);
        must(image_close(p->layers[n].img));
        p->layers[n].img = open_one(p, p->files[n], 0);
        p->before[n] = build_copy(p->files[n]);
    }
    history_begin_child(h, below);
    free(below);
    return p;
}

void crash_parents_free(struct crash_parents *p)
{
    if (!p)
        return;
    for (uint32_t n = 0; n < p->nr; n++) {
        image_close(p->layers[n].img);
        free(p->layers[n].path);
        storage_close(p->files[n]);
        storage_close(p->before[n]);
    }
    fault_destroy(&p->fault);
    free(p);
}

static bool same_content(struct storage *a, struct storage *b)
{
    uint64_t length_a, length_b;
    uint8_t piece[2][65536];

    must(storage_length(a, &length_a));
    must(storage_length(b, &length_b));
    for (uint64_t at = 0; length_a == length_b && at < length_a; at += sizeof piece[0]) {
        size_t n = min_u64(sizeof piece[0], length_a - at);
        must(storage_pread(a, piece[0], n, at));
        must(storage_pread(b, piece[1], n, at));
        if (memcmp(piece[0], piece[1], n) != 0)
            return false;
    }
    return length_a == length_b;
}

const char *crash_parents_check(const struct crash_parents *p)
{
    for (uint32_t n = 0; p && n < p->nr; n++) {
        if (!same_content(p->files[n], p->before[n]))
            return "a parent's file has changed";
    }
    return NULL;
}
