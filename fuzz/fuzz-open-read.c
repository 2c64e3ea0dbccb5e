/* SPDX-License-Identifier: MIT */
/* Opening any file, alone or over a parent, and asking everything of the disk that can be asked.  Whatever
 * the file says:
 *
 * - nothing is written, nothing leaks, every handle is closed once;
 * - extents cover the range that was asked for without gaps, and neighbours of one kind are one;
 * - each says of its bytes what the tables say, looked up in the plainest way (disk-model.h);
 * - reading agrees with them: zeros where they say so, else the bytes of the file (after replay) where they
 * point;
 * - a part of the disk looks and reads the same whether it is asked for alone or within more;
 * - the checker calls no image usable that does not open, or whose tables cannot be walked. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "by-name.h"
#include "check-dump.h"
#include "describe.h"
#include "disk-model.h"
#include "disk/disk.h"
#include "image/image.h"
#include "require.h"
#include "storage/storage.h"
#include "vhdx.h"

enum { KEPT_EXTENTS = 48, READ_BYTES = 16 * 1024, CACHE_PAGES = 64 };

static char child_path[] = "child",
            parent_path[] = "parent"; /* names for messages; nothing is looked for there */

/* ---- opening ---- */

/* Codes that say something of the file; all others are the machine's. */
static bool is_verdict(int code)
{
    return code <= VHDX_E_NOT_VHDX && code >= VHDX_E_LIMIT;
}

static int open_layer(const struct description *d, struct fuzz_file *file, struct layer *layer)
{
    unsigned flags = (d->flags & DESCRIBE_UNVERIFIED ? IMAGE_UNVERIFIED : 0) |
                     (d->flags & DESCRIBE_REFUSE_DIRTY ? IMAGE_REFUSE_DIRTY : 0);
    int r = image_open(fuzz_file_open(file), flags, d->flags & DESCRIBE_SMALL_CACHE ? 1 : CACHE_PAGES,
                       &layer->img);

    if (r < 0) {
        REQUIRE(!layer->img && file->nr_open == 0, "a failed open left something open");
        REQUIRE(file->fault_at > 0 || is_verdict(r), "%d: %s", r, error_message());
        REQUIRE(error_message()[0] != '\0', "no message for %d", r);
        return r;
    }
    layer->size = layer->img->geometry.virtual_size;
    return 0;
}

/* A disk of one or two layers, put together by hand: vhdx_open() would look for the parent in the file
 * system. */
static int open_disk(const struct description *d, struct vhdx_disk *disk, struct layer layers[2])
{
    *disk = (struct vhdx_disk){.layers = layers, .nr_layers = 1};
    layers[0] = (struct layer){.path = child_path};
    layers[1] = (struct layer){.path = parent_path};
    int r = open_layer(d, d->child, &layers[0]);
    if (r < 0)
        return r;
    disk->size = layers[0].size;
    disk->parent_left_out = image_has_parent(layers[0].img);
    if (!disk->parent_left_out || !(d->flags & DESCRIBE_TWO_LAYERS))
        return 0;
    if (d->flags & DESCRIBE_RAW_PARENT) {
        layers[1].raw = fuzz_file_open(d->parent);
        layers[1].size = d->parent->length;
    } else if (open_layer(d, d->parent, &layers[1]) < 0) {
        return 0;
    }
    disk->nr_layers = 2;
    disk->parent_left_out = layers[1].img && image_has_parent(layers[1].img);
    return 0;
}

static void close_disk(const struct description *d, struct vhdx_disk *disk)
{
    for (uint32_t i = 0; i < disk->nr_layers; i++) {
        image_close(disk->layers[i].img);
        storage_close(disk->layers[i].raw);
    }
    REQUIRE(d->child->nr_open == 0 && d->parent->nr_open == 0, "not everything was closed");
}

/* ---- extents ---- */

/* A walk that keeps some of what it sees. */
struct walk {
    const struct vhdx_disk *disk;
    uint64_t start, at; /* guest offsets, bytes */
    uint64_t nr;
    struct vhdx_extent last, kept[KEPT_EXTENTS];
    unsigned nr_kept;
};

static bool is_legal(const struct vhdx_disk *disk, const struct vhdx_extent *e)
{
    bool data = e->flags & VHDX_EXTENT_DATA, zero = e->flags & VHDX_EXTENT_ZERO;

    return e->length > 0 && data != zero && (data || e->file_offset == 0) &&
           (!data || (e->flags & VHDX_EXTENT_PRESENT)) && e->depth < disk->nr_layers;
}

