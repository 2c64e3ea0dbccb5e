/* SPDX-License-Identifier: MIT */
/* What the files of lib/image share among themselves while an image is being opened. */
#ifndef VHDX_IMAGE_INTERNAL_H
#define VHDX_IMAGE_INTERNAL_H

struct image;

/* Read both region tables, judge and take the one that counts, and lay out the reserved ranges (regions.c). */
int regions_load(struct image *img);

/* Read the metadata table and the items this code knows (metadata-load.c). */
int metadata_load(struct image *img);

#endif
