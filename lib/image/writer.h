/* SPDX-License-Identifier: MIT */
/* Changing an image in place (docs/writing.md).
 *
 * Locks, in this order: session, commit, meta, page cache shard.  `session` is held during the step from untouched to logging;
 * `commit` during a commit; `meta` while table entries, the dirty set or space change, never across payload I/O. */
#ifndef VHDX_IMAGE_WRITER_H
#define VHDX_IMAGE_WRITER_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/guid.h"
#include "image/header-pair.h"
#include "image/inflight.h"
#include "image/log-writer.h"
#include "image/space.h"

struct bat_entry;
struct block_claim;
struct image;

enum writer_state {
    WRITER_UNTOUCHED, /* no byte was changed since the image was opened */
    WRITER_LOGGING,   /* the headers name our log */
    WRITER_POISONED,  /* something failed of which nobody can tell how far it got (D9): reads only */
};

enum { MAX_FILLING = 64 };

/* Page images that are to go, or went, into one log entry. */
struct snapshot {
    uint32_t nr;
    uint64_t offsets[LOG_MAX_PAGES]; /* file offsets, ascending */
    uint8_t *bytes;                  /* nr times PAGE_BYTES, room for max_dirty */
    bool data_first;                 /* payload that they expose must be durable before they are logged (D2) */
    uint64_t last_offset;            /* end of all space that may be in use once they are applied, bytes */
};

struct writer {
    _Atomic(enum writer_state) state;
    struct inflight inflight;

    pthread_mutex_t session;
    struct header_pair headers; /* session; the commit lock at close */
    bool file_guid_renewed;     /* session */
    atomic_bool data_guid_renewed; /* set under session; implies that the log was started */

    pthread_mutex_t commit; /* protects: */
    struct log_writer log;
    struct snapshot pending;  /* taken, not yet durable in the log; kept when there was no space */
    struct snapshot previous; /* durable in the log, not yet in place: its pages are held */
    uint64_t durable_length;  /* of the file, bytes */
    uint64_t last_ok;         /* number of the last commit that succeeded */
    atomic_ulong started;     /* commits begun; written under `commit` */

    pthread_mutex_t meta; /* protects: */
    uint64_t dirty[LOG_MAX_PAGES]; /* file offsets of pages changed since the last snapshot: held */
    uint32_t nr_dirty, max_dirty;
    bool data_first;
    struct space space;
    uint64_t filling[MAX_FILLING]; /* keys of blocks whose space is being made zero */
    uint32_t nr_filling;
    struct block_claim *claims; /* parts of blocks that are being written and not visible yet */
    pthread_cond_t changed;     /* filling or claims */
    struct error_text poison; /* why */
};

/* Make img, whose file is open for writing, writable: refuses what must not be written (VHDX_E_UNSUPPORTED, VHDX_E_HEADER) before
 * it changes a byte, then brings a dirty log's changes into their places. */
int writer_attach(struct image *img);

/* Before the first change that a guest, or a program that asks for the disk's facts, can see: new identities, log started.  Cheap
 * when that is done. */
int writer_begin(struct image *img);

/* Before a change that nobody can see (format section 2.5): DataWriteGuid stays, so children stay valid.  What is visible after
 * all needs writer_begin() too. */
int writer_begin_invisible(struct image *img);

/* As writer_begin(), but the image's DataWriteGuid is this one from now on, durably; may be called again with another
 * (9.10, 9.11). */
int writer_begin_as(struct image *img, const guid *data_write_guid);

/* The header as it stands now. */
struct header writer_header(struct image *img);

/* Everything that had completed before is durable when this returns 0 (D4).  -EIO once poisoned. */
int writer_commit(struct image *img);

/* A change that began when so many commits had begun found no space.  Make what was given up, and waits for its loss to be
 * durable (D3), free: true if something may have become so, and the change is worth one more try.  Not within a request in
 * flight, which would keep the space that it might still read. */
uint64_t writer_commits_begun(struct image *img);
bool writer_make_room(struct image *img, uint64_t commits_begun);

static inline bool is_no_space(int code)
{
    return code == -ENOSPC || code == -EDQUOT;
}

/* Leave a clean image (D8) and free the writer.  After a failure the log brings back what was durable. */
int writer_detach(struct image *img);

/* Note why, and refuse changes from now on.  Returns code. */
int writer_poison(struct image *img, int code);

/* 0, or -EIO with the reason once poisoned. */
int writer_check(struct image *img);

/* ---- pages of tables and metadata (edit.c) ---- */

/* Pages that change together, in one log entry (W11).  A set holds them, so that they stay in memory.  Begin with all zero and
 * end with page_set_release(), also after failures. */
enum { PAGE_SET_MAX = 64 }; /* fits into an entry of the smallest log */

struct page_set {
    uint32_t nr;
    uint64_t offsets[PAGE_SET_MAX]; /* file offsets */
};

