/* SPDX-License-Identifier: MIT */
#include "format/parent-locator.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/le.h"
#include "base/utf16.h"
#include "format/hint.h"
#include "vhdx.h"

enum {
    AT_RESERVED = 16,
    AT_COUNT = 18,
    AT_ENTRIES = 20,
    ENTRY_BYTES = 12,
    ENTRY_AT_VALUE_OFFSET = 4,
    ENTRY_AT_KEY_LENGTH = 8,
    ENTRY_AT_VALUE_LENGTH = 10,
    MAX_STRING_BYTES = 65534, /* even, in 16 bits */
    GUID_UNITS = 38,          /* with braces */
};

const guid locator_type_vhdx = {
    {0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13}};

static const char linkage_key[] = "parent_linkage";
static const char linkage2_key[] = "parent_linkage2";

uint32_t locator_nr_pairs(const uint8_t *item)
{
    return le16_get(item + AT_COUNT);
}

void locator_pair(const uint8_t *item, uint32_t index, struct locator_pair *pair)
{
    const uint8_t *entry = item + AT_ENTRIES + index * ENTRY_BYTES;

    *pair = (struct locator_pair){
        .key_offset = le32_get(entry),
        .value_offset = le32_get(entry + ENTRY_AT_VALUE_OFFSET),
        .key_length = le16_get(entry + ENTRY_AT_KEY_LENGTH),
        .value_length = le16_get(entry + ENTRY_AT_VALUE_LENGTH),
    };
}

/* ---- looking things up in a checked item ---- */

int locator_text(const uint8_t *item, uint32_t offset, uint16_t length, char *utf8, size_t utf8_bytes)
{
    int err = utf16_decode(item + offset, length / 2, utf8, utf8_bytes);

    if (err)
        return fail(err, "parent locator: the string at byte %" PRIu32 ", length %u, cannot be decoded",
                    offset, length);
    return 0;
}

static bool key_is(const uint8_t *item, const struct locator_pair *pair, const char *key)
{
    size_t nr_units = strlen(key);

    if (pair->key_length != 2 * nr_units)
        return false;
    for (size_t i = 0; i < nr_units; i++)
        if (le16_get(item + pair->key_offset + 2 * i) != (unsigned char)key[i])
            return false;
    return true;
}

bool locator_find(const uint8_t *item, const char *key, struct locator_pair *pair)
{
    for (uint32_t i = 0; i < locator_nr_pairs(item); i++) {
        locator_pair(item, i, pair);
        if (key_is(item, pair, key))
            return true;
    }
    return false;
}

static bool guid_value(const uint8_t *item, const struct locator_pair *pair, guid *g)
{
    char text[UTF8_BYTES_FOR_UNITS(GUID_UNITS)]; /* what does not fit is none */

    return utf16_decode(item + pair->value_offset, pair->value_length / 2, text, sizeof text) == 0 &&
           guid_parse(text, g) == 0;
}

void locator_linkage(const uint8_t *item, guid *linkage, guid *linkage2)
{
    struct locator_pair pair;

    if (!locator_find(item, linkage_key, &pair) || !guid_value(item, &pair, linkage))
        memset(linkage, 0, sizeof *linkage);
    if (!locator_find(item, linkage2_key, &pair) || !guid_value(item, &pair, linkage2))
        memset(linkage2, 0, sizeof *linkage2);
}

/* ---- judging ---- */

