/* SPDX-License-Identifier: MIT */
/* The checker's parts.  It walks the file on its own, in the order of format section 12:
 *
 *   check-header.c    identifier and headers         rules 1 to 13, 78, 79
 *   check-log.c       the dirty log, into an overlay       14 to 19
 *   check-region.c    region tables                        20 to 29
 *   check-metadata.c  table and items                      30 to 44
 *   check-locator.c   the child's side of the parent link  45 to 50
 *   check-bat.c       block allocation table               57 to 66, 70, 76
 *   check-bitmap.c    sector bitmap blocks                 67 to 69
 *   check-space.c     who owns which MiB                   63, 71 to 75
 *   check-chain.c     the parents                          51 to 56
 *
 * Rule 77 (payload aligned to physical sectors) cannot be broken: block offsets are multiples of 1 MiB.
 *
 * Each phase leaves what it found in struct check, with a flag that says whether the next ones may rely on
 * it, so that damage in one structure hides as little as possible of the rest.  A phase returns a negative
 * code only if the check cannot go on (I/O error, memory, cancelled). */
#ifndef VHDX_OPS_CHECK_H
#define VHDX_OPS_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "format/bat.h"
#include "format/header.h"
#include "format/metadata.h"
#include "format/region-table.h"
#include "image/mib-set.h"
#include "ops/file-view.h"
#include "vhdx.h"

/* Named by what must hold, numbered as in format section 12. */
enum rule {
    RULE_SIGNATURE = 1,
    RULE_CREATOR = 2,
    RULE_IDENTIFIER_RESERVED = 3,
    RULE_HEADER_VALID = 4,
    RULE_BOTH_HEADERS_VALID = 5,
    RULE_HEADER_SEQUENCE = 6,
    RULE_HEADERS_AGREE = 7,
    RULE_HEADER_RESERVED = 8,
    RULE_VERSION = 9,
    RULE_LOG_VERSION = 10,
    RULE_LOG_PLACE = 11,
    RULE_LOG_EXISTS = 12,
    RULE_LOG_CLEAN = 13,
    RULE_LOG_SEQUENCE = 14,
    RULE_LOG_FLUSHED_LENGTH = 15,
    RULE_LOG_LAST_LENGTH = 16,
    RULE_LOG_RESERVED = 17,
    RULE_LOG_TARGET = 18,
    RULE_LOG_TAIL = 19,
    RULE_REGION_COPY_1 = 20,
    RULE_REGION_TABLE = 21,
    RULE_REGION_COPIES_AGREE = 22,
    RULE_REGION_RESERVED = 23,
    RULE_REGION_REQUIRED = 24,
    RULE_REGION_UNIQUE = 25,
    RULE_REGION_PLACE = 26,
    RULE_REGION_DISJOINT = 27,
    RULE_REGION_UNKNOWN_REQUIRED = 28,
    RULE_REGION_UNKNOWN = 29,
    RULE_METADATA_TABLE = 30,
    RULE_METADATA_RESERVED = 31,
    RULE_ITEM_PLACE = 32,
    RULE_ITEM_LIMITS = 33,
    RULE_USER_ITEM_REQUIRED = 34,
    RULE_ITEM_FIXED = 35,
    RULE_ITEM_FLAGS = 36,
    RULE_BLOCK_SIZE = 37,
    RULE_PARAMETERS_RESERVED = 38,
    RULE_SECTOR_SIZES = 39,
    RULE_VIRTUAL_SIZE = 40,
    RULE_DISK_ID = 41,
    RULE_ITEM_UNKNOWN_REQUIRED = 42,
    RULE_ITEM_UNKNOWN = 43,
    RULE_ITEM_STALE = 44,
    RULE_LOCATOR_PRESENT = 45,
    RULE_LOCATOR = 46,
    RULE_LOCATOR_TYPE = 47,
    RULE_LINKAGE = 48,
    RULE_LINKAGE_2 = 49,
    RULE_PATH_KEY = 50,
    RULE_RELATIVE_PATH = 51,
    RULE_PARENT_FOUND = 52,
    RULE_PARENT_IDENTITY = 53,
    RULE_PARENT_GEOMETRY = 54,
    RULE_CHAIN = 55,
    RULE_PARENT_DISK_ID = 56,
    RULE_BAT_SIZE = 57,
    RULE_BAT_RESERVED = 58,
    RULE_PAYLOAD_STATE = 59,
    RULE_ABSENT_OFFSET = 60,
    RULE_PRESENT_OFFSET = 61,
    RULE_BLOCK_PLACE = 62,
    RULE_OVERLAP = 63,
    RULE_BITMAP_UNUSED = 64,
    RULE_BITMAP_ENTRY = 65,
    RULE_BITMAP_MISSING = 66,
    RULE_BITMAP_IDLE = 67,
    RULE_BITMAP_UNIFORM = 68,
    RULE_BITMAP_BEYOND = 69,
    RULE_BAT_PADDING = 70,
    RULE_FIXED_PRESENT = 71,
    RULE_FIXED_LENGTH = 72,
    RULE_LEAK = 73,
    RULE_LENGTH_ALIGNED = 74,
    RULE_SPACE_BEHIND = 75,
    RULE_BAT_SHIFT = 76,
    RULE_BLOCK_ALIGNED = 77,
    RULE_SEQUENCE_END = 78,
    RULE_GUIDS = 79,
    NR_RULES,
};

