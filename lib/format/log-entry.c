/* SPDX-License-Identifier: MIT */
#include "format/log-entry.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/le.h"
#include "format/hint.h"
#include "vhdx.h"

static const uint8_t entry_signature[4] = {'l', 'o', 'g', 'e'};
static const uint8_t zero_signature[4] = {'z', 'e', 'r', 'o'};
static const uint8_t data_signature[4] = {'d', 'e', 's', 'c'};
static const uint8_t sector_signature[4] = {'d', 'a', 't', 'a'};

enum {
    HEADER_AT_LENGTH = 8,
    HEADER_AT_TAIL = 12,
    HEADER_AT_SEQUENCE_NO = 16,
    HEADER_AT_NR_DESCRIPTORS = 24,
    HEADER_AT_RESERVED = 28,
    HEADER_AT_GUID = 32,
    HEADER_AT_FLUSHED = 48,
    HEADER_AT_LAST = 56,

    DESCRIPTOR_AT_RESERVED = 4, /* zero */
    DESCRIPTOR_AT_TRAILING = 4, /* data */
    DESCRIPTOR_AT_LENGTH = 8,   /* zero */
    DESCRIPTOR_AT_LEADING = 8,  /* data */
    DESCRIPTOR_AT_FILE_OFFSET = 16,
    DESCRIPTOR_AT_SEQUENCE_NO = 24,

    SECTOR_AT_SEQUENCE_HIGH = 4,
    SECTOR_AT_DATA = 8,
    SECTOR_AT_SEQUENCE_LOW = 4092,
    SECTOR_DATA_BYTES = SECTOR_AT_SEQUENCE_LOW - SECTOR_AT_DATA,
};

static_assert((int)LOG_SECTOR_BYTES == (int)PAGE_BYTES, "a data sector carries one page");

/* Below lie the identifier and the headers, which the log never carries (E12). */
#define FIRST_LOGGED_OFFSET REGION_TABLE_OFFSET(0)

bool log_entry_header_decode(const uint8_t raw[LOG_HEADER_BYTES], struct log_entry_header *h)
{
    if (memcmp(raw, entry_signature, sizeof entry_signature) != 0)
        return false;
    *h = (struct log_entry_header){
        .checksum = le32_get(raw + LOG_CHECKSUM_AT),
        .entry_length = le32_get(raw + HEADER_AT_LENGTH),
        .tail = le32_get(raw + HEADER_AT_TAIL),
        .sequence_no = le64_get(raw + HEADER_AT_SEQUENCE_NO),
        .nr_descriptors = le32_get(raw + HEADER_AT_NR_DESCRIPTORS),
        .reserved = le32_get(raw + HEADER_AT_RESERVED),
        .log_guid = guid_get(raw + HEADER_AT_GUID),
        .flushed_file_offset = le64_get(raw + HEADER_AT_FLUSHED),
        .last_file_offset = le64_get(raw + HEADER_AT_LAST),
    };
    return true;
}

bool log_entry_header_plausible(const struct log_entry_header *h, const guid *log_guid, uint32_t log_length)
{
    uint64_t used_bytes = LOG_HEADER_BYTES + LOG_DESCRIPTOR_BYTES * (uint64_t)h->nr_descriptors;

    if (!guid_equal(&h->log_guid, log_guid)) /* E2 */
        return false;
    if (h->entry_length == 0 || !is_aligned(h->entry_length, LOG_SECTOR_BYTES) ||
        h->entry_length > log_length)
        return false;                                                    /* E3 */
    if (!is_aligned(h->tail, LOG_SECTOR_BYTES) || h->tail >= log_length) /* E4 */
        return false;
    if (h->sequence_no == 0) /* E5 */
        return false;
    return used_bytes <= h->entry_length; /* E6 */
}

void log_entry_header_encode(const struct log_entry_header *h, uint8_t raw[LOG_HEADER_BYTES])
{
    memset(raw, 0, LOG_HEADER_BYTES);
    memcpy(raw, entry_signature, sizeof entry_signature);
    le32_put(raw + HEADER_AT_LENGTH, h->entry_length);
    le32_put(raw + HEADER_AT_TAIL, h->tail);
    le64_put(raw + HEADER_AT_SEQUENCE_NO, h->sequence_no);
    le32_put(raw + HEADER_AT_NR_DESCRIPTORS, h->nr_descriptors);
    le32_put(raw + HEADER_AT_RESERVED, h->reserved);
    guid_put(raw + HEADER_AT_GUID, &h->log_guid);
    le64_put(raw + HEADER_AT_FLUSHED, h->flushed_file_offset);
    le64_put(raw + HEADER_AT_LAST, h->last_file_offset);
}

uint64_t log_nr_descriptor_sectors(uint64_t nr_descriptors)
{
    return div_round_up(LOG_HEADER_BYTES + LOG_DESCRIPTOR_BYTES * nr_descriptors, LOG_SECTOR_BYTES);
}

