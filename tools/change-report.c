/* SPDX-License-Identifier: MIT */
#include "change-report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd.h"
#include "document.h"
#include "progress.h"

/* Of a file; devices, pipes and servers have none. */
static void put_actual_size(struct document *doc, const char *name)
{
    struct stat st;

    if (!is_nbd_uri(name) && stat(name, &st) == 0 && S_ISREG(st.st_mode))
        document_number(doc, "actual-size", (uint64_t)st.st_blocks * 512);
}

/* ---- copies ---- */

static bool get_info(const char *name, uint32_t flags, struct vhdx_info *info)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    vhdx_disk *disk;

    *info = (struct vhdx_info){.struct_bytes = sizeof *info};
    o.flags = flags | VHDX_OPEN_NO_PARENT | VHDX_OPEN_UNVERIFIED | VHDX_OPEN_FORCE_SHARE;
    bool known = vhdx_open(name, &o, &disk) == 0;
    if (known) {
        known = vhdx_get_info(disk, 0, info) == 0;
        vhdx_close(disk);
    }
    return known;
}

void report_copied(const char *source, const char *target, bool is_image, uint64_t size)
{
    static const char *const kinds[] = {[VHDX_DYNAMIC] = "dynamic", [VHDX_FIXED] = "fixed", [VHDX_DIFFERENCING] = "differencing"};
    struct document doc = {.out = stdout};
    struct vhdx_info info;
    struct stat st;

    document_begin(&doc, NULL, DOCUMENT_OBJECT);
    document_text(&doc, "source", source);
    document_text(&doc, "target", target);
    document_text(&doc, "format", is_image ? "vhdx" : "raw");
    if (is_image && get_info(target, 0, &info)) {
        document_text(&doc, "subformat", kinds[info.subformat]);
        size = info.virtual_size;
    } else if (!is_image && !is_nbd_uri(target) && stat(target, &st) == 0 && S_ISREG(st.st_mode)) {
        size = (uint64_t)st.st_size;
    }
    document_number(&doc, "virtual-size", size);
    document_number(&doc, "bytes", progress_done());
    put_actual_size(&doc, target);
    document_end(&doc);
}

/* ---- links ---- */

static int append(void *opaque, const char *key, const char *value)
{
    fprintf(opaque, "%s\n%s\n", key, value);
    return 0;
}

void link_state_read(const char *name, struct link_state *state)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_info info = {.struct_bytes = sizeof info};
    vhdx_disk *disk;
    size_t bytes;

    *state = (struct link_state){0};
    o.flags = VHDX_OPEN_NO_PARENT | VHDX_OPEN_UNVERIFIED | VHDX_OPEN_FORCE_SHARE;
    if (vhdx_open(name, &o, &disk) < 0)
        return;
    FILE *text = open_memstream(&state->text, &bytes);
    if (text) {
        if (vhdx_get_info(disk, 0, &info) == 0 && vhdx_parent_locator(disk, 0, append, text) == 0) {
            state->has_parent = info.has_parent;
            state->linkage = info.parent_linkage;
            state->disk_usage = info.disk_usage;
        }
        fclose(text);
    }
    vhdx_close(disk);
}

void link_state_free(struct link_state *state)
{
    free(state->text);
    state->text = NULL;
}

static void put_linkage(struct document *doc, const char *name, const struct link_state *state)
{
    char id[VHDX_GUID_TEXT_BYTES];

    vhdx_guid_format(&state->linkage, id);
    if (state->has_parent)
        document_text(doc, name, id);
    else
        document_null(doc, name);
}

void report_linked(const char *child, const char *parent, const struct link_state *before, bool is_dry_run, bool is_due)
{
    struct document doc = {.out = stdout};
    struct link_state after;

    link_state_read(child, &after);
    bool is_changed = !before->text || !after.text || strcmp(before->text, after.text) != 0;
    document_begin(&doc, NULL, DOCUMENT_OBJECT);
    document_text(&doc, "child", child);
    if (parent)
        document_text(&doc, "parent", parent);
    else
        document_null(&doc, "parent");
    put_linkage(&doc, "linkage-before", before);
    put_linkage(&doc, "linkage-after", &after);
    document_boolean(&doc, "changed", is_changed);
    document_boolean(&doc, "dry-run", is_dry_run);
    document_boolean(&doc, "would-change", is_dry_run ? is_due : is_changed);
    if (!parent) { /* so this is what was copied, as far as it takes space */
        document_number(&doc, "actual-size-before", before->disk_usage);
        document_number(&doc, "actual-size", after.disk_usage);
    }
    document_end(&doc);
    link_state_free(&after);
}
