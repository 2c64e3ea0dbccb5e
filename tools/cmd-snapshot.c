/* SPDX-License-Identifier: MIT */
/* vhdx snapshot: keeps states of a disk that can be gone back to (snapshot-states.h), goes back to one, and drops one
 * (snapshot-delete.h). */
#include "cmd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "document.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "size.h"
#include "snapshot-delete.h"
#include "snapshot-states.h"

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

/* ---- create ---- */

/* A snapshot under another name would make what the interrupted one left a second name of its own state. */
static int refuse_unfinished(const struct subject *s, const char *path)
{
    struct state_file *files;
    size_t nr_files;
    int r = 0;

    if (state_files(s, &files, &nr_files) < 0)
        return -1;
    for (size_t i = 0; r == 0 && i < nr_files; i++) {
        if (!is_same_file(files[i].path, s->real) || strcmp(files[i].path, path) == 0)
            continue;
        print_unfinished(s, files[i].path);
        r = -1;
    }
    state_files_free(files, nr_files);
    return r;
}

static bool rests_on(const struct subject *s, const char *path)
{
    struct vhdx_survey_image active, parent = {.struct_bytes = sizeof parent};
    vhdx_survey *all;

    if (subject_survey(s, 0, &all) < 0)
        return false;
    find_in_survey(all, s->real, &active);
    if (active.parent != VHDX_NO_IMAGE)
        vhdx_survey_get(all, active.parent, &parent);
    bool is_parent = parent.path && is_same_file(parent.path, path);
    vhdx_survey_free(all);
    return is_parent;
}

static void print_taken(const struct subject *s, const char *state, const char *path, bool is_current)
{
    print_error(s->name, "there is a state '%s' already, %s%s; take another name", state, path,
                is_current ? ", and it is the one that the disk was made on last: if it was interrupted, it is complete" : "");
}

static int create(const struct subject *s, const char *state)
{
    struct vhdx_snapshot_options snapshot_options = VHDX_SNAPSHOT_OPTIONS_INIT;
    char path[PATH_MAX], other[PATH_MAX];
    bool is_child;

    if (!is_state_name(state)) {
        print_error(s->name, "'%s' cannot be the name of a state, which is not empty, in UTF-8, and without slash, backslash, colon and control "
                    "characters, since it becomes a part of a file name that images record", state);
        return EXIT_TROUBLE;
    }
    if (subject_has_parent(s, &is_child) < 0)
        return EXIT_TROUBLE;
    if (!state_path(s, state, is_child ? ".avhdx" : ".vhdx", path)) {
        print_error(s->name, "the path of a state '%s' would be too long", state);
        return EXIT_TROUBLE;
    }
    if (has_state(s, state, is_child ? ".vhdx" : ".avhdx", other) && is_same_file(other, s->real)) {
        print_unfinished(s, other);
        return EXIT_TROUBLE;
    }
    if (has_state(s, state, is_child ? ".vhdx" : ".avhdx", other)) { /* of this name itself an interrupted snapshot may have left something */
        print_taken(s, state, other, rests_on(s, other));
        return EXIT_TROUBLE;
    }
    if (access(path, F_OK) == 0 && !is_same_file(path, s->real) && rests_on(s, path)) {
        print_taken(s, state, path, true);
        return EXIT_TROUBLE;
    }
    if (refuse_unfinished(s, path) < 0)
        return EXIT_TROUBLE;
    snapshot_options.open = &s->open_options;
    snapshot_options.search_below = s->search_below;
    snapshot_options.progress = progress_step;
    int code = vhdx_snapshot(s->real, file_name(path), &snapshot_options);
    if (code < 0)
        return print_nothing_done(s, code);
    print_outcome(s, path, true);
    return EXIT_OK;
}

/* ---- list ---- */

static void put_condition(const struct subject *s, const struct vhdx_survey_image *image, const char *path)
{
    if (image->error) {
        fputs("  UNREADABLE: ", stdout);
        put_text(stdout, image->problem);
    } else if (is_same_file(path, s->real)) {
        fputs("  UNFINISHED: the snapshot was interrupted; ", stdout);
        fputs(can_be_completed(s, path) ? "the same again completes it" : "this name has to be removed", stdout);
    } else if (image->merging != VHDX_NO_IMAGE) {
        fputs("  NOT WHOLE: --delete was interrupted; the same again completes it", stdout);
    }
}

