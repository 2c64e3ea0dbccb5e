/* SPDX-License-Identifier: MIT */
/* vhdx chain: which images belong together, drawn as a tree, and which links are broken and why. */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "document.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "size.h"

static struct {
    int no_recurse;
} settings;

static const struct option options[] = {
    {0, "no-recurse", OPTION_FLAG, &settings.no_recurse, NULL, "do not look into the folders below"},
    {0, "parent-dir", OPTION_LIST, &common.parent_dirs, "DIR", "look for relatives in DIR too; may be repeated"},
    {0, "allow-parent-path", OPTION_FLAG, &common.allow_parent_path, NULL, "follow recorded absolute parent paths"},
    {'U', "force-share", OPTION_FLAG, &common.force_share, NULL, "do not find out who is writing"},
    {0},
};

static const char *const subformat_names[] = {"fixed", "dynamic", "differencing", "raw"};

/* By enum vhdx_link: for scripts, and for people. */
static const struct {
    const char *name, *text;
} links[] = {
    [VHDX_LINK_NONE] = {"none", ""},
    [VHDX_LINK_OK] = {"ok", ""},
    [VHDX_LINK_MOVED] = {"moved", "parent moved or renamed"},
    [VHDX_LINK_MISSING] = {"missing", "parent missing"},
    [VHDX_LINK_CHANGED] = {"changed", "parent changed"},
    [VHDX_LINK_BLOCKED] = {"blocked", "path to the parent not allowed"},
    [VHDX_LINK_UNREADABLE] = {"unreadable", "parent unreadable"},
    [VHDX_LINK_SECTORS] = {"sector-size", "sector sizes differ"},
    [VHDX_LINK_CYCLE] = {"cycle", "parents lead in a circle"},
    [VHDX_LINK_DEPTH] = {"depth", "chain too long"},
};

enum { MAX_DRAWN_DEPTH = 256 };

/* Whether a brother is still to come, by depth, while the images are drawn one after the other. */
struct tree_lines {
    bool *is_last; /* by number of image: no brother behind it */
    bool open[MAX_DRAWN_DEPTH + 1];
};

static bool is_broken(const struct vhdx_survey_image *image)
{
    return image->error || (image->link != VHDX_LINK_NONE && image->link != VHDX_LINK_OK);
}

static struct vhdx_survey_image image_at(const vhdx_survey *survey, size_t index)
{
    struct vhdx_survey_image image = {.struct_bytes = sizeof image};

    vhdx_survey_get(survey, index, &image); /* an index in range cannot fail */
    return image;
}

/* ---- for people ---- */

/* From the end on: whoever comes first at his depth is the last of his brothers, until something above ends their line. */
static int find_last_brothers(const vhdx_survey *survey, struct tree_lines *lines)
{
    bool seen[MAX_DRAWN_DEPTH + 1] = {false};
    size_t nr = vhdx_survey_count(survey);

    memset(lines, 0, sizeof *lines);
    lines->is_last = calloc(nr + 1, sizeof *lines->is_last);
    if (!lines->is_last)
        return -ENOMEM;
    for (size_t i = nr; i-- > 0;) {
        uint32_t depth = image_at(survey, i).depth;
        lines->is_last[i] = !seen[depth];
        seen[depth] = true;
        memset(seen + depth + 1, 0, MAX_DRAWN_DEPTH - depth);
    }
    return 0;
}

/* What stands left of an image, or of a further line about it. */
static void put_lead(struct tree_lines *lines, size_t index, uint32_t depth, bool has_children, bool first_line)
{
    for (uint32_t d = 1; d < depth; d++)
        fputs(lines->open[d] ? "|   " : "    ", stdout);
    if (depth > 0) {
        lines->open[depth] = !lines->is_last[index];
        fputs(first_line ? (lines->is_last[index] ? "`-- " : "|-- ") : (lines->is_last[index] ? "    " : "|   "), stdout);
    }
    if (!first_line)
        fputs(has_children ? "|     " : "      ", stdout);
}

