/* SPDX-License-Identifier: MIT */
/* The storage test doubles: crash and fault tests believe them, so they are tested like the library. */
#include "storage-test.h"

#include <errno.h>
#include <pthread.h>

#include "base/math.h"
#include "doubles.h"

/* ---- helpers ---- */

/* Write bytes times value. */
static void put(struct storage *s, uint64_t offset, size_t bytes, int value)
{
    uint8_t *data = exact_bytes(bytes);

    memset(data, value, bytes);
    assert_succeeds(storage_pwrite(s, data, bytes, offset));
    free(data);
}

static uint8_t byte_at(struct storage *s, uint64_t offset)
{
    uint8_t byte;

    assert_succeeds(storage_pread_zero_fill(s, &byte, 1, offset, NULL));
    return byte;
}

static bool same_content(struct storage *a, struct storage *b)
{
    uint64_t length = length_of(a);
    uint8_t *in_a = exact_bytes(length), *in_b = exact_bytes(length);
    bool same = length == length_of(b);

    if (same) {
        assert_succeeds(storage_pread(a, in_a, length, 0));
        assert_succeeds(storage_pread(b, in_b, length, 0));
        same = memcmp(in_a, in_b, length) == 0;
    }
    free(in_a);
    free(in_b);
    return same;
}

/* ---- fault ---- */

struct fault_case {
    struct fault fault;
    struct storage *inner, *s;
};

static struct fault_case *new_fault_case(void)
{
    struct fault_case *c = exact_bytes(sizeof *c);

    c->inner = new_file("0123456789", 10);
    fault_init(&c->fault);
    assert_succeeds(fault_wrap(&c->fault, c->inner, &c->s));
    return c;
}

static void end_fault_case(struct fault_case *c)
{
    storage_close(c->s);
    storage_close(c->inner);
    fault_destroy(&c->fault);
    free(c);
}

static void arm(struct fault_case *c, enum fault_kind kind, uint64_t nth, bool forever)
{
    fault_arm(&c->fault, &(struct fault_plan){.kind = kind, .nth = nth, .forever = forever, .error = -EIO});
}

/* Do one operation of the kind. */
static int operate(struct storage *s, enum fault_kind kind)
{
    uint64_t a, b;
    char byte;

    switch (kind) {
    case FAULT_READ:
        return storage_pread(s, &byte, 1, 0);
    case FAULT_WRITE:
        return storage_pwrite(s, "w", 1, 0);
    case FAULT_FLUSH:
        return storage_flush(s);
    case FAULT_LENGTH:
        return storage_length(s, &a);
    case FAULT_TRUNCATE:
        return storage_truncate(s, 10);
    case FAULT_PUNCH:
        return storage_punch(s, 0, 1);
    case FAULT_RESERVE:
        return storage_reserve(s, 0, 1);
    case FAULT_ZERO:
        return storage_zero(s, 0, 1);
    case FAULT_NEXT_DATA:
        return storage_next_data(s, 0, &a, &b);
    case FAULT_USAGE:
        return storage_usage(s, &a);
    case FAULT_LOCK:
        return storage_lock(s, STORAGE_LOCK_SHARED);
    default:
        assert_true(false);
        return 0;
    }
}

static void unarmed_fault_only_counts(void **state)
{
    struct fault_case *c = new_fault_case();
    uint64_t start, end;

    (void)state;
    assert_memory_equal(&c->s->identity, &c->inner->identity, sizeof c->s->identity);
    assert_true(c->s->writable);
    assert_int_equal(c->s->fd, -1);
    for (int kind = 0; kind < FAULT_ANY; kind++)
        for (int i = 0; i <= kind; i++)
            assert_succeeds(operate(c->s, (enum fault_kind)kind));
    for (int kind = 0; kind < FAULT_ANY; kind++)
        assert_int_equal(fault_count(&c->fault, (enum fault_kind)kind), kind + 1);
    assert_int_equal(fault_count(&c->fault, FAULT_ANY), FAULT_ANY * (FAULT_ANY + 1) / 2);
    assert_int_equal(fault_injected(&c->fault), 0);
    assert_int_equal(byte_at(c->inner, 0), 0); /* zeroed, punched */
    assert_int_equal(byte_at(c->s, 9), '9');
    assert_succeeds(storage_next_data(c->s, 4, &start, &end));
    assert_int_equal(start, 4);
    assert_int_equal(end, 10);
    fault_arm(&c->fault, NULL);
    assert_int_equal(fault_count(&c->fault, FAULT_ANY), 0);
    end_fault_case(c);
}

