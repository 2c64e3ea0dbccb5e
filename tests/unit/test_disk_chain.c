/* SPDX-License-Identifier: MIT */
/* Opening a disk with its parents (format section 8.4, hostile input rows 97 to 104), on real files. */
#include "folder-test.h"
#include "image-test.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk/disk.h"

static int set_up(void **state)
{
    alarm(120); /* whatever waits for a FIFO ends the program */
    return make_folder(state);
}

/* ---- images ---- */

/* Identity number n: {000000nn-0000-0000-0000-000000000000}. */
static guid id(unsigned n)
{
    guid g = {{0}};

    le32_put(g.bytes, n);
    return g;
}

static const char *braced(const guid *g)
{
    static char text[4][48];
    static unsigned next;
    char *t = text[next++ % 4];

    t[0] = '{';
    guid_format(g, t + 1);
    memcpy(t + 37, "}", 2);
    return t;
}

/* One image of 2 MiB in blocks of 1 MiB. */
struct spec {
    unsigned id;       /* DataWriteGuid */
    unsigned parent;   /* parent_linkage, if path or linkage2 is given or has_parent is set */
    unsigned linkage2; /* 0: the key is there and all zero; UINT_MAX: no key */
    bool has_parent;
    const char *path;     /* relative_path */
    const char *absolute; /* absolute_win32_path */
    uint32_t sector_size; /* 0: 512 */
    uint64_t size;        /* 0: 2 MiB */
    uint8_t fill;         /* of block 0, if not 0 */
    bool dirty;           /* the log says that block 0 is there */
};

static void make_at(const char *path, const struct spec *spec)
{
    const guid parent = id(spec->parent), linkage2 = id(spec->linkage2);
    const char *pairs[4][2] = {{"parent_linkage", braced(&parent)}};
    uint32_t nr = 1;
    struct image_plan p;
    struct storage *s;

    if (spec->linkage2 != UINT_MAX) {
        pairs[nr][0] = "parent_linkage2";
        pairs[nr++][1] = braced(&linkage2);
    }
    if (spec->path) {
        pairs[nr][0] = "relative_path";
        pairs[nr++][1] = spec->path;
    }
    if (spec->absolute) {
        pairs[nr][0] = "absolute_win32_path";
        pairs[nr++][1] = spec->absolute;
    }
    bool has_parent = spec->path || spec->absolute || spec->has_parent;
    image_plan_init(&p, spec->size ? spec->size : MIB(2), MIB(1), spec->sector_size ? spec->sector_size : 512,
                    has_parent ? (const char *const(*)[2])pairs : NULL, has_parent ? nr : 0);
    p.header.data_write_guid = id(spec->id);
    p.file_length = MIB(6);
    if (spec->dirty)
        p.header.log_guid = (guid){"log of the test"};
    int fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);
    assert_true(fd >= 0);
    assert_succeeds(storage_posix_from_fd(fd, true, false, &s));
    build_image(&p, s);
    if (spec->fill) {
        build_fill(s, MIB(4), spec->fill, 4096);
        if (!spec->dirty)
            build_block(&p, s, 0, PAYLOAD_FULLY_PRESENT, MIB(4));
    }
    if (spec->dirty) {
        uint8_t page[PAGE_BYTES] = {0};
        le64_put(page, MIB(4) | PAYLOAD_FULLY_PRESENT);
        const struct build_change change = {.file_offset = p.bat_offset, .page = page};
        build_log_entry(s, &p.header,
                        &(struct build_entry){.sequence_no = 1,
                                              .log_guid = p.header.log_guid,
                                              .last = p.file_length,
                                              .changes = &change,
                                              .nr_changes = 1});
    }
    storage_close(s);
}

#define MAKE(name, ...) make_at(in_folder(name), &(struct spec){__VA_ARGS__})

/* ---- opening ---- */

static const struct vhdx_open_options init = VHDX_OPEN_OPTIONS_INIT;

static int try_open(const char *name, const struct vhdx_open_options *options)
{
    struct vhdx_disk *disk;
    int r = disk_open(in_folder(name), options, &disk);

    assert_true((r == 0) == (disk != NULL));
    disk_close(disk);
    return r;
}

