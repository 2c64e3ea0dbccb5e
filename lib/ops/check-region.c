/* SPDX-License-Identifier: MIT */
/* Rules 20 to 29: the region tables (format section 3). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/le.h"
#include "ops/check.h"

struct region_tables {
    uint8_t raw[2][REGION_TABLE_RAW_BYTES];
    bool valid[2];
};

static uint64_t region_entry_offset(uint64_t copy_offset, uint32_t index)
{
    return copy_offset + 16 + UINT64_C(32) * index;
}

/* A copy that cannot be read is as bad as one with a wrong checksum, unless neither can be. */
static int read_tables(struct check *c, struct region_tables *t)
{
    int r[2];

    for (unsigned n = 0; n < 2; n++) {
        r[n] = file_view_pread(&c->view, t->raw[n], REGION_TABLE_RAW_BYTES, REGION_TABLE_OFFSET(n));
        t->valid[n] = r[n] == 0 && region_table_is_valid(t->raw[n]);
    }
    return r[0] < 0 && r[1] < 0 && !is_format_error(r[1]) ? r[1] : 0;
}

/* Rules 20 to 22.  Returns the copy that counts, or -1. */
static int judge_tables(struct check *c, const struct region_tables *t)
{
    if (!t->valid[0] && !t->valid[1]) {
        report(c, RULE_REGION_TABLE, REGION_TABLE_OFFSET(0),
               "region tables at 0x%" PRIx64 " and 0x%" PRIx64
               ": neither copy has the right signature, checksum and number of entries; restore the first "
               "MiB from a "
               "backup",
               REGION_TABLE_OFFSET(0), REGION_TABLE_OFFSET(1));
        return -1;
    }
    if (!t->valid[0])
        report(c, RULE_REGION_COPY_1, REGION_TABLE_OFFSET(0),
               "region table 1 at 0x%" PRIx64
               " is damaged; the second copy is good, but many programs read only the first",
               REGION_TABLE_OFFSET(0));
    else if (!t->valid[1])
        report(c, RULE_REGION_COPIES_AGREE, REGION_TABLE_OFFSET(1),
               "region table 2 at 0x%" PRIx64 " is damaged; the first copy is all that is left",
               REGION_TABLE_OFFSET(1));
    else if (memcmp(t->raw[0], t->raw[1], REGION_TABLE_RAW_BYTES) != 0)
        report(c, RULE_REGION_COPIES_AGREE, REGION_TABLE_OFFSET(1),
               "the region tables at 0x%" PRIx64 " and 0x%" PRIx64
               " are both valid, but differ; the first one counts",
               REGION_TABLE_OFFSET(0), REGION_TABLE_OFFSET(1));
    return t->valid[0] ? 0 : 1;
}

static const char *region_name(const struct region *r, char text[VHDX_GUID_TEXT_BYTES])
{
    if (guid_equal(&r->id, &region_id_bat))
        return "BAT";
    if (guid_equal(&r->id, &region_id_metadata))
        return "metadata";
    guid_format(&r->id, text);
    return text;
}

static void add_fixed(struct check *c, uint64_t start, uint64_t length, const char *what)
{
    struct fixed_range *f = &c->fixed[c->nr_fixed++];

    f->start = start;
    f->end = start + length;
    snprintf(f->what, sizeof f->what, "%s", what);
}

/* A region that lies where regions may lie: remember its place, and itself if it is one of the two. */
static void take_region(struct check *c, const struct region *r, const char *name)
{
    char what[VHDX_GUID_TEXT_BYTES + 16];

    snprintf(what, sizeof what, "%s region", name);
    add_fixed(c, r->file_offset, r->length, what);
    if (guid_equal(&r->id, &region_id_bat) && !c->bat_usable) {
        c->bat = *r;
        c->bat_usable = true;
    } else if (guid_equal(&r->id, &region_id_metadata) && !c->metadata_usable) {
        c->metadata = *r;
        c->metadata_usable = true;
    }
}

/* Rules 23, 24, 26, 28 and 29 for one entry. */
static void judge_region(struct check *c, const struct region *r, uint32_t index, uint64_t copy_offset)
{
    uint64_t at = region_entry_offset(copy_offset, index);
    char text[VHDX_GUID_TEXT_BYTES];
    const char *name = region_name(r, text);
    int e = region_check(r, index, copy_offset, c->view.length);

    if (e < 0)
        report_failure(c, e == VHDX_E_UNSUPPORTED ? RULE_REGION_UNKNOWN_REQUIRED : RULE_REGION_PLACE, at);
    if (r->required_flags & ~(uint32_t)REGION_REQUIRED)
        report(c, RULE_REGION_RESERVED, at + 28,
               "region table entry %" PRIu32 " at 0x%" PRIx64 " (%s): reserved bits are set", index, at,
               name);
    if (region_is_known(r) && !(r->required_flags & REGION_REQUIRED))
        report(c, RULE_REGION_REQUIRED, at + 28,
               "region table entry %" PRIu32 " at 0x%" PRIx64
               " (%s) is not marked as required, as QEMU writes it",
               index, at, name);
    if (!region_is_known(r) && e == 0)
        report(c, RULE_REGION_UNKNOWN, at,
               "region table entry %" PRIu32 " at 0x%" PRIx64
               ": region %s, of a kind that this program does not know, at "
               "0x%" PRIx64 ", %" PRIu32 " bytes",
               index, at, name, r->file_offset, r->length);
    if (e == 0 || e == VHDX_E_UNSUPPORTED)
        take_region(c, r, name);
}

