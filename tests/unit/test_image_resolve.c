/* SPDX-License-Identifier: MIT */
/* From guest offsets to runs (format sections 5.2 to 5.6 and 6). */
#include "image-test.h"

static const char *const locator[][2] = {
    {"relative_path", ".\\parent.vhdx"},
    {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
};

enum { PRESENT = PAYLOAD_FULLY_PRESENT, PARTIAL = PAYLOAD_PARTIALLY_PRESENT };

static struct image_plan plan(uint64_t virtual_size, uint32_t block_size, uint32_t sector_size,
                              bool has_parent)
{
    struct image_plan p;

    image_plan_init(&p, virtual_size, block_size, sector_size, has_parent ? locator : NULL,
                    has_parent ? ARRAY_LENGTH(locator) : 0);
    p.file_length = image_plan_blocks_offset(&p) + MIB(64);
    return p;
}

static void expect_run(struct image *img, uint64_t guest_offset, uint64_t max_length, enum run_kind kind,
                       bool present, uint64_t length, uint64_t file_offset, int line)
{
    struct run run;

    memset(&run, 0xa5, sizeof run);
    expect_success(image_resolve(img, guest_offset, max_length, &run), __FILE__, line);
    if (run.kind != kind || run.present != present || run.length != length ||
        (kind == RUN_DATA && run.file_offset != file_offset)) {
        print_error("line %d: kind %d, present %d, length 0x%llx, at 0x%llx\n", line, (int)run.kind,
                    run.present, (unsigned long long)run.length, (unsigned long long)run.file_offset);
        _fail(__FILE__, line);
    }
}

#define EXPECT_RUN(img, guest, max, kind, present, length, file_offset)                                      \
    expect_run((img), (guest), (max), (kind), (present), (length), (file_offset), __LINE__)

/* Section 5.4, each state in each type of image. */
static void every_state_in_every_type(void **state)
{
    static const struct {
        uint64_t raw;
        enum run_kind kind, kind_in_child;
        bool present;
    } cases[] = {
        {0, RUN_ZERO, RUN_PARENT, false},
        {MIB(9) | 0, RUN_ZERO, RUN_PARENT, false}, /* the offset is ignored */
        {1, RUN_ZERO, RUN_ZERO, true},
        {2, RUN_ZERO, RUN_ZERO, true},
        {MIB(9) | 2, RUN_ZERO, RUN_ZERO, true},
        {3, RUN_ZERO, RUN_ZERO, true},
        {MIB(6) | 1, RUN_ZERO, RUN_ZERO, true}, /* soft anchors */
        {MIB(6) | 3, RUN_ZERO, RUN_ZERO, true},
        {MIB(6) | PRESENT, RUN_DATA, RUN_DATA, true},
    };

    (void)state;
    for (unsigned type = 0; type < 3; type++) { /* dynamic, fixed, differencing */
        for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
            struct image_plan p = plan(MIB(8), MIB(2), 512, type == 2);
            p.values.parameter_flags |= type == 1 ? PARAMETER_LEAVE_ALLOCATED : 0;
            struct storage *s = build_memory_image(&p);
            build_block(&p, s, 0, PAYLOAD_ZERO, 0); /* neighbours of another kind, or not joined */
            build_block(&p, s, 2, PRESENT, MIB(20));
            build_number(s, p.bat_offset + 8, cases[i].raw, 8);
            struct image *img = MUST_OPEN(s, 0);
            enum run_kind kind = type == 2 ? cases[i].kind_in_child : cases[i].kind;
            EXPECT_RUN(img, MIB(2), MIB(2), kind, cases[i].present, MIB(2), MIB(6));
            EXPECT_RUN(img, MIB(2), MIB(4), kind, cases[i].present, MIB(2), MIB(6));
            EXPECT_RUN(img, MIB(3) + 7, 100, kind, cases[i].present, 100, MIB(7) + 7);
            EXPECT_RUN(img, MIB(4) - 1, MIB(4), kind, cases[i].present, 1, MIB(8) - 1);
            image_close(img);
            storage_close(s);
        }
    }
}

