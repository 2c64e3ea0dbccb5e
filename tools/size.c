/* SPDX-License-Identifier: MIT */
#include "size.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char units[] = "KMGTPE";

/* How far the suffix shifts a number; -EINVAL if it is none. */
static int suffix_shift(const char *suffix)
{
    if (*suffix == '\0' || strcasecmp(suffix, "B") == 0)
        return 0;
    for (int i = 0; units[i]; i++) {
        if (strncasecmp(suffix, &units[i], 1) == 0 &&
            (suffix[1] == '\0' || strcasecmp(suffix + 1, "iB") == 0))
            return 10 * (i + 1);
    }
    return -EINVAL;
}

static int parse_hex(const char *digits, uint64_t *bytes)
{
    char *end;

    if (digits[strspn(digits, "0123456789abcdefABCDEF")] || *digits == '\0')
        return -EINVAL;
    errno = 0;
    *bytes = strtoull(digits, &end, 16);
    return errno ? -ERANGE : 0;
}

/* The value of the digits behind the point, shifted: at most one unit, so it fits. */
static uint64_t fraction(const char *digits, size_t nr_digits, int shift)
{
    double value = 0, place = 0.1;

    for (size_t i = 0; i < nr_digits; i++, place /= 10)
        value += (digits[i] - '0') * place;
    return (uint64_t)(value * (double)(UINT64_C(1) << shift));
}

int size_parse(const char *text, uint64_t *bytes)
{
    uint64_t whole;
    char *end;

    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
        return parse_hex(text + 2, bytes);
    if (*text < '0' || *text > '9') /* strtoull() would take spaces and signs */
        return -EINVAL;
    errno = 0;
    whole = strtoull(text, &end, 10);
    if (errno)
        return -ERANGE;

    const char *digits = *end == '.' ? end + 1 : end;
    size_t nr_digits = *end == '.' ? strspn(digits, "0123456789") : 0;
    int shift = suffix_shift(digits + nr_digits);
    if (shift < 0 || (*end == '.' && (nr_digits == 0 || shift == 0)))
        return -EINVAL;
    if (__builtin_mul_overflow(whole, UINT64_C(1) << shift, bytes) ||
        __builtin_add_overflow(*bytes, fraction(digits, nr_digits, shift), bytes))
        return -ERANGE;
    return 0;
}

const char *size_short(uint64_t bytes, char text[SIZE_TEXT_BYTES])
{
    int unit = -1;
    double value = (double)bytes;

    while (value >= 1024 && units[unit + 1]) {
        value /= 1024;
        unit++;
    }
    if (unit < 0)
        snprintf(text, SIZE_TEXT_BYTES, "%" PRIu64 " bytes", bytes);
    else /* three digits that count, but never 1.02e+03 */
        snprintf(text, SIZE_TEXT_BYTES, value < 999.5 ? "%.3g %ciB" : "%.0f %ciB", value, units[unit]);
    return text;
}

const char *size_full(uint64_t bytes, char text[SIZE_TEXT_BYTES])
{
    if (bytes < 1024)
        return size_short(bytes, text);
    char rounded[SIZE_TEXT_BYTES];
    snprintf(text, SIZE_TEXT_BYTES, "%.30s (%" PRIu64 " bytes)", size_short(bytes, rounded), bytes);
    return text;
}
