/* SPDX-License-Identifier: MIT */
/* The two file headers (format section 2).
 *
 *   offset size  field
 *        0    4  Signature        "head"
 *        4    4  Checksum         CRC-32C over all 4096 bytes
 *        8    8  SequenceNumber   of the valid copies the higher one counts
 *       16   16  FileWriteGuid
 *       32   16  DataWriteGuid    what children know their parent by
 *       48   16  LogGuid          zero: nothing to replay
 *       64    2  LogVersion       0
 *       66    2  Version          1
 *       68    4  LogLength        bytes
 *       72    8  LogOffset        bytes
 *       80 4016  reserved */
#ifndef VHDX_FORMAT_HEADER_H
#define VHDX_FORMAT_HEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/guid.h"
#include "format/layout.h"

struct header {
    uint64_t sequence_no;
    guid file_write_guid;
    guid data_write_guid;
    guid log_guid;
    uint16_t log_version;
    uint16_t version;
    uint32_t log_length; /* bytes; hostile until header_check_log() */
    uint64_t log_offset; /* bytes; hostile until header_check_log() */
    bool reserved_is_zero;
};

/* Signature and checksum are right: nothing else makes a copy valid (2.2 rule 2). */
bool header_is_valid(const uint8_t raw[HEADER_RAW_BYTES]);
void header_decode(const uint8_t raw[HEADER_RAW_BYTES], struct header *h);
void header_encode(const struct header *h, uint8_t raw[HEADER_RAW_BYTES]);

/* Which of the two copies is current: 0 or 1.  Either may be NULL if it could not be read.  VHDX_E_HEADER if none is
 * valid, or both are, with one sequence number and different bytes (2.2). */
int header_choose(const uint8_t *raw0, const uint8_t *raw1);

/* May this header be used at all?  VHDX_E_UNSUPPORTED for a Version other than 1, or for a LogVersion other than 0
 * while the log is dirty (2.1). */
int header_check_version(const struct header *h);

static inline bool header_log_is_dirty(const struct header *h)
{
    return !guid_is_zero(&h->log_guid);
}

/* Judge LogOffset and LogLength (2.3), whether or not the log is dirty: alignment, not in the header area, at most
 * 1 GiB, inside the file.  VHDX_E_HEADER, VHDX_E_LIMIT or VHDX_E_TRUNCATED; with a clean log the caller may read
 * on in spite of that, except for VHDX_E_LIMIT.  A clean header with LogLength 0 is fine. */
int header_check_log(const struct header *h, uint64_t file_length);

#endif
