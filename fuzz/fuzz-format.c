/* SPDX-License-Identifier: MIT */
/* Every structure of lib/format straight from bytes: decoded, judged, encoded again.  The first byte of the
 * input says which.  What a check lets pass must be as its header promises, and small pieces are held against
 * the simplest way to do the same. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/le.h"
#include "base/utf16.h"
#include "format/bat.h"
#include "format/header.h"
#include "format/identifier.h"
#include "format/log-entry.h"
#include "format/metadata.h"
#include "format/parent-locator.h"
#include "format/region-table.h"
#include "image/mib-set.h"
#include "input.h"
#include "require.h"
#include "vhdx.h"

/* Memory of exactly this size, so that sanitizers see every access beyond it; filled from the input, then
 * zeros. */
static uint8_t *exact(struct input *in, size_t bytes)
{
    uint8_t *p = calloc(bytes ? bytes : 1, 1);
    size_t n = bytes;
    const uint8_t *from = take_bytes(in, &n);

    REQUIRE(p, "no memory");
    memcpy(p, from, n);
    return p;
}

static void require_verdict(int r)
{
    REQUIRE(r == 0 || (r <= VHDX_E_NOT_VHDX && r >= VHDX_E_LIMIT && error_message()[0] != '\0'), "%d: %s", r,
            error_message());
}

/* ---- headers ---- */

static void give_checksum(uint8_t *raw, size_t bytes)
{
    le32_put(raw + 4, crc32c_with_hole(raw, bytes, 4));
}

static void try_header(struct input *in)
{
    uint8_t what = take8(in);
    uint64_t file_length = take64(in);
    uint8_t *a = exact(in, HEADER_RAW_BYTES), *b = exact(in, HEADER_RAW_BYTES), again[HEADER_RAW_BYTES];
    struct header h;

    if (what & 1)
        memcpy(a, "head", 4);
    if (what & 2)
        memcpy(b, a, what & 4 ? HEADER_RAW_BYTES : 80);
    give_checksum(a, what & 8 ? HEADER_RAW_BYTES : 4090);
    give_checksum(b, HEADER_RAW_BYTES);
    int n = header_choose(what & 16 ? NULL : a, b);
    REQUIRE(n >= 0 || n == VHDX_E_HEADER, "%d", n);
    REQUIRE(n < 0 || header_is_valid(n == 0 ? a : b), "copy %d was chosen", n);
    header_decode(a, &h);
    require_verdict(header_check_version(&h));
    int r = header_check_log(&h, file_length);
    require_verdict(r);
    REQUIRE(r < 0 || h.log_length == 0 ||
                (h.log_offset >= MIB(1) && h.log_length % MIB(1) == 0 && h.log_length <= GIB(1) &&
                 h.log_offset <= file_length && h.log_length <= file_length - h.log_offset),
            "log at 0x%" PRIx64 " passed", h.log_offset);
    header_encode(&h, again);
    REQUIRE(header_is_valid(again), "encoded, but not valid");
    if (header_is_valid(a) && h.reserved_is_zero)
        REQUIRE(memcmp(a, again, sizeof again) == 0, "decoding and encoding changes a header");
    free(a);
    free(b);
}

/* ---- region table ---- */

static void try_regions(struct input *in)
{
    uint64_t file_length = take64(in);
    uint32_t nr = take16(in);
    uint8_t *raw = exact(in, REGION_TABLE_RAW_BYTES);
    struct region r;

    memcpy(raw, "regi", 4);
    le32_put(raw + 8, nr);
    give_checksum(raw, REGION_TABLE_RAW_BYTES);
    REQUIRE(region_table_is_valid(raw) == (nr <= MAX_REGIONS), "%u entries", nr);
    for (uint32_t i = 0; nr <= MAX_REGIONS && i < nr; i++) {
        region_table_entry(raw, i, &r);
        int v = region_check(&r, i, REGION_TABLE_OFFSET(0), file_length);
        require_verdict(v);
        REQUIRE(v < 0 ||
                    (r.file_offset >= MIB(1) && r.length > 0 && (r.file_offset | r.length) % MIB(1) == 0 &&
                     r.file_offset + r.length > r.file_offset),
                "region at 0x%" PRIx64 " passed", r.file_offset);
        REQUIRE(v < 0 || !region_is_known(&r) || r.file_offset + r.length <= file_length,
                "region behind the end passed");
        REQUIRE(v < 0 || region_is_known(&r) || !(r.required_flags & REGION_REQUIRED),
                "unknown required region passed");
        if (i > 64 && i < nr - 2) /* the input does not reach so far: all the same */
            i = nr - 2;
    }
    if (nr <= MAX_REGIONS)
        region_table_reserved_is_zero(raw);
    free(raw);
}

