/* SPDX-License-Identifier: MIT */
/* The nbdkit plugin with the test in the place of nbdkit: the calls in the order in which nbdkit makes them, from many threads,
 * and the end of a server that clients hold up.  What clients see is tested with nbdkit itself (tests/e2e/test_nbd*.py); here
 * sanitizers look. */
#include "folder-test.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/math.h"
#include "vhdx.h"

struct nbdkit_plugin *plugin_init(void);

/* ---- nbdkit ---- */

static char last_error[2048];
static _Thread_local int last_errno;
static atomic_uint nr_shutdowns;

struct nbdkit_extents {
    uint64_t start, end, nr;
    uint32_t types[8]; /* of the first ones */
    uint64_t lengths[8];
};

struct nbdkit_exports {
    unsigned nr;
};

void nbdkit_error(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
}

void nbdkit_debug(const char *format, ...)
{
    (void)format;
}

void nbdkit_set_error(int error)
{
    last_errno = error;
}

void nbdkit_shutdown(void)
{
    nr_shutdowns++;
}

char *nbdkit_absolute_path(const char *path)
{
    return strdup(path);
}

int nbdkit_parse_bool(const char *text)
{
    return strcmp(text, "true") == 0 ? 1 : strcmp(text, "false") == 0 ? 0 : -1;
}

int nbdkit_parse_int(const char *what, const char *text, int *r)
{
    (void)what;
    *r = atoi(text);
    return 0;
}

/* As nbdkit: ascending, without gaps, from the place that was asked about. */
int nbdkit_add_extent(struct nbdkit_extents *e, uint64_t offset, uint64_t length, uint32_t type)
{
    assert_true(length > 0);
    assert_int_equal(offset, e->nr == 0 ? e->start : e->end);
    if (e->nr < 8) {
        e->types[e->nr] = type;
        e->lengths[e->nr] = length;
    }
    e->nr++;
    e->end = offset + length;
    return 0;
}

int nbdkit_add_export(struct nbdkit_exports *exports, const char *name, const char *description)
{
    assert_string_equal(name, "");
    assert_non_null(strstr(description, "VHDX"));
    exports->nr++;
    return 0;
}

/* ---- a server ---- */

static struct nbdkit_plugin *plugin;
static char image[SCRATCH_PATH_BYTES + 16];

static int set_up(void **state)
{
    struct vhdx_create_options options = VHDX_CREATE_OPTIONS_INIT;

    (void)state;
    plugin = plugin_init();
    make_folder(state);
    snprintf(image, sizeof image, "%s/disk.vhdx", folder);
    options.virtual_size = MIB(64);
    options.block_size = (uint32_t)MIB(1);
    assert_succeeds(vhdx_create(image, &options));
    return 0;
}

static void start(const char *access)
{
    assert_int_equal(plugin->config("file", image), 0);
    if (access)
        assert_int_equal(plugin->config("access", access), 0);
    assert_int_equal(plugin->config_complete(), 0);
    assert_int_equal(plugin->get_ready(), 0);
    assert_int_equal(plugin->after_fork(), 0);
}

static void stop(void)
{
    plugin->cleanup();
    plugin->unload();
}

/* ---- requests ---- */

enum { NR_THREADS = 8, NR_ROUNDS = 60, SHARE_BYTES = 3 * 4096 };

struct worker {
    pthread_t thread;
    void *handle;
    unsigned no;
    bool good;
};

