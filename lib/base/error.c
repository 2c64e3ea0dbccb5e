/* SPDX-License-Identifier: MIT */
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local struct error_text current;

int fail(int code, const char *format, ...)
{
    va_list args;
    char text[ERROR_TEXT_BYTES]; /* the arguments may point into the present text */

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(current.text, text, sizeof text);
    return code;
}

int fail_errno(const char *format, ...)
{
    int saved = errno;
    va_list args;
    char text[ERROR_TEXT_BYTES - 128];
    char reason[128];

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const char *r = strerror_r(saved, reason, sizeof reason);
    snprintf(current.text, sizeof current.text, "%s: %.100s", text, r);
    return saved > 0 ? -saved : -EIO;
}

int fail_in(int code, const char *format, ...)
{
    va_list args;
    char name[ERROR_TEXT_BYTES / 2];
    char text[ERROR_TEXT_BYTES];

    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    memcpy(text, current.text, sizeof text);
    snprintf(current.text, sizeof current.text, "%s: %.500s", name, text);
    return code;
}

int fail_memory(const char *what)
{
    return fail(-ENOMEM, "out of memory for %s", what);
}

const char *error_message(void)
{
    return current.text;
}

void error_save(struct error_text *to)
{
    *to = current;
}

void error_restore(const struct error_text *from)
{
    current = *from;
}
