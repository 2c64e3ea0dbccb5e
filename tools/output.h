/* SPDX-License-Identifier: MIT */
/* Text for people, and errors.
 *
 * Strings that come from an image, a file name included, are hostile: whatever could steer a terminal
 * (control characters, direction overrides) or is no UTF-8 is shown as \xNN or \u{N}. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include <stdbool.h>
#include <stdio.h>

/* The name that errors begin with: "vhdx", or "vhdx COMMAND"; and whether they may advise to give it --force-share. */
void output_set_command(const char *command, bool has_force_share);
const char *output_command(void);

/* One line on stderr: "vhdx COMMAND: FILE: message".  file may be NULL. */
void print_error(const char *file, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* The same with "warning: " before the message. */
void print_warning(const char *file, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* Say what is neither: that there was nothing to do, for example. */
void print_note(const char *file, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* Report what the library said about file: as print_error(), but the message may already begin with it. */
void print_image_error(const char *file, const char *message) __attribute__((cold));

/* Report the thread's last library error, or what code means if that has no text. */
void print_library_error(const char *file, int code) __attribute__((cold));

/* The text that print_library_error() shows; valid until the next library call. */
const char *library_message(int code);

/* Write text, shown safely. */
void put_text(FILE *out, const char *text);

/* "label:   text", the texts of all fields in one column. */
void put_field(const char *label, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Flush stdout, of which somebody may wait for what there is.  0; or -1: nobody takes it, which output_finish() reports. */
int output_flush(void);

/* Flush stdout; if anything that was printed there got lost, report it and return -1. */
int output_finish(void);

#endif
