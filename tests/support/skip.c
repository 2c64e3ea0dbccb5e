/* SPDX-License-Identifier: MIT */
/* cmocka 1.1.5 writes a skipped test as "not ok 3 # SKIP name", which every reader of TAP counts as a failure.  All its
 * output goes through vprint_message(), which a program may replace; this one writes "ok 3 - name # SKIP reason".
 * Other lines that are not TAP, such as what tests print, become comments. */
#include "skip.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *skip_reason = "no reason given";

void skip_because(const char *reason)
{
    skip_reason = reason;
    skip();
}

static bool is_comment(const char *text)
{
    const char *output = getenv("CMOCKA_MESSAGE_OUTPUT");
    static const char *const starts[] = { "ok ", "not ok ", "1..", "#", "TAP version ", "Bail out!", "\n" };

    if (!output || strcmp(output, "TAP") != 0)
        return false;
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++)
        if (strncmp(text, starts[i], strlen(starts[i])) == 0)
            return false;
    return true;
}

void vprint_message(const char *const format, va_list args)
{
    if (strcmp(format, "not ok %u # SKIP %s\n") == 0) {
        unsigned number = va_arg(args, unsigned);
        const char *name = va_arg(args, const char *);

        printf("ok %u - %s # SKIP %s\n", number, name, skip_reason);
        skip_reason = "no reason given";
    } else {
        if (is_comment(format))
            printf("# ");
        vprintf(format, args);
    }
    fflush(stdout);
}
