/* SPDX-License-Identifier: MIT */
/* A storage that writes down every successful change of the file behind it, and every successful flush.
 *
 * Steps stand in the order in which they changed the file: changes run one at a time, and one is in the list
 * before its call returns.  A flush runs alongside; it is entered when it returns, with the number of steps
 * that stood in the list when it began, for only those does it make durable.  So a caller who relies on a
 * flush that began before its write had returned is found out by powerloss.c, which goes by these numbers.
 *
 * Failed operations are not recorded; whoever wants to see what is left of a failing write wraps this in
 * fault.c. */
#include "doubles.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"

struct recorder {
    struct storage base;
    struct storage *inner;
    struct recording *recording;
};

static struct recorder *recorder_of(struct storage *s)
{
    return (struct recorder *)s;
}

int double_copy(struct storage *from, struct storage *to)
{
    uint64_t length, start, end = 0;
    uint8_t buf[16384];
    int r = storage_length(from, &length);

    if (r == 0)
        r = storage_truncate(to, length);
    while (r == 0 && end < length) {
        r = storage_next_data(from, end, &start, &end);
        while (r == 0 && start < end) {
            size_t n = (size_t)min_u64(sizeof buf, end - start);

            r = storage_pread(from, buf, n, start);
            if (r == 0)
                r = storage_pwrite(to, buf, n, start);
            start += n;
        }
    }
    return r;
}

int recording_init(struct recording *r, struct storage *content)
{
    *r = (struct recording){0};
    pthread_mutex_init(&r->mutex, NULL);
    int error = storage_memory_new(NULL, 0, &r->base);
    if (error == 0 && content)
        error = double_copy(content, r->base);
    if (error < 0)
        recording_destroy(r);
    return error;
}

void recording_destroy(struct recording *r)
{
    for (size_t i = 0; i < r->nr_steps; i++)
        free(r->steps[i].data);
    free(r->steps);
    storage_close(r->base);
    pthread_mutex_destroy(&r->mutex);
    *r = (struct recording){0};
}

size_t recording_nr_steps(struct recording *r)
{
    pthread_mutex_lock(&r->mutex);
    size_t nr_steps = r->nr_steps;
    pthread_mutex_unlock(&r->mutex);
    return nr_steps;
}

void recording_forget(struct recording *r, size_t nr_last)
{
    while (nr_last-- > 0)
        free(r->steps[--r->nr_steps].data);
}

/* Make room for one more step, before the operation: when it has happened it must be possible to say so. */
static int reserve_step(struct recording *r)
{
    if (r->nr_steps < r->room)
        return 0;

    size_t room = r->room ? r->room * 2 : 64;
    struct step *grown = reallocarray(r->steps, room, sizeof *grown);
    if (!grown)
        return fail_memory("recorded steps");
    r->steps = grown;
    r->room = room;
    return 0;
}

/* With r's lock held, so that each file's steps stand in the timeline in their order. */
static void add_step(struct recording *r, struct step step)
{
    struct timeline *t = r->timeline;

    r->steps[r->nr_steps++] = step;
    if (!t)
        return;
    pthread_mutex_lock(&t->mutex);
    if (t->nr_moments == t->room) {
        t->room = t->room ? t->room * 2 : 256;
        t->moments = reallocarray(t->moments, t->room, sizeof *t->moments);
        assert(t->moments);
    }
    t->moments[t->nr_moments++] = r;
    pthread_mutex_unlock(&t->mutex);
}

void timeline_init(struct timeline *t)
{
    *t = (struct timeline){0};
    pthread_mutex_init(&t->mutex, NULL);
}

void timeline_destroy(struct timeline *t)
{
    free(t->moments);
    pthread_mutex_destroy(&t->mutex);
}

void timeline_add(struct timeline *t, struct recording *r)
{
    assert(r->nr_steps == 0);
    r->timeline = t;
}

size_t timeline_steps(const struct timeline *t, const struct recording *r, size_t nr_moments)
{
    size_t nr = 0;

    assert(nr_moments <= t->nr_moments);
    for (size_t i = 0; i < nr_moments; i++)
        nr += t->moments[i] == r;
    return nr;
}

int step_apply(const struct step *step, struct storage *to)
{
    switch (step->kind) {
    case STEP_WRITE:
        return storage_pwrite(to, step->data, step->bytes, step->offset);
    case STEP_TRUNCATE:
        return storage_truncate(to, step->offset);
    case STEP_PUNCH:
        return storage_punch(to, step->offset, step->bytes);
    case STEP_ZERO:
        return storage_zero(to, step->offset, step->bytes);
    case STEP_FLUSH:
        return 0;
    }
    assert(!"a step of no kind");
    return 0;
}

