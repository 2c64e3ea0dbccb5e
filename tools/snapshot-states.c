/* SPDX-License-Identifier: MIT */
#include "snapshot-states.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmd.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "utf8.h"

/* ---- names ---- */

const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool has_extension(const char *name, const char *extension)
{
    size_t n = strlen(name), m = strlen(extension);
    return n > m && strcasecmp(name + n - m, extension) == 0;
}

static int add_folders(struct subject *s, const struct text_list *find)
{
    size_t nr_named = s->open_options.nr_parent_dirs;

    s->dirs = calloc(nr_named + find->nr_texts + 1, sizeof *s->dirs);
    if (!s->dirs) {
        print_error(NULL, "out of memory");
        return -1;
    }
    for (size_t i = 0; i < nr_named + find->nr_texts; i++)
        s->dirs[i] = i < nr_named ? s->open_options.parent_dirs[i] : find->texts[i - nr_named];
    s->open_options.parent_dirs = s->dirs;
    s->open_options.nr_parent_dirs = nr_named + find->nr_texts;
    return 0;
}

void subject_done(struct subject *s)
{
    free(s->dirs);
}

int subject_init(struct subject *s, const char *name, const struct text_list *find)
{
    struct stat st;

    *s = (struct subject){.name = name};
    if (!realpath(name, s->real)) {
        print_error(name, "cannot open: %s", strerror(errno));
        return -1;
    }
    if (stat(s->real, &st) == 0 && S_ISDIR(st.st_mode)) { /* which a survey would take for all that is in it */
        print_error(name, "this is a folder, an image is a file");
        return -1;
    }
    const char *file = file_name(s->real);
    s->folder_length = (size_t)(file - s->real);
    s->stem_length = strlen(file) - (has_extension(file, ".avhdx") ? 6 : has_extension(file, ".vhdx") ? 5 : 0);
    open_options_fill(&s->open_options, 0);
    s->open_options.parent = NULL;
    s->search_below = find->nr_texts > 0;
    return add_folders(s, find);
}

char *state_of_path(const struct subject *s, const char *real)
{
    if (strncmp(real, s->real, s->folder_length + s->stem_length) != 0)
        return NULL;
    const char *rest = real + s->folder_length + s->stem_length;
    size_t extension = has_extension(rest, ".avhdx") ? 6 : has_extension(rest, ".vhdx") ? 5 : 0;
    if (extension == 0 || rest[0] != '.' || strchr(rest, '/') || strlen(rest) <= 1 + extension)
        return NULL;
    return strndup(rest + 1, strlen(rest) - 1 - extension);
}

char *state_of(const struct subject *s, const char *path)
{
    char real[PATH_MAX];

    return realpath(path, real) ? state_of_path(s, real) : NULL;
}

bool state_path(const struct subject *s, const char *state, const char *extension, char path[PATH_MAX])
{
    int n = snprintf(path, PATH_MAX, "%.*s.%s%s", (int)(s->folder_length + s->stem_length), s->real, state, extension);

    return n > 0 && n < PATH_MAX && *state && !strchr(state, '/');
}

bool is_state_name(const char *state)
{
    if (!*state)
        return false;
    while (*state) {
        int32_t c = utf8_next(&state);
        if (c == UTF8_INVALID || c < 0x20 || c == 0x7f || c == '/' || c == '\\' || c == ':')
            return false;
    }
    return true;
}

bool has_state(const struct subject *s, const char *state, const char *extension, char path[PATH_MAX])
{
    return state_path(s, state, extension, path) && access(path, F_OK) == 0;
}

/* ---- all names ---- */

bool is_state_of(const struct state_file *file, const struct stat *st)
{
    return st->st_dev == file->device && st->st_ino == file->inode;
}

void state_files_free(struct state_file *files, size_t nr_files)
{
    for (size_t i = 0; i < nr_files; i++)
        free(files[i].path);
    free(files);
}

/* Add the name if it is a state's; false: out of memory. */
static bool add_state_file(const struct subject *s, const char *file, struct state_file **files, size_t *nr_files)
{
    char path[PATH_MAX], *state = NULL;
    struct stat st;
    int n = snprintf(path, PATH_MAX, "%.*s%s", (int)s->folder_length, s->real, file);

    if (n > 0 && n < PATH_MAX && lstat(path, &st) == 0 && S_ISREG(st.st_mode))
        state = state_of_path(s, path);
    if (!state)
        return true;
    free(state);
    struct state_file *grown = reallocarray(*files, *nr_files + 1, sizeof *grown);
    if (!grown)
        return false;
    *files = grown;
    grown[*nr_files] = (struct state_file){strdup(path), st.st_dev, st.st_ino};
    return grown[(*nr_files)++].path != NULL;
}