/* Add the pages of a range of the file, and make sure that they can be written home without finding the disk full (D10).  -E2BIG.
 */
int page_set_add(struct image *img, struct page_set *set, uint64_t file_offset, uint64_t bytes);
void page_set_release(struct image *img, struct page_set *set);

/* Lock meta with room for all pages of the set in the next log entry, committing first if there is none.  -EIO once poisoned. */
int meta_lock(struct image *img, const struct page_set *set);
void meta_unlock(struct image *img);

/* With meta locked: is there room (again)?  And: a page of such a set is about to change, by page_cache_edit(). */
bool page_set_fits(const struct image *img, const struct page_set *set);
void page_mark_dirty(struct image *img, uint64_t file_offset);

/* Bytes of metadata anywhere in the file but in payload. */
struct metadata_edit {
    uint64_t file_offset;
    const void *bytes;
    size_t length; /* bytes; may cross pages */
};

/* Make these changes in one log entry: after a crash all of them are there or none.  The session must have begun; durable with
 * the next writer_commit().  What was read from there into struct image when it was opened is the caller's to bring up to date.
 * -E2BIG beyond PAGE_SET_MAX pages; nothing was changed after a failure. */
int image_edit_metadata(struct image *img, const struct metadata_edit *edits, size_t nr);

/* The bytes as they stand, changes that are not in their places yet included (image_pread() would not see those). */
int image_read_metadata(struct image *img, void *buf, size_t bytes, uint64_t file_offset);

/* ---- blocks (allocate.c) ---- */

/* Where block_no lies, for writing: *place is its file offset.  Allocates it if need be; a fresh block reads as zeros.  Not for
 * images with a parent. */
int block_for_write(struct image *img, uint64_t block_no, uint64_t *place);

/* Drop the whole block: from now on it reads as zeros, in state PAYLOAD_ZERO or PAYLOAD_UNMAPPED, whatever a parent holds. */
int block_drop(struct image *img, uint64_t block_no, unsigned state);

/* ---- blocks of images with a parent (partial.c) ---- */

/* A part of a block that somebody is about to write. */
struct block_claim {
    /* To be filled in. */
    uint64_t block_no;
    uint64_t in_block, bytes; /* the part; inside the disk */
    bool zeros_below;         /* the parents are known to hold nothing but zeros in all of the block */

    /* The answer. */
    uint64_t place; /* file offset of the block */
    bool claimed;   /* what is written there becomes visible by block_publish() only */
    bool merge_head, merge_tail; /* the part covers its first (last) sector in part, the rest of which has to come from the parents */
    bool zero_rest; /* what lies in the block behind the disk's end has to be made zeros too */

    /* partial.c's own. */
    struct block_claim *next;
    uint32_t first, end; /* sectors of the block */
};

/* Find a place for the part.  If it is claimed, the caller writes there, whole sectors, and then calls block_publish(), or
 * block_abandon() if that failed; meanwhile nobody else completes those sectors with what the parents hold, nor writes those that
 * the caller completes. If not, the caller writes its bytes there and is done.  Called within a request in flight. */
int block_claim(struct image *img, struct block_claim *c);
int block_publish(struct image *img, struct block_claim *c);
void block_abandon(struct image *img, struct block_claim *c);

/* ---- what allocate.c and partial.c share; all with meta locked but for block_lock() ---- */

/* What is being made zeros: a block by its number, or a chunk's bitmap block. */
static inline uint64_t bitmap_key(uint64_t chunk_no)
{
    return UINT64_C(1) << 63 | chunk_no;
}

/* Lock meta as meta_lock(), with nobody filling the key's space. */
int block_lock(struct image *img, uint64_t key, const struct page_set *set);

/* Take space, made zeros first if zeros says so and it is not; then others may do anything meanwhile.  -EAGAIN: look again.
 * *place: file offset. */
int block_take_space(struct image *img, uint64_t key, uint64_t bytes, const struct page_set *set, bool zeros, uint64_t *place);

/* Give the block space that reads as zeros, in state PAYLOAD_FULLY_PRESENT; its entry is e, and in the set. */
int block_allocate(struct image *img, uint64_t block_no, const struct bat_entry *e, const struct page_set *set, uint64_t *place);

void block_set_entry(struct image *img, uint64_t block_no, unsigned state, uint64_t place);

enum zero_ways {
    ZERO_BY_HOLE = 1u << 0, /* rather give the space back than keep it */
    ZERO_NO_HOLE = 1u << 1, /* keep the space, or get it where the file has a hole */
    ZERO_FAST    = 1u << 2, /* do not write zeros: -EOPNOTSUPP */
};

/* Make a stretch of the file read as zeros, in whatever way the storage can and ways, of enum zero_ways, allow. */
int writer_make_zero(struct image *img, uint64_t offset, uint64_t bytes, unsigned ways);

#endif
