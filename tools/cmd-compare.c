/* SPDX-License-Identifier: MIT */
/* vhdx compare: is the guest content of two disks equal? */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "document.h"
#include "output.h"
#include "progress.h"
#include "signals.h"

static struct {
    int strict;
    int formats[2]; /* enum source_format */
} settings;

static const struct option options[] = {
    {'f', "a-format", OPTION_CHOICE, &settings.formats[0], "auto|vhdx|raw",
     "format of A (default auto: VHDX, else raw)"},
    {'F', "b-format", OPTION_CHOICE, &settings.formats[1], "auto|vhdx|raw",
     "format of B (default auto: VHDX, else raw)"},
    {'s', "strict", OPTION_FLAG, &settings.strict, NULL, "demand equal sizes too"},
    {0},
};

/* As in qemu-img a disk without any signature is taken to be raw, but not silently: a VHDX whose first bytes
 * are damaged looks the same. */
static int resolve_format(const char *name, int index)
{
    int format = settings.formats[index];

    if (format != SOURCE_AUTO)
        return format;
    if (is_nbd_uri(name))
        return SOURCE_AUTO;
    if (!may_be_raw(name))
        return SOURCE_VHDX; /* or an error, which opening it will explain */
    if (!common.quiet)
        print_warning(name,
                      "no known image format, so it is taken as a raw disk; -%c raw says that it is one",
                      index == 0 ? 'f' : 'F');
    return SOURCE_RAW;
}

/* Of disks that differ; with --strict the end of the smaller one is a difference, too. */
static uint64_t first_difference(const struct vhdx_compare_result *result)
{
    uint64_t smaller = result->size_a < result->size_b ? result->size_a : result->size_b;

    return settings.strict && (result->identical || smaller < result->first_difference) ? smaller : result->first_difference;
}

/* identical: by what was asked, which may be more than result->identical, the content. */
static void print_result(const struct vhdx_compare_result *result, bool identical)
{
    if (common.output == OUTPUT_JSON) {
        struct document doc = {.out = stdout};

        document_begin(&doc, NULL, DOCUMENT_OBJECT);
        document_boolean(&doc, "identical", identical);
        if (identical)
            document_null(&doc, "first-difference");
        else
            document_number(&doc, "first-difference", first_difference(result));
        document_end(&doc);
    } else if (!common.quiet) {
        if (identical)
            puts("Images are identical.");
        else if (!result->identical)
            printf("Content mismatch at offset %" PRIu64 "!\n", result->first_difference);
    }
}

/* With --strict sizes that differ are a result.  false: there is nothing more that anybody wants to know. */
static bool tell_of_sizes(const char *name, uint64_t size_a, uint64_t size_b)
{
    if (settings.strict && common.quiet && common.output != OUTPUT_JSON)
        return false;
    if (settings.strict && common.output != OUTPUT_JSON)
        printf("Sizes differ: %" PRIu64 " and %" PRIu64 " bytes.\n", size_a, size_b);
    else if (!settings.strict && !common.quiet)
        print_warning(name, "sizes differ: %" PRIu64 " and %" PRIu64 " bytes; the surplus has to be zeros", size_a, size_b);
    return true;
}

static int compare(char **names, vhdx_disk *disks[2])
{
    uint64_t size_a = vhdx_size(disks[0]), size_b = vhdx_size(disks[1]);
    struct vhdx_compare_result result;

    if (size_a != size_b && !tell_of_sizes(names[1], size_a, size_b))
        return EXIT_COMPARE_DIFFERENT;
    signals_catch();
    limit_waiting_for(names[0]);
    limit_waiting_for(names[1]);
    progress_begin(true);
    int code = vhdx_compare(disks[0], disks[1], &result, progress_step, NULL);
    progress_end(code == 0);
    if (code == -ECANCELED && signals_caught()) {
        print_error(NULL, "stopped by a signal before the comparison was complete");
        return 128 + signals_caught();
    }
    if (code < 0) {
        print_error(NULL, "%s, %s: %s", names[0], names[1], library_message(code));
        return EXIT_COMPARE_TROUBLE;
    }
    bool identical = result.identical && (!settings.strict || size_a == size_b);
    print_result(&result, identical);
    return identical ? EXIT_OK : EXIT_COMPARE_DIFFERENT;
}

static int run(char **arguments)
{
    vhdx_disk *disks[2] = {NULL, NULL};
    int status = EXIT_COMPARE_TROUBLE;

    for (int i = 0; i < 2; i++) {
        if (check_disk_name(arguments[i]) < 0 ||
            open_image(arguments[i], resolve_format(arguments[i], i), &disks[i]) < 0)
            goto out;
    }
    status = compare(arguments, disks);
out:
    vhdx_close(disks[0]);
    vhdx_close(disks[1]);
    return status;
}

const struct command command_compare = {
    .name = "compare",
    .arguments = "A B",
    .summary = "tell whether two disks have the same content",
    .description =
        "Compare what a guest would read from two disks, VHDX or raw.  If one is longer, the rest\n"
        "of it has to be zeros.  Exit status: 0 same, 1 different, 2 trouble.",
    .tables = {options, options_output, options_progress, options_images},
    .trouble_status = EXIT_COMPARE_TROUBLE,
    .usage_status = EXIT_COMPARE_TROUBLE,
    .run = run,
};
