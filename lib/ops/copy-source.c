/* SPDX-License-Identifier: MIT */
#include "ops/copy-source.h"

#include <errno.h>

#include "base/error.h"
#include "base/math.h"
#include "image/image.h"
#include "storage/storage.h"

static int ask_file(struct layer *layer, uint64_t file_offset, uint64_t *start, uint64_t *end)
{
    return layer->img ? image_next_data(layer->img, file_offset, start, end)
                      : storage_next_data(layer->raw, file_offset, start, end);
}

/* As storage_next_data() of the layer that a piece is in.  The last answer is good for all that it covers, and asking is dear:
 * where files are dense some file systems look at every page of them.  Only an image that is being written may have got new
 * data, or other data in the same place, since. */
static int next_data(struct extent_cursor *c, const struct vhdx_extent *piece, uint64_t *start, uint64_t *end)
{
    struct layer *layer = &c->disk->layers[piece->depth];
    struct layer_run *run = &c->runs[piece->depth];
    uint64_t at = piece->file_offset;
    bool may_change = layer->img && layer->img->writer;

    if (may_change || at < run->told_from || at >= run->data_end) {
        int r = ask_file(layer, at, &run->data_start, &run->data_end);
        run->told_from = r < 0 ? UINT64_MAX : at;
        if (r < 0)
            return r;
    }
    *start = max_u64(at, run->data_start);
    *end = run->data_end;
    return 0;
}

int copy_cut_piece(struct extent_cursor *c, uint64_t max_data, struct vhdx_extent *piece)
{
    uint64_t start, end;

    int r = next_data(c, piece, &start, &end);
    if (r < 0)
        return r;
    if (start == end || start >= piece->file_offset + piece->length) {
        piece->flags = VHDX_EXTENT_ZERO | VHDX_EXTENT_PRESENT; /* a hole in the image file, to the piece's end */
        return 1;
    }
    if (start > piece->file_offset) {
        piece->flags = VHDX_EXTENT_ZERO | VHDX_EXTENT_PRESENT;
        piece->length = start - piece->file_offset;
    } else {
        piece->length = min_u64(piece->length, min_u64(max_data, end - start));
    }
    c->at = piece->guest_offset + piece->length; /* the rest of the extent comes with the next call */
    return 1;
}

int copy_next_piece(struct extent_cursor *c, uint64_t max_data, struct vhdx_extent *piece)
{
    int r = extent_cursor_next(c, UINT64_MAX, piece);

    return r > 0 && (piece->flags & VHDX_EXTENT_DATA) ? copy_cut_piece(c, max_data, piece) : r;
}

int copy_check_options(const struct vhdx_copy_options *o)
{
    if (o->struct_bytes != sizeof *o)
        return fail(-EINVAL, "copy options: struct_bytes is %zu, not %zu; begin with VHDX_COPY_OPTIONS_INIT",
                    o->struct_bytes, sizeof *o);
    if (o->sparse_bytes != 0 && (o->sparse_bytes < 512 || !is_power_of_two(o->sparse_bytes)))
        return fail(-EINVAL, "copy options: sparse_bytes is %u, not 0 or a power of two of at least 512",
                    (unsigned)o->sparse_bytes);
    if (o->sparse_bytes == 0 && o->reflink == VHDX_REFLINK_ALWAYS)
        return fail(-EINVAL, "a fully allocated copy (-S 0) cannot share blocks with its source (--reflink=always)");
    return 0;
}