enum { NR_SEVERITIES = VHDX_ERROR + 1 };

/* Findings of one rule and severity: hostile tables can hold millions (check-report.c). */
struct tally {
    uint32_t nr_told;
    uint64_t nr_held_back;
    uint64_t first_held_back; /* file offset */
    bool repairable;
};

/* Part of the file that payload must keep out of. */
struct fixed_range {
    uint64_t start, end; /* file offsets, bytes */
    char what[VHDX_GUID_TEXT_BYTES + 16];
};

struct check {
    const char *path;
    const struct vhdx_open_options *options; /* may be NULL */
    struct file_view view;
    struct vhdx_check_result result;

    vhdx_finding_fn *fn;
    void *opaque;
    struct tally tallies[NR_RULES][NR_SEVERITIES];
    vhdx_progress_fn *progress;
    void *progress_opaque;

    struct header header;
    bool header_usable;
    bool log_place_usable; /* LogOffset and LogLength name a range of the file */

    struct region bat, metadata;
    bool bat_usable, metadata_usable; /* the region lies inside the file */
    struct fixed_range *fixed;        /* sorted by start; may overlap */
    uint32_t nr_fixed;

    struct metadata_values values;
    bool has_value[NR_METADATA_KNOWN]; /* the fixed item is there and has the right length */
    struct metadata_entry locator_entry;
    bool has_locator_entry;
    uint8_t *locator; /* the item, judged sound; NULL: there is none */
    struct geometry geometry;
    bool geometry_usable;

    struct mib_set space; /* every MiB that something owns; used only if space_usable */
    bool space_usable;
    uint64_t fixed_mib;     /* members of space before the first block was added */
    bool ownership_known;   /* no entry was so wrong that one cannot say what it owns */
    uint64_t first_payload; /* lowest offset of a payload or bitmap block; UINT64_MAX: there is none */
    uint64_t nr_fully_present;
};

static inline bool check_has_flag(const struct check *c, uint32_t flag)
{
    return c->options && (c->options->flags & flag);
}

static inline bool check_is_fixed(const struct check *c)
{
    return (c->values.parameter_flags & PARAMETER_LEAVE_ALLOCATED) && !c->geometry.has_parent;
}

/* ---- phases, in this order ---- */

int check_identifier(struct check *c);
int check_headers(struct check *c);
int check_log(struct check *c);
int check_regions(struct check *c);
int check_metadata(struct check *c);
int check_locator(struct check *c);
int check_bat(struct check *c);
int check_space(struct check *c);
int check_chain(struct check *c);

/* ---- reporting (check-report.c) ---- */

/* A finding with the severity and repair that section 12 gives the rule first. */
void report(struct check *c, enum rule rule, uint64_t file_offset, const char *format, ...)
    __attribute__((format(printf, 4, 5), cold));

/* The same where section 12 names another severity for the case at hand. */
void report_as(struct check *c, enum rule rule, enum vhdx_severity severity, bool repairable,
               uint64_t file_offset, const char *format, ...) __attribute__((format(printf, 6, 7), cold));

/* report() and report_as() with the message of the call that has just failed. */
void report_failure(struct check *c, enum rule rule, uint64_t file_offset);
void report_failure_as(struct check *c, enum rule rule, enum vhdx_severity severity, bool repairable,
                       uint64_t file_offset);

/* One finding for all that were held back since the last time.  Called at the end of each phase. */
void report_held_back(struct check *c);

/* ---- space (check-space.c) ---- */

/* Begin with what check_regions() found. */
int check_space_init(struct check *c);
void check_space_free(struct check *c);

/* Give [file_offset, file_offset + bytes), which begins inside the file, to something that the table entry at
 * entry_offset names; name and no are for the message.  Overlaps are reported (rule 63). */
int check_space_claim(struct check *c, uint64_t file_offset, uint64_t bytes, uint64_t entry_offset,
                const char *name, uint64_t no);

/* ---- bitmaps (check-bitmap.c) ---- */

/* Judge the bitmap block of chunk_no, whose content lies at bitmap_offset inside the file; bit i of partial
 * says whether the chunk's i-th block is PARTIALLY_PRESENT. */
int check_bitmap(struct check *c, uint64_t chunk_no, uint64_t bitmap_offset, const uint8_t *partial,
                 uint64_t nr_partial);

#endif
