/* SPDX-License-Identifier: MIT */
/* The parents of the image that is crashed: made by the library, one on top of the other, with content that the history can tell.
 */
#ifndef VHDX_TESTS_CRASH_PARENTS_H
#define VHDX_TESTS_CRASH_PARENTS_H

#include "disk/disk.h"
#include "doubles.h"
#include "history.h"

struct crash_parents {
    uint32_t nr;
    struct storage *files[4];  /* nearest first */
    struct storage *before[4]; /* copies */
    struct fault fault;        /* keeps the files when images are closed */
    struct layer layers[4];    /* open for reading */
};

struct crash_parents_setup {
    uint32_t nr, sector_size, block_mib;
    uint64_t virtual_size;
    uint64_t seed;
};

/* Make them, with what they hold of the history's listed blocks entered there, and begin its child. */
struct crash_parents *crash_parents_new(const struct crash_parents_setup *setup, struct history *h);
void crash_parents_free(struct crash_parents *p);

/* NULL, or which file is not what it was. */
const char *crash_parents_check(const struct crash_parents *p);

#endif
