/* SPDX-License-Identifier: MIT */
/* Whole-image operations, each as the public call of the same name in vhdx.h describes it. */
#ifndef VHDX_OPS_OPS_H
#define VHDX_OPS_OPS_H

#include "vhdx.h"

int ops_copy_to_file(vhdx_disk *disk, int fd, const struct vhdx_copy_options *options);
int ops_copy_to_new_file(vhdx_disk *disk, const char *path, const struct vhdx_copy_options *options);
int ops_copy_to_stream(vhdx_disk *disk, int fd, const struct vhdx_copy_options *options);
int ops_copy_to_image(vhdx_disk *disk, const char *path, const struct vhdx_create_options *create_options,
                      const struct vhdx_copy_options *copy_options);
int ops_copy_stream_to_image(int fd, const char *path, const struct vhdx_create_options *create_options,
                             const struct vhdx_copy_options *copy_options);
int ops_copy_to_disk(vhdx_disk *source, vhdx_disk *target, const struct vhdx_copy_options *options);
int ops_create(const char *path, const struct vhdx_create_options *options);
int ops_diff(vhdx_disk *disk, uint32_t since, uint64_t guest_offset, uint64_t length, uint32_t flags, vhdx_extent_fn *fn,
             void *opaque, vhdx_progress_fn *progress, void *progress_opaque);
int ops_compare(vhdx_disk *a, vhdx_disk *b, struct vhdx_compare_result *result, vhdx_progress_fn *progress,
                void *opaque);
int ops_check(const char *path, const struct vhdx_open_options *options, vhdx_finding_fn *fn, void *opaque,
              struct vhdx_check_result *result, vhdx_progress_fn *progress, void *progress_opaque);
int ops_dump(const char *path, const struct vhdx_open_options *options, const struct vhdx_dump_options *dump,
             const struct vhdx_dump_sink *sink, void *opaque);
int ops_flatten(const char *path, const struct vhdx_flatten_options *options);
int ops_merge(const char *path, const struct vhdx_merge_options *options, struct vhdx_merge_result *result);
int ops_rebase(const char *path, const struct vhdx_rebase_options *options);
int ops_snapshot(const char *path, const char *name, const struct vhdx_snapshot_options *options);
int ops_snapshot_revert(const char *path, const char *snapshot_path, const struct vhdx_snapshot_options *options);
int ops_survey_new(const char *path, const struct vhdx_open_options *options, uint32_t flags, vhdx_progress_fn *progress,
                   void *opaque, vhdx_survey **survey);
void ops_survey_free(vhdx_survey *survey);
int ops_survey_image(const vhdx_survey *survey, size_t index, struct vhdx_survey_image *image);

#endif
