/* SPDX-License-Identifier: MIT */
/* The one disk.
 *
 * All connections use one handle, so a flush by one covers what the others wrote, and NBD_FLAG_CAN_MULTI_CONN is true.
 *
 * Whether nbdkit runs with -r is told only to .open, with the first client.  Opening for writing before would replay a dirty log
 * and lock others out, although nobody may be going to write.  So by default the image is opened for reading in .get_ready, where
 * people still see what is wrong with it, closed again, and opened by the first client; then it stays open until the end.  (It
 * cannot stay open in between: with --run nbdkit forks into a server and a parent, which would keep the file and its locks.)
 *
 * access=read and access=write open it once, in .get_ready.  Its locks belong to the open file and survive the fork, and the
 * library has no threads of its own that would not. */
#include "plugin.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static struct {
    pthread_mutex_t mutex; /* guards all below while clients come and go; requests look at ending alone */
    vhdx_disk *disk;       /* NULL: to be opened by the next client */
    bool writable;
    uint64_t size; /* bytes */
    struct connection *connections; /* now */
    uint64_t nr_served;      /* ever */
    unsigned nr_abandoned;   /* who did not take their answers */
    struct counts counts;    /* of connections that are gone */
    char description[128];
    atomic_bool ending; /* the disk is being closed: no more requests, no more clients */
} served = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* ---- telling ---- */

/* File names, and with them messages, may come from hostile images: nothing of theirs shall steer the terminal of the log. */
static void make_harmless(char *text)
{
    for (unsigned char *c = (unsigned char *)text; *c; c++) {
        if (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0) { /* both bytes: some terminals take the second one alone */
            *c++ = '?';
            *c = '?';
        } else if (*c < 0x20 || *c == 0x7f) {
            *c = '?';
        }
    }
}

static void put_message(char *text, size_t bytes, int code)
{
    const char *message = vhdx_error_message();

    snprintf(text, bytes, "%s", *message ? message : vhdx_strerror(code));
    make_harmless(text);
}

enum { MESSAGE_BYTES = 1900 }; /* control_say() has room for it */

void report_error(int code)
{
    char text[MESSAGE_BYTES];
    size_t length = strlen(parameters.file);

    put_message(text, sizeof text, code);
    if (strncmp(text, parameters.file, length) == 0 && text[length] == ':')
        nbdkit_error("%s", text);
    else
        nbdkit_error("%s: %s", parameters.file, text);
}

/* Whoever listens reports it in his own way. */
static void report_startup_error(int code)
{
    char text[MESSAGE_BYTES];

    if (parameters.control_fd < 0) {
        report_error(code);
    } else {
        put_message(text, sizeof text, code);
        control_say("failed %d %s\n", code, text);
    }
}

/* ---- opening ---- */

static int open_disk(bool writable)
{
    struct vhdx_open_options options = VHDX_OPEN_OPTIONS_INIT;

    options.flags = (writable ? VHDX_OPEN_WRITE : 0) | (parameters.force_share ? VHDX_OPEN_FORCE_SHARE : 0) |
                    (parameters.allow_parent_path ? VHDX_OPEN_ALLOW_PARENT_PATH : 0);
    options.parent = parameters.parent;
    options.parent_dirs = (const char *const *)parameters.parent_dirs;
    options.nr_parent_dirs = parameters.nr_parent_dirs;
    int code = vhdx_open(parameters.file, &options, &served.disk);
    served.writable = code == 0 && writable;
    return code;
}

static void describe(void)
{
    static const char *const kinds[] = {"fixed", "dynamic", "differencing", "raw"};
    struct vhdx_info info = {.struct_bytes = sizeof info};
    uint32_t nr_images = vhdx_chain_length(served.disk);

    served.size = vhdx_size(served.disk);
    if (vhdx_get_info(served.disk, 0, &info) < 0)
        return;
    if (nr_images > 1)
        snprintf(served.description, sizeof served.description, "VHDX disk, %s, %" PRIu32 " images", kinds[info.subformat], nr_images);
    else
        snprintf(served.description, sizeof served.description, "VHDX disk, %s", kinds[info.subformat]);
}

int served_open(void)
{
    served.ending = false;
    int code = open_disk(parameters.access == ACCESS_WRITE);

    if (code < 0) {
        report_startup_error(code);
        return -1;
    }
    describe();
    if (parameters.access == ACCESS_AUTO) {
        vhdx_close(served.disk);
        served.disk = NULL;
    }
    return 0;
}