/* Open, and compare the names of all layers, child first. */
static struct vhdx_disk *expect_chain(const char *name, const struct vhdx_open_options *options, uint32_t nr,
                                      const char *const *names, int line)
{
    struct vhdx_disk *disk;

    expect_success(disk_open(in_folder(name), options, &disk), __FILE__, line);
    if (disk->nr_layers != nr) {
        print_error("line %d: %u layers, not %u\n", line, disk->nr_layers, nr);
        _fail(__FILE__, line);
    }
    for (uint32_t i = 0; i < nr; i++) {
        struct stat a, b;
        assert_int_equal(stat(disk->layers[i].path, &a), 0);
        assert_int_equal(stat(in_folder(names[i]), &b), 0);
        assert_true(a.st_ino == b.st_ino);
        assert_int_equal(disk->layers[i].size, disk->layers[i].img->geometry.virtual_size);
    }
    return disk;
}

#define EXPECT_CHAIN(name, options, ...)                                                                     \
    disk_close(expect_chain((name), (options), ARRAY_LENGTH(((const char *const[]){__VA_ARGS__})),           \
                            (const char *const[]){__VA_ARGS__}, __LINE__))

static uint8_t first_byte(struct vhdx_disk *disk)
{
    uint8_t byte;

    assert_succeeds(disk_pread(disk, &byte, 1, 0));
    return byte;
}

/* ---- finding and identity ---- */

static void a_chain_is_followed_to_its_base(void **state)
{
    (void)state;
    assert_int_equal(mkdir(in_folder("sub"), 0777), 0);
    MAKE("top.vhdx", .id = 3, .parent = 2, .path = ".\\sub\\mid.vhdx");
    MAKE("sub/mid.vhdx", .id = 2, .parent = 1, .path = "base.vhdx");
    MAKE("sub/base.vhdx", .id = 1, .fill = 0x42);
    struct vhdx_disk *disk = expect_chain(
        "top.vhdx", NULL, 3, (const char *const[]){"top.vhdx", "sub/mid.vhdx", "sub/base.vhdx"}, __LINE__);
    assert_string_equal(disk->layers[0].path, in_folder("top.vhdx"));
    assert_string_equal(disk->layers[2].path, in_folder("sub/base.vhdx"));
    assert_int_equal(disk->size, MIB(2));
    assert_false(disk->parent_left_out);
    assert_int_equal(first_byte(disk), 0x42);
    disk_close(disk);
    EXPECT_CHAIN("sub/base.vhdx", NULL, "sub/base.vhdx");
    disk_close(NULL);
}

/* Windows does not care how its names are spelled; the parent's own parent is still looked for beside it. */
static void a_chain_is_followed_through_names_in_other_case(void **state)
{
    (void)state;
    assert_int_equal(mkdir(in_folder("Sub"), 0777), 0);
    MAKE("top.vhdx", .id = 3, .parent = 2, .path = ".\\SUB\\MID.vhdx");
    MAKE("Sub/Mid.vhdx", .id = 2, .parent = 1, .path = ".\\BASE.VHDX");
    MAKE("Sub/base.vhdx", .id = 1);
    EXPECT_CHAIN("top.vhdx", NULL, "top.vhdx", "Sub/Mid.vhdx", "Sub/base.vhdx");
}

static void the_identity_decides_not_the_name(void **state)
{
    char *dirs[] = {strdup(in_folder("a")), strdup(in_folder("b"))};
    struct vhdx_open_options o = init;

    (void)state;
    assert_int_equal(mkdir(dirs[0], 0777), 0);
    assert_int_equal(mkdir(dirs[1], 0777), 0);
    MAKE("child.vhdx", .id = 2, .parent = 1, .path = "p.vhdx", .absolute = "C:\\vm\\q.vhdx");
    assert_fails(try_open("child.vhdx", NULL), VHDX_E_PARENT_NOT_FOUND, "p.vhdx"); /* missing, whatever else is recorded */
    assert_non_null(strstr(error_message(), "--allow-parent-path"));
    MAKE("p.vhdx", .id = 7);
    assert_fails(try_open("child.vhdx", NULL), VHDX_E_PARENT_MISMATCH, "00000001-0000");
    assert_non_null(strstr(error_message(), "00000007-0000"));
    assert_non_null(strstr(error_message(), in_folder("p.vhdx")));
    MAKE("q.vhdx", .id = 8); /* another wrong one: the first is reported */
    assert_fails(try_open("child.vhdx", NULL), VHDX_E_PARENT_MISMATCH, in_folder("p.vhdx"));
    MAKE("b/q.vhdx", .id = 1); /* the right one, under the last of all names */
    o.parent_dirs = (const char *const *)dirs;
    o.nr_parent_dirs = 2;
    EXPECT_CHAIN("child.vhdx", &o, "child.vhdx", "b/q.vhdx");
    MAKE("a/p.vhdx", .id = 1); /* a better place */
    EXPECT_CHAIN("child.vhdx", &o, "child.vhdx", "a/p.vhdx");
    free(dirs[0]);
    free(dirs[1]);
}