static void nth_operation_of_each_kind_fails_once(void **state)
{
    (void)state;
    for (int kind = 0; kind < FAULT_ANY; kind++) {
        struct fault_case *c = new_fault_case();

        arm(c, (enum fault_kind)kind, 3, false);
        for (int n = 1; n <= 5; n++) {
            for (int other = 0; other < FAULT_ANY; other++)
                if (other != kind)
                    assert_succeeds(operate(c->s, (enum fault_kind)other));
            if (n == 3)
                assert_fails(operate(c->s, (enum fault_kind)kind), -EIO, "number 3");
            else
                assert_succeeds(operate(c->s, (enum fault_kind)kind));
            assert_int_equal(fault_injected(&c->fault), n >= 3);
        }
        end_fault_case(c);
    }
}

static void forever_means_from_then_on(void **state)
{
    struct fault_case *c = new_fault_case();

    (void)state;
    arm(c, FAULT_FLUSH, 2, true);
    assert_succeeds(storage_flush(c->s));
    for (int i = 0; i < 3; i++) {
        assert_fails(storage_flush(c->s), -EIO, "injected fault in flush");
        assert_succeeds(storage_pwrite(c->s, "x", 1, 0));
    }
    assert_int_equal(fault_injected(&c->fault), 3);
    arm(c, FAULT_ANY, 1, true);
    for (int kind = 0; kind < FAULT_ANY; kind++)
        assert_fails(operate(c->s, (enum fault_kind)kind), -EIO, "injected");
    assert_int_equal(byte_at(c->inner, 0), 'x');
    end_fault_case(c);
}

static void any_counts_all_kinds_together(void **state)
{
    struct fault_case *c = new_fault_case();

    (void)state;
    arm(c, FAULT_ANY, 3, false);
    assert_succeeds(operate(c->s, FAULT_READ));
    assert_succeeds(operate(c->s, FAULT_FLUSH));
    assert_fails(operate(c->s, FAULT_WRITE), -EIO, "write number 3");
    assert_succeeds(operate(c->s, FAULT_WRITE));
    end_fault_case(c);
}

static void failing_write_may_have_begun(void **state)
{
    struct fault_case *c = new_fault_case();
    struct iovec iov[] = {{(char *)(uintptr_t) "ab", 2}, {(char *)(uintptr_t) "cdef", 4}};
    struct fault_plan plan = {.kind = FAULT_WRITE, .nth = 1, .error = -ENOSPC};
    char buf[10];

    (void)state;
    fault_arm(&c->fault, &plan);
    assert_fails(storage_pwritev(c->s, iov, 2, 1), -ENOSPC, "injected");
    assert_int_equal(byte_at(c->inner, 1), '1');
    plan.bytes_done = 3;
    fault_arm(&c->fault, &plan);
    assert_fails(storage_pwritev(c->s, iov, 2, 1), -ENOSPC, "injected");
    assert_succeeds(storage_pread(c->inner, buf, 10, 0));
    assert_memory_equal(buf, "0abc456789", 10);
    plan.bytes_done = 100;
    fault_arm(&c->fault, &plan);
    assert_fails(storage_pwritev(c->s, iov, 2, 8), -ENOSPC, "injected");
    assert_int_equal(length_of(c->inner), 14);
    end_fault_case(c);
}

static void short_read_ends_early(void **state)
{
    struct fault_case *c = new_fault_case();
    char a[2], b[4];
    struct iovec iov[] = {{a, 2}, {b, 4}};
    size_t got;

    (void)state;
    fault_arm(&c->fault, &(struct fault_plan){.kind = FAULT_READ, .nth = 2, .bytes_done = 3});
    assert_succeeds(storage_pread(c->s, b, 4, 0));
    assert_succeeds(storage_preadv(c->s, iov, 2, 4, &got));
    assert_int_equal(got, 3);
    assert_memory_equal(a, "45", 2);
    assert_int_equal(b[0], '6');
    assert_int_equal(fault_injected(&c->fault), 1);

    fault_arm(&c->fault, &(struct fault_plan){.kind = FAULT_READ, .nth = 1, .forever = true});
    assert_fails(storage_pread(c->s, b, 4, 5), VHDX_E_TRUNCATED, "wanted 4 bytes at file offset 0x5, got 0");
    assert_fails(storage_pread(c->s, b, 1, 0), VHDX_E_TRUNCATED, "got 0");
    end_fault_case(c);
}

