/* SPDX-License-Identifier: MIT */
#include "ops/merge-files.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "image/image.h"
#include "ops/ops.h"

static int check_options(const struct vhdx_merge_options *o, const struct vhdx_merge_result *result)
{
    if (o->struct_bytes != sizeof *o)
        return fail(-EINVAL, "merge options: struct_bytes is %zu, not %zu; begin with VHDX_MERGE_OPTIONS_INIT", o->struct_bytes, sizeof *o);
    if (result && result->struct_bytes != sizeof *result)
        return fail(-EINVAL, "merge result: struct_bytes is %zu, not %zu", result->struct_bytes, sizeof *result);
    if (o->take_name && o->nr_children > 0)
        return fail(-EINVAL, "merge options: where the target takes the name, no child has to be led anywhere");
    if (o->open && (o->open->flags & ~(uint32_t)VHDX_OPEN_ALLOW_PARENT_PATH))
        return fail(-EINVAL, "merge options: of the flags for opening only VHDX_OPEN_ALLOW_PARENT_PATH makes sense");
    return 0;
}

static int prepare(struct merge_files *f)
{
    f->upper = calloc(f->nr_merged, sizeof *f->upper);
    f->paths = calloc(f->nr_merged, sizeof *f->paths);
    if (!f->upper || !f->paths)
        return fail_memory("a chain of images");
    for (uint32_t i = 0; i < f->nr_merged; i++) {
        f->upper[i] = f->chain[i].img;
        f->paths[i] = f->chain[i].path;
    }
    f->copy = (struct vhdx_copy_options)VHDX_COPY_OPTIONS_INIT;
    f->copy.nr_threads = f->options->nr_threads;
    f->copy.reflink = f->options->reflink;
    f->copy.progress = f->options->progress;
    f->copy.opaque = f->options->opaque;
    f->merge = (struct merge){
        .upper = f->upper, .paths = f->paths, .nr_upper = f->nr_merged, .target = f->target, .options = &f->copy};
    return merge_begin(&f->merge);
}

/* ---- telling ---- */

static void tell_files(const struct merge_files *f)
{
    const struct vhdx_merge_options *o = f->options;

    if (!o->file)
        return;
    for (uint32_t i = 0; i < f->nr_merged; i++)
        o->file(o->file_opaque, VHDX_MERGE_MERGED, f->chain[i].path);
    o->file(o->file_opaque, VHDX_MERGE_TARGET, f->chain[f->nr_merged].path);
    for (size_t i = 0; i < f->nr_children; i++)
        o->file(o->file_opaque, VHDX_MERGE_MOVED, f->children[i].path);
}

static int tell_cost(struct merge_files *f)
{
    struct merge_cost cost = {0};
    int r = 0;

    f->result.nr_merged = f->nr_merged;
    f->result.nr_moved = (uint32_t)f->nr_children;
    f->result.was_complete = merge_is_complete(&f->merge);
    if (!f->result.was_complete)
        r = merge_count(&f->merge, &cost);
    f->result.copy_bytes = cost.copy_bytes;
    f->result.zero_bytes = cost.zero_bytes;
    f->result.space_bytes = cost.space_bytes;
    return r;
}

/* ---- the call ---- */

static int work(struct merge_files *f)
{
    int r = merge_check_finish(f);

    if (r == 0)
        r = tell_cost(f);
    if (r < 0)
        return r;
    tell_files(f);
    if (f->options->dry_run)
        return 0;
    if (!f->result.was_complete)
        r = merge_run(&f->merge);
    return r < 0 ? r : merge_finish(f);
}

/* After a failure everything is closed as well as it can be; the first message counts. */
static int close_all(struct merge_files *f, int result)
{
    struct error_text text;

    error_save(&text);
    merge_done(&f->merge);
    int r = merge_close_target(f);
    for (uint32_t i = 0; f->chain && i <= f->nr_merged; i++) {
        int e = image_close(f->chain[i].img);
        r = r < 0 ? r : e;
        free(f->chain[i].path);
    }
    for (size_t i = 0; i < f->nr_children; i++) {
        image_close(f->children[i].img);
        free(f->children[i].path);
    }
    free(f->chain);
    free(f->children);
    free(f->upper);
    free(f->paths);
    if (result == 0)
        return r;
    error_restore(&text);
    return result;
}

/* A child that would lose its parent may be who uses it, and then it is not enough to wait. */
static int judge_locked(struct merge_files *f)
{
    struct error_text text;

    error_save(&text);
    int r = merge_find_relatives(f);
    if (r < 0)
        return r;
    error_restore(&text);
    return VHDX_E_LOCKED;
}

/* Who makes a child holds its parent's lock until the child has its name: so it comes before the chain is locked, and is seen, or
 * is refused. */
static int find_and_open(struct merge_files *f)
{
    int r = merge_find_chain(f);

    if (r == 0 && f->dirty)
        r = merge_find_relatives(f); /* before a log is brought into place: what is refused changes no file */
    if (r < 0)
        return r;
    r = merge_open_chain(f);
    if (r == VHDX_E_LOCKED)
        return judge_locked(f);
    if (r == 0)
        r = merge_find_relatives(f);
    return r < 0 ? r : merge_open_children(f);
}

int ops_merge(const char *path, const struct vhdx_merge_options *options, struct vhdx_merge_result *result)
{
    static const struct vhdx_merge_options defaults = VHDX_MERGE_OPTIONS_INIT;
    struct merge_files f = {.path = path, .options = options ? options : &defaults, .open = VHDX_OPEN_OPTIONS_INIT};
    int r = check_options(f.options, result);

    if (r == 0 && f.options->open)
        f.open = *f.options->open;
    if (r == 0)
        r = find_and_open(&f);
    if (r == 0)
        r = prepare(&f);
    if (r == 0)
        r = work(&f);
    if (result) {
        f.result.struct_bytes = sizeof *result;
        *result = f.result;
    }
    return close_all(&f, r);
}
