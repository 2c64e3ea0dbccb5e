/* SPDX-License-Identifier: MIT */
#include "base/guid.h"

#include <errno.h>
#include <stdio.h>
#include <sys/random.h>

#include "base/error.h"

/* Where the n-th byte of the text form lies in the file form. */
static const uint8_t text_order[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};

static bool dash_before(unsigned n)
{
    return n == 4 || n == 6 || n == 8 || n == 10;
}

bool guid_is_zero(const guid *g)
{
    static const guid zero;
    return guid_equal(g, &zero);
}

void guid_format(const guid *g, char text[VHDX_GUID_TEXT_BYTES])
{
    char *p = text;

    for (unsigned n = 0; n < 16; n++) {
        if (dash_before(n))
            *p++ = '-';
        p += snprintf(p, 3, "%02x", g->bytes[text_order[n]]);
    }
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int guid_parse(const char *text, guid *g)
{
    bool brace = *text == '{';
    const char *p = text + brace;

    for (unsigned n = 0; n < 16; n++) {
        if (dash_before(n) && *p++ != '-')
            return -EINVAL;
        int high = hex_digit(p[0]);
        int low = high < 0 ? -1 : hex_digit(p[1]);
        if (low < 0)
            return -EINVAL;
        g->bytes[text_order[n]] = (uint8_t)(high << 4 | low);
        p += 2;
    }
    if (brace && *p++ != '}')
        return -EINVAL;
    return *p == '\0' ? 0 : -EINVAL;
}

int guid_random(guid *g)
{
    enum { AT_VERSION = 7, AT_VARIANT = 8 }; /* in the order of the file */
    ssize_t n;

    do /* so few bytes come whole or not at all */
        n = getrandom(g->bytes, sizeof g->bytes, 0);
    while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof g->bytes)
        return fail_errno("cannot make a GUID: no random numbers");
    g->bytes[AT_VERSION] = (uint8_t)((g->bytes[AT_VERSION] & 0x0f) | 0x40);
    g->bytes[AT_VARIANT] = (uint8_t)((g->bytes[AT_VARIANT] & 0x3f) | 0x80);
    return 0;
}
