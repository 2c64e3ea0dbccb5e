/* SPDX-License-Identifier: MIT */
/* How "vhdx umount" finds a server: by a file in the mount, which may be anybody's and name anything. */
#include "folder-test.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mount/status.h"

static int tear_down(void **state)
{
    alarm(0);
    return remove_folder(state);
}

/* The mount says that its server is process pid, with its result in fd. */
static void describe(long pid, int fd)
{
    FILE *file = fopen(in_folder(STATUS_FILE), "we");

    assert_non_null(file);
    fprintf(file, "pid %ld\nresult-fd %d\nends-itself 0\nimage /a b\nc\n", pid, fd);
    fclose(file);
}

static void a_server_is_found_and_its_last_word_read(void **state)
{
    struct server_handle server;
    char message[64];
    int fd = status_create();

    (void)state;
    describe(getpid(), fd);
    assert_int_equal(server_find(&server, folder, geteuid()), 0);
    assert_string_equal(server.image, "/a b\nc");
    assert_false(server_result(&server, message, sizeof message));
    status_finish(fd, NULL);
    assert_true(server_result(&server, message, sizeof message));
    server_forget(&server);
    close(fd);
}

static void a_server_of_another_user_is_none(void **state)
{
    struct server_handle server;
    int fd = status_create();

    (void)state;
    describe(getpid(), fd);
    assert_int_equal(server_find(&server, folder, geteuid() + 1), -ENOENT);
    close(fd);
}

/* The signal of alarm(2) ends the test should anything wait. */
static void nothing_is_waited_for(void **state)
{
    struct server_handle server;
    int ends[2];

    (void)state;
    alarm(60);
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    int fifo = open(in_folder("fifo"), O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* who opens it for reading, too, waits for a writer */
    describe(getpid(), fifo);
    assert_int_equal(server_find(&server, folder, geteuid()), -ENOENT);
    close(fifo);

    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    describe(getpid(), ends[0]);
    assert_int_equal(server_find(&server, folder, geteuid()), -ENOENT);
    close(ends[0]);
    close(ends[1]);

    assert_int_equal(rename(in_folder("fifo"), in_folder(STATUS_FILE)), 0);
    assert_int_equal(server_find(&server, folder, geteuid()), -ENOENT);
}

static void a_process_that_has_gone_is_not_connected(void **state)
{
    struct server_handle server;
    pid_t child = fork();

    (void)state;
    if (child == 0)
        _exit(0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    describe(child, 3);
    assert_int_equal(server_find(&server, folder, geteuid()), -ENOTCONN);
}

static bool has_pidfd_open(void)
{
    int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);

    if (fd >= 0)
        close(fd);
    return fd >= 0 || errno != ENOSYS;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_server_is_found_and_its_last_word_read, make_folder, tear_down),
        cmocka_unit_test_setup_teardown(a_server_of_another_user_is_none, make_folder, tear_down),
        cmocka_unit_test_setup_teardown(nothing_is_waited_for, make_folder, tear_down),
        cmocka_unit_test_setup_teardown(a_process_that_has_gone_is_not_connected, make_folder, tear_down),
    };
    if (!has_pidfd_open()) { /* as valgrind 3.19 makes it seem */
        puts("1..0 # SKIP the system has no pidfd_open");
        return 0;
    }
    return cmocka_run_group_tests_name("mount status", tests, NULL, NULL);
}
