/* SPDX-License-Identifier: MIT */
/* One open VHDX file, for reading.
 *
 * Opening goes through these states, each step relying on the ones before (format section 9.2):
 *   identifier -> headers -> log (replayed in memory if dirty) -> regions -> metadata -> geometry -> BAT -> open
 * From then on everything here but the page cache is immutable, so reading needs no locks of its own.
 *
 * Metadata is read through image_pread() or the page cache, payload through image_pread_payload(); both show the file as
 * it is after replay. */
#ifndef VHDX_IMAGE_IMAGE_H
#define VHDX_IMAGE_IMAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "format/bat.h"
#include "format/header.h"
#include "format/metadata.h"
#include "format/region-table.h"

struct overlay;
struct page_cache;
struct storage;
struct writer;

/* A range of the file that payload may not touch: header area, log, regions. */
struct reserved_range {
    uint64_t start, end; /* file offsets, bytes */
};

/* Judged BAT entries of fully present blocks, so that reading one takes no lock and no second judging (S1).  A slot is one
 * word, block number and place together, so it is never seen half changed: bits 0-29 the place in MiB (MAX_FILE_BYTES), bits
 * 30-55 the block number (64 TiB in blocks of 1 MiB), bit 63 set if the slot is in use. */
enum { LOOKASIDE_SLOTS = 2048 };

/* Payload blocks by state, as far as the BAT entries below end tell. */
struct bat_tally {
    uint64_t states[8], end;
};

struct image {
    struct storage *file; /* owned */
    _Atomic uint64_t file_length; /* bytes, after replay; grows while the image is written */
    struct header header; /* the current one, as found or as replay left it */
    unsigned header_slot; /* where it is */
    bool replayed;        /* a dirty log was brought into place when the image was opened */
    struct overlay *overlay; /* NULL: the log is clean */

    struct region *regions;
    uint32_t nr_regions;
    const struct region *bat, *metadata; /* two of the regions */
    struct reserved_range *reserved;     /* sorted, disjoint */
    size_t nr_reserved;

    struct metadata_entry *items;
    uint32_t nr_items;
    struct metadata_values values;
    uint8_t *locator; /* the parent locator item; NULL: no parent */
    uint32_t locator_length;

    struct geometry geometry;
    struct bat_tally tally; /* what bat_verify() came by; writing makes it old */
    struct page_cache *pages;
    _Atomic uint64_t lookaside[LOOKASIDE_SLOTS];
    struct writer *writer; /* NULL: open for reading only */
    char creator[1024];
};

enum image_open_flags {
    IMAGE_REFUSE_DIRTY = 1, /* VHDX_E_LOG_DIRTY instead of an overlay */
    IMAGE_UNVERIFIED = 2,   /* do not look for overlaps in the BAT */
    IMAGE_WRITABLE = 4,     /* file is open for writing and locked; a dirty log is brought into place */
};

/* Open the VHDX in file, which the image owns from then on, also when this fails.  cache_pages bounds the page cache. */
int image_open(struct storage *file, unsigned flags, size_t cache_pages, struct image **img);

/* 0, or what went wrong while changes were brought into place; img is gone either way. */
int image_close(struct image *img);

static inline bool image_has_parent(const struct image *img)
{
    return img->geometry.has_parent;
}

/* Are all blocks to have space always?  In an image with a parent the flag means nothing (5.1). */
static inline bool image_is_fixed(const struct image *img)
{
    return !image_has_parent(img) && (img->values.parameter_flags & PARAMETER_LEAVE_ALLOCATED);
}

/* Exactly bytes of metadata at file_offset.  VHDX_E_TRUNCATED at the end of the file. */
int image_pread(struct image *img, void *buf, size_t bytes, uint64_t file_offset);

/* Payload.  What lies behind the end of the file, but inside a block that image_resolve() gave out, reads as zeros. */
int image_preadv_payload(struct image *img, const struct iovec *iov, int nr_iov, uint64_t file_offset);

