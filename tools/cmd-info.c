/* SPDX-License-Identifier: MIT */
/* vhdx info: what an image is.
 *
 * Also for images that cannot be read: without its parents an image is still described, and so is, as far as
 * possible, a damaged one. */
#include "cmd.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "document.h"
#include "output.h"
#include "size.h"

static struct {
    int chain;
} settings;

static const struct option options[] = {
    {0, "chain", OPTION_FLAG, &settings.chain, NULL, "describe the whole chain, child first"},
    {0},
};

static const char *const subformat_names[] = {"fixed", "dynamic", "differencing", "raw"};

/* By the state's number in the block allocation table. */
static const char *const block_state_names[VHDX_NR_BLOCK_STATES] = {
    "not-present", "undefined",  "zero",          "unmapped",
    "reserved-4",  "reserved-5", "fully-present", "partially-present",
};

/* What was opened, and what stood in the way. */
struct subject {
    vhdx_disk *disk;
    char *backing_problem; /* why the last image's parent is left out; NULL: it is not */
    char *damage;          /* why the image cannot be read; NULL: it can */
};

/* One image of the chain. */
struct facts {
    const char *filename;
    struct vhdx_info info;
    uint64_t blocks[VHDX_NR_BLOCK_STATES];
    bool blocks_known;
    char *backing_filename;            /* as recorded; NULL: no parent, or no path */
    const char *full_backing_filename; /* as found; NULL: not found */
};

/* ---- opening ---- */

static int open_with(const char *name, uint32_t flags, vhdx_disk **disk)
{
    struct vhdx_open_options open_options;

    open_options_fill(&open_options, flags | open_flags(name, common.source_format));
    return vhdx_open(name, &open_options, disk);
}

/* Open with as much as works: with the parents up to a broken link, without judging the tables.  If nothing works the
 * error is reported and returned. */
static int open_subject(const char *name, struct subject *subject)
{
    int code = open_with(name, common.source_format == SOURCE_RAW ? 0 : VHDX_OPEN_BROKEN_CHAIN, &subject->disk);
    const char *problem;

    if (code == 0) {
        if (vhdx_chain_problem(subject->disk, &problem) < 0)
            subject->backing_problem = strdup(problem ? problem : "out of memory");
        return 0;
    }
    if (common.source_format == SOURCE_RAW) {
        print_library_error(name, code);
        return code;
    }
    char *first_message = strdup(library_message(code));
    int alone = open_with(name, VHDX_OPEN_NO_PARENT, &subject->disk);
    if (alone == 0) { /* the options are what is wrong */
        print_image_error(name, first_message ? first_message : vhdx_strerror(code));
        free(first_message);
        return code;
    }
    free(first_message);
    subject->damage = strdup(library_message(alone));
    if (open_with(name, VHDX_OPEN_NO_PARENT | VHDX_OPEN_UNVERIFIED, &subject->disk) == 0)
        return 0;
    print_open_error(name, common.source_format, alone, subject->damage);
    return alone;
}

static void close_subject(struct subject *subject)
{
    vhdx_close(subject->disk);
    free(subject->backing_problem);
    free(subject->damage);
}

/* ---- gathering ---- */

/* Keep the path that says most to people here: the relative one, else an absolute one. */
static int keep_path(void *opaque, const char *key, const char *value)
{
    char **path = opaque;
    bool relative = strcmp(key, "relative_path") == 0;

    if (!relative && (*path || (strcmp(key, "absolute_win32_path") != 0 && strcmp(key, "volume_path") != 0)))
        return 0;
    free(*path);
    *path = strdup(value);
    return 0;
}

static int gather(vhdx_disk *disk, uint32_t depth, struct facts *facts)
{
    *facts =
        (struct facts){.filename = vhdx_image_path(disk, depth), .info.struct_bytes = sizeof facts->info};
    int code = vhdx_get_info(disk, depth, &facts->info);
    if (code < 0) {
        print_library_error(facts->filename, code);
        return code;
    }
    if (facts->info.has_parent) {
        vhdx_parent_locator(disk, depth, keep_path, &facts->backing_filename);
        facts->full_backing_filename = vhdx_image_path(disk, depth + 1);
    }
    if (facts->info.subformat == VHDX_RAW)
        return 0;
    code = vhdx_count_blocks(disk, depth, facts->blocks);
    if (code < 0)
        print_library_error(facts->filename, code);
    facts->blocks_known = code == 0;
    return code;
}

/* ---- printing for people ---- */

