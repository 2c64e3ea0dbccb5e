/* SPDX-License-Identifier: MIT */
#include "image/mib-set.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/math.h"

enum { LEAF_BITS = 4096 * 8, WORD_BITS = 64 };

int mib_set_init(struct mib_set *set, uint64_t nr_mib)
{
    *set = (struct mib_set){.nr_leaves = div_round_up(nr_mib, LEAF_BITS), .nr_mib = nr_mib};
    set->leaves = calloc(set->nr_leaves + 1, sizeof *set->leaves);
    return set->leaves ? 0 : fail_memory("the map of used space");
}

void mib_set_free(struct mib_set *set)
{
    for (uint64_t i = 0; set->leaves && i < set->nr_leaves; i++)
        free(set->leaves[i]);
    free(set->leaves);
    set->leaves = NULL;
}

bool mib_set_has(const struct mib_set *set, uint64_t mib)
{
    uint64_t leaf = mib / LEAF_BITS, bit = mib % LEAF_BITS;

    if (leaf >= set->nr_leaves || !set->leaves[leaf])
        return false;
    return set->leaves[leaf][bit / WORD_BITS] >> (bit % WORD_BITS) & 1;
}

int mib_set_add(struct mib_set *set, uint64_t first, uint64_t nr, bool *clash)
{
    *clash = !range_fits(first, nr, set->nr_mib);
    for (uint64_t i = 0; !*clash && i < nr; i++)
        *clash = mib_set_has(set, first + i);
    if (*clash)
        return 0;
    for (uint64_t i = first / LEAF_BITS; nr > 0 && i <= (first + nr - 1) / LEAF_BITS; i++) { /* all or nothing */
        if (!set->leaves[i] && !(set->leaves[i] = calloc(LEAF_BITS / 8, 1)))
            return fail_memory("the map of used space");
    }
    for (uint64_t i = first; i < first + nr; i++)
        set->leaves[i / LEAF_BITS][i % LEAF_BITS / WORD_BITS] |= UINT64_C(1) << (i % WORD_BITS);
    set->count += nr;
    return 0;
}

void mib_set_remove(struct mib_set *set, uint64_t first, uint64_t nr)
{
    for (uint64_t i = first; i < first + nr; i++) {
        if (!mib_set_has(set, i))
            continue;
        set->leaves[i / LEAF_BITS][i % LEAF_BITS / WORD_BITS] &= ~(UINT64_C(1) << (i % WORD_BITS));
        set->count--;
    }
}

uint64_t mib_set_next(const struct mib_set *set, uint64_t mib, bool member)
{
    for (uint64_t leaf = mib / LEAF_BITS; leaf < set->nr_leaves; mib = ++leaf * LEAF_BITS) {
        const uint64_t *words = set->leaves[leaf];
        if (!words && member)
            continue;
        if (!words)
            return mib;
        for (uint64_t bit = mib % LEAF_BITS; bit < LEAF_BITS; bit = (bit / WORD_BITS + 1) * WORD_BITS) {
            uint64_t word = (member ? words[bit / WORD_BITS] : ~words[bit / WORD_BITS]) >> (bit % WORD_BITS);
            if (word != 0)
                return leaf * LEAF_BITS + bit + (unsigned)__builtin_ctzll(word);
        }
    }
    return member ? UINT64_MAX : mib;
}
