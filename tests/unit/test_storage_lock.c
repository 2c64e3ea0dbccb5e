/* SPDX-License-Identifier: MIT */
/* Image locks: who keeps out whom, and on which bytes, so that QEMU agrees (I4). */
#include "folder-test.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/storage.h"

/* ---- the kernel: fcntl goes through here ---- */

static struct {
    int set_error, get_error; /* F_OFD_SETLK but not for unlocking, F_OFD_GETLK */
    bool interrupts;          /* every other lock call is */
    void (*before_locking)(void);
} kernel;

static int meddle(int command, const struct flock *lock)
{
    static unsigned nr;

    if (command != F_OFD_SETLK && command != F_OFD_GETLK)
        return 0;
    if (kernel.interrupts && nr++ % 2 == 0)
        return EINTR;
    if (command == F_OFD_GETLK)
        return kernel.get_error;
    if (kernel.before_locking && lock->l_type != F_UNLCK)
        kernel.before_locking();
    return lock->l_type == F_UNLCK ? 0 : kernel.set_error;
}

int fcntl(int fd, int command, ...)
{
    static int (*real)(int, int, ...);
    va_list args;

    if (!real)
        real = (int (*)(int, int, ...))(uintptr_t)dlsym(RTLD_NEXT, "fcntl64");
    if (!real)
        real = (int (*)(int, int, ...))(uintptr_t)dlsym(RTLD_NEXT, "fcntl");
    va_start(args, command);
    void *argument = va_arg(args, void *); /* integers, too, come in a register */
    va_end(args);

    int error = meddle(command, argument);
    if (error) {
        errno = error;
        return -1;
    }
    return real(fd, command, argument);
}

/* ---- files ---- */

static char path[SCRATCH_PATH_BYTES + 8];

static int set_up(void **state)
{
    memset(&kernel, 0, sizeof kernel);
    make_folder(state);
    snprintf(path, sizeof path, "%s/file", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    return fd < 0 ? -1 : close(fd);
}

static struct storage *open_it(void)
{
    struct storage *s;

    assert_succeeds(storage_posix_open(path, POSIX_OPEN_WRITABLE, &s));
    return s;
}

/* Another program that locks bytes by itself. */
static int open_foreign(void)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static void lock_foreign(int fd, int type, const int *bytes, int nr)
{
    for (int i = 0; i < nr; i++) {
        struct flock lock = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = bytes[i], .l_len = 1};

        assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
    }
}

/* The bytes that others than fd hold, of 0 to 399, must be these and all locked for reading. */
static void expect_locked(int fd, const int *bytes, int nr)
{
    for (int byte = 0, i = 0; byte < 400; byte++) {
        bool expected = i < nr && bytes[i] == byte;
        struct flock for_writing = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
        struct flock for_reading = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

        assert_int_equal(fcntl(fd, F_OFD_GETLK, &for_writing), 0);
        assert_int_equal(fcntl(fd, F_OFD_GETLK, &for_reading), 0);
        if ((for_writing.l_type != F_UNLCK) != expected) {
            print_error("byte %d is%s locked\n", byte, expected ? " not" : "");
            assert_true(false);
        }
        assert_int_equal(for_reading.l_type, F_UNLCK);
        i += expected;
    }
}

#define BYTES(...)      ((const int[]){__VA_ARGS__}), (int)(sizeof((const int[]){__VA_ARGS__}) / sizeof(int))
#define SHARED_BYTES    BYTES(100, 201, 203)
#define EXCLUSIVE_BYTES BYTES(100, 101, 103, 201, 203)

/* ---- tests ---- */

static void locks_the_bytes_that_qemu_locks(void **state)
{
    struct storage *s = open_it();
    int other = open_foreign();

    (void)state;
    expect_locked(other, NULL, 0);
    assert_succeeds(storage_lock(s, STORAGE_LOCK_SHARED));
    expect_locked(other, SHARED_BYTES);
    assert_succeeds(storage_lock(s, STORAGE_LOCK_EXCLUSIVE));
    expect_locked(other, EXCLUSIVE_BYTES);
    assert_succeeds(storage_lock(s, STORAGE_LOCK_EXCLUSIVE));
    expect_locked(other, EXCLUSIVE_BYTES);
    assert_succeeds(storage_lock(s, STORAGE_LOCK_SHARED));
    expect_locked(other, SHARED_BYTES);
    assert_succeeds(storage_lock(s, STORAGE_LOCK_NONE));
    expect_locked(other, NULL, 0);
    assert_succeeds(storage_lock(s, STORAGE_LOCK_EXCLUSIVE));
    storage_close(s);
    expect_locked(other, NULL, 0);
    close(other);
}

