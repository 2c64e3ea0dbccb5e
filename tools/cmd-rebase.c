/* SPDX-License-Identifier: MIT */
/* vhdx rebase: points a child at its parent, which was moved, renamed, or is to be believed. */
#include "cmd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "progress.h"
#include "signals.h"

static struct {
    const char *find, *windows_path;
    int force, dry_run;
} settings;

static const struct option options[] = {
    {'b', "parent", OPTION_TEXT, &common.parent, "FILE", "the parent; '': none, what the parents hold is copied into IMAGE"},
    {0, "find", OPTION_TEXT, &settings.find, "DIR", "find the parent by its identity among all files in DIR and below"},
    {'n', "dry-run", OPTION_FLAG, &settings.dry_run, NULL, "with --find: tell what was found, and change nothing"},
    {0, "force", OPTION_FLAG, &settings.force, NULL, "take a parent of another identity"},
    {0, "parent-windows-path", OPTION_TEXT, &settings.windows_path, "PATH", "record this absolute Windows path, too"},
    {0, "parent-dir", OPTION_LIST, &common.parent_dirs, "DIR", "look for the parent's own parents in DIR too; may be repeated"},
    {0, "allow-parent-path", OPTION_FLAG, &common.allow_parent_path, NULL, "follow recorded absolute parent paths"},
    {0},
};

/* Which parents will do. */
struct wanted {
    struct vhdx_guid linkage, linkage2;
};

