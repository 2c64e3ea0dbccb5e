/* SPDX-License-Identifier: MIT */
/* vhdx mount: show the disk as files, or the file system inside. */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mount/client.h"
#include "mount/mounts.h"
#include "mount/plan.h"
#include "mount/server.h"
#include "output.h"

#define NO_PARTITION_GIVEN UINT64_MAX

static struct {
    int foreground, fs;
    uint64_t partition;
    struct text_list options;
} settings = {.partition = NO_PARTITION_GIVEN};

static const struct option options[] = {
    {'f', "foreground", OPTION_FLAG, &settings.foreground, NULL, "stay in the foreground until unmounted"},
    {0, "fs", OPTION_FLAG, &settings.fs, NULL, "mount the file system inside on DIR (root only)"},
    {0, "partition", OPTION_NUMBER, &settings.partition, "NUMBER",
     "with --fs: the one on this partition; 0 is the whole disk"},
    {'o', "options", OPTION_LIST, &settings.options, "OPTIONS",
     "mount options, separated by commas; may be repeated"},
    {0},
};

/* ---- options of -o ---- */

/* The mount options that are ours to act on; the others are passed on in *rest, which has room for all. */
struct mount_options {
    uint64_t uid, gid, umask;
    char *rest;
};

static int number_option(const char *name, const char *text, int base, uint64_t max, uint64_t *value)
{
    char *end;

    errno = 0;
    unsigned long long number = strtoull(text, &end, base);
    if (errno || *end || *text < '0' || *text > '9' || number > max) {
        print_error(NULL, "-o %s needs a number, not '%s'; try 'vhdx mount --help'", name, text);
        return -1;
    }
    *value = number;
    return 0;
}

static int take_option(const char *option, struct mount_options *o)
{
    if (strcmp(option, "ro") == 0) {
        common.read_only = 1;
        return 0;
    }
    if (*option == '\0' || strcmp(option, "rw") == 0)
        return 0;
    if (!settings.fs && strncmp(option, "uid=", 4) == 0)
        return number_option("uid", option + 4, 10, UINT32_MAX - 1, &o->uid);
    if (!settings.fs && strncmp(option, "gid=", 4) == 0)
        return number_option("gid", option + 4, 10, UINT32_MAX - 1, &o->gid);
    if (!settings.fs && strncmp(option, "umask=", 6) == 0)
        return number_option("umask", option + 6, 8, 0777, &o->umask);
    strcat(strcat(o->rest, *o->rest ? "," : ""), option);
    return 0;
}

/* An exit status.  o->rest is to be freed. */
static int take_options(struct mount_options *o)
{
    size_t room = 1;

    for (size_t i = 0; i < settings.options.nr_texts; i++)
        room += strlen(settings.options.texts[i]) + 1;
    o->rest = calloc(1, room);
    for (size_t i = 0; i < settings.options.nr_texts; i++) {
        char *copy = strdup(settings.options.texts[i]), *left = copy;

        if (!copy || !o->rest) {
            print_error(NULL, "out of memory");
            free(copy);
            return EXIT_TROUBLE;
        }
        for (const char *option; (option = strsep(&left, ",")) != NULL;) {
            if (take_option(option, o) < 0) {
                free(copy);
                return EXIT_USAGE;
            }
        }
        free(copy);
    }
    return EXIT_OK;
}

static int check_settings(void)
{
    const char *complaint = NULL;

    if (common.force_share && !common.read_only)
        complaint = "--force-share is for reading: give --read-only too";
    else if (settings.partition != NO_PARTITION_GIVEN && !settings.fs)
        complaint = "--partition goes with --fs; without, every partition is shown as a file";
    else if (settings.partition != NO_PARTITION_GIVEN && settings.partition > INT32_MAX)
        complaint = "no disk has a partition of that number";
    if (complaint) {
        print_error(NULL, "%s; try 'vhdx mount --help'", complaint);
        return EXIT_USAGE;
    }
    if (settings.fs && geteuid() != 0) {
        print_error(NULL, "--fs needs root: only root may mount file systems of disks. Without it, the disk and its partitions "
                          "are shown as files");
        return EXIT_TROUBLE;
    }
    return EXIT_OK;
}

/* ---- folders ---- */

/* The absolute path of the folder to mount on; NULL: reported. */
static char *find_folder(const char *name)
{
    struct stat st;
    char *path = realpath(name, NULL);
    int error = path && stat(path, &st) == 0 ? 0 : errno;

    if (error == 0 && S_ISDIR(st.st_mode))
        return path;
    if (error == ENOTCONN || error == ECONNABORTED)
        print_error(name, "the server of an earlier mount here has died: 'vhdx umount' first");
    else
        print_error(name, "the place to mount on is not usable: %s", strerror(error ? error : ENOTDIR));
    free(path);
    return NULL;
}

/* A new folder for the FUSE mount below a file system; NULL: reported. */
static char *make_runtime_folder(const char *image)
{
    char *path = NULL;

    if (mkdir(RUNTIME_FOLDER, 0700) < 0 && errno != EEXIST)
        print_error(RUNTIME_FOLDER, "%s", strerror(errno));
    else if (asprintf(&path, RUNTIME_FOLDER "/XXXXXX") < 0)
        print_error(image, "out of memory");
    else if (mkdtemp(path))
        return path;
    else
        print_error(path, "%s", strerror(errno));
    free(path);
    return NULL;
}