static void neighbours_of_one_kind_are_one_run(void **state)
{
    struct image_plan p = plan(MIB(32), MIB(2), 512, false);
    struct storage *s = build_memory_image(&p);

    (void)state;
    build_block(&p, s, 2, PRESENT, MIB(10)); /* three in a row, the next is elsewhere */
    build_block(&p, s, 3, PRESENT, MIB(12));
    build_block(&p, s, 4, PRESENT, MIB(14));
    build_block(&p, s, 5, PRESENT, MIB(18));
    build_block(&p, s, 6, PAYLOAD_UNMAPPED, MIB(20)); /* behind it in the file, but no data */
    build_block(&p, s, 7, PAYLOAD_ZERO, 0);
    build_block(&p, s, 8, PAYLOAD_UNDEFINED, 0);
    struct image *img = MUST_OPEN(s, 0);
    EXPECT_RUN(img, 0, MIB(32), RUN_ZERO, false, MIB(4), 0);
    EXPECT_RUN(img, MIB(4) + 5, MIB(28) - 5, RUN_DATA, true, MIB(6) - 5, MIB(10) + 5);
    EXPECT_RUN(img, MIB(4) + 5, MIB(5), RUN_DATA, true, MIB(5), MIB(10) + 5);
    EXPECT_RUN(img, MIB(10), MIB(22), RUN_DATA, true, MIB(2), MIB(18));
    EXPECT_RUN(img, MIB(12), MIB(20), RUN_ZERO, true, MIB(6),
               0); /* defined zeros do not join undefined ones */
    EXPECT_RUN(img, MIB(18), MIB(14), RUN_ZERO, false, MIB(14), 0);
    EXPECT_RUN(img, MIB(32) - 1, 1, RUN_ZERO, false, 1, 0);
    image_close(img);
    storage_close(s);
}

/* The entry of the first chunk's bitmap lies between blocks 2047 and 2048 (4 GiB). */
static void chunks_are_interleaved_with_bitmap_entries(void **state)
{
    for (int has_parent = 0; has_parent < 2; has_parent++) {
        struct image_plan p = plan(GIB(9), MIB(2), 512, has_parent);
        struct storage *s = build_memory_image(&p);
        const uint64_t at = image_plan_blocks_offset(&p);
        (void)state;
        build_block(&p, s, 2047, PRESENT, at);
        build_block(&p, s, 2048, PRESENT, at + MIB(2));
        build_block(&p, s, 2560, PRESENT, at + MIB(4)); /* the example of 5.2: entry 2561 */
        build_block(&p, s, 4607, PRESENT, at + MIB(6)); /* the last one */
        build_bitmap(&p, s, 0, BITMAP_PRESENT, at + MIB(8));
        uint64_t entry;
        assert_succeeds(storage_pread(s, &entry, 8, p.bat_offset + 2561 * 8));
        assert_int_equal(entry, (at + MIB(4)) | PRESENT);
        struct image *img = MUST_OPEN(s, 0);
        enum run_kind none = has_parent ? RUN_PARENT : RUN_ZERO;
        EXPECT_RUN(img, GIB(4) - MIB(2), GIB(1), RUN_DATA, true, MIB(4), at);
        EXPECT_RUN(img, GIB(4) - 1, 2, RUN_DATA, true, 2, at + MIB(2) - 1);
        EXPECT_RUN(img, UINT64_C(5368712704), 4096, RUN_DATA, true, 4096, at + MIB(4) + 3584);
        EXPECT_RUN(img, GIB(9) - MIB(2), MIB(2), RUN_DATA, true, MIB(2), at + MIB(6));
        EXPECT_RUN(img, GIB(9) - MIB(3), MIB(1), none, false, MIB(1), 0);
        image_close(img);
        storage_close(s);
    }
}