/* ---- metadata ---- */

static void try_metadata_table(struct input *in)
{
    uint64_t region_length = take32(in);
    uint8_t *raw = exact(in, METADATA_TABLE_RAW_BYTES);
    struct metadata_entry e;

    memcpy(raw, "metadata", 8);
    int r = metadata_table_check(raw, MIB(2));
    require_verdict(r);
    REQUIRE((r == 0) == (le16_get(raw + 10) <= MAX_METADATA_ITEMS), "%u items", le16_get(raw + 10));
    for (uint32_t i = 0; r == 0 && i < metadata_table_nr_entries(raw) && i < 70; i++) {
        metadata_table_entry(raw, i, &e);
        enum metadata_known known = metadata_identify(&e);
        REQUIRE(known <= METADATA_UNKNOWN && (known == METADATA_UNKNOWN || !(e.flags & VHDX_METADATA_USER)),
                "item %d", known);
        int v = metadata_entry_check(&e, i, MIB(2), region_length);
        require_verdict(v);
        REQUIRE(
            v < 0 || e.length == 0 ||
                (e.offset >= KIB(64) && e.length <= MIB(1) && (uint64_t)e.offset + e.length <= region_length),
            "item at 0x%" PRIx32 " passed", e.offset);
        REQUIRE(v < 0 || known == METADATA_UNKNOWN || metadata_rules[known].length == 0 ||
                    e.length == metadata_rules[known].length,
                "item of %" PRIu32 " bytes passed", e.length);
    }
    if (r == 0)
        metadata_table_reserved_is_zero(raw);
    free(raw);
}

/* Values that pass their check; false if these do not. */
static bool take_values(struct input *in, struct metadata_values *values)
{
    uint8_t shifts = take8(in), raw[16];

    *values = (struct metadata_values){
        .block_size = UINT32_C(1) << (shifts & 31),
        .parameter_flags = take8(in),
        .virtual_size = take64(in),
        .logical_sector_size = shifts & 32 ? 4096 : 512,
        .physical_sector_size = shifts & 64 ? 4096 : 512,
    };
    if (shifts & 128) /* any at all */
        values->block_size = take32(in);
    for (enum metadata_known k = METADATA_FILE_PARAMETERS; k <= METADATA_PHYSICAL_SECTOR_SIZE; k++) {
        REQUIRE(metadata_value_encode(k, values, raw) == metadata_rules[k].length, "length of item %d", k);
        metadata_value_decode(k, raw, values);
    }
    int r = metadata_values_check(values);
    require_verdict(r);
    return r == 0;
}

/* ---- parent locator ---- */

static bool is_ascii(const char *text)
{
    for (const char *p = text; *p; p++) {
        if ((unsigned char)*p >= 0x80)
            return false;
    }
    return true;
}

