/* SPDX-License-Identifier: MIT */
#include "serve/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "output.h"

/* As systemd hands them over: sd_listen_fds(3). */
enum { FIRST_INHERITED_FD = 3 };

/* ---- URIs ---- */

/* text as it may stand in a URI's query. */
static char *percent_encode(const char *text)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";
    char *encoded = malloc(3 * strlen(text) + 1), *to = encoded;

    for (; encoded && *text; text++) {
        if (strchr(plain, *text))
            *to++ = *text;
        else
            to += sprintf(to, "%%%02X", (unsigned char)*text);
    }
    if (encoded)
        *to = '\0';
    return encoded;
}

static int out_of_memory(void)
{
    print_error(NULL, "out of memory");
    return -1;
}

static int set_unix_uri(struct transport *t, bool tls)
{
    char *path = percent_encode(t->socket_path);

    if (!path || asprintf(&t->uri, "nbd%s+unix:///?socket=%s", tls ? "s" : "", path) < 0)
        t->uri = NULL;
    free(path);
    return t->uri ? 0 : out_of_memory();
}

/* host: as the user named it, which is what a certificate is likely to name. */
static int set_tcp_uri(struct transport *t, const char *host, bool tls)
{
    bool bare_ipv6 = strchr(host, ':') && *host != '[';
    char *zone = percent_encode(strchr(host, '%') ? strchr(host, '%') : "");

    if (!zone || asprintf(&t->uri, "nbd%s://%s%.*s%s%s:%u", tls ? "s" : "", bare_ipv6 ? "[" : "", (int)strcspn(host, "%"), host,
                          zone, bare_ipv6 ? "]" : "", t->port) < 0)
        t->uri = NULL;
    free(zone);
    return t->uri ? 0 : out_of_memory();
}

/* ---- Unix sockets ---- */

static char *absolute_path(const char *path)
{
    char *folder, *absolute = NULL;

    if (*path == '/')
        return strdup(path);
    folder = getcwd(NULL, 0);
    if (folder && asprintf(&absolute, "%s/%s", folder, path) < 0)
        absolute = NULL;
    free(folder);
    return absolute;
}

/* What exists is never removed: it may be a server's that lives. */
static int refuse_existing(const char *path, const struct sockaddr_un *address)
{
    struct stat st;

    if (lstat(path, &st) < 0) {
        print_error(path, "%s", strerror(EADDRINUSE));
    } else if (!S_ISSOCK(st.st_mode)) {
        print_error(path, "there is something else of this name; it is left alone");
    } else {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        bool dead = fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof *address) < 0 && errno == ECONNREFUSED;
        if (fd >= 0)
            close(fd);
        print_error(path, dead ? "the socket exists, but nobody listens there: its server was killed; remove it, then try again"
                               : "the socket exists, and a server listens there; stop that, or take another name");
    }
    return -1;
}

int transport_unix(struct transport *t, const char *path, bool tls)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    t->socket_path = absolute_path(path);
    if (!t->socket_path)
        return out_of_memory();
    if (strlen(t->socket_path) >= sizeof address.sun_path) {
        print_error(path, "the path of a socket may not be longer than %zu bytes, and %s is", sizeof address.sun_path - 1,
                    t->socket_path);
        return -1;
    }
    strcpy(address.sun_path, t->socket_path);
    int fd = t->fds[0] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        print_error(path, "cannot make a socket: %s", strerror(errno));
        return -1;
    }
    t->nr_fds = 1;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        if (errno == EADDRINUSE)
            return refuse_existing(t->socket_path, &address);
        print_error(path, "cannot make the socket: %s", strerror(errno));
        return -1;
    }
    t->remove = true;
    t->socket_handle = open(t->socket_path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (t->socket_handle < 0 || listen(fd, SOMAXCONN) < 0) {
        print_error(path, "cannot use the socket: %s", strerror(errno));
        return -1;
    }
    return set_unix_uri(t, tls);
}

