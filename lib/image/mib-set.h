/* SPDX-License-Identifier: MIT */
/* A set of MiB numbers, for finding objects that overlap (format section 5.9).  Memory follows what is in it, 4 KiB for
 * each 32 GiB of file that holds anything, not the length that a file claims (H2). */
#ifndef VHDX_IMAGE_MIB_SET_H
#define VHDX_IMAGE_MIB_SET_H

#include <stdbool.h>
#include <stdint.h>

struct mib_set {
    uint64_t **leaves;
    uint64_t nr_leaves;
    uint64_t nr_mib; /* members are below */
    uint64_t count; /* members */
};

/* For MiB numbers below nr_mib. */
int mib_set_init(struct mib_set *set, uint64_t nr_mib);
void mib_set_free(struct mib_set *set);

/* Add [first, first + nr).  *clash: one of them was a member already, or is not below nr_mib; nothing was added. */
int mib_set_add(struct mib_set *set, uint64_t first, uint64_t nr, bool *clash);

/* Take [first, first + nr) out; what is not in it is passed over. */
void mib_set_remove(struct mib_set *set, uint64_t first, uint64_t nr);

bool mib_set_has(const struct mib_set *set, uint64_t mib);

/* The first MiB number at or after mib that is a member (or is not one); UINT64_MAX if there is none.  Empty stretches cost
 * nothing. */
uint64_t mib_set_next(const struct mib_set *set, uint64_t mib, bool member);

#endif