static int see_extent(void *opaque, const struct vhdx_extent *e)
{
    struct walk *w = opaque;
    const struct vhdx_extent *l = &w->last;

    REQUIRE(e->guest_offset == w->at, "extent at %" PRIu64 ", not %" PRIu64, e->guest_offset, w->at);
    REQUIRE(is_legal(w->disk, e), "extent at %" PRIu64 ": flags %x, depth %u, file offset 0x%" PRIx64,
            e->guest_offset, e->flags, e->depth, e->file_offset);
    REQUIRE(range_fits(e->guest_offset, e->length, w->disk->size), "extent at %" PRIu64 " leaves the disk",
            w->at);
    REQUIRE(w->nr == 0 || l->flags != e->flags || l->depth != e->depth ||
                ((e->flags & VHDX_EXTENT_DATA) && l->file_offset + l->length != e->file_offset),
            "extents at %" PRIu64 " and %" PRIu64 " should be one", l->guest_offset, e->guest_offset);
    w->at += e->length;
    w->last = *e;
    if (w->nr_kept < KEPT_EXTENTS)
        w->kept[w->nr_kept++] = *e;
    else if (w->nr % 61 == 0) /* some later ones too */
        w->kept[w->nr / 61 % KEPT_EXTENTS] = *e;
    w->nr++;
    return 0;
}

static int walk_range(struct vhdx_disk *disk, uint64_t start, uint64_t length, struct walk *w)
{
    *w = (struct walk){.disk = disk, .start = start, .at = start};
    int r = vhdx_map(disk, start, length, see_extent, w);
    REQUIRE(r < 0 || w->at == start + length, "extents end at %" PRIu64 ", not %" PRIu64, w->at,
            start + length);
    return r;
}

/* Does a walk over part of e say the same as e? */
static void map_part(struct vhdx_disk *disk, const struct vhdx_extent *e)
{
    static struct walk w;
    uint64_t skip = e->length / 3, length = e->length - skip - (e->length - skip) / 4;
    int r = walk_range(disk, e->guest_offset + skip, length, &w);

    REQUIRE(r == 0, "part of an extent cannot be mapped: %d: %s", r, error_message());
    REQUIRE(w.nr == 1 && w.last.flags == e->flags && w.last.depth == e->depth &&
                (w.last.file_offset == (e->flags & VHDX_EXTENT_DATA ? e->file_offset + skip : 0)),
            "part of the extent at %" PRIu64 " is %" PRIu64
            " extents, flags %x, depth %u, file offset 0x%" PRIx64,
            e->guest_offset, w.nr, w.last.flags, w.last.depth, w.last.file_offset);
}

/* ---- content ---- */

/* What an extent says that part of it holds, by another way than the disk's own reading takes. */
static void expected_bytes(struct vhdx_disk *disk, const struct vhdx_extent *e, uint64_t from, uint8_t *buf,
                           size_t bytes)
{
    const struct layer *layer = &disk->layers[e->depth];
    uint64_t offset = e->file_offset + from;

    memset(buf, 0, bytes);
    if (!(e->flags & VHDX_EXTENT_DATA))
        return;
    uint64_t file_length = layer->img ? layer->img->file_length : layer->size;
    size_t there = (size_t)min_u64(bytes, file_length - min_u64(file_length, offset));
    int r = layer->img ? image_pread(layer->img, buf, there, offset)
                       : storage_pread(layer->raw, buf, there, offset);
    REQUIRE(r == 0, "file offset 0x%" PRIx64 ": %s", offset, error_message());
}

static void read_part(struct vhdx_disk *disk, const struct vhdx_extent *e, uint64_t from, size_t bytes)
{
    static uint8_t is[READ_BYTES], should_be[READ_BYTES];

    int r = vhdx_pread(disk, is, bytes, e->guest_offset + from);
    REQUIRE(r == 0, "%zu bytes at %" PRIu64 " cannot be read: %d: %s", bytes, e->guest_offset + from, r,
            error_message());
    expected_bytes(disk, e, from, should_be, bytes);
    REQUIRE(memcmp(is, should_be, bytes) == 0, "%zu bytes at %" PRIu64 " are not what the extent says", bytes,
            e->guest_offset + from);
    memset(is, 0xcc, bytes);
    r = extent_pread(disk, e, from, is, bytes);
    REQUIRE(r == 0 && memcmp(is, should_be, bytes) == 0, "the extent at %" PRIu64 " itself reads differently",
            e->guest_offset);
}

