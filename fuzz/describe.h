/* SPDX-License-Identifier: MIT */
/* From a fuzzer's input to a VHDX file.  An image has 4 MiB at least, so the input does not hold it but
 * describes it: a few numbers choose a small valid image, then follows a list of changes to it.
 *
 *   offset size
 *        0    1  the image: bits 0-1 dynamic, differencing, fixed, empty file; bit 2 dirty log; bit 3 sectors of
 *                4096 bytes; bits 4-5 blocks of 1, 2, 32, 256 MiB; bits 6-7 disk size: blocks, blocks and a bit,
 *                chunks, huge
 *        1    1  the parent, the same way
 *        2    2  enum describe_flags
 *        4    5  how the file's length is changed, and by what: see change_length() in describe.c
 *        9    1  which read fails, counted from 1; 0: none
 *       10       changes until the end of the input: see change() in describe.c */
#ifndef VHDX_FUZZ_DESCRIBE_H
#define VHDX_FUZZ_DESCRIBE_H

#include <stdbool.h>

#include "fuzz-file.h"
#include "input.h"

enum describe_flags {
    DESCRIBE_REPAIR_TABLES = 1,   /* checksums of headers and region tables */
    DESCRIBE_REPAIR_LOG = 2,      /* checksums of whatever looks like a log entry */
    DESCRIBE_REPAIR_IDENTITY = 4, /* with the above: its GUID, and the sequence numbers inside it */
    DESCRIBE_UNVERIFIED = 8,
    DESCRIBE_REFUSE_DIRTY = 16,
    DESCRIBE_TWO_LAYERS = 32, /* there is a parent */
    DESCRIBE_HIDE_HOLES = 64,
    DESCRIBE_SMALL_CACHE = 128,
    DESCRIBE_RAW_PARENT = 256, /* the parent is no VHDX */
    DESCRIBE_BY_NAME = 512,    /* open as by vhdx_open() (by-name.h) */
};

struct description {
    unsigned flags;          /* enum describe_flags */
    struct fuzz_file *child; /* files are the same for every description */
    struct fuzz_file *parent;
};

/* Build the files that the input describes. */
void describe(struct input *in, struct description *d);

#endif
