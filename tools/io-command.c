/* SPDX-License-Identifier: MIT */
#include "io-command.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io-request.h"
#include "io-script.h"
#include "size.h"

struct io_command {
    const char *name, *short_name;
    const char *flags; /* as in getopt(3) */
    const char *usage, *summary;
    int nr_arguments;
    int (*run)(const struct io_context *io, struct io_request *r, char **arguments);
};

/* ---- commands that move no data ---- */

struct run {
    uint64_t start, length;
    bool stored;
};

static void print_run(const struct run *run)
{
    char length[IO_AMOUNT_BYTES], start[IO_AMOUNT_BYTES];

    if (run->length > 0)
        printf("%s (0x%" PRIx64 ") bytes %s allocated at offset %s (0x%" PRIx64 ")\n", io_amount((double)run->length, length),
               run->length, run->stored ? "    " : "not", io_amount((double)run->start, start), run->start);
}

static int add_extent(void *opaque, const struct vhdx_extent *extent)
{
    struct run *run = opaque;
    bool stored = extent->flags & VHDX_EXTENT_DATA;

    if (run->length == 0 || stored != run->stored) {
        print_run(run);
        *run = (struct run){.start = extent->guest_offset, .stored = stored};
    }
    run->length += extent->length;
    return 0;
}

static int run_map(const struct io_context *io, struct io_request *r, char **arguments)
{
    struct run run = {0};
    int code = vhdx_map(io->disk, 0, vhdx_size(io->disk), add_extent, &run);

    (void)r;
    (void)arguments;
    if (code < 0)
        return io_library_trouble(io, "map", code);
    print_run(&run);
    return 0;
}

static int run_length(const struct io_context *io, struct io_request *r, char **arguments)
{
    char text[IO_AMOUNT_BYTES];

    (void)r;
    (void)arguments;
    puts(io_amount((double)vhdx_size(io->disk), text));
    return 0;
}

static int parse_number(const char *text, uint64_t max, uint64_t *value)
{
    char *end;

    if (*text < '0' || *text > '9')
        return -EINVAL;
    errno = 0;
    *value = strtoull(text, &end, 0);
    return errno || *end || *value > max ? -EINVAL : 0;
}

static int run_sleep(const struct io_context *io, struct io_request *r, char **arguments)
{
    uint64_t milliseconds;

    (void)r;
    if (parse_number(arguments[0], INT32_MAX, &milliseconds) < 0)
        return io_trouble(io, "%s is not a number of milliseconds", arguments[0]);
    io_script_sleep(milliseconds);
    return 0;
}

static int run_sigraise(const struct io_context *io, struct io_request *r, char **arguments)
{
    uint64_t signal_no;

    (void)r;
    if (parse_number(arguments[0], 64, &signal_no) < 0)
        return io_trouble(io, "%s is not a valid signal number", arguments[0]);
    fflush(stdout); /* which a signal may not leave time for */
    return raise((int)signal_no) == 0 ? 0 : io_trouble(io, "cannot raise signal %s", arguments[0]);
}

static int run_quit(const struct io_context *io, struct io_request *r, char **arguments)
{
    (void)io;
    (void)r;
    (void)arguments;
    return IO_QUIT;
}

static int run_help(const struct io_context *io, struct io_request *r, char **arguments);

static const struct io_command commands[] = {
    {"discard", "d", "fq", "discard [-fq] OFFSET LENGTH", "the guest needs these bytes no more", 2, io_run_discard},
    {"flush", "f", "", "flush", "make everything durable that was written", 0, io_run_flush},
    {"help", "?", "", "help", "list the commands", 0, run_help},
    {"length", "l", "", "length", "size of the disk", 0, run_length},
    {"map", NULL, "", "map", "which ranges have space in a file", 0, run_map},
    {"quit", "q", "", "quit", "end", 0, run_quit},
    {"read", "r", "qvP:s:l:", "read [-qv] [-P BYTE [-s SKIP] [-l LENGTH]] OFFSET LENGTH",
     "read; -v: show the bytes; -P: fail unless all have that value", 2, io_run_read},
    {"sigraise", NULL, "", "sigraise SIGNAL", "raise a signal", 1, run_sigraise},
    {"sleep", NULL, "", "sleep MILLISECONDS", "wait", 1, run_sleep},
    {"write", "w", "fquzP:s:", "write [-fquz] [-P BYTE | -s FILE] OFFSET LENGTH",
     "write that byte (default 0xcd), the file over and over, or zeroes (-z)", 2, io_run_write},
};