/* Both ends of an extent, and something that is not aligned. */
static void read_extent_parts(struct vhdx_disk *disk, const struct vhdx_extent *e)
{
    size_t bytes = (size_t)min_u64(e->length, READ_BYTES / 4);

    read_part(disk, e, 0, bytes);
    read_part(disk, e, e->length - bytes, bytes);
    if (e->length > 2000)
        read_part(disk, e, 777, 1001);
}

/* A range that crosses extents reads the same in one piece, in odd pieces, and into many buffers. */
static void read_across(struct vhdx_disk *disk, uint64_t guest_offset)
{
    static uint8_t whole[READ_BYTES], pieces[READ_BYTES];
    struct iovec iov[80];
    uint64_t start = guest_offset - min_u64(guest_offset, READ_BYTES / 3);
    size_t bytes = (size_t)min_u64(READ_BYTES, disk->size - start), done = 0;
    int nr_iov = 0, r = 0;

    int r_whole = vhdx_pread(disk, whole, bytes, start);
    for (size_t n = 1; done < bytes && r == 0; done += n, n = n * 3 % 4099 + 1) {
        n = (size_t)min_u64(n, bytes - done);
        r = vhdx_pread(disk, pieces + done, n, start + done);
    }
    REQUIRE(r == r_whole, "in one piece %d, in many %d (%s)", r_whole, r, error_message());
    REQUIRE(r < 0 || memcmp(whole, pieces, bytes) == 0, "what is read at %" PRIu64 " depends on the pieces",
            start);

    memset(pieces, 0xcc, bytes);
    for (done = 0; nr_iov < 79 && done < bytes; nr_iov++) {
        size_t n = (size_t)min_u64((size_t)nr_iov * 97 % 513, bytes - done);
        iov[nr_iov] = (struct iovec){pieces + done, n};
        done += n;
    }
    iov[nr_iov++] = (struct iovec){pieces + done, bytes - done};
    r = vhdx_preadv(disk, iov, nr_iov, start);
    REQUIRE(r == r_whole, "into one buffer %d, into many %d", r_whole, r);
    REQUIRE(r < 0 || memcmp(whole, pieces, bytes) == 0, "what is read at %" PRIu64 " depends on the buffers",
            start);
}

/* ---- everything else ---- */

static int see_item(void *opaque, const struct vhdx_metadata_item *item)
{
    static uint8_t buf[MAX_METADATA_ITEM_BYTES];
    struct vhdx_disk *disk = opaque;
    bool user = item->flags & VHDX_METADATA_USER;

    REQUIRE(item->length <= sizeof buf, "an item of %u bytes", item->length);
    int64_t r = vhdx_metadata_read(disk, 0, &item->id, user, NULL, 0);
    REQUIRE(r == item->length, "item length %u, read says %" PRId64, item->length, r);
    r = vhdx_metadata_read(disk, 0, &item->id, user, buf, item->length);
    REQUIRE(r == item->length || r < 0, "item length %u, read says %" PRId64, item->length, r);
    return 0;
}

static int see_pair(void *opaque, const char *key, const char *value)
{
    unsigned *nr = opaque;

    REQUIRE(strlen(key) > 0 && strlen(value) > 0, "empty text in the locator");
    ++*nr;
    return 0;
}

static void ask_image(struct vhdx_disk *disk, uint32_t depth)
{
    struct vhdx_info info = {.struct_bytes = sizeof info};
    uint64_t counts[VHDX_NR_BLOCK_STATES], sum = 0;
    const struct image *img = disk->layers[depth].img;
    unsigned nr_pairs = 0;

    int r = vhdx_get_info(disk, depth, &info);
    REQUIRE(r == 0, "%s", error_message());
    if (!img)
        return;
    REQUIRE(info.has_parent == (info.subformat == VHDX_DIFFERENCING) &&
                memchr(info.creator, 0, sizeof info.creator),
            "subformat %d", info.subformat);
    require_items_apart(disk, depth);
    r = vhdx_count_blocks(disk, depth, counts);
    for (unsigned i = 0; i < VHDX_NR_BLOCK_STATES; i++)
        sum += counts[i];
    REQUIRE(r < 0 || sum == img->geometry.nr_blocks, "%" PRIu64 " blocks counted of %" PRIu64, sum,
            img->geometry.nr_blocks);
    r = vhdx_parent_locator(disk, depth, see_pair, &nr_pairs);
    REQUIRE(r == 0 && (nr_pairs > 0) == info.has_parent, "%d: %u pairs", r, nr_pairs);
}

