/* SPDX-License-Identifier: MIT */
#include "ops/create-child.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/disk.h"
#include "format/parent-locator.h"
#include "image/image.h"
#include "ops/half-merged.h"
#include "storage/storage.h"

enum { MAX_LOCATOR_BYTES = 8 * PATH_MAX + 4096 };

/* ---- the path to the parent ---- */

/* Would whoever reads the path back find the same components (8.3, 8.5 rules 2 and 4)? */
static bool can_be_recorded(const char *path)
{
    for (const char *p = path; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f || *p == '\\' || *p == ':')
            return false;
    }
    return true;
}

/* Length of what two absolute paths have in common, in whole components; both are without a slash at the end, "/" is "". */
static size_t common_folders(const char *folder, const char *file)
{
    size_t n = 0, end = 0;

    for (; folder[n] && folder[n] == file[n]; n++) {
        if (folder[n] == '/')
            end = n;
    }
    return folder[n] == '\0' && file[n] == '/' ? n : end;
}

int child_relative_path(const char *folder, const char *file, char *to, size_t bytes)
{
    size_t at = 0, common;

    if (strcmp(folder, "/") == 0)
        folder = "";
    common = common_folders(folder, file);
    const char *rest = file + common + 1;
    if (!can_be_recorded(rest))
        return fail(-EINVAL,
                    "the parent's path %s has a backslash, colon or control character, which no image can record; rename it", file);
    for (const char *p = folder + common; (p = strchr(p, '/')) != NULL; p++) {
        if (at + 4 > bytes)
            return fail(-ENAMETOOLONG, "the path from %s to the parent is too long", folder);
        memcpy(to + at, "..\\", 4);
        at += 3;
    }
    int n = snprintf(to + at, bytes - at, "%s%s", at == 0 ? ".\\" : "", rest);
    if (n < 0 || (size_t)n >= bytes - at)
        return fail(-ENAMETOOLONG, "the path from %s to the parent is too long", folder);
    for (char *p = to; *p; p++) {
        if (*p == '/')
            *p = '\\';
    }
    return 0;
}

/* The folder in which the new image is going to lie, without links. */
static int real_folder(const char *path, bool replace, char folder[PATH_MAX])
{
    char real[PATH_MAX];

    if (!replace || !realpath(path, real)) { /* a link that is replaced leads to where the image really goes */
        if (strlen(path) >= sizeof real)
            return fail(-ENAMETOOLONG, "the path is longer than %zu bytes", sizeof real - 1);
        memcpy(real, path, strlen(path) + 1);
    }
    char *slash = strrchr(real, '/');
    if (slash)
        slash[slash == real] = '\0';
    if (!realpath(slash ? real : ".", folder))
        return fail_errno("cannot open the folder %s", slash ? real : ".");
    return 0;
}

/* ---- what is taken over ---- */

/* A child's locator can only lead to a file. */
static int check_is_file(const struct vhdx_disk *parent)
{
    struct stat st;

    if (fstat(layer_file(&parent->layers[0])->fd, &st) < 0)
        return fail_errno("cannot look at it");
    return S_ISREG(st.st_mode) ? 0 : fail(-EINVAL, "only a file can be a parent");
}

/* 8.2: what Windows needs; absolute paths of this machine would tell strangers about it. */
static int make_locator(struct new_child *c, struct new_image *n, const char *folder, const struct vhdx_create_options *o)
{
    char id[VHDX_GUID_TEXT_BYTES], linkage[VHDX_GUID_TEXT_BYTES + 2], real[PATH_MAX], relative[PATH_MAX];
    const char *pairs[4][2] = {
        {"parent_linkage", linkage},
        {"relative_path", relative},
        {"parent_linkage2", "{00000000-0000-0000-0000-000000000000}"},
        {"absolute_win32_path", o->parent_windows_path},
    };

    guid_format(&c->parent->layers[0].img->header.data_write_guid, id);
    snprintf(linkage, sizeof linkage, "{%s}", id);
    if (!realpath(o->parent, real))
        return fail_errno("parent %s", o->parent);
    int r = child_relative_path(folder, real, relative, sizeof relative);
    if (r < 0)
        return r;
    c->locator = malloc(MAX_LOCATOR_BYTES);
    if (!c->locator)
        return fail_memory("the parent locator");
    n->locator = c->locator;
    n->locator_length = locator_encode((const char *const (*)[2])pairs, o->parent_windows_path ? 4 : 3, c->locator, MAX_LOCATOR_BYTES);
    if (n->locator_length == 0)
        return fail(-EINVAL, "the parent's path %s cannot be recorded: it is not UTF-8, or too long", real);
    return 0;
}

/* Everything that belongs to the disk and not to the file (7.2); what every image has is in the values. */
static bool is_taken_over(const struct metadata_entry *e)
{
    enum metadata_known known = metadata_identify(e);

    return (e->flags & VHDX_METADATA_VIRTUAL_DISK) &&
           !(known <= METADATA_PHYSICAL_SECTOR_SIZE || known == METADATA_PARENT_LOCATOR || known == METADATA_INCOMPLETE);
}

static int take_item(struct new_child *c, struct image *img, const struct metadata_entry *e)
{
    struct new_item *item = &c->items[c->nr_items++];

    *item = (struct new_item){.id = e->id, .flags = e->flags, .length = e->length};
    item->bytes = malloc(e->length ? e->length : 1); /* at most 1 MiB, and inside the parent's region */
    if (!item->bytes)
        return fail_memory("a metadata item");
    int r = e->length ? image_pread(img, item->bytes, e->length, img->metadata->file_offset + e->offset) : 0;
    return r < 0 ? fail_in(r, "a metadata item of the parent") : 0;
}

