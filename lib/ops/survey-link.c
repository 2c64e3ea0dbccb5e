/* SPDX-License-Identifier: MIT */
/* Each image's parent: first where vhdx_open() looks, then by identity among all files that were looked at. */
#include "ops/survey.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/guid.h"
#include "base/math.h"
#include "disk/folder-names.h"
#include "disk/info.h"
#include "disk/parent-path.h"
#include "format/layout.h"

/* The search for one image's parent. */
struct link_search {
    struct vhdx_survey *s;
    size_t child;
    size_t found;      /* has the recorded identity */
    size_t other;      /* the first that has not */
    size_t unreadable; /* the first that cannot be read */
};

/* Images by DataWriteGuid. */
struct by_identity {
    struct vhdx_survey *s;
    size_t *order; /* numbers of images, sorted */
    size_t nr;
};

static const struct survey_image *image_at(const struct vhdx_survey *s, size_t index)
{
    return &s->images[index];
}

__attribute__((format(printf, 2, 3))) static int remark(struct survey_image *image, const char *format, ...)
{
    va_list args;

    free(image->remark);
    va_start(args, format);
    if (vasprintf(&image->remark, format, args) < 0)
        image->remark = NULL;
    va_end(args);
    return image->remark ? 0 : fail_memory("a message");
}

static bool accepts(const struct survey_image *child, const struct survey_image *parent)
{
    return parent->error == 0 && linkage_accepts(&child->info.parent_linkage, &child->info.parent_linkage2,
                                                 &parent->info.data_write_guid);
}

/* ---- where the image says ---- */

static int judge_candidate(void *opaque, int fd, const char *path)
{
    struct link_search *l = opaque;
    size_t index;

    int r = survey_file(l->s, fd, path, false, true, &index);
    if (r == 0)
        r = survey_report_progress(l->s);
    if (r < 0)
        return r;
    /* A merged image has its own identity as the second one that its parent may have, and may find itself under the parent's
     * name. */
    const struct vhdx_info *own = &image_at(l->s, l->child)->info;
    if (index == l->child && !guid_equal(&own->parent_linkage, &own->data_write_guid))
        return 0;
    if (accepts(image_at(l->s, l->child), image_at(l->s, index))) {
        l->found = index;
        return 1;
    }
    size_t *kind = image_at(l->s, index)->error ? &l->unreadable : &l->other;
    if (*kind == VHDX_NO_IMAGE)
        *kind = index;
    return 0;
}

/* ---- by identity ---- */

static int compare_identity(const void *a, const void *b, void *opaque)
{
    const struct vhdx_survey *s = opaque;
    const struct survey_image *x = image_at(s, *(const size_t *)a), *y = image_at(s, *(const size_t *)b);
    int r = memcmp(x->info.data_write_guid.bytes, y->info.data_write_guid.bytes, sizeof(guid));

    return r != 0 ? r : strcmp(x->path, y->path);
}

static int sort_by_identity(struct by_identity *all, struct vhdx_survey *s)
{
    *all = (struct by_identity){.s = s, .order = calloc(s->nr_images + 1, sizeof *all->order)};
    if (!all->order)
        return fail_memory("a list of images");
    for (size_t i = 0; i < s->nr_images; i++) {
        if (s->images[i].error == 0)
            all->order[all->nr++] = i;
    }
    qsort_r(all->order, all->nr, sizeof *all->order, compare_identity, s);
    return 0;
}

/* The first image with this identity, in the order of paths, that is not the child itself. */
static size_t find_identity(const struct by_identity *all, const guid *id, size_t child)
{
    size_t low = 0, high = all->nr;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (memcmp(image_at(all->s, all->order[middle])->info.data_write_guid.bytes, id->bytes, sizeof id->bytes) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < all->nr && all->order[low] == child)
        low++;
    bool there = low < all->nr && guid_equal(&image_at(all->s, all->order[low])->info.data_write_guid, id);
    return there ? all->order[low] : VHDX_NO_IMAGE;
}

/* What an interrupted merge changed needs the child; a copy from before, with the first identity, would do without. */
static size_t find_by_identity(const struct by_identity *all, size_t child)
{
    const struct vhdx_info *info = &image_at(all->s, child)->info;
    size_t found = guid_is_zero(&info->parent_linkage2) ? VHDX_NO_IMAGE : find_identity(all, &info->parent_linkage2, child);

    return found != VHDX_NO_IMAGE ? found : find_identity(all, &info->parent_linkage, child);
}

/* ---- what there is to say ---- */

/* Of a link that works. */
static int remark_on_found(struct survey_image *child, const struct survey_image *parent)
{
    if (child->info.logical_sector_size != parent->info.logical_sector_size) {
        child->link = VHDX_LINK_SECTORS;
        return remark(child,
                      "the parent %s has logical sectors of %" PRIu32 " bytes, the child of %" PRIu32 ": they do not belong together",
                      parent->path, parent->info.logical_sector_size, child->info.logical_sector_size);
    }
    if (linkage_is_merging(&child->info.parent_linkage, &child->info.parent_linkage2))
        return remark(child, "the image records two identities of its parent: a merge of it was interrupted. Running that again "
                      "completes it; until then the parent may be whole only under this image");
    if (child->info.virtual_size != parent->info.virtual_size)
        return remark(child, "the parent's disk has %" PRIu64 " bytes, the child's %" PRIu64 ": what the parent lacks reads as zeros",
                      parent->info.virtual_size, child->info.virtual_size);
    return 0;
}

