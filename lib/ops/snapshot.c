/* SPDX-License-Identifier: MIT */
/* States of a disk that can be gone back to: the present file becomes a parent, and keeps its bytes; a fresh child takes its
 * name. */
#include <dirent.h>
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
#include "disk/disk.h"
#include "disk/info.h"
#include "image/image.h"
#include "ops/create-child.h"
#include "ops/create.h"
#include "ops/half-merged.h"
#include "ops/new-file.h"
#include "ops/ops.h"
#include "ops/survey.h"
#include "storage/storage.h"

static int check_options(const struct vhdx_snapshot_options *o)
{
    if (o->struct_bytes != sizeof *o)
        return fail(-EINVAL, "snapshot options: struct_bytes is %zu, not %zu; begin with VHDX_SNAPSHOT_OPTIONS_INIT", o->struct_bytes,
                    sizeof *o);
    if (o->open && (o->open->flags & ~(uint32_t)VHDX_OPEN_ALLOW_PARENT_PATH))
        return fail(-EINVAL, "snapshot options: of the flags for opening only VHDX_OPEN_ALLOW_PARENT_PATH makes sense");
    return 0;
}

/* -ECANCELED: the user does not want to wait any longer. */
static int report_progress(const struct vhdx_snapshot_options *o)
{
    return o->progress && o->progress(o->opaque, 0, 0) != 0 ? fail(-ECANCELED, "cancelled; the image is as it was") : 0;
}

/* ---- what stands in the way ---- */

static int check_name(const char *name)
{
    if (*name == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strchr(name, '/'))
        return fail(-EINVAL, "\"%.300s\" is not the name of a file in the image's folder", name);
    return strlen(name) <= NAME_MAX ? 0 : fail(-ENAMETOOLONG, "the name is longer than %d bytes", NAME_MAX);
}

static int find_identity(const char *path, struct storage_identity *identity)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return fail_errno("cannot open %s", path);
    *identity = (struct storage_identity){st.st_dev, st.st_ino};
    return 0;
}

/* Children find their parent by its name, which is about to lead to something else. */
static int refuse_children(const struct vhdx_survey *s, const struct storage_identity *image)
{
    for (size_t i = 0; i < s->nr_images; i++) {
        size_t parent = s->images[i].parent;
        if (parent != VHDX_NO_IMAGE && is_same_file(&s->images[parent].identity, image))
            return fail(VHDX_E_CHAIN, "%s has this image as its parent, which must not change; work on that child, or on a new one",
                        s->images[i].path);
    }
    return 0;
}

static int judge_relatives(const char *path, const struct storage_identity *image, const struct vhdx_snapshot_options *o)
{
    struct vhdx_survey *s;

    int r = ops_survey_new(path, o->open, o->search_below ? VHDX_SURVEY_BELOW : 0, o->progress, o->opaque, &s);
    if (r < 0)
        return r;
    r = refuse_children(s, image);
    ops_survey_free(s);
    return r;
}

/* Is the chain whole, and nobody writes any of it?  That the image itself is not used by others either a lock says later, under
 * which it cannot be asked again. */
static int look_at_chain(const char *path, const struct vhdx_snapshot_options *options, bool *dirty)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_disk *disk;

    if (options->open)
        o = *options->open;
    o.flags |= VHDX_OPEN_UNVERIFIED;
    int r = disk_open(path, &o, &disk);
    if (r < 0)
        return r;
    *dirty = disk->layers[0].img->overlay != NULL;
    disk_close(disk);
    return 0;
}

/* Whoever reads the chain would replay it each time, and some cannot. */
static int settle_log(const char *path, const struct vhdx_snapshot_options *o)
{
    struct storage_identity image = {0};
    struct storage *file;
    struct image *img;
    bool dirty = false;

    int r = look_at_chain(path, o, &dirty);
    if (r == 0 && dirty)
        r = find_identity(path, &image);
    if (r == 0 && dirty)
        r = judge_relatives(path, &image, o);
    if (r < 0 || !dirty)
        return r;
    r = storage_posix_open_locked(path, POSIX_OPEN_WRITABLE, STORAGE_LOCK_EXCLUSIVE, &file);
    if (r < 0)
        return r;
    r = image_open(file, IMAGE_WRITABLE, 64, &img);
    return r < 0 ? r : image_close(img);
}

/* ---- the second name ---- */

