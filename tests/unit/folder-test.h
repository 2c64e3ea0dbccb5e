/* SPDX-License-Identifier: MIT */
/* A folder of its own for each test that works on files; no descriptor may be left over from it (hostile input row 104). */
#ifndef VHDX_TESTS_FOLDER_TEST_H
#define VHDX_TESTS_FOLDER_TEST_H

#include "unit.h"

#include <limits.h>

#include "scratch.h"

static char folder[SCRATCH_PATH_BYTES];
static unsigned nr_open_before;

/* The path of a name in the folder; valid until as many more were asked for. */
static inline const char *in_folder(const char *name)
{
    static char path[8][PATH_MAX];
    static unsigned next;
    char *p = path[next++ % 8];

    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    return p;
}

/* For cmocka, or first and last in what does more. */
static inline int make_folder(void **state)
{
    (void)state;
    scratch_make(folder);
    nr_open_before = scratch_nr_open();
    return 0;
}

static inline int remove_folder(void **state)
{
    (void)state;
    assert_int_equal(scratch_nr_open(), nr_open_before);
    scratch_remove(folder);
    return 0;
}

#endif
