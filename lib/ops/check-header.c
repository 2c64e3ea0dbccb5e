/* SPDX-License-Identifier: MIT */
/* Rules 1 to 13, 78 and 79: the identifier and the headers (format sections 1.2 and 2). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/utf16.h"
#include "base/zero.h"
#include "format/identifier.h"
#include "ops/check.h"

/* Fewer updates than this are left: "near 2^64" (rule 78). */
#define SEQUENCE_RESERVE (UINT64_C(1) << 32)

int check_identifier(struct check *c)
{
    const uint8_t *raw = c->view.identifier;
    char creator[UTF8_BYTES_FOR_UNITS(IDENTIFIER_CREATOR_UNITS)];

    if (!c->view.signature_valid)
        report(c, RULE_SIGNATURE, IDENTIFIER_OFFSET,
               "file identifier at 0x0: the signature \"vhdxfile\" is missing, though a header follows; no "
               "program "
               "opens the file until it is written back");
    size_t nr_bad = identifier_creator(raw, creator, sizeof creator);
    if (nr_bad > 0)
        report(c, RULE_CREATOR, IDENTIFIER_OFFSET + 8,
               "file identifier at 0x0: %zu characters of the creator's name cannot be shown", nr_bad);
    if (!memory_is_zero(raw + IDENTIFIER_USED_BYTES, IDENTIFIER_RAW_BYTES - IDENTIFIER_USED_BYTES))
        report(c, RULE_IDENTIFIER_RESERVED, IDENTIFIER_OFFSET + IDENTIFIER_USED_BYTES,
               "file identifier at 0x0: reserved bytes behind the creator's name are not zero");
    return 0;
}

/* ---- which header counts ---- */

static const char *why_invalid(const struct check *c, unsigned n)
{
    if (c->view.real_length < HEADER_OFFSET(n) + HEADER_RAW_BYTES)
        return "the file ends before it";
    if (!c->view.header_copies[n])
        return "it cannot be read";
    return memcmp(c->view.header_copies[n], "head", 4) == 0 ? "its checksum is wrong"
                                                            : "its signature is missing";
}

static void report_no_header(struct check *c)
{
    report(c, RULE_HEADER_VALID, HEADER_OFFSET(0),
           "no valid header: header 1 at 0x%" PRIx64 ": %s; header 2 at 0x%" PRIx64
           ": %s; restore the first MiB from a backup",
           HEADER_OFFSET(0), why_invalid(c, 0), HEADER_OFFSET(1), why_invalid(c, 1));
}

/* Rule 6 for two valid copies with one number.  Returns the copy to go on with. */
static unsigned judge_equal_sequence(struct check *c, uint64_t sequence_no)
{
    bool same = memcmp(c->view.header_copies[0], c->view.header_copies[1], HEADER_RAW_BYTES) == 0;

    if (same)
        report(c, RULE_HEADER_SEQUENCE, HEADER_OFFSET(1),
               "both headers are the same, with sequence number %" PRIu64
               "; the next writer should renumber them",
               sequence_no);
    else
        report_as(c, RULE_HEADER_SEQUENCE, VHDX_ERROR, false, HEADER_OFFSET(1),
                  "both headers are valid and have sequence number %" PRIu64
                  ", but they differ: nothing says which one counts",
                  sequence_no);
    return 0;
}

/* Rule 7: what else differs, in words. */
static void judge_agreement(struct check *c, const struct header *current, const struct header *other,
                            uint64_t other_offset)
{
    char list[160] = "";

    if (!guid_equal(&current->data_write_guid, &other->data_write_guid)) {
        report_as(
            c, RULE_HEADERS_AGREE, VHDX_WARNING, true, other_offset,
            "the older header, at 0x%" PRIx64
            ", has another DataWriteGuid: if the newer one is lost, children of this disk no longer match it",
            other_offset);
    }
    if (!guid_equal(&current->file_write_guid, &other->file_write_guid))
        strcat(list, " FileWriteGuid");
    if (!guid_equal(&current->log_guid, &other->log_guid))
        strcat(list, " LogGuid");
    if (current->log_version != other->log_version)
        strcat(list, " LogVersion");
    if (current->version != other->version)
        strcat(list, " Version");
    if (current->log_length != other->log_length)
        strcat(list, " LogLength");
    if (current->log_offset != other->log_offset)
        strcat(list, " LogOffset");
    if (list[0] != '\0')
        report(c, RULE_HEADERS_AGREE, other_offset,
               "the older header, at 0x%" PRIx64 ", differs from the newer one in:%s", other_offset, list);
}

