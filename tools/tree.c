/* SPDX-License-Identifier: MIT */
#include "tree.h"

#include <assert.h>
#include <inttypes.h>

#include "output.h"
#include "size.h"

/* The beginning of a line; the dash of an element that is a container stands before its first line. */
static void lead(struct tree *tree)
{
    fprintf(tree->out, "%*s", 2 * (tree->depth - tree->dashes_due), "");
    for (; tree->dashes_due > 0; tree->dashes_due--)
        fputs("- ", tree->out);
}

static void lead_value(struct tree *tree, const char *name)
{
    lead(tree);
    if (name)
        fprintf(tree->out, "%s: ", name);
    else
        fputs("- ", tree->out);
}

static void begin(void *opaque, const char *name, bool is_array)
{
    struct tree *tree = opaque;

    (void)is_array; /* names say it: elements have none */
    if (name) {
        lead(tree);
        fprintf(tree->out, "%s:\n", name);
    } else {
        tree->dashes_due++;
    }
    tree->depth++;
}

static void end(void *opaque)
{
    struct tree *tree = opaque;

    assert(tree->depth > 0);
    if (tree->dashes_due) { /* an empty element */
        lead(tree);
        fputc('\n', tree->out);
    }
    tree->depth--;
}

static void number(void *opaque, const char *name, uint64_t value, enum vhdx_number_style style)
{
    struct tree *tree = opaque;
    char text[SIZE_TEXT_BYTES];

    lead_value(tree, name);
    switch (style) {
    case VHDX_HEX:
        fprintf(tree->out, "0x%" PRIx64 "\n", value);
        return;
    case VHDX_BYTES:
        fprintf(tree->out, "%s\n", size_full(value, text));
        return;
    case VHDX_DECIMAL:
        break;
    }
    fprintf(tree->out, "%" PRIu64 "\n", value);
}

static void text(void *opaque, const char *name, const char *value)
{
    struct tree *tree = opaque;

    lead_value(tree, name);
    put_text(tree->out, value);
    fputc('\n', tree->out);
}

static void boolean(void *opaque, const char *name, bool value)
{
    text(opaque, name, value ? "yes" : "no");
}

const struct vhdx_dump_sink tree_sink = {begin, end, number, text, boolean};
