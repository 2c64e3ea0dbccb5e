/* SPDX-License-Identifier: MIT */
/* The plan of a new image and the bytes of its structures.  No I/O here: image-writer.c puts them into a file.
 *
 * The order of things in the file is Windows' (format section 1.4): header area, log, metadata region, BAT region,
 * payload.  Where the size of the disk is known only after its payload was written, the payload comes directly
 * behind the log, and metadata and BAT behind the payload.
 *
 * Blocks that have space lie one behind the other in guest order, each of them whole. */
#ifndef VHDX_OPS_NEW_IMAGE_H
#define VHDX_OPS_NEW_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/guid.h"
#include "format/bat.h"
#include "format/header.h"
#include "format/metadata.h"
#include "format/region-table.h"

struct mib_set;

/* A metadata item besides the ones that every image has. */
struct new_item {
    guid id;
    uint32_t flags;   /* enum vhdx_metadata_flags */
    uint8_t *bytes;   /* the caller's */
    uint32_t length;  /* bytes */
};

struct new_image {
    /* By new_image_init(); whoever makes a child adds locator and items before the plan. */
    struct metadata_values values; /* the virtual size comes with the plan */
    uint32_t log_length;           /* bytes */
    uint8_t *locator;              /* parent locator item, the caller's; NULL without parent */
    uint32_t locator_length;       /* bytes */
    const struct new_item *items;  /* further items, the caller's */
    uint32_t nr_items;
    guid file_write_guid, data_write_guid;

    /* By new_image_plan*(). */
    struct geometry geometry;
    uint64_t payload_offset, metadata_offset, bat_offset; /* bytes in the file */
    uint32_t metadata_length, bat_length;                 /* bytes, of the regions */
    uint64_t file_length;                                 /* bytes */
};

static inline bool new_image_is_fixed(const struct new_image *n)
{
    return n->values.parameter_flags & PARAMETER_LEAVE_ALLOCATED;
}

static inline uint64_t new_image_log_end(const struct new_image *n)
{
    return HEADER_AREA_BYTES + n->log_length;
}

/* -EINVAL if options ask for a child, where none can be made. */
int new_image_refuse_child(const struct vhdx_create_options *options);

/* Judge everything in options but the virtual size, fill in the defaults, and make the GUIDs.  -EINVAL. */
int new_image_init(struct new_image *n, const struct vhdx_create_options *options);

/* Lay out the file for a disk of virtual_size bytes; of a dynamic one no block has space yet.  -EINVAL for a size that no
 * disk of these sectors can have. */
int new_image_plan(struct new_image *n, uint64_t virtual_size);

/* So many blocks of a planned dynamic image have space. */
void new_image_set_stored(struct new_image *n, uint64_t nr_stored);

/* Lay out the file behind a payload that begins at new_image_log_end(): nr_stored blocks of a dynamic disk, all of a fixed
 * one. */
int new_image_plan_behind_payload(struct new_image *n, uint64_t virtual_size, uint64_t nr_stored);

/* copy is 0 or 1. */
void new_image_encode_header(const struct new_image *n, unsigned copy, uint8_t raw[HEADER_RAW_BYTES]);
void new_image_encode_region_table(const struct new_image *n, uint8_t raw[REGION_TABLE_RAW_BYTES]);
void new_image_encode_identifier(uint8_t raw[IDENTIFIER_RAW_BYTES]);

/* Table and items: so many bytes from the start of the metadata region.  -ENOMEM. */
uint32_t new_image_metadata_bytes(const struct new_image *n);
int new_image_encode_metadata(const struct new_image *n, uint8_t *raw);

/* How far the BAT is encoded; all zero at the beginning. */
struct new_bat {
    uint64_t bat_index;
    uint64_t nr_placed; /* blocks that got their place */
};

/* Encode the next nr entries into raw; the blocks of present (NULL: all) have space.  true if any entry is not zero. */
bool new_image_encode_bat(const struct new_image *n, const struct mib_set *present, struct new_bat *at, uint64_t nr,
                          uint8_t *raw);

#endif
