/* SPDX-License-Identifier: MIT */
/* Runs a target over the files of a corpus, without libFuzzer and so with any compiler: one TAP line for each
 * file.  A broken promise or a sanitizer's finding ends the program, which shows the file that was to come
 * next.
 *
 * Usage: TARGET FILE-OR-FOLDER... */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "require.h"

enum { MAX_INPUT_BYTES = 1 << 20 };

static unsigned nr_done;

static void run_file(const char *path, const char *name)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(MAX_INPUT_BYTES);

    REQUIRE(f && data, "%s: %s", path, strerror(errno));
    size_t bytes = fread(data, 1, MAX_INPUT_BYTES, f);
    REQUIRE(!ferror(f), "%s: %s", path, strerror(errno));
    fclose(f);
    uint8_t *exact = realloc(data, bytes ? bytes : 1); /* sanitizers then see reads behind its end */
    REQUIRE(exact, "no memory");
    printf("# %s\n", name);
    fflush(stdout);
    LLVMFuzzerTestOneInput(exact, bytes);
    printf("ok %u - %s\n", ++nr_done, name);
    free(exact);
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static void run_folder(const char *folder)
{
    struct dirent **entries;
    int nr = scandir(folder, &entries, is_visible, alphasort);

    REQUIRE(nr >= 0, "%s: %s", folder, strerror(errno));
    for (int i = 0; i < nr; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        run_file(path, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        struct stat st;
        REQUIRE(stat(argv[i], &st) == 0, "%s: %s", argv[i], strerror(errno));
        if (S_ISDIR(st.st_mode))
            run_folder(argv[i]);
        else
            run_file(argv[i], argv[i]);
    }
    REQUIRE(nr_done > 0, "no files to run: name some, or a folder");
    printf("1..%u\n", nr_done);
    return 0;
}
