/* SPDX-License-Identifier: MIT */
/* The file as it will be after replay (format section 4.8), against a file that really was replayed. */
#include "unit.h"

#include <errno.h>

#include "base/math.h"
#include "base/zero.h"
#include "doubles.h"
#include "format/log-entry.h"
#include "image/overlay.h"
#include "storage/storage.h"

enum { NR_PAGES = 48, MAX_CHANGES = 60, MODEL_BYTES = NR_PAGES * PAGE_BYTES };

/* Data sectors stand behind everything that is compared. */
#define SECTORS_OFFSET ((uint64_t)NR_PAGES * PAGE_BYTES)

struct random_case {
    struct storage *file;
    uint64_t stored_length; /* with the log's sectors, which lie behind what is compared */
    uint64_t file_length;   /* after replay */
    uint8_t model[MODEL_BYTES];
    struct overlay *overlay;
};

static void random_bytes(uint64_t *random, uint8_t *to, size_t nr)
{
    for (size_t i = 0; i < nr; i++)
        to[i] = (uint8_t)(random_next(random) >> 24);
}

static struct storage *new_file(void)
{
    struct storage *s;

    assert_succeeds(storage_memory_new(NULL, 0, &s));
    return s;
}

/* One change, applied to the model at once. */
static struct overlay_range random_change(struct random_case *c, uint64_t *random, unsigned no)
{
    uint64_t first = random_next(random) % NR_PAGES;
    struct overlay_range change = {.start = first * PAGE_BYTES, .end = (first + 1) * PAGE_BYTES};

    if (random_next(random) % 3 == 0) {
        uint64_t nr = random_next(random) % 8 ? 1 + random_next(random) % 6 : NR_PAGES;
        change.end = min_u64(first + nr, NR_PAGES) * PAGE_BYTES;
        memset(c->model + change.start, 0, change.end - change.start);
        return change;
    }
    uint8_t page[PAGE_BYTES], sector[LOG_SECTOR_BYTES];
    random_bytes(random, page, 64);
    memset(page + 64, (int)(random_next(random) >> 30), sizeof page - 128);
    random_bytes(random, page + sizeof page - 64, 64);
    change.data_sector = SECTORS_OFFSET + (uint64_t)no * LOG_SECTOR_BYTES;
    memcpy(change.leading, page, sizeof change.leading);
    memcpy(change.trailing, page + sizeof page - sizeof change.trailing, sizeof change.trailing);
    log_data_sector_encode(page, random_next(random), sector);
    assert_succeeds(storage_pwrite(c->file, sector, sizeof sector, change.data_sector));
    memcpy(c->model + change.start, page, sizeof page);
    return change;
}

static void make_case(struct random_case *c, uint64_t *random)
{
    struct overlay_range changes[MAX_CHANGES];
    unsigned nr = (unsigned)(random_next(random) % (MAX_CHANGES + 1));

    c->file = new_file();
    memset(c->model, 0, sizeof c->model);
    for (unsigned page = 0; page < NR_PAGES; page += 4) { /* stored pieces, and holes */
        if (random_next(random) % 2) {
            memset(c->model + (size_t)page * PAGE_BYTES, 1 + (int)page, 4 * PAGE_BYTES);
            assert_succeeds(storage_pwrite(c->file, c->model + (size_t)page * PAGE_BYTES, 4 * PAGE_BYTES,
                                           (uint64_t)page * PAGE_BYTES));
        }
    }
    for (unsigned i = 0; i < nr; i++)
        changes[i] = random_change(c, random, i);
    assert_succeeds(storage_length(c->file, &c->stored_length));
    c->file_length = max_u64(c->stored_length, SECTORS_OFFSET) + random_next(random) % MIB(3);
    assert_succeeds(overlay_build(changes, nr, c->stored_length, c->file_length, &c->overlay));
}

static void end_case(struct random_case *c)
{
    overlay_free(c->overlay);
    storage_close(c->file);
}

/* Sorted, disjoint, whole pages; and never more than the changes can leave. */
static void check_shape(const struct overlay *o)
{
    for (size_t i = 0; i < o->nr_ranges; i++) {
        const struct overlay_range *r = &o->ranges[i];
        assert_true(r->start < r->end);
        assert_true(i == 0 || o->ranges[i - 1].end <= r->start);
        assert_true(r->start % PAGE_BYTES == 0 && r->end % PAGE_BYTES == 0);
        if (r->data_sector)
            assert_int_equal(r->end - r->start, PAGE_BYTES);
        else if (i > 0 && o->ranges[i - 1].data_sector == 0)
            assert_true(o->ranges[i - 1].end < r->start); /* zeros that touch are one range */
    }
}