static void try_locator(struct input *in)
{
    const size_t bytes = UTF8_BYTES_FOR_UNITS(UINT16_MAX / 2);
    uint8_t what = take8(in);
    size_t length = what & 1 ? take16(in) : in->left;
    uint8_t *item = exact(in, length);
    char *text = malloc(bytes);
    struct locator_pair p, found;
    guid linkage, linkage2;

    REQUIRE(text, "no memory");
    if (what & 2 && length >= sizeof locator_type_vhdx)
        guid_put(item, &locator_type_vhdx);
    int structure = locator_check_structure(item, (uint32_t)length, MIB(2)),
        r = locator_check(item, (uint32_t)length, MIB(2));
    require_verdict(structure);
    require_verdict(r);
    REQUIRE(structure == 0 || r < 0, "passed as a whole, but not its structure");
    for (uint32_t i = 0; structure == 0 && i < locator_nr_pairs(item); i++) {
        locator_pair(item, i, &p);
        REQUIRE(locator_text(item, p.key_offset, p.key_length, text, bytes) == 0 && text[0], "key %u", i);
        REQUIRE(!is_ascii(text) || (locator_find(item, text, &found) && memcmp(&found, &p, sizeof p) == 0),
                "key %s cannot be found", text);
        REQUIRE(locator_text(item, p.value_offset, p.value_length, text, bytes) == 0 && text[0], "value %u",
                i);
        locator_text(item, p.value_offset, p.value_length, text, 8);
    }
    if (r == 0)
        locator_linkage(item, &linkage, &linkage2);
    free(text);
    free(item);
}

/* What is encoded can be found again. */
static void try_locator_encode(struct input *in)
{
    const char *pairs[4][2];
    char texts[8][24], text[UTF8_BYTES_FOR_UNITS(24)];
    uint8_t *raw = malloc(512);
    uint32_t nr = take8(in) % 5, room = take16(in) % 512;
    struct locator_pair p;

    REQUIRE(raw, "no memory");
    for (uint32_t i = 0; i < 2 * nr; i++) {
        size_t n = take8(in) % 24;
        const uint8_t *from = take_bytes(in, &n);
        memcpy(texts[i], from, n);
        texts[i][n] = '\0';
        pairs[i / 2][i % 2] = texts[i];
    }
    uint32_t length = locator_encode((const char *const(*)[2])pairs, nr, raw, room);
    REQUIRE(length <= room, "%u bytes in a room of %u", length, room);
    raw = realloc(raw, length ? length : 1);
    for (uint32_t i = 0; length > 0 && i < nr; i++) {
        locator_pair(raw, i, &p);
        REQUIRE(locator_text(raw, p.key_offset, p.key_length, text, sizeof text) == 0 &&
                    strcmp(text, pairs[i][0]) == 0,
                "key %s", pairs[i][0]);
        REQUIRE(locator_text(raw, p.value_offset, p.value_length, text, sizeof text) == 0 &&
                    strcmp(text, pairs[i][1]) == 0,
                "value %s", pairs[i][1]);
    }
    free(raw);
}

/* ---- BAT ---- */

static void try_index(const struct geometry *g, uint64_t block_no)
{
    uint64_t index = bat_index_of_block(g, block_no), no;

    REQUIRE(index < g->nr_bat_entries, "block %" PRIu64 " has entry %" PRIu64, block_no, index);
    REQUIRE(!bat_index_is_bitmap(g, index, &no) && no == block_no, "entry %" PRIu64 " is block %" PRIu64,
            index, no);
    uint64_t chunk_no = chunk_of_block(g, block_no);
    REQUIRE(chunk_no < g->nr_chunks, "block %" PRIu64 " in chunk %" PRIu64, block_no, chunk_no);
    index = bat_index_of_bitmap(g, chunk_no);
    REQUIRE(bat_index_is_bitmap(g, index, &no) && no == chunk_no, "entry %" PRIu64 " is chunk %" PRIu64,
            index, no);
    REQUIRE(!g->has_parent || index < g->nr_bat_entries, "chunk %" PRIu64 " has entry %" PRIu64, chunk_no,
            index);
    REQUIRE(bitmap_slice_offset(g, block_no) + bitmap_slice_bytes(g) <= BITMAP_BLOCK_BYTES,
            "slice of block %" PRIu64, block_no);
    uint64_t visible = block_visible_bytes(g, block_no);
    REQUIRE(visible > 0 && visible <= g->block_size, "block %" PRIu64 " shows %" PRIu64 " bytes", block_no,
            visible);
}

