/* SPDX-License-Identifier: MIT */
/* What the parts of the vhdx command share: the description of a command, the options that several commands
 * take, and opening images as those options say.
 *
 * A command is one file cmd-NAME.c that gives one struct command.  Parsing, usage lines and --help all come
 * from its option tables (options.h), so none of them can say something else than the others. */
#ifndef CMD_H
#define CMD_H

#include <stdbool.h>
#include <stdint.h>

#include "options.h"
#include "vhdx.h"

enum exit_status {
    EXIT_OK = 0,
    EXIT_TROUBLE = 1,
    EXIT_USAGE = 2,

    EXIT_COMPARE_DIFFERENT = 1,
    EXIT_COMPARE_TROUBLE = 2,

    EXIT_CHECK_CORRUPT = 2,
    EXIT_CHECK_LEAKS = 3,
};

enum { NR_OPTION_TABLES = 6 };

struct command {
    const char *name;
    const char *arguments; /* as usage shows them, separated by single spaces; required but for a last one in "[]" */
    const char *summary;   /* one line for the list of commands */
    const char *description;
    const struct option *tables[NR_OPTION_TABLES]; /* its own first, then shared ones; NULL ends */
    int trouble_status;                            /* exit status if it could not do its work */
    int usage_status;                              /* exit status of wrong usage */
    int (*run)(char **arguments);                  /* NULL ends them; returns the exit status */
};

extern const struct command command_info, command_map, command_dump, command_check, command_compare,
    command_create, command_convert, command_io, command_chain, command_rebase, command_merge, command_snapshot,
    command_mount, command_umount, command_serve;

enum output_format { OUTPUT_HUMAN, OUTPUT_JSON };
enum source_format { SOURCE_AUTO, SOURCE_VHDX, SOURCE_RAW };

/* The values of the options that several commands take. */
struct common_settings {
    int output; /* enum output_format */
    int progress, quiet;
    int source_format; /* enum source_format */
    int force_share, read_only, allow_parent_path;
    const char *parent;
    struct text_list parent_dirs;
};

extern struct common_settings common;
extern const struct option options_output[], options_progress[], options_no_progress[], options_images[], options_source_format[];

/* ---- opening images (open.c) ---- */

/* Fill options from the common settings and flags. */
void open_options_fill(struct vhdx_open_options *options, uint32_t flags);

/* Do two paths lead to the same file? */
bool is_same_file(const char *a, const char *b);

bool is_nbd_uri(const char *name);

/* Do two URIs name the same export, as far as can be seen from them?  One server may be reached in several ways. */
bool is_same_export(const char *a, const char *b);

/* 0 if the image name is the path of a file; else say why it cannot be used and return -1. */
int check_image_name(const char *name);

/* The same where an NBD URI will do, too. */
int check_disk_name(const char *name);

/* What opening name as format takes, enum vhdx_open_flags.  An NBD server exports disks, so what is no image there is raw
 * without being called so. */
uint32_t open_flags(const char *name, int format);

/* Before a long copy from or to name: an NBD server may stop answering, and then a signal ends the command nevertheless, if not
 * at once.  Until progress_end(). */
void limit_waiting_for(const char *name);

/* Nothing about the file says that it is an image of any format. */
bool may_be_raw(const char *name);

/* Report that vhdx_open() of name as format has failed with code.  message: a copy of the library's, since
 * more of the library is asked here; NULL: there was no memory for one. */
void print_open_error(const char *name, int format, int code, const char *message);

/* Open name as format and the common options say.  An export that nobody called an image is not read as one, since its content
 * would say so: that is refused.  An error is reported and returned. */
int open_image(const char *name, int format, vhdx_disk **disk);

/* The same with more flags, enum vhdx_open_flags. */
int open_image_with(const char *name, int format, uint32_t flags, vhdx_disk **disk);

/* Warn if parent, which was just recorded in the image name, is where it is not found without help: that is easier to understand
 * now than when it is needed. */
void tell_how_to_open(const char *name, const char *parent);

/* ---- surveys (survey-gaps.c) ---- */

/* Warn of the folders that the survey of name has not looked into.  True: not because of how it was asked for, but it could not.
 */
bool print_survey_gaps(const char *name, const vhdx_survey *survey);

#endif
