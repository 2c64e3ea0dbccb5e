/* SPDX-License-Identifier: MIT */
/* The POSIX driver, on real files and with a kernel that misbehaves.
 *
 * System calls of the driver end in the functions of the same names here, which hand them on unless a test
 * has set up something else in `kernel`. */
#include "folder-test.h"
#include "storage-test.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/loop.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/math.h"

/* ---- the kernel ---- */

static struct {
    size_t bytes_per_call; /* transfers move no more than this; 0: as they like */
    bool interrupts;       /* every other call fails with EINTR */
    bool swallows;         /* transfers move nothing, but say that they did */
    bool moves_nothing;    /* transfers return 0 */
    int transfer_error;    /* transfers behind error_offset fail */
    off_t error_offset;
    int fdatasync_error, fallocate_error, seek_error, truncate_error;
    off_t seek_answer;    /* what SEEK_DATA and SEEK_HOLE find; 0: the truth */
    atomic_uint nr_calls; /* of pread, preadv, pwrite and pwritev */
    atomic_uint nr_fdatasync, nr_fallocate, nr_seeks;
    atomic_int most_buffers;  /* of one call */
    atomic_size_t most_bytes; /* of one call */
    int closed_fd;
    unsigned nr_closed; /* times that closed_fd was closed */
} kernel;

static void *real(const char *name)
{
    char name64[32];
    void *f;

    snprintf(name64, sizeof name64, "%s64", name);
    f = dlsym(RTLD_NEXT, name64);
    return f ? f : dlsym(RTLD_NEXT, name);
}

#define REAL(function) ((__typeof__(&function))(uintptr_t)real(#function))

static bool interrupt(void)
{
    static unsigned nr;

    if (!kernel.interrupts || nr++ % 2)
        return false;
    errno = EINTR;
    return true;
}

/* True: *answer is what the call returns.  Else the first *nr buffers of iov, cut to size in place, are to be
 * moved. */
static bool meddle(struct iovec *iov, int *nr, off_t offset, ssize_t *answer)
{
    size_t total = 0, left = kernel.bytes_per_call ? kernel.bytes_per_call : SIZE_MAX;
    int i;

    for (i = 0; i < *nr; i++)
        total += iov[i].iov_len;
    kernel.nr_calls++;
    kernel.most_buffers = *nr > kernel.most_buffers ? *nr : kernel.most_buffers;
    kernel.most_bytes = total > kernel.most_bytes ? total : kernel.most_bytes;
    *answer = kernel.swallows ? (ssize_t)total : kernel.moves_nothing ? 0 : -1;
    if (interrupt() || kernel.swallows || kernel.moves_nothing)
        return true;
    if (kernel.transfer_error && offset >= kernel.error_offset) {
        errno = kernel.transfer_error;
        return true;
    }
    for (i = 0; i < *nr && left > 0; i++) {
        iov[i].iov_len = (size_t)min_u64(iov[i].iov_len, left);
        left -= iov[i].iov_len;
    }
    *nr = i;
    return false;
}

ssize_t preadv(int fd, const struct iovec *iov, int nr, off_t offset)
{
    struct iovec *own = calloc((size_t)nr, sizeof *own);
    ssize_t answer;

    memcpy(own, iov, (size_t)nr * sizeof *own);
    if (!meddle(own, &nr, offset, &answer))
        answer = REAL(preadv)(fd, own, nr, offset);
    free(own);
    return answer;
}

ssize_t pread(int fd, void *buf, size_t bytes, off_t offset)
{
    struct iovec iov = {buf, bytes};
    int nr = 1;
    ssize_t answer;

    if (!meddle(&iov, &nr, offset, &answer))
        answer = REAL(pread)(fd, buf, iov.iov_len, offset);
    return answer;
}

ssize_t pwritev(int fd, const struct iovec *iov, int nr, off_t offset)
{
    struct iovec *own = calloc((size_t)nr, sizeof *own);
    ssize_t answer;

    memcpy(own, iov, (size_t)nr * sizeof *own);
    if (!meddle(own, &nr, offset, &answer))
        answer = REAL(pwritev)(fd, own, nr, offset);
    free(own);
    return answer;
}

