/* SPDX-License-Identifier: MIT */
/* Files that get their name when they are complete, on file systems of all abilities: those without unnamed files and
 * without RENAME_NOREPLACE are played by a filter on system calls. */
#include "folder-test.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/math.h"
#include "ops/new-file.h"
#include "skip.h"
#include "storage/storage.h"

static void put_file(const char *name, const char *content)
{
    FILE *file = fopen(in_folder(name), "w");

    assert_non_null(file);
    assert_true(fputs(content, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void expect_content(const char *name, const char *content)
{
    char text[64] = "";
    FILE *file = fopen(in_folder(name), "r");

    assert_non_null(file);
    assert_int_equal(fread(text, 1, sizeof text - 1, file), strlen(content));
    assert_int_equal(fclose(file), 0);
    assert_string_equal(text, content);
}

/* ---- file systems that can do less ---- */

/* Calls number nr whose argument has these bits fail. */
struct missing {
    unsigned nr, argument, bits;
    int error;
};

static const struct missing no_unnamed_files = {SYS_openat, 2, O_TMPFILE & ~O_DIRECTORY, EOPNOTSUPP};
static const struct missing no_noreplace = {SYS_renameat2, 4, RENAME_NOREPLACE, EINVAL};

static int take_away(const struct missing *m)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, m->nr, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 offsetof(struct seccomp_data, args) + 8 * m->argument + 4 * (__BYTE_ORDER == __BIG_ENDIAN)),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, m->bits, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)m->error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = ARRAY_LENGTH(filter), .filter = filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

enum ability { ALL, NO_UNNAMED, NO_NOREPLACE };

/* Run test in a process of its own, which can do less; it shares the folder. */
static void with_ability(enum ability ability, void (*test)(enum ability ability))
{
    int status;
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        if ((ability != ALL && take_away(&no_unnamed_files) < 0) ||
            (ability == NO_NOREPLACE && take_away(&no_noreplace) < 0))
            _exit(2);
        test(ability); /* a failed assertion ends the process with another status */
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* cmocka's assertions would run the rest of the tests in the child. */
#define CHILD_ASSERT(condition)                                                                                      \
    do {                                                                                                             \
        if (!(condition)) {                                                                                          \
            fprintf(stderr, "# %s:%d: %s; %s\n", __FILE__, __LINE__, #condition, error_message());                    \
            _exit(1);                                                                                                \
        }                                                                                                            \
    } while (0)

static void make_one(enum ability ability)
{
    struct new_file f;

    CHILD_ASSERT(new_file_begin(&f, in_folder("new"), OLD_FILE_STAYS) == 0);
    CHILD_ASSERT((f.temporary[0] != '\0') == (ability != ALL));
    CHILD_ASSERT(scratch_nr_names(folder) == (ability != ALL));
    CHILD_ASSERT(storage_pwrite(f.file, "new", 3, 0) == 0);
    CHILD_ASSERT(new_file_publish(&f) == 0);
    new_file_end(&f);
}

static void abandon_one(enum ability ability)
{
    struct new_file f;

    (void)ability;
    CHILD_ASSERT(new_file_begin(&f, in_folder("new"), OLD_FILE_STAYS) == 0);
    CHILD_ASSERT(storage_pwrite(f.file, "new", 3, 0) == 0);
    new_file_end(&f);
}

static void come_too_late(enum ability ability)
{
    struct new_file f;

    (void)ability;
    CHILD_ASSERT(new_file_begin(&f, in_folder("new"), OLD_FILE_STAYS) == 0);
    put_file("new", "theirs");
    CHILD_ASSERT(new_file_publish(&f) == -EEXIST);
    CHILD_ASSERT(strstr(error_message(), "left alone"));
    new_file_end(&f);
}

static void replace_one(enum ability ability)
{
    struct new_file f;

    (void)ability;
    CHILD_ASSERT(new_file_begin(&f, in_folder("old"), OLD_FILE_GOES) == 0);
    CHILD_ASSERT(storage_pwrite(f.file, "new", 3, 0) == 0);
    CHILD_ASSERT(new_file_publish(&f) == 0);
    new_file_end(&f);
}

static void replace_what_was_replaced(enum ability ability)
{
    struct new_file f;

    (void)ability;
    CHILD_ASSERT(new_file_begin(&f, in_folder("old"), OLD_FILE_GOES) == 0);
    put_file("other", "theirs");
    CHILD_ASSERT(rename(in_folder("other"), in_folder("old")) == 0);
    CHILD_ASSERT(new_file_publish(&f) == -EEXIST);
    CHILD_ASSERT(strstr(error_message(), "nothing was overwritten"));
    new_file_end(&f);
}

static const enum ability abilities[] = {ALL, NO_UNNAMED, NO_NOREPLACE};

static void a_file_gets_its_name_at_the_end(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(abilities); i++) {
        with_ability(abilities[i], make_one);
        expect_content("new", "new");
        assert_int_equal(scratch_nr_names(folder), 1);
        assert_int_equal(unlink(in_folder("new")), 0);
    }
}

static void an_abandoned_file_is_gone(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(abilities); i++) {
        with_ability(abilities[i], abandon_one);
        assert_int_equal(scratch_nr_names(folder), 0);
    }
}

static void what_came_meanwhile_stays(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(abilities); i++) {
        with_ability(abilities[i], come_too_late);
        expect_content("new", "theirs");
        assert_int_equal(scratch_nr_names(folder), 1);
        assert_int_equal(unlink(in_folder("new")), 0);
    }
}

