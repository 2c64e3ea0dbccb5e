/* SPDX-License-Identifier: MIT */
/* The public calls: arguments are judged here, the work is done below. */
#include "vhdx.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/guid.h"
#include "base/math.h"
#include "base/utf16.h"
#include "disk/disk.h"
#include "disk/info.h"
#include "format/parent-locator.h"
#include "image/image.h"
#include "ops/ops.h"
#include "ops/survey.h"
#include "storage/storage.h"

/* ---- errors ---- */

static const struct {
    int code;
    int as_errno;
    const char *text;
} own_codes[] = {
    {VHDX_E_NOT_VHDX, EINVAL, "not a VHDX image"},
    {VHDX_E_TRUNCATED, EIO, "file cut short"},
    {VHDX_E_HEADER, EIO, "damaged header"},
    {VHDX_E_REGION, EIO, "damaged region table"},
    {VHDX_E_METADATA, EIO, "damaged metadata"},
    {VHDX_E_BAT, EIO, "damaged block allocation table"},
    {VHDX_E_BITMAP, EIO, "damaged sector bitmap"},
    {VHDX_E_LOG, EIO, "log cannot be replayed"},
    {VHDX_E_LOG_DIRTY, EBUSY, "log must be replayed first"},
    {VHDX_E_UNSUPPORTED, ENOTSUP, "unsupported feature"},
    {VHDX_E_INCOMPLETE, EIO, "image was not fully created"},
    {VHDX_E_PARENT_NOT_FOUND, ENOENT, "parent not found"},
    {VHDX_E_PARENT_MISMATCH, EIO, "parent has another identity"},
    {VHDX_E_PARENT_POLICY, EACCES, "parent path not allowed"},
    {VHDX_E_CHAIN, EIO, "impossible chain of parents"},
    {VHDX_E_LIMIT, EFBIG, "beyond a limit of this library"},
    {VHDX_E_LOCKED, EBUSY, "in use by another program"},
};

const char *vhdx_error_message(void)
{
    return error_message();
}

const char *vhdx_strerror(int code)
{
    for (size_t i = 0; i < ARRAY_LENGTH(own_codes); i++) {
        if (own_codes[i].code == code)
            return own_codes[i].text;
    }
    if (code > 0 || code <= VHDX_E_NOT_VHDX)
        return "unknown error";
    const char *text = code == 0 ? "success" : strerrordesc_np(-code);
    return text ? text : "unknown error";
}

int vhdx_errno(int code)
{
    for (size_t i = 0; i < ARRAY_LENGTH(own_codes); i++) {
        if (own_codes[i].code == code)
            return own_codes[i].as_errno;
    }
    if (code > 0 || code <= VHDX_E_NOT_VHDX)
        return EIO;
    return -code;
}

const char *vhdx_version(void)
{
    return VHDX_VERSION;
}

/* ---- identities ---- */

void vhdx_guid_format(const struct vhdx_guid *g, char text[VHDX_GUID_TEXT_BYTES])
{
    guid_format(g, text);
}

int vhdx_guid_parse(const char *text, struct vhdx_guid *g)
{
    int r = guid_parse(text, g);
    return r < 0 ? fail(r, "\"%.64s\" is not a GUID (like b04aefb7-d19e-4a81-b789-25b8e9445913)", text) : 0;
}

/* ---- opening ---- */

int vhdx_open(const char *path, const struct vhdx_open_options *options, vhdx_disk **disk)
{
    return disk_open(path, options, disk);
}

int vhdx_close(vhdx_disk *disk)
{
    return disk_close(disk);
}

/* ---- the virtual disk ---- */

uint64_t vhdx_size(const vhdx_disk *disk)
{
    return disk->size;
}

int vhdx_pread(vhdx_disk *disk, void *buf, size_t count, uint64_t guest_offset)
{
    return disk_pread(disk, buf, count, guest_offset);
}

int vhdx_preadv(vhdx_disk *disk, const struct iovec *iov, int nr_iov, uint64_t guest_offset)
{
    if (nr_iov < 0)
        return fail(-EINVAL, "%d buffers", nr_iov);
    return disk_preadv(disk, iov, nr_iov, guest_offset);
}

int vhdx_pwrite(vhdx_disk *disk, const void *buf, size_t count, uint64_t guest_offset, uint32_t flags)
{
    struct iovec iov = {(void *)(uintptr_t)buf, count};
    return disk_pwritev(disk, &iov, 1, guest_offset, flags);
}

int vhdx_pwritev(vhdx_disk *disk, const struct iovec *iov, int nr_iov, uint64_t guest_offset, uint32_t flags)
{
    if (nr_iov < 0)
        return fail(-EINVAL, "%d buffers", nr_iov);
    return disk_pwritev(disk, iov, nr_iov, guest_offset, flags);
}

