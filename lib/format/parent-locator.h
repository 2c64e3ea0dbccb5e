/* SPDX-License-Identifier: MIT */
/* The parent locator item (format section 8.1).
 *
 *   header, 20 bytes                       entry, 12 bytes, from offset 20
 *   offset size  field                     offset size  field
 *        0   16  LocatorType GUID               0    4  KeyOffset    in the item
 *       16    2  reserved                       4    4  ValueOffset  in the item
 *       18    2  KeyValueCount                  8    2  KeyLength    bytes, even, > 0
 *                                              10    2  ValueLength  bytes, even, > 0 */
#ifndef VHDX_FORMAT_PARENT_LOCATOR_H
#define VHDX_FORMAT_PARENT_LOCATOR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/guid.h"
#include "format/layout.h"

extern const guid locator_type_vhdx;

struct locator_pair {
    uint32_t key_offset, value_offset; /* bytes in the item */
    uint16_t key_length, value_length; /* bytes */
};

/* Judge the whole item: size, type, count, every pair's ranges, UTF-16, unique keys, parent_linkage present and a GUID.
 * VHDX_E_METADATA, VHDX_E_LIMIT, VHDX_E_UNSUPPORTED.  item_offset (in the file) goes into the message.
 * A locator without any path key is accepted here (the user can name the parent). */
int locator_check(const uint8_t *item, uint32_t item_length, uint64_t item_offset);

/* The same without parent_linkage: rules 46 and 47 of section 12, so that the checker can tell them from 48. */
int locator_check_structure(const uint8_t *item, uint32_t item_length, uint64_t item_offset);

/* The rest is for items that passed. */
uint32_t locator_nr_pairs(const uint8_t *item);
void locator_pair(const uint8_t *item, uint32_t index, struct locator_pair *pair);

/* Decode key or value into UTF-8.  buf of UTF8_BYTES_FOR_UNITS(65535 / 2) always suffices. */
int locator_text(const uint8_t *item, uint32_t offset, uint16_t length, char *utf8, size_t utf8_bytes);

/* Find a key (exact, case-sensitive, ASCII).  true and *pair if it is there. */
bool locator_find(const uint8_t *item, const char *key, struct locator_pair *pair);

/* parent_linkage, and parent_linkage2 (all zero if absent, zero or no GUID). */
void locator_linkage(const uint8_t *item, guid *linkage, guid *linkage2);

/* Encode an item of nr key/value pairs (UTF-8, no NULs) packed as Windows does: strings directly behind the entry
 * table, key then value.  Returns the length, or 0 if it does not fit in raw_bytes or a string is not UTF-8. */
uint32_t locator_encode(const char *const (*pairs)[2], uint32_t nr, uint8_t *raw, uint32_t raw_bytes);

#endif
