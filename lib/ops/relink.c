/* SPDX-License-Identifier: MIT */
#include "ops/relink.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf16.h"
#include "format/parent-locator.h"
#include "image/image.h"
#include "image/items.h"
#include "ops/create-child.h"

/* The locator as keys and values in UTF-8. */
struct pairs {
    char *texts[MAX_LOCATOR_PAIRS + 4][2]; /* owned */
    uint32_t nr;
};

static void pairs_free(struct pairs *p)
{
    for (uint32_t i = 0; i < p->nr; i++) {
        free(p->texts[i][0]);
        free(p->texts[i][1]);
    }
}

static char *decode(const uint8_t *item, uint32_t offset, uint16_t length)
{
    size_t bytes = UTF8_BYTES_FOR_UNITS(length / 2);
    char *text = malloc(bytes);

    if (text && locator_text(item, offset, length, text, bytes) < 0) { /* the item was checked */
        free(text);
        return NULL;
    }
    return text;
}

static int pairs_read(struct pairs *p, const uint8_t *item)
{
    p->nr = 0;
    for (uint32_t i = 0; i < locator_nr_pairs(item); i++) {
        struct locator_pair pair;
        locator_pair(item, i, &pair);
        char **text = p->texts[p->nr++];
        text[0] = decode(item, pair.key_offset, pair.key_length);
        text[1] = decode(item, pair.value_offset, pair.value_length);
        if (!text[0] || !text[1])
            return fail_memory("the parent locator");
    }
    return 0;
}

static int64_t pairs_find(const struct pairs *p, const char *key)
{
    for (uint32_t i = 0; i < p->nr; i++) {
        if (strcmp(p->texts[i][0], key) == 0) /* keys are case-sensitive (8.1) */
            return i;
    }
    return -1;
}

static void pairs_drop(struct pairs *p, const char *key)
{
    int64_t at = pairs_find(p, key);

    if (at < 0)
        return;
    free(p->texts[at][0]);
    free(p->texts[at][1]);
    p->nr--;
    memmove(p->texts[at], p->texts[at + 1], (p->nr - (size_t)at) * sizeof p->texts[0]);
}

static int pairs_set(struct pairs *p, const char *key, const char *value)
{
    int64_t at = pairs_find(p, key);
    char *copy = strdup(value);

    if (copy && at >= 0) {
        free(p->texts[at][1]);
        p->texts[at][1] = copy;
        return 0;
    }
    char *name = strdup(key);
    if (!copy || !name) {
        free(copy);
        free(name);
        return fail_memory("the parent locator");
    }
    p->texts[p->nr][0] = name;
    p->texts[p->nr++][1] = copy;
    return 0;
}

static int pairs_set_guid(struct pairs *p, const char *key, const guid *id)
{
    char text[VHDX_GUID_TEXT_BYTES], braced[VHDX_GUID_TEXT_BYTES + 2];

    guid_format(id, text);
    snprintf(braced, sizeof braced, "{%s}", text);
    return pairs_set(p, key, braced);
}

static int pairs_apply(struct pairs *p, const struct new_link *link)
{
    int r = pairs_set_guid(p, "parent_linkage", &link->linkage);

    if (r == 0)
        r = pairs_set_guid(p, "parent_linkage2", &link->linkage2); /* as Windows, also if it is zero: so it can be changed in place */
    if (r < 0 || !link->relative_path)
        return r;
    pairs_drop(p, "volume_path");
    pairs_drop(p, "absolute_win32_path");
    r = pairs_set(p, "relative_path", link->relative_path);
    if (r == 0 && link->windows_path)
        r = pairs_set(p, "absolute_win32_path", link->windows_path);
    return r;
}

/* The item as it is to be, to be freed. */
static int encode(const struct image *img, const struct new_link *link, uint8_t **item, uint32_t *length)
{
    struct pairs *p = calloc(1, sizeof *p);
    int r = p ? pairs_read(p, img->locator) : fail_memory("the parent locator");

    *item = NULL;
    if (r == 0)
        r = pairs_apply(p, link);
    if (r == 0) {
        *item = malloc(MAX_METADATA_ITEM_BYTES);
        *length = *item ? locator_encode((const char *const (*)[2])p->texts, p->nr, *item, MAX_METADATA_ITEM_BYTES) : 0;
        if (!*item)
            r = fail_memory("the parent locator");
        else if (*length == 0)
            r = fail(-EINVAL, "the parent cannot be recorded: its path is not UTF-8, or the locator would become too long");
    }
    if (r < 0) {
        free(*item);
        *item = NULL;
    }
    if (p)
        pairs_free(p);
    free(p);
    return r;
}

int relink_is_needed(const struct image *img, const struct new_link *link)
{
    uint8_t *item;
    uint32_t length;

    int r = encode(img, link, &item, &length);
    if (r == 0)
        r = length != img->locator_length || memcmp(item, img->locator, length) != 0;
    free(item);
    return r;
}

int relink(struct image *img, const struct new_link *link)
{
    uint8_t *item;
    uint32_t length;

    int r = encode(img, link, &item, &length);
    if (r == 0) {
        struct item_change change = item_change_known(METADATA_PARENT_LOCATOR, item, length);
        r = image_change_items(img, &change, 1);
    }
    free(item);
    return r < 0 ? fail_in(r, "parent locator") : 0;
}

int relink_if_needed(struct image *img, const struct new_link *link, int begin(struct image *img))
{
    int r = relink_is_needed(img, link);

    if (r <= 0)
        return r;
    r = begin(img);
    return r < 0 ? r : relink(img, link);
}

int link_path(const char *child_path, const char *parent_path, char **relative)
{
    char child[PATH_MAX], parent[PATH_MAX], path[PATH_MAX];

    *relative = NULL;
    if (!realpath(child_path, child))
        return fail_errno("cannot follow the path %s", child_path);
    if (!realpath(parent_path, parent))
        return fail_errno("cannot follow the path %s", parent_path);
    char *slash = strrchr(child, '/');
    slash[slash == child] = '\0';
    int r = child_relative_path(child, parent, path, sizeof path);
    if (r < 0)
        return r;
    *relative = strdup(path);
    return *relative ? 0 : fail_memory("a path");
}
