/* SPDX-License-Identifier: MIT */
/* What the tests of the log search share: a log in memory, entries in it, and what must be found. */
#ifndef VHDX_TESTS_LOG_TEST_H
#define VHDX_TESTS_LOG_TEST_H

#include "unit.h"

#include <errno.h>

#include "base/le.h"
#include "base/math.h"
#include "doubles.h"
#include "image-builder.h"
#include "image/log-search.h"
#include "storage/storage.h"

static const guid log_guid = {"log of the test"}, other_guid = {"another session"};

enum { SECTOR = LOG_SECTOR_BYTES };

/* A file that is little more than a log. */
struct ring {
    struct storage *file;
    struct header h;
};

static inline struct ring new_ring(uint32_t log_length)
{
    struct ring g = {
        .h = {.version = 1, .log_guid = log_guid, .log_offset = MIB(1), .log_length = log_length}};

    assert_succeeds(storage_memory_new(NULL, 0, &g.file));
    assert_succeeds(storage_truncate(g.file, g.h.log_offset + log_length));
    return g;
}

static inline void end_ring(struct ring *g)
{
    storage_close(g->file);
}

/* Some page, for each target its own. */
static inline const uint8_t *page_for(uint64_t file_offset)
{
    static uint8_t page[PAGE_BYTES];

    for (size_t i = 0; i < sizeof page; i += 8)
        le64_put(page + i, file_offset + i);
    return page;
}

/* An entry of nr_data data descriptors.  Returns where the next one goes. */
static inline uint32_t put_with(struct ring *g, const guid *id, uint32_t log_offset, uint64_t sequence_no,
                                uint32_t tail, uint32_t nr_data)
{
    struct build_change changes[300];

    assert_true(nr_data <= ARRAY_LENGTH(changes));
    for (uint32_t i = 0; i < nr_data; i++)
        changes[i] = (struct build_change){.file_offset = MIB(3), .page = page_for(MIB(3))};
    const struct build_entry e = {.log_offset = log_offset,
                                  .tail = tail,
                                  .sequence_no = sequence_no,
                                  .log_guid = *id,
                                  .changes = changes,
                                  .nr_changes = nr_data};
    return (log_offset + build_log_entry(g->file, &g->h, &e)) % g->h.log_length;
}

static inline uint32_t put(struct ring *g, uint32_t log_offset, uint64_t sequence_no, uint32_t tail,
                           uint32_t nr_data)
{
    return put_with(g, &g->h.log_guid, log_offset, sequence_no, tail, nr_data);
}

/* The active sequence must be the entries at these log offsets. */
static inline void expect_sequence(struct ring *g, size_t nr, const uint32_t *log_offsets)
{
    struct log_sequence s;

    assert_succeeds(log_search(g->file, &g->h, &s));
    assert_int_equal(s.nr_entries, nr);
    assert_true(s.nr_valid >= nr);
    for (size_t i = 0; i < nr; i++)
        assert_int_equal(s.entries[i].log_offset, log_offsets[i]);
    assert_ptr_equal(log_sequence_head(&s), &s.entries[nr - 1]);
    assert_int_equal(s.log_offset, g->h.log_offset);
    assert_int_equal(s.log_length, g->h.log_length);
    log_sequence_free(&s);
}

#define EXPECT(g, ...)                                                                                       \
    expect_sequence((g), ARRAY_LENGTH(((const uint32_t[]){__VA_ARGS__})), (const uint32_t[]){__VA_ARGS__})

/* There must be none, though so many entries are intact. */
static inline void expect_none(struct ring *g, size_t nr_valid, const char *text)
{
    struct log_sequence s;

    assert_fails(log_search(g->file, &g->h, &s), VHDX_E_LOG, text);
    assert_non_null(strstr(error_message(), "log at 0x100000"));
    assert_int_equal(s.nr_valid, nr_valid);
    assert_null(s.entries);
    log_sequence_free(&s);
}

static inline void clear_sector(struct ring *g, uint32_t log_offset)
{
    build_fill(g->file, g->h.log_offset + log_offset, 0, SECTOR);
}

#endif