bool log_descriptor_decode(const uint8_t raw[LOG_DESCRIPTOR_BYTES], struct log_descriptor *d)
{
    *d = (struct log_descriptor){
        .file_offset = le64_get(raw + DESCRIPTOR_AT_FILE_OFFSET),
        .sequence_no = le64_get(raw + DESCRIPTOR_AT_SEQUENCE_NO),
    };
    if (memcmp(raw, zero_signature, sizeof zero_signature) == 0) {
        d->kind = LOG_DESCRIPTOR_ZERO;
        d->length = le64_get(raw + DESCRIPTOR_AT_LENGTH);
        d->reserved = le32_get(raw + DESCRIPTOR_AT_RESERVED);
        return true;
    }
    if (memcmp(raw, data_signature, sizeof data_signature) == 0) {
        d->kind = LOG_DESCRIPTOR_DATA;
        d->length = PAGE_BYTES;
        memcpy(d->leading, raw + DESCRIPTOR_AT_LEADING, sizeof d->leading);
        memcpy(d->trailing, raw + DESCRIPTOR_AT_TRAILING, sizeof d->trailing);
        return true;
    }
    return false;
}

void log_descriptor_encode(const struct log_descriptor *d, uint8_t raw[LOG_DESCRIPTOR_BYTES])
{
    if (d->kind == LOG_DESCRIPTOR_ZERO) {
        memcpy(raw, zero_signature, sizeof zero_signature);
        le32_put(raw + DESCRIPTOR_AT_RESERVED, d->reserved);
        le64_put(raw + DESCRIPTOR_AT_LENGTH, d->length);
    } else {
        memcpy(raw, data_signature, sizeof data_signature);
        memcpy(raw + DESCRIPTOR_AT_TRAILING, d->trailing, sizeof d->trailing);
        memcpy(raw + DESCRIPTOR_AT_LEADING, d->leading, sizeof d->leading);
    }
    le64_put(raw + DESCRIPTOR_AT_FILE_OFFSET, d->file_offset);
    le64_put(raw + DESCRIPTOR_AT_SEQUENCE_NO, d->sequence_no);
}

int log_descriptor_check(const struct log_descriptor *d, uint64_t descriptor_offset, uint64_t log_offset,
                         uint32_t log_length, uint64_t bound)
{
    uint64_t end;

    if (!is_aligned(d->file_offset, PAGE_BYTES) || !is_aligned(d->length, PAGE_BYTES))
        return fail(VHDX_E_LOG,
                    "log descriptor at 0x%" PRIx64 ": target 0x%" PRIx64 ", length 0x%" PRIx64
                    ", is not in pages of 4096 bytes; " HINT_DAMAGED,
                    descriptor_offset, d->file_offset, d->length);
    if (!add_u64(d->file_offset, d->length, &end) || end > bound)
        return fail(VHDX_E_LOG,
                    "log descriptor at 0x%" PRIx64 ": target 0x%" PRIx64 ", length 0x%" PRIx64
                    ", ends behind 0x%" PRIx64 ", where the file ends at the latest; " HINT_DAMAGED,
                    descriptor_offset, d->file_offset, d->length, bound);
    if (d->length == 0) /* touches nothing (4.2) */
        return 0;
    if (d->file_offset < FIRST_LOGGED_OFFSET)
        return fail(VHDX_E_LOG,
                    "log descriptor at 0x%" PRIx64 ": target 0x%" PRIx64
                    " lies in the identifier or the headers, which are never logged; " HINT_DAMAGED,
                    descriptor_offset, d->file_offset);
    if (ranges_overlap(d->file_offset, d->length, log_offset, log_length))
        return fail(VHDX_E_LOG,
                    "log descriptor at 0x%" PRIx64 ": target 0x%" PRIx64 ", length 0x%" PRIx64
                    ", lies in the log itself at 0x%" PRIx64 "; " HINT_DAMAGED,
                    descriptor_offset, d->file_offset, d->length, log_offset);
    return 0;
}

bool log_data_sector_is_valid(const uint8_t raw[LOG_SECTOR_BYTES], uint64_t sequence_no)
{
    return memcmp(raw, sector_signature, sizeof sector_signature) == 0 &&
           le32_get(raw + SECTOR_AT_SEQUENCE_HIGH) == (uint32_t)(sequence_no >> 32) &&
           le32_get(raw + SECTOR_AT_SEQUENCE_LOW) == (uint32_t)sequence_no;
}

void log_data_sector_encode(const uint8_t page[PAGE_BYTES], uint64_t sequence_no,
                            uint8_t raw[LOG_SECTOR_BYTES])
{
    memcpy(raw, sector_signature, sizeof sector_signature);
    le32_put(raw + SECTOR_AT_SEQUENCE_HIGH, (uint32_t)(sequence_no >> 32));
    memcpy(raw + SECTOR_AT_DATA, page + SECTOR_AT_DATA, SECTOR_DATA_BYTES);
    le32_put(raw + SECTOR_AT_SEQUENCE_LOW, (uint32_t)sequence_no);
}

void log_page_rebuild(const uint8_t sector[LOG_SECTOR_BYTES], const uint8_t leading[8],
                      const uint8_t trailing[4], uint8_t page[PAGE_BYTES])
{
    memcpy(page, leading, SECTOR_AT_DATA);
    memcpy(page + SECTOR_AT_DATA, sector + SECTOR_AT_DATA, SECTOR_DATA_BYTES);
    memcpy(page + SECTOR_AT_SEQUENCE_LOW, trailing, PAGE_BYTES - SECTOR_AT_SEQUENCE_LOW);
}