/* The loop that fault.c promises: it visits every operation of a scenario once, then ends. */
static void fault_loop_visits_every_operation(void **state)
{
    const enum fault_kind scenario[] = {FAULT_LENGTH, FAULT_READ, FAULT_READ, FAULT_WRITE, FAULT_FLUSH};
    enum { NR_OPERATIONS = sizeof scenario / sizeof scenario[0] };
    struct fault_case *c = new_fault_case();
    uint64_t n;

    (void)state;
    for (n = 1;; n++) {
        unsigned done = 0;

        arm(c, FAULT_ANY, n, false);
        while (done < NR_OPERATIONS && operate(c->s, scenario[done]) == 0)
            done++;
        if (fault_injected(&c->fault) == 0)
            break;
        assert_int_equal(done, n - 1);
    }
    assert_int_equal(n, NR_OPERATIONS + 1);
    end_fault_case(c);
}

/* ---- recorder ---- */

struct recorder_case {
    struct recording recording;
    struct storage *inner, *s;
};

/* A recorder on a file that holds bytes times 0xbb. */
static struct recorder_case *new_recorder_case(size_t bytes)
{
    struct recorder_case *c = exact_bytes(sizeof *c);

    c->inner = new_file(NULL, 0);
    put(c->inner, 0, bytes, 0xbb);
    assert_succeeds(recording_init(&c->recording, c->inner));
    assert_succeeds(recorder_wrap(&c->recording, c->inner, &c->s));
    return c;
}

static void end_recorder_case(struct recorder_case *c)
{
    storage_close(c->s);
    storage_close(c->inner);
    recording_destroy(&c->recording);
    free(c);
}

/* Something random that changes the file, or a flush. */
static void change_randomly(struct storage *s, uint64_t *random)
{
    uint64_t offset = random_next(random) % 100000, bytes = random_next(random) % 5000 + 1;

    switch (random_next(random) % 8) {
    case 0:
        assert_succeeds(storage_truncate(s, offset));
        break;
    case 1:
        assert_succeeds(storage_punch(s, offset, bytes));
        break;
    case 2:
        assert_succeeds(storage_zero(s, offset, bytes));
        break;
    case 3:
        assert_succeeds(storage_flush(s));
        break;
    default:
        put(s, offset, bytes, (int)(random_next(random) % 255 + 1));
    }
}

static void replay_gives_the_file_at_every_step(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        enum { NR_STEPS = 40 };
        struct recorder_case *c = new_recorder_case(seed % 2 ? 20000 : 0);
        struct storage *then[NR_STEPS + 1], *replayed, *onward;
        uint64_t random = seed;

        for (size_t i = 0; i <= NR_STEPS; i++) {
            assert_int_equal(recording_nr_steps(&c->recording), i);
            then[i] = new_file(NULL, 0);
            assert_succeeds(double_copy(c->inner, then[i]));
            assert_true(same_content(c->inner, then[i]));
            if (i < NR_STEPS)
                change_randomly(c->s, &random);
        }
        assert_succeeds(recording_replay(&c->recording, 0, &onward));
        for (size_t i = 0; i <= NR_STEPS; i++) {
            assert_succeeds(recording_replay(&c->recording, i, &replayed));
            assert_true(same_content(replayed, then[i]));
            if (i > 0)
                assert_succeeds(recording_apply(&c->recording, i - 1, i, onward));
            assert_true(same_content(onward, then[i]));
            storage_close(replayed);
            storage_close(then[i]);
        }
        storage_close(onward);
        end_recorder_case(c);
    }
}

static void recorder_keeps_what_was_written_not_where(void **state)
{
    struct recorder_case *c = new_recorder_case(0);
    char data[] = "abc";
    struct iovec iov[] = {{data, 1}, {NULL, 0}, {data + 1, 2}};
    const struct step *steps;

    (void)state;
    assert_int_equal(c->s->fd, -1);
    assert_memory_equal(&c->s->identity, &c->inner->identity, sizeof c->s->identity);
    assert_succeeds(storage_pwritev(c->s, iov, 3, 7));
    memset(data, 'x', 3);
    assert_succeeds(storage_truncate(c->s, 1234));
    assert_succeeds(storage_flush(c->s));
    steps = c->recording.steps;
    assert_int_equal(steps[0].kind, STEP_WRITE);
    assert_int_equal(steps[0].offset, 7);
    assert_int_equal(steps[0].bytes, 3);
    assert_memory_equal(steps[0].data, "abc", 3);
    assert_int_equal(steps[1].kind, STEP_TRUNCATE);
    assert_int_equal(steps[1].offset, 1234);
    assert_int_equal(steps[2].kind, STEP_FLUSH);
    assert_int_equal(steps[2].covers, 2);
    end_recorder_case(c);
}

