/* SPDX-License-Identifier: MIT */
/* vhdx serve: the disk over NBD.
 *
 * vhdx stays the parent of nbdkit: it makes the sockets before and removes their names afterwards, it prints the URI once the
 * image is open, it turns signals into an orderly end, and it knows from the plugin (serve/server.h) whether the image was closed
 * well, which nbdkit's exit status does not say.  --run is ours, too, and not nbdkit's, which kills the server when the command
 * has ended and asks no more.  If vhdx itself is killed, both children get SIGTERM by the kernel (child_prepare()), and the image
 * is closed. */
#include "cmd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "output.h"
#include "serve/server.h"
#include "serve/stdio.h"
#include "serve/transport.h"
#include "size.h"

static struct {
    const char *socket, *bind, *tls_certificates, *run;
    const char *port;
    int stdio, verify_peer;
} settings;

static const struct option options[] = {
    {0, "socket", OPTION_TEXT, &settings.socket, "PATH", "listen on a Unix socket, which is made and removed again"},
    {0, "port", OPTION_TEXT, &settings.port, "N", "listen on TCP port N, or any free one for 0"},
    {0, "bind", OPTION_TEXT, &settings.bind, "ADDR", "with --port: at this address, or all for '*' (default localhost)"},
    {0, "stdio", OPTION_FLAG, &settings.stdio, NULL, "serve one client on standard input and output"},
    {0, "tls-certificates", OPTION_TEXT, &settings.tls_certificates, "DIR",
     "require TLS; {ca,server}-cert.pem, server-key.pem are in DIR"},
    {0, "tls-verify-peer", OPTION_FLAG, &settings.verify_peer, NULL, "let in only clients with a certificate, by DIR's authority"},
    {0, "run", OPTION_TEXT, &settings.run, "CMD", "serve while the shell runs CMD, in which $uri says where"},
    {'q', "quiet", OPTION_FLAG, &common.quiet, NULL, "do not say at the end what was served"},
    {0},
};

struct serving {
    const char *image;
    struct transport transport;
    struct stdio_relay relay;
    struct server server;
    struct server_settings server_settings;
    int signal_fd;
    bool announced; /* clients know, or the command runs */
    bool stopping;
    int signal_no; /* that asked us to stop */
    pid_t command; /* 0: none, or it has ended */
    pid_t command_group; /* what it has started is in this process group, too; 0: in ours */
    int command_status;
};

/* ---- usage ---- */

static int wrong(const char *what)
{
    print_error(NULL, "%s; try 'vhdx serve --help'", what);
    return EXIT_USAGE;
}

static int check_port(unsigned *port)
{
    char *end;

    unsigned long n = strtoul(settings.port, &end, 10);
    if (*settings.port < '0' || *settings.port > '9' || *end || n > 65535) {
        print_error(NULL, "--port needs a number up to 65535, not '%s'; try 'vhdx serve --help'", settings.port);
        return EXIT_USAGE;
    }
    *port = (unsigned)n;
    return EXIT_OK;
}

static int check_usage(unsigned *port)
{
    int nr_transports = (settings.socket != NULL) + (settings.port != NULL) + settings.stdio + (transport_nr_inherited() > 0);

    if (nr_transports > 1)
        return wrong(transport_nr_inherited() > 0 ? "systemd has passed sockets (LISTEN_FDS), so no others can be asked for"
                                                  : "--socket, --port and --stdio exclude each other");
    if (settings.bind && !settings.port)
        return wrong("--bind needs --port");
    if (settings.run && settings.stdio)
        return wrong("--run needs a socket, not --stdio");
    if (settings.verify_peer && !settings.tls_certificates)
        return wrong("--tls-verify-peer needs --tls-certificates");
    if (common.force_share && !common.read_only)
        return wrong("--force-share is for reading: give --read-only too");
    return settings.port ? check_port(port) : EXIT_OK;
}

