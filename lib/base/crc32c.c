/* SPDX-License-Identifier: MIT */
#include "base/crc32c.h"

#include <isa-l/crc.h>

uint32_t crc32c_feed(uint32_t running, const void *data, size_t length)
{
    const uint8_t *p = data;

    while (length > 0) { /* ISA-L takes int lengths */
        int n = length > (1 << 30) ? 1 << 30 : (int)length;
        running = crc32_iscsi((unsigned char *)(uintptr_t)p, n, running);
        p += n;
        length -= (size_t)n;
    }
    return running;
}

uint32_t crc32c_with_hole(const void *data, size_t length, size_t hole)
{
    static const uint8_t zeros[4];
    const uint8_t *p = data;
    uint32_t running = crc32c_feed((uint32_t)CRC32C_START, p, hole);

    running = crc32c_feed(running, zeros, sizeof zeros);
    running = crc32c_feed(running, p + hole + sizeof zeros, length - hole - sizeof zeros);
    return crc32c_end(running);
}
