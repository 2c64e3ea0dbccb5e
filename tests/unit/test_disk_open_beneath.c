/* SPDX-License-Identifier: MIT */
/* Opening hostile paths (format section 8.5 rules 5 to 9).  Each test runs twice: as the kernel is, and with
 * openat2 taken away, as on old kernels and in some sandboxes. */
#include "folder-test.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/math.h"
#include "disk/folder-names.h"
#include "disk/open-beneath.h"
#include "disk/open-within.h"
#include "no-openat2.h"

/* ---- the folder of the test ----
 *
 *   outside.vhdx  yard/file.vhdx          yard/to-outside -> ../outside.vhdx    yard/up -> ..
 *                 yard/sub/deep/x.vhdx    yard/to-inside -> file.vhdx           yard/to-sub -> sub
 *                 yard/sub/fifo           yard/absolute -> yard/file.vhdx by its absolute path */

static char root[SCRATCH_PATH_BYTES + 8];

static const char *in_root(const char *name)
{
    char below[2 * SCRATCH_PATH_BYTES];

    snprintf(below, sizeof below, "yard/%s", name);
    return in_folder(below);
}

static void make_file(const char *path)
{
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);

    assert_true(fd >= 0 && write(fd, path, strlen(path)) > 0);
    close(fd);
}

static int set_up(void **state)
{
    make_folder(state);
    snprintf(root, sizeof root, "%s/yard", folder);
    assert_int_equal(mkdir(root, 0777), 0);
    assert_int_equal(mkdir(in_root("sub"), 0777), 0);
    assert_int_equal(mkdir(in_root("sub/deep"), 0777), 0);
    make_file(in_folder("outside.vhdx"));
    make_file(in_root("file.vhdx"));
    make_file(in_root("sub/deep/x.vhdx"));
    assert_int_equal(mkfifo(in_root("sub/fifo"), 0666), 0);
    assert_int_equal(symlink("../outside.vhdx", in_root("to-outside")), 0);
    assert_int_equal(symlink("..", in_root("up")), 0);
    assert_int_equal(symlink("file.vhdx", in_root("to-inside")), 0);
    assert_int_equal(symlink("sub", in_root("to-sub")), 0);
    assert_int_equal(symlink(in_root("file.vhdx"), in_root("absolute")), 0);
    return 0;
}

static bool without_openat2;

static int set_up_without_openat2(void **state)
{
    take_openat2_away();
    without_openat2 = true;
    return set_up(state);
}

/* At the beginning of each test. */
static void need_the_right_kernel(void)
{
    if (without_openat2 && has_openat2()) {
        print_message("the kernel does not let openat2 be taken away\n");
        skip();
    }
}

/* handle must be a handle on the file at path. */
static void expect_handle(int handle, const char *path, int line)
{
    struct stat a, b;

    if (handle < 0) {
        print_error("line %d: %s: %s\n", line, path, strerror(-handle));
        _fail(__FILE__, line);
    }
    assert_int_equal(fstat(handle, &a), 0);
    assert_int_equal(stat(path, &b), 0);
    assert_true(a.st_dev == b.st_dev && a.st_ino == b.st_ino);
    assert_true(fcntl(handle, F_GETFD) & FD_CLOEXEC);
    assert_true(fcntl(handle, F_GETFL) & O_PATH);
    close(handle);
}

#define EXPECT_HANDLE(handle, path) expect_handle((handle), (path), __LINE__)

/* ---- open_beneath ---- */

static void names_in_the_folder_and_below_are_found(void **state)
{
    (void)state;
    need_the_right_kernel();
    EXPECT_HANDLE(open_beneath(NULL, root, "file.vhdx"), in_root("file.vhdx"));
    EXPECT_HANDLE(open_beneath(NULL, root, "sub/deep/x.vhdx"), in_root("sub/deep/x.vhdx"));
    EXPECT_HANDLE(open_beneath(NULL, root, "sub/deep"), in_root("sub/deep"));
    EXPECT_HANDLE(open_beneath(NULL, root, "sub/fifo"), in_root("sub/fifo")); /* without waiting */
    assert_int_equal(open_beneath(NULL, root, "none.vhdx"), -ENOENT);
    assert_int_equal(open_beneath(NULL, root, "none/x.vhdx"), -ENOENT);
    assert_int_equal(open_beneath(NULL, root, "file.vhdx/x"), -ENOTDIR);
    assert_int_equal(open_beneath(NULL, in_root("none"), "x"), -ENOENT);
    assert_int_equal(open_beneath(NULL, in_root("file.vhdx"), "x"), -ENOTDIR);
}

