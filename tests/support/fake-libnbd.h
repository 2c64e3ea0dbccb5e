/* SPDX-License-Identifier: MIT */
/* An NBD server without a server: the linker puts libnbd_load() here (--wrap=libnbd_load) in front of the library's, and what it
 * loads answers each request at once, in the thread that makes it. */
#ifndef VHDX_TESTS_FAKE_LIBNBD_H
#define VHDX_TESTS_FAKE_LIBNBD_H

#include <stdbool.h>
#include <stdint.h>

/* The one export, by whatever URI.  Set it up before it is opened. */
struct fake_export {
    uint64_t size; /* bytes */
    uint32_t min_block;
    uint8_t *content; /* size bytes; NULL: reading gives zeros, and writing does nothing */

    /* What it says of its zeros, in ranges of so many bytes, one answer for all that it is asked about. */
    uint32_t range_bytes;
    bool (*is_zero)(uint64_t offset);

    unsigned nr_questions; /* about zeros */
};

extern struct fake_export fake_export;

#endif