static bool guid_equal(const struct vhdx_guid *a, const struct vhdx_guid *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

static int read_link(const char *name, struct wanted *wanted)
{
    struct vhdx_open_options open_options = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_info info = {.struct_bytes = sizeof info};
    vhdx_disk *disk;

    open_options.flags = VHDX_OPEN_NO_PARENT | VHDX_OPEN_UNVERIFIED;
    int code = vhdx_open(name, &open_options, &disk);
    if (code == 0) {
        code = vhdx_get_info(disk, 0, &info);
        vhdx_close(disk);
    }
    if (code < 0) {
        print_library_error(name, code);
        return code;
    }
    if (!info.has_parent) {
        print_error(name, "the image has no parent, so there is none to find");
        return -EINVAL;
    }
    *wanted = (struct wanted){info.parent_linkage, info.parent_linkage2};
    return 0;
}

/* How well does it fit?  0: not at all; 2: it is what an interrupted merge made, which needs the child, while a copy from before
 * does not. */
static int fitness(const struct vhdx_survey_image *image, const struct wanted *wanted)
{
    static const struct vhdx_guid zero;
    const struct vhdx_guid *id = &image->info.data_write_guid;

    if (image->error)
        return 0;
    return !guid_equal(&wanted->linkage2, &zero) && guid_equal(id, &wanted->linkage2) ? 2 : guid_equal(id, &wanted->linkage);
}

/* The first file in the survey that will do best; VHDX_NO_IMAGE: none will.  Never the image itself: what was merged has its own
 * identity as the second one that its parent may have. */
static size_t find_best(const vhdx_survey *survey, const struct wanted *wanted, const char *name)
{
    size_t best = VHDX_NO_IMAGE;
    int best_fitness = 0;

    for (size_t i = 0; i < vhdx_survey_count(survey); i++) {
        struct vhdx_survey_image image = {.struct_bytes = sizeof image};
        vhdx_survey_get(survey, i, &image);
        if (fitness(&image, wanted) > best_fitness && !is_same_file(image.path, name)) {
            best_fitness = fitness(&image, wanted);
            best = i;
        }
    }
    return best;
}

/* Copies of it would do as well, but the user should know. */
static void warn_of_others(const vhdx_survey *survey, size_t chosen, const struct wanted *wanted, const char *name)
{
    struct vhdx_survey_image image = {.struct_bytes = sizeof image}, best = image;

    vhdx_survey_get(survey, chosen, &best);
    for (size_t i = 0; i < vhdx_survey_count(survey); i++) {
        vhdx_survey_get(survey, i, &image);
        if (i != chosen && fitness(&image, wanted) > 0 && !is_same_file(image.path, name))
            print_warning(name, "%s has the parent's identity as well; taking %s", image.path, best.path);
    }
}

static void print_none(const vhdx_survey *survey, const struct wanted *wanted, const char *name)
{
    struct vhdx_survey_image image = {.struct_bytes = sizeof image};
    char id[VHDX_GUID_TEXT_BYTES];
    size_t nr_unreadable = 0;

    for (size_t i = 0; i < vhdx_survey_count(survey); i++)
        nr_unreadable += vhdx_survey_get(survey, i, &image) == 0 && image.error != 0;
    print_survey_gaps(settings.find, survey);
    if (nr_unreadable > 0)
        print_warning(settings.find, "%zu images could not be read; 'vhdx chain' says which and why", nr_unreadable);
    vhdx_guid_format(&wanted->linkage, id);
    print_error(name, "no image in %s has the parent's data write GUID %s", settings.find, id);
}

/* The path of the parent, to be freed; NULL, and an error printed, if there is none. */
static char *choose(const vhdx_survey *survey, const struct wanted *wanted, const char *name)
{
    size_t chosen = find_best(survey, wanted, name);
    struct vhdx_survey_image image = {.struct_bytes = sizeof image};

    if (chosen == VHDX_NO_IMAGE) {
        print_none(survey, wanted, name);
        return NULL;
    }
    warn_of_others(survey, chosen, wanted, name);
    vhdx_survey_get(survey, chosen, &image);
    char *path = strdup(image.path);
    if (!path)
        print_error(NULL, "out of memory");
    return path;
}

static int find_parent(const char *name, char **parent)
{
    struct vhdx_open_options open_options;
    struct wanted wanted;
    vhdx_survey *survey;

    int code = read_link(name, &wanted);
    if (code < 0)
        return code;
    open_options_fill(&open_options, 0);
    open_options.parent = NULL;
    progress_begin(false);
    code = vhdx_survey_new(settings.find, &open_options, VHDX_SURVEY_BELOW, progress_step, NULL, &survey);
    progress_end(code == 0);
    if (code < 0) {
        print_library_error(settings.find, code);
        return code;
    }
    *parent = choose(survey, &wanted, name);
    vhdx_survey_free(survey);
    return *parent ? 0 : VHDX_E_PARENT_NOT_FOUND;
}

static int rebase(const char *name, const char *parent)
{
    struct vhdx_rebase_options rebase_options = VHDX_REBASE_OPTIONS_INIT;
    struct vhdx_open_options open_options;

    open_options_fill(&open_options, 0);
    open_options.parent = NULL;
    rebase_options.parent = parent;
    rebase_options.parent_open = &open_options;
    rebase_options.parent_windows_path = settings.windows_path;
    rebase_options.force = settings.force;
    int code = vhdx_rebase(name, &rebase_options);
    if (code < 0)
        print_library_error(name, code);
    return code;
}

static int flatten(const char *name)
{
    struct vhdx_flatten_options flatten_options = VHDX_FLATTEN_OPTIONS_INIT;
    struct vhdx_open_options open_options;

    open_options_fill(&open_options, 0);
    open_options.parent = NULL;
    flatten_options.open = &open_options;
    flatten_options.progress = progress_step;
    progress_begin(true);
    int code = vhdx_flatten(name, &flatten_options);
    progress_end(code == 0);
    if (code == -ECANCELED && signals_caught())
        print_error(name, "stopped by a signal; it shows what it did before, and the same command completes the work");
    else if (code < 0)
        print_library_error(name, code);
    return code;
}

static int run(char **arguments)
{
    const char *name = arguments[0];
    char *found = NULL;
    int code = 0;

    if (!common.parent == !settings.find || (settings.dry_run && !settings.find)) {
        print_error(NULL, settings.dry_run ? "--dry-run needs --find; try 'vhdx rebase --help'"
                                           : "either --parent or --find must be given; try 'vhdx rebase --help'");
        return EXIT_USAGE;
    }
    if (check_image_name(name) < 0)
        return EXIT_TROUBLE;
    signals_catch();
    if (settings.find)
        code = find_parent(name, &found);
    const char *parent = found ? found : common.parent;
    if (code == 0 && signals_caught()) {
        print_error(name, "stopped by a signal; nothing was changed");
        code = -ECANCELED;
    }
    if (code == 0 && !settings.dry_run)
        code = *parent ? rebase(name, parent) : flatten(name);
    if (code == 0 && settings.find && (settings.dry_run || !common.quiet)) {
        put_text(stdout, parent);
        putchar('\n');
    }
    free(found);
    if (code == -ECANCELED && signals_caught())
        return 128 + signals_caught();
    return code < 0 ? EXIT_TROUBLE : EXIT_OK; /* what was done although a signal came is done */
}

const struct command command_rebase = {
    .name = "rebase",
    .arguments = "IMAGE",
    .summary = "point a child at its parent, which was moved, renamed or changed",
    .description = "Record in the differencing image IMAGE where its parent lies.  The parent must have the identity\n"
                   "that IMAGE records, unless --force is given.  Without parent, IMAGE gets all data itself.",
    .tables = {options, options_progress},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
