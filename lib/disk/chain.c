/* SPDX-License-Identifier: MIT */
#include "disk/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/info.h"
#include "disk/parent-path.h"
#include "disk/shortcut.h"
#include "format/identifier.h"
#include "format/parent-locator.h"
#include "image/image.h"
#include "image/page-cache.h"
#include "image/probe.h"
#include "storage/storage.h"

/* Pages of tables that all images of a chain keep together: 8 MiB. */
enum { CACHE_PAGES = 2048, MIN_CACHE_PAGES_PER_IMAGE = 32 };

/* A chain while it is being opened. */
struct chain {
    struct vhdx_disk *disk;
    const struct vhdx_open_options *options;
    uint32_t max_depth;
    struct parent_policy policy;
};

/* The search for one link's parent. */
struct link_search {
    struct chain *chain;
    guid linkage, linkage2;
    struct image *found;
    char *found_path;
    bool mismatch;           /* a candidate was a VHDX, but not the parent */
    char mismatch_path[512];
    guid mismatch_guid;
    int other_error;         /* a candidate could not be opened; its message is in error_text */
    struct error_text error_text;
    const struct layer *itself; /* the child has its parent's name, and was found under that; matters if nothing else does */
};

struct storage *layer_file(const struct layer *layer)
{
    return layer->img ? layer->img->file : layer->raw;
}

static unsigned image_flags(uint32_t flags)
{
    return (flags & VHDX_OPEN_REFUSE_DIRTY ? IMAGE_REFUSE_DIRTY : 0) |
           (flags & VHDX_OPEN_UNVERIFIED ? IMAGE_UNVERIFIED : 0);
}

static enum storage_lock reader_lock(const struct chain *c)
{
    return c->options->flags & VHDX_OPEN_FORCE_SHARE ? STORAGE_LOCK_NONE : STORAGE_LOCK_SHARED;
}

static int lock_shared(struct chain *c, struct storage *file)
{
    return storage_lock(file, reader_lock(c));
}

/* The image that was asked for itself: alone if it is to be written. */
static int open_first(struct chain *c, const char *path, struct storage **file)
{
    uint32_t flags = c->options->flags;
    enum storage_lock lock = flags & VHDX_OPEN_WRITE ? STORAGE_LOCK_EXCLUSIVE : reader_lock(c);

    if (!(flags & VHDX_OPEN_NBD))
        return storage_posix_open_locked(path, flags & VHDX_OPEN_WRITE ? POSIX_OPEN_WRITABLE : 0, lock, file);
    int r = disk_open_file(path, flags, file);
    if (r == 0)
        r = storage_lock(*file, lock);
    if (r < 0) {
        storage_close(*file);
        *file = NULL;
    }
    return r;
}

/* Add a layer; takes over img or raw, also on failure. */
static int add_layer(struct chain *c, struct image *img, struct storage *raw, uint64_t size, const char *path)
{
    struct vhdx_disk *d = c->disk;
    struct layer *layers = reallocarray(d->layers, d->nr_layers + 1, sizeof *layers);
    char *copy = strdup(path);

    if (layers)
        d->layers = layers;
    if (!layers || !copy) {
        free(copy);
        image_close(img);
        storage_close(raw);
        return fail_memory("a chain of images");
    }
    layers[d->nr_layers++] = (struct layer){.img = img, .raw = raw, .path = copy, .size = size};
    return 0;
}

const struct layer *disk_find_layer(const struct vhdx_disk *disk, const struct storage_identity *file)
{
    for (uint32_t i = 0; i < disk->nr_layers; i++) {
        if (is_same_file(&layer_file(&disk->layers[i])->identity, file))
            return &disk->layers[i];
    }
    return NULL;
}

static bool is_linked(const struct link_search *s, const struct image *img)
{
    return linkage_accepts(&s->linkage, &s->linkage2, &img->header.data_write_guid);
}

static int report_cycle(const struct layer *same, const char *path)
{
    return fail(VHDX_E_CHAIN, "the chain of parents leads back to %s (found as %s); its links are damaged", same->path,
                path);
}

/* Remember why a candidate was passed over. */
static int pass_over(struct link_search *s, int code)
{
    if (s->other_error == 0) {
        s->other_error = code;
        error_save(&s->error_text);
    }
    return 0;
}