/* The name of a new folder in base, for this user alone, in which a socket's path is not too long; NULL with errno. */
static char *make_private_folder(const char *base)
{
    char *folder;

    if (strlen(base) + sizeof "/vhdx-XXXXXX/nbd" > sizeof ((struct sockaddr_un *)NULL)->sun_path) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    if (asprintf(&folder, "%s/vhdx-XXXXXX", base) < 0)
        return NULL;
    if (mkdtemp(folder))
        return folder;
    int saved = errno;
    free(folder);
    errno = saved;
    return NULL;
}

/* The first of these may be another user's, after su(1). */
int transport_private(struct transport *t, bool tls)
{
    const char *const bases[] = {getenv("XDG_RUNTIME_DIR"), getenv("TMPDIR"), "/tmp"};
    const char *tried = NULL;
    char *path;

    for (size_t i = 0; !t->folder && i < sizeof bases / sizeof *bases; i++) {
        if (!bases[i] || *bases[i] != '/')
            continue;
        tried = bases[i];
        t->folder = make_private_folder(tried);
    }
    if (!t->folder) {
        print_error(tried, "cannot make a folder for the socket: %s; --socket names another place", strerror(errno));
        return -1;
    }
    if (asprintf(&path, "%s/nbd", t->folder) < 0)
        return out_of_memory();
    int r = transport_unix(t, path, tls);
    free(path);
    return r;
}

/* ---- TCP ---- */

static unsigned port_of(int fd)
{
    struct sockaddr_storage address;
    socklen_t bytes = sizeof address;

    if (getsockname(fd, (struct sockaddr *)&address, &bytes) < 0)
        return 0;
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

static void set_port(struct sockaddr *address, unsigned port)
{
    if (address->sa_family == AF_INET6)
        ((struct sockaddr_in6 *)address)->sin6_port = htons((uint16_t)port);
    else
        ((struct sockaddr_in *)address)->sin_port = htons((uint16_t)port);
}

/* Listen on one of the name's addresses; errno says why not. */
static int listen_on(struct transport *t, struct addrinfo *a)
{
    const int on = 1;

    set_port(a->ai_addr, t->port); /* if any will do, the one that the first address got */
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
    if (fd < 0)
        return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        (a->ai_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) < 0) ||
        bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, SOMAXCONN) < 0) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    t->fds[t->nr_fds++] = fd;
    if (t->port == 0)
        t->port = port_of(fd);
    return 0;
}

/* /etc/hosts may name an address twice. */
static bool is_repeated(const struct addrinfo *list, const struct addrinfo *a)
{
    for (; list != a; list = list->ai_next) {
        if (list->ai_family != a->ai_family || list->ai_addrlen != a->ai_addrlen)
            continue;
        set_port(list->ai_addr, 0); /* it may have got one */
        set_port(a->ai_addr, 0);
        if (memcmp(list->ai_addr, a->ai_addr, a->ai_addrlen) == 0)
            return true;
    }
    return false;
}

/* On all of them.  0, or what stood against it. */
static int listen_on_all(struct transport *t, struct addrinfo *list, unsigned port)
{
    int error = EADDRNOTAVAIL;

    t->port = port;
    for (struct addrinfo *a = list; a && t->nr_fds < TRANSPORT_MAX_SOCKETS; a = a->ai_next) {
        if ((a->ai_family != AF_INET && a->ai_family != AF_INET6) || is_repeated(list, a) || listen_on(t, a) == 0)
            continue;
        error = errno;
        if (error != EAFNOSUPPORT && error != EADDRNOTAVAIL) { /* a machine without IPv6 is no reason to fail */
            transport_close_sockets(t);
            break;
        }
    }
    return t->nr_fds > 0 ? 0 : error;
}

