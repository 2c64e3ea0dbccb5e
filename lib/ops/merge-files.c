/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "disk/info.h"
#include "format/parent-locator.h"
#include "image/image.h"
#include "image/writer.h"
#include "ops/copy-source.h"
#include "ops/merge.h"
#include "ops/ops.h"
#include "ops/relink.h"
#include "ops/survey.h"
#include "storage/storage.h"

enum { PAGES_PER_IMAGE = 256 };

/* A file that is part of it. */
struct merge_file {
    char *path; /* owned */
    struct storage_identity identity;
    struct image *img; /* owned */
};

struct merge_files {
    const char *path;
    const struct vhdx_merge_options *options;
    struct vhdx_open_options open;
    struct merge_file *chain; /* the merged ones, uppermost first, then the target */
    uint32_t nr_merged;
    struct merge_file *children;
    size_t nr_children;
    struct vhdx_disk *target;
    struct image **upper;
    char **paths;
    guid uppermost_id, target_id; /* DataWriteGuids, as found */
    struct merge merge;
    struct vhdx_copy_options copy;
    struct vhdx_merge_result result;
};

static bool is_file(const struct merge_file *f, const struct storage_identity *id)
{
    return f->identity.device == id->device && f->identity.inode == id->inode;
}

/* ---- which files ---- */

static int check_options(const struct vhdx_merge_options *o, const struct vhdx_merge_result *result)
{
    if (o->struct_bytes != sizeof *o)
        return fail(-EINVAL, "merge options: struct_bytes is %zu, not %zu; begin with VHDX_MERGE_OPTIONS_INIT", o->struct_bytes, sizeof *o);
    if (result && result->struct_bytes != sizeof *result)
        return fail(-EINVAL, "merge result: struct_bytes is %zu, not %zu", result->struct_bytes, sizeof *result);
    if (o->take_name && o->nr_children > 0)
        return fail(-EINVAL, "merge options: where the target takes the name, no child has to be led anywhere");
    if (o->open && (o->open->flags & ~(uint32_t)VHDX_OPEN_ALLOW_PARENT_PATH))
        return fail(-EINVAL, "merge options: of the flags for opening only VHDX_OPEN_ALLOW_PARENT_PATH makes sense");
    return 0;
}

/* The target's own recorded paths stay true, and one rename does it, only if both lie together. */
static int check_folder(const struct merge_files *f)
{
    const char *from = f->chain[f->nr_merged].path, *to = f->chain[0].path;
    size_t length = (size_t)(strrchr(from, '/') - from);

    if (!f->options->take_name || (length == (size_t)(strrchr(to, '/') - to) && strncmp(from, to, length) == 0))
        return 0;
    return fail(-EXDEV, "%s cannot take the name of %s, because it lies in another folder", from, to);
}

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
    for (*depth = 1; *depth < disk->nr_layers; ++*depth) {
        const struct storage_identity *id = &layer_file(&disk->layers[*depth])->identity;
        if (id->device == st.st_dev && id->inode == st.st_ino)
            return 0;
    }
    return fail(VHDX_E_CHAIN, "%s is none of the image's parents", f->options->into);
}

static int note_file(struct merge_file *file, const char *path, const struct storage_identity *identity)
{
    file->identity = *identity;
    file->path = realpath(path, NULL); /* so that a link is not what gets removed, and folders are the files' own */
    return file->path ? 0 : fail_errno("cannot follow the path %s", path);
}

/* Open the chain as everybody does, which judges all links, to learn which files it has. */
static int find_chain(struct merge_files *f)
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
    for (uint32_t i = 0; r == 0 && i <= depth; i++)
        r = note_file(&f->chain[i], disk->layers[i].path, &layer_file(&disk->layers[i])->identity);
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
        if (is_file(&f->children[i], identity))
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
        if (is_file(&f->chain[i], id))
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

static int find_relatives(struct merge_files *f)
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

/* ---- opening for the work ---- */

