/* SPDX-License-Identifier: MIT */
/* Snapshots: at whatever system call the process dies, the image is there under its name with its content, and calling again
 * completes it. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/math.h"
#include "disk/disk.h"
#include "image/image.h"
#include "ops/ops.h"
#include "scratch.h"
#include "skip.h"
#include "storage/storage.h"

static char top[SCRATCH_PATH_BYTES];
static char path[2 * SCRATCH_PATH_BYTES], kept[2 * SCRATCH_PATH_BYTES], kid[2 * SCRATCH_PATH_BYTES];

/* ---- what others do meanwhile ---- */

static void (*others)(void); /* do that, once: */
static int before_lock = -1; /* before this kind of lock is taken; -1: before the child gets its name */

static void let_others(int lock)
{
    void (*now)(void) = others;

    if (now && lock == before_lock) {
        others = NULL;
        now();
    }
}

int __real_storage_lock(struct storage *s, enum storage_lock lock);
int __wrap_storage_lock(struct storage *s, enum storage_lock lock);
int __wrap_storage_lock(struct storage *s, enum storage_lock lock)
{
    let_others((int)lock);
    return __real_storage_lock(s, lock);
}

/* ---- dying ---- */

static long calls_left = -1; /* before the one that is the last; -1: none is */
static bool after;           /* die when that one has been carried out */

static bool is_last(void)
{
    return calls_left >= 0 && calls_left-- == 0;
}