ssize_t pwrite(int fd, const void *buf, size_t bytes, off_t offset)
{
    struct iovec iov = {(void *)(uintptr_t)buf, bytes};
    int nr = 1;
    ssize_t answer;

    if (!meddle(&iov, &nr, offset, &answer))
        answer = REAL(pwrite)(fd, buf, iov.iov_len, offset);
    return answer;
}

static bool fails_with(int error)
{
    if (error)
        errno = error;
    return error != 0;
}

int fdatasync(int fd)
{
    kernel.nr_fdatasync++;
    return fails_with(kernel.fdatasync_error) ? -1 : REAL(fdatasync)(fd);
}

int fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    kernel.nr_fallocate++;
    return interrupt() || fails_with(kernel.fallocate_error) ? -1 : REAL(fallocate)(fd, mode, offset, bytes);
}

int ftruncate(int fd, off_t bytes)
{
    return interrupt() || fails_with(kernel.truncate_error) ? -1 : REAL(ftruncate)(fd, bytes);
}

off_t lseek(int fd, off_t offset, int whence)
{
    kernel.nr_seeks++;
    if (fails_with(kernel.seek_error))
        return -1;
    return kernel.seek_answer ? kernel.seek_answer : REAL(lseek)(fd, offset, whence);
}

int close(int fd)
{
    if (fd == kernel.closed_fd && fd > 0)
        kernel.nr_closed++;
    return REAL(close)(fd);
}

/* ---- files to work on ---- */

/* Each test starts with an honest kernel and an empty folder. */
static int set_up(void **state)
{
    memset(&kernel, 0, sizeof kernel);
    return make_folder(state);
}

static int tear_down(void **state)
{
    memset(&kernel, 0, sizeof kernel);
    return remove_folder(state);
}

static struct storage *open_new(const char *name)
{
    struct storage *s;
    int fd = open(in_folder(name), O_RDWR | O_CREAT | O_EXCL, 0600);

    assert_true(fd >= 0);
    assert_succeeds(storage_posix_from_fd(fd, true, false, &s));
    return s;
}

/* ---- opening ---- */