static void an_old_file_is_replaced_in_one_step(void **state)
{
    struct stat st;

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(abilities); i++) {
        put_file("old", "old content");
        assert_int_equal(chmod(in_folder("old"), 0640), 0);
        with_ability(abilities[i], replace_one);
        expect_content("old", "new");
        assert_int_equal(stat(in_folder("old"), &st), 0);
        assert_int_equal(st.st_mode & 0777, 0640);
        assert_int_equal(scratch_nr_names(folder), 1);
    }
}

/* ---- who may use it ---- */

static const struct missing no_chmod = {SYS_fchmod, 1, 0777, EPERM};

static void replace_without_chmod(enum ability ability)
{
    struct new_file f;

    umask(0);
    CHILD_ASSERT(take_away(&no_chmod) == 0);
    CHILD_ASSERT(new_file_begin(&f, in_folder("old"), OLD_FILE_GOES) == 0);
    CHILD_ASSERT((f.temporary[0] != '\0') == (ability != ALL));
    CHILD_ASSERT(new_file_publish(&f) == 0);
    new_file_end(&f);
}

/* Between its beginning and its permissions, and if it cannot have those. */
static void nobody_else_may_use_it_before(void **state)
{
    struct stat st;

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(abilities); i++) {
        put_file("old", "old content");
        assert_int_equal(chmod(in_folder("old"), 0640), 0);
        with_ability(abilities[i], replace_without_chmod);
        assert_int_equal(stat(in_folder("old"), &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
    }
}

/* As setfacl -m u:1234:rw makes it: version, then tag, permissions, id of the owner, a user, the group, the mask and others. */
static const uint8_t list[] = {
    0x02, 0, 0, 0,
    0x01, 0, 6, 0, 0xff, 0xff, 0xff, 0xff,
    0x02, 0, 6, 0, 0xd2, 0x04, 0, 0,
    0x04, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
    0x10, 0, 6, 0, 0xff, 0xff, 0xff, 0xff,
    0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
};

static void set_or_skip(const char *path, const char *name, const void *value, size_t bytes)
{
    if (setxattr(path, name, value, bytes, 0) == 0)
        return;
    assert_int_equal(errno, ENOTSUP);
    skip_because("the file system has no such attributes");
}

static void lists_and_attributes_go_along(void **state)
{
    uint8_t value[sizeof list + 1];
    char note[8] = "";

    (void)state;
    put_file("old", "old content");
    set_or_skip(in_folder("old"), "system.posix_acl_access", list, sizeof list);
    set_or_skip(in_folder("old"), "user.note", "mine", 5);
    for (size_t i = 0; i < ARRAY_LENGTH(abilities); i++) {
        with_ability(abilities[i], replace_one);
        expect_content("old", "new");
        assert_int_equal(getxattr(in_folder("old"), "system.posix_acl_access", value, sizeof value), sizeof list);
        assert_memory_equal(value, list, sizeof list);
        assert_int_equal(getxattr(in_folder("old"), "user.note", note, sizeof note), 5);
        assert_string_equal(note, "mine");
    }
}

/* Not even where the folder would let more people use what is new in it. */
static void nobody_else_may_use_what_replaces(void **state)
{
    struct stat st;

    (void)state;
    put_file("old", "old content");
    assert_int_equal(chmod(in_folder("old"), 0660), 0);
    set_or_skip(folder, "system.posix_acl_default", list, sizeof list);
    for (size_t i = 0; i < ARRAY_LENGTH(abilities); i++) {
        with_ability(abilities[i], replace_one);
        expect_content("old", "new");
        assert_int_equal(getxattr(in_folder("old"), "system.posix_acl_access", NULL, 0), -1);
        assert_int_equal(stat(in_folder("old"), &st), 0);
        assert_int_equal(st.st_mode & 0777, 0660);
    }
}

enum { OWNER = 20001, MEMBER = 20002, OWN_GROUP = 20003, COMMON_GROUP = 20004, OTHER_GROUP = 20005 };

/* As somebody of OWN_GROUP who is in COMMON_GROUP, too. */
static void replace_as_member(enum ability ability)
{
    static const gid_t groups[] = {COMMON_GROUP};

    CHILD_ASSERT(setgroups(ARRAY_LENGTH(groups), groups) == 0 && setgid(OWN_GROUP) == 0 && setuid(MEMBER) == 0);
    replace_one(ability);
}

/* Who may not give the file away has it, with the old group where he may give it that, and else with none that gets in. */
static void our_own_group_may_not_use_what_replaces(void **state)
{
    static const struct {
        gid_t group, new_group;
        mode_t mode, new_mode;
    } cases[] = {{COMMON_GROUP, COMMON_GROUP, 0660, 0660}, {OTHER_GROUP, OWN_GROUP, 0666, 0606}};
    uint8_t open_list[sizeof list], value[sizeof list];
    struct stat st;

    (void)state;
    if (geteuid() != 0)
        skip_because("needs root, to become another user");
    assert_int_equal(chmod(folder, 0777), 0);
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        put_file("old", "old content");
        assert_int_equal(chown(in_folder("old"), OWNER, cases[i].group), 0);
        assert_int_equal(chmod(in_folder("old"), cases[i].mode), 0);
        with_ability(ALL, replace_as_member);
        assert_int_equal(stat(in_folder("old"), &st), 0);
        assert_int_equal(st.st_uid, MEMBER);
        assert_int_equal(st.st_gid, cases[i].new_group);
        assert_int_equal(st.st_mode & 0777, cases[i].new_mode);
        assert_int_equal(unlink(in_folder("old")), 0);
    }
    put_file("old", "old content");
    assert_int_equal(chown(in_folder("old"), OWNER, OTHER_GROUP), 0);
    memcpy(open_list, list, sizeof list);
    open_list[22] = open_list[38] = 6; /* the group, others */
    set_or_skip(in_folder("old"), "system.posix_acl_access", open_list, sizeof open_list);
    with_ability(ALL, replace_as_member);
    assert_int_equal(getxattr(in_folder("old"), "system.posix_acl_access", value, sizeof value), sizeof list);
    open_list[22] = 0;
    assert_memory_equal(value, open_list, sizeof list);
}