static void try_payload_entry(const struct geometry *g, uint64_t block_no, uint64_t raw, uint64_t file_length)
{
    struct bat_entry e = bat_entry_decode(raw);
    bool cut, placed = payload_owns_space(&e);
    int r = payload_entry_check(g, block_no, raw, MIB(3), file_length, &cut);

    require_verdict(r);
    REQUIRE(r == 0 || r == VHDX_E_BAT || r == VHDX_E_TRUNCATED, "%d", r);
    if (r < 0)
        return;
    REQUIRE(e.reserved_is_zero && e.state != 4 && e.state != 5 && (e.state != 7 || g->has_parent),
            "0x%" PRIx64 " passed", raw);
    REQUIRE(!placed || (e.file_offset >= MIB(1) &&
                        range_fits(e.file_offset, block_visible_bytes(g, block_no), file_length)),
            "place 0x%" PRIx64 " passed", e.file_offset);
    REQUIRE(!placed || cut == !range_fits(e.file_offset, g->block_size, file_length), "cut: %d", cut);
    REQUIRE(bat_entry_encode(e.state, e.file_offset) == raw, "decoding and encoding changes 0x%" PRIx64, raw);
}

static void try_bat(struct input *in)
{
    struct metadata_values values;
    struct geometry g;

    if (!take_values(in, &values))
        return;
    geometry_init(&g, values.virtual_size, values.block_size, values.logical_sector_size,
                  values.parameter_flags & PARAMETER_HAS_PARENT);
    try_index(&g, 0);
    try_index(&g, g.nr_blocks - 1);
    while (in->left > 0) {
        uint64_t block_no = take64(in) % g.nr_blocks, raw = take64(in), file_length = take64(in);
        if (raw & 8) /* a legal look */
            raw &= ~UINT64_C(0xffff8);
        try_index(&g, block_no);
        try_payload_entry(&g, block_no, raw, file_length);
        int r = bitmap_entry_check(&g, chunk_of_block(&g, block_no), raw, MIB(3), file_length);
        require_verdict(r);
        struct bat_entry e = bat_entry_decode(raw);
        REQUIRE(r < 0 || e.state == BITMAP_NOT_PRESENT ||
                    (e.state == BITMAP_PRESENT && e.file_offset >= MIB(1) &&
                     range_fits(e.file_offset, MIB(1), file_length)),
                "bitmap entry 0x%" PRIx64 " passed", raw);
    }
}

static bool bit_at(const uint8_t *bits, uint64_t i)
{
    return bits[i / 8] >> i % 8 & 1;
}

static void try_bitmap_run(struct input *in)
{
    uint64_t first = take16(in), end = take16(in), run = 0;
    unsigned nr_flips = take8(in) % 16;
    uint8_t fill = take8(in);
    bool value = false;

    first %= 20000;
    end %= 20000;
    size_t bytes = div_round_up(max_u64(first, end), 8);
    uint8_t *bits = malloc(bytes ? bytes : 1);
    REQUIRE(bits, "no memory");
    memset(bits, fill, bytes);
    for (unsigned i = 0; i < nr_flips && bytes > 0; i++) {
        uint64_t flip = take16(in) % (8 * bytes);
        bits[flip / 8] ^= (uint8_t)(1 << flip % 8);
    }
    size_t n = bytes;
    const uint8_t *from = take_bytes(in, &n);
    memcpy(bits, from, n);
    while (first + run < end && bit_at(bits, first + run) == bit_at(bits, first))
        run++;
    uint64_t r = bitmap_run(bits, first, end, &value);
    REQUIRE(r == run, "run of %" PRIu64 " bits from %" PRIu64 " to %" PRIu64 ", should be %" PRIu64, r, first,
            end, run);
    REQUIRE(run == 0 || value == bit_at(bits, first), "value of the run from %" PRIu64, first);
    free(bits);
}

/* ---- log ---- */

