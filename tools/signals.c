/* SPDX-License-Identifier: MIT */
#include "signals.h"

#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>

/* Not sig_atomic_t: a copy's threads ask, too. */
static atomic_int caught, at_once, limit_seconds;
static atomic_int cleanup_fd = -1;
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "a signal handler may not wait for a lock");

/* Only async-signal-safe calls here; failure changes nothing about leaving. */
static _Noreturn void leave(int signal_no)
{
    int r = cleanup_fd >= 0 ? ftruncate(cleanup_fd, 0) : 0;

    (void)r;
    _exit(128 + signal_no);
}

static void handler(int signal_no)
{
    if (caught || at_once)
        leave(signal_no);
    caught = signal_no;
    if (limit_seconds > 0)
        alarm((unsigned)limit_seconds);
}

static void limit_reached(int signal_no)
{
    static const char text[] = "vhdx: stopped by a signal; an NBD server did not answer any more\n";

    ssize_t n = write(STDERR_FILENO, text, sizeof text - 1);
    (void)signal_no;
    (void)n;
    leave(caught);
}

static void install(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};

    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction present;

        if (sigaction(signals[i], NULL, &present) == 0 && present.sa_handler != SIG_IGN)
            sigaction(signals[i], &action, NULL);
    }
}

void signals_catch(void)
{
    at_once = 0;
    install();
}

void signals_exit(void)
{
    at_once = 1;
    install();
}

void signals_limit(unsigned seconds)
{
    struct sigaction action = {.sa_handler = limit_reached};

    sigemptyset(&action.sa_mask);
    if (seconds > 0)
        sigaction(SIGALRM, &action, NULL);
    limit_seconds = (int)seconds;
    if (seconds == 0)
        alarm(0);
}

int signals_caught(void)
{
    return caught;
}

void signals_set_cleanup(int fd)
{
    cleanup_fd = fd;
}
