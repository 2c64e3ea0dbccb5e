/* SPDX-License-Identifier: MIT */
/* A virtual disk: an image and its parents, child first; or a raw file.
 *
 * Layers are opened once, in chain.c, and never change until the disk is closed, so reading takes no locks here. */
#ifndef VHDX_DISK_DISK_H
#define VHDX_DISK_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "format/layout.h"
#include "vhdx.h"

struct image;
struct iov_position;
struct shortcuts;
struct storage;
struct storage_identity;

struct layer {
    struct image *img;   /* owned; NULL in a raw disk */
    struct storage *raw; /* owned; NULL in a VHDX */
    char *path;          /* owned; as it was opened */
    uint64_t size;       /* bytes, virtual */
};

struct vhdx_disk {
    struct layer *layers; /* child first */
    uint32_t nr_layers;
    bool parent_left_out; /* the last layer has a parent that was not to be opened, or could not be: */
    int chain_problem_code;
    char *chain_problem; /* owned */
    struct shortcuts *shortcuts; /* owned; NULL: none */
    uint64_t size;        /* bytes, of the first layer */
};

/* ---- chain.c ---- */

/* As vhdx_open(). */
int disk_open(const char *path, const struct vhdx_open_options *options, struct vhdx_disk **disk);
int disk_close(struct vhdx_disk *disk);

/* The file that layer lies in. */
struct storage *layer_file(const struct layer *layer);

/* The layer that lies in this very file; NULL: none does. */
const struct layer *disk_find_layer(const struct vhdx_disk *disk, const struct storage_identity *file);

/* The file that path and flags (enum vhdx_open_flags) name, not locked. */
int disk_open_file(const char *path, uint32_t flags, struct storage **file);

/* What the file looks like: an enum vhdx_file_kind, or a negative code. */
int disk_probe_file(struct storage *file);

/* ---- extents.c ---- */

/* What one layer said last, so that a walk asks each layer once for each of its runs and not once for each extent. */
struct layer_run {
    uint64_t start, end; /* guest offsets, bytes; empty at first */
    uint64_t file_offset;
    int kind; /* enum run_kind */
    bool present;

    /* For copy-source.c: what the layer's file said of its holes.  From this file offset on it stores nothing before
     * data_start, then something up to data_end; told_from > data_end: it was not asked. */
    uint64_t told_from, data_start, data_end;
};

enum { CURSOR_INLINE_LAYERS = 8 };

/* A walk over the extents of a range.  Used by one thread at a time.  Where the first image is being written, places that the
 * walk gives out may get other owners before they are used; extent_pread() and extent_use() see to that. */
struct extent_cursor {
    struct vhdx_disk *disk;
    uint64_t at, end; /* guest offsets, bytes */
    uint32_t first_layer; /* the walk sees only what this one and its parents hold */
    uint64_t asked[(MAX_CHAIN_DEPTH + 64) / 64]; /* a bit for each layer whose run is valid: most of a deep chain are never asked */
    struct layer_run *runs;
    struct layer_run inline_runs[CURSOR_INLINE_LAYERS];
};

/* -EINVAL if the range leaves the disk; -ENOMEM.  End with extent_cursor_done() if 0 was returned. */
int extent_cursor_init(struct extent_cursor *c, struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length);

/* The same for what the disk would be without its first layers: offsets are those of the first one's disk all the same. */
int extent_cursor_init_below(struct extent_cursor *c, struct vhdx_disk *disk, uint32_t first_layer, uint64_t guest_offset,
                             uint64_t length);
void extent_cursor_done(struct extent_cursor *c);

/* The extent at c->at, not longer than max_length; moves on behind it.  1: there was one; 0: the range is at its end; or a
 * negative code.  Neighbours of one kind may come as several. */
int extent_cursor_next(struct extent_cursor *c, uint64_t max_length, struct vhdx_extent *e);

/* Does b, which begins where a ends, continue it? */
bool extents_join(const struct vhdx_extent *a, const struct vhdx_extent *b);

/* As vhdx_map(). */
int disk_map(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, vhdx_extent_fn *fn, void *opaque);

/* ---- read.c ---- */

/* As vhdx_preadv(). */
int disk_preadv(struct vhdx_disk *disk, const struct iovec *iov, int nr_iov, uint64_t guest_offset);
int disk_pread(struct vhdx_disk *disk, void *buf, size_t count, uint64_t guest_offset);

/* ---- write.c: as the public calls ---- */

int disk_pwritev(struct vhdx_disk *disk, const struct iovec *iov, int nr_iov, uint64_t guest_offset, uint32_t flags);
int disk_zero(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags);
int disk_discard(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags);
int disk_flush(struct vhdx_disk *disk);

/* -EROFS if it was opened for reading, -EIO with the reason if an earlier failure forbids changes. */
int disk_check_writable(struct vhdx_disk *disk);

/* The next bytes of the caller's buffers, to one place in the file. */
int write_piece(struct image *img, struct iov_position *p, uint64_t bytes, uint64_t file_offset);

/* Read what a VHDX_EXTENT_DATA extent stores, from `from` bytes into it on.  In an image that is being written it may have been
 * given up since the extent was found, and its space may hold another block's data: then what the range reads as now is read
 * (D3). */
int extent_pread(struct vhdx_disk *disk, const struct vhdx_extent *e, uint64_t from, void *buf, size_t count);

/* Call fn, which may do with [from, to) of the extent in its file what it likes, but for no longer than moving some MiB takes:
 * the space keeps its owner until it returns.  0, without a call: it has another one already; else what fn returned. */
typedef int extent_use_fn(void *opaque);
int extent_use(struct vhdx_disk *disk, const struct vhdx_extent *e, uint64_t from, uint64_t to, extent_use_fn *fn, void *opaque);

#endif
