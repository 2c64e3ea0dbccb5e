/* SPDX-License-Identifier: MIT */
/* vhdx merge: folds a child, or a stretch of a chain, into one of its parents. */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "document.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "size.h"

static struct {
    const char *into;
    int remove, dry_run, reflink;
    uint64_t nr_threads;
    struct text_list children, find;
} settings;

static const struct option options[] = {
    {0, "into", OPTION_TEXT, &settings.into, "FILE", "merge everything down into FILE, one of the parents"},
    {'n', "dry-run", OPTION_FLAG, &settings.dry_run, NULL, "tell what would be done, and change nothing"},
    {0, "delete", OPTION_FLAG, &settings.remove, NULL, "remove the merged files when all is durable"},
    {0, "child", OPTION_LIST, &settings.children, "FILE", "FILE is a child of CHILD: lead it to the target; may be repeated"},
    {0, "find", OPTION_LIST, &settings.find, "DIR", "look for other children in DIR and below; may be repeated"},
    {0, "reflink", OPTION_CHOICE, &settings.reflink, "auto|always|never", "share blocks instead of copying (default auto)"},
    {'m', "threads", OPTION_NUMBER, &settings.nr_threads, "N", "copy with N threads (default: one per processor, at most 8)"},
    {0, "parent-dir", OPTION_LIST, &common.parent_dirs, "DIR", "look for parents, and other children, in DIR too"},
    {0, "allow-parent-path", OPTION_FLAG, &common.allow_parent_path, NULL, "follow recorded absolute parent paths"},
    {0},
};

/* The files, in the order in which the library names them. */
struct files {
    struct text_list by_role[VHDX_MERGE_MOVED + 1];
};

static const char *const role_names[] = {
    [VHDX_MERGE_TARGET] = "target", [VHDX_MERGE_MERGED] = "merged", [VHDX_MERGE_MOVED] = "moved"};

static void note_file(void *opaque, enum vhdx_merge_role role, const char *path)
{
    struct text_list *list = &((struct files *)opaque)->by_role[role];
    const char **grown = reallocarray(list->texts, list->nr_texts + 1, sizeof *grown);
    char *copy = strdup(path);

    if (grown)
        list->texts = grown;
    if (grown && copy)
        list->texts[list->nr_texts++] = copy;
    else
        free(copy); /* only a line of output is missing */
}

static void free_files(struct files *files)
{
    for (int role = 0; role <= VHDX_MERGE_MOVED; role++) {
        for (size_t i = 0; i < files->by_role[role].nr_texts; i++)
            free((char *)files->by_role[role].texts[i]);
        free(files->by_role[role].texts);
    }
}

/* ---- printing ---- */

static void print_json(const struct files *files, const struct vhdx_merge_result *result)
{
    struct document doc = {.out = stdout};

    document_begin(&doc, NULL, DOCUMENT_OBJECT);
    for (int role = 0; role <= VHDX_MERGE_MOVED; role++) {
        document_begin(&doc, role_names[role], DOCUMENT_ARRAY);
        for (size_t i = 0; i < files->by_role[role].nr_texts; i++)
            document_text(&doc, NULL, files->by_role[role].texts[i]);
        document_end(&doc);
    }
    document_boolean(&doc, "was-complete", result->was_complete);
    document_number(&doc, "copy-bytes", result->copy_bytes);
    document_number(&doc, "zero-bytes", result->zero_bytes);
    document_number(&doc, "space-bytes", result->space_bytes);
    document_end(&doc);
}

static void print_list(const struct files *files, int role, const char *label)
{
    for (size_t i = 0; i < files->by_role[role].nr_texts; i++)
        put_field(label, "%s", files->by_role[role].texts[i]);
}

static void print_human(const struct files *files, const struct vhdx_merge_result *result)
{
    char size[SIZE_TEXT_BYTES];

    print_list(files, VHDX_MERGE_MERGED, settings.remove ? "merged, removed" : "merged");
    print_list(files, VHDX_MERGE_TARGET, "into");
    print_list(files, VHDX_MERGE_MOVED, "led there");
    if (result->was_complete)
        put_field("data", "copied by an earlier merge");
    put_field("data copied", "%s", size_full(result->copy_bytes, size));
    put_field("becomes zeros", "%s", size_full(result->zero_bytes, size));
    put_field("space needed", "up to %s", size_full(result->space_bytes, size));
}

/* ---- the command ---- */

static int merge(const char *name, const struct vhdx_merge_options *merge_options, struct files *files)
{
    struct vhdx_merge_result result = {.struct_bytes = sizeof result};

    signals_catch();
    progress_begin(true);
    int code = vhdx_merge(name, merge_options, &result);
    progress_end(code == 0);
    if (code == -ECANCELED && signals_caught()) {
        print_error(name, "stopped by a signal; everything shows what it did before, and the same command completes the merge");
        return 128 + signals_caught();
    }
    if (code < 0) {
        print_library_error(name, code);
        return EXIT_TROUBLE;
    }
    if (common.output == OUTPUT_JSON)
        print_json(files, &result);
    else if (settings.dry_run || !common.quiet)
        print_human(files, &result);
    return EXIT_OK;
}

static int run(char **arguments)
{
    struct vhdx_merge_options merge_options = VHDX_MERGE_OPTIONS_INIT;
    struct vhdx_open_options open_options;
    struct files files = {0};

    if (check_image_name(arguments[0]) < 0)
        return EXIT_TROUBLE;
    size_t nr_dirs = common.parent_dirs.nr_texts + settings.find.nr_texts;
    const char **dirs = calloc(nr_dirs + 1, sizeof *dirs);
    if (!dirs) {
        print_error(NULL, "out of memory");
        return EXIT_TROUBLE;
    }
    for (size_t i = 0; i < nr_dirs; i++)
        dirs[i] = i < common.parent_dirs.nr_texts ? common.parent_dirs.texts[i]
                                                  : settings.find.texts[i - common.parent_dirs.nr_texts];
    open_options_fill(&open_options, 0);
    open_options.parent_dirs = dirs;
    open_options.nr_parent_dirs = nr_dirs;
    merge_options.into = settings.into;
    merge_options.open = &open_options;
    merge_options.children = settings.children.texts;
    merge_options.nr_children = settings.children.nr_texts;
    merge_options.search_below = settings.find.nr_texts > 0;
    merge_options.dry_run = settings.dry_run;
    merge_options.remove = settings.remove;
    merge_options.nr_threads = settings.nr_threads > UINT32_MAX ? UINT32_MAX : (uint32_t)settings.nr_threads;
    merge_options.reflink = settings.reflink;
    merge_options.file = note_file;
    merge_options.file_opaque = &files;
    merge_options.progress = progress_step;
    int status = merge(arguments[0], &merge_options, &files);
    free_files(&files);
    free(dirs);
    free(settings.children.texts);
    free(settings.find.texts);
    return status;
}

const struct command command_merge = {
    .name = "merge",
    .arguments = "CHILD",
    .summary = "fold a child, or a stretch of its chain, into one of its parents",
    .description = "Copy what CHILD holds into its parent, or with --into all of a stretch of the chain into one of\n"
                   "its parents, which then has the content and identity of CHILD.  Interrupted, the chain shows\n"
                   "what it did, and the same command completes the merge.",
    .tables = {options, options_output, options_progress},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
