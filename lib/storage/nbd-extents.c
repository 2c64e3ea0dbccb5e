/* SPDX-License-Identifier: MIT */
/* Which parts of an export are zero, by the server's word ("base:allocation").
 *
 * One answer tells about many ranges, and is kept until something is asked that it does not cover, so that a walk over a
 * fragmented export asks once for each thousands of them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"
#include "storage/nbd.h"

enum {
    STATE_ZERO = 1 << 1, /* base:allocation, NBD_STATE_ZERO */
    MAX_RANGES = 65536,
};

#define ASK_BYTES ((UINT64_C(1) << 32) - KIB(64)) /* the protocol's lengths have 32 bits; every minimal block divides this */

/* Append what begins where the last range ends.  False: there is no room. */
static bool append(struct nbd_extents *x, uint64_t bytes, bool zero)
{
    bool last_is_zero = x->first_is_zero == (x->nr % 2 == 1);

    if (x->nr > 0 && last_is_zero == zero) {
        x->ends[x->nr - 1] += bytes;
        return true;
    }
    if (x->nr == x->nr_allocated) {
        size_t more = x->nr == 0 ? 64 : 2 * x->nr;
        uint64_t *grown = more > MAX_RANGES ? NULL : reallocarray(x->ends, more, sizeof *grown);
        if (!grown)
            return false;
        x->ends = grown;
        x->nr_allocated = more;
    }
    if (x->nr == 0)
        x->first_is_zero = zero;
    x->ends[x->nr] = (x->nr == 0 ? x->start : x->ends[x->nr - 1]) + bytes;
    x->nr++;
    return true;
}

/* An nbd_extent_callback: pairs of length and state, which a server may have made up. */
static int take_answer(void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t nr_entries, int *error)
{
    struct nbd *n = opaque;
    struct nbd_extents *x = &n->extents;

    if (*error || strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || offset != x->start || x->nr > 0)
        return 0;
    uint64_t at = offset;
    for (size_t i = 0; i + 1 < nr_entries && at < n->size; i += 2) {
        uint64_t bytes = min_u64(entries[i], n->size - at); /* the last one may reach beyond what was asked, not beyond the end */
        if (bytes > 0 && !append(x, bytes, entries[i + 1] & STATE_ZERO))
            break;
        at += bytes;
    }
    return 0;
}

/* Ask about what begins at offset.  Who gets no answer does not know, so it may be data. */
static int ask(struct nbd *n, uint64_t offset)
{
    struct nbd_extents *x = &n->extents;
    uint64_t start = align_down(offset, n->min_block), bytes = min_u64(n->size - start, ASK_BYTES);

    x->start = start;
    x->nr = 0;
    int r = nbd_request_extents(n, bytes, start, (nbd_extent_callback){.callback = take_answer, .user_data = n});
    if (r == -EINVAL || r == -ENOTSUP || r == -EOVERFLOW) {
        x->cannot_ask = true;
        r = 0;
    }
    if (r == 0 && (x->nr == 0 || x->ends[x->nr - 1] <= offset)) {
        x->nr = 0;
        if (!append(x, bytes, false))
            r = fail_memory("the server's list of zeros");
    }
    if (r < 0)
        x->nr = 0;
    return r;
}

/* The number of the range that offset is in; nr if there is none. */
static size_t find(const struct nbd_extents *x, uint64_t offset)
{
    size_t low = 0, high = x->nr;

    if (x->nr == 0 || offset < x->start)
        return x->nr;
    while (low < high) { /* the first one that ends behind offset */
        size_t middle = low + (high - low) / 2;
        if (x->ends[middle] > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static int find_data(struct nbd *n, uint64_t offset, uint64_t *start, uint64_t *end)
{
    struct nbd_extents *x = &n->extents;

    for (uint64_t at = offset; at < n->size;) {
        size_t i = find(x, at);
        if (i == x->nr) {
            int r = x->cannot_ask ? 0 : ask(n, at);
            if (r < 0)
                return r;
            if (x->cannot_ask) {
                *start = at;
                *end = n->size;
                return 0;
            }
            continue;
        }
        bool zero = x->first_is_zero == (i % 2 == 0);
        if (!zero) {
            *start = at;
            *end = x->ends[i];
            return 0;
        }
        at = x->ends[i];
    }
    *start = *end = n->size;
    return 0;
}

int nbd_next_data(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end)
{
    struct nbd *n = nbd_of(s);

    pthread_mutex_lock(&n->extents.lock);
    int r = find_data(n, offset, start, end);
    pthread_mutex_unlock(&n->extents.lock);
    return r;
}

void nbd_extents_forget(struct nbd *n)
{
    pthread_mutex_lock(&n->extents.lock);
    n->extents.nr = 0;
    pthread_mutex_unlock(&n->extents.lock);
}