static int check_header(const uint8_t *item, uint32_t item_length, uint64_t item_offset)
{
    if (item_length < AT_ENTRIES)
        return fail(VHDX_E_METADATA,
                    "parent locator at 0x%" PRIx64 ": %" PRIu32
                    " bytes are less than its header has; " HINT_DAMAGED,
                    item_offset, item_length);

    guid type = guid_get(item);
    if (!guid_equal(&type, &locator_type_vhdx)) {
        char text[VHDX_GUID_TEXT_BYTES];
        guid_format(&type, text);
        return fail(VHDX_E_UNSUPPORTED,
                    "parent locator at 0x%" PRIx64
                    ": LocatorType %s is unknown, the parent is no VHDX; " HINT_UNSUPPORTED,
                    item_offset, text);
    }

    uint32_t nr = locator_nr_pairs(item);
    if (nr == 0)
        return fail(VHDX_E_METADATA, "parent locator at 0x%" PRIx64 ": KeyValueCount is 0; " HINT_DAMAGED,
                    item_offset);
    if (nr > MAX_LOCATOR_PAIRS)
        return fail(VHDX_E_LIMIT,
                    "parent locator at 0x%" PRIx64 ": KeyValueCount %" PRIu32
                    " is more than the 256 that this library accepts",
                    item_offset, nr);
    if (AT_ENTRIES + nr * ENTRY_BYTES > item_length)
        return fail(VHDX_E_METADATA,
                    "parent locator at 0x%" PRIx64 ": %" PRIu32 " entries do not fit in its %" PRIu32
                    " bytes; " HINT_DAMAGED,
                    item_offset, nr, item_length);
    return 0;
}

struct text_range {
    const char *name;        /* "key" or "value" */
    uint32_t offset, length; /* bytes, in the item */
};

static int check_text(const uint8_t *item, uint32_t item_length, uint64_t item_offset, uint32_t index,
                      const struct text_range *text)
{
    const char *problem = NULL;
    uint32_t table_end = AT_ENTRIES + locator_nr_pairs(item) * ENTRY_BYTES;

    if (text->length == 0 || text->length % 2 != 0)
        problem = "is empty or of odd length";
    else if (text->offset < table_end)
        problem = "lies in the table of entries";
    else if (!range_fits(text->offset, text->length, item_length))
        problem = "leaves the item";
    else if (!utf16_is_valid(item + text->offset, text->length / 2))
        problem = "is not UTF-16 without NUL";
    if (!problem)
        return 0;
    return fail(VHDX_E_METADATA,
                "parent locator at 0x%" PRIx64 ", entry %" PRIu32 " at 0x%" PRIx64 ": the %s at byte %" PRIu32
                ", length %" PRIu32 ", %s; " HINT_DAMAGED,
                item_offset, index, item_offset + AT_ENTRIES + index * ENTRY_BYTES, text->name, text->offset,
                text->length, problem);
}

static int check_unique(const uint8_t *item, uint64_t item_offset, uint32_t index)
{
    struct locator_pair pair, earlier;

    locator_pair(item, index, &pair);
    for (uint32_t i = 0; i < index; i++) {
        locator_pair(item, i, &earlier);
        if (pair.key_length == earlier.key_length &&
            memcmp(item + pair.key_offset, item + earlier.key_offset, pair.key_length) == 0)
            return fail(VHDX_E_METADATA,
                        "parent locator at 0x%" PRIx64 ": entries %" PRIu32 " and %" PRIu32
                        " have the same key; " HINT_DAMAGED,
                        item_offset, i, index);
    }
    return 0;
}

static int check_linkage(const uint8_t *item, uint64_t item_offset)
{
    struct locator_pair pair;
    guid linkage;

    if (!locator_find(item, linkage_key, &pair))
        return fail(VHDX_E_METADATA,
                    "parent locator at 0x%" PRIx64 ": the key parent_linkage is missing; " HINT_DAMAGED,
                    item_offset);
    if (!guid_value(item, &pair, &linkage))
        return fail(VHDX_E_METADATA,
                    "parent locator at 0x%" PRIx64 ": the value of parent_linkage at 0x%" PRIx64
                    " is not a GUID; " HINT_DAMAGED,
                    item_offset, item_offset + pair.value_offset);
    return 0;
}

