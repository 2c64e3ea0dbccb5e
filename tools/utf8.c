/* SPDX-License-Identifier: MIT */
#include "utf8.h"

int32_t utf8_next(const char **text)
{
    static const int32_t smallest[] = {0, 0x80, 0x800, 0x10000}; /* by number of bytes that follow */
    const unsigned char *p = (const unsigned char *)*text;
    int32_t c = *p;
    int nr_following;

    (*text)++;
    if (c < 0x80)
        return c;
    if (c >= 0xc2 && c < 0xe0)
        nr_following = 1;
    else if (c >= 0xe0 && c < 0xf0)
        nr_following = 2;
    else if (c >= 0xf0 && c < 0xf5)
        nr_following = 3;
    else
        return UTF8_INVALID;
    c &= 0x3f >> nr_following;
    for (int i = 1; i <= nr_following; i++) {
        if ((p[i] & 0xc0) != 0x80) /* the terminating NUL too ends here */
            return UTF8_INVALID;
        c = c << 6 | (p[i] & 0x3f);
    }
    if (c < smallest[nr_following] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        return UTF8_INVALID;
    *text += nr_following;
    return c;
}