/* nbdkit would say so too, but not which option it is about. */
static int check_certificates(void)
{
    static const char *const needed[] = {"ca-cert.pem", "server-cert.pem", "server-key.pem"};
    int r = 0;

    for (size_t i = 0; settings.tls_certificates && i < sizeof needed / sizeof *needed && r == 0; i++) {
        char *path;
        if (asprintf(&path, "%s/%s", settings.tls_certificates, needed[i]) < 0)
            return -1;
        if (access(path, R_OK) < 0) {
            print_error(path, "--tls-certificates: %s", strerror(errno));
            r = -1;
        }
        free(path);
    }
    return r;
}

/* ---- beginning ---- */

static int open_transport(struct serving *s, unsigned port)
{
    struct transport *t = &s->transport;
    bool tls = settings.tls_certificates != NULL;

    if (settings.stdio)
        return stdio_begin(&s->relay, &s->server_settings.input);
    if (transport_nr_inherited() > 0)
        return transport_inherited(t, tls);
    if (settings.socket)
        return transport_unix(t, settings.socket, tls);
    if (settings.port)
        return transport_tcp(t, settings.bind, port, tls);
    return transport_private(t, tls);
}

/* From here on signals are read from a descriptor, in their turn. */
static int take_signals(struct serving *s)
{
    sigset_t set;

    signal(SIGCHLD, SIG_DFL); /* who started us may have ignored it */
    signal(SIGPIPE, SIG_IGN); /* nobody reading our output is no reason to leave the image open */
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGQUIT);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, &s->server_settings.signals);
    s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (s->signal_fd >= 0)
        return 0;
    print_error(NULL, "signals: %s", strerror(errno));
    return -1;
}

static _Noreturn void run_command(const struct serving *s, pid_t parent, bool own_group)
{
    char port[16] = "";

    if (s->transport.port)
        snprintf(port, sizeof port, "%u", s->transport.port);
    child_prepare(parent, &s->server_settings.signals);
    if (own_group)
        setpgid(0, 0);
    setenv("uri", s->transport.uri, 1); /* the names that nbdkit --run gives them */
    setenv("nbd", s->transport.uri, 1);
    setenv("unixsocket", s->transport.socket_path ? s->transport.socket_path : "", 1);
    setenv("port", port, 1);
    setenv("exportname", "", 1);
    execl("/bin/sh", "sh", "-c", settings.run, (char *)NULL);
    print_error("/bin/sh", "cannot run it: %s", strerror(errno));
    _exit(127);
}

/* A signal is meant for all that the command is doing, and the shell would not pass it on.  So it gets a process group of its
 * own, and what the shell leaves behind becomes our child.  With a terminal it stays in ours: the terminal signals that by
 * itself, and only there may the command read from it. */
static bool has_terminal(void)
{
    int fd = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static int start_command(struct serving *s)
{
    bool own_group = !has_terminal() && prctl(PR_SET_CHILD_SUBREAPER, 1L, 0L, 0L, 0L) == 0;
    pid_t self = getpid(), pid = fork();

    if (pid == 0)
        run_command(s, self, own_group);
    if (pid < 0) {
        print_error(NULL, "--run: %s", strerror(errno));
        return -1;
    }
    if (own_group) {
        setpgid(pid, pid); /* whoever of the two comes first */
        s->command_group = pid;
    }
    s->command = pid;
    return 0;
}

static void signal_command(const struct serving *s, int signal_no)
{
    kill(s->command_group ? -s->command_group : s->command, signal_no);
}

/* Clients can come: tell them. */
static int announce(struct serving *s)
{
    if (settings.run)
        return start_command(s);
    if (settings.stdio || transport_nr_inherited() > 0) /* that is the client's, and may be his standard output */
        return 0;
    puts(s->transport.uri);
    return output_finish();
}

/* ---- events ---- */

static void stop(struct serving *s)
{
    s->stopping = true;
    server_stop(&s->server);
    stdio_stop(&s->relay);
}

/* The command ends first, with all that it has started: it may still have something to write.  A terminal sends its signals to
 * the command by itself. */
static void take_signal(struct serving *s, const struct signalfd_siginfo *info)
{
    s->stopping = true;
    s->signal_no = (int)info->ssi_signo;
    if (s->command == 0)
        stop(s);
    else if (info->ssi_code <= 0)
        signal_command(s, (int)info->ssi_signo);
}

static void take_ended_children(struct serving *s)
{
    bool has_ended = false;
    int status;

    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid == s->server.pid) {
            server_ended(&s->server, status);
            if (s->command)
                signal_command(s, SIGTERM); /* what it works on is gone */
        } else if (pid == s->command) {
            s->command = 0;
            s->command_status = status;
            has_ended = true;
        }
    }
    if (s->command_group && s->command == 0)
        has_ended = !s->signal_no || kill(-s->command_group, 0) < 0; /* what the shell was waiting for has the signal, too */
    if (has_ended)
        stop(s);
}