static int judge_path(const struct vhdx_survey *s, struct survey_image *child, const struct survey_image *parent)
{
    if (!child->recorded[0])
        return 0;
    int there = parent_is_where_recorded(s->names, child->path, parent->path, child->locator, &parent->identity);
    child->relative_path_leads = there > 0;
    if (there == 0 && !child->remark)
        return remark(child, "the recorded relative path does not lead to the parent; 'vhdx rebase' records it anew");
    return there < 0 ? there : 0;
}

static const char *recorded_path(const struct survey_image *image)
{
    for (unsigned k = 0; k < NR_RECORDED_PATHS; k++) {
        if (image->recorded[k])
            return image->recorded[k];
    }
    return "(no path)";
}

/* Of a parent that was found elsewhere; what was said of it stays. */
static int remark_on_moved(struct survey_image *child, const struct survey_image *parent)
{
    char *before = child->remark;

    child->remark = NULL;
    int r = remark(child, "the parent is recorded as %s, but by its identity it is %s; 'vhdx rebase --parent' mends that%s%s",
                   recorded_path(child), parent->path, before ? "; " : "", before ? before : "");
    free(before);
    return r;
}

static int remark_on_changed(struct survey_image *child, const struct survey_image *other)
{
    bool same_disk = guid_equal(&child->info.disk_id, &other->info.disk_id);
    char wanted[VHDX_GUID_TEXT_BYTES], seen[VHDX_GUID_TEXT_BYTES];

    guid_format(&child->info.parent_linkage, wanted);
    guid_format(&other->info.data_write_guid, seen);
    return remark(child,
                  "mismatch in the identifiers of parent and child: the child was made on data write GUID %s, but %s has %s%s", wanted, other->path,
                  seen, same_disk ? ": it was written to since, or is another state of the same disk" : ": it is another disk");
}

static int remark_on_lost(struct survey_image *child, const struct parent_search *search)
{
    char wanted[VHDX_GUID_TEXT_BYTES];

    guid_format(&child->info.parent_linkage, wanted);
    switch (child->link) {
    case VHDX_LINK_UNREADABLE:
        errno = -search->open_error;
        return remark(child, "the parent, recorded as %s, cannot be opened: %s", recorded_path(child),
                      search->not_regular ? "it is no regular file" : strerror(errno));
    case VHDX_LINK_BLOCKED:
        return remark(child,
                      "the recorded path %s leads out of the child's folder and is not followed unasked; name its folder "
                      "with --parent-dir, or follow it with --allow-parent-path",
                      recorded_path(child));
    default:
        return remark(child,
                      "the parent, recorded as %s with data write GUID %s, is not here; look for it by that identity with "
                      "'vhdx rebase --find'",
                      recorded_path(child), wanted);
    }
}

/* ---- one link ---- */

static int search_where_recorded(struct link_search *l, const struct parent_policy *policy, struct parent_search *search)
{
    /* The list may move while candidates come in: nothing that points into it is kept. */
    char *path = strdup(image_at(l->s, l->child)->path);
    if (!path)
        return fail_memory("a path");
    struct parent_policy p = *policy;
    p.first_child = path;
    int r = parent_candidates(&p, path, image_at(l->s, l->child)->locator, judge_candidate, l, search);
    free(path);
    return r;
}

static int settle_found(struct vhdx_survey *s, size_t child, size_t found, bool is_moved)
{
    struct survey_image *c = &s->images[child];

    c->link = VHDX_LINK_OK;
    free(c->remark); /* that it is lost */
    c->remark = NULL;
    int r = remark_on_found(c, image_at(s, found));
    if (r == 0 && !is_moved)
        r = judge_path(s, c, image_at(s, found));
    *(c->link == VHDX_LINK_OK ? &c->parent : &c->instead) = found;
    return r;
}

static int settle_lost(const struct link_search *l, const struct parent_search *search)
{
    struct survey_image *c = &l->s->images[l->child];

    c->instead = l->other != VHDX_NO_IMAGE ? l->other : l->unreadable;
    if (l->other != VHDX_NO_IMAGE) {
        c->link = VHDX_LINK_CHANGED;
        return remark_on_changed(c, image_at(l->s, l->other));
    }
    if (l->unreadable != VHDX_NO_IMAGE) {
        const struct survey_image *u = image_at(l->s, l->unreadable);
        c->link = VHDX_LINK_UNREADABLE;
        return remark(c, "the parent %s cannot be read: %s", u->path, u->problem);
    }
    c->link = search->open_error || search->not_regular ? VHDX_LINK_UNREADABLE
              : search->blocked && !search->relative_followed ? VHDX_LINK_BLOCKED
                                                              : VHDX_LINK_MISSING;
    return remark_on_lost(c, search);
}

