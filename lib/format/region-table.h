/* SPDX-License-Identifier: MIT */
/* The region table (format section 3): 64 KiB, twice.
 *
 *   header, 16 bytes                       entry, 32 bytes, from offset 16
 *   offset size  field                     offset size  field
 *        0    4  Signature  "regi"              0   16  Guid
 *        4    4  Checksum   over 64 KiB        16    8  FileOffset  MiB aligned, >= 1 MiB
 *        8    4  EntryCount <= 2047            24    4  Length      MiB aligned, > 0
 *       12    4  reserved                      28    4  bit 0: Required */
#ifndef VHDX_FORMAT_REGION_TABLE_H
#define VHDX_FORMAT_REGION_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/guid.h"
#include "format/layout.h"

struct region {
    guid id;
    uint64_t file_offset; /* bytes */
    uint32_t length;      /* bytes */
    uint32_t required_flags; /* the raw field; bit 0 is Required */
};

enum { REGION_REQUIRED = 1 };

extern const guid region_id_bat;
extern const guid region_id_metadata;

/* Signature, checksum and EntryCount are right (3.4 rule 2). */
bool region_table_is_valid(const uint8_t raw[REGION_TABLE_RAW_BYTES]);

/* For a valid copy: its number of entries, and one of them. */
uint32_t region_table_nr_entries(const uint8_t raw[REGION_TABLE_RAW_BYTES]);
void region_table_entry(const uint8_t raw[REGION_TABLE_RAW_BYTES], uint32_t index, struct region *r);
bool region_table_reserved_is_zero(const uint8_t raw[REGION_TABLE_RAW_BYTES]);

/* Encode nr regions with the checksum. */
void region_table_encode(const struct region *regions, uint32_t nr, uint8_t raw[REGION_TABLE_RAW_BYTES]);

static inline bool region_is_known(const struct region *r)
{
    return guid_equal(&r->id, &region_id_bat) || guid_equal(&r->id, &region_id_metadata);
}

/* Judge one entry by itself: alignment, not in the header area, length not zero, end representable; a known region
 * must lie inside the file; an unknown one must not be required.  VHDX_E_REGION, VHDX_E_TRUNCATED,
 * VHDX_E_UNSUPPORTED.  index and copy_offset go into the message. */
int region_check(const struct region *r, uint32_t index, uint64_t copy_offset, uint64_t file_length);

#endif
