/* SPDX-License-Identifier: MIT */
/* Judging the entries of a log and walking their descriptors (format sections 4.2 and 4.4, hostile input rows
 * 14, 18 to 28 and 39), errors, and what it may cost. */
#include "log-test.h"

/* Change a field of the single entry at log offset 0 and make its checksum right again. */
static void patch(struct ring *g, uint32_t at, uint64_t value, unsigned bytes, uint32_t entry_length)
{
    build_number(g->file, g->h.log_offset + at, value, bytes);
    build_reseal(g->file, g->h.log_offset, entry_length);
}

/* ---- E1 to E10, each by itself ---- */

static void each_rule_for_an_entry_is_kept(void **state)
{
    static const struct {
        uint32_t at; /* in the entry of 3 sectors at log offset 0 */
        uint64_t value;
        unsigned bytes;
    } broken[] = {
        {0, 0x65676f4c, 4}, /* E1: "Loge" */
        {32, 0, 8},         /* E2 */
        {8, 0, 4},
        {8, 3 * SECTOR + 512, 4}, /* E3 */
        {8, MIB(1) + SECTOR, 4},
        {8, UINT32_MAX, 4},
        {8, UINT32_MAX - SECTOR + 1, 4},
        {12, 1, 4},
        {12, MIB(1), 4},
        {12, UINT32_MAX - SECTOR + 1, 4}, /* E4 */
        {16, 0, 8},                       /* E5 */
        {24, UINT32_MAX, 4},              /* E6: 64 + 32 * n is 32 in 32 bits */
        {24, (3 * SECTOR - 64) / 32 + 1, 4},
        {24, 0x7fffffe, 4}, /* 64 + 32 * n is 0 in 32 bits */
        {24, 1, 4},
        {24, 3, 4},
        {24, 126, 4}, /* E9: other numbers of descriptors */
        {64, 0x6b736564, 4},
        {96, 0, 4}, /* E8: "desk" */
        {64 + 24, 8, 8},
        {96 + 24, UINT64_MAX, 8}, /* E8: the descriptors' sequence number */
        {SECTOR, 0x61746144, 4},  /* E10 */
        {SECTOR + 4, 1, 4},
        {2 * SECTOR + 4092, 6, 4},
    };
    struct ring g = new_ring(MIB(1));

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(broken); i++) {
        put(&g, 0x0, 7, 0x0, 2);
        EXPECT(&g, 0x0);
        patch(&g, broken[i].at, broken[i].value, broken[i].bytes, 3 * SECTOR);
        expect_none(&g, 0, "none of its 0 intact");
    }
    for (uint32_t byte = 0; byte < 3 * SECTOR; byte += 7) { /* E7: every byte counts */
        uint8_t b;
        put(&g, 0x0, 7, 0x0, 2);
        assert_succeeds(storage_pread(g.file, &b, 1, g.h.log_offset + byte));
        build_number(g.file, g.h.log_offset + byte, b ^ 0x10u, 1);
        expect_none(&g, 0, "none of its 0 intact");
    }
    end_ring(&g);
}

static void e13_is_tolerated(void **state)
{
    static const uint32_t places[] = {28, 48, 56, 3 * SECTOR - 8, 64 + 2 * 32, SECTOR - 1};
    struct ring g = new_ring(MIB(1));

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
        put(&g, 0x0, 7, 0x0, 2);
        patch(&g, places[i], 0x5a, 1, 3 * SECTOR);
        EXPECT(&g, 0x0);
    }
    end_ring(&g);
}

/* ---- descriptors ---- */

struct seen {
    uint32_t nr, stop_after;
    uint64_t offsets[600], data_sectors[600], places[600];
    enum log_descriptor_kind kinds[600];
};

