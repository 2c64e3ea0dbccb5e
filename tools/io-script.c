/* SPDX-License-Identifier: MIT */
#include "io-script.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "output.h"
#include "signals.h"

int io_script_open(struct io_script *script, const struct text_list *texts)
{
    *script = (struct io_script){.texts = texts};
    if (texts->nr_texts > 0)
        return 0;
    script->interactive = isatty(STDIN_FILENO);
    script->buf = malloc(IO_MAX_LINE_BYTES);
    return script->buf ? 0 : -ENOMEM;
}

void io_script_close(struct io_script *script)
{
    free(script->buf);
}

/* poll() that a signal ends even if it comes just before: they are let in only while it waits.  nr_fds may be
 * 0. */
static int wait_for(struct pollfd *fds, nfds_t nr_fds, const struct timespec *timeout)
{
    sigset_t stops, before;

    sigemptyset(&stops);
    sigaddset(&stops, SIGINT);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGHUP);
    sigprocmask(SIG_BLOCK, &stops, &before);
    int r = signals_caught() ? 0 : ppoll(fds, nr_fds, timeout, &before);
    int error = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return r;
}

void io_script_sleep(uint64_t milliseconds)
{
    struct timespec timeout = {.tv_sec = (time_t)(milliseconds / 1000),
                               .tv_nsec = (long)(milliseconds % 1000 * 1000000)};

    wait_for(NULL, 0, &timeout);
}

/* More of standard input, behind what there is. */
static enum io_next read_more(struct io_script *s)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};

    memmove(s->buf, s->buf + s->start, s->end - s->start);
    s->end -= s->start;
    s->start = 0;
    if (s->end == IO_MAX_LINE_BYTES) {
        print_error(NULL, "standard input: line %" PRIu64 " is longer than %d bytes", s->line_no,
                    IO_MAX_LINE_BYTES);
        return IO_TROUBLE;
    }
    if (wait_for(&input, 1, NULL) < 0 && errno != EINTR) {
        print_error(NULL, "standard input: %s", strerror(errno));
        return IO_TROUBLE;
    }
    if (signals_caught())
        return IO_STOPPED;
    if (!input.revents) /* some other signal */
        return IO_LINE;
    ssize_t n = read(STDIN_FILENO, s->buf + s->end, IO_MAX_LINE_BYTES - s->end);
    if (n < 0 && errno != EINTR && errno != EAGAIN) {
        print_error(NULL, "standard input: %s", strerror(errno));
        return IO_TROUBLE;
    }
    s->at_end = n == 0;
    s->end += n > 0 ? (size_t)n : 0;
    return IO_LINE;
}

static enum io_next next_input_line(struct io_script *s)
{
    s->line_no++;
    if (s->interactive) {
        fputs("vhdx> ", stdout);
        fflush(stdout);
    }
    for (;;) {
        size_t present = s->end - s->start;
        char *newline = memchr(s->buf + s->start, '\n', present);

        if (!newline && s->at_end && present > 0)
            newline = s->buf + s->end; /* the last line lacks its end; the read that found that left room */
        if (newline) {
            *newline = '\0';
            s->line = s->buf + s->start;
            size_t used = (size_t)(newline - s->buf) + 1;
            s->start = used < s->end ? used : s->end;
            return IO_LINE;
        }
        if (s->at_end) {
            if (s->interactive)
                putchar('\n'); /* behind the prompt */
            return IO_END;
        }
        enum io_next result = read_more(s);
        if (result != IO_LINE)
            return result;
    }
}

enum io_next io_script_next(struct io_script *s)
{
    if (signals_caught())
        return IO_STOPPED;
    if (s->texts->nr_texts == 0)
        return next_input_line(s);
    if (s->line_no == s->texts->nr_texts)
        return IO_END;
    free(s->buf);
    s->line = s->buf = strdup(s->texts->texts[s->line_no++]);
    if (s->line)
        return IO_LINE;
    print_error(NULL, "out of memory");
    return IO_TROUBLE;
}

const char *io_script_where(const struct io_script *s, char *text, size_t text_bytes)
{
    enum { SHOWN = 60 };

    if (s->interactive)
        *text = '\0';
    else if (s->texts->nr_texts == 0)
        snprintf(text, text_bytes, "line %" PRIu64 ": ", s->line_no);
    else if (strlen(s->texts->texts[s->line_no - 1]) <= SHOWN)
        snprintf(text, text_bytes, "%s: ", s->texts->texts[s->line_no - 1]);
    else
        snprintf(text, text_bytes, "%.*s...: ", SHOWN, s->texts->texts[s->line_no - 1]);
    return text;
}

int io_script_words(char *line, char *words[IO_MAX_WORDS])
{
    static const char blanks[] = " \t\r\n";
    int nr_words = 0;

    for (line += strspn(line, blanks); *line && *line != '#'; line += strspn(line, blanks)) {
        if (nr_words == IO_MAX_WORDS)
            return -1;
        words[nr_words++] = line;
        line += strcspn(line, blanks);
        if (*line)
            *line++ = '\0';
    }
    return nr_words;
}