static void either_linkage_will_do(void **state)
{
    (void)state;
    MAKE("base.vhdx", .id = 1);
    MAKE("merging.vhdx", .id = 2, .parent = 9, .linkage2 = 1, .path = "base.vhdx");
    EXPECT_CHAIN("merging.vhdx", NULL, "merging.vhdx", "base.vhdx");
    MAKE("without.vhdx", .id = 3, .parent = 1, .linkage2 = UINT_MAX, .path = "base.vhdx");
    EXPECT_CHAIN("without.vhdx", NULL, "without.vhdx", "base.vhdx");
    MAKE("nobody.vhdx", .id = 0); /* an all-zero second linkage means nothing */
    MAKE("zero.vhdx", .id = 4, .parent = 5, .linkage2 = 0, .path = "nobody.vhdx");
    assert_fails(try_open("zero.vhdx", NULL), VHDX_E_PARENT_MISMATCH, "nobody.vhdx");
}

static void a_parent_that_cannot_be_opened_is_named(void **state)
{
    (void)state;
    MAKE("child.vhdx", .id = 2, .parent = 1, .path = "base.vhdx");
    int fd = open(in_folder("base.vhdx"), O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "text", 4), 4);
    close(fd);
    assert_fails(try_open("child.vhdx", NULL), VHDX_E_NOT_VHDX, in_folder("base.vhdx"));
    assert_non_null(strstr(error_message(), "parent: "));
    assert_int_equal(unlink(in_folder("base.vhdx")), 0);
    MAKE("base.vhdx", .id = 1);
    assert_int_equal(truncate(in_folder("base.vhdx"), 0x200800), 0);
    assert_fails(try_open("child.vhdx", NULL), VHDX_E_TRUNCATED, in_folder("base.vhdx"));
}

static void what_is_missing_is_told(void **state)
{
    (void)state;
    MAKE("child.vhdx", .id = 2, .parent = 1, .path = ".\\base.vhdx");
    assert_fails(try_open("child.vhdx", NULL), VHDX_E_PARENT_NOT_FOUND, ".\\base.vhdx");
    assert_non_null(strstr(error_message(), "00000001-0000-0000-0000-000000000000"));
    assert_non_null(strstr(error_message(), "--parent-dir"));
    assert_int_equal(try_open("none.vhdx", NULL), -ENOENT);
    MAKE("same.vhdx", .id = 4, .parent = 1, .path = "..\\same.vhdx"); /* the bare name leads to the child itself */
    assert_fails(try_open("same.vhdx", NULL), VHDX_E_PARENT_POLICY, "..\\same.vhdx");
    MAKE("orphan.vhdx", .id = 3, .parent = 1, .has_parent = true); /* row 97: no path at all */
    assert_fails(try_open("orphan.vhdx", NULL), VHDX_E_PARENT_NOT_FOUND, "(none)");
    MAKE("middle.vhdx", .id = 5, .parent = 2,
         .path = "child.vhdx"); /* deeper down, the message names whose parent it is */
    assert_fails(try_open("middle.vhdx", NULL), VHDX_E_PARENT_NOT_FOUND, in_folder("child.vhdx"));
}

/* ---- policy (rows 98 and 99) ---- */

