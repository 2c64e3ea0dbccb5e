/* SPDX-License-Identifier: MIT */
/* What could be found in a file after a power cut, from a recording of what was done to it.
 *
 * THE MODEL
 *
 * The power fails right after some step of the recording; an operation that was under way at that moment is
 * covered by the point in time after it, where it may be missing or torn.
 *
 * Durable is what the file held when the recording began, and every step that had returned before some flush
 * began that has completed.  All of that is there, in its order.  Every later step, one that ran at the same
 * time as the flush included, is pending, and each by itself is
 *
 *     kept      it happened;
 *     dropped   it did not;
 *     torn      some of its sectors happened (not so for a truncate, which is one piece).
 *
 * Sectors are the aligned 512 bytes of the file and never torn themselves.  Pending steps may take effect in
 * any order, so where two of them meet, the older may win.  A write behind the end that is torn or dropped
 * may have made the file longer all the same, with zeros in place of the data.
 *
 * This is harsher than most file systems: a journal would keep changes of the length and holes in order.
 *
 * NOT MODELLED
 *
 * A device that loses what it was told to flush, sectors that become unreadable or change by themselves, old
 * content of the disk in new parts of the file (file systems give zeros), and order between several files.
 *
 * TWO WAYS TO USE IT
 *
 * powerloss_random() draws from all of that: an eighth of the seeds keeps everything, an eighth drops
 * everything, an eighth tears everything, the others decide for each step; half shuffle.  Long punches and
 * zeroings are torn in larger pieces, no more than TORN_PIECES_MAX.
 *
 * powerloss_enumerate() gives every subset of the pending steps, or of their 4 KiB pieces, in recorded order.
 * Since any piece may be missing, the older of two that cover the same bytes wins in some of them; it leaves
 * out growth without data, and what shuffling could give where pieces overlap in part or lengths change. */
#include "doubles.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/math.h"

enum { SECTOR_BYTES = 512, TORN_PIECES_MAX = 4096 };

/* ---- pieces of a step ---- */

/* How many pieces, cut at multiples of unit, a step has. */
static uint64_t nr_pieces(const struct step *step, uint64_t unit)
{
    if (step->kind == STEP_FLUSH)
        return 0;
    if (step->kind == STEP_TRUNCATE)
        return 1;
    return div_round_up(step->offset + step->bytes, unit) - step->offset / unit;
}

/* Its i-th piece, itself a step, that shares the data. */
static struct step piece_of(const struct step *step, uint64_t unit, uint64_t i)
{
    struct step piece = *step;

    if (step->kind == STEP_TRUNCATE)
        return piece;

    uint64_t start = (step->offset / unit + i) * unit;
    uint64_t end = min_u64(start + unit, step->offset + step->bytes);
    piece.offset = max_u64(start, step->offset);
    piece.bytes = end - piece.offset;
    if (piece.data)
        piece.data += piece.offset - step->offset;
    return piece;
}

size_t powerloss_durable(const struct recording *r, size_t nr_steps)
{
    size_t durable = 0;

    assert(nr_steps <= r->nr_steps);
    for (size_t i = 0; i < nr_steps; i++)
        if (r->steps[i].kind == STEP_FLUSH && r->steps[i].covers > durable)
            durable = r->steps[i].covers;
    return durable;
}

/* ---- one state by chance ---- */

/* SplitMix64, so that a seed means the same everywhere. */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

enum fate { KEPT, DROPPED, TORN, NR_FATES };

/* Which fate all steps share, or NR_FATES: each has its own. */
static enum fate draw_common_fate(uint64_t *random)
{
    uint64_t n = draw(random) % 8;

    return n < NR_FATES ? (enum fate)n : NR_FATES;
}

static int tear(const struct step *step, uint64_t *random, struct storage *to)
{
    uint64_t unit = SECTOR_BYTES;
    uint64_t eighths = 1 + draw(random) % 7; /* about so many of the pieces are there */
    int r = 0;

    while (step->kind != STEP_WRITE && nr_pieces(step, unit) > TORN_PIECES_MAX)
        unit *= 2;
    for (uint64_t i = 0, n = nr_pieces(step, unit); i < n && r == 0; i++) {
        struct step piece = piece_of(step, unit, i);

        if (draw(random) % 8 < eighths)
            r = step_apply(&piece, to);
    }
    return r;
}

/* The file system may have noted the new length of the file before the data came. */
static int grow_without_data(const struct step *step, struct storage *to)
{
    uint64_t length;
    int r = storage_length(to, &length);

    if (r == 0 && length < step->offset + step->bytes)
        r = storage_truncate(to, step->offset + step->bytes);
    return r;
}

