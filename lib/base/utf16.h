/* SPDX-License-Identifier: MIT */
/* UTF-16LE, as names and paths are stored. */
#ifndef VHDX_BASE_UTF16_H
#define VHDX_BASE_UTF16_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* UTF-8 bytes that nr_units UTF-16 code units can need, with the NUL. */
#define UTF8_BYTES_FOR_UNITS(nr_units) ((size_t)(nr_units) * 3 + 1)

/* Would utf16_decode() accept nr_units code units at p, given room? */
bool utf16_is_valid(const uint8_t *p, size_t nr_units);

/* Decode strictly nr_units code units at p into utf8, NUL-terminated.  0; -EILSEQ for an unpaired surrogate or a
 * NUL inside; -ENAMETOOLONG if utf8_bytes is too small.  No message is recorded. */
int utf16_decode(const uint8_t *p, size_t nr_units, char *utf8, size_t utf8_bytes);

/* Decode for display: stops at NUL, shows unpaired surrogates and control characters as U+FFFD, cuts what does
 * not fit.  Returns how many replacements were made. */
size_t utf16_display(const uint8_t *p, size_t nr_units, char *utf8, size_t utf8_bytes);

#endif
