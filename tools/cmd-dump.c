/* SPDX-License-Identifier: MIT */
/* vhdx dump: the on-disk structures as the library decodes them, as an indented tree or as JSON; or the bytes
 * of one metadata item. */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "document.h"
#include "output.h"
#include "tree.h"

/* How much of the block allocation table is shown if nobody asked for it in particular. */
enum { DEFAULT_NR_BLOCKS = 16 };

static struct {
    int headers, regions, metadata, log, bat, raw;
    const char *block, *blocks, *item;
} settings;

static const struct option options[] = {
    {0, "headers", OPTION_FLAG, &settings.headers, NULL, "the file identifier and both headers"},
    {0, "regions", OPTION_FLAG, &settings.regions, NULL, "both region tables"},
    {0, "metadata", OPTION_FLAG, &settings.metadata, NULL, "the metadata table and its items"},
    {0, "log", OPTION_FLAG, &settings.log, NULL, "the log's entries"},
    {0, "bat", OPTION_FLAG, &settings.bat, NULL, "the whole block allocation table"},
    {0, "block", OPTION_TEXT, &settings.block, "N", "the table's entry of block N only"},
    {0, "blocks", OPTION_TEXT, &settings.blocks, "A-B", "the table's entries of blocks A to B only"},
    {0, "raw", OPTION_FLAG, &settings.raw, NULL, "the file as it is on disk, without replaying its log"},
    {0, "item", OPTION_TEXT, &settings.item, "GUID",
     "the bytes of one metadata item: hexadecimal on a terminal"},
    {0},
};

/* ---- which parts ---- */

static int parse_block_no(const char *text, char **end, uint64_t *block_no)
{
    if (*text < '0' || *text > '9')
        return -EINVAL;
    errno = 0;
    *block_no = strtoull(text, end, 10);
    return errno ? -EINVAL : 0;
}

/* "N" or "A-B", both ends included. */
static int parse_blocks(const char *text, bool range, struct vhdx_dump_options *dump)
{
    uint64_t last;
    char *end;

    if (parse_block_no(text, &end, &dump->first_block) < 0)
        return -EINVAL;
    last = dump->first_block;
    if (range && *end == '-' && parse_block_no(end + 1, &end, &last) < 0)
        return -EINVAL;
    if (*end || last < dump->first_block || last == UINT64_MAX)
        return -EINVAL;
    dump->nr_blocks = last - dump->first_block + 1;
    return 0;
}

static int choose_parts(struct vhdx_dump_options *dump)
{
    const char *blocks = settings.blocks ? settings.blocks : settings.block;

    *dump = (struct vhdx_dump_options){.struct_bytes = sizeof *dump, .raw = settings.raw};
    dump->parts = (settings.headers ? (uint32_t)VHDX_DUMP_HEADERS : 0) |
                  (settings.regions ? (uint32_t)VHDX_DUMP_REGIONS : 0) |
                  (settings.metadata ? (uint32_t)VHDX_DUMP_METADATA : 0) |
                  (settings.log ? (uint32_t)VHDX_DUMP_LOG : 0) |
                  (settings.bat || blocks ? (uint32_t)VHDX_DUMP_BAT : 0);
    if (!dump->parts)
        dump->parts = VHDX_DUMP_ALL;
    dump->nr_blocks = settings.bat ? UINT64_MAX : DEFAULT_NR_BLOCKS;
    if (blocks && parse_blocks(blocks, settings.blocks != NULL, dump) < 0) {
        print_error(NULL,
                    settings.blocks ? "--blocks needs a range of block numbers such as 0-99, not '%s'; "
                                      "try 'vhdx dump --help'"
                                    : "--block needs a block number, not '%s'; try 'vhdx dump --help'",
                    blocks);
        return -EINVAL;
    }
    return 0;
}

/* ---- JSON ---- */

/* The document begins with the first thing that the library gives: a file that is no VHDX gives none. */
static struct document *begun(void *opaque)
{
    struct document *doc = opaque;

    if (doc->depth == 0)
        document_begin(doc, NULL, DOCUMENT_OBJECT);
    return doc;
}

static void json_sink_begin(void *opaque, const char *name, bool is_array)
{
    document_begin(begun(opaque), name, is_array ? DOCUMENT_ARRAY : DOCUMENT_OBJECT);
}

static void json_sink_end(void *opaque)
{
    document_end(opaque);
}

static void json_sink_number(void *opaque, const char *name, uint64_t value, enum vhdx_number_style style)
{
    (void)style; /* JSON knows one way */
    document_number(begun(opaque), name, value);
}

static void json_sink_text(void *opaque, const char *name, const char *value)
{
    document_text(begun(opaque), name, value);
}

static void json_sink_boolean(void *opaque, const char *name, bool value)
{
    document_boolean(begun(opaque), name, value);
}

static const struct vhdx_dump_sink json_sink = {
    json_sink_begin, json_sink_end, json_sink_number, json_sink_text, json_sink_boolean,
};

