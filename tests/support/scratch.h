/* SPDX-License-Identifier: MIT */
/* A folder of its own for a test that needs real files. */
#ifndef VHDX_TESTS_SCRATCH_H
#define VHDX_TESTS_SCRATCH_H

enum { SCRATCH_PATH_BYTES = 256 };

/* Make a folder under TMPDIR or /tmp; path is given without links. */
void scratch_make(char path[SCRATCH_PATH_BYTES]);

/* Remove it with all that is in it. */
void scratch_remove(const char *path);

/* How many names the folder has in it. */
unsigned scratch_nr_names(const char *path);

/* How many descriptors the process has open: the same before and after what should leave none behind. */
unsigned scratch_nr_open(void);

#endif