static void try_descriptor(struct input *in)
{
    uint64_t log_offset = MIB(1 + take8(in)), bound = take64(in), at;
    uint32_t log_length = (uint32_t)MIB(1 + take8(in));
    uint8_t what = take8(in), *raw = exact(in, LOG_DESCRIPTOR_BYTES), again[LOG_DESCRIPTOR_BYTES];
    struct log_descriptor d;

    if (what < 192)
        memcpy(raw, what & 1 ? "zero" : "desc", 4);
    bool known = memcmp(raw, "zero", 4) == 0 || memcmp(raw, "desc", 4) == 0;
    REQUIRE(log_descriptor_decode(raw, &d) == known, "signature %.4s", raw);
    if (known) {
        log_descriptor_encode(&d, again);
        REQUIRE(memcmp(raw, again, sizeof again) == 0, "decoding and encoding changes a descriptor");
        int r = log_descriptor_check(&d, log_offset, log_offset, log_length, bound);
        require_verdict(r);
        REQUIRE(r < 0 || ((d.file_offset | d.length) % PAGE_BYTES == 0 &&
                          add_u64(d.file_offset, d.length, &at) && at <= bound),
                "descriptor for 0x%" PRIx64 " passed", d.file_offset);
        REQUIRE(r < 0 || d.length == 0 ||
                    (d.file_offset >= 0x30000 &&
                     !ranges_overlap(d.file_offset, d.length, log_offset, log_length)),
                "descriptor for 0x%" PRIx64 " passed", d.file_offset);
    }
    free(raw);
}

static void try_log_entry(struct input *in)
{
    uint32_t log_length = (uint32_t)MIB(1 + take8(in));
    uint8_t what = take8(in), *raw = exact(in, LOG_HEADER_BYTES), again[LOG_HEADER_BYTES];
    struct log_entry_header h;

    if (what < 192)
        memcpy(raw, "loge", 4);
    if (log_entry_header_decode(raw, &h)) {
        guid id = h.log_guid;
        id.bytes[3] ^= what & 1;
        bool plausible = log_entry_header_plausible(&h, &id, log_length);
        REQUIRE(!plausible || (!(what & 1) && h.entry_length >= 4096 && h.entry_length % 4096 == 0 &&
                               h.entry_length <= log_length && h.tail % 4096 == 0 && h.tail < log_length &&
                               h.sequence_no > 0 &&
                               log_nr_descriptor_sectors(h.nr_descriptors) * 4096 <= h.entry_length),
                "entry of 0x%" PRIx32 " bytes", h.entry_length);
        log_entry_header_encode(&h, again);
        memset(raw + LOG_CHECKSUM_AT, 0, 4);
        memset(again + LOG_CHECKSUM_AT, 0, 4);
        REQUIRE(memcmp(raw, again, sizeof again) == 0, "decoding and encoding changes an entry");
    }
    free(raw);
}

/* A page that goes into a data sector comes out again. */
static void try_data_sector(struct input *in)
{
    uint64_t sequence_no = take64(in);
    uint8_t *page = exact(in, PAGE_BYTES), *sector = malloc(LOG_SECTOR_BYTES), *again = malloc(PAGE_BYTES);

    REQUIRE(sector && again, "no memory");
    log_data_sector_encode(page, sequence_no, sector);
    REQUIRE(log_data_sector_is_valid(sector, sequence_no) &&
                !log_data_sector_is_valid(sector, sequence_no + 1) &&
                !log_data_sector_is_valid(sector, sequence_no ^ UINT64_C(1) << 40),
            "sector of %" PRIu64, sequence_no);
    log_page_rebuild(sector, page, page + PAGE_BYTES - 4, again);
    REQUIRE(memcmp(page, again, PAGE_BYTES) == 0, "the page came out changed");
    free(page);
    free(sector);
    free(again);
}

/* ---- identifier, texts ---- */

static void try_identifier(struct input *in)
{
    char utf8[1024];
    const char *what = NULL;
    size_t nr_first = take16(in) % 1024, nr_last = take16(in) % 1024;
    uint8_t *first = exact(in, nr_first), *last = exact(in, nr_last);

    int kind = identifier_probe(first, nr_first, last, nr_last, &what);
    REQUIRE(kind >= VHDX_KIND_UNKNOWN && kind <= VHDX_KIND_EMPTY && what && what[0], "kind %d", kind);
    if (nr_first >= IDENTIFIER_USED_BYTES) {
        size_t room = 1 + nr_last;
        identifier_creator(first, utf8, min_u64(room, sizeof utf8));
        REQUIRE(strlen(utf8) < room, "creator of %zu bytes", strlen(utf8));
        REQUIRE(!identifier_signature_valid(first) || kind == VHDX_KIND_VHDX, "kind %d", kind);
    }
    free(first);
    free(last);
}

