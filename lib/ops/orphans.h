/* SPDX-License-Identifier: MIT */
/* Images that would lose their parent. */
#ifndef VHDX_OPS_ORPHANS_H
#define VHDX_OPS_ORPHANS_H

struct storage;

/* VHDX_E_CHAIN if the file, whose content is about to go, is an image on which another one rests that lies beside it and is called
 * an image, or as it is up to the first dot (see survey_likely_relatives()).  path leads to the file, without links.  What is no
 * image costs a look at its first bytes. */
int orphans_refuse(struct storage *file, const char *path);

/* The same of a file of which only the descriptor is known; without a name (any more) nothing finds it. */
int orphans_refuse_fd(struct storage *file);

#endif
