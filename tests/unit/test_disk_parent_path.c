/* SPDX-License-Identifier: MIT */
/* Where a parent is looked for (format sections 8.3 to 8.5, hostile input rows 97 to 99).  Files need not be
 * images here: what counts is which are opened, and in which order.  Each test runs with and without openat2.
 */
#include "folder-test.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/math.h"
#include "disk/parent-path.h"
#include "format/parent-locator.h"
#include "no-openat2.h"

enum { MAX_SEEN = 16 };

static bool without_openat2;

/* ---- the folder of the test ----
 *
 *   child/child.vhdx       child/parent.vhdx       child/sub/nested.vhdx
 *   other/parent.vhdx      other/away.vhdx         other/C/disks/mapped.vhdx     other/disks/mapped.vhdx */

static void make_file(const char *name)
{
    int fd = open(in_folder(name), O_CREAT | O_WRONLY | O_CLOEXEC, 0666);

    assert_true(fd >= 0);
    close(fd);
}

static void make_subfolder(const char *name)
{
    assert_int_equal(mkdir(in_folder(name), 0777), 0);
}

static int set_up(void **state)
{
    static const char *const folders[] = {"child",   "child/sub",     "other",
                                          "other/C", "other/C/disks", "other/disks"};
    static const char *const files[] = {
        "child/child.vhdx", "child/parent.vhdx",         "child/sub/nested.vhdx",  "other/parent.vhdx",
        "other/away.vhdx",  "other/C/disks/mapped.vhdx", "other/disks/mapped.vhdx"};

    make_folder(state);
    for (size_t i = 0; i < ARRAY_LENGTH(folders); i++)
        make_subfolder(folders[i]);
    for (size_t i = 0; i < ARRAY_LENGTH(files); i++)
        make_file(files[i]);
    alarm(60); /* whatever waits for a FIFO ends the program */
    return 0;
}

static int set_up_without_openat2(void **state)
{
    take_openat2_away();
    without_openat2 = true;
    return set_up(state);
}

static void need_the_right_kernel(void)
{
    if (without_openat2 && has_openat2()) {
        print_message("the kernel does not let openat2 be taken away\n");
        skip();
    }
}

/* ---- a search ---- */

struct result {
    int code;
    struct parent_search search;
    unsigned nr;
    char paths[MAX_SEEN][PATH_MAX]; /* as they were offered */
    unsigned take;                  /* the so-manieth is the parent */
    int error;                      /* or: what it gives instead */
};

static int note(void *opaque, int fd, const char *path)
{
    struct result *r = opaque;
    struct stat by_fd, by_path;

    assert_int_equal(fstat(fd, &by_fd), 0);
    assert_int_equal(stat(path, &by_path), 0); /* the path is one by which the file can be found */
    assert_true(by_fd.st_ino == by_path.st_ino && by_fd.st_dev == by_path.st_dev);
    assert_true(S_ISREG(by_fd.st_mode));
    assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    close(fd);
    assert_true(r->nr < MAX_SEEN);
    snprintf(r->paths[r->nr++], PATH_MAX, "%s", path);
    return r->nr == r->take ? (r->error ? r->error : 1) : 0;
}

struct request {
    const char *child;                        /* below the test's folder; NULL: child/child.vhdx */
    const char *first_child;                  /* the same; NULL: the child */
    const char *relative, *volume, *absolute; /* the locator's paths */
    const char *dirs[2];                      /* below the test's folder */
    bool allow_any;
    unsigned take;
    int error;
};

static const struct result *search(const struct request *q)
{
    static struct result r;
    static uint8_t item[1 << 16];
    const char *pairs[4][2] = {{"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"}};
    const char *dirs[2] = {q->dirs[0] ? in_folder(q->dirs[0]) : NULL, q->dirs[1] ? in_folder(q->dirs[1]) : NULL};
    const char *child = in_folder(q->child ? q->child : "child/child.vhdx");
    const char *values[] = {q->absolute, q->relative, q->volume};
    static const char *const keys[] = {"absolute_win32_path", "relative_path", "volume_path"};
    uint32_t nr = 1;

    for (unsigned i = 0; i < 3; i++) {
        if (!values[i])
            continue;
        pairs[nr][0] = keys[i];
        pairs[nr++][1] = values[i];
    }
    uint32_t length = locator_encode((const char *const(*)[2])pairs, nr, item, sizeof item);
    assert_succeeds(locator_check(item, length, 0));
    const struct parent_policy policy = {.dirs = dirs,
                                         .nr_dirs = q->dirs[1]   ? 2
                                                    : q->dirs[0] ? 1
                                                                 : 0,
                                         .first_child = q->first_child ? in_folder(q->first_child) : child,
                                         .allow_any = q->allow_any};
    r = (struct result){.take = q->take, .error = q->error};
    r.code = parent_candidates(&policy, child, item, note, &r, &r.search);
    return &r;
}

