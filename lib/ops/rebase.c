/* SPDX-License-Identifier: MIT */
/* Pointing a child at its parent (format section 9.11). */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/disk.h"
#include "disk/info.h"
#include "format/parent-locator.h"
#include "image/image.h"
#include "image/writer.h"
#include "ops/half-merged.h"
#include "ops/ops.h"
#include "ops/relink.h"
#include "storage/storage.h"

struct rebase {
    const char *path;
    const struct vhdx_rebase_options *options;
    struct vhdx_disk *parent; /* with its own parents, open for reading */
    struct storage *file;     /* the child's, until img owns it */
    struct image *img;
    struct new_link link;
    char *relative;
    bool matches; /* the parent has the recorded identity */
};

/* ---- the parent ---- */

static int open_parent(struct rebase *b)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    struct stat st;

    if (b->options->parent_open)
        o = *b->options->parent_open;
    if (o.struct_bytes == sizeof o && (o.flags & (VHDX_OPEN_WRITE | VHDX_OPEN_RAW | VHDX_OPEN_NO_PARENT | VHDX_OPEN_BROKEN_CHAIN)))
        return fail(-EINVAL, "rebase options: a parent is opened as an image, with its own parents, for reading");
    int r = disk_open(b->options->parent, &o, &b->parent);
    if (r < 0)
        return fail_in(r, "parent %s", b->options->parent);
    if (fstat(layer_file(&b->parent->layers[0])->fd, &st) < 0)
        return fail_errno("parent %s", b->options->parent);
    if (!S_ISREG(st.st_mode))
        return fail(-EINVAL, "parent %s: only a file can be a parent", b->options->parent);
    return b->parent->nr_layers < MAX_CHAIN_DEPTH
               ? 0
               : fail(VHDX_E_CHAIN, "parent %s has %d parents already, and chains of more than %d images are refused",
                      b->options->parent, MAX_CHAIN_DEPTH - 1, MAX_CHAIN_DEPTH);
}

/* The child may not be one of its own parents; looked at before it is locked, or our own lock would be taken for another's. */
static int refuse_cycle(const struct rebase *b)
{
    const struct layer *same = disk_find_layer(b->parent, &b->file->identity);

    if (!same)
        return 0;
    return same == b->parent->layers ? fail(VHDX_E_CHAIN, "an image cannot be its own parent")
                                     : fail(VHDX_E_CHAIN, "%s has this image among its own parents", b->options->parent);
}

/* ---- the child ---- */

static int open_child(struct rebase *b)
{
    int r = image_open(b->file, IMAGE_WRITABLE, 256, &b->img);
    b->file = NULL;
    if (r == 0 && !image_has_parent(b->img))
        r = fail(-EINVAL, "the image has no parent, so there is no link to repair; 'vhdx create --parent' makes children");
    return r;
}

/* How much of the disk the child leaves to its parent. */
static int count_inherited(struct image *img, uint64_t *bytes)
{
    struct run run;

    *bytes = 0;
    for (uint64_t at = 0; at < img->geometry.virtual_size; at += run.length) {
        int r = image_resolve(img, at, img->geometry.virtual_size - at, &run);
        if (r < 0)
            return r;
        if (run.kind == RUN_PARENT)
            *bytes += run.length;
    }
    return 0;
}

/* ---- do they belong together? ---- */

static int check_geometry(const struct rebase *b)
{
    const struct geometry *child = &b->img->geometry, *parent = &b->parent->layers[0].img->geometry;

    if (child->sector_size != parent->sector_size)
        return fail(VHDX_E_CHAIN, "parent %s has logical sectors of %" PRIu32 " bytes, the image of %" PRIu32
                    ": the two cannot belong together", b->options->parent, parent->sector_size, child->sector_size);
    if (!b->matches && child->virtual_size != parent->virtual_size)
        return fail(VHDX_E_CHAIN, "parent %s has a disk of %" PRIu64 " bytes, the image one of %" PRIu64
                    ": a parent of another identity must at least have the same size", b->options->parent, parent->virtual_size,
                    child->virtual_size);
    return 0;
}