/* Sockets are there by now, our caller's as well as nbdkit's own.  Somebody may take one away while we serve, and put his own
 * there. */
static int remember_names(void)
{
    if (parameters.nr_removed == 0)
        return 0;
    parameters.removed_fds = calloc(parameters.nr_removed, sizeof *parameters.removed_fds);
    if (!parameters.removed_fds) {
        nbdkit_error("out of memory");
        return -1;
    }
    for (size_t i = 0; i < parameters.nr_removed; i++)
        parameters.removed_fds[i] = open(parameters.removed[i], O_PATH | O_NOFOLLOW | O_CLOEXEC);
    return 0;
}

int served_begin(void)
{
    if (remember_names() < 0 || control_begin() < 0)
        return -1;
    control_say("ready %" PRIu64 "\n", served.size);
    return 0;
}

/* If that fails this client is turned away, and the next one tries again. */
static int open_for_client(bool writable)
{
    int code = open_disk(writable);

    if (code == 0)
        return 0;
    report_error(code);
    if (writable)
        nbdkit_error("%s: to serve it for reading only, start nbdkit with -r", parameters.file);
    return -1;
}

/* With -r all clients are for reading, else none is, but filters may have their own mind (nbdkit-cow-filter(1)). */
static int prepare_disk(bool readonly)
{
    bool writable = parameters.access == ACCESS_WRITE || (parameters.access == ACCESS_AUTO && !readonly);

    if (served.disk && (served.writable || !writable))
        return 0;
    if (served.connections) {
        nbdkit_error("%s: a filter has the image open for reading only, so it cannot be opened for writing now; "
                     "start nbdkit with access=write", parameters.file);
        return -1;
    }
    vhdx_close(served.disk); /* it was open for reading, so nothing can be lost */
    return open_for_client(writable);
}

/* ---- clients ---- */

/* With what nbdkit asks a client's handle about at any time. */
static int begin_connection(struct connection *c, bool readonly)
{
    struct vhdx_info info = {.struct_bytes = sizeof info};

    if (atomic_load(&served.ending)) {
        nbdkit_debug("a client came when the image was closed already");
        return -1;
    }
    if (prepare_disk(readonly) < 0)
        return -1;
    if (readonly && parameters.access == ACCESS_WRITE && served.nr_served == 0)
        nbdkit_error("%s: with access=write it was opened for writing, though clients are for reading only: if its log was dirty, that has "
                     "been replayed into the file; access=read leaves it as it is", parameters.file);
    int code = vhdx_get_info(served.disk, 0, &info);
    if (code < 0) {
        report_error(code);
        return -1;
    }
    c->disk = served.disk;
    c->size = vhdx_size(served.disk);
    c->physical_sector_size = info.physical_sector_size;
    c->writable = served.writable && !readonly;
    c->next = served.connections;
    served.connections = c;
    served.nr_served++;
    return 0;
}

struct connection *served_connect(bool readonly)
{
    struct connection *c = calloc(1, sizeof *c);

    if (!c) {
        nbdkit_error("out of memory");
        return NULL;
    }
    pthread_mutex_lock(&served.mutex);
    if (begin_connection(c, readonly) < 0) {
        free(c);
        c = NULL;
    }
    pthread_mutex_unlock(&served.mutex);
    return c;
}

static void add_counts(struct counts *sum, const struct counts *c)
{
    sum->reads += c->reads;
    sum->read_bytes += c->read_bytes;
    sum->writes += c->writes;
    sum->write_bytes += c->write_bytes;
    sum->zeros += c->zeros;
    sum->zero_bytes += c->zero_bytes;
    sum->trims += c->trims;
    sum->trim_bytes += c->trim_bytes;
    sum->flushes += c->flushes;
    sum->questions += c->questions;
    sum->failures += c->failures;
}

void served_disconnect(struct connection *c)
{
    struct connection **link = &served.connections;

    pthread_mutex_lock(&served.mutex);
    while (*link != c)
        link = &(*link)->next;
    *link = c->next;
    add_counts(&served.counts, &c->counts);
    pthread_mutex_unlock(&served.mutex);
    free(c);
}

/* Sequentially consistent: either we see that the end has come, or stop_requests() sees the request. */
bool served_request(struct connection *c)
{
    atomic_fetch_add(&c->nr_requests, 1);
    if (!atomic_load(&served.ending))
        return true;
    served_answer(c);
    nbdkit_set_error(ESHUTDOWN);
    return false;
}

