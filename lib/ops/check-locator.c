/* SPDX-License-Identifier: MIT */
/* Rules 45 to 50: what the image itself says of its parent (format sections 7.4 and 8.1). */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/utf16.h"
#include "disk/info.h"
#include "format/parent-locator.h"
#include "ops/check.h"

enum { GUID_TEXT_UNITS = 38 };

/* Rule 49.  Zero, as Windows writes it, is as good as absent; and so is what a finished merge leaves (9.10 step 9). */
static void judge_linkage2(struct check *c, const uint8_t *item, uint64_t at)
{
    char value[UTF8_BYTES_FOR_UNITS(GUID_TEXT_UNITS)];
    struct locator_pair pair;
    guid g, linkage, linkage2;

    locator_linkage(item, &linkage, &linkage2);
    if (!locator_find(item, "parent_linkage2", &pair))
        return;
    if (pair.value_length > 2 * GUID_TEXT_UNITS ||
        locator_text(item, pair.value_offset, pair.value_length, value, sizeof value) < 0 ||
        guid_parse(value, &g) < 0)
        report(c, RULE_LINKAGE_2, at + pair.value_offset,
               "parent locator at 0x%" PRIx64 ": parent_linkage2 is not a GUID", at);
    else if (!guid_is_zero(&g) && !guid_equal(&linkage, &linkage_merged))
        report_as(c, RULE_LINKAGE_2, VHDX_WARNING, false, at + pair.value_offset,
                  "parent locator at 0x%" PRIx64
                  ": parent_linkage2 is %s: was a merge into the parent interrupted?",
                  at, value);
}

/* Rule 50.  Without a path the user can still name the parent. */
static void judge_paths(struct check *c, const uint8_t *item, uint64_t at)
{
    static const char *const keys[] = {"relative_path", "volume_path", "absolute_win32_path"};
    bool named = c->options && c->options->parent;
    struct locator_pair pair;

    for (unsigned i = 0; i < ARRAY_LENGTH(keys); i++) {
        if (locator_find(item, keys[i], &pair))
            return;
    }
    report_as(c, RULE_PATH_KEY, named ? VHDX_WARNING : VHDX_ERROR, false, at,
              "parent locator at 0x%" PRIx64 ": it holds no path, so the parent must be named by the user",
              at);
}

static bool judge_item(struct check *c, const uint8_t *item, uint32_t length, uint64_t at)
{
    int r = locator_check_structure(item, length, at);

    if (r < 0) {
        report_failure(c, r == VHDX_E_UNSUPPORTED ? RULE_LOCATOR_TYPE : RULE_LOCATOR, at);
        return false;
    }
    r = locator_check(item, length, at);
    if (r < 0)
        report_failure(c, RULE_LINKAGE, at);
    judge_linkage2(c, item, at);
    judge_paths(c, item, at);
    return r == 0;
}

/* Its place was judged with the table. */
static int load_item(struct check *c, uint64_t at, uint8_t **item)
{
    *item = malloc(c->locator_entry.length);
    if (!*item)
        return fail_memory("the parent locator");
    return file_view_pread(&c->view, *item, c->locator_entry.length, at);
}

int check_locator(struct check *c)
{
    uint64_t at = c->metadata.file_offset + c->locator_entry.offset;
    const struct metadata_entry *e = c->has_locator_entry ? &c->locator_entry : NULL;
    uint8_t *item = NULL;

    if (!c->has_value[METADATA_FILE_PARAMETERS])
        return 0;
    if (!(c->values.parameter_flags & PARAMETER_HAS_PARENT)) {
        if (e)
            report_as(c, RULE_LOCATOR_PRESENT, VHDX_WARNING, false, at,
                      "parent locator at 0x%" PRIx64
                      ": the image does not say that it has a parent; the locator is ignored",
                      at);
        return 0;
    }
    if (!e || e->length == 0) {
        report(c, RULE_LOCATOR_PRESENT, c->metadata.file_offset,
               "metadata table at 0x%" PRIx64
               ": the image says that it has a parent, but has no parent locator",
               c->metadata.file_offset);
        return 0;
    }
    if (e->length > MAX_METADATA_ITEM_BYTES || !range_fits(e->offset, e->length, c->metadata.length))
        return 0; /* told with the table */
    int r = load_item(c, at, &item);
    if (r == 0 && judge_item(c, item, e->length, at)) {
        c->locator = item;
        item = NULL;
    }
    free(item);
    return r;
}