static void take_signals_sent(struct serving *s)
{
    struct signalfd_siginfo info;

    while (read(s->signal_fd, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo != SIGCHLD)
            take_signal(s, &info);
    }
    take_ended_children(s);
}

static void wait_for_something(struct serving *s)
{
    struct pollfd fds[] = {{.fd = s->signal_fd, .events = POLLIN}, {.fd = s->server.control_fd, .events = POLLIN}, {.fd = -1}};

    stdio_poll(&s->relay, &fds[2]);
    if (poll(fds, 3, -1) < 0)
        return;
    if (fds[2].revents)
        stdio_move(&s->relay);
    if (fds[1].revents)
        server_read(&s->server);
    if (fds[0].revents)
        take_signals_sent(s);
}

/* ---- the end ---- */

static uint64_t did(const struct server *s, const char *what)
{
    size_t length = strlen(what);

    for (const char *word = s->did ? s->did : ""; *word; word += strcspn(word, " "), word += strspn(word, " ")) {
        if (strncmp(word, what, length) == 0 && word[length] == '=')
            return strtoull(word + length + 1, NULL, 10);
    }
    return 0;
}

static void print_requests(const char *one, const char *many, uint64_t nr, uint64_t bytes)
{
    char text[SIZE_TEXT_BYTES];

    if (nr > 0)
        fprintf(stderr, ", %" PRIu64 " %s (%s)", nr, nr == 1 ? one : many, size_short(bytes, text));
}

static void print_summary(const struct serving *s)
{
    const struct server *v = &s->server;
    uint64_t nr_connections = did(v, "connections"), nr_flushes = did(v, "flushes"), nr_failures = did(v, "failures");
    uint64_t nr_abandoned = did(v, "abandoned");

    if (common.quiet)
        return;
    fputs("vhdx serve: ", stderr);
    put_text(stderr, s->image);
    fprintf(stderr, ": closed cleanly after %" PRIu64 " connection%s", nr_connections, nr_connections == 1 ? "" : "s");
    print_requests("read", "reads", did(v, "reads"), did(v, "read-bytes"));
    print_requests("write", "writes", did(v, "writes"), did(v, "write-bytes"));
    print_requests("zeroing", "zeroings", did(v, "zeros"), did(v, "zero-bytes"));
    print_requests("trim", "trims", did(v, "trims"), did(v, "trim-bytes"));
    if (nr_flushes > 0)
        fprintf(stderr, ", %" PRIu64 " flush%s", nr_flushes, nr_flushes == 1 ? "" : "es");
    if (nr_failures > 0)
        fprintf(stderr, "; %" PRIu64 " request%s failed", nr_failures, nr_failures == 1 ? "" : "s");
    if (nr_abandoned > 0)
        fprintf(stderr, "; %" PRIu64 " client%s did not take all answers", nr_abandoned, nr_abandoned == 1 ? "" : "s");
    fputs("\n", stderr);
}

