/* SPDX-License-Identifier: MIT */
/* Reading a chain (format section 5.6, contracts I3 and H2), against chain-model.c. */
#include "image-test.h"

#include <limits.h>

#include "chain-model.h"

static uint64_t below(uint64_t *random, uint64_t limit)
{
    return random_next(random) % limit;
}

/* Exactly the bytes asked for, and not one byte beside the buffer (ASan sees that). */
static void check_read(const struct chain_model *m, uint64_t guest_offset, uint64_t count)
{
    uint8_t *got = exact_bytes(count);

    memset(got, 0xee, count);
    assert_succeeds(disk_pread(m->disk, got, count, guest_offset));
    assert_memory_equal(got, m->bytes + guest_offset, count);
    free(got);
}

/* Around every place where something else begins: another layer, kind or place. */
static void check_borders(const struct chain_model *m)
{
    for (uint64_t s = 1; s < m->size / MODEL_SECTOR; s++) {
        const struct model_sector *a = &m->sectors[s - 1], *b = &m->sectors[s];
        uint64_t border = s * MODEL_SECTOR;
        if (a->depth == b->depth && a->flags == b->flags && s % 2048 != 0)
            continue;
        check_read(m, border - 1, 2);
        check_read(m, border - 3, 3);
        check_read(m, border, 1);
        check_read(m, border - 200, min_u64(777, m->size - border + 200));
    }
}

static void random_chains_read_as_the_model_says(void **state)
{
    uint64_t random = 0x5ead;

    (void)state;
    for (unsigned no = 0; no < 20; no++) {
        struct chain_model m;
        const struct chain_model_options o = {.nr_layers = no < 12 ? no + 1 : 2,
                                              .sector_size = no % 4 ? 512 : 4096,
                                              .max_bytes = MIB(3) + 512 * 8};
        chain_model_make(&m, &o, &random);
        check_read(&m, 0, m.size);
        check_borders(&m);
        for (unsigned i = 0; i < 60; i++) {
            uint64_t at = below(&random, m.size);
            check_read(&m, at, below(&random, i % 3 ? min_u64(m.size - at, 9000) : m.size - at) + (i % 2));
        }
        disk_close(m.disk);
        chain_model_free(&m);
    }
}

/* The request in buffers of all sizes, empty ones among them. */
static void check_split(const struct chain_model *m, uint64_t *random, uint64_t guest_offset, uint64_t count,
                        uint64_t longest)
{
    struct iovec *iov = exact_bytes((count + 200) * sizeof *iov);
    uint64_t done = 0;
    int nr = 0;

    while (done < count) {
        uint64_t n = min_u64(below(random, longest + 1), count - done);
        iov[nr++] = (struct iovec){exact_bytes(n), n};
        done += n;
        if (n == 0 && nr > 100 && below(random, 2))
            break;
    }
    for (int i = 0; i < 3; i++)
        iov[nr++] = (struct iovec){NULL, 0};
    assert_succeeds(disk_preadv(m->disk, iov, nr, guest_offset));
    for (int i = 0; i < nr; i++) {
        if (iov[i].iov_len > 0)
            assert_memory_equal(iov[i].iov_base, m->bytes + guest_offset, iov[i].iov_len);
        guest_offset += iov[i].iov_len;
        free(iov[i].iov_base);
    }
    free(iov);
}

static void requests_may_come_in_many_buffers(void **state)
{
    uint64_t random = 0x5eae;

    (void)state;
    for (unsigned no = 0; no < 6; no++) {
        struct chain_model m;
        const struct chain_model_options o = {.nr_layers = no + 1, .sector_size = 512, .max_bytes = MIB(2)};
        chain_model_make(&m, &o, &random);
        for (unsigned i = 0; i < 40; i++) {
            uint64_t at = below(&random, m.size);
            check_split(&m, &random, at, below(&random, min_u64(m.size - at, 40000)) + 1, i % 2 ? 9 : 3000);
        }
        check_split(&m, &random, 5, MIB(1) - 3, 100); /* more buffers than any system call takes */
        disk_close(m.disk);
        chain_model_free(&m);
    }
}

