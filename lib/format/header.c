/* SPDX-License-Identifier: MIT */
#include "format/header.h"

#include <inttypes.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/le.h"
#include "base/zero.h"
#include "format/hint.h"
#include "vhdx.h"

static const uint8_t signature[4] = {'h', 'e', 'a', 'd'};

enum {
    AT_CHECKSUM = 4,
    AT_SEQUENCE_NO = 8,
    AT_FILE_WRITE_GUID = 16,
    AT_DATA_WRITE_GUID = 32,
    AT_LOG_GUID = 48,
    AT_LOG_VERSION = 64,
    AT_VERSION = 66,
    AT_LOG_LENGTH = 68,
    AT_LOG_OFFSET = 72,
    AT_RESERVED = 80,
};

enum { THE_VERSION = 1, THE_LOG_VERSION = 0 };

static bool has_signature(const uint8_t *raw)
{
    return memcmp(raw, signature, sizeof signature) == 0;
}

/* Over all 4096 bytes, not only the defined ones (11 row 6). */
static uint32_t checksum(const uint8_t *raw)
{
    return crc32c_with_hole(raw, HEADER_RAW_BYTES, AT_CHECKSUM);
}

bool header_is_valid(const uint8_t raw[HEADER_RAW_BYTES])
{
    return has_signature(raw) && checksum(raw) == le32_get(raw + AT_CHECKSUM);
}

void header_decode(const uint8_t raw[HEADER_RAW_BYTES], struct header *h)
{
    *h = (struct header){
        .sequence_no = le64_get(raw + AT_SEQUENCE_NO),
        .file_write_guid = guid_get(raw + AT_FILE_WRITE_GUID),
        .data_write_guid = guid_get(raw + AT_DATA_WRITE_GUID),
        .log_guid = guid_get(raw + AT_LOG_GUID),
        .log_version = le16_get(raw + AT_LOG_VERSION),
        .version = le16_get(raw + AT_VERSION),
        .log_length = le32_get(raw + AT_LOG_LENGTH),
        .log_offset = le64_get(raw + AT_LOG_OFFSET),
        .reserved_is_zero = memory_is_zero(raw + AT_RESERVED, HEADER_RAW_BYTES - AT_RESERVED),
    };
}

void header_encode(const struct header *h, uint8_t raw[HEADER_RAW_BYTES])
{
    memset(raw, 0, HEADER_RAW_BYTES);
    memcpy(raw, signature, sizeof signature);
    le64_put(raw + AT_SEQUENCE_NO, h->sequence_no);
    guid_put(raw + AT_FILE_WRITE_GUID, &h->file_write_guid);
    guid_put(raw + AT_DATA_WRITE_GUID, &h->data_write_guid);
    guid_put(raw + AT_LOG_GUID, &h->log_guid);
    le16_put(raw + AT_LOG_VERSION, h->log_version);
    le16_put(raw + AT_VERSION, h->version);
    le32_put(raw + AT_LOG_LENGTH, h->log_length);
    le64_put(raw + AT_LOG_OFFSET, h->log_offset);
    le32_put(raw + AT_CHECKSUM, checksum(raw));
}

static const char *why_invalid(const uint8_t *raw)
{
    if (!raw)
        return "cannot be read";
    if (!has_signature(raw))
        return "lacks the signature \"head\"";
    return "has a wrong checksum";
}

int header_choose(const uint8_t *raw0, const uint8_t *raw1)
{
    bool valid0 = raw0 && header_is_valid(raw0);
    bool valid1 = raw1 && header_is_valid(raw1);

    if (!valid0 && !valid1)
        return fail(VHDX_E_HEADER,
                    "no usable header: copy 1 at 0x%" PRIx64 " %s, copy 2 at 0x%" PRIx64 " %s; " HINT_DAMAGED,
                    HEADER_OFFSET(0), why_invalid(raw0), HEADER_OFFSET(1), why_invalid(raw1));
    if (!valid0 || !valid1)
        return valid1 ? 1 : 0;

    uint64_t sequence_no0 = le64_get(raw0 + AT_SEQUENCE_NO);
    uint64_t sequence_no1 = le64_get(raw1 + AT_SEQUENCE_NO);
    if (sequence_no0 != sequence_no1)
        return sequence_no1 > sequence_no0 ? 1 : 0;
    if (memcmp(raw0, raw1, HEADER_RAW_BYTES) == 0) /* Disk2vhd writes it so (10.2) */
        return 0;
    return fail(VHDX_E_HEADER,
                "the headers at 0x%" PRIx64 " and 0x%" PRIx64 " differ but both have sequence number %" PRIu64
                ", so neither is known to be current; " HINT_DAMAGED,
                HEADER_OFFSET(0), HEADER_OFFSET(1), sequence_no0);
}

int header_check_version(const struct header *h)
{
    if (h->version != THE_VERSION)
        return fail(VHDX_E_UNSUPPORTED,
                    "current header (sequence number %" PRIu64
                    "): Version is %u, only 1 is known; " HINT_UNSUPPORTED,
                    h->sequence_no, h->version);
    if (h->log_version != THE_LOG_VERSION && header_log_is_dirty(h))
        return fail(
            VHDX_E_UNSUPPORTED,
            "current header (sequence number %" PRIu64
            "): the log must be replayed, but its LogVersion is %u and only 0 is known; " HINT_UNSUPPORTED,
            h->sequence_no, h->log_version);
    return 0;
}

/* The limit comes first: it is the one verdict that counts for a clean log too. */
int header_check_log(const struct header *h, uint64_t file_length)
{
    if (h->log_length == 0 && !header_log_is_dirty(h))
        return 0;
    if (h->log_length == 0)
        return fail(VHDX_E_HEADER,
                    "current header: the log must be replayed, but LogLength is 0; " HINT_DAMAGED);
    if (h->log_length > MAX_LOG_BYTES)
        return fail(VHDX_E_LIMIT,
                    "current header: LogLength 0x%" PRIx32
                    " is more than the 1 GiB that this library accepts",
                    h->log_length);
    if (!is_aligned(h->log_length, OBJECT_ALIGNMENT))
        return fail(VHDX_E_HEADER,
                    "current header: LogLength 0x%" PRIx32 " is not a multiple of 1 MiB; " HINT_DAMAGED,
                    h->log_length);
    if (!is_aligned(h->log_offset, OBJECT_ALIGNMENT))
        return fail(VHDX_E_HEADER,
                    "current header: LogOffset 0x%" PRIx64 " is not a multiple of 1 MiB; " HINT_DAMAGED,
                    h->log_offset);
    if (h->log_offset < HEADER_AREA_BYTES || h->log_offset > INT64_MAX)
        return fail(VHDX_E_HEADER,
                    "current header: LogOffset 0x%" PRIx64
                    " is not a place where a log can be; " HINT_DAMAGED,
                    h->log_offset);
    if (!range_fits(h->log_offset, h->log_length, file_length))
        return fail(VHDX_E_TRUNCATED,
                    "current header: the log at 0x%" PRIx64 ", length 0x%" PRIx32
                    ", ends behind the end of the file at 0x%" PRIx64 "; " HINT_TRUNCATED,
                    h->log_offset, h->log_length, file_length);
    return 0;
}
