/* SPDX-License-Identifier: MIT */
#include "ops/orphans.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/guid.h"
#include "ops/ops.h"
#include "ops/survey.h"
#include "storage/storage.h"

/* The file whose content is about to go. */
struct doomed {
    const struct storage_identity *id;
    const char *name;
    bool stays_elsewhere; /* only this name goes, and there are others */
};

static const char *name_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Does any recorded path end in the name?  Windows knows no case, and nor does who looks for the parent. */
static bool records_name(const struct survey_image *child, const char *name)
{
    for (unsigned k = 0; k < NR_RECORDED_PATHS; k++) {
        const char *path = child->recorded[k];
        size_t length = path ? strlen(path) : 0, n = strlen(name);
        if (length >= n && strcasecmp(path + length - n, name) == 0 && (length == n || strchr("/\\", path[length - n - 1])))
            return true;
    }
    return false;
}

/* Is there a file with the same identity that the child could rest on as well? */
static bool has_double(const struct vhdx_survey *s, const struct survey_image *child, const struct survey_image *one)
{
    for (size_t i = 0; i < s->nr_images; i++) {
        const struct survey_image *other = &s->images[i];
        if (other != one && other != child && other->error == 0 &&
            guid_equal(&other->info.data_write_guid, &one->info.data_write_guid))
            return true;
    }
    return false;
}

/* No writer came to its end with it: nothing can rest on it. */
static bool was_never_complete(int code)
{
    return code == VHDX_E_NOT_VHDX || code == VHDX_E_INCOMPLETE;
}

/* Nobody can read it as it is. */
static bool is_damage(int code)
{
    return was_never_complete(code) || (code <= VHDX_E_NOT_VHDX && code >= VHDX_E_BITMAP);
}

static int refuse_child(const struct vhdx_survey *s, const struct survey_image *child, const struct doomed *file)
{
    size_t parent = child->link == VHDX_LINK_UNREADABLE ? child->instead : child->parent;

    if (parent == VHDX_NO_IMAGE || !is_same_file(&s->images[parent].identity, file->id) ||
        (file->stays_elsewhere && !records_name(child, file->name)))
        return 0;
    if (child->link == VHDX_LINK_MOVED && has_double(s, child, &s->images[parent]))
        return 0;
    if (child->link == VHDX_LINK_MOVED)
        return fail(VHDX_E_CHAIN, "%s has the image that is there as its parent, by its identity, and would be lost (%s); merge or rebase that "
                    "child first; if it is not needed, or its parent is elsewhere, too, remove the file first", child->path, child->remark);
    if (child->link != VHDX_LINK_UNREADABLE)
        return fail(VHDX_E_CHAIN, "%s has the image that is there as its parent and would be lost; merge or rebase that child first, or if "
                    "it is not needed, remove it", child->path);
    if (was_never_complete(s->images[parent].error))
        return 0;
    return fail(VHDX_E_CHAIN, "%s records the image that is there as its parent, which cannot be read now (%s) but may be by others; if that "
                "child is not needed, remove it", child->path, s->images[parent].problem);
}

static int refuse_unreadable(const struct survey_image *image, const struct doomed *file)
{
    const char *behind = survey_behind_same_beginning(name_of(image->path), file->name);

    if (image->error == 0 || is_damage(image->error) || is_same_file(&image->identity, file->id))
        return 0;
    if (file->stays_elsewhere || !behind || !strchr("._", *behind))
        return 0;
    return fail(VHDX_E_CHAIN, "%s cannot be read (%s) and may, by its name, have the image that is there as its parent; make it readable, or if "
                "it needs nothing of that, remove the file first", image->path, image->problem);
}

static int search_failed(int code)
{
    struct error_text why;

    error_save(&why);
    return fail(code, "cannot find out whether another image rests on what is there: %s; if none does, remove the file first", why.text);
}

static int refuse(struct storage *file, const char *path, bool is_replaced)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_survey *s;
    struct stat st;

    if (!survey_begins_like_image(file))
        return 0;
    int r = fstat(file->fd, &st) < 0 ? fail_errno("cannot look at the file") : survey_likely_neighbours(path, &o, &s);
    if (r < 0)
        return search_failed(r);
    struct doomed doomed = {.id = &file->identity, .name = name_of(path), .stays_elsewhere = is_replaced && st.st_nlink > 1};
    for (size_t i = 0; r == 0 && i < s->nr_images; i++)
        r = refuse_child(s, &s->images[i], &doomed);
    for (size_t i = 0; r == 0 && i < s->nr_images; i++)
        r = refuse_unreadable(&s->images[i], &doomed);
    ops_survey_free(s);
    return r;
}

int orphans_refuse(struct storage *file, const char *path)
{
    return refuse(file, path, true);
}

int orphans_refuse_fd(struct storage *file)
{
    char name[32], path[PATH_MAX];
    struct stat st;

    snprintf(name, sizeof name, "/proc/self/fd/%d", file->fd);
    if (!realpath(name, path) || stat(path, &st) < 0 || !is_file_of(&st, &file->identity))
        return 0;
    return refuse(file, path, false);
}
