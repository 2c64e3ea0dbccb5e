/* SPDX-License-Identifier: MIT */
/* What belongs to what was asked for, in the order of a tree. */
#include "ops/survey.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* ---- relatives ---- */

/* Union-find: images that are linked, even by a broken link, are one group. */
static size_t group_of(size_t *groups, size_t i)
{
    while (groups[i] != i)
        i = groups[i] = groups[groups[i]];
    return i;
}

static void unite(size_t *groups, size_t a, size_t b)
{
    if (b != VHDX_NO_IMAGE)
        groups[group_of(groups, a)] = group_of(groups, b);
}

/* keep[group]: somebody in it was asked for. */
static int find_relatives(struct vhdx_survey *s, size_t **groups, bool **keep)
{
    *groups = calloc(s->nr_images + 1, sizeof **groups);
    *keep = calloc(s->nr_images + 1, sizeof **keep);
    if (!*groups || !*keep)
        return fail_memory("a list of images");
    for (size_t i = 0; i < s->nr_images; i++)
        (*groups)[i] = i;
    for (size_t i = 0; i < s->nr_images; i++) {
        unite(*groups, i, s->images[i].parent);
        unite(*groups, i, s->images[i].instead);
    }
    for (size_t i = 0; i < s->nr_images; i++) {
        if (s->images[i].wanted)
            (*keep)[group_of(*groups, i)] = true;
    }
    return 0;
}

/* ---- order ---- */

/* An image's place: what stands above it, then its name among its brothers.  Compared root first, by walking up to the same
 * depth. */
static uint32_t depth_of(const struct vhdx_survey *s, size_t i)
{
    uint32_t depth = 0;

    while (s->images[i].parent != VHDX_NO_IMAGE) {
        i = s->images[i].parent;
        depth++;
    }
    return depth;
}

static int compare_places(const void *pa, const void *pb, void *opaque)
{
    const struct vhdx_survey *s = opaque;
    size_t a = *(const size_t *)pa, b = *(const size_t *)pb;
    uint32_t depth_a = s->images[a].depth, depth_b = s->images[b].depth;
    int shorter_first = depth_a < depth_b ? -1 : depth_a > depth_b;

    for (; depth_a > depth_b; depth_a--)
        a = s->images[a].parent;
    for (; depth_b > depth_a; depth_b--)
        b = s->images[b].parent;
    if (a == b)
        return shorter_first; /* one is above the other */
    while (s->images[a].parent != s->images[b].parent) {
        a = s->images[a].parent;
        b = s->images[b].parent;
    }
    return strcmp(s->images[a].path, s->images[b].path);
}

static size_t renumber(const size_t *new_index, size_t old)
{
    return old == VHDX_NO_IMAGE ? VHDX_NO_IMAGE : new_index[old];
}

/* order: old numbers, in the new order, nr of them; the others go. */
static int put_in_order(struct vhdx_survey *s, const size_t *order, size_t nr)
{
    struct survey_image *images = calloc(nr + 1, sizeof *images);
    size_t *new_index = calloc(s->nr_images + 1, sizeof *new_index);

    if (!images || !new_index) {
        free(images);
        free(new_index);
        return fail_memory("a list of images");
    }
    for (size_t i = 0; i < s->nr_images; i++)
        new_index[i] = VHDX_NO_IMAGE;
    for (size_t i = 0; i < nr; i++)
        new_index[order[i]] = i;
    for (size_t i = 0; i < s->nr_images; i++) {
        struct survey_image *image = &s->images[i];
        image->parent = renumber(new_index, image->parent);
        image->instead = renumber(new_index, image->instead);
        if (new_index[i] == VHDX_NO_IMAGE)
            survey_image_free(image);
        else
            images[new_index[i]] = *image;
    }
    free(new_index);
    free(s->images);
    s->images = images;
    s->nr_images = nr;
    s->capacity = nr + 1;
    return 0;
}

int survey_arrange(struct vhdx_survey *s)
{
    size_t *groups = NULL, *order = calloc(s->nr_images + 1, sizeof *order), nr = 0;
    bool *keep = NULL;
    int r = order ? find_relatives(s, &groups, &keep) : fail_memory("a list of images");

    for (size_t i = 0; r == 0 && i < s->nr_images; i++) {
        s->images[i].depth = depth_of(s, i);
        if (s->keeps_all || keep[group_of(groups, i)] || (s->flags & VHDX_SURVEY_UNREADABLE && survey_is_unreadable(&s->images[i])))
            order[nr++] = i;
    }
    if (r == 0) {
        qsort_r(order, nr, sizeof *order, compare_places, s);
        r = put_in_order(s, order, nr);
    }
    free(groups);
    free(keep);
    free(order);
    return r;
}