static void failed_operations_are_not_recorded(void **state)
{
    struct recorder_case *c = new_recorder_case(100);
    struct storage *faulty, *s;
    struct fault fault;

    (void)state;
    fault_init(&fault);
    assert_succeeds(fault_wrap(&fault, c->inner, &faulty));
    assert_succeeds(recorder_wrap(&c->recording, faulty, &s));
    fault_arm(&fault, &(struct fault_plan){.kind = FAULT_ANY, .nth = 1, .forever = true, .error = -ENOTSUP});
    assert_fails(storage_pwrite(s, "x", 1, 0), -ENOTSUP, "injected");
    assert_fails(storage_punch(s, 0, 1), -ENOTSUP, "injected");
    assert_fails(storage_zero(s, 0, 1), -ENOTSUP, "injected");
    assert_fails(storage_truncate(s, 1), -ENOTSUP, "injected");
    assert_fails(storage_flush(s), -ENOTSUP, "injected");
    assert_int_equal(recording_nr_steps(&c->recording), 0);
    storage_close(s);
    storage_close(faulty);
    fault_destroy(&fault);
    end_recorder_case(c);
}

/* A storage whose flush writes through another one while it runs, as a second thread would. */
struct busy_flush {
    struct storage base;
    struct storage *recorder; /* that stands before this */
    struct storage_ops ops;
    struct storage *memory;
};

static int busy_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset)
{
    return storage_pwritev(((struct busy_flush *)s)->memory, iov, nr_iov, offset);
}

static int busy_flush(struct storage *s)
{
    return storage_pwrite(((struct busy_flush *)s)->recorder, "late", 4, 512);
}

static void flush_covers_only_what_had_returned_before(void **state)
{
    struct busy_flush busy = {.memory = new_file(NULL, 0)};
    struct recording recording;
    struct storage *crashed;

    (void)state;
    busy.ops = (struct storage_ops){.name = "busy", .pwritev = busy_pwritev, .flush = busy_flush};
    busy.base = (struct storage){.ops = &busy.ops, .writable = true, .fd = -1};
    assert_succeeds(recording_init(&recording, NULL));
    assert_succeeds(recorder_wrap(&recording, &busy.base, &busy.recorder));
    assert_succeeds(storage_pwrite(busy.recorder, "early", 5, 0));
    assert_succeeds(storage_flush(busy.recorder));

    assert_int_equal(recording_nr_steps(&recording), 3);
    assert_int_equal(recording.steps[1].kind, STEP_WRITE);
    assert_int_equal(recording.steps[2].kind, STEP_FLUSH);
    assert_int_equal(recording.steps[2].covers, 1);
    assert_int_equal(powerloss_durable(&recording, 3), 1);
    bool late_was_lost = false;
    for (uint64_t seed = 0; seed < 50; seed++) {
        assert_succeeds(powerloss_random(&recording, 3, seed, &crashed));
        assert_int_equal(byte_at(crashed, 0), 'e');
        late_was_lost |= byte_at(crashed, 512) != 'l';
        storage_close(crashed);
    }
    assert_true(late_was_lost);
    storage_close(busy.recorder);
    storage_close(busy.memory);
    recording_destroy(&recording);
}

static void *write_and_flush(void *arg)
{
    uint8_t data[100];

    for (unsigned i = 0; i < 100; i++) {
        memset(data, (int)i + 1, sizeof data);
        if (storage_pwrite(arg, data, sizeof data, i % 10 * 50) < 0 ||
            (i % 10 == 0 && storage_flush(arg) < 0))
            return NULL;
    }
    return arg;
}

static void recording_of_threads_replays_to_the_same_file(void **state)
{
    struct recorder_case *c = new_recorder_case(0);
    struct storage *replayed;
    pthread_t threads[4];
    void *ok;

    (void)state;
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_and_flush, c->s), 0);
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(threads[i], &ok);
        assert_ptr_equal(ok, c->s);
    }
    assert_int_equal(recording_nr_steps(&c->recording), 4 * 110);
    assert_succeeds(recording_replay(&c->recording, 4 * 110, &replayed));
    assert_true(same_content(replayed, c->inner));
    storage_close(replayed);
    end_recorder_case(c);
}

/* ---- power loss by chance ---- */

enum { SECTOR = 512, NR_SEEDS = 400 };

/* All seeds' outcomes of losing power now go to check. */
static void for_all_seeds(struct recorder_case *c,
                          void (*check)(struct storage *s, uint64_t seed, void *opaque), void *opaque)
{
    size_t nr_steps = recording_nr_steps(&c->recording);

    for (uint64_t seed = 0; seed < NR_SEEDS; seed++) {
        struct storage *s;

        assert_succeeds(powerloss_random(&c->recording, nr_steps, seed, &s));
        check(s, seed, opaque);
        storage_close(s);
    }
}

static void check_flushed(struct storage *s, uint64_t seed, void *opaque)
{
    (void)seed;
    (void)opaque;
    assert_int_equal(byte_at(s, 0), 0xbb);
    for (uint64_t i = 1000; i < 3000; i += 100)
        assert_int_equal(byte_at(s, i), 1);
    assert_int_equal(byte_at(s, 5000), 0);
    assert_true(length_of(s) >= 6000);
}

