/* SPDX-License-Identifier: MIT */
/* Sizes as people write and read them. */
#ifndef SIZE_H
#define SIZE_H

#include <stddef.h>
#include <stdint.h>

/* Bytes from text: decimal, with a fraction and one of K M G T P E (powers of 1024; "KiB" and any case mean
 * the same) if wanted, or hexadecimal after 0x.  "KB" is refused, since it means 1000 to some and 1024 to
 * others.  Returns 0, -EINVAL, or -ERANGE. */
int size_parse(const char *text, uint64_t *bytes);

enum { SIZE_TEXT_BYTES = 64 };

/* "1.5 GiB". */
const char *size_short(uint64_t bytes, char text[SIZE_TEXT_BYTES]);

/* "1.5 GiB (1610612736 bytes)". */
const char *size_full(uint64_t bytes, char text[SIZE_TEXT_BYTES]);

#endif