static void field_size(const char *label, uint64_t bytes)
{
    char text[SIZE_TEXT_BYTES];

    put_field(label, "%s", size_full(bytes, text));
}

static void field_guid(const char *label, const struct vhdx_guid *guid)
{
    char text[VHDX_GUID_TEXT_BYTES];

    vhdx_guid_format(guid, text);
    put_field(label, "%s", text);
}

static bool guid_is_zero(const struct vhdx_guid *guid)
{
    static const struct vhdx_guid zero;

    return memcmp(guid->bytes, zero.bytes, sizeof zero.bytes) == 0;
}

static void field_blocks(const uint64_t blocks[VHDX_NR_BLOCK_STATES])
{
    char text[512] = "";
    uint64_t total = 0;
    size_t n = 0;

    for (int state = 0; state < VHDX_NR_BLOCK_STATES; state++) {
        total += blocks[state];
        if (blocks[state] && n < sizeof text)
            n += (size_t)snprintf(text + n, sizeof text - n, "%s%" PRIu64 " %s", n ? ", " : "", blocks[state],
                                  block_state_names[state]);
    }
    put_field("blocks", "%" PRIu64 "%s%s", total, n ? ": " : "", text);
}

static int field_locator(void *opaque, const char *key, const char *value)
{
    (void)opaque;
    put_field("  locator", "%s = %s", key, value);
    return 0;
}

static void print_parent(vhdx_disk *disk, uint32_t depth, const struct facts *facts)
{
    if (facts->full_backing_filename)
        put_field("parent", "%s", facts->full_backing_filename);
    else
        put_field("parent", "not opened%s%s", facts->backing_filename ? "; recorded as " : "",
                  facts->backing_filename ? facts->backing_filename : "");
    field_guid("  linkage", &facts->info.parent_linkage);
    if (!guid_is_zero(&facts->info.parent_linkage2))
        field_guid("  linkage 2", &facts->info.parent_linkage2);
    vhdx_parent_locator(disk, depth, field_locator, NULL);
}

static void print_human(vhdx_disk *disk, uint32_t depth, const struct facts *facts)
{
    const struct vhdx_info *info = &facts->info;
    char size[SIZE_TEXT_BYTES];

    put_field("image", "%s", facts->filename);
    if (info->subformat == VHDX_RAW)
        put_field("format", "raw");
    else
        put_field("format", "vhdx, %s", subformat_names[info->subformat]);
    field_size("virtual size", info->virtual_size);
    field_size("file size", info->file_size);
    if (info->disk_usage != VHDX_USAGE_UNKNOWN)
        field_size("disk usage", info->disk_usage);
    if (info->subformat == VHDX_RAW)
        return;
    field_size("block size", info->block_size);
    field_size("logical sector", info->logical_sector_size);
    field_size("physical sector", info->physical_sector_size);
    put_field("log", "%s, %s", info->log_dirty ? "dirty (replayed in memory for reading)" : "clean",
              size_full(info->log_size, size));
    field_guid("disk id", &info->disk_id);
    field_guid("file write guid", &info->file_write_guid);
    field_guid("data write guid", &info->data_write_guid);
    put_field("creator", "%s", info->creator[0] ? info->creator : "not recorded");
    if (facts->blocks_known)
        field_blocks(facts->blocks);
    if (info->has_parent)
        print_parent(disk, depth, facts);
}

/* ---- printing JSON ---- */

static void document_guid(struct document *doc, const char *name, const struct vhdx_guid *guid)
{
    char text[VHDX_GUID_TEXT_BYTES];

    vhdx_guid_format(guid, text);
    document_text(doc, name, text);
}

static void print_blocks(struct document *doc, const uint64_t blocks[VHDX_NR_BLOCK_STATES])
{
    document_begin(doc, "blocks", DOCUMENT_OBJECT);
    for (int state = 0; state < VHDX_NR_BLOCK_STATES; state++) {
        if (blocks[state] || strncmp(block_state_names[state], "reserved", 8) != 0)
            document_number(doc, block_state_names[state], blocks[state]);
    }
    document_end(doc);
}

static int print_locator_entry(void *opaque, const char *key, const char *value)
{
    document_text(opaque, key, value);
    return 0;
}

