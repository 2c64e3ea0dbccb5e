/* SPDX-License-Identifier: MIT */
#include "ops/orphans.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/error.h"
#include "ops/ops.h"
#include "ops/survey.h"
#include "storage/storage.h"

static int refuse_children(const struct vhdx_survey *s, const struct storage_identity *id)
{
    for (size_t i = 0; i < s->nr_images; i++) {
        size_t parent = s->images[i].parent;
        if (parent != VHDX_NO_IMAGE && is_same_file(&s->images[parent].identity, id))
            return fail(VHDX_E_CHAIN, "%s has the image that is there as its parent and would be lost; merge or rebase that child first, or if "
                        "it is not needed, remove it", s->images[i].path);
    }
    return 0;
}

/* What cannot be opened is no parent that anybody could read; and --force is what one gets rid of it by. */
static bool is_no_image(int code)
{
    return code <= VHDX_E_NOT_VHDX && code != VHDX_E_LIMIT;
}

int orphans_refuse(struct storage *file, const char *path)
{
    struct vhdx_open_options o = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_survey *s;

    if (!survey_begins_like_image(file))
        return 0;
    int r = survey_likely_relatives(path, &o, &s);
    if (r < 0)
        return is_no_image(r) ? 0 : r;
    r = refuse_children(s, &file->identity);
    ops_survey_free(s);
    return r;
}

int orphans_refuse_fd(struct storage *file)
{
    char name[32], path[PATH_MAX];
    struct stat st;

    snprintf(name, sizeof name, "/proc/self/fd/%d", file->fd);
    if (!realpath(name, path) || stat(path, &st) < 0 || !is_file_of(&st, &file->identity))
        return 0;
    return orphans_refuse(file, path);
}
