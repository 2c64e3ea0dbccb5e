/* SPDX-License-Identifier: MIT */
/* One JSON document, written while it comes into being, so that it may be longer than memory.
 *
 * name is the member's name inside an object and NULL inside an array or at the top. */
#ifndef DOCUMENT_H
#define DOCUMENT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum document_container { DOCUMENT_OBJECT, DOCUMENT_ARRAY };

enum { DOCUMENT_MAX_DEPTH = 32 };

struct document {
    FILE *out;
    int depth;
    int inline_depth; /* containers from this depth on are written in one line; 0: none */
    struct {
        enum document_container kind;
        bool filled;
    } stack[DOCUMENT_MAX_DEPTH];
};

void document_begin(struct document *doc, const char *name, enum document_container kind);

/* The same, all in one line: for the elements of long arrays. */
void document_begin_inline(struct document *doc, const char *name, enum document_container kind);

void document_end(struct document *doc); /* ends the innermost container */

void document_number(struct document *doc, const char *name, uint64_t value);
void document_boolean(struct document *doc, const char *name, bool value);
void document_null(struct document *doc, const char *name);

/* value is taken to be UTF-8; bytes that are none become U+FFFD. */
void document_text(struct document *doc, const char *name, const char *value);

/* value as JSON text, to be given to document_encoded() any number of times; the caller frees it.  NULL: no
 * memory. */
char *document_encode(const char *value);
void document_encoded(struct document *doc, const char *name, const char *encoded);

#endif
