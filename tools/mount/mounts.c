/* SPDX-License-Identifier: MIT */
#include "mount/mounts.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* ---- /proc/self/mountinfo ---- */

/* Turn \040 and the like back into characters, in place. */
static void unescape(char *text)
{
    char *out = text;

    for (const char *in = text; *in; out++) {
        if (in[0] == '\\' && in[1] >= '0' && in[1] <= '3' && in[2] >= '0' && in[2] <= '7' && in[3] >= '0' && in[3] <= '7') {
            *out = (char)((in[1] - '0') << 6 | (in[2] - '0') << 3 | (in[3] - '0'));
            in += 4;
        } else {
            *out = *in++;
        }
    }
    *out = '\0';
}

/* The option's value in a comma separated list, NULL if it is not there. */
static const char *option_value(const char *options, const char *name)
{
    size_t length = strlen(name);

    for (const char *o = options; o; o = strchr(o, ',') ? strchr(o, ',') + 1 : NULL) {
        if (strncmp(o, name, length) == 0 && (o[length] == '=' || o[length] == ',' || o[length] == '\0'))
            return o + length + (o[length] == '=');
    }
    return NULL;
}

/* The fields of one line: "36 35 98:0 ROOT MOUNTPOINT OPTIONS OPTIONAL... - TYPE SOURCE SUPEROPTIONS". */
static bool parse_line(char *line, const char *wanted, struct mount_point *point)
{
    char *fields[6], *rest = line;
    unsigned major, minor;

    for (int i = 0; i < 6; i++) {
        fields[i] = strsep(&rest, " ");
        if (!rest)
            return false;
    }
    unescape(fields[4]);
    if (strcmp(fields[4], wanted) != 0 || sscanf(fields[2], "%u:%u", &major, &minor) != 2)
        return false;
    rest = strncmp(rest, "- ", 2) == 0 ? rest : strstr(rest, " - ");
    if (!rest)
        return false;
    rest += *rest == '-' ? 2 : 3;
    char *type = strsep(&rest, " "), *source = rest ? strsep(&rest, " ") : NULL;
    if (!source || !rest)
        return false;
    rest[strcspn(rest, "\n")] = '\0';
    unescape(source);
    const char *owner = option_value(rest, "user_id");
    point->path = strdup(wanted);
    point->type = strdup(type);
    point->source = strdup(source);
    point->device = makedev(major, minor);
    point->owner = owner ? (uid_t)strtoul(owner, NULL, 10) : 0;
    point->read_only = option_value(fields[5], "ro") || option_value(rest, "ro");
    return true;
}

int mount_point_find(const char *path, struct mount_point *found)
{
    FILE *table = fopen("/proc/self/mountinfo", "re");
    char *line = NULL;
    size_t line_bytes = 0;
    int code = 0;

    *found = (struct mount_point){0};
    if (!table)
        return -errno;
    while (getline(&line, &line_bytes, table) > 0) {
        struct mount_point point = {0};

        if (parse_line(line, path, &point)) { /* later ones lie on top of earlier ones */
            mount_point_free(found);
            *found = point;
            code = 1;
        }
    }
    free(line);
    fclose(table);
    if (code == 1 && (!found->path || !found->type || !found->source)) {
        mount_point_free(found);
        return -ENOMEM;
    }
    return code;
}

void mount_point_free(struct mount_point *point)
{
    free(point->path);
    free(point->type);
    free(point->source);
    *point = (struct mount_point){0};
}

/* ---- paths ---- */

char *mount_path(const char *path)
{
    char *whole = realpath(path, NULL);

    if (whole || (errno != ENOTCONN && errno != ECONNABORTED && errno != EIO && errno != EACCES))
        return whole;
    /* The mount point itself cannot be asked any more, or only by its owner: its place can. */
    char *copy = strdup(path), *second = strdup(path), *parent = copy ? realpath(dirname(copy), NULL) : NULL;
    if (parent && second && asprintf(&whole, "%s/%s", strcmp(parent, "/") == 0 ? "" : parent, basename(second)) < 0)
        whole = NULL;
    free(parent);
    free(second);
    free(copy);
    return whole;
}

char *loop_backing_file(const char *device)
{
    char path[64], *line = NULL;
    size_t line_bytes = 0;
    unsigned number;
    int used = 0;

    if (sscanf(device, "/dev/loop%u%n", &number, &used) != 1 || device[used] != '\0')
        return NULL;
    snprintf(path, sizeof path, "/sys/block/loop%u/loop/backing_file", number);
    FILE *file = fopen(path, "re");
    if (!file)
        return NULL;
    if (getline(&line, &line_bytes, file) <= 0) {
        free(line);
        line = NULL;
    } else {
        line[strcspn(line, "\n")] = '\0';
    }
    fclose(file);
    return line;
}

bool mount_lies_in(const char *path, const char *folder)
{
    enum { MAX_LOOPS = 8 };
    struct mount_point point;
    size_t length = strlen(folder);

    if (mount_point_find(path, &point) != 1)
        return false;
    char *file = loop_backing_file(point.source), *below;
    for (int i = 0; i < MAX_LOOPS && file && (below = loop_backing_file(file)) != NULL; i++) { /* with mount -o offset=N */
        free(file);
        file = below;
    }
    bool result = file && strncmp(file, folder, length) == 0 && file[length] == '/';
    free(file);
    mount_point_free(&point);
    return result;
}

/* ---- other programs ---- */

