/* SPDX-License-Identifier: MIT */
/* Changing metadata items as such: new, other, longer and deleted ones (format section 7.5). */
#ifndef VHDX_IMAGE_ITEMS_H
#define VHDX_IMAGE_ITEMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/guid.h"
#include "format/metadata.h"

struct image;

/* What is to become of one item. */
struct item_change {
    guid id;
    uint32_t flags; /* that it is to have; VHDX_METADATA_USER is part of its name */
    bool remove;    /* it goes, if it is there; else it is made, or its bytes and flags replaced */
    const void *bytes;
    uint32_t length;
};

/* Make all these changes, each of another item, as one: after a crash all of them are there or none; durable with the next
 * writer_commit().  The session must have begun.  img->items follows, and img->locator if it is the parent locator; values are
 * the caller's to keep true.  Not to be called twice at once on one image, nor while others look at its items.
 *
 * -ENOSPC: the metadata region has no room; VHDX_E_LIMIT: too many items or too long ones.  Nothing was changed then. */
int image_change_items(struct image *img, const struct item_change *changes, size_t nr);

/* A known item's change. */
struct item_change item_change_known(enum metadata_known item, const void *bytes, uint32_t length);

#endif
