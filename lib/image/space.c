/* SPDX-License-Identifier: MIT */
#include "image/space.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/math.h"
#include "format/layout.h"
#include "storage/storage.h"

/* The file grows by so much at a time, so that few allocations change its length; what is not used is cut off at the end. */
enum { GROWTH_MIB = 64 };

int space_init(struct space *space, struct storage *file, struct mib_set *used)
{
    *space = (struct space){.file = file, .used = *used, .no_clean_run = UINT64_MAX};
    *used = (struct mib_set){0};
    return mib_set_init(&space->clean, MAX_FILE_BYTES / OBJECT_ALIGNMENT);
}

void space_free_all(struct space *space)
{
    mib_set_free(&space->used);
    mib_set_free(&space->clean);
    free(space->freed);
    space->freed = NULL;
}

uint64_t space_end_of_use(const struct space *space)
{
    uint64_t end = space->least_mib, at = 0;

    while ((at = mib_set_next(&space->used, at, true)) != UINT64_MAX)
        end = max_u64(end, at = mib_set_next(&space->used, at, false));
    return end;
}

/* Without memory for that it is idle, which is safe. */
static void add_clean(struct space *space, uint64_t first_mib, uint64_t nr_mib)
{
    bool clash;
    int r = mib_set_add(&space->clean, first_mib, nr_mib, &clash);

    assert(r < 0 || !clash);
    space->no_clean_run = UINT64_MAX;
}

static bool punch(struct space *space, uint64_t first_mib, uint64_t nr_mib)
{
    if (!space->cannot_punch &&
        storage_punch(space->file, first_mib * OBJECT_ALIGNMENT, nr_mib * OBJECT_ALIGNMENT) < 0)
        space->cannot_punch = true; /* idle space must then be overwritten, which always works */
    return !space->cannot_punch;
}

/* What a device holds where it holds no object, nobody knows, and to clear all of that could take hours. */
static int keep_length(struct space *space, uint64_t end_mib)
{
    uint64_t length;
    int r = storage_length(space->file, &length);

    if (r < 0)
        return r;
    if (length / OBJECT_ALIGNMENT < end_mib)
        return fail(-ENOSPC, "the last object ends at 0x%" PRIx64 ", behind the end of the device at 0x%" PRIx64 "; make that larger",
                    end_mib * OBJECT_ALIGNMENT, length);
    space->keeps_length = true;
    space->fresh_mib = space->end_mib = length / OBJECT_ALIGNMENT;
    return 0;
}

int space_cut(struct space *space)
{
    return space->keeps_length ? 0 : storage_truncate(space->file, space_end_of_use(space) * OBJECT_ALIGNMENT);
}

int space_prepare(struct space *space, uint64_t keep_mib)
{
    space->least_mib = keep_mib;
    space->cannot_punch = keep_mib > 0; /* idle space is filled again instead */
    uint64_t end = space_end_of_use(space);
    int r = storage_truncate(space->file, end * OBJECT_ALIGNMENT);
    if (r == -ENOTSUP)
        return keep_length(space, end);
    if (r < 0)
        return fail_in(r, "cutting the file behind its last object");
    space->fresh_mib = space->end_mib = end;
    for (uint64_t at = 0; (at = mib_set_next(&space->used, at, false)) < end;) {
        uint64_t next = mib_set_next(&space->used, at, true);
        if (!punch(space, at, next - at))
            break;
        add_clean(space, at, next - at);
        at = next;
    }
    return 0;
}

/* A run of nr_mib clean MiBs. */
static bool find_clean(struct space *space, uint64_t nr_mib, uint64_t *first_mib)
{
    if (space->clean.count < nr_mib || nr_mib >= space->no_clean_run)
        return false;
    for (uint64_t at = 0; (at = mib_set_next(&space->clean, at, true)) != UINT64_MAX;) {
        uint64_t end = mib_set_next(&space->clean, at, false);
        if (end - at >= nr_mib) {
            *first_mib = at;
            return true;
        }
        at = end;
    }
    space->no_clean_run = nr_mib;
    return false;
}

/* A run of free MiBs, clean or not, below the fresh ones: only where idle space cannot be punched, or was not. */
static bool find_idle(struct space *space, uint64_t nr_mib, uint64_t *first_mib)
{
    if (!(space->cannot_punch || space->keeps_length) || space->fresh_mib - space->used.count < nr_mib)
        return false;
    for (uint64_t at = 0; (at = mib_set_next(&space->used, at, false)) < space->fresh_mib;) {
        uint64_t end = min_u64(mib_set_next(&space->used, at, true), space->fresh_mib);
        if (end - at >= nr_mib) {
            *first_mib = at;
            return true;
        }
        at = end;
    }
    return false;
}

