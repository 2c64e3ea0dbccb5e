/* SPDX-License-Identifier: MIT */
#include "plugin.h"

/* A client may ask about 4 GiB at once, in which a hostile chain of images can change every 512 bytes.  NBD allows answers that
 * do not reach to the end of the range: neither nbdkit's list nor the time that one request takes grow beyond this. */
enum { MAX_ANSWERED = 8192, MAX_SEEN = 65536 };

enum { END_OF_ANSWER = 1 };

/* Neighbours that are alike for NBD come from vhdx_map() as several extents if they lie in different places. */
struct collector {
    struct nbdkit_extents *extents;
    bool only_one;
    bool failed; /* and nbdkit has said why */
    uint32_t nr_answered, nr_seen;
    uint64_t start, length; /* bytes; being gathered */
    uint32_t type;
};

static bool answer(struct collector *c)
{
    if (c->length == 0)
        return true;
    c->failed = nbdkit_add_extent(c->extents, c->start, c->length, c->type) < 0;
    c->length = 0;
    c->nr_answered++;
    return !c->failed;
}

/* What vhdx_map() calls zero has no space in any image: a hole for NBD, too. */
static uint32_t type_of(const struct vhdx_extent *e)
{
    return e->flags & VHDX_EXTENT_ZERO ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0;
}

static int gather(void *opaque, const struct vhdx_extent *e)
{
    struct collector *c = opaque;
    uint32_t type = type_of(e);

    if (c->length > 0 && type != c->type) {
        if (!answer(c) || c->only_one || c->nr_answered == MAX_ANSWERED)
            return END_OF_ANSWER;
    }
    if (c->length == 0) {
        c->start = e->guest_offset;
        c->type = type;
    }
    c->length += e->length;
    return ++c->nr_seen == MAX_SEEN ? END_OF_ANSWER : 0;
}

int extents_collect(vhdx_disk *disk, uint64_t offset, uint64_t length, bool only_one, struct nbdkit_extents *extents)
{
    struct collector c = {.extents = extents, .only_one = only_one};
    int r = vhdx_map(disk, offset, length, gather, &c);

    if (r < 0 && c.length == 0 && c.nr_answered == 0)
        return r;
    /* What was found before the walk failed is true; whoever asks where it failed will hear of it. */
    answer(&c);
    return c.failed ? 1 : 0;
}
