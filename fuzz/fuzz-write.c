/* SPDX-License-Identifier: MIT */
/* Images that are written: a list of operations against a model of the disk, with storage that can fail, and power that can.
 *
 *   byte 0   geometry: bit 0 sectors of 4096 bytes, 1 fixed, 2 the file cannot be punched, 3 a log of 2 MiB, 4 blocks of 2 MiB,
 *            5-6 how far the blocks are apart, 7 a child; then bit 1 means that its bitmap has stale bits
 *   byte 1   bits 0-2 how many blocks are used, less 1; 3-4 states judged after each step, less 1; 5-6 of how many one is opened;
 *            7 a child's file has free space with somebody's data
 *   2 bytes  seed of the power failures
 *   then one operation after the other, a byte that says what and the bytes that it needs (below)
 *
 * The library is held to: every sector reads as D5 allows, at any time and after a crash at any step; what is found after a
 * crash opens, its blocks do not overlap, and replay leaves a clean image; only bytes that are the library's to change are
 * changed; after a flush that failed nothing is written (D9); without a fault nothing fails. */
#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "base/math.h"
#include "crash-run.h"
#include "image/image.h"
#include "image/writer.h"
#include "input.h"
#include "require.h"

enum { MAX_OPERATIONS = 80, MAX_LIVES = 5 };

enum operation {
    OP_WRITE,
    OP_WRITE_MORE, /* as often as the first, so that it is common */
    OP_ZERO,
    OP_DISCARD,
    OP_WHOLE_ZERO, /* of whole blocks */
    OP_WHOLE_DISCARD,
    OP_ACROSS, /* a write over the border of two blocks */
    OP_FLUSH,
    OP_REOPEN, /* close properly, open */
    OP_CRASH,  /* close, then go on with what a crash somewhere has left */
    OP_READ,
    OP_FAULT,  /* the storage fails once or from then on */
    NR_OPERATIONS,
};

struct life {
    struct crash_run run;
    struct crash_budget budget;
    unsigned nr_lives;
    bool fault;       /* one was armed in this life, so requests may fail */
    bool fault_tells; /* it can leave the disk's content in doubt, see check_content() */
    bool torn;        /* the recording holds what a fault may have left of a write */
};

static void check(const char *error, const char *when)
{
    REQUIRE(!error, "%s: %s", when, error);
}

/* ---- the image ---- */

static void set_up(struct life *l, struct input *in)
{
    static const uint64_t strides[] = {1, 2, 512, 1024};
    uint8_t geometry = take8(in), use = take8(in);
    struct crash_setup setup = {
        .sector_size = geometry & 1 ? 4096 : 512,
        .fixed = (geometry & 0x82) == 2,
        .cannot_punch = geometry & 4,
        .log_mib = geometry & 8 ? 2 : 1,
        .block_mib = geometry & 16 ? 2 : 1,
        .block_stride = strides[geometry >> 5 & 3],
        .nr_blocks = 1 + (use & 7),
    };

    if (setup.fixed)
        setup.block_stride = 1;
    uint16_t seed = take16(in);
    if (geometry & 0x80) {
        setup.nr_parents = 1 + (seed & 1);
        setup.parent_block_mib = 1 + (seed >> 1 & 1);
        setup.stale_bits = geometry & 2;
        setup.foreign_space = use & 0x80;
    }
    setup.virtual_mib = setup.nr_blocks * setup.block_stride * setup.block_mib;
    l->budget = (struct crash_budget){.random = 1 + (use >> 3 & 3), .open_every = 2u << (use >> 5 & 3), .stop_early = true};
    crash_run_init(&l->run, &setup, 1 + seed);
    REQUIRE(crash_run_open(&l->run) == 0, "%s", error_message());
}

static bool is_poisoned(const struct life *l)
{
    return l->run.img->writer->state == WRITER_POISONED;
}

/* No more faults, but that a file may not be able to punch. */
static void disarm(struct life *l)
{
    static const struct fault_plan no_punch = {.kind = FAULT_PUNCH, .nth = 1, .forever = true, .error = -ENOTSUP};

    fault_arm(&l->run.fault, l->run.setup.cannot_punch ? &no_punch : NULL);
}

/* What is read is what was written, also by a disk that takes no more writes. */
static void check_content(struct life *l)
{
    if (!is_poisoned(l) || !l->fault_tells)
        check(crash_run_read_back(&l->run), "reading");
}

/* ---- lives ---- */

/* True if it was closed properly. */
static bool end_life(struct life *l)
{
    uint64_t nr_states = 0;

    disarm(l);
    check_content(l);
    bool poisoned = is_poisoned(l);
    int r = crash_run_close(&l->run);
    REQUIRE((r < 0) == poisoned, "closing: %d, %s", r, error_message());
    if (!l->torn)
        check(crash_run_check_steps(&l->run), "changes");
    check(crash_run_judge(&l->run, &l->budget, &nr_states), "crash");
    return !poisoned;
}

static void crash(struct life *l, const char *when)
{
    check(crash_run_crash(&l->run), when);
    l->torn = false;
}

static void begin_life(struct life *l)
{
    l->fault = l->fault_tells = false;
    int r = crash_run_open(&l->run);
    REQUIRE(r == 0, "opening: %d, %s", r, error_message());
    check(crash_run_read_back(&l->run), "reading what is left");
}

