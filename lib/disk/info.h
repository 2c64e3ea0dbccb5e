/* SPDX-License-Identifier: MIT */
/* What an image is, as the public struct says it. */
#ifndef VHDX_DISK_INFO_H
#define VHDX_DISK_INFO_H

#include "vhdx.h"

struct image;

/* Fill everything but virtual_size and the two sizes of the file. */
void image_fill_info(struct image *img, struct vhdx_info *info);

/* Does a child that records these two identities accept a parent with this one? (8.4 step 2) */
bool linkage_accepts(const struct vhdx_guid *linkage, const struct vhdx_guid *linkage2, const struct vhdx_guid *id);

/* Was a merge of a child that records these begun?  Only merging gives its parent a second identity (9.10 step 3), and only its
 * end takes the mark away.  Until then the parent may hold a part of the child's content, and be whole only under it. */
bool linkage_is_merging(const struct vhdx_guid *linkage, const struct vhdx_guid *linkage2);

/* What a child that stayed records in front of the parent's identity when the merge has come to its end: no image's, so it says
 * no more than that the parent with the second one was whole by itself, and had all that the child had. */
extern const struct vhdx_guid linkage_merged;

#endif