static int extend(struct space *space, uint64_t end_mib)
{
    uint64_t generous = max_u64(end_mib, space->end_mib + GROWTH_MIB);
    const uint64_t limit = MAX_FILE_BYTES / OBJECT_ALIGNMENT;

    if (space->keeps_length)
        return fail(-ENOSPC, "the device cannot grow beyond its %" PRIu64 " MiB, and they have no free piece of %" PRIu64
                    "; make it larger, or discard what is not needed", space->end_mib, end_mib - space->fresh_mib);
    if (end_mib > limit)
        return fail(-EFBIG, "the file would grow to %" PRIu64 " MiB, beyond the limit of %" PRIu64, end_mib, limit);
    generous = min_u64(generous, limit);
    int r = storage_truncate(space->file, generous * OBJECT_ALIGNMENT);
    if (r < 0 && generous > end_mib) {
        generous = end_mib;
        r = storage_truncate(space->file, generous * OBJECT_ALIGNMENT);
    }
    if (r < 0)
        return fail_in(r, "growing the file to %" PRIu64 " MiB", end_mib);
    space->end_mib = generous;
    return 0;
}

int space_take(struct space *space, uint64_t nr_mib, uint64_t *first_mib, enum space_content *content)
{
    bool clash;
    int r = 0;

    *content = SPACE_ZEROS;
    if (!find_clean(space, nr_mib, first_mib)) {
        if (find_idle(space, nr_mib, first_mib)) {
            *content = SPACE_FOREIGN;
        } else {
            *first_mib = space->fresh_mib;
            if (*first_mib + nr_mib > space->end_mib)
                r = extend(space, *first_mib + nr_mib);
        }
    }
    if (r == 0)
        r = mib_set_add(&space->used, *first_mib, nr_mib, &clash);
    if (r < 0)
        return r; /* and it stays what it was */
    assert(!clash);
    mib_set_remove(&space->clean, *first_mib, nr_mib);
    space->fresh_mib = max_u64(space->fresh_mib, *first_mib + nr_mib);
    return 0;
}

void space_give_back(struct space *space, uint64_t first_mib, uint64_t nr_mib, enum space_content content)
{
    mib_set_remove(&space->used, first_mib, nr_mib);
    if (content == SPACE_ZEROS)
        add_clean(space, first_mib, nr_mib);
}

int space_reserve_freed(struct space *space)
{
    if (space->nr_freed < space->freed_capacity)
        return 0;
    size_t capacity = space->freed_capacity ? 2 * space->freed_capacity : 64;
    struct freed *freed = reallocarray(space->freed, capacity, sizeof *freed);
    if (!freed)
        return fail_memory("freed space");
    space->freed = freed;
    space->freed_capacity = capacity;
    return 0;
}

void space_release(struct space *space, uint64_t first_mib, uint64_t nr_mib, uint64_t commit_no)
{
    assert(space->nr_freed < space->freed_capacity);
    space->freed[space->nr_freed++] = (struct freed){.first_mib = first_mib, .nr_mib = nr_mib, .commit_no = commit_no};
}

/* One step of one extent; true: it is off the list. */
static bool advance_one(struct space *space, struct freed *f, uint64_t durable_commit_no, const bool empty_now[2])
{
    if (f->punched) { /* before the flush that has just completed */
        mib_set_remove(&space->used, f->first_mib, f->nr_mib);
        add_clean(space, f->first_mib, f->nr_mib);
        return true;
    }
    /* Nobody could find the place any more since it was given up, so what is seen empty now counts already. */
    if (f->commit_no > durable_commit_no || !inflight_drained(&f->drain, empty_now))
        return false;
    f->punching = !space->cannot_punch;
    if (!f->punching)
        mib_set_remove(&space->used, f->first_mib, f->nr_mib); /* idle */
    return !f->punching;
}

void space_advance(struct space *space, struct inflight *inflight, uint64_t durable_commit_no)
{
    bool empty_now[2];
    size_t kept = 0;

    if (space->nr_freed == 0)
        return;
    inflight_poll(inflight, empty_now);
    for (size_t i = 0; i < space->nr_freed; i++) {
        struct freed f = space->freed[i];
        if (!advance_one(space, &f, durable_commit_no, empty_now))
            space->freed[kept++] = f;
    }
    space->nr_freed = kept;
}

bool space_next_to_punch(const struct space *space, size_t *at, uint64_t *offset, uint64_t *bytes)
{
    while (*at < space->nr_freed && !space->freed[*at].punching)
        ++*at;
    if (*at == space->nr_freed)
        return false;
    *offset = space->freed[*at].first_mib * OBJECT_ALIGNMENT;
    *bytes = space->freed[*at].nr_mib * OBJECT_ALIGNMENT;
    return true;
}

void space_note_punched(struct space *space, size_t at, bool done)
{
    size_t kept = 0;

    if (done) {
        space->freed[at].punching = false;
        space->freed[at].punched = true;
        return;
    }
    space->cannot_punch = true; /* so nothing else that waits for it will be */
    for (size_t i = 0; i < space->nr_freed; i++) {
        struct freed f = space->freed[i];
        if (f.punching)
            mib_set_remove(&space->used, f.first_mib, f.nr_mib); /* idle */
        else
            space->freed[kept++] = f;
    }
    space->nr_freed = kept;
}