int transport_tcp(struct transport *t, const char *address, unsigned port, bool tls)
{
    enum { ATTEMPTS = 16 }; /* a port that is free at one address may not be so at the next */
    bool everywhere = address && strcmp(address, "*") == 0;
    const char *name = address ? address : "localhost";
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *list;

    int r = getaddrinfo(everywhere ? NULL : name, "0", &hints, &list);
    if (r != 0) {
        print_error(NULL, "--bind=%s: %s", name, r == EAI_SYSTEM ? strerror(errno) : gai_strerror(r));
        return -1;
    }
    int error = EADDRINUSE;
    for (unsigned n = 0; error == EADDRINUSE && n < (port == 0 ? ATTEMPTS : 1); n++)
        error = listen_on_all(t, list, port);
    freeaddrinfo(list);
    if (error != 0 && port == 0)
        print_error(NULL, "cannot listen on any port of %s: %s", name, strerror(error));
    else if (error != 0)
        print_error(NULL, "cannot listen on port %u of %s: %s", port, name, strerror(error));
    if (error != 0)
        return -1;
    return set_tcp_uri(t, everywhere ? "localhost" : name, tls);
}

/* ---- sockets from systemd ---- */

int transport_nr_inherited(void)
{
    const char *pid = getenv("LISTEN_PID"), *nr = getenv("LISTEN_FDS");

    if (!pid || !nr || strtoul(pid, NULL, 10) != (unsigned long)getpid())
        return 0;
    unsigned long n = strtoul(nr, NULL, 10);
    return n > INT_MAX - FIRST_INHERITED_FD ? INT_MAX - FIRST_INHERITED_FD : (int)n;
}

static int set_inherited_uri(struct transport *t, bool tls)
{
    struct sockaddr_storage address = {0};
    socklen_t bytes = sizeof address;
    char host[NI_MAXHOST];

    if (getsockname(t->fds[0], (struct sockaddr *)&address, &bytes) < 0) {
        print_error(NULL, "LISTEN_FDS: descriptor %d: %s", t->fds[0], strerror(errno));
        return -1;
    }
    if (address.ss_family == AF_UNIX) {
        t->socket_path = strdup(((struct sockaddr_un *)&address)->sun_path);
        return t->socket_path ? set_unix_uri(t, tls) : out_of_memory();
    }
    t->port = port_of(t->fds[0]);
    if (getnameinfo((struct sockaddr *)&address, bytes, host, sizeof host, NULL, 0, NI_NUMERICHOST) != 0)
        strcpy(host, "localhost");
    bool everywhere = strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
    return set_tcp_uri(t, everywhere ? "localhost" : host, tls);
}

int transport_inherited(struct transport *t, bool tls)
{
    int nr = transport_nr_inherited();

    if (nr > TRANSPORT_MAX_SOCKETS) {
        print_error(NULL, "LISTEN_FDS: %d sockets are too many", nr);
        return -1;
    }
    for (; t->nr_fds < nr; t->nr_fds++) {
        t->fds[t->nr_fds] = FIRST_INHERITED_FD + t->nr_fds;
        fcntl(t->fds[t->nr_fds], F_SETFD, FD_CLOEXEC);
    }
    return set_inherited_uri(t, tls);
}

/* ---- the end ---- */

void transport_close_sockets(struct transport *t)
{
    while (t->nr_fds > 0)
        close(t->fds[--t->nr_fds]);
}

void transport_end(struct transport *t)
{
    struct stat was, is;

    transport_close_sockets(t);
    /* Somebody may have moved it away and put something else there. */
    if (t->remove && t->socket_handle >= 0 && fstat(t->socket_handle, &was) == 0 && lstat(t->socket_path, &is) == 0 &&
        was.st_dev == is.st_dev && was.st_ino == is.st_ino)
        unlink(t->socket_path);
    if (t->remove && t->socket_handle >= 0)
        close(t->socket_handle);
    if (t->folder)
        rmdir(t->folder);
    free(t->folder);
    free(t->socket_path);
    free(t->uri);
    *t = (struct transport){0};
}
