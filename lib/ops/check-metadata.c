/* SPDX-License-Identifier: MIT */
/* Rules 30 to 44: the metadata table and the items that every image has (format section 7). */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/zero.h"
#include "ops/check.h"

struct metadata_check {
    struct check *c;
    uint8_t *raw; /* the table, METADATA_TABLE_RAW_BYTES */
    struct metadata_entry *items;
    const struct metadata_entry **sorted; /* scratch: pointers to all items */
    uint32_t nr_items;
};

static uint64_t entry_offset(const struct metadata_check *m, uint32_t index)
{
    return m->c->metadata.file_offset + 32 + UINT64_C(32) * index;
}

static uint64_t offset_of(const struct metadata_check *m, const struct metadata_entry *e)
{
    return entry_offset(m, (uint32_t)(e - m->items));
}

static const char *item_name(const struct metadata_entry *e, char text[VHDX_GUID_TEXT_BYTES])
{
    enum metadata_known known = metadata_identify(e);

    if (known != METADATA_UNKNOWN)
        return metadata_rules[known].name;
    guid_format(&e->id, text);
    return text;
}

/* ---- the table ---- */

/* Rule 30, and of 33 what the region's length tells. */
static bool judge_table(struct metadata_check *m)
{
    struct check *c = m->c;
    uint64_t at = c->metadata.file_offset;

    if (c->metadata.length > MAX_METADATA_REGION_BYTES)
        report(c, RULE_ITEM_LIMITS, at,
               "metadata region at 0x%" PRIx64 ": %" PRIu32 " bytes are more than the %" PRIu64
               " that this library accepts",
               at, c->metadata.length, MAX_METADATA_REGION_BYTES);
    if (metadata_table_check(m->raw, at) < 0) {
        report_failure(c, RULE_METADATA_TABLE, at);
        return false;
    }
    m->nr_items = metadata_table_nr_entries(m->raw);
    return true;
}

/* Rule 31.  The table's own verdict covers the entries too, and says not which. */
static void judge_reserved(struct metadata_check *m)
{
    const uint32_t known = VHDX_METADATA_USER | VHDX_METADATA_VIRTUAL_DISK | VHDX_METADATA_REQUIRED;
    bool told = false;

    if (metadata_table_reserved_is_zero(m->raw))
        return;
    for (uint32_t i = 0; i < m->nr_items; i++) {
        const struct metadata_entry *e = &m->items[i];
        char text[VHDX_GUID_TEXT_BYTES];
        if (e->reserved == 0 && !(e->flags & ~known))
            continue;
        told = true;
        report(m->c, RULE_METADATA_RESERVED, entry_offset(m, i) + 24,
               "metadata table entry %" PRIu32 " at 0x%" PRIx64
               " (%s): reserved bits are set (flags 0x%" PRIx32 ", reserved field 0x%" PRIx32 ")",
               i, entry_offset(m, i), item_name(e, text), e->flags, e->reserved);
    }
    if (!told)
        report(m->c, RULE_METADATA_RESERVED, m->c->metadata.file_offset + 8,
               "metadata table at 0x%" PRIx64 ": reserved fields of its header are not zero",
               m->c->metadata.file_offset);
}

/* Rule 44. */
static void judge_stale(struct metadata_check *m)
{
    uint64_t at = m->c->metadata.file_offset;
    uint64_t used = entry_offset(m, m->nr_items) - at;

    if (!memory_is_zero(m->raw + used, METADATA_TABLE_RAW_BYTES - used))
        report(m->c, RULE_ITEM_STALE, at + used,
               "metadata table at 0x%" PRIx64 ": old bytes behind its %" PRIu32
               " entries, as Windows leaves them",
               at, m->nr_items);
}

/* ---- entries ---- */

static enum rule rule_of_failure(const struct metadata_entry *e, int code)
{
    enum metadata_known known = metadata_identify(e);

