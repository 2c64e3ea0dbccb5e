/* SPDX-License-Identifier: MIT */
#include "mount/report.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <syslog.h>

#include "output.h"

static atomic_bool detached;

void report_to_syslog(void)
{
    openlog("vhdx mount", LOG_PID, LOG_DAEMON);
    atomic_store(&detached, true);
}

void report(int level, const char *image, const char *format, ...)
{
    char *text = NULL;
    va_list args;

    va_start(args, format);
    if (vasprintf(&text, format, args) < 0)
        text = NULL;
    va_end(args);
    const char *message = text ? text : "out of memory";
    if (atomic_load(&detached))
        syslog(level, "%s%s%s", image ? image : "", image ? ": " : "", message);
    else if (level >= LOG_WARNING)
        print_warning(image, "%s", message);
    else
        print_error(image, "%s", message);
    free(text);
}
