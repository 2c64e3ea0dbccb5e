/* SPDX-License-Identifier: MIT */
/* A file in memory whose changes can be taken back, so that trying one crash state costs what the state changes and not what the
 * file holds.  Used by one thread. */
#ifndef VHDX_TESTS_CRASH_FILE_H
#define VHDX_TESTS_CRASH_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/layout.h"
#include "storage/storage.h"

#define CRASH_FILE_BYTES MIB(768)

struct crash_undo;

struct crash_file {
    struct storage base;
    uint8_t *bytes;   /* CRASH_FILE_BYTES; zeros where nothing is stored */
    uint8_t *present; /* one for each page: stored */
    uint32_t *epochs; /* one for each page: when it was last saved */
    uint32_t epoch;   /* 0: changes stay */
    uint32_t last_epoch;
    uint64_t length, length_before;
    struct crash_undo *undo;
    size_t nr_undo, undo_capacity;
};

struct crash_file *crash_file_new(void);
void crash_file_free(struct crash_file *f);

/* Make it a copy of from. */
void crash_file_load(struct crash_file *f, struct storage *from);

/* Changes from here on are taken back by crash_file_rollback(), after which changes stay again. */
void crash_file_mark(struct crash_file *f);
void crash_file_rollback(struct crash_file *f);

/* A handle as the library takes it, to be closed by it; the file stays. */
struct storage *crash_file_open(struct crash_file *f);

#endif