/* Carry out a change and write it down.  step.data is taken over. */
static int change(struct storage *s, struct step step)
{
    struct recording *r = recorder_of(s)->recording;

    pthread_mutex_lock(&r->mutex);
    int error = reserve_step(r);
    if (error == 0)
        error = step_apply(&step, recorder_of(s)->inner);
    if (error == 0)
        add_step(r, step);
    else
        free(step.data);
    pthread_mutex_unlock(&r->mutex);
    return error;
}

static int recorder_preadv(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset,
                           size_t *got)
{
    return storage_preadv(recorder_of(s)->inner, iov, nr_iov, offset, got);
}

static int recorder_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset)
{
    struct step step = {.kind = STEP_WRITE, .offset = offset};

    for (int i = 0; i < nr_iov; i++)
        step.bytes += iov[i].iov_len;
    step.data = malloc(step.bytes);
    if (!step.data)
        return fail_memory("recorded data");

    size_t filled = 0;
    for (int i = 0; i < nr_iov; i++) {
        if (iov[i].iov_len > 0)
            memcpy(step.data + filled, iov[i].iov_base, iov[i].iov_len);
        filled += iov[i].iov_len;
    }
    return change(s, step);
}

static int recorder_truncate(struct storage *s, uint64_t bytes)
{
    return change(s, (struct step){.kind = STEP_TRUNCATE, .offset = bytes});
}

static int recorder_punch(struct storage *s, uint64_t offset, uint64_t bytes)
{
    return change(s, (struct step){.kind = STEP_PUNCH, .offset = offset, .bytes = bytes});
}

/* No step: it changes neither content nor length. */
static int recorder_reserve(struct storage *s, uint64_t offset, uint64_t bytes)
{
    return storage_reserve(recorder_of(s)->inner, offset, bytes);
}

static int recorder_zero(struct storage *s, uint64_t offset, uint64_t bytes)
{
    return change(s, (struct step){.kind = STEP_ZERO, .offset = offset, .bytes = bytes});
}

static int recorder_flush(struct storage *s)
{
    struct recording *r = recorder_of(s)->recording;
    struct step step = {.kind = STEP_FLUSH, .covers = recording_nr_steps(r)};
    int error = storage_flush(recorder_of(s)->inner);

    if (error < 0)
        return error;
    pthread_mutex_lock(&r->mutex);
    error = reserve_step(r);
    if (error == 0)
        add_step(r, step);
    pthread_mutex_unlock(&r->mutex);
    return error;
}

static int recorder_length(struct storage *s, uint64_t *bytes)
{
    return storage_length(recorder_of(s)->inner, bytes);
}

static int recorder_next_data(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end)
{
    return storage_next_data(recorder_of(s)->inner, offset, start, end);
}

static int recorder_usage(struct storage *s, uint64_t *bytes)
{
    return storage_usage(recorder_of(s)->inner, bytes);
}

static int recorder_lock(struct storage *s, enum storage_lock lock)
{
    return storage_lock(recorder_of(s)->inner, lock);
}

static void recorder_close(struct storage *s)
{
    free(recorder_of(s));
}

static const struct storage_ops recorder_ops = {
    .name = "recorder",
    .preadv = recorder_preadv,
    .pwritev = recorder_pwritev,
    .flush = recorder_flush,
    .length = recorder_length,
    .truncate = recorder_truncate,
    .punch = recorder_punch,
    .reserve = recorder_reserve,
    .zero = recorder_zero,
    .next_data = recorder_next_data,
    .usage = recorder_usage,
    .lock = recorder_lock,
    .close = recorder_close,
};

int recorder_wrap(struct recording *r, struct storage *inner, struct storage **s)
{
    struct recorder *w = calloc(1, sizeof *w);

    *s = NULL;
    if (!w)
        return fail_memory("a recorder");
    w->base = *inner;
    w->base.ops = &recorder_ops;
    w->base.fd = -1;
    w->inner = inner;
    w->recording = r;
    *s = &w->base;
    return 0;
}

int recording_apply(const struct recording *r, size_t first, size_t end, struct storage *to)
{
    int error = 0;

    assert(first <= end && end <= r->nr_steps);
    for (size_t i = first; i < end && error == 0; i++)
        error = step_apply(&r->steps[i], to);
    return error;
}

int recording_replay(const struct recording *r, size_t nr_steps, struct storage **s)
{
    int error = storage_memory_new(NULL, 0, s);

    if (error == 0)
        error = double_copy(r->base, *s);
    if (error == 0)
        error = recording_apply(r, 0, nr_steps, *s);
    if (error < 0) {
        storage_close(*s);
        *s = NULL;
    }
    return error;
}
