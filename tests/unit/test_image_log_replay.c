/* SPDX-License-Identifier: MIT */
/* Replaying a dirty log in memory (format sections 4.7 to 4.9, hostile input rows 29 to 43). */
#include "unit.h"

#include <errno.h>

#include "base/le.h"
#include "base/math.h"
#include "doubles.h"
#include "image-builder.h"
#include "image/log-replay.h"
#include "image/overlay.h"
#include "storage/storage.h"

static const guid log_guid = {"log of the test"};
static const struct header h = {
    .version = 1, .log_guid = {"log of the test"}, .log_offset = MIB(1), .log_length = MIB(1)};

static struct storage *new_file(uint64_t length)
{
    struct storage *s;

    assert_succeeds(storage_memory_new(NULL, 0, &s));
    assert_succeeds(storage_truncate(s, length));
    return s;
}

/* An entry of so many changes; returns the log offset of the next one. */
static uint32_t put(struct storage *s, uint32_t log_offset, uint64_t sequence_no, uint32_t tail,
                    uint64_t flushed, uint64_t last, const struct build_change *changes, uint32_t nr)
{
    const struct build_entry e = {.log_offset = log_offset,
                                  .tail = tail,
                                  .sequence_no = sequence_no,
                                  .log_guid = log_guid,
                                  .flushed = flushed,
                                  .last = last,
                                  .changes = changes,
                                  .nr_changes = nr};
    return (log_offset + build_log_entry(s, &h, &e)) % h.log_length;
}

static int replay(struct storage *s, struct overlay **o)
{
    uint64_t length;

    assert_succeeds(storage_length(s, &length));
    return log_replay_overlay(s, &h, length, o);
}

/* Replay must be refused, and no overlay left. */
static void expect_refusal(struct storage *s, int code, const char *text)
{
    struct overlay *o;

    assert_fails(replay(s, &o), code, text);
    assert_null(o);
}

static void expect_page(struct storage *s, const struct overlay *o, uint64_t file_offset, const uint8_t *page)
{
    uint8_t got[PAGE_BYTES];

    assert_succeeds(overlay_pread(o, s, got, sizeof got, file_offset));
    assert_memory_equal(got, page, sizeof got);
}

static void fill_page(uint8_t page[PAGE_BYTES], uint8_t salt)
{
    for (size_t i = 0; i < PAGE_BYTES; i++)
        page[i] = (uint8_t)(i * 7 + (i >> 8) + salt);
}

/* Appendix B: what replay does to the image that Windows never closed. */
static void the_log_that_windows_left_gives_the_known_bat(void **state)
{
    struct storage *s = new_file(MIB(36));
    uint8_t page[PAGE_BYTES] = {0}, older[PAGE_BYTES] = {0};
    struct overlay *o;

    (void)state;
    page[3 * 8] = page[9 * 8] = page[31 * 8] = 2;
    memcpy(older, page, sizeof page);
    le64_put(page, 0x400006);
    const struct build_change last = {.file_offset = 0x300000, .page = page};
    const struct build_change before = {.file_offset = 0x300000, .page = older};
    const struct build_change dropped = {.file_offset = 0x200000, .page = page};
    const uint64_t sequence_no = UINT64_C(0x011CA264063FE557);
    put(s, 0x0, sequence_no - 4, 0x0, 0, MIB(4), NULL, 0);
    put(s, 0x1000, sequence_no - 3, 0x1000, MIB(4), MIB(4), &dropped, 1);
    put(s, 0x3000, sequence_no - 2, 0x1000, MIB(4), MIB(4), &before, 1);
    put(s, 0x5000, sequence_no - 1, 0x5000, MIB(4), MIB(36), &before, 1);
    put(s, 0x7000, sequence_no, 0x5000, MIB(36), MIB(36), &last, 1);
    assert_succeeds(replay(s, &o));
    assert_int_equal(o->nr_ranges, 1); /* what is before the tail is not replayed */
    assert_int_equal(o->file_length, MIB(36));
    expect_page(s, o, 0x300000, page);
    overlay_free(o);
    storage_close(s);
}

