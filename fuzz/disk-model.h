/* SPDX-License-Identifier: MIT */
/* Where a byte of the disk comes from, as the format sections 5.6 and 6 say it, looked up in the plainest
 * way: no cache, no runs, one byte at a time.  The geometry is computed a second time, too. */
#ifndef VHDX_FUZZ_DISK_MODEL_H
#define VHDX_FUZZ_DISK_MODEL_H

#include <stdint.h>

#include "disk/disk.h"

/* Does the extent tell the truth about the byte at guest_offset, which lies in it? */
void require_truth(struct vhdx_disk *disk, const struct vhdx_extent *e, uint64_t guest_offset);

/* What must hold of an open image as a whole: metadata items and payload stay apart from what else there is.
 */
void require_items_apart(const struct vhdx_disk *disk, uint32_t depth);
void require_payload_apart(const struct vhdx_disk *disk, const struct vhdx_extent *e);

#endif
