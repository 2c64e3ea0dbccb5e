/* SPDX-License-Identifier: MIT */
/* vhdx rebase: points a child at its parent, which was moved, renamed, or is to be believed. */
#include "cmd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "change-report.h"
#include "output.h"
#include "progress.h"
#include "rebase-find.h"
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

static void tell(const char *name, const char *parent, const struct link_state *before, bool is_due)
{
    if (*parent && !settings.dry_run && !common.quiet)
        tell_how_to_open(name, parent);
    if (common.output == OUTPUT_JSON) {
        report_linked(name, *parent ? parent : NULL, before, settings.dry_run, is_due);
    } else if (settings.find && (settings.dry_run || !common.quiet)) {
        put_text(stdout, parent);
        putchar('\n');
    }
}

/* Lead the link of name to where the options say, or to what was found. */
static int change(const char *name, const struct found_parent *found)
{
    const char *parent = found->path ? found->path : common.parent;
    bool is_done = found->is_linked && !settings.windows_path; /* other paths that are recorded may be of use elsewhere, and stay */
    struct link_state before = {0};
    int code = 0;

    if (common.output == OUTPUT_JSON)
        link_state_read(name, &before);
    if (is_done && !common.quiet)
        print_note(name, "the link leads to %s already; nothing is to be done (--parent leads it to another file)", parent);
    if (!is_done && !settings.dry_run)
        code = *parent ? rebase(name, parent) : flatten(name);
    if (code == 0)
        tell(name, parent, &before, !is_done);
    link_state_free(&before);
    return code;
}

static int run(char **arguments)
{
    const char *name = arguments[0];
    struct found_parent found = {0};
    int code = 0;

    if (!common.parent == !settings.find || (settings.dry_run && !settings.find)) {
        print_error(NULL, settings.dry_run ? "--dry-run needs --find; try 'vhdx rebase --help'"
                                           : "either --parent or --find must be given; try 'vhdx rebase --help'");
        return EXIT_USAGE;
    }
    if (settings.find && !*settings.find) {
        print_error(NULL, "the name of the folder for --find is empty");
        return EXIT_TROUBLE;
    }
    if (check_image_name(name) < 0 || (common.parent && *common.parent && check_image_name(common.parent) < 0))
        return EXIT_TROUBLE;
    signals_catch();
    if (settings.find)
        code = find_parent(name, settings.find, &found);
    if (code == 0 && signals_caught()) {
        print_error(name, "stopped by a signal; nothing was changed");
        code = -ECANCELED;
    }
    if (code == 0)
        code = change(name, &found);
    free(found.path);
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
    .tables = {options, options_output, options_progress},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