static int suffer(const struct step *step, enum fate common, uint64_t *random, struct storage *to)
{
    enum fate fate = common == NR_FATES ? (enum fate)(draw(random) % NR_FATES) : common;
    int r = 0;

    if (fate == KEPT)
        return step_apply(step, to);
    if (fate == TORN)
        r = tear(step, random, to);
    if (r == 0 && step->kind == STEP_WRITE && common != DROPPED && draw(random) % 4 == 0)
        r = grow_without_data(step, to);
    return r;
}

static void shuffle(size_t *order, size_t nr, uint64_t *random)
{
    for (size_t i = nr; i > 1; i--) {
        size_t j = draw(random) % i, other = order[j];

        order[j] = order[i - 1];
        order[i - 1] = other;
    }
}

static int suffer_all(const struct recording *r, size_t first, size_t end, uint64_t *random,
                      struct storage *to)
{
    size_t nr = end - first, *order = calloc(nr + 1, sizeof *order);
    enum fate common = draw_common_fate(random);
    int error = 0;

    if (!order)
        return fail_memory("an order of steps");
    for (size_t i = 0; i < nr; i++)
        order[i] = first + i;
    if (draw(random) % 2)
        shuffle(order, nr, random);
    for (size_t i = 0; i < nr && error == 0; i++)
        error = suffer(&r->steps[order[i]], common, random, to);
    free(order);
    return error;
}

int powerloss_random(const struct recording *r, size_t nr_steps, uint64_t seed, struct storage **s)
{
    size_t durable = powerloss_durable(r, nr_steps);
    int error = recording_replay(r, durable, s);

    if (error == 0)
        error = suffer_all(r, durable, nr_steps, &seed, *s);
    if (error < 0) {
        storage_close(*s);
        *s = NULL;
    }
    return error;
}

int powerloss_suffer(const struct recording *r, size_t nr_steps, uint64_t seed, struct storage *to)
{
    return suffer_all(r, powerloss_durable(r, nr_steps), nr_steps, &seed, to);
}

/* ---- all states ---- */

/* Apply the pieces of steps [first, end) whose bits, counted from the lowest, are set in state_no. */
static int apply_subset(const struct recording *r, size_t first, size_t end, uint64_t unit, uint64_t state_no,
                        struct storage *to)
{
    int error = 0;

    for (size_t i = first; i < end; i++) {
        for (uint64_t n = 0; n < nr_pieces(&r->steps[i], unit) && error == 0; n++) {
            struct step piece = piece_of(&r->steps[i], unit, n);

            if (state_no & 1)
                error = step_apply(&piece, to);
            state_no >>= 1;
        }
    }
    return error;
}

static int count_states(const struct recording *r, size_t first, size_t end, uint64_t unit,
                        uint64_t max_states, uint64_t *nr_states)
{
    uint64_t total = 0;

    for (size_t i = first; i < end && total < 64; i++)
        total += min_u64(nr_pieces(&r->steps[i], unit), 64);
    *nr_states = total < 64 ? UINT64_C(1) << total : 0;
    if (*nr_states == 0 || *nr_states > max_states)
        return fail(-E2BIG, "steps %zu to %zu of the recording leave more than %" PRIu64 " states", first,
                    end, max_states);
    return 0;
}

static uint64_t unit_bytes(enum powerloss_unit unit)
{
    return unit == POWERLOSS_4KIB ? KIB(4) : UINT64_C(1) << 63;
}

uint64_t powerloss_count(const struct recording *r, size_t nr_steps, enum powerloss_unit unit, uint64_t max_states)
{
    uint64_t nr_states;
    int error = count_states(r, powerloss_durable(r, nr_steps), nr_steps, unit_bytes(unit), max_states, &nr_states);

    return error < 0 ? 0 : nr_states;
}

int powerloss_subset(const struct recording *r, size_t nr_steps, enum powerloss_unit unit, uint64_t state_no,
                     struct storage *to)
{
    return apply_subset(r, powerloss_durable(r, nr_steps), nr_steps, unit_bytes(unit), state_no, to);
}

int powerloss_enumerate(const struct recording *r, size_t nr_steps, enum powerloss_unit unit_kind,
                        uint64_t max_states, powerloss_fn *fn, void *opaque)
{
    uint64_t unit = unit_bytes(unit_kind);
    size_t durable = powerloss_durable(r, nr_steps);
    struct storage *before = NULL;
    uint64_t nr_states;
    int error = count_states(r, durable, nr_steps, unit, max_states, &nr_states);

    if (error == 0)
        error = recording_replay(r, durable, &before);
    for (uint64_t state_no = 0; error == 0 && state_no < nr_states; state_no++) {
        struct storage *s;

        error = storage_memory_new(NULL, 0, &s);
        if (error == 0)
            error = double_copy(before, s);
        if (error == 0)
            error = apply_subset(r, durable, nr_steps, unit, state_no, s);
        if (error < 0)
            storage_close(s);
        else
            error = fn(opaque, state_no, s);
    }
    storage_close(before);
    return error;
}
