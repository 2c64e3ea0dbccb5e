/* SPDX-License-Identifier: MIT */
#include "scratch.h"

#include <dirent.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

void scratch_make(char path[SCRATCH_PATH_BYTES])
{
    const char *parent = getenv("TMPDIR");
    char template[SCRATCH_PATH_BYTES], real[PATH_MAX];
    int n = snprintf(template, sizeof template, "%s/vhdx-test-XXXXXX", parent && *parent ? parent : "/tmp");

    if (n < 0 || (size_t)n >= sizeof template || !mkdtemp(template) || !realpath(template, real) ||
        strlen(real) >= SCRATCH_PATH_BYTES) {
        perror("making a folder for a test");
        abort();
    }
    memcpy(path, real, strlen(real) + 1);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    return remove(path);
}

void scratch_remove(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static unsigned count_names(const char *path)
{
    DIR *d = opendir(path);
    unsigned nr = 0;

    if (!d)
        abort();
    while (readdir(d))
        nr++;
    closedir(d);
    return nr;
}

unsigned scratch_nr_names(const char *path)
{
    return count_names(path) - 2; /* without . and .. */
}

unsigned scratch_nr_open(void)
{
    return count_names("/proc/self/fd");
}
