/* SPDX-License-Identifier: MIT */
/* vhdx snapshot: keeps states of a disk that can be gone back to, as files beside it: of disk.vhdx the state NAME is
 * disk.NAME.vhdx, or disk.NAME.avhdx if it is a child itself. */
#include "cmd.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "document.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "size.h"

static struct {
    int list, revert, remove, force, ignore_unreadable;
    struct text_list find;
} settings;

static const struct option options[] = {
    {'l', "list", OPTION_FLAG, &settings.list, NULL, "list the states that are kept"},
    {'a', "revert", OPTION_FLAG, &settings.revert, NULL, "go back to NAME, or the last one; what came after it is dropped"},
    {'d', "delete", OPTION_FLAG, &settings.remove, NULL, "drop the state NAME and keep the present one"},
    {0, "find", OPTION_LIST, &settings.find, "DIR", "look for other images that rest on the disk in DIR and below"},
    {0, "force", OPTION_FLAG, &settings.force, NULL, "do not ask before --revert drops anything"},
    {0, "ignore-unreadable", OPTION_FLAG, &settings.ignore_unreadable, NULL, "let --revert go past images that cannot be read, and name them"},
    {0, "parent-dir", OPTION_LIST, &common.parent_dirs, "DIR", "look for parents in DIR too; may be repeated"},
    {0, "allow-parent-path", OPTION_FLAG, &common.allow_parent_path, NULL, "follow recorded absolute parent paths"},
    {0},
};

/* An image and how its states are called. */
struct subject {
    const char *name;
    char real[PATH_MAX]; /* path of the file itself */
    size_t folder_length, stem_length; /* of real: up to the slash; of the name behind it: up to the extension */
    struct vhdx_open_options open_options;
    const char **dirs; /* owned; where parents and relatives may lie */
};

/* ---- names ---- */

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool has_extension(const char *name, const char *extension)
{
    size_t n = strlen(name), m = strlen(extension);
    return n > m && strcasecmp(name + n - m, extension) == 0;
}

static int add_folders(struct subject *s)
{
    size_t nr_named = s->open_options.nr_parent_dirs;

    s->dirs = calloc(nr_named + settings.find.nr_texts + 1, sizeof *s->dirs);
    if (!s->dirs) {
        print_error(NULL, "out of memory");
        return -1;
    }
    for (size_t i = 0; i < nr_named + settings.find.nr_texts; i++)
        s->dirs[i] = i < nr_named ? s->open_options.parent_dirs[i] : settings.find.texts[i - nr_named];
    s->open_options.parent_dirs = s->dirs;
    s->open_options.nr_parent_dirs = nr_named + settings.find.nr_texts;
    return 0;
}

static void subject_done(struct subject *s)
{
    free(s->dirs);
    free(settings.find.texts);
}

static int subject_init(struct subject *s, const char *name)
{
    *s = (struct subject){.name = name};
    if (!realpath(name, s->real)) {
        print_error(name, "cannot open: %s", strerror(errno));
        return -1;
    }
    const char *file = file_name(s->real);
    s->folder_length = (size_t)(file - s->real);
    s->stem_length = strlen(file) - (has_extension(file, ".avhdx") ? 6 : has_extension(file, ".vhdx") ? 5 : 0);
    open_options_fill(&s->open_options, 0);
    s->open_options.parent = NULL;
    return add_folders(s);
}

/* The state's name if real is the path of a file of one of the subject's states, to be freed; else NULL. */
static char *state_of_path(const struct subject *s, const char *real)
{
    if (strncmp(real, s->real, s->folder_length + s->stem_length) != 0)
        return NULL;
    const char *rest = real + s->folder_length + s->stem_length;
    size_t extension = has_extension(rest, ".avhdx") ? 6 : has_extension(rest, ".vhdx") ? 5 : 0;
    if (extension == 0 || rest[0] != '.' || strchr(rest, '/') || strlen(rest) <= 1 + extension)
        return NULL;
    return strndup(rest + 1, strlen(rest) - 1 - extension);
}

static char *state_of(const struct subject *s, const char *path)
{
    char real[PATH_MAX];

    return realpath(path, real) ? state_of_path(s, real) : NULL;
}

