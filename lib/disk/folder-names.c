/* SPDX-License-Identifier: MIT */
#include "disk/folder-names.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/math.h"

#define MAX_KEPT_BYTES MIB(64) /* of all listings together; more, and all are given up */

enum { NR_BUCKETS = 1024 };

/* The names in one folder. */
struct listing {
    struct listing *next;
    dev_t device;
    ino_t inode;
    char *text; /* the names one behind the other, each with its NUL */
    size_t text_bytes, text_capacity;
    const char **names; /* sorted without regard to case, once all are there */
    size_t nr, names_capacity;
};

struct folder_names {
    struct listing *buckets[NR_BUCKETS];
    uint64_t bytes;
};

struct folder_names *folder_names_new(void)
{
    return calloc(1, sizeof(struct folder_names));
}

static void listing_free(struct listing *l)
{
    free(l->text);
    free(l->names);
    free(l);
}

static void forget_all(struct folder_names *kept)
{
    for (size_t i = 0; i < NR_BUCKETS; i++) {
        while (kept->buckets[i]) {
            struct listing *l = kept->buckets[i];
            kept->buckets[i] = l->next;
            listing_free(l);
        }
    }
    kept->bytes = 0;
}

void folder_names_free(struct folder_names *kept)
{
    if (kept)
        forget_all(kept);
    free(kept);
}

/* ---- without keeping anything ---- */

static int scan(DIR *dir, char name[NAME_MAX + 1])
{
    char found[NAME_MAX + 1];
    unsigned nr_found = 0;
    struct dirent *entry;

    while (nr_found < 2 && (entry = readdir(dir))) {
        if (strcasecmp(entry->d_name, name) == 0 && nr_found++ == 0)
            snprintf(found, sizeof found, "%s", entry->d_name);
    }
    if (nr_found != 1)
        return -ENOENT;
    memcpy(name, found, sizeof found);
    return 0;
}

/* ---- listings ---- */

static uint64_t listing_bytes(const struct listing *l)
{
    return sizeof *l + l->text_bytes + l->nr * sizeof *l->names;
}

static bool add_name(struct listing *l, const char *name)
{
    size_t bytes = strlen(name) + 1;

    if (l->text_bytes + bytes > l->text_capacity) {
        size_t capacity = 2 * l->text_capacity + 4096;
        char *text = realloc(l->text, capacity);
        if (!text)
            return false;
        l->text = text;
        l->text_capacity = capacity;
    }
    memcpy(l->text + l->text_bytes, name, bytes);
    l->text_bytes += bytes;
    l->nr++;
    return listing_bytes(l) <= MAX_KEPT_BYTES;
}

static int compare_names(const void *a, const void *b)
{
    return strcasecmp(*(const char *const *)a, *(const char *const *)b);
}

static bool sort_names(struct listing *l)
{
    const char *text = l->text;

    l->names = calloc(l->nr + 1, sizeof *l->names);
    if (!l->names)
        return false;
    for (size_t i = 0; i < l->nr; i++) {
        l->names[i] = text;
        text += strlen(text) + 1;
    }
    qsort(l->names, l->nr, sizeof *l->names, compare_names);
    return true;
}

/* NULL: no memory, or too many names, or they cannot be read. */
static struct listing *list(DIR *dir, const struct stat *folder)
{
    struct listing *l = calloc(1, sizeof *l);
    struct dirent *entry;
    bool good = l != NULL;

    while (good && (errno = 0, entry = readdir(dir)) != NULL)
        good = add_name(l, entry->d_name);
    good = good && errno == 0 && sort_names(l);
    if (!good) {
        if (l)
            listing_free(l);
        return NULL;
    }
    l->device = folder->st_dev;
    l->inode = folder->st_ino;
    return l;
}

static struct listing **bucket_of(struct folder_names *kept, const struct stat *folder)
{
    return &kept->buckets[(folder->st_ino * UINT64_C(0x9e3779b97f4a7c15) >> 32) % NR_BUCKETS];
}

static const struct listing *find(struct folder_names *kept, const struct stat *folder)
{
    const struct listing *l = *bucket_of(kept, folder);

    while (l && (l->device != folder->st_dev || l->inode != folder->st_ino))
        l = l->next;
    return l;
}

static void keep(struct folder_names *kept, struct listing *l, const struct stat *folder)
{
    if (kept->bytes + listing_bytes(l) > MAX_KEPT_BYTES)
        forget_all(kept);
    struct listing **bucket = bucket_of(kept, folder);
    l->next = *bucket;
    *bucket = l;
    kept->bytes += listing_bytes(l);
}

static int look_up(const struct listing *l, char name[NAME_MAX + 1])
{
    size_t low = 0, high = l->nr;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcasecmp(l->names[middle], name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == l->nr || strcasecmp(l->names[low], name) != 0)
        return -ENOENT;
    if (low + 1 < l->nr && strcasecmp(l->names[low + 1], name) == 0)
        return -ENOENT;
    snprintf(name, NAME_MAX + 1, "%s", l->names[low]);
    return 0;
}

int folder_names_match(struct folder_names *kept, int fd, char name[NAME_MAX + 1])
{
    struct stat folder;
    const struct listing *known = NULL;

    bool keeps = kept && fstat(fd, &folder) == 0;
    if (keeps && (known = find(kept, &folder)) != NULL) {
        close(fd);
        return look_up(known, name);
    }
    DIR *dir = fdopendir(fd);
    if (!dir) {
        int code = errno == ENOMEM ? -ENOMEM : -ENOENT;
        close(fd);
        return code;
    }
    struct listing *l = keeps ? list(dir, &folder) : NULL;
    int r;
    if (l) {
        keep(kept, l, &folder);
        r = look_up(l, name);
    } else {
        rewinddir(dir);
        r = scan(dir, name);
    }
    closedir(dir);
    return r;
}
