/* SPDX-License-Identifier: MIT */
#include "snapshot-delete.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "snapshot-states.h"

static size_t root_of(const vhdx_survey *all, size_t index)
{
    struct vhdx_survey_image image = {.struct_bytes = sizeof image};

    while (vhdx_survey_get(all, index, &image) == 0 && image.parent != VHDX_NO_IMAGE)
        index = image.parent;
    return index;
}

/* Where in the survey the state is; VHDX_NO_IMAGE, and an error printed, if the file has nothing to do with the disk.  A broken
 * link may lead to what only lies in the parent's place, but that is another disk then. */
static size_t find_own_state(const struct subject *s, const vhdx_survey *all, const char *path)
{
    struct vhdx_survey_image active, image;

    size_t present = find_in_survey(all, s->real, &active), state = find_in_survey(all, path, &image);
    if (state != VHDX_NO_IMAGE && (root_of(all, present) == root_of(all, state) ||
                                   memcmp(&active.info.disk_id, &image.info.disk_id, sizeof image.info.disk_id) == 0))
        return state;
    print_error(s->name, "%s is no state of this disk: nothing links it to that", path);
    return VHDX_NO_IMAGE;
}

/* How many images rest on it, or would if their link were not broken; the first one's path, and the names of all. */
static size_t find_children(const vhdx_survey *all, size_t state, char child[PATH_MAX], FILE *names)
{
    size_t nr = 0;

    for (size_t i = 0; i < vhdx_survey_count(all); i++) {
        struct vhdx_survey_image image = {.struct_bytes = sizeof image};
        vhdx_survey_get(all, i, &image);
        if (image.parent != state && image.instead != state)
            continue;
        if (nr++ == 0)
            snprintf(child, PATH_MAX, "%s", image.path);
        fprintf(names, "%s%s", nr == 1 ? "" : ", ", file_name(image.path));
    }
    return nr;
}

/* What was changed after the state, in the only child that it has, goes into its file, which takes that child's name. */
static int find_only_child(const struct subject *s, const char *path, char child[PATH_MAX])
{
    char *text = NULL;
    size_t length, nr = 0;
    vhdx_survey *all;

    if (subject_survey(s, 0, &all) < 0)
        return -1;
    size_t state = find_own_state(s, all, path);
    FILE *names = state == VHDX_NO_IMAGE ? NULL : open_memstream(&text, &length);
    if (state != VHDX_NO_IMAGE && !names)
        print_error(s->name, "out of memory");
    if (names) {
        nr = find_children(all, state, child, names);
        fclose(names);
        if (nr == 0)
            print_error(s->name, "no image here rests on %s; if none does elsewhere, and it is not needed, remove the file", path);
        if (nr > 1)
            print_error(s->name, "more than one image rests on %s, so it has to stay: %s", path, text ? text : "");
    }
    free(text);
    vhdx_survey_free(all);
    return nr == 1 ? 0 : -1;
}

/* A second name of the state's file would lead to what the disk becomes. */
static int refuse_other_names(const struct subject *s, const char *path)
{
    struct state_file *files;
    size_t nr_files;
    int r = 0;

    if (state_files(s, &files, &nr_files) < 0)
        return -1;
    for (size_t i = 0; r == 0 && i < nr_files; i++) {
        if (strcmp(files[i].path, path) == 0 || !is_same_file(files[i].path, path))
            continue;
        print_error(s->name, "the file %s is the state %s as well; remove the name that nothing records as its parent's ('vhdx info' shows that)",
                    path, files[i].path);
        r = -1;
    }
    state_files_free(files, nr_files);
    return r;
}

int snapshot_delete(const struct subject *s, const char *path)
{
    struct vhdx_merge_options merge_options = VHDX_MERGE_OPTIONS_INIT;
    char child[PATH_MAX];

    if (refuse_other_names(s, path) < 0 || find_only_child(s, path, child) < 0)
        return EXIT_TROUBLE;
    merge_options.open = &s->open_options;
    merge_options.search_below = s->search_below;
    merge_options.into = path;
    merge_options.take_name = true;
    merge_options.progress = progress_step;
    progress_begin(true);
    int code = vhdx_merge(child, &merge_options, NULL);
    progress_end(code == 0);
    if (code == -ECANCELED && signals_caught()) {
        print_error(s->name, "stopped by a signal; the disk shows what it did before, and the same command completes the work");
        return 128 + signals_caught();
    }
    if (code < 0) {
        print_library_error(s->name, code);
        return EXIT_TROUBLE;
    }
    return EXIT_OK;
}
