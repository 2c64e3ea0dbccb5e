/* SPDX-License-Identifier: MIT */
/* vhdx create: make an empty image. */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>

#include "create-settings.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "size.h"

static struct {
    int force;
    const char *parent, *parent_windows_path;
} settings;

static const struct option options[] = {
    {0, "force", OPTION_FLAG, &settings.force, NULL, "replace IMAGE if it is an existing file"},
    {0, "parent", OPTION_TEXT, &settings.parent, "FILE", "make a child of FILE (differencing image)"},
    {0, "parent-dir", OPTION_LIST, &common.parent_dirs, "DIR", "look for FILE's own parents in DIR too; may be repeated"},
    {0, "allow-parent-path", OPTION_FLAG, &common.allow_parent_path, NULL, "follow FILE's recorded absolute parent paths"},
    {0, "parent-windows-path", OPTION_TEXT, &settings.parent_windows_path, "PATH",
     "record this absolute Windows path of the parent too"},
    {0},
};

/* The parent's size; 0 if it cannot be told any more. */
static uint64_t size_of_parent(void)
{
    struct vhdx_open_options open_options;
    vhdx_disk *disk;

    open_options_fill(&open_options, 0);
    if (vhdx_open(settings.parent, &open_options, &disk) < 0)
        return 0;
    uint64_t size = vhdx_size(disk);
    vhdx_close(disk);
    return size;
}

static void tell_of_size(const char *name, uint64_t size, uint64_t parent_size)
{
    if (parent_size > 0 && size > parent_size)
        print_warning(name, "its disk is larger than its parent's of %" PRIu64 " bytes: what lies behind that reads as zeros",
                      parent_size);
    else if (size < parent_size)
        print_warning(name, "its disk is smaller than its parent's of %" PRIu64 " bytes: what lies behind its end is hidden",
                      parent_size);
}

/* 0, or -EINVAL after it was reported. */
static int parse_size(const char *text, uint64_t *size)
{
    int code = size_parse(text, size);

    if (code == -ERANGE)
        print_error(NULL, "SIZE is more than any disk can have, which is 64T: '%s'; try 'vhdx create --help'", text);
    else if (code < 0 || (settings.parent && *size == 0))
        print_error(NULL, "SIZE has to be a size such as 65536, 64K or 1.5GiB, not '%s'; try 'vhdx create --help'", text);
    else
        return 0;
    return -EINVAL;
}

/* What was made: in JSON everything that "vhdx info" says of it. */
static int report(char *name, const struct vhdx_create_options *made)
{
    static const char *const kinds[] = {[VHDX_DYNAMIC] = "dynamic", [VHDX_FIXED] = "fixed", [VHDX_DIFFERENCING] = "differencing"};
    char *arguments[] = {name, NULL};
    uint64_t parent_size = made->parent && !common.quiet ? size_of_parent() : 0;
    char size[SIZE_TEXT_BYTES];

    if (made->parent && !common.quiet) {
        tell_how_to_open(name, settings.parent);
        if (made->virtual_size > 0)
            tell_of_size(name, made->virtual_size, parent_size);
    }
    if (common.output == OUTPUT_JSON) {
        common.parent = settings.parent; /* it is that one, wherever it may be looked for */
        return command_info.run(arguments);
    }
    if (common.quiet)
        return EXIT_OK;
    printf("Created ");
    put_text(stdout, name);
    printf(": %s, %s", kinds[made->subformat], size_full(made->virtual_size > 0 ? made->virtual_size : parent_size, size));
    if (made->parent) {
        printf(", child of ");
        put_text(stdout, made->parent);
    }
    printf("\n");
    return EXIT_OK;
}

static int create(char *name, const struct vhdx_create_options *create_options)
{
    signal(SIGXFSZ, SIG_IGN); /* so that a limit on file sizes is an error like others */
    signals_catch();
    progress_begin(true);
    int code = vhdx_create(name, create_options);
    progress_end(code == 0);
    if (code == 0)
        return report(name, create_options);
    if (code == -ECANCELED && signals_caught()) {
        print_error(name, "stopped by a signal; nothing was created");
        return 128 + signals_caught();
    }
    print_library_error(name, code);
    return EXIT_TROUBLE;
}

/* What --parent changes in what the other options say. */
static int fill_parent(struct vhdx_create_options *o, struct vhdx_open_options *parent_open)
{
    if (!settings.parent && (settings.parent_windows_path || common.parent_dirs.nr_texts > 0 || common.allow_parent_path)) {
        print_error(NULL, "options about a parent need --parent; try 'vhdx create --help'");
        return EXIT_USAGE;
    }
    if (!settings.parent)
        return EXIT_OK;
    if (o->subformat != VHDX_DYNAMIC || o->preallocation != VHDX_PREALLOC_OFF) {
        print_error(NULL, "a child (--parent) is neither fixed nor preallocated; try 'vhdx create --help'");
        return EXIT_USAGE;
    }
    open_options_fill(parent_open, 0);
    o->subformat = VHDX_DIFFERENCING;
    o->parent = settings.parent;
    o->parent_open = parent_open;
    o->parent_windows_path = settings.parent_windows_path;
    return check_image_name(settings.parent) < 0 ? EXIT_TROUBLE : EXIT_OK;
}

static int run(char **arguments)
{
    struct vhdx_create_options create_options;
    struct vhdx_open_options parent_open;
    int status = create_settings_fill(&create_options, &command_create);

    if (status == EXIT_OK)
        status = fill_parent(&create_options, &parent_open);
    if (status != EXIT_OK)
        return status;
    if (!arguments[1] && !settings.parent) {
        print_error(NULL, "missing argument: SIZE; try 'vhdx create --help'");
        return EXIT_USAGE;
    }
    if (arguments[1] && parse_size(arguments[1], &create_options.virtual_size) < 0)
        return EXIT_USAGE;
    if (check_image_name(arguments[0]) < 0)
        return EXIT_TROUBLE;
    create_options.replace = settings.force;
    create_options.progress = progress_step;
    return create(arguments[0], &create_options);
}

const struct command command_create = {
    .name = "create",
    .arguments = "IMAGE [SIZE]",
    .summary = "make an empty image",
    .description = "Make the image IMAGE, whose disk has SIZE bytes, all of them zero.  SIZE has to be a multiple of\n"
                   "the logical sector size.  With --parent the disk begins as that of FILE, which must not be changed\n"
                   "afterwards, and SIZE may be left out.",
    .tables = {options, options_create, options_output, options_progress},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
