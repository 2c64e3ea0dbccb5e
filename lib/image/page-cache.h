/* SPDX-License-Identifier: MIT */
/* Metadata pages of one image: the BAT and the sector bitmaps are read through here in pages of PAGE_BYTES, on demand,
 * with bounded memory.  Any thread, many at once: pages are spread over shards with a lock each; a page that is being
 * read holds up only those who want the same page.  Nothing here waits for I/O with a lock held (C3). */
#ifndef VHDX_IMAGE_PAGE_CACHE_H
#define VHDX_IMAGE_PAGE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct page_cache;

/* How pages are fetched: exactly bytes at file_offset. */
typedef int page_fetch_fn(void *opaque, void *buf, size_t bytes, uint64_t file_offset);

int page_cache_new(size_t max_pages, page_fetch_fn *fetch, void *opaque, struct page_cache **cache);
void page_cache_free(struct page_cache *cache);

/* Keep at most so many pages from now on (a chain of many images shares one budget).  Not while others read. */
void page_cache_set_limit(struct page_cache *cache, size_t max_pages);

/* Call fn with the page at file_offset, which is not changed meanwhile; fn must be short.  Errors are the fetch's. */
typedef void page_look_fn(void *opaque, const uint8_t page[4096]);
int page_cache_look(struct page_cache *cache, uint64_t file_offset, page_look_fn *fn, void *opaque);

/* Copy the page at file_offset for somebody who only passes by: one that is not here is fetched, but not kept, which costs less
 * than half as much, and pushes nothing out.  A page that changes meanwhile may be seen as it was.  Errors are the fetch's. */
int page_cache_peek(struct page_cache *cache, uint8_t page[4096], uint64_t file_offset);

/* Changing pages.  A page must be held while it is changed, and as long as its home place holds something older: holding keeps it
 * from being given up.  Holds are counted; held pages do not count against the limit. */
int page_cache_hold(struct page_cache *cache, uint64_t file_offset);

/* Notes of the holder's about a held page, kept as long as it is in memory, false at first: its place in the file has space. */
bool page_cache_has_space(struct page_cache *cache, uint64_t file_offset);
void page_cache_note_space(struct page_cache *cache, uint64_t file_offset);

void page_cache_release(struct page_cache *cache, uint64_t file_offset);

/* File offset of the first held page at or behind file_offset; UINT64_MAX if there is none.  What it holds may not be in the
 * file. */
uint64_t page_cache_next_held(struct page_cache *cache, uint64_t file_offset);

/* Change a held page through fn, which nobody reads meanwhile; fn must be short. */
typedef void page_edit_fn(void *opaque, uint8_t page[4096]);
void page_cache_edit(struct page_cache *cache, uint64_t file_offset, page_edit_fn *fn, void *opaque);

/* Copy bytes at file_offset, which must lie in one page, into buf.  Errors are the fetch's. */
int page_cache_read(struct page_cache *cache, void *buf, size_t bytes, uint64_t file_offset);

#endif
