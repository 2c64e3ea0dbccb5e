/* SPDX-License-Identifier: MIT */
#include "serve/server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cmd.h"
#include "output.h"

enum { FIRST_ACTIVATION_FD = 3, MAX_SWEPT_FD = 65536 };

static int out_of_memory(void)
{
    print_error(NULL, "out of memory");
    return -1;
}

/* ---- finding the programs ---- */

/* In PATH, and where Debian keeps servers, which not everybody has there. */
static char *find_nbdkit(void)
{
    const char *named = getenv("VHDX_NBDKIT"), *path = getenv("PATH");
    char *folders, *file, *rest, *found = NULL;

    if (named && *named)
        return strdup(named);
    if (asprintf(&folders, "%s:/usr/local/sbin:/usr/sbin", path ? path : "/usr/local/bin:/usr/bin:/bin") < 0)
        return NULL;
    for (char *folder = strtok_r(folders, ":", &rest); folder && !found; folder = strtok_r(NULL, ":", &rest)) {
        if (asprintf(&file, "%s/nbdkit", folder) < 0)
            break;
        if (access(file, X_OK) == 0)
            found = file;
        else
            free(file);
    }
    free(folders);
    return found;
}

/* The plugin of this build: beside the command in the build tree, else where it was installed.  The path of the command itself
 * tells the two apart; nbdkit's own search would find a plugin of another version. */
static char *find_plugin(void)
{
    const char *named = getenv("VHDX_NBDKIT_PLUGIN");
    char self[4096], *file;

    if (named && *named)
        return strdup(named);
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n > 0) {
        self[n] = '\0';
        *strrchr(self, '/') = '\0';
        if (asprintf(&file, "%s/../plugins/nbdkit/nbdkit-vhdx-plugin.so", self) < 0)
            return NULL;
        if (access(file, R_OK) == 0)
            return file;
        free(file);
    }
    return strdup(NBDKIT_PLUGINDIR "/nbdkit-vhdx-plugin.so");
}

static int find_programs(char **nbdkit, char **plugin)
{
    *nbdkit = find_nbdkit();
    *plugin = find_plugin();
    if (!*plugin)
        return out_of_memory();
    if (!*nbdkit) {
        print_error(NULL, "nbdkit is not installed, and it is what serves the disk: install it (Debian package nbdkit)");
        return -1;
    }
    if (access(*plugin, R_OK) == 0)
        return 0;
    print_error(*plugin, "cannot find the plugin for nbdkit: %s; it is installed with vhdx if that was built where nbdkit's headers "
                "were (Debian package nbdkit-plugin-dev), or VHDX_NBDKIT_PLUGIN says where it is", strerror(errno));
    return -1;
}

/* ---- arguments ---- */

struct arguments {
    char **words; /* NULL-terminated */
    size_t nr_words;
};

static void add(struct arguments *a, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* In the child, where there is nobody to tell that memory ran out. */
static void add(struct arguments *a, const char *format, ...)
{
    char **grown = reallocarray(a->words, a->nr_words + 2, sizeof *grown);
    va_list args;

    if (!grown)
        _exit(127);
    a->words = grown;
    va_start(args, format);
    if (vasprintf(&grown[a->nr_words++], format, args) < 0)
        _exit(127);
    va_end(args);
    grown[a->nr_words] = NULL;
}

static void add_image_arguments(struct arguments *a, const char *image)
{
    add(a, "file=%s", image);
    add(a, "access=%s", common.read_only ? "read" : "write");
    if (common.parent)
        add(a, "parent=%s", common.parent);
    for (size_t i = 0; i < common.parent_dirs.nr_texts; i++)
        add(a, "parent-dir=%s", common.parent_dirs.texts[i]);
    if (common.allow_parent_path)
        add(a, "allow-parent-path=true");
    if (common.force_share)
        add(a, "force-share=true");
}

static void make_arguments(struct arguments *a, const struct server_settings *settings, const struct transport *t,
                           const char *nbdkit, const char *plugin, int control_fd)
{
    add(a, "%s", nbdkit);
    add(a, "--log=stderr");
    if (t->nr_fds == 0)
        add(a, "--single");
    if (common.read_only)
        add(a, "--readonly");
    add(a, "--tls=%s", settings->tls ? "require" : "off");
    if (settings->tls)
        add(a, "--tls-certificates=%s", settings->tls_certificates);
    if (settings->verify_peer)
        add(a, "--tls-verify-peer");
    add(a, "%s", plugin);
    add_image_arguments(a, settings->image);
    add(a, "control-fd=%d", control_fd);
    if (t->remove) /* in case that we are killed */
        add(a, "remove-at-end=%s", t->socket_path);
    if (t->folder)
        add(a, "remove-at-end=%s", t->folder);
}

/* ---- the child ---- */

void child_prepare(pid_t parent, const sigset_t *signals)
{
    /* SIGTERM, so that the image is closed properly.  If the parent is gone already, nobody will send it. */
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != parent)
        _exit(127);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, signals, NULL);
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
}