static int find_link(struct vhdx_survey *s, size_t child, const struct parent_policy *policy)
{
    struct link_search l = {
        .s = s, .child = child, .found = VHDX_NO_IMAGE, .other = VHDX_NO_IMAGE, .unreadable = VHDX_NO_IMAGE};
    struct parent_search search;

    int r = search_where_recorded(&l, policy, &search);
    if (r < 0)
        return r;
    return l.found != VHDX_NO_IMAGE ? settle_found(s, child, l.found, false) : settle_lost(&l, &search);
}

static bool is_lost(enum vhdx_link link)
{
    return link == VHDX_LINK_MISSING || link == VHDX_LINK_CHANGED || link == VHDX_LINK_BLOCKED || link == VHDX_LINK_UNREADABLE;
}

/* What was not found where it should be may lie among the others. */
static int find_moved(struct vhdx_survey *s)
{
    struct by_identity all;
    int r = sort_by_identity(&all, s);

    for (size_t i = 0; r == 0 && i < s->nr_images; i++) {
        struct survey_image *child = &s->images[i];
        size_t found = is_lost(child->link) ? find_by_identity(&all, i) : VHDX_NO_IMAGE;
        if (found == VHDX_NO_IMAGE)
            continue;
        r = settle_found(s, i, found, true);
        if (r == 0 && child->link == VHDX_LINK_OK) {
            child->link = VHDX_LINK_MOVED;
            r = remark_on_moved(child, image_at(s, found));
        }
    }
    free(all.order);
    return r;
}

/* ---- cycles and depth ---- */

/* Break every loop at the image where it is noticed.  Each image is walked once: state 0 new, 1 on the present path, 2 done. */
static int break_cycles(struct vhdx_survey *s)
{
    uint8_t *state = calloc(s->nr_images + 1, 1);
    int r = state ? 0 : fail_memory("a list of images");

    for (size_t start = 0; r == 0 && start < s->nr_images; start++) {
        size_t at = start, before = VHDX_NO_IMAGE;
        while (at != VHDX_NO_IMAGE && state[at] == 0) {
            state[at] = 1;
            before = at;
            at = s->images[at].parent;
        }
        if (at != VHDX_NO_IMAGE && state[at] == 1) {
            struct survey_image *child = &s->images[before];
            child->link = VHDX_LINK_CYCLE;
            child->instead = child->parent;
            child->parent = VHDX_NO_IMAGE;
            r = remark(child, "the chain of parents leads back to %s; its links are damaged", image_at(s, at)->path);
        }
        for (at = start; at != VHDX_NO_IMAGE && state[at] == 1; at = s->images[at].parent)
            state[at] = 2;
    }
    free(state);
    return r;
}

/* How many images are above this one, as far as anybody may count. */
static uint32_t count_above(const struct vhdx_survey *s, size_t index)
{
    uint32_t n = 0;

    for (size_t at = image_at(s, index)->parent; at != VHDX_NO_IMAGE && n < MAX_CHAIN_DEPTH; at = image_at(s, at)->parent)
        n++;
    return n;
}

static int break_deep_chains(struct vhdx_survey *s)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < s->nr_images; i++) {
        struct survey_image *child = &s->images[i];
        if (child->parent == VHDX_NO_IMAGE || count_above(s, i) < MAX_CHAIN_DEPTH)
            continue;
        child->link = VHDX_LINK_DEPTH;
        r = remark(child, "the chain above has %d images or more, and longer ones are refused", MAX_CHAIN_DEPTH);
    }
    return r;
}

/* Those whose parents are too many stay in the list, each the root of its own. */
static void cut_deep_chains(struct vhdx_survey *s)
{
    for (size_t i = 0; i < s->nr_images; i++) {
        struct survey_image *child = &s->images[i];
        if (child->link == VHDX_LINK_DEPTH) {
            child->instead = child->parent;
            child->parent = VHDX_NO_IMAGE;
        }
    }
}

int survey_link(struct vhdx_survey *s, const char *folder)
{
    const struct vhdx_open_options *o = s->options;
    const char **dirs = calloc(o->nr_parent_dirs + 1, sizeof *dirs);
    struct parent_policy policy = {.dirs = dirs, .allow_any = o->flags & VHDX_OPEN_ALLOW_PARENT_PATH};
    int r = dirs ? 0 : fail_memory("a list of folders");

    policy.names = s->names = folder_names_new(); /* without memory for it all works, but slower */

    for (size_t i = 0; r == 0 && i < o->nr_parent_dirs; i++)
        dirs[policy.nr_dirs++] = o->parent_dirs[i];
    if (dirs && folder)
        dirs[policy.nr_dirs++] = folder;
    for (size_t i = 0; r == 0 && i < s->nr_images; i++) {
        if (!s->images[i].locator)
            continue;
        r = find_link(s, i, &policy);
        if (r == 0)
            r = survey_report_progress(s);
    }
    free(dirs);
    if (r == 0)
        r = find_moved(s);
    folder_names_free(s->names);
    s->names = NULL;
    if (r == 0)
        r = break_cycles(s);
    if (r == 0)
        r = break_deep_chains(s);
    cut_deep_chains(s);
    return r;
}