/* Remember the first VHDX that is not the parent. */
static void note_mismatch(struct link_search *s, const struct image *img, const char *path)
{
    if (!s->mismatch) {
        s->mismatch_guid = img->header.data_write_guid;
        strncpy(s->mismatch_path, path, sizeof s->mismatch_path - 1);
    }
    s->mismatch = true;
}

/* Is this file the parent?  The identity decides, whatever the file is called (8.4). */
static int judge_candidate(void *opaque, int fd, const char *path)
{
    struct link_search *s = opaque;
    struct vhdx_disk *d = s->chain->disk;
    struct storage *file;
    struct image *img;

    int r = storage_posix_from_fd(fd, false, false, &file);
    if (r < 0)
        return pass_over(s, fail_in(r, "%s", path));
    const struct layer *same = disk_find_layer(d, &file->identity);
    if (same) {
        storage_close(file);
        if (is_linked(s, same->img))
            return report_cycle(same, path);
        if (same == &d->layers[d->nr_layers - 1])
            s->itself = same;
        else
            note_mismatch(s, same->img, path);
        return 0;
    }
    r = lock_shared(s->chain, file);
    if (r < 0)
        storage_close(file);
    else
        r = image_open(file, image_flags(s->chain->options->flags), MIN_CACHE_PAGES_PER_IMAGE, &img);
    if (r < 0)
        return pass_over(s, fail_in(r, "%s", path));
    if (!is_linked(s, img)) {
        note_mismatch(s, img, path);
        image_close(img);
        return 0;
    }
    s->found_path = strdup(path);
    if (!s->found_path) {
        image_close(img);
        return fail_memory("a path");
    }
    s->found = img;
    return 1;
}

static int report_mismatch(const struct link_search *s, const guid *found, const char *path)
{
    char wanted[VHDX_GUID_TEXT_BYTES], seen[VHDX_GUID_TEXT_BYTES];

    guid_format(&s->linkage, wanted);
    guid_format(found, seen);
    return fail(VHDX_E_PARENT_MISMATCH,
                "mismatch in the identifiers of parent and child: the child was made on data write GUID %s, but %s has %s: it was written to "
                "since, or is another disk; find the right file with 'vhdx rebase --find', or read there what --force means",
                wanted, path, seen);
}

/* In another folder, or where it was by another name: there no folder that is named helps. */
#define IF_RENAMED "; or if it was renamed, mend the link with 'vhdx rebase --find DIR'"

/* Nobody was it: say which of the reasons matters most to the user. */
static int report_not_found(const struct link_search *s, const struct parent_search *search)
{
    char wanted[VHDX_GUID_TEXT_BYTES];
    const char *recorded = search->recorded[0] ? search->recorded : "(none)";

    guid_format(&s->linkage, wanted);
    if (s->mismatch)
        return report_mismatch(s, &s->mismatch_guid, s->mismatch_path);
    if (s->other_error) {
        error_restore(&s->error_text);
        return fail_in(s->other_error, "parent");
    }
    if (search->open_error) {
        errno = -search->open_error;
        return fail_errno("the parent, recorded as %s, cannot be opened", recorded);
    }
    if (search->not_regular)
        return fail(VHDX_E_PARENT_POLICY, "the parent, recorded as %s, is not a regular file", recorded);
    if (search->blocked && !search->relative_followed)
        return fail(VHDX_E_PARENT_POLICY,
                    "the parent, recorded as %s, is not in the child's folder, and such a path is not followed unasked; "
                    "name its folder with --parent-dir, or follow the path with --allow-parent-path",
                    recorded);
    if (s->itself)
        return report_mismatch(s, &s->itself->img->header.data_write_guid, s->itself->path);
    if (search->blocked) /* nearly every child by Windows has an absolute path, too */
        return fail(VHDX_E_PARENT_NOT_FOUND,
                    "the parent, recorded as %s with data write GUID %s, is not there, nor in the child's folder or any --parent-dir; "
                    "name its folder with --parent-dir, or follow the absolute path that is recorded, too, with --allow-parent-path"
                    IF_RENAMED,
                    recorded, wanted);
    return fail(VHDX_E_PARENT_NOT_FOUND,
                "the parent, recorded as %s with data write GUID %s, is not in the child's folder or any --parent-dir; "
                "name its folder with --parent-dir" IF_RENAMED,
                recorded, wanted);
}

/* The user named the parent: only this file will do. */
static int try_named(struct link_search *s, const char *path)
{
    struct parent_search nothing = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    if (fd < 0)
        return fail_errno("parent %s", path);
    int r = judge_candidate(s, fd, path);
    return r == 0 ? report_not_found(s, &nothing) : r;
}

