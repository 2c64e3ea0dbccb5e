/* SPDX-License-Identifier: MIT */
/* Replay of any log, held against a second, simple-minded implementation (log-model.h): the same verdict, the
 * same sequence, and the same content of every page that the file stores or the log names. */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "describe.h"
#include "format/header.h"
#include "image/log-replay.h"
#include "image/log-search.h"
#include "image/overlay.h"
#include "log-model.h"
#include "require.h"
#include "vhdx.h"

static struct log_model model;

/* Beyond so much work the search may refuse (2 * LogLength + 64 MiB of checksummed bytes). */
static bool may_be_refused_as_hostile(void)
{
    return model.work > 2 * (uint64_t)model.header.log_length + MIB(64);
}

static bool find_header(const struct fuzz_file *file, struct header *h)
{
    uint8_t raw[2][HEADER_RAW_BYTES];

    for (unsigned n = 0; n < 2; n++)
        fuzz_file_get(file, HEADER_OFFSET(n), raw[n], sizeof raw[n]);
    int n = header_choose(raw[0], raw[1]);
    if (n < 0)
        return false;
    header_decode(raw[n], h);
    return header_log_is_dirty(h) && header_check_log(h, file->length) == 0;
}

/* ---- search ---- */

static void compare_entry(const struct log_entry *e, const struct model_entry *m)
{
    REQUIRE(e->log_offset == m->log_offset && e->header.entry_length == m->length &&
                e->header.sequence_no == m->sequence_no && e->header.tail == m->tail,
            "entry at log offset 0x%" PRIx32 ", should be at 0x%" PRIx32, e->log_offset, m->log_offset);
}

static int count_descriptor(void *opaque, const struct log_entry *entry, const struct log_descriptor *d,
                            uint64_t descriptor_offset, uint64_t data_sector)
{
    unsigned *nr = opaque;

    REQUIRE(d->sequence_no == entry->header.sequence_no, "a descriptor of another entry");
    REQUIRE((data_sector != 0) == (d->kind == LOG_DESCRIPTOR_DATA), "data sector 0x%" PRIx64, data_sector);
    REQUIRE(descriptor_offset >= model.header.log_offset &&
                descriptor_offset < model.header.log_offset + model.header.log_length,
            "descriptor at 0x%" PRIx64, descriptor_offset);
    ++*nr;
    return 0;
}

/* Every intact entry, in ring order. */
static void try_list(struct storage *s)
{
    struct log_sequence all;
    unsigned nr_descriptors = 0, nr_expected = 0;
    int r = log_list(s, &model.header, &model.header.log_guid, &all);

    if (r == VHDX_E_LOG && may_be_refused_as_hostile())
        return;
    REQUIRE(r == 0, "%d: %s", r, error_message());
    REQUIRE(all.nr_entries == model.nr_entries, "%zu entries, not %u", all.nr_entries, model.nr_entries);
    for (unsigned i = 0; i < model.nr_entries; i++) {
        compare_entry(&all.entries[i], &model.entries[i]);
        nr_expected += model.entries[i].nr_descriptors;
    }
    r = log_for_each_descriptor(s, &all, count_descriptor, &nr_descriptors);
    REQUIRE(r == 0 && nr_descriptors == nr_expected, "%u descriptors, not %u", nr_descriptors, nr_expected);
    log_sequence_free(&all);
}

static void try_search(struct storage *s)
{
    struct log_sequence sequence;
    int r = log_search(s, &model.header, &sequence);

    if (r == VHDX_E_LOG && may_be_refused_as_hostile())
        return;
    REQUIRE(r == 0 || r == VHDX_E_LOG, "%d: %s", r, error_message());
    REQUIRE(sequence.nr_valid == model.nr_entries, "%zu valid entries, not %u", sequence.nr_valid,
            model.nr_entries);
    if (r == 0) {
        REQUIRE(sequence.nr_entries == model.nr_sequence, "%zu active entries, not %u", sequence.nr_entries,
                model.nr_sequence);
        for (unsigned i = 0; i < model.nr_sequence; i++)
            compare_entry(&sequence.entries[i], &model.entries[model.sequence[i]]);
    } else {
        REQUIRE(model.verdict == VHDX_E_LOG, "%s", error_message());
    }
    log_sequence_free(&sequence);
}

