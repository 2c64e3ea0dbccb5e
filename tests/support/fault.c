/* SPDX-License-Identifier: MIT */
/* A storage whose n-th operation of some kind fails.
 *
 * Modelled: an operation that fails without having done anything; a write that fails after its first
 * bytes_done bytes have reached the file; a read that finds the end of the file early; each of them once or
 * from then on.  An operation that fails inside the wrapped storage counts as an operation, not as an
 * injected fault.
 *
 * Not modelled: operations other than writes that fail although they were carried out in part.  After a flush
 * that failed once the next one works, as no real driver's does (D9): arm it forever, or see that there is no
 * next one.
 *
 * To try every point of failure:
 *
 *     for (uint64_t n = 1;; n++) {
 *         fault_arm(&f, &(struct fault_plan){.kind = FAULT_ANY, .nth = n, .error = -EIO});
 *         ... run the scenario, which may fail; check what must hold ...
 *         if (fault_injected(&f) == 0)
 *             break; // a clean run: there is no n-th operation
 *     }
 *
 * To record what a faulty run leaves in the file, wrap the recorder in this. */
#include "doubles.h"

#include <assert.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/math.h"

struct faulty {
    struct storage base;
    struct storage *inner;
    struct fault *fault;
};

static const char *const kind_names[NR_FAULT_KINDS] = {
    [FAULT_READ] = "read",         [FAULT_WRITE] = "write",
    [FAULT_FLUSH] = "flush",       [FAULT_LENGTH] = "length",
    [FAULT_TRUNCATE] = "truncate", [FAULT_PUNCH] = "punch",
    [FAULT_RESERVE] = "reserve",   [FAULT_ZERO] = "zero",
    [FAULT_NEXT_DATA] = "next_data", [FAULT_USAGE] = "usage",
    [FAULT_LOCK] = "lock",         [FAULT_ANY] = "any",
};

void fault_init(struct fault *f)
{
    *f = (struct fault){0};
    pthread_mutex_init(&f->mutex, NULL);
}

void fault_destroy(struct fault *f)
{
    pthread_mutex_destroy(&f->mutex);
}

void fault_arm(struct fault *f, const struct fault_plan *plan)
{
    static const struct fault_plan none;

    if (!plan)
        plan = &none;
    assert(plan->nth == 0 || plan->error < 0 || plan->kind == FAULT_READ);
    pthread_mutex_lock(&f->mutex);
    f->plan = *plan;
    f->nr_injected = 0;
    for (int kind = 0; kind < NR_FAULT_KINDS; kind++)
        f->counts[kind] = 0;
    pthread_mutex_unlock(&f->mutex);
}

uint64_t fault_count(struct fault *f, enum fault_kind kind)
{
    pthread_mutex_lock(&f->mutex);
    uint64_t count = f->counts[kind];
    pthread_mutex_unlock(&f->mutex);
    return count;
}

uint64_t fault_injected(struct fault *f)
{
    pthread_mutex_lock(&f->mutex);
    uint64_t nr_injected = f->nr_injected;
    pthread_mutex_unlock(&f->mutex);
    return nr_injected;
}

static struct faulty *faulty_of(struct storage *s)
{
    return (struct faulty *)s;
}

/* Count an operation.  True: its turn to go wrong has come, as *plan says, and the message is recorded. */
static bool strikes(struct storage *s, enum fault_kind kind, struct fault_plan *plan)
{
    struct fault *f = faulty_of(s)->fault;

    pthread_mutex_lock(&f->mutex);
    f->counts[kind]++;
    f->counts[FAULT_ANY]++;
    *plan = f->plan;

    uint64_t count = f->counts[plan->kind];
    bool strike = plan->nth != 0 && (plan->kind == kind || plan->kind == FAULT_ANY) &&
                  (count == plan->nth || (plan->forever && count > plan->nth));
    f->nr_injected += strike;
    pthread_mutex_unlock(&f->mutex);
    if (strike && plan->error < 0)
        fail(plan->error, "injected fault in %s number %llu", kind_names[kind], (unsigned long long)count);
    return strike;
}

/* The first bytes of iov; returns how many buffers they are.  part has room for nr_iov buffers. */
static int first_part(const struct iovec *iov, int nr_iov, size_t bytes, struct iovec *part)
{
    int nr = 0;

    for (; nr < nr_iov && bytes > 0; nr++) {
        part[nr] = iov[nr];
        part[nr].iov_len = (size_t)min_u64(iov[nr].iov_len, bytes);
        bytes -= part[nr].iov_len;
    }
    return nr;
}