/* Put the sockets where sd_listen_fds(3) wants them, out of each other's way. */
static bool pass_sockets(const struct transport *t)
{
    int high[TRANSPORT_MAX_SOCKETS];
    char text[16];

    for (int i = 0; i < t->nr_fds; i++) {
        high[i] = fcntl(t->fds[i], F_DUPFD_CLOEXEC, FIRST_ACTIVATION_FD + t->nr_fds);
        if (high[i] < 0)
            return false;
    }
    for (int i = 0; i < t->nr_fds; i++) {
        if (dup2(high[i], FIRST_ACTIVATION_FD + i) < 0)
            return false;
    }
    snprintf(text, sizeof text, "%d", (int)getpid());
    if (setenv("LISTEN_PID", text, 1) < 0)
        return false;
    snprintf(text, sizeof text, "%d", t->nr_fds);
    return setenv("LISTEN_FDS", text, 1) == 0;
}

/* Whoever started us may have left descriptors open.  The server is to have none of them: the plugin disconnects clients by
 * looking through what is open there, and a connection of somebody else's would look like one. */
static void keep_descriptors_from_server(int first_fd)
{
    if (close_range((unsigned)first_fd, ~0U, CLOSE_RANGE_CLOEXEC) == 0)
        return;
    long limit = sysconf(_SC_OPEN_MAX); /* Linux before 5.11 */
    for (int fd = first_fd; fd < limit && fd < MAX_SWEPT_FD; fd++)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/* The server gets a process group of its own, so that Ctrl-C reaches vhdx alone, which ends things in the right order; it may
 * write to the terminal from there (SIGTTOU). */
static _Noreturn void run_nbdkit(const struct server_settings *settings, const struct transport *t, const char *nbdkit,
                                 const char *plugin, int control_fd, pid_t parent)
{
    struct arguments a = {0};

    child_prepare(parent, &settings->signals);
    setpgid(0, 0);
    signal(SIGTTOU, SIG_IGN);
    if (settings->input >= 0 && dup2(settings->input, STDIN_FILENO) < 0)
        _exit(127);
    int fd = fcntl(control_fd, F_DUPFD, FIRST_ACTIVATION_FD + t->nr_fds);
    if (fd >= 0 && (t->nr_fds == 0 || pass_sockets(t))) {
        keep_descriptors_from_server(FIRST_ACTIVATION_FD + t->nr_fds);
        fcntl(fd, F_SETFD, 0);
        make_arguments(&a, settings, t, nbdkit, plugin, fd);
        execv(nbdkit, a.words);
    }
    print_error(nbdkit, "cannot run it: %s", strerror(errno));
    _exit(127);
}

int server_start(struct server *s, const struct server_settings *settings, const struct transport *t)
{
    char *nbdkit, *plugin;
    int ends[2] = {-1, -1}, r = find_programs(&nbdkit, &plugin);
    pid_t self = getpid();

    *s = (struct server){.control_fd = -1};
    if (r == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        print_error(NULL, "cannot make a socket: %s", strerror(errno));
        r = -1;
    }
    if (r == 0) {
        s->pid = fork();
        if (s->pid == 0)
            run_nbdkit(settings, t, nbdkit, plugin, ends[1], self);
        close(ends[1]);
        s->control_fd = ends[0];
        s->running = s->pid > 0;
        if (!s->running) {
            print_error(NULL, "cannot start nbdkit: %s", strerror(errno));
            r = -1;
        }
    }
    free(nbdkit);
    free(plugin);
    return r;
}

/* ---- what it tells ---- */

static void take_failure(struct server *s, const char *line)
{
    char *rest;

    s->failure = (int)strtol(line, &rest, 10);
    if (s->failure == 0)
        s->failure = -EIO;
    free(s->message);
    s->message = strdup(*rest == ' ' ? rest + 1 : rest);
}

static void take_line(struct server *s, const char *line)
{
    if (strncmp(line, "ready ", 6) == 0) {
        s->ready = true;
    } else if (strcmp(line, "closed") == 0) {
        s->closed = true;
    } else if (strncmp(line, "failed ", 7) == 0) {
        take_failure(s, line + 7);
    } else if (strncmp(line, "did ", 4) == 0) {
        free(s->did);
        s->did = strdup(line + 4);
    }
}

void server_read(struct server *s)
{
    ssize_t n = read(s->control_fd, s->line + s->line_bytes, sizeof s->line - s->line_bytes);

    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n <= 0) {
        close(s->control_fd);
        s->control_fd = -1;
        return;
    }
    s->line_bytes += (size_t)n;
    for (char *end; (end = memchr(s->line, '\n', s->line_bytes)) != NULL;) {
        size_t bytes = (size_t)(end - s->line) + 1;
        *end = '\0';
        take_line(s, s->line);
        s->line_bytes -= bytes;
        memmove(s->line, s->line + bytes, s->line_bytes);
    }
    if (s->line_bytes == sizeof s->line) /* no line of the plugin's is as long */
        s->line_bytes = 0;
}

/* ---- the end ---- */

void server_stop(struct server *s)
{
    if (!s->running)
        return;
    if (s->control_fd >= 0)
        shutdown(s->control_fd, SHUT_WR);
    kill(s->pid, SIGTERM); /* if it has not come so far as to listen there */
}

/* What it had to tell is there, whole, since nobody else writes. */
void server_ended(struct server *s, int wait_status)
{
    s->running = false;
    s->wait_status = wait_status;
    if (s->control_fd >= 0)
        fcntl(s->control_fd, F_SETFL, O_NONBLOCK); /* a grandchild of nbdkit could keep it open */
    for (int left = 8; s->control_fd >= 0 && left > 0; left--)
        server_read(s);
}

void server_free(struct server *s)
{
    if (s->control_fd >= 0)
        close(s->control_fd);
    free(s->message);
    free(s->did);
}
