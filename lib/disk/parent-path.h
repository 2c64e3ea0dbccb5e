/* SPDX-License-Identifier: MIT */
/* Where a parent may lie: turning what the parent locator says, which is hostile input, into open files (format sections
 * 8.3 to 8.5, H4).
 *
 * Without further permission only files in the child's own folder and below, and in folders that the user named, are
 * opened; everything else is not even looked at, so nothing about it can leak into an error message. */
#ifndef VHDX_DISK_PARENT_PATH_H
#define VHDX_DISK_PARENT_PATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct folder_names;
struct storage_identity;

struct parent_policy {
    const char *const *dirs; /* folders that the user named */
    size_t nr_dirs;
    const char *first_child; /* path of the image that was opened: its folder counts as named; NULL: it is in none */
    bool allow_any;          /* VHDX_OPEN_ALLOW_PARENT_PATH */
    struct folder_names *names; /* listings to be used and added to by many searches; NULL: none */
};

/* A regular file at one of the places, open for reading; fd is the callee's.  Return 0 to look at the next place, 1 if
 * this is the parent, a negative code to give up. */
typedef int parent_candidate_fn(void *opaque, int fd, const char *path);

struct parent_search {
    bool blocked;      /* a recorded path was not followed because of the policy */
    bool relative_followed; /* relative_path leads where it may be followed, whatever is there */
    bool not_regular;  /* something was there that is no regular file */
    int open_error;    /* last -errno of a place that exists but could not be opened, or 0 */
    char recorded[512]; /* the first recorded path, for messages */
};

/* Call fn for every file at a place where locator (checked) says that the parent of the image at child_path (NULL: it is in
 * no folder) may be, best place first.  1: fn took one.  0: none was taken; search tells what was in the way.  Negative: fn's or
 * own failure. */
int parent_candidates(const struct parent_policy *policy, const char *child_path, const uint8_t *locator,
                      parent_candidate_fn *fn, void *opaque, struct parent_search *search);

/* Does relative_path name this file, which was found as parent_path, from a folder of the child: by its name, or where it really
 * lies?  It is followed into the folders of both images and nowhere else, so nothing is touched or told of what else may be there
 * (8.5 rule 11).  names: as in the policy.  1: yes, 0: no; -ENOMEM. */
int parent_is_where_recorded(struct folder_names *names, const char *child_path, const char *parent_path, const uint8_t *locator,
                             const struct storage_identity *parent);

#endif