int vhdx_zero(vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags)
{
    return disk_zero(disk, guest_offset, length, flags);
}

int vhdx_discard(vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags)
{
    return disk_discard(disk, guest_offset, length, flags);
}

int vhdx_flush(vhdx_disk *disk)
{
    return disk_flush(disk);
}

int vhdx_map(vhdx_disk *disk, uint64_t guest_offset, uint64_t length, vhdx_extent_fn *fn, void *opaque)
{
    return disk_map(disk, guest_offset, length, fn, opaque);
}

int vhdx_diff(vhdx_disk *disk, uint32_t since, uint64_t guest_offset, uint64_t length, uint32_t flags, vhdx_extent_fn *fn,
              void *opaque, vhdx_progress_fn *progress, void *progress_opaque)
{
    return ops_diff(disk, since, guest_offset, length, flags, fn, opaque, progress, progress_opaque);
}

/* ---- what an image is ---- */

uint32_t vhdx_chain_length(const vhdx_disk *disk)
{
    return disk->nr_layers;
}

const char *vhdx_image_path(const vhdx_disk *disk, uint32_t depth)
{
    return depth < disk->nr_layers ? disk->layers[depth].path : NULL;
}

int vhdx_chain_problem(const vhdx_disk *disk, const char **message)
{
    if (message)
        *message = disk->chain_problem;
    return disk->chain_problem_code;
}

/* The image at depth, or NULL with *error set; a raw disk has none. */
static struct image *image_at(const vhdx_disk *disk, uint32_t depth, int *error)
{
    if (depth >= disk->nr_layers)
        *error = fail(-EINVAL, "depth %" PRIu32 " in a chain of %" PRIu32 " images", depth, disk->nr_layers);
    else if (!disk->layers[depth].img)
        *error = fail(-ENOTSUP, "%s is a raw disk", disk->layers[depth].path);
    else
        return disk->layers[depth].img;
    return NULL;
}

int vhdx_get_info(vhdx_disk *disk, uint32_t depth, struct vhdx_info *info)
{
    size_t struct_bytes = info->struct_bytes;

    if (struct_bytes != sizeof *info)
        return fail(-EINVAL, "info: struct_bytes is %zu, not %zu", struct_bytes, sizeof *info);
    if (depth >= disk->nr_layers)
        return fail(-EINVAL, "depth %" PRIu32 " in a chain of %" PRIu32 " images", depth, disk->nr_layers);
    const struct layer *layer = &disk->layers[depth];
    *info = (struct vhdx_info){.struct_bytes = struct_bytes, .subformat = VHDX_RAW, .virtual_size = layer->size};
    if (layer->img)
        image_fill_info(layer->img, info);
    int r = storage_length(layer_file(layer), &info->file_size);
    return r < 0 ? r : storage_usage(layer_file(layer), &info->disk_usage);
}

int vhdx_count_blocks(vhdx_disk *disk, uint32_t depth, uint64_t counts[VHDX_NR_BLOCK_STATES])
{
    int error = 0;
    struct image *img = image_at(disk, depth, &error);
    return img ? bat_count_states(img, counts) : error;
}

int vhdx_parent_locator(vhdx_disk *disk, uint32_t depth, vhdx_locator_fn *fn, void *opaque)
{
    int r = 0;
    struct image *img = image_at(disk, depth, &r);

    if (!img || !img->locator)
        return r;
    const size_t bytes = UTF8_BYTES_FOR_UNITS(UINT16_MAX / 2);
    char *key = malloc(bytes), *value = malloc(bytes);
    if (!key || !value)
        r = fail_memory("the parent locator");
    for (uint32_t i = 0; r == 0 && i < locator_nr_pairs(img->locator); i++) {
        struct locator_pair p;
        locator_pair(img->locator, i, &p);
        r = locator_text(img->locator, p.key_offset, p.key_length, key, bytes);
        if (r == 0)
            r = locator_text(img->locator, p.value_offset, p.value_length, value, bytes);
        if (r == 0)
            r = fn(opaque, key, value);
    }
    free(key);
    free(value);
    return r;
}

int vhdx_metadata_list(vhdx_disk *disk, uint32_t depth, vhdx_metadata_fn *fn, void *opaque)
{
    int r = 0;
    struct image *img = image_at(disk, depth, &r);

    for (uint32_t i = 0; img && r == 0 && i < img->nr_items; i++) {
        const struct metadata_entry *e = &img->items[i];
        struct vhdx_metadata_item item = {.id = e->id, .flags = e->flags, .length = e->length};
        r = fn(opaque, &item);
    }
    return r;
}