static void check_read(struct random_case *c, uint64_t offset, size_t bytes)
{
    uint8_t *got = exact_bytes(bytes);

    memset(got, 0xee, bytes);
    assert_succeeds(overlay_pread(c->overlay, c->file, got, bytes, offset));
    assert_memory_equal(got, c->model + offset, bytes);
    free(got);
}

static void random_changes_read_as_if_they_were_replayed(void **state)
{
    uint64_t random = 0x5eed0001;
    struct random_case *c = exact_bytes(sizeof *c);

    (void)state;
    for (unsigned no = 0; no < random_cases(2000); no++) {
        make_case(c, &random);
        check_shape(c->overlay);
        check_read(c, 0, MODEL_BYTES);
        for (unsigned i = 0; i < 8; i++) {
            uint64_t offset = random_next(&random) % MODEL_BYTES;
            check_read(c, offset, random_next(&random) % (MODEL_BYTES - offset + 1));
            offset = random_next(&random) % (MODEL_BYTES - 16);
            check_read(c, offset, random_next(&random) % 16);
        }
        end_case(c);
    }
    free(c);
}

/* Does [offset, offset + bytes) hold a page that a change made? */
static bool model_touches(const struct overlay *o, uint64_t offset, uint64_t bytes)
{
    for (size_t i = 0; bytes > 0 && i < o->nr_ranges; i++) {
        if (ranges_overlap(offset, bytes, o->ranges[i].start, o->ranges[i].end - o->ranges[i].start))
            return true;
    }
    return false;
}

static void touching_is_told_exactly(void **state)
{
    uint64_t random = 0x5eed0002;
    struct random_case *c = exact_bytes(sizeof *c);

    (void)state;
    for (unsigned no = 0; no < random_cases(300); no++) {
        make_case(c, &random);
        for (unsigned i = 0; i < 100; i++) {
            uint64_t offset = random_next(&random) % (MODEL_BYTES + 10000);
            uint64_t bytes = random_next(&random) % (i % 2 ? 10 : 20000);
            assert_int_equal(overlay_touches(c->overlay, offset, bytes),
                             model_touches(c->overlay, offset, bytes));
        }
        for (size_t i = 0; i < c->overlay->nr_ranges; i++) {
            const struct overlay_range *r = &c->overlay->ranges[i];
            assert_true(overlay_touches(c->overlay, r->start, 1));
            assert_true(overlay_touches(c->overlay, r->end - 1, 1));
            assert_false(overlay_touches(c->overlay, r->start, 0));
            if (r->start >= 9) {
                assert_int_equal(overlay_touches(c->overlay, r->start - 9, 9),
                                 model_touches(c->overlay, r->start - 9, 9));
                assert_true(overlay_touches(c->overlay, r->start - 9, 10));
            }
            assert_int_equal(overlay_touches(c->overlay, r->end, 9), model_touches(c->overlay, r->end, 9));
        }
        end_case(c);
    }
    free(c);
}

/* What next_data leaves out must read as zeros; it must end, at the length after replay. */
static void next_data_overlooks_nothing(void **state)
{
    uint64_t random = 0x5eed0003;
    struct random_case *c = exact_bytes(sizeof *c);

    (void)state;
    for (unsigned no = 0; no < random_cases(600); no++) {
        uint64_t offset = no % 3 ? 0 : random_next(&random) % MODEL_BYTES;
        make_case(c, &random);
        for (unsigned steps = 0;; steps++) {
            uint64_t start, end;
            assert_true(steps < 200);
            assert_succeeds(overlay_next_data(c->overlay, c->file, offset, &start, &end));
            assert_true(offset <= start && start <= end && end <= c->file_length);
            uint64_t skipped_end = min_u64(start, MODEL_BYTES);
            if (offset < skipped_end)
                assert_true(memory_is_zero(c->model + offset, skipped_end - offset));
            if (start == end) {
                assert_int_equal(start, c->file_length);
                break;
            }
            assert_true(end > offset);
            offset = end;
        }
        end_case(c);
    }
    free(c);
}

