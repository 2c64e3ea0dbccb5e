/* SPDX-License-Identifier: MIT */
#include "disk/parent-path.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/math.h"
#include "disk/open-beneath.h"
#include "disk/open-within.h"
#include "format/parent-locator.h"
#include "storage/storage.h"

enum path_kind {
    PATH_RELATIVE,
    PATH_WINDOWS, /* drive letter, volume or share: means nothing here until the user maps it */
    PATH_POSIX,   /* begins with a single slash */
    PATH_UNUSABLE,
};

/* A path from the locator, taken apart. */
struct recorded_path {
    enum path_kind kind;
    char drive;          /* upper case letter, or 0 */
    char rest[PATH_MAX]; /* with '/', without root and "." components */
};

enum { NR_PATH_KEYS = 3, MAX_SEEN = 64 };

/* In the order in which they are to be tried (8.4). */
static const char *const path_keys[NR_PATH_KEYS] = {"relative_path", "volume_path", "absolute_win32_path"};

struct lookup {
    const struct parent_policy *policy;
    struct parent_search *search;
    parent_candidate_fn *fn;
    void *opaque;
    char *folders[2]; /* the child's: by its name, and by where the file really lies, if that differs */
    char *first_folders[2]; /* the same of the image that was opened first */
    struct allowed_roots roots;
    struct storage_identity seen[MAX_SEEN];
    size_t nr_seen;
};

/* ---- taking a recorded path apart ---- */

static bool starts_with_drive(const char *p)
{
    return isalpha((unsigned char)p[0]) && p[1] == ':';
}

/* Skip the root of an absolute path, say its kind, and return what follows. */
static const char *skip_root(const char *p, struct recorded_path *path)
{
    bool verbatim = strncmp(p, "//?/", 4) == 0;

    path->kind = PATH_WINDOWS;
    if (verbatim)
        p += 4;
    if (starts_with_drive(p)) {
        path->drive = (char)toupper((unsigned char)p[0]);
        return p + 2;
    }
    if (verbatim && strncasecmp(p, "Volume{", 7) == 0)
        return p + strcspn(p, "/");
    if (verbatim || strncmp(p, "//", 2) == 0) { /* server and share; "//./" is a device */
        if (strncmp(p, "//./", 4) == 0)
            path->kind = PATH_UNUSABLE;
        p += strspn(p, "/");
        if (verbatim && strncasecmp(p, "UNC/", 4) == 0)
            p += 4;
        p += strcspn(p, "/");
        p += strspn(p, "/");
        return p + strcspn(p, "/");
    }
    path->kind = *p == '/' ? PATH_POSIX : PATH_RELATIVE;
    return p;
}

/* Copy p without empty and "." components; false if it cannot be a path here. */
static bool copy_components(const char *p, char *to, size_t bytes)
{
    size_t at = 0;

    for (p += strspn(p, "/"); *p; p += strspn(p, "/")) {
        size_t n = strcspn(p, "/");
        if (n > NAME_MAX || at + n + 2 > bytes)
            return false;
        if (n != 1 || *p != '.') {
            if (at > 0)
                to[at++] = '/';
            memcpy(to + at, p, n);
            at += n;
        }
        p += n;
    }
    to[at] = '\0';
    return at > 0;
}

static void parse_path(char *text, struct recorded_path *path)
{
    path->drive = 0;
    for (char *p = text; *p; p++) {
        if (*p == '\\')
            *p = '/';
    }
    const char *rest = skip_root(text, path);
    bool plain = copy_components(rest, path->rest, sizeof path->rest);
    for (const char *p = path->rest; plain && *p; p++)
        plain = (unsigned char)*p >= 0x20 && *p != 0x7f && *p != ':'; /* ':' names an NTFS stream (8.5 rule 4) */
    if (!plain)
        path->kind = PATH_UNUSABLE;
}