/* The table and each name space have room for what the parent had, but perhaps not for the locator besides. */
static int check_limits(const struct new_image *n)
{
    uint64_t system_bytes = new_image_metadata_bytes(n) - METADATA_TABLE_RAW_BYTES;

    for (uint32_t i = 0; i < n->nr_items; i++) {
        if (n->items[i].flags & VHDX_METADATA_USER)
            system_bytes -= align_up(n->items[i].length, 8);
    }
    if (n->nr_items <= MAX_METADATA_ITEMS - METADATA_PARENT_LOCATOR - 1 && system_bytes <= MAX_METADATA_CATEGORY_BYTES)
        return 0;
    return fail(VHDX_E_LIMIT, "the parent has so much metadata, %" PRIu32 " items, that there is no room for a child's", n->nr_items);
}

static int take_items(struct new_child *c, struct new_image *n)
{
    struct image *img = c->parent->layers[0].img;
    int r = 0;

    c->items = calloc(img->nr_items + 1, sizeof *c->items);
    if (!c->items)
        return fail_memory("the metadata items");
    for (uint32_t i = 0; r == 0 && i < img->nr_items; i++) {
        if (is_taken_over(&img->items[i]))
            r = take_item(c, img, &img->items[i]);
    }
    n->items = c->items;
    n->nr_items = c->nr_items;
    return r < 0 ? r : check_limits(n);
}

/* ---- options ---- */

static int open_parent(struct new_child *c, const struct vhdx_create_options *o)
{
    struct vhdx_open_options open_options = VHDX_OPEN_OPTIONS_INIT;

    if (o->parent_open)
        open_options = *o->parent_open;
    if (open_options.struct_bytes == sizeof open_options && (open_options.flags & (VHDX_OPEN_WRITE | VHDX_OPEN_RAW | VHDX_OPEN_NO_PARENT)))
        return fail(-EINVAL, "create options: a parent is opened as an image, with its own parents, for reading");
    int r = disk_open(o->parent, &open_options, &c->parent);
    if (r == 0)
        r = check_is_file(c->parent);
    if (r == 0 && c->parent->nr_layers == MAX_CHAIN_DEPTH)
        r = fail(VHDX_E_CHAIN, "it has %d parents already, and chains of more than %d images are refused", MAX_CHAIN_DEPTH - 1,
                 MAX_CHAIN_DEPTH);
    if (r == 0)
        r = half_merged_refuse_parent(o->parent, &layer_file(&c->parent->layers[0])->identity, &open_options);
    return r < 0 ? fail_in(r, "parent %s", o->parent) : 0;
}

/* Replacing a file of the chain by an image that needs it would destroy both. */
static int refuse_own_chain(const struct new_child *c, const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return 0;
    const struct layer *same = disk_find_layer(c->parent, &(struct storage_identity){st.st_dev, st.st_ino});
    if (!same)
        return 0;
    return fail(-EINVAL, "this is %s of the new image; a child needs a name of its own",
                same == c->parent->layers ? "the parent" : "a grandparent");
}

/* What the guest knows the disk by is the parent's (7.2); the options may say the same. */
static int inherit(const struct new_child *c, struct vhdx_create_options *o)
{
    const struct metadata_values *v = &c->parent->layers[0].img->values;

    if (o->logical_sector_size != 0 && o->logical_sector_size != v->logical_sector_size)
        return fail(-EINVAL, "the parent has logical sectors of %" PRIu32 " bytes, so its child cannot have any of %" PRIu32,
                    v->logical_sector_size, o->logical_sector_size);
    if (o->physical_sector_size != 0 && o->physical_sector_size != v->physical_sector_size)
        return fail(-EINVAL, "the parent has physical sectors of %" PRIu32 " bytes, and its child takes them over; %" PRIu32 " is not possible",
                    v->physical_sector_size, o->physical_sector_size);
    if (o->disk_id && !guid_equal(o->disk_id, &v->disk_id))
        return fail(-EINVAL, "create options: a child has its parent's disk id");
    o->logical_sector_size = v->logical_sector_size;
    o->physical_sector_size = v->physical_sector_size;
    o->disk_id = NULL;
    if (o->virtual_size == 0)
        o->virtual_size = c->parent->size;
    return 0;
}

int child_begin(struct new_child *c, struct new_image *n, const char *path, const struct vhdx_create_options *options,
                uint64_t *virtual_size)
{
    struct vhdx_create_options o = *options;
    char folder[PATH_MAX];

    *c = (struct new_child){0};
    int r = open_parent(c, &o);
    if (r == 0)
        r = refuse_own_chain(c, path);
    if (r == 0)
        r = inherit(c, &o);
    if (r == 0)
        r = new_image_init(n, &o);
    if (r == 0)
        r = real_folder(path, o.replace, folder);
    if (r == 0)
        r = make_locator(c, n, folder, &o);
    if (r == 0)
        r = take_items(c, n);
    if (r < 0)
        return r;
    n->values.disk_id = c->parent->layers[0].img->values.disk_id; /* zeros too, if it is that old */
    *virtual_size = o.virtual_size;
    return 0;
}

void child_end(struct new_child *c)
{
    struct error_text message;

    error_save(&message);
    for (uint32_t i = 0; i < c->nr_items; i++)
        free(c->items[i].bytes);
    free(c->items);
    free(c->locator);
    disk_close(c->parent);
    error_restore(&message);
    *c = (struct new_child){0};
}
