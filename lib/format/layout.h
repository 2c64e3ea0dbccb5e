/* SPDX-License-Identifier: MIT */
/* Offsets, sizes, signatures and limits of the format, each with its section of docs/format.md. */
#ifndef VHDX_FORMAT_LAYOUT_H
#define VHDX_FORMAT_LAYOUT_H

#include "base/math.h"

/* 1.1: the first MiB */
#define IDENTIFIER_OFFSET UINT64_C(0x00000)
#define HEADER_OFFSET(n) ((uint64_t)0x10000 * ((n) + 1))       /* n = 0, 1 */
#define REGION_TABLE_OFFSET(n) ((uint64_t)0x10000 * ((n) + 3)) /* n = 0, 1 */
#define HEADER_AREA_BYTES MIB(1)
#define OBJECT_ALIGNMENT MIB(1)
#define MIN_FILE_BYTES UINT64_C(0x50000) /* identifier, headers, region tables */
#define MAX_FILE_BYTES (UINT64_C(1) << 50) /* 11 row 88: a longer file is refused */

enum {
    IDENTIFIER_RAW_BYTES = 65536,
    IDENTIFIER_CREATOR_UNITS = 256,
    HEADER_RAW_BYTES = 4096,
    REGION_TABLE_RAW_BYTES = 65536,
    MAX_REGIONS = 2047,
    METADATA_TABLE_RAW_BYTES = 65536,
    MAX_METADATA_ITEMS = 2047,
    MAX_USER_ITEMS = 1024,
    LOG_SECTOR_BYTES = 4096,
    PAGE_BYTES = 4096, /* what the log protects in one piece */
    MAX_LOCATOR_PAIRS = 256,
    MAX_CHAIN_DEPTH = 256,
};

#define MAX_METADATA_ITEM_BYTES MIB(1)
#define MIN_METADATA_REGION_BYTES KIB(64)
#define MAX_METADATA_REGION_BYTES MIB(128)
#define MAX_METADATA_CATEGORY_BYTES MIB(40)
#define MAX_LOG_BYTES GIB(1)
#define MIN_BLOCK_BYTES MIB(1)
#define MAX_BLOCK_BYTES MIB(256)
#define MAX_VIRTUAL_BYTES TIB(64)
#define BITMAP_BLOCK_BYTES MIB(1)
#define SECTORS_PER_CHUNK (UINT64_C(1) << 23) /* 5.2: one bitmap block holds so many bits */

#endif