/* A hostile string for a message: no control characters. */
static void show(const char *text, char *to, size_t bytes)
{
    size_t i;

    for (i = 0; text[i] && i + 1 < bytes; i++)
        to[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? '?' : text[i];
    to[i] = '\0';
}

/* The path stored under key, if there is one. */
static bool recorded(const uint8_t *locator, const char *key, struct recorded_path *path, struct parent_search *search)
{
    struct locator_pair pair;
    char text[PATH_MAX];

    if (!locator_find(locator, key, &pair))
        return false;
    if (locator_text(locator, pair.value_offset, pair.value_length, text, sizeof text) < 0) {
        path->kind = PATH_UNUSABLE; /* longer than any path can be */
        return true;
    }
    if (search->recorded[0] == '\0')
        show(text, search->recorded, sizeof search->recorded);
    parse_path(text, path);
    return true;
}

static const char *base_name(const char *rest)
{
    const char *slash = strrchr(rest, '/');
    return slash ? slash + 1 : rest;
}

static const char *without_leading_dotdot(const char *rest)
{
    while (strncmp(rest, "../", 3) == 0)
        rest += 3;
    return rest;
}

/* ---- looking at places ---- */

/* Was the file behind handle looked at already? */
static bool seen_before(struct lookup *l, int handle)
{
    struct stat st;

    if (fstat(handle, &st) < 0)
        return false;
    for (size_t i = 0; i < l->nr_seen; i++) {
        if (is_file_of(&st, &l->seen[i]))
            return true;
    }
    if (l->nr_seen < MAX_SEEN)
        l->seen[l->nr_seen++] = (struct storage_identity){st.st_dev, st.st_ino};
    return false;
}

static int join(char *to, size_t bytes, const char *folder, const char *rest)
{
    int n = snprintf(to, bytes, "%s%s%s", folder, *folder && strcmp(folder, "/") != 0 ? "/" : "", rest);
    return n < 0 || (size_t)n >= bytes ? -ENAMETOOLONG : 0;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* The locator may spell a name in another case than the file system does: then take a path by which the file, and what lies
 * beside it, can be found again. */
static void name_as_found(int handle, char path[PATH_MAX])
{
    char link[64], place[PATH_MAX];
    struct stat file, named;

    if (fstat(handle, &file) < 0 || (stat(path, &named) == 0 && same_file(&file, &named)))
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t n = readlink(link, place, sizeof place - 1);
    if (n <= 0)
        return;
    place[n] = '\0';
    if (stat(place, &named) == 0 && same_file(&file, &named))
        memcpy(path, place, (size_t)n + 1);
}

/* Hand the file behind handle (owned) to the caller.  handle may be -errno. */
static int offer(struct lookup *l, int handle, const char *folder, const char *rest)
{
    char path[PATH_MAX];
    int r = 0;

    if (handle < 0) {
        if (handle == -ENOMEM)
            return fail_memory("the path of a parent");
        if (handle == -EXDEV)
            l->search->blocked = true;
        else if (handle != -ENOENT && handle != -ENOTDIR)
            l->search->open_error = handle;
        return 0;
    }
    if (!seen_before(l, handle) && join(path, sizeof path, folder, rest) == 0) {
        int fd = open_regular(handle);
        name_as_found(handle, path);
        if (fd >= 0)
            r = l->fn(l->opaque, fd, path);
        else if (fd == -EINVAL)
            l->search->not_regular = true;
        else
            l->search->open_error = fd;
    }
    close(handle);
    return r;
}

/* Where relative paths may lead: the folders that were named, by themselves or by the first child in them, and the child's own.
 */
static int find_roots(struct lookup *l)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < 2; i++) {
        r = allowed_roots_add(&l->roots, l->first_folders[i]);
        if (r == 0)
            r = allowed_roots_add(&l->roots, l->folders[i]);
    }
    for (size_t i = 0; r == 0 && i < l->policy->nr_dirs; i++)
        r = allowed_roots_add(&l->roots, l->policy->dirs[i]);
    return r < 0 ? fail_memory("the folders of parents") : 0;
}

/* A relative path from the child's folder: inside it always, outside only into folders that were named. */
static int try_from_child(struct lookup *l, const char *folder, const char *rest)
{
    int handle = open_beneath(l->policy->names, folder, rest);

    if (handle == -EXDEV && l->policy->allow_any) {
        handle = open_anywhere(folder, rest);
    } else if (handle == -EXDEV) {
        handle = open_within(&l->roots, folder, rest);
        if (handle < 0 && handle != -ENOMEM)
            handle = -EXDEV; /* the same whether or not something is there (8.5 rule 11) */
    }
    return offer(l, handle, folder, rest);
}

static int try_below(struct lookup *l, const char *folder, const char *rest)
{
    int handle = open_beneath(l->policy->names, folder, rest);
    return offer(l, handle == -EXDEV ? -ENOENT : handle, folder, rest);
}

static int try_relative(struct lookup *l, const char *rest)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < 2; i++) {
        if (l->folders[i])
            r = try_from_child(l, l->folders[i], rest);
    }
    for (size_t i = 0; r == 0 && i < l->policy->nr_dirs; i++)
        r = try_below(l, l->policy->dirs[i], without_leading_dotdot(rest));
    return r;
}

static int try_absolute(struct lookup *l, const struct recorded_path *path)
{
    char below_drive[PATH_MAX + 2];
    int r = 0;

    if (!l->policy->allow_any) {
        l->search->blocked = true;
        return 0;
    }
    if (path->kind == PATH_POSIX) {
        snprintf(below_drive, sizeof below_drive, "/%s", path->rest);
        return offer(l, open_anywhere("/", below_drive), "/", path->rest);
    }
    for (size_t i = 0; r == 0 && i < l->policy->nr_dirs; i++) {
        r = try_below(l, l->policy->dirs[i], path->rest);
        if (r == 0 && path->drive) {
            snprintf(below_drive, sizeof below_drive, "%c/%s", path->drive, path->rest);
            r = try_below(l, l->policy->dirs[i], below_drive);
        }
    }
    return r;
}