/* These files, named below the test's folder, must be offered in this order. */
static const struct result *expect(const struct request *q, unsigned nr, const char *const *files, int line)
{
    const struct result *r = search(q);
    bool same = r->nr == nr;

    for (unsigned i = 0; same && i < nr; i++) {
        struct stat a, b;
        same = stat(r->paths[i], &a) == 0 && stat(in_folder(files[i]), &b) == 0 && a.st_ino == b.st_ino;
    }
    if (!same) {
        print_error("line %d: %u files were offered, not %u\n", line, r->nr, nr);
        for (unsigned i = 0; i < r->nr; i++)
            print_error("  %s\n", r->paths[i]);
        _fail(__FILE__, line);
    }
    return r;
}

#define SEARCH(...) (&(struct request){__VA_ARGS__})
#define EXPECT(q, ...)                                                                                       \
    expect((q), ARRAY_LENGTH(((const char *const[]){__VA_ARGS__})), (const char *const[]){__VA_ARGS__},      \
           __LINE__)
#define EXPECT_NONE(q) expect((q), 0, NULL, __LINE__)

/* ---- relative paths ---- */

static void relative_paths_are_looked_for_in_the_childs_folder(void **state)
{
    static const char *const spellings[] = {"parent.vhdx",         ".\\parent.vhdx", "./parent.vhdx",
                                            ".\\.\\\\parent.vhdx", "parent.vhdx\\.", "PARENT.VHDX"};

    (void)state;
    need_the_right_kernel();
    for (size_t i = 0; i < ARRAY_LENGTH(spellings); i++) {
        const struct result *r = EXPECT(SEARCH(.relative = spellings[i]), "child/parent.vhdx");
        assert_int_equal(r->code, 0);
        assert_false(r->search.blocked || r->search.not_regular || r->search.open_error);
        assert_string_equal(r->search.recorded, spellings[i]);
    }
    EXPECT(SEARCH(.relative = ".\\sub\\nested.vhdx"), "child/sub/nested.vhdx");
    EXPECT(SEARCH(.relative = "sub/nested.vhdx"), "child/sub/nested.vhdx");
    EXPECT(SEARCH(.relative = "SUB\\NESTED.vhdx"), "child/sub/nested.vhdx");
    EXPECT(SEARCH(.relative = "sub\\none.vhdx"), );
    EXPECT(SEARCH(.relative = "none\\parent.vhdx"), "child/parent.vhdx"); /* the bare name (rule 10) */
    EXPECT(SEARCH(.relative = "sub\\..\\parent.vhdx"), "child/parent.vhdx");
}

static void the_callback_decides_when_to_stop(void **state)
{
    (void)state;
    need_the_right_kernel();
    struct request q = {.relative = "parent.vhdx", .dirs = {"other"}};
    EXPECT(&q, "child/parent.vhdx", "other/parent.vhdx");
    q.take = 1;
    assert_int_equal(EXPECT(&q, "child/parent.vhdx")->code, 1);
    q.error = VHDX_E_CHAIN;
    assert_int_equal(EXPECT(&q, "child/parent.vhdx")->code, VHDX_E_CHAIN);
    q.take = 2;
    assert_int_equal(EXPECT(&q, "child/parent.vhdx", "other/parent.vhdx")->code, VHDX_E_CHAIN);
}

/* 8.4: relative, volume, absolute; then bare names.  No file twice, whatever it is called. */
static void places_are_tried_in_the_order_of_the_format(void **state)
{
    (void)state;
    need_the_right_kernel();
    assert_int_equal(link(in_folder("child/parent.vhdx"), in_folder("child/twin.vhdx")), 0);
    EXPECT(SEARCH(.relative = "sub\\nested.vhdx", .volume = "parent.vhdx", .absolute = "child.vhdx"),
           "child/sub/nested.vhdx", "child/parent.vhdx", "child/child.vhdx");
    EXPECT(SEARCH(.relative = "parent.vhdx", .volume = "twin.vhdx", .absolute = "C:\\twin.vhdx"),
           "child/parent.vhdx");
    EXPECT(SEARCH(.relative = "away.vhdx", .absolute = "C:\\disks\\mapped.vhdx",
                  .dirs = {"other", "other/disks"}, .allow_any = true),
           "other/away.vhdx", "other/disks/mapped.vhdx", "other/C/disks/mapped.vhdx");
}

