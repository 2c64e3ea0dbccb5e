/* SPDX-License-Identifier: MIT */
/* A VHDX file that may be damaged in any way, as the checker and the dumper look at it: nothing is believed
 * but that it begins like a VHDX.  Once an overlay is given, everything is read as it will be after replay of
 * the log. */
#ifndef VHDX_OPS_FILE_VIEW_H
#define VHDX_OPS_FILE_VIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/header.h"
#include "vhdx.h"

struct overlay;
struct storage;

struct file_view {
    struct storage *file;      /* owned */
    struct overlay *overlay;   /* owned; NULL: read the file as it is on disk */
    uint64_t real_length;      /* bytes, on disk */
    uint64_t length;           /* bytes, after replay */
    bool signature_valid;      /* the identifier's */
    uint8_t *identifier;       /* IDENTIFIER_RAW_BYTES, zeros where the file ends before */
    uint8_t *header_copies[2]; /* HEADER_RAW_BYTES each; NULL: it could not be read */
};

/* Open path for reading, locked as options ask for, and read the identifier and both headers.  A file without
 * the signature is still taken for a damaged VHDX if a header is valid.  VHDX_E_NOT_VHDX (with a guess what
 * it is), VHDX_E_LOCKED, -EINVAL for options that make no sense, errno.  After a failure there is nothing to
 * close. */
int file_view_open(const char *path, const struct vhdx_open_options *options, struct file_view *v);
void file_view_close(struct file_view *v);

/* From now on show the file as o (which v then owns) says. */
void file_view_set_overlay(struct file_view *v, struct overlay *o);

/* Read exactly bytes; VHDX_E_TRUNCATED at the end of the file. */
int file_view_pread(const struct file_view *v, void *buf, size_t bytes, uint64_t offset);

/* As storage_next_data(). */
int file_view_next_data(const struct file_view *v, uint64_t offset, uint64_t *start, uint64_t *end);

/* Which copy of the header counts, 0 or 1; VHDX_E_HEADER if neither does. */
int file_view_choose_header(const struct file_view *v, struct header *h);

/* Does the code say something of the file's content, rather than that reading cannot go on? */
static inline bool is_format_error(int code)
{
    return code <= VHDX_E_NOT_VHDX && code >= VHDX_E_LOCKED;
}

#endif
