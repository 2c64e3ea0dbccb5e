/* SPDX-License-Identifier: MIT */
#include "ops/merge.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "disk/info.h"
#include "format/parent-locator.h"
#include "image/image.h"
#include "image/writer.h"
#include "ops/relink.h"

static struct image *lowest(const struct merge *m)
{
    return m->upper[m->nr_upper - 1];
}

static guid identity(struct image *img)
{
    return img->writer ? writer_header(img).data_write_guid : img->header.data_write_guid;
}

/* ---- begin ---- */

static int check_sizes(const struct merge *m)
{
    const struct geometry *target = &merge_target_image(m)->geometry;

    for (uint32_t i = 0; i < m->nr_upper; i++) {
        const struct geometry *g = &m->upper[i]->geometry;
        if (g->sector_size != target->sector_size)
            return fail(VHDX_E_CHAIN, "logical sectors of %" PRIu32 " and %" PRIu32 " bytes cannot be merged", g->sector_size,
                        target->sector_size);
        if (g->virtual_size != target->virtual_size)
            return fail(VHDX_E_CHAIN,
                        "an image to be merged has a disk of %" PRIu64 " bytes, the target one of %" PRIu64
                        "; make the sizes equal first, or convert the chain into a new image",
                        g->virtual_size, target->virtual_size);
    }
    return 0;
}

int merge_begin(struct merge *m)
{
    uint32_t nr = m->nr_upper + m->target->nr_layers;

    m->layers = calloc(nr, sizeof *m->layers);
    if (!m->layers)
        return fail_memory("a chain of images");
    for (uint32_t i = 0; i < m->nr_upper; i++)
        m->layers[i] = (struct layer){.img = m->upper[i], .size = m->upper[i]->geometry.virtual_size, .path = m->paths[i]};
    memcpy(m->layers + m->nr_upper, m->target->layers, m->target->nr_layers * sizeof *m->layers);
    m->view = (struct vhdx_disk){.layers = m->layers, .nr_layers = nr, .size = m->layers[0].size};
    return check_sizes(m);
}

void merge_done(struct merge *m)
{
    free(m->layers);
    m->layers = NULL;
}

/* ---- the links ---- */

/* Give parent another identity.  Its child accepts both before, durably, so whoever opens the chain meanwhile finds one that
 * fits. */
static int become(struct image *child, struct image *parent, const guid *next)
{
    guid present = identity(parent);
    int r = writer_begin_invisible(child);

    if (r == 0)
        r = relink(child, &(struct new_link){.linkage = present, .linkage2 = *next});
    if (r == 0)
        r = writer_commit(child);
    return r < 0 ? r : writer_begin_as(parent, next);
}

static int become_random(struct image *child, struct image *parent)
{
    guid fresh;
    int r = guid_random(&fresh);

    return r < 0 ? r : become(child, parent, &fresh);
}

/* Whatever an image between shows of the target is about to change.  So it is another one from now on (2.5), and children of it
 * that nobody knows of refuse to open rather than show a mixture. */
static int renounce_states_between(struct merge *m)
{
    int r = 0;

    for (uint32_t i = 1; r == 0 && i < m->nr_upper; i++)
        r = become_random(m->upper[i - 1], m->upper[i]);
    return r;
}

/* Only a merge leaves this behind: the link accepts an intermediate identity or the uppermost image's, and the target has the
 * latter.  Images of tools that give all files one identity have that as the first linkage, too. */
bool merge_is_complete(const struct merge *m)
{
    guid linkage, linkage2, target = identity(merge_target_image(m)), uppermost = identity(m->upper[0]);

    locator_linkage(lowest(m)->locator, &linkage, &linkage2);
    return guid_equal(&target, &uppermost) && guid_equal(&linkage2, &target) && !guid_equal(&linkage, &target);
}

int merge_run(struct merge *m)
{
    struct merge_cost cost;
    guid uppermost = identity(m->upper[0]);

    int r = merge_count(m, &cost);
    if (r == 0)
        r = renounce_states_between(m);
    if (r == 0)
        r = become_random(lowest(m), merge_target_image(m)); /* 9.10 steps 2 to 4; also when an earlier merge was interrupted */
    if (r == 0)
        r = merge_content(m, &cost);
    if (r == 0)
        r = merge_items(m);
    if (r == 0)
        r = writer_commit(merge_target_image(m)); /* the content is durable before the identity says that it is there */
    if (r == 0)
        r = become(lowest(m), merge_target_image(m), &uppermost);
    return r < 0 ? r : writer_commit(merge_target_image(m));
}
