/* SPDX-License-Identifier: MIT */
/* Requests in flight: so that space which a block gave up is used again only when nobody can still be reading or writing there
 * (D3), without a lock on the way of anybody (C3).
 *
 * A request enters before it looks a block up and leaves when its bytes have moved.  Counters are spread over slots, by thread,
 * and each has two sides; newcomers use the side that the phase names.  Whoever wants to know that all requests of before are
 * gone polls: each poll notes which sides were seen empty and turns the phase, so that both get their turn to drain. */
#ifndef VHDX_IMAGE_INFLIGHT_H
#define VHDX_IMAGE_INFLIGHT_H

#include <stdatomic.h>
#include <stdbool.h>

enum { INFLIGHT_SLOTS = 64 };

struct inflight {
    struct {
        _Alignas(64) atomic_ulong count[2];
    } slots[INFLIGHT_SLOTS];
    atomic_uint phase;
};

struct inflight_ticket {
    atomic_ulong *counter;
};

struct inflight_ticket inflight_enter(struct inflight *f);
void inflight_leave(struct inflight_ticket ticket);

/* Which sides were empty, since the drain began.  Begin with {false, false}, after the place has become impossible to find. */
struct inflight_drain {
    bool seen_empty[2];
};

/* Is every request that was there when the drain began gone?  One thread at a time. */
void inflight_poll(struct inflight *f, bool empty_now[2]);

static inline bool inflight_drained(struct inflight_drain *d, const bool empty_now[2])
{
    d->seen_empty[0] |= empty_now[0];
    d->seen_empty[1] |= empty_now[1];
    return d->seen_empty[0] && d->seen_empty[1];
}

#endif