/* With blocks of 256 MiB every 17th entry is a bitmap's: runs go on behind it, whatever it holds. */
static void runs_go_on_behind_bitmap_entries(void **state)
{
    const uint64_t block = MIB(256);

    (void)state;
    for (int has_parent = 0; has_parent < 2; has_parent++) {
        struct image_plan p = plan(TIB(1), (uint32_t)block, 512, has_parent);
        const uint64_t at = image_plan_blocks_offset(&p);
        p.file_length = at + 100 * block + MIB(10);
        struct storage *s = build_memory_image(&p);
        for (uint64_t i = 0; i < 100; i++)
            build_block(&p, s, 300 + i, PRESENT, at + i * block);
        for (uint64_t i = 0; i < 50; i++)
            build_block(&p, s, 400 + i, PAYLOAD_ZERO, 0);
        for (uint64_t chunk_no = 18; chunk_no < 28;
             chunk_no++) /* other programs leave payload entries there (10.3) */
            build_bitmap(&p, s, chunk_no, BITMAP_PRESENT, at + 100 * block + MIB(chunk_no - 18));
        struct image *img = MUST_OPEN(s, 0);
        EXPECT_RUN(img, 300 * block, 700 * block, RUN_DATA, true, 100 * block, at);
        EXPECT_RUN(img, 303 * block, 50 * block, RUN_DATA, true, 50 * block, at + 3 * block);
        EXPECT_RUN(img, 400 * block, 600 * block, RUN_ZERO, true, 50 * block, 0);
        EXPECT_RUN(img, 0, 900 * block, has_parent ? RUN_PARENT : RUN_ZERO, false, 300 * block, 0);
        image_close(img);
        storage_close(s);
    }
}

/* Walk [0, end) and count the calls and what they found. */
static uint64_t walk(struct image *img, uint64_t end, uint64_t bytes_of_kind[3])
{
    uint64_t calls = 0;
    struct run run;

    for (uint64_t at = 0; at < end; at += run.length) {
        assert_succeeds(image_resolve(img, at, end - at, &run));
        assert_true(run.length > 0 && run.length <= end - at);
        bytes_of_kind[run.kind] += run.length;
        calls++;
    }
    return calls;
}

/* 64 TiB in blocks of 1 MiB have a table of 513 MiB, of which hardly anything exists. */
static void holes_in_the_table_are_passed_over(void **state)
{
    for (int has_parent = 0; has_parent < 2; has_parent++) {
        struct image_plan p = plan(TIB(64), MIB(1), 512, has_parent);
        struct storage *s = build_memory_image(&p);
        const uint64_t at = image_plan_blocks_offset(&p), far = UINT64_C(40000000);
        uint64_t bytes[3] = {0};
        (void)state;
        build_block(&p, s, far, PRESENT, at);
        build_block(&p, s, (UINT64_C(1) << 26) - 1, PRESENT, at + MIB(1));
        struct image *img = MUST_OPEN(s, 0);
        fault_arm(&test_fault, NULL);
        assert_true(walk(img, TIB(64), bytes) < 100);
        assert_true(fault_count(&test_fault, FAULT_READ) < 100);
        assert_int_equal(bytes[RUN_DATA], MIB(2));
        assert_int_equal(bytes[has_parent ? RUN_PARENT : RUN_ZERO], TIB(64) - MIB(2));
        EXPECT_RUN(img, far << 20, MIB(2), RUN_DATA, true, MIB(1), at);
        image_close(img);
        storage_close(s);
    }
    struct image_plan p = plan(TIB(64), MIB(1), 4096, true); /* nothing at all: one call */
    struct storage *s = build_memory_image(&p);
    struct image *img = MUST_OPEN(s, 0);
    EXPECT_RUN(img, 12345, TIB(64) - 12345, RUN_PARENT, false, TIB(64) - 12345, 0);
    image_close(img);
    storage_close(s);
}

/* Blocks that are zeros, and then a table that does not exist: those behind are not present, which is another
 * thing. */
