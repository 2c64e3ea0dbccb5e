/* SPDX-License-Identifier: MIT */
/* From a differencing image to a dynamic one, in place (format section 9.12). */
#ifndef VHDX_IMAGE_DROP_PARENT_H
#define VHDX_IMAGE_DROP_PARENT_H

struct image;

/* Make img an image without a parent; durable when this returns 0.  The session must have begun, and nothing but zeros may come
 * from the parent any more: in partially present blocks every sector that the guest can see is there (VHDX_E_BITMAP otherwise),
 * and what is not present reads as zeros.  After a crash it is the one or the other, with the same content.  img is good for
 * nothing but closing afterwards. */
int image_drop_parent(struct image *img);

#endif
