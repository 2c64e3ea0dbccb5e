/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "disk/info.h"
#include "format/parent-locator.h"
#include "image/image.h"
#include "ops/merge-files.h"

enum { PAGES_PER_IMAGE = 256 };

/* Open a file for this work alone.  It has to be the one that was looked at. */
static int open_alone(struct merge_file *file, bool writable, enum storage_lock lock)
{
    struct storage *s;

    int r = storage_posix_open_locked(file->path, writable ? POSIX_OPEN_WRITABLE : 0, lock, &s);
    if (r < 0)
        return fail_in(r, "%s", file->path);
    if (!is_same_file(&file->identity, &s->identity)) {
        storage_close(s);
        return fail(VHDX_E_CHAIN, "%s: it was replaced meanwhile", file->path);
    }
    r = image_open(s, writable ? IMAGE_WRITABLE : 0, PAGES_PER_IMAGE, &file->img);
    return r < 0 ? fail_in(r, "%s", file->path) : 0;
}

/* The target, with its own parents, which lie where the whole chain's open options say. */
static int open_target(struct merge_files *f)
{
    struct merge_file *file = &f->chain[f->nr_merged];
    struct vhdx_open_options o = f->open;
    const char **dirs = calloc(o.nr_parent_dirs + 1, sizeof *dirs);
    char *folder = strdup(f->path), *slash = folder ? strrchr(folder, '/') : NULL;

    if (!dirs || !folder) {
        free(dirs);
        free(folder);
        return fail_memory("a path");
    }
    if (slash)
        slash[slash == folder] = '\0';
    for (size_t i = 0; i < o.nr_parent_dirs; i++)
        dirs[i] = o.parent_dirs[i];
    dirs[o.nr_parent_dirs] = slash ? folder : "."; /* counts as named, as for the whole chain */
    o.parent_dirs = dirs;
    o.nr_parent_dirs++;
    o.flags |= f->options->dry_run ? 0 : VHDX_OPEN_WRITE;
    o.parent = NULL;
    int r = disk_open(file->path, &o, &f->target);
    free(dirs);
    free(folder);
    if (r < 0)
        return fail_in(r, "%s", file->path);
    if (!is_same_file(&file->identity, &layer_file(&f->target->layers[0])->identity))
        return fail(VHDX_E_CHAIN, "%s: it was replaced meanwhile", file->path);
    return 0;
}

static bool is_child_of(const struct image *child, const struct image *parent)
{
    guid linkage, linkage2;

    if (!image_has_parent(child))
        return false;
    locator_linkage(child->locator, &linkage, &linkage2);
    return linkage_accepts(&linkage, &linkage2, &parent->header.data_write_guid);
}

/* Everything was closed between looking and locking. */
static int check_chain(const struct merge_files *f)
{
    for (uint32_t i = 0; i < f->nr_merged; i++) {
        const struct image *parent = i + 1 < f->nr_merged ? f->chain[i + 1].img : f->target->layers[0].img;
        if (!is_child_of(f->chain[i].img, parent))
            return fail(VHDX_E_CHAIN, "%s: the chain was changed meanwhile", f->chain[i].path);
    }
    return 0;
}

static int check_children(const struct merge_files *f)
{
    for (size_t i = 0; i < f->nr_children; i++) {
        if (!is_child_of(f->children[i].img, f->chain[0].img))
            return fail(VHDX_E_PARENT_MISMATCH, "%s: it is no child of %s", f->children[i].path, f->chain[0].path);
    }
    return 0;
}

static int open_file(const struct merge_files *f, struct merge_file *file)
{
    bool change = !f->options->dry_run;

    return open_alone(file, change, change ? STORAGE_LOCK_EXCLUSIVE : STORAGE_LOCK_SHARED);
}

int merge_open_chain(struct merge_files *f)
{
    int r = open_target(f);

    for (uint32_t i = 0; r == 0 && i < f->nr_merged; i++)
        r = open_file(f, &f->chain[i]);
    return r < 0 ? r : check_chain(f);
}

int merge_open_children(struct merge_files *f)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < f->nr_children; i++)
        r = open_file(f, &f->children[i]);
    return r < 0 ? r : check_children(f);
}

int merge_close_target(struct merge_files *f)
{
    int r = disk_close(f->target);

    f->target = NULL;
    return r;
}
