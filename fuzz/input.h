/* SPDX-License-Identifier: MIT */
/* Taking numbers off the front of a fuzzer's input.  An input that has ended goes on as zeros. */
#ifndef VHDX_FUZZ_INPUT_H
#define VHDX_FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>

struct input {
    const uint8_t *at;
    size_t left; /* bytes */
};

static inline uint64_t take_number(struct input *in, unsigned bytes)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < bytes && in->left > 0; i++, in->left--)
        n |= (uint64_t)*in->at++ << 8 * i;
    return n;
}

static inline uint8_t take8(struct input *in)
{
    return (uint8_t)take_number(in, 1);
}

static inline uint16_t take16(struct input *in)
{
    return (uint16_t)take_number(in, 2);
}

static inline uint32_t take32(struct input *in)
{
    return (uint32_t)take_number(in, 4);
}

static inline uint64_t take64(struct input *in)
{
    return take_number(in, 8);
}

/* At most *bytes bytes, as many as there are: *bytes says how many. */
static inline const uint8_t *take_bytes(struct input *in, size_t *bytes)
{
    const uint8_t *p = in->at;

    if (*bytes > in->left)
        *bytes = in->left;
    in->at += *bytes;
    in->left -= *bytes;
    return p;
}

#endif
