/* SPDX-License-Identifier: MIT */
/* Finding the active sequence of a dirty log (format sections 4.5, 4.6 and 4.9, hostile input rows 37 to 41).
 */
#include "log-test.h"

/* ---- what sequences are ---- */

/* Section 4.3: the newest entry of an image that Windows never closed, down to its checksum. */
static void the_entry_that_windows_wrote_is_found(void **state)
{
    struct ring g = new_ring(MIB(1));
    uint8_t page[PAGE_BYTES] = {0}, raw[16];

    (void)state;
    assert_succeeds(guid_parse("e6fc743c-81ed-4fe8-bf54-698ed57ba0b8", &g.h.log_guid));
    le64_put(page, 0x400006); /* block 0 at 4 MiB, blocks 3, 9 and 31 zero */
    page[3 * 8] = page[9 * 8] = page[31 * 8] = 2;
    const struct build_change change = {.file_offset = 0x300000, .page = page};
    struct build_entry e = {.log_offset = 0x7000,
                            .tail = 0x5000,
                            .sequence_no = UINT64_C(0x011CA264063FE557),
                            .log_guid = g.h.log_guid,
                            .flushed = MIB(36),
                            .last = MIB(36),
                            .changes = &change,
                            .nr_changes = 1};
    build_log_entry(g.file, &g.h, &e);
    assert_succeeds(storage_pread(g.file, raw, sizeof raw, 0x107000));
    assert_memory_equal(raw, "\x6c\x6f\x67\x65\x9f\xb1\x67\xa9\x00\x20\x00\x00\x00\x50\x00\x00", sizeof raw);

    /* The five that are intact; only the last two count, since the head's Tail is 0x5000. */
    put(&g, 0x0, e.sequence_no - 4, 0x0, 0);
    put(&g, 0x1000, e.sequence_no - 3, 0x1000, 1);
    put(&g, 0x3000, e.sequence_no - 2, 0x1000, 1);
    put(&g, 0x5000, e.sequence_no - 1, 0x1000, 1);
    EXPECT(&g, 0x5000, 0x7000);
    struct log_sequence s;
    assert_succeeds(log_search(g.file, &g.h, &s));
    assert_int_equal(s.nr_valid, 5);
    assert_int_equal(log_sequence_head(&s)->header.sequence_no, e.sequence_no);
    assert_int_equal(log_sequence_head(&s)->header.flushed_file_offset, MIB(36));
    assert_int_equal(log_sequence_head(&s)->header.last_file_offset, MIB(36));
    log_sequence_free(&s);
    end_ring(&g);
}

static void an_entry_can_be_its_own_tail(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    put(&g, 0x9000, 1, 0x9000, 2);
    EXPECT(&g, 0x9000);
    end_ring(&g);
}

static void a_sequence_and_its_entries_may_wrap(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    uint32_t a = MIB(1) - 5 * SECTOR;
    uint32_t b = put(&g, a, 7, a, 1); /* 2 sectors */
    uint32_t c = put(&g, b, 8, a, 3); /* 4 sectors, the last behind the ring's end */
    assert_int_equal(c, SECTOR);
    uint32_t d = put(&g, c, 9, a, 0);
    EXPECT(&g, a, b, c);
    put(&g, d, 10, b, 0);
    EXPECT(&g, b, c, d);
    clear_sector(&g, 0); /* the wrapped part of the second entry */
    EXPECT(&g, a);
    end_ring(&g);
}

/* The head ends where the tail begins. */
static void the_ring_may_be_full(void **state)
{
    struct ring g = new_ring(MIB(1));
    uint32_t start = 0x42000, at = start;

    (void)state;
    for (uint64_t i = 0; i < 128; i++)
        at = put(&g, at, 100 + i, start, 1);
    assert_int_equal(at, start);
    struct log_sequence s;
    assert_succeeds(log_search(g.file, &g.h, &s));
    assert_int_equal(s.nr_entries, 128);
    assert_int_equal(s.entries[0].log_offset, start);
    assert_int_equal(s.entries[127].log_offset, start - 2 * SECTOR);
    log_sequence_free(&s);
    end_ring(&g);

    g = new_ring(MIB(1)); /* one entry that is as long as the log: 254 data descriptors need 2 sectors */
    put(&g, 0x42000, 5, 0x42000, 254);
    EXPECT(&g, 0x42000);
    end_ring(&g);
}

