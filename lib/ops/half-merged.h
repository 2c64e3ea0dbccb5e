/* SPDX-License-Identifier: MIT */
/* Images that hold a part of a child's content, because a merge of that child did not come to its end (format section 9.10).
 *
 * Such an image is neither what it was nor what the child is.  Together with the child it is whole, and nothing else tells: the
 * mark is in the child's link.  So nothing new may rest on it, and that child may not go. */
#ifndef VHDX_OPS_HALF_MERGED_H
#define VHDX_OPS_HALF_MERGED_H

#include <stdbool.h>

struct storage_identity;
struct vhdx_open_options;
struct vhdx_survey;

/* VHDX_E_CHAIN if the image, or one of its parents, is such a one by a child that the survey knows and that is not in the image's
 * own chain.  also_complete: also if all of the content came over, and only what comes after that is left to do. */
int half_merged_refuse(const struct vhdx_survey *s, const struct storage_identity *image, bool also_complete);

/* The same of a file that is to be a parent, with what images its folder has by their names (see survey_likely_relatives()), as
 * far as the folder may be listed and they can be read. */
int half_merged_refuse_parent(const char *path, const struct storage_identity *image, const struct vhdx_open_options *open);

#endif
