/* SPDX-License-Identifier: MIT */
/* The states of a disk that "vhdx snapshot" keeps, as files beside it: of disk.vhdx the state NAME is disk.NAME.vhdx, or
 * disk.NAME.avhdx if it is a child itself. */
#ifndef SNAPSHOT_STATES_H
#define SNAPSHOT_STATES_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#include "options.h"
#include "vhdx.h"

/* An image and how its states are called. */
struct subject {
    const char *name;
    char real[PATH_MAX]; /* path of the file itself */
    size_t folder_length, stem_length; /* of real: up to the slash; of the name behind it: up to the extension */
    struct vhdx_open_options open_options;
    bool search_below;
    const char **dirs; /* owned; where parents and relatives may lie */
};

/* name must stay valid; find: folders where images that rest on the disk are looked for.  0; or -1, reported. */
int subject_init(struct subject *s, const char *name, const struct text_list *find);
void subject_done(struct subject *s);

/* ---- names ---- */

const char *file_name(const char *path);

/* The state's name if real is the path of a file of one of the subject's states, to be freed; else NULL. */
char *state_of_path(const struct subject *s, const char *real);

/* The same of a path that may have links in it. */
char *state_of(const struct subject *s, const char *path);

/* Can a new state be called so?  It becomes a part of a file name that its children record (format section 8.2). */
bool is_state_name(const char *state);

/* The path of a state's file, beside the image.  False: a state cannot have that name. */
bool state_path(const struct subject *s, const char *state, const char *extension, char path[PATH_MAX]);

/* Does that file exist? */
bool has_state(const struct subject *s, const char *state, const char *extension, char path[PATH_MAX]);

/* A name beside the image by which its states are called, and the file that it leads to. */
struct state_file {
    char *path;
    dev_t device;
    ino_t inode;
};

/* All of them, in order of the names, to be freed by state_files_free().  0; or -1, reported. */
int state_files(const struct subject *s, struct state_file **files, size_t *nr_files);
void state_files_free(struct state_file *files, size_t nr_files);

bool is_state_of(const struct state_file *file, const struct stat *st);

/* The file at path is the present state's own by a second name, which an interrupted snapshot left.  Does the same command complete
 * that?  Not if the image has become a child since or is none any more, so that it would give another name, or if there are more
 * of them. */
bool can_be_completed(const struct subject *s, const char *path);

/* Say that the file at path, the present state's own by a second name, is what a snapshot left that was interrupted. */
void print_unfinished(const struct subject *s, const char *path);

/* The file of the state that the user calls so, or by the name of its file; one that an interrupted snapshot did not complete is
 * none.  0; or -1, reported. */
int find_state(const struct subject *s, const char *state, char path[PATH_MAX]);

/* ---- the image's place in its chain ---- */

/* Is the image a child?  A failure is reported and returned. */
int subject_has_parent(const struct subject *s, bool *answer);

/* Report why something was not done, code, or that a signal stopped it.  Returns the exit status. */
int print_nothing_done(const struct subject *s, int code);

/* Survey the folder of the image, and those that were named; flags: more of them.  A failure is reported and returned. */
int subject_survey(const struct subject *s, uint32_t flags, vhdx_survey **result);

/* Where the survey has the file, and what it says of it; VHDX_NO_IMAGE: nowhere.  A file that has two names it knows by one. */
size_t find_in_survey(const vhdx_survey *all, const char *path, struct vhdx_survey_image *image);

#endif
