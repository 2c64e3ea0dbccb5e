/* SPDX-License-Identifier: MIT */
/* vhdx io: read and change the disk by commands. */
#include "cmd.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "io-command.h"
#include "io-script.h"
#include "output.h"
#include "signals.h"

static struct {
    struct text_list commands;
    int keep_going;
} settings;

static const struct option options[] = {
    {'c', "cmd", OPTION_LIST, &settings.commands, "COMMAND",
     "run COMMAND, for example 'write -P 7 1M 64k'; may be repeated"},
    {0, "keep-going", OPTION_FLAG, &settings.keep_going, NULL, "go on after commands that fail"},
    {'q', "quiet", OPTION_FLAG, &common.quiet, NULL, "print nothing but errors and what was asked for"},
    {0},
};

/* Run the lines of the script until one ends it; returns the exit status. */
static int run_script(struct io_script *script, struct io_context *io)
{
    bool failed = false, go_on = settings.keep_going || script->interactive;
    char where[128], *words[IO_MAX_WORDS];
    enum io_next next;

    while ((next = io_script_next(script)) == IO_LINE) {
        int nr_words = io_script_words(script->line, words);
        int result = 0;

        io->where = io_script_where(script, where, sizeof where);
        if (nr_words < 0) {
            print_error(io->name, "%smore than %d words", where, IO_MAX_WORDS);
            result = -1;
        } else if (nr_words > 0) {
            result = io_command_run(io, nr_words, words);
        }
        if (result < 0)
            failed = true;
        if (output_flush() < 0) /* nobody listens; the end of main() reports it */
            return EXIT_TROUBLE;
        if (result == IO_QUIT || (result < 0 && !go_on))
            break;
    }
    if (next == IO_STOPPED || signals_caught())
        return 128 + signals_caught();
    return failed || next == IO_TROUBLE ? EXIT_TROUBLE : EXIT_OK;
}

static int check_settings(void)
{
    if (!common.force_share || common.read_only)
        return EXIT_OK;
    print_error(NULL, "--force-share is for reading: give --read-only too; try 'vhdx io --help'");
    return EXIT_USAGE;
}

static int run(char **arguments)
{
    struct io_context io = {.name = arguments[0], .where = "", .quiet = common.quiet};
    struct io_script script;
    int status = check_settings();

    if (status != EXIT_OK)
        goto out_list;
    status = EXIT_TROUBLE;
    if (check_disk_name(io.name) < 0 ||
        open_image_with(io.name, common.source_format, common.read_only ? 0 : VHDX_OPEN_WRITE, &io.disk) < 0)
        goto out_list;
    signal(SIGXFSZ, SIG_IGN); /* errors like others, so that the image is closed properly */
    signal(SIGPIPE, SIG_IGN);
    signals_catch();
    if (io_script_open(&script, &settings.commands) < 0)
        print_error(NULL, "out of memory");
    else
        status = run_script(&script, &io);
    io_script_close(&script);

    int code = vhdx_close(io.disk);
    if (code < 0) {
        print_library_error(io.name, code);
        status = EXIT_TROUBLE;
    }
out_list:
    free(settings.commands.texts);
    return status;
}

const struct command command_io = {
    .name = "io",
    .arguments = "IMAGE",
    .summary = "read and change the disk by commands",
    .description =
        "Run commands on the disk: read, write, discard, flush, map, length and others ('help' lists\n"
        "them), from -c or else from standard input, one on each line.  The first that fails ends the\n"
        "run, except at a prompt.",
    .tables = {options, options_source_format, options_images},
    .trouble_status = EXIT_TROUBLE,
    .usage_status = EXIT_USAGE,
    .run = run,
};
