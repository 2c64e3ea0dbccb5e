/* SPDX-License-Identifier: MIT */
/* GUIDs in the byte order of the file: text AABBCCDD-EEFF-GGHH-IIJJ-KKLLMMNNOOPP is stored as DD CC BB AA FF EE
 * HH GG II JJ KK LL MM NN OO PP (format section 0.3).  Version and variant bits are never looked at. */
#ifndef VHDX_BASE_GUID_H
#define VHDX_BASE_GUID_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "vhdx.h"

typedef struct vhdx_guid guid;

static inline guid guid_get(const uint8_t *p)
{
    guid g;
    memcpy(g.bytes, p, sizeof g.bytes);
    return g;
}

static inline void guid_put(uint8_t *p, const guid *g)
{
    memcpy(p, g->bytes, sizeof g->bytes);
}

static inline bool guid_equal(const guid *a, const guid *b)
{
    return memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

bool guid_is_zero(const guid *g);
void guid_format(const guid *g, char text[VHDX_GUID_TEXT_BYTES]);

/* 36 characters, or 38 in braces, any case, nothing behind.  0 or -EINVAL (no message). */
int guid_parse(const char *text, guid *g);

/* A fresh one, random in the form of RFC 4122 version 4, and so never zero.  -errno if the system has no random bytes. */
int guid_random(guid *g);

#endif