/* Each thread has every eighth stretch, so that blocks and table pages are everybody's. */
static void *work(void *opaque)
{
    struct worker *w = opaque;
    uint8_t buf[SHARE_BYTES], back[SHARE_BYTES];

    w->good = true;
    for (unsigned n = 0; n < NR_ROUNDS && w->good; n++) {
        uint64_t offset = (uint64_t)(n * NR_THREADS + w->no) * SHARE_BYTES;
        memset(buf, (int)(w->no * 16 + n % 16 + 1), sizeof buf);
        w->good &= plugin->pwrite(w->handle, buf, sizeof buf, offset, n % 7 == 0 ? NBDKIT_FLAG_FUA : 0) == 0;
        if (n % 3 == 0) {
            w->good &= plugin->zero(w->handle, 4096, offset + 4096, n % 2 ? NBDKIT_FLAG_MAY_TRIM : 0) == 0;
            memset(buf + 4096, 0, 4096);
        }
        if (n % 5 == 0) {
            w->good &= plugin->trim(w->handle, 100, offset, 0) == 0;
            memset(buf, 0, 100);
        }
        if (n % 11 == 0)
            w->good &= plugin->flush(w->handle, 0) == 0;
        struct nbdkit_extents e = {.start = offset};
        w->good &= plugin->extents(w->handle, sizeof buf, offset, 0, &e) == 0 && e.nr > 0;
        w->good &= plugin->pread(w->handle, back, sizeof back, offset, 0) == 0 && memcmp(buf, back, sizeof buf) == 0;
    }
    return NULL;
}

static void many_threads_on_several_connections(void **state)
{
    struct worker workers[NR_THREADS];
    void *handles[3];

    (void)state;
    start("write");
    for (unsigned i = 0; i < 3; i++)
        handles[i] = plugin->open(0);
    for (unsigned i = 0; i < NR_THREADS; i++) {
        workers[i] = (struct worker){.handle = handles[i % 3], .no = i};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < NR_THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_true(workers[i].good);
    }
    plugin->close(handles[0]);
    stop(); /* with two connections that nbdkit never closed */
    struct vhdx_check_result result = {.struct_bytes = sizeof result};
    assert_succeeds(vhdx_check(image, NULL, NULL, NULL, &result, NULL, NULL));
    assert_int_equal(result.nr_errors + result.replay_needed, 0);
}

static void negotiation(void **state)
{
    struct nbdkit_exports exports = {0};
    uint32_t minimum, preferred, maximum;

    (void)state;
    start("write");
    for (int readonly = 0; readonly < 2; readonly++) {
        void *h = plugin->open(readonly);
        assert_int_equal(plugin->get_size(h), MIB(64));
        assert_int_equal(plugin->can_write(h), !readonly);
        assert_int_equal(plugin->can_trim(h), !readonly);
        assert_int_equal(plugin->can_zero(h), !readonly);
        assert_int_equal(plugin->can_fast_zero(h), !readonly);
        assert_int_equal(plugin->can_flush(h), 1);
        assert_int_equal(plugin->can_multi_conn(h), 1);
        assert_int_equal(plugin->can_fua(h), NBDKIT_FUA_NATIVE);
        assert_int_equal(plugin->block_size(h, &minimum, &preferred, &maximum), 0);
        assert_int_equal(minimum, 1);
        assert_int_equal(preferred, 4096);
        assert_true(maximum >= (uint32_t)MIB(32));
        assert_int_equal(plugin->flush(h, 0), 0);
        plugin->close(h);
    }
    assert_int_equal(plugin->list_exports(0, 0, &exports), 0);
    assert_int_equal(exports.nr, 1);
    stop();
}

static void extents_of_a_range(void **state)
{
    static uint8_t data[4096] = {1};

    (void)state;
    start("write");
    void *h = plugin->open(0);
    assert_int_equal(plugin->trim(h, (uint32_t)MIB(64), 0, 0), 0);
    for (unsigned block = 10; block < 13; block++)
        assert_int_equal(plugin->pwrite(h, data, sizeof data, MIB(block), 0), 0);
    struct nbdkit_extents all = {.start = MIB(9) + 512}, one = all, inside = {.start = MIB(11) + 1};
    assert_int_equal(plugin->extents(h, (uint32_t)MIB(10), all.start, 0, &all), 0);
    assert_int_equal(all.nr, 3);
    assert_int_equal(all.types[0], NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO);
    assert_int_equal(all.lengths[0], MIB(1) - 512);
    assert_int_equal(all.types[1], 0);
    assert_int_equal(all.lengths[1], MIB(3)); /* three blocks, wherever they lie */
    assert_int_equal(all.end, MIB(19) + 512);
    assert_int_equal(plugin->extents(h, (uint32_t)MIB(10), one.start, NBDKIT_FLAG_REQ_ONE, &one), 0);
    assert_int_equal(one.nr, 1);
    assert_int_equal(one.end, MIB(10));
    assert_int_equal(plugin->extents(h, 1, inside.start, 0, &inside), 0);
    assert_int_equal(inside.nr, 1);
    assert_int_equal(inside.types[0], 0);
    plugin->close(h);
    stop();
}