/* ---- content ---- */

static void compare_page(const struct overlay *o, struct storage *s, uint64_t page_no)
{
    uint8_t is[PAGE_BYTES], should_be[PAGE_BYTES];
    uint64_t offset = page_no * PAGE_BYTES;

    if (offset >= model.file_length)
        return;
    size_t n = (size_t)min_u64(PAGE_BYTES, model.file_length - offset);
    log_model_page(&model, page_no, should_be);
    int r = overlay_pread(o, s, is, n, offset);
    REQUIRE(r == 0, "page 0x%" PRIx64 ": %s", page_no, error_message());
    REQUIRE(memcmp(is, should_be, n) == 0, "page 0x%" PRIx64 " differs", page_no);
    REQUIRE(overlay_touches(o, offset, PAGE_BYTES) == log_model_changes(&model, page_no), "page 0x%" PRIx64,
            page_no);
}

/* A read across pages, at no alignment, is the same as its pages; tried for some. */
static void compare_across(const struct overlay *o, struct storage *s, uint64_t page_no)
{
    uint8_t is[2 * PAGE_BYTES], should_be[4 * PAGE_BYTES];
    uint64_t first = page_no - min_u64(page_no, 1), from = 1 + page_no * 37 % (PAGE_BYTES - 2);

    if (page_no % 4 != 0 || !range_fits(first * PAGE_BYTES, 4 * PAGE_BYTES, model.file_length))
        return;
    for (unsigned i = 0; i < 4; i++)
        log_model_page(&model, first + i, should_be + i * PAGE_BYTES);
    int r = overlay_pread(o, s, is, sizeof is, first * PAGE_BYTES + from);
    REQUIRE(r == 0, "%s", error_message());
    REQUIRE(memcmp(is, should_be + from, sizeof is) == 0, "pages from 0x%" PRIx64 " differ", first);
}

/* Pages where something begins, ends or is stored, a sample if there are many. */
static void for_each_page(const struct overlay *o, struct storage *s,
                          void (*fn)(const struct overlay *, struct storage *, uint64_t page_no))
{
    enum { MAX_PAGES_LOOKED_AT = 150, MAX_STEPS_LOOKED_AT = 50 };
    unsigned page_stride = 1 + model.file->nr_pages / MAX_PAGES_LOOKED_AT;
    unsigned step_stride = 1 + model.nr_steps / MAX_STEPS_LOOKED_AT;

    for (unsigned i = 0; i < model.file->nr_pages; i += page_stride)
        fn(o, s, model.file->page_no[i]);
    for (unsigned i = 0; i < model.nr_steps; i += step_stride) {
        uint64_t first = model.steps[i].file_offset / PAGE_BYTES, nr = model.steps[i].length / PAGE_BYTES;
        fn(o, s, first);
        if (nr == 1)
            continue;
        fn(o, s, first - min_u64(first, 1));
        fn(o, s, first + nr / 2);
        fn(o, s, first + nr - 1);
        fn(o, s, first + nr);
    }
    fn(o, s, model.file_length / PAGE_BYTES);
    fn(o, s, (model.file_length - 1) / PAGE_BYTES);
}

/* Where next_data saw nothing on the way to a page, the page must be zeros. */
static void check_hole(const struct overlay *o, struct storage *s, uint64_t page_no)
{
    uint8_t page[PAGE_BYTES];
    uint64_t offset = page_no * PAGE_BYTES, start, end;

    if (offset >= model.file_length)
        return;
    int r = overlay_next_data(o, s, offset, &start, &end);
    REQUIRE(r == 0, "%s", error_message());
    REQUIRE(start >= offset && end >= start, "next data at 0x%" PRIx64 "..0x%" PRIx64, start, end);
    if (start >= offset + PAGE_BYTES || start == end) {
        log_model_page(&model, page_no, page);
        for (unsigned i = 0; i < PAGE_BYTES; i++)
            REQUIRE(page[i] == 0, "data of page 0x%" PRIx64 " overlooked", page_no);
    }
}

/* The ranges that a walk from the beginning to the end finds data in. */
static struct {
    uint64_t start, end;
} data_ranges[2 * FUZZ_FILE_PAGES + MODEL_STEPS];
static unsigned nr_data_ranges;

