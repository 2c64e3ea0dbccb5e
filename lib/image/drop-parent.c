/* SPDX-License-Identifier: MIT */
#include "image/drop-parent.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "image/image.h"
#include "image/items.h"
#include "image/writer.h"

enum { ENTRIES_AT_A_TIME = 32 };

/* ---- partially present blocks become fully present ---- */

static int check_is_whole(struct image *img, uint64_t block_no)
{
    const struct geometry *g = &img->geometry;
    uint64_t at = block_no << g->block_shift, end = at + block_visible_bytes(g, block_no);
    struct run run;

    for (; at < end; at += run.length) {
        int r = image_resolve(img, at, end - at, &run);
        if (r < 0)
            return r;
        if (run.kind == RUN_PARENT)
            return fail(VHDX_E_BITMAP, "block %" PRIu64 ": what lies at offset %" PRIu64 " of the disk is still the parent's", block_no, at);
    }
    return 0;
}

static int promote(struct image *img, uint64_t block_no, const struct bat_entry *e)
{
    const struct geometry *g = &img->geometry;
    uint64_t visible = block_visible_bytes(g, block_no);
    struct page_set set = {0};

    int r = check_is_whole(img, block_no);
    if (r == 0 && visible < g->block_size) /* what a later grown disk would show (rule 4 of section 6) */
        r = writer_make_zero(img, e->file_offset + visible, g->block_size - visible, ZERO_BY_HOLE);
    if (r == 0)
        r = page_set_add(img, &set, bat_entry_offset(img, bat_index_of_block(g, block_no)), BAT_ENTRY_BYTES);
    if (r == 0)
        r = meta_lock(img, &set);
    if (r == 0) {
        img->writer->data_first = true;
        block_set_entry(img, block_no, PAYLOAD_FULLY_PRESENT, e->file_offset);
        meta_unlock(img);
    }
    page_set_release(img, &set);
    return r;
}

static int promote_all(struct image *img)
{
    const struct geometry *g = &img->geometry;
    uint64_t index = 0, no;
    int r = 0;

    while (r == 0 && (r = bat_skip_holes(img, index, g->nr_bat_entries, &index)) == 0 && index < g->nr_bat_entries) {
        struct bat_entry e;
        if (!bat_index_is_bitmap(g, index++, &no) && no < g->nr_blocks) {
            r = bat_lookup(img, no, &e);
            if (r == 0 && e.state == PAYLOAD_PARTIALLY_PRESENT)
                r = promote(img, no, &e);
        }
    }
    return r;
}

/* ---- bitmap blocks ---- */

/* Nothing needs them any more.  Their space stays taken to the end of the session: pages of theirs may be in the log still (W8).
 */
static int clear_bitmap_entries(struct image *img)
{
    static const uint8_t zeros[BAT_ENTRY_BYTES];
    const struct geometry *g = &img->geometry;
    struct metadata_edit edits[ENTRIES_AT_A_TIME];
    uint64_t nr_chunks = div_round_up(g->nr_blocks, UINT64_C(1) << g->chunk_shift);
    uint64_t raw;
    size_t nr = 0;
    int r = 0;

    for (uint64_t chunk_no = 0; r == 0 && chunk_no < nr_chunks; chunk_no++) {
        uint64_t index = bat_index_of_bitmap(g, chunk_no);
        r = bat_read(img, index, 1, &raw);
        if (r == 0 && raw != 0)
            edits[nr++] = (struct metadata_edit){bat_entry_offset(img, index), zeros, sizeof zeros};
        if (r == 0 && nr > 0 && (nr == ENTRIES_AT_A_TIME || chunk_no + 1 == nr_chunks)) {
            r = image_edit_metadata(img, edits, nr);
            nr = 0;
        }
    }
    if (r == 0 && nr > 0)
        r = image_edit_metadata(img, edits, nr);
    return r;
}

/* ---- all of it ---- */

int image_drop_parent(struct image *img)
{
    struct metadata_values values = img->values;
    uint8_t raw[16];

    int r = promote_all(img);
    if (r == 0)
        r = writer_commit(img); /* before the bits go that parts of blocks relied on */
    if (r == 0)
        r = clear_bitmap_entries(img);
    if (r < 0)
        return r;
    values.parameter_flags = 0; /* dynamic: in an image with a parent LeaveBlocksAllocated meant nothing (5.1) */
    uint32_t length = metadata_value_encode(METADATA_FILE_PARAMETERS, &values, raw);
    struct item_change changes[] = {item_change_known(METADATA_FILE_PARAMETERS, raw, length),
                                    item_change_known(METADATA_PARENT_LOCATOR, NULL, 0)};
    changes[1].remove = true;
    r = image_change_items(img, changes, ARRAY_LENGTH(changes));
    return r < 0 ? r : writer_commit(img);
}