static int refuse_mismatch(struct rebase *b, const guid *recorded, bool is_merging, const guid *found)
{
    char wanted[VHDX_GUID_TEXT_BYTES], seen[VHDX_GUID_TEXT_BYTES];
    uint64_t inherited;

    int r = count_inherited(b->img, &inherited);
    if (r < 0)
        return r;
    guid_format(recorded, wanted);
    guid_format(found, seen);
    return fail(VHDX_E_PARENT_MISMATCH,
                "mismatch in the identifiers: the image was made on data write GUID %s, but %s has %s. Up to %" PRIu64 " of its %" PRIu64
                " bytes come from the parent; if that was written to since, or is another disk, they would change under the data that "
                "the image holds itself, and files would be mixed from two states. If the parent's content is the same after all, "
                "--force records it, and gives the image a new data write GUID, so that its own children need the same treatment%s",
                wanted, b->options->parent, seen, inherited, b->img->geometry.virtual_size,
                is_merging ? ". A merge of the image into its present parent was begun and did not come to its end; without the image that parent "
                             "would stay a mixture, so complete it first" : "");
}

static int judge(struct rebase *b)
{
    const guid *found = &b->parent->layers[0].img->header.data_write_guid;
    guid linkage, linkage2;

    locator_linkage(b->img->locator, &linkage, &linkage2);
    b->matches = linkage_accepts(&linkage, &linkage2, found);
    int r = check_geometry(b);
    if (r == 0 && !b->matches && !b->options->force)
        r = refuse_mismatch(b, &linkage, linkage_is_merging(&linkage, &linkage2), found);
    if (r == 0 && !b->matches) /* as for a new child; one that the parent accepts may be what makes it whole (9.10) */
        r = half_merged_refuse_parent(b->options->parent, &layer_file(&b->parent->layers[0])->identity, b->options->parent_open);
    if (r == 0)
        r = link_path(b->path, b->options->parent, &b->relative);
    b->link = (struct new_link){
        .linkage = *found, .relative_path = b->relative, .windows_path = b->options->parent_windows_path};
    if (b->matches && (linkage_is_merging(&linkage, &linkage2) || guid_equal(&linkage, &linkage_merged))) {
        /* nothing else tells that the parent may be whole only under this image, or that it has all of it */
        b->link.linkage = linkage;
        b->link.linkage2 = linkage2;
    }
    return r;
}

static int record(struct rebase *b)
{
    /* 2.5: other paths show nobody anything */
    int r = relink_if_needed(b->img, &b->link, b->matches ? writer_begin_invisible : writer_begin);

    return r < 0 ? r : writer_commit(b->img);
}

static int run(struct rebase *b)
{
    int r = open_parent(b);

    if (r == 0)
        r = storage_posix_open(b->path, POSIX_OPEN_WRITABLE, &b->file);
    if (r == 0)
        r = refuse_cycle(b); /* before the lock, which would only say that the file is in use */
    storage_close(b->file);
    b->file = NULL;
    if (r == 0)
        r = storage_posix_open_locked(b->path, POSIX_OPEN_WRITABLE, STORAGE_LOCK_EXCLUSIVE, &b->file);
    if (r == 0)
        r = open_child(b);
    if (r == 0)
        r = judge(b);
    return r < 0 ? r : record(b);
}

static int check_options(const struct vhdx_rebase_options *o)
{
    if (o->struct_bytes != sizeof *o)
        return fail(-EINVAL, "rebase options: struct_bytes is %zu, not %zu; begin with VHDX_REBASE_OPTIONS_INIT", o->struct_bytes,
                    sizeof *o);
    return o->parent ? 0 : fail(-EINVAL, "rebase options: no parent is named");
}

int ops_rebase(const char *path, const struct vhdx_rebase_options *options)
{
    struct rebase b = {.path = path, .options = options};
    struct error_text text;
    int r = check_options(options);

    if (r == 0)
        r = run(&b);
    error_save(&text);
    int closed = image_close(b.img);
    if (r == 0 && closed < 0) {
        r = closed;
        error_save(&text);
    }
    storage_close(b.file);
    disk_close(b.parent);
    free(b.relative);
    if (r < 0)
        error_restore(&text);
    return r;
}