static void later_changes_win(void **state)
{
    struct storage *s = new_file(MIB(8));
    uint8_t first[PAGE_BYTES], second[PAGE_BYTES], third[PAGE_BYTES], zeros[PAGE_BYTES] = {0};
    struct overlay *o;

    (void)state;
    fill_page(first, 1);
    fill_page(second, 2);
    fill_page(third, 3);
    const struct build_change a[] = {{.file_offset = MIB(4), .page = first},
                                     {.file_offset = MIB(4), .zero_bytes = 2 * PAGE_BYTES},
                                     {.file_offset = MIB(5), .zero_bytes = MIB(1)},
                                     {.file_offset = MIB(5) + PAGE_BYTES, .page = second}};
    const struct build_change b[] = {{.file_offset = MIB(4) + PAGE_BYTES, .page = third},
                                     {.file_offset = MIB(4), .zero_bytes = 0}};
    uint32_t next = put(s, 0, 5, 0, 0, MIB(8), a, 4);
    put(s, next, 6, 0, 0, MIB(8), b, 2);
    assert_succeeds(replay(s, &o));
    expect_page(s, o, MIB(4), zeros);
    expect_page(s, o, MIB(4) + PAGE_BYTES, third);
    expect_page(s, o, MIB(5) + PAGE_BYTES, second);
    expect_page(s, o, MIB(5) + 2 * PAGE_BYTES, zeros);
    overlay_free(o);
    storage_close(s);
}

/* The first 8 and the last 4 bytes of a page travel in the descriptor. */
static void a_page_comes_back_byte_for_byte(void **state)
{
    struct storage *s = new_file(MIB(8));
    struct overlay *o;
    uint8_t pages[3][PAGE_BYTES];
    struct build_change changes[3];

    (void)state;
    for (uint8_t i = 0; i < 3; i++) {
        fill_page(pages[i], (uint8_t)(0x80 + 31 * i));
        changes[i] = (struct build_change){.file_offset = MIB(2) + MIB(1) * i, .page = pages[i]};
    }
    put(s, MIB(1) - 2 * LOG_SECTOR_BYTES, 5, MIB(1) - 2 * LOG_SECTOR_BYTES, 0, MIB(8), changes,
        3); /* wraps */
    assert_succeeds(replay(s, &o));
    for (unsigned i = 0; i < 3; i++)
        expect_page(s, o, changes[i].file_offset, pages[i]);
    overlay_free(o);
    storage_close(s);
}

/* ---- against a plain replay ---- */

enum { FIRST_PAGE = 512, NR_PAGES = 256 }; /* 2 MiB to 3 MiB */

static uint64_t below(uint64_t *random, uint64_t limit)
{
    return random_next(random) % limit;
}

/* An entry of random changes; model gets them if it will be replayed. */
static uint32_t put_random(struct storage *s, uint64_t *random, uint32_t log_offset, uint64_t sequence_no,
                           uint32_t tail, uint8_t *model)
{
    static uint8_t pages[8][PAGE_BYTES];
    struct build_change changes[8];
    uint32_t nr = (uint32_t)below(random, 8);

    for (uint32_t i = 0; i < nr; i++) {
        uint64_t first = below(random, NR_PAGES), pages_left = NR_PAGES - first;
        changes[i] = (struct build_change){.file_offset = (FIRST_PAGE + first) * PAGE_BYTES};
        if (below(random, 3) == 0) {
            changes[i].zero_bytes = below(random, min_u64(pages_left, 40) + 1) * PAGE_BYTES;
            if (model)
                memset(model + first * PAGE_BYTES, 0, changes[i].zero_bytes);
            continue;
        }
        fill_page(pages[i], (uint8_t)below(random, 256));
        changes[i].page = pages[i];
        if (model)
            memcpy(model + first * PAGE_BYTES, pages[i], PAGE_BYTES);
    }
    return put(s, log_offset, sequence_no, tail, 0, MIB(3), changes, nr);
}