static void fast_zero_fails_without_a_report(void **state)
{
    (void)state;
    start("write");
    void *h = plugin->open(0);
    last_error[0] = '\0';
    assert_int_equal(plugin->zero(h, 4096, MIB(40), NBDKIT_FLAG_FAST_ZERO), -1); /* no space, and none may be given up */
    assert_int_equal(last_errno, EOPNOTSUPP);
    assert_string_equal(last_error, "");
    assert_int_equal(plugin->zero(h, 4096, MIB(40), NBDKIT_FLAG_FAST_ZERO | NBDKIT_FLAG_MAY_TRIM), 0);
    plugin->close(h);
    stop();
}

static void errors_are_reported_with_the_files_name(void **state)
{
    uint8_t byte;

    (void)state;
    start("write");
    void *h = plugin->open(0);
    assert_int_equal(plugin->pread(h, &byte, 1, MIB(64), 0), -1); /* nbdkit would not ask */
    assert_int_equal(last_errno, EINVAL);
    assert_non_null(strstr(last_error, "disk.vhdx: "));
    assert_non_null(strstr(last_error, "beyond the end"));
    plugin->close(h);
    stop();
}

/* ---- access ---- */

static bool is_locked_for_reading(void)
{
    vhdx_disk *disk;
    int code = vhdx_open(image, NULL, &disk);

    vhdx_close(disk);
    return code == VHDX_E_LOCKED;
}

static void the_first_client_decides(void **state)
{
    (void)state;
    start(NULL);
    assert_false(is_locked_for_reading());
    void *reader = plugin->open(1), *other = plugin->open(1);
    assert_int_equal(plugin->can_write(reader), 0);
    assert_false(is_locked_for_reading());
    assert_null(plugin->open(0)); /* not under the readers */
    assert_non_null(strstr(last_error, "access=write"));
    plugin->close(reader);
    plugin->close(other);
    void *writer = plugin->open(0);
    assert_int_equal(plugin->can_write(writer), 1);
    assert_true(is_locked_for_reading());
    plugin->close(writer);
    assert_true(is_locked_for_reading());
    stop();
    assert_false(is_locked_for_reading());
}

static void an_image_in_use_turns_clients_away_until_it_is_free(void **state)
{
    vhdx_disk *disk;

    (void)state;
    start(NULL);
    assert_succeeds(vhdx_open(image, NULL, &disk));
    assert_null(plugin->open(0));
    assert_non_null(strstr(last_error, "-r"));
    vhdx_close(disk);
    void *h = plugin->open(0);
    assert_non_null(h);
    plugin->close(h);
    stop();
}

static void reading_only_from_the_start(void **state)
{
    (void)state;
    start("read");
    void *h = plugin->open(0);
    assert_int_equal(plugin->can_write(h), 0);
    assert_false(is_locked_for_reading());
    plugin->close(h);
    stop();
}

/* Only now does nbdkit tell that it runs with -r, and a dirty log has been replayed. */
static void opening_for_writing_what_is_only_read_is_said_once(void **state)
{
    (void)state;
    start("write");
    last_error[0] = '\0';
    void *reader = plugin->open(1);
    assert_non_null(strstr(last_error, "access=read"));
    last_error[0] = '\0';
    void *other = plugin->open(1);
    assert_string_equal(last_error, "");
    plugin->close(reader);
    plugin->close(other);
    stop();
}

/* ---- clients who come too late ---- */

