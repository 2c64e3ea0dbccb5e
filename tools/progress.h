/* SPDX-License-Identifier: MIT */
/* How far a long command is, on stderr: a bar on a terminal, else a line now and then if --progress asks for
 * it.  There is one progress display, as there is one stderr. */
#ifndef PROGRESS_H
#define PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* Begin, as the common options and stderr say.  in_bytes: the work is counted in bytes of the disk. */
void progress_begin(bool in_bytes);

/* A vhdx_progress_fn: show how far it is; nonzero if a signal asks to stop. */
int progress_step(void *opaque, uint64_t done, uint64_t total);

/* How far it was at the last step, also after the end. */
uint64_t progress_done(void);

/* Take the bar off the terminal before something else is printed there; the next step draws it again. */
void progress_hide(void);

/* The work has ended; complete: all of it was done. */
void progress_end(bool complete);

#endif