static void a_hole_does_not_go_on_with_what_is_before_it(void **state)
{
    for (unsigned kind = PAYLOAD_ZERO; kind <= PRESENT; kind += PRESENT - PAYLOAD_ZERO) {
        struct image_plan p = plan(GIB(64), MIB(2), 512, false);
        struct storage *s = build_memory_image(&p);
        const uint64_t at = image_plan_blocks_offset(&p),
                       last = 8191 - 3; /* entry 8191, with which a stored piece ends */
        (void)state;
        for (uint64_t i = 0; i < 5; i++)
            build_block(&p, s, last - i, kind, kind == PRESENT ? at + MIB(2) * (10 - i) : 0);
        struct image *img = MUST_OPEN(s, 0);
        EXPECT_RUN(img, (last - 4) << 21, GIB(40), kind == PRESENT ? RUN_DATA : RUN_ZERO, true, MIB(10),
                   at + MIB(12));
        EXPECT_RUN(img, (last + 1) << 21, GIB(20), RUN_ZERO, false, GIB(20), 0);
        image_close(img);
        storage_close(s);
    }
}

/* One call looks at no more than a BAT page, so a caller can always stop soon. */
static void one_call_is_bounded(void **state)
{
    struct image_plan p = plan(GIB(64), MIB(1), 512, false);
    struct storage *s = build_memory_image(&p);
    uint64_t bytes[3] = {0};

    (void)state;
    for (uint64_t i = 0; i < GIB(64) >> 20; i++)
        build_block(&p, s, i, PAYLOAD_ZERO, 0);
    struct image *img = MUST_OPEN(s, 0);
    fault_arm(&test_fault, NULL);
    struct run run;
    assert_succeeds(image_resolve(img, GIB(32), GIB(32), &run));
    assert_true(fault_count(&test_fault, FAULT_READ) <= 2);
    assert_true(run.length >= MIB(1) && run.length <= MIB(1024));
    assert_true(walk(img, GIB(64), bytes) <= 200);
    assert_int_equal(bytes[RUN_ZERO], GIB(64));
    image_close(img);
    storage_close(s);
}

/* ---- partially present blocks ---- */

static void a_partial_block_goes_by_its_bits(void **state)
{
    struct image_plan p = plan(MIB(8), MIB(2), 512, true);
    struct storage *s = build_memory_image(&p);

    (void)state;
    build_bitmap(&p, s, 0, BITMAP_PRESENT, MIB(10));
    build_block(&p, s, 1, PARTIAL, MIB(20));
    build_block(&p, s, 2, PRESENT, MIB(22));   /* bits of a fully present block are stale */
    build_bits(s, MIB(10), 4096 + 3, 5, true); /* block 1 begins at bit 4096 */
    build_bits(s, MIB(10), 4096 + 4095, 1, true);
    build_bits(s, MIB(10), 0, 4096, true); /* nor do those of a block that is not present count */
    struct image *img = MUST_OPEN(s, 0);
    EXPECT_RUN(img, 0, MIB(2), RUN_PARENT, false, MIB(2), 0);
    EXPECT_RUN(img, MIB(2), MIB(2), RUN_PARENT, false, 3 * 512, 0);
    EXPECT_RUN(img, MIB(2) + 513, MIB(2), RUN_PARENT, false, 2 * 512 - 1, 0);
    EXPECT_RUN(img, MIB(2) + 3 * 512, MIB(2), RUN_DATA, true, 5 * 512, MIB(20) + 3 * 512);
    EXPECT_RUN(img, MIB(2) + 7 * 512 + 500, MIB(2), RUN_DATA, true, 12, MIB(20) + 7 * 512 + 500);
    EXPECT_RUN(img, MIB(2) + 7 * 512 + 500, 5, RUN_DATA, true, 5, MIB(20) + 7 * 512 + 500);
    EXPECT_RUN(img, MIB(2) + 8 * 512, MIB(2) - 8 * 512, RUN_PARENT, false, MIB(2) - 9 * 512, 0);
    EXPECT_RUN(img, MIB(4) - 512, MIB(4), RUN_DATA, true, 512, MIB(22) - 512);
    EXPECT_RUN(img, MIB(4) - 1, 1, RUN_DATA, true, 1, MIB(22) - 1);
    EXPECT_RUN(img, MIB(4), MIB(4), RUN_DATA, true, MIB(2), MIB(22));
    image_close(img);
    storage_close(s);
}