static void the_working_folder_is_a_folder(void **state)
{
    char was[PATH_MAX];

    (void)state;
    need_the_right_kernel();
    assert_non_null(getcwd(was, sizeof was));
    assert_int_equal(chdir(root), 0);
    int handle = open_beneath(NULL, "", "file.vhdx");
    assert_int_equal(chdir(was), 0);
    EXPECT_HANDLE(handle, in_root("file.vhdx"));
}

/* The same answer whether or not something is there (rule 11). */
static void dotdot_does_not_lead_out(void **state)
{
    static const char *const paths[] = {"../outside.vhdx",
                                        "../none.vhdx",
                                        "..",
                                        "../..",
                                        "sub/../../outside.vhdx",
                                        "../yard/file.vhdx",
                                        "../../../../../../../../etc/passwd"};

    (void)state;
    need_the_right_kernel();
    for (size_t i = 0; i < ARRAY_LENGTH(paths); i++)
        assert_int_equal(open_beneath(NULL, root, paths[i]), -EXDEV);
}

static void links_do_not_lead_out(void **state)
{
    (void)state;
    need_the_right_kernel();
    assert_int_equal(open_beneath(NULL, root, "to-outside"), -EXDEV);
    assert_int_equal(open_beneath(NULL, root, "up/outside.vhdx"), -EXDEV);
    assert_int_equal(open_beneath(NULL, root, "up/none.vhdx"), -EXDEV);
    assert_int_equal(open_beneath(NULL, root, "absolute"), -EXDEV); /* absolute links lead out by definition */
    assert_int_equal(open_beneath(NULL, root, "to-sub/../../outside.vhdx"), -EXDEV);
    assert_true(open_beneath(NULL, "/proc/self", "root/etc/passwd") < 0);
    assert_true(open_beneath(NULL, "/proc/self", "cwd") < 0);
}

static void links_inside_are_followed_if_the_kernel_can_judge_them(void **state)
{
    (void)state;
    need_the_right_kernel();
    if (has_openat2()) {
        EXPECT_HANDLE(open_beneath(NULL, root, "to-inside"), in_root("file.vhdx"));
        EXPECT_HANDLE(open_beneath(NULL, root, "to-sub/deep/x.vhdx"), in_root("sub/deep/x.vhdx"));
        EXPECT_HANDLE(open_beneath(NULL, root, "sub/../file.vhdx"), in_root("file.vhdx"));
    } else {
        assert_int_equal(open_beneath(NULL, root, "to-inside"), -EXDEV);
        assert_int_equal(open_beneath(NULL, root, "to-sub/deep/x.vhdx"), -EXDEV);
        assert_int_equal(open_beneath(NULL, root, "sub/../file.vhdx"), -EXDEV);
    }
}

/* Rule 9. */
static void expect_any_case(struct folder_names *kept)
{
    EXPECT_HANDLE(open_beneath(kept, root, "FILE.vhdX"), in_root("file.vhdx"));
    EXPECT_HANDLE(open_beneath(kept, root, "Sub/Deep/X.VHDX"), in_root("sub/deep/x.vhdx"));
    EXPECT_HANDLE(open_beneath(kept, root, "sub/DEEP/x.vhdx"), in_root("sub/deep/x.vhdx"));
    assert_int_equal(open_beneath(kept, root, "FILE.vhd"), -ENOENT);
    assert_int_equal(open_beneath(kept, root, "Sub/Deep/Y.VHDX"), -ENOENT);
    assert_int_equal(open_beneath(kept, root, "TO-OUTSIDE"), -EXDEV); /* nor does it open doors */
    assert_int_equal(open_beneath(kept, root, "UP/outside.vhdx"), -EXDEV);
    assert_int_equal(open_beneath(kept, root, "SUB/../../outside.vhdx"), -EXDEV);
}

