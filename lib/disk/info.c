/* SPDX-License-Identifier: MIT */
#include "disk/info.h"

#include <string.h>

#include "base/guid.h"
#include "format/parent-locator.h"
#include "image/image.h"
#include "image/writer.h"

static enum vhdx_subformat subformat_of(const struct image *img)
{
    if (image_has_parent(img))
        return VHDX_DIFFERENCING;
    return img->values.parameter_flags & PARAMETER_LEAVE_ALLOCATED ? VHDX_FIXED : VHDX_DYNAMIC;
}

void image_fill_info(struct image *img, struct vhdx_info *info)
{
    struct header h = img->writer ? writer_header(img) : img->header;

    info->subformat = subformat_of(img);
    info->log_dirty = header_log_is_dirty(&img->header);
    info->has_parent = image_has_parent(img);
    info->block_size = img->values.block_size;
    info->logical_sector_size = img->values.logical_sector_size;
    info->physical_sector_size = img->values.physical_sector_size;
    info->log_size = img->header.log_length;
    info->header_sequence_no = h.sequence_no;
    info->disk_id = img->values.disk_id;
    info->file_write_guid = h.file_write_guid;
    info->data_write_guid = h.data_write_guid;
    if (img->locator)
        locator_linkage(img->locator, &info->parent_linkage, &info->parent_linkage2);
    memcpy(info->creator, img->creator, sizeof info->creator);
}

bool linkage_accepts(const guid *linkage, const guid *linkage2, const guid *id)
{
    return guid_equal(id, linkage) || (!guid_is_zero(linkage2) && guid_equal(id, linkage2));
}

/* 6f33030a-5a13-4be0-8f3b-4c546809c88e */
const guid linkage_merged = {{0x0a, 0x03, 0x33, 0x6f, 0x13, 0x5a, 0xe0, 0x4b, 0x8f, 0x3b, 0x4c, 0x54, 0x68, 0x09, 0xc8, 0x8e}};

bool linkage_is_merging(const guid *linkage, const guid *linkage2)
{
    return !guid_is_zero(linkage2) && !guid_equal(linkage, linkage2) && !guid_equal(linkage, &linkage_merged);
}