static int dump_structures(const char *name, const struct vhdx_dump_options *dump)
{
    struct document doc = {.out = stdout};
    struct tree tree = {.out = stdout};
    struct vhdx_open_options open_options;
    bool json = common.output == OUTPUT_JSON;

    open_options_fill(&open_options, open_flags(name, SOURCE_VHDX) | VHDX_OPEN_NO_PARENT);
    int code =
        vhdx_dump(name, &open_options, dump, json ? &json_sink : &tree_sink, json ? (void *)&doc : &tree);
    if (code < 0) {
        print_library_error(name, code);
        return EXIT_TROUBLE;
    }
    if (json)
        document_end(begun(&doc));
    return EXIT_OK;
}

/* ---- one metadata item ---- */

static void print_item_json(const char *text_id, const uint8_t *bytes, size_t nr_bytes)
{
    struct document doc = {.out = stdout};
    char *hex = malloc(2 * nr_bytes + 1);

    for (size_t i = 0; hex && i < nr_bytes; i++)
        sprintf(hex + 2 * i, "%02x", bytes[i]);
    if (hex)
        hex[2 * nr_bytes] = '\0';
    document_begin(&doc, NULL, DOCUMENT_OBJECT);
    document_text(&doc, "id", text_id);
    document_number(&doc, "length", nr_bytes);
    if (hex)
        document_text(&doc, "hex", hex);
    else
        document_null(&doc, "hex");
    document_end(&doc);
    free(hex);
}

static void print_item_hex(const uint8_t *bytes, size_t nr_bytes)
{
    enum { COLUMNS = 16 };

    for (size_t row = 0; row < nr_bytes; row += COLUMNS) {
        size_t n = nr_bytes - row < COLUMNS ? nr_bytes - row : COLUMNS;

        printf("%08zx ", row);
        for (size_t i = 0; i < COLUMNS; i++)
            printf(i < n ? " %02x" : "   ", i < n ? bytes[row + i] : 0u);
        fputs("  |", stdout);
        for (size_t i = 0; i < n; i++)
            putchar(bytes[row + i] >= 0x20 && bytes[row + i] < 0x7f ? bytes[row + i] : '.');
        puts("|");
    }
}

/* A GUID names an item in the users' name space and one in the format's; the users' is looked at first, since
 * the format's own items are in the dump anyway. */
static int64_t read_item(vhdx_disk *disk, const struct vhdx_guid *id, void *buf, size_t buf_bytes)
{
    int64_t length = vhdx_metadata_read(disk, 0, id, true, buf, buf_bytes);

    return length == -ENOENT ? vhdx_metadata_read(disk, 0, id, false, buf, buf_bytes) : length;
}

static int print_item(const char *name, vhdx_disk *disk, const struct vhdx_guid *id)
{
    char text_id[VHDX_GUID_TEXT_BYTES];
    int64_t length = read_item(disk, id, NULL, 0);
    uint8_t *bytes = length >= 0 ? malloc((size_t)length + 1) : NULL;

    vhdx_guid_format(id, text_id);
    if (bytes)
        length = read_item(disk, id, bytes, (size_t)length);
    if (length < 0) {
        print_library_error(name, (int)length);
    } else if (!bytes) {
        print_error(name, "out of memory for metadata item %s of %" PRId64 " bytes", text_id, length);
        length = -ENOMEM;
    } else if (common.output == OUTPUT_JSON) {
        print_item_json(text_id, bytes, (size_t)length);
    } else if (isatty(STDOUT_FILENO)) {
        print_item_hex(bytes, (size_t)length);
    } else {
        fwrite(bytes, 1, (size_t)length, stdout);
    }
    free(bytes);
    return length < 0 ? EXIT_TROUBLE : EXIT_OK;
}

static int dump_item(const char *name)
{
    struct vhdx_open_options open_options;
    struct vhdx_guid id;
    vhdx_disk *disk;

    if (vhdx_guid_parse(settings.item, &id) < 0) {
        print_error(NULL,
                    "--item needs a GUID such as 2fa54224-cd1b-4876-b211-5dbed83bf4b8, not '%s'; "
                    "try 'vhdx dump --help'",
                    settings.item);
        return EXIT_USAGE;
    }
    if (settings.raw) {
        print_error(NULL, "--item and --raw cannot be combined; try 'vhdx dump --help'");
        return EXIT_USAGE;
    }
    open_options_fill(&open_options, open_flags(name, SOURCE_VHDX) | VHDX_OPEN_NO_PARENT | VHDX_OPEN_UNVERIFIED);
    int code = vhdx_open(name, &open_options, &disk);
    if (code < 0) {
        print_library_error(name, code);
        return EXIT_TROUBLE;
    }
    int status = print_item(name, disk, &id);
    vhdx_close(disk);
    return status;
}

static int run(char **arguments)
{
    const char *name = arguments[0];
    struct vhdx_dump_options dump;

    if (choose_parts(&dump) < 0)
        return EXIT_USAGE;
    if (check_disk_name(name) < 0)
        return EXIT_TROUBLE;
    return settings.item ? dump_item(name) : dump_structures(name, &dump);
}

const struct command command_dump = {
    .name = "dump",
    .arguments = "IMAGE",
    .summary = "the on-disk structures, decoded",
    .description =
        "Show the decoded on-disk structures; all of them, but only the first 16 blocks of the block\n"
        "allocation table, unless options choose.  What cannot be decoded is shown as an error in\n"
        "its place.",
    .tables = {options, options_output, options_no_progress, options_images},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