static void put_image(const struct vhdx_survey_image *image, bool asked_for)
{
    char size[SIZE_TEXT_BYTES], usage[SIZE_TEXT_BYTES];

    put_text(stdout, image->path);
    if (asked_for)
        fputs(" *", stdout);
    if (image->error)
        printf("  [unreadable, uses %s]", size_short(image->info.disk_usage, usage));
    else
        printf("  [%s, %s, uses %s%s%s]", subformat_names[image->info.subformat], size_short(image->info.virtual_size, size),
               size_short(image->info.disk_usage, usage), image->info.log_dirty ? ", log dirty" : "",
               image->in_use ? ", open for writing elsewhere" : "");
    if (!image->error && is_broken(image))
        printf("  BROKEN: %s", links[image->link].text);
    putchar('\n');
}

static const char *first_path(const struct vhdx_survey_image *image)
{
    return image->relative_path         ? image->relative_path
           : image->absolute_win32_path ? image->absolute_win32_path
           : image->volume_path         ? image->volume_path
                                        : "no path";
}

static void put_details(struct tree_lines *lines, size_t index, const struct vhdx_survey_image *image, bool has_children)
{
    char id[VHDX_GUID_TEXT_BYTES], linkage[VHDX_GUID_TEXT_BYTES];

    if (!image->error) {
        vhdx_guid_format(&image->info.data_write_guid, id);
        put_lead(lines, index, image->depth, has_children, false);
        printf("data write guid %s\n", id);
    }
    if (image->depth == 0 && !image->error) {
        vhdx_guid_format(&image->info.disk_id, id);
        put_lead(lines, index, image->depth, has_children, false);
        printf("disk id         %s\n", id);
    }
    if (image->link != VHDX_LINK_NONE) {
        vhdx_guid_format(&image->info.parent_linkage, linkage);
        put_lead(lines, index, image->depth, has_children, false);
        printf("parent          %s, recorded as ", linkage);
        put_text(stdout, first_path(image));
        putchar('\n');
    }
    if (image->problem || image->link_remark) {
        put_lead(lines, index, image->depth, has_children, false);
        fputs(is_broken(image) ? "problem         " : "remark          ", stdout);
        put_text(stdout, image->problem ? image->problem : image->link_remark);
        putchar('\n');
    }
}

static int print_human(const vhdx_survey *survey, const char *asked_for)
{
    size_t nr = vhdx_survey_count(survey);
    struct tree_lines lines;

    if (find_last_brothers(survey, &lines) < 0) {
        print_error(NULL, "out of memory");
        return -ENOMEM;
    }
    if (nr == 0 && !common.quiet)
        print_warning(asked_for, "no images here");
    for (size_t i = 0; i < nr; i++) {
        struct vhdx_survey_image image = image_at(survey, i);
        bool has_children = i + 1 < nr && image_at(survey, i + 1).depth > image.depth;
        if (image.depth == 0 && i > 0)
            putchar('\n');
        put_lead(&lines, i, image.depth, has_children, true);
        put_image(&image, strcmp(image.path, asked_for) == 0);
        put_details(&lines, i, &image, has_children);
    }
    free(lines.is_last);
    return 0;
}

/* ---- JSON ---- */

static void document_guid(struct document *doc, const char *name, const struct vhdx_guid *guid)
{
    char text[VHDX_GUID_TEXT_BYTES];

    vhdx_guid_format(guid, text);
    document_text(doc, name, text);
}

static void document_optional(struct document *doc, const char *name, const char *text)
{
    if (text)
        document_text(doc, name, text);
}

