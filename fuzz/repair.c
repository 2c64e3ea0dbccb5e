/* SPDX-License-Identifier: MIT */
#include "repair.h"

#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "format/header.h"
#include "format/log-entry.h"
#include "format/region-table.h"
#include "fuzz-file.h"

/* Entries may lie inside each other; so much of them is looked at in all. */
enum { LOG_BUDGET = 3 * 1024 * 1024, MAX_ENTRY_BYTES = 1024 * 1024 };

static void repair_checksum(struct fuzz_file *f, uint64_t offset, const char *signature, uint8_t *raw,
                            size_t bytes)
{
    fuzz_file_get(f, offset, raw, bytes);
    if (memcmp(raw, signature, 4) != 0)
        return;
    le32_put(raw + 4, crc32c_with_hole(raw, bytes, 4));
    fuzz_file_put(f, offset + 4, raw + 4, 4);
}

void repair_tables(struct fuzz_file *f)
{
    uint8_t raw[REGION_TABLE_RAW_BYTES];

    for (unsigned n = 0; n < 2; n++) {
        repair_checksum(f, HEADER_OFFSET(n), "head", raw, HEADER_RAW_BYTES);
        repair_checksum(f, REGION_TABLE_OFFSET(n), "regi", raw, REGION_TABLE_RAW_BYTES);
    }
}

static bool current_header(const struct fuzz_file *f, struct header *h)
{
    uint8_t raw[2][HEADER_RAW_BYTES];

    for (unsigned n = 0; n < 2; n++)
        fuzz_file_get(f, HEADER_OFFSET(n), raw[n], sizeof raw[n]);
    int n = header_choose(raw[0], raw[1]);
    if (n < 0)
        return false;
    header_decode(raw[n], h);
    return header_check_log(h, f->length) == 0 && h->log_length > 0;
}

static uint64_t ring_place(const struct header *h, uint64_t log_offset)
{
    return h->log_offset + log_offset % h->log_length;
}

static void give_identity(struct fuzz_file *f, const struct header *h, uint64_t log_offset, uint8_t *raw)
{
    struct log_entry_header e;

    guid_put(raw + 32, &h->log_guid);
    log_entry_header_decode(raw, &e);
    uint64_t descriptors_end = LOG_HEADER_BYTES + LOG_DESCRIPTOR_BYTES * (uint64_t)e.nr_descriptors;
    for (uint64_t at = LOG_HEADER_BYTES; at < descriptors_end && at < e.entry_length;
         at += LOG_DESCRIPTOR_BYTES)
        le64_put(raw + at + 24, e.sequence_no);
    for (uint64_t at = align_up(descriptors_end, LOG_SECTOR_BYTES); at < e.entry_length;
         at += LOG_SECTOR_BYTES) {
        memcpy(raw + at, "data", 4);
        le32_put(raw + at + 4, (uint32_t)(e.sequence_no >> 32));
        le32_put(raw + at + LOG_SECTOR_BYTES - 4, (uint32_t)e.sequence_no);
    }
    for (uint32_t at = 0; at < e.entry_length; at += LOG_SECTOR_BYTES)
        fuzz_file_put(f, ring_place(h, log_offset + at), raw + at, LOG_SECTOR_BYTES);
}

/* Returns how much work that was. */
static uint32_t repair_entry(struct fuzz_file *f, const struct header *h, uint64_t log_offset, bool identity)
{
    static uint8_t raw[MAX_ENTRY_BYTES];
    struct log_entry_header e;

    fuzz_file_get(f, ring_place(h, log_offset), raw, LOG_SECTOR_BYTES);
    if (!log_entry_header_decode(raw, &e) || e.entry_length == 0 || e.entry_length > MAX_ENTRY_BYTES ||
        e.entry_length > h->log_length || !is_aligned(e.entry_length, LOG_SECTOR_BYTES))
        return 0;
    for (uint32_t at = 0; at < e.entry_length; at += LOG_SECTOR_BYTES)
        fuzz_file_get(f, ring_place(h, log_offset + at), raw + at, LOG_SECTOR_BYTES);
    if (identity)
        give_identity(f, h, log_offset, raw);
    le32_put(raw + LOG_CHECKSUM_AT, crc32c_with_hole(raw, e.entry_length, LOG_CHECKSUM_AT));
    fuzz_file_put(f, ring_place(h, log_offset) + LOG_CHECKSUM_AT, raw + LOG_CHECKSUM_AT, 4);
    return e.entry_length;
}

void repair_log(struct fuzz_file *f, bool identity)
{
    struct header h;
    uint32_t budget = LOG_BUDGET;

    if (!current_header(f, &h))
        return;
    /* From the end, since an entry that lies in another one is a part of what that one's checksum covers. */
    for (unsigned i = fuzz_file_find(f, (h.log_offset + h.log_length) / PAGE_BYTES); i-- > 0;) {
        uint64_t offset = f->page_no[i] * PAGE_BYTES;
        if (offset < h.log_offset)
            break;
        uint64_t log_offset = offset - h.log_offset;
        if (f->page_no[i] * PAGE_BYTES >= f->length || memcmp(f->slots[f->page_slot[i]], "loge", 4) != 0)
            continue;
        uint32_t work = repair_entry(f, &h, log_offset, identity);
        if (work > budget)
            return;
        budget -= work;
        i = fuzz_file_find(f, (h.log_offset + log_offset) / PAGE_BYTES); /* pages may have come in */
    }
}
