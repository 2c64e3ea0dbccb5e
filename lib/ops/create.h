/* SPDX-License-Identifier: MIT */
/* Creating an image in a storage, whatever that is; ops_create() does it in a file. */
#ifndef VHDX_OPS_CREATE_H
#define VHDX_OPS_CREATE_H

#include "vhdx.h"

struct storage;

/* s is empty and stays the caller's.  After a failure it holds no VHDX, or one that may not be durable. */
int create_in(struct storage *s, const struct vhdx_create_options *options);

/* Make s, which is empty, the image that n plans, empty too. */
struct new_image;
int create_planned(struct storage *s, const struct new_image *n, const struct vhdx_create_options *options);

#endif