/* storage_next_data() of the file as it is after replay. */
int image_next_data(struct image *img, uint64_t file_offset, uint64_t *start, uint64_t *end);

/* ---- BAT (bat.c) ---- */

/* Read nr raw entries from bat_index on. */
int bat_read(struct image *img, uint64_t bat_index, uint32_t nr, uint64_t *raw);

/* The file offset of an entry. */
static inline uint64_t bat_entry_offset(const struct image *img, uint64_t bat_index)
{
    return img->bat->file_offset + bat_index * BAT_ENTRY_BYTES;
}

/* Decode and judge block_no's entry: VHDX_E_BAT, VHDX_E_TRUNCATED. */
int bat_lookup(struct image *img, uint64_t block_no, struct bat_entry *e);

/* The file offset of a fully present block if it was looked up lately, else 0.  No lock. */
static inline uint64_t bat_lookaside(struct image *img, uint64_t block_no)
{
    uint64_t slot = atomic_load(&img->lookaside[block_no % LOOKASIDE_SLOTS]); /* in one order with inflight.c's counters */
    return slot >> 30 == (UINT64_C(1) << 33 | block_no) ? (slot & 0x3fffffff) * OBJECT_ALIGNMENT : 0;
}

/* Keep the lookaside true when block_no's entry becomes known or changes.  Only with the entry's page locked in the cache. */
void bat_remember(struct image *img, uint64_t block_no, const struct bat_entry *e);

/* The same for an entry that was read already. */
int bat_judge(const struct image *img, uint64_t block_no, uint64_t raw, struct bat_entry *e);

/* chunk_no's sector bitmap entry: VHDX_E_BAT, VHDX_E_TRUNCATED. */
int bat_bitmap_entry(struct image *img, uint64_t chunk_no, struct bat_entry *e);

/* The same for a bitmap block that must be present: VHDX_E_BITMAP. */
int bat_lookup_bitmap(struct image *img, uint64_t chunk_no, struct bat_entry *e);

/* The first entry at or after bat_index, below end_index, that lies in a part of the BAT that exists on disk; all
 * entries before it are zero.  end_index if there is none. */
int bat_skip_holes(struct image *img, uint64_t bat_index, uint64_t end_index, uint64_t *next);

/* Look for entries that are impossible or overlap (5.9), if the BAT has at most max_entries on disk; *done says whether it
 * had.  It counts on its way for bat_count_states(), so nobody else may use img meanwhile.  VHDX_E_BAT, VHDX_E_BITMAP,
 * VHDX_E_TRUNCATED. */
int bat_verify(struct image *img, uint64_t max_entries, bool *done);

struct mib_set;

/* All space that is in use, into an empty set, which the caller frees also on failure: VHDX_E_BAT and the like if entries are
 * impossible or overlap. */
int bat_collect_used(struct image *img, struct mib_set *used);

/* Count payload blocks by state, without judging them. */
int bat_count_states(struct image *img, uint64_t counts[8]);

/* ---- resolving (resolve.c) ---- */

enum run_kind { RUN_DATA, RUN_ZERO, RUN_PARENT };

struct run {
    enum run_kind kind;
    bool present;         /* this image defines it; false for what falls through, or was never written */
    uint64_t length;      /* bytes */
    uint64_t file_offset; /* RUN_DATA: of the first byte */
};

/* What this image says of the guest range that begins at guest_offset: one run of one kind, at most max_length long.  Runs
 * end where the kind changes, and may end earlier; the work for one call is bounded by one BAT page and one bitmap page.
 * guest_offset + max_length must be inside the disk.  VHDX_E_BAT, VHDX_E_BITMAP, VHDX_E_TRUNCATED, read errors. */
int image_resolve(struct image *img, uint64_t guest_offset, uint64_t max_length, struct run *run);

#endif