/* Section 6: LBA 2,097,163 (LSS 512) is byte 262,145 bit 3; LSS 4096: byte 262,144 bit 3 of chunk 1. */
static void bits_are_where_the_format_says(void **state)
{
    struct image_plan p = plan(GIB(127), MIB(2), 512, true);
    struct storage *s = build_memory_image(&p);
    const uint64_t at = image_plan_blocks_offset(&p);

    (void)state;
    build_block(&p, s, 512, PARTIAL, at + MIB(10));
    build_bitmap(&p, s, 0, BITMAP_PRESENT, at);
    build_number(s, at + 262145, 1 << 3, 1);
    build_block(&p, s, 65023, PARTIAL, at + MIB(12)); /* the last sector */
    build_bitmap(&p, s, 31, BITMAP_PRESENT, at + MIB(1));
    build_number(s, at + MIB(1) + 786431, 1 << 7, 1);
    struct image *img = MUST_OPEN(s, 0);
    EXPECT_RUN(img, 1073747456, MIB(1), RUN_DATA, true, 512, at + MIB(10) + 11 * 512);
    EXPECT_RUN(img, 1073747456 - 512, 1024, RUN_PARENT, false, 512, 0);
    EXPECT_RUN(img, UINT64_C(136365211136), 512, RUN_DATA, true, 512, at + MIB(14) - 512);
    image_close(img);
    storage_close(s);

    p = plan(GIB(127), MIB(32), 4096, true);
    s = build_memory_image(&p);
    build_block(&p, s, 1280, PARTIAL, MIB(10));
    build_bitmap(&p, s, 1, BITMAP_PRESENT, MIB(8));
    build_number(s, MIB(8) + 262144, 1 << 3, 1);
    img = MUST_OPEN(s, 0);
    EXPECT_RUN(img, UINT64_C(42949685248), MIB(1), RUN_DATA, true, 4096, MIB(10) + 3 * 4096);
    EXPECT_RUN(img, UINT64_C(42949685248) + 4000, MIB(1), RUN_DATA, true, 96, MIB(10) + 3 * 4096 + 4000);
    EXPECT_RUN(img, UINT64_C(42949672960), MIB(32), RUN_PARENT, false, 3 * 4096, 0);
    image_close(img);
    storage_close(s);
}

/* A page of bits is 32768 sectors: 16 MiB (LSS 512).  Runs may end there, but must go on with the same kind.
 */
static void runs_of_bits_cross_pages(void **state)
{
    struct image_plan p = plan(MIB(256), MIB(64), 512, true);
    p.file_length += MIB(16);
    struct storage *s = build_memory_image(&p);

    (void)state;
    build_bitmap(&p, s, 0, BITMAP_PRESENT, MIB(4));
    build_block(&p, s, 0, PARTIAL, MIB(5));
    build_fill(s, MIB(4), 0xff, 3 * 4096);
    build_bits(s, MIB(4), 0, 1, false);
    build_bits(s, MIB(4), 3 * 32768, 9, true);
    struct image *img = MUST_OPEN(s, 0);
    struct run run;
    uint64_t at = 512, calls = 0;
    for (; at < MIB(48) + 9 * 512; at += run.length) {
        assert_succeeds(image_resolve(img, at, MIB(64) - at, &run));
        assert_int_equal(run.kind, RUN_DATA);
        assert_int_equal(run.file_offset, MIB(5) + at);
        calls++;
    }
    assert_int_equal(at, MIB(48) + 9 * 512);
    assert_true(calls <= 4);
    EXPECT_RUN(img, 0, 1024, RUN_PARENT, false, 512, 0);
    image_close(img);
    storage_close(s);
}

/* ---- everything at random, against each sector asked by itself ---- */

enum { NR_BLOCKS = 24 };

struct random_image {
    struct image_plan p;
    struct storage *s;
    uint64_t raw[NR_BLOCKS];
    uint8_t *bits; /* of the chunk */
};

static uint64_t below(uint64_t *random, uint64_t limit)
{
    return random_next(random) % limit;
}

