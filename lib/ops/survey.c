/* SPDX-License-Identifier: MIT */
#include "ops/survey.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/info.h"
#include "ops/ops.h"

void survey_image_free(struct survey_image *image)
{
    free(image->path);
    free(image->problem);
    free(image->locator);
    free(image->remark);
    for (unsigned k = 0; k < NR_RECORDED_PATHS; k++)
        free(image->recorded[k]);
}

void ops_survey_free(struct vhdx_survey *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->nr_images; i++)
        survey_image_free(&s->images[i]);
    free(s->images);
    free(s->buckets);
    free(s->unreadable);
    free(s);
}

/* The folder that path's name is in, to be freed. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == path ? strdup("/") : slash ? strndup(path, (size_t)(slash - path)) : strdup(".");
}

/* The image that was named, whatever else is there. */
static int survey_named(struct vhdx_survey *s, const char *path)
{
    struct storage *file; /* only opening it so refuses FIFOs and the like with words */
    size_t index;

    int r = storage_posix_open(path, 0, &file);
    if (r < 0)
        return r;
    int fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 0);
    storage_close(file);
    if (fd < 0)
        return fail_errno("cannot open");
    r = survey_file(s, fd, path, true, true, &index);
    if (r == 0 && s->images[index].error && !s->keeps_all)
        return fail(s->images[index].error, "%s", s->images[index].problem);
    return r;
}

static int survey_neighbours(struct vhdx_survey *s, const char *folder)
{
    struct error_text ignored;
    int r = survey_folder(s, folder, false, false);

    if (r == -EACCES) { /* a folder that may be entered but not listed: the image itself is known */
        error_save(&ignored);
        s->nr_skipped++;
        r = 0;
    }
    return r;
}

/* Relatives lie beside the image as it was named, and where it really is if that was a link. */
static int survey_relatives(struct vhdx_survey *s, const char *path)
{
    char *folder = folder_of(path), *real = realpath(path, NULL), *real_folder = real ? folder_of(real) : NULL;
    char *named = folder ? realpath(folder, NULL) : NULL;
    int r = folder && (real_folder || !real) ? survey_neighbours(s, folder) : fail_memory("a path");

    if (r == 0 && real_folder && (!named || strcmp(named, real_folder) != 0))
        r = survey_neighbours(s, real_folder);
    free(named);
    free(real_folder);
    free(real);
    free(folder);
    return r;
}

static int collect(struct vhdx_survey *s, const char *path)
{
    const struct vhdx_open_options *o = s->options;
    struct stat st;

    if (stat(path, &st) < 0)
        return fail_errno("cannot open");
    bool is_folder = S_ISDIR(st.st_mode);
    s->of_image = !is_folder;
    int r = is_folder ? survey_folder(s, path, true, s->flags & VHDX_SURVEY_BELOW) : survey_named(s, path);
    if (r == 0 && !is_folder)
        r = survey_relatives(s, path);
    for (size_t i = 0; r == 0 && i < o->nr_parent_dirs; i++) {
        r = survey_folder(s, o->parent_dirs[i], false, s->flags & VHDX_SURVEY_BELOW);
        if (r < 0)
            return fail_in(r, "%s", o->parent_dirs[i]);
    }
    return r < 0 ? r : survey_link(s, is_folder ? path : NULL);
}

static int note_unreadable(struct vhdx_survey *s)
{
    for (size_t i = 0; i < s->nr_images; i++) {
        const struct survey_image *image = &s->images[i];
        if (!survey_is_unreadable(image))
            continue;
        if (asprintf(&s->unreadable, "%s cannot be read (%s)", image->path, image->problem) < 0) {
            s->unreadable = NULL;
            return fail_memory("a message");
        }
        return 0;
    }
    return 0;
}

static void note_merges(struct vhdx_survey *s)
{
    for (size_t i = 0; i < s->nr_images; i++)
        s->images[i].merging = VHDX_NO_IMAGE;
    for (size_t i = 0; i < s->nr_images; i++) {
        const struct survey_image *child = &s->images[i];
        if (child->parent != VHDX_NO_IMAGE && linkage_is_merging(&child->info.parent_linkage, &child->info.parent_linkage2))
            s->images[child->parent].merging = i;
    }
}

/* Carry out the survey that *wanted describes. */
static int run(const struct vhdx_survey *wanted, const char *path, struct vhdx_survey **result)
{
    const struct vhdx_open_options *o = wanted->options;

    *result = NULL;
    if (o->struct_bytes != sizeof *o)
        return fail(-EINVAL, "open options: struct_bytes is %zu, not %zu; begin with VHDX_OPEN_OPTIONS_INIT", o->struct_bytes,
                    sizeof *o);
    if (wanted->flags & ~(uint32_t)(VHDX_SURVEY_BELOW | VHDX_SURVEY_UNREADABLE))
        return fail(-EINVAL, "survey: unknown flags 0x%" PRIx32, wanted->flags);
    struct vhdx_survey *s = calloc(1, sizeof *s);
    if (!s)
        return fail_memory("a survey");
    *s = *wanted;
    int r = collect(s, path);
    if (r == 0)
        r = note_unreadable(s);
    if (r == 0)
        r = survey_arrange(s);
    note_merges(s);
    for (size_t i = 0; i < s->nr_images; i++) {
        free(s->images[i].locator);
        s->images[i].locator = NULL;
    }
    s->options = NULL;
    s->likely = NULL;
    if (r < 0)
        ops_survey_free(s);
    else
        *result = s;
    return r;
}

int ops_survey_new(const char *path, const struct vhdx_open_options *options, uint32_t flags, vhdx_progress_fn *progress,
                   void *opaque, struct vhdx_survey **result)
{
    static const struct vhdx_open_options defaults = VHDX_OPEN_OPTIONS_INIT;

    return run(&(struct vhdx_survey){.options = options ? options : &defaults, .flags = flags, .progress = progress, .opaque = opaque}, path,
               result);
}

static const char *name_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

int survey_likely_relatives(const char *path, const struct vhdx_open_options *options, struct vhdx_survey **s)
{
    return run(&(struct vhdx_survey){.options = options, .likely = name_of(path)}, path, s);
}

int survey_likely_neighbours(const char *path, const struct vhdx_open_options *options, struct vhdx_survey **s)
{
    return run(&(struct vhdx_survey){.options = options, .likely = name_of(path), .keeps_all = true}, path, s);
}

int ops_survey_image(const struct vhdx_survey *s, size_t index, struct vhdx_survey_image *image)
{
    if (image->struct_bytes != sizeof *image)
        return fail(-EINVAL, "survey image: struct_bytes is %zu, not %zu", image->struct_bytes, sizeof *image);
    if (index >= s->nr_images)
        return fail(-EINVAL, "image number %zu in a survey of %zu", index, s->nr_images);
    const struct survey_image *i = &s->images[index];
    *image = (struct vhdx_survey_image){.struct_bytes = sizeof *image,
                                        .path = i->path,
                                        .wanted = i->wanted,
                                        .in_use = i->in_use,
                                        .error = i->error,
                                        .problem = i->problem,
                                        .info = i->info,
                                        .depth = i->depth,
                                        .link = i->link,
                                        .link_remark = i->remark,
                                        .parent = i->parent,
                                        .instead = i->instead,
                                        .merging = i->merging,
                                        .relative_path = i->recorded[0],
                                        .volume_path = i->recorded[1],
                                        .absolute_win32_path = i->recorded[2],
                                        .relative_path_leads = i->relative_path_leads};
    return 0;
}