static void case_does_not_matter_if_one_name_fits(void **state)
{
    struct folder_names *kept = folder_names_new();

    (void)state;
    need_the_right_kernel();
    expect_any_case(NULL);
    expect_any_case(kept); /* listed now */
    expect_any_case(kept); /* and known now */
    folder_names_free(kept);
}

static void expect_no_choice(struct folder_names *kept)
{
    assert_int_equal(open_beneath(kept, root, "two.vhdx"), -ENOENT);
    assert_int_equal(open_beneath(kept, root, "Sub/deep/x.vhdx"), -ENOENT);
    EXPECT_HANDLE(open_beneath(kept, root, "Two.vhdx"), in_root("Two.vhdx")); /* the exact one always counts */
    EXPECT_HANDLE(open_beneath(kept, root, "tWo.vhdx"), in_root("tWo.vhdx"));
    EXPECT_HANDLE(open_beneath(kept, root, "sub/deep/X.vhdx"), in_root("sub/deep/x.vhdx"));
}

static void two_names_that_fit_are_none(void **state)
{
    struct folder_names *kept = folder_names_new();

    (void)state;
    need_the_right_kernel();
    make_file(in_root("Two.vhdx"));
    make_file(in_root("tWo.vhdx"));
    assert_int_equal(mkdir(in_root("SUB"), 0777), 0);
    expect_no_choice(NULL);
    expect_no_choice(kept);
    expect_no_choice(kept);
    folder_names_free(kept);
}

/* Whatever the listings hold, what is opened is what is there now. */
static void listings_that_are_out_of_date_open_nothing_wrong(void **state)
{
    struct folder_names *kept = folder_names_new();

    (void)state;
    need_the_right_kernel();
    assert_int_equal(open_beneath(kept, root, "none.vhdx"), -ENOENT);
    make_file(in_root("None.vhdx"));
    EXPECT_HANDLE(open_beneath(kept, root, "None.vhdx"), in_root("None.vhdx"));
    EXPECT_HANDLE(open_beneath(kept, root, "FILE.vhdx"), in_root("file.vhdx"));
    assert_int_equal(unlink(in_root("file.vhdx")), 0);
    assert_int_equal(open_beneath(kept, root, "FILE.vhdx"), -ENOENT);
    assert_int_equal(symlink("../outside.vhdx", in_root("file.vhdx")), 0);
    assert_int_equal(open_beneath(kept, root, "FILE.vhdx"), -EXDEV);
    folder_names_free(kept);
}

static void many_names_in_many_folders(void **state)
{
    enum { NR_FOLDERS = 20, NR_NAMES = 40 };
    struct folder_names *kept = folder_names_new();
    char name[64];

    (void)state;
    need_the_right_kernel();
    for (int folder_no = 0; folder_no < NR_FOLDERS; folder_no++) {
        snprintf(name, sizeof name, "f%d", folder_no);
        assert_int_equal(mkdir(in_root(name), 0777), 0);
        for (int i = 0; i < NR_NAMES; i++) {
            snprintf(name, sizeof name, "f%d/%c%d.%d", folder_no, i % 2 ? 'a' : 'A', i * 7919 % 41, folder_no);
            make_file(in_root(name));
        }
    }
    for (int again = 0; again < 2; again++) {
        for (int n = 0; n < NR_FOLDERS * NR_NAMES; n++) {
            int folder_no = n % NR_FOLDERS, i = n / NR_FOLDERS;
            char spelled[64];
            snprintf(name, sizeof name, "f%d/%c%d.%d", folder_no, i % 2 ? 'a' : 'A', i * 7919 % 41, folder_no);
            snprintf(spelled, sizeof spelled, "F%d/%c%d.%d", folder_no, i % 2 ? 'A' : 'a', i * 7919 % 41, folder_no);
            EXPECT_HANDLE(open_beneath(kept, root, spelled), in_root(name));
        }
    }
    folder_names_free(kept);
}

