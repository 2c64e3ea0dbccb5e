/* SPDX-License-Identifier: MIT */
#include "base/utf16.h"

#include <errno.h>
#include <stdbool.h>

#include "base/le.h"

enum { REPLACEMENT = 0xfffd };

/* Take one code point of the nr_units at p; *used says how many units it had.  -1: unpaired surrogate. */
static int32_t take(const uint8_t *p, size_t nr_units, size_t *used)
{
    uint32_t high = le16_get(p);

    *used = 1;
    if (high < 0xd800 || high > 0xdfff)
        return (int32_t)high;
    if (high > 0xdbff || nr_units < 2)
        return -1;
    uint32_t low = le16_get(p + 2);
    if (low < 0xdc00 || low > 0xdfff)
        return -1;
    *used = 2;
    return (int32_t)(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
}

static size_t put_utf8(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* Append one code point and keep room for the NUL. */
static bool append(uint32_t c, char *utf8, size_t utf8_bytes, size_t *at)
{
    char encoded[4];
    size_t n = put_utf8(c, encoded);

    if (*at + n >= utf8_bytes)
        return false;
    for (size_t i = 0; i < n; i++)
        utf8[(*at)++] = encoded[i];
    return true;
}

bool utf16_is_valid(const uint8_t *p, size_t nr_units)
{
    size_t used;

    for (size_t i = 0; i < nr_units; i += used)
        if (take(p + 2 * i, nr_units - i, &used) <= 0)
            return false;
    return true;
}

int utf16_decode(const uint8_t *p, size_t nr_units, char *utf8, size_t utf8_bytes)
{
    size_t at = 0, used;

    for (size_t i = 0; i < nr_units; i += used) {
        int32_t c = take(p + 2 * i, nr_units - i, &used);
        if (c <= 0)
            return -EILSEQ;
        if (!append((uint32_t)c, utf8, utf8_bytes, &at))
            return -ENAMETOOLONG;
    }
    if (at >= utf8_bytes)
        return -ENAMETOOLONG;
    utf8[at] = '\0';
    return 0;
}

static bool is_control(int32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

size_t utf16_display(const uint8_t *p, size_t nr_units, char *utf8, size_t utf8_bytes)
{
    size_t at = 0, used, replaced = 0;

    for (size_t i = 0; i < nr_units; i += used) {
        int32_t c = take(p + 2 * i, nr_units - i, &used);
        if (c == 0)
            break;
        if (c < 0 || is_control(c)) {
            c = REPLACEMENT;
            replaced++;
        }
        if (!append((uint32_t)c, utf8, utf8_bytes, &at))
            break;
    }
    if (utf8_bytes > 0)
        utf8[at] = '\0';
    return replaced;
}