int state_files(const struct subject *s, struct state_file **files, size_t *nr_files)
{
    char folder[PATH_MAX];
    struct dirent **names;
    bool complete = true;

    *files = NULL;
    *nr_files = 0;
    snprintf(folder, sizeof folder, "%.*s", (int)s->folder_length, s->real);
    int n = scandir(folder, &names, NULL, alphasort);
    if (n < 0) {
        print_error(s->name, "cannot list the folder %s: %s", folder, strerror(errno));
        return -1;
    }
    for (int i = 0; i < n; i++) {
        complete = complete && add_state_file(s, names[i]->d_name, files, nr_files);
        free(names[i]);
    }
    free(names);
    if (complete)
        return 0;
    state_files_free(*files, *nr_files);
    print_error(NULL, "out of memory");
    return -1;
}

/* ---- what the user calls a state ---- */

static size_t count_unfinished(const struct subject *s)
{
    struct state_file *files;
    size_t nr_files, nr = 0;

    if (state_files(s, &files, &nr_files) < 0)
        return 0;
    for (size_t i = 0; i < nr_files; i++)
        nr += is_same_file(files[i].path, s->real);
    state_files_free(files, nr_files);
    return nr;
}

bool can_be_completed(const struct subject *s, const char *path)
{
    char now[PATH_MAX], *state = state_of_path(s, path);
    bool is_child;

    bool can = state && is_state_name(state) && subject_has_parent(s, &is_child) == 0 &&
               state_path(s, state, is_child ? ".avhdx" : ".vhdx", now) && strcmp(now, path) == 0 && count_unfinished(s) == 1;
    free(state);
    return can;
}

void print_unfinished(const struct subject *s, const char *path)
{
    char *state = state_of_path(s, path);
    const char *name = state ? state : "";

    if (can_be_completed(s, path))
        print_error(s->name, "a snapshot '%s' was interrupted and is not complete: 'vhdx snapshot %s %s' completes it, with what the disk holds then; "
                    "or remove the name %s", name, s->name, name, path);
    else
        print_error(s->name, "a snapshot '%s' was interrupted and is not complete, and cannot be completed as it is: remove the name %s", name, path);
    free(state);
}

/* Does the user call it by the name of its file? */
static bool is_state_file(const struct subject *s, const char *file, char path[PATH_MAX])
{
    int n = snprintf(path, PATH_MAX, "%.*s%s", (int)s->folder_length, s->real, file);
    char *state = n > 0 && n < PATH_MAX && !strchr(file, '/') ? state_of(s, path) : NULL;

    free(state);
    return state != NULL;
}

int find_state(const struct subject *s, const char *state, char path[PATH_MAX])
{
    char other[PATH_MAX];

    if (has_state(s, state, ".vhdx", path) && has_state(s, state, ".avhdx", other)) {
        print_error(s->name, "%s and %s are both called '%s'; say which, by the name of the file", path, other, state);
        return -1;
    }
    if (!has_state(s, state, ".vhdx", path) && !has_state(s, state, ".avhdx", path) && !is_state_file(s, state, path)) {
        print_error(s->name, "there is no state '%s'; 'vhdx snapshot --list' shows those that there are", state);
        return -1;
    }
    if (!is_same_file(path, s->real))
        return 0;
    print_unfinished(s, path);
    return -1;
}

/* ---- the image's place in its chain ---- */

int subject_has_parent(const struct subject *s, bool *answer)
{
    struct vhdx_open_options alone = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_info info = {.struct_bytes = sizeof info};
    vhdx_disk *disk;

    /* Whoever changes it later asks for the lock. */
    alone.flags = VHDX_OPEN_NO_PARENT | VHDX_OPEN_UNVERIFIED | VHDX_OPEN_FORCE_SHARE;
    int code = vhdx_open(s->real, &alone, &disk);
    if (code == 0) {
        code = vhdx_get_info(disk, 0, &info);
        vhdx_close(disk);
    }
    if (code < 0)
        print_library_error(s->name, code);
    *answer = info.has_parent;
    return code;
}

int subject_survey(const struct subject *s, uint32_t flags, vhdx_survey **result)
{
    if (s->search_below)
        flags |= VHDX_SURVEY_BELOW;
    int code = vhdx_survey_new(s->real, &s->open_options, flags, progress_step, NULL, result);

    if (code < 0)
        print_nothing_done(s, code);
    return code;
}

int print_nothing_done(const struct subject *s, int code)
{
    if (code == -ECANCELED && signals_caught()) {
        print_error(s->name, "stopped by a signal; nothing was changed");
        return 128 + signals_caught();
    }
    print_library_error(s->name, code);
    return EXIT_TROUBLE;
}

size_t find_in_survey(const vhdx_survey *all, const char *path, struct vhdx_survey_image *image)
{
    for (size_t i = 0; i < vhdx_survey_count(all); i++) {
        *image = (struct vhdx_survey_image){.struct_bytes = sizeof *image};
        vhdx_survey_get(all, i, image);
        if (is_same_file(image->path, path))
            return i;
    }
    return VHDX_NO_IMAGE;
}
