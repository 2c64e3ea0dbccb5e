/* SPDX-License-Identifier: MIT */
/* vhdx check: the library judges, this prints the findings as they come and turns the result into an exit
 * status. */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "document.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "size.h"

static const char *const severity_names[] = {
    [VHDX_INFO] = "info",
    [VHDX_WARNING] = "warning",
    [VHDX_LEAK] = "leak",
    [VHDX_ERROR] = "error",
};

struct printer {
    const char *name;
    struct document doc;
    bool begun; /* of the JSON document; an image that cannot even be judged gives none */
    uint64_t nr_leaks;
    bool damaged; /* an error was found that is the image's own, and not that of its chain */
};

/* Rules 50 to 55 are about where the parents are and what they are: the image is as good as ever once they are found. */
static bool is_of_chain(uint32_t rule)
{
    return rule >= 50 && rule <= 55;
}

static void begin_json(struct printer *p)
{
    if (p->begun)
        return;
    p->begun = true;
    document_begin(&p->doc, NULL, DOCUMENT_OBJECT);
    document_text(&p->doc, "filename", p->name);
    document_text(&p->doc, "format", "vhdx");
    document_begin(&p->doc, "findings", DOCUMENT_ARRAY);
}

static void print_finding_json(struct printer *p, const struct vhdx_finding *finding)
{
    begin_json(p);
    document_begin(&p->doc, NULL, DOCUMENT_OBJECT);
    document_number(&p->doc, "rule", finding->rule);
    document_text(&p->doc, "severity", severity_names[finding->severity]);
    document_number(&p->doc, "offset", finding->file_offset);
    document_text(&p->doc, "message", finding->message);
    document_boolean(&p->doc, "repairable", finding->repairable);
    document_end(&p->doc);
}

static void print_finding(void *opaque, const struct vhdx_finding *finding)
{
    struct printer *p = opaque;

    if (finding->severity == VHDX_LEAK)
        p->nr_leaks++;
    if (finding->severity == VHDX_ERROR && !is_of_chain(finding->rule))
        p->damaged = true;
    if (common.output == OUTPUT_JSON) {
        print_finding_json(p, finding);
        return;
    }
    if (common.quiet && finding->severity < VHDX_LEAK)
        return;
    progress_hide();
    printf("%s: rule %" PRIu32 " at 0x%" PRIx64 ": ", severity_names[finding->severity], finding->rule,
           finding->file_offset);
    put_text(stdout, finding->message);
    printf("%s\n", finding->repairable ? " (repairable)" : "");
}

static void print_result_json(struct printer *p, const struct vhdx_check_result *result, bool failed)
{
    begin_json(p);
    document_end(&p->doc);
    document_number(&p->doc, "check-errors", failed);
    document_number(&p->doc, "corruptions", result->nr_errors);
    document_number(&p->doc, "leaks", p->nr_leaks);
    document_number(&p->doc, "leaked-bytes", result->leaked_bytes);
    document_number(&p->doc, "corruptions-fixed", 0);
    document_number(&p->doc, "leaks-fixed", 0);
    document_number(&p->doc, "warnings", result->nr_warnings);
    document_number(&p->doc, "image-end-offset", result->image_end_offset);
    document_number(&p->doc, "total-clusters", result->total_blocks);
    document_number(&p->doc, "allocated-clusters", result->allocated_blocks);
    document_boolean(&p->doc, "replay-needed", result->replay_needed);
    document_boolean(&p->doc, "usable", result->usable);
    document_end(&p->doc);
}

static void print_count(uint64_t count, const char *one, const char *many)
{
    printf(", %" PRIu64 " %s", count, count == 1 ? one : many);
}

static void print_result_human(const struct printer *p, const struct vhdx_check_result *result)
{
    char size[SIZE_TEXT_BYTES];

    if (result->nr_errors == 0 && p->nr_leaks == 0)
        printf("No errors were found on the image");
    else
        printf("%" PRIu64 " error%s, %" PRIu64 " leak%s", result->nr_errors,
               result->nr_errors == 1 ? "" : "s", p->nr_leaks, p->nr_leaks == 1 ? "" : "s");
    if (result->leaked_bytes)
        printf(" of %s", size_full(result->leaked_bytes, size));
    if (result->nr_warnings)
        print_count(result->nr_warnings, "warning", "warnings");
    if (result->nr_notes)
        print_count(result->nr_notes, "note", "notes");
    printf(".\n%" PRIu64 " of %" PRIu64 " blocks are allocated; the last structure ends at %s.\n",
           result->allocated_blocks, result->total_blocks, size_full(result->image_end_offset, size));
    puts(p->damaged || (!result->usable && result->nr_errors == 0) ? "The image is damaged: not all of it can be read."
         : !result->usable       ? "The image itself is sound as far as it was checked, but its chain is broken: what the parents hold cannot be "
                                   "read. 'vhdx rebase --find DIR' mends the link to a parent that was moved or renamed; --parent-dir and "
                                   "--allow-parent-path look for parents in more places."
         : result->replay_needed ? "The image is usable after replay of its log."
                                 : "The image is usable as it is.");
}

static int result_status(const struct printer *p, const struct vhdx_check_result *result)
{
    if (result->nr_errors > 0 || !result->usable)
        return EXIT_CHECK_CORRUPT;
    return p->nr_leaks > 0 ? EXIT_CHECK_LEAKS : EXIT_OK;
}

static int check(struct printer *p)
{
    struct vhdx_open_options options;
    struct vhdx_check_result result = {.struct_bytes = sizeof result};

    open_options_fill(&options, open_flags(p->name, SOURCE_VHDX));
    if (is_nbd_uri(p->name))
        signals_exit(); /* connecting and reading may take for ever, and leave nothing behind */
    else
        signals_catch();
    progress_begin(false);
    int code = vhdx_check(p->name, &options, print_finding, p, &result, progress_step, NULL);
    progress_end(code == 0);

    if (code < 0) {
        if (p->begun)
            print_result_json(p, &result, true);
        if (code == -ECANCELED && signals_caught()) {
            print_error(p->name, "stopped by a signal before the check was complete");
            return 128 + signals_caught();
        }
        print_library_error(p->name, code);
        return EXIT_TROUBLE;
    }
    if (common.output == OUTPUT_JSON)
        print_result_json(p, &result, false);
    else if (!common.quiet)
        print_result_human(p, &result);
    return result_status(p, &result);
}

static int run(char **arguments)
{
    struct printer p = {.name = arguments[0], .doc.out = stdout};

    if (check_disk_name(p.name) < 0)
        return EXIT_TROUBLE;
    if (common.source_format == SOURCE_RAW) {
        print_error(p.name, "a raw disk has no structures that could be checked");
        return EXIT_TROUBLE;
    }
    return check(&p);
}

const struct command command_check = {
    .name = "check",
    .arguments = "IMAGE",
    .summary = "verify that an image follows the rules of the format",
    .description = "Verify every rule of the format that can be judged by reading; nothing is changed.\n"
                   "Exit status: 0 clean, 1 could not check, 2 corruption, 3 only leaked space.",
    .tables = {options_source_format, options_output, options_progress, options_images},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_TROUBLE, /* 2 means corruption here */
    .run = run,
};