static void ways_up_are_blocked(void **state)
{
    static const char *const ways[] = {"..\\other\\away.vhdx", ".\\..\\other\\away.vhdx",
                                       "../other/away.vhdx",   "sub\\..\\..\\other\\away.vhdx",
                                       "..\\other\\none.vhdx", "..\\none\\away.vhdx"};

    (void)state;
    need_the_right_kernel();
    for (size_t i = 0; i < ARRAY_LENGTH(ways); i++) {
        const struct result *r = EXPECT_NONE(SEARCH(.relative = ways[i]));
        assert_true(r->search.blocked); /* the same whether or not it is there (rule 11) */
        assert_false(r->search.not_regular);
        assert_int_equal(r->search.open_error, 0);
    }
    EXPECT(SEARCH(.relative = ways[0], .dirs = {"other"}), "other/away.vhdx");
    EXPECT(SEARCH(.relative = ways[0], .allow_any = true), "other/away.vhdx");
    EXPECT(SEARCH(.relative = ways[3], .allow_any = true), "other/away.vhdx");
    EXPECT_NONE(SEARCH(.relative = ways[0], .dirs = {"other/C"}));
    EXPECT_NONE(SEARCH(.relative = ways[4], .allow_any = true));
    EXPECT(SEARCH(.relative = "..\\..\\gone\\parent.vhdx"),
           "child/parent.vhdx"); /* but the bare name is looked for */
    EXPECT(SEARCH(.relative = "..\\..\\disks\\mapped.vhdx", .dirs = {"other"}), "other/disks/mapped.vhdx");
    assert_true(EXPECT_NONE(SEARCH(.relative = ".."))->search.blocked);
    assert_true(EXPECT_NONE(SEARCH(.relative = "sub\\.."))->search.blocked ||
                search(SEARCH(.relative = "sub\\.."))->search.not_regular);
}

/* Whichever piece of memory is missing, that is what is said, and not that the path leads somewhere forbidden. */
static unsigned nr_callocs, failing_calloc;

void *__wrap_calloc(size_t nr, size_t bytes);
void *__real_calloc(size_t nr, size_t bytes);

void *__wrap_calloc(size_t nr, size_t bytes)
{
    return ++nr_callocs == failing_calloc ? NULL : __real_calloc(nr, bytes);
}

static void missing_memory_is_no_wrong_path(void **state)
{
    (void)state;
    need_the_right_kernel();
    for (unsigned nth = 1;; nth++) {
        nr_callocs = 0;
        failing_calloc = nth;
        const struct result *r = search(SEARCH(.relative = "..\\other\\away.vhdx", .dirs = {"other"}));
        failing_calloc = 0;
        if (nr_callocs < nth) {
            assert_true(nth > 1 && r->code == 0 && r->nr == 1);
            break;
        }
        assert_int_equal(r->code, -ENOMEM);
        assert_false(r->search.blocked);
    }
}

/* A deeper image of the chain may lie below the first one's folder, and its parent beside the first. */
static void the_first_childs_folder_counts_as_named(void **state)
{
    (void)state;
    need_the_right_kernel();
    EXPECT(SEARCH(.child = "child/sub/nested.vhdx", .first_child = "child/child.vhdx",
                  .relative = "..\\parent.vhdx"),
           "child/parent.vhdx");
    EXPECT_NONE(SEARCH(.child = "child/sub/nested.vhdx", .relative = "..\\parent.vhdx"));
    EXPECT_NONE(SEARCH(.child = "child/sub/nested.vhdx", .first_child = "child/child.vhdx",
                       .relative = "..\\..\\other\\away.vhdx"));
}