static void document_link(struct document *doc, const vhdx_survey *survey, const struct vhdx_survey_image *image)
{
    static const struct vhdx_guid zero;

    document_begin(doc, "link", DOCUMENT_OBJECT);
    document_text(doc, "status", links[image->link].name);
    document_optional(doc, "remark", image->link_remark);
    document_guid(doc, "parent-linkage", &image->info.parent_linkage);
    if (memcmp(&image->info.parent_linkage2, &zero, sizeof zero) != 0)
        document_guid(doc, "parent-linkage2", &image->info.parent_linkage2);
    document_optional(doc, "relative-path", image->relative_path);
    document_optional(doc, "volume-path", image->volume_path);
    document_optional(doc, "absolute-win32-path", image->absolute_win32_path);
    if (image->parent != VHDX_NO_IMAGE)
        document_text(doc, "found", image_at(survey, image->parent).path);
    if (image->instead != VHDX_NO_IMAGE)
        document_text(doc, "instead", image_at(survey, image->instead).path);
    document_end(doc);
}

static void print_json_image(struct document *doc, const vhdx_survey *survey, const struct vhdx_survey_image *image)
{
    const struct vhdx_info *info = &image->info;

    document_begin(doc, NULL, DOCUMENT_OBJECT);
    document_text(doc, "filename", image->path);
    document_boolean(doc, "wanted", image->wanted);
    document_number(doc, "depth", image->depth);
    document_optional(doc, "problem", image->problem);
    document_number(doc, "file-size", info->file_size);
    document_number(doc, "actual-size", info->disk_usage);
    if (!image->error) {
        document_text(doc, "subformat", subformat_names[info->subformat]);
        document_number(doc, "virtual-size", info->virtual_size);
        document_number(doc, "block-size", info->block_size);
        document_number(doc, "logical-sector-size", info->logical_sector_size);
        document_boolean(doc, "dirty-flag", info->log_dirty);
        document_boolean(doc, "in-use", image->in_use);
        document_guid(doc, "disk-id", &info->disk_id);
        document_guid(doc, "data-write-guid", &info->data_write_guid);
        document_guid(doc, "file-write-guid", &info->file_write_guid);
        if (image->link != VHDX_LINK_NONE)
            document_link(doc, survey, image);
    }
    document_end(doc);
}

static void print_json(const vhdx_survey *survey)
{
    struct document doc = {.out = stdout};

    document_begin(&doc, NULL, DOCUMENT_ARRAY);
    for (size_t i = 0; i < vhdx_survey_count(survey); i++) {
        struct vhdx_survey_image image = image_at(survey, i);
        print_json_image(&doc, survey, &image);
    }
    document_end(&doc);
}

/* ---- the command ---- */

static int print_survey(const vhdx_survey *survey, const char *name)
{
    int status = EXIT_OK;

    if (common.output == OUTPUT_JSON)
        print_json(survey);
    else if (print_human(survey, name) < 0)
        return EXIT_TROUBLE;
    for (size_t i = 0; i < vhdx_survey_count(survey); i++) {
        struct vhdx_survey_image image = image_at(survey, i);
        if (is_broken(&image))
            status = EXIT_TROUBLE;
    }
    return print_survey_gaps(name, survey) ? EXIT_TROUBLE : status;
}

static int run(char **arguments)
{
    const char *name = arguments[0];
    struct vhdx_open_options open_options;
    vhdx_survey *survey;

    if (check_image_name(name) < 0)
        return EXIT_TROUBLE;
    open_options_fill(&open_options, 0);
    signals_catch();
    progress_begin(false);
    int code = vhdx_survey_new(name, &open_options, settings.no_recurse ? 0 : VHDX_SURVEY_BELOW, progress_step, NULL, &survey);
    progress_end(code == 0);
    if (code == -ECANCELED && signals_caught()) {
        print_error(NULL, "stopped by a signal");
        return 128 + signals_caught();
    }
    if (code < 0) {
        print_library_error(name, code);
        return EXIT_TROUBLE;
    }
    int status = print_survey(survey, name);
    vhdx_survey_free(survey);
    return status;
}

const struct command command_chain = {
    .name = "chain",
    .arguments = "PATH",
    .summary = "which images belong together, as a tree, and which links are broken",
    .description = "Draw the chains of all images in the folder PATH and below, or the one that the image PATH is in.\n"
                   "Exit status: 0 all is well, 1 a link is broken, or an image or a folder unreadable.",
    .tables = {options, options_output, options_progress},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
