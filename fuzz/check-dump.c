/* SPDX-License-Identifier: MIT */
#include "check-dump.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "by-name.h"
#include "require.h"
#include "vhdx.h"

static bool is_verdict(int code)
{
    return code <= VHDX_E_NOT_VHDX && code >= VHDX_E_LIMIT;
}

/* ---- check ---- */

struct findings {
    uint64_t nr[VHDX_ERROR + 1];
};

static void see_finding(void *opaque, const struct vhdx_finding *f)
{
    struct findings *seen = opaque;

    REQUIRE(f->rule >= 1 && f->rule <= 80 && f->severity <= VHDX_ERROR, "rule %u, severity %d", f->rule,
            f->severity);
    REQUIRE(f->message[0] != '\0' && !strchr(f->message, '\n'), "message of rule %u: %s", f->rule,
            f->message);
    seen->nr[f->severity]++;
}

static int ignore_extent(void *opaque, const struct vhdx_extent *e)
{
    (void)opaque, (void)e;
    return 0;
}

/* Does the image open, and can its tables be walked?  Its parents are not asked. */
static int use_alone(char message[256])
{
    struct vhdx_open_options options = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_disk *disk;

    options.flags = VHDX_OPEN_NO_PARENT;
    int r = vhdx_open(CHILD_PATH, &options, &disk);
    if (r == 0)
        r = vhdx_map(disk, 0, vhdx_size(disk), ignore_extent, NULL);
    snprintf(message, 256, "%s", vhdx_error_message());
    vhdx_close(disk);
    return r == VHDX_E_PARENT_NOT_FOUND ? 0 : r;
}

void try_check(const struct description *d)
{
    struct vhdx_check_result result = {.struct_bytes = sizeof result};
    struct vhdx_open_options options = VHDX_OPEN_OPTIONS_INIT;
    struct findings seen = {0};
    char message[256];

    options.flags = d->flags & DESCRIBE_TWO_LAYERS ? 0 : VHDX_OPEN_NO_PARENT;
    int r = vhdx_check(CHILD_PATH, &options, see_finding, &seen, &result, NULL, NULL);
    REQUIRE(d->child->nr_open == 0 && d->parent->nr_open == 0, "the check left something open");
    if (d->child->fault_at > 0)
        return;
    REQUIRE(r == 0 || r == VHDX_E_NOT_VHDX || r == VHDX_E_LIMIT, "%d: %s", r, error_message());
    if (r < 0)
        return;
    REQUIRE(!result.usable || result.nr_errors == 0, "usable in spite of %" PRIu64 " errors",
            result.nr_errors);
    REQUIRE(seen.nr[VHDX_ERROR] <= result.nr_errors && (seen.nr[VHDX_ERROR] > 0) == (result.nr_errors > 0),
            "%" PRIu64 " errors counted, %" PRIu64 " told", result.nr_errors, seen.nr[VHDX_ERROR]);
    REQUIRE(result.allocated_blocks <= result.total_blocks, "%" PRIu64 " of %" PRIu64 " blocks",
            result.allocated_blocks, result.total_blocks);
    r = use_alone(message);
    REQUIRE(!result.usable || r == 0, "called usable, but %d: %s", r, message);
}

/* ---- dump ---- */

struct tree {
    unsigned depth;
    bool in_array[16];
};

static void see_name(const struct tree *t, const char *name)
{
    REQUIRE(t->depth == 0 || (name == NULL) == t->in_array[t->depth - 1], "name %s in an %s",
            name ? name : "(none)", t->depth > 0 && t->in_array[t->depth - 1] ? "array" : "object");
}

static void see_begin(void *opaque, const char *name, bool is_array)
{
    struct tree *t = opaque;

    see_name(t, name);
    REQUIRE(t->depth < ARRAY_LENGTH(t->in_array), "deeper than %u", t->depth);
    t->in_array[t->depth++] = is_array;
}

static void see_end(void *opaque)
{
    struct tree *t = opaque;

    REQUIRE(t->depth > 0, "more ends than beginnings");
    t->depth--;
}

static void see_number(void *opaque, const char *name, uint64_t value, enum vhdx_number_style style)
{
    (void)value;
    see_name(opaque, name);
    REQUIRE(style <= VHDX_BYTES, "style %d", style);
}

static void see_text(void *opaque, const char *name, const char *value)
{
    see_name(opaque, name);
    for (const char *p = value; *p; p++)
        REQUIRE((unsigned char)*p >= 0x20, "byte 0x%02x in %s", (unsigned char)*p, name ? name : "a text");
}

static void see_boolean(void *opaque, const char *name, bool value)
{
    (void)value;
    see_name(opaque, name);
}

void try_dump(const struct description *d)
{
    static const struct vhdx_dump_sink sink = {see_begin, see_end, see_number, see_text, see_boolean};
    struct vhdx_dump_options options = {.struct_bytes = sizeof options,
                                        .parts = VHDX_DUMP_ALL,
                                        .raw = d->flags & DESCRIBE_UNVERIFIED,
                                        .nr_blocks = 300};
    struct tree tree = {0};

    int r = vhdx_dump(CHILD_PATH, NULL, &options, &sink, &tree);
    REQUIRE(d->child->nr_open == 0, "the dump left something open");
    REQUIRE(r < 0 || tree.depth == 0, "%u ends are missing", tree.depth);
    REQUIRE(d->child->fault_at > 0 || r == 0 || is_verdict(r), "%d: %s", r, error_message());
}