static void no_changes_are_an_overlay_too(void **state)
{
    struct storage *s = new_file();
    struct overlay *o;
    uint8_t buf[8];
    uint64_t start, end;

    (void)state;
    assert_succeeds(storage_pwrite(s, "abcd", 4, 0));
    assert_succeeds(overlay_build(NULL, 0, 4, 4, &o));
    assert_int_equal(o->nr_ranges, 0);
    assert_succeeds(overlay_pread(o, s, buf, 3, 1));
    assert_memory_equal(buf, "bcd", 3);
    assert_false(overlay_touches(o, 0, UINT64_C(1) << 62));
    assert_succeeds(overlay_next_data(o, s, 0, &start, &end));
    assert_int_equal(end, 4);
    overlay_free(o);
    storage_close(s);
}

/* Bytes between the end of the file and the end after replay are zeros; behind that nothing can be read. */
static void the_file_ends_where_replay_would_end_it(void **state)
{
    struct storage *s = new_file();
    struct overlay *o;
    uint8_t buf[16];
    uint64_t start, end;

    (void)state;
    assert_succeeds(storage_pwrite(s, "abcd", 4, 0));
    assert_succeeds(overlay_build(NULL, 0, 4, MIB(5), &o));
    assert_succeeds(overlay_pread(o, s, buf, 8, 2));
    assert_memory_equal(buf, "cd\0\0\0\0\0\0", 8);
    assert_succeeds(overlay_pread(o, s, buf, 16, MIB(5) - 16));
    assert_memory_equal(buf, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    assert_succeeds(overlay_pread(o, s, buf, 0, MIB(5)));
    assert_fails(overlay_pread(o, s, buf, 16, MIB(5) - 15), VHDX_E_TRUNCATED, "0x4ffff1");
    assert_fails(overlay_pread(o, s, buf, 1, MIB(5)), VHDX_E_TRUNCATED, "0x500000");
    assert_fails(overlay_pread(o, s, buf, 2, UINT64_MAX), VHDX_E_TRUNCATED, "0xffffffffffffffff");
    assert_succeeds(overlay_next_data(o, s, MIB(1), &start, &end));
    assert_int_equal(start, MIB(5));
    assert_int_equal(end, MIB(5));
    overlay_free(o);
    storage_close(s);
}

/* A logged page reaches beyond the end of a file whose length is no multiple of a page; data does not. */
static void data_ends_where_the_file_does(void **state)
{
    const struct overlay_range change = {.start = MIB(1), .end = MIB(1) + PAGE_BYTES, .data_sector = PAGE_BYTES};
    struct storage *s = new_file();
    struct overlay *o;
    uint64_t start, end;

    (void)state;
    assert_succeeds(storage_truncate(s, MIB(1) + 50));
    assert_succeeds(overlay_build(&change, 1, MIB(1) + 50, MIB(1) + 100, &o));
    assert_succeeds(overlay_next_data(o, s, 0, &start, &end));
    assert_int_equal(start, MIB(1));
    assert_int_equal(end, MIB(1) + 100);
    overlay_free(o);
    storage_close(s);
}

/* A zero range says nothing where the file has nothing: tables behind it can be passed over. */
static void zeros_over_a_hole_are_no_data(void **state)
{
    const struct overlay_range change = {.start = MIB(1), .end = GIB(1)};
    struct storage *s = new_file();
    struct overlay *o;
    uint64_t start, end;

    (void)state;
    assert_succeeds(storage_truncate(s, GIB(2)));
    assert_succeeds(overlay_build(&change, 1, GIB(2), GIB(2), &o));
    assert_succeeds(overlay_next_data(o, s, 0, &start, &end));
    assert_int_equal(start, GIB(2));
    overlay_free(o);
    storage_close(s);
}

/* Not zeros: the bytes were there when the file was opened (format section 11 rows 105 and 106). */
static void a_file_that_shrank_is_an_error(void **state)
{
    const struct overlay_range change = {.start = 0, .end = PAGE_BYTES};
    struct storage *s = new_file();
    struct overlay *o;
    uint8_t buf[PAGE_BYTES];
    uint64_t start, end;

    (void)state;
    assert_succeeds(storage_pwrite(s, "abcd", 4, MIB(1) - 4));
    assert_succeeds(overlay_build(&change, 1, MIB(1), MIB(2), &o));
    assert_succeeds(overlay_pread(o, s, buf, 8, MIB(1) - 4));
    assert_succeeds(storage_truncate(s, MIB(1) - 2));
    assert_int_equal(overlay_pread(o, s, buf, 8, MIB(1) - 4), VHDX_E_TRUNCATED);
    assert_fails(overlay_next_data(o, s, MIB(1) - 1, &start, &end), VHDX_E_TRUNCATED,
                 "shrank from 0x100000 to 0xffffe");
    assert_succeeds(overlay_pread(o, s, buf, sizeof buf, 0)); /* what the log itself says is still known */
    assert_succeeds(overlay_pread(o, s, buf, 8, MIB(1)));
    overlay_free(o);
    storage_close(s);
}

/* Hostile: many wide zero ranges on top of each other may not cost their product (format section 11 row 43).
 */
static void overlapping_ranges_cost_no_more_than_a_sort(void **state)
{
    enum { NR = 200000 };
    struct overlay_range *changes = exact_bytes(NR * sizeof *changes);
    struct overlay *o;

    (void)state;
    for (uint64_t i = 0; i < NR; i++)
        changes[i] = (struct overlay_range){.start = MIB(1) + i * PAGE_BYTES, .end = TIB(8) - i * PAGE_BYTES};
    assert_succeeds(overlay_build(changes, NR, MIB(1), TIB(8), &o)); /* NR * NR steps would take minutes */
    assert_int_equal(o->nr_ranges, 1);
    assert_int_equal(o->ranges[0].start, MIB(1));
    assert_int_equal(o->ranges[0].end, TIB(8));
    overlay_free(o);
    for (uint64_t i = 0; i < NR; i++) /* the other way round, each a little wider, pages in turn with zeros */
        changes[i] = (struct overlay_range){.start = MIB(1) + (NR - i) * PAGE_BYTES,
                                            .end = i % 2 ? TIB(8) + i * PAGE_BYTES
                                                         : MIB(1) + (NR - i + 1) * PAGE_BYTES,
                                            .data_sector = i % 2 ? 0 : MIB(1)};
    assert_succeeds(overlay_build(changes, NR, MIB(1), TIB(9), &o));
    check_shape(o);
    assert_int_equal(o->nr_ranges, 1);
    overlay_free(o);
    free(changes);
}

static void empty_changes_change_nothing(void **state)
{
    const struct overlay_range changes[] = {{.start = MIB(1), .end = MIB(1)},
                                            {.start = MIB(2), .end = MIB(3)}};
    struct overlay *o;

    (void)state;
    assert_succeeds(overlay_build(changes, 2, MIB(1), MIB(4), &o));
    assert_int_equal(o->nr_ranges, 1);
    assert_false(overlay_touches(o, MIB(1), PAGE_BYTES));
    overlay_free(o);
}

static void a_data_sector_that_cannot_be_read_is_an_error(void **state)
{
    struct storage *inner = new_file(), *s;
    const struct overlay_range change = {.start = 0, .end = PAGE_BYTES, .data_sector = PAGE_BYTES};
    struct overlay *o;
    struct fault f;
    uint8_t buf[4];
    uint64_t start, end;

    (void)state;
    fault_init(&f);
    assert_succeeds(storage_pwrite(inner, "x", 1, 3 * PAGE_BYTES));
    assert_succeeds(fault_wrap(&f, inner, &s));
    assert_succeeds(overlay_build(&change, 1, PAGE_BYTES * 3 + 1, MIB(1), &o));
    assert_succeeds(overlay_pread(o, s, buf, 4, 100));
    fault_arm(&f, &(struct fault_plan){.kind = FAULT_READ, .nth = 1, .error = -EIO});
    assert_int_equal(overlay_pread(o, s, buf, 4, 100), -EIO);
    fault_arm(&f, &(struct fault_plan){.kind = FAULT_NEXT_DATA, .nth = 1, .error = -EIO});
    assert_int_equal(overlay_next_data(o, s, 0, &start, &end), -EIO);
    fault_arm(&f, NULL);
    assert_succeeds(storage_truncate(inner, PAGE_BYTES + 10)); /* the log was cut meanwhile */
    assert_int_equal(overlay_pread(o, s, buf, 4, 100), VHDX_E_TRUNCATED);
    overlay_free(o);
    storage_close(s);
    storage_close(inner);
    fault_destroy(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_changes_read_as_if_they_were_replayed),
        cmocka_unit_test(touching_is_told_exactly),
        cmocka_unit_test(next_data_overlooks_nothing),
        cmocka_unit_test(no_changes_are_an_overlay_too),
        cmocka_unit_test(the_file_ends_where_replay_would_end_it),
        cmocka_unit_test(data_ends_where_the_file_does),
        cmocka_unit_test(zeros_over_a_hole_are_no_data),
        cmocka_unit_test(a_file_that_shrank_is_an_error),
        cmocka_unit_test(overlapping_ranges_cost_no_more_than_a_sort),
        cmocka_unit_test(empty_changes_change_nothing),
        cmocka_unit_test(a_data_sector_that_cannot_be_read_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
