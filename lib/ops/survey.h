/* SPDX-License-Identifier: MIT */
/* Which images there are and how they hang together:
 *
 *   survey-scan.c   finds files and says what each is
 *   survey-link.c   finds each image's parent
 *   survey-tree.c   keeps what was asked for and puts it in the order of a tree
 *   survey.c        the public calls
 *
 * Files come from folders that anybody may have written into, and paths from images: all of it is hostile (H4).  An image is open
 * only while it is looked at, so the number of files costs memory and no descriptors. */
#ifndef VHDX_OPS_SURVEY_H
#define VHDX_OPS_SURVEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/storage.h"
#include "vhdx.h"

enum {
    SURVEY_MAX_IMAGES = 100000,
    SURVEY_MAX_FOLDERS_DEEP = 64,
    NR_RECORDED_PATHS = 3, /* relative_path, volume_path, absolute_win32_path */
};

struct survey_image {
    char *path; /* owned, as the rest */
    struct storage_identity identity;
    bool wanted, in_use;
    int error;
    char *problem;
    struct vhdx_info info;
    uint8_t *locator; /* the checked item, until the link is known */
    char *recorded[NR_RECORDED_PATHS];
    bool relative_path_leads;
    enum vhdx_link link;
    char *remark;
    size_t parent, instead;
    size_t merging; /* a child of which a merge into this image was begun and did not come to its end */
    uint32_t depth;
};

struct vhdx_survey {
    struct survey_image *images;
    size_t nr_images, capacity;
    size_t *buckets; /* by identity: index + 1, 0: empty; open addressing */
    size_t nr_buckets;
    uint64_t locator_bytes; /* all together */
    uint64_t nr_files;
    uint64_t nr_skipped;   /* folders that could not be looked into, or at all that is in them */
    uint64_t nr_elsewhere; /* folders on other file systems */
    char *unreadable;      /* owned; in words, of the first image seen, relative or not, that nobody writes and that cannot be read; NULL: none */
    bool of_image;         /* an image was asked about, and not a folder */
    struct folder_names *names; /* while links are looked for */
    const struct vhdx_open_options *options;
    bool keeps_all; /* nothing is left out that was looked at, and the image that was asked about may be unreadable, too */
    const char *likely; /* look into no file but those that may be relatives of this one, by their names; NULL: into all */
    uint32_t flags;
    vhdx_progress_fn *progress;
    void *opaque;
};

/* A survey of an image and of those of its relatives that are called images, or as it is up to the first dot: disk.state.vhdx and
 * disk.img. No other file is opened, which may cost more than anybody would expect where only an image is made: on a server, or
 * brought back from tape. */
int survey_likely_relatives(const char *path, const struct vhdx_open_options *options, struct vhdx_survey **s);

/* The same, of an image that need not be readable; and all that was looked at is in it, relative or not, readable or not. */
int survey_likely_neighbours(const char *path, const struct vhdx_open_options *options, struct vhdx_survey **s);

/* What follows in name on the part that image, a name too, has up to the first dot; NULL: it begins otherwise. */
const char *survey_behind_same_beginning(const char *name, const char *image);

/* Does it begin as an image does?  Reading nothing else makes a look at thousands of other files cheap. */
bool survey_begins_like_image(struct storage *file);

/* Look at every file in folder, named so in paths.  wanted: the user asked about it. */
int survey_folder(struct vhdx_survey *s, const char *folder, bool wanted, bool below);

/* Enter the file behind fd (owned), a regular file unless the caller allows devices, by the name path.  *index is its number, or
 * VHDX_NO_IMAGE if it is not an image and not called one; demand_image: that is an entry with an error as well. */
int survey_file(struct vhdx_survey *s, int fd, const char *path, bool wanted, bool demand_image, size_t *index);

/* -ECANCELED: the user does not want to wait any longer.  To be called for each file, and for each link. */
int survey_report_progress(const struct vhdx_survey *s);

/* Find the parents of all images, more of which may come in by that.  folder: the one that was asked about, or NULL. */
int survey_link(struct vhdx_survey *s, const char *folder);

/* Leave out what has nothing to do with what was asked for, and put the rest in the order of a tree. */
int survey_arrange(struct vhdx_survey *s);

void survey_image_free(struct survey_image *image);

/* May it be anybody's child?  What is no VHDX at all is nobody's, and what is half written is read again by whoever cares. */
static inline bool survey_is_unreadable(const struct survey_image *image)
{
    return image->error != 0 && image->error != VHDX_E_NOT_VHDX && !image->in_use;
}

#endif