static void what_was_flushed_is_there(void **state)
{
    struct recorder_case *c = new_recorder_case(10000);

    (void)state;
    put(c->s, 1000, 2000, 1);
    assert_succeeds(storage_punch(c->s, 4500, 1000));
    assert_succeeds(storage_truncate(c->s, 6000));
    assert_succeeds(storage_flush(c->s));
    put(c->s, 7000, 4000, 2);
    for_all_seeds(c, check_flushed, NULL);
    end_recorder_case(c);
}

/* What came of five sectors of which the first three were written with 1, the last three with 2, over 0xbb.
 */
struct sector_outcomes {
    bool kept, dropped, torn, older_won;
};

static void check_sectors(struct storage *s, uint64_t seed, void *opaque)
{
    static const char allowed[5][3] = {"\xbb\1\1", "\xbb\1\1", "\xbb\1\2", "\xbb\2\2", "\xbb\2\2"};
    struct sector_outcomes *seen = opaque;
    uint8_t buf[6 * SECTOR], first[5];

    (void)seed;
    assert_succeeds(storage_pread(s, buf, sizeof buf, 0));
    for (int i = 0; i < 5; i++) {
        first[i] = buf[i * SECTOR];
        assert_non_null(memchr(allowed[i], first[i], 3));
        for (int j = 0; j < SECTOR; j++) /* sectors are never torn */
            assert_int_equal(buf[i * SECTOR + j], first[i]);
    }
    assert_int_equal(buf[5 * SECTOR], 0xbb);
    assert_int_equal(length_of(s), sizeof buf);
    seen->kept |= memcmp(first, "\1\1\2\2\2", 5) == 0;
    seen->dropped |= memcmp(first, "\xbb\xbb\xbb\xbb\xbb", 5) == 0;
    seen->torn |= memcmp(first, "\1\xbb\xbb\xbb\xbb", 5) == 0;
    seen->older_won |= memcmp(first, "\1\1\1\2\2", 5) == 0;
}

static void unflushed_sectors_are_old_or_new(void **state)
{
    struct recorder_case *c = new_recorder_case(6 * SECTOR);
    struct sector_outcomes seen = {0};

    (void)state;
    assert_succeeds(storage_flush(c->s));
    put(c->s, 0, 3 * SECTOR, 1);
    put(c->s, 2 * SECTOR, 3 * SECTOR, 2);
    for_all_seeds(c, check_sectors, &seen);
    assert_true(seen.kept && seen.dropped && seen.torn && seen.older_won);
    end_recorder_case(c);
}

/* A write that begins and ends inside sectors: its parts of them are whole. */
static void check_unaligned(struct storage *s, uint64_t seed, void *opaque)
{
    static const struct {
        int start, end;
    } parts[] = {{500, 512}, {512, 1024}, {1024, 1030}};
    uint8_t buf[2048];
    unsigned *seen = opaque, state = 0;

    (void)seed;
    assert_succeeds(storage_pread(s, buf, sizeof buf, 0));
    assert_int_equal(buf[499], 0xbb);
    assert_int_equal(buf[1030], 0xbb);
    for (int i = 0; i < 3; i++) {
        for (int j = parts[i].start; j < parts[i].end; j++)
            assert_int_equal(buf[j], buf[parts[i].start]);
        state |= (buf[parts[i].start] == 1) << i;
    }
    *seen |= 1u << state;
}

static void unaligned_writes_tear_at_sectors(void **state)
{
    struct recorder_case *c = new_recorder_case(2048);
    unsigned seen = 0; /* bit n: the subset n of the three parts was seen */

    (void)state;
    put(c->s, 500, 530, 1);
    for_all_seeds(c, check_unaligned, &seen);
    assert_int_equal(seen, 0xff);
    end_recorder_case(c);
}

static void check_order(struct storage *s, uint64_t seed, void *opaque)
{
    unsigned *seen = opaque;
    uint8_t a = byte_at(s, 50), both = byte_at(s, 150), b = byte_at(s, 250);

    (void)seed;
    if (a == 1 && b == 2)
        *seen |= both == 1 ? 1 : 2;
}

/* Both steps are there and the first is on top: that needs another order, not only dropped pieces. */
static void steps_take_effect_in_any_order(void **state)
{
    struct recorder_case *c = new_recorder_case(SECTOR);
    unsigned seen = 0;

    (void)state;
    put(c->s, 0, 200, 1);
    put(c->s, 100, 200, 2);
    for_all_seeds(c, check_order, &seen);
    assert_int_equal(seen, 3);
    end_recorder_case(c);
}

