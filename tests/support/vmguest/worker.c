/* SPDX-License-Identifier: MIT */
/* What runs inside the guest: it changes a raw partition so that the host can tell, from any later state of the disk,
 * whether a sector holds what a power cut may leave; and it tells the host what is durable.
 *
 *     worker report PORT WORD...               one line to the host
 *     worker fsync FILE...                     fsync files and folders, which busybox cannot
 *     worker raw PORT DEVICE SEED [NR_OPS]     change DEVICE, for ever or so many times
 *
 * Which operation comes when is a function of SEED alone: oracle.py computes the same ones.  After each batch comes one
 * fsync and then the line "flushed SEED N": operations below N are durable.  A line is out of the guest when the worker goes
 * on, so when both are killed, at most the batch after the last line that the host has seen was under way.
 *
 * A written sector holds one record 16 times: seed, number of the operation, number of the sector, and the complement of
 * the operation's number. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_DIRECT */
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum {
    SECTOR_BYTES = 512,
    PAGE_BYTES = 4096,
    BLOCK_PAGES = 256, /* 1 MiB, a VHDX block */
    PAGES_MAX = 256,
    RECORD_WORDS = 4,
};

enum kind { WRITE, ZERO, DISCARD };

struct op {
    enum kind kind;
    uint64_t page;
    uint64_t nr_pages;
    int ends_batch;
};

__attribute__((noreturn)) static void die(const char *what)
{
    fprintf(stderr, "worker: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- the operations, as in oracle.py ---- */

static uint64_t mix(uint64_t x) /* splitmix64 */
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

static struct op nth_op(uint64_t seed, uint64_t n, uint64_t device_pages)
{
    uint64_t base = mix(seed) + n * 8;
    uint64_t kind = mix(base) % 16;
    struct op op = {.kind = kind < 11 ? WRITE : kind < 13 ? ZERO : DISCARD};
    int is_large = mix(base + 1) % (op.kind == WRITE ? 8 : 2) == 0;

    op.nr_pages = 1 + mix(base + 2) % (is_large ? PAGES_MAX : 8);
    if (is_large && op.kind != WRITE) /* whole VHDX blocks */
        op.nr_pages = BLOCK_PAGES * (1 + mix(base + 2) % 3);
    op.page = mix(base + 3) % (device_pages - op.nr_pages + 1);
    if (op.nr_pages >= BLOCK_PAGES)
        op.page -= op.page % BLOCK_PAGES;
    op.ends_batch = mix(base + 4) % 6 == 0;
    return op;
}

static void fill(uint64_t *words, uint64_t seed, uint64_t n, uint64_t sector, uint64_t nr_sectors)
{
    for (uint64_t i = 0; i < nr_sectors; i++, sector++) {
        for (int k = 0; k < SECTOR_BYTES / 8; k += RECORD_WORDS) {
            *words++ = seed;
            *words++ = n;
            *words++ = sector;
            *words++ = ~n;
        }
    }
}

static void run(int fd, const struct op *op, uint64_t seed, uint64_t n, void *buf)
{
    uint64_t range[2] = {op->page * PAGE_BYTES, op->nr_pages * PAGE_BYTES};

    switch (op->kind) {
    case WRITE:
        fill(buf, seed, n, range[0] / SECTOR_BYTES, range[1] / SECTOR_BYTES);
        if (pwrite(fd, buf, range[1], (off_t)range[0]) != (ssize_t)range[1])
            die("write");
        break;
    case ZERO:
        if (ioctl(fd, BLKZEROOUT, range) < 0)
            die("BLKZEROOUT");
        break;
    case DISCARD:
        if (ioctl(fd, BLKDISCARD, range) < 0)
            die("BLKDISCARD");
        break;
    }
}

/* ---- speaking to the host ---- */

static void say(int port, const char *line)
{
    size_t bytes = strlen(line);

    if (write(port, line, bytes) != (ssize_t)bytes || tcdrain(port) < 0)
        die("cannot report");
}

static int open_port(const char *path)
{
    int port = open(path, O_WRONLY | O_NOCTTY);

    if (port < 0)
        die(path);
    return port;
}

static int report(char **args)
{
    char line[1024] = "";

    for (char **word = args + 1; *word; word++) {
        if (strlen(line) + strlen(*word) + 2 >= sizeof line) {
            errno = E2BIG;
            die(*word);
        }
        if (word != args + 1)
            strcat(line, " ");
        strcat(line, *word);
    }
    strcat(line, "\n");
    say(open_port(args[0]), line);
    return 0;
}

/* ---- commands ---- */

static int fsync_all(char **paths)
{
    for (; *paths; paths++) {
        int fd = open(*paths, O_RDONLY);

        if (fd < 0 || fsync(fd) < 0 || close(fd) < 0)
            die(*paths);
    }
    return 0;
}

static int change(const char *port_path, const char *device, uint64_t seed, uint64_t nr_ops)
{
    int port = open_port(port_path);
    int fd = open(device, O_RDWR | O_DIRECT);
    uint64_t bytes, n;
    void *buf;
    char line[80];

    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes) < 0)
        die(device);
    if (posix_memalign(&buf, PAGE_BYTES, PAGES_MAX * PAGE_BYTES) != 0)
        die("memory");
    for (n = 0; n < nr_ops; n++) {
        struct op op = nth_op(seed, n, bytes / PAGE_BYTES);

        run(fd, &op, seed, n, buf);
        if (op.ends_batch || n + 1 == nr_ops) {
            if (fsync(fd) < 0)
                die("fsync");
            snprintf(line, sizeof line, "flushed %" PRIu64 " %" PRIu64 "\n", seed, n + 1);
            say(port, line);
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc >= 4 && strcmp(argv[1], "report") == 0)
        return report(argv + 2);
    if (argc >= 5 && strcmp(argv[1], "raw") == 0)
        return change(argv[2], argv[3], strtoull(argv[4], NULL, 10), argc > 5 ? strtoull(argv[5], NULL, 10) : UINT64_MAX);
    if (argc >= 3 && strcmp(argv[1], "fsync") == 0)
        return fsync_all(argv + 2);
    fputs("usage: worker report PORT WORD... | fsync FILE... | raw PORT DEVICE SEED [NR_OPS]\n", stderr);
    return 2;
}