static void random_logs_give_what_a_plain_replay_gives(void **state)
{
    uint64_t random = 0xabcdef12345;
    uint8_t *model = exact_bytes(NR_PAGES * PAGE_BYTES), *got = exact_bytes(NR_PAGES * PAGE_BYTES);

    (void)state;
    for (unsigned no = 0; no < 400; no++) {
        struct storage *s = new_file(below(&random, 2) ? MIB(3) : MIB(2)); /* replay extends it */
        uint32_t at = (uint32_t)below(&random, 256) * LOG_SECTOR_BYTES;
        uint64_t sequence_no = 1 + below(&random, UINT32_MAX), nr = 1 + below(&random, 10),
                 nr_old = below(&random, 3);
        struct overlay *o;
        memset(model, 0, NR_PAGES * PAGE_BYTES);
        for (uint64_t i = 0; i < nr_old; i++)
            at = put_random(s, &random, at, sequence_no++, at, NULL);
        for (uint32_t tail = at; nr > 0; nr--)
            at = put_random(s, &random, at, sequence_no++, tail, model);
        assert_succeeds(replay(s, &o));
        assert_int_equal(o->file_length, MIB(3));
        assert_succeeds(overlay_pread(o, s, got, NR_PAGES * PAGE_BYTES, MIB(2)));
        assert_memory_equal(got, model, NR_PAGES * PAGE_BYTES);
        overlay_free(o);
        storage_close(s);
    }
    free(model);
    free(got);
}

/* ---- lengths ---- */

static void a_file_shorter_than_flushed_is_refused(void **state)
{
    struct storage *s = new_file(MIB(8));
    struct overlay *o;

    (void)state;
    put(s, 0, 5, 0, MIB(20), MIB(8), NULL, 0); /* an older promise does not count */
    put(s, 0x1000, 6, 0, MIB(8), MIB(8), NULL, 0);
    assert_succeeds(replay(s, &o));
    overlay_free(o);
    put(s, 0x1000, 6, 0, MIB(9), MIB(8), NULL, 0);
    expect_refusal(s, VHDX_E_TRUNCATED, "0x900000");
    assert_non_null(strstr(error_message(), "log at 0x100000"));
    put(s, 0x1000, 6, 0, UINT64_MAX, MIB(8), NULL, 0);
    expect_refusal(s, VHDX_E_TRUNCATED, "0xffffffffffffffff");
    put(s, 0x1000, 6, 0, 0, 0, NULL, 0); /* Windows Server 2012 writes 0 */
    assert_succeeds(replay(s, &o));
    assert_int_equal(o->file_length, MIB(8));
    overlay_free(o);
    storage_close(s);
}

static void a_file_shorter_than_last_is_extended(void **state)
{
    struct storage *s = new_file(MIB(4));
    uint8_t page[PAGE_BYTES], zeros[PAGE_BYTES] = {0};
    struct overlay *o;

    (void)state;
    fill_page(page, 9);
    const struct build_change changes[] = {{.file_offset = MIB(7), .page = page},
                                           {.file_offset = MIB(5), .zero_bytes = MIB(1)}};
    put(s, 0, 5, 0, MIB(4), MIB(8), changes, 2);
    assert_succeeds(replay(s, &o));
    assert_int_equal(o->file_length, MIB(8));
    assert_int_equal(o->stored_length, MIB(4));
    expect_page(s, o, MIB(7), page);
    expect_page(s, o, MIB(6), zeros);
    expect_page(s, o, MIB(8) - PAGE_BYTES, zeros);
    overlay_free(o);
    storage_close(s);
}

static void absurd_lengths_are_refused(void **state)
{
    struct storage *s = new_file(MIB(4));
    struct overlay *o;

    (void)state;
    put(s, 0x3000, 5, 0x3000, 0, (UINT64_C(1) << 50) + MIB(1), NULL, 0);
    expect_refusal(s, VHDX_E_LOG, "log entry at 0x103000");
    put(s, 0x3000, 5, 0x3000, 0, UINT64_MAX, NULL, 0);
    put(s, 0x4000, 6, 0x3000, 0, MIB(4), NULL, 0); /* not only the head's */
    expect_refusal(s, VHDX_E_LOG, "log entry at 0x103000: LastFileOffset 0xffffffffffffffff");
    put(s, 0x3000, 5, 0x3000, 0, UINT64_C(1) << 50, NULL, 0);
    put(s, 0x4000, 6, 0x4000, 0, UINT64_C(1) << 50, NULL, 0);
    assert_succeeds(replay(s, &o));
    assert_int_equal(o->file_length, UINT64_C(1) << 50);
    overlay_free(o);
    storage_close(s);
}