/* The bare name, next to the child or in a named folder: where files land that were copied here together (8.5 rule 10). */
static int try_name(struct lookup *l, const char *name)
{
    int r = 0;

    if (strcmp(name, "..") == 0)
        return 0;
    for (unsigned i = 0; r == 0 && i < 2; i++) {
        if (l->folders[i])
            r = try_below(l, l->folders[i], name);
    }
    for (size_t i = 0; r == 0 && i < l->policy->nr_dirs; i++)
        r = try_below(l, l->policy->dirs[i], name);
    return r;
}

static int try_all(struct lookup *l, const uint8_t *locator)
{
    struct recorded_path *paths = calloc(NR_PATH_KEYS, sizeof *paths);
    bool there[NR_PATH_KEYS] = {false};
    int r = paths ? 0 : fail_memory("the parent's paths");

    for (unsigned k = 0; r == 0 && k < NR_PATH_KEYS; k++) {
        there[k] = recorded(locator, path_keys[k], &paths[k], l->search);
        if (!there[k])
            continue;
        if (paths[k].kind == PATH_RELATIVE) {
            r = try_relative(l, paths[k].rest);
            l->search->relative_followed = !l->search->blocked;
        } else if (paths[k].kind != PATH_UNUSABLE) {
            r = try_absolute(l, &paths[k]);
        } else {
            l->search->blocked = true;
        }
    }
    for (unsigned k = 0; r == 0 && k < NR_PATH_KEYS; k++) {
        if (there[k] && paths[k].kind != PATH_UNUSABLE)
            r = try_name(l, base_name(paths[k].rest));
    }
    free(paths);
    return r;
}

/* The folder of path as it is named, and as it really is if a link makes that another. */
static int find_folders(const char *path, char *folders[2])
{
    const char *slash = strrchr(path, '/');
    char real[PATH_MAX];

    folders[0] = slash == path ? strdup("/") : strndup(path, slash ? (size_t)(slash - path) : 0);
    if (!folders[0])
        return fail_memory("a path");
    if (!realpath(path, real))
        return 0;
    slash = strrchr(real, '/');
    char *by_link = slash == real ? strdup("/") : strndup(real, (size_t)(slash - real));
    if (!by_link)
        return fail_memory("a path");
    char named[PATH_MAX];
    if (realpath(*folders[0] ? folders[0] : ".", named) && strcmp(named, by_link) == 0)
        free(by_link);
    else
        folders[1] = by_link;
    return 0;
}

int parent_candidates(const struct parent_policy *policy, const char *child_path, const uint8_t *locator,
                      parent_candidate_fn *fn, void *opaque, struct parent_search *search)
{
    struct lookup l = {.policy = policy, .search = search, .fn = fn, .opaque = opaque, .roots.names = policy->names};

    *search = (struct parent_search){0};
    int r = child_path ? find_folders(child_path, l.folders) : 0;
    if (r == 0 && policy->first_child)
        r = find_folders(policy->first_child, l.first_folders);
    if (r == 0)
        r = find_roots(&l);
    if (r == 0)
        r = try_all(&l, locator);
    for (unsigned i = 0; i < 2; i++) {
        free(l.folders[i]);
        free(l.first_folders[i]);
    }
    allowed_roots_free(&l.roots);
    return r;
}

/* ---- is it where it was recorded? ---- */

/* 1, 0, or -ENOMEM */
static int leads_to(const struct allowed_roots *roots, const char *folder, const char *rest, const struct storage_identity *file)
{
    struct stat st;
    int handle = open_within(roots, folder, rest);

    if (handle == -ENOMEM)
        return handle;
    bool same = handle >= 0 && fstat(handle, &st) == 0 && is_file_of(&st, file);
    if (handle >= 0)
        close(handle);
    return same;
}

int parent_is_where_recorded(struct folder_names *names, const char *child_path, const char *parent_path, const uint8_t *locator,
                             const struct storage_identity *parent)
{
    struct parent_search search = {0};
    struct allowed_roots roots = {.names = names};
    struct recorded_path path;
    char *folders[4] = {NULL};

    if (!recorded(locator, "relative_path", &path, &search) || path.kind != PATH_RELATIVE)
        return 0;
    int r = find_folders(child_path, folders);
    if (r == 0)
        r = find_folders(parent_path, folders + 2);
    for (unsigned i = 0; r == 0 && i < 4; i++)
        r = allowed_roots_add(&roots, folders[i]);
    for (unsigned i = 0; r == 0 && i < 2; i++) { /* a child named by a link is where that leads, too, as for try_relative() */
        if (folders[i])
            r = leads_to(&roots, folders[i], path.rest, parent);
    }
    allowed_roots_free(&roots);
    for (unsigned i = 0; i < 4; i++)
        free(folders[i]);
    return r == -ENOMEM ? fail_memory("the folders of parents") : r > 0;
}
