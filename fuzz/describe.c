/* SPDX-License-Identifier: MIT */
#include "describe.h"

#include <string.h>

#include "base/le.h"
#include "repair.h"
#include "template.h"

/* What a change aims at: the first bytes of each structure. */
static const uint64_t places[] = {
    IDENTIFIER_OFFSET,      HEADER_OFFSET(0),       HEADER_OFFSET(1),         REGION_TABLE_OFFSET(0),
    REGION_TABLE_OFFSET(1), TEMPLATE_LOG_OFFSET,    TEMPLATE_METADATA_OFFSET, TEMPLATE_ITEMS_OFFSET,
    TEMPLATE_BAT_OFFSET,    TEMPLATE_BITMAP_OFFSET, TEMPLATE_PAYLOAD_OFFSET,
};

enum {
    CHANGE_ANYWHERE = ARRAY_LENGTH(places), /* 11: at a page with a number of 4 bytes */
    CHANGE_ADD_ENTRY,                       /* 12: to the log */
    CHANGE_BAT_ENTRY,                       /* 13 */
    CHANGE_HEADERS,                         /* 14: both copies in the same way */
    CHANGE_REGION_TABLES,                   /* 15: the same */
};

enum { MAX_CHANGES = 256, MAX_REPEATS = 1024 };

/* Bytes, perhaps many times over: a wide table of equal entries, a long bitmap of one pattern. */
static void put_bytes(struct template *t, struct input *in, uint64_t offset, uint64_t other_offset,
                      bool repeat)
{
    offset += take16(in);
    size_t bytes = take8(in);
    unsigned nr = repeat ? 1 + take16(in) % MAX_REPEATS : 1;
    const uint8_t *from = take_bytes(in, &bytes);

    for (unsigned i = 0; i < nr && bytes > 0; i++)
        fuzz_file_put(t->file, offset + i * bytes, from, bytes);
    if (other_offset > 0)
        fuzz_file_put(t->file, other_offset + offset % KIB(64), from, bytes);
}

static uint64_t take_place(struct input *in, unsigned kind)
{
    return kind < ARRAY_LENGTH(places) ? places[kind] : take32(in) * (uint64_t)PAGE_BYTES;
}

/* One descriptor of a new entry: bits 0-3 of the first byte say where it points, bit 4 whether to zeros. A
 * page has the bytes that lie there now, but for a few. */
static void add_descriptor(struct template *t, struct template_entry *e, struct input *in)
{
    uint8_t page[PAGE_BYTES], what = take8(in);
    uint64_t offset = take_place(in, what & 15);

    if (what & 32)
        offset += take8(in) * (uint64_t)PAGE_BYTES;
    if (what & 16) {
        template_entry_zero(e, offset, take16(in) * (what & 64 ? MIB(1) : PAGE_BYTES));
        return;
    }
    fuzz_file_get(t->file, offset, page, sizeof page);
    size_t at = take16(in) % PAGE_BYTES, bytes = take8(in);
    if (bytes > PAGE_BYTES - at)
        bytes = PAGE_BYTES - at;
    const uint8_t *from = take_bytes(in, &bytes);
    memcpy(page + at, from, bytes);
    template_entry_page(e, offset, page);
}

/* Bits of the first byte: 0 its own place; 1 its own step of the sequence number; 2 its own tail; 3 tail at
 * itself; 4 its own file lengths. */
static void add_entry(struct template *t, struct input *in)
{
    static struct template_entry e;
    uint8_t what = take8(in);
    unsigned nr = take8(in);
    uint32_t position = what & 1 ? take8(in) * (uint32_t)LOG_SECTOR_BYTES : t->log_position;

    t->sequence_no += what & 2 ? (uint64_t)(int8_t)take8(in) : 1;
    if (what & 8)
        t->log_tail = position;
    e.header = (struct log_entry_header){
        .tail = what & 4 ? take8(in) * (uint32_t)LOG_SECTOR_BYTES : t->log_tail,
        .sequence_no = t->sequence_no,
        .flushed_file_offset = what & 16 ? MIB(take8(in)) : MIB(4),
        .last_file_offset = what & 16 ? MIB(take16(in)) : t->file->length,
    };
    e.nr_descriptors = e.nr_pages = 0;
    for (; nr > 0 && in->left > 0; nr--)
        add_descriptor(t, &e, in);
    if (log_nr_descriptor_sectors(e.nr_descriptors) + e.nr_pages <= TEMPLATE_LOG_BYTES / LOG_SECTOR_BYTES)
        template_put_entry(t, &e, position);
}