enum { NR_COMMANDS = sizeof commands / sizeof *commands };

static int run_help(const struct io_context *io, struct io_request *r, char **arguments)
{
    (void)io;
    (void)r;
    (void)arguments;
    for (int i = 0; i < NR_COMMANDS; i++)
        printf("%s -- %s\n", commands[i].usage, commands[i].summary);
    puts("\n-f: durable when done; -q: no statistics; -u with -z: give the space back.  More in vhdx-io(1).");
    return 0;
}

/* ---- parsing ---- */

static const struct io_command *find_command(const char *name)
{
    for (int i = 0; i < NR_COMMANDS; i++) {
        if (strcmp(commands[i].name, name) == 0 ||
            (commands[i].short_name && strcmp(commands[i].short_name, name) == 0))
            return &commands[i];
    }
    return NULL;
}

static int parse_size(const struct io_context *io, const char *text, uint64_t *value)
{
    int code = size_parse(text, value);

    if (code == -ERANGE)
        return io_trouble(io, "'%s' is too large", text);
    return code < 0 ? io_trouble(io, "'%s' is not a size such as 65536, 64k or 1.5M", text) : 0;
}

static int set_flag(const struct io_context *io, const struct io_command *command, struct io_request *r, char flag,
                    const char *value)
{
    uint64_t number;

    switch (flag) {
    case 'f':
        r->fua = true;
        return 0;
    case 'q':
        r->quiet = true;
        return 0;
    case 'u':
        r->unmap = true;
        return 0;
    case 'v':
        r->dump = true;
        return 0;
    case 'z':
        r->zeroes = true;
        return 0;
    case 'l':
        r->verify_length_given = true;
        return parse_size(io, value, &r->verify_length);
    case 'P':
        if (parse_number(value, UINT8_MAX, &number) < 0)
            return io_trouble(io, "%s is not a valid pattern byte", value);
        r->pattern = (int)number;
        return 0;
    case 's':
        if (command->run == io_run_write) {
            r->source = value;
            return 0;
        }
        r->verify_skip_given = true;
        return parse_size(io, value, &r->verify_skip);
    default:
        abort();
    }
}

/* "-qP" "7": the flags of one word; *used: how many words that took. */
static int parse_flags(const struct io_context *io, const struct io_command *command, struct io_request *r, char **words,
                       int nr_words, int *used)
{
    *used = 1;
    for (const char *letter = words[0] + 1; *letter; letter++) {
        const char *known = *letter == ':' ? NULL : strchr(command->flags, *letter);
        const char *value = NULL;

        if (!known)
            return io_trouble(io, "%s: unknown flag -%c; usage: %s", command->name, *letter, command->usage);
        if (known[1] == ':') {
            value = letter[1] ? letter + 1 : nr_words > 1 ? words[1] : NULL;
            *used = letter[1] ? 1 : 2;
            if (!value)
                return io_trouble(io, "%s: -%c needs a value; usage: %s", command->name, *letter, command->usage);
        }
        if (set_flag(io, command, r, *letter, value) < 0)
            return -1;
        if (value)
            break;
    }
    return 0;
}

int io_command_run(const struct io_context *io, int nr_words, char **words)
{
    const struct io_command *command = find_command(words[0]);
    struct io_request r = {.pattern = -1};
    int at = 1;

    if (!command)
        return io_trouble(io, "command \"%s\" not found; 'help' lists the commands", words[0]);
    while (at < nr_words && words[at][0] == '-' && words[at][1]) {
        int used;
        if (parse_flags(io, command, &r, words + at, nr_words - at, &used) < 0)
            return -1;
        at += used;
    }
    if (nr_words - at != command->nr_arguments)
        return io_trouble(io, "bad argument count %d to %s, expected %d arguments; usage: %s", nr_words - at, command->name,
                          command->nr_arguments, command->usage);
    if (command->nr_arguments == 2 &&
        (parse_size(io, words[at], &r.offset) < 0 || parse_size(io, words[at + 1], &r.length) < 0))
        return -1;
    return command->run(io, &r, words + at);
}
