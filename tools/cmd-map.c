/* SPDX-License-Identifier: MIT */
/* vhdx map: where the bytes of the disk are.  Prints as it goes, since a map may be longer than memory. */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "document.h"
#include "output.h"
#include "signals.h"

static struct {
    uint64_t start_offset, max_length;
    const char *since;
    int verify;
} settings = {.max_length = UINT64_MAX};

static const struct option options[] = {
    {'s', "start-offset", OPTION_SIZE, &settings.start_offset, "OFFSET", "begin here (default 0)"},
    {'l', "max-length", OPTION_SIZE, &settings.max_length, "LENGTH",
     "end after so much of the disk (default all)"},
    {0, "since", OPTION_TEXT, &settings.since, "FILE",
     "only what may differ from FILE, one of the parents"},
    {0, "verify", OPTION_FLAG, &settings.verify, NULL,
     "with --since: read, and leave out what is equal after all"},
    {0},
};

struct printer {
    vhdx_disk *disk;
    struct document doc;
    uint32_t since;   /* depth */
    char **filenames; /* as JSON text, by depth; filled when first needed */
};

static const char *encoded_filename(struct printer *p, uint32_t depth)
{
    if (!p->filenames[depth])
        p->filenames[depth] = document_encode(vhdx_image_path(p->disk, depth));
    return p->filenames[depth] ? p->filenames[depth] : "null";
}

static int print_json(void *opaque, const struct vhdx_extent *extent)
{
    struct printer *p = opaque;
    bool data = extent->flags & VHDX_EXTENT_DATA;

    document_begin_inline(&p->doc, NULL, DOCUMENT_OBJECT);
    document_number(&p->doc, "start", extent->guest_offset);
    document_number(&p->doc, "length", extent->length);
    document_number(&p->doc, "depth", extent->depth);
    document_boolean(&p->doc, "present", extent->flags & VHDX_EXTENT_PRESENT);
    document_boolean(&p->doc, "zero", extent->flags & VHDX_EXTENT_ZERO);
    document_boolean(&p->doc, "data", data);
    if (data) {
        document_number(&p->doc, "offset", extent->file_offset);
        document_encoded(&p->doc, "filename", encoded_filename(p, extent->depth));
    }
    document_end(&p->doc);
    return 0;
}

/* The columns of "qemu-img map", which shows data only; but what has become zeros is a difference, too. */
static int print_human(void *opaque, const struct vhdx_extent *extent)
{
    struct printer *p = opaque;

    if (extent->flags & VHDX_EXTENT_DATA) {
        printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64, extent->guest_offset, extent->length,
               extent->file_offset);
        put_text(stdout, vhdx_image_path(p->disk, extent->depth));
        putchar('\n');
    } else if (settings.since) {
        printf("%#-16" PRIx64 "%#-16" PRIx64 "%-16s", extent->guest_offset, extent->length, "zeros");
        put_text(stdout, vhdx_image_path(p->disk, extent->depth));
        putchar('\n');
    }
    return 0;
}

/* At which depth of the chain the file since lies; -1 with an error printed if it does not. */
static int64_t find_since(vhdx_disk *disk)
{
    struct stat wanted, image;

    if (stat(settings.since, &wanted) < 0) {
        print_error(settings.since, "cannot open: %s", strerror(errno));
        return -1;
    }
    for (uint32_t depth = 0; depth < vhdx_chain_length(disk); depth++) {
        if (stat(vhdx_image_path(disk, depth), &image) != 0 || image.st_dev != wanted.st_dev || image.st_ino != wanted.st_ino)
            continue;
        if (depth > 0)
            return depth;
        print_error(settings.since, "this is the image itself, which differs from itself nowhere; --since takes one of its parents");
        return -1;
    }
    print_error(vhdx_image_path(disk, 0), "%s is none of its parents", settings.since);
    return -1;
}

/* A JSON array that an error cuts short stays open, so that nobody takes it for the whole map. */
static int print_map(struct printer *p)
{
    uint64_t disk_bytes = vhdx_size(p->disk);
    uint64_t start = settings.start_offset < disk_bytes ? settings.start_offset : disk_bytes;
    uint64_t left = disk_bytes - start;
    uint64_t length = settings.max_length < left ? settings.max_length : left;
    bool json = common.output == OUTPUT_JSON;

    if (json)
        document_begin(&p->doc, NULL, DOCUMENT_ARRAY);
    else
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    vhdx_extent_fn *print = json ? print_json : print_human;
    int code = 0;
    if (settings.since)
        code = vhdx_diff(p->disk, p->since, start, length, settings.verify ? VHDX_DIFF_VERIFY : 0, print, p, NULL, NULL);
    else if (length)
        code = vhdx_map(p->disk, start, length, print, p);
    if (json && code == 0)
        document_end(&p->doc);
    return code;
}

static int open_what_is_mapped(struct printer *p, const char *name)
{
    if (check_disk_name(name) < 0 || open_image(name, common.source_format, &p->disk) < 0)
        return -1;
    int64_t since = settings.since ? find_since(p->disk) : 0;
    if (since < 0)
        vhdx_close(p->disk);
    p->since = (uint32_t)since;
    return since < 0 ? -1 : 0;
}

static int run(char **arguments)
{
    const char *name = arguments[0];
    struct printer p = {.doc.out = stdout};

    if (settings.verify && !settings.since) {
        print_error(NULL, "--verify needs --since; try 'vhdx map --help'");
        return EXIT_USAGE;
    }
    if (open_what_is_mapped(&p, name) < 0)
        return EXIT_TROUBLE;

    uint32_t nr_images = vhdx_chain_length(p.disk);
    int code = -ENOMEM;
    p.filenames = calloc(nr_images, sizeof *p.filenames);
    if (!p.filenames) {
        print_error(name, "out of memory");
    } else {
        signals_exit();
        code = print_map(&p);
        if (code < 0)
            print_library_error(name, code);
    }
    for (uint32_t depth = 0; p.filenames && depth < nr_images; depth++)
        free(p.filenames[depth]);
    free(p.filenames);
    vhdx_close(p.disk);
    return code < 0 ? EXIT_TROUBLE : EXIT_OK;
}

const struct command command_map = {
    .name = "map",
    .arguments = "IMAGE",
    .summary = "which ranges hold data or zeros, and where they lie in which file",
    .description = "Show which ranges of the disk are stored, where, and in which file of the chain.\n"
                   "The table lists stored data only; --json lists every range.  With --since: what an\n"
                   "incremental backup has to read, zeros included.",
    .tables = {options, options_source_format, options_output, options_no_progress, options_images},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
