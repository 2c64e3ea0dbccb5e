/* SPDX-License-Identifier: MIT */
/* The valid images that changes begin from, and adding entries to their logs. */
#ifndef VHDX_FUZZ_TEMPLATE_H
#define VHDX_FUZZ_TEMPLATE_H

#include <stdbool.h>
#include <stdint.h>

#include "format/bat.h"
#include "format/log-entry.h"
#include "fuzz-file.h"

/* Where things lie in every template. */
#define TEMPLATE_LOG_OFFSET      MIB(1)
#define TEMPLATE_LOG_BYTES       MIB(1)
#define TEMPLATE_METADATA_OFFSET MIB(2)
#define TEMPLATE_ITEMS_OFFSET    (TEMPLATE_METADATA_OFFSET + METADATA_TABLE_RAW_BYTES)
#define TEMPLATE_BAT_OFFSET      MIB(3)
#define TEMPLATE_BITMAP_OFFSET   MIB(4)
#define TEMPLATE_PAYLOAD_OFFSET  MIB(5)

enum template_kind { TEMPLATE_DYNAMIC, TEMPLATE_DIFFERENCING, TEMPLATE_FIXED, TEMPLATE_EMPTY };

/* A template while it is being changed. */
struct template
{
    struct fuzz_file *file;
    struct geometry geometry;
    uint32_t log_position; /* log offset for the next entry */
    uint32_t log_tail;     /* log offset of the first entry of the sequence */
    uint64_t sequence_no;  /* of the last entry */
};

/* Fill an empty file by the image byte (describe.h). */
void template_build(struct template *t, struct fuzz_file *file, uint8_t image_byte);

void template_set_bat(struct template *t, uint64_t bat_index, unsigned state, uint64_t file_offset);

enum { TEMPLATE_ENTRY_DESCRIPTORS = 300 };

/* An entry for the log of a template; data descriptors have their page in pages, in their order. */
struct template_entry {
    struct log_entry_header header; /* entry_length, nr_descriptors, log_guid are filled in */
    unsigned nr_descriptors, nr_pages;
    struct log_descriptor descriptors[TEMPLATE_ENTRY_DESCRIPTORS]; /* sequence_no is filled in */
    uint8_t pages[TEMPLATE_ENTRY_DESCRIPTORS][PAGE_BYTES];
};

/* Add a descriptor; false: there is no more room. */
bool template_entry_zero(struct template_entry *e, uint64_t file_offset, uint64_t length);
bool template_entry_page(struct template_entry *e, uint64_t file_offset, const uint8_t *page);

/* Put the entry, whole and with its checksum, at log_offset; the next one's place is behind it. */
void template_put_entry(struct template *t, struct template_entry *e, uint32_t log_offset);

#endif
