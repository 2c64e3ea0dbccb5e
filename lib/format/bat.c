/* SPDX-License-Identifier: MIT */
#include "format/bat.h"

#include <assert.h>
#include <inttypes.h>
#include <stddef.h>

#include "base/error.h"
#include "base/le.h"
#include "format/hint.h"
#include "vhdx.h"

/* ---- geometry (5.2) ---- */

static unsigned log2_of(uint64_t power_of_two)
{
    return (unsigned)__builtin_ctzll(power_of_two);
}

void geometry_init(struct geometry *g, uint64_t virtual_size, uint32_t block_size, uint32_t sector_size,
                   bool has_parent)
{
    assert(virtual_size > 0 && is_power_of_two(block_size) && is_power_of_two(sector_size));
    uint64_t chunk_bytes = SECTORS_PER_CHUNK * sector_size;
    assert(block_size <= chunk_bytes);

    *g = (struct geometry){
        .virtual_size = virtual_size,
        .block_size = block_size,
        .sector_size = sector_size,
        .block_shift = log2_of(block_size),
        .chunk_shift = log2_of(chunk_bytes / block_size),
        .nr_blocks = div_round_up(virtual_size, block_size),
        .nr_chunks = div_round_up(virtual_size, chunk_bytes),
        .has_parent = has_parent,
    };
    if (has_parent) /* up to and with the last chunk's bitmap entry */
        g->nr_bat_entries = (g->nr_chunks << g->chunk_shift) + g->nr_chunks;
    else /* up to the last block's entry */
        g->nr_bat_entries = bat_index_of_block(g, g->nr_blocks - 1) + 1;
}

bool bat_index_is_bitmap(const struct geometry *g, uint64_t bat_index, uint64_t *no)
{
    uint64_t chunk_ratio = UINT64_C(1) << g->chunk_shift;
    uint64_t chunk_no = bat_index / (chunk_ratio + 1);
    uint64_t in_chunk = bat_index % (chunk_ratio + 1);

    if (in_chunk == chunk_ratio) {
        *no = chunk_no;
        return true;
    }
    *no = (chunk_no << g->chunk_shift) + in_chunk;
    return false;
}

/* ---- entries (5.3 to 5.5) ---- */

const char *payload_state_name(unsigned state)
{
    static const char *const names[VHDX_NR_BLOCK_STATES] = {
        [PAYLOAD_NOT_PRESENT] = "not-present",
        [PAYLOAD_UNDEFINED] = "undefined",
        [PAYLOAD_ZERO] = "zero",
        [PAYLOAD_UNMAPPED] = "unmapped",
        [4] = "reserved-4",
        [5] = "reserved-5",
        [PAYLOAD_FULLY_PRESENT] = "fully-present",
        [PAYLOAD_PARTIALLY_PRESENT] = "partially-present",
    };
    return state < ARRAY_LENGTH(names) ? names[state] : "invalid";
}

static bool payload_holds_data(unsigned state)
{
    return state == PAYLOAD_FULLY_PRESENT || state == PAYLOAD_PARTIALLY_PRESENT;
}

static bool payload_may_be_anchored(unsigned state)
{
    return state == PAYLOAD_UNDEFINED || state == PAYLOAD_UNMAPPED;
}

bool payload_owns_space(const struct bat_entry *e)
{
    return payload_holds_data(e->state) || (payload_may_be_anchored(e->state) && e->file_offset != 0);
}

/* Why a disk cannot have a block in this state (5.4); NULL if it can. */
static const char *payload_state_problem(const struct geometry *g, unsigned state)
{
    switch (state) {
    case PAYLOAD_NOT_PRESENT:
    case PAYLOAD_UNDEFINED:
    case PAYLOAD_ZERO:
    case PAYLOAD_UNMAPPED:
    case PAYLOAD_FULLY_PRESENT:
        return NULL;
    case PAYLOAD_PARTIALLY_PRESENT:
        return g->has_parent ? NULL : "is partially present, but the disk has no parent";
    default:
        return "has a reserved state";
    }
}

/* Which entry a message is about. */
struct entry_name {
    const char *of; /* "block" or "bitmap of chunk" */
    uint64_t no;
    uint64_t entry_offset;
};

static int entry_fail(const struct entry_name *name, uint64_t raw, const char *what)
{
    return fail(VHDX_E_BAT, "BAT entry at 0x%" PRIx64 " (%s %" PRIu64 "): 0x%016" PRIx64 " %s; " HINT_DAMAGED,
                name->entry_offset, name->of, name->no, raw, what);
}

