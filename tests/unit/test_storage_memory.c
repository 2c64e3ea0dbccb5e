/* SPDX-License-Identifier: MIT */
/* The memory driver, and what storage.c does for all drivers. */
#include "storage-test.h"

#include <errno.h>
#include <pthread.h>

#include "base/math.h"

static void starts_with_the_data_given(void **state)
{
    struct storage *s = new_file("content", 7);
    char buf[7];

    (void)state;
    assert_int_equal(length_of(s), 7);
    assert_succeeds(storage_pread(s, buf, 7, 0));
    assert_memory_equal(buf, "content", 7);
    assert_true(s->writable);
    assert_int_equal(s->fd, -1);
    assert_succeeds(storage_flush(s));
    assert_succeeds(storage_lock(s, STORAGE_LOCK_EXCLUSIVE));
    storage_close(s);
    storage_close(NULL);
}

static void every_file_has_its_own_identity(void **state)
{
    struct storage *a = new_file(NULL, 0), *b = new_file(NULL, 0);

    (void)state;
    assert_int_equal(a->identity.device, b->identity.device);
    assert_int_not_equal(a->identity.inode, b->identity.inode);
    storage_close(a);
    storage_close(b);
}

static void reading_past_the_end_is_short(void **state)
{
    struct storage *s = new_file("0123456789", 10);
    char a[4], b[8];
    struct iovec iov[] = {{a, sizeof a}, {NULL, 0}, {b, sizeof b}};
    size_t got;

    (void)state;
    assert_succeeds(storage_preadv(s, iov, 3, 2, &got));
    assert_int_equal(got, 8);
    assert_memory_equal(a, "2345", 4);
    assert_memory_equal(b, "6789", 4);
    assert_succeeds(storage_preadv(s, iov, 3, 10, &got));
    assert_int_equal(got, 0);
    assert_succeeds(storage_preadv(s, iov, 3, 1 << 20, &got));
    assert_int_equal(got, 0);
    storage_close(s);
}

static void pread_wants_everything(void **state)
{
    struct storage *s = new_file("0123456789", 10);
    char buf[8];

    (void)state;
    assert_succeeds(storage_pread(s, buf, 8, 2));
    assert_memory_equal(buf, "23456789", 8);
    assert_fails(storage_pread(s, buf, 8, 3), VHDX_E_TRUNCATED, "wanted 8 bytes at file offset 0x3, got 7");
    assert_fails(storage_pread(s, buf, 8, 0xabc), VHDX_E_TRUNCATED, "offset 0xabc, got 0");
    assert_succeeds(storage_pread(s, buf, 0, 0xabc));
    storage_close(s);
}

static void pread_zero_fill_makes_up_for_the_rest(void **state)
{
    struct storage *s = new_file("0123456789", 10);
    char buf[8];
    size_t got = 99;

    (void)state;
    memset(buf, 'x', sizeof buf);
    assert_succeeds(storage_pread_zero_fill(s, buf, 8, 6, &got));
    assert_int_equal(got, 4);
    assert_memory_equal(buf, "6789\0\0\0\0", 8);
    memset(buf, 'x', sizeof buf);
    assert_succeeds(storage_pread_zero_fill(s, buf, 8, 100, NULL));
    assert_memory_equal(buf, "\0\0\0\0\0\0\0\0", 8);
    storage_close(s);
}

static void impossible_ranges_are_refused(void **state)
{
    struct storage *s = new_file("x", 1);
    uint64_t start, end;
    char buf[2] = "ab";
    struct iovec huge[] = {{buf, SIZE_MAX}, {buf, 2}};
    size_t got;

    (void)state;
    assert_fails(storage_pread(s, buf, 2, INT64_MAX - 1), -EOVERFLOW, "0x7ffffffffffffffe");
    assert_fails(storage_pread(s, buf, 1, UINT64_MAX), -EOVERFLOW, "cannot read 1 bytes");
    assert_fails(storage_pwrite(s, buf, 2, INT64_MAX - 1), -EOVERFLOW, "cannot write 2 bytes");
    assert_fails(storage_truncate(s, UINT64_C(1) << 63), -EOVERFLOW, "resize");
    assert_fails(storage_punch(s, 1, INT64_MAX), -EOVERFLOW, "punch");
    assert_fails(storage_zero(s, UINT64_MAX, UINT64_MAX), -EOVERFLOW, "zero");
    assert_fails(storage_next_data(s, UINT64_C(1) << 63, &start, &end), -EOVERFLOW, "look for data");
    assert_fails(storage_preadv(s, huge, 2, 0, &got), -EINVAL, "longer than memory");
    assert_fails(storage_pwritev(s, huge, -1, 0), -EINVAL, "-1 buffers");
    assert_int_equal(length_of(s), 1);
    storage_close(s);
}

