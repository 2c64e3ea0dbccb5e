/* SPDX-License-Identifier: MIT */
/* Block allocation table: geometry and entries (format section 5).
 *
 *   bits   field
 *    0-2   State
 *    3-19  reserved
 *   20-63  FileOffsetMB
 *
 * Payload blocks and sector bitmap blocks share the table: after every chunk_ratio payload entries comes the entry
 * of their chunk's bitmap block. */
#ifndef VHDX_FORMAT_BAT_H
#define VHDX_FORMAT_BAT_H

#include <stdbool.h>
#include <stdint.h>

#include "format/layout.h"

enum payload_state {
    PAYLOAD_NOT_PRESENT = 0,
    PAYLOAD_UNDEFINED = 1,
    PAYLOAD_ZERO = 2,
    PAYLOAD_UNMAPPED = 3,
    PAYLOAD_FULLY_PRESENT = 6,
    PAYLOAD_PARTIALLY_PRESENT = 7,
};

enum bitmap_state { BITMAP_NOT_PRESENT = 0, BITMAP_PRESENT = 6 };

enum { BAT_ENTRY_BYTES = 8, BAT_ENTRIES_PER_PAGE = PAGE_BYTES / BAT_ENTRY_BYTES };

struct geometry {
    uint64_t virtual_size; /* bytes */
    uint32_t block_size;   /* bytes, power of two */
    uint32_t sector_size;  /* bytes, logical, power of two */
    unsigned block_shift;  /* block_size == 1 << block_shift */
    unsigned chunk_shift;  /* payload blocks per chunk == 1 << chunk_shift */
    uint64_t nr_blocks;    /* payload blocks */
    uint64_t nr_chunks;    /* sector bitmap blocks that the disk can have */
    uint64_t nr_bat_entries;
    bool has_parent;
};

/* From values that metadata_values_check() passed. */
void geometry_init(struct geometry *g, uint64_t virtual_size, uint32_t block_size, uint32_t sector_size,
                   bool has_parent);

static inline uint64_t bat_index_of_block(const struct geometry *g, uint64_t block_no)
{
    return block_no + (block_no >> g->chunk_shift);
}

static inline uint64_t bat_index_of_bitmap(const struct geometry *g, uint64_t chunk_no)
{
    return ((chunk_no + 1) << g->chunk_shift) + chunk_no;
}

static inline uint64_t chunk_of_block(const struct geometry *g, uint64_t block_no)
{
    return block_no >> g->chunk_shift;
}

/* Is the entry at bat_index a bitmap's?  If so *no is its chunk, else its payload block (which may be beyond the
 * disk in the last chunk). */
bool bat_index_is_bitmap(const struct geometry *g, uint64_t bat_index, uint64_t *no);

/* Bytes of block block_no that lie inside the virtual disk. */
static inline uint64_t block_visible_bytes(const struct geometry *g, uint64_t block_no)
{
    uint64_t start = block_no << g->block_shift;
    return min_u64(g->block_size, g->virtual_size - start);
}

struct bat_entry {
    unsigned state;       /* enum payload_state or bitmap_state, or a value that is neither */
    uint64_t file_offset; /* bytes */
    bool reserved_is_zero;
};

static inline struct bat_entry bat_entry_decode(uint64_t raw)
{
    return (struct bat_entry){
        .state = (unsigned)(raw & 7), .file_offset = raw & ~UINT64_C(0xfffff), .reserved_is_zero = (raw & 0xffff8) == 0};
}

static inline uint64_t bat_entry_encode(unsigned state, uint64_t file_offset)
{
    return file_offset | state;
}

/* Does the entry, in its state, own space in the file?  States 6 and 7; 1 and 3 with an offset (soft anchors). */
bool payload_owns_space(const struct bat_entry *e);

/* Judge one payload entry by itself: reserved bits, state legal for the disk type, an offset where the state needs one,
 * space inside a file of file_length bytes (a last block may be cut short behind the disk's end, 10.3; if
 * short_block is not NULL it says whether this one is).  entry_offset is the entry's place in the file.
 * VHDX_E_BAT, VHDX_E_TRUNCATED. */
int payload_entry_check(const struct geometry *g, uint64_t block_no, uint64_t raw, uint64_t entry_offset,
                        uint64_t file_length, bool *short_block);

/* The same for a bitmap entry of a differencing image. */
int bitmap_entry_check(const struct geometry *g, uint64_t chunk_no, uint64_t raw, uint64_t entry_offset,
                       uint64_t file_length);

const char *payload_state_name(unsigned state);

/* Sector bitmaps (section 6): bit i of a slice is bit i % 8, least significant first, of byte i / 8. */

/* Where block_no's slice begins in its chunk's bitmap block, and how long it is, in bytes. */
static inline uint64_t bitmap_slice_bytes(const struct geometry *g)
{
    return g->block_size / g->sector_size / 8;
}

static inline uint64_t bitmap_slice_offset(const struct geometry *g, uint64_t block_no)
{
    return (block_no & ((UINT64_C(1) << g->chunk_shift) - 1)) * bitmap_slice_bytes(g);
}

/* Length in bits of the run that starts at first_bit and has all bits equal, within [first_bit, end_bit) of bits;
 * *value says which. */
uint64_t bitmap_run(const uint8_t *bits, uint64_t first_bit, uint64_t end_bit, bool *value);

#endif
