/* SPDX-License-Identifier: MIT */
/* The parts that writing is made of, each by itself: requests in flight, space, log writer, header pair. */
#include "unit.h"

#include <errno.h>

#include "base/math.h"
#include "doubles.h"
#include "format/header.h"
#include "format/log-entry.h"
#include "image/header-pair.h"
#include "image/inflight.h"
#include "image/log-writer.h"
#include "image/space.h"
#include "storage/storage.h"

/* ---- requests in flight ---- */

static bool drained_after(struct inflight *f, struct inflight_drain *d)
{
    bool empty[2];

    inflight_poll(f, empty);
    return inflight_drained(d, empty);
}

static void test_drain(void **state)
{
    static struct inflight f;
    struct inflight_drain d = {0};

    (void)state;
    struct inflight_ticket old = inflight_enter(&f);
    for (unsigned n = 0; n < 4; n++)
        assert_false(drained_after(&f, &d));
    struct inflight_ticket young = inflight_enter(&f); /* on whichever side; it may hold up one poll, not for ever */
    inflight_leave(old);
    bool done = drained_after(&f, &d) || drained_after(&f, &d);
    struct inflight_drain later = {0};
    for (unsigned n = 0; n < 4; n++)
        assert_false(drained_after(&f, &later)); /* it was there before this one began */
    inflight_leave(young);
    assert_true(done || drained_after(&f, &d) || drained_after(&f, &d));
    assert_true(drained_after(&f, &later));
}

/* Somebody is always there, but nobody for long. */
static void test_drain_under_load(void **state)
{
    static struct inflight f;
    struct inflight_drain d = {0};
    struct inflight_ticket one = inflight_enter(&f);
    unsigned polls = 0;

    (void)state;
    for (; polls < 4 && !drained_after(&f, &d); polls++) {
        struct inflight_ticket next = inflight_enter(&f);
        inflight_leave(one);
        one = next;
    }
    assert_true(polls < 4);
    inflight_leave(one);
}

/* ---- space ---- */

static struct storage *memory_file(uint64_t mib)
{
    struct storage *s;

    assert_succeeds(storage_memory_new(NULL, 0, &s));
    assert_succeeds(storage_truncate(s, MIB(mib)));
    return s;
}

static void take(struct space *space, uint64_t nr_mib, uint64_t expected, enum space_content expected_content)
{
    enum space_content content;
    uint64_t first_mib;

    assert_succeeds(space_take(space, nr_mib, &first_mib, &content));
    assert_int_equal(first_mib, expected);
    assert_int_equal(content, expected_content);
}

static void init_space(struct space *space, struct storage *file)
{
    struct mib_set used;
    bool clash;

    assert_succeeds(mib_set_init(&used, MAX_FILE_BYTES / OBJECT_ALIGNMENT));
    assert_succeeds(mib_set_add(&used, 0, 4, &clash));
    assert_succeeds(mib_set_add(&used, 6, 1, &clash));
    assert_succeeds(space_init(space, file, &used));
    assert_succeeds(space_prepare(space, 0));
}

/* A flush was completed, and what is to be punched is. */
static void advance(struct space *space, struct inflight *inflight, uint64_t durable_commit_no)
{
    uint64_t offset, bytes;
    size_t at = 0;

    space_advance(space, inflight, durable_commit_no);
    while (space_next_to_punch(space, &at, &offset, &bytes))
        space_note_punched(space, at, storage_punch(space->file, offset, bytes) == 0);
}

/* Freed space comes back only when its commit is durable, nobody from before is there, and the punch was flushed. */
static void test_space_comes_back(void **state)
{
    struct storage *s = memory_file(100);
    static struct inflight inflight;
    struct space space;
    uint64_t length;

    (void)state;
    init_space(&space, s);
    assert_succeeds(storage_length(s, &length));
    assert_int_equal(length, MIB(7)); /* cut behind its last object */
    take(&space, 1, 4, SPACE_ZEROS);  /* holes, punched */
    take(&space, 2, 7, SPACE_ZEROS);  /* too long for what is left of the hole */
    take(&space, 1, 5, SPACE_ZEROS);
    assert_succeeds(space_reserve_freed(&space));
    struct inflight_ticket ticket = inflight_enter(&inflight);
    space_release(&space, 4, 1, 3);
    advance(&space, &inflight, 2); /* commit 3 is not durable */
    advance(&space, &inflight, 3);
    for (unsigned n = 0; n < 3; n++)
        advance(&space, &inflight, 4 + n); /* the request is still there */
    take(&space, 1, 9, SPACE_ZEROS);
    inflight_leave(ticket);
    advance(&space, &inflight, 7);
    advance(&space, &inflight, 8); /* punched by now, at the latest */
    advance(&space, &inflight, 9);
    take(&space, 1, 4, SPACE_ZEROS);
    assert_int_equal(space.nr_freed, 0);
    assert_int_equal(space_end_of_use(&space), 10);
    space_free_all(&space);
    storage_close(s);
}

