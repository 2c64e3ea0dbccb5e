/* SPDX-License-Identifier: MIT */
/* The commands that "vhdx io" understands: words to a request, and the request done.  Names, flags and output
 * are those of qemu-io where it has the command. */
#ifndef IO_COMMAND_H
#define IO_COMMAND_H

#include <stdbool.h>
#include <stdint.h>

#include "vhdx.h"

enum { IO_QUIT = 1 };

/* Everything a command needs to know. */
struct io_context {
    vhdx_disk *disk;
    const char *name;  /* the image, for messages */
    const char *where; /* the command, for messages: "" or ending in ": " */
    bool quiet;        /* no statistics */
};

/* Run the command that words[0..nr_words) are, nr_words > 0.  0, IO_QUIT, or -1 after it failed and that was
 * reported. */
int io_command_run(const struct io_context *io, int nr_words, char **words);

#endif
