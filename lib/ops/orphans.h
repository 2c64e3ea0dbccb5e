/* SPDX-License-Identifier: MIT */
/* Images that would lose their parent. */
#ifndef VHDX_OPS_ORPHANS_H
#define VHDX_OPS_ORPHANS_H

struct storage;

/* VHDX_E_CHAIN if the file, which is about to be replaced under its name, is an image on which another one rests that lies beside
 * it and is called an image, or as it is up to the first dot (see survey_likely_relatives()).  path leads to the file, without
 * links.  What is no image costs a look at its first bytes.
 *
 * An image rests on the file if what it records leads there, whether the file can be read or not, unless that was never
 * completed: damage may be mended, and another program may know more.  Or if only the recorded identity tells, and no other image
 * beside has that: paths that lead out of the folder are not followed for this (H4).  Where the file has more names, by which its
 * content stays, only a child that records this one counts.
 *
 * What is called an image and cannot be read, damage apart, may be such a child.  It counts if its name begins as the file's, up
 * to the first dot and with a dot, or the underscore of Hyper-V, behind that: to heed all would forbid replacing anything in a
 * folder with somebody else's images.  If the search itself comes to no end the code is whatever ended it. */
int orphans_refuse(struct storage *file, const char *path);

/* The same of a file that is about to be written over, all its names with it, and of which only the descriptor is known; without
 * a name (any more) nothing finds it. */
int orphans_refuse_fd(struct storage *file);

#endif