static void names_that_are_too_long_are_refused(void **state)
{
    char *path = exact_bytes(2 * PATH_MAX);

    (void)state;
    need_the_right_kernel();
    memset(path, 'a', NAME_MAX + 1);
    assert_int_equal(open_beneath(NULL, root, path), -ENAMETOOLONG);
    memset(path, 0, 2 * PATH_MAX);
    memset(path, 'a', NAME_MAX);
    assert_int_equal(open_beneath(NULL, root, path), -ENOENT);
    for (size_t i = 0; i + 2 < 2 * PATH_MAX; i += 2)
        memcpy(path + i, "a/", 2);
    assert_true(open_beneath(NULL, root, path) < 0);
    free(path);
}

/* ---- open_anywhere ---- */

static void anywhere_is_anywhere(void **state)
{
    (void)state;
    need_the_right_kernel();
    EXPECT_HANDLE(open_anywhere(root, "../outside.vhdx"), in_folder("outside.vhdx"));
    EXPECT_HANDLE(open_anywhere(root, "to-outside"), in_folder("outside.vhdx"));
    EXPECT_HANDLE(open_anywhere("/", in_root("file.vhdx")), in_root("file.vhdx"));
    EXPECT_HANDLE(open_anywhere(root, "sub/fifo"), in_root("sub/fifo"));
    assert_int_equal(open_anywhere(root, "../none"), -ENOENT);
    assert_int_equal(open_anywhere(in_root("none"), "/"), -ENOENT);
}

/* ---- open_within ---- */

static int within(const char *const roots[2], const char *from, const char *path)
{
    struct allowed_roots allowed = {0};

    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(allowed_roots_add(&allowed, roots[i]), 0);
    int handle = open_within(&allowed, from, path);
    allowed_roots_free(&allowed);
    return handle;
}

/* From one allowed folder into another, by names and by links; and nowhere else. */
static void some_folders_are_allowed(void **state)
{
    char other[PATH_MAX], own[PATH_MAX];

    (void)state;
    need_the_right_kernel();
    snprintf(own, sizeof own, "%s", root);
    snprintf(other, sizeof other, "%s", in_folder("other"));
    const char *const both[] = {own, other}, *const one[] = {own, NULL}, *const everything[] = {"/", NULL};
    const char *const none[] = {in_root("none"), NULL};
    assert_int_equal(mkdir(other, 0777), 0);
    make_file(in_folder("other/there"));
    assert_int_equal(mkdir(in_folder("other2"), 0777), 0); /* a name that begins like the folder's */
    make_file(in_folder("other2/there"));
    assert_int_equal(symlink(other, in_root("to-other")), 0);
    assert_int_equal(symlink("../other/there", in_root("to-there")), 0);
    assert_int_equal(symlink(in_root("file.vhdx"), in_folder("other/back")), 0);
    assert_int_equal(symlink("../other2", in_folder("other/away")), 0);
    assert_int_equal(symlink("loop", in_root("loop")), 0);
    EXPECT_HANDLE(within(one, root, "file.vhdx"), in_root("file.vhdx"));
    EXPECT_HANDLE(within(one, root, "sub/../sub/./deep"), in_root("sub/deep"));
    EXPECT_HANDLE(within(both, root, "../other/there"), in_folder("other/there"));
    EXPECT_HANDLE(within(both, root, "to-there"), in_folder("other/there"));
    EXPECT_HANDLE(within(both, root, "to-other/there"), in_folder("other/there"));
    EXPECT_HANDLE(within(both, root, "to-other/back"), in_root("file.vhdx"));
    EXPECT_HANDLE(within(everything, root, "../other2/there"), in_folder("other2/there"));
    EXPECT_HANDLE(within(everything, "/", in_root("file.vhdx")), in_root("file.vhdx"));
    static const char *const out[] = {"../other/there", "../other/none", "to-there", "to-other/there", "..", "../..", ".", "",
                                      "../other2/there", "loop"};
    for (size_t i = 0; i < ARRAY_LENGTH(out); i++)
        assert_int_equal(within(one, root, out[i]), -EXDEV);
    assert_int_equal(within(both, root, "to-other/away/there"), -EXDEV);
    assert_int_equal(within(both, root, "../other2/there"), -EXDEV);
    assert_int_equal(within(both, root, "../other/../other2/there"), -EXDEV);
    assert_int_equal(within(none, root, "file.vhdx"), -EXDEV);
    assert_int_equal(within(both, in_root("none"), "file.vhdx"), -EXDEV);
    assert_int_equal(within(both, root, "../other/none"), -ENOENT);
}