static void make_random(struct random_image *r, uint64_t *random, bool has_parent, uint32_t sector_size)
{
    uint64_t size = MIB(NR_BLOCKS) - below(random, MIB(1) / sector_size) * sector_size, at;
    unsigned states[] = {0, 0, 0, 1, 2, 2, 3, PRESENT, PRESENT, PRESENT, PARTIAL, PARTIAL};

    r->p = plan(size, MIB(1), sector_size, has_parent);
    r->s = build_memory_image(&r->p);
    at = image_plan_blocks_offset(&r->p) + MIB(1);
    for (uint64_t b = 0; b < NR_BLOCKS; b++) {
        unsigned state = states[below(random, ARRAY_LENGTH(states) - (has_parent ? 0 : 2))];
        if (b > 0 && below(random, 2)) /* longer runs */
            state = r->raw[b - 1] & 7;
        bool owns = state == PRESENT || state == PARTIAL || (state % 2 && below(random, 2));
        at += below(random, 6) ? 0 : MIB(1);
        r->raw[b] = (owns ? at : 0) | state;
        at += owns ? MIB(1) : 0;
        build_block(&r->p, r->s, b, state, r->raw[b] & ~UINT64_C(7));
    }
    r->bits = exact_bytes(MIB(1));
    for (uint64_t i = 0; i < MIB(NR_BLOCKS) / sector_size / 8;) {
        uint64_t n = 1 + below(random, 40);
        uint8_t value = (uint8_t)(below(random, 3) == 0 ? random_next(random) : below(random, 2) ? 0xff : 0);
        for (; n > 0 && i < MIB(NR_BLOCKS) / sector_size / 8; n--)
            r->bits[i++] = value;
    }
    if (has_parent) {
        build_bitmap(&r->p, r->s, 0, BITMAP_PRESENT, image_plan_blocks_offset(&r->p));
        build_bytes(r->s, image_plan_blocks_offset(&r->p), r->bits, 65536);
    }
}

/* What byte guest_offset is, by 5.6. */
static struct run model_byte(const struct random_image *r, uint64_t guest_offset)
{
    uint64_t raw = r->raw[guest_offset >> 20], sector = guest_offset / r->p.values.logical_sector_size;
    struct run run = {.kind = RUN_ZERO, .present = true};
    bool here = (raw & 7) == PRESENT || ((raw & 7) == PARTIAL && (r->bits[sector / 8] >> (sector % 8) & 1));

    if (here) {
        run.kind = RUN_DATA;
        run.file_offset = (raw & ~UINT64_C(0xfffff)) + (guest_offset & 0xfffff);
    } else if ((raw & 7) == PARTIAL || (raw & 7) == 0) {
        run.present = false;
        run.kind = r->p.locator ? RUN_PARENT : RUN_ZERO;
    }
    return run;
}

static void check_random_range(struct random_image *r, struct image *img, uint64_t at, uint64_t end)
{
    const uint32_t sector_size = r->p.values.logical_sector_size;
    struct run run;

    for (; at < end; at += run.length) {
        assert_succeeds(image_resolve(img, at, end - at, &run));
        assert_true(run.length > 0 && run.length <= end - at);
        for (uint64_t i = 0; i < run.length; i += sector_size - (at + i) % sector_size) {
            struct run byte = model_byte(r, at + i);
            assert_true(byte.kind == run.kind && byte.present == run.present);
            assert_true(byte.kind != RUN_DATA || byte.file_offset == run.file_offset + i);
        }
    }
}

static void random_images_resolve_as_sector_by_sector(void **state)
{
    uint64_t random = 0x7e501fe;

    (void)state;
    for (unsigned no = 0; no < 100; no++) {
        struct random_image r;
        make_random(&r, &random, no % 4 != 0, no % 3 ? 512 : 4096);
        uint64_t size = r.p.values.virtual_size;
        struct image *img = MUST_OPEN(r.s, 0);
        check_random_range(&r, img, 0, size);
        for (unsigned i = 0; i < 30; i++) {
            uint64_t at = below(&random, size);
            check_random_range(&r, img, at,
                               at + 1 + below(&random, min_u64(size - at, i % 2 ? MIB(3) : 2000)));
        }
        image_close(img);
        storage_close(r.s);
        free(r.bits);
    }
}

/* ---- trouble ---- */