static void two_handles_conflict_as_two_programs(void **state)
{
    struct storage *a = open_it(), *b = open_it();

    (void)state;
    assert_succeeds(storage_lock(a, STORAGE_LOCK_SHARED));
    assert_succeeds(storage_lock(b, STORAGE_LOCK_SHARED));
    assert_fails(storage_lock(a, STORAGE_LOCK_EXCLUSIVE), VHDX_E_LOCKED,
                 "another program has the image open for reading; close it there first");
    storage_close(b);
    assert_succeeds(storage_lock(a, STORAGE_LOCK_EXCLUSIVE));
    b = open_it();
    assert_fails(
        storage_lock(b, STORAGE_LOCK_SHARED), VHDX_E_LOCKED,
        "another program has the image open for writing; close it there, or use --force-share to read "
        "anyway");
    assert_fails(storage_lock(b, STORAGE_LOCK_EXCLUSIVE), VHDX_E_LOCKED,
                 "another program has the image open for writing; close it there first");
    assert_succeeds(storage_lock(b, STORAGE_LOCK_NONE));
    assert_succeeds(storage_lock(a, STORAGE_LOCK_SHARED));
    assert_succeeds(storage_lock(b, STORAGE_LOCK_SHARED));
    storage_close(a);
    storage_close(b);
}

static void refused_lock_leaves_things_as_they_were(void **state)
{
    struct storage *a = open_it(), *b = open_it();
    int other = open_foreign();

    (void)state;
    assert_succeeds(storage_lock(a, STORAGE_LOCK_EXCLUSIVE));
    assert_fails(storage_lock(b, STORAGE_LOCK_SHARED), VHDX_E_LOCKED, "writing");
    storage_close(a);
    expect_locked(other, NULL, 0);

    a = open_it();
    assert_succeeds(storage_lock(a, STORAGE_LOCK_SHARED));
    assert_succeeds(storage_lock(b, STORAGE_LOCK_SHARED));
    assert_fails(storage_lock(b, STORAGE_LOCK_EXCLUSIVE), VHDX_E_LOCKED, "reading");
    storage_close(a);
    expect_locked(other, SHARED_BYTES); /* b's, nothing lost and nothing more */
    storage_close(b);
    close(other);
}

