/* SPDX-License-Identifier: MIT */
#include "ops/half-merged.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/guid.h"
#include "disk/info.h"
#include "ops/ops.h"
#include "ops/survey.h"
#include "storage/storage.h"

static size_t find_image(const struct vhdx_survey *s, const struct storage_identity *id)
{
    for (size_t i = 0; i < s->nr_images; i++) {
        if (is_same_file(&s->images[i].identity, id))
            return i;
    }
    return VHDX_NO_IMAGE;
}

/* A child of target, which is not `known`, with the mark. */
static size_t merging_child(const struct vhdx_survey *s, size_t target, size_t known)
{
    for (size_t i = 0; i < s->nr_images; i++) {
        const struct survey_image *child = &s->images[i];
        if (i != known && child->parent == target && linkage_is_merging(&child->info.parent_linkage, &child->info.parent_linkage2))
            return i;
    }
    return VHDX_NO_IMAGE;
}

/* With all of the content the target has the identity of the uppermost merged image, which is the child or rests on it. */
static bool is_complete(const struct vhdx_survey *s, size_t target, size_t child)
{
    for (size_t i = 0; i < s->nr_images; i++) {
        if (i == target || s->images[i].error || !guid_equal(&s->images[i].info.data_write_guid, &s->images[target].info.data_write_guid))
            continue;
        for (size_t at = i; at != VHDX_NO_IMAGE; at = s->images[at].parent) {
            if (at == child)
                return true;
        }
    }
    return false;
}

int half_merged_refuse(const struct vhdx_survey *s, const struct storage_identity *image, bool also_complete)
{
    size_t known = VHDX_NO_IMAGE;

    for (size_t at = find_image(s, image); at != VHDX_NO_IMAGE; known = at, at = s->images[at].parent) {
        size_t child = merging_child(s, at, known);
        if (child != VHDX_NO_IMAGE && (also_complete || !is_complete(s, at, child)))
            return fail(VHDX_E_CHAIN,
                        "a merge of %s into %s was begun and did not come to its end, so the latter is not the state any more that it was; "
                        "complete it first with the same command, 'vhdx snapshot --delete' or 'vhdx merge --delete'",
                        s->images[child].path, s->images[at].path);
    }
    return 0;
}

int half_merged_refuse_parent(const char *path, const struct storage_identity *image, const struct vhdx_open_options *open)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    char *real = realpath(path, NULL); /* its children lie beside the file, not beside a link to it */
    struct vhdx_survey *s;

    if (!real)
        return fail_errno("cannot follow the path %s", path);
    o.flags = open ? open->flags & VHDX_OPEN_ALLOW_PARENT_PATH : 0;
    int r = survey_likely_relatives(real, &o, &s);
    free(real);
    if (r < 0)
        return r;
    r = half_merged_refuse(s, image, false);
    ops_survey_free(s);
    return r;
}