/* ---- open_regular ---- */

static void only_regular_files_are_read(void **state)
{
    static const char *const others[] = {"sub/fifo", "sub", "socket"};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char text[8] = "";
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)state;
    need_the_right_kernel();
    int handle = open_beneath(NULL, root, "file.vhdx"), fd = open_regular(handle);
    assert_true(fd >= 0);
    assert_int_equal(read(fd, text, 5), 5);
    assert_memory_equal(text, root, 5);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    close(fd);
    close(handle);

    assert_true(s >= 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", in_root("socket"));
    assert_int_equal(bind(s, (struct sockaddr *)&address, sizeof address), 0);
    for (size_t i = 0; i < ARRAY_LENGTH(others); i++) {
        handle = open_beneath(NULL, root, others[i]);
        assert_true(handle >= 0);
        assert_int_equal(open_regular(handle), -EINVAL);
        close(handle);
    }
    close(s);
    handle = open_anywhere("/", "/dev/null");
    assert_int_equal(open_regular(handle), -EINVAL);
    close(handle);
}

/* The file that was judged is the one that is read, whatever happens to its name. */
static void a_handle_outlives_its_name(void **state)
{
    char text[8] = "";

    (void)state;
    need_the_right_kernel();
    int handle = open_beneath(NULL, root, "file.vhdx");
    assert_int_equal(rename(in_root("file.vhdx"), in_root("gone")), 0);
    assert_int_equal(symlink("/etc/passwd", in_root("file.vhdx")), 0);
    int fd = open_regular(handle);
    assert_true(fd >= 0);
    assert_int_equal(read(fd, text, 5), 5);
    assert_memory_equal(text, root, 5);
    close(fd);
    close(handle);
}

#define AS_IT_IS(f)                                                                                          \
    {                                                                                                        \
#f, f, set_up, remove_folder, NULL                                                                       \
    }
#define WITHOUT(f)                                                                                           \
    {                                                                                                        \
#f "_without_openat2", f, set_up_without_openat2, remove_folder, NULL                                    \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        AS_IT_IS(names_in_the_folder_and_below_are_found),
        AS_IT_IS(the_working_folder_is_a_folder),
        AS_IT_IS(dotdot_does_not_lead_out),
        AS_IT_IS(links_do_not_lead_out),
        AS_IT_IS(links_inside_are_followed_if_the_kernel_can_judge_them),
        AS_IT_IS(case_does_not_matter_if_one_name_fits),
        AS_IT_IS(two_names_that_fit_are_none),
        AS_IT_IS(listings_that_are_out_of_date_open_nothing_wrong),
        AS_IT_IS(many_names_in_many_folders),
        AS_IT_IS(names_that_are_too_long_are_refused),
        AS_IT_IS(anywhere_is_anywhere),
        AS_IT_IS(some_folders_are_allowed),
        AS_IT_IS(only_regular_files_are_read),
        AS_IT_IS(a_handle_outlives_its_name),
        WITHOUT(names_in_the_folder_and_below_are_found),
        WITHOUT(the_working_folder_is_a_folder),
        WITHOUT(dotdot_does_not_lead_out),
        WITHOUT(links_do_not_lead_out),
        WITHOUT(links_inside_are_followed_if_the_kernel_can_judge_them),
        WITHOUT(case_does_not_matter_if_one_name_fits),
        WITHOUT(two_names_that_fit_are_none),
        WITHOUT(listings_that_are_out_of_date_open_nothing_wrong),
        WITHOUT(many_names_in_many_folders),
        WITHOUT(names_that_are_too_long_are_refused),
        WITHOUT(anywhere_is_anywhere),
        WITHOUT(some_folders_are_allowed),
        WITHOUT(only_regular_files_are_read),
        WITHOUT(a_handle_outlives_its_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
