/* SPDX-License-Identifier: MIT */
/* Making a differencing image independent of its parents, whatever storages they lie in; ops_flatten() does it with files. */
#ifndef VHDX_OPS_FLATTEN_H
#define VHDX_OPS_FLATTEN_H

#include "vhdx.h"

/* The first layer of disk is open for writing.  Durable when this returns 0; disk is good for nothing but closing afterwards. */
int flatten_disk(struct vhdx_disk *disk, const struct vhdx_copy_options *options);

#endif