static int faulty_preadv(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset, size_t *got)
{
    struct fault_plan plan;
    bool strike = strikes(s, FAULT_READ, &plan);

    if (!strike)
        return storage_preadv(faulty_of(s)->inner, iov, nr_iov, offset, got);
    if (plan.error < 0)
        return plan.error;

    struct iovec *part = calloc((size_t)nr_iov, sizeof *part);
    if (!part)
        return fail_memory("a shortened read");
    int r = storage_preadv(faulty_of(s)->inner, part, first_part(iov, nr_iov, plan.bytes_done, part), offset,
                           got);
    free(part);
    return r;
}

static int faulty_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset)
{
    struct fault_plan plan;
    bool strike = strikes(s, FAULT_WRITE, &plan);

    if (!strike)
        return storage_pwritev(faulty_of(s)->inner, iov, nr_iov, offset);

    pthread_mutex_lock(&faulty_of(s)->fault->mutex);
    faulty_of(s)->fault->write_offset = offset;
    pthread_mutex_unlock(&faulty_of(s)->fault->mutex);
    struct iovec *part = calloc((size_t)nr_iov, sizeof *part);
    struct error_text message;
    if (!part)
        return fail_memory("a shortened write");
    error_save(&message);
    storage_pwritev(faulty_of(s)->inner, part, first_part(iov, nr_iov, plan.bytes_done, part), offset);
    error_restore(&message);
    free(part);
    return plan.error;
}

static int faulty_flush(struct storage *s)
{
    struct fault_plan plan;

    return strikes(s, FAULT_FLUSH, &plan) ? plan.error : storage_flush(faulty_of(s)->inner);
}

static int faulty_length(struct storage *s, uint64_t *bytes)
{
    struct fault_plan plan;

    return strikes(s, FAULT_LENGTH, &plan) ? plan.error : storage_length(faulty_of(s)->inner, bytes);
}

static int faulty_truncate(struct storage *s, uint64_t bytes)
{
    struct fault_plan plan;

    return strikes(s, FAULT_TRUNCATE, &plan) ? plan.error : storage_truncate(faulty_of(s)->inner, bytes);
}

static int faulty_punch(struct storage *s, uint64_t offset, uint64_t bytes)
{
    struct fault_plan plan;

    return strikes(s, FAULT_PUNCH, &plan) ? plan.error : storage_punch(faulty_of(s)->inner, offset, bytes);
}

static int faulty_reserve(struct storage *s, uint64_t offset, uint64_t bytes)
{
    struct fault_plan plan;

    return strikes(s, FAULT_RESERVE, &plan) ? plan.error : storage_reserve(faulty_of(s)->inner, offset, bytes);
}

static int faulty_zero(struct storage *s, uint64_t offset, uint64_t bytes)
{
    struct fault_plan plan;

    return strikes(s, FAULT_ZERO, &plan) ? plan.error : storage_zero(faulty_of(s)->inner, offset, bytes);
}

static int faulty_next_data(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end)
{
    struct fault_plan plan;

    return strikes(s, FAULT_NEXT_DATA, &plan) ? plan.error
                                              : storage_next_data(faulty_of(s)->inner, offset, start, end);
}

static int faulty_usage(struct storage *s, uint64_t *bytes)
{
    struct fault_plan plan;

    return strikes(s, FAULT_USAGE, &plan) ? plan.error : storage_usage(faulty_of(s)->inner, bytes);
}

static int faulty_lock(struct storage *s, enum storage_lock lock)
{
    struct fault_plan plan;

    return strikes(s, FAULT_LOCK, &plan) ? plan.error : storage_lock(faulty_of(s)->inner, lock);
}

static void faulty_close(struct storage *s)
{
    free(faulty_of(s));
}

static const struct storage_ops faulty_ops = {
    .name = "faulty",
    .preadv = faulty_preadv,
    .pwritev = faulty_pwritev,
    .flush = faulty_flush,
    .length = faulty_length,
    .truncate = faulty_truncate,
    .punch = faulty_punch,
    .reserve = faulty_reserve,
    .zero = faulty_zero,
    .next_data = faulty_next_data,
    .usage = faulty_usage,
    .lock = faulty_lock,
    .close = faulty_close,
};

int fault_wrap(struct fault *f, struct storage *inner, struct storage **s)
{
    struct faulty *w = calloc(1, sizeof *w);

    *s = NULL;
    if (!w)
        return fail_memory("a faulty storage");
    w->base = *inner;
    w->base.ops = &faulty_ops;
    w->base.fd = -1;
    w->inner = inner;
    w->fault = f;
    *s = &w->base;
    return 0;
}