/* If nobody is in flight, the host has its space back when the loss is durable. */
static void test_space_is_punched_at_once(void **state)
{
    struct storage *s = memory_file(100);
    static struct inflight inflight;
    struct space space;

    (void)state;
    init_space(&space, s);
    take(&space, 1, 4, SPACE_ZEROS);
    assert_succeeds(space_reserve_freed(&space));
    space_release(&space, 4, 1, 3);
    advance(&space, &inflight, 2);
    assert_false(space.freed[0].punched);
    advance(&space, &inflight, 3);
    assert_true(space.freed[0].punched);
    space_free_all(&space);
    storage_close(s);
}

static void test_space_that_cannot_be_punched(void **state)
{
    struct storage *s, *inner = memory_file(8);
    static struct inflight inflight;
    struct fault fault;
    struct space space;

    (void)state;
    fault_init(&fault);
    assert_succeeds(fault_wrap(&fault, inner, &s));
    fault_arm(&fault, &(struct fault_plan){.kind = FAULT_PUNCH, .nth = 1, .forever = true, .error = -ENOTSUP});
    init_space(&space, s);
    take(&space, 2, 4, SPACE_FOREIGN);
    take(&space, 1, 7, SPACE_ZEROS);
    assert_succeeds(space_reserve_freed(&space));
    space_release(&space, 4, 2, 1);
    take(&space, 1, 8, SPACE_ZEROS);
    for (uint64_t n = 1; n < 5; n++)
        advance(&space, &inflight, n);
    take(&space, 1, 4, SPACE_FOREIGN);
    space_give_back(&space, 4, 1, SPACE_FOREIGN);
    take(&space, 2, 4, SPACE_FOREIGN);
    space_free_all(&space);
    storage_close(s);
    storage_close(inner);
    fault_destroy(&fault);
}

/* ---- log writer ---- */

/* Through the ring many times, with entries as large as may be: each names the one before it and touches neither of the last two.
 */
static void test_ring(void **state)
{
    struct storage *s = memory_file(4);
    struct log_writer w;
    struct log_lengths lengths = {.durable_length = MIB(4) - 1, .last_offset = MIB(3) + 1};
    static const uint8_t page[PAGE_BYTES];
    uint32_t max = log_writer_max_pages((uint32_t)MIB(1));
    struct log_page *pages = calloc(max, sizeof *pages);

    (void)state;
    assert_int_equal(max, 83);
    for (uint32_t i = 0; i < max; i++)
        pages[i] = (struct log_page){MIB(3) + i * PAGE_BYTES, page};
    assert_succeeds(log_writer_allocate(&w, (uint32_t)MIB(1)));
    assert_succeeds(log_writer_start(&w, s, MIB(1), (uint32_t)MIB(1), &lengths));
    uint32_t before = 0, last = 0;
    for (unsigned n = 0; n < 1000; n++) {
        struct log_entry_header e;
        uint8_t raw[LOG_HEADER_BYTES];
        uint32_t at = w.head;
        assert_succeeds(log_writer_append(&w, pages, n % 3 ? max : n % max + 1, &lengths));
        assert_succeeds(storage_pread(s, raw, sizeof raw, MIB(1) + at));
        assert_true(log_entry_header_decode(raw, &e));
        assert_int_equal(e.tail, last);
        assert_int_equal(e.sequence_no, w.sequence_no + 1);
        assert_int_equal(e.flushed_file_offset, MIB(3));
        assert_int_equal(e.last_file_offset, MIB(4));
        uint32_t kept = (at + (uint32_t)MIB(1) - before) % (uint32_t)MIB(1);
        assert_true(n == 0 || kept + e.entry_length < MIB(1));
        log_writer_commit(&w);
        before = last;
        last = at;
    }
    log_writer_free(&w);
    free(pages);
    storage_close(s);
}

/* ---- header pair ---- */

static void test_header_pair(void **state)
{
    struct storage *s = memory_file(1);
    struct header first = {.sequence_no = 8, .version = 1, .log_length = (uint32_t)MIB(1), .log_offset = MIB(1)}, h;
    struct header_pair pair = {.current = first, .slot = 1};
    uint8_t raw[HEADER_RAW_BYTES];

    (void)state;
    struct header wanted = first;
    wanted.log_guid.bytes[0] = 7;
    assert_succeeds(header_pair_write(s, &pair, &wanted));
    for (unsigned slot = 0; slot < 2; slot++) {
        assert_succeeds(storage_pread(s, raw, sizeof raw, HEADER_OFFSET(slot)));
        assert_true(header_is_valid(raw));
        header_decode(raw, &h);
        assert_int_equal(h.sequence_no, 9 + slot); /* slot 0, which did not count, first */
        assert_int_equal(h.log_guid.bytes[0], 7);
    }
    assert_int_equal(pair.slot, 1);
    pair.current.sequence_no = UINT64_MAX - 1;
    assert_fails(header_pair_write(s, &pair, &wanted), VHDX_E_HEADER, "cannot be raised");
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_drain_under_load),
        cmocka_unit_test(test_space_comes_back),
        cmocka_unit_test(test_space_is_punched_at_once),
        cmocka_unit_test(test_space_that_cannot_be_punched),
        cmocka_unit_test(test_ring),
        cmocka_unit_test(test_header_pair),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