/* Rules 4 to 7.  Returns the current copy, or -1. */
static int judge_copies(struct check *c)
{
    bool valid[2];
    struct header h[2];

    for (unsigned n = 0; n < 2; n++) {
        valid[n] = c->view.header_copies[n] && header_is_valid(c->view.header_copies[n]);
        if (valid[n])
            header_decode(c->view.header_copies[n], &h[n]);
    }
    if (!valid[0] && !valid[1]) {
        report_no_header(c);
        return -1;
    }
    if (!valid[0] || !valid[1]) {
        unsigned bad = valid[0] ? 1 : 0;
        report(c, RULE_BOTH_HEADERS_VALID, HEADER_OFFSET(bad),
               "header %u at 0x%" PRIx64 " is not valid: %s; the other one is all that is left", bad + 1,
               HEADER_OFFSET(bad), why_invalid(c, bad));
        return !bad;
    }
    if (h[0].sequence_no == h[1].sequence_no)
        return (int)judge_equal_sequence(c, h[0].sequence_no);
    unsigned current = h[1].sequence_no > h[0].sequence_no;
    judge_agreement(c, &h[current], &h[!current], HEADER_OFFSET(!current));
    return (int)current;
}

/* ---- what it says ---- */

static void judge_fields(struct check *c, const struct header *h, uint64_t offset)
{
    if (!h->reserved_is_zero)
        report(c, RULE_HEADER_RESERVED, offset + 80, "header at 0x%" PRIx64 ": reserved bytes are not zero",
               offset);
    if (h->version != 1)
        report(c, RULE_VERSION, offset + 66,
               "header at 0x%" PRIx64
               ": Version is %u, and this program knows only 1; the rest is judged as if it were 1",
               offset, h->version);
    if (h->sequence_no > UINT64_MAX - SEQUENCE_RESERVE)
        report(c, RULE_SEQUENCE_END, offset + 8,
               "header at 0x%" PRIx64 ": sequence number %" PRIu64
               " is near its end; convert the disk into a new image before it can no longer be written",
               offset, h->sequence_no);
    if (guid_is_zero(&h->file_write_guid))
        report(c, RULE_GUIDS, offset + 16, "header at 0x%" PRIx64 ": FileWriteGuid is zero", offset);
    if (guid_is_zero(&h->data_write_guid))
        report_as(c, RULE_GUIDS, VHDX_WARNING, false, offset + 32,
                  "header at 0x%" PRIx64 ": DataWriteGuid is zero, so children cannot recognise this disk",
                  offset);
}

/* Rules 10 to 13. */
static void judge_log_fields(struct check *c, const struct header *h, uint64_t offset)
{
    bool dirty = header_log_is_dirty(h);
    enum vhdx_severity severity = dirty ? VHDX_ERROR : VHDX_WARNING;

    if (h->log_version != 0)
        report_as(c, RULE_LOG_VERSION, severity, !dirty, offset + 64,
                  "header at 0x%" PRIx64 ": LogVersion is %u, and this program knows only 0", offset,
                  h->log_version);
    int r = header_check_log(h, c->view.real_length);
    if (r < 0) {
        report_failure_as(c, RULE_LOG_PLACE, severity, false, offset + 68);
        if (r == VHDX_E_LIMIT)
            c->result.usable = false;
    }
    c->log_place_usable = r == 0 && h->log_length > 0;
    if (r == 0 && h->log_length == 0)
        report(c, RULE_LOG_EXISTS, offset + 68,
               "header at 0x%" PRIx64 ": there is no log yet; the first writer will have to make one",
               offset);
    if (dirty) {
        c->result.replay_needed = true;
        report(c, RULE_LOG_CLEAN, offset + 48,
               "header at 0x%" PRIx64 ": the log is dirty: changes in it are not in place yet; the rest is "
                                      "judged as it will be after replay",
               offset);
    }
}

int check_headers(struct check *c)
{
    int current = judge_copies(c);

    if (current < 0)
        return 0;
    header_decode(c->view.header_copies[current], &c->header);
    c->header_usable = true;
    judge_fields(c, &c->header, HEADER_OFFSET(current));
    judge_log_fields(c, &c->header, HEADER_OFFSET(current));
    return 0;
}