/* The file of a state, beside the image. */
static bool state_path(const struct subject *s, const char *state, const char *extension, char path[PATH_MAX])
{
    int n = snprintf(path, PATH_MAX, "%.*s.%s%s", (int)(s->folder_length + s->stem_length), s->real, state, extension);

    return n > 0 && n < PATH_MAX && *state && !strchr(state, '/');
}

static bool has_state(const struct subject *s, const char *state, const char *extension, char path[PATH_MAX])
{
    return state_path(s, state, extension, path) && access(path, F_OK) == 0;
}

/* Does the user call it by the name of its file? */
static bool is_state_file(const struct subject *s, const char *file, char path[PATH_MAX])
{
    int n = snprintf(path, PATH_MAX, "%.*s%s", (int)s->folder_length, s->real, file);
    char *state = n > 0 && n < PATH_MAX && !strchr(file, '/') ? state_of(s, path) : NULL;

    free(state);
    return state != NULL;
}

static int find_state(const struct subject *s, const char *state, char path[PATH_MAX])
{
    char other[PATH_MAX];

    if (has_state(s, state, ".vhdx", path) && has_state(s, state, ".avhdx", other)) {
        print_error(s->name, "%s and %s are both called '%s'; say which, by the name of the file", path, other, state);
        return -1;
    }
    if (has_state(s, state, ".vhdx", path) || has_state(s, state, ".avhdx", path) || is_state_file(s, state, path))
        return 0;
    print_error(s->name, "there is no state '%s'; 'vhdx snapshot --list' shows those that there are", state);
    return -1;
}

/* ---- the image's place in its chain ---- */

static int survey(const struct subject *s, vhdx_survey **result)
{
    int code = vhdx_survey_new(s->real, &s->open_options, settings.find.nr_texts > 0 ? VHDX_SURVEY_BELOW : 0, NULL, NULL, result);

    if (code < 0)
        print_library_error(s->name, code);
    return code;
}