/* nbdkit may call .cleanup while a connection that it accepted before is still being negotiated, or is yet to be opened. */
static void who_comes_when_the_image_is_closed_gets_nothing(void **state)
{
    uint32_t minimum, preferred, maximum;
    uint8_t byte;

    (void)state;
    start(NULL);
    void *early = plugin->open(0);
    assert_non_null(early);
    plugin->cleanup();
    assert_false(is_locked_for_reading());
    assert_null(plugin->open(0));
    assert_null(plugin->open(1));
    assert_false(is_locked_for_reading()); /* it was not opened again */
    assert_int_equal(plugin->get_size(early), MIB(64));
    assert_int_equal(plugin->block_size(early, &minimum, &preferred, &maximum), 0);
    assert_int_equal(preferred, 4096);
    assert_non_null(plugin->export_description(early));
    assert_int_equal(plugin->pread(early, &byte, 1, 0, 0), -1);
    assert_int_equal(last_errno, ESHUTDOWN);
    assert_int_equal(plugin->pwrite(early, &byte, 1, 0, 0), -1);
    plugin->close(early);
    plugin->unload();
}

/* ---- time ---- */

/* The plugin gives up on clients when nothing has moved while it looked so many times.  When it looks is in the hands of the test,
 * whose threads may stand still for as long as that takes otherwise. */
enum { UNLIMITED = 1 << 30, ROUNDS_OF_MINUTES = 1300 };

static atomic_uint nr_rounds_left;
static pthread_cond_t *_Atomic rounds_condition;
static pthread_mutex_t *_Atomic rounds_mutex;

int __wrap_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until);

int __wrap_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until)
{
    (void)until;
    rounds_mutex = mutex;
    rounds_condition = condition;
    if (nr_rounds_left == 0)
        pthread_cond_wait(condition, mutex);
    if (nr_rounds_left == 0)
        return 0;
    if (nr_rounds_left != UNLIMITED)
        nr_rounds_left--;
    return ETIMEDOUT;
}

static void pass_rounds(unsigned nr)
{
    nr_rounds_left = nr;
    while (nr_rounds_left > 0) {
        if (rounds_condition) {
            pthread_mutex_lock(rounds_mutex);
            pthread_cond_signal(rounds_condition);
            pthread_mutex_unlock(rounds_mutex);
        }
        usleep(1000);
    }
}

/* ---- the control socket ---- */

/* A listening socket, one client connected to it, and what the server has of that. */
struct client {
    int listener, theirs, ours;
};

static void connect_client(struct client *c)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    assert_true(snprintf(address.sun_path, sizeof address.sun_path, "%.90s/s", folder) > 0);
    unlink(address.sun_path);
    c->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    c->theirs = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(c->listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(c->listener, 1), 0);
    assert_int_equal(connect(c->theirs, (struct sockaddr *)&address, sizeof address), 0);
    c->ours = accept(c->listener, NULL, NULL);
    assert_true(c->ours >= 0);
}

static void close_client(const struct client *c)
{
    close(c->listener);
    close(c->theirs);
    close(c->ours);
}

static void start_controlled(int ends[2])
{
    char number[16];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    snprintf(number, sizeof number, "%d", ends[1]);
    assert_int_equal(plugin->config("control-fd", number), 0);
    start("write");
}

/* What the plugin told, up to its end. */
static void expect_told(int fd, const char *first, const char *last)
{
    char text[4096];
    size_t bytes = 0;

    for (ssize_t n; bytes < sizeof text - 1 && (n = read(fd, text + bytes, sizeof text - 1 - bytes)) > 0;)
        bytes += (size_t)n;
    text[bytes] = '\0';
    assert_int_equal(strncmp(text, first, strlen(first)), 0);
    assert_true(bytes >= strlen(last) && strcmp(text + bytes - strlen(last), last) == 0);
}