/* A BAT entry with a legal look: bits 0-2 of the first byte are its state, bit 3: it is a bitmap's. */
static void set_bat_entry(struct template *t, struct input *in)
{
    uint8_t what = take8(in);
    uint16_t no = take16(in);
    uint64_t index = what & 8 ? bat_index_of_bitmap(&t->geometry, no) : bat_index_of_block(&t->geometry, no);

    if (index < MIB(1) / BAT_ENTRY_BYTES)
        template_set_bat(t, index, what & 7, MIB(take16(in)));
}

/* One change.  Bits 0-3 of the first byte: what; bit 6: many times over; bit 7: of the parent. */
static void change(struct template *child, struct template *parent, struct input *in)
{
    uint8_t what = take8(in);
    struct template *t = what & 128 ? parent : child;
    bool repeat = what & 64;

    switch (what & 15) {
    case CHANGE_ADD_ENTRY:
        add_entry(t, in);
        break;
    case CHANGE_BAT_ENTRY:
        set_bat_entry(t, in);
        break;
    case CHANGE_HEADERS:
        put_bytes(t, in, HEADER_OFFSET(0), HEADER_OFFSET(1), repeat);
        break;
    case CHANGE_REGION_TABLES:
        put_bytes(t, in, REGION_TABLE_OFFSET(0), REGION_TABLE_OFFSET(1), repeat);
        break;
    default:
        put_bytes(t, in, take_place(in, what & 15), 0, repeat);
    }
}

static uint64_t change_length(uint64_t length, uint8_t how, uint32_t by)
{
    switch (how % 8) {
    case 1:
        return length - min_u64(length, by);
    case 2:
        return length + by;
    case 3:
        return by;
    case 4:
        return MIB(by);
    case 5:
        return length - min_u64(length, MIB(by % 64));
    case 6:
        return (uint64_t)by << 31;
    case 7:
        return INT64_MAX - by;
    default:
        return length;
    }
}

void describe(struct input *in, struct description *d)
{
    static struct fuzz_file child_file, parent_file;
    struct template child, parent;
    uint8_t child_byte = take8(in), parent_byte = take8(in);
    uint16_t flags = take16(in);
    uint8_t how = take8(in);
    uint32_t by = take32(in);
    unsigned fault_at = take8(in);

    fuzz_file_reset(&child_file);
    fuzz_file_reset(&parent_file);
    template_build(&child, &child_file, child_byte);
    if (flags & DESCRIBE_TWO_LAYERS)
        template_build(&parent, &parent_file, parent_byte);
    for (unsigned i = 0; i < MAX_CHANGES && in->left > 0; i++)
        change(&child, flags & DESCRIBE_TWO_LAYERS ? &parent : &child, in);
    child_file.length = change_length(child_file.length, how, by);
    child_file.fault_at = fault_at;
    /* Without holes every table is read as long as it is, so it must not be huge. */
    child_file.hides_holes = flags & DESCRIBE_HIDE_HOLES && child_file.length < MIB(64);
    parent_file.hides_holes = flags & DESCRIBE_HIDE_HOLES && parent_file.length < MIB(64);
    if (flags & DESCRIBE_REPAIR_TABLES) {
        repair_tables(&child_file);
        if (flags & DESCRIBE_TWO_LAYERS)
            repair_tables(&parent_file);
    }
    if (flags & DESCRIBE_REPAIR_LOG)
        repair_log(&child_file, flags & DESCRIBE_REPAIR_IDENTITY);
    *d = (struct description){.flags = flags, .child = &child_file, .parent = &parent_file};
}
