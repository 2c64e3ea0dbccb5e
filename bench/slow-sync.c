/* SPDX-License-Identifier: MIT */
/* To be preloaded: every fdatasync() and fsync() takes VHDX_SLOW_SYNC_US microseconds longer, as if it waited for a device that
 * takes that long to make something durable.  What is synced is synced as always. */
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static struct timespec extra;

__attribute__((constructor)) static void learn(void)
{
    const char *text = getenv("VHDX_SLOW_SYNC_US");
    unsigned long us = text ? strtoul(text, NULL, 10) : 0;

    extra = (struct timespec){.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
}

static int slowly(long call, int fd)
{
    int r = (int)syscall(call, fd), error = errno;
    struct timespec left = extra;

    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
    errno = error;
    return r;
}

__attribute__((visibility("default"))) int fdatasync(int fd)
{
    return slowly(SYS_fdatasync, fd);
}

__attribute__((visibility("default"))) int fsync(int fd)
{
    return slowly(SYS_fsync, fd);
}