static void closing_the_control_socket_hangs_up_on_clients(void **state)
{
    struct client c;
    int ends[2], unrelated[2];
    char byte;
    unsigned before = nr_shutdowns;

    (void)state;
    connect_client(&c);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, unrelated), 0);
    start_controlled(ends);
    void *h = plugin->open(0);
    assert_int_equal(shutdown(ends[0], SHUT_WR), 0);
    assert_int_equal(read(c.ours, &byte, 1), 0); /* nbdkit waits here, and sees the end */
    assert_int_equal(write(c.ours, "x", 1), 1);  /* and can answer */
    assert_int_equal(read(c.theirs, &byte, 1), 1);
    assert_int_equal(write(unrelated[0], "x", 1), 1);
    assert_int_equal(read(unrelated[1], &byte, 1), 1); /* what is none of ours lives */
    plugin->close(h);
    stop();
    assert_int_equal(nr_shutdowns, before + 1);
    close(ends[1]);
    expect_told(ends[0], "ready 67108864\ndid connections=", "\nclosed\n");
    close(ends[0]);
    close(unrelated[0]);
    close(unrelated[1]);
    close_client(&c);
}

static void an_orderly_end_leaves_the_control_thread_behind(void **state)
{
    int ends[2];

    (void)state;
    start_controlled(ends);
    stop();
    close(ends[1]);
    expect_told(ends[0], "ready 67108864\n", "\nclosed\n");
    close(ends[0]);
}

/* nbdkit is stuck with some client and never calls .cleanup: the image is closed, and the process ends. */
static void a_stuck_server_closes_the_image(void **state)
{
    static uint8_t data[4096] = {7}, back[4096];
    vhdx_disk *disk;
    int ends[2], written[2], status;

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    assert_int_equal(pipe(written), 0);
    pid_t child = fork();
    if (child == 0) {
        char number[16];
        close(ends[0]);
        nr_rounds_left = UNLIMITED;
        snprintf(number, sizeof number, "%d", ends[1]);
        plugin->config("control-fd", number);
        plugin->config("file", image);
        plugin->config("access", "write");
        if (plugin->config_complete() < 0 || plugin->get_ready() < 0 || plugin->after_fork() < 0)
            _exit(3);
        void *h = plugin->open(0);
        if (plugin->pwrite(h, data, sizeof data, MIB(50), 0) < 0 || write(written[1], "w", 1) != 1)
            _exit(4);
        for (;;)
            pause();
    }
    close(ends[1]);
    close(written[1]);
    assert_int_equal(read(written[0], back, 1), 1);
    assert_int_equal(read(ends[0], back, 1), 1);
    assert_int_equal(back[0], 'r'); /* "ready" */
    shutdown(ends[0], SHUT_WR);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    expect_told(ends[0], "eady ", " abandoned=1\nclosed\n");
    close(ends[0]);
    close(written[0]);
    struct vhdx_open_options options = VHDX_OPEN_OPTIONS_INIT;
    options.flags = VHDX_OPEN_REFUSE_DIRTY;
    assert_succeeds(vhdx_open(image, &options, &disk));
    assert_succeeds(vhdx_pread(disk, back, sizeof back, MIB(50)));
    assert_memory_equal(back, data, sizeof back);
    vhdx_close(disk);
}

/* A flush that the disk takes long for: longer than clients may be stuck. */
static bool flush_is_slow;

int __wrap_vhdx_flush(vhdx_disk *disk);
int __real_vhdx_flush(vhdx_disk *disk);

int __wrap_vhdx_flush(vhdx_disk *disk)
{
    if (flush_is_slow)
        pass_rounds(ROUNDS_OF_MINUTES);
    return __real_vhdx_flush(disk);
}

/* The answer is sent some time after the plugin has given it. */
static _Noreturn void serve_a_slow_flush(int control_fd, int answers)
{
    char number[16];
    void *h;

    alarm(100); /* a plugin that has given up waits for the flush, which waits for it */
    snprintf(number, sizeof number, "%d", control_fd);
    plugin->config("control-fd", number);
    plugin->config("file", image);
    plugin->config("access", "write");
    if (plugin->config_complete() < 0 || plugin->get_ready() < 0 || plugin->after_fork() < 0 || !(h = plugin->open(0)))
        _exit(3);
    flush_is_slow = true;
    char answer = plugin->flush(h, 0) == 0 ? 'y' : 'n';
    flush_is_slow = false; /* closing flushes too, when nobody looks any more */
    pass_rounds(10);
    if (write(answers, &answer, 1) != 1)
        _exit(4);
    plugin->cleanup();
    _exit(0);
}