static void what_lies_outside_needs_permission_and_stays_unknown(void **state)
{
    char *dirs[] = {strdup(in_folder("outside"))};
    struct vhdx_open_options o = init;
    char with[ERROR_TEXT_BYTES];

    (void)state;
    assert_int_equal(mkdir(in_folder("outside"), 0777), 0);
    assert_int_equal(mkdir(in_folder("vm"), 0777), 0);
    MAKE("outside/base.vhdx", .id = 1);
    MAKE("vm/child.vhdx", .id = 2, .parent = 1, .path = "..\\outside\\base.vhdx");
    assert_fails(try_open("vm/child.vhdx", NULL), VHDX_E_PARENT_POLICY, "..\\outside\\base.vhdx");
    assert_non_null(strstr(error_message(), "--parent-dir"));
    assert_non_null(strstr(error_message(), "--allow-parent-path"));
    snprintf(with, sizeof with, "%s", error_message());
    assert_int_equal(rename(in_folder("outside/base.vhdx"), in_folder("outside/hidden")), 0);
    assert_fails(try_open("vm/child.vhdx", NULL), VHDX_E_PARENT_POLICY, "");
    assert_string_equal(error_message(), with); /* rule 11: the same, whether or not it exists */
    assert_int_equal(rename(in_folder("outside/hidden"), in_folder("outside/base.vhdx")), 0);
    o.flags = VHDX_OPEN_ALLOW_PARENT_PATH;
    EXPECT_CHAIN("vm/child.vhdx", &o, "vm/child.vhdx", "outside/base.vhdx");
    o.flags = 0;
    o.parent_dirs = (const char *const *)dirs;
    o.nr_parent_dirs = 1;
    EXPECT_CHAIN("vm/child.vhdx", &o, "vm/child.vhdx", "outside/base.vhdx");
    assert_int_equal(symlink("../outside/base.vhdx", in_folder("vm/link.vhdx")), 0);
    MAKE("vm/linked.vhdx", .id = 3, .parent = 1, .path = "link.vhdx");
    assert_fails(try_open("vm/linked.vhdx", NULL), VHDX_E_PARENT_POLICY, "link.vhdx");
    EXPECT_CHAIN("vm/linked.vhdx", &o, "vm/linked.vhdx", "outside/base.vhdx");
    free(dirs[0]);
}

static void parents_are_regular_files(void **state)
{
    struct vhdx_open_options o = init;

    (void)state;
    o.flags = VHDX_OPEN_ALLOW_PARENT_PATH;
    assert_int_equal(mkfifo(in_folder("fifo"), 0666), 0);
    assert_int_equal(mkdir(in_folder("folder"), 0777), 0);
    MAKE("a.vhdx", .id = 2, .parent = 1, .path = "fifo");
    MAKE("b.vhdx", .id = 2, .parent = 1, .path = "folder");
    MAKE("c.vhdx", .id = 2, .parent = 1, .path = "/dev/zero");
    assert_fails(try_open("a.vhdx", NULL), VHDX_E_PARENT_POLICY,
                 "fifo, is not a regular file"); /* or the alarm rings */
    assert_fails(try_open("b.vhdx", NULL), VHDX_E_PARENT_POLICY, "folder, is not a regular file");
    assert_fails(try_open("c.vhdx", &o), VHDX_E_PARENT_POLICY, "/dev/zero, is not a regular file");
}

static void streams_and_control_characters_are_refused(void **state)
{
    struct vhdx_open_options o = init;

    (void)state;
    o.flags = VHDX_OPEN_ALLOW_PARENT_PATH;
    MAKE("base.vhdx", .id = 1);
    MAKE("a.vhdx", .id = 2, .parent = 1, .path = "base.vhdx:stream");
    MAKE("b.vhdx", .id = 2, .parent = 1, .path = "base.vhdx\n\x1b[31m");
    assert_fails(try_open("a.vhdx", &o), VHDX_E_PARENT_POLICY, "base.vhdx:stream");
    assert_fails(try_open("b.vhdx", &o), VHDX_E_PARENT_POLICY,
                 "base.vhdx??[31m"); /* harmless on a terminal */
}

/* ---- the parent that the user names ---- */

