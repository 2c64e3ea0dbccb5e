/* SPDX-License-Identifier: MIT */
#include "document.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "utf8.h"

/* A member's name.  Almost all are ours and plain; keys of parent locators come from the image. */
static void put_name(struct document *doc, const char *name)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";

    if (name[strspn(name, plain)] == '\0') {
        fprintf(doc->out, "\"%s\": ", name);
        return;
    }
    char *encoded = document_encode(name);
    fprintf(doc->out, "%s: ", encoded ? encoded : "\"\"");
    free(encoded);
}

/* What stands before a member: comma, line break, indentation, name. */
static void lead(struct document *doc, const char *name)
{
    if (doc->depth > 0) {
        bool first = !doc->stack[doc->depth - 1].filled;

        if (!first)
            fputc(',', doc->out);
        if (doc->inline_depth && doc->depth >= doc->inline_depth)
            fputs(first ? "" : " ", doc->out);
        else
            fprintf(doc->out, "\n%*s", 2 * doc->depth, "");
        doc->stack[doc->depth - 1].filled = true;
    }
    if (name)
        put_name(doc, name);
}

void document_begin(struct document *doc, const char *name, enum document_container kind)
{
    assert(doc->depth < DOCUMENT_MAX_DEPTH);
    lead(doc, name);
    fputc(kind == DOCUMENT_OBJECT ? '{' : '[', doc->out);
    doc->stack[doc->depth].kind = kind;
    doc->stack[doc->depth].filled = false;
    doc->depth++;
}

void document_begin_inline(struct document *doc, const char *name, enum document_container kind)
{
    document_begin(doc, name, kind);
    if (!doc->inline_depth)
        doc->inline_depth = doc->depth;
}

void document_end(struct document *doc)
{
    assert(doc->depth > 0);
    bool in_line = doc->inline_depth && doc->depth >= doc->inline_depth;

    if (doc->inline_depth == doc->depth)
        doc->inline_depth = 0;
    doc->depth--;
    if (!in_line && doc->stack[doc->depth].filled)
        fprintf(doc->out, "\n%*s", 2 * doc->depth, "");
    fputc(doc->stack[doc->depth].kind == DOCUMENT_OBJECT ? '}' : ']', doc->out);
    if (doc->depth == 0)
        fputc('\n', doc->out);
}

void document_number(struct document *doc, const char *name, uint64_t value)
{
    lead(doc, name);
    fprintf(doc->out, "%" PRIu64, value);
}

void document_boolean(struct document *doc, const char *name, bool value)
{
    document_encoded(doc, name, value ? "true" : "false");
}

void document_null(struct document *doc, const char *name)
{
    document_encoded(doc, name, "null");
}

/* A copy of text in which every byte that is no UTF-8 has become U+FFFD. */
static char *clean_utf8(const char *text)
{
    static const char replacement[] = "\xef\xbf\xbd";
    char *clean = malloc(strlen(text) * (sizeof replacement - 1) + 1);
    char *to = clean;

    if (!clean)
        return NULL;
    while (*text) {
        const char *start = text;
        bool valid = utf8_next(&text) != UTF8_INVALID;
        size_t n = valid ? (size_t)(text - start) : sizeof replacement - 1;

        memcpy(to, valid ? start : replacement, n);
        to += n;
    }
    *to = '\0';
    return clean;
}

char *document_encode(const char *value)
{
    char *clean = clean_utf8(value);
    json_t *text = clean ? json_string(clean) : NULL;
    char *encoded = text ? json_dumps(text, JSON_ENCODE_ANY) : NULL;

    json_decref(text);
    free(clean);
    return encoded;
}

void document_text(struct document *doc, const char *name, const char *value)
{
    char *encoded = document_encode(value);

    document_encoded(doc, name, encoded ? encoded : "null");
    free(encoded);
}

void document_encoded(struct document *doc, const char *name, const char *encoded)
{
    lead(doc, name);
    fputs(encoded, doc->out);
}