static void a_slow_request_is_answered_before_the_end(void **state)
{
    int ends[2], answers[2], status;
    char answer;

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    assert_int_equal(pipe(answers), 0);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        serve_a_slow_flush(ends[1], answers[1]);
    }
    close(ends[1]);
    close(answers[1]);
    assert_int_equal(read(ends[0], &answer, 1), 1); /* of "ready" */
    shutdown(ends[0], SHUT_WR);
    assert_int_equal(read(answers[0], &answer, 1), 1);
    assert_int_equal(answer, 'y');
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    expect_told(ends[0], "eady ", " abandoned=0\nclosed\n");
    close(ends[0]);
    close(answers[0]);
}

static void what_cannot_be_opened_is_told_there_and_not_logged(void **state)
{
    char missing[sizeof image + 8], number[16];
    int ends[2];

    (void)state;
    snprintf(missing, sizeof missing, "%s.no", image);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    snprintf(number, sizeof number, "%d", ends[1]);
    assert_int_equal(plugin->config("file", missing), 0);
    assert_int_equal(plugin->config("control-fd", number), 0);
    assert_int_equal(plugin->config_complete(), 0);
    last_error[0] = '\0';
    assert_int_equal(plugin->get_ready(), -1);
    assert_string_equal(last_error, "");
    plugin->unload();
    close(ends[1]);
    expect_told(ends[0], "failed -2 ", "No such file or directory\n");
    close(ends[0]);
}

static void no_name_steers_the_terminal_of_the_log(void **state)
{
    struct vhdx_create_options options = VHDX_CREATE_OPTIONS_INIT;
    char parent[sizeof image + 32], child[sizeof image + 32];

    (void)state;
    snprintf(parent, sizeof parent, "%s/parent\xc2\x9b" "31m.vhdx", folder);
    snprintf(child, sizeof child, "%s/child.avhdx", folder);
    options.virtual_size = MIB(1);
    assert_succeeds(vhdx_create(parent, &options));
    options.subformat = VHDX_DIFFERENCING;
    options.virtual_size = 0;
    options.parent = parent;
    assert_succeeds(vhdx_create(child, &options));
    unlink(parent);
    assert_int_equal(plugin->config("file", child), 0);
    assert_int_equal(plugin->config_complete(), 0);
    last_error[0] = '\0';
    assert_int_equal(plugin->get_ready(), -1);
    assert_non_null(strstr(last_error, "31m"));
    for (const char *c = last_error; *c; c++)
        assert_false((unsigned char)*c < 0x20 || *c == 0x7f || *c == '\x9b');
    plugin->unload();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_threads_on_several_connections),
        cmocka_unit_test(negotiation),
        cmocka_unit_test(extents_of_a_range),
        cmocka_unit_test(fast_zero_fails_without_a_report),
        cmocka_unit_test(errors_are_reported_with_the_files_name),
        cmocka_unit_test(the_first_client_decides),
        cmocka_unit_test(an_image_in_use_turns_clients_away_until_it_is_free),
        cmocka_unit_test(reading_only_from_the_start),
        cmocka_unit_test(opening_for_writing_what_is_only_read_is_said_once),
        cmocka_unit_test(who_comes_when_the_image_is_closed_gets_nothing),
        cmocka_unit_test(closing_the_control_socket_hangs_up_on_clients),
        cmocka_unit_test(an_orderly_end_leaves_the_control_thread_behind),
        cmocka_unit_test(a_stuck_server_closes_the_image),
        cmocka_unit_test(a_slow_request_is_answered_before_the_end),
        cmocka_unit_test(what_cannot_be_opened_is_told_there_and_not_logged),
        cmocka_unit_test(no_name_steers_the_terminal_of_the_log),
    };
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur > 256) { /* all of which the plugin looks through for clients */
        limit.rlim_cur = 256;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}