static void a_named_parent_is_the_only_one_that_will_do(void **state)
{
    struct vhdx_open_options o = init;

    (void)state;
    assert_int_equal(mkdir(in_folder("elsewhere"), 0777), 0);
    MAKE("child.vhdx", .id = 3, .parent = 2, .path = "mid.vhdx");
    MAKE("mid.vhdx", .id = 2, .parent = 1, .path = "base.vhdx");
    MAKE("base.vhdx", .id = 1);
    MAKE("elsewhere/renamed", .id = 2, .parent = 1, .path = "base2.vhdx");
    MAKE("elsewhere/base2.vhdx", .id = 1);
    o.parent = in_folder("elsewhere/renamed"); /* outside of the child's folder: the user may name anything */
    EXPECT_CHAIN("child.vhdx", &o, "child.vhdx", "elsewhere/renamed", "elsewhere/base2.vhdx");
    o.parent = in_folder("base.vhdx");
    assert_fails(try_open("child.vhdx", &o), VHDX_E_PARENT_MISMATCH, "00000002-0000");
    assert_non_null(strstr(error_message(), "00000001-0000"));
    o.parent = in_folder("none.vhdx");
    assert_fails(try_open("child.vhdx", &o), -ENOENT, "none.vhdx");
    o.parent = in_folder("elsewhere");
    assert_fails(try_open("child.vhdx", &o), -EISDIR, "elsewhere");
    o.parent = "/dev/null";
    assert_fails(try_open("child.vhdx", &o), -EINVAL, "/dev/null");
    o.parent = in_folder("child.vhdx");
    assert_fails(try_open("child.vhdx", &o), VHDX_E_PARENT_MISMATCH, in_folder("child.vhdx"));
    assert_int_equal(mkfifo(in_folder("fifo"), 0666), 0);
    o.parent = in_folder("fifo");
    assert_fails(try_open("child.vhdx", &o), -EINVAL, "FIFO");
    o.parent = in_folder("mid.vhdx");
    EXPECT_CHAIN("base.vhdx", &o, "base.vhdx"); /* who has no parent does not get one */
    MAKE("orphan.vhdx", .id = 4, .parent = 1, .has_parent = true);
    o.parent = in_folder("base.vhdx");
    EXPECT_CHAIN("orphan.vhdx", &o, "orphan.vhdx", "base.vhdx"); /* row 97: no path is needed then */
}

/* ---- cycles and depth (rows 101 and 102) ---- */

static void cycles_are_refused(void **state)
{
    (void)state;
    MAKE("self.vhdx", .id = 1, .parent = 1, .path = "self.vhdx");
    assert_fails(try_open("self.vhdx", NULL), VHDX_E_CHAIN, in_folder("self.vhdx"));
    MAKE("a.vhdx", .id = 2, .parent = 3, .path = "b.vhdx");
    MAKE("b.vhdx", .id = 3, .parent = 4, .path = "c.vhdx");
    MAKE("c.vhdx", .id = 4, .parent = 2, .path = "a.vhdx");
    assert_fails(try_open("a.vhdx", NULL), VHDX_E_CHAIN, "leads back to");
    assert_non_null(strstr(error_message(), in_folder("a.vhdx")));
    MAKE("x.vhdx", .id = 5, .parent = 5, .path = "y.vhdx"); /* the same file under another name */
    assert_int_equal(link(in_folder("x.vhdx"), in_folder("y.vhdx")), 0);
    assert_fails(try_open("x.vhdx", NULL), VHDX_E_CHAIN, "leads back to");
    MAKE("m.vhdx", .id = 6, .parent = 6, .path = "n.vhdx");
    assert_int_equal(symlink("m.vhdx", in_folder("n.vhdx")), 0);
    assert_fails(try_open("m.vhdx", NULL), VHDX_E_CHAIN, "leads back to");
}

/* A child that took its parent's name finds itself: that is the wrong file, not none. */
static void finding_oneself_is_a_mismatch(void **state)
{
    (void)state;
    MAKE("disk.vhdx", .id = 2, .parent = 1, .path = "disk.vhdx");
    assert_fails(try_open("disk.vhdx", NULL), VHDX_E_PARENT_MISMATCH, in_folder("disk.vhdx"));
    assert_non_null(strstr(error_message(), "00000002-0000"));
}

