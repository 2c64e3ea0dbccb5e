/* SPDX-License-Identifier: MIT */
#include "progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cmd.h"
#include "output.h"
#include "signals.h"
#include "size.h"

static struct {
    bool enabled, terminal, in_bytes;
    bool drawn;         /* the bar stands on the terminal's last line */
    double start, next; /* seconds */
    uint64_t done, total;
} state;

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void progress_begin(bool in_bytes)
{
    const char *term = getenv("TERM");
    bool terminal = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;

    memset(&state, 0, sizeof state);
    state.enabled = !common.quiet && (common.progress || terminal);
    state.terminal = terminal;
    state.in_bytes = in_bytes;
    state.start = now();
    /* What nobody asked for shows up only when the command takes its time. */
    state.next = state.start + (!terminal ? 1.0 : common.progress ? 0.0 : 0.5);
}

static int percent(void)
{
    return state.total ? (int)((double)state.done / (double)state.total * 100) : 100;
}

/* ", 1.5 GiB of 4 GiB, 800 MiB/s, 0:03 left", as far as each is known. */
static void describe(char *text, size_t text_bytes)
{
    double elapsed = now() - state.start;
    double rate = elapsed > 0 ? (double)state.done / elapsed : 0; /* units per second */
    char done[SIZE_TEXT_BYTES], total[SIZE_TEXT_BYTES], speed[SIZE_TEXT_BYTES];
    int n = 0;

    text[0] = '\0';
    if (state.in_bytes && state.total)
        n = snprintf(text, text_bytes, ", %s of %s, %s/s", size_short(state.done, done),
                     size_short(state.total, total), size_short((uint64_t)rate, speed));
    if (rate > 0 && state.done < state.total) {
        double left = (double)(state.total - state.done) / rate;
        uint64_t seconds = left < 1e9 ? (uint64_t)(left + 0.5) : 1000000000;
        uint64_t hours = seconds / 3600, minutes = seconds / 60 % 60;

        if (hours)
            snprintf(text + n, text_bytes - (size_t)n, ", %" PRIu64 ":%02d:%02d left", hours, (int)minutes,
                     (int)(seconds % 60));
        else
            snprintf(text + n, text_bytes - (size_t)n, ", %d:%02d left", (int)minutes, (int)(seconds % 60));
    }
}

static int terminal_columns(void)
{
    struct winsize size;

    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

static void draw_bar(const char *description)
{
    enum { BAR_MAX_COLUMNS = 40, FIXED_COLUMNS = 10 };
    static const char full[] = "########################################";
    int room = terminal_columns() - 1 - FIXED_COLUMNS - (int)strlen(description);
    int columns = room > BAR_MAX_COLUMNS ? BAR_MAX_COLUMNS : room;

    if (columns < 4) /* a narrow terminal: the number alone */
        fprintf(stderr, "\r\033[K%3d %%", percent());
    else
        fprintf(stderr, "\r\033[K[%-*.*s] %3d %%%s", columns, columns * percent() / 100, full, percent(),
                description);
    fflush(stderr);
    state.drawn = true;
}

static void show(void)
{
    char description[4 * SIZE_TEXT_BYTES];

    describe(description, sizeof description);
    if (state.terminal)
        draw_bar(description);
    else
        fprintf(stderr, "vhdx %s: %d %%%s\n", output_command(), percent(), description);
}

int progress_step(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    state.done = done;
    state.total = total;
    if (state.enabled && total) {
        double time = now();

        if (time >= state.next) {
            state.next = time + (state.terminal ? 0.2 : 2.0);
            show();
        }
    }
    return signals_caught();
}

uint64_t progress_done(void)
{
    return state.done;
}

void progress_hide(void)
{
    if (state.drawn) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        state.drawn = false;
    }
}

void progress_end(bool complete)
{
    if (state.enabled && common.progress && complete) {
        state.done = state.total;
        show();
        if (state.drawn)
            fputc('\n', stderr);
        state.drawn = false;
    }
    progress_hide();
    state.enabled = false;
    signals_limit(0);
}
