/* SPDX-License-Identifier: MIT */
#include "rebase-find.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cmd.h"
#include "output.h"
#include "progress.h"
#include "signals.h"

struct search {
    const char *name, *folder;
    struct vhdx_guid linkage, linkage2; /* which parents will do */
    char *child_folder;                 /* where the child really lies; NULL: unknown */
    char *recorded;                     /* the parent's file name, as recorded; NULL: none */
    char *linked;                       /* where the relative path leads, if that will do; NULL: nowhere */
    int linked_fitness;
};

static bool guid_equal(const struct vhdx_guid *a, const struct vhdx_guid *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

static void print_failure(const char *file, int code)
{
    if (code == -ECANCELED && signals_caught())
        print_error(file, "stopped by a signal; nothing was changed");
    else
        print_library_error(file, code);
}

/* ---- what the image says ---- */

static int read_link(struct search *s)
{
    struct vhdx_open_options open_options = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_info info = {.struct_bytes = sizeof info};
    vhdx_disk *disk;

    /* Whoever changes it later asks for the lock. */
    open_options.flags = VHDX_OPEN_NO_PARENT | VHDX_OPEN_UNVERIFIED | VHDX_OPEN_FORCE_SHARE;
    int code = vhdx_open(s->name, &open_options, &disk);
    if (code == 0) {
        code = vhdx_get_info(disk, 0, &info);
        vhdx_close(disk);
    }
    if (code < 0) {
        print_library_error(s->name, code);
        return code;
    }
    if (!info.has_parent) {
        print_error(s->name, "the image has no parent, so there is none to find");
        return -EINVAL;
    }
    s->linkage = info.parent_linkage;
    s->linkage2 = info.parent_linkage2;
    return 0;
}

/* How well does it fit?  0: not at all; 2: it is what an interrupted merge made, which needs the child, while a copy from before
 * does not. */
static int fitness(const struct vhdx_survey_image *image, const struct search *s)
{
    static const struct vhdx_guid zero;
    const struct vhdx_guid *id = &image->info.data_write_guid;

    if (image->error)
        return 0;
    return !guid_equal(&s->linkage2, &zero) && guid_equal(id, &s->linkage2) ? 2 : guid_equal(id, &s->linkage);
}

/* The last component of a path by Windows. */
static char *windows_base_name(const char *path)
{
    const char *end = path;

    for (const char *p = path; *p; p++) {
        if (*p == '\\' || *p == '/')
            end = p + 1;
    }
    return strdup(end);
}

static int note_link(struct search *s, const vhdx_survey *survey)
{
    struct vhdx_survey_image image = {.struct_bytes = sizeof image}, parent = image;
    size_t i = 0;

    while (vhdx_survey_get(survey, i, &image) == 0 && !is_same_file(image.path, s->name))
        i++;
    if (i == vhdx_survey_count(survey))
        return 0;
    const char *recorded = image.relative_path ? image.relative_path : image.absolute_win32_path ? image.absolute_win32_path : image.volume_path;
    if (recorded && !(s->recorded = windows_base_name(recorded)))
        return -ENOMEM;
    if (!image.relative_path_leads || vhdx_survey_get(survey, image.parent, &parent) < 0)
        return 0;
    s->linked = strdup(parent.path);
    s->linked_fitness = fitness(&parent, s);
    return s->linked ? 0 : -ENOMEM;
}

/* Where the present link leads, as far as the folder to be searched is one that it may lead into. */
static int follow_link(struct search *s)
{
    struct vhdx_open_options open_options;
    vhdx_survey *survey;

    open_options_fill(&open_options, 0);
    open_options.parent = NULL;
    const char **dirs = calloc(open_options.nr_parent_dirs + 1, sizeof *dirs);
    int code = dirs ? 0 : -ENOMEM;
    if (dirs) {
        for (size_t i = 0; i < open_options.nr_parent_dirs; i++)
            dirs[i] = open_options.parent_dirs[i];
        dirs[open_options.nr_parent_dirs++] = s->folder;
        open_options.parent_dirs = dirs;
        code = vhdx_survey_new(s->name, &open_options, 0, progress_step, NULL, &survey);
        if (code < 0)
            print_failure(s->name, code);
    }
    free(dirs);
    if (code < 0)
        return code;
    code = note_link(s, survey);
    vhdx_survey_free(survey);
    return code;
}

/* ---- the choice ---- */

static bool is_beside_child(const char *path, const struct search *s)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash == path ? strdup("/") : slash ? strndup(path, (size_t)(slash - path)) : strdup(".");
    bool beside = folder && s->child_folder && is_same_file(folder, s->child_folder);

    free(folder);
    return beside;
}

static bool has_recorded_name(const char *path, const struct search *s)
{
    const char *slash = strrchr(path, '/');

    return s->recorded && strcasecmp(slash ? slash + 1 : path, s->recorded) == 0;
}