    if (code == VHDX_E_UNSUPPORTED || code == VHDX_E_INCOMPLETE)
        return RULE_ITEM_UNKNOWN_REQUIRED;
    if (e->length > MAX_METADATA_ITEM_BYTES)
        return RULE_ITEM_LIMITS;
    if (known != METADATA_UNKNOWN && metadata_rules[known].length != 0 &&
        e->length != metadata_rules[known].length)
        return RULE_ITEM_FIXED;
    return RULE_ITEM_PLACE;
}

/* Rule 34.  An application's item can be no part of what a reader must know, so this is for the application
 * to mend; but until then the image does not open. */
static void judge_user_required(struct metadata_check *m, uint32_t index)
{
    char text[VHDX_GUID_TEXT_BYTES];

    report(m->c, RULE_USER_ITEM_REQUIRED, entry_offset(m, index) + 24,
           "metadata table entry %" PRIu32 " at 0x%" PRIx64 " (%s): a user item is marked as required", index,
           entry_offset(m, index), item_name(&m->items[index], text));
    m->c->result.usable = false;
}

/* Rule 36, and 43 for what is allowed and not known. */
static void judge_kind(struct metadata_check *m, uint32_t index)
{
    const uint32_t compared = VHDX_METADATA_VIRTUAL_DISK | VHDX_METADATA_REQUIRED;
    const struct metadata_entry *e = &m->items[index];
    enum metadata_known known = metadata_identify(e);
    char text[VHDX_GUID_TEXT_BYTES];

    if (known <= METADATA_PARENT_LOCATOR && ((e->flags ^ metadata_rules[known].flags) & compared))
        report(m->c, RULE_ITEM_FLAGS, entry_offset(m, index) + 24,
               "metadata table entry %" PRIu32 " at 0x%" PRIx64 " (%s): flags are 0x%" PRIx32
               " instead of 0x%" PRIx32,
               index, entry_offset(m, index), metadata_rules[known].name, e->flags,
               metadata_rules[known].flags);
    if (known == METADATA_UNKNOWN && !(e->flags & VHDX_METADATA_USER))
        report(m->c, RULE_ITEM_UNKNOWN, entry_offset(m, index),
               "metadata table entry %" PRIu32 " at 0x%" PRIx64
               ": item %s, of a kind that this program does not know, "
               "%" PRIu32 " bytes",
               index, entry_offset(m, index), item_name(e, text), e->length);
}

static void judge_entry(struct metadata_check *m, uint32_t index)
{
    const struct metadata_entry *e = &m->items[index];
    struct metadata_entry judged = *e;

    if ((e->flags & VHDX_METADATA_USER) && (e->flags & VHDX_METADATA_REQUIRED)) {
        judge_user_required(m, index);
        judged.flags &= ~(uint32_t)VHDX_METADATA_REQUIRED;
    }
    int r = metadata_entry_check(&judged, index, entry_offset(m, index), m->c->metadata.length);
    if (r < 0)
        report_failure(m->c, rule_of_failure(&judged, r), entry_offset(m, index));
    else
        judge_kind(m, index);
}

/* Rule 33: over all items. */
static void judge_totals(struct metadata_check *m)
{
    uint64_t at = m->c->metadata.file_offset, bytes[2] = {0, 0};
    uint32_t nr_user = 0;

    for (uint32_t i = 0; i < m->nr_items; i++) {
        bool user = m->items[i].flags & VHDX_METADATA_USER;
        nr_user += user;
        bytes[user] += m->items[i].length;
    }
    if (nr_user > MAX_USER_ITEMS)
        report(m->c, RULE_ITEM_LIMITS, at,
               "metadata table at 0x%" PRIx64 ": %" PRIu32 " user items, more than the %d allowed", at,
               nr_user, MAX_USER_ITEMS);
    for (unsigned user = 0; user < 2; user++) {
        if (bytes[user] <= MAX_METADATA_CATEGORY_BYTES)
            continue;
        report_as(m->c, RULE_ITEM_LIMITS, VHDX_WARNING, false, at,
                  "metadata table at 0x%" PRIx64 ": %" PRIu64 " bytes of %s items are more than the %" PRIu64
                  " that this library accepts",
                  at, bytes[user], user ? "user" : "system", MAX_METADATA_CATEGORY_BYTES);
        m->c->result.usable = false;
    }
}