int locator_check_structure(const uint8_t *item, uint32_t item_length, uint64_t item_offset)
{
    int err = check_header(item, item_length, item_offset);

    for (uint32_t i = 0; !err && i < locator_nr_pairs(item); i++) {
        struct locator_pair pair;
        locator_pair(item, i, &pair);
        struct text_range key = {"key", pair.key_offset, pair.key_length};
        struct text_range value = {"value", pair.value_offset, pair.value_length};

        err = check_text(item, item_length, item_offset, i, &key);
        if (!err)
            err = check_text(item, item_length, item_offset, i, &value);
        if (!err)
            err = check_unique(item, item_offset, i);
    }
    return err;
}

int locator_check(const uint8_t *item, uint32_t item_length, uint64_t item_offset)
{
    int err = locator_check_structure(item, item_length, item_offset);

    return err ? err : check_linkage(item, item_offset);
}

/* ---- encoding ---- */

/* Take one code point of NUL-terminated UTF-8; -1 if it is malformed, overlong or a surrogate. */
static int32_t take_utf8(const char **utf8)
{
    static const struct {
        uint8_t mask, lead;
        int32_t smallest;
    } forms[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    const uint8_t *p = (const uint8_t *)*utf8;
    size_t tail = 0;

    while (tail < ARRAY_LENGTH(forms) && (*p & forms[tail].mask) != forms[tail].lead)
        tail++;
    if (tail == ARRAY_LENGTH(forms))
        return -1;
    int32_t c = *p++ & ~forms[tail].mask & 0xff;
    for (size_t i = 0; i < tail; i++, p++) {
        if ((*p & 0xc0) != 0x80)
            return -1;
        c = c << 6 | (*p & 0x3f);
    }
    if (c < forms[tail].smallest || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
        return -1;
    *utf8 = (const char *)p;
    return c;
}

/* Append text as UTF-16 at *at.  Returns its length in bytes, 0 if it is empty, not UTF-8 or does not fit. */
static uint32_t put_text(const char *utf8, uint8_t *raw, uint32_t raw_bytes, uint32_t *at)
{
    uint32_t start = *at;

    while (*utf8) {
        int32_t c = take_utf8(&utf8);
        uint32_t bytes = c < 0x10000 ? 2 : 4;
        if (c < 0 || bytes > raw_bytes - *at || *at - start > MAX_STRING_BYTES - bytes)
            return 0;
        if (bytes == 2) {
            le16_put(raw + *at, (uint16_t)c);
        } else {
            le16_put(raw + *at, (uint16_t)(0xd800 + ((c - 0x10000) >> 10)));
            le16_put(raw + *at + 2, (uint16_t)(0xdc00 + ((c - 0x10000) & 0x3ff)));
        }
        *at += bytes;
    }
    return *at - start;
}

uint32_t locator_encode(const char *const (*pairs)[2], uint32_t nr, uint8_t *raw, uint32_t raw_bytes)
{
    if (nr == 0 || nr > MAX_LOCATOR_PAIRS || AT_ENTRIES + nr * ENTRY_BYTES > raw_bytes)
        return 0;
    uint32_t at = AT_ENTRIES + nr * ENTRY_BYTES;

    guid_put(raw, &locator_type_vhdx);
    le16_put(raw + AT_RESERVED, 0);
    le16_put(raw + AT_COUNT, (uint16_t)nr);
    for (uint32_t i = 0; i < nr; i++) {
        uint8_t *entry = raw + AT_ENTRIES + i * ENTRY_BYTES;
        le32_put(entry, at);
        uint32_t key_length = put_text(pairs[i][0], raw, raw_bytes, &at);
        le32_put(entry + ENTRY_AT_VALUE_OFFSET, at);
        uint32_t value_length = put_text(pairs[i][1], raw, raw_bytes, &at);
        if (key_length == 0 || value_length == 0)
            return 0;
        le16_put(entry + ENTRY_AT_KEY_LENGTH, (uint16_t)key_length);
        le16_put(entry + ENTRY_AT_VALUE_LENGTH, (uint16_t)value_length);
    }
    return at;
}