static void chains_may_be_256_images_deep(void **state)
{
    struct vhdx_open_options o = init;
    struct vhdx_disk *disk;
    char name[32], parent[32];

    (void)state;
    for (unsigned i = 0; i < 257; i++) {
        snprintf(name, sizeof name, "%u.vhdx", i);
        snprintf(parent, sizeof parent, "%u.vhdx", i + 1);
        make_at(in_folder(name), &(struct spec){.id = i + 1,
                                             .parent = i + 2,
                                             .path = i < 256 ? parent : NULL,
                                             .fill = i == 256 ? 0x99 : 0});
    }
    assert_succeeds(disk_open(in_folder("1.vhdx"), NULL, &disk));
    assert_int_equal(disk->nr_layers, 256);
    assert_int_equal(first_byte(disk), 0x99);
    disk_close(disk);
    assert_fails(try_open("0.vhdx", NULL), VHDX_E_CHAIN, "more than 256 images");
    o.max_chain_depth = 3;
    assert_fails(try_open("0.vhdx", &o), VHDX_E_CHAIN, "more than 3 images");
    assert_fails(try_open("253.vhdx", &o), VHDX_E_CHAIN, in_folder("255.vhdx"));
    assert_succeeds(try_open("254.vhdx", &o));
    o.max_chain_depth = 1;
    assert_succeeds(try_open("256.vhdx", &o));
    assert_int_equal(try_open("255.vhdx", &o), VHDX_E_CHAIN);
    o.max_chain_depth = 257;
    assert_fails(try_open("256.vhdx", &o), -EINVAL, "257");
}

/* ---- geometry (row 103) ---- */

static void sector_sizes_must_agree_sizes_need_not(void **state)
{
    struct vhdx_disk *disk;
    uint8_t buf[8];

    (void)state;
    MAKE("big.vhdx", .id = 1, .sector_size = 4096, .fill = 1);
    MAKE("child.vhdx", .id = 2, .parent = 1, .path = "big.vhdx");
    assert_fails(try_open("child.vhdx", NULL), VHDX_E_CHAIN,
                 "logical sectors of 4096 bytes, its child of 512");
    assert_non_null(strstr(error_message(), in_folder("big.vhdx")));
    MAKE("small.vhdx", .id = 3, .size = 1024, .fill = 7);
    MAKE("longer.vhdx", .id = 4, .parent = 3, .path = "small.vhdx");
    assert_succeeds(disk_open(in_folder("longer.vhdx"), NULL, &disk));
    assert_int_equal(disk->size, MIB(2));
    assert_succeeds(
        disk_pread(disk, buf, 8, 1020)); /* behind the parent's end come zeros (5.6), not its block's rest */
    assert_memory_equal(buf, "\7\7\7\7\0\0\0\0", 8);
    disk_close(disk);
    MAKE("shorter.vhdx", .id = 5, .parent = 4, .path = "longer.vhdx", .size = 512);
    assert_succeeds(disk_open(in_folder("shorter.vhdx"), NULL, &disk));
    assert_int_equal(disk->size, 512);
    assert_succeeds(disk_pread(disk, buf, 8, 504));
    assert_int_equal(disk_pread(disk, buf, 8, 505), -EINVAL);
    disk_close(disk);
}

/* ---- options ---- */

static void a_dirty_parent_is_replayed_in_memory(void **state)
{
    struct vhdx_open_options o = init;
    struct vhdx_disk *disk;

    (void)state;
    MAKE("base.vhdx", .id = 1, .fill = 0x55, .dirty = true);
    MAKE("child.vhdx", .id = 2, .parent = 1, .path = "base.vhdx");
    assert_succeeds(disk_open(in_folder("child.vhdx"), NULL, &disk));
    assert_int_equal(first_byte(disk), 0x55);
    disk_close(disk);
    o.flags = VHDX_OPEN_REFUSE_DIRTY;
    assert_fails(try_open("child.vhdx", &o), VHDX_E_LOG_DIRTY, in_folder("base.vhdx"));
    assert_int_equal(try_open("base.vhdx", &o), VHDX_E_LOG_DIRTY);
}