static void each_foreign_byte_has_its_effect(void **state)
{
    static const struct {
        int byte;
        bool stops_shared, stops_exclusive;
        const char *message;
    } cases[] = {
        {100, false, false, ""},
        {101, true, true, "for writing"},
        {102, false, false, ""},
        {103, true, true, "for writing"},
        {200, true, true, "lets nobody read"},
        {201, false, true, "for reading"},
        {202, false, false, ""},
        {203, false, true, "for reading"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct storage *s = open_it();
        int other = open_foreign();

        lock_foreign(other, F_RDLCK, &cases[i].byte, 1);
        if (cases[i].stops_shared)
            assert_fails(storage_lock(s, STORAGE_LOCK_SHARED), VHDX_E_LOCKED, cases[i].message);
        else
            assert_succeeds(storage_lock(s, STORAGE_LOCK_SHARED));
        if (cases[i].stops_exclusive)
            assert_fails(storage_lock(s, STORAGE_LOCK_EXCLUSIVE), VHDX_E_LOCKED, cases[i].message);
        else
            assert_succeeds(storage_lock(s, STORAGE_LOCK_EXCLUSIVE));
        storage_close(s);
        close(other);
    }
}

static void foreign_write_locks_are_respected(void **state)
{
    struct storage *s = open_it();
    int other = open_foreign();

    (void)state;
    lock_foreign(other, F_WRLCK, BYTES(203));
    assert_fails(storage_lock(s, STORAGE_LOCK_SHARED), VHDX_E_LOCKED, "write lock on byte 203");
    close(other);
    other = open_foreign();
    expect_locked(other, NULL, 0);
    close(other);
    storage_close(s);
}

static void another_process_is_kept_out_until_it_ends(void **state)
{
    int ready[2], done[2], status;
    char byte = 0;

    (void)state;
    assert_int_equal(pipe(ready) | pipe(done), 0);
    pid_t child = fork();
    if (child == 0) {
        struct storage *s;

        close(done[1]); /* so that it ends when the parent does, whatever happens there */
        bool ok = storage_posix_open(path, POSIX_OPEN_WRITABLE, &s) == 0 &&
                  storage_lock(s, STORAGE_LOCK_EXCLUSIVE) == 0 && write(ready[1], "r", 1) == 1 &&
                  read(done[0], &byte, 1) == 1;
        _exit(ok ? 0 : 1); /* without closing */
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    struct storage *s = open_it();
    assert_fails(storage_lock(s, STORAGE_LOCK_SHARED), VHDX_E_LOCKED, "writing");
    assert_int_equal(write(done[1], "d", 1), 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_succeeds(storage_lock(s, STORAGE_LOCK_SHARED));
    storage_close(s);
    for (int i = 0; i < 2; i++) {
        close(ready[i]);
        close(done[i]);
    }
}

static void closing_one_handle_keeps_the_locks_of_others(void **state)
{
    struct storage *a = open_it(), *b = open_it();
    int other = open_foreign();

    (void)state;
    assert_succeeds(storage_lock(a, STORAGE_LOCK_SHARED));
    storage_close(b);
    close(open_foreign());
    expect_locked(other, SHARED_BYTES);
    storage_close(a);
    close(other);
}

static void file_systems_without_locks_do_not_matter(void **state)
{
    const int errors[] = {ENOLCK, EINVAL, ENOTSUP, EOPNOTSUPP, ENOSYS};
    int other = open_foreign();

    (void)state;
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        struct storage *s = open_it();

        kernel.set_error = errors[i];
        assert_succeeds(storage_lock(s, STORAGE_LOCK_SHARED));
        assert_succeeds(storage_lock(s, STORAGE_LOCK_EXCLUSIVE));
        assert_succeeds(storage_lock(s, STORAGE_LOCK_NONE));
        kernel.set_error = 0;
        kernel.get_error = errors[i];
        assert_succeeds(storage_lock(s, STORAGE_LOCK_SHARED));
        kernel.get_error = 0;
        expect_locked(other, NULL, 0);
        assert_succeeds(storage_lock(s, STORAGE_LOCK_SHARED)); /* it was for the moment only */
        expect_locked(other, SHARED_BYTES);
        kernel.set_error = errors[i];
        assert_succeeds(storage_lock(s, STORAGE_LOCK_EXCLUSIVE));
        kernel.set_error = 0;
        expect_locked(other, NULL, 0); /* half a lock would keep others out and yet be no protection */
        assert_succeeds(storage_lock(s, STORAGE_LOCK_EXCLUSIVE));
        expect_locked(other, EXCLUSIVE_BYTES);
        storage_close(s);
    }
    close(other);
}

static void other_errors_are_reported(void **state)
{
    struct storage *s = open_it();
    int other = open_foreign();

    (void)state;
    kernel.set_error = EIO;
    assert_fails(storage_lock(s, STORAGE_LOCK_SHARED), -EIO, "cannot lock byte 100 of the file");
    kernel.set_error = 0;
    kernel.get_error = EIO;
    assert_fails(storage_lock(s, STORAGE_LOCK_SHARED), -EIO, "cannot lock byte 101 of the file");
    kernel.get_error = 0;
    expect_locked(other, NULL, 0);
    storage_close(s);
    close(other);
}

static void interrupted_calls_are_retried(void **state)
{
    struct storage *s = open_it();
    int other = open_foreign();

    (void)state;
    kernel.interrupts = true;
    assert_succeeds(storage_lock(s, STORAGE_LOCK_EXCLUSIVE));
    kernel.interrupts = false;
    expect_locked(other, EXCLUSIVE_BYTES);
    storage_close(s);
    close(other);
}

/* ---- threads ---- */

static void *change_lock_often(void *arg)
{
    for (unsigned i = 0; i < 200; i++)
        if (storage_lock(arg, (enum storage_lock)(i % 3)) < 0)
            return NULL;
    return arg;
}

static void threads_may_lock_one_handle(void **state)
{
    struct storage *s = open_it();
    int other = open_foreign();
    pthread_t threads[4];
    void *ok;

    (void)state;
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, change_lock_often, s), 0);
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(threads[i], &ok);
        assert_ptr_equal(ok, s);
    }
    assert_succeeds(storage_lock(s, STORAGE_LOCK_SHARED));
    expect_locked(other, SHARED_BYTES);
    storage_close(s);
    close(other);
}

