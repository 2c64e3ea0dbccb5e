/* SPDX-License-Identifier: MIT */
#include "malloc-fault.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

static _Atomic uint64_t count, nr_struck, strike_at; /* strike_at 0: not armed */
static _Atomic bool for_good;
static _Atomic int64_t outstanding;

void malloc_fault_arm(uint64_t nth, bool forever)
{
    count = nr_struck = 0;
    for_good = forever;
    strike_at = nth;
}

uint64_t malloc_fault_disarm(void)
{
    strike_at = 0;
    return nr_struck;
}

int64_t malloc_fault_outstanding(void)
{
    return outstanding;
}

static bool strikes(void)
{
    uint64_t nth = strike_at, number = nth == 0 ? 0 : atomic_fetch_add(&count, 1) + 1;
    bool strike = nth != 0 && (number == nth || (for_good && number > nth));

    if (strike) {
        nr_struck++;
        errno = ENOMEM;
    }
    return strike;
}

static void *counted(void *p)
{
    if (p)
        outstanding++;
    return p;
}

/* Both names of a function that the linker has put us in front of (--wrap). */
#define WRAPPED(result, name, ...) \
    result __real_##name(__VA_ARGS__); \
    result __wrap_##name(__VA_ARGS__)

WRAPPED(void *, malloc, size_t bytes);
WRAPPED(void *, calloc, size_t nr, size_t bytes);
WRAPPED(void *, realloc, void *old, size_t bytes);
WRAPPED(void *, reallocarray, void *old, size_t nr, size_t bytes);
WRAPPED(void *, aligned_alloc, size_t alignment, size_t bytes);
WRAPPED(int, posix_memalign, void **p, size_t alignment, size_t bytes);
WRAPPED(char *, strdup, const char *text);
WRAPPED(char *, strndup, const char *text, size_t bytes);
WRAPPED(int, vasprintf, char **text, const char *format, va_list args);
WRAPPED(char *, realpath, const char *path, char *resolved);
WRAPPED(DIR *, fdopendir, int fd);
WRAPPED(int, pthread_create, pthread_t *thread, const pthread_attr_t *attributes, void *(*fn)(void *), void *opaque);
WRAPPED(void, free, void *p);

void *__wrap_malloc(size_t bytes)
{
    return strikes() ? NULL : counted(__real_malloc(bytes));
}

void *__wrap_calloc(size_t nr, size_t bytes)
{
    return strikes() ? NULL : counted(__real_calloc(nr, bytes));
}

void *__wrap_realloc(void *old, size_t bytes)
{
    void *p = strikes() ? NULL : __real_realloc(old, bytes);

    return old ? p : counted(p);
}

void *__wrap_reallocarray(void *old, size_t nr, size_t bytes)
{
    void *p = strikes() ? NULL : __real_reallocarray(old, nr, bytes);

    return old ? p : counted(p);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return strikes() ? NULL : counted(__real_aligned_alloc(alignment, bytes));
}

int __wrap_posix_memalign(void **p, size_t alignment, size_t bytes)
{
    int error = strikes() ? ENOMEM : __real_posix_memalign(p, alignment, bytes);

    if (error == 0)
        outstanding++;
    return error;
}

char *__wrap_strdup(const char *text)
{
    return strikes() ? NULL : counted(__real_strdup(text));
}

char *__wrap_strndup(const char *text, size_t bytes)
{
    return strikes() ? NULL : counted(__real_strndup(text, bytes));
}

int __wrap_vasprintf(char **text, const char *format, va_list args)
{
    int n = strikes() ? -1 : __real_vasprintf(text, format, args);

    if (n >= 0)
        outstanding++;
    return n;
}

char *__wrap_realpath(const char *path, char *resolved)
{
    if (resolved)
        return __real_realpath(path, resolved);
    return strikes() ? NULL : counted(__real_realpath(path, NULL));
}

DIR *__wrap_fdopendir(int fd)
{
    return strikes() ? NULL : __real_fdopendir(fd);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*fn)(void *),
                          void *opaque)
{
    return strikes() ? EAGAIN : __real_pthread_create(thread, attributes, fn, opaque);
}

void __wrap_free(void *p)
{
    if (p)
        outstanding--;
    __real_free(p);
}
