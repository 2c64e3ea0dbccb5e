/* SPDX-License-Identifier: MIT */
/* vhdx convert: copy a disk, its whole chain flattened, to a raw file, block device, pipe or NBD server, or into an image. */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "change-report.h"
#include "convert-into.h"
#include "create-settings.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "target.h"

enum { MAX_THREADS = 64 };
enum target_format { TARGET_UNSAID = -1, TARGET_RAW, TARGET_VHDX };

static struct {
    int target_format; /* enum target_format */
    uint64_t nr_threads, sparse_bytes;
    int reflink; /* enum vhdx_reflink */
    int no_create, force;
} settings = {.target_format = TARGET_UNSAID, .sparse_bytes = 4096};

static const struct option options[] = {
    {'O', "target-format", OPTION_CHOICE, &settings.target_format, "raw|vhdx", "format of DST (default raw)"},
    {'m', "threads", OPTION_NUMBER, &settings.nr_threads, "THREADS",
     "how many threads copy (default one per processor, at most 8)"},
    {'S', "sparse-size", OPTION_SIZE, &settings.sparse_bytes, "SIZE",
     "leave out runs of zeros this long (default 4K; 0: write all)"},
    {0, "reflink", OPTION_CHOICE, &settings.reflink, "auto|always|never",
     "share blocks with the source (default auto)"},
    {'n', "no-create", OPTION_FLAG, &settings.no_create, NULL, "write into DST, which exists and is as large at least"},
    {0, "force", OPTION_FLAG, &settings.force, NULL, "overwrite DST if it is an existing file"},
    {0},
};

static int check_settings(void)
{
    uint64_t sparse = settings.sparse_bytes;

    if (settings.nr_threads > MAX_THREADS) {
        print_error(NULL, "--threads can be at most %d, not %" PRIu64 "; try 'vhdx convert --help'",
                    MAX_THREADS, settings.nr_threads);
        return EXIT_USAGE;
    }
    if (sparse && (sparse < 512 || sparse > UINT32_MAX || (sparse & (sparse - 1)))) {
        print_error(NULL,
                    "--sparse-size has to be 0 or a power of two from 512 to 2G, not %" PRIu64
                    "; try 'vhdx convert --help'",
                    sparse);
        return EXIT_USAGE;
    }
    if (sparse == 0 && settings.reflink == VHDX_REFLINK_ALWAYS) {
        print_error(NULL, "a fully allocated copy (-S 0) cannot share blocks with its source (--reflink=always); try 'vhdx convert --help'");
        return EXIT_USAGE;
    }
    if (settings.target_format != TARGET_VHDX && create_settings_used()) {
        print_error(NULL, "options that say what an image is like need -O vhdx; try 'vhdx convert --help'");
        return EXIT_USAGE;
    }
    return EXIT_OK;
}

/* Whose fault a failed copy is that does not say that it is the target's.  The format's complaints are about what is read; so,
 * most of the time, is an input or output error. */
static bool is_source_error(int code)
{
    return code == -EIO || (code <= VHDX_E_NOT_VHDX && code != VHDX_E_LOCKED);
}

static void copy_options_fill(struct vhdx_copy_options *copy_options)
{
    *copy_options = (struct vhdx_copy_options)VHDX_COPY_OPTIONS_INIT;
    copy_options->nr_threads = (uint32_t)settings.nr_threads;
    copy_options->sparse_bytes = (uint32_t)settings.sparse_bytes;
    copy_options->reflink = settings.reflink;
    copy_options->progress = progress_step;
}

static void report(const char *source_name, const char *target_name, uint64_t size)
{
    if (common.output == OUTPUT_JSON)
        report_copied(source_name, target_name, settings.target_format == TARGET_VHDX, size);
}

/* ---- raw targets ---- */

/* A vhdx_progress_fn.  The first call says that the target is ours, so from then on nothing unfinished may stay there. */
static int progress_raw(void *opaque, uint64_t done, uint64_t total)
{
    const struct target *target = opaque;

    if (target->kind == TARGET_FILE)
        signals_set_cleanup(target->fd);
    return progress_step(NULL, done, total);
}

static int report_raw(const struct target *target, const char *source_name, int code, bool target_failed)
{
    static const char *const stopped[] = {
        [TARGET_NEW] = "stopped by a signal; nothing was created",
        [TARGET_FILE] = "stopped by a signal; the file is left empty",
        [TARGET_DEVICE] = "stopped by a signal; only part of the disk was written",
        [TARGET_STREAM] = "stopped by a signal; only part of the disk was written",
    };

    if (code == -ECANCELED && signals_caught()) {
        print_error(target->path, "%s", stopped[target->kind]);
        return 128 + signals_caught();
    }
    print_library_error(!target_failed && is_source_error(code) ? source_name : target->path, code);
    return EXIT_TROUBLE;
}

