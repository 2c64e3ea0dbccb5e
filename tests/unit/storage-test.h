/* SPDX-License-Identifier: MIT */
/* What the tests of lib/storage, and of what is written to a storage, share: files in memory and questions about files. */
#ifndef VHDX_TESTS_STORAGE_TEST_H
#define VHDX_TESTS_STORAGE_TEST_H

#include "unit.h"

#include "format/identifier.h"
#include "storage/storage.h"

/* In memory; NULL, 0: an empty one. */
static inline struct storage *new_file(const void *data, size_t bytes)
{
    struct storage *s;

    assert_succeeds(storage_memory_new(data, bytes, &s));
    return s;
}

static inline uint64_t length_of(struct storage *s)
{
    uint64_t length;

    assert_succeeds(storage_length(s, &length));
    return length;
}

static inline uint64_t usage_of(struct storage *s)
{
    uint64_t usage;

    assert_succeeds(storage_usage(s, &usage));
    return usage;
}

/* Is it an image, as far as its first bytes say? */
static inline bool has_identifier(struct storage *s)
{
    uint8_t first[IDENTIFIER_USED_BYTES];

    assert_succeeds(storage_pread_zero_fill(s, first, sizeof first, 0, NULL));
    return identifier_signature_valid(first);
}

#endif
