/* SPDX-License-Identifier: MIT */
/* The metadata region (format section 7): a table of 64 KiB, then items anywhere in the region.
 *
 *   header, 32 bytes                       entry, 32 bytes, from offset 32
 *   offset size  field                     offset size  field
 *        0    8  Signature  "metadata"          0   16  ItemId
 *        8    2  reserved                      16    4  Offset   in the region, >= 64 KiB; 0 iff Length is 0
 *       10    2  EntryCount <= 2047            20    4  Length   <= 1 MiB
 *       12   20  reserved                      24    4  Flags    1 user, 2 virtual disk, 4 required
 *                                              28    4  reserved */
#ifndef VHDX_FORMAT_METADATA_H
#define VHDX_FORMAT_METADATA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/guid.h"
#include "format/layout.h"

struct metadata_entry {
    guid id;
    uint32_t offset; /* bytes from the start of the region */
    uint32_t length; /* bytes */
    uint32_t flags;  /* enum vhdx_metadata_flags, and bits that should be zero */
    uint32_t reserved;
};

/* The items this code knows. */
enum metadata_known {
    METADATA_FILE_PARAMETERS,
    METADATA_VIRTUAL_DISK_SIZE,
    METADATA_VIRTUAL_DISK_ID,
    METADATA_LOGICAL_SECTOR_SIZE,
    METADATA_PHYSICAL_SECTOR_SIZE,
    METADATA_PARENT_LOCATOR,
    METADATA_CHS,        /* OpenVMM's, ignored even if required (7.3) */
    METADATA_PMEM_LABEL, /* the same */
    METADATA_INCOMPLETE, /* the file was never finished */
    NR_METADATA_KNOWN,
    METADATA_UNKNOWN = NR_METADATA_KNOWN,
};

struct metadata_rule {
    guid id;
    const char *name;
    uint32_t length; /* bytes that the item must have; 0: any */
    uint32_t flags;  /* that it should have; 0: not known */
};

extern const struct metadata_rule metadata_rules[NR_METADATA_KNOWN];

/* Which known item is this?  User items are never known. */
enum metadata_known metadata_identify(const struct metadata_entry *e);

/* Signature and EntryCount are right; VHDX_E_METADATA otherwise. */
int metadata_table_check(const uint8_t raw[METADATA_TABLE_RAW_BYTES], uint64_t region_offset);

/* For a checked table. */
uint32_t metadata_table_nr_entries(const uint8_t raw[METADATA_TABLE_RAW_BYTES]);
void metadata_table_entry(const uint8_t raw[METADATA_TABLE_RAW_BYTES], uint32_t index, struct metadata_entry *e);
bool metadata_table_reserved_is_zero(const uint8_t raw[METADATA_TABLE_RAW_BYTES]);

/* Encode nr entries into a fresh table. */
void metadata_table_encode(const struct metadata_entry *entries, uint32_t nr,
                           uint8_t raw[METADATA_TABLE_RAW_BYTES]);

/* Judge one entry by itself: place inside the region, length limits, length of a known item (7.1, 7.3).  An unknown
 * required item, and one marking the file unfinished, give VHDX_E_UNSUPPORTED and VHDX_E_INCOMPLETE; all else
 * VHDX_E_METADATA.  entry_offset (in the file) and index go into the message. */
int metadata_entry_check(const struct metadata_entry *e, uint32_t index, uint64_t entry_offset,
                         uint64_t region_length);

/* The fixed items' values. */
struct metadata_values {
    uint32_t block_size;       /* bytes */
    uint32_t parameter_flags;  /* enum below, and bits that should be zero */
    uint64_t virtual_size;     /* bytes */
    guid disk_id;
    uint32_t logical_sector_size;
    uint32_t physical_sector_size;
};

enum { PARAMETER_LEAVE_ALLOCATED = 1, PARAMETER_HAS_PARENT = 2, PARAMETER_KNOWN_FLAGS = 3 };

/* Decode a known fixed item of the right length into its member of values. */
void metadata_value_decode(enum metadata_known item, const uint8_t *raw, struct metadata_values *values);

/* Encode one; returns its length in bytes (at most 16). */
uint32_t metadata_value_encode(enum metadata_known item, const struct metadata_values *values, uint8_t *raw);

/* Judge the values (7.4): block size, sector sizes, virtual size.  VHDX_E_METADATA. */
int metadata_values_check(const struct metadata_values *values);

#endif