static int copy(vhdx_disk *source, struct target *target)
{
    struct vhdx_copy_options copy_options;
    bool target_failed = false;

    copy_options_fill(&copy_options);
    copy_options.progress = progress_raw;
    copy_options.opaque = target;
    copy_options.target_failed = &target_failed;
    progress_begin(true);
    int code = target_copy(target, source, &copy_options);
    progress_end(code == 0);
    if (code < 0)
        return report_raw(target, vhdx_image_path(source, 0), code, target_failed);
    return target_sync(target) < 0 ? EXIT_TROUBLE : EXIT_OK;
}

static int convert_to_raw(const char *source_name, const char *target_name)
{
    enum target_policy policy = settings.force ? TARGET_OVERWRITE : TARGET_CREATE;
    struct target target;
    vhdx_disk *source;
    int status = EXIT_TROUBLE;

    if (open_image(source_name, common.source_format, &source) < 0)
        return EXIT_TROUBLE;
    signal(SIGXFSZ, SIG_IGN); /* so that a limit on file sizes is an error like others */
    if (target_open(&target, target_name, policy, source) == 0) {
        if (target.kind == TARGET_STREAM)
            signals_exit();
        else
            signals_catch();
        limit_waiting_for(source_name);
        status = copy(source, &target);
        target_close(&target);
        if (status == EXIT_OK)
            report(source_name, target_name, vhdx_size(source));
    }
    vhdx_close(source);
    return status;
}

/* ---- images ---- */

/* A vhdx_progress_fn that keeps how much there was in *opaque. */
static int count_bytes(void *opaque, uint64_t done, uint64_t total)
{
    *(uint64_t *)opaque = done;
    return progress_step(NULL, done, total);
}

static int copy_to_image(vhdx_disk *source, const char *target_name, const struct vhdx_create_options *create_options,
                         uint64_t *bytes, bool *target_failed)
{
    struct vhdx_copy_options copy_options;

    copy_options_fill(&copy_options);
    copy_options.target_failed = target_failed;
    copy_options.progress = count_bytes;
    copy_options.opaque = bytes;
    progress_begin(true);
    int code = source ? vhdx_copy_to_image(source, target_name, create_options, &copy_options)
                      : vhdx_copy_stream_to_image(STDIN_FILENO, target_name, create_options, &copy_options);
    progress_end(code == 0);
    return code;
}

/* Disks have whole sectors, raw files need not. */
static void tell_of_padding(const char *target_name, uint64_t bytes, const struct vhdx_create_options *o)
{
    uint32_t sector = o->logical_sector_size ? o->logical_sector_size : 512;

    if (bytes % sector != 0 && !common.quiet)
        print_warning(target_name, "%" PRIu64 " zeros were added, so that the disk has whole sectors",
                      (uint64_t)(sector - bytes % sector));
}

static int report_image(const char *source_name, const char *target_name, int code, bool target_failed)
{
    if (code == -ECANCELED && signals_caught()) {
        print_error(target_name, "stopped by a signal; nothing was created");
        return 128 + signals_caught();
    }
    print_library_error(!target_failed && is_source_error(code) ? source_name : target_name, code);
    return EXIT_TROUBLE;
}

/* source_name "-" is standard input. */
static int convert_to_image(const char *source_name, const char *target_name)
{
    struct vhdx_create_options create_options;
    vhdx_disk *source = NULL;
    uint64_t bytes = 0;
    bool target_failed = false;
    int status = create_settings_fill(&create_options, &command_convert);

    if (status != EXIT_OK)
        return status;
    create_options.replace = settings.force;
    if (strcmp(source_name, "-") != 0 && open_image(source_name, common.source_format, &source) < 0)
        return EXIT_TROUBLE;
    signal(SIGXFSZ, SIG_IGN);
    signals_catch();
    limit_waiting_for(source_name);
    int code = copy_to_image(source, target_name, &create_options, &bytes, &target_failed);
    if (code == 0) {
        tell_of_padding(target_name, bytes, &create_options);
        report(source_name, target_name, bytes);
    } else {
        status = report_image(source_name, target_name, code, target_failed);
    }
    vhdx_close(source);
    return status;
}

/* ---- the command ---- */

/* A new image needs a name that it can get at the end. */
static int check_image_target(const char *target_name)
{
    if (strcmp(target_name, "-") == 0) {
        print_error(target_name, "an image cannot be streamed to standard output: it is not written in order");
        return -1;
    }
    if (is_nbd_uri(target_name)) {
        print_error(target_name, "an export cannot grow, so no image is written to an NBD server; leave -O vhdx out to copy the disk "
                    "itself into it");
        return -1;
    }
    return check_disk_name(target_name);
}