static void only_empty_entries_are_fine(void **state)
{
    struct storage *s = new_file(MIB(4));
    struct overlay *o;

    (void)state;
    put(s, 0, 5, 0, MIB(4), MIB(6), NULL, 0);
    put(s, 0x1000, 6, 0, MIB(4), MIB(5), NULL, 0);
    assert_succeeds(replay(s, &o));
    assert_int_equal(o->nr_ranges, 0);
    assert_int_equal(o->file_length, MIB(5)); /* the head's */
    overlay_free(o);
    storage_close(s);
}

static void without_a_sequence_nothing_is_replayed(void **state)
{
    struct storage *s = new_file(MIB(4));

    (void)state;
    expect_refusal(s, VHDX_E_LOG, "log at 0x100000");
    storage_close(s);
}

/* ---- descriptors (E11, E12, and the bound of 4.7 step 3) ---- */

static void descriptors_that_nobody_may_write_are_refused(void **state)
{
    static const uint8_t page[PAGE_BYTES];
    static const struct build_change bad[] = {
        {.file_offset = MIB(3) + 512, .page = page}, /* row 29 */
        {.file_offset = MIB(3) + 1, .zero_bytes = PAGE_BYTES},
        {.file_offset = MIB(3), .zero_bytes = PAGE_BYTES + 512},    /* row 30 */
        {.file_offset = UINT64_MAX - PAGE_BYTES + 1, .page = page}, /* row 31 */
        {.file_offset = UINT64_MAX - PAGE_BYTES + 1, .zero_bytes = MIB(1)},
        {.file_offset = MIB(3), .zero_bytes = UINT64_MAX - PAGE_BYTES + 1},
        {.file_offset = 0, .page = page}, /* row 32 */
        {.file_offset = 0x2f000, .page = page},
        {.file_offset = 0x10000, .zero_bytes = PAGE_BYTES},
        {.file_offset = 0x2f000, .zero_bytes = 2 * PAGE_BYTES},
        {.file_offset = MIB(1), .page = page}, /* row 33 */
        {.file_offset = MIB(2) - PAGE_BYTES, .page = page},
        {.file_offset = MIB(1) - PAGE_BYTES, .zero_bytes = 2 * PAGE_BYTES},
        {.file_offset = MIB(2) - PAGE_BYTES, .zero_bytes = 2 * PAGE_BYTES},
        {.file_offset = 0x30000, .zero_bytes = MIB(7)},
        {.file_offset = MIB(8), .page = page}, /* row 34 */
        {.file_offset = MIB(8) - PAGE_BYTES, .zero_bytes = 2 * PAGE_BYTES},
        {.file_offset = MIB(3), .zero_bytes = TIB(1)},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
        struct storage *s = new_file(MIB(6));
        const struct build_change changes[] = {{.file_offset = MIB(3), .page = page}, bad[i]};
        struct overlay *o;
        uint32_t next = put(s, 0x5000, 5, 0x5000, 0, MIB(8), changes, 2);
        expect_refusal(s, VHDX_E_LOG, "log descriptor at 0x105060");
        put(s, next, 6, 0x5000, 0, MIB(6), changes, 1); /* in any entry that would be replayed */
        expect_refusal(s, VHDX_E_LOG, "log descriptor at 0x105060");
        put(s, next, 6, next, 0, MIB(8), changes, 1); /* not in one before the tail */
        assert_succeeds(replay(s, &o));
        assert_int_equal(o->nr_ranges, 1);
        overlay_free(o);
        storage_close(s);
    }
}