/* Does the name in the folder lead to the file that is to be kept? */
static bool leads_to_old(const struct new_file *f, const char *name, struct stat *st)
{
    return fstatat(f->folder, name, st, AT_SYMLINK_NOFOLLOW) == 0 && is_file_of(st, &f->old->identity);
}

/* Until it was locked another one may have come in its place; from now on none does. */
static int check_place(const struct new_file *f)
{
    struct stat st;

    if (leads_to_old(f, f->name, &st))
        return 0;
    return fail(VHDX_E_LOCKED, "another program put a file in its place at this moment; try again");
}

/* A second name that an interrupted snapshot left would be one of the new state from now on, and go on with that. */
static int judge_names_beside(const struct new_file *f, const char *name, DIR *dir)
{
    struct dirent *entry;
    struct stat st;

    while ((errno = 0, entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, f->name) != 0 && strcmp(entry->d_name, name) != 0 && leads_to_old(f, entry->d_name, &st))
            return fail(-EEXIST, "the file has another name as well, %s, such as a snapshot leaves that was interrupted; complete that one first, or "
                        "remove this name", entry->d_name);
    }
    return errno ? fail_errno("cannot list the folder") : 0;
}

static int refuse_other_names(const struct new_file *f, const char *name)
{
    struct stat st;

    if (fstat(f->old->fd, &st) == 0 && st.st_nlink <= 1)
        return 0;
    int fd = openat(f->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int r = fail_errno("cannot list the folder");
        if (fd >= 0)
            close(fd);
        return r;
    }
    int r = judge_names_beside(f, name, dir);
    closedir(dir);
    return r;
}

/* There is something of that name.  Is it what an interrupted snapshot left behind, a second name of the file?  That it is the
 * first one in another spelling shows in the number of names. */
static int judge_existing(const struct new_file *f, const char *name)
{
    struct stat st;

    if (leads_to_old(f, name, &st) && strcmp(name, f->name) != 0 && st.st_nlink >= 2)
        return 0;
    return fail(-EEXIST, "there is a file %s already", name);
}

/* Why the file got no second name; the file system is not always to blame. */
static int no_second_name(const struct new_file *f, int error)
{
    struct statx st;

    if (error == EPERM && statx(f->old->fd, "", AT_EMPTY_PATH, STATX_UID, &st) == 0) {
        if (st.stx_attributes & (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND))
            return fail(-EPERM, "the file is immutable or may only be appended to, so it gets no second name; see chattr(1)");
        if (st.stx_uid != geteuid() && geteuid() != 0 && faccessat(f->folder, f->name, R_OK | W_OK, AT_EACCESS) < 0)
            return fail(-EPERM, "the file belongs to user %" PRIu32 " and may not be written by you, so the kernel lets you give it no second "
                        "name (fs.protected_hardlinks); do this as its owner or as root", st.stx_uid);
    }
    errno = error;
    if (error == EPERM || error == EOPNOTSUPP || error == ENOTSUP || error == ENOSYS || error == EMLINK)
        return fail(-EOPNOTSUPP, "the file system gives a file no second name (%s), so this cannot be done safely; rename the file while nobody "
                    "uses it, and make a child with 'vhdx create --parent'", strerror(error));
    return fail_errno("cannot give the file a second name");
}

/* Give the present file its second name, durably before anything else gets the first one. */
static int add_name(const struct new_file *f, const char *name, bool *added)
{
    int r = 0;

    *added = linkat(f->folder, f->name, f->folder, name, 0) == 0;
    if (!*added && errno == EEXIST)
        r = judge_existing(f, name);
    else if (!*added)
        r = no_second_name(f, errno);
    if (r == 0 && fsync(f->folder) < 0 && errno != EINVAL && errno != ENOTSUP)
        r = fail_errno("cannot flush the folder");
    return r;
}

static void take_name_back(const struct new_file *f, const char *name)
{
    struct error_text text;
    struct stat st;

    error_save(&text);
    if (leads_to_old(f, f->name, &st))
        unlinkat(f->folder, name, 0);
    error_restore(&text);
}

/* ---- the child ---- */

/* Where the image really lies, and the path of name beside it. */
static int find_places(const char *path, const char *name, char *real, char *beside, size_t bytes)
{
    if (!realpath(path, real))
        return fail_errno("cannot open");
    int folder = (int)(strrchr(real, '/') - real);
    int n = snprintf(beside, bytes, "%.*s/%s", folder, real, name);
    return n >= 0 && (size_t)n < bytes ? 0 : fail(-ENAMETOOLONG, "the path of %s is too long", name);
}

