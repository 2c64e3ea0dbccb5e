/* SPDX-License-Identifier: MIT */
#include "ops/check.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "ops/ops.h"

/* The order that section 12 asks for; what the image says of its parent goes with the metadata. */
static int (*const phases[])(struct check *c) = {
    check_identifier, check_headers, check_log,   check_regions, check_metadata,
    check_locator,    check_bat,     check_space, check_chain,
};

static void check_free(struct check *c)
{
    check_space_free(c);
    free(c->fixed);
    free(c->locator);
    file_view_close(&c->view);
    free(c);
}

static int run(struct check *c)
{
    int r = 0;

    c->result.usable = true;
    for (size_t i = 0; r == 0 && i < ARRAY_LENGTH(phases); i++) {
        r = phases[i](c);
        report_held_back(c);
    }
    return r;
}

int ops_check(const char *path, const struct vhdx_open_options *options, vhdx_finding_fn *fn, void *opaque,
              struct vhdx_check_result *result, vhdx_progress_fn *progress, void *progress_opaque)
{
    if (result->struct_bytes != sizeof *result)
        return fail(-EINVAL, "check result: struct_bytes is %zu, not %zu", result->struct_bytes,
                    sizeof *result);
    struct check *c = calloc(1, sizeof *c);
    if (!c)
        return fail_memory("the check");
    c->path = path;
    c->options = options;
    c->fn = fn;
    c->opaque = opaque;
    c->progress = progress;
    c->progress_opaque = progress_opaque;
    int r = file_view_open(path, options, &c->view);
    if (r == 0)
        r = run(c);
    if (r == 0) {
        c->result.struct_bytes = sizeof *result;
        *result = c->result;
    }
    check_free(c);
    return r;
}