static void print_failure(const struct serving *s)
{
    const struct server *v = &s->server;
    const char *when = v->ready ? "while it served" : "before it could serve";

    if (v->failure && !v->ready)
        print_open_error(s->image, SOURCE_VHDX, v->failure, v->message);
    else if (v->failure)
        print_error(s->image, "the image could not be closed cleanly: %s; its log brings back what was flushed when it is next opened "
                    "for writing", v->message ? v->message : vhdx_strerror(v->failure));
    else if (WIFSIGNALED(v->wait_status))
        print_error(s->image, "nbdkit was ended by signal %d (%s) %s; what was flushed is safe: the image's log brings it back",
                    WTERMSIG(v->wait_status), strsignal(WTERMSIG(v->wait_status)), when);
    else
        print_error(s->image, "nbdkit ended with status %d %s; see what it said", WEXITSTATUS(v->wait_status), when);
}

static int exit_status(const struct serving *s, int status)
{
    if (!s->server.ready && s->signal_no && !s->server.closed && !s->server.failure)
        return 128 + s->signal_no; /* stopped before there was anything to close */
    if (!s->server.closed) {
        print_failure(s);
        return EXIT_TROUBLE;
    }
    print_summary(s);
    if (status != EXIT_OK || !settings.run)
        return status;
    if (!s->announced && s->signal_no)
        return 128 + s->signal_no; /* the command was never run */
    if (!s->announced) {
        print_error(s->image, "nbdkit ended before --run could begin");
        return EXIT_TROUBLE;
    }
    return WIFSIGNALED(s->command_status) ? 128 + WTERMSIG(s->command_status) : WEXITSTATUS(s->command_status);
}

/* ---- all of it ---- */

static int serve(struct serving *s)
{
    int status = EXIT_OK;

    if (server_start(&s->server, &s->server_settings, &s->transport) < 0)
        return EXIT_TROUBLE;
    transport_close_sockets(&s->transport); /* else clients could connect when the server is gone */
    if (s->server_settings.input >= 0)
        close(s->server_settings.input);
    while (s->server.running || s->command > 0) {
        wait_for_something(s);
        if (s->server.ready && s->server.running && !s->announced && !s->stopping) {
            s->announced = true;
            if (announce(s) < 0) {
                status = EXIT_TROUBLE;
                stop(s);
            }
        }
    }
    return exit_status(s, status);
}

static int run(char **arguments)
{
    struct serving s = {.image = arguments[0], .signal_fd = -1, .server.control_fd = -1, .relay.to = -1};
    unsigned port = 0;
    int status = check_usage(&port);

    if (status != EXIT_OK)
        return status;
    s.server_settings.image = s.image;
    s.server_settings.input = -1;
    s.server_settings.tls = settings.tls_certificates != NULL;
    s.server_settings.tls_certificates = settings.tls_certificates;
    s.server_settings.verify_peer = settings.verify_peer;
    status = EXIT_TROUBLE;
    if (check_image_name(s.image) == 0 && check_certificates() == 0 && take_signals(&s) == 0 &&
        open_transport(&s, port) == 0)
        status = serve(&s);
    transport_end(&s.transport);
    server_free(&s.server);
    if (s.signal_fd >= 0)
        close(s.signal_fd);
    return status;
}

const struct command command_serve = {
    .name = "serve",
    .arguments = "IMAGE",
    .summary = "make the disk available over NBD",
    .description =
        "Serve the disk to NBD clients such as QEMU, nbdcopy and the kernel's nbd, by nbdkit, until SIGTERM\n"
        "or SIGINT.  Prints the URI that clients connect to.  Without --socket, --port or --stdio it is a\n"
        "Unix socket in a new folder that only you can enter.",
    .tables = {options, options_images},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
