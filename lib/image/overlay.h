/* SPDX-License-Identifier: MIT */
/* What a dirty log says about the file, kept in memory (format section 4.8): a sorted list of disjoint ranges, each a
 * page whose image lies in the log, or zeros.  Pages are not copied: their data sectors stay in the log, which does not
 * change while the file is open for reading, so memory is a few dozen bytes for each page.  Immutable once built, so
 * any thread may read through it. */
#ifndef VHDX_IMAGE_OVERLAY_H
#define VHDX_IMAGE_OVERLAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct storage;

/* One change, in the order of the log.  Also what the finished overlay consists of. */
struct overlay_range {
    uint64_t start, end; /* file offsets, bytes; multiples of PAGE_BYTES */
    uint64_t data_sector; /* file offset of the page's data sector in the log; 0: zeros */
    uint8_t leading[8], trailing[4];
};

struct overlay {
    struct overlay_range *ranges; /* sorted, disjoint */
    size_t nr_ranges;
    size_t *next_page; /* for each range: the first at or behind it that is a page; nr_ranges if there is none */
    uint64_t stored_length; /* bytes that the file had; if it has fewer it shrank, and reading them is an error */
    uint64_t file_length; /* logical: bytes up to here read as zeros if the file is shorter */
};

/* Build from nr changes, later ones overriding earlier; changes stays the caller's.  Time n log n. */
int overlay_build(const struct overlay_range *changes, size_t nr, uint64_t stored_length, uint64_t file_length,
                  struct overlay **o);
void overlay_free(struct overlay *o);

/* Does any range touch [offset, offset + bytes)? */
bool overlay_touches(const struct overlay *o, uint64_t offset, uint64_t bytes);

/* Read as the replayed file would: exactly bytes, VHDX_E_TRUNCATED beyond file_length. */
int overlay_pread(const struct overlay *o, struct storage *file, void *buf, size_t bytes, uint64_t offset);

/* storage_next_data() of the replayed file. */
int overlay_next_data(const struct overlay *o, struct storage *file, uint64_t offset, uint64_t *start, uint64_t *end);

#endif
