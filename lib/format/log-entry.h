/* SPDX-License-Identifier: MIT */
/* Log entries (format section 4.2 to 4.4).
 *
 *   entry header, 64 bytes                 descriptors, 32 bytes each, packed from byte 64
 *   offset size  field                     offset size  zero              data
 *        0    4  Signature  "loge"              0    4  "zero"            "desc"
 *        4    4  Checksum   over the entry      4    4  reserved          TrailingBytes 4092..4095 of the page
 *        8    4  EntryLength                    8    8  ZeroLength        LeadingBytes 0..7 of the page
 *       12    4  Tail                          16    8  FileOffset        FileOffset
 *       16    8  SequenceNumber                24    8  SequenceNumber    SequenceNumber
 *       24    4  DescriptorCount
 *       28    4  reserved                    data sector, 4096 bytes, one for each data descriptor in their order
 *       32   16  LogGuid                          0    4  "data"
 *       48    8  FlushedFileOffset                4    4  SequenceHigh
 *       56    8  LastFileOffset                   8 4084  bytes 8..4091 of the page
 *                                              4092    4  SequenceLow */
#ifndef VHDX_FORMAT_LOG_ENTRY_H
#define VHDX_FORMAT_LOG_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/guid.h"
#include "format/layout.h"

enum { LOG_HEADER_BYTES = 64, LOG_DESCRIPTOR_BYTES = 32, LOG_CHECKSUM_AT = 4 };

struct log_entry_header {
    uint32_t checksum;
    uint32_t entry_length; /* bytes */
    uint32_t tail;         /* log offset, bytes */
    uint64_t sequence_no;
    uint32_t nr_descriptors;
    uint32_t reserved;
    guid log_guid;
    uint64_t flushed_file_offset; /* bytes */
    uint64_t last_file_offset;    /* bytes */
};

enum log_descriptor_kind { LOG_DESCRIPTOR_ZERO, LOG_DESCRIPTOR_DATA };

struct log_descriptor {
    enum log_descriptor_kind kind;
    uint64_t file_offset; /* bytes */
    uint64_t length;      /* bytes: ZeroLength, or PAGE_BYTES */
    uint64_t sequence_no;
    uint32_t reserved;    /* of a zero descriptor */
    uint8_t leading[8], trailing[4]; /* of a data descriptor, raw bytes of the page */
};

/* E1: the signature; false means "no entry here".  Fills h. */
bool log_entry_header_decode(const uint8_t raw[LOG_HEADER_BYTES], struct log_entry_header *h);

/* E2 to E6: what the header alone can tell. */
bool log_entry_header_plausible(const struct log_entry_header *h, const guid *log_guid, uint32_t log_length);

/* Without checksum: the caller computes it over the whole entry. */
void log_entry_header_encode(const struct log_entry_header *h, uint8_t raw[LOG_HEADER_BYTES]);

/* Sectors that the header and nr_descriptors take: ceil((64 + 32 n) / 4096). */
uint64_t log_nr_descriptor_sectors(uint64_t nr_descriptors);

/* E8 except the sequence number: a known signature. */
bool log_descriptor_decode(const uint8_t raw[LOG_DESCRIPTOR_BYTES], struct log_descriptor *d);
void log_descriptor_encode(const struct log_descriptor *d, uint8_t raw[LOG_DESCRIPTOR_BYTES]);

/* E11, E12 and the bound of 4.7 step 3: VHDX_E_LOG.  descriptor_offset (in the file) goes into the message. */
int log_descriptor_check(const struct log_descriptor *d, uint64_t descriptor_offset, uint64_t log_offset,
                         uint32_t log_length, uint64_t bound);

/* E10: signature and both halves of the sequence number. */
bool log_data_sector_is_valid(const uint8_t raw[LOG_SECTOR_BYTES], uint64_t sequence_no);
void log_data_sector_encode(const uint8_t page[PAGE_BYTES], uint64_t sequence_no, uint8_t raw[LOG_SECTOR_BYTES]);

/* The page image from its data sector and descriptor. */
void log_page_rebuild(const uint8_t sector[LOG_SECTOR_BYTES], const uint8_t leading[8], const uint8_t trailing[4],
                      uint8_t page[PAGE_BYTES]);

#endif