static int check_source(const char *source_name)
{
    if (strcmp(source_name, "-") != 0)
        return check_disk_name(source_name);
    if (settings.target_format != TARGET_VHDX || settings.no_create)
        print_error(source_name, "standard input can become a new image only (-O vhdx)");
    else if (common.source_format != SOURCE_RAW)
        print_error(source_name, "standard input can give a raw disk only; say so with -f raw");
    else
        return 0;
    return -1;
}

/* ---- existing disks ---- */

/* Devices and pipes, which are there before, are written to with and without -n; only a file, an image or an NBD export is
 * something else when it exists. */
static bool is_existing_disk(const char *target_name)
{
    struct stat st;

    if (is_nbd_uri(target_name))
        return true;
    return settings.no_create && strcmp(target_name, "-") != 0 &&
           (settings.target_format == TARGET_VHDX || stat(target_name, &st) < 0 || S_ISREG(st.st_mode) || S_ISDIR(st.st_mode));
}

static int check_existing(const char *source_name, vhdx_disk *source, const char *target_name)
{
    if (is_nbd_uri(target_name)) {
        if (!is_same_export(source_name, target_name))
            return 0;
        print_error(target_name, "source and target are the same");
        return -1;
    }
    if (target_check_not_source(target_name, source) < 0)
        return -1;
    if (settings.target_format != TARGET_UNSAID || vhdx_probe(target_name) != VHDX_KIND_VHDX)
        return 0;
    /* Who meant the disk in an image must not lose the image. */
    print_error(target_name, "this is a VHDX image: -O vhdx writes into its disk, -O raw over the file");
    return -1;
}

static int convert_to_existing(const char *source_name, const char *target_name)
{
    struct vhdx_copy_options copy_options;
    vhdx_disk *source;

    if (create_settings_used()) {
        print_error(NULL, "options that say what an image is like are for new ones, not for -n; try 'vhdx convert --help'");
        return EXIT_USAGE;
    }
    if (open_image(source_name, common.source_format, &source) < 0)
        return EXIT_TROUBLE;
    copy_options_fill(&copy_options);
    uint32_t flags = open_flags(target_name, settings.target_format == TARGET_VHDX ? SOURCE_VHDX : SOURCE_RAW);
    int status = EXIT_TROUBLE;
    if (check_existing(source_name, source, target_name) == 0)
        status = convert_into(source, source_name, target_name, flags, &copy_options);
    if (status == EXIT_OK)
        report(source_name, target_name, vhdx_size(source));
    vhdx_close(source);
    return status;
}

/* One stream cannot take both the disk and the document. */
static bool is_standard_output(const char *target_name)
{
    struct stat target, out;

    return strcmp(target_name, "-") == 0 ||
           (stat(target_name, &target) == 0 && fstat(STDOUT_FILENO, &out) == 0 && !S_ISCHR(out.st_mode) && target.st_dev == out.st_dev &&
            target.st_ino == out.st_ino);
}

static bool ends_like_an_image(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot && (strcasecmp(dot, ".vhdx") == 0 || strcasecmp(dot, ".avhdx") == 0);
}

static int run(char **arguments)
{
    const char *source_name = arguments[0], *target_name = arguments[1];
    int status = check_settings();

    if (status != EXIT_OK)
        return status;
    if (common.output == OUTPUT_JSON && is_standard_output(target_name)) {
        print_error(NULL, "--json prints to standard output, so the disk cannot go there; try 'vhdx convert --help'");
        return EXIT_USAGE;
    }
    if (check_source(source_name) < 0)
        return EXIT_TROUBLE;
    if (settings.target_format == TARGET_VHDX ? check_image_target(target_name) < 0
                                              : strcmp(target_name, "-") != 0 && check_disk_name(target_name) < 0)
        return EXIT_TROUBLE;
    if (settings.target_format != TARGET_VHDX && ends_like_an_image(target_name) && !common.quiet)
        print_warning(target_name, "in spite of its name this becomes a raw disk; -O vhdx makes an image");
    if (is_existing_disk(target_name))
        return convert_to_existing(source_name, target_name);
    if (settings.target_format == TARGET_VHDX)
        return convert_to_image(source_name, target_name);
    return convert_to_raw(source_name, target_name);
}

const struct command command_convert = {
    .name = "convert",
    .arguments = "SRC DST",
    .summary = "copy a disk into an image, or to a raw file, block device, pipe or NBD server",
    .description =
        "Copy the disk SRC, flattened if it has parents, to DST: as a raw disk to a file, a block device, an\n"
        "NBD server, or '-' for standard output; with -O vhdx into an image, which with -n exists already.\n"
        "SRC may be an NBD server too, or '-' for a raw disk on standard input that becomes a new image.",
    .tables = {options, options_create, options_source_format, options_output, options_progress, options_images},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