static void read_only_storage_is_not_changed(void **state)
{
    struct storage *s = new_file("x", 1);

    (void)state;
    s->writable = false;
    assert_fails(storage_pwrite(s, "y", 1, 0), -EROFS, "cannot write");
    assert_fails(storage_truncate(s, 0), -EROFS, "cannot resize");
    assert_fails(storage_punch(s, 0, 1), -EROFS, "cannot punch");
    assert_fails(storage_zero(s, 0, 1), -EROFS, "cannot zero");
    storage_close(s);
}

static void claimed_length_costs_nothing(void **state)
{
    struct storage *s = new_file("x", 1);
    uint64_t start, end;
    uint8_t buf[2];

    (void)state;
    assert_succeeds(storage_truncate(s, INT64_MAX));
    assert_int_equal(length_of(s), INT64_MAX);
    assert_int_equal(usage_of(s), KIB(64));
    assert_succeeds(storage_pwrite(s, "z", 1, INT64_MAX - 1));
    assert_int_equal(usage_of(s), KIB(128));
    assert_succeeds(storage_pread(s, buf, 2, INT64_MAX - 2));
    assert_memory_equal(buf, "\0z", 2);

    assert_succeeds(storage_next_data(s, 0, &start, &end));
    assert_int_equal(start, 0);
    assert_int_equal(end, KIB(64));
    assert_succeeds(storage_next_data(s, end, &start, &end));
    assert_int_equal(start, align_down(INT64_MAX, KIB(64)));
    assert_int_equal(end, INT64_MAX);
    assert_succeeds(storage_next_data(s, end, &start, &end));
    assert_int_equal(start, INT64_MAX);
    assert_int_equal(end, INT64_MAX);

    assert_succeeds(storage_zero(s, 0, INT64_MAX));
    assert_int_equal(usage_of(s), KIB(128));
    assert_succeeds(storage_pread(s, buf, 2, INT64_MAX - 2));
    assert_memory_equal(buf, "\0\0", 2);
    assert_succeeds(storage_punch(s, 0, INT64_MAX));
    assert_int_equal(usage_of(s), 0);
    assert_int_equal(length_of(s), INT64_MAX);
    storage_close(s);
}

static void space_behind_the_end_is_zero_when_it_comes_back(void **state)
{
    struct storage *s = new_file(NULL, 0);
    uint8_t buf[200], zeros[200] = {0};

    (void)state;
    memset(buf, 0xee, sizeof buf);
    assert_succeeds(storage_pwrite(s, buf, 200, KIB(64) - 100));
    assert_succeeds(storage_truncate(s, KIB(64) - 50));
    assert_int_equal(usage_of(s), KIB(64));
    assert_succeeds(storage_truncate(s, KIB(128)));
    assert_succeeds(storage_pread(s, buf, 200, KIB(64) - 100));
    assert_memory_equal(buf + 50, zeros, 150);
    assert_int_equal(buf[49], 0xee);
    assert_succeeds(storage_truncate(s, 0));
    assert_int_equal(usage_of(s), 0);
    storage_close(s);
}

/* ---- against a plain array ---- */

enum { MODEL_BYTES = 300000 };

struct model {
    struct storage *s;
    uint8_t *bytes; /* MODEL_BYTES, zero from length on */
    uint64_t length;
};

static void model_change(struct model *m, uint64_t *random)
{
    uint64_t offset = random_next(random) % MODEL_BYTES;
    uint64_t bytes = random_next(random) % (random_next(random) % 2 ? 1000 : MODEL_BYTES);
    static uint8_t data[MODEL_BYTES];

    bytes = min_u64(bytes, MODEL_BYTES - offset);
    switch (random_next(random) % 6) {
    case 0:
        assert_succeeds(storage_truncate(m->s, offset));
        if (offset < m->length)
            memset(m->bytes + offset, 0, m->length - offset);
        m->length = offset;
        break;
    case 1:
        assert_succeeds(storage_punch(m->s, offset, bytes));
        memset(m->bytes + offset, 0, bytes);
        break;
    case 2:
        assert_succeeds(storage_zero(m->s, offset, bytes));
        memset(m->bytes + offset, 0, bytes);
        break;
    default:
        memset(data, (int)(random_next(random) % 255 + 1), bytes);
        struct iovec iov[] = {{data, bytes / 3}, {data, bytes - bytes / 3}};
        assert_succeeds(storage_pwritev(m->s, iov, 2, offset));
        memcpy(m->bytes + offset, data, bytes);
        if (bytes > 0)
            m->length = max_u64(m->length, offset + bytes);
    }
}

