/* SPDX-License-Identifier: MIT */
#include "io-command.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "io-script.h"
#include "output.h"
#include "size.h"

enum { PIECE_BYTES = 4 << 20, DEFAULT_PATTERN = 0xcd, DUMP_COLUMNS = 16 };

/* What a line asks for. */
struct request {
    uint64_t offset, length;
    int pattern; /* -1: none given */
    const char *source;
    uint64_t verify_skip, verify_length; /* where in the range the pattern is looked for */
    bool verify_length_given, verify_skip_given;
    bool quiet, dump, fua, zeroes, unmap;
};

struct io_command {
    const char *name, *short_name;
    const char *flags; /* as in getopt(3) */
    const char *usage, *summary;
    int nr_arguments;
    int (*run)(const struct io_context *io, struct request *r, char **arguments);
};

/* ---- messages ---- */

static int __attribute__((format(printf, 2, 3), cold))
trouble(const struct io_context *io, const char *format, ...)
{
    char *message = NULL;
    va_list args;

    va_start(args, format);
    if (vasprintf(&message, format, args) < 0)
        message = NULL;
    va_end(args);
    print_error(io->name, "%s%s", io->where, message ? message : "out of memory");
    free(message);
    return -1;
}

static int library_trouble(const struct io_context *io, const char *what, int code)
{
    return trouble(io, "%s failed: %s", what, library_message(code));
}

/* ---- numbers as qemu-io shows them ---- */

enum { AMOUNT_BYTES = 48 };

static const char *amount(double bytes, char text[AMOUNT_BYTES])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t unit = 0;

    for (; bytes >= 1024 && unit + 1 < sizeof units / sizeof *units; unit++)
        bytes /= 1024;
    int n = snprintf(text, AMOUNT_BYTES, "%.3f", bytes);
    if (n > 4 && strcmp(text + n - 4, ".000") == 0)
        n -= 4;
    snprintf(text + n, AMOUNT_BYTES - (size_t)n, " %s", units[unit]);
    return text;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void report(const struct io_context *io, const struct request *r, const char *verb, double seconds)
{
    char done[AMOUNT_BYTES], rate[AMOUNT_BYTES], took[AMOUNT_BYTES];
    double divisor = seconds > 1e-9 ? seconds : 1e-9;

    if (r->quiet || io->quiet)
        return;
    if (seconds < 60)
        snprintf(took, sizeof took, "%05.2f sec", seconds);
    else
        snprintf(took, sizeof took, "%02u:%02u:%05.2f", (unsigned)(seconds / 3600),
                 (unsigned)(seconds / 60) % 60, seconds - 60 * (double)(uint64_t)(seconds / 60));
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", verb, r->length, r->length, r->offset);
    printf("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n", amount((double)r->length, done), took,
           amount((double)r->length / divisor, rate), 1 / divisor);
}

/* ---- reading ---- */

static int verify(const struct io_context *io, const struct request *r, const uint8_t *buf, uint64_t at,
                  size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (at + i < r->verify_skip || at + i - r->verify_skip >= r->verify_length || buf[i] == r->pattern)
            continue;
        return trouble(io,
                       "Pattern verification failed at offset %" PRIu64 ", %" PRIu64 " bytes: byte %" PRIu64
                       " is 0x%02x, not "
                       "0x%02x",
                       r->offset + r->verify_skip, r->verify_length, r->offset + at + i, buf[i],
                       (unsigned)r->pattern);
    }
    return 0;
}