/* Wait until child has ended.  false: the interruption was first. */
static bool await_end(int child_fd, const struct interruption *interruption)
{
    struct pollfd fds[] = {{.fd = child_fd, .events = POLLIN}, {.fd = interruption->fd, .events = POLLIN}};

    do {
        int n = poll(fds, 2, interruption->patience(interruption->opaque));
        if (n < 0)
            continue;
        if (!fds[0].revents && (n == 0 || fds[1].revents) && interruption->heard(interruption->opaque))
            return false;
    } while (!fds[0].revents);
    return true;
}

/* The exit status of child as a shell has it.  -EINTR: interrupted before it has ended; then it is killed, and not waited for,
 * because what it waits for itself may be that we go on. */
static int await_program(pid_t child, const struct interruption *interruption)
{
    int status, child_fd = interruption ? (int)syscall(SYS_pidfd_open, child, 0) : -1;

    if (child_fd >= 0) {
        bool ended = await_end(child_fd, interruption);

        close(child_fd);
        if (!ended) {
            kill(child, SIGKILL);
            return -EINTR;
        }
    }
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run_with_environment(const char *const argv[], char *const environment[], int error_fd,
                                const struct interruption *interruption)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t blocked, standard;
    pid_t child;

    sigemptyset(&blocked); /* the server blocks signals; that is not for others */
    if (interruption) {
        sigaddset(&blocked, SIGTERM);
        sigaddset(&blocked, SIGINT);
        sigaddset(&blocked, SIGHUP);
    }
    sigemptyset(&standard);
    sigaddset(&standard, SIGPIPE);
    sigaddset(&standard, SIGXFSZ);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &blocked);
    posix_spawnattr_setsigdefault(&attributes, &standard);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    if (error_fd >= 0)
        posix_spawn_file_actions_adddup2(&actions, error_fd, STDERR_FILENO);
    int code = posix_spawnp(&child, argv[0], &actions, &attributes, (char *const *)argv, environment);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return code != 0 ? -code : await_program(child, interruption);
}

int run_program(const char *const argv[], int error_fd)
{
    return run_with_environment(argv, environ, error_fd, NULL);
}

/* ---- unmounting ---- */

static int fail_with(int code, char why[UNMOUNT_TEXT_BYTES])
{
    snprintf(why, UNMOUNT_TEXT_BYTES, "%s", strerror(-code));
    return code;
}

/* Ours, but with messages that are not translated.  To be freed, not what it points to. */
static char **plain_environment(void)
{
    static char setting[] = "LC_ALL=C";
    size_t nr = 0, nr_kept = 0;

    while (environ && environ[nr])
        nr++;
    char **result = calloc(nr + 2, sizeof *result);
    for (size_t i = 0; result && i < nr; i++) {
        if (strncmp(environ[i], "LC_ALL=", strlen("LC_ALL=")) != 0)
            result[nr_kept++] = environ[i];
    }
    if (result)
        result[nr_kept] = setting;
    return result;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), length = strlen(end);
    return n >= length && strcmp(text + n - length, end) == 0;
}

/* Programs that unmount say in words why they cannot: "umount: PATH: target is busy.", "fusermount3: failed to unmount PATH:
 * Device or resource busy".  Into why comes what stands behind the path. */
static int explain_unmount(int fd, const char *path, char why[UNMOUNT_TEXT_BYTES])
{
    char text[4096];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);

    text[n > 0 ? n : 0] = '\0';
    const char *place = strstr(text, path), *reason = text;
    if (place && strncmp(place + strlen(path), ": ", 2) == 0)
        reason = place + strlen(path) + 2;
    snprintf(why, UNMOUNT_TEXT_BYTES, "%.*s", (int)strcspn(reason, "\n"), reason);
    if (ends_with(why, "."))
        why[strlen(why) - 1] = '\0';
    if (*why == '\0')
        snprintf(why, UNMOUNT_TEXT_BYTES, "the program that unmounts does not say why");
    return ends_with(why, " busy") ? -EBUSY : -EIO;
}

/* Run a program that unmounts path. */
static int run_unmount(const char *const argv[], const char *path, const struct interruption *interruption,
                       char why[UNMOUNT_TEXT_BYTES])
{
    char **environment = plain_environment();
    int errors = memfd_create("vhdx-unmount", MFD_CLOEXEC), code = 0;

    if (errors < 0 || !environment) {
        code = fail_with(environment ? -errno : -ENOMEM, why);
    } else {
        int status = run_with_environment(argv, environment, errors, interruption);
        if (status == -EINTR)
            snprintf(why, UNMOUNT_TEXT_BYTES, "it takes too long");
        else if (status < 0)
            snprintf(why, UNMOUNT_TEXT_BYTES, "%s cannot be run: %s", argv[0], strerror(-status));
        code = status > 0 ? explain_unmount(errors, path, why) : status;
    }
    if (errors >= 0)
        close(errors);
    free(environment);
    return code;
}

int unmount_fuse(const char *path, bool lazy, char why[UNMOUNT_TEXT_BYTES])
{
    if (umount2(path, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
        return 0;
    if (errno != EPERM)
        return fail_with(-errno, why);
    const char *argv[] = {"fusermount3", lazy ? "-uz" : "-u", "--", path, NULL};
    return run_unmount(argv, path, NULL, why);
}

int unmount_fs(const char *path, bool lazy, const struct interruption *interruption, char why[UNMOUNT_TEXT_BYTES])
{
    /* Without helpers: ours is what may have called us. */
    const char *argv[] = {"umount", lazy ? "-il" : "-i", "--", path, NULL};

    return run_unmount(argv, path, interruption, why);
}
