/* SPDX-License-Identifier: MIT */
#include "image/inflight.h"

#include <stdint.h>

/* All atomics here are sequentially consistent: a request that increments a counter after it was seen empty also sees every
 * change to the tables that was made before. */

struct inflight_ticket inflight_enter(struct inflight *f)
{
    static _Thread_local char here; /* its address tells threads apart */
    unsigned slot = (unsigned)((uintptr_t)&here >> 12) % INFLIGHT_SLOTS;
    atomic_ulong *counter = &f->slots[slot].count[atomic_load(&f->phase) & 1];

    atomic_fetch_add(counter, 1);
    return (struct inflight_ticket){counter};
}

void inflight_leave(struct inflight_ticket ticket)
{
    atomic_fetch_sub(ticket.counter, 1);
}

void inflight_poll(struct inflight *f, bool empty_now[2])
{
    for (unsigned side = 0; side < 2; side++) {
        empty_now[side] = true;
        for (unsigned i = 0; i < INFLIGHT_SLOTS; i++)
            empty_now[side] &= atomic_load(&f->slots[i].count[side]) == 0;
    }
    atomic_fetch_add(&f->phase, 1);
}