static void links_may_not_lead_out_unasked(void **state)
{
    (void)state;
    need_the_right_kernel();
    assert_int_equal(symlink("../other/away.vhdx", in_folder("child/link.vhdx")), 0);
    assert_int_equal(symlink("../other", in_folder("child/folder")), 0);
    assert_int_equal(symlink("parent.vhdx", in_folder("child/inside.vhdx")), 0);
    assert_int_equal(symlink("sub", in_folder("child/alias")), 0);
    assert_int_equal(symlink(in_folder("other/none"), in_folder("child/dangling.vhdx")), 0);
    assert_true(EXPECT_NONE(SEARCH(.relative = "link.vhdx"))->search.blocked);
    assert_true(EXPECT_NONE(SEARCH(.relative = "LINK.vhdx"))->search.blocked);
    assert_true(EXPECT_NONE(SEARCH(.relative = "folder\\away.vhdx"))->search.blocked);
    assert_true(EXPECT_NONE(SEARCH(.relative = "folder\\none.vhdx"))->search.blocked);
    assert_true(EXPECT_NONE(SEARCH(.relative = "dangling.vhdx"))->search.blocked);
    EXPECT_NONE(SEARCH(.absolute = "C:\\x\\link.vhdx")); /* nor by its bare name */
    assert_false(
        EXPECT_NONE(SEARCH(.relative = "none\\link.vhdx"))->search.blocked); /* which was not recorded */
    EXPECT(SEARCH(.relative = "link.vhdx", .dirs = {"other"}), "other/away.vhdx");
    EXPECT(SEARCH(.relative = "folder\\away.vhdx", .allow_any = true), "other/away.vhdx");
    EXPECT(SEARCH(.relative = "inside.vhdx"), "child/parent.vhdx"); /* inside they may lead where they like */
    EXPECT(SEARCH(.relative = "alias\\nested.vhdx"), "child/sub/nested.vhdx");
}

static void a_child_is_also_where_its_link_leads(void **state)
{
    char was[PATH_MAX];

    (void)state;
    need_the_right_kernel();
    make_subfolder("links");
    assert_int_equal(symlink("../child/child.vhdx", in_folder("links/c.vhdx")), 0);
    EXPECT(SEARCH(.child = "links/c.vhdx", .relative = "parent.vhdx"), "child/parent.vhdx");
    make_file("links/parent.vhdx"); /* the folder of its name comes first */
    EXPECT(SEARCH(.child = "links/c.vhdx", .relative = "parent.vhdx"), "links/parent.vhdx",
           "child/parent.vhdx");
    EXPECT_NONE(SEARCH(.child = "links/c.vhdx", .relative = "..\\other\\away.vhdx"));

    static uint8_t item[1000]; /* a child without any folder in its name */
    static const char *const pairs[][2] = {{"relative_path", ".\\parent.vhdx"}};
    struct result r = {0};
    assert_true(locator_encode(pairs, 1, item, sizeof item) > 0);
    const struct parent_policy policy = {.first_child = "child.vhdx"};
    assert_non_null(getcwd(was, sizeof was));
    assert_int_equal(chdir(in_folder("child")), 0);
    int code = parent_candidates(&policy, "child.vhdx", item, note, &r, &r.search);
    assert_int_equal(chdir(was), 0);
    assert_int_equal(code, 0);
    assert_int_equal(r.nr, 1);
    assert_string_equal(r.paths[0], "parent.vhdx");
}

/* ---- paths that are not relative, whatever they are called ---- */

static void absolute_paths_are_not_followed_unasked(void **state)
{
    static const char *const paths[] = {
        "C:\\disks\\mapped.vhdx",
        "c:/disks/mapped.vhdx",
        "\\\\?\\C:\\disks\\mapped.vhdx",
        "\\\\?\\Volume{5e0bd954-71b2-4bff-a928-082af7ab0f8f}\\disks\\mapped.vhdx",
        "\\\\?\\volume{5e0bd954-71b2-4bff-a928-082af7ab0f8f}\\disks\\mapped.vhdx",
        "\\\\server\\share\\disks\\mapped.vhdx",
        "\\\\?\\UNC\\server\\share\\disks\\mapped.vhdx",
        "\\\\?\\server\\share\\disks\\mapped.vhdx",
    };

    (void)state;
    need_the_right_kernel();
    for (size_t i = 0; i < ARRAY_LENGTH(paths); i++) {
        for (unsigned key = 0; key < 3; key++) { /* also as "relative_path" (rule 3) */
            struct request q = {.relative = key == 0 ? paths[i] : NULL,
                                .volume = key == 1 ? paths[i] : NULL,
                                .absolute = key == 2 ? paths[i] : NULL};
            assert_true(EXPECT_NONE(&q)->search.blocked);
            q.dirs[0] = "other";
            assert_true(EXPECT_NONE(&q)->search.blocked); /* naming a folder does not map drives by itself */
            q.dirs[0] = "other/disks";
            EXPECT(&q, "other/disks/mapped.vhdx"); /* there lies a file of that name */
            q.dirs[0] = "other";
            q.allow_any = true;
            if (i < 3)
                EXPECT(&q, "other/disks/mapped.vhdx", "other/C/disks/mapped.vhdx");
            else
                EXPECT(&q, "other/disks/mapped.vhdx");
            q.dirs[0] = NULL; /* and without a folder it means nothing */
            EXPECT_NONE(&q);
        }
    }
}