/* The new parent's geometry against its child's (8.4 steps 3 to 5). */
static int check_link(const struct image *child, const struct image *parent, const char *path)
{
    if (parent->geometry.sector_size != child->geometry.sector_size)
        return fail(VHDX_E_CHAIN,
                    "parent %s has logical sectors of %" PRIu32 " bytes, its child of %" PRIu32
                    "; the two do not belong together",
                    path, parent->geometry.sector_size, child->geometry.sector_size);
    return 0;
}

/* Find and add the parent of the last layer. */
static int add_parent(struct chain *c)
{
    struct vhdx_disk *d = c->disk;
    struct layer *child = &d->layers[d->nr_layers - 1];
    struct link_search s = {.chain = c};
    struct parent_search search;
    int r;

    if (d->nr_layers >= c->max_depth)
        return fail(VHDX_E_CHAIN, "%s: it has a parent too, but chains of more than %" PRIu32 " images are refused",
                    child->path, c->max_depth);
    locator_linkage(child->img->locator, &s.linkage, &s.linkage2);
    if (d->nr_layers == 1 && c->options->parent) {
        r = try_named(&s, c->options->parent);
    } else {
        const char *child_path = d->nr_layers == 1 ? c->policy.first_child : child->path;
        r = parent_candidates(&c->policy, child_path, child->img->locator, judge_candidate, &s, &search);
        if (r == 0)
            r = report_not_found(&s, &search);
    }
    if (r > 0)
        r = check_link(child->img, s.found, s.found_path);
    if (r < 0) {
        image_close(s.found);
        if (d->nr_layers > 1)
            fail_in(r, "%s", child->path);
    } else {
        r = add_layer(c, s.found, NULL, s.found->geometry.virtual_size, s.found_path);
    }
    free(s.found_path);
    return r;
}

static void share_cache(struct vhdx_disk *d)
{
    for (uint32_t i = 0; i < d->nr_layers; i++)
        page_cache_set_limit(d->layers[i].img->pages,
                             max_u64(CACHE_PAGES / d->nr_layers, MIN_CACHE_PAGES_PER_IMAGE));
}

/* Make do with the images so far, and remember why. */
static int leave_parent_out(struct vhdx_disk *d, int code)
{
    d->chain_problem = strdup(error_message());
    d->chain_problem_code = code;
    d->parent_left_out = true;
    return d->chain_problem ? 0 : fail_memory("a message");
}

static int open_chain(struct chain *c, struct storage *file, const char *path)
{
    struct image *img;
    unsigned writable = c->options->flags & VHDX_OPEN_WRITE ? IMAGE_WRITABLE : 0;
    int r = image_open(file, image_flags(c->options->flags) | writable, CACHE_PAGES, &img);

    if (r < 0)
        return r;
    r = add_layer(c, img, NULL, img->geometry.virtual_size, path);
    while (r == 0 && image_has_parent(c->disk->layers[c->disk->nr_layers - 1].img)) {
        if (c->options->flags & VHDX_OPEN_NO_PARENT) {
            c->disk->parent_left_out = true;
            break;
        }
        r = add_parent(c);
        if (r < 0 && r != -ENOMEM && (c->options->flags & VHDX_OPEN_BROKEN_CHAIN)) {
            r = leave_parent_out(c->disk, r);
            break;
        }
    }
    if (r == 0) {
        share_cache(c->disk);
        shortcut_init(c->disk);
    }
    return r;
}

static int open_raw(struct chain *c, struct storage *file, const char *path)
{
    uint64_t bytes;
    int r = storage_length(file, &bytes);

    if (r < 0) {
        storage_close(file);
        return r;
    }
    return add_layer(c, NULL, file, bytes, path);
}

int disk_open_file(const char *path, uint32_t flags, struct storage **file)
{
    if (flags & VHDX_OPEN_NBD)
        return storage_nbd_open(path, flags & VHDX_OPEN_WRITE, file);
    return storage_posix_open(path, flags & VHDX_OPEN_WRITE ? POSIX_OPEN_WRITABLE : 0, file);
}

int disk_probe_file(struct storage *file)
{
    const char *what;

    return image_probe(file, &what);
}