static void an_impossible_entry_is_reported_where_it_begins(void **state)
{
    struct image_plan p = plan(MIB(16), MIB(1), 512, false);
    struct storage *s = build_memory_image(&p);
    struct run run;

    (void)state;
    build_block(&p, s, 5, 5, 0);
    struct image *img = MUST_OPEN(s, IMAGE_UNVERIFIED);
    EXPECT_RUN(img, MIB(1), MIB(15), RUN_ZERO, false, MIB(4), 0); /* what is before it can be read */
    for (uint64_t max_length = 1; max_length <= MIB(4); max_length *= 2) /* nor does what follows make up for it */
        assert_fails(image_resolve(img, MIB(5) + 9, max_length, &run), VHDX_E_BAT, "0x300028");
    EXPECT_RUN(img, MIB(6), MIB(10), RUN_ZERO, false, MIB(10), 0);
    image_close(img);
    storage_close(s);
}

static void overlapping_blocks_resolve_unverified(void **state)
{
    struct image_plan p = plan(MIB(16), MIB(1), 512, false);
    struct storage *s = build_memory_image(&p);

    (void)state;
    build_block(&p, s, 1, PRESENT, MIB(5));
    build_block(&p, s, 7, PRESENT, MIB(5));
    EXPECT_REFUSED(s, 0, VHDX_E_BAT, "0x500000", "BAT entry 1 too");
    struct image *img = MUST_OPEN(s, IMAGE_UNVERIFIED);
    EXPECT_RUN(img, MIB(1), MIB(1), RUN_DATA, true, MIB(1), MIB(5));
    EXPECT_RUN(img, MIB(7), MIB(1), RUN_DATA, true, MIB(1), MIB(5));
    image_close(img);
    storage_close(s);
}

static void errors_are_passed_on(void **state)
{
    struct image_plan p = plan(TIB(1), MIB(1), 512, true);
    struct storage *s = build_memory_image(&p);
    const uint64_t at = image_plan_blocks_offset(&p);
    struct run run;

    (void)state;
    build_block(&p, s, 0, PARTIAL, at);
    build_bitmap(&p, s, 0, BITMAP_PRESENT, at + MIB(1));
    struct image *img;
    for (uint64_t n = 1; n <= 3; n++) { /* the block's entry, the bitmap's entry, the bitmap */
        img = MUST_OPEN(s, IMAGE_UNVERIFIED);
        fault_arm(&test_fault, &(struct fault_plan){.kind = FAULT_READ, .nth = n, .error = -EIO});
        assert_fails(image_resolve(img, 0, 512, &run), -EIO, n == 3 ? "bitmap block at 0x" : "BAT entry");
        image_close(img);
    }
    img = MUST_OPEN(s, IMAGE_UNVERIFIED);
    fault_arm(&test_fault, &(struct fault_plan){.kind = FAULT_NEXT_DATA, .nth = 1, .error = -EIO});
    assert_fails(image_resolve(img, GIB(1), GIB(900), &run), -EIO, "BAT at 0x300000");
    fault_arm(&test_fault, NULL);
    EXPECT_RUN(img, 0, 512, RUN_PARENT, false, 512, 0);
    image_close(img);
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_state_in_every_type),
        cmocka_unit_test(neighbours_of_one_kind_are_one_run),
        cmocka_unit_test(chunks_are_interleaved_with_bitmap_entries),
        cmocka_unit_test(runs_go_on_behind_bitmap_entries),
        cmocka_unit_test(holes_in_the_table_are_passed_over),
        cmocka_unit_test(a_hole_does_not_go_on_with_what_is_before_it),
        cmocka_unit_test(one_call_is_bounded),
        cmocka_unit_test(a_partial_block_goes_by_its_bits),
        cmocka_unit_test(bits_are_where_the_format_says),
        cmocka_unit_test(runs_of_bits_cross_pages),
        cmocka_unit_test(random_images_resolve_as_sector_by_sector),
        cmocka_unit_test(an_impossible_entry_is_reported_where_it_begins),
        cmocka_unit_test(overlapping_blocks_resolve_unverified),
        cmocka_unit_test(errors_are_passed_on),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
