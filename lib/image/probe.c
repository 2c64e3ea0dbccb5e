/* SPDX-License-Identifier: MIT */
#include "image/probe.h"

#include "format/identifier.h"
#include "storage/storage.h"

/* As far as anything is looked for: an ISO 9660 image says what it is behind 32 KiB of zeros. */
enum { FIRST_BYTES = 36 * 1024, LAST_BYTES = 512 };

int image_probe(struct storage *file, const char **what)
{
    uint8_t first[FIRST_BYTES], last[LAST_BYTES];
    size_t got, got_last;
    uint64_t length;

    int r = storage_length(file, &length);
    if (r == 0)
        r = storage_pread_zero_fill(file, first, sizeof first, 0, &got);
    if (r == 0)
        r = storage_pread_zero_fill(file, last, sizeof last, length > sizeof last ? length - sizeof last : 0, &got_last);
    return r < 0 ? r : identifier_probe(first, got, last, got_last, what);
}