static int note(void *opaque, const struct log_entry *entry, const struct log_descriptor *d,
                uint64_t descriptor_offset, uint64_t data_sector)
{
    struct seen *seen = opaque;

    assert_int_equal(d->sequence_no, entry->header.sequence_no);
    seen->kinds[seen->nr] = d->kind;
    seen->offsets[seen->nr] = d->file_offset;
    seen->places[seen->nr] = descriptor_offset;
    seen->data_sectors[seen->nr++] = data_sector;
    return seen->nr == seen->stop_after ? 42 : 0;
}

/* Descriptor number n of an entry lies at byte 64 + 32 n of it, and its page n_data sectors behind the
 * descriptors. */
static void expect_descriptors(struct ring *g, const struct build_entry *e)
{
    struct log_sequence s;
    struct seen *seen = exact_bytes(sizeof *seen);
    uint32_t sector = (uint32_t)log_nr_descriptor_sectors(e->nr_changes);

    assert_succeeds(log_search(g->file, &g->h, &s));
    assert_succeeds(log_for_each_descriptor(g->file, &s, note, seen));
    assert_int_equal(seen->nr, e->nr_changes);
    for (uint32_t i = 0; i < e->nr_changes; i++) {
        uint64_t place = (e->log_offset + 64 + 32 * i) % g->h.log_length;
        assert_int_equal(seen->offsets[i], e->changes[i].file_offset);
        assert_int_equal(seen->places[i], g->h.log_offset + place);
        if (!e->changes[i].page) {
            assert_int_equal(seen->kinds[i], LOG_DESCRIPTOR_ZERO);
            assert_int_equal(seen->data_sectors[i], 0);
            continue;
        }
        assert_int_equal(seen->kinds[i], LOG_DESCRIPTOR_DATA);
        uint64_t at = (e->log_offset + (uint64_t)sector++ * SECTOR) % g->h.log_length;
        assert_int_equal(seen->data_sectors[i], g->h.log_offset + at);
    }
    log_sequence_free(&s);
    free(seen);
}

/* One sector holds 126 descriptors, each further one 128; entries wrap in between. */
static void descriptors_in_several_sectors_are_all_seen(void **state)
{
    static const uint32_t counts[] = {0, 1, 2, 125, 126, 127, 128, 253, 254, 255, 256, 382, 383};
    static uint8_t page[PAGE_BYTES];
    struct build_change changes[400];

    (void)state;
    for (size_t c = 0; c < ARRAY_LENGTH(counts); c++) {
        for (unsigned mix = 0; mix < 3; mix++) { /* all data, all zero, mixed */
            for (unsigned wrap = 0; wrap < 5; wrap++) {
                struct ring g = new_ring(MIB(2));
                for (uint32_t i = 0; i < counts[c]; i++)
                    changes[i] =
                        (struct build_change){.file_offset = MIB(4) + i * PAGE_BYTES,
                                              .page = mix == 0 || (mix == 2 && i % 3 != 1) ? page : NULL,
                                              .zero_bytes = PAGE_BYTES};
                struct build_entry e = {.log_offset = (MIB(2) - wrap * SECTOR) % MIB(2),
                                        .tail = (MIB(2) - wrap * SECTOR) % MIB(2),
                                        .sequence_no = 5,
                                        .log_guid = log_guid,
                                        .changes = changes,
                                        .nr_changes = counts[c]};
                build_log_entry(g.file, &g.h, &e);
                expect_descriptors(&g, &e);
                end_ring(&g);
            }
        }
    }
}

