/* SPDX-License-Identifier: MIT */
/* Arithmetic on numbers that come from files: every sum and product is checked before use (H1). */
#ifndef VHDX_BASE_MATH_H
#define VHDX_BASE_MATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KIB(n) ((uint64_t)(n) << 10)
#define MIB(n) ((uint64_t)(n) << 20)
#define GIB(n) ((uint64_t)(n) << 30)
#define TIB(n) ((uint64_t)(n) << 40)

#define ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))

/* true: *sum holds a + b; false: it does not fit. */
static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

/* Does [offset, offset + length) lie in [0, limit)?  No overflow for any input. */
static inline bool range_fits(uint64_t offset, uint64_t length, uint64_t limit)
{
    return offset <= limit && length <= limit - offset;
}

/* Do two ranges, neither of which overflows, share a byte? */
static inline bool ranges_overlap(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
    return a < b + b_length && b < a + a_length;
}

static inline bool is_power_of_two(uint64_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}

/* unit is a power of two. */
static inline bool is_aligned(uint64_t n, uint64_t unit)
{
    return (n & (unit - 1)) == 0;
}

/* n must be so small that the result fits; unit is a power of two. */
static inline uint64_t align_up(uint64_t n, uint64_t unit)
{
    return (n + unit - 1) & ~(unit - 1);
}

static inline uint64_t align_down(uint64_t n, uint64_t unit)
{
    return n & ~(unit - 1);
}

static inline uint64_t div_round_up(uint64_t n, uint64_t d)
{
    return n / d + (n % d != 0);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

#endif
