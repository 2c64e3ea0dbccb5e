/* SPDX-License-Identifier: MIT */
/* Memory that runs out: the n-th allocation of the library fails, once or from then on.
 *
 * The linker puts these functions between the library's own code and libc (--wrap; tests/crash/meson.build
 * has the list), so what libc asks for itself is neither counted nor failed, and sanitizers still see every
 * allocation.  Counted: malloc, calloc, realloc, reallocarray, aligned_alloc, posix_memalign, strdup,
 * strndup, vasprintf, realpath into memory of its own, fdopendir, pthread_create (which then says EAGAIN, as
 * it does without memory for a stack).  Any thread.
 *
 * The test's own code goes through it as well, so it should not allocate while it is armed. */
#ifndef VHDX_TESTS_MALLOC_FAULT_H
#define VHDX_TESTS_MALLOC_FAULT_H

#include <stdbool.h>
#include <stdint.h>

/* Count from now on; the nth allocation, from 1, fails, and if forever is set all later ones as well. */
void malloc_fault_arm(uint64_t nth, bool forever);

/* Memory is back.  Returns how many allocations have failed. */
uint64_t malloc_fault_disarm(void);

/* Pieces of memory that were allocated and not freed yet. */
int64_t malloc_fault_outstanding(void);

#endif
