/* SPDX-License-Identifier: MIT */
/* What the unit tests share: cmocka, and assertions about failures. */
#ifndef VHDX_TESTS_UNIT_H
#define VHDX_TESTS_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h" /* before cmocka, which has a macro fail() */
#include "vhdx.h"

#include <cmocka.h>

#undef fail     /* fail() is the library's from here on */
#undef fail_msg /* used cmocka's */

/* How many of nr random cases to try: under valgrind, where each takes fifty times as long, the other runs have tried them all,
 * and what is not initialised shows in the first ones. */
static inline unsigned random_cases(unsigned nr)
{
    return getenv("VHDX_FEW_CASES") ? (nr + 9) / 10 : nr;
}

/* Where each call of many fails, or is the last before a crash: of which ones to try every how many-th.  What a disk is like
 * afterwards the plain run says of each; what cleaning up does to memory, sanitizers say of every third. */
static inline unsigned moment_stride(void)
{
    const char *sanitizer = getenv("VHDX_SANITIZE");
    return sanitizer && strcmp(sanitizer, "none") != 0 ? 3 : 1;
}

/* result must be code, and the recorded message must contain text. */
static inline void expect_failure(int result, int code, const char *text, const char *file, int line)
{
    if (result != code) {
        print_error("%s:%d: result is %d (%s), not %d\n", file, line, result, error_message(), code);
        _fail(file, line);
    }
    if (!strstr(error_message(), text)) {
        print_error("%s:%d: message is \"%s\", without \"%s\"\n", file, line, error_message(), text);
        _fail(file, line);
    }
}

#define assert_fails(result, code, text) expect_failure((result), (code), (text), __FILE__, __LINE__)

/* result must be 0; else its message is shown. */
static inline void expect_success(int result, const char *file, int line)
{
    if (result != 0) {
        print_error("%s:%d: result is %d (%s)\n", file, line, result, error_message());
        _fail(file, line);
    }
}

#define assert_succeeds(result) expect_success((result), __FILE__, __LINE__)

/* Bytes from text such as "72 65 0a"; blanks anywhere between bytes.  Returns how many. */
static inline size_t bytes_from_hex(const char *hex, uint8_t *bytes, size_t capacity)
{
    size_t nr = 0;

    while (*hex) {
        unsigned value;
        if (*hex == ' ' || *hex == '\n') {
            hex++;
            continue;
        }
        assert_true(nr < capacity);
        assert_int_equal(sscanf(hex, "%2x", &value), 1);
        bytes[nr++] = (uint8_t)value;
        hex += 2;
    }
    return nr;
}

/* A small generator of random numbers that is the same everywhere (xorshift64). */
static inline uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Memory of exactly this size, so that sanitizers see every access beyond it. */
static inline void *exact_bytes(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);

    assert_non_null(p);
    memset(p, 0, bytes);
    return p;
}

#endif
