/* SPDX-License-Identifier: MIT */
/* A chain of random images in memory, and what a guest must see in it: built together, layer by layer, so
 * that nothing of the library's reading has a part in the expectation. */
#ifndef VHDX_TESTS_CHAIN_MODEL_H
#define VHDX_TESTS_CHAIN_MODEL_H

#include <stdint.h>

#include "disk/disk.h"

enum { MODEL_SECTOR = 512 };

/* Who decides a sector, as vhdx_map() tells. */
struct model_sector {
    uint32_t depth, flags;
    uint64_t file_offset; /* of data */
};

struct chain_model {
    struct vhdx_disk *disk; /* end with disk_close() before chain_model_free() */
    uint64_t size;          /* bytes */
    uint8_t *bytes;         /* what the guest reads */
    struct model_sector *sectors;
    struct storage **files; /* of each layer, child first */
    uint32_t nr_layers;
};

struct chain_model_options {
    uint32_t nr_layers;
    uint32_t sector_size;
    uint64_t max_bytes;    /* of the largest layer */
    bool same_size;        /* no layer is longer or shorter than another */
    bool leave_parent_out; /* the last layer has a parent too, which is not there */
};

/* *random is the state of a generator of random numbers; the same gives the same chain. */
void chain_model_make(struct chain_model *m, const struct chain_model_options *options, uint64_t *random);
void chain_model_free(struct chain_model *m);

#endif