static void dump(const uint8_t *buf, uint64_t offset, size_t n)
{
    for (size_t line = 0; line < n; line += DUMP_COLUMNS) {
        size_t columns = n - line < DUMP_COLUMNS ? n - line : DUMP_COLUMNS;

        printf("%08" PRIx64 ":  ", offset + line);
        for (size_t i = 0; i < columns; i++)
            printf("%02x ", buf[line + i]);
        putchar(' ');
        for (size_t i = 0; i < columns; i++) {
            uint8_t c = buf[line + i];
            putchar((c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ? c : '.');
        }
        putchar('\n');
    }
}

static size_t piece_bytes(const struct request *r, uint64_t done)
{
    return r->length - done < PIECE_BYTES ? (size_t)(r->length - done) : PIECE_BYTES;
}

static bool in_disk(const struct io_context *io, const struct request *r)
{
    uint64_t size = vhdx_size(io->disk);

    if (r->offset <= size && r->length <= size - r->offset)
        return true;
    trouble(io, "%" PRIu64 " bytes at offset %" PRIu64 " reach beyond the end of the disk, %" PRIu64 " bytes",
            r->length, r->offset, size);
    return false;
}

static int run_read(const struct io_context *io, struct request *r, char **arguments)
{
    (void)arguments;
    if ((r->verify_skip_given || r->verify_length_given) && r->pattern < 0)
        return trouble(io, "-s and -l need a pattern, -P");
    if (!r->verify_length_given)
        r->verify_length = r->length > r->verify_skip ? r->length - r->verify_skip : 0;
    if (r->verify_skip > r->length || r->verify_length > r->length - r->verify_skip)
        return trouble(io, "-s and -l lie outside of the range that is read");
    if (!in_disk(io, r))
        return -1;
    uint8_t *buf = malloc(PIECE_BYTES);
    if (!buf)
        return trouble(io, "out of memory");
    double seconds = 0;
    int result = 0;
    bool verified = true;
    for (uint64_t done = 0; done < r->length && result == 0;) {
        size_t n = piece_bytes(r, done);
        double start = now();
        int code = vhdx_pread(io->disk, buf, n, r->offset + done);
        seconds += now() - start;
        if (code < 0)
            result = library_trouble(io, "read", code);
        else if (r->pattern >= 0 && verified)
            verified = verify(io, r, buf, done, n) == 0;
        if (result == 0 && r->dump)
            dump(buf, r->offset + done, n);
        done += n;
    }
    free(buf);
    if (result == 0)
        report(io, r, "read", seconds);
    return verified ? result : -1;
}

/* ---- writing ---- */

/* The bytes that a write writes: one byte value, or a file, over and over. */
struct source {
    int fd; /* -1: the value */
    uint64_t file_bytes;
    const char *name;
};

static int source_open(const struct io_context *io, const struct request *r, struct source *s)
{
    struct stat st;

    *s = (struct source){.fd = -1, .name = r->source};
    if (!r->source)
        return 0;
    s->fd = open(r->source, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0)
        return trouble(io, "-s %s: %s", r->source, strerror(errno));
    if (fstat(s->fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
        s->file_bytes = (uint64_t)st.st_size;
        return 0;
    }
    close(s->fd);
    return trouble(io, "-s %s: it has to be a file with something in it", r->source);
}

static int source_fill(const struct io_context *io, const struct source *s, uint8_t *buf, uint64_t at,
                       size_t bytes)
{
    while (s->fd >= 0 && bytes > 0) {
        uint64_t from = at % s->file_bytes;
        size_t want = s->file_bytes - from < bytes ? (size_t)(s->file_bytes - from) : bytes;
        ssize_t n = pread(s->fd, buf, want, (off_t)from);
        if (n <= 0)
            return trouble(io, "-s %s: %s", s->name, n < 0 ? strerror(errno) : "it became shorter");
        buf += n;
        at += (size_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

static int write_data(const struct io_context *io, const struct request *r, double *seconds)
{
    size_t capacity = piece_bytes(r, 0);
    uint8_t *buf = malloc(capacity ? capacity : 1);
    struct source source = {.fd = -1};
    int result = buf ? source_open(io, r, &source) : trouble(io, "out of memory");

    if (result == 0)
        memset(buf, r->pattern < 0 ? DEFAULT_PATTERN : r->pattern, capacity);
    for (uint64_t done = 0; done < r->length && result == 0;) {
        size_t n = piece_bytes(r, done);
        result = source_fill(io, &source, buf, done, n);
        if (result < 0)
            break;
        double start = now();
        int code = vhdx_pwrite(io->disk, buf, n, r->offset + done, r->fua ? VHDX_FUA : 0);
        *seconds += now() - start;
        if (code < 0)
            result = library_trouble(io, "write", code);
        done += n;
    }
    if (source.fd >= 0)
        close(source.fd);
    free(buf);
    return result;
}

/* -u lets go of the space where it can, so it is a discard, which in this library reads as zeros like any
 * other. */
static int write_zeroes(const struct io_context *io, const struct request *r, double *seconds)
{
    uint32_t flags = r->fua ? VHDX_FUA : 0;
    double start = now();
    int code = r->unmap ? vhdx_discard(io->disk, r->offset, r->length, flags)
                        : vhdx_zero(io->disk, r->offset, r->length, flags);

    *seconds += now() - start;
    return code < 0 ? library_trouble(io, "write", code) : 0;
}

static int run_write(const struct io_context *io, struct request *r, char **arguments)
{
    double seconds = 0;

    (void)arguments;
    if (r->zeroes + (r->pattern >= 0) + (r->source != NULL) > 1)
        return trouble(io, "-P, -s and -z exclude each other");
    if (r->unmap && !r->zeroes)
        return trouble(io, "-u requires -z to be specified");
    if (!in_disk(io, r))
        return -1;
    int result = r->zeroes ? write_zeroes(io, r, &seconds) : write_data(io, r, &seconds);
    if (result == 0)
        report(io, r, "wrote", seconds);
    return result;
}

static int run_discard(const struct io_context *io, struct request *r, char **arguments)
{
    double start = now();

    (void)arguments;
    if (!in_disk(io, r))
        return -1;
    int code = vhdx_discard(io->disk, r->offset, r->length, r->fua ? VHDX_FUA : 0);
    if (code < 0)
        return library_trouble(io, "discard", code);
    report(io, r, "discard", now() - start);
    return 0;
}

static int run_flush(const struct io_context *io, struct request *r, char **arguments)
{
    int code = vhdx_flush(io->disk);

    (void)r;
    (void)arguments;
    return code < 0 ? library_trouble(io, "flush", code) : 0;
}

/* ---- the rest ---- */

struct run {
    uint64_t start, length;
    bool stored;
};

static void print_run(const struct run *run)
{
    char length[AMOUNT_BYTES], start[AMOUNT_BYTES];

    if (run->length > 0)
        printf("%s (0x%" PRIx64 ") bytes %s allocated at offset %s (0x%" PRIx64 ")\n",
               amount((double)run->length, length), run->length, run->stored ? "    " : "not",
               amount((double)run->start, start), run->start);
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

static int run_map(const struct io_context *io, struct request *r, char **arguments)
{
    struct run run = {0};
    int code = vhdx_map(io->disk, 0, vhdx_size(io->disk), add_extent, &run);

    (void)r;
    (void)arguments;
    if (code < 0)
        return library_trouble(io, "map", code);
    print_run(&run);
    return 0;
}

static int run_length(const struct io_context *io, struct request *r, char **arguments)
{
    char text[AMOUNT_BYTES];

    (void)r;
    (void)arguments;
    puts(amount((double)vhdx_size(io->disk), text));
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

static int run_sleep(const struct io_context *io, struct request *r, char **arguments)
{
    uint64_t milliseconds;

    (void)r;
    if (parse_number(arguments[0], INT32_MAX, &milliseconds) < 0)
        return trouble(io, "%s is not a number of milliseconds", arguments[0]);
    io_script_sleep(milliseconds);
    return 0;
}

static int run_sigraise(const struct io_context *io, struct request *r, char **arguments)
{
    uint64_t signal_no;

    (void)r;
    if (parse_number(arguments[0], 64, &signal_no) < 0)
        return trouble(io, "%s is not a valid signal number", arguments[0]);
    fflush(stdout); /* which a signal may not leave time for */
    return raise((int)signal_no) == 0 ? 0 : trouble(io, "cannot raise signal %s", arguments[0]);
}

static int run_quit(const struct io_context *io, struct request *r, char **arguments)
{
    (void)io;
    (void)r;
    (void)arguments;
    return IO_QUIT;
}

static int run_help(const struct io_context *io, struct request *r, char **arguments);

static const struct io_command commands[] = {
    {"discard", "d", "fq", "discard [-fq] OFFSET LENGTH", "the guest needs these bytes no more", 2,
     run_discard},
    {"flush", "f", "", "flush", "make everything durable that was written", 0, run_flush},
    {"help", "?", "", "help", "list the commands", 0, run_help},
    {"length", "l", "", "length", "size of the disk", 0, run_length},
    {"map", NULL, "", "map", "which ranges have space in a file", 0, run_map},
    {"quit", "q", "", "quit", "end", 0, run_quit},
    {"read", "r", "qvP:s:l:", "read [-qv] [-P BYTE [-s SKIP] [-l LENGTH]] OFFSET LENGTH",
     "read; -v: show the bytes; -P: fail unless all have that value", 2, run_read},
    {"sigraise", NULL, "", "sigraise SIGNAL", "raise a signal", 1, run_sigraise},
    {"sleep", NULL, "", "sleep MILLISECONDS", "wait", 1, run_sleep},
    {"write", "w", "fquzP:s:", "write [-fquz] [-P BYTE | -s FILE] OFFSET LENGTH",
     "write that byte (default 0xcd), the file over and over, or zeroes (-z)", 2, run_write},
};

enum { NR_COMMANDS = sizeof commands / sizeof *commands };

static int run_help(const struct io_context *io, struct request *r, char **arguments)
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
    return size_parse(text, value) < 0 ? trouble(io, "'%s' is not a size such as 65536, 64k or 1.5M", text)
                                       : 0;
}

static int set_flag(const struct io_context *io, const struct io_command *command, struct request *r,
                    char flag, const char *value)
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
            return trouble(io, "%s is not a valid pattern byte", value);
        r->pattern = (int)number;
        return 0;
    case 's':
        if (command->run == run_write) {
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
static int parse_flags(const struct io_context *io, const struct io_command *command, struct request *r,
                       char **words, int nr_words, int *used)
{
    *used = 1;
    for (const char *letter = words[0] + 1; *letter; letter++) {
        const char *known = *letter == ':' ? NULL : strchr(command->flags, *letter);
        const char *value = NULL;

        if (!known)
            return trouble(io, "%s: unknown flag -%c; usage: %s", command->name, *letter, command->usage);
        if (known[1] == ':') {
            value = letter[1] ? letter + 1 : nr_words > 1 ? words[1] : NULL;
            *used = letter[1] ? 1 : 2;
            if (!value)
                return trouble(io, "%s: -%c needs a value; usage: %s", command->name, *letter,
                               command->usage);
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
    struct request r = {.pattern = -1};
    int at = 1;

    if (!command)
        return trouble(io, "command \"%s\" not found; 'help' lists the commands", words[0]);
    while (at < nr_words && words[at][0] == '-' && words[at][1]) {
        int used;
        if (parse_flags(io, command, &r, words + at, nr_words - at, &used) < 0)
            return -1;
        at += used;
    }
    if (nr_words - at != command->nr_arguments)
        return trouble(io, "bad argument count %d to %s, expected %d arguments; usage: %s", nr_words - at,
                       command->name, command->nr_arguments, command->usage);
    if (command->nr_arguments == 2 &&
        (parse_size(io, words[at], &r.offset) < 0 || parse_size(io, words[at + 1], &r.length) < 0))
        return -1;
    return command->run(io, &r, words + at);
}