/* Make the image that takes the file's place, in the folder of path, and put it there.  Its parent is locked until it has its
 * name, so that nobody takes that parent's name away before. */
static int make_child(struct new_file *f, const char *parent, uint32_t flags, const char *path,
                      const struct vhdx_snapshot_options *options)
{
    struct vhdx_open_options parent_open = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;
    struct new_child child = {0};
    struct new_image n;
    uint64_t virtual_size;

    if (options->open)
        parent_open = *options->open;
    parent_open.flags |= flags;
    o.subformat = VHDX_DIFFERENCING;
    o.block_size = options->block_size;
    o.parent = parent;
    o.parent_open = &parent_open;
    int r = child_begin(&child, &n, path, &o, &virtual_size);
    if (r == 0)
        r = new_image_plan(&n, virtual_size);
    if (r == 0)
        r = create_planned(f->file, &n, &o);
    if (r == 0)
        r = report_progress(options);
    if (r == 0)
        r = new_file_publish(f);
    child_end(&child);
    return r;
}

/* Under its lock, which keeps away everybody who would make another child by this name, from before its relatives are looked at
 * until the child is in place. */
static int put_child_in_place(struct new_file *f, const char *real, const char *name, const struct vhdx_snapshot_options *options)
{
    char parent[PATH_MAX], unused[PATH_MAX], checked[PATH_MAX];
    bool added = false;

    int r = check_place(f);
    if (r == 0)
        r = judge_relatives(real, &f->old->identity, options);
    if (r == 0)
        r = find_places(real, name, checked, parent, sizeof parent);
    if (r == 0)
        r = find_places(real, ".", checked, unused, sizeof unused); /* the child's folder is all that counts of it */
    if (r == 0)
        r = refuse_other_names(f, name);
    if (r == 0)
        r = report_progress(options);
    if (r == 0)
        r = add_name(f, name, &added);
    if (r < 0)
        return r;
    r = make_child(f, parent, VHDX_OPEN_FORCE_SHARE, unused, options); /* by ourselves; its parents were looked at */
    if (r < 0 && added)
        take_name_back(f, name);
    return r;
}

int ops_snapshot(const char *path, const char *name, const struct vhdx_snapshot_options *options)
{
    static const struct vhdx_snapshot_options defaults = VHDX_SNAPSHOT_OPTIONS_INIT;
    const struct vhdx_snapshot_options *o = options ? options : &defaults;
    char real[PATH_MAX];
    struct new_file f;

    int r = check_options(o);
    if (r == 0)
        r = check_name(name);
    if (r == 0 && !realpath(path, real))
        r = fail_errno("cannot open");
    if (r == 0)
        r = settle_log(real, o);
    if (r == 0)
        r = new_file_begin(&f, real, OLD_FILE_IS_KEPT);
    if (r < 0)
        return r;
    r = put_child_in_place(&f, real, name, o);
    new_file_end(&f);
    return r;
}

/* ---- going back ---- */

/* Whatever would be lost must be a child of the same disk, and not what the disk rests on. */
static int check_disks(const char *path, const char *snapshot_path)
{
    const char *const paths[] = {path, snapshot_path};
    guid ids[2];
    bool has_parent[2] = {false, false};

    for (unsigned i = 0; i < 2; i++) {
        struct vhdx_open_options alone = VHDX_OPEN_OPTIONS_INIT;
        struct vhdx_disk *disk;
        alone.flags = VHDX_OPEN_NO_PARENT | VHDX_OPEN_UNVERIFIED | (i == 0 ? VHDX_OPEN_FORCE_SHARE : 0); /* that one is locked */
        int r = disk_open(paths[i], &alone, &disk);
        if (r < 0)
            return i == 0 ? r : fail_in(r, "%s", snapshot_path);
        ids[i] = disk->layers[0].img->values.disk_id;
        has_parent[i] = image_has_parent(disk->layers[0].img);
        disk_close(disk);
    }
    if (!has_parent[0])
        return fail(-EINVAL, "the image has no parent, so it is the disk itself, and there is nothing to go back to");
    if (!guid_equal(&ids[0], &ids[1]))
        return fail(VHDX_E_PARENT_MISMATCH, "%s is another disk", snapshot_path);
    return 0;
}