static void walk_data(const struct overlay *o, struct storage *s)
{
    uint64_t start, end, at = 0;

    for (nr_data_ranges = 0;; at = end) {
        int r = overlay_next_data(o, s, at, &start, &end);
        REQUIRE(r == 0, "%s", error_message());
        REQUIRE(start >= at && end >= start && end <= model.file_length, "0x%" PRIx64 "..0x%" PRIx64, start,
                end);
        if (start == end)
            break;
        REQUIRE(nr_data_ranges < ARRAY_LENGTH(data_ranges), "no end of data ranges");
        data_ranges[nr_data_ranges].start = start;
        data_ranges[nr_data_ranges++].end = end;
    }
    REQUIRE(start == model.file_length, "the end is at 0x%" PRIx64 ", not 0x%" PRIx64, start,
            model.file_length);
}

/* What the walk went past must be zeros. */
static void check_passed(const struct overlay *o, struct storage *s, uint64_t page_no)
{
    uint8_t page[PAGE_BYTES];
    uint64_t offset = page_no * PAGE_BYTES;

    (void)o, (void)s;
    for (unsigned i = 0; i < nr_data_ranges; i++) {
        if (ranges_overlap(offset, PAGE_BYTES, data_ranges[i].start,
                           data_ranges[i].end - data_ranges[i].start))
            return;
    }
    log_model_page(&model, page_no, page);
    for (unsigned i = 0; i < PAGE_BYTES; i++)
        REQUIRE(page[i] == 0, "the walk over the data overlooks page 0x%" PRIx64, page_no);
}

static void check_ranges(const struct overlay *o)
{
    for (size_t i = 0; i < o->nr_ranges; i++) {
        const struct overlay_range *r = &o->ranges[i];
        REQUIRE(r->start < r->end && is_aligned(r->start | r->end, PAGE_BYTES), "range %zu", i);
        REQUIRE(i == 0 || r->start >= o->ranges[i - 1].end, "range %zu overlaps the one before", i);
        REQUIRE(r->data_sector == 0 || r->end - r->start == PAGE_BYTES, "range %zu is no page", i);
    }
}

static void try_replay(struct storage *s)
{
    struct overlay *o;
    uint8_t byte;
    int r = log_replay_overlay(s, &model.header, model.file->length, &o);

    if (r == VHDX_E_LOG && may_be_refused_as_hostile())
        return;
    REQUIRE(r == model.verdict, "verdict %d (%s), not %d", r, r < 0 ? error_message() : "fine",
            model.verdict);
    if (r < 0) {
        REQUIRE(o == NULL, "an overlay in spite of a failure");
        return;
    }
    REQUIRE(o->file_length == model.file_length, "length 0x%" PRIx64 ", not 0x%" PRIx64, o->file_length,
            model.file_length);
    check_ranges(o);
    for_each_page(o, s, compare_page);
    for_each_page(o, s, compare_across);
    for_each_page(o, s, check_hole);
    walk_data(o, s);
    for_each_page(o, s, check_passed);
    r = overlay_pread(o, s, &byte, 1, model.file_length);
    REQUIRE(r == VHDX_E_TRUNCATED, "%d for a read behind the end", r);
    overlay_free(o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct input in = {data, bytes};
    struct description d;
    double begun = processor_seconds();
    struct header h;

    describe(&in, &d);
    struct storage *s = fuzz_file_open(d.child);
    if (find_header(d.child, &h)) {
        if (d.child->fault_at > 0) { /* a read fails: only that nothing breaks counts */
            struct overlay *o;
            int r = log_replay_overlay(s, &h, d.child->length, &o);
            REQUIRE(d.child->nr_reads < d.child->fault_at || r < 0, "a read failed and nobody noticed");
            overlay_free(o);
        } else {
            log_model_build(&model, d.child, &h);
            if (!model.given_up) {
                try_list(s);
                try_search(s);
                try_replay(s);
            }
        }
    }
    storage_close(s);
    REQUIRE(processor_seconds() - begun < MAX_PROCESSOR_SECONDS, "%.1f s for one input",
            processor_seconds() - begun);
    return 0;
}
