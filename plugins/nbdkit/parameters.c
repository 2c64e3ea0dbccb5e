/* SPDX-License-Identifier: MIT */
#include "plugin.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct parameters parameters = {.control_fd = -1};

const char parameters_help[] =
    "[file=]FILE              (required) The VHDX image.\n"
    "parent=FILE              The image's parent, wherever the image says.\n"
    "parent-dir=DIR           Look for parents in DIR too; may be repeated.\n"
    "allow-parent-path=BOOL   Follow recorded absolute parent paths.\n"
    "force-share=BOOL         Take no locks; the image may be changing (read-only).\n"
    "access=auto|read|write   When to open the image for writing (default auto:\n"
    "                         with the first client, unless nbdkit runs with -r).\n"
    "control-fd=N             A socket: tells how opening and closing went, and ends the\n"
    "                         server when the other side is closed.\n"
    "remove-at-end=PATH       Remove this socket, or empty folder, at the end; may be repeated.";

static int set_path(char **path, const char *key, const char *value)
{
    if (*path) {
        nbdkit_error("%s= is given twice", key);
        return -1;
    }
    *path = nbdkit_absolute_path(value);
    return *path ? 0 : -1;
}

static int add_path(char ***paths, size_t *nr_paths, const char *key, const char *value)
{
    char **grown = reallocarray(*paths, *nr_paths + 1, sizeof *grown);

    if (!grown) {
        nbdkit_error("%s: %m", key);
        return -1;
    }
    *paths = grown;
    grown[*nr_paths] = nbdkit_absolute_path(value);
    if (!grown[*nr_paths])
        return -1;
    ++*nr_paths;
    return 0;
}

static int set_bool(bool *flag, const char *value)
{
    int b = nbdkit_parse_bool(value);

    *flag = b > 0;
    return b < 0 ? -1 : 0;
}

static int set_access(const char *value)
{
    static const char *const names[] = {[ACCESS_AUTO] = "auto", [ACCESS_READ] = "read", [ACCESS_WRITE] = "write"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(value, names[i]) == 0) {
            parameters.access = (enum access)i;
            parameters.access_is_set = true;
            return 0;
        }
    }
    nbdkit_error("access must be auto, read or write, not '%s'", value);
    return -1;
}

static int set_control_fd(const char *value)
{
    if (nbdkit_parse_int("control-fd", value, &parameters.control_fd) < 0)
        return -1;
    struct stat st;
    if (parameters.control_fd < 0 || fstat(parameters.control_fd, &st) < 0 || !S_ISSOCK(st.st_mode) ||
        fcntl(parameters.control_fd, F_SETFD, FD_CLOEXEC) < 0) {
        nbdkit_error("control-fd=%s is not an open socket", value);
        parameters.control_fd = -1;
        return -1;
    }
    return 0;
}

int parameters_take(const char *key, const char *value)
{
    if (strcmp(key, "file") == 0)
        return set_path(&parameters.file, key, value);
    if (strcmp(key, "parent") == 0)
        return set_path(&parameters.parent, key, value);
    if (strcmp(key, "parent-dir") == 0)
        return add_path(&parameters.parent_dirs, &parameters.nr_parent_dirs, key, value);
    if (strcmp(key, "allow-parent-path") == 0)
        return set_bool(&parameters.allow_parent_path, value);
    if (strcmp(key, "force-share") == 0)
        return set_bool(&parameters.force_share, value);
    if (strcmp(key, "access") == 0)
        return set_access(value);
    if (strcmp(key, "control-fd") == 0)
        return set_control_fd(value);
    if (strcmp(key, "remove-at-end") == 0)
        return add_path(&parameters.removed, &parameters.nr_removed, key, value);
    nbdkit_error("unknown parameter '%s'; 'nbdkit vhdx --help' lists them", key);
    return -1;
}

int parameters_complete(void)
{
    if (!parameters.file) {
        nbdkit_error("which image? Give its path: nbdkit vhdx disk.vhdx");
        return -1;
    }
    if (parameters.force_share) {
        if (parameters.access_is_set && parameters.access != ACCESS_READ) {
            nbdkit_error("force-share is for reading: it needs access=read, or no access= at all");
            return -1;
        }
        parameters.access = ACCESS_READ;
    }
    return 0;
}

void parameters_free(void)
{
    for (size_t i = 0; i < parameters.nr_parent_dirs; i++)
        free(parameters.parent_dirs[i]);
    for (size_t i = 0; i < parameters.nr_removed; i++)
        free(parameters.removed[i]);
    free(parameters.removed_fds);
    free(parameters.removed);
    free(parameters.parent_dirs);
    free(parameters.parent);
    free(parameters.file);
    parameters = (struct parameters){.control_fd = -1};
}
