/* SPDX-License-Identifier: MIT */
/* Read the same bytes through libvhdx and with pread(2) from a raw file, in turn, and compare the times.
 *
 *   bench-read IMAGE RAW BYTES-PER-READ READS THREADS ROUNDS random|sequential
 *
 * Both files should be in the page cache, so that what is measured is the library and not a disk.  A third side reads the
 * same bytes with pread(2) from the image's own files, whose places it has looked up beforehand: what the library adds, without
 * what it does to a copy's speed that one file lies in huge pages of the memory and another does not.  Prints one line: best
 * microseconds per read of library and raw file, the ratio of their medians; those of the image's files, and the library's ratio
 * to them. */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <vhdx.h>

enum { MAX_THREADS = 64, MAX_ROUNDS = 101 };

/* The extents of a disk, and the first that each slot of so many bytes touches. */
struct places {
    struct vhdx_extent *extents;
    size_t nr_extents, capacity;
    uint32_t *first;
    int *fds; /* of the images, by depth */
};

enum side { LIBRARY, RAW, PLACES, NR_SIDES };

struct load {
    enum side side;
    vhdx_disk *disk;
    int raw_fd;
    const struct places *places;
    size_t bytes;
    uint64_t reads, size, seed;
    bool random;
};

static void die(const char *what)
{
    fprintf(stderr, "bench-read: %s\n", what);
    exit(1);
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* ---- where everything lies ---- */

static int add_extent(void *opaque, const struct vhdx_extent *extent)
{
    struct places *p = opaque;

    if (p->nr_extents == p->capacity) {
        p->capacity = p->capacity ? 2 * p->capacity : 1024;
        p->extents = reallocarray(p->extents, p->capacity, sizeof *p->extents);
        if (!p->extents)
            die("out of memory");
    }
    p->extents[p->nr_extents++] = *extent;
    return 0;
}

static void find_places(struct places *p, vhdx_disk *disk, size_t slot_bytes)
{
    uint64_t size = vhdx_size(disk), nr_slots = size / slot_bytes;
    uint32_t depth = vhdx_chain_length(disk);

    p->first = calloc(nr_slots, sizeof *p->first);
    p->fds = calloc(depth, sizeof *p->fds);
    if (!p->first || !p->fds)
        die("out of memory");
    if (vhdx_map(disk, 0, size, add_extent, p) < 0)
        die(vhdx_error_message());
    for (uint32_t i = 0; i < depth; i++) {
        p->fds[i] = open(vhdx_image_path(disk, i), O_RDONLY | O_CLOEXEC);
        if (p->fds[i] < 0)
            die("cannot open an image of the chain");
    }
    for (uint64_t slot = 0, i = 0; slot < nr_slots; slot++) {
        while (p->extents[i].guest_offset + p->extents[i].length <= slot * slot_bytes)
            i++;
        p->first[slot] = (uint32_t)i;
    }
}

static bool read_places(const struct places *p, uint8_t *buf, size_t bytes, uint64_t slot)
{
    uint64_t at = slot * bytes, end = at + bytes;

    for (const struct vhdx_extent *e = &p->extents[p->first[slot]]; at < end; e++) {
        uint64_t in_extent = at - e->guest_offset;
        size_t n = e->length - in_extent < end - at ? e->length - in_extent : end - at;
        if (!(e->flags & VHDX_EXTENT_DATA))
            memset(buf, 0, n);
        else if (pread(p->fds[e->depth], buf, n, (off_t)(e->file_offset + in_extent)) != (ssize_t)n)
            return false;
        buf += n;
        at += n;
    }
    return true;
}

/* ---- the load ---- */

static bool read_slot(const struct load *l, void *buf, uint64_t slot)
{
    switch (l->side) {
    case LIBRARY:
        return vhdx_pread(l->disk, buf, l->bytes, slot * l->bytes) == 0;
    case RAW:
        return pread(l->raw_fd, buf, l->bytes, (off_t)(slot * l->bytes)) == (ssize_t)l->bytes;
    default:
        return read_places(l->places, buf, l->bytes, slot);
    }
}

static void *run_load(void *opaque)
{
    struct load *l = opaque;
    uint64_t state = l->seed, slots = l->size / l->bytes, slot = l->seed % slots;
    void *buf = NULL;

    if (posix_memalign(&buf, 4096, l->bytes) != 0)
        die("out of memory");
    memset(buf, 1, l->bytes);
    for (uint64_t i = 0; i < l->reads; i++) {
        slot = l->random ? next_random(&state) % slots : (slot + 1) % slots;
        if (!read_slot(l, buf, slot))
            die(l->side == LIBRARY ? vhdx_error_message() : "pread failed");
    }
    free(buf);
    return NULL;
}

static double run_round(const struct load *load, unsigned nr_threads)
{
    struct load loads[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    struct timespec from, to;

    clock_gettime(CLOCK_MONOTONIC, &from);
    for (unsigned i = 0; i < nr_threads; i++) {
        loads[i] = *load;
        loads[i].seed = 88172645463325252u + i * 7919;
        if (pthread_create(&threads[i], NULL, run_load, &loads[i]) != 0)
            die("cannot start a thread");
    }
    for (unsigned i = 0; i < nr_threads; i++)
        pthread_join(threads[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &to);
    return ((double)(to.tv_sec - from.tv_sec) * 1e6 + (double)(to.tv_nsec - from.tv_nsec) / 1e3) /
           (double)load->reads;
}

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    double us[NR_SIDES][MAX_ROUNDS];
    struct places places = {0};

    if (argc != 8)
        die("usage: bench-read IMAGE RAW BYTES-PER-READ READS THREADS ROUNDS random|sequential");
    struct load load = {.bytes = strtoull(argv[3], NULL, 0), .reads = strtoull(argv[4], NULL, 0),
                        .random = strcmp(argv[7], "random") == 0};
    unsigned nr_threads = (unsigned)atoi(argv[5]), rounds = (unsigned)atoi(argv[6]);
    int raw_fd = open(argv[2], O_RDONLY | O_CLOEXEC);
    if (raw_fd < 0 || nr_threads < 1 || nr_threads > MAX_THREADS || rounds < 1 || rounds > MAX_ROUNDS)
        die("bad arguments");
    vhdx_disk *disk;
    if (vhdx_open(argv[1], NULL, &disk) < 0)
        die(vhdx_error_message());
    load.size = vhdx_size(disk);
    if (load.bytes == 0 || load.size < load.bytes || (uint64_t)lseek(raw_fd, 0, SEEK_END) < load.size)
        die("the raw file is shorter than the disk");
    find_places(&places, disk, load.bytes);
    load.disk = disk;
    load.raw_fd = raw_fd;
    load.places = &places;
    for (unsigned i = 0; i < rounds; i++) {
        for (load.side = 0; load.side < NR_SIDES; load.side++)
            us[load.side][i] = run_round(&load, nr_threads);
    }
    vhdx_close(disk);
    close(raw_fd);
    for (unsigned side = 0; side < NR_SIDES; side++)
        qsort(us[side], rounds, sizeof **us, compare_double);
    double median = us[LIBRARY][rounds / 2];
    printf("%.3f %.3f %.4f %.3f %.4f\n", us[LIBRARY][0], us[RAW][0], median / us[RAW][rounds / 2], us[PLACES][0],
           median / us[PLACES][rounds / 2]);
    return 0;
}
