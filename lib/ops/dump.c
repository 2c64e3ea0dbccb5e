/* SPDX-License-Identifier: MIT */
#include "ops/dump.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/le.h"
#include "base/utf16.h"
#include "format/identifier.h"
#include "image/log-replay.h"
#include "image/overlay.h"
#include "ops/ops.h"

int give_error(const struct dump *d, int code)
{
    if (code == -ENOMEM)
        return code;
    if (code < 0)
        give_text(d, "error", error_message());
    return 0;
}

/* ---- identifier and headers ---- */

static void dump_identifier(const struct dump *d)
{
    char creator[UTF8_BYTES_FOR_UNITS(IDENTIFIER_CREATOR_UNITS)];

    identifier_creator(d->view.identifier, creator, sizeof creator);
    give_begin(d, "identifier");
    give_hex(d, "offset", IDENTIFIER_OFFSET);
    give_bool(d, "signature-valid", d->view.signature_valid);
    give_text(d, "creator", creator);
    give_end(d);
}

/* Invalid copies are decoded too: what they hold may tell what happened to them. */
static void dump_header(const struct dump *d, unsigned n)
{
    const uint8_t *raw = d->view.header_copies[n];
    struct header h;

    give_begin(d, NULL);
    give_hex(d, "offset", HEADER_OFFSET(n));
    if (!raw) {
        give_text(d, "error", "the file ends before this header, or it cannot be read");
        give_end(d);
        return;
    }
    header_decode(raw, &h);
    give_bool(d, "valid", header_is_valid(raw));
    give_bool(d, "current", d->current_header == (int)n);
    give_hex(d, "checksum", le32_get(raw + 4));
    give_number(d, "sequence-number", h.sequence_no);
    give_guid(d, "file-write-guid", &h.file_write_guid);
    give_guid(d, "data-write-guid", &h.data_write_guid);
    give_guid(d, "log-guid", &h.log_guid);
    give_number(d, "log-version", h.log_version);
    give_number(d, "version", h.version);
    give_bytes(d, "log-length", h.log_length);
    give_hex(d, "log-offset", h.log_offset);
    give_bool(d, "reserved-zero", h.reserved_is_zero);
    give_end(d);
}

static void dump_headers(const struct dump *d)
{
    dump_identifier(d);
    give_begin_array(d, "headers");
    for (unsigned n = 0; n < 2; n++)
        dump_header(d, n);
    give_end(d);
}

/* ---- region tables ---- */

static int load_region_tables(struct dump *d)
{
    d->current_table = -1;
    for (unsigned n = 0; n < 2; n++) {
        uint8_t *raw = malloc(REGION_TABLE_RAW_BYTES);
        if (!raw)
            return fail_memory("a region table");
        if (file_view_pread(&d->view, raw, REGION_TABLE_RAW_BYTES, REGION_TABLE_OFFSET(n)) < 0) {
            free(raw);
            continue;
        }
        d->tables[n] = raw;
        if (d->current_table < 0 && region_table_is_valid(raw))
            d->current_table = (int)n;
    }
    return 0;
}

/* The two regions that everything else needs. */
static void find_regions(struct dump *d)
{
    const uint8_t *raw = d->current_table < 0 ? NULL : d->tables[d->current_table];
    struct region r;

    for (uint32_t i = 0; raw && i < region_table_nr_entries(raw); i++) {
        region_table_entry(raw, i, &r);
        if (!region_is_known(&r) ||
            region_check(&r, i, REGION_TABLE_OFFSET(d->current_table), d->view.length) < 0)
            continue;
        if (guid_equal(&r.id, &region_id_bat)) {
            d->bat = r;
            d->has_bat = true;
        } else {
            d->metadata = r;
            d->has_metadata = true;
        }
    }
}

static const char *region_kind(const struct region *r)
{
    if (guid_equal(&r->id, &region_id_bat))
        return "BAT";
    return guid_equal(&r->id, &region_id_metadata) ? "metadata" : "unknown";
}

static void dump_region(const struct dump *d, const struct region *r, uint32_t index, unsigned copy)
{
    give_begin(d, NULL);
    give_text(d, "kind", region_kind(r));
    give_guid(d, "guid", &r->id);
    give_hex(d, "offset", r->file_offset);
    give_bytes(d, "length", r->length);
    give_bool(d, "required", r->required_flags & REGION_REQUIRED);
    if (r->required_flags & ~(uint32_t)REGION_REQUIRED)
        give_hex(d, "reserved-bits", r->required_flags & ~(uint32_t)REGION_REQUIRED);
    give_error(d, region_check(r, index, REGION_TABLE_OFFSET(copy), d->view.length));
    give_end(d);
}

