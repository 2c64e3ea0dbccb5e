/* SPDX-License-Identifier: MIT */
/* The vhdx command: finds the command, reads its options, runs it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"
#include "output.h"

static const struct command *const commands[] = {
    &command_info, &command_map, &command_check, &command_dump, &command_create, &command_convert,
    &command_compare, &command_io, &command_chain, &command_rebase, &command_merge, &command_snapshot, &command_serve,
#if HAVE_FUSE
    &command_mount, &command_umount,
#endif
};

enum { NR_COMMANDS = sizeof commands / sizeof *commands };

static void print_help(void)
{
    puts("usage: vhdx [--help|--version] COMMAND [OPTIONS] ARGUMENTS\n\n"
         "Read and make VHDX (Hyper-V virtual hard disk v2) images.\n\nCommands:");
    for (int i = 0; i < NR_COMMANDS; i++)
        printf("  %-10s%s\n", commands[i]->name, commands[i]->summary);
    puts("\nOptions:\n"
         "  -h, --help      show this help and exit\n"
         "  -V, --version   show the version and exit\n\n"
         "'vhdx COMMAND --help' and vhdx-COMMAND(1) tell more about one command.");
}

static const struct command *find_command(const char *name)
{
    for (int i = 0; i < NR_COMMANDS; i++) {
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    }
    return NULL;
}

static int run_command(const struct command *command, int argc, char **argv)
{
    char **arguments = calloc((size_t)argc + 1, sizeof *arguments);
    int status = command->trouble_status;

    output_set_command(command->name, options_have(command, "force-share"));
    if (!arguments) {
        print_error(NULL, "out of memory");
        return status;
    }
    switch (options_parse(command, argc, argv, arguments)) {
    case PARSE_RUN:
        status = command->run(arguments);
        break;
    case PARSE_HELP:
        options_help(command, stdout);
        status = EXIT_OK;
        break;
    case PARSE_WRONG:
        status = command->usage_status;
        break;
    }
    free(arguments);
    free(common.parent_dirs.texts);
    return output_finish() < 0 ? command->trouble_status : status;
}

/* Whoever starts us without standard descriptors must not have the first file that we open take their place, and our messages
 * written into it. */
static void fill_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        /* The wrong way round, so that using them fails as if they were closed. */
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0)
            exit(EXIT_TROUBLE);
    }
}

int main(int argc, char **argv)
{
    const char *first = argc > 1 ? argv[1] : NULL;

    fill_standard_descriptors();
    if (!first) {
        print_error(NULL, "no command given; try 'vhdx --help'");
        return EXIT_USAGE;
    }
    if (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0) {
        print_help();
        return output_finish() < 0 ? EXIT_TROUBLE : EXIT_OK;
    }
    if (strcmp(first, "--version") == 0 || strcmp(first, "-V") == 0) {
        printf("vhdx %s (libvhdx %s)\n", VHDX_VERSION, vhdx_version());
        return output_finish() < 0 ? EXIT_TROUBLE : EXIT_OK;
    }
    const struct command *command = find_command(first);
    if (!command) {
        print_error(NULL, "unknown %s '%s'; try 'vhdx --help'", *first == '-' ? "option" : "command", first);
        return EXIT_USAGE;
    }
    return run_command(command, argc - 2, argv + 2);
}