static bool is_same_file(const char *a, const char *b)
{
    struct stat x, y;

    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* The survey knows a file that has two names by one of them. */
static size_t find_in_survey(const vhdx_survey *all, const char *path, struct vhdx_survey_image *image)
{
    for (size_t i = 0; i < vhdx_survey_count(all); i++) {
        *image = (struct vhdx_survey_image){.struct_bytes = sizeof *image};
        vhdx_survey_get(all, i, image);
        if (is_same_file(image->path, path))
            return i;
    }
    return VHDX_NO_IMAGE;
}

/* ---- create ---- */

static int has_parent(const struct subject *s, bool *answer)
{
    struct vhdx_open_options alone = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_info info = {.struct_bytes = sizeof info};
    vhdx_disk *disk;

    alone.flags = VHDX_OPEN_NO_PARENT | VHDX_OPEN_UNVERIFIED;
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

/* The state that was made, gone back to, or dropped. */
static void print_outcome(const struct subject *s, const char *path, bool for_people)
{
    struct document doc = {.out = stdout};
    char *state;

    if (common.output == OUTPUT_JSON) {
        state = state_of_path(s, path);
        document_begin(&doc, NULL, DOCUMENT_OBJECT);
        document_text(&doc, "name", state ? state : "");
        document_text(&doc, "filename", path);
        document_end(&doc);
        free(state);
    } else if (for_people && !common.quiet) {
        put_text(stdout, path);
        putchar('\n');
    }
}

static int create(const struct subject *s, const char *state)
{
    struct vhdx_snapshot_options snapshot_options = VHDX_SNAPSHOT_OPTIONS_INIT;
    char path[PATH_MAX], other[PATH_MAX];
    bool is_child;

    if (has_parent(s, &is_child) < 0)
        return EXIT_TROUBLE;
    if (!state_path(s, state, is_child ? ".avhdx" : ".vhdx", path)) {
        print_error(s->name, "'%s' cannot be the name of a state", state);
        return EXIT_TROUBLE;
    }
    if (has_state(s, state, is_child ? ".vhdx" : ".avhdx", other)) { /* of this name itself an interrupted snapshot may have left something */
        print_error(s->name, "there is a state '%s' already, %s; take another name", state, other);
        return EXIT_TROUBLE;
    }
    snapshot_options.open = &s->open_options;
    snapshot_options.search_below = settings.find.nr_texts > 0;
    int code = vhdx_snapshot(s->real, file_name(path), &snapshot_options);
    if (code < 0) {
        print_library_error(s->name, code);
        return EXIT_TROUBLE;
    }
    print_outcome(s, path, true);
    return EXIT_OK;
}

/* ---- list ---- */

static void print_state(struct document *doc, const struct vhdx_survey_image *image, const char *state, bool is_parent)
{
    char when[64] = "", size[SIZE_TEXT_BYTES];
    struct stat st;
    struct tm tm;

    if (stat(image->path, &st) == 0 && gmtime_r(&st.st_mtime, &tm))
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (!doc) {
        printf("%s%*s", is_parent ? "* " : "  ", (int)(image->depth < 20 ? 2 * image->depth : 40), "");
        put_text(stdout, state);
        printf("  %s  %s%s\n", when, size_short(image->info.disk_usage, size),
               image->merging == VHDX_NO_IMAGE ? "" : "  NOT WHOLE: --delete was interrupted; the same again completes it");
        return;
    }
    document_begin(doc, NULL, DOCUMENT_OBJECT);
    document_text(doc, "name", state);
    document_text(doc, "filename", image->path);
    document_text(doc, "date", when);
    document_number(doc, "actual-size", image->info.disk_usage);
    document_number(doc, "depth", image->depth);
    document_boolean(doc, "current", is_parent);
    document_boolean(doc, "whole", image->merging == VHDX_NO_IMAGE);
    document_end(doc);
}

static int list(const struct subject *s)
{
    struct document doc = {.out = stdout};
    struct document *to = common.output == OUTPUT_JSON ? &doc : NULL;
    struct vhdx_survey_image active;
    vhdx_survey *all;

    if (survey(s, &all) < 0)
        return EXIT_TROUBLE;
    find_in_survey(all, s->real, &active);
    if (to)
        document_begin(to, NULL, DOCUMENT_ARRAY);
    for (size_t i = 0; i < vhdx_survey_count(all); i++) {
        struct vhdx_survey_image image = {.struct_bytes = sizeof image};
        vhdx_survey_get(all, i, &image);
        char *state = state_of(s, image.path);
        if (state)
            print_state(to, &image, state, i == active.parent);
        free(state);
    }
    if (to)
        document_end(to);
    vhdx_survey_free(all);
    return EXIT_OK;
}

/* ---- revert ---- */

/* The state that the present one was made on, if it is one of ours. */
static int last_state(const struct subject *s, char path[PATH_MAX])
{
    struct vhdx_survey_image active, parent = {.struct_bytes = sizeof parent};
    vhdx_survey *all;
    char *state = NULL;

    if (survey(s, &all) < 0)
        return -1;
    find_in_survey(all, s->real, &active);
    if (active.parent != VHDX_NO_IMAGE && vhdx_survey_get(all, active.parent, &parent) == 0)
        state = state_of(s, parent.path);
    if (state)
        snprintf(path, PATH_MAX, "%s", parent.path);
    else
        print_error(s->name, "the image is on no state that was kept by 'vhdx snapshot'");
    vhdx_survey_free(all);
    free(state);
    return state ? 0 : -1;
}

static void warn_of_unreadable(const vhdx_survey *all)
{
    for (size_t i = 0; i < vhdx_survey_count(all); i++) {
        struct vhdx_survey_image image = {.struct_bytes = sizeof image};
        vhdx_survey_get(all, i, &image);
        if (image.error && image.error != VHDX_E_NOT_VHDX && !image.in_use)
            print_warning(image.path, "not looked at, and lost if it rests on this disk (%s)", image.problem);
    }
}

/* Say what --ignore-unreadable is about to ignore, in the folders that the library looks into. */
static int name_ignored(const struct subject *s)
{
    struct vhdx_open_options o = s->open_options;
    uint32_t flags = VHDX_SURVEY_UNREADABLE;
    char folder[PATH_MAX];
    vhdx_survey *all;

    const char **dirs = calloc(o.nr_parent_dirs + 1, sizeof *dirs);
    if (!dirs) {
        print_error(NULL, "out of memory");
        return -1;
    }
    for (size_t i = 0; i < o.nr_parent_dirs; i++)
        dirs[i] = o.parent_dirs[i];
    if (settings.find.nr_texts > 0) { /* below the image's own folder, too */
        snprintf(folder, sizeof folder, "%.*s", (int)s->folder_length, s->real);
        dirs[o.nr_parent_dirs++] = folder;
        flags |= VHDX_SURVEY_BELOW;
    }
    o.parent_dirs = dirs;
    int code = vhdx_survey_new(s->real, &o, flags, NULL, NULL, &all);
    free(dirs);
    if (code < 0) {
        print_library_error(s->name, code);
        return -1;
    }
    warn_of_unreadable(all);
    print_survey_gaps(s->name, all);
    vhdx_survey_free(all);
    return 0;
}

static bool is_confirmed(const struct subject *s, const char *path)
{
    char answer[16];

    if (settings.force)
        return true;
    if (!isatty(STDIN_FILENO)) {
        print_error(s->name, "everything since then would be dropped; --force does it without asking");
        return false;
    }
    fputs("Drop everything since ", stderr);
    put_text(stderr, path);
    fputs(settings.find.nr_texts > 0 ? " [y/N]? " : ", and images in other folders that rest on the present state, if any [y/N]? ", stderr);
    return fgets(answer, sizeof answer, stdin) && (answer[0] == 'y' || answer[0] == 'Y');
}

static int revert(const struct subject *s, const char *state)
{
    struct vhdx_snapshot_options snapshot_options = VHDX_SNAPSHOT_OPTIONS_INIT;
    char path[PATH_MAX];

    if ((state ? find_state(s, state, path) : last_state(s, path)) < 0 || (settings.ignore_unreadable && name_ignored(s) < 0) ||
        !is_confirmed(s, path))
        return EXIT_TROUBLE;
    snapshot_options.open = &s->open_options;
    snapshot_options.search_below = settings.find.nr_texts > 0;
    snapshot_options.ignore_unreadable = settings.ignore_unreadable;
    int code = vhdx_snapshot_revert(s->real, path, &snapshot_options);
    if (code < 0) {
        print_library_error(s->name, code);
        return EXIT_TROUBLE;
    }
    print_outcome(s, path, false);
    return EXIT_OK;
}

/* ---- delete ---- */

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

    if (survey(s, &all) < 0)
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

/* An interrupted snapshot may have given the state's file a second name, by which the disk is not to be called. */
static void drop_second_name(const char *path, const char *child)
{
    if (is_same_file(path, child))
        unlink(path);
}

static int drop(const struct subject *s, const char *state)
{
    struct vhdx_merge_options merge_options = VHDX_MERGE_OPTIONS_INIT;
    char path[PATH_MAX], child[PATH_MAX];

    if (find_state(s, state, path) < 0 || find_only_child(s, path, child) < 0)
        return EXIT_TROUBLE;
    merge_options.open = &s->open_options;
    merge_options.search_below = settings.find.nr_texts > 0;
    merge_options.into = path;
    merge_options.take_name = true;
    merge_options.progress = progress_step;
    signals_catch();
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
    drop_second_name(path, child);
    print_outcome(s, path, false);
    return EXIT_OK;
}

/* ---- the command ---- */

static int run(char **arguments)
{
    const char *state = arguments[1];
    struct subject s = {0};

    if (settings.list + settings.revert + settings.remove > 1 || (settings.list && state) ||
        (!settings.list && !settings.revert && !state)) {
        print_error(NULL, state || settings.list || settings.revert ? "--list, --revert and --delete exclude each other; try 'vhdx snapshot --help'"
                                                                   : "missing argument: NAME; try 'vhdx snapshot --help'");
        return EXIT_USAGE;
    }
    if (check_image_name(arguments[0]) < 0 || subject_init(&s, arguments[0]) < 0)
        return EXIT_TROUBLE;
    int status = settings.list     ? list(&s)
                 : settings.revert ? revert(&s, state)
                 : settings.remove ? drop(&s, state)
                                   : create(&s, state);
    subject_done(&s);
    return status;
}

const struct command command_snapshot = {
    .name = "snapshot",
    .arguments = "IMAGE [NAME]",
    .summary = "keep the present state of a disk, go back to one, or drop one",
    .description = "Keep the present state of the disk IMAGE under NAME: its file gets a name with NAME in it, and a\n"
                   "fresh child takes its place.  Nobody may use IMAGE meanwhile.",
    .tables = {options, options_output, options_progress},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