/* Open a file for this work alone.  It has to be the one that was looked at. */
static int open_alone(struct merge_file *file, bool writable, enum storage_lock lock)
{
    struct storage *s;

    int r = storage_posix_open_locked(file->path, writable ? POSIX_OPEN_WRITABLE : 0, lock, &s);
    if (r < 0)
        return fail_in(r, "%s", file->path);
    if (!is_file(file, &s->identity)) {
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
    if (!is_file(file, &layer_file(&f->target->layers[0])->identity))
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
static int check_links(const struct merge_files *f)
{
    for (uint32_t i = 0; i < f->nr_merged; i++) {
        const struct image *parent = i + 1 < f->nr_merged ? f->chain[i + 1].img : f->target->layers[0].img;
        if (!is_child_of(f->chain[i].img, parent))
            return fail(VHDX_E_CHAIN, "%s: the chain was changed meanwhile", f->chain[i].path);
    }
    for (size_t i = 0; i < f->nr_children; i++) {
        if (!is_child_of(f->children[i].img, f->chain[0].img))
            return fail(VHDX_E_PARENT_MISMATCH, "%s: it is no child of %s", f->children[i].path, f->chain[0].path);
    }
    return 0;
}

static int open_all(struct merge_files *f)
{
    bool change = !f->options->dry_run;
    enum storage_lock lock = change ? STORAGE_LOCK_EXCLUSIVE : STORAGE_LOCK_SHARED;
    int r = open_target(f);

    for (uint32_t i = 0; r == 0 && i < f->nr_merged; i++)
        r = open_alone(&f->chain[i], change, lock);
    for (size_t i = 0; r == 0 && i < f->nr_children; i++)
        r = open_alone(&f->children[i], change, lock);
    return r < 0 ? r : check_links(f);
}

static int prepare(struct merge_files *f)
{
    f->upper = calloc(f->nr_merged, sizeof *f->upper);
    f->paths = calloc(f->nr_merged, sizeof *f->paths);
    if (!f->upper || !f->paths)
        return fail_memory("a chain of images");
    for (uint32_t i = 0; i < f->nr_merged; i++) {
        f->upper[i] = f->chain[i].img;
        f->paths[i] = f->chain[i].path;
    }
    f->copy = (struct vhdx_copy_options)VHDX_COPY_OPTIONS_INIT;
    f->copy.nr_threads = f->options->nr_threads;
    f->copy.reflink = f->options->reflink;
    f->copy.progress = f->options->progress;
    f->copy.opaque = f->options->opaque;
    f->merge = (struct merge){
        .upper = f->upper, .paths = f->paths, .nr_upper = f->nr_merged, .target = f->target, .options = &f->copy};
    return merge_begin(&f->merge);
}

/* ---- telling ---- */

static void tell_files(const struct merge_files *f)
{
    const struct vhdx_merge_options *o = f->options;

    if (!o->file)
        return;
    for (uint32_t i = 0; i < f->nr_merged; i++)
        o->file(o->file_opaque, VHDX_MERGE_MERGED, f->chain[i].path);
    o->file(o->file_opaque, VHDX_MERGE_TARGET, f->chain[f->nr_merged].path);
    for (size_t i = 0; i < f->nr_children; i++)
        o->file(o->file_opaque, VHDX_MERGE_MOVED, f->children[i].path);
}

static int tell_cost(struct merge_files *f)
{
    struct merge_cost cost = {0};
    int r = 0;

    f->result.nr_merged = f->nr_merged;
    f->result.nr_moved = (uint32_t)f->nr_children;
    f->result.was_complete = merge_is_complete(&f->merge);
    if (!f->result.was_complete)
        r = merge_count(&f->merge, &cost);
    f->result.copy_bytes = cost.copy_bytes;
    f->result.zero_bytes = cost.zero_bytes;
    f->result.space_bytes = cost.space_bytes;
    return r;
}

/* ---- the end ---- */

/* The target is complete, closed and durable: lead a child there. */
static int move_child(struct merge_files *f, struct merge_file *child)
{
    struct new_link link = {0};
    char *relative;

    int r = link_path(child->path, f->chain[f->nr_merged].path, &relative);
    if (r < 0)
        return r;
    locator_linkage(child->img->locator, &link.linkage, &link.linkage2);
    if (!linkage_is_merging(&link.linkage, &link.linkage2)) { /* nothing else tells that the parent may be whole only under this child */
        link.linkage = f->chain[0].img->header.data_write_guid; /* the target has it now; the merged image too, while it is there */
        link.linkage2 = (guid){0};
    }
    link.relative_path = relative;
    r = relink_is_needed(child->img, &link);
    if (r > 0)
        r = writer_begin_invisible(child->img);
    if (r == 0)
        r = relink(child->img, &link);
    free(relative);
    int closed = image_close(child->img);
    child->img = NULL;
    return r < 0 ? r : closed;
}

/* A link into the folder of a child that cannot be recorded should stop everything before it has begun. */
static int check_child_paths(const struct merge_files *f)
{
    char *relative;

    for (size_t i = 0; i < f->nr_children; i++) {
        int r = link_path(f->children[i].path, f->chain[f->nr_merged].path, &relative);
        free(relative);
        if (r < 0)
            return fail_in(r, "%s", f->children[i].path);
    }
    return 0;
}

static int flush_folder(const char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int n = snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);

    int fd = n < (int)sizeof folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd < 0)
        return fail_errno("cannot open the folder %s", folder);
    int r = fsync(fd) < 0 && errno != EINVAL && errno != ENOTSUP ? fail_errno("cannot flush the folder %s", folder) : 0;
    close(fd);
    return r;
}

/* Only the file that was merged goes, which is locked still. */
static int remove_file(struct merge_file *file)
{
    struct stat st;

    if (lstat(file->path, &st) < 0 || !is_file(file, &(struct storage_identity){st.st_dev, st.st_ino}))
        return fail(-ENOENT, "%s: somebody else moved or removed it meanwhile", file->path);
    if (unlink(file->path) < 0)
        return fail_errno("cannot remove %s", file->path);
    return flush_folder(file->path);
}