/* An image that is being merged is all that makes its parent whole. */
static int refuse_merging(const struct vhdx_survey *s, const struct storage_identity *image)
{
    for (size_t i = 0; i < s->nr_images; i++) {
        const struct survey_image *it = &s->images[i];
        if (is_same_file(&it->identity, image) && linkage_is_merging(&it->info.parent_linkage, &it->info.parent_linkage2))
            return fail(VHDX_E_CHAIN,
                        "a merge of this image into its parent%s%s was begun and did not come to its end, and without this image that one would "
                        "stay a mixture; complete it first with the same command, 'vhdx snapshot --delete' or 'vhdx merge --delete'",
                        it->parent == VHDX_NO_IMAGE ? "" : " ", it->parent == VHDX_NO_IMAGE ? "" : s->images[it->parent].path);
    }
    return 0;
}

/* What goes cannot be had back, so what may rest on it must be known. */
static int refuse_unknown(const struct vhdx_survey *s)
{
    if (s->unreadable)
        return fail(VHDX_E_CHAIN, "%s, and would be lost if it rests on this image; repair it, move it to another folder, or if it has nothing to do "
                    "with this disk, --ignore-unreadable", s->unreadable);
    if (s->nr_skipped > 0)
        return fail(-EACCES, "%" PRIu64 " folders cannot be looked into, or not at all that is in them, and images there would be lost if they rest "
                    "on this one; make them readable, do this as a user who may read them, or if there are none, --ignore-unreadable", s->nr_skipped);
    return 0;
}

/* path is without links. */
static void cut_to_folder(char *path)
{
    char *slash = strrchr(path, '/');

    slash[slash == path] = '\0';
}

/* The relatives of both, which may lie in two folders. */
static int survey_both(const char *path, const char *snapshot_path, const struct vhdx_snapshot_options *options, struct vhdx_survey **s)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    char folders[2][PATH_MAX];

    if (options->open)
        o = *options->open;
    if (!realpath(path, folders[0]) || !realpath(snapshot_path, folders[1]))
        return fail_errno("cannot open");
    const char **dirs = calloc(o.nr_parent_dirs + 2, sizeof *dirs);
    if (!dirs)
        return fail_memory("a list of folders");
    for (size_t i = 0; i < o.nr_parent_dirs; i++)
        dirs[i] = o.parent_dirs[i];
    for (unsigned i = 0; i < 2; i++) {
        cut_to_folder(folders[i]);
        if (i == 0 ? options->search_below : strcmp(folders[0], folders[1]) != 0)
            dirs[o.nr_parent_dirs++] = folders[i];
    }
    o.parent_dirs = dirs;
    int r = ops_survey_new(path, &o, options->search_below ? VHDX_SURVEY_BELOW : 0, options->progress, options->opaque, s);
    free(dirs);
    return r;
}

/* Nothing that rests on what goes, or is whole only with it, may be left behind. */
static int check_revert(const char *path, const struct storage_identity *image, const char *snapshot_path,
                        const struct vhdx_snapshot_options *o)
{
    struct storage_identity kept = {0};
    struct vhdx_survey *s = NULL;

    int r = find_identity(snapshot_path, &kept);
    if (r < 0)
        return r;
    if (is_same_file(&kept, image))
        return fail(-EINVAL, "%s is the image itself", snapshot_path);
    r = check_disks(path, snapshot_path);
    if (r == 0)
        r = survey_both(path, snapshot_path, o, &s);
    if (r == 0)
        r = refuse_children(s, image);
    if (r == 0)
        r = refuse_merging(s, image);
    if (r == 0)
        r = half_merged_refuse(s, &kept, true);
    if (r == 0 && !o->ignore_unreadable)
        r = refuse_unknown(s);
    ops_survey_free(s);
    return r;
}

int ops_snapshot_revert(const char *path, const char *snapshot_path, const struct vhdx_snapshot_options *options)
{
    static const struct vhdx_snapshot_options defaults = VHDX_SNAPSHOT_OPTIONS_INIT;
    const struct vhdx_snapshot_options *o = options ? options : &defaults;
    char real[PATH_MAX];
    struct new_file f;

    int r = check_options(o);
    if (r == 0 && !realpath(path, real))
        r = fail_errno("cannot open");
    if (r == 0)
        r = new_file_begin(&f, real, OLD_FILE_DROPPED);
    if (r < 0)
        return r;
    r = check_place(&f);
    if (r == 0)
        r = check_revert(real, &f.old->identity, snapshot_path, o);
    if (r == 0)
        r = make_child(&f, snapshot_path, 0, real, o);
    new_file_end(&f);
    return r;
}
