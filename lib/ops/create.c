/* SPDX-License-Identifier: MIT */
#include "ops/create.h"

#include "base/error.h"
#include "ops/create-child.h"
#include "ops/image-writer.h"
#include "ops/new-file.h"
#include "ops/ops.h"

int create_planned(struct storage *s, const struct new_image *n, const struct vhdx_create_options *options)
{
    int r = image_preallocate(n, s, options->preallocation, options->progress, options->opaque);

    if (r == 0)
        r = image_write_tables(n, s, NULL);
    return r < 0 ? r : image_seal(s);
}

int create_in(struct storage *s, const struct vhdx_create_options *options)
{
    struct new_image n;
    int r = new_image_refuse_child(options);

    if (r == 0)
        r = new_image_init(&n, options);
    if (r == 0)
        r = new_image_plan(&n, options->virtual_size);
    return r < 0 ? r : create_planned(s, &n, options);
}

/* Options are judged before anything is made. */
static int plan(struct new_image *n, struct new_child *child, const char *path, const struct vhdx_create_options *options)
{
    uint64_t virtual_size = options->virtual_size;
    int r = new_image_init(n, options);

    if (r == 0 && options->subformat == VHDX_DIFFERENCING)
        r = child_begin(child, n, path, options, &virtual_size);
    return r < 0 ? r : new_image_plan(n, virtual_size);
}

int ops_create(const char *path, const struct vhdx_create_options *options)
{
    struct new_child child = {0};
    struct new_image n;
    struct new_file f;
    int r = plan(&n, &child, path, options);

    if (r == 0)
        r = new_file_begin(&f, path, options->replace ? OLD_FILE_GOES : OLD_FILE_STAYS);
    if (r == 0) {
        r = create_planned(f.file, &n, options);
        if (r == 0)
            r = new_file_publish(&f);
        new_file_end(&f);
    }
    child_end(&child);
    return r;
}