static void sequences_of_other_sessions_do_not_count(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    put_with(&g, &other_guid, 0x0, 50, 0x0, 1);
    put(&g, 0x2000, 5, 0x2000, 1);
    put_with(&g, &other_guid, 0x4000, 6, 0x2000, 1); /* would be the next one */
    put_with(&g, &other_guid, 0x6000, 1000, 0x6000, 1);
    EXPECT(&g, 0x2000);
    end_ring(&g);
}

/* Data sectors of an overwritten entry, and what follows no header at all. */
static void left_over_sectors_do_not_count(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    put(&g, 0x10000, 3, 0x10000, 5);
    clear_sector(&g, 0x10000);
    put(&g, 0x0, 9, 0x0, 2);
    build_fill(g.file, g.h.log_offset + 0x20000, 0x6c, 3 * SECTOR);
    EXPECT(&g, 0x0);
    end_ring(&g);
}

/* ---- crashes ---- */

static void a_torn_entry_ends_the_sequence_before_it(void **state)
{
    for (uint32_t torn = 0; torn < 5; torn++) { /* each sector of the last entry */
        struct ring g = new_ring(MIB(1));
        uint32_t b = put(&g, 0x0, 7, 0x0, 2), c = put(&g, b, 8, 0x0, 1);
        (void)state;
        put(&g, c, 9, 0x0, 4);
        EXPECT(&g, 0x0, b, c);
        clear_sector(&g, c + torn * SECTOR);
        EXPECT(&g, 0x0, b);
        end_ring(&g);
    }
}

/* A sector that was not written holds what an older session left there, not zeros. */
static void a_torn_entry_may_hold_old_sectors(void **state)
{
    struct ring g = new_ring(MIB(1)), old = new_ring(MIB(1));
    uint8_t sector[SECTOR];

    (void)state;
    put_with(&old, &other_guid, 0x3000, 9, 0x3000, 2); /* the same sequence number even */
    assert_succeeds(storage_pread(old.file, sector, sizeof sector, old.h.log_offset + 0x4000));
    uint32_t b = put(&g, 0x0, 8, 0x0, 2);
    put(&g, b, 9, 0x0, 2);
    sector[100] ^= 1;
    build_log_bytes(g.file, &g.h, b + SECTOR, sector, SECTOR);
    EXPECT(&g, 0x0);
    end_ring(&g);
    end_ring(&old);
}

/* Two entries were written before one flush, and only the second one arrived. */
static void an_entry_behind_a_torn_one_does_not_count(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    uint32_t b = put(&g, 0x0, 7, 0x0, 1), c = put(&g, b, 8, 0x0, 1);
    put(&g, c, 9, 0x0, 1);
    clear_sector(&g, b);
    EXPECT(&g, 0x0);
    end_ring(&g);
}

/* Falling back to a prefix of the newest run would lose what was acknowledged. */
static void a_broken_newest_run_is_not_cut_short(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    uint32_t b = put(&g, 0x8000, 7, 0x8000, 1), c = put(&g, b, 8, 0x8000, 1);
    put(&g, c, 9, 0x4000, 1); /* Tail names what is no entry */
    expect_none(&g, 3, "none of its 3 intact entries");
    put(&g, 0x4000, 3, 0x4000, 0); /* an entry, but of no use: the run is not connected */
    EXPECT(&g, 0x4000);
    end_ring(&g);
}

static void tail_must_name_an_entry_of_the_same_run(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    uint32_t b = put(&g, 0x8000, 7, 0x8000, 3);
    put(&g, b, 8, 0x9000, 0); /* inside an entry */
    expect_none(&g, 2, "must be replayed");
    put(&g, b, 8, b + SECTOR, 0); /* behind the head */
    expect_none(&g, 2, "must be replayed");
    put(&g, b, 8, 0x8000, 0);
    EXPECT(&g, 0x8000, b);
    end_ring(&g);
}