/* A damaged copy shows its entries if it has a plausible number of them. */
static void dump_region_table(const struct dump *d, unsigned copy)
{
    const uint8_t *raw = d->tables[copy];

    give_begin(d, NULL);
    give_hex(d, "offset", REGION_TABLE_OFFSET(copy));
    if (!raw) {
        give_text(d, "error", "the file ends before this table, or it cannot be read");
        give_end(d);
        return;
    }
    give_bool(d, "valid", region_table_is_valid(raw));
    give_bool(d, "current", d->current_table == (int)copy);
    give_hex(d, "checksum", le32_get(raw + 4));
    give_number(d, "entry-count", region_table_nr_entries(raw));
    if (region_table_nr_entries(raw) <= MAX_REGIONS) {
        struct region r;
        give_begin_array(d, "regions");
        for (uint32_t i = 0; i < region_table_nr_entries(raw); i++) {
            region_table_entry(raw, i, &r);
            dump_region(d, &r, i, copy);
        }
        give_end(d);
    }
    give_end(d);
}

static void dump_region_tables(const struct dump *d)
{
    give_begin_array(d, "region-tables");
    for (unsigned copy = 0; copy < 2; copy++)
        dump_region_table(d, copy);
    give_end(d);
}

/* ---- the whole ---- */

/* See the file as it is after replay, unless the caller wants it raw or replay is impossible. */
static int apply_log(struct dump *d)
{
    struct overlay *o;

    if (d->options->raw || d->current_header < 0 || !header_log_is_dirty(&d->header))
        return 0;
    int r = header_check_version(&d->header);
    if (r == 0)
        r = header_check_log(&d->header, d->view.real_length);
    if (r == 0)
        r = log_replay_overlay(d->view.file, &d->header, d->view.real_length, &o);
    if (r == 0)
        file_view_set_overlay(&d->view, o);
    return r;
}

static int dump_file(struct dump *d)
{
    int replayed = apply_log(d);

    give_begin(d, "file");
    give_bytes(d, "length", d->view.real_length);
    give_bool(d, "log-dirty", d->current_header >= 0 && header_log_is_dirty(&d->header));
    give_bool(d, "log-replayed", d->view.overlay != NULL);
    if (d->view.overlay)
        give_bytes(d, "length-after-replay", d->view.length);
    replayed = give_error(d, replayed);
    if (d->current_header < 0)
        give_error(d, file_view_choose_header(&d->view, &d->header));
    give_end(d);
    return replayed;
}

static int dump_parts(struct dump *d)
{
    uint32_t parts = d->options->parts;

    d->current_header = file_view_choose_header(&d->view, &d->header);
    int r = dump_file(d);
    if (r == 0)
        r = load_region_tables(d);
    if (r < 0)
        return r;
    find_regions(d);
    r = dump_load_metadata(d);
    if (r == 0 && (parts & VHDX_DUMP_HEADERS))
        dump_headers(d);
    if (r == 0 && (parts & VHDX_DUMP_REGIONS))
        dump_region_tables(d);
    if (r == 0 && (parts & VHDX_DUMP_METADATA))
        r = dump_metadata(d);
    if (r == 0 && (parts & VHDX_DUMP_LOG))
        r = dump_log(d);
    if (r == 0 && (parts & VHDX_DUMP_BAT))
        r = dump_bat(d);
    return r;
}

int ops_dump(const char *path, const struct vhdx_open_options *options, const struct vhdx_dump_options *dump,
             const struct vhdx_dump_sink *sink, void *opaque)
{
    struct dump d = {.options = dump, .sink = sink, .opaque = opaque};

    if (dump->struct_bytes != sizeof *dump)
        return fail(-EINVAL, "dump options: struct_bytes is %zu, not %zu", dump->struct_bytes, sizeof *dump);
    if (dump->parts & ~(uint32_t)VHDX_DUMP_ALL)
        return fail(-EINVAL, "dump options: unknown parts 0x%" PRIx32,
                    dump->parts & ~(uint32_t)VHDX_DUMP_ALL);
    int r = file_view_open(path, options, &d.view);
    if (r < 0)
        return r;
    r = dump_parts(&d);
    file_view_close(&d.view);
    free(d.tables[0]);
    free(d.tables[1]);
    free(d.items);
    return r;
}