/* May an object of so many bytes lie at file_offset, in any file? */
static int check_offset(const struct entry_name *name, uint64_t raw, uint64_t file_offset, uint64_t bytes)
{
    if (file_offset < HEADER_AREA_BYTES)
        return entry_fail(name, raw, "has a state that needs an offset, but none");
    if (!range_fits(file_offset, bytes, INT64_MAX))
        return entry_fail(name, raw, "points beyond what any file can hold");
    return 0;
}

static int behind_end(const struct entry_name *name, uint64_t file_offset, uint64_t bytes,
                      uint64_t file_length)
{
    return fail(VHDX_E_TRUNCATED,
                "BAT entry at 0x%" PRIx64 " (%s %" PRIu64 "): its space at 0x%" PRIx64 ", length 0x%" PRIx64
                ", ends behind the end of the file at 0x%" PRIx64 "; " HINT_TRUNCATED,
                name->entry_offset, name->of, name->no, file_offset, bytes, file_length);
}

int payload_entry_check(const struct geometry *g, uint64_t block_no, uint64_t raw, uint64_t entry_offset,
                        uint64_t file_length, bool *short_block)
{
    struct entry_name name = {"block", block_no, entry_offset};
    struct bat_entry e = bat_entry_decode(raw);
    const char *state_problem = payload_state_problem(g, e.state);

    assert(block_no < g->nr_blocks);
    if (short_block)
        *short_block = false;
    if (!e.reserved_is_zero)
        return entry_fail(&name, raw, "has reserved bits set");
    if (state_problem)
        return entry_fail(&name, raw, state_problem);
    if (!payload_owns_space(&e))
        return 0;

    int err = check_offset(&name, raw, e.file_offset, g->block_size);
    if (err || range_fits(e.file_offset, g->block_size, file_length))
        return err;
    if (!range_fits(e.file_offset, block_visible_bytes(g, block_no), file_length))
        return behind_end(&name, e.file_offset, g->block_size, file_length);
    if (short_block) /* only what lies behind the disk's end is missing; QEMU writes such files (10.3) */
        *short_block = true;
    return 0;
}

int bitmap_entry_check(const struct geometry *g, uint64_t chunk_no, uint64_t raw, uint64_t entry_offset,
                       uint64_t file_length)
{
    struct entry_name name = {"bitmap of chunk", chunk_no, entry_offset};
    struct bat_entry e = bat_entry_decode(raw);

    assert(chunk_no < g->nr_chunks);
    if (!e.reserved_is_zero)
        return entry_fail(&name, raw, "has reserved bits set");
    if (e.state == BITMAP_NOT_PRESENT)
        return 0;
    if (e.state != BITMAP_PRESENT)
        return entry_fail(&name, raw, "has a reserved state");

    int err = check_offset(&name, raw, e.file_offset, BITMAP_BLOCK_BYTES);
    if (err || range_fits(e.file_offset, BITMAP_BLOCK_BYTES, file_length))
        return err;
    return behind_end(&name, e.file_offset, BITMAP_BLOCK_BYTES, file_length);
}

/* ---- sector bitmaps (6) ---- */

uint64_t bitmap_run(const uint8_t *bits, uint64_t first_bit, uint64_t end_bit, bool *value)
{
    if (first_bit >= end_bit) {
        *value = false;
        return 0;
    }

    /* After exclusive or with same, the bits that end the run are ones. */
    uint64_t at = first_bit;
    *value = bits[at / 8] >> (at % 8) & 1;
    uint64_t same = *value ? UINT64_MAX : 0;
    uint64_t others = 0;

    if (at % 8 != 0) {
        others = (bits[at / 8] ^ (same & 0xff)) >> (at % 8);
        if (others == 0)
            at = align_up(at, 8);
    }
    while (others == 0 && at < end_bit && end_bit - at >= 64) {
        others = le64_get(bits + at / 8) ^ same;
        if (others == 0)
            at += 64;
    }
    while (others == 0 && at < end_bit) {
        others = bits[at / 8] ^ (same & 0xff);
        if (others == 0)
            at += 8;
    }
    if (others != 0)
        at += (unsigned)__builtin_ctzll(others);
    return min_u64(at, end_bit) - first_bit;
}
