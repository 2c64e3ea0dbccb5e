/* SPDX-License-Identifier: MIT */
#include "options.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "output.h"
#include "size.h"

static const struct option option_help = {'h', "help", OPTION_FLAG, NULL, NULL, "show this help and exit"};

/* ---- shared tables ---- */

struct common_settings common;

const struct option options_output[] = {
    {0, "json", OPTION_FLAG, &common.output, NULL, "print one JSON document, as --output=json"},
    {0, "output", OPTION_CHOICE, &common.output, "human|json", "how to print (default human)"},
    {0},
};

const struct option options_progress[] = {
    {'p', "progress", OPTION_FLAG, &common.progress, NULL,
     "show progress on stderr; the default if that is a terminal"},
    {'q', "quiet", OPTION_FLAG, &common.quiet, NULL, "print nothing but errors and what was asked for"},
    {0},
};

/* Of commands that take no time, and print nothing but what was asked for. */
const struct option options_no_progress[] = {
    {'p', "progress", OPTION_FLAG, &common.progress, NULL, "taken as by most commands; there is no progress to show here"},
    {'q', "quiet", OPTION_FLAG, &common.quiet, NULL, "taken as by most commands; nothing is left out here"},
    {0},
};

const struct option options_source_format[] = {
    {'f', "source-format", OPTION_CHOICE, &common.source_format, "auto|vhdx|raw",
     "format of the image (default auto: VHDX, or an error)"},
    {0},
};

const struct option options_images[] = {
    {0, "parent", OPTION_TEXT, &common.parent, "FILE", "the image's parent is FILE, wherever the image says"},
    {0, "parent-dir", OPTION_LIST, &common.parent_dirs, "DIR",
     "look for parents in DIR too; may be repeated"},
    {0, "allow-parent-path", OPTION_FLAG, &common.allow_parent_path, NULL,
     "follow recorded absolute parent paths"},
    {'U', "force-share", OPTION_FLAG, &common.force_share, NULL, "take no locks; the image may be changing"},
    {'r', "read-only", OPTION_FLAG, &common.read_only, NULL, "open images for reading only"},
    {0},
};

/* ---- parsing ---- */

/* The option of that long name (of length name_length) or that letter; NULL if there is none. */
static const struct option *find(const struct command *command, const char *name, size_t name_length,
                                 char letter)
{
    if (name ? strlen(option_help.name) == name_length && memcmp(option_help.name, name, name_length) == 0
             : letter == option_help.letter)
        return &option_help;
    for (int table = 0; table < NR_OPTION_TABLES && command->tables[table]; table++) {
        for (const struct option *o = command->tables[table]; o->name; o++) {
            if (name ? strlen(o->name) == name_length && memcmp(o->name, name, name_length) == 0
                     : o->letter == letter)
                return o;
        }
    }
    return NULL;
}

bool options_have(const struct command *command, const char *name)
{
    return find(command, name, strlen(name), 0) != NULL;
}

static int choice_index(const char *choices, const char *text)
{
    size_t length = strlen(text);

    for (int index = 0;; index++) {
        size_t n = strcspn(choices, "|");
        if (n == length && memcmp(choices, text, n) == 0)
            return index;
        if (choices[n] == '\0')
            return -1;
        choices += n + 1;
    }
}

static int list_append(struct text_list *list, const char *text)
{
    const char **grown = reallocarray(list->texts, list->nr_texts + 1, sizeof *grown);

    if (!grown)
        return -ENOMEM;
    grown[list->nr_texts++] = text;
    list->texts = grown;
    return 0;
}

static int number_parse(const char *text, uint64_t *value)
{
    char *end;

    if (*text < '0' || *text > '9')
        return -EINVAL;
    errno = 0;
    *value = strtoull(text, &end, 10);
    return errno || *end ? -EINVAL : 0;
}

static int wrong_usage(const struct command *command, const char *format, const char *what, const char *value)
{
    char text[1024];

    snprintf(text, sizeof text, format, what, value);
    print_error(NULL, "%s; try 'vhdx %s --help'", text, command->name);
    return -EINVAL;
}

static int store(const struct command *command, const struct option *o, const char *value)
{
    int r;

    switch (o->kind) {
    case OPTION_FLAG:
        *(int *)o->value = 1;
        return 0;
    case OPTION_TEXT:
        *(const char **)o->value = value;
        return 0;
    case OPTION_LIST:
        if (list_append(o->value, value) < 0)
            return wrong_usage(command, "--%s '%s': out of memory", o->name, value);
        return 0;
    case OPTION_CHOICE: {
        int index = choice_index(o->argument, value);
        if (index < 0) {
            print_error(NULL, "--%s must be %s, not '%s'; try 'vhdx %s --help'", o->name, o->argument, value,
                        command->name);
            return -EINVAL;
        }
        *(int *)o->value = index;
        return 0;
    }
    case OPTION_SIZE:
        r = size_parse(value, o->value);
        if (r == -ERANGE)
            return wrong_usage(command, "--%s is too large: '%s'", o->name, value);
        if (r < 0)
            return wrong_usage(command, "--%s needs a size such as 65536, 64K or 1.5GiB, not '%s'", o->name,
                               value);
        return 0;
    case OPTION_NUMBER:
        if (number_parse(value, o->value) < 0)
            return wrong_usage(command, "--%s needs a number, not '%s'", o->name, value);
        return 0;
    }
    abort();
}