static int compare_offset(const void *a, const void *b)
{
    const struct metadata_entry *const *x = a, *const *y = b;
    return (*x)->offset < (*y)->offset ? -1 : (*x)->offset > (*y)->offset;
}

static int compare_id(const void *a, const void *b)
{
    const struct metadata_entry *const *x = a, *const *y = b;
    int r = memcmp((*x)->id.bytes, (*y)->id.bytes, sizeof(*x)->id.bytes);
    return r ? r : (int)((*x)->flags & VHDX_METADATA_USER) - (int)((*y)->flags & VHDX_METADATA_USER);
}

/* Rule 32: no two items of one name, none on another's bytes. */
static void judge_disjoint(struct metadata_check *m)
{
    const struct metadata_entry **s = m->sorted, *widest = NULL;
    char text[VHDX_GUID_TEXT_BYTES], text2[VHDX_GUID_TEXT_BYTES];

    qsort(s, m->nr_items, sizeof *s, compare_id);
    for (uint32_t i = 1; i < m->nr_items; i++) {
        if (compare_id(&s[i - 1], &s[i]) == 0)
            report(m->c, RULE_ITEM_PLACE, offset_of(m, s[i]),
                   "metadata table at 0x%" PRIx64 ": item %s is listed twice", m->c->metadata.file_offset,
                   item_name(s[i], text));
    }
    qsort(s, m->nr_items, sizeof *s, compare_offset);
    for (uint32_t i = 0; i < m->nr_items; i++) {
        if (s[i]->length == 0)
            continue;
        if (widest && s[i]->offset < (uint64_t)widest->offset + widest->length)
            report(m->c, RULE_ITEM_PLACE, offset_of(m, s[i]),
                   "metadata table at 0x%" PRIx64 ": item %s at 0x%" PRIx32
                   " of the region overlaps item %s at 0x%" PRIx32 ", %" PRIu32 " bytes",
                   m->c->metadata.file_offset, item_name(s[i], text), s[i]->offset, item_name(widest, text2),
                   widest->offset, widest->length);
        if (!widest || (uint64_t)s[i]->offset + s[i]->length > (uint64_t)widest->offset + widest->length)
            widest = s[i];
    }
}

/* ---- the five fixed items ---- */

static const struct metadata_entry *find_item(const struct metadata_check *m, enum metadata_known known)
{
    for (uint32_t i = 0; i < m->nr_items; i++) {
        if (metadata_identify(&m->items[i]) == known)
            return &m->items[i];
    }
    return NULL;
}

/* Rule 35; one of the wrong length was told already. */
static int load_value(struct metadata_check *m, enum metadata_known known)
{
    const struct metadata_entry *e = find_item(m, known);
    struct check *c = m->c;
    uint8_t raw[16];

    if (!e) {
        report(c, RULE_ITEM_FIXED, c->metadata.file_offset,
               "metadata table at 0x%" PRIx64 ": the item \"%s\" is missing", c->metadata.file_offset,
               metadata_rules[known].name);
        return 0;
    }
    if (e->length != metadata_rules[known].length || !range_fits(e->offset, e->length, c->metadata.length))
        return 0;
    int r = file_view_pread(&c->view, raw, e->length, c->metadata.file_offset + e->offset);
    if (r == 0) {
        metadata_value_decode(known, raw, &c->values);
        c->has_value[known] = true;
    }
    return r;
}

/* Judge one value where the others are beyond doubt; false if it is bad. */
static bool judge_value(struct check *c, enum rule rule, const struct metadata_values *values)
{
    if (metadata_values_check(values) == 0)
        return true;
    report_failure(c, rule, c->metadata.file_offset);
    return false;
}