int64_t vhdx_metadata_read(vhdx_disk *disk, uint32_t depth, const struct vhdx_guid *id, bool user, void *buf,
                           size_t buf_bytes)
{
    int r = 0;
    struct image *img = image_at(disk, depth, &r);

    if (!img)
        return r;
    for (uint32_t i = 0; i < img->nr_items; i++) {
        const struct metadata_entry *e = &img->items[i];
        if (!guid_equal(&e->id, id) || user != !!(e->flags & VHDX_METADATA_USER))
            continue;
        if (e->length > buf_bytes || e->length == 0)
            return e->length;
        r = image_pread(img, buf, e->length, img->metadata->file_offset + e->offset);
        return r < 0 ? fail_in(r, "metadata item") : (int64_t)e->length;
    }
    char text[VHDX_GUID_TEXT_BYTES];
    guid_format(id, text);
    return fail(-ENOENT, "there is no %s metadata item %s", user ? "user" : "system", text);
}

int vhdx_probe(const char *path)
{
    struct storage *s;
    int r = storage_posix_open(path, 0, &s);

    if (r < 0)
        return r;
    r = disk_probe_file(s);
    storage_close(s);
    return r;
}

/* ---- whole-disk operations ---- */

int vhdx_copy_to_file(vhdx_disk *disk, int fd, const struct vhdx_copy_options *options)
{
    return ops_copy_to_file(disk, fd, options);
}

int vhdx_copy_to_new_file(vhdx_disk *disk, const char *path, const struct vhdx_copy_options *options)
{
    return ops_copy_to_new_file(disk, path, options);
}

int vhdx_copy_to_stream(vhdx_disk *disk, int fd, const struct vhdx_copy_options *options)
{
    return ops_copy_to_stream(disk, fd, options);
}

int vhdx_copy_to_disk(vhdx_disk *source, vhdx_disk *target, const struct vhdx_copy_options *options)
{
    return ops_copy_to_disk(source, target, options);
}

int vhdx_copy_to_image(vhdx_disk *disk, const char *path, const struct vhdx_create_options *create_options,
                       const struct vhdx_copy_options *copy_options)
{
    return ops_copy_to_image(disk, path, create_options, copy_options);
}

int vhdx_copy_stream_to_image(int fd, const char *path, const struct vhdx_create_options *create_options,
                              const struct vhdx_copy_options *copy_options)
{
    return ops_copy_stream_to_image(fd, path, create_options, copy_options);
}

int vhdx_create(const char *path, const struct vhdx_create_options *options)
{
    return ops_create(path, options);
}

int vhdx_compare(vhdx_disk *a, vhdx_disk *b, struct vhdx_compare_result *result, vhdx_progress_fn *progress,
                 void *opaque)
{
    return ops_compare(a, b, result, progress, opaque);
}

int vhdx_check(const char *path, const struct vhdx_open_options *options, vhdx_finding_fn *fn, void *opaque,
               struct vhdx_check_result *result, vhdx_progress_fn *progress, void *progress_opaque)
{
    return ops_check(path, options, fn, opaque, result, progress, progress_opaque);
}

int vhdx_dump(const char *path, const struct vhdx_open_options *options, const struct vhdx_dump_options *dump,
              const struct vhdx_dump_sink *sink, void *opaque)
{
    return ops_dump(path, options, dump, sink, opaque);
}

/* ---- links between images ---- */

int vhdx_rebase(const char *path, const struct vhdx_rebase_options *options)
{
    return ops_rebase(path, options);
}

int vhdx_flatten(const char *path, const struct vhdx_flatten_options *options)
{
    return ops_flatten(path, options);
}

int vhdx_merge(const char *path, const struct vhdx_merge_options *options, struct vhdx_merge_result *result)
{
    return ops_merge(path, options, result);
}

int vhdx_snapshot(const char *path, const char *name, const struct vhdx_snapshot_options *options)
{
    return ops_snapshot(path, name, options);
}

int vhdx_snapshot_revert(const char *path, const char *snapshot_path, const struct vhdx_snapshot_options *options)
{
    return ops_snapshot_revert(path, snapshot_path, options);
}

/* ---- surveys ---- */

int vhdx_survey_new(const char *path, const struct vhdx_open_options *options, uint32_t flags, vhdx_progress_fn *progress,
                    void *opaque, vhdx_survey **survey)
{
    return ops_survey_new(path, options, flags, progress, opaque, survey);
}

void vhdx_survey_free(vhdx_survey *survey)
{
    ops_survey_free(survey);
}

size_t vhdx_survey_count(const vhdx_survey *survey)
{
    return survey->nr_images;
}

int vhdx_survey_get(const vhdx_survey *survey, size_t index, struct vhdx_survey_image *image)
{
    return ops_survey_image(survey, index, image);
}

uint64_t vhdx_survey_skipped(const vhdx_survey *survey)
{
    return survey->nr_skipped;
}

uint64_t vhdx_survey_elsewhere(const vhdx_survey *survey)
{
    return survey->nr_elsewhere;
}
