/* SPDX-License-Identifier: MIT */
/* The calls that take a path look for it in the file system.  Here the linker (--wrap) leads what they would
 * do there to the files of a description: "child.vhdx" is the child, and wherever a recorded path may lead to
 * is the parent.  Nothing that a hostile locator says reaches the real file system but stat(2). */
#ifndef VHDX_FUZZ_BY_NAME_H
#define VHDX_FUZZ_BY_NAME_H

#include "fuzz-file.h"

#define CHILD_PATH "child.vhdx"

/* Which files the names stand for from now on; parent may be NULL: it is not to be found. */
void by_name_set(struct fuzz_file *child, struct fuzz_file *parent);

#endif