static void a_path_of_this_system_is_absolute_too(void **state)
{
    (void)state;
    need_the_right_kernel();
    struct request q = {.relative = in_folder("other/away.vhdx")};
    assert_true(EXPECT_NONE(&q)->search.blocked);
    q.dirs[0] = "other"; /* found by its bare name */
    EXPECT(&q, "other/away.vhdx");
    q = (struct request){.relative = in_folder("other/away.vhdx"), .allow_any = true};
    const struct result *r = EXPECT(&q, "other/away.vhdx");
    assert_string_equal(r->paths[0], in_folder("other/away.vhdx"));
}

static void a_bare_name_is_only_looked_for_in_folders_that_are_allowed(void **state)
{
    (void)state;
    need_the_right_kernel();
    EXPECT(SEARCH(.absolute = "D:\\VMs\\parent.vhdx"), "child/parent.vhdx");
    EXPECT(SEARCH(.absolute = "D:\\VMs\\parent.vhdx", .dirs = {"other"}), "child/parent.vhdx",
           "other/parent.vhdx");
    EXPECT_NONE(SEARCH(.absolute = "D:\\VMs\\away.vhdx"));
    EXPECT_NONE(SEARCH(.absolute = "D:\\VMs\\nested.vhdx")); /* not searched for in all folders below */
}

/* ---- what no path may contain ---- */

static void hostile_spellings_are_blocked(void **state)
{
    char long_name[400] = "", *long_path = exact_bytes(2 * PATH_MAX);
    const char *paths[] = {
        "parent.vhdx:stream",
        "parent.vhdx::$DATA",
        "sub:x\\nested.vhdx",
        "C:\\parent.vhdx:s",
        "parent\x01.vhdx",
        "\x1b[2Jparent.vhdx",
        "parent.vhdx\n",
        "par\tent.vhdx",
        "\x7fparent.vhdx",
        "\\\\.\\PhysicalDrive0",
        "\\\\.\\C:\\x.vhdx",
        "\\\\.\\pipe\\x",
        ".",
        ".\\.\\",
        "\\",
        "C:\\",
        "\\\\?\\",
        "\\\\server\\share",
        long_name,
        long_path,
    };

    (void)state;
    need_the_right_kernel();
    make_file("child/parent.vhdx:stream"); /* on this system a name like others */
    make_file("child/x.vhdx");
    memset(long_name, 'a', NAME_MAX + 1);
    for (size_t i = 0; i + 9 < 2 * PATH_MAX; i += 9)
        memcpy(long_path + i, "sub\\..\\.\\", 9);
    for (size_t i = 0; i < ARRAY_LENGTH(paths); i++) {
        for (unsigned allow = 0; allow < 2; allow++) {
            const struct result *r =
                EXPECT_NONE(SEARCH(.relative = paths[i], .dirs = {"other"}, .allow_any = allow));
            if (!r->search.blocked)
                print_error("not blocked: %s\n", paths[i]);
            assert_true(r->search.blocked);
            for (const char *p = r->search.recorded; *p; p++) /* it goes into a message */
                assert_true((unsigned char)*p >= 0x20 && *p != 0x7f);
        }
    }
    free(long_path);
}

static void names_in_other_scripts_are_fine(void **state)
{
    (void)state;
    need_the_right_kernel();
    make_file("child/\xc3\xa4\xe7\xa3\x81\xf0\x9f\x92\xbe.vhdx");
    EXPECT(SEARCH(.relative = ".\\\xc3\xa4\xe7\xa3\x81\xf0\x9f\x92\xbe.vhdx"),
           "child/\xc3\xa4\xe7\xa3\x81\xf0\x9f\x92\xbe.vhdx");
}

/* ---- what is not a regular file (row 99) ---- */

