/* SPDX-License-Identifier: MIT */
/* The file that a target lets the library look at: a storage of 4 KiB pages, any number of them holes, of any
 * length.
 *
 * Unlike storage/memory.c it allocates nothing, so that building one costs a few microseconds; it knows holes
 * page by page; it can let one read fail; and whoever tries to change it through the storage ends the
 * program.  Used by one thread. */
#ifndef VHDX_FUZZ_FUZZ_FILE_H
#define VHDX_FUZZ_FUZZ_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/layout.h"
#include "storage/storage.h"

enum { FUZZ_FILE_PAGES = 768 }; /* stored ones; what is put beyond is lost */

struct fuzz_file {
    struct storage base;
    uint64_t length;   /* bytes */
    bool hides_holes;  /* next_data knows nothing, as on some file systems */
    unsigned fault_at; /* this read, counted from 1, fails with -EIO; 0: none */
    unsigned nr_reads; /* calls so far */
    unsigned nr_open;  /* handles that were given out and not closed */
    unsigned nr_pages;
    uint64_t page_no[FUZZ_FILE_PAGES]; /* ascending */
    uint16_t page_slot[FUZZ_FILE_PAGES];
    uint8_t slots[FUZZ_FILE_PAGES][PAGE_BYTES];
};

/* An empty file; nothing may have it open. */
void fuzz_file_reset(struct fuzz_file *f);

/* Change it, from outside.  The length is not touched. */
void fuzz_file_put(struct fuzz_file *f, uint64_t offset, const void *data, size_t bytes);

/* Look at it, from outside: bytes of holes and behind the end are zeros. */
void fuzz_file_get(const struct fuzz_file *f, uint64_t offset, void *data, size_t bytes);

/* The page's bytes, NULL if it is a hole. */
const uint8_t *fuzz_file_page(const struct fuzz_file *f, uint64_t page_no);

/* Index in page_no of the first stored page at or after page_no. */
unsigned fuzz_file_find(const struct fuzz_file *f, uint64_t page_no);

/* A handle as the library takes it, to be closed by it. */
struct storage *fuzz_file_open(struct fuzz_file *f);

#endif