void served_answer(struct connection *c)
{
    atomic_fetch_sub(&c->nr_requests, 1);
}

/* ---- the end ---- */

static void close_disk(void)
{
    const struct counts *c = &served.counts;
    char text[MESSAGE_BYTES];

    if (!served.disk)
        return;
    int code = vhdx_close(served.disk);
    served.disk = NULL;
    if (code < 0) {
        put_message(text, sizeof text, code);
        report_error(code);
        nbdkit_error("%s: the image was not closed cleanly; its log brings back what was flushed when it is opened for writing",
                     parameters.file);
    }
    control_say("did connections=%" PRIu64 " reads=%" PRIuFAST64 " read-bytes=%" PRIuFAST64 " writes=%" PRIuFAST64
        " write-bytes=%" PRIuFAST64 " zeros=%" PRIuFAST64 " zero-bytes=%" PRIuFAST64 " trims=%" PRIuFAST64
        " trim-bytes=%" PRIuFAST64 " flushes=%" PRIuFAST64 " block-status=%" PRIuFAST64 " failures=%" PRIuFAST64 " abandoned=%u\n",
        served.nr_served, c->reads, c->read_bytes, c->writes, c->write_bytes, c->zeros, c->zero_bytes, c->trims, c->trim_bytes,
        c->flushes, c->questions, c->failures, served.nr_abandoned);
    if (code < 0)
        control_say("failed %d %s\n", code, text);
    else
        control_say("closed\n");
}

static bool is_still(const char *path, int fd)
{
    struct stat was, is;

    return fd >= 0 && fstat(fd, &was) == 0 && lstat(path, &is) == 0 && was.st_dev == is.st_dev && was.st_ino == is.st_ino;
}

/* nbdkit leaves its socket behind, and whoever else would remove it may be dead.  Nothing but sockets, and folders without
 * content, and of these only what was there when serving began. */
static void remove_names(void)
{
    struct stat st;

    for (size_t i = 0; parameters.removed_fds && i < parameters.nr_removed; i++) {
        const char *path = parameters.removed[i];
        int fd = parameters.removed_fds[i];
        if (is_still(path, fd) && fstat(fd, &st) == 0 &&
            ((S_ISSOCK(st.st_mode) && unlink(path) < 0) || (S_ISDIR(st.st_mode) && rmdir(path) < 0)))
            nbdkit_debug("remove-at-end=%s: %m", path);
        if (fd >= 0)
            close(fd);
        parameters.removed_fds[i] = -1;
    }
}

/* From here on the disk is ours alone.  The mutex is held. */
static void stop_requests(void)
{
    const struct timespec moment = {.tv_nsec = 1000000};

    atomic_store(&served.ending, true);
    for (struct connection *c = served.connections; c; c = c->next) {
        while (atomic_load(&c->nr_requests) > 0)
            nanosleep(&moment, NULL);
        add_counts(&served.counts, &c->counts);
    }
}

/* nbdkit does not wait for connections that it has accepted and not begun to serve: they may come in while this runs, or after
 * it. */
void served_close(void)
{
    control_end();
    pthread_mutex_lock(&served.mutex);
    stop_requests();
    remove_names();
    close_disk();
    pthread_mutex_unlock(&served.mutex);
}

static uint64_t nr_requests_done(const struct counts *c)
{
    return c->reads + c->writes + c->zeros + c->trims + c->flushes + c->questions + c->failures;
}

bool served_is_working(uint64_t *nr_done)
{
    unsigned nr_requests = 0;

    pthread_mutex_lock(&served.mutex);
    *nr_done = nr_requests_done(&served.counts);
    for (const struct connection *c = served.connections; c; c = c->next) {
        nr_requests += atomic_load(&c->nr_requests);
        *nr_done += nr_requests_done(&c->counts);
    }
    pthread_mutex_unlock(&served.mutex);
    return nr_requests > 0;
}

_Noreturn void served_abandon(unsigned nr_clients)
{
    pthread_mutex_lock(&served.mutex); /* for good: nobody comes or goes any more */
    stop_requests();
    served.nr_abandoned = nr_clients;
    nbdkit_debug("clients who do not take their answers: %u; closing the image without them", nr_clients);
    remove_names();
    close_disk();
    _exit(EXIT_SUCCESS);
}

void served_free(void)
{
    while (served.connections)
        served_disconnect(served.connections);
    served.nr_served = 0;
    served.counts = (struct counts){0};
}

const char *served_description(void)
{
    return served.description;
}
