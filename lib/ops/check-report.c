/* SPDX-License-Identifier: MIT */
#include "ops/check.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "format/hint.h"

/* Told one by one before they are only counted. */
enum { MAX_TOLD = 100, MESSAGE_BYTES = 1280 };

/* What section 12 says of each rule; where it names two severities, the first, and the other at the place
 * that finds it. "Repairable" is its "safe". */
static const struct rule_facts {
    enum vhdx_severity severity;
    bool repairable;
} rules[NR_RULES] = {
    [RULE_SIGNATURE] = {VHDX_ERROR, false},
    [RULE_CREATOR] = {VHDX_INFO, false},
    [RULE_IDENTIFIER_RESERVED] = {VHDX_INFO, false},
    [RULE_HEADER_VALID] = {VHDX_ERROR, false},
    [RULE_BOTH_HEADERS_VALID] = {VHDX_WARNING, true},
    [RULE_HEADER_SEQUENCE] = {VHDX_WARNING, true},
    [RULE_HEADERS_AGREE] = {VHDX_INFO, true},
    [RULE_HEADER_RESERVED] = {VHDX_INFO, true},
    [RULE_VERSION] = {VHDX_ERROR, false},
    [RULE_LOG_VERSION] = {VHDX_ERROR, false},
    [RULE_LOG_PLACE] = {VHDX_ERROR, false},
    [RULE_LOG_EXISTS] = {VHDX_INFO, true},
    [RULE_LOG_CLEAN] = {VHDX_INFO, true},
    [RULE_LOG_SEQUENCE] = {VHDX_ERROR, false},
    [RULE_LOG_FLUSHED_LENGTH] = {VHDX_ERROR, false},
    [RULE_LOG_LAST_LENGTH] = {VHDX_WARNING, true},
    [RULE_LOG_RESERVED] = {VHDX_INFO, false},
    [RULE_LOG_TARGET] = {VHDX_ERROR, false},
    [RULE_LOG_TAIL] = {VHDX_WARNING, true},
    [RULE_REGION_COPY_1] = {VHDX_WARNING, true},
    [RULE_REGION_TABLE] = {VHDX_ERROR, false},
    [RULE_REGION_COPIES_AGREE] = {VHDX_WARNING, true},
    [RULE_REGION_RESERVED] = {VHDX_WARNING, true},
    [RULE_REGION_REQUIRED] = {VHDX_INFO, true},
    [RULE_REGION_UNIQUE] = {VHDX_ERROR, false},
    [RULE_REGION_PLACE] = {VHDX_ERROR, false},
    [RULE_REGION_DISJOINT] = {VHDX_ERROR, false},
    [RULE_REGION_UNKNOWN_REQUIRED] = {VHDX_ERROR, false},
    [RULE_REGION_UNKNOWN] = {VHDX_INFO, false},
    [RULE_METADATA_TABLE] = {VHDX_ERROR, false},
    [RULE_METADATA_RESERVED] = {VHDX_WARNING, true},
    [RULE_ITEM_PLACE] = {VHDX_ERROR, false},
    [RULE_ITEM_LIMITS] = {VHDX_ERROR, false},
    [RULE_USER_ITEM_REQUIRED] = {VHDX_WARNING, true},
    [RULE_ITEM_FIXED] = {VHDX_ERROR, false},
    [RULE_ITEM_FLAGS] = {VHDX_WARNING, true},
    [RULE_BLOCK_SIZE] = {VHDX_ERROR, false},
    [RULE_PARAMETERS_RESERVED] = {VHDX_WARNING, true},
    [RULE_SECTOR_SIZES] = {VHDX_ERROR, false},
    [RULE_VIRTUAL_SIZE] = {VHDX_ERROR, false},
    [RULE_DISK_ID] = {VHDX_WARNING, false},
    [RULE_ITEM_UNKNOWN_REQUIRED] = {VHDX_ERROR, false},
    [RULE_ITEM_UNKNOWN] = {VHDX_INFO, false},
    [RULE_ITEM_STALE] = {VHDX_INFO, false},
    [RULE_LOCATOR_PRESENT] = {VHDX_ERROR, false},
    [RULE_LOCATOR] = {VHDX_ERROR, false},
    [RULE_LOCATOR_TYPE] = {VHDX_ERROR, false},
    [RULE_LINKAGE] = {VHDX_ERROR, false},
    [RULE_LINKAGE_2] = {VHDX_INFO, false},
    [RULE_PATH_KEY] = {VHDX_ERROR, false},
    [RULE_RELATIVE_PATH] = {VHDX_WARNING, true},
    [RULE_PARENT_FOUND] = {VHDX_ERROR, false},
    [RULE_PARENT_IDENTITY] = {VHDX_ERROR, false},
    [RULE_PARENT_GEOMETRY] = {VHDX_ERROR, false},
    [RULE_CHAIN] = {VHDX_ERROR, false},
    [RULE_PARENT_DISK_ID] = {VHDX_INFO, false},
    [RULE_BAT_SIZE] = {VHDX_ERROR, false},
    [RULE_BAT_RESERVED] = {VHDX_ERROR, false},
    [RULE_PAYLOAD_STATE] = {VHDX_ERROR, false},
    [RULE_ABSENT_OFFSET] = {VHDX_WARNING, true},
    [RULE_PRESENT_OFFSET] = {VHDX_ERROR, false},
    [RULE_BLOCK_PLACE] = {VHDX_ERROR, false},
    [RULE_OVERLAP] = {VHDX_ERROR, false},
    [RULE_BITMAP_UNUSED] = {VHDX_WARNING, true},
    [RULE_BITMAP_ENTRY] = {VHDX_ERROR, false},
    [RULE_BITMAP_MISSING] = {VHDX_ERROR, false},
    [RULE_BITMAP_IDLE] = {VHDX_INFO, true},
    [RULE_BITMAP_UNIFORM] = {VHDX_INFO, true},
    [RULE_BITMAP_BEYOND] = {VHDX_INFO, true},
    [RULE_BAT_PADDING] = {VHDX_INFO, true},
    [RULE_FIXED_PRESENT] = {VHDX_WARNING, false},
    [RULE_FIXED_LENGTH] = {VHDX_WARNING, true},
    [RULE_LEAK] = {VHDX_LEAK, false},
    [RULE_LENGTH_ALIGNED] = {VHDX_INFO, true},
    [RULE_SPACE_BEHIND] = {VHDX_INFO, false},
    [RULE_BAT_SHIFT] = {VHDX_WARNING, true},
    [RULE_BLOCK_ALIGNED] = {VHDX_INFO, false},
    [RULE_SEQUENCE_END] = {VHDX_WARNING, false},
    [RULE_GUIDS] = {VHDX_WARNING, true},
};

