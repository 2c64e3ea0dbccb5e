/* SPDX-License-Identifier: MIT */
/* Making checksums right again after changes, so that what lies behind them is tried too. */
#ifndef VHDX_FUZZ_REPAIR_H
#define VHDX_FUZZ_REPAIR_H

#include <stdbool.h>

struct fuzz_file;

/* Of both headers and both region tables, where they have their signatures. */
void repair_tables(struct fuzz_file *f);

/* Of everything in the log that looks like an entry.  identity: give it the log GUID of the current header
 * too, and its descriptors and data sectors its sequence number. */
void repair_log(struct fuzz_file *f, bool identity);

#endif