static int compare_id(const void *a, const void *b)
{
    return memcmp(((const struct region *)a)->id.bytes, ((const struct region *)b)->id.bytes, sizeof(guid));
}

/* Rule 25.  Sorts regions. */
static void judge_unique(struct check *c, struct region *regions, uint32_t nr, uint64_t copy_offset)
{
    qsort(regions, nr, sizeof *regions, compare_id);
    for (uint32_t i = 1; i < nr; i++) {
        char text[VHDX_GUID_TEXT_BYTES];
        if (compare_id(&regions[i - 1], &regions[i]) != 0)
            continue;
        report(c, RULE_REGION_UNIQUE, copy_offset, "region table at 0x%" PRIx64 ": region %s is listed twice",
               copy_offset, region_name(&regions[i], text));
    }
}

/* Rule 21 goes on: a table without the two regions is as good as none. */
static void judge_known(struct check *c, const struct region *regions, uint32_t nr, uint64_t copy_offset)
{
    bool has_bat = false, has_metadata = false;

    for (uint32_t i = 0; i < nr; i++) {
        has_bat |= guid_equal(&regions[i].id, &region_id_bat);
        has_metadata |= guid_equal(&regions[i].id, &region_id_metadata);
    }
    if (!has_bat)
        report(c, RULE_REGION_TABLE, copy_offset, "region table at 0x%" PRIx64 ": the BAT region is missing",
               copy_offset);
    if (!has_metadata)
        report(c, RULE_REGION_TABLE, copy_offset,
               "region table at 0x%" PRIx64 ": the metadata region is missing", copy_offset);
}

static int compare_start(const void *a, const void *b)
{
    uint64_t x = ((const struct fixed_range *)a)->start, y = ((const struct fixed_range *)b)->start;
    return x < y ? -1 : x > y;
}

/* Rule 27.  Each range is held against the one before it that reaches farthest. */
static void judge_disjoint(struct check *c)
{
    uint32_t widest = 0;

    qsort(c->fixed, c->nr_fixed, sizeof *c->fixed, compare_start);
    for (uint32_t i = 1; i < c->nr_fixed; i++) {
        const struct fixed_range *a = &c->fixed[widest], *b = &c->fixed[i];
        if (b->start < a->end)
            report(c, RULE_REGION_DISJOINT, b->start,
                   "the %s at 0x%" PRIx64 "..0x%" PRIx64 " overlaps the %s at 0x%" PRIx64 "..0x%" PRIx64,
                   b->what, b->start, b->end, a->what, a->start, a->end);
        if (b->end > a->end)
            widest = i;
    }
}

static int judge_entries(struct check *c, const uint8_t *raw, uint64_t copy_offset)
{
    uint32_t nr = region_table_nr_entries(raw);
    struct region *regions = calloc(nr + 1, sizeof *regions);

    if (!regions)
        return fail_memory("the region table");
    for (uint32_t i = 0; i < nr; i++) {
        region_table_entry(raw, i, &regions[i]);
        judge_region(c, &regions[i], i, copy_offset);
    }
    judge_known(c, regions, nr, copy_offset);
    judge_unique(c, regions, nr, copy_offset);
    free(regions);
    return 0;
}

int check_regions(struct check *c)
{
    struct region_tables *t = malloc(sizeof *t);
    int r = 0, n;

    c->fixed = calloc(MAX_REGIONS + 2, sizeof *c->fixed);
    if (!t || !c->fixed) {
        r = fail_memory("the region tables");
        goto out;
    }
    add_fixed(c, 0, HEADER_AREA_BYTES, "header area");
    if (c->log_place_usable)
        add_fixed(c, c->header.log_offset, c->header.log_length, "log");
    r = read_tables(c, t);
    if (r < 0)
        goto out;
    n = judge_tables(c, t);
    if (n >= 0) {
        if (le32_get(t->raw[n] + 12) != 0)
            report(c, RULE_REGION_RESERVED, REGION_TABLE_OFFSET(n) + 12,
                   "region table at 0x%" PRIx64 ": the reserved field is not zero", REGION_TABLE_OFFSET(n));
        r = judge_entries(c, t->raw[n], REGION_TABLE_OFFSET(n));
    }
    judge_disjoint(c);
out:
    free(t);
    return r;
}
