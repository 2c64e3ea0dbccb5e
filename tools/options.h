/* SPDX-License-Identifier: MIT */
/* Command line options: one table for parsing, usage and help.
 *
 * Long options are "--name", "--name=value" and "--name value", never abbreviated, so that a later release
 * can add names without changing what a script means.  Short ones may be joined ("-pq", "-m4").  "--" ends
 * the options. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stddef.h>
#include <stdbool.h>
#include <stdio.h>

struct command;

/* What the value of an option points to. */
enum option_kind {
    OPTION_FLAG,   /* int, set to 1 */
    OPTION_CHOICE, /* int, set to the index of the choice */
    OPTION_TEXT,   /* const char * */
    OPTION_LIST,   /* struct text_list, appended to */
    OPTION_SIZE,   /* uint64_t, by size_parse() */
    OPTION_NUMBER, /* uint64_t, decimal without suffix */
};

struct option {
    char letter;      /* 0: there is none */
    const char *name; /* NULL ends a table */
    enum option_kind kind;
    void *value;
    const char *argument; /* as help shows it; for OPTION_CHOICE the choices themselves: "a|b|c" */
    const char *help;
};

struct text_list {
    const char **texts;
    size_t nr_texts;
};

enum parse_result { PARSE_RUN, PARSE_HELP, PARSE_WRONG };

/* Store the options of argv (which begins behind the command's name) into the values of the command's tables,
 * and the other arguments, in order, into arguments[], which has room for argc.  What is wrong has been
 * reported. */
enum parse_result options_parse(const struct command *command, int argc, char **argv, char **arguments);

/* Does the command take the option of that long name? */
bool options_have(const struct command *command, const char *name);

/* Print what "vhdx COMMAND --help" prints. */
void options_help(const struct command *command, FILE *out);

#endif
