/* SPDX-License-Identifier: MIT */
/* One image, what a guest does to it, and the crash states that this can leave. */
#ifndef VHDX_TESTS_CRASH_RUN_H
#define VHDX_TESTS_CRASH_RUN_H

#include "crash-file.h"
#include "crash-parents.h"
#include "crash-reader.h"
#include "disk/disk.h"
#include "doubles.h"
#include "history.h"
#include "image-builder.h"

struct crash_setup {
    uint32_t sector_size;
    uint32_t block_mib, log_mib;
    uint64_t virtual_mib;
    uint32_t nr_blocks;    /* listed ones, */
    uint64_t block_stride; /* so many numbers apart */
    bool fixed;
    bool cannot_punch;
    uint64_t device_mib;   /* the file has this length and keeps it, as a block device; 0: it is a file */

    /* A child, if nr_parents is not 0: */
    uint32_t nr_parents;
    uint32_t parent_block_mib;
    uint32_t short_by;  /* bytes that the last block, which is listed, has less than others */
    bool stale_bits;    /* there is a bitmap block, full of ones that mean nothing */
    bool foreign_space; /* the file has free space with somebody's data, which is not punched */
};

enum { MAX_LAYERS = 4 };

struct crash_run {
    struct crash_setup setup;
    struct image_plan plan;
    struct geometry geometry;
    struct history history;
    struct storage *file; /* in memory */
    struct recording recording;
    struct storage *recorder;
    struct fault fault; /* in front of the recorder: what it refuses is not recorded */
    struct image *img;
    struct layer layers[MAX_LAYERS];
    struct vhdx_disk disk;
    struct crash_parents *parents;
    uint64_t random; /* state of the generator */
};

void crash_run_init(struct crash_run *run, const struct crash_setup *setup, uint64_t seed);
void crash_run_destroy(struct crash_run *run);

/* Open for writing, through the recorder; close. */
int crash_run_open(struct crash_run *run);
int crash_run_close(struct crash_run *run);

/* Requests that are entered in the history. */
int crash_run_write(struct crash_run *run, uint64_t guest_offset, uint64_t bytes, bool fua);
int crash_run_zero(struct crash_run *run, uint64_t guest_offset, uint64_t bytes, bool fua);
int crash_run_discard(struct crash_run *run, uint64_t guest_offset, uint64_t bytes, bool fua);
int crash_run_flush(struct crash_run *run);

/* Bytes of a listed block that the guest can see. */
static inline uint64_t crash_visible(const struct crash_run *run, uint32_t i)
{
    return block_visible_bytes(&run->geometry, run->history.blocks[i]);
}

/* The guest offset of a listed block. */
static inline uint64_t crash_block(const struct crash_run *run, uint32_t i)
{
    return run->history.blocks[i] * run->history.block_bytes;
}

uint64_t crash_random(struct crash_run *run, uint64_t below);

/* nr requests by chance; the first failure ends it. */
int crash_run_random(struct crash_run *run, unsigned nr);

struct crash_budget {
    uint64_t exhaustive; /* try every subset of what is not durable where there are no more of them */
    unsigned random;     /* states by chance after each step */
    unsigned open_every; /* of so many states, bring one in through the library, read-only and writable; 0: none */
    bool stop_early;     /* at the first bad state */
};

/* Judge the states that the recording can leave.  NULL, or what is wrong with the first bad one; adds to *nr_states. */
const char *crash_run_judge(struct crash_run *run, const struct crash_budget *budget, uint64_t *nr_states);

/* Go on, closed, with the file as a crash might have left it; the recording begins anew. */
const char *crash_run_crash(struct crash_run *run);

/* Read every listed block through the open disk and judge it with nothing lost: NULL, or what is wrong. */
const char *crash_run_read_back(struct crash_run *run);

/* NULL, or that a parent's file has changed. */
const char *crash_run_check_parents(const struct crash_run *run);

/* What the recording may not hold at all: NULL, or a step that changes what is nobody's to change. */
const char *crash_run_check_steps(const struct crash_run *run);

/* How many seeds the environment asks for, else normally. */
unsigned crash_seeds(unsigned normally, uint64_t *first);

#endif