static void walking_descriptors_goes_from_tail_to_head_and_can_stop(void **state)
{
    struct ring g = new_ring(MIB(1));
    struct seen *seen = exact_bytes(sizeof *seen);
    struct log_sequence s;

    (void)state;
    put(&g, MIB(1) - 3 * SECTOR, 4, MIB(1) - 3 * SECTOR, 2);
    put(&g, 0, 5, MIB(1) - 3 * SECTOR, 3);
    assert_succeeds(log_search(g.file, &g.h, &s));
    assert_succeeds(log_for_each_descriptor(g.file, &s, note, seen));
    assert_int_equal(seen->nr, 5);
    assert_int_equal(seen->data_sectors[1], MIB(2) - SECTOR);
    assert_int_equal(seen->data_sectors[2], MIB(1) + SECTOR);
    *seen = (struct seen){.stop_after = 3};
    assert_int_equal(log_for_each_descriptor(g.file, &s, note, seen), 42);
    *seen = (struct seen){0};
    assert_succeeds(log_entry_for_each_descriptor(g.file, &s, log_sequence_head(&s), note, seen));
    assert_int_equal(seen->nr, 3);

    build_fill(g.file, MIB(1) + 64 + 32, 0, 4); /* somebody writes to the log in use */
    *seen = (struct seen){0};
    assert_fails(log_for_each_descriptor(g.file, &s, note, seen), VHDX_E_LOG, "0x100060");
    log_sequence_free(&s);
    end_ring(&g);
    free(seen);
}

/* ---- listing ---- */

static void all_intact_entries_are_listed_in_ring_order(void **state)
{
    struct ring g = new_ring(MIB(1));
    struct log_sequence all;

    (void)state;
    put(&g, 0x8000, 3, 0x8000, 1);
    put(&g, 0x0, 9, 0x0, 1);
    put_with(&g, &other_guid, 0x4000, 6, 0xff000, 2);
    assert_succeeds(log_list(g.file, &g.h, &log_guid, &all));
    assert_int_equal(all.nr_entries, 2);
    assert_int_equal(all.entries[0].log_offset, 0x0);
    assert_int_equal(all.entries[1].log_offset, 0x8000);
    log_sequence_free(&all);
    assert_succeeds(log_list(g.file, &g.h, &other_guid, &all));
    assert_int_equal(all.nr_entries, 1);
    assert_int_equal(all.entries[0].header.tail, 0xff000);
    log_sequence_free(&all);
    end_ring(&g);
}

/* ---- errors and cost ---- */

static void an_io_error_is_never_taken_for_no_entry(void **state)
{
    struct ring g = new_ring(MIB(1));
    struct storage *wrapped;
    struct log_sequence s;
    struct fault f;
    uint64_t n;

    (void)state;
    for (uint32_t i = 0; i < 4; i++)
        put(&g, i * 0x3000, 5 + i, 0, 2);
    put(&g, 0x80000, 1, 0x80000, 30);
    put(&g, MIB(1) - SECTOR, 2, MIB(1) - SECTOR, 0);
    fault_init(&f);
    assert_succeeds(fault_wrap(&f, g.file, &wrapped));
    for (n = 1;; n++) {
        fault_arm(&f, &(struct fault_plan){.kind = FAULT_ANY, .nth = n, .error = -EIO});
        int r = log_search(wrapped, &g.h, &s);
        if (fault_injected(&f) == 0) {
            assert_succeeds(r);
            assert_int_equal(s.nr_entries, 4);
            log_sequence_free(&s);
            break;
        }
        assert_int_equal(r, -EIO);
        assert_null(s.entries);
        fault_arm(&f, &(struct fault_plan){.kind = FAULT_ANY, .nth = n, .error = -EIO});
        assert_int_equal(log_list(wrapped, &g.h, &log_guid, &s), -EIO);
        assert_null(s.entries);
    }
    assert_true(n > 8); /* each entry is read by itself */
    fault_arm(&f, &(struct fault_plan){.kind = FAULT_READ, .nth = 2, .error = 0, .bytes_done = 100});
    assert_fails(log_search(wrapped, &g.h, &s), VHDX_E_TRUNCATED, "log at 0x100000");
    storage_close(wrapped);
    fault_destroy(&f);
    end_ring(&g);
}

