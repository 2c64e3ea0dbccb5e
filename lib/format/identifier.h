/* SPDX-License-Identifier: MIT */
/* The file type identifier block at offset 0 (format section 1.2), and what other formats begin with.
 *
 *   offset size  field
 *        0    8  Signature  "vhdxfile"
 *        8  512  Creator    UTF-16LE, NUL optional, for people only
 *      520       reserved   zero up to 65536 */
#ifndef VHDX_FORMAT_IDENTIFIER_H
#define VHDX_FORMAT_IDENTIFIER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/layout.h"

enum { IDENTIFIER_USED_BYTES = 520 };

/* first: at least IDENTIFIER_USED_BYTES of the file's beginning. */
bool identifier_signature_valid(const uint8_t *first);

/* Creator for display.  Returns how many characters had to be replaced. */
size_t identifier_creator(const uint8_t *first, char *utf8, size_t utf8_bytes);

/* Encode the block.  creator: ASCII, at most IDENTIFIER_CREATOR_UNITS characters. */
void identifier_encode(const char *creator, uint8_t raw[IDENTIFIER_RAW_BYTES]);

/* Name the kind of a file by its first and last bytes (enum vhdx_file_kind), and say in *what, a static text such
 * as "a VHD (Virtual PC) image, dynamic", how a person would call it.  first and last may be shorter than 512
 * bytes when the file is. */
int identifier_probe(const uint8_t *first, size_t first_bytes, const uint8_t *last, size_t last_bytes,
                     const char **what);

#endif
