/* SPDX-License-Identifier: MIT */
#include "output.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "progress.h"
#include "utf8.h"
#include "vhdx.h"

static const char *command_name;
static bool may_share;

void output_set_command(const char *command, bool has_force_share)
{
    command_name = command;
    may_share = has_force_share;
}

const char *output_command(void)
{
    return command_name;
}

/* Characters that a terminal obeys instead of showing them, or that reorder the text around them. */
static bool is_unsafe(int32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x61c || c == 0x200e || c == 0x200f || c == 0x2028 ||
           c == 0x2029 || (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0xfeff;
}

void put_text(FILE *out, const char *text)
{
    while (*text) {
        const char *start = text;
        int32_t c = utf8_next(&text);

        if (c == UTF8_INVALID || (c < 0x80 && is_unsafe(c)))
            fprintf(out, "\\x%02x", (unsigned char)*start);
        else if (is_unsafe(c))
            fprintf(out, "\\u{%x}", (unsigned)c);
        else
            fwrite(start, 1, (size_t)(text - start), out);
    }
}

static void put_message(const char *file, const char *kind, const char *format, va_list args)
{
    char *message = NULL;

    if (vasprintf(&message, format, args) < 0)
        message = NULL;
    progress_hide();
    fflush(stdout); /* so that both streams of one terminal stay in order */
    flockfile(stderr);
    fprintf(stderr, "vhdx%s%s: ", command_name ? " " : "", command_name ? command_name : "");
    if (file) {
        put_text(stderr, file);
        fputs(": ", stderr);
    }
    fputs(kind, stderr);
    put_text(stderr, message ? message : "out of memory");
    fputc('\n', stderr);
    funlockfile(stderr);
    free(message);
}

void print_error(const char *file, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    put_message(file, "", format, args);
    va_end(args);
}

void print_warning(const char *file, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    put_message(file, "warning: ", format, args);
    va_end(args);
}

void print_note(const char *file, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    put_message(file, "", format, args);
    va_end(args);
}

const char *library_message(int code)
{
    const char *message = vhdx_error_message();

    return *message ? message : vhdx_strerror(code);
}

void print_image_error(const char *file, const char *message)
{
    static const char advice[] = ", or use --force-share to read anyway"; /* the library does not know who asks */
    size_t length = strlen(file);

    if (strncmp(message, file, length) == 0 && strncmp(message + length, ": ", 2) == 0)
        message += length + 2;
    const char *end = may_share ? NULL : strstr(message, advice);
    if (end)
        print_error(file, "%.*s first%s", (int)(end - message), message, end + strlen(advice));
    else
        print_error(file, "%s", message);
}

void print_library_error(const char *file, int code)
{
    print_image_error(file, library_message(code));
}

void put_field(const char *label, const char *format, ...)
{
    enum { LABEL_COLUMNS = 22 };
    char *value = NULL;
    va_list args;

    va_start(args, format);
    if (vasprintf(&value, format, args) < 0)
        value = NULL;
    va_end(args);
    int n = printf("%s:", label);
    printf("%*s", n < LABEL_COLUMNS ? LABEL_COLUMNS - n : 1, "");
    put_text(stdout, value ? value : "");
    putchar('\n');
    free(value);
}

static int output_error; /* an errno; 0: none known */

int output_flush(void)
{
    errno = 0;
    bool lost = ferror(stdout);

    if (fflush(stdout) == 0 && !lost)
        return 0;
    if (!output_error)
        output_error = errno; /* stdio itself remembers only that there was one */
    return -1;
}

int output_finish(void)
{
    if (output_flush() == 0)
        return 0;
    print_error(NULL, "standard output: %s", output_error ? strerror(output_error) : "write error");
    return -1;
}
