/* SPDX-License-Identifier: MIT */
/* CRC-32C (Castagnoli) by ISA-L (format section 0.4). */
#ifndef VHDX_BASE_CRC32C_H
#define VHDX_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

enum { CRC32C_START = -1 };

/* Feed bytes to a running value that began as (uint32_t)CRC32C_START; crc32c_end() turns it into the checksum. */
uint32_t crc32c_feed(uint32_t running, const void *data, size_t length);

static inline uint32_t crc32c_end(uint32_t running)
{
    return ~running;
}

/* Checksum of a structure whose own checksum stands in the four bytes at hole, which count as zero. */
uint32_t crc32c_with_hole(const void *data, size_t length, size_t hole);

#endif
