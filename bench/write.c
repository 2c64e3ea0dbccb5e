/* SPDX-License-Identifier: MIT */
/* Write to a disk through libvhdx, or with pwrite(2) to a raw file, and say how long it took.
 *
 *   bench-write vhdx|raw FILE SIZE BYTES-PER-WRITE WRITES WRITES-PER-FLUSH STEP
 *
 * STEP is how many bytes farther each write goes, round and round through the first SIZE bytes of the disk,
 * just as "qemu-img bench --step-size" does it; 0: to places at random.  The flush is vhdx_flush() or
 * fdatasync(2); WRITES-PER-FLUSH 0 means none.  Prints one line: microseconds per write, flushes included,
 * and peak memory in MiB.  Opening and closing do not count. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <vhdx.h>

struct target {
    vhdx_disk *disk; /* or */
    int fd;
};

struct load {
    uint64_t size, bytes, writes, per_flush, step;
};

static void die(const char *what)
{
    fprintf(stderr, "bench-write: %s\n", what);
    exit(1);
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void do_write(const struct target *t, const void *buf, uint64_t bytes, uint64_t at)
{
    if (t->disk ? vhdx_pwrite(t->disk, buf, bytes, at, 0) < 0
                : pwrite(t->fd, buf, bytes, (off_t)at) != (ssize_t)bytes)
        die(t->disk ? vhdx_error_message() : "pwrite failed");
}

static void do_flush(const struct target *t)
{
    if (t->disk ? vhdx_flush(t->disk) < 0 : fdatasync(t->fd) < 0)
        die(t->disk ? vhdx_error_message() : "fdatasync failed");
}

static double run(const struct target *t, const struct load *l)
{
    uint64_t state = 88172645463325252u, at = 0;
    struct timespec from, to;
    uint8_t *buf = malloc(l->bytes);

    if (!buf)
        die("out of memory");
    memset(buf, 0x5a, l->bytes);
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (uint64_t i = 0; i < l->writes; i++) {
        if (l->step == 0)
            at = next_random(&state) % (l->size / l->bytes) * l->bytes;
        do_write(t, buf, l->bytes, at);
        at = (at + l->step) % l->size;
        if (l->per_flush && (i + 1) % l->per_flush == 0)
            do_flush(t);
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    free(buf);
    return (double)(to.tv_sec - from.tv_sec) * 1e6 + (double)(to.tv_nsec - from.tv_nsec) / 1e3;
}

int main(int argc, char **argv)
{
    struct vhdx_open_options options = VHDX_OPEN_OPTIONS_INIT;
    struct target t = {.fd = -1};

    if (argc != 8)
        die("usage: bench-write vhdx|raw FILE SIZE BYTES-PER-WRITE WRITES WRITES-PER-FLUSH STEP");
    struct load load = {.size = strtoull(argv[3], NULL, 0),
                        .bytes = strtoull(argv[4], NULL, 0),
                        .writes = strtoull(argv[5], NULL, 0),
                        .per_flush = strtoull(argv[6], NULL, 0),
                        .step = strtoull(argv[7], NULL, 0)};
    if (load.bytes == 0 || load.bytes > 32 << 20 || load.size < load.bytes || load.writes == 0 ||
        load.size % load.bytes != 0 || load.step % load.bytes != 0)
        die("bad numbers");
    if (strcmp(argv[1], "vhdx") == 0) {
        options.flags = VHDX_OPEN_WRITE;
        if (vhdx_open(argv[2], &options, &t.disk) < 0)
            die(vhdx_error_message());
        if (vhdx_size(t.disk) < load.size)
            die("the disk is smaller than SIZE");
    } else {
        t.fd = open(argv[2], O_RDWR | O_CLOEXEC);
        if (t.fd < 0)
            die("cannot open the raw file");
    }
    double microseconds = run(&t, &load);
    if (t.disk && vhdx_close(t.disk) < 0)
        die(vhdx_error_message());
    if (t.fd >= 0)
        close(t.fd);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("%.3f %.1f\n", microseconds / (double)load.writes, (double)usage.ru_maxrss / 1024);
    return 0;
}
