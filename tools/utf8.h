/* SPDX-License-Identifier: MIT */
#ifndef UTF8_H
#define UTF8_H

#include <stdint.h>

enum { UTF8_INVALID = -1 };

/* The character at *text, which is advanced past it.  UTF8_INVALID, and one byte further, if the bytes there
 * are no shortest-form UTF-8 of a Unicode scalar value.  Not to be called at the terminating NUL. */
int32_t utf8_next(const char **text);

#endif
