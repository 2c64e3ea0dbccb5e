/* SPDX-License-Identifier: MIT */
/* What the sweeps over operations on whole images work on: a disk in two images. */
#ifndef VHDX_TESTS_MALLOC_SCENE_H
#define VHDX_TESTS_MALLOC_SCENE_H

#include "../unit/unit.h"
#include "disk/disk.h"
#include "malloc-sweep.h"
#include "vhdx.h"

enum { PATH_BYTES = SCRATCH_PATH_BYTES + 32, DISK_BYTES = 4 * 1024 * 1024 };

/* The disk, and what is made of it. */
struct scene {
    char folder[SCRATCH_PATH_BYTES];
    char parent[PATH_BYTES], child[PATH_BYTES];                             /* as they are at first */
    char work[PATH_BYTES], work_parent[PATH_BYTES], work_child[PATH_BYTES]; /* copies to be worked on */
    char target[PATH_BYTES];
    enum vhdx_subformat subformat;
    int fd;
    uint64_t nr_bytes;
    enum vhdx_link link;
    vhdx_disk *disk;
    struct vhdx_survey *survey;
    uint8_t *content; /* of the child's disk, DISK_BYTES */
};

/* Set up and tear down; the second one with a folder for copies. */
int scene_begin(void **state);
int scene_begin_work(void **state);
int scene_end(void **state);

/* The path of what is called so in the scene's folder. */
void scene_name(char path[PATH_BYTES], const struct scene *s, const char *in_folder);

/* Create as the test says; parent may be NULL. */
int scene_create(const char *path, enum vhdx_subformat subformat, const char *parent);
vhdx_disk *must_open(const char *path, uint32_t flags);
void must_hold_content(const struct scene *s, const char *path, uint32_t flags);

/* Write bytes of this kind. */
void fill(vhdx_disk *disk, uint8_t with, uint64_t bytes, uint64_t offset);

/* ---- for a sweep ---- */

/* prepare: there is no target. */
void no_target(void *opaque);

/* The same with the child's disk open; judge_conversion() closes it. */
void prepare_conversion(void *opaque);

/* Only what succeeded has left a file, and nothing else of it is in the folder: two images and perhaps the target. */
void judge_target(struct scene *s, int result);

/* judge: and it has the content. */
void judge_conversion(void *opaque, int result);

/* prepare: fresh copies in the folder for them. */
void prepare_work(void *opaque);

struct vhdx_copy_options with_workers(void);

#endif
