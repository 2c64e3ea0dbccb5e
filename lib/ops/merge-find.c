/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "disk/info.h"
#include "image/image.h"
#include "ops/merge-files.h"
#include "ops/ops.h"
#include "ops/survey.h"

/* ---- the chain ---- */

/* At which depth of the chain the target lies. */
static int find_target(const struct merge_files *f, const struct vhdx_disk *disk, uint32_t *depth)
{
    struct stat st;

    if (disk->nr_layers < 2)
        return fail(-EINVAL, "the image has no parent that it could be merged into");
    *depth = 1;
    if (!f->options->into)
        return 0;
    if (stat(f->options->into, &st) < 0)
        return fail_errno("cannot open %s", f->options->into);
    const struct layer *target = disk_find_layer(disk, &(struct storage_identity){st.st_dev, st.st_ino});
    if (!target || target == disk->layers)
        return fail(VHDX_E_CHAIN, "%s is none of the image's parents", f->options->into);
    *depth = (uint32_t)(target - disk->layers);
    return 0;
}

static int note_file(struct merge_file *file, const char *path, const struct storage_identity *identity)
{
    file->identity = *identity;
    file->path = realpath(path, NULL); /* so that a link is not what gets removed, and folders are the files' own */
    return file->path ? 0 : fail_errno("cannot follow the path %s", path);
}

int merge_find_chain(struct merge_files *f)
{
    struct vhdx_disk *disk;
    uint32_t depth = 0;

    int r = disk_open(f->path, &f->open, &disk);
    if (r < 0)
        return r;
    r = find_target(f, disk, &depth);
    if (r == 0) {
        f->chain = calloc(depth + 1, sizeof *f->chain);
        f->nr_merged = depth;
        r = f->chain ? 0 : fail_memory("a chain of images");
    }
    for (uint32_t i = 0; r == 0 && i <= depth; i++) {
        r = note_file(&f->chain[i], disk->layers[i].path, &layer_file(&disk->layers[i])->identity);
        f->dirty |= disk->layers[i].img->overlay != NULL;
    }
    if (r == 0) {
        f->uppermost_id = disk->layers[0].img->header.data_write_guid;
        f->target_id = disk->layers[depth].img->header.data_write_guid;
    }
    struct error_text text;
    error_save(&text);
    disk_close(disk);
    error_restore(&text);
    return r;
}

/* ---- relatives ---- */

static int add_child(struct merge_files *f, const char *path, const struct storage_identity *identity)
{
    for (size_t i = 0; i < f->nr_children; i++) {
        if (is_same_file(&f->children[i].identity, identity))
            return 0;
    }
    struct merge_file *grown = reallocarray(f->children, f->nr_children + 1, sizeof *grown);
    if (!grown)
        return fail_memory("a list of images");
    f->children = grown;
    f->children[f->nr_children] = (struct merge_file){0};
    return note_file(&f->children[f->nr_children++], path, identity);
}

static int add_named_children(struct merge_files *f)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < f->options->nr_children; i++) {
        const char *path = f->options->children[i];
        struct stat st;
        if (stat(path, &st) < 0)
            return fail_errno("child %s", path);
        r = add_child(f, path, &(struct storage_identity){st.st_dev, st.st_ino});
    }
    return r;
}

/* Which file of the chain this is; nr_merged is the target, -1 none. */
static int64_t place_in_chain(const struct merge_files *f, const struct storage_identity *id)
{
    for (uint32_t i = 0; i <= f->nr_merged; i++) {
        if (is_same_file(&f->chain[i].identity, id))
            return i;
    }
    return -1;
}

/* A merge that was interrupted had led this child to the target already. */
static bool was_moved(const struct merge_files *f, const struct survey_image *image)
{
    return guid_equal(&f->uppermost_id, &f->target_id) &&
           linkage_accepts(&image->info.parent_linkage, &image->info.parent_linkage2, &f->uppermost_id);
}

/* The uppermost one's children come along; any other child of the files of the chain would lose what it rests on. */
static int judge_relative(struct merge_files *f, const struct survey_image *image, const struct survey_image *parent)
{
    int64_t place = place_in_chain(f, &image->identity), parent_place = place_in_chain(f, &parent->identity);

    if (parent_place < 0 || (place >= 0 && place + 1 == parent_place))
        return 0;
    if (parent_place == 0) /* with its name the target takes over its children, too */
        return f->options->take_name ? 0 : add_child(f, image->path, &image->identity);
    if (parent_place == f->nr_merged && was_moved(f, image))
        return 0;
    return fail(VHDX_E_CHAIN,
                "%s is a child of %s too, and would lose the content that it rests on; merge or convert it first, or move it away "
                "if it is not needed",
                image->path, f->chain[parent_place].path);
}

/* The folders of all files of the chain, and those that the user named. */
static int list_folders(const struct merge_files *f, char ***folders, size_t *nr)
{
    const struct vhdx_open_options *o = &f->open;

    *nr = 0;
    *folders = calloc(o->nr_parent_dirs + f->nr_merged + 2, sizeof **folders);
    if (!*folders)
        return fail_memory("a list of folders");
    for (size_t i = 0; i < o->nr_parent_dirs; i++) {
        (*folders)[(*nr)++] = strdup(o->parent_dirs[i]);
        if (!(*folders)[*nr - 1])
            return fail_memory("a path");
    }
    for (uint32_t i = 0; i <= f->nr_merged; i++) {
        const char *slash = strrchr(f->chain[i].path, '/');
        size_t length = slash == f->chain[i].path ? 1 : (size_t)(slash - f->chain[i].path);
        (*folders)[(*nr)++] = strndup(f->chain[i].path, length);
        if (!(*folders)[*nr - 1])
            return fail_memory("a path");
    }
    return 0;
}

static int judge_relatives(struct merge_files *f, const struct vhdx_survey *s)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < s->nr_images; i++) {
        if (s->images[i].parent != VHDX_NO_IMAGE)
            r = judge_relative(f, &s->images[i], &s->images[s->images[i].parent]);
    }
    return r;
}

int merge_find_relatives(struct merge_files *f)
{
    struct vhdx_open_options o = f->open;
    struct vhdx_survey *s = NULL;
    char **folders = NULL;
    size_t nr = 0;

    int r = add_named_children(f);
    if (r == 0)
        r = list_folders(f, &folders, &nr);
    if (r == 0) {
        o.parent_dirs = (const char *const *)folders;
        o.nr_parent_dirs = nr;
        r = ops_survey_new(f->chain[0].path, &o, f->options->search_below ? VHDX_SURVEY_BELOW : 0, f->options->progress,
                           f->options->opaque, &s);
    }
    if (r == 0)
        r = judge_relatives(f, s);
    ops_survey_free(s);
    for (size_t i = 0; i < nr; i++)
        free(folders[i]);
    free(folders);
    return r;
}