static void what_is_no_regular_file_is_not_touched(void **state)
{
    static const char *const names[] = {"fifo.vhdx", "sub", "."};

    (void)state;
    need_the_right_kernel();
    assert_int_equal(mkfifo(in_folder("child/fifo.vhdx"), 0666), 0);
    for (size_t i = 0; i < 2; i++) {
        const struct result *r =
            EXPECT_NONE(SEARCH(.relative = names[i])); /* the alarm rings if this waits */
        assert_true(r->search.not_regular);
        assert_int_equal(r->search.open_error, 0);
    }
    assert_true(EXPECT_NONE(SEARCH(.relative = "/dev/null", .allow_any = true))->search.not_regular);
    assert_true(EXPECT_NONE(SEARCH(.relative = "/dev/tty", .allow_any = true))->search.not_regular);
    const struct result *r = EXPECT_NONE(SEARCH(.relative = "/dev/null"));
    assert_true(r->search.blocked && !r->search.not_regular);
    EXPECT(SEARCH(.relative = "fifo.vhdx", .volume = "parent.vhdx"),
           "child/parent.vhdx"); /* others are still tried */
}

/* Root may read everything: be somebody else for a while. */
static void become_nobody(void)
{
    static const char *const names[] = {"", "child", "child/sub", "child/parent.vhdx",
                                        "child/sub/nested.vhdx"};

    for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
        assert_int_equal(chown(in_folder(names[i]), 65534, 65534), 0);
    assert_int_equal(seteuid(65534), 0);
    assert_int_equal(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), 0); /* or else /proc/self is still root's */
}

static void a_file_that_may_not_be_read_is_told_apart(void **state)
{
    bool is_root = geteuid() == 0;

    (void)state;
    need_the_right_kernel();
    if (is_root)
        become_nobody();
    struct result readable = *search(SEARCH(.relative = "sub\\nested.vhdx"));
    bool changed = chmod(in_folder("child/parent.vhdx"), 0) == 0;
    struct result secret = *search(SEARCH(.relative = "parent.vhdx"));
    if (is_root)
        assert_int_equal(seteuid(0), 0);
    assert_true(changed);
    assert_int_equal(readable.nr, 1);
    assert_int_equal(secret.nr, 0);
    assert_int_equal(secret.search.open_error, -EACCES);
}

/* ---- names that differ in case (rule 9) ---- */

static void ambiguous_names_are_not_guessed(void **state)
{
    (void)state;
    need_the_right_kernel();
    make_file("child/Base.vhdx");
    make_file("child/BASE.vhdx");
    EXPECT_NONE(SEARCH(.relative = "base.vhdx"));
    EXPECT(SEARCH(.relative = "BASE.vhdx"), "child/BASE.vhdx");
    EXPECT_NONE(SEARCH(.absolute = "C:\\bASE.vhdx"));
}

static void no_path_at_all_is_no_candidate(void **state)
{
    (void)state;
    need_the_right_kernel();
    const struct result *r = EXPECT_NONE(SEARCH(.dirs = {"other"}, .allow_any = true));
    assert_int_equal(r->code, 0);
    assert_false(r->search.blocked);
    assert_string_equal(r->search.recorded, "");
}

#define WITH(f)                                                                                              \
    {                                                                                                        \
#f, f, set_up, remove_folder, NULL                                                                       \
    }
#define WITHOUT(f)                                                                                           \
    {                                                                                                        \
#f "_without_openat2", f, set_up_without_openat2, remove_folder, NULL                                    \
    }
#define TESTS(way)                                                                                           \
    way(relative_paths_are_looked_for_in_the_childs_folder), way(the_callback_decides_when_to_stop),         \
        way(places_are_tried_in_the_order_of_the_format), way(ways_up_are_blocked),                          \
        way(missing_memory_is_no_wrong_path),                                                             \
        way(the_first_childs_folder_counts_as_named), way(links_may_not_lead_out_unasked),                   \
        way(a_child_is_also_where_its_link_leads), way(absolute_paths_are_not_followed_unasked),             \
        way(a_path_of_this_system_is_absolute_too),                                                          \
        way(a_bare_name_is_only_looked_for_in_folders_that_are_allowed), way(hostile_spellings_are_blocked), \
        way(names_in_other_scripts_are_fine), way(what_is_no_regular_file_is_not_touched),                   \
        way(a_file_that_may_not_be_read_is_told_apart), way(ambiguous_names_are_not_guessed),                \
        way(no_path_at_all_is_no_candidate)

int main(void)
{
    const struct CMUnitTest tests[] = {TESTS(WITH), TESTS(WITHOUT)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