static void try_texts(struct input *in)
{
    size_t room = 1 + take16(in) % 300, nr_units = in->left / 2;
    uint8_t *units = exact(in, 2 * nr_units);
    char *utf8 = malloc(room), *whole = malloc(UTF8_BYTES_FOR_UNITS(nr_units)), text[VHDX_GUID_TEXT_BYTES];
    guid g, again;

    REQUIRE(utf8 && whole, "no memory");
    int r = utf16_decode(units, nr_units, utf8, room);
    int r_whole = utf16_decode(units, nr_units, whole, UTF8_BYTES_FOR_UNITS(nr_units));
    REQUIRE(r_whole == 0 || r_whole == -EILSEQ, "%d", r_whole);
    REQUIRE((r_whole == 0) == utf16_is_valid(units, nr_units), "%d", r_whole);
    REQUIRE(r == r_whole || r == -ENAMETOOLONG, "%d in a smaller room", r);
    REQUIRE(r < 0 || strcmp(utf8, whole) == 0, "%s in a smaller room", utf8);
    utf16_display(units, nr_units, utf8, room);
    REQUIRE(strlen(utf8) < room, "%zu bytes", strlen(utf8));
    if (r_whole == 0 && guid_parse(whole, &g) == 0) {
        guid_format(&g, text);
        REQUIRE(guid_parse(text, &again) == 0 && guid_equal(&g, &again), "%s", text);
    }
    free(units);
    free(utf8);
    free(whole);
}

/* ---- MiB sets ---- */

static bool all_equal(const bool *members, uint64_t first, uint64_t nr, bool value)
{
    for (uint64_t i = first; i < first + nr; i++) {
        if (members[i] != value)
            return false;
    }
    return true;
}

static void try_mib_set(struct input *in)
{
    enum { UNIVERSE = 70000 };
    static bool members[UNIVERSE];
    uint64_t nr_mib = 1 + take32(in) % UNIVERSE, count = 0;
    struct mib_set set;
    bool clash;

    memset(members, 0, sizeof members);
    REQUIRE(mib_set_init(&set, nr_mib) == 0, "%s", error_message());
    while (in->left > 0) {
        uint64_t first = take32(in) % (UNIVERSE + 10), nr = take16(in) % 600;
        bool fits = range_fits(first, nr, nr_mib), free_there = fits && all_equal(members, first, nr, false);
        REQUIRE(mib_set_add(&set, first, nr, &clash) == 0, "%s", error_message());
        REQUIRE(nr == 0 || clash == !free_there, "clash %d when %" PRIu64 " are added at %" PRIu64, clash, nr,
                first);
        if (!clash && fits) {
            memset(members + first, true, nr);
            count += nr;
        }
    }
    REQUIRE(set.count == count, "%" PRIu64 " members, not %" PRIu64, set.count, count);
    for (uint64_t at = 0; at < nr_mib;) {
        bool member = members[at];
        REQUIRE(mib_set_has(&set, at) == member, "member %" PRIu64, at);
        uint64_t next = mib_set_next(&set, at, !member), end = min_u64(next, nr_mib);
        REQUIRE(next > at && all_equal(members, at, end - at, member), "next behind %" PRIu64 " is %" PRIu64,
                at, next);
        REQUIRE(end == nr_mib || members[end] != member, "next behind %" PRIu64 " is %" PRIu64, at, next);
        at = end;
    }
    mib_set_free(&set);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static void (*const tries[])(struct input *) = {
        try_header,     try_regions,    try_metadata_table, try_locator,   try_locator_encode,
        try_bat,        try_bitmap_run, try_descriptor,     try_log_entry, try_data_sector,
        try_identifier, try_texts,      try_mib_set,
    };
    struct input in = {data, bytes};

    tries[take8(&in) % ARRAY_LENGTH(tries)](&in);
    return 0;
}