/* A block that was read once is remembered; its neighbours and the rest must not be taken for it. */
static void remembered_blocks_are_the_right_ones(void **state)
{
    struct image_plan p;
    struct vhdx_disk *d = exact_bytes(sizeof *d);
    const uint64_t nr_blocks = 8192; /* four times what is remembered at once */
    uint64_t random = 99, word;

    (void)state;
    image_plan_init(&p, nr_blocks << 20, MIB(1), 512, NULL, 0);
    const uint64_t first = image_plan_blocks_offset(&p);
    p.file_length = first + (nr_blocks << 20);
    struct storage *s = build_memory_image(&p);
    for (uint64_t b = 0; b < nr_blocks; b++) {
        uint64_t place = first + (b * 5 % nr_blocks << 20);
        if (b % 17 == 0) /* one word at the end of each of these blocks */
            build_number(s, place + MIB(1) - 8, b + 1, 8);
        build_block(&p, s, b, b % 17 == 0 ? PAYLOAD_FULLY_PRESENT : 0, b % 17 == 0 ? place : 0);
    }
    d->layers = exact_bytes(sizeof *d->layers);
    d->layers[0] = (struct layer){.img = MUST_OPEN(s, 0), .path = strdup("x"), .size = p.values.virtual_size};
    d->nr_layers = 1;
    d->size = p.values.virtual_size;
    for (unsigned i = 0; i < 30000; i++) {
        uint64_t b = i % 4 ? below(&random, nr_blocks / 17) * 17 + i % 2 : i / 4 % nr_blocks;
        assert_succeeds(disk_pread(d, &word, 8, (b << 20) + MIB(1) - 8));
        assert_int_equal(word, b % 17 == 0 ? b + 1 : 0);
        if (b + 1 < nr_blocks) { /* over the end of the block */
            assert_succeeds(disk_pread(d, &word, 8, (b << 20) + MIB(1) - 4));
            assert_int_equal(word, 0);
        }
    }
    disk_close(d);
    storage_close(s);
}

static void ranges_must_lie_inside_the_disk(void **state)
{
    uint64_t random = 0x5eaf;
    struct chain_model m;
    const struct chain_model_options o = {
        .nr_layers = 2, .sector_size = 512, .max_bytes = MIB(2), .same_size = true};
    uint8_t buf[16];
    struct iovec huge[] = {{buf, SSIZE_MAX}, {buf, 1}}, wrapping[] = {{buf, SIZE_MAX}, {buf, 2}};

    (void)state;
    chain_model_make(&m, &o, &random);
    check_read(&m, m.size - 16, 16);
    for (unsigned i = 0; i < 2; i++) { /* the same when the block is remembered */
        assert_fails(disk_pread(m.disk, buf, 16, m.size - 15), -EINVAL, "2097152 bytes");
        assert_fails(disk_pread(m.disk, buf, 1, m.size), -EINVAL, "beyond the end");
        assert_fails(disk_pread(m.disk, buf, 1, UINT64_MAX), -EINVAL, "beyond the end");
        assert_fails(disk_pread(m.disk, buf, 16, UINT64_MAX - 8), -EINVAL, "beyond the end");
        assert_fails(disk_pread(m.disk, buf, SSIZE_MAX, 1), -EINVAL, "beyond the end");
        assert_fails(disk_pread(m.disk, buf, SIZE_MAX, 1), -EINVAL, "longer than");
        assert_fails(disk_preadv(m.disk, huge, 2, 0), -EINVAL, "longer than");
        assert_fails(disk_preadv(m.disk, wrapping, 2, 0), -EINVAL, "longer than");
        for (uint64_t at = 0; at < m.size; at += MIB(1))
            check_read(&m, at, 16);
    }
    assert_succeeds(disk_pread(m.disk, NULL, 0, 0));
    assert_succeeds(disk_pread(m.disk, NULL, 0, m.size));
    assert_succeeds(disk_preadv(m.disk, NULL, 0, 0));
    assert_int_equal(disk_pread(m.disk, NULL, 0, m.size + 1), -EINVAL);
    disk_close(m.disk);
    chain_model_free(&m);
}