static void replace_without_permission(enum ability ability)
{
    struct new_file f;

    (void)ability;
    CHILD_ASSERT(setgroups(0, NULL) == 0 && setgid(OWN_GROUP) == 0 && setuid(MEMBER) == 0);
    CHILD_ASSERT(new_file_begin(&f, in_folder("old"), OLD_FILE_GOES) == -EACCES);
    CHILD_ASSERT(strstr(error_message(), "you may not write the file that is there"));
}

/* Whoever may change the folder could replace it, and nobody would expect that: not its owner who took the right away, and not the
 * one who lets others only read. */
static void what_we_may_not_write_is_not_replaced(void **state)
{
    static const struct {
        uid_t owner;
        mode_t mode;
    } cases[] = {{OWNER, 0644}, {MEMBER, 0444}};

    (void)state;
    if (geteuid() != 0)
        skip_because("needs root, to become another user");
    assert_int_equal(chmod(folder, 0777), 0);
    put_file("old", "old content");
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        assert_int_equal(chown(in_folder("old"), cases[i].owner, OTHER_GROUP), 0);
        assert_int_equal(chmod(in_folder("old"), cases[i].mode), 0);
        with_ability(ALL, replace_without_permission);
        expect_content("old", "old content");
        assert_int_equal(scratch_nr_names(folder), 1);
    }
}