/* The arguments that are still to be looked at. */
struct cursor {
    int argc;
    char **argv;
};

static const char *next_argument(struct cursor *c)
{
    if (c->argc == 0)
        return NULL;
    c->argc--;
    return *c->argv++;
}

/* One "--name[=value]". */
static enum parse_result parse_long(const struct command *command, const char *text, struct cursor *rest)
{
    size_t length = strcspn(text, "=");
    const char *value = text[length] ? text + length + 1 : NULL;
    const struct option *o = find(command, text, length, 0);

    if (!o) {
        wrong_usage(command, "unknown option '--%s'%s", text, "");
        return PARSE_WRONG;
    }
    if (!o->argument) {
        if (value) {
            wrong_usage(command, "--%s takes no value, but got '%s'", o->name, value);
            return PARSE_WRONG;
        }
    } else if (!value) {
        value = next_argument(rest);
        if (!value) {
            wrong_usage(command, "--%s needs a value: %s", o->name, o->argument);
            return PARSE_WRONG;
        }
    }
    if (o == &option_help)
        return PARSE_HELP;
    return store(command, o, value) < 0 ? PARSE_WRONG : PARSE_RUN;
}

/* One "-abc", where the last letter may take a value: the rest of the word, or the next argument. */
static enum parse_result parse_short(const struct command *command, const char *letters, struct cursor *rest)
{
    for (; *letters; letters++) {
        const char name[2] = {*letters, '\0'};
        const struct option *o = find(command, NULL, 0, *letters);

        if (!o) {
            wrong_usage(command, "unknown option '-%s'%s", name, "");
            return PARSE_WRONG;
        }
        if (o == &option_help)
            return PARSE_HELP;
        if (!o->argument) {
            if (store(command, o, NULL) < 0)
                return PARSE_WRONG;
            continue;
        }
        const char *value = letters[1] ? letters + 1 : next_argument(rest);
        if (!value) {
            wrong_usage(command, "-%s needs a value: %s", name, o->argument);
            return PARSE_WRONG;
        }
        return store(command, o, value) < 0 ? PARSE_WRONG : PARSE_RUN;
    }
    return PARSE_RUN;
}

static enum parse_result check_count(const struct command *command, char **arguments, int nr_arguments)
{
    const char *expected = command->arguments;

    for (int i = 0; i < nr_arguments; i++) {
        if (*expected == '\0') {
            wrong_usage(command, "too many arguments: '%s'%s", arguments[i], "");
            return PARSE_WRONG;
        }
        expected += strcspn(expected, " ");
        expected += *expected == ' ';
    }
    if (*expected && *expected != '[') {
        wrong_usage(command, "missing argument: %s%s", expected, "");
        return PARSE_WRONG;
    }
    return PARSE_RUN;
}

enum parse_result options_parse(const struct command *command, int argc, char **argv, char **arguments)
{
    struct cursor rest = {argc, argv};
    bool options_ended = false;
    int nr_arguments = 0;

    for (const char *word; (word = next_argument(&rest)) != NULL;) {
        enum parse_result result = PARSE_RUN;

        if (options_ended || word[0] != '-' || word[1] == '\0') /* "-" alone is stdin or stdout */
            arguments[nr_arguments++] = rest.argv[-1];
        else if (strcmp(word, "--") == 0)
            options_ended = true;
        else if (word[1] == '-')
            result = parse_long(command, word + 2, &rest);
        else
            result = parse_short(command, word + 1, &rest);
        if (result != PARSE_RUN)
            return result;
    }
    return check_count(command, arguments, nr_arguments);
}

/* ---- help ---- */

static void help_line(const struct option *o, FILE *out)
{
    char left[80];
    enum { HELP_COLUMN = 36 };

    int n = o->letter ? snprintf(left, sizeof left, "  -%c, --%s", o->letter, o->name)
                      : snprintf(left, sizeof left, "      --%s", o->name);
    if (o->argument)
        n += snprintf(left + n, sizeof left - (size_t)n, "=%s", o->argument);
    if (n > HELP_COLUMN - 2) /* too long to stand beside its text */
        fprintf(out, "%s\n%*s%s\n", left, HELP_COLUMN, "", o->help);
    else
        fprintf(out, "%-*s%s\n", HELP_COLUMN, left, o->help);
}

void options_help(const struct command *command, FILE *out)
{
    fprintf(out, "usage: vhdx %s [OPTIONS] %s\n\n%s\n\nOptions:\n", command->name, command->arguments,
            command->description);
    for (int table = 0; table < NR_OPTION_TABLES && command->tables[table]; table++) {
        for (const struct option *o = command->tables[table]; o->name; o++)
            help_line(o, out);
    }
    help_line(&option_help, out);
}
