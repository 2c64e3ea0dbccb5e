/* SPDX-License-Identifier: MIT */
/* libblkid reads the table, as for the kernel and udev, through the mounted file, since it wants a file descriptor.
 *
 * A table is hostile input: a chain of extended boot records may have a million links, a GPT may claim 4 GiB of entries.
 * libblkid copes with the first in quadratic time and with the second by allocating them, so it runs in a process of its own
 * with limits of processor time and memory (H2).  What that process says is judged like bytes of the disk. */
#include "partitions.h"

#include <blkid/blkid.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "output.h"

enum {
    BLKID_SECTOR_BYTES = 512, /* libblkid counts in these, whatever the disk's sectors are */
    SCAN_CPU_SECONDS = 2,
    SCAN_MEMORY_BYTES = 256 << 20,
};

/* One partition as the scanning process found it. */
struct scanned {
    uint64_t start, length; /* in sectors of BLKID_SECTOR_BYTES */
    uint32_t number;
    uint32_t reserved;
};

/* ---- in the scanning process ---- */

static void limit_resources(void)
{
    const struct rlimit cpu = {SCAN_CPU_SECONDS, SCAN_CPU_SECONDS};

    if (setrlimit(RLIMIT_CPU, &cpu) < 0)
        _exit(EXIT_FAILURE);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they reserve terabytes of addresses */
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    return;
#endif
#endif
    const struct rlimit memory = {SCAN_MEMORY_BYTES, SCAN_MEMORY_BYTES};

    if (setrlimit(RLIMIT_AS, &memory) < 0)
        _exit(EXIT_FAILURE);
#endif
}

static blkid_probe open_probe(const char *path, uint32_t sector_bytes)
{
    struct statfs fs;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    /* Something else than the mount would be a table that belongs to something else. */
    if (fd < 0 || fstatfs(fd, &fs) < 0 || fs.f_type != FUSE_SUPER_MAGIC)
        return NULL;
    blkid_probe probe = blkid_new_probe();
    if (!probe || blkid_probe_set_device(probe, fd, 0, 0) != 0 ||
        blkid_probe_set_sectorsize(probe, sector_bytes) != 0 || blkid_probe_enable_superblocks(probe, 0) != 0 ||
        blkid_probe_enable_partitions(probe, 1) != 0)
        return NULL;
    return probe;
}

static bool send_partition(int fd, blkid_partition partition)
{
    const struct scanned found = {
        .start = (uint64_t)blkid_partition_get_start(partition),
        .length = (uint64_t)blkid_partition_get_size(partition),
        .number = (uint32_t)blkid_partition_get_partno(partition),
    };

    return write(fd, &found, sizeof found) == sizeof found; /* not longer than PIPE_BUF, so whole or not at all */
}

static _Noreturn void scan(const char *path, uint32_t sector_bytes, int fd)
{
    limit_resources();
    blkid_probe probe = open_probe(path, sector_bytes);
    if (!probe)
        _exit(EXIT_FAILURE);
    errno = 0;
    blkid_partlist table = blkid_probe_get_partitions(probe);
    if (!table) /* there is none, unless something went wrong */
        _exit(errno == EIO || errno == ENOMEM ? EXIT_FAILURE : EXIT_SUCCESS);

    int count = blkid_partlist_numof_partitions(table);
    for (int i = 0; i < count; i++) {
        blkid_partition partition = blkid_partlist_get_partition(table, i);
        /* The container of the logical partitions is no place for data. */
        if (partition && !blkid_partition_is_extended(partition) && !send_partition(fd, partition))
            _exit(EXIT_FAILURE);
    }
    _exit(EXIT_SUCCESS);
}

/* ---- in the process that asked ---- */

/* One whole record; false at the end. */
static bool receive(int fd, struct scanned *found)
{
    size_t have = 0;

    while (have < sizeof *found) {
        ssize_t n = read(fd, (char *)found + have, sizeof *found - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        have += (size_t)n;
    }
    return true;
}

static bool number_is_taken(const struct partition_list *list, uint32_t number)
{
    for (uint32_t i = 0; i < list->count; i++) {
        if (list->partitions[i].number == number)
            return true;
    }
    return false;
}

/* As the kernel does: what begins behind the end is no partition, what ends there is cut. */
static void add(const struct scanned *found, const char *image, uint64_t disk_bytes, struct partition_list *list)
{
    uint64_t disk_sectors = disk_bytes / BLKID_SECTOR_BYTES;

    if (found->length == 0 || found->number == 0)
        return;
    if (found->start >= disk_sectors) {
        print_warning(image, "partition %" PRIu32 " begins behind the end of the disk (sector %" PRIu64 " of %" PRIu64
                      " of 512 bytes) and is not shown", found->number, found->start, disk_sectors);
        return;
    }
    if (number_is_taken(list, found->number)) {
        print_warning(image, "the partition table has a second partition %" PRIu32 ", which is not shown",
                      found->number);
        return;
    }
    uint64_t length = found->length;
    if (length > disk_sectors - found->start) {
        length = disk_sectors - found->start;
        print_warning(image, "partition %" PRIu32 " ends behind the end of the disk and is shown up to there",
                      found->number);
    }
    list->partitions[list->count++] = (struct partition){
        .start = found->start * BLKID_SECTOR_BYTES,
        .length = length * BLKID_SECTOR_BYTES,
        .number = found->number,
    };
}

static void receive_all(int fd, const char *image, uint64_t disk_bytes, struct partition_list *list)
{
    struct scanned found;

    while (receive(fd, &found)) {
        if (list->count == MAX_PARTITIONS) {
            print_warning(image, "the disk has more than %d partitions; the others are not shown", MAX_PARTITIONS);
            return; /* whoever writes on gets SIGPIPE */
        }
        add(&found, image, disk_bytes, list);
    }
}

static void reap(pid_t child, const char *image, bool complete)
{
    int status = 0;

    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    if (!complete || (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS))
        return;
    if (WIFSIGNALED(status) && (WTERMSIG(status) == SIGXCPU || WTERMSIG(status) == SIGKILL))
        print_warning(image, "reading the partition table took more than %d seconds of processor time and was given "
                      "up; it is damaged or made to do harm. The whole disk is shown as 'disk'", SCAN_CPU_SECONDS);
    else
        print_warning(image, "the partition table could not be read; the whole disk is shown as 'disk'");
}

void partitions_read(const char *path, const char *image, uint64_t disk_bytes, uint32_t sector_bytes,
                     struct partition_list *list)
{
    int fds[2];

    list->count = 0;
    if (pipe2(fds, O_CLOEXEC) < 0) {
        print_warning(image, "the partition table was not read: %s", strerror(errno));
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        close(fds[0]);
        signal(SIGPIPE, SIG_DFL);
        scan(path, sector_bytes, fds[1]);
    }
    close(fds[1]);
    if (child < 0) {
        print_warning(image, "the partition table was not read: %s", strerror(errno));
    } else {
        receive_all(fds[0], image, disk_bytes, list);
        bool complete = list->count < MAX_PARTITIONS;
        if (!complete)
            kill(child, SIGKILL);
        reap(child, image, complete);
    }
    close(fds[0]);
}