static void print_state(struct document *doc, const struct subject *s, const struct vhdx_survey_image *image, const char *path,
                        bool is_parent)
{
    char when[64] = "", size[SIZE_TEXT_BYTES], *state = state_of_path(s, path);
    bool is_unfinished = is_same_file(path, s->real);
    struct stat st;
    struct tm tm;

    if (stat(path, &st) == 0 && gmtime_r(&st.st_mtime, &tm))
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (doc) {
        document_begin(doc, NULL, DOCUMENT_OBJECT);
        document_text(doc, "name", state ? state : "");
        document_text(doc, "filename", path);
        document_text(doc, "date", when);
        document_number(doc, "actual-size", image->info.disk_usage);
        document_number(doc, "depth", image->depth);
        document_boolean(doc, "current", is_parent);
        document_boolean(doc, "whole", !image->error && image->merging == VHDX_NO_IMAGE && !is_unfinished);
        document_boolean(doc, "unfinished", is_unfinished);
        document_end(doc);
    } else {
        printf("%s%*s", is_parent ? "* " : "  ", (int)(image->depth < 20 ? 2 * image->depth : 40), "");
        put_text(stdout, state ? state : "");
        printf("  %s  %s", when, size_short(image->info.disk_usage, size));
        put_condition(s, image, path);
        putchar('\n');
    }
    free(state);
}

/* In the order of the tree, and each by all names that it has. */
static void print_states(struct document *doc, const struct subject *s, const vhdx_survey *all, const struct state_file *files,
                         size_t nr_files)
{
    struct vhdx_survey_image active;

    find_in_survey(all, s->real, &active);
    for (size_t i = 0; i < vhdx_survey_count(all); i++) {
        struct vhdx_survey_image image = {.struct_bytes = sizeof image};
        struct stat st;
        vhdx_survey_get(all, i, &image);
        if (stat(image.path, &st) < 0)
            continue;
        for (size_t k = 0; k < nr_files; k++) {
            if (is_state_of(&files[k], &st))
                print_state(doc, s, &image, files[k].path, i == active.parent);
        }
    }
}

/* The disk, or a state, that does not lead to what it rests on: that may be a state, and is not listed then. */
static bool warn_of_broken_links(const struct subject *s, const vhdx_survey *all, const struct state_file *files, size_t nr_files)
{
    bool found = false;

    for (size_t i = 0; i < vhdx_survey_count(all); i++) {
        struct vhdx_survey_image image = {.struct_bytes = sizeof image};
        struct stat st;
        vhdx_survey_get(all, i, &image);
        bool is_ours = is_same_file(image.path, s->real);
        for (size_t k = 0; !is_ours && k < nr_files; k++)
            is_ours = stat(image.path, &st) == 0 && is_state_of(&files[k], &st);
        if (!is_ours || (!image.error && (image.link == VHDX_LINK_NONE || image.link == VHDX_LINK_OK)))
            continue;
        const char *why = image.problem ? image.problem : image.link_remark;
        print_warning(image.path, "%s", why ? why : "the link to its parent is broken");
        found = true;
    }
    return found;
}

/* Does the file hold another disk, which only happens to be called as a state would be? */
static bool is_another_disk(const char *path, const struct vhdx_guid *disk_id)
{
    struct vhdx_open_options alone = VHDX_OPEN_OPTIONS_INIT;
    struct vhdx_info info = {.struct_bytes = sizeof info};
    vhdx_disk *disk;

    alone.flags = VHDX_OPEN_NO_PARENT | VHDX_OPEN_UNVERIFIED | VHDX_OPEN_FORCE_SHARE;
    if (vhdx_open(path, &alone, &disk) < 0)
        return false;
    bool is_another = vhdx_get_info(disk, 0, &info) == 0 && memcmp(&info.disk_id, disk_id, sizeof *disk_id) != 0;
    vhdx_close(disk);
    return is_another;
}

/* Files called as states that the survey did not connect with the disk, and that nobody would miss in the list otherwise. */
static bool warn_of_unlisted(const struct subject *s, const vhdx_survey *all, const struct state_file *files, size_t nr_files)
{
    struct vhdx_survey_image active, image;
    bool found = false;

    find_in_survey(all, s->real, &active);
    for (size_t i = 0; i < nr_files; i++) {
        if (find_in_survey(all, files[i].path, &image) != VHDX_NO_IMAGE || is_another_disk(files[i].path, &active.info.disk_id))
            continue;
        print_warning(files[i].path, "called as a state of the disk, and left out: it cannot be read, or nothing links it to the disk");
        found = true;
    }
    return found;
}

static int list(const struct subject *s)
{
    struct document doc = {.out = stdout};
    struct document *to = common.output == OUTPUT_JSON ? &doc : NULL;
    struct state_file *files;
    bool is_incomplete = false;
    vhdx_survey *all;
    size_t nr_files;

    if (subject_survey(s, VHDX_SURVEY_UNREADABLE, &all) < 0)
        return EXIT_TROUBLE;
    int code = state_files(s, &files, &nr_files);
    if (code == 0) {
        if (to)
            document_begin(to, NULL, DOCUMENT_ARRAY);
        print_states(to, s, all, files, nr_files);
        if (to)
            document_end(to);
        is_incomplete = warn_of_broken_links(s, all, files, nr_files);
        is_incomplete |= warn_of_unlisted(s, all, files, nr_files);
        state_files_free(files, nr_files);
    }
    vhdx_survey_free(all);
    return code < 0 || is_incomplete ? EXIT_TROUBLE : EXIT_OK;
}