static void model_compare(const struct model *m)
{
    static uint8_t buf[MODEL_BYTES + 1];
    uint64_t start, end = 0, before = 0, pieces = 0;
    size_t got;

    assert_int_equal(length_of(m->s), m->length);
    assert_succeeds(storage_pread_zero_fill(m->s, buf, sizeof buf, 0, &got));
    assert_int_equal(got, m->length);
    assert_memory_equal(buf, m->bytes, MODEL_BYTES);
    while (end < m->length) {
        assert_succeeds(storage_next_data(m->s, end, &start, &end));
        assert_true(start >= before && (start == m->length || start < end));
        for (uint64_t i = before; i < start; i++)
            assert_int_equal(m->bytes[i], 0);
        if (start < end)
            pieces += div_round_up(end, KIB(64)) - start / KIB(64);
        before = end;
    }
    assert_int_equal(usage_of(m->s), pieces * KIB(64));
}

static void behaves_as_an_array(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct model m = {new_file(NULL, 0), exact_bytes(MODEL_BYTES), 0};
        uint64_t random = seed;

        for (int i = 0; i < 60; i++) {
            model_change(&m, &random);
            model_compare(&m);
        }
        storage_close(m.s);
        free(m.bytes);
    }
}

static void next_data_starts_inside_a_piece(void **state)
{
    struct storage *s = new_file(NULL, 0);
    uint64_t start, end;

    (void)state;
    assert_succeeds(storage_pwrite(s, "x", 1, KIB(64)));
    assert_succeeds(storage_pwrite(s, "x", 1, KIB(128) + 5));
    assert_succeeds(storage_next_data(s, 3, &start, &end));
    assert_int_equal(start, KIB(64));
    assert_int_equal(end, KIB(128) + 6);
    assert_succeeds(storage_next_data(s, KIB(64) + 7, &start, &end));
    assert_int_equal(start, KIB(64) + 7);
    assert_succeeds(storage_next_data(s, KIB(200), &start, &end));
    assert_int_equal(start, KIB(128) + 6);
    assert_int_equal(end, KIB(128) + 6);
    storage_close(s);
}

/* ---- threads ---- */

enum { NR_THREADS = 4, ROUNDS = 300, STRIPE = 100 };

struct stripe {
    struct storage *s;
    unsigned no;
    bool ok;
};

/* Each thread owns every NR_THREADS-th stripe, so all of them work on the same pieces. */
static void *work_on_stripes(void *arg)
{
    struct stripe *stripe = arg;
    uint8_t out[STRIPE], in[STRIPE];

    stripe->ok = true;
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t offset = ((uint64_t)i * 37 % 50 * NR_THREADS + stripe->no) * STRIPE * 20;
        uint64_t start, end;

        memset(out, (int)(i + stripe->no), sizeof out);
        if (storage_pwrite(stripe->s, out, STRIPE, offset) < 0 ||
            storage_pread(stripe->s, in, STRIPE, offset) < 0 || memcmp(in, out, STRIPE) != 0 ||
            storage_next_data(stripe->s, offset, &start, &end) < 0 || start != offset ||
            storage_punch(stripe->s, offset, STRIPE) < 0 ||
            storage_pread(stripe->s, in, STRIPE, offset) < 0 || in[0] != 0)
            stripe->ok = false;
    }
    return NULL;
}

static void many_threads_do_not_disturb_each_other(void **state)
{
    struct stripe stripes[NR_THREADS];
    pthread_t threads[NR_THREADS];
    struct storage *s = new_file(NULL, 0);

    (void)state;
    assert_succeeds(storage_truncate(s, MIB(1)));
    for (unsigned i = 0; i < NR_THREADS; i++) {
        stripes[i] = (struct stripe){s, i, false};
        assert_int_equal(pthread_create(&threads[i], NULL, work_on_stripes, &stripes[i]), 0);
    }
    for (unsigned i = 0; i < NR_THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_true(stripes[i].ok);
    }
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(starts_with_the_data_given),
        cmocka_unit_test(every_file_has_its_own_identity),
        cmocka_unit_test(reading_past_the_end_is_short),
        cmocka_unit_test(pread_wants_everything),
        cmocka_unit_test(pread_zero_fill_makes_up_for_the_rest),
        cmocka_unit_test(impossible_ranges_are_refused),
        cmocka_unit_test(read_only_storage_is_not_changed),
        cmocka_unit_test(claimed_length_costs_nothing),
        cmocka_unit_test(space_behind_the_end_is_zero_when_it_comes_back),
        cmocka_unit_test(behaves_as_an_array),
        cmocka_unit_test(next_data_starts_inside_a_piece),
        cmocka_unit_test(many_threads_do_not_disturb_each_other),
    };
    return cmocka_run_group_tests_name("storage memory", tests, NULL, NULL);
}