/* Which of several is taken: what fits better, then what lies beside the child, then what is called as recorded.  0: does not fit.
 * Never the image itself: what was merged has its own identity as the second one that its parent may have. */
static int rank(const struct vhdx_survey_image *image, const struct search *s)
{
    int fit = fitness(image, s);

    if (fit == 0 || is_same_file(image->path, s->name))
        return 0;
    return 4 * fit + 2 * is_beside_child(image->path, s) + has_recorded_name(image->path, s);
}

/* VHDX_NO_IMAGE: none will do.  The first in the order of paths among equals. */
static size_t find_best(const vhdx_survey *survey, const struct search *s, int *best_fitness)
{
    size_t best = VHDX_NO_IMAGE;
    int best_rank = 0;

    *best_fitness = 0;
    for (size_t i = 0; i < vhdx_survey_count(survey); i++) {
        struct vhdx_survey_image image = {.struct_bytes = sizeof image}, before = image;
        vhdx_survey_get(survey, i, &image);
        int this_rank = rank(&image, s);
        bool comes_first = best != VHDX_NO_IMAGE && vhdx_survey_get(survey, best, &before) == 0 && strcmp(image.path, before.path) < 0;
        if (this_rank > best_rank || (this_rank > 0 && this_rank == best_rank && comes_first)) {
            best_rank = this_rank;
            best = i;
            *best_fitness = fitness(&image, s);
        }
    }
    return best;
}

/* Copies of it would do as well, but the user should know. */
static void warn_of_others(const vhdx_survey *survey, const char *chosen, const struct search *s)
{
    struct vhdx_survey_image image = {.struct_bytes = sizeof image};

    for (size_t i = 0; i < vhdx_survey_count(survey); i++) {
        vhdx_survey_get(survey, i, &image);
        if (rank(&image, s) > 0 && !is_same_file(image.path, chosen))
            print_warning(s->name, "%s has the parent's identity as well; taking %s", image.path, chosen);
    }
}

static void print_none(const vhdx_survey *survey, const struct search *s)
{
    struct vhdx_survey_image image = {.struct_bytes = sizeof image};
    char id[VHDX_GUID_TEXT_BYTES];
    size_t nr_unreadable = 0;

    for (size_t i = 0; i < vhdx_survey_count(survey); i++)
        nr_unreadable += vhdx_survey_get(survey, i, &image) == 0 && image.error != 0;
    print_survey_gaps(s->folder, survey);
    if (nr_unreadable > 0)
        print_warning(s->folder, "%zu images could not be read; 'vhdx chain' says which and why", nr_unreadable);
    vhdx_guid_format(&s->linkage, id);
    print_error(s->name, "no image in %s has the parent's data write GUID %s", s->folder, id);
}

/* A link that leads to its parent is not moved to a copy of that, which may be a backup, unless a merge makes the difference. */
static int choose(const vhdx_survey *survey, const struct search *s, struct found_parent *found)
{
    struct vhdx_survey_image image = {.struct_bytes = sizeof image};
    int best_fitness;
    size_t best = find_best(survey, s, &best_fitness);

    found->is_linked = s->linked && s->linked_fitness >= best_fitness;
    if (!found->is_linked && best == VHDX_NO_IMAGE) {
        print_none(survey, s);
        return VHDX_E_PARENT_NOT_FOUND;
    }
    const char *path = s->linked;
    for (size_t i = found->is_linked ? 0 : best; vhdx_survey_get(survey, i, &image) == 0; i++) {
        if (!found->is_linked || is_same_file(image.path, s->linked)) { /* this name of it is the user's */
            path = image.path;
            break;
        }
    }
    found->path = strdup(path);
    if (!found->path)
        return -ENOMEM;
    warn_of_others(survey, found->path, s);
    return 0;
}

static int look_through(struct search *s, struct found_parent *found)
{
    struct vhdx_open_options open_options;
    vhdx_survey *survey = NULL;

    open_options_fill(&open_options, 0);
    open_options.parent = NULL;
    int code = vhdx_survey_new(s->folder, &open_options, VHDX_SURVEY_BELOW, progress_step, NULL, &survey);
    if (code < 0)
        print_failure(code == -ECANCELED ? s->name : s->folder, code);
    else
        code = follow_link(s);
    progress_end(code == 0);
    if (code == 0)
        code = choose(survey, s, found);
    vhdx_survey_free(survey);
    return code;
}

int find_parent(const char *name, const char *folder, struct found_parent *found)
{
    struct search s = {.name = name, .folder = folder};
    char real[PATH_MAX];

    int code = read_link(&s);
    if (code < 0)
        return code;
    if (realpath(name, real))
        s.child_folder = strdup(dirname(real));
    progress_begin(false);
    code = look_through(&s, found);
    if (code == -ENOMEM)
        print_error(NULL, "out of memory");
    free(s.child_folder);
    free(s.recorded);
    free(s.linked);
    return code;
}