static void descriptors_at_the_borders_are_fine(void **state)
{
    static const uint8_t page[PAGE_BYTES];
    static const struct build_change good[] = {
        {.file_offset = 0x30000, .page = page}, /* the region tables */
        {.file_offset = 0x4f000, .page = page},
        {.file_offset = 0x30000, .zero_bytes = MIB(1) - 0x30000},
        {.file_offset = MIB(2), .page = page},
        {.file_offset = MIB(8) - PAGE_BYTES, .page = page}, /* the bound comes from an older entry */
        {.file_offset = MIB(2), .zero_bytes = MIB(6)},
        {.file_offset = MIB(8), .zero_bytes = 0},
        {.file_offset = 0, .zero_bytes = 0},
        {.file_offset = MIB(1), .zero_bytes = 0},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(good); i++) {
        struct storage *s = new_file(MIB(6));
        struct overlay *o;
        put(s, 0, 5, 0, 0, MIB(8), NULL, 0);
        put(s, 0x1000, 6, 0, 0, MIB(6), &good[i], 1);
        assert_succeeds(replay(s, &o));
        overlay_free(o);
        storage_close(s);
    }
}

/* Row 43: far more descriptors than any writer would make are refused before they cost memory. */
static void too_many_changes_are_refused(void **state)
{
    const struct header big = {
        .version = 1, .log_guid = log_guid, .log_offset = MIB(1), .log_length = MIB(32)};
    const uint32_t nr = (1 << 19) + 1;
    struct build_change *changes = exact_bytes(nr * sizeof *changes);
    struct storage *s = new_file(MIB(34));
    struct overlay *o;

    (void)state;
    for (uint32_t i = 0; i < nr; i++)
        changes[i] = (struct build_change){.file_offset = MIB(33), .zero_bytes = PAGE_BYTES};
    build_log_entry(
        s, &big,
        &(struct build_entry){.sequence_no = 5, .log_guid = log_guid, .changes = changes, .nr_changes = nr});
    assert_fails(log_replay_overlay(s, &big, MIB(34), &o), VHDX_E_LIMIT, "log at 0x100000");
    assert_null(o);
    build_log_entry(s, &big,
                    &(struct build_entry){
                        .sequence_no = 5, .log_guid = log_guid, .changes = changes, .nr_changes = nr - 1});
    assert_succeeds(log_replay_overlay(s, &big, MIB(34), &o));
    assert_int_equal(o->nr_ranges, 1);
    overlay_free(o);
    storage_close(s);
    free(changes);
}

static void an_io_error_ends_replay(void **state)
{
    static const uint8_t page[PAGE_BYTES];
    const struct build_change changes[] = {{.file_offset = MIB(3), .page = page},
                                           {.file_offset = MIB(2), .zero_bytes = MIB(1)}};
    struct storage *s = new_file(MIB(4)), *wrapped;
    struct overlay *o;
    struct fault f;
    uint64_t n;

    (void)state;
    put(s, 0, 5, 0, 0, MIB(4), changes, 2);
    put(s, 0x2000, 6, 0, 0, MIB(4), changes, 2);
    fault_init(&f);
    assert_succeeds(fault_wrap(&f, s, &wrapped));
    for (n = 1;; n++) {
        fault_arm(&f, &(struct fault_plan){.kind = FAULT_ANY, .nth = n, .error = -EIO});
        int r = log_replay_overlay(wrapped, &h, MIB(4), &o);
        if (fault_injected(&f) == 0) {
            assert_succeeds(r);
            break;
        }
        assert_int_equal(r, -EIO);
        assert_null(o);
    }
    assert_true(n > 5);
    overlay_free(o);
    storage_close(wrapped);
    fault_destroy(&f);
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_log_that_windows_left_gives_the_known_bat),
        cmocka_unit_test(later_changes_win),
        cmocka_unit_test(a_page_comes_back_byte_for_byte),
        cmocka_unit_test(random_logs_give_what_a_plain_replay_gives),
        cmocka_unit_test(a_file_shorter_than_flushed_is_refused),
        cmocka_unit_test(a_file_shorter_than_last_is_extended),
        cmocka_unit_test(absurd_lengths_are_refused),
        cmocka_unit_test(only_empty_entries_are_fine),
        cmocka_unit_test(without_a_sequence_nothing_is_replayed),
        cmocka_unit_test(descriptors_that_nobody_may_write_are_refused),
        cmocka_unit_test(descriptors_at_the_borders_are_fine),
        cmocka_unit_test(too_many_changes_are_refused),
        cmocka_unit_test(an_io_error_ends_replay),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