/* ---- a read fails somewhere ---- */

static void use_with_faults(struct vhdx_disk *disk)
{
    static uint8_t buf[READ_BYTES];
    static struct walk w;
    size_t bytes = (size_t)min_u64(disk->size, sizeof buf);

    walk_range(disk, 0, disk->size, &w);
    int r = vhdx_pread(disk, buf, bytes, 0);
    REQUIRE(r == 0 || error_message()[0] != '\0', "no message for %d", r);
    vhdx_metadata_list(disk, 0, see_item, disk);
}

/* The extents from start on end in an error; what lies there cannot be read either. */
static void fail_again(struct vhdx_disk *disk, uint64_t start, int error)
{
    struct extent_cursor c;
    struct vhdx_extent e;
    uint8_t byte;

    int r = extent_cursor_init(&c, disk, start, disk->size - start);
    REQUIRE(r == 0, "%s", error_message());
    while ((r = extent_cursor_next(&c, UINT64_MAX, &e)) > 0)
        REQUIRE(is_legal(disk, &e), "extent at %" PRIu64, e.guest_offset);
    REQUIRE(r == error, "first %d, then %d", error, r);
    REQUIRE(vhdx_pread(disk, &byte, 1, c.at) == error, "%d when mapped, but it can be read", error);
    extent_cursor_done(&c);
}

static void use(struct vhdx_disk *disk)
{
    static struct walk w;
    int r = walk_range(disk, 0, disk->size, &w);

    REQUIRE(r == 0 || is_verdict(r), "%d: %s", r, error_message());
    for (unsigned i = 0; i < w.nr_kept; i++) {
        const struct vhdx_extent *e = &w.kept[i];
        require_truth(disk, e, e->guest_offset);
        require_truth(disk, e, e->guest_offset + e->length / 2);
        require_truth(disk, e, e->guest_offset + e->length - 1);
        require_payload_apart(disk, e);
        map_part(disk, e);
        read_extent_parts(disk, e);
        if (i % 4 == 0)
            read_across(disk, e->guest_offset);
    }
    if (r < 0)
        fail_again(disk, w.at, r);
    REQUIRE(vhdx_pread(disk, &(uint8_t){0}, 1, disk->size) == -EINVAL, "a read behind the end of the disk");
    read_across(disk, disk->size - 1);
    for (uint32_t i = 0; i < disk->nr_layers; i++)
        ask_image(disk, i);
    r = vhdx_metadata_list(disk, 0, see_item, disk);
    REQUIRE(r == 0, "%d: %s", r, error_message());
}

static void ask_all(const struct description *d, struct vhdx_disk *disk)
{
    if (d->child->fault_at > 0)
        use_with_faults(disk);
    else
        use(disk);
}

/* The whole way from the child's name over the locator to the parent. */
static void open_by_name(const struct description *d)
{
    struct vhdx_open_options options = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_disk *disk;

    options.flags = (d->flags & DESCRIBE_UNVERIFIED ? VHDX_OPEN_UNVERIFIED : 0) |
                    (d->flags & DESCRIBE_REFUSE_DIRTY ? VHDX_OPEN_REFUSE_DIRTY : 0);
    int r = vhdx_open(CHILD_PATH, &options, &disk);
    REQUIRE(r == 0 || !disk, "a disk in spite of %d", r);
    REQUIRE(r == 0 || d->child->fault_at > 0 || is_verdict(r), "%d: %s", r, error_message());
    if (r == 0)
        ask_all(d, disk);
    vhdx_close(disk);
    REQUIRE(d->child->nr_open == 0 && d->parent->nr_open == 0, "not everything was closed");
}

static void open_by_hand(const struct description *d)
{
    struct vhdx_disk disk;
    struct layer layers[2];

    if (open_disk(d, &disk, layers) < 0)
        return;
    ask_all(d, &disk);
    close_disk(d, &disk);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct input in = {data, bytes};
    struct description d;
    double begun = processor_seconds();

    describe(&in, &d);
    by_name_set(d.child, d.flags & DESCRIBE_TWO_LAYERS ? d.parent : NULL);
    if (d.flags & DESCRIBE_BY_NAME)
        open_by_name(&d);
    else
        open_by_hand(&d);
    try_check(&d);
    try_dump(&d);
    REQUIRE(processor_seconds() - begun < MAX_PROCESSOR_SECONDS, "%.1f s for one input",
            processor_seconds() - begun);
    return 0;
}
