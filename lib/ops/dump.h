/* SPDX-License-Identifier: MIT */
/* The dumper's parts.  Nothing ends a dump but memory and I/O on the first MiB: what cannot be decoded
 * becomes a text named "error" in its place, and decoding goes on behind it.
 *
 *   dump.c           the file, identifier, headers, region tables
 *   dump-metadata.c  the metadata table and its items
 *   dump-log.c       log entries, and what replay would do
 *   dump-bat.c       the block allocation table */
#ifndef VHDX_OPS_DUMP_H
#define VHDX_OPS_DUMP_H

#include "base/error.h"
#include "base/guid.h"
#include "format/bat.h"
#include "format/header.h"
#include "format/metadata.h"
#include "format/region-table.h"
#include "ops/file-view.h"

struct dump {
    struct file_view view;
    const struct vhdx_dump_options *options;
    const struct vhdx_dump_sink *sink;
    void *opaque;

    struct header header;
    int current_header; /* 0, 1, or negative: there is none */

    uint8_t *tables[2]; /* the region tables, REGION_TABLE_RAW_BYTES; NULL: could not be read */
    int current_table;  /* 0, 1, or -1 */
    struct region bat, metadata;
    bool has_bat, has_metadata; /* the region lies inside the file */

    uint8_t *items; /* the metadata table, METADATA_TABLE_RAW_BYTES; NULL: there is none */
    struct geometry geometry;
    bool has_geometry;
};

/* Read the metadata table and what the BAT's geometry depends on. */
int dump_load_metadata(struct dump *d);

/* One for each part. */
int dump_metadata(struct dump *d);
int dump_log(struct dump *d);
int dump_bat(struct dump *d);

/* ---- giving to the sink ---- */

static inline void give_begin(const struct dump *d, const char *name)
{
    d->sink->begin(d->opaque, name, false);
}

static inline void give_begin_array(const struct dump *d, const char *name)
{
    d->sink->begin(d->opaque, name, true);
}

static inline void give_end(const struct dump *d)
{
    d->sink->end(d->opaque);
}

static inline void give_number(const struct dump *d, const char *name, uint64_t value)
{
    d->sink->number(d->opaque, name, value, VHDX_DECIMAL);
}

static inline void give_hex(const struct dump *d, const char *name, uint64_t value)
{
    d->sink->number(d->opaque, name, value, VHDX_HEX);
}

static inline void give_bytes(const struct dump *d, const char *name, uint64_t value)
{
    d->sink->number(d->opaque, name, value, VHDX_BYTES);
}

static inline void give_text(const struct dump *d, const char *name, const char *value)
{
    d->sink->text(d->opaque, name, value);
}

static inline void give_bool(const struct dump *d, const char *name, bool value)
{
    d->sink->boolean(d->opaque, name, value);
}

static inline void give_guid(const struct dump *d, const char *name, const guid *value)
{
    char text[VHDX_GUID_TEXT_BYTES];

    guid_format(value, text);
    give_text(d, name, text);
}

/* The message of the call that has just failed.  Returns 0 for the caller to go on with, but -ENOMEM as it
 * is. */
int give_error(const struct dump *d, int code);

#endif