static void extents_are_read_from_any_place_in_them(void **state)
{
    uint64_t random = 0x5eb0, nr = 0;
    uint8_t *buf = exact_bytes(MIB(6));

    (void)state;
    for (unsigned no = 0; no < 4; no++) {
        const struct chain_model_options o = {.nr_layers = 1 + no, .sector_size = 512, .max_bytes = MIB(6)};
        struct chain_model m;
        struct extent_cursor c;
        struct vhdx_extent e;
        chain_model_make(&m, &o, &random);
        assert_succeeds(extent_cursor_init(&c, m.disk, 0, m.size));
        while (extent_cursor_next(&c, UINT64_MAX, &e) > 0) {
            for (unsigned i = 0; (e.flags & VHDX_EXTENT_DATA) && i < 4; i++) {
                uint64_t from = i == 0 ? 0 : below(&random, e.length),
                         count = below(&random, e.length - from + 1);
                assert_succeeds(extent_pread(m.disk, &e, from, buf, count));
                assert_memory_equal(buf, m.bytes + e.guest_offset + from, count);
                nr++;
            }
        }
        extent_cursor_done(&c);
        disk_close(m.disk);
        chain_model_free(&m);
    }
    assert_true(nr > 20);
    free(buf);
}

/* A dirty log in the child: its pages may lie in payload that was given away since (4.8). */
static void payload_is_read_as_it_is_after_replay(void **state)
{
    struct image_plan p;
    struct vhdx_disk *d = exact_bytes(sizeof *d);
    uint8_t page[PAGE_BYTES], expected[4 * PAGE_BYTES], got[4 * PAGE_BYTES];

    (void)state;
    image_plan_init(&p, MIB(4), MIB(1), 512, NULL, 0);
    p.header.log_guid = (guid){"log of the test"};
    p.file_length = MIB(6);
    struct storage *s = build_memory_image(&p);
    build_block(&p, s, 1, PAYLOAD_FULLY_PRESENT, MIB(4));
    build_block(&p, s, 2, PAYLOAD_FULLY_PRESENT, MIB(5));
    build_fill(s, MIB(4), 0x44, MIB(2));
    memset(page, 0x99, sizeof page);
    const struct build_change changes[] = {{.file_offset = MIB(5) - PAGE_BYTES, .page = page},
                                           {.file_offset = MIB(5), .zero_bytes = PAGE_BYTES}};
    build_log_entry(s, &p.header,
                    &(struct build_entry){.sequence_no = 5,
                                          .log_guid = p.header.log_guid,
                                          .last = MIB(6),
                                          .changes = changes,
                                          .nr_changes = 2});
    memset(expected, 0x44, sizeof expected);
    memset(expected + PAGE_BYTES, 0x99, PAGE_BYTES);
    memset(expected + 2 * PAGE_BYTES, 0, PAGE_BYTES);
    d->layers = exact_bytes(sizeof *d->layers);
    d->layers[0] = (struct layer){.img = MUST_OPEN(s, 0), .path = strdup("x"), .size = MIB(4)};
    d->nr_layers = 1;
    d->size = MIB(4);
    for (unsigned i = 0; i < 3; i++) { /* through the extents first, then by what is remembered */
        assert_succeeds(disk_pread(d, got, sizeof got, MIB(2) - 2 * PAGE_BYTES));
        assert_memory_equal(got, expected, sizeof got);
        for (size_t at = 0; at < sizeof got; at += 1000) {
            size_t n = min_u64(1000, sizeof got - at);
            assert_succeeds(disk_pread(d, got, n, MIB(2) - 2 * PAGE_BYTES + at));
            assert_memory_equal(got, expected + at, n);
        }
    }
    disk_close(d);
    storage_close(s);
}

