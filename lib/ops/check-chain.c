/* SPDX-License-Identifier: MIT */
/* Rules 51 to 56: the parents (format section 8.4), found and opened just as vhdx_open() would. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "disk/disk.h"
#include "disk/info.h"
#include "disk/parent-path.h"
#include "format/parent-locator.h"
#include "image/image.h"
#include "ops/check.h"
#include "storage/storage.h"

struct chain_check {
    struct check *c;
    struct vhdx_open_options
        options; /* the caller's, but BATs are not looked through: judge_tables() does that */
    uint64_t at; /* file offset of the locator */
};

/* ---- rule 51 ---- */

/* Nothing is said of what else may be at that place (8.5 rule 11). */
static int judge_relative_path(const struct chain_check *k, const struct layer *parent)
{
    struct locator_pair pair;

    if (!locator_find(k->c->locator, "relative_path", &pair))
        return 0;
    int there = parent_is_where_recorded(NULL, k->c->path, parent->path, k->c->locator, &layer_file(parent)->identity);
    if (there != 0)
        return there < 0 ? there : 0;
    report(k->c, RULE_RELATIVE_PATH, k->at + pair.value_offset,
           "parent locator at 0x%" PRIx64
           ": relative_path does not lead to the parent, which was found as %s",
           k->at, parent->path);
    return 0;
}

/* ---- a chain that opens ---- */

static void judge_sizes(const struct chain_check *k, const struct layer *child, const struct layer *parent)
{
    if (child->size != parent->size)
        report_as(k->c, RULE_PARENT_GEOMETRY, VHDX_WARNING, false, k->at,
                  "%s has a virtual size of %" PRIu64 " bytes and its parent %s one of %" PRIu64
                  "; what the parent lacks reads as zeros",
                  child->path, child->size, parent->path, parent->size);
}

/* What a guest reads comes from the parents' tables too.  The first thing wrong with each is told; checking that file tells
 * all. */
static int judge_tables(const struct chain_check *k, const struct layer *parent)
{
    bool done;
    int r = bat_verify(parent->img, UINT64_MAX, &done);

    if (r == 0 || !is_format_error(r))
        return r;
    fail_in(r, "parent %s", parent->path);
    report_failure(k->c, RULE_PARENT_FOUND, k->at);
    return 0;
}

static int judge_opened(const struct chain_check *k, const struct vhdx_disk *disk)
{
    for (uint32_t i = 1; i < disk->nr_layers; i++) {
        judge_sizes(k, &disk->layers[i - 1], &disk->layers[i]);
        int r = judge_tables(k, &disk->layers[i]);
        if (r < 0)
            return r;
    }
    if (disk->nr_layers < 2)
        return 0;
    int r = judge_relative_path(k, &disk->layers[1]);
    if (r < 0)
        return r;
    if (!guid_equal(&disk->layers[0].img->values.disk_id, &disk->layers[1].img->values.disk_id))
        report(k->c, RULE_PARENT_DISK_ID, k->c->metadata.file_offset,
               "the Virtual Disk ID is not that of the parent, %s", disk->layers[1].path);
    return 0;
}

/* ---- a chain that does not ---- */

/* Is the file behind fd (owned) the parent, with sectors of another size? */
static bool has_other_sectors(const struct chain_check *k, int fd)
{
    struct storage *file;
    struct image *img;
    guid linkage, linkage2;

    if (storage_posix_from_fd(fd, false, false, &file) < 0 || image_open(file, IMAGE_UNVERIFIED, 1, &img) < 0)
        return false;
    locator_linkage(k->c->locator, &linkage, &linkage2);
    bool other = linkage_accepts(&linkage, &linkage2, &img->header.data_write_guid) &&
                 img->geometry.sector_size != k->c->geometry.sector_size;
    image_close(img);
    return other;
}

static int try_candidate(void *opaque, int fd, const char *path)
{
    (void)path;
    return has_other_sectors(opaque, fd);
}

static bool named_has_other_sectors(const struct chain_check *k, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    return fd >= 0 && has_other_sectors(k, fd);
}

/* VHDX_E_CHAIN stands for a conflict of sectors (rule 54) and for loops and too many images (rule 55). */
static enum rule rule_of_conflict(struct chain_check *k)
{
    const struct vhdx_open_options *o = &k->options;
    struct parent_policy policy = {.dirs = o->parent_dirs,
                                   .nr_dirs = o->nr_parent_dirs,
                                   .first_child = k->c->path,
                                   .allow_any = o->flags & VHDX_OPEN_ALLOW_PARENT_PATH};
    struct parent_search search;
    bool other;

    if (o->parent)
        other = named_has_other_sectors(k, o->parent);
    else
        other = parent_candidates(&policy, k->c->path, k->c->locator, try_candidate, k, &search) > 0;
    return other ? RULE_PARENT_GEOMETRY : RULE_CHAIN;
}

/* Rules 52 to 55.  What says nothing of the files themselves ends the check. */
static int judge_failure(struct chain_check *k, int code)
{
    struct error_text text;
    enum rule rule = RULE_PARENT_FOUND;

    if (!is_format_error(code) || code == VHDX_E_LOCKED || code == VHDX_E_LOG_DIRTY)
        return code;
    error_save(&text);
    if (code == VHDX_E_PARENT_MISMATCH)
        rule = RULE_PARENT_IDENTITY;
    else if (code == VHDX_E_CHAIN)
        rule = rule_of_conflict(k);
    error_restore(&text);
    report_failure(k->c, rule, k->at);
    return 0;
}

/* Can the image itself be opened?  If not its damage has been told, and the parents are beyond reach. */
static int opens_alone(const struct chain_check *k)
{
    struct vhdx_open_options alone = k->options;
    struct vhdx_disk *disk;

    alone.flags |= VHDX_OPEN_NO_PARENT;
    int r = disk_open(k->c->path, &alone, &disk);
    if (r < 0)
        return is_format_error(r) ? 0 : r;
    disk_close(disk);
    return 1;
}

int check_chain(struct check *c)
{
    static const struct vhdx_open_options defaults = VHDX_OPEN_OPTIONS_INIT;
    struct chain_check k = {.c = c, .options = c->options ? *c->options : defaults};
    struct vhdx_disk *disk;

    if (!c->locator)
        return 0;
    k.at = c->metadata.file_offset + c->locator_entry.offset;
    k.options.flags |= VHDX_OPEN_UNVERIFIED;
    if (check_has_flag(c, VHDX_OPEN_NO_PARENT)) {
        report_as(c, RULE_PARENT_FOUND, VHDX_WARNING, false, k.at,
                  "parent locator at 0x%" PRIx64 ": the parent was not looked for", k.at);
        return 0;
    }
    int r = opens_alone(&k);
    if (r < 0)
        return r;
    if (r == 0) {
        report_as(c, RULE_PARENT_FOUND, VHDX_INFO, false, k.at,
                  "parent locator at 0x%" PRIx64
                  ": the parent was not looked for, since this image does not open",
                  k.at);
        return 0;
    }
    r = disk_open(c->path, &k.options, &disk);
    if (r < 0)
        return judge_failure(&k, r);
    r = judge_opened(&k, disk);
    disk_close(disk);
    return r;
}