static void only_what_was_looked_at_is_replaced(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(abilities); i++) {
        put_file("old", "old content");
        with_ability(abilities[i], replace_what_was_replaced);
        expect_content("old", "theirs");
        assert_int_equal(scratch_nr_names(folder), 1);
    }
}

/* ---- what is there already ---- */

static void links_are_followed_for_replacing_only(void **state)
{
    struct new_file f;
    struct stat st;

    (void)state;
    put_file("old", "old content");
    assert_int_equal(symlink("old", in_folder("link")), 0);
    assert_fails(new_file_begin(&f, in_folder("link"), OLD_FILE_STAYS), -EEXIST, "exists already");
    assert_succeeds(new_file_begin(&f, in_folder("link"), OLD_FILE_GOES));
    assert_succeeds(storage_pwrite(f.file, "new", 3, 0));
    assert_succeeds(new_file_publish(&f));
    new_file_end(&f);
    expect_content("old", "new");
    assert_int_equal(lstat(in_folder("link"), &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(symlink("nowhere", in_folder("dangling")), 0);
    assert_fails(new_file_begin(&f, in_folder("dangling"), OLD_FILE_STAYS), -EEXIST, "leads nowhere");
    assert_fails(new_file_begin(&f, in_folder("dangling"), OLD_FILE_GOES), -EEXIST, "leads nowhere");
}

/* A file comes when it has just been seen that there is none. */
static const char *coming;

int __real_stat64(const char *path, struct stat *st);
int __wrap_stat64(const char *path, struct stat *st);
int __wrap_stat64(const char *path, struct stat *st)
{
    int r = __real_stat64(path, st), error = errno;

    if (coming)
        put_file(coming, "came late");
    coming = NULL;
    errno = error;
    return r;
}

static void file_that_comes_in_between_stays(void **state)
{
    struct new_file f;

    (void)state;
    coming = "late";
    assert_fails(new_file_begin(&f, in_folder("late"), OLD_FILE_GOES), -EEXIST, "try again");
    assert_null(coming);
    expect_content("late", "came late");
}

static void what_is_kept_has_to_be_there(void **state)
{
    struct new_file f;

    (void)state;
    assert_fails(new_file_begin(&f, in_folder("gone"), OLD_FILE_IS_KEPT), -ENOENT, "took it away");
    assert_fails(new_file_begin(&f, in_folder("gone"), OLD_FILE_DROPPED), -ENOENT, "took it away");
    assert_int_equal(scratch_nr_names(folder), 0);
}

static void only_regular_files_are_replaced(void **state)
{
    struct new_file f;

    (void)state;
    assert_int_equal(mkfifo(in_folder("fifo"), 0666), 0);
    for (int replace = 0; replace < 2; replace++) {
        assert_fails(new_file_begin(&f, folder, replace), -EISDIR, "folder");
        assert_fails(new_file_begin(&f, in_folder("fifo"), replace), -EINVAL, "regular file");
        assert_fails(new_file_begin(&f, "/dev/null", replace), -EINVAL, "regular file");
        assert_fails(new_file_begin(&f, in_folder("none/"), replace), -EISDIR, "folder");
        assert_fails(new_file_begin(&f, in_folder("none/new"), replace), -ENOENT, "No such file");
    }
    assert_fails(new_file_begin(&f, "", OLD_FILE_STAYS), -EISDIR, "folder");
    assert_int_equal(scratch_nr_names(folder), 1);
}

static void files_in_use_are_not_replaced(void **state)
{
    struct storage *user;
    struct new_file f;

    (void)state;
    put_file("old", "old content");
    for (int lock = STORAGE_LOCK_SHARED; lock <= STORAGE_LOCK_EXCLUSIVE; lock++) {
        assert_succeeds(storage_posix_open(in_folder("old"), POSIX_OPEN_WRITABLE, &user));
        assert_succeeds(storage_lock(user, (enum storage_lock)lock));
        assert_fails(new_file_begin(&f, in_folder("old"), OLD_FILE_GOES), VHDX_E_LOCKED, "another program");
        storage_close(user);
    }
    /* And nobody gets in while it is being replaced. */
    assert_succeeds(new_file_begin(&f, in_folder("old"), OLD_FILE_GOES));
    assert_succeeds(storage_posix_open(in_folder("old"), 0, &user));
    assert_fails(storage_lock(user, STORAGE_LOCK_SHARED), VHDX_E_LOCKED, "another program");
    storage_close(user);
    new_file_end(&f);
    expect_content("old", "old content");
    assert_int_equal(scratch_nr_names(folder), 1);
}

/* What is opened gets the lowest number that is free, so one that was left open shows. */
static int lowest_free_descriptor(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    close(fd);
    return fd;
}

static void no_descriptor_is_left_open(void **state)
{
    int before = lowest_free_descriptor();
    struct new_file f;

    (void)state;
    put_file("old", "old content");
    assert_fails(new_file_begin(&f, in_folder("old"), OLD_FILE_STAYS), -EEXIST, "exists");
    assert_succeeds(new_file_begin(&f, in_folder("old"), OLD_FILE_GOES));
    assert_succeeds(new_file_publish(&f));
    new_file_end(&f);
    assert_int_equal(lowest_free_descriptor(), before);
}

#define IN_FOLDER(f) cmocka_unit_test_setup_teardown(f, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(a_file_gets_its_name_at_the_end),
        IN_FOLDER(an_abandoned_file_is_gone),
        IN_FOLDER(what_came_meanwhile_stays),
        IN_FOLDER(an_old_file_is_replaced_in_one_step),
        IN_FOLDER(nobody_else_may_use_it_before),
        IN_FOLDER(lists_and_attributes_go_along),
        IN_FOLDER(nobody_else_may_use_what_replaces),
        IN_FOLDER(our_own_group_may_not_use_what_replaces),
        IN_FOLDER(what_we_may_not_write_is_not_replaced),
        IN_FOLDER(only_what_was_looked_at_is_replaced),
        IN_FOLDER(links_are_followed_for_replacing_only),
        IN_FOLDER(only_regular_files_are_replaced),
        IN_FOLDER(file_that_comes_in_between_stays),
        IN_FOLDER(what_is_kept_has_to_be_there),
        IN_FOLDER(files_in_use_are_not_replaced),
        IN_FOLDER(no_descriptor_is_left_open),
    };
    return cmocka_run_group_tests_name("ops/new-file", tests, NULL, NULL);
}