static void a_parent_may_be_left_out(void **state)
{
    struct vhdx_open_options o = init;
    struct vhdx_disk *disk;
    uint8_t byte;

    (void)state;
    MAKE("child.vhdx", .id = 2, .parent = 1, .path = "base.vhdx", .fill = 0x31);
    o.flags = VHDX_OPEN_NO_PARENT;
    assert_succeeds(disk_open(in_folder("child.vhdx"), &o, &disk));
    assert_true(disk->parent_left_out);
    assert_int_equal(first_byte(disk), 0x31);
    assert_fails(disk_pread(disk, &byte, 1, MIB(1)), VHDX_E_PARENT_NOT_FOUND, in_folder("child.vhdx"));
    assert_non_null(strstr(error_message(), "1048576"));
    disk_close(disk);
}

static void raw_files_are_disks_too(void **state)
{
    struct vhdx_open_options o = init;
    struct vhdx_disk *disk;
    char buf[4];

    (void)state;
    o.flags = VHDX_OPEN_RAW;
    int fd = open(in_folder("raw"), O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "some text", 9), 9);
    close(fd);
    assert_succeeds(disk_open(in_folder("raw"), &o, &disk));
    assert_int_equal(disk->size, 9);
    assert_null(disk->layers[0].img);
    assert_ptr_equal(layer_file(&disk->layers[0]), disk->layers[0].raw);
    assert_succeeds(disk_pread(disk, buf, 4, 5));
    assert_memory_equal(buf, "text", 4);
    disk_close(disk);
}

static void options_that_make_no_sense_are_refused(void **state)
{
    struct vhdx_open_options o = init;

    (void)state;
    MAKE("base.vhdx", .id = 1);
    o.struct_bytes--;
    assert_fails(try_open("base.vhdx", &o), -EINVAL, "struct_bytes");
    o = init;
    o.flags = 1u << 31;
    assert_fails(try_open("base.vhdx", &o), -EINVAL, "0x80000000");
}

/* ---- locks (I4) ---- */

static void images_in_use_elsewhere_are_refused(void **state)
{
    struct vhdx_open_options o = init;
    struct vhdx_disk *disk;
    struct storage *writer;

    (void)state;
    MAKE("child.vhdx", .id = 2, .parent = 1, .path = "base.vhdx");
    MAKE("base.vhdx", .id = 1);
    assert_succeeds(storage_posix_open(in_folder("base.vhdx"), POSIX_OPEN_WRITABLE, &writer));
    assert_succeeds(storage_lock(writer, STORAGE_LOCK_EXCLUSIVE));
    assert_int_equal(try_open("base.vhdx", NULL), VHDX_E_LOCKED);
    assert_fails(try_open("child.vhdx", NULL), VHDX_E_LOCKED, in_folder("base.vhdx"));
    o.flags = VHDX_OPEN_FORCE_SHARE;
    assert_succeeds(try_open("child.vhdx", &o));
    assert_succeeds(storage_lock(writer, STORAGE_LOCK_NONE));
    assert_succeeds(disk_open(in_folder("child.vhdx"), NULL, &disk));
    assert_int_equal(storage_lock(writer, STORAGE_LOCK_EXCLUSIVE), VHDX_E_LOCKED); /* the parent too */
    assert_succeeds(try_open("child.vhdx", NULL));                                 /* readers share */
    disk_close(disk);
    assert_succeeds(storage_lock(writer, STORAGE_LOCK_EXCLUSIVE));
    storage_close(writer);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_chain_is_followed_to_its_base),
        TEST(a_chain_is_followed_through_names_in_other_case),
        TEST(the_identity_decides_not_the_name),
        TEST(either_linkage_will_do),
        TEST(a_parent_that_cannot_be_opened_is_named),
        TEST(what_is_missing_is_told),
        TEST(what_lies_outside_needs_permission_and_stays_unknown),
        TEST(parents_are_regular_files),
        TEST(streams_and_control_characters_are_refused),
        TEST(a_named_parent_is_the_only_one_that_will_do),
        TEST(cycles_are_refused),
        TEST(finding_oneself_is_a_mismatch),
        TEST(chains_may_be_256_images_deep),
        TEST(sector_sizes_must_agree_sizes_need_not),
        TEST(a_dirty_parent_is_replayed_in_memory),
        TEST(a_parent_may_be_left_out),
        TEST(raw_files_are_disks_too),
        TEST(options_that_make_no_sense_are_refused),
        TEST(images_in_use_elsewhere_are_refused),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