/* ---- revert ---- */

/* The state that the present one was made on, if it is one of ours. */
static int last_state(const struct subject *s, char path[PATH_MAX])
{
    struct vhdx_survey_image active, parent = {.struct_bytes = sizeof parent};
    struct state_file *files;
    size_t nr_files, found = 0;
    vhdx_survey *all;

    if (subject_survey(s, 0, &all) < 0)
        return -1;
    int code = state_files(s, &files, &nr_files);
    find_in_survey(all, s->real, &active);
    if (active.parent != VHDX_NO_IMAGE)
        vhdx_survey_get(all, active.parent, &parent);
    while (found < nr_files && !(parent.path && is_same_file(files[found].path, parent.path)))
        found++;
    if (found < nr_files)
        snprintf(path, PATH_MAX, "%s", files[found].path);
    else if (code == 0)
        print_error(s->name, "the image is on no state that was kept by 'vhdx snapshot'");
    code = found < nr_files ? 0 : -1;
    state_files_free(files, nr_files);
    vhdx_survey_free(all);
    return code;
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
    if (s->search_below) { /* below the image's own folder, too */
        snprintf(folder, sizeof folder, "%.*s", (int)s->folder_length, s->real);
        dirs[o.nr_parent_dirs++] = folder;
        flags |= VHDX_SURVEY_BELOW;
    }
    o.parent_dirs = dirs;
    int code = vhdx_survey_new(s->real, &o, flags, progress_step, NULL, &all);
    free(dirs);
    if (code < 0) {
        print_nothing_done(s, code);
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
    fputs(s->search_below ? " [y/N]? " : ", and images in other folders that rest on the present state, if any [y/N]? ", stderr);
    signals_exit(); /* nobody waits for an answer then */
    bool is_yes = fgets(answer, sizeof answer, stdin) && (answer[0] == 'y' || answer[0] == 'Y');
    signals_catch();
    return is_yes;
}

static int revert(const struct subject *s, const char *state)
{
    struct vhdx_snapshot_options snapshot_options = VHDX_SNAPSHOT_OPTIONS_INIT;
    char path[PATH_MAX];

    if ((state ? find_state(s, state, path) : last_state(s, path)) < 0 || (settings.ignore_unreadable && name_ignored(s) < 0) ||
        !is_confirmed(s, path))
        return EXIT_TROUBLE;
    snapshot_options.open = &s->open_options;
    snapshot_options.search_below = s->search_below;
    snapshot_options.ignore_unreadable = settings.ignore_unreadable;
    snapshot_options.progress = progress_step;
    int code = vhdx_snapshot_revert(s->real, path, &snapshot_options);
    if (code < 0)
        return print_nothing_done(s, code);
    print_outcome(s, path, false);
    return EXIT_OK;
}

/* ---- delete ---- */

static int drop(const struct subject *s, const char *state)
{
    char path[PATH_MAX];

    if (find_state(s, state, path) < 0)
        return EXIT_TROUBLE;
    int status = snapshot_delete(s, path);
    if (status == EXIT_OK)
        print_outcome(s, path, false);
    return status;
}

/* ---- the command ---- */

static int run(char **arguments)
{
    const char *state = arguments[1];
    struct subject s = {0};

    if (settings.list && !settings.revert && !settings.remove && state) {
        print_error(NULL, "too many arguments: '%s'; try 'vhdx snapshot --help'", state);
        return EXIT_USAGE;
    }
    if (settings.list + settings.revert + settings.remove > 1 ||
        (!settings.list && !settings.revert && !state)) {
        print_error(NULL, state || settings.list || settings.revert ? "--list, --revert and --delete exclude each other; try 'vhdx snapshot --help'"
                                                                   : "missing argument: NAME; try 'vhdx snapshot --help'");
        return EXIT_USAGE;
    }
    if (check_image_name(arguments[0]) < 0 || subject_init(&s, arguments[0], &settings.find) < 0)
        return EXIT_TROUBLE;
    signals_catch();
    int status = settings.list     ? list(&s)
                 : settings.revert ? revert(&s, state)
                 : settings.remove ? drop(&s, state)
                                   : create(&s, state);
    subject_done(&s);
    free(settings.find.texts);
    return status == EXIT_TROUBLE && signals_caught() ? 128 + signals_caught() : status; /* it stopped at the first look around */
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
