/* SPDX-License-Identifier: MIT */
/* Dropping a state: what was changed after it goes into its file, which takes the name of the image that rests on it. */
#ifndef SNAPSHOT_DELETE_H
#define SNAPSHOT_DELETE_H

#include "snapshot-states.h"

/* Drop the state whose file is at path.  Returns the exit status; what went wrong has been reported. */
int snapshot_delete(const struct subject *s, const char *path);

#endif
