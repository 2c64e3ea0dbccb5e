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
#include "ops/merge-files.h"
#include "ops/relink.h"

/* ---- can it be done? ---- */

/* The target's own recorded paths stay true, and one rename does it, only if both lie together. */
static int check_folder(const struct merge_files *f)
{
    const char *from = f->chain[f->nr_merged].path, *to = f->chain[0].path;
    size_t length = (size_t)(strrchr(from, '/') - from);

    if (!f->options->take_name || (length == (size_t)(strrchr(to, '/') - to) && strncmp(from, to, length) == 0))
        return 0;
    return fail(-EXDEV, "%s cannot take the name of %s, because it lies in another folder", from, to);
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

int merge_check_finish(const struct merge_files *f)
{
    int r = check_folder(f);

    if (r == 0)
        r = check_names(f);
    return r < 0 ? r : check_child_paths(f);
}

/* ---- links ---- */

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
    r = relink_if_needed(child->img, &link, writer_begin_invisible);
    free(relative);
    int closed = image_close(child->img);
    child->img = NULL;
    return r < 0 ? r : closed;
}

/* Where the merged files stay, whoever changes one goes on from here: the target is whole without them, and its link has to say
 * so, since the identities that tell it now do not stay the same. */
static int settle_link(struct merge_files *f)
{
    struct image *lowest = f->chain[f->nr_merged - 1].img;
    struct new_link link = {.linkage = linkage_merged, .linkage2 = f->chain[0].img->header.data_write_guid};
    int r = relink_if_needed(lowest, &link, writer_begin_invisible);

    return r < 0 ? r : writer_commit(lowest);
}

/* ---- names ---- */

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

/* The name that is about to be taken away leads to the file that was merged, which is locked still. */
static int check_name_is_file(const struct merge_file *file)
{
    struct stat st;

    if (lstat(file->path, &st) < 0 || !is_file_of(&st, &file->identity))
        return fail(-ENOENT, "%s: somebody else moved or removed it meanwhile", file->path);
    return 0;
}

static int remove_file(const struct merge_file *file)
{
    int r = check_name_is_file(file);

    if (r < 0)
        return r;
    if (unlink(file->path) < 0)
        return fail_errno("cannot remove %s", file->path);
    return flush_folder(file->path);
}

/* The name leads to the one or to the other at every moment, and both have the same content and identity. */
static int take_name(const struct merge_files *f)
{
    const struct merge_file *from = &f->chain[f->nr_merged], *to = &f->chain[0];
    int r = check_name_is_file(to);

    if (r < 0)
        return r;
    if (rename(from->path, to->path) < 0)
        return fail_errno("cannot rename %s to %s", from->path, to->path);
    return flush_folder(to->path);
}

/* Uppermost first, so that what is left after a crash still opens. */
static int remove_merged(const struct merge_files *f)
{
    int r = 0;

    for (uint32_t i = f->options->take_name ? 1 : 0; r == 0 && i < f->nr_merged; i++)
        r = remove_file(&f->chain[i]);
    return r;
}

int merge_finish(struct merge_files *f)
{
    int r = merge_close_target(f); /* the others' links are durable, and they stay locked to the end */

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
