/* SPDX-License-Identifier: MIT */
/* One deed, once for each allocation that it makes, with that allocation failing. */
#ifndef VHDX_TESTS_MALLOC_SWEEP_H
#define VHDX_TESTS_MALLOC_SWEEP_H

#include "../support/scratch.h"

struct malloc_sweep {
    void (*prepare)(void *opaque); /* may be NULL */
    int (*act)(void *opaque);      /* returns 0 or a code */

    /* Memory is back: what must hold now.  Frees what the others made.  May be NULL. */
    void (*judge)(void *opaque, int result);
};

/* Let the n-th allocation of act fail, for n from 1 until a run has no n-th; then the same with all from the
 * n-th on.  Each time: it has failed with -ENOMEM and a message, or has done without; and after judge no
 * memory and no file is left over.  Returns how many failures there were. */
uint64_t malloc_sweep(const struct malloc_sweep *sweep, void *opaque);

/* A folder for files, in memory if the system has such a place: these tests make many and are not about a
 * device. */
void malloc_sweep_folder(char path[SCRATCH_PATH_BYTES]);

/* A copy of the file, with its holes. */
void copy_file(const char *from, const char *to);

/* The checker finds nothing wrong with the image. */
void assert_sound(const char *path);

#endif