#define WRAP(name, parameters, arguments)                                                                    \
    int __real_##name parameters;                                                                            \
    int __wrap_##name parameters;                                                                            \
    int __wrap_##name parameters                                                                             \
    {                                                                                                        \
        bool last = is_last();                                                                               \
        if (strcmp(#name, "renameat") == 0)                                                                  \
            let_others(-1);                                                                                  \
        if (last && !after)                                                                                  \
            _exit(1);                                                                                        \
        int r = __real_##name arguments;                                                                     \
        if (last)                                                                                            \
            _exit(1);                                                                                        \
        return r;                                                                                            \
    }

WRAP(linkat, (int a, const char *b, int c, const char *d, int e), (a, b, c, d, e))
WRAP(renameat, (int a, const char *b, int c, const char *d), (a, b, c, d))
WRAP(unlinkat, (int a, const char *b, int c), (a, b, c))
WRAP(fsync, (int a), (a))
WRAP(fdatasync, (int a), (a))

/* Call fn in a process that dies at the nth call; true: it did. */
static bool die_at(int (*fn)(void), long nth, bool when_done)
{
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        calls_left = nth;
        after = when_done;
        int r = fn();
        calls_left = -1;
        if (r < 0)
            fprintf(stderr, "%s\n", error_message());
        _exit(r == 0 ? 0 : 2);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_in_range(WEXITSTATUS(status), 0, 1);
    return WEXITSTATUS(status) == 1;
}

/* ---- the image ---- */

static void write_state(uint8_t value)
{
    struct vhdx_open_options open_options = VHDX_OPEN_OPTIONS_INIT;
    uint8_t bytes[4096];
    vhdx_disk *disk;

    memset(bytes, value, sizeof bytes);
    open_options.flags = VHDX_OPEN_WRITE;
    assert_succeeds(disk_open(path, &open_options, &disk));
    struct iovec iov = {bytes, sizeof bytes};
    assert_succeeds(disk_pwritev(disk, &iov, 1, MIB(1), 0));
    assert_succeeds(disk_close(disk));
}

/* What the image at p holds; *parent: whether it is a child. */
static uint8_t read_state(const char *p, bool *parent)
{
    uint8_t bytes[4096];
    vhdx_disk *disk;

    assert_succeeds(disk_open(p, NULL, &disk));
    assert_succeeds(disk_pread(disk, bytes, sizeof bytes, MIB(1)));
    assert_int_equal(bytes[0], bytes[4095]);
    *parent = image_has_parent(disk->layers[0].img);
    disk_close(disk);
    return bytes[0];
}

static void must_hold(const char *p, uint8_t value, bool child)
{
    bool has_parent;

    assert_int_equal(read_state(p, &has_parent), value);
    assert_int_equal(has_parent, child);
}

static void make_image(uint8_t value)
{
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;

    scratch_make(top);
    snprintf(path, sizeof path, "%s/disk.vhdx", top);
    snprintf(kept, sizeof kept, "%s/disk.one.vhdx", top);
    snprintf(kid, sizeof kid, "%s/kid.vhdx", top);
    o.virtual_size = MIB(8);
    o.block_size = (uint32_t)MIB(1);
    assert_succeeds(ops_create(path, &o));
    write_state(value);
}

static int keep_one(void)
{
    return ops_snapshot(path, "disk.one.vhdx", NULL);
}

static int go_back(void)
{
    return ops_snapshot_revert(path, kept, NULL);
}

/* ---- tests ---- */

static void test_keep_and_go_back(void **state)
{
    (void)state;
    make_image(1);
    assert_succeeds(keep_one());
    must_hold(path, 1, true);
    must_hold(kept, 1, false);
    write_state(2);
    must_hold(path, 2, true);
    must_hold(kept, 1, false);
    assert_succeeds(go_back());
    must_hold(path, 1, true);
    write_state(3);
    must_hold(path, 3, true);
    scratch_remove(top);
}

static void test_dying_while_keeping(void **state)
{
    bool died = true;

    (void)state;
    for (long nth = 0; died; nth++) {
        for (unsigned when_done = 0; when_done < 2; when_done++) {
            bool is_child;
            make_image(7);
            died = die_at(keep_one, nth, when_done);
            assert_int_equal(read_state(path, &is_child), 7);
            assert_true(died || is_child);
            int r = keep_one();
            if (r < 0 && !(is_child && r == -EEXIST)) { /* it had come to its end */
                print_error("call %ld: %s\n", nth, error_message());
                assert_int_equal(r, 0);
            }
            must_hold(path, 7, true);
            must_hold(kept, 7, false);
            write_state(8);
            must_hold(path, 8, true);
            must_hold(kept, 7, false);
            scratch_remove(top);
        }
        assert_true(nth < 100);
    }
}

static void test_dying_while_going_back(void **state)
{
    bool died = true;

    (void)state;
    for (long nth = 0; died; nth++) {
        for (unsigned when_done = 0; when_done < 2; when_done++) {
            bool is_child;
            make_image(1);
            assert_succeeds(keep_one());
            write_state(2);
            died = die_at(go_back, nth, when_done);
            uint8_t value = read_state(path, &is_child);
            assert_true((value == 1 || (died && value == 2)) && is_child);
            assert_succeeds(go_back());
            must_hold(path, 1, true);
            must_hold(kept, 1, false);
            scratch_remove(top);
        }
        assert_true(nth < 100);
    }
}

static int stop_at(void *opaque, uint64_t done, uint64_t total)
{
    long *left = opaque;

    (void)done;
    (void)total;
    return (*left)-- == 0;
}

/* At whichever of the moments it asks the answer is to stop, nothing is changed and nothing left behind; *last: it did not ask
 * that often. */
static void stop_while(int (*fn)(const struct vhdx_snapshot_options *o), long nth, bool *last)
{
    struct vhdx_snapshot_options o = VHDX_SNAPSHOT_OPTIONS_INIT;
    long left = nth;

    o.progress = stop_at;
    o.opaque = &left;
    int r = fn(&o);
    *last = r == 0;
    if (!*last)
        assert_fails(r, -ECANCELED, "cancelled");
}

static int keep_two_unless(const struct vhdx_snapshot_options *o)
{
    return ops_snapshot(path, "disk.two.avhdx", o);
}

static int go_back_unless(const struct vhdx_snapshot_options *o)
{
    return ops_snapshot_revert(path, kept, o);
}

static void test_stopping(void **state)
{
    int (*const ways[])(const struct vhdx_snapshot_options *) = {keep_two_unless, go_back_unless};
    char two[2 * SCRATCH_PATH_BYTES];

    (void)state;
    for (unsigned way = 0; way < 2; way++) {
        bool last = false;
        make_image(1);
        snprintf(two, sizeof two, "%s/disk.two.avhdx", top);
        assert_succeeds(keep_one());
        write_state(2);
        for (long nth = 0; !last; nth++) {
            assert_true(nth < 100);
            stop_while(ways[way], nth, &last);
            must_hold(path, last && way == 1 ? 1 : 2, true);
            assert_int_equal(access(two, F_OK), last && way == 0 ? 0 : -1);
            assert_true(!last || nth >= 3);
        }
        scratch_remove(top);
    }
}

/* One that died before the child was in place is completed under its own name, or not at all: a state of which another one is
 * a second name would change with it. */
static void test_half_made(void **state)
{
    char other[2 * SCRATCH_PATH_BYTES];

    (void)state;
    make_image(1);
    assert_int_equal(link(path, kept), 0);
    snprintf(other, sizeof other, "%s/disk.two.vhdx", top);
    assert_fails(ops_snapshot(path, "disk.two.vhdx", NULL), -EEXIST, "disk.one.vhdx");
    assert_int_equal(access(other, F_OK), -1);
    must_hold(path, 1, false);
    assert_succeeds(keep_one());
    write_state(2);
    must_hold(kept, 1, false);
    scratch_remove(top);
}

static void test_refusals(void **state)
{
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;
    char other[2 * SCRATCH_PATH_BYTES];
    bool is_child;

    (void)state;
    make_image(1);
    assert_fails(ops_snapshot(path, "", NULL), -EINVAL, "name");
    assert_fails(ops_snapshot(path, "..", NULL), -EINVAL, "name");
    assert_fails(ops_snapshot(path, "a/b.vhdx", NULL), -EINVAL, "name");
    assert_fails(ops_snapshot(path, "a:b.vhdx", NULL), -EINVAL, "colon");
    assert_fails(ops_snapshot(path, "disk.vhdx", NULL), -EEXIST, "disk.vhdx");
    snprintf(other, sizeof other, "%s/other.vhdx", top);
    o.virtual_size = MIB(8);
    assert_succeeds(ops_create(other, &o));
    assert_fails(ops_snapshot(path, "other.vhdx", NULL), -EEXIST, "other.vhdx");
    assert_fails(ops_snapshot_revert(path, other, NULL), -EINVAL, "no parent");
    must_hold(path, 1, false);
    assert_succeeds(keep_one());
    assert_fails(ops_snapshot_revert(path, other, NULL), VHDX_E_PARENT_MISMATCH, "another disk");
    assert_fails(ops_snapshot_revert(path, path, NULL), -EINVAL, "");
    assert_fails(ops_snapshot(kept, "disk.two.vhdx", NULL), VHDX_E_CHAIN, "as its parent");
    assert_int_equal(read_state(path, &is_child), 1);
    assert_true(is_child);
    scratch_remove(top);
}

/* ---- others at work ---- */

static int kid_code;

static void make_kid(void)
{
    struct vhdx_create_options o = VHDX_CREATE_OPTIONS_INIT;

    o.subformat = VHDX_DIFFERENCING;
    o.parent = path;
    kid_code = ops_create(kid, &o);
}

static void make_one(void)
{
    assert_succeeds(keep_one());
}

/* It does not see the name that its parent is about to lose, so the snapshot has to see it. */
static void test_child_comes_before_the_lock(void **state)
{
    (void)state;
    make_image(1);
    before_lock = STORAGE_LOCK_EXCLUSIVE;
    others = make_kid;
    assert_fails(keep_one(), VHDX_E_CHAIN, "kid.vhdx");
    assert_succeeds(kid_code);
    must_hold(kid, 1, true);
    must_hold(path, 1, false);
    assert_int_equal(access(kept, F_OK), -1);
    scratch_remove(top);
}

static void test_no_child_comes_before_the_name(void **state)
{
    (void)state;
    make_image(1);
    before_lock = -1;
    others = make_kid;
    assert_succeeds(keep_one());
    assert_int_equal(kid_code, VHDX_E_LOCKED);
    assert_int_equal(access(kid, F_OK), -1);
    must_hold(path, 1, true);
    scratch_remove(top);
}

static void test_child_comes_while_going_back(void **state)
{
    (void)state;
    make_image(1);
    assert_succeeds(keep_one());
    write_state(2);
    before_lock = STORAGE_LOCK_EXCLUSIVE;
    others = make_kid;
    assert_fails(go_back(), VHDX_E_CHAIN, "kid.vhdx");
    assert_succeeds(kid_code);
    must_hold(kid, 2, true);
    scratch_remove(top);
}

/* The child is one of what has the name when its parent is locked. */
static void test_snapshot_comes_before_the_child(void **state)
{
    (void)state;
    make_image(1);
    before_lock = STORAGE_LOCK_SHARED;
    others = make_one;
    make_kid();
    assert_succeeds(kid_code);
    must_hold(kid, 1, true);
    must_hold(path, 1, true);
    scratch_remove(top);
}

/* The child that came into the image's place is not what was locked, and gets no second name. */
static void test_two_snapshots_at_once(void **state)
{
    char two[2 * SCRATCH_PATH_BYTES];

    (void)state;
    make_image(1);
    snprintf(two, sizeof two, "%s/disk.two.vhdx", top);
    before_lock = STORAGE_LOCK_EXCLUSIVE;
    others = make_one;
    assert_fails(ops_snapshot(path, "disk.two.vhdx", NULL), VHDX_E_LOCKED, "try again");
    assert_int_equal(access(two, F_OK), -1);
    must_hold(path, 1, true);
    must_hold(kept, 1, false);
    scratch_remove(top);
}

/* ---- no second name ---- */

/* Returns what ops_snapshot() said to a user who may only read the file; 0: the message was the right one. */
static bool is_told_who_may(void)
{
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        bool ok = setgid(65534) == 0 && setuid(65534) == 0 && keep_one() == -EPERM && strstr(error_message(), "belongs to user 0");
        if (!ok)
            fprintf(stderr, "# %s\n", error_message());
        _exit(!ok);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool links_are_protected(void)
{
    FILE *file = fopen("/proc/sys/fs/protected_hardlinks", "r");
    int c = file ? getc(file) : EOF;

    if (file)
        fclose(file);
    return c == '1';
}

static void test_who_may_give_a_second_name(void **state)
{
    (void)state;
    if (geteuid() != 0 || !links_are_protected())
        skip_because("needs root, to become another user, and fs.protected_hardlinks");
    make_image(1);
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(chmod(top, 0777), 0);
    assert_true(is_told_who_may());
    must_hold(path, 1, false);
    scratch_remove(top);
}

static bool set_immutable(bool immutable)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), flags = 0;

    assert_true(fd >= 0);
    bool done = ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0;
    flags = immutable ? flags | FS_IMMUTABLE_FL : flags & ~FS_IMMUTABLE_FL;
    done = done && ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0;
    close(fd);
    return done;
}

static void test_immutable(void **state)
{
    (void)state;
    make_image(1);
    bool can = set_immutable(true);
    if (can) {
        assert_fails(keep_one(), -EPERM, "immutable");
        assert_true(set_immutable(false));
        must_hold(path, 1, false);
    }
    scratch_remove(top);
    if (!can)
        skip_because("the file system or the user cannot make files immutable");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keep_and_go_back),
        cmocka_unit_test(test_dying_while_keeping),
        cmocka_unit_test(test_dying_while_going_back),
        cmocka_unit_test(test_stopping),
        cmocka_unit_test(test_half_made),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_child_comes_before_the_lock),
        cmocka_unit_test(test_no_child_comes_before_the_name),
        cmocka_unit_test(test_child_comes_while_going_back),
        cmocka_unit_test(test_snapshot_comes_before_the_child),
        cmocka_unit_test(test_two_snapshots_at_once),
        cmocka_unit_test(test_who_may_give_a_second_name),
        cmocka_unit_test(test_immutable),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