/* Each sector of the file is as it was or has the content that the write had for this very place. */
static void check_places(struct storage *s)
{
    for (unsigned i = 0; i < 32 * SECTOR; i += 7) {
        uint8_t byte = byte_at(s, i);

        assert_true(byte == 0xbb || byte == (i >= 100 ? (uint8_t)(i / SECTOR + 1) : 0xbb));
    }
}

static void check_places_of_seed(struct storage *s, uint64_t seed, void *opaque)
{
    (void)seed;
    (void)opaque;
    check_places(s);
}

static int check_places_of_state(void *opaque, uint64_t state_no, struct storage *s)
{
    (void)opaque;
    (void)state_no;
    check_places(s);
    storage_close(s);
    return 0;
}

static void pieces_of_a_write_stay_in_their_place(void **state)
{
    struct recorder_case *c = new_recorder_case(32 * SECTOR);
    uint8_t data[32 * SECTOR];

    (void)state;
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i / SECTOR + 1);
    assert_succeeds(storage_pwrite(c->s, data + 100, sizeof data - 100, 100));
    for_all_seeds(c, check_places_of_seed, NULL);
    assert_succeeds(powerloss_enumerate(&c->recording, 1, POWERLOSS_4KIB, 16, check_places_of_state, NULL));
    end_recorder_case(c);
}

static void check_lengths(struct storage *s, uint64_t seed, void *opaque)
{
    unsigned *seen = opaque;
    uint64_t length = length_of(s);

    (void)seed;
    assert_true(length == 1000 || length == 300 || length == 4000);
    *seen |= length == 1000 ? 1 : length == 300 ? 2 : 4;
    assert_int_equal(byte_at(s, 299), 0xbb);
    if (length == 4000)
        assert_int_equal(byte_at(s, 1000), 0);
}

static void truncates_are_kept_or_dropped(void **state)
{
    struct recorder_case *c = new_recorder_case(1000);
    unsigned seen = 0;

    (void)state;
    assert_succeeds(storage_truncate(c->s, 300));
    assert_succeeds(storage_truncate(c->s, 4000));
    for_all_seeds(c, check_lengths, &seen);
    assert_int_equal(seen, 7);
    end_recorder_case(c);
}

static void check_holes(struct storage *s, uint64_t seed, void *opaque)
{
    unsigned *seen = opaque, state = 0;

    (void)seed;
    for (unsigned i = 0; i < 4; i++) {
        uint8_t byte = byte_at(s, i * SECTOR);

        assert_true(byte == 0 || byte == 0xbb);
        state |= (byte == 0) << i;
    }
    seen[state & 3] |= 1; /* the punched two, then the zeroed two */
    seen[state >> 2] |= 2;
}

static void punch_and_zero_can_be_torn(void **state)
{
    struct recorder_case *c = new_recorder_case(4 * SECTOR);
    unsigned seen[4] = {0};

    (void)state;
    assert_succeeds(storage_punch(c->s, 0, 2 * SECTOR));
    assert_succeeds(storage_zero(c->s, 2 * SECTOR, 2 * SECTOR));
    for_all_seeds(c, check_holes, seen);
    for (int i = 0; i < 4; i++)
        assert_int_equal(seen[i], 3);
    end_recorder_case(c);
}

static void check_growth(struct storage *s, uint64_t seed, void *opaque)
{
    unsigned *seen = opaque;
    uint64_t length = length_of(s);

    (void)seed;
    for (uint64_t i = 1000; i < 3000; i += SECTOR)
        assert_true(byte_at(s, i) <= 1);
    *seen |= length == 1000 ? 1 : 0;
    *seen |= length == 3000 && byte_at(s, 2999) == 0 ? 2 : 0;
    *seen |= length == 3000 && byte_at(s, 2999) == 1 ? 4 : 0;
    *seen |= length > 1000 && length < 3000 ? 8 : 0;
}

static void file_can_grow_without_its_data(void **state)
{
    struct recorder_case *c = new_recorder_case(1000);
    unsigned seen = 0;

    (void)state;
    put(c->s, 1000, 2000, 1);
    for_all_seeds(c, check_growth, &seen);
    assert_int_equal(seen, 15);
    end_recorder_case(c);
}

static void huge_punch_is_torn_in_bounded_time(void **state)
{
    struct recorder_case *c = new_recorder_case(100);
    struct storage *s;

    (void)state;
    assert_succeeds(storage_truncate(c->s, INT64_MAX));
    assert_succeeds(storage_punch(c->s, 3, INT64_MAX - 3));
    for (uint64_t seed = 0; seed < 50; seed++) {
        assert_succeeds(powerloss_random(&c->recording, 2, seed, &s));
        assert_int_equal(byte_at(s, 0), 0xbb);
        storage_close(s);
    }
    end_recorder_case(c);
}