/* Rows 37 and 39: every sector begins an entry that claims the next 16. */
static void entries_inside_each_other_are_given_up_soon(void **state)
{
    const uint32_t log_length = MIB(16);
    struct ring g = new_ring(log_length);
    static uint8_t page[PAGE_BYTES];
    struct build_change changes[15];
    struct storage *wrapped;
    struct log_sequence s;
    struct fault f;
    uint32_t bytes;

    (void)state;
    for (unsigned i = 0; i < ARRAY_LENGTH(changes); i++)
        changes[i] = (struct build_change){.file_offset = MIB(20), .page = page};
    const struct build_entry e = {
        .sequence_no = 7, .log_guid = log_guid, .changes = changes, .nr_changes = 15};
    uint8_t *raw = build_entry_bytes(&e, &bytes);
    assert_int_equal(bytes, 16 * SECTOR);
    for (uint32_t at = 0; at < log_length; at += SECTOR)
        build_log_bytes(g.file, &g.h, at, raw, SECTOR);
    fault_init(&f);
    assert_succeeds(fault_wrap(&f, g.file, &wrapped));
    fault_arm(&f, NULL);
    assert_fails(log_search(wrapped, &g.h, &s), VHDX_E_LOG, "inside each other");
    assert_true(fault_count(&f, FAULT_READ) < 2000);
    storage_close(wrapped);
    fault_destroy(&f);
    free(raw);
    end_ring(&g);
}

/* The same in a log of the usual size is cheap enough to be judged to the end. */
static void entries_inside_each_other_in_a_small_log_are_no_entries(void **state)
{
    struct ring g = new_ring(MIB(1));
    static uint8_t page[PAGE_BYTES];
    struct build_change changes[255];
    uint32_t bytes;

    (void)state;
    for (unsigned i = 0; i < ARRAY_LENGTH(changes); i++)
        changes[i] = (struct build_change){.file_offset = MIB(20), .page = i < 253 ? page : NULL};
    const struct build_entry e = {
        .sequence_no = 7, .log_guid = log_guid, .changes = changes, .nr_changes = 254};
    uint8_t *raw = build_entry_bytes(&e, &bytes); /* 255 sectors */
    for (uint32_t at = 0; at < MIB(1); at += SECTOR)
        build_log_bytes(g.file, &g.h, at, raw, SECTOR);
    expect_none(&g, 0, "must be replayed");
    for (uint32_t at = 0; at + bytes <= MIB(1);
         at += bytes) /* headers nested in one that is whole but for them */
        build_log_bytes(g.file, &g.h, at, raw, bytes);
    EXPECT(&g, 0x0);
    free(raw);
    end_ring(&g);
}

/* A log of 1 GiB that is a hole costs nothing (rows 14 and 107). */
static void holes_are_not_read(void **state)
{
    struct ring g = new_ring((uint32_t)GIB(1));
    struct storage *wrapped;
    struct log_sequence s;
    struct fault f;

    (void)state;
    put(&g, 0x30000000, 3, 0x30000000, 1);
    put(&g, 0x30002000, 4, 0x30000000, 1);
    put(&g, (uint32_t)GIB(1) - SECTOR, 9, (uint32_t)GIB(1) - SECTOR, 2);
    fault_init(&f);
    assert_succeeds(fault_wrap(&f, g.file, &wrapped));
    fault_arm(&f, NULL);
    assert_succeeds(log_search(wrapped, &g.h, &s));
    assert_int_equal(s.nr_valid, 3);
    assert_int_equal(s.nr_entries, 1);
    assert_true(fault_count(&f, FAULT_READ) < 20);
    log_sequence_free(&s);
    storage_close(wrapped);
    fault_destroy(&f);
    end_ring(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_rule_for_an_entry_is_kept),
        cmocka_unit_test(e13_is_tolerated),
        cmocka_unit_test(descriptors_in_several_sectors_are_all_seen),
        cmocka_unit_test(walking_descriptors_goes_from_tail_to_head_and_can_stop),
        cmocka_unit_test(all_intact_entries_are_listed_in_ring_order),
        cmocka_unit_test(an_io_error_is_never_taken_for_no_entry),
        cmocka_unit_test(entries_inside_each_other_are_given_up_soon),
        cmocka_unit_test(entries_inside_each_other_in_a_small_log_are_no_entries),
        cmocka_unit_test(holes_are_not_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