static void tell(struct check *c, enum rule rule, enum vhdx_severity severity, bool repairable,
                 uint64_t file_offset, const char *message)
{
    struct vhdx_finding finding = {
        .rule = rule,
        .severity = severity,
        .repairable = repairable,
        .file_offset = file_offset,
        .message = message,
    };

    if (c->fn)
        c->fn(c->opaque, &finding);
}

/* The counters are exact, whether or not the finding will be told. */
static void count(struct check *c, enum vhdx_severity severity)
{
    switch (severity) {
    case VHDX_ERROR:
        c->result.nr_errors++;
        c->result.usable = false;
        break;
    case VHDX_WARNING:
        c->result.nr_warnings++;
        break;
    case VHDX_INFO:
        c->result.nr_notes++;
        break;
    case VHDX_LEAK: /* leaked_bytes counts these */
        break;
    }
}

static void report_list(struct check *c, enum rule rule, enum vhdx_severity severity, bool repairable,
                        uint64_t file_offset, const char *format, va_list args)
{
    struct tally *t = &c->tallies[rule][severity];
    char message[MESSAGE_BYTES];

    count(c, severity);
    if (t->nr_told == MAX_TOLD) {
        if (t->nr_held_back++ == 0) {
            t->first_held_back = file_offset;
            t->repairable = repairable;
        }
        t->repairable &= repairable;
        return;
    }
    t->nr_told++;
    vsnprintf(message, sizeof message, format, args);
    tell(c, rule, severity, repairable, file_offset, message);
}

void report(struct check *c, enum rule rule, uint64_t file_offset, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    report_list(c, rule, rules[rule].severity, rules[rule].repairable, file_offset, format, args);
    va_end(args);
}

void report_as(struct check *c, enum rule rule, enum vhdx_severity severity, bool repairable,
               uint64_t file_offset, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    report_list(c, rule, severity, repairable, file_offset, format, args);
    va_end(args);
}

/* Whoever reads findings has run the checker already. */
static int length_without_hint(const char *message)
{
    const char *hint = strstr(message, "; " HINT_DAMAGED);

    return (int)(hint ? (size_t)(hint - message) : strlen(message));
}

void report_failure(struct check *c, enum rule rule, uint64_t file_offset)
{
    report_failure_as(c, rule, rules[rule].severity, rules[rule].repairable, file_offset);
}

void report_failure_as(struct check *c, enum rule rule, enum vhdx_severity severity, bool repairable,
                       uint64_t file_offset)
{
    const char *message = error_message();

    report_as(c, rule, severity, repairable, file_offset, "%.*s", length_without_hint(message), message);
}

void report_held_back(struct check *c)
{
    char message[MESSAGE_BYTES];

    for (unsigned rule = 0; rule < NR_RULES; rule++) {
        for (unsigned severity = 0; severity < NR_SEVERITIES; severity++) {
            struct tally *t = &c->tallies[rule][severity];
            if (t->nr_held_back == 0)
                continue;
            snprintf(message, sizeof message,
                     "%" PRIu64
                     " more findings of rule %u like the %d above, the first for offset 0x%" PRIx64,
                     t->nr_held_back, rule, MAX_TOLD, t->first_held_back);
            tell(c, rule, severity, t->repairable, t->first_held_back, message);
            t->nr_held_back = 0;
        }
    }
}