static void errors_of_the_file_come_through(void **state)
{
    struct image_plan p;
    struct vhdx_disk *d = exact_bytes(sizeof *d);
    uint8_t buf[4096];

    (void)state;
    image_plan_init(&p, MIB(4), MIB(1), 512, NULL, 0);
    p.file_length = MIB(6);
    struct storage *s = build_memory_image(&p);
    build_block(&p, s, 1, PAYLOAD_FULLY_PRESENT, MIB(4));
    d->layers = exact_bytes(sizeof *d->layers);
    d->layers[0] = (struct layer){.img = MUST_OPEN(s, 0), .path = strdup("x"), .size = MIB(4)};
    d->nr_layers = 1;
    d->size = MIB(4);
    for (unsigned i = 0; i < 2; i++) {
        fault_arm(&test_fault, &(struct fault_plan){.kind = FAULT_READ, .nth = 1, .error = -EIO});
        assert_int_equal(disk_pread(d, buf, sizeof buf, MIB(1)), -EIO);
        fault_arm(&test_fault, NULL);
        assert_succeeds(disk_pread(d, buf, sizeof buf, MIB(1)));
    }
    assert_succeeds(storage_truncate(s, MIB(4) + 100));
    assert_fails(disk_pread(d, buf, sizeof buf, MIB(1)), VHDX_E_TRUNCATED, "shrank");
    assert_succeeds(disk_pread(d, buf, 100, MIB(1)));
    disk_close(d);
    storage_close(s);
}

static void raw_disks_are_read_with_their_holes(void **state)
{
    struct storage *s;
    struct vhdx_disk *d = exact_bytes(sizeof *d);
    uint8_t *expected = exact_bytes(MIB(1) + 100), *got = exact_bytes(MIB(1) + 100);

    (void)state;
    assert_succeeds(storage_memory_new(NULL, 0, &s));
    assert_succeeds(storage_truncate(s, MIB(1) + 100)); /* no multiple of anything */
    memset(expected + KIB(300), 0x31, KIB(50));
    build_bytes(s, KIB(300), expected + KIB(300), KIB(50));
    d->layers = exact_bytes(sizeof *d->layers);
    d->layers[0] = (struct layer){.raw = s, .path = strdup("raw"), .size = MIB(1) + 100};
    d->nr_layers = 1;
    d->size = MIB(1) + 100;
    memset(got, 0xee, MIB(1) + 100);
    assert_succeeds(disk_pread(d, got, MIB(1) + 100, 0));
    assert_memory_equal(got, expected, MIB(1) + 100);
    assert_succeeds(disk_pread(d, got, 1, MIB(1) + 99));
    assert_int_equal(disk_pread(d, got, 2, MIB(1) + 99), -EINVAL);
    assert_succeeds(storage_truncate(s, KIB(340)));
    assert_fails(disk_pread(d, got, KIB(20), KIB(330)), VHDX_E_TRUNCATED, "shrank");
    assert_fails(disk_pread(d, got, 1, KIB(900)), VHDX_E_TRUNCATED, "shrank");
    disk_close(d);
    free(expected);
    free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_chains_read_as_the_model_says),
        cmocka_unit_test(requests_may_come_in_many_buffers),
        cmocka_unit_test(remembered_blocks_are_the_right_ones),
        cmocka_unit_test(ranges_must_lie_inside_the_disk),
        cmocka_unit_test(extents_are_read_from_any_place_in_them),
        cmocka_unit_test(payload_is_read_as_it_is_after_replay),
        cmocka_unit_test(errors_of_the_file_come_through),
        cmocka_unit_test(raw_disks_are_read_with_their_holes),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