/* Rules 37 to 41. */
static void judge_values(struct check *c)
{
    const struct metadata_values *v = &c->values;
    const struct metadata_values good = {.block_size = MIN_BLOCK_BYTES,
                                         .virtual_size = MIB(1),
                                         .logical_sector_size = 512,
                                         .physical_sector_size = 512};
    struct metadata_values one;
    bool block_size_ok = false, sector_size_ok = false, virtual_size_ok = false;

    if (c->has_value[METADATA_FILE_PARAMETERS]) {
        one = good;
        one.block_size = v->block_size;
        block_size_ok = judge_value(c, RULE_BLOCK_SIZE, &one);
        if (v->parameter_flags & ~(uint32_t)PARAMETER_KNOWN_FLAGS)
            report(c, RULE_PARAMETERS_RESERVED, c->metadata.file_offset,
                   "metadata item File Parameters: reserved bits of the flags 0x%" PRIx32 " are set",
                   v->parameter_flags);
    }
    if (c->has_value[METADATA_LOGICAL_SECTOR_SIZE]) {
        one = good;
        one.logical_sector_size = v->logical_sector_size;
        sector_size_ok = judge_value(c, RULE_SECTOR_SIZES, &one);
    }
    if (c->has_value[METADATA_PHYSICAL_SECTOR_SIZE]) {
        one = good;
        one.physical_sector_size = v->physical_sector_size;
        judge_value(c, RULE_SECTOR_SIZES, &one);
    }
    if (c->has_value[METADATA_VIRTUAL_DISK_SIZE]) {
        one = good;
        one.virtual_size = v->virtual_size;
        one.logical_sector_size = sector_size_ok ? v->logical_sector_size : 512;
        virtual_size_ok = judge_value(c, RULE_VIRTUAL_SIZE, &one);
    }
    if (c->has_value[METADATA_VIRTUAL_DISK_ID] && guid_is_zero(&v->disk_id))
        report(c, RULE_DISK_ID, c->metadata.file_offset, "metadata item Virtual Disk ID: it is zero");
    if (block_size_ok && sector_size_ok && virtual_size_ok) {
        geometry_init(&c->geometry, v->virtual_size, v->block_size, v->logical_sector_size,
                      v->parameter_flags & PARAMETER_HAS_PARENT);
        c->geometry_usable = true;
        c->result.total_blocks = c->geometry.nr_blocks;
    }
}

static int load_values(struct metadata_check *m)
{
    int r = 0;

    for (enum metadata_known k = METADATA_FILE_PARAMETERS; r == 0 && k <= METADATA_PHYSICAL_SECTOR_SIZE; k++)
        r = load_value(m, k);
    if (r < 0)
        return r;
    judge_values(m->c);
    const struct metadata_entry *locator = find_item(m, METADATA_PARENT_LOCATOR);
    if (locator) {
        m->c->locator_entry = *locator;
        m->c->has_locator_entry = true;
    }
    return 0;
}

int check_metadata(struct check *c)
{
    struct metadata_check m = {.c = c};
    int r = 0;

    if (!c->metadata_usable)
        return 0;
    m.raw = malloc(METADATA_TABLE_RAW_BYTES);
    m.items = calloc(MAX_METADATA_ITEMS, sizeof *m.items);
    m.sorted = calloc(MAX_METADATA_ITEMS, sizeof *m.sorted);
    if (!m.raw || !m.items || !m.sorted) {
        r = fail_memory("the metadata table");
        goto out;
    }
    r = file_view_pread(&c->view, m.raw, METADATA_TABLE_RAW_BYTES, c->metadata.file_offset);
    if (r < 0 || !judge_table(&m))
        goto out;
    for (uint32_t i = 0; i < m.nr_items; i++) {
        metadata_table_entry(m.raw, i, &m.items[i]);
        m.sorted[i] = &m.items[i];
    }
    judge_reserved(&m);
    for (uint32_t i = 0; i < m.nr_items; i++)
        judge_entry(&m, i);
    judge_totals(&m);
    judge_disjoint(&m);
    r = load_values(&m);
    judge_stale(&m);
out:
    free(m.raw);
    free(m.items);
    free(m.sorted);
    return r;
}