/* ---- the two processes ---- */

/* The server in front, the client for a while behind it. */
static int run_foreground(const struct mount_plan *plan, int sockets[2])
{
    pid_t client = fork();

    if (client == 0) {
        close(sockets[0]);
        _exit(client_run(plan, sockets[1]) < 0 ? EXIT_TROUBLE : EXIT_OK);
    }
    close(sockets[1]);
    if (client < 0) {
        print_error(plan->image, "%s", strerror(errno));
        close(sockets[0]);
        return EXIT_TROUBLE;
    }
    int status = server_run(plan, sockets[0]);
    while (waitpid(client, NULL, 0) < 0 && errno == EINTR)
        continue;
    return status;
}

/* If the server came so far.  If not, others may have mounted there, and their server answers. */
static void remove_dead_mount(const char *folder)
{
    char ignored[UNMOUNT_TEXT_BYTES];
    struct stat st;

    if (stat(folder, &st) < 0 && (errno == ENOTCONN || errno == ECONNABORTED))
        unmount_fuse(folder, true, ignored);
}

/* The server goes to the background, and we are the client until then. */
static int run_background(const struct mount_plan *plan, int sockets[2])
{
    pid_t server = fork();
    int wait_status = 0;

    if (server == 0) {
        /* What the caller has open beyond the standard descriptors (a lock, the end of a pipe) would be held for good. */
        close_range(STDERR_FILENO + 1, (unsigned)sockets[0] - 1, 0);
        close_range((unsigned)sockets[0] + 1, ~0u, 0);
        int status = server_run(plan, sockets[0]);
        output_finish();
        _exit(status);
    }
    close(sockets[0]);
    if (server < 0) {
        print_error(plan->image, "%s", strerror(errno));
        close(sockets[1]);
        return EXIT_TROUBLE;
    }
    int code = client_run(plan, sockets[1]);
    close(sockets[1]);
    if (code == 0)
        return EXIT_OK;
    while (waitpid(server, &wait_status, 0) < 0 && errno == EINTR) /* so that the image is free again */
        continue;
    if (WIFSIGNALED(wait_status)) {
        print_error(plan->image, "the server of the mount was ended by signal %d", WTERMSIG(wait_status));
        remove_dead_mount(plan->fuse_dir);
        if (plan->fs_dir)
            rmdir(plan->fuse_dir);
    }
    return EXIT_TROUBLE;
}

static int run_plan(const struct mount_plan *plan)
{
    int sockets[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0) {
        print_error(plan->image, "%s", strerror(errno));
        return EXIT_TROUBLE;
    }
    return plan->foreground ? run_foreground(plan, sockets) : run_background(plan, sockets);
}

/* ---- the command ---- */

static int mount_image(const char *image, const char *folder, const struct mount_options *o)
{
    struct vhdx_open_options open_options;
    struct mount_plan plan = {
        .image = image,
        .open_options = &open_options,
        .foreground = settings.foreground,
        .read_only = common.read_only,
        .may_cache = !common.force_share,
        .uid = (uid_t)o->uid,
        .gid = (gid_t)o->gid,
        .umask = (mode_t)o->umask,
        .fuse_options = settings.fs ? "" : o->rest,
        .fs_options = settings.fs ? o->rest : "",
        .partition = settings.partition == NO_PARTITION_GIVEN ? PARTITION_ANY : (int64_t)settings.partition,
    };
    int status = EXIT_TROUBLE;
    char *path = find_folder(folder), *runtime = NULL, *image_path = realpath(image, NULL);

    open_options_fill(&open_options, open_flags(image, SOURCE_VHDX) | (common.read_only ? 0 : VHDX_OPEN_WRITE));
    if (path && settings.fs)
        runtime = make_runtime_folder(image);
    plan.image_path = image_path ? image_path : image; /* without one, opening it will say why */
    plan.fs_dir = settings.fs ? path : NULL;
    plan.fuse_dir = settings.fs ? runtime : path;
    if (plan.fuse_dir)
        status = run_plan(&plan);
    free(image_path);
    free(runtime);
    free(path);
    return status;
}

static int run(char **arguments)
{
    struct mount_options o = {.uid = geteuid(), .gid = getegid(), .umask = 077};
    int status = take_options(&o);

    if (status == EXIT_OK)
        status = check_settings();
    if (status == EXIT_OK)
        status = check_disk_name(arguments[0]) < 0 ? EXIT_TROUBLE : mount_image(arguments[0], arguments[1], &o);
    free(o.rest);
    free(settings.options.texts);
    return status;
}

const struct command command_mount = {
    .name = "mount",
    .arguments = "IMAGE DIR",
    .summary = "show the disk and its partitions as files in a folder",
    .description = "Show the disk on DIR as the file 'disk', and its partitions as 'p1', 'p2' and so on, until\n"
                   "'vhdx umount DIR'.  With --fs, mount the file system inside on DIR.",
    .tables = {options, options_images},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