static void print_specific(struct document *doc, vhdx_disk *disk, uint32_t depth, const struct facts *facts)
{
    const struct vhdx_info *info = &facts->info;

    document_begin(doc, "format-specific", DOCUMENT_OBJECT);
    document_text(doc, "type", "vhdx");
    document_begin(doc, "data", DOCUMENT_OBJECT);
    document_text(doc, "subformat", subformat_names[info->subformat]);
    document_number(doc, "block-size", info->block_size);
    document_number(doc, "logical-sector-size", info->logical_sector_size);
    document_number(doc, "physical-sector-size", info->physical_sector_size);
    document_number(doc, "log-size", info->log_size);
    document_guid(doc, "disk-id", &info->disk_id);
    document_guid(doc, "file-write-guid", &info->file_write_guid);
    document_guid(doc, "data-write-guid", &info->data_write_guid);
    document_text(doc, "creator", info->creator);
    document_number(doc, "file-size", info->file_size);
    if (facts->blocks_known)
        print_blocks(doc, facts->blocks);
    if (info->has_parent) {
        document_guid(doc, "parent-linkage", &info->parent_linkage);
        if (!guid_is_zero(&info->parent_linkage2))
            document_guid(doc, "parent-linkage2", &info->parent_linkage2);
        document_begin(doc, "parent-locator", DOCUMENT_OBJECT);
        vhdx_parent_locator(disk, depth, print_locator_entry, doc);
        document_end(doc);
    }
    document_end(doc);
    document_end(doc);
}

static void print_json(struct document *doc, const struct subject *subject, uint32_t depth,
                       const struct facts *facts)
{
    const struct vhdx_info *info = &facts->info;

    document_begin(doc, NULL, DOCUMENT_OBJECT);
    document_text(doc, "filename", facts->filename);
    document_text(doc, "format", info->subformat == VHDX_RAW ? "raw" : "vhdx");
    document_number(doc, "virtual-size", info->virtual_size);
    if (info->disk_usage != VHDX_USAGE_UNKNOWN)
        document_number(doc, "actual-size", info->disk_usage);
    document_boolean(doc, "dirty-flag", info->log_dirty);
    if (facts->backing_filename)
        document_text(doc, "backing-filename", facts->backing_filename);
    if (facts->full_backing_filename)
        document_text(doc, "full-backing-filename", facts->full_backing_filename);
    if (subject->backing_problem && (!settings.chain || depth + 1 == vhdx_chain_length(subject->disk)))
        document_text(doc, "backing-problem", subject->backing_problem);
    if (subject->damage)
        document_text(doc, "problem", subject->damage);
    if (info->subformat != VHDX_RAW)
        print_specific(doc, subject->disk, depth, facts);
    document_end(doc);
}

/* ---- the command ---- */

static int print_image(struct document *doc, const struct subject *subject, uint32_t depth)
{
    struct facts facts;
    int code = gather(subject->disk, depth, &facts);

    if (common.output == OUTPUT_JSON) {
        print_json(doc, subject, depth, &facts);
    } else {
        if (depth > 0)
            putchar('\n');
        print_human(subject->disk, depth, &facts);
    }
    free(facts.backing_filename);
    return code;
}

static int run(char **arguments)
{
    const char *name = arguments[0];
    struct subject subject = {0};
    struct document doc = {.out = stdout};
    int status = EXIT_OK;

    if (check_disk_name(name) < 0)
        return EXIT_TROUBLE;
    if (open_subject(name, &subject) < 0) {
        close_subject(&subject);
        return EXIT_TROUBLE;
    }
    bool array = settings.chain && common.output == OUTPUT_JSON;
    uint32_t nr_images = settings.chain ? vhdx_chain_length(subject.disk) : 1;
    if (array)
        document_begin(&doc, NULL, DOCUMENT_ARRAY);
    for (uint32_t depth = 0; depth < nr_images; depth++) {
        if (print_image(&doc, &subject, depth) < 0)
            status = EXIT_TROUBLE;
    }
    if (array)
        document_end(&doc);

    if (subject.backing_problem) {
        bool alone = vhdx_chain_length(subject.disk) == 1;
        print_warning(name, "%s: %s", alone ? "described without its parents" : "the chain is broken", subject.backing_problem);
        if (settings.chain) /* the whole chain was asked for, and this was not all of it */
            status = EXIT_TROUBLE;
    }
    if (subject.damage) {
        print_image_error(name, subject.damage);
        status = EXIT_TROUBLE;
    }
    close_subject(&subject);
    return status;
}

const struct command command_info = {
    .name = "info",
    .arguments = "IMAGE",
    .summary = "what an image is: type, sizes, identities, block states, log, parent",
    .description = "Show what an image is: its type, sizes, GUIDs, creator, block states, log and parent.\n"
                   "An image whose parent is missing is described too, and a damaged one as far as possible.",
    .tables = {options, options_source_format, options_output, options_no_progress, options_images},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
