/* SPDX-License-Identifier: MIT */
#ifndef VHDX_FUZZ_CHECK_DUMP_H
#define VHDX_FUZZ_CHECK_DUMP_H

#include "describe.h"

/* Judge and dump the description's child, by its name, and hold the checker's verdict against what opening
 * and mapping say.  The files must be closed and the names set. */
void try_check(const struct description *d);
void try_dump(const struct description *d);

#endif