static void only_steps_before_the_power_loss_count(void **state)
{
    struct recorder_case *c = new_recorder_case(2 * SECTOR);
    struct storage *s;

    (void)state;
    put(c->s, 0, SECTOR, 1);
    put(c->s, SECTOR, SECTOR, 2);
    assert_succeeds(storage_flush(c->s));
    put(c->s, 0, SECTOR, 3);
    assert_int_equal(powerloss_durable(&c->recording, 0), 0);
    assert_int_equal(powerloss_durable(&c->recording, 2), 0);
    assert_int_equal(powerloss_durable(&c->recording, 3), 2);
    assert_int_equal(powerloss_durable(&c->recording, 4), 2);
    for (uint64_t seed = 0; seed < 100; seed++) {
        assert_succeeds(powerloss_random(&c->recording, 1, seed, &s));
        assert_true(byte_at(s, 0) == 0xbb || byte_at(s, 0) == 1);
        assert_int_equal(byte_at(s, SECTOR), 0xbb);
        storage_close(s);
        assert_succeeds(powerloss_random(&c->recording, 3, seed, &s));
        assert_int_equal(byte_at(s, 0), 1);
        assert_int_equal(byte_at(s, SECTOR), 2);
        storage_close(s);
    }
    end_recorder_case(c);
}

static void seeds_decide_everything(void **state)
{
    struct recorder_case *c = new_recorder_case(50000);
    struct storage *a, *b, *first;
    uint64_t random = 7;
    unsigned nr_different = 0;

    (void)state;
    for (int i = 0; i < 10; i++)
        put(c->s, random_next(&random) % 100000, 5000, i + 1);
    assert_succeeds(powerloss_random(&c->recording, 10, 0, &first));
    for (uint64_t seed = 0; seed < 40; seed++) {
        assert_succeeds(powerloss_random(&c->recording, 10, seed, &a));
        assert_succeeds(powerloss_random(&c->recording, 10, seed, &b));
        assert_true(same_content(a, b));
        nr_different += !same_content(a, first);
        storage_close(a);
        storage_close(b);
    }
    assert_true(nr_different > 20);
    storage_close(first);
    end_recorder_case(c);
}

/* ---- all power losses ---- */

/* What byte each state has at some places. */
struct states {
    const uint64_t *places;
    unsigned nr_places;
    uint64_t nr_states;
    uint64_t stop_at; /* this state ends it */
    uint8_t bytes[64][8];
    uint64_t lengths[64];
};

static int note_state(void *opaque, uint64_t state_no, struct storage *s)
{
    struct states *states = opaque;

    assert_int_equal(state_no, states->nr_states);
    for (unsigned i = 0; i < states->nr_places; i++)
        states->bytes[state_no][i] = byte_at(s, states->places[i]);
    states->lengths[state_no] = length_of(s);
    states->nr_states++;
    storage_close(s);
    return state_no == states->stop_at ? 42 : 0;
}

static void enumerates_every_subset_of_steps(void **state)
{
    struct recorder_case *c = new_recorder_case(100);
    const uint64_t places[] = {0, 10, 20};
    struct states states = {.places = places, .nr_places = 3, .stop_at = 99};

    (void)state;
    put(c->s, 10, 1, 1);
    assert_succeeds(storage_flush(c->s));
    put(c->s, 0, 11, 2);
    assert_succeeds(storage_punch(c->s, 20, 10));
    assert_succeeds(storage_truncate(c->s, 200));
    assert_succeeds(powerloss_enumerate(&c->recording, 5, POWERLOSS_STEPS, 8, note_state, &states));
    assert_int_equal(states.nr_states, 8);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(states.bytes[i][0], i & 1 ? 2 : 0xbb);
        assert_int_equal(states.bytes[i][1], i & 1 ? 2 : 1);
        assert_int_equal(states.bytes[i][2], i & 2 ? 0 : 0xbb);
        assert_int_equal(states.lengths[i], i & 4 ? 200 : 100);
    }
    end_recorder_case(c);
}

static void enumerates_every_subset_of_pages(void **state)
{
    struct recorder_case *c = new_recorder_case(20000);
    const uint64_t places[] = {4000, 4095, 4096, 8191, 8192, 8999, 12288};
    const unsigned piece_of_place[] = {0, 0, 1, 1, 2, 2, 3};
    struct states states = {.places = places, .nr_places = 7, .stop_at = 99};

    (void)state;
    put(c->s, 4000, 5000, 1);                      /* in three pages */
    assert_succeeds(storage_zero(c->s, 12288, 8)); /* in one */
    assert_succeeds(powerloss_enumerate(&c->recording, 2, POWERLOSS_4KIB, 16, note_state, &states));
    assert_int_equal(states.nr_states, 16);
    for (unsigned i = 0; i < 16; i++) {
        for (unsigned j = 0; j < 7; j++) {
            bool there = i >> piece_of_place[j] & 1;

            assert_int_equal(states.bytes[i][j], !there ? 0xbb : j == 6 ? 0 : 1);
        }
    }
    end_recorder_case(c);
}