/* ---- operations ---- */

static void arm_fault(struct life *l, struct input *in)
{
    static const enum fault_kind kinds[] = {FAULT_WRITE, FAULT_FLUSH, FAULT_TRUNCATE, FAULT_PUNCH, FAULT_ZERO, FAULT_WRITE};
    uint8_t what = take8(in), when = take8(in);
    struct fault_plan plan = {
        .kind = kinds[what % ARRAY_LENGTH(kinds)],
        .error = what & 0x40 ? -ENOSPC : -EIO,
        .forever = what & 0x80,
        .nth = 1 + (when & 31),
        .bytes_done = (size_t)(when >> 5) * 512,
    };

    fault_arm(&l->run.fault, &plan);
    l->fault = true;
    l->torn |= plan.bytes_done > 0;
    l->fault_tells |= plan.kind != FAULT_FLUSH;
}

/* A place and a length in units of a sector, near the beginning of a block or at its end, so that they meet often. */
static int do_part(struct life *l, struct input *in, enum operation op)
{
    struct crash_run *run = &l->run;
    uint8_t where = take8(in), how = take8(in);
    uint64_t unit = run->setup.nr_parents > 0 ? CELL_BYTES : run->setup.sector_size; /* a child's parents complete its sectors */
    uint64_t block_bytes = run->history.block_bytes;
    uint32_t block = (where & 7) % run->history.nr_blocks;
    uint64_t bytes = (how & 7) == 7 ? block_bytes / 2 : unit << (how & 7); /* halves make a child's block whole */
    uint64_t at = (where >> 3 & 7) * KIB(16) + (how >> 3 & 7) * unit;
    bool fua = how & 0x80;

    if ((how & 7) == 7)
        at = 0;
    if (where & 0x40)
        at = block_bytes - bytes;
    if (op == OP_ACROSS && run->setup.block_stride == 1 && block + 1 < run->history.nr_blocks)
        at = block_bytes - align_up(bytes / 2, unit);
    else
        bytes = min_u64(bytes, block_bytes - at);
    if (op == OP_ZERO)
        return crash_run_zero(run, crash_block(run, block) + at, bytes, fua);
    if (op == OP_DISCARD)
        return crash_run_discard(run, crash_block(run, block) + at, bytes, fua);
    return crash_run_write(run, crash_block(run, block) + at, bytes, fua);
}

static int do_whole(struct life *l, struct input *in, enum operation op)
{
    struct crash_run *run = &l->run;
    uint8_t where = take8(in);
    uint32_t block = (where & 7) % run->history.nr_blocks, nr = 1 + (where >> 3 & 3);

    if (run->setup.block_stride != 1)
        nr = 1;
    uint64_t bytes = min_u64(nr, run->history.nr_blocks - block) * run->history.block_bytes;
    return op == OP_WHOLE_ZERO ? crash_run_zero(run, crash_block(run, block), bytes, where & 0x80)
                               : crash_run_discard(run, crash_block(run, block), bytes, where & 0x80);
}

/* A change or a flush: what it returns, and what that says. */
static void do_request(struct life *l, struct input *in, enum operation op)
{
    bool poisoned = is_poisoned(l);
    int r;

    if (op == OP_FLUSH)
        r = crash_run_flush(&l->run);
    else if (op == OP_WHOLE_ZERO || op == OP_WHOLE_DISCARD)
        r = do_whole(l, in, op);
    else
        r = do_part(l, in, op);
    REQUIRE(!poisoned || r == -EIO, "a poisoned disk says %d", r);
    REQUIRE(r == 0 || l->fault, "%d without a fault, %s", r, error_message());
    REQUIRE(r == 0 || r == -EIO || r == -ENOSPC, "%d, %s", r, error_message());
}

/* False: the input is at its end, or has had its time. */
static bool do_operation(struct life *l, struct input *in)
{
    if (in->left == 0)
        return false;
    enum operation op = take8(in) % NR_OPERATIONS;
    switch (op) {
    case OP_REOPEN:
    case OP_CRASH:
        if (++l->nr_lives == MAX_LIVES)
            return false;
        if (!end_life(l) || op == OP_CRASH) /* what a poisoned disk had not flushed may be lost with and without a crash */
            crash(l, "crash to go on with");
        begin_life(l);
        return true;
    case OP_READ:
        disarm(l);
        check_content(l);
        return true;
    case OP_FAULT:
        arm_fault(l, in);
        return true;
    default:
        do_request(l, in, op);
        return true;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct input in = {data, bytes};
    double begun = processor_seconds();
    struct life l = {0};

    set_up(&l, &in);
    for (unsigned n = 0; n < MAX_OPERATIONS && do_operation(&l, &in); n++)
        ;
    end_life(&l);
    crash(&l, "crash at last");
    begin_life(&l);
    REQUIRE(crash_run_close(&l.run) == 0, "closing at last: %s", error_message());
    crash_run_destroy(&l.run);
    double took = processor_seconds() - begun;
    REQUIRE(took < MAX_PROCESSOR_SECONDS, "%.1f s of processor time", took);
    return 0;
}