/* The name leads to the one or to the other at every moment, and both have the same content and identity. */
static int take_name(struct merge_files *f)
{
    struct merge_file *from = &f->chain[f->nr_merged], *to = &f->chain[0];
    struct stat st;

    if (lstat(to->path, &st) < 0 || !is_file(to, &(struct storage_identity){st.st_dev, st.st_ino}))
        return fail(-ENOENT, "%s: somebody else moved or removed it meanwhile", to->path);
    if (rename(from->path, to->path) < 0)
        return fail_errno("cannot rename %s to %s", from->path, to->path);
    return flush_folder(to->path);
}

/* Uppermost first, so that what is left after a crash still opens. */
static int remove_merged(struct merge_files *f)
{
    int r = 0;

    for (uint32_t i = f->options->take_name ? 1 : 0; r == 0 && i < f->nr_merged; i++)
        r = remove_file(&f->chain[i]);
    return r;
}

static int close_target(struct merge_files *f)
{
    int r = disk_close(f->target);

    f->target = NULL;
    return r;
}

/* Where the merged files stay, whoever changes one goes on from here: the target is whole without them, and its link has to say
 * so, since the identities that tell it now do not stay the same. */
static int settle_link(struct merge_files *f)
{
    struct image *lowest = f->chain[f->nr_merged - 1].img;
    struct new_link link = {.linkage = linkage_merged, .linkage2 = f->chain[0].img->header.data_write_guid};
    int r = relink_is_needed(lowest, &link);

    if (r <= 0)
        return r;
    r = writer_begin_invisible(lowest);
    if (r == 0)
        r = relink(lowest, &link);
    return r < 0 ? r : writer_commit(lowest);
}

static int finish(struct merge_files *f)
{
    int r = close_target(f); /* the others' links are durable, and they stay locked to the end */

    for (size_t i = 0; r == 0 && i < f->nr_children; i++) {
        r = move_child(f, &f->children[i]);
        if (r < 0)
            return fail_in(r, "%s", f->children[i].path);
    }
    if (r == 0 && f->options->take_name)
        r = take_name(f);
    else if (r == 0 && !f->options->remove)
        r = settle_link(f);
    return r == 0 && f->options->remove ? remove_merged(f) : r;
}

/* With its name the target takes over only those children that know the merged file by that one. */
static int check_names(const struct merge_files *f)
{
    struct stat st;

    if (!f->options->take_name)
        return 0;
    if (fstat(f->chain[0].img->file->fd, &st) < 0)
        return fail_errno("cannot look at %s", f->chain[0].path);
    if (st.st_nlink <= 1)
        return 0;
    return fail(-EMLINK,
                "the file %s has %ju names, perhaps because a 'vhdx snapshot' was interrupted, and only this one would lead to what it becomes; "
                "complete that, or remove the name that no image records as its parent's ('vhdx info' shows that, 'find -samefile' the names)",
                f->chain[0].path, (uintmax_t)st.st_nlink);
}

static int work(struct merge_files *f)
{
    int r = check_folder(f);

    if (r == 0)
        r = check_names(f);
    if (r == 0)
        r = check_child_paths(f);
    if (r == 0)
        r = tell_cost(f);
    if (r < 0)
        return r;
    tell_files(f);
    if (f->options->dry_run)
        return 0;
    if (!f->result.was_complete)
        r = merge_run(&f->merge);
    return r < 0 ? r : finish(f);
}

/* After a failure everything is closed as well as it can be; the first message counts. */
static int close_all(struct merge_files *f, int result)
{
    struct error_text text;

    error_save(&text);
    merge_done(&f->merge);
    int r = close_target(f);
    for (uint32_t i = 0; f->chain && i <= f->nr_merged; i++) {
        int e = image_close(f->chain[i].img);
        r = r < 0 ? r : e;
        free(f->chain[i].path);
    }
    for (size_t i = 0; i < f->nr_children; i++) {
        image_close(f->children[i].img);
        free(f->children[i].path);
    }
    free(f->chain);
    free(f->children);
    free(f->upper);
    free(f->paths);
    if (result == 0)
        return r;
    error_restore(&text);
    return result;
}

int ops_merge(const char *path, const struct vhdx_merge_options *options, struct vhdx_merge_result *result)
{
    static const struct vhdx_merge_options defaults = VHDX_MERGE_OPTIONS_INIT;
    struct merge_files f = {.path = path, .options = options ? options : &defaults, .open = VHDX_OPEN_OPTIONS_INIT};
    int r = check_options(f.options, result);

    if (r == 0 && f.options->open)
        f.open = *f.options->open;
    if (r == 0)
        r = find_chain(&f);
    if (r == 0)
        r = find_relatives(&f);
    if (r == 0)
        r = open_all(&f);
    if (r == 0)
        r = prepare(&f);
    if (r == 0)
        r = work(&f);
    if (result) {
        f.result.struct_bytes = sizeof *result;
        *result = f.result;
    }
    return close_all(&f, r);
}
