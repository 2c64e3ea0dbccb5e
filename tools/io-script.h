/* SPDX-License-Identifier: MIT */
/* Where "vhdx io" takes its commands from: the -c options, a file or pipe on standard input, or a prompt. */
#ifndef IO_SCRIPT_H
#define IO_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "options.h"

enum { IO_MAX_LINE_BYTES = 64 * 1024, IO_MAX_WORDS = 64 };

struct io_script {
    const struct text_list *texts; /* of -c; none: standard input is read */
    bool interactive;              /* a person sits there: prompt, and go on after failures */
    uint64_t line_no;              /* of the present line, from 1 */
    char *line;                    /* the present one; NULL before the first */

    char *buf; /* of standard input: what was read but not used begins at `start` and ends at `end` */
    size_t start, end;
    bool at_end;
};

enum io_next {
    IO_LINE,    /* script->line is the next line, without its end */
    IO_END,     /* there is none */
    IO_STOPPED, /* a signal asks to stop */
    IO_TROUBLE, /* cannot read; it has been reported */
};

/* texts may be empty and has to live as long as the script.  0 or -ENOMEM. */
int io_script_open(struct io_script *script, const struct text_list *texts);
void io_script_close(struct io_script *script);

enum io_next io_script_next(struct io_script *script);

/* Name the present line in messages: a command of -c by itself, one of standard input by its number. */
const char *io_script_where(const struct io_script *script, char *text, size_t text_bytes);

/* Cut line into words at spaces and tabs; a word that begins with '#' begins a comment.  Returns how many
 * there are, -1 if more than IO_MAX_WORDS. */
int io_script_words(char *line, char *words[IO_MAX_WORDS]);

/* Let so much time pass, or less if a signal asks to stop. */
void io_script_sleep(uint64_t milliseconds);

#endif
