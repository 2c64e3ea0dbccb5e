/* SPDX-License-Identifier: MIT */
/* VHDX images for unit tests, written structure by structure into a storage: sound ones by default, and with
 * the means to damage each structure by itself.  The structures come from lib/format's encoders, whose output
 * is held against golden bytes in their own tests.
 *
 * Only pages that hold something are written, so images stay small whatever they claim.  Nothing here can
 * fail in a way that a test would want to see: failures abort. */
#ifndef VHDX_TESTS_IMAGE_BUILDER_H
#define VHDX_TESTS_IMAGE_BUILDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/bat.h"
#include "format/header.h"
#include "format/metadata.h"
#include "format/region-table.h"

struct storage;

struct build_item {
    guid id;
    uint32_t flags; /* enum vhdx_metadata_flags */
    const void *data;
    uint32_t length; /* bytes */
};

/* What an image is to be; image_plan_init() gives the layout of Windows (format section 1.4): log at 1 MiB,
 * metadata at 2 MiB, BAT at 3 MiB, 1 MiB each or what the BAT needs. */
struct image_plan {
    struct metadata_values values;
    const char *const (*locator)[2]; /* the parent locator's pairs; NULL: none */
    uint32_t nr_locator;
    const struct build_item *items; /* further metadata items */
    uint32_t nr_items;
    struct header header; /* copy 2; copy 1 is the same, one sequence number behind */
    uint64_t metadata_offset, bat_offset;
    uint32_t metadata_length, bat_length;
    const struct region *regions; /* further regions */
    uint32_t nr_regions;
    uint64_t file_length; /* bytes; blocks go to where the layout ends, plan_blocks_offset(), and beyond */
};

/* locator: NULL, or the pairs of a differencing image's parent locator, which stay the caller's. */
void image_plan_init(struct image_plan *p, uint64_t virtual_size, uint32_t block_size, uint32_t sector_size,
                     const char *const (*locator)[2], uint32_t nr_locator);
struct geometry image_plan_geometry(const struct image_plan *p);

/* The end of log, metadata and BAT. */
uint64_t image_plan_blocks_offset(const struct image_plan *p);

/* Write it all into the empty storage to. */
void build_image(const struct image_plan *p, struct storage *to);

/* A file in memory with such an image. */
struct storage *build_memory_image(const struct image_plan *p);

/* ---- single structures, with right checksums ---- */

void build_header(struct storage *s, unsigned n, const struct header *h);                     /* n: 0, 1 */
void build_regions(struct storage *s, unsigned n, const struct region *regions, uint32_t nr); /* n: 0, 1 */

/* Entries by what they are for; state and file_offset are not judged. */
void build_block(const struct image_plan *p, struct storage *s, uint64_t block_no, unsigned state,
                 uint64_t file_offset);
void build_bitmap(const struct image_plan *p, struct storage *s, uint64_t chunk_no, unsigned state,
                  uint64_t file_offset);

/* Set nr bits from first_bit on in the bitmap block at file_offset. */
void build_bits(struct storage *s, uint64_t file_offset, uint64_t first_bit, uint64_t nr, bool value);

/* ---- bytes ---- */

void build_bytes(struct storage *s, uint64_t file_offset, const void *bytes, size_t nr);
void build_fill(struct storage *s, uint64_t file_offset, uint8_t byte, size_t nr);
void build_number(struct storage *s, uint64_t file_offset, uint64_t value,
                  unsigned bytes); /* little-endian */

/* Make the checksum, in bytes 4 to 7, right again for a structure of so many bytes. */
void build_reseal(struct storage *s, uint64_t file_offset, size_t bytes);

/* The file offset of a region table's or metadata table's entry, and of a metadata item's value. */
uint64_t build_region_entry_offset(unsigned copy, uint32_t index);
uint64_t build_item_entry_offset(const struct image_plan *p, uint32_t index);
uint64_t build_item_offset(const struct image_plan *p, enum metadata_known item);

/* A copy of a whole file. */
struct storage *build_copy(struct storage *s);

/* ---- log entries ---- */

/* One descriptor. */
struct build_change {
    uint64_t file_offset;
    uint64_t zero_bytes; /* zero descriptor, if page is NULL */
    const uint8_t *page; /* data descriptor, PAGE_BYTES */
};

struct build_entry {
    uint32_t log_offset, tail;
    uint64_t sequence_no;
    guid log_guid;
    uint64_t flushed, last; /* FlushedFileOffset, LastFileOffset */
    const struct build_change *changes;
    uint32_t nr_changes;
};

/* The entry's bytes, malloc'ed, with checksum. */
uint8_t *build_entry_bytes(const struct build_entry *e, uint32_t *bytes);

/* Compute its checksum anew. */
void build_entry_seal(uint8_t *raw, uint32_t bytes);

/* Put bytes into the log at log_offset; what passes its end goes on at its start. */
void build_log_bytes(struct storage *s, const struct header *h, uint32_t log_offset, const uint8_t *raw,
                     uint32_t bytes);

/* Put an entry into the log that h names.  Returns its length. */
uint32_t build_log_entry(struct storage *s, const struct header *h, const struct build_entry *e);

#endif
