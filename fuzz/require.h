/* SPDX-License-Identifier: MIT */
/* What a target holds the library to.  A broken promise ends the program, which is how a fuzzer sees it. */
#ifndef VHDX_FUZZ_REQUIRE_H
#define VHDX_FUZZ_REQUIRE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define REQUIRE(condition, ...)                                                                              \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: broken: %s: ", __FILE__, __LINE__, #condition);                          \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            fputc('\n', stderr);                                                                             \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

/* Processor time that this program has used.  libFuzzer's -timeout counts by the wall clock, so on a busy
 * machine it must be generous; the bound that an input is held to is this one. */
static inline double processor_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

#define MAX_PROCESSOR_SECONDS 10

/* What libFuzzer, or standalone-main.c, calls. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

#endif
