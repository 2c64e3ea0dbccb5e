/* SPDX-License-Identifier: MIT */
#include "disk/open-within.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk/open-beneath.h"

enum { MAX_LINKS = 40 }; /* as the kernel */

/* A walk by names: where it is, without any link in it, and what is left of the path. */
struct walk {
    const struct allowed_roots *roots;
    char place[PATH_MAX]; /* "/a/b"; "" is the root of all */
    char todo[PATH_MAX];
    unsigned nr_links;
};

int allowed_roots_add(struct allowed_roots *roots, const char *folder)
{
    char *real = folder ? realpath(*folder ? folder : ".", NULL) : NULL;
    char **paths = real ? reallocarray(roots->paths, roots->nr + 1, sizeof *paths) : NULL;

    if (!paths) {
        int r = real || (folder && errno == ENOMEM) ? -ENOMEM : 0;
        free(real);
        return r;
    }
    if (strcmp(real, "/") == 0)
        *real = '\0';
    roots->paths = paths;
    roots->paths[roots->nr++] = real;
    return 0;
}

void allowed_roots_free(struct allowed_roots *roots)
{
    while (roots->nr > 0)
        free(roots->paths[--roots->nr]);
    free(roots->paths);
    roots->paths = NULL;
}

/* Does inner lie below outer?  Both are absolute and free of links. */
static bool lies_below(const char *inner, const char *outer)
{
    size_t n = strlen(outer);
    return strncmp(inner, outer, n) == 0 && inner[n] == '/';
}

/* The root in which place lies, or NULL. */
static const char *root_of(const struct walk *w)
{
    for (size_t i = 0; i < w->roots->nr; i++) {
        if (lies_below(w->place, w->roots->paths[i]))
            return w->roots->paths[i];
    }
    return NULL;
}

/* On the way to a root?  Then it is known for a folder, without a look. */
static bool leads_to_root(const struct walk *w)
{
    for (size_t i = 0; i < w->roots->nr; i++) {
        if (strcmp(w->place, w->roots->paths[i]) == 0 || lies_below(w->roots->paths[i], w->place))
            return true;
    }
    return false;
}

static void go_up(struct walk *w)
{
    char *slash = strrchr(w->place, '/');

    if (slash)
        *slash = '\0';
}

/* Take the next name off what is left; false if there is none. */
static bool next_name(struct walk *w, char name[NAME_MAX + 1])
{
    const char *p = w->todo + strspn(w->todo, "/");
    size_t n = strcspn(p, "/");

    if (n == 0 || n > NAME_MAX)
        return false;
    memcpy(name, p, n);
    name[n] = '\0';
    memmove(w->todo, p + n, strlen(p + n) + 1);
    return true;
}

/* If place, inside a root, is a link, go where it leads. */
static int follow_link(struct walk *w)
{
    char target[PATH_MAX], rest[PATH_MAX];
    ssize_t n = readlink(w->place, target, sizeof target - 1);

    if (n < 0)
        return 0; /* no link, or nothing: opening it tells */
    target[n] = '\0';
    memcpy(rest, w->todo, sizeof rest);
    int length = snprintf(w->todo, sizeof w->todo, "%s/%s", target, rest);
    if (length < 0 || (size_t)length >= sizeof w->todo || ++w->nr_links > MAX_LINKS)
        return -EXDEV;
    if (target[0] == '/')
        w->place[0] = '\0';
    else
        go_up(w);
    return 0;
}

static int walk(struct walk *w)
{
    char name[NAME_MAX + 1];
    int r = 0;

    while (r == 0 && next_name(w, name)) {
        if (strcmp(name, ".") == 0)
            continue;
        if (strcmp(name, "..") == 0) {
            go_up(w);
            continue;
        }
        size_t length = strlen(w->place);
        if (length + strlen(name) + 2 > sizeof w->place)
            return -EXDEV;
        snprintf(w->place + length, sizeof w->place - length, "/%s", name);
        if (root_of(w))
            r = follow_link(w);
        else if (!leads_to_root(w))
            r = -EXDEV; /* not even a look */
    }
    return r < 0 || w->todo[strspn(w->todo, "/")] != '\0' ? -EXDEV : 0;
}

int open_within(const struct allowed_roots *roots, const char *folder, const char *path)
{
    struct walk *w = calloc(1, sizeof *w);
    int r = -EXDEV;

    if (!w)
        return -ENOMEM;
    w->roots = roots;
    if (strlen(path) < sizeof w->todo && realpath(*folder ? folder : ".", w->place)) {
        memcpy(w->todo, path, strlen(path) + 1);
        if (strcmp(w->place, "/") == 0)
            w->place[0] = '\0';
        r = walk(w);
    }
    const char *root = r == 0 ? root_of(w) : NULL;
    const char *below = root ? w->place + strlen(root) : "";
    r = *below == '/' ? open_beneath(roots->names, *root ? root : "/", below + 1) : -EXDEV; /* a root itself is no file */
    free(w);
    return r;
}