/* Raw, an image, or what a look at the file says.  Takes over file. */
static int open_as_asked(struct chain *c, struct storage *file, const char *path)
{
    uint32_t flags = c->options->flags;
    bool raw = flags & VHDX_OPEN_RAW;

    if (flags & VHDX_OPEN_DETECT) {
        int kind = disk_probe_file(file);
        if (kind < 0) {
            storage_close(file);
            return kind;
        }
        raw = kind == VHDX_KIND_UNKNOWN || kind == VHDX_KIND_EMPTY;
    }
    if (raw)
        return open_raw(c, file, path);
    if ((flags & VHDX_OPEN_WRITE) && (flags & VHDX_OPEN_NBD)) {
        storage_close(file);
        return fail(-ENOTSUP, "an image behind NBD can be read but not written, because an export cannot grow; "
                    "export the disk in it instead of its file, and write to that as a raw disk");
    }
    return open_chain(c, file, path);
}

static int check_options(const struct vhdx_open_options *o)
{
    const uint32_t known = VHDX_OPEN_FORCE_SHARE | VHDX_OPEN_ALLOW_PARENT_PATH | VHDX_OPEN_NO_PARENT |
                           VHDX_OPEN_REFUSE_DIRTY | VHDX_OPEN_UNVERIFIED | VHDX_OPEN_RAW | VHDX_OPEN_WRITE | VHDX_OPEN_BROKEN_CHAIN |
                           VHDX_OPEN_NBD | VHDX_OPEN_DETECT;
    const uint32_t not_written = VHDX_OPEN_FORCE_SHARE | VHDX_OPEN_UNVERIFIED | VHDX_OPEN_BROKEN_CHAIN;

    if (o->struct_bytes != sizeof *o)
        return fail(-EINVAL, "open options: struct_bytes is %zu, not %zu; begin with VHDX_OPEN_OPTIONS_INIT",
                    o->struct_bytes, sizeof *o);
    if (o->flags & ~known)
        return fail(-EINVAL, "open options: unknown flags 0x%" PRIx32, o->flags & ~known);
    if ((o->flags & VHDX_OPEN_WRITE) && (o->flags & not_written))
        return fail(-EINVAL, "open options: an image is not written without locks, unverified or without its parents");
    for (size_t i = 0; i < o->nr_parent_dirs; i++) {
        if (!o->parent_dirs || !o->parent_dirs[i])
            return fail(-EINVAL, "open options: parent_dirs has no entry number %zu", i);
    }
    if (o->max_chain_depth > MAX_CHAIN_DEPTH)
        return fail(-EINVAL, "open options: chains of %" PRIu32 " images are more than the %d that are possible",
                    o->max_chain_depth, MAX_CHAIN_DEPTH);
    return 0;
}

int disk_open(const char *path, const struct vhdx_open_options *options, struct vhdx_disk **result)
{
    static const struct vhdx_open_options defaults = VHDX_OPEN_OPTIONS_INIT;
    struct chain c = {.options = options ? options : &defaults};
    struct storage *file;

    *result = NULL;
    int r = check_options(c.options);
    if (r < 0)
        return r;
    c.max_depth = c.options->max_chain_depth ? c.options->max_chain_depth : MAX_CHAIN_DEPTH;
    c.policy = (struct parent_policy){.dirs = c.options->parent_dirs,
                                      .nr_dirs = c.options->nr_parent_dirs,
                                      .first_child = c.options->flags & VHDX_OPEN_NBD ? NULL : path,
                                      .allow_any = c.options->flags & VHDX_OPEN_ALLOW_PARENT_PATH};
    r = open_first(&c, path, &file);
    if (r < 0)
        return r;
    c.disk = calloc(1, sizeof *c.disk);
    if (!c.disk) {
        storage_close(file);
        return fail_memory("the disk");
    }
    r = open_as_asked(&c, file, path);
    if (r < 0) {
        disk_close(c.disk);
        return r;
    }
    c.disk->size = c.disk->layers[0].size;
    *result = c.disk;
    return 0;
}

int disk_close(struct vhdx_disk *disk)
{
    int r = 0;

    if (!disk)
        return 0;
    for (uint32_t i = 0; i < disk->nr_layers; i++) {
        struct storage *raw = disk->layers[i].raw;
        int e = raw && raw->writable ? storage_flush(raw) : image_close(disk->layers[i].img);
        r = r < 0 ? r : e;
        storage_close(raw);
        free(disk->layers[i].path);
    }
    free(disk->layers);
    free(disk->chain_problem);
    free(disk->shortcuts);
    free(disk);
    return r;
}
