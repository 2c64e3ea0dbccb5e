/* SPDX-License-Identifier: MIT */
#include "disk/write-child.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/disk.h"
#include "image/image.h"
#include "image/writer.h"
#include "storage/storage.h"

enum { MAX_SECTOR_BYTES = 4096 };

/* What a part of a block is to hold. */
struct content {
    child_put_fn *put;         /* brings the bytes there, whole sectors; NULL: */
    void *opaque;
    struct iov_position *from; /* the next bytes of these buffers; NULL: zeros, */
    unsigned ways;             /* made so */
};

/* Do the parents hold nothing but zeros in all of the block, by what their tables say?  Parents cannot change while they are
 * open, so the answer stays true. */
static int zeros_below(struct vhdx_disk *disk, uint64_t block_no, bool *answer)
{
    const struct geometry *g = &disk->layers[0].img->geometry;
    struct extent_cursor c;
    struct vhdx_extent e;

    *answer = false;
    if (disk->parent_left_out && disk->nr_layers == 1)
        return 0; /* nobody can tell */
    int r = extent_cursor_init_below(&c, disk, 1, block_no << g->block_shift, block_visible_bytes(g, block_no));
    if (r < 0)
        return r;
    while ((r = extent_cursor_next(&c, UINT64_MAX, &e)) > 0 && !(e.flags & VHDX_EXTENT_DATA))
        continue;
    extent_cursor_done(&c);
    *answer = r == 0;
    return r < 0 ? r : 0;
}

static int put(struct image *img, const struct content *content, uint64_t bytes, uint64_t file_offset)
{
    if (bytes == 0)
        return 0;
    if (content->put)
        return content->put(content->opaque, bytes, file_offset);
    return content->from ? write_piece(img, content->from, bytes, file_offset)
                         : writer_make_zero(img, file_offset, bytes, content->ways);
}

/* A part of one sector, whose rest comes from the parents; the sector is claimed. */
static int put_merged(struct vhdx_disk *disk, const struct block_claim *c, const struct content *content, uint64_t in_block,
                      uint64_t bytes)
{
    struct image *img = disk->layers[0].img;
    const struct geometry *g = &img->geometry;
    uint64_t sector = align_down(in_block, g->sector_size);
    uint8_t buf[MAX_SECTOR_BYTES];

    if (content->ways & ZERO_FAST)
        return fail(-EOPNOTSUPP, "a part of a sector cannot become zeros without writing the rest of it");
    int r = disk_pread(disk, buf, g->sector_size, (c->block_no << g->block_shift) + sector);
    if (r < 0)
        return r;
    if (content->from)
        iov_copy(content->from, buf + (in_block - sector), bytes);
    else
        memset(buf + (in_block - sector), 0, bytes);
    return storage_pwrite(img->file, buf, g->sector_size, c->place + sector);
}

/* Bring the part into the block's space, the sectors at its ends completed where that is needed. */
static int put_part(struct vhdx_disk *disk, const struct block_claim *c, const struct content *content)
{
    struct image *img = disk->layers[0].img;
    const struct geometry *g = &img->geometry;
    uint64_t at = c->in_block, end = c->in_block + c->bytes;
    uint64_t tail = c->merge_tail ? align_down(end, g->sector_size) : end;
    int r = 0;

    if (c->merge_head) {
        uint64_t head = min_u64(align_down(at, g->sector_size) + g->sector_size, end);
        r = put_merged(disk, c, content, at, head - at);
        at = head;
    }
    if (r == 0 && at < tail)
        r = put(img, content, tail - at, c->place + at);
    if (r == 0 && c->merge_tail)
        r = put_merged(disk, c, content, tail, end - tail);
    if (r == 0 && c->zero_rest) {
        uint64_t visible = block_visible_bytes(g, c->block_no);
        r = writer_make_zero(img, c->place + visible, g->block_size - visible, ZERO_BY_HOLE);
    }
    return r;
}

static int change_in_flight(struct vhdx_disk *disk, const struct content *content, uint64_t guest_offset, uint64_t bytes)
{
    struct image *img = disk->layers[0].img;
    const struct geometry *g = &img->geometry;
    struct block_claim c = {
        .block_no = guest_offset >> g->block_shift, .in_block = guest_offset & (g->block_size - 1), .bytes = bytes};
    struct bat_entry e;

    c.place = bat_lookaside(img, c.block_no);
    if (c.place != 0) /* the hot path (S1) */
        return put(img, content, bytes, c.place + c.in_block);
    int r = bat_lookup(img, c.block_no, &e);
    if (r == 0 && e.state == PAYLOAD_NOT_PRESENT)
        r = zeros_below(disk, c.block_no, &c.zeros_below);
    if (r == 0)
        r = block_claim(img, &c);
    if (r < 0)
        return r;
    r = put_part(disk, &c, content);
    if (!c.claimed)
        return r;
    if (r == 0)
        return block_publish(img, &c);
    block_abandon(img, &c);
    return r;
}

static int change_part(struct vhdx_disk *disk, const struct content *content, uint64_t guest_offset, uint64_t bytes)
{
    struct inflight_ticket ticket = inflight_enter(&disk->layers[0].img->writer->inflight);
    int r = change_in_flight(disk, content, guest_offset, bytes);

    inflight_leave(ticket);
    return r;
}

int child_change(struct vhdx_disk *disk, child_put_fn *put_bytes, void *opaque, uint64_t guest_offset, uint64_t bytes)
{
    struct content content = {.put = put_bytes, .opaque = opaque};
    return change_part(disk, &content, guest_offset, bytes);
}

int child_write(struct vhdx_disk *disk, struct iov_position *from, uint64_t guest_offset, uint64_t bytes)
{
    struct content content = {.from = from};
    return change_part(disk, &content, guest_offset, bytes);
}

int child_zero(struct vhdx_disk *disk, uint64_t guest_offset, uint64_t bytes, unsigned ways, bool with_space)
{
    struct content zeros = {.ways = ways};
    struct extent_cursor c;
    struct vhdx_extent e;

    if (with_space)
        return change_part(disk, &zeros, guest_offset, bytes);
    int r = extent_cursor_init(&c, disk, guest_offset, bytes);
    if (r < 0)
        return r;
    while ((r = extent_cursor_next(&c, UINT64_MAX, &e)) > 0) {
        if (e.flags & VHDX_EXTENT_DATA) /* else it reads as zeros already, whoever says so */
            r = change_part(disk, &zeros, e.guest_offset, e.length);
        if (r < 0)
            break;
    }
    extent_cursor_done(&c);
    return r;
}

int child_drop(struct vhdx_disk *disk, uint64_t block_no, unsigned state)
{
    struct image *img = disk->layers[0].img;
    bool zeros = false;
    struct bat_entry e;

    int r = bat_lookup(img, block_no, &e);
    if (r == 0 && e.state == PAYLOAD_NOT_PRESENT)
        r = zeros_below(disk, block_no, &zeros);
    return r < 0 || zeros ? r : block_drop(img, block_no, state);
}
