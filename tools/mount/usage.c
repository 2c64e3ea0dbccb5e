/* SPDX-License-Identifier: MIT */
#include "mount/usage.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

/* A count is stored only if the window is still marked as being counted: a change meanwhile has marked it UNKNOWN again.  That
 * needs one counter at a time, or another's mark would be taken for one's own. */
#define UNKNOWN UINT64_MAX
#define COUNTING (UINT64_MAX - 1)

enum {
    SPAN_WINDOWS = 64,    /* mapped in one go, between two looks at the clock */
    BUDGET_MS = 50,       /* for counting, for each question */
};

int usage_init(struct usage *usage, vhdx_disk *disk)
{
    usage->disk = disk;
    usage->disk_bytes = vhdx_size(disk);
    usage->nr_windows = usage->disk_bytes / USAGE_WINDOW_BYTES + (usage->disk_bytes % USAGE_WINDOW_BYTES != 0);
    usage->windows = calloc(usage->nr_windows, sizeof *usage->windows);
    if (!usage->windows)
        return -ENOMEM;
    for (uint64_t i = 0; i < usage->nr_windows; i++)
        usage->windows[i] = UNKNOWN;
    pthread_mutex_init(&usage->counting, NULL);
    return 0;
}

void usage_destroy(struct usage *usage)
{
    if (!usage->windows)
        return;
    free(usage->windows);
    pthread_mutex_destroy(&usage->counting);
}

void usage_changed(struct usage *usage, uint64_t guest_offset, uint64_t length)
{
    if (length == 0)
        return;
    uint64_t last = (guest_offset + length - 1) / USAGE_WINDOW_BYTES;

    for (uint64_t i = guest_offset / USAGE_WINDOW_BYTES; i <= last; i++) {
        /* Most find it marked already, and then the cache line stays shared. */
        if (atomic_load_explicit(&usage->windows[i], memory_order_relaxed) != UNKNOWN)
            atomic_store(&usage->windows[i], UNKNOWN);
    }
}

static uint64_t window_start(uint64_t window)
{
    return window * USAGE_WINDOW_BYTES;
}

static uint64_t window_end(const struct usage *usage, uint64_t window)
{
    uint64_t end = window_start(window) + USAGE_WINDOW_BYTES;

    return end < usage->disk_bytes ? end : usage->disk_bytes;
}

/* ---- counting ---- */

struct tally {
    uint64_t first; /* window */
    uint64_t counts[SPAN_WINDOWS];
};

static int add_extent(void *opaque, const struct vhdx_extent *extent)
{
    struct tally *tally = opaque;
    uint64_t offset = extent->guest_offset, left = extent->length;

    if (!(extent->flags & VHDX_EXTENT_DATA))
        return 0;
    while (left > 0) {
        uint64_t room = USAGE_WINDOW_BYTES - offset % USAGE_WINDOW_BYTES;
        uint64_t n = left < room ? left : room;
        tally->counts[offset / USAGE_WINDOW_BYTES - tally->first] += n;
        offset += n;
        left -= n;
    }
    return 0;
}

/* Allocated bytes of part of a window; all of it if that cannot be found out. */
static uint64_t count_part(struct usage *usage, uint64_t guest_offset, uint64_t length)
{
    struct tally tally = {.first = guest_offset / USAGE_WINDOW_BYTES};

    return length == 0 || vhdx_map(usage->disk, guest_offset, length, add_extent, &tally) == 0 ? tally.counts[0] : length;
}

/* Count the windows [first, first + n), all of which are unknown. */
static void count_span(struct usage *usage, uint64_t first, uint64_t n)
{
    struct tally tally = {.first = first};
    uint64_t start = window_start(first), end = window_end(usage, first + n - 1);

    for (uint64_t i = 0; i < n; i++)
        atomic_store(&usage->windows[first + i], COUNTING);
    int code = vhdx_map(usage->disk, start, end - start, add_extent, &tally);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t expected = COUNTING;
        /* Where the tables cannot be read, all of it counts as allocated; until something changes, once is enough. */
        uint64_t count = code == 0 ? tally.counts[i] : window_end(usage, first + i) - window_start(first + i);
        atomic_compare_exchange_strong(&usage->windows[first + i], &expected, count);
    }
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Count what is unknown among the windows [first, end), as far as the time allows. */
static void count_unknown(struct usage *usage, uint64_t first, uint64_t end)
{
    pthread_mutex_lock(&usage->counting);
    uint64_t deadline = now_ms() + BUDGET_MS; /* from now, so that each question gets a little further */

    for (uint64_t i = first, nr_counted = 0; i < end;) {
        uint64_t n = 0;

        while (n < SPAN_WINDOWS && i + n < end && atomic_load(&usage->windows[i + n]) == UNKNOWN)
            n++;
        if (n == 0) {
            i++;
            continue;
        }
        if (nr_counted > 0 && now_ms() > deadline) /* a disk of one span is always counted, even if this thread was not let run */
            break;
        count_span(usage, i, n);
        nr_counted += n;
        i += n;
    }
    pthread_mutex_unlock(&usage->counting);
}

uint64_t usage_count(struct usage *usage, uint64_t guest_offset, uint64_t length)
{
    uint64_t end = guest_offset + length;
    /* The windows that lie in the range as a whole. */
    uint64_t first_whole = guest_offset / USAGE_WINDOW_BYTES + (guest_offset % USAGE_WINDOW_BYTES != 0);
    uint64_t end_whole = end == usage->disk_bytes ? usage->nr_windows : end / USAGE_WINDOW_BYTES;

    if (first_whole >= end_whole) {
        uint64_t border = window_start(first_whole); /* the range may lie across one */
        if (border <= guest_offset || border >= end)
            return count_part(usage, guest_offset, length);
        return count_part(usage, guest_offset, border - guest_offset) + count_part(usage, border, end - border);
    }
    count_unknown(usage, first_whole, end_whole);
    uint64_t total = count_part(usage, guest_offset, window_start(first_whole) - guest_offset);
    for (uint64_t i = first_whole; i < end_whole; i++) {
        uint64_t count = atomic_load(&usage->windows[i]);
        total += count < COUNTING ? count : window_end(usage, i) - window_start(i);
    }
    if (end > window_end(usage, end_whole - 1))
        total += count_part(usage, window_start(end_whole), end - window_start(end_whole));
    return total;
}