static void opens_regular_files(void **state)
{
    struct storage *s;
    char buf[5];

    (void)state;
    s = open_new("file");
    assert_succeeds(storage_pwrite(s, "hello", 5, 3));
    storage_close(s);

    assert_succeeds(storage_posix_open(in_folder("file"), 0, &s));
    assert_int_equal(fcntl(s->fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    assert_int_equal(fcntl(s->fd, F_GETFL) & (O_NONBLOCK | O_ACCMODE), O_RDONLY);
    assert_false(s->writable);
    assert_int_equal(length_of(s), 8);
    assert_succeeds(storage_pread(s, buf, 5, 3));
    assert_memory_equal(buf, "hello", 5);
    assert_fails(storage_pread(s, buf, 5, 4), VHDX_E_TRUNCATED, "wanted 5 bytes at file offset 0x4, got 4");
    assert_fails(storage_pwrite(s, "x", 1, 0), -EROFS, "reading only");
    assert_succeeds(storage_flush(s));
    storage_close(s);

    assert_succeeds(storage_posix_open(in_folder("file"), POSIX_OPEN_WRITABLE, &s));
    assert_true(s->writable);
    assert_int_equal(fcntl(s->fd, F_GETFL) & (O_NONBLOCK | O_ACCMODE), O_RDWR);
    storage_close(s);
}

static void refuses_other_types(void **state)
{
    struct storage *s;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    (void)state;
    for (unsigned flags = 0; flags <= POSIX_OPEN_WRITABLE; flags++) {
        assert_fails(storage_posix_open(in_folder("nothing"), flags, &s), -ENOENT, "cannot open: No such file");
        assert_null(s);
        assert_fails(storage_posix_open(folder, flags, &s), -EISDIR, "folder");
        assert_fails(storage_posix_open("/dev/null", flags, &s), -EINVAL, "character device");
    }
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    alarm(120); /* kills the test if it waits for a writer */
    assert_fails(storage_posix_open(in_folder("fifo"), 0, &s), -EINVAL, "FIFO");
    assert_fails(storage_posix_open(in_folder("fifo"), POSIX_OPEN_WRITABLE, &s), -EINVAL, "FIFO");
    alarm(0);

    assert_int_equal(mknod(in_folder("socket"), S_IFSOCK | 0600, 0), 0);
    assert_fails(storage_posix_open(in_folder("socket"), 0, &s), -EINVAL, "socket");
    assert_fails(storage_posix_from_fd(fd, true, true, &s), -EINVAL, "socket");
}

static void takes_only_fitting_descriptors(void **state)
{
    struct storage *s;

    (void)state;
    storage_close(open_new("file"));
    int reading = open(in_folder("file"), O_RDONLY), writing = open(in_folder("file"), O_WRONLY);
    int appending = open(in_folder("file"), O_RDWR | O_APPEND);
    assert_fails(storage_posix_from_fd(reading, true, false, &s), -EBADF, "not open for writing");
    assert_fails(storage_posix_from_fd(writing, false, false, &s), -EBADF, "not open for reading");
    assert_fails(storage_posix_from_fd(appending, true, false, &s), -EINVAL, "O_APPEND");
    assert_null(s);
    assert_fails(storage_posix_from_fd(-1, true, false, &s), -EBADF, "file descriptor -1");
    assert_int_equal(fcntl(reading, F_GETFD), -1); /* it owned them although it failed */
    assert_int_equal(fcntl(writing, F_GETFD), -1);
    assert_int_equal(fcntl(appending, F_GETFD), -1);

    writing = open(in_folder("file"), O_WRONLY);
    assert_succeeds(storage_posix_from_fd(writing, true, false, &s));
    assert_int_equal(fcntl(writing, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    storage_close(s);
}

static void closes_exactly_once(void **state)
{
    struct storage *s;

    (void)state;
    s = open_new("file");
    kernel.closed_fd = s->fd;
    storage_close(s);
    assert_int_equal(kernel.nr_closed, 1);

    int fd = open(folder, O_RDONLY);
    kernel.closed_fd = fd;
    kernel.nr_closed = 0;
    assert_fails(storage_posix_from_fd(fd, false, true, &s), -EISDIR, "folder");
    assert_int_equal(kernel.nr_closed, 1);
}

static void identity_is_the_files(void **state)
{
    struct storage *a, *b, *c;

    (void)state;
    a = open_new("a");
    assert_int_equal(link(in_folder("a"), in_folder("link")), 0);
    assert_succeeds(storage_posix_open(in_folder("link"), 0, &b));
    c = open_new("c");
    assert_memory_equal(&a->identity, &b->identity, sizeof a->identity);
    assert_memory_not_equal(&a->identity, &c->identity, sizeof a->identity);
    storage_close(a);
    storage_close(b);
    storage_close(c);
}

/* ---- transfers ---- */

enum { NR_BUFFERS = 2 * IOV_MAX + 300 };

/* Buffers of 0 to 4 bytes that follow each other in bytes; returns their total. */
static size_t many_buffers(struct iovec *iov, uint8_t *bytes)
{
    size_t total = 0;

    for (int i = 0; i < NR_BUFFERS; i++) {
        iov[i] = (struct iovec){bytes + total, (size_t)i % 5};
        total += iov[i].iov_len;
    }
    return total;
}

static void check_many_buffers(void)
{
    static uint8_t out[NR_BUFFERS * 5], in[NR_BUFFERS * 5];
    struct iovec *iov = exact_bytes(NR_BUFFERS * sizeof *iov),
                 *before = exact_bytes(NR_BUFFERS * sizeof *iov);
    struct storage *s = open_new("file");
    size_t total = many_buffers(iov, out), got;

    for (size_t i = 0; i < total; i++)
        out[i] = (uint8_t)(i * 7 % 251 + 1);
    memset(in, 0, sizeof in);
    memcpy(before, iov, NR_BUFFERS * sizeof *iov);
    assert_succeeds(storage_pwritev(s, iov, NR_BUFFERS, 12345));
    assert_memory_equal(before, iov, NR_BUFFERS * sizeof *iov);
    assert_int_equal(length_of(s), 12345 + total);

    assert_int_equal(many_buffers(iov, in), total);
    assert_succeeds(storage_preadv(s, iov, NR_BUFFERS, 12345, &got));
    assert_int_equal(got, total);
    assert_memory_equal(in, out, sizeof in);

    memset(in, 0, sizeof in);
    assert_succeeds(storage_preadv(s, iov, NR_BUFFERS, 12345 + 1000, &got));
    assert_int_equal(got, total - 1000);
    assert_memory_equal(in, out + 1000, total - 1000);
    assert_true(kernel.most_buffers <= IOV_MAX);
    storage_close(s);
    free(iov);
    free(before);
}

static void moves_any_number_of_buffers(void **state)
{
    (void)state;
    check_many_buffers();
    assert_int_equal(kernel.most_buffers, IOV_MAX);
}

static void empty_buffers_are_not_the_end_of_the_file(void **state)
{
    struct iovec *iov = exact_bytes((IOV_MAX + 2) * sizeof *iov);
    struct storage *s = open_new("file");
    char buf[4] = "abcd";
    size_t got;

    (void)state;
    iov[IOV_MAX] = (struct iovec){buf, 1};
    iov[IOV_MAX + 1] = (struct iovec){buf + 1, 3};
    assert_succeeds(storage_pwritev(s, iov, IOV_MAX + 2, 0));
    memset(buf, 0, sizeof buf);
    assert_succeeds(storage_preadv(s, iov, IOV_MAX + 2, 0, &got));
    assert_int_equal(got, 4);
    assert_memory_equal(buf, "abcd", 4);
    storage_close(s);
    free(iov);
}

static void retries_interrupted_and_short_calls(void **state)
{
    (void)state;
    kernel.interrupts = true;
    kernel.bytes_per_call = 3;
    check_many_buffers();
    assert_true(kernel.nr_calls > 3 * NR_BUFFERS);
}

static void single_buffers_are_retried_too(void **state)
{
    struct storage *s = open_new("file");
    uint8_t out[100], in[100];
    size_t got;

    (void)state;
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = (uint8_t)(i + 1);
    for (size_t bytes_per_call = 1; bytes_per_call < 30; bytes_per_call += 7) {
        kernel.bytes_per_call = bytes_per_call;
        kernel.interrupts = bytes_per_call % 2 == 0;
        memset(in, 0, sizeof in);
        assert_succeeds(storage_pwrite(s, out, sizeof out, 5));
        assert_succeeds(storage_pread(s, in, sizeof in, 5));
        assert_memory_equal(in, out, sizeof in);
        assert_succeeds(storage_pread_zero_fill(s, in, sizeof in, 15, &got));
        assert_int_equal(got, 90);
        assert_memory_equal(in, out + 10, 90);
    }
    storage_close(s);
}

static void one_call_is_enough_for_one_transfer(void **state)
{
    struct storage *s = open_new("file");
    uint8_t buf[4096] = {1};

    (void)state;
    assert_succeeds(storage_pwrite(s, buf, sizeof buf, 0));
    assert_succeeds(storage_pread(s, buf, sizeof buf, 0));
    assert_int_equal(kernel.nr_calls, 2);
    storage_close(s);
}

static void no_call_exceeds_what_linux_moves(void **state)
{
    struct storage *s = open_new("file");
    size_t bytes = (size_t)GIB(5) + 12345, got;
    void *nothing = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct iovec iov[] = {{nothing, 4096}, {(uint8_t *)nothing + 4096, bytes - 4096}};

    (void)state;
    assert_ptr_not_equal(nothing, MAP_FAILED);
    kernel.swallows = true;
    assert_succeeds(storage_preadv(s, iov, 2, 0, &got));
    assert_int_equal(got, bytes);
    assert_int_equal(kernel.nr_calls, 3);
    assert_succeeds(storage_pwritev(s, iov, 2, 0));
    assert_int_equal(kernel.nr_calls, 6);
    assert_int_equal(kernel.most_bytes, 0x7ffff000);
    munmap(nothing, bytes);
    storage_close(s);
}

static void transfer_errors_name_the_place(void **state)
{
    struct storage *s = open_new("file");
    uint8_t buf[100] = {1};

    (void)state;
    assert_succeeds(storage_pwrite(s, buf, sizeof buf, 0));
    kernel.bytes_per_call = 16;
    kernel.error_offset = 0x40;
    kernel.transfer_error = EIO;
    assert_fails(storage_pread(s, buf, sizeof buf, 0x10), -EIO,
                 "cannot read at file offset 0x40: Input/output");
    kernel.transfer_error = ENOSPC;
    assert_fails(storage_pwrite(s, buf, sizeof buf, 0), -ENOSPC,
                 "cannot write at file offset 0x40: No space");
    kernel.transfer_error = 0;
    kernel.moves_nothing = true;
    assert_fails(storage_pwrite(s, buf, 1, 7), -EIO, "cannot write at file offset 0x7");
    storage_close(s);
}

/* ---- flush ---- */

static void failed_flush_fails_for_ever(void **state)
{
    struct storage *s = open_new("file");

    (void)state;
    assert_succeeds(storage_flush(s));
    kernel.fdatasync_error = ENOSPC;
    assert_fails(storage_flush(s), -ENOSPC, "cannot flush, what was written may be lost");
    kernel.fdatasync_error = 0;
    kernel.nr_fdatasync = 0;
    assert_fails(storage_flush(s), -ENOSPC, "an earlier flush failed");
    assert_fails(storage_flush(s), -ENOSPC, "an earlier flush failed");
    assert_int_equal(kernel.nr_fdatasync, 0);
    storage_close(s);
}

static void interrupted_flush_is_not_tried_again(void **state)
{
    struct storage *s = open_new("file");

    (void)state;
    kernel.fdatasync_error = EINTR;
    assert_fails(storage_flush(s), -EINTR, "cannot flush");
    assert_int_equal(kernel.nr_fdatasync, 1);
    storage_close(s);
}

/* ---- space ---- */

static void length_and_usage_are_the_files(void **state)
{
    struct storage *s = open_new("file");
    struct stat st;
    uint8_t buf[10000];

    (void)state;
    memset(buf, 1, sizeof buf);
    assert_succeeds(storage_truncate(s, GIB(3) + 1));
    assert_int_equal(length_of(s), GIB(3) + 1);
    assert_succeeds(storage_pwrite(s, buf, sizeof buf, 5000));
    assert_succeeds(storage_flush(s)); /* until then a file system may still give it blocks for its tables */
    assert_int_equal(stat(in_folder("file"), &st), 0);
    assert_int_equal(usage_of(s), st.st_blocks * 512);
    assert_true(usage_of(s) >= 10000 && usage_of(s) < MIB(1));
    kernel.interrupts = true;
    assert_succeeds(storage_truncate(s, 6000));
    assert_int_equal(length_of(s), 6000);
    kernel.truncate_error = EPERM;
    assert_fails(storage_truncate(s, 0), -EPERM, "length of the file to 0 bytes");
    storage_close(s);
}

static void punch_and_zero_leave_zeros_and_the_length(void **state)
{
    int (*const operations[])(struct storage *, uint64_t, uint64_t) = {storage_punch, storage_zero};
    static uint8_t buf[200000], expected[200000];

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct storage *s = open_new(i == 0 ? "punched" : "zeroed");

        memset(buf, 7, sizeof buf);
        memcpy(expected, buf, sizeof buf);
        memset(expected + 1000, 0, 150000);
        assert_succeeds(storage_pwrite(s, buf, sizeof buf, 0));
        uint64_t usage = usage_of(s);
        kernel.interrupts = true;
        int r = operations[i](s, 1000, 150000);
        kernel.interrupts = false;
        if (r == -ENOTSUP) {
            storage_close(s);
            skip();
        }
        assert_succeeds(r);
        assert_succeeds(storage_pread(s, buf, sizeof buf, 0));
        assert_memory_equal(buf, expected, sizeof buf);
        if (i == 0)
            assert_true(usage_of(s) < usage - 100000);
        else
            assert_true(usage_of(s) >= usage);
        assert_succeeds(operations[i](s, 199000, 500000));
        assert_int_equal(length_of(s), sizeof buf);
        storage_close(s);
    }
}

static void unsupported_is_remembered(void **state)
{
    struct storage *s = open_new("file");

    (void)state;
    kernel.fallocate_error = EOPNOTSUPP;
    assert_fails(storage_punch(s, 0x200, 4096), -ENOTSUP, "cannot punch 4096 bytes at file offset 0x200");
    assert_int_equal(kernel.nr_fallocate, 1);
    assert_fails(storage_punch(s, 0, 4096), -ENOTSUP, "cannot punch");
    assert_int_equal(kernel.nr_fallocate, 1);
    kernel.fallocate_error = ENOSYS;
    assert_fails(storage_zero(s, 0, 4096), -ENOTSUP, "cannot zero"); /* punch says nothing about zero */
    assert_int_equal(kernel.nr_fallocate, 2);
    kernel.fallocate_error = 0;
    assert_fails(storage_zero(s, 0, 4096), -ENOTSUP, "cannot zero");
    assert_int_equal(kernel.nr_fallocate, 2);
    storage_close(s);
}

static void other_errors_are_not_remembered(void **state)
{
    struct storage *s = open_new("file");

    (void)state;
    kernel.fallocate_error = EINVAL; /* this range, say devices */
    assert_fails(storage_punch(s, 1, 1), -ENOTSUP, "cannot punch");
    kernel.fallocate_error = ENOSPC;
    assert_fails(storage_punch(s, 0, 4096), -ENOSPC, "No space");
    assert_int_equal(kernel.nr_fallocate, 2);
    storage_close(s);
}

/* ---- data and holes ---- */

static void expect_data(struct storage *s, uint64_t offset, uint64_t start, uint64_t end)
{
    uint64_t found_start, found_end;

    assert_succeeds(storage_next_data(s, offset, &found_start, &found_end));
    assert_int_equal(found_start, start);
    assert_int_equal(found_end, end);
}

static void finds_data_between_holes(void **state)
{
    struct storage *s = open_new("file");
    static uint8_t buf[KIB(64)];

    (void)state;
    memset(buf, 1, sizeof buf);
    expect_data(s, 0, 0, 0);
    expect_data(s, 100, 0, 0);
    assert_succeeds(storage_pwrite(s, buf, sizeof buf, MIB(1)));
    assert_succeeds(storage_pwrite(s, buf, sizeof buf, MIB(3)));
    assert_succeeds(storage_truncate(s, MIB(4)));
    expect_data(s, 0, MIB(1), MIB(1) + KIB(64));
    expect_data(s, MIB(1) + 5, MIB(1) + 5, MIB(1) + KIB(64));
    expect_data(s, MIB(1) + KIB(64), MIB(3), MIB(3) + KIB(64));
    expect_data(s, MIB(3) + KIB(64), MIB(4), MIB(4));
    expect_data(s, MIB(4), MIB(4), MIB(4));
    expect_data(s, MIB(9), MIB(4), MIB(4));
    assert_succeeds(storage_truncate(s, MIB(3) + KIB(32)));
    expect_data(s, MIB(2), MIB(3), MIB(3) + KIB(32));
    storage_close(s);
}

static void without_seek_data_all_is_data(void **state)
{
    struct storage *s = open_new("file");

    (void)state;
    assert_succeeds(storage_truncate(s, MIB(4)));
    kernel.seek_error = EINVAL;
    expect_data(s, MIB(1), MIB(1), MIB(4));
    assert_int_equal(kernel.nr_seeks, 1);
    kernel.seek_error = 0;
    expect_data(s, 0, 0, MIB(4));
    expect_data(s, MIB(4), MIB(4), MIB(4));
    assert_int_equal(kernel.nr_seeks, 1);
    storage_close(s);
}

static void odd_seek_answers_do_no_harm(void **state)
{
    struct storage *s = open_new("file");
    uint64_t start, end;

    (void)state;
    assert_succeeds(storage_truncate(s, MIB(4)));
    kernel.seek_answer = MIB(2); /* data and hole at once: the file changed in between */
    expect_data(s, MIB(1), MIB(2), MIB(4));
    expect_data(s, MIB(3), MIB(3), MIB(4)); /* before what was asked for */
    kernel.seek_answer = MIB(9);            /* behind the end */
    expect_data(s, MIB(1), MIB(4), MIB(4));
    kernel.seek_answer = 0;
    kernel.seek_error = EIO;
    assert_fails(storage_next_data(s, 0x10, &start, &end), -EIO, "data from file offset 0x10 on");
    storage_close(s);
}

/* ---- block devices ---- */

/* A loop device over a file of 4 MiB, or -1 where there are none or not for us. */
static int attach_loop(char path[32])
{
    int control = open("/dev/loop-control", O_RDWR), file, device, no;

    if (control < 0)
        return -1;
    no = ioctl(control, LOOP_CTL_GET_FREE);
    REAL(close)(control);
    snprintf(path, 32, "/dev/loop%d", no);
    device = no < 0 ? -1 : open(path, O_RDWR);
    if (device < 0)
        return -1;
    file = open(in_folder("backing"), O_RDWR | O_CREAT, 0600);
    assert_int_equal(REAL(ftruncate)(file, (off_t)MIB(4)), 0);
    if (ioctl(device, LOOP_SET_FD, file) < 0) {
        REAL(close)(device);
        device = -1;
    }
    REAL(close)(file);
    return device;
}

static void check_block_device(const char *path)
{
    static uint8_t buf[KIB(64)], zeros[KIB(64)];
    struct storage *s, *again;
    size_t got;

    assert_succeeds(storage_posix_open(path, POSIX_OPEN_WRITABLE, &s));
    assert_int_equal(length_of(s), MIB(4));
    assert_fails(storage_truncate(s, MIB(2)), -ENOTSUP, "block device keeps its size");
    memset(buf, 5, sizeof buf);
    assert_succeeds(storage_pwrite(s, buf, sizeof buf, MIB(1)));
    assert_succeeds(storage_flush(s));
    assert_fails(storage_pwrite(s, buf, sizeof buf, MIB(4) - 100), -ENOSPC, "cannot write");
    assert_succeeds(storage_pread_zero_fill(s, buf, sizeof buf, MIB(4) - 100, &got));
    assert_int_equal(got, 100);

    assert_fails(storage_punch(s, MIB(1) + 1, 100), -ENOTSUP, "cannot punch"); /* not whole sectors */
    int r = storage_punch(s, MIB(1), KIB(64));
    if (r != -ENOTSUP)
        assert_succeeds(r);
    if (r == -ENOTSUP)
        assert_succeeds(storage_pwrite(s, zeros, sizeof zeros, MIB(1)));
    assert_succeeds(storage_pread(s, buf, sizeof buf, MIB(1)));
    assert_memory_equal(buf, zeros, sizeof buf);
    r = storage_zero(s, MIB(2), KIB(64));
    assert_true(r == 0 || r == -ENOTSUP);
    expect_data(s, MIB(4), MIB(4), MIB(4));
    assert_succeeds(storage_lock(s, STORAGE_LOCK_EXCLUSIVE));

    assert_succeeds(storage_posix_open(path, 0, &again));
    assert_memory_equal(&s->identity, &again->identity, sizeof s->identity);
    storage_close(again);
    storage_close(s);
    assert_fails(storage_posix_from_fd(open(path, O_RDONLY), false, false, &s), -EINVAL, "block device");
}

static void block_devices_work(void **state)
{
    char path[32];
    int device = attach_loop(path);

    (void)state;
    if (device < 0)
        skip();
    ioctl(device, LOOP_SET_STATUS64, &(struct loop_info64){.lo_flags = LO_FLAGS_AUTOCLEAR});
    check_block_device(path);
    ioctl(device, LOOP_CLR_FD, 0);
    REAL(close)(device);
}

/* ---- threads ---- */

static void *use_everything(void *arg)
{
    struct storage *s = arg;
    uint8_t buf[512];
    uint64_t start, end;
    size_t got;
    void *ok = s;

    for (unsigned i = 0; i < 100; i++) {
        memset(buf, (int)i, sizeof buf);
        if (storage_pwrite(s, buf, sizeof buf, i * 1000) < 0 || storage_next_data(s, i, &start, &end) < 0 ||
            storage_pread_zero_fill(s, buf, sizeof buf, i * 500, &got) < 0 || storage_length(s, &end) < 0 ||
            storage_lock(s, i % 2 ? STORAGE_LOCK_SHARED : STORAGE_LOCK_EXCLUSIVE) < 0)
            ok = NULL;
        if (i % 25 == 0 && storage_flush(s) < 0)
            ok = NULL;
        storage_punch(s, i * 1000, 4096);
        storage_zero(s, i * 1000, 4096);
    }
    return ok;
}

/* What the others do to the file is of no interest here, only that nothing breaks (and what ThreadSanitizer
 * sees). */
static void many_threads_may_use_one_handle(void **state)
{
    pthread_t threads[4];
    struct storage *s = open_new("file");
    void *ok;

    (void)state;
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, use_everything, s), 0);
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(threads[i], &ok);
        assert_ptr_equal(ok, s);
    }
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(opens_regular_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(refuses_other_types, set_up, tear_down),
        cmocka_unit_test_setup_teardown(takes_only_fitting_descriptors, set_up, tear_down),
        cmocka_unit_test_setup_teardown(closes_exactly_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(identity_is_the_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(moves_any_number_of_buffers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(empty_buffers_are_not_the_end_of_the_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(retries_interrupted_and_short_calls, set_up, tear_down),
        cmocka_unit_test_setup_teardown(single_buffers_are_retried_too, set_up, tear_down),
        cmocka_unit_test_setup_teardown(one_call_is_enough_for_one_transfer, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_call_exceeds_what_linux_moves, set_up, tear_down),
        cmocka_unit_test_setup_teardown(transfer_errors_name_the_place, set_up, tear_down),
        cmocka_unit_test_setup_teardown(failed_flush_fails_for_ever, set_up, tear_down),
        cmocka_unit_test_setup_teardown(interrupted_flush_is_not_tried_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(length_and_usage_are_the_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(punch_and_zero_leave_zeros_and_the_length, set_up, tear_down),
        cmocka_unit_test_setup_teardown(unsupported_is_remembered, set_up, tear_down),
        cmocka_unit_test_setup_teardown(other_errors_are_not_remembered, set_up, tear_down),
        cmocka_unit_test_setup_teardown(finds_data_between_holes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(without_seek_data_all_is_data, set_up, tear_down),
        cmocka_unit_test_setup_teardown(odd_seek_answers_do_no_harm, set_up, tear_down),
        cmocka_unit_test_setup_teardown(block_devices_work, set_up, tear_down),
        cmocka_unit_test_setup_teardown(many_threads_may_use_one_handle, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("storage posix", tests, NULL, NULL);
}