static void nothing_pending_leaves_one_state(void **state)
{
    struct recorder_case *c = new_recorder_case(100);
    const uint64_t places[] = {0};
    struct states states = {.places = places, .nr_places = 1, .stop_at = 99};

    (void)state;
    put(c->s, 0, 10, 1);
    assert_succeeds(storage_flush(c->s));
    assert_succeeds(powerloss_enumerate(&c->recording, 2, POWERLOSS_4KIB, 1, note_state, &states));
    assert_int_equal(states.nr_states, 1);
    assert_int_equal(states.bytes[0][0], 1);
    end_recorder_case(c);
}

static void too_many_states_are_refused_beforehand(void **state)
{
    struct recorder_case *c = new_recorder_case(0);
    struct states states = {.stop_at = 99};

    (void)state;
    put(c->s, 0, 4 * 4096, 1);
    assert_fails(powerloss_enumerate(&c->recording, 1, POWERLOSS_4KIB, 15, note_state, &states), -E2BIG,
                 "more than 15 states");
    put(c->s, 0, 100 * 4096, 1);
    assert_fails(powerloss_enumerate(&c->recording, 2, POWERLOSS_4KIB, UINT64_MAX, note_state, &states),
                 -E2BIG, "more than");
    assert_succeeds(storage_punch(c->s, 0, INT64_MAX));
    assert_fails(powerloss_enumerate(&c->recording, 3, POWERLOSS_4KIB, UINT64_MAX, note_state, &states),
                 -E2BIG, "more than");
    assert_int_equal(states.nr_states, 0);
    assert_succeeds(powerloss_enumerate(&c->recording, 3, POWERLOSS_STEPS, 8, note_state, &states));
    assert_int_equal(states.nr_states, 8);
    end_recorder_case(c);
}

static void callee_can_end_the_enumeration(void **state)
{
    struct recorder_case *c = new_recorder_case(0);
    struct states states = {.stop_at = 2};

    (void)state;
    put(c->s, 0, 3 * 4096, 1);
    assert_int_equal(powerloss_enumerate(&c->recording, 1, POWERLOSS_4KIB, 8, note_state, &states), 42);
    assert_int_equal(states.nr_states, 3);
    end_recorder_case(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unarmed_fault_only_counts),
        cmocka_unit_test(nth_operation_of_each_kind_fails_once),
        cmocka_unit_test(forever_means_from_then_on),
        cmocka_unit_test(any_counts_all_kinds_together),
        cmocka_unit_test(failing_write_may_have_begun),
        cmocka_unit_test(short_read_ends_early),
        cmocka_unit_test(fault_loop_visits_every_operation),
        cmocka_unit_test(replay_gives_the_file_at_every_step),
        cmocka_unit_test(recorder_keeps_what_was_written_not_where),
        cmocka_unit_test(failed_operations_are_not_recorded),
        cmocka_unit_test(flush_covers_only_what_had_returned_before),
        cmocka_unit_test(recording_of_threads_replays_to_the_same_file),
        cmocka_unit_test(what_was_flushed_is_there),
        cmocka_unit_test(unflushed_sectors_are_old_or_new),
        cmocka_unit_test(unaligned_writes_tear_at_sectors),
        cmocka_unit_test(steps_take_effect_in_any_order),
        cmocka_unit_test(pieces_of_a_write_stay_in_their_place),
        cmocka_unit_test(truncates_are_kept_or_dropped),
        cmocka_unit_test(punch_and_zero_can_be_torn),
        cmocka_unit_test(file_can_grow_without_its_data),
        cmocka_unit_test(huge_punch_is_torn_in_bounded_time),
        cmocka_unit_test(only_steps_before_the_power_loss_count),
        cmocka_unit_test(seeds_decide_everything),
        cmocka_unit_test(enumerates_every_subset_of_steps),
        cmocka_unit_test(enumerates_every_subset_of_pages),
        cmocka_unit_test(nothing_pending_leaves_one_state),
        cmocka_unit_test(too_many_states_are_refused_beforehand),
        cmocka_unit_test(callee_can_end_the_enumeration),
    };
    return cmocka_run_group_tests_name("storage doubles", tests, NULL, NULL);
}