static void without_any_entry_there_is_no_sequence(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    expect_none(&g, 0, "log GUID 20676f6c-666f-7420-6865-207465737400");
    put_with(&g, &other_guid, 0, 1, 0, 1);
    expect_none(&g, 0, "none of its 0 intact entries");
    build_fill(g.file, g.h.log_offset, 0xff, MIB(1));
    expect_none(&g, 0, "must be replayed");
    end_ring(&g);
}

/* ---- sequence numbers ---- */

static void the_newest_of_several_sequences_counts(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    put(&g, 0x0, 20, 0x0, 1);
    put(&g, 0x10000, 30, 0x10000, 1);
    put(&g, 0x20000, 10, 0x20000, 1);
    EXPECT(&g, 0x10000);
    end_ring(&g);
}

static void sequence_numbers_must_count_up_by_one(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    uint32_t b = put(&g, 0x0, 7, 0x0, 1);
    put(&g, b, 9, 0x0, 1);
    EXPECT(&g, 0x0);
    put(&g, b, 7, 0x0, 1);
    EXPECT(&g, 0x0);
    put(&g, b, 6, 0x0, 1);
    EXPECT(&g, 0x0);
    put(&g, b, 8, 0x0, 1);
    EXPECT(&g, 0x0, b);
    end_ring(&g);
}

static void sequence_numbers_compare_as_unsigned_and_do_not_wrap(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    put(&g, 0x0, INT64_MAX, 0x0, 1);
    put(&g, 0x10000, UINT64_MAX - 1, 0x10000, 1);
    put(&g, 0x12000, UINT64_MAX, 0x10000, 1);
    put(&g, 0x14000, 1, 0x10000, 1);
    EXPECT(&g, 0x10000, 0x12000);
    put(&g, 0x14000, 0, 0x10000, 1); /* E5: no entry at all */
    struct log_sequence s;
    assert_succeeds(log_search(g.file, &g.h, &s));
    assert_int_equal(s.nr_valid, 3);
    log_sequence_free(&s);
    end_ring(&g);
}

static void two_newest_heads_of_one_number_are_refused(void **state)
{
    struct ring g = new_ring(MIB(1));

    (void)state;
    put(&g, 0x0, 20, 0x0, 1);
    put(&g, 0x10000, 19, 0x10000, 1);
    put(&g, 0x12000, 20, 0x10000, 1);
    expect_none(&g, 3, "log offsets 0x0 and 0x12000 both claim to be the newest, sequence number 20");
    end_ring(&g);
}

/* Wherever the newest one lies, what an older number has twice does not matter. */
static void older_heads_of_one_number_do_no_harm(void **state)
{
    for (unsigned newest = 0; newest < 3; newest++) {
        struct ring g = new_ring(MIB(1));
        (void)state;
        for (unsigned i = 0; i < 3; i++)
            put(&g, i * 0x10000, i == newest ? 21 : 20, i * 0x10000, 1);
        EXPECT(&g, newest * 0x10000);
        end_ring(&g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_entry_that_windows_wrote_is_found),
        cmocka_unit_test(an_entry_can_be_its_own_tail),
        cmocka_unit_test(a_sequence_and_its_entries_may_wrap),
        cmocka_unit_test(the_ring_may_be_full),
        cmocka_unit_test(sequences_of_other_sessions_do_not_count),
        cmocka_unit_test(left_over_sectors_do_not_count),
        cmocka_unit_test(a_torn_entry_ends_the_sequence_before_it),
        cmocka_unit_test(a_torn_entry_may_hold_old_sectors),
        cmocka_unit_test(an_entry_behind_a_torn_one_does_not_count),
        cmocka_unit_test(a_broken_newest_run_is_not_cut_short),
        cmocka_unit_test(tail_must_name_an_entry_of_the_same_run),
        cmocka_unit_test(without_any_entry_there_is_no_sequence),
        cmocka_unit_test(the_newest_of_several_sequences_counts),
        cmocka_unit_test(sequence_numbers_must_count_up_by_one),
        cmocka_unit_test(sequence_numbers_compare_as_unsigned_and_do_not_wrap),
        cmocka_unit_test(two_newest_heads_of_one_number_are_refused),
        cmocka_unit_test(older_heads_of_one_number_do_no_harm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