/* ---- opening what is being replaced ---- */

static unsigned nr_replaced, nr_to_replace;

/* Another program gives path to a new file, between our opening and our locking the old one. */
static void replace_file(void)
{
    char fresh[sizeof path + 8];

    if (nr_replaced == nr_to_replace)
        return;
    nr_replaced++;
    snprintf(fresh, sizeof fresh, "%s.new", path);
    close(open(fresh, O_RDWR | O_CREAT | O_EXCL, 0600));
    rename(fresh, path);
}

static void remove_file(void)
{
    unlink(path);
}

static void expect_open_at_path(enum storage_lock lock)
{
    struct storage *s;
    struct stat st;

    assert_succeeds(storage_posix_open_locked(path, POSIX_OPEN_WRITABLE, lock, &s));
    assert_int_equal(nr_replaced, nr_to_replace);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(s->identity.inode, st.st_ino);
    storage_close(s);
}

static void a_file_replaced_before_it_is_locked_is_not_used(void **state)
{
    (void)state;
    kernel.before_locking = replace_file;
    for (nr_to_replace = 1; nr_to_replace <= 3; nr_to_replace++) {
        nr_replaced = 0;
        expect_open_at_path(STORAGE_LOCK_EXCLUSIVE);
        nr_replaced = 0;
        expect_open_at_path(STORAGE_LOCK_SHARED);
    }
}

static void a_file_replaced_for_ever_is_given_up(void **state)
{
    struct storage *s;

    (void)state;
    kernel.before_locking = replace_file;
    nr_replaced = 0;
    nr_to_replace = UINT_MAX;
    assert_int_equal(storage_posix_open_locked(path, POSIX_OPEN_WRITABLE, STORAGE_LOCK_EXCLUSIVE, &s), VHDX_E_LOCKED);
    assert_null(s);
}

static void a_file_removed_before_it_is_locked_is_not_there(void **state)
{
    struct storage *s;

    (void)state;
    kernel.before_locking = remove_file;
    assert_int_equal(storage_posix_open_locked(path, POSIX_OPEN_WRITABLE, STORAGE_LOCK_EXCLUSIVE, &s), -ENOENT);
    assert_null(s);
}

static void nobody_may_lock(void)
{
    assert_true(false);
}

static void looking_for_a_writer_locks_nothing(void **state)
{
    static const int reader[] = {100, 102, 201, 202, 203};
    struct storage *s = open_it();
    int other = open_foreign();
    bool written = true;

    (void)state;
    kernel.before_locking = nobody_may_lock;
    assert_succeeds(storage_posix_is_written(s, &written));
    assert_false(written);
    kernel.before_locking = NULL;
    lock_foreign(other, F_RDLCK, reader, sizeof reader / sizeof *reader);
    assert_succeeds(storage_posix_is_written(s, &written));
    assert_false(written);
    for (int byte = 100; byte <= 203; byte++) {
        if (byte != 101 && byte != 103 && byte != 200)
            continue;
        int writer = open_foreign();
        lock_foreign(writer, F_RDLCK, &byte, 1);
        kernel.before_locking = nobody_may_lock;
        assert_succeeds(storage_posix_is_written(s, &written));
        assert_true(written);
        kernel.before_locking = NULL;
        close(writer);
    }
    kernel.get_error = ENOLCK;
    assert_succeeds(storage_posix_is_written(s, &written));
    assert_false(written);
    kernel.get_error = EIO;
    assert_int_equal(storage_posix_is_written(s, &written), -EIO);
    kernel.get_error = 0;
    close(other);
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(locks_the_bytes_that_qemu_locks, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(two_handles_conflict_as_two_programs, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(refused_lock_leaves_things_as_they_were, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(each_foreign_byte_has_its_effect, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(foreign_write_locks_are_respected, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(another_process_is_kept_out_until_it_ends, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(closing_one_handle_keeps_the_locks_of_others, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(file_systems_without_locks_do_not_matter, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(other_errors_are_reported, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(interrupted_calls_are_retried, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(threads_may_lock_one_handle, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(looking_for_a_writer_locks_nothing, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(a_file_replaced_before_it_is_locked_is_not_used, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(a_file_replaced_for_ever_is_given_up, set_up, remove_folder),
        cmocka_unit_test_setup_teardown(a_file_removed_before_it_is_locked_is_not_there, set_up, remove_folder),
    };
    return cmocka_run_group_tests_name("storage lock", tests, NULL, NULL);
}
