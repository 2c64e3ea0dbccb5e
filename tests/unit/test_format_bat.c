/* SPDX-License-Identifier: MIT */
/* Geometry, BAT entries and sector bitmaps (format sections 5 and 6; hostile input rows 77 to 81, 85). */
#include "unit.h"

#include "base/le.h"
#include "format/bat.h"

static struct geometry geometry(uint64_t virtual_size, uint64_t block_size, uint32_t sector_size,
                                bool has_parent)
{
    struct geometry g;

    geometry_init(&g, virtual_size, (uint32_t)block_size, sector_size, has_parent);
    return g;
}

/* ---- geometry ---- */

/* Every row of the table in 5.2. */
static void worked_numbers(void **state)
{
    static const struct {
        uint64_t virtual_size, block_size;
        uint32_t sector_size;
        uint64_t chunk_ratio, nr_blocks, nr_chunks, dynamic, differencing, dynamic_bytes, region_mib;
    } rows[] = {
        {MIB(3), MIB(2), 512, 2048, 2, 1, 2, 2049, 16, 1},
        {GIB(1), MIB(32), 512, 128, 32, 1, 32, 129, 256, 1},
        {GIB(4), MIB(32), 512, 128, 128, 1, 128, 129, 1024, 1},
        {GIB(4) + 512, MIB(32), 512, 128, 129, 2, 130, 258, 1040, 1},
        {GIB(127), MIB(32), 512, 128, 4064, 32, 4095, 4128, 32760, 1},
        {GIB(127) + 512, MIB(32), 512, 128, 4065, 32, 4096, 4128, 32768, 1},
        {GIB(127), MIB(2), 512, 2048, 65024, 32, 65055, 65568, 520440, 1},
        {GIB(127), MIB(32), 4096, 1024, 4064, 4, 4067, 4100, 32536, 1},
        {GIB(256), MIB(1), 512, 4096, 262144, 64, 262207, 262208, 2097656, 3},
        {TIB(1), MIB(32), 512, 128, 32768, 256, 33023, 33024, 264184, 1},
        {TIB(1), MIB(1), 4096, 32768, 1048576, 32, 1048607, 1048608, 8388856, 9},
        {TIB(64), MIB(256), 512, 16, 262144, 16384, 278527, 278528, 2228216, 3},
        {TIB(64), MIB(32), 512, 128, 2097152, 16384, 2113535, 2113536, 16908280, 17},
        {TIB(64), MIB(2), 512, 2048, 33554432, 16384, 33570815, 33570816, 268566520, 257},
        {TIB(64), MIB(1), 512, 4096, 67108864, 16384, 67125247, 67125248, 537001976, 513},
        {TIB(64), MIB(1), 4096, 32768, 67108864, 2048, 67110911, 67110912, 536887288, 513},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
        struct geometry g = geometry(rows[i].virtual_size, rows[i].block_size, rows[i].sector_size, false);
        assert_int_equal(UINT64_C(1) << g.chunk_shift, rows[i].chunk_ratio);
        assert_int_equal(UINT64_C(1) << g.block_shift, rows[i].block_size);
        assert_int_equal(g.nr_blocks, rows[i].nr_blocks);
        assert_int_equal(g.nr_chunks, rows[i].nr_chunks);
        assert_int_equal(g.nr_bat_entries, rows[i].dynamic);
        assert_int_equal(g.nr_bat_entries * BAT_ENTRY_BYTES, rows[i].dynamic_bytes);
        assert_int_equal(align_up(rows[i].dynamic_bytes, MIB(1)), MIB(rows[i].region_mib));
        g = geometry(rows[i].virtual_size, rows[i].block_size, rows[i].sector_size, true);
        assert_int_equal(g.nr_bat_entries, rows[i].differencing);
        assert_int_equal(g.nr_blocks, rows[i].nr_blocks);
        assert_int_equal(g.nr_chunks, rows[i].nr_chunks);
        assert_true(g.has_parent);
    }
}

/* Appendix C: 65,568 entries of a differencing child take 129 pages. */
static void entries_per_page(void **state)
{
    struct geometry g = geometry(GIB(127), MIB(2), 512, true);

    (void)state;
    assert_int_equal(BAT_ENTRIES_PER_PAGE, 512);
    assert_int_equal(g.nr_bat_entries * BAT_ENTRY_BYTES, 524544);
    assert_int_equal(div_round_up(g.nr_bat_entries, BAT_ENTRIES_PER_PAGE), 129);
}

/* The examples of 5.2 and 6: a guest offset, and where the format keeps what concerns it. */
static void index_examples(void **state)
{
    static const struct {
        uint64_t block_size;
        uint32_t sector_size;
        uint64_t guest_offset, block_no, bat_index, chunk_no, bitmap_index, byte;
        unsigned bit;
    } examples[] = {
        {MIB(2), 512, 5368712704, 2560, 2561, 1, 4097, (10485767 - 8388608) / 8, 7},
        {MIB(2), 512, 1073747456, 512, 512, 0, 2048, 262145, 3},
        {MIB(2), 512, 136365211136, 65023, 65054, 31, 65567, 786431, 7},
        {MIB(32), 4096, 42949685248, 1280, 1281, 1, 2049, 262144, 3},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(examples); i++) {
        struct geometry g = geometry(GIB(127), examples[i].block_size, examples[i].sector_size, true);
        uint64_t block_no = examples[i].guest_offset >> g.block_shift;
        uint64_t sector_in_block = (examples[i].guest_offset & (g.block_size - 1)) / g.sector_size;
        uint64_t bit = bitmap_slice_offset(&g, block_no) * 8 + sector_in_block;

        assert_int_equal(block_no, examples[i].block_no);
        assert_int_equal(bat_index_of_block(&g, block_no), examples[i].bat_index);
        assert_int_equal(chunk_of_block(&g, block_no), examples[i].chunk_no);
        assert_int_equal(bat_index_of_bitmap(&g, examples[i].chunk_no), examples[i].bitmap_index);
        assert_int_equal(bit / 8, examples[i].byte);
        assert_int_equal(bit % 8, examples[i].bit);
    }
}

static void indices_invert(void **state)
{
    struct geometry g = geometry(GIB(127), MIB(32), 512, true);
    uint64_t nr_bitmaps = 0, no;

    (void)state;
    for (uint64_t i = 0; i < g.nr_bat_entries; i++) {
        if (bat_index_is_bitmap(&g, i, &no)) {
            assert_int_equal(no, nr_bitmaps);
            assert_int_equal(bat_index_of_bitmap(&g, no), i);
            nr_bitmaps++;
        } else {
            assert_int_equal(no, i - nr_bitmaps);
            assert_int_equal(bat_index_of_block(&g, no), i);
        }
    }
    assert_int_equal(nr_bitmaps, g.nr_chunks);
    g = geometry(MIB(3), MIB(2), 512, true); /* padding: slots of blocks that the disk does not have */
    assert_false(bat_index_is_bitmap(&g, 2, &no));
    assert_int_equal(no, 2);
    assert_true(no >= g.nr_blocks);
    assert_true(bat_index_is_bitmap(&g, 2048, &no));
    assert_int_equal(no, 0);
}

static void slices(void **state)
{
    static const struct {
        uint64_t block_size, bytes512, bytes4096;
    } rows[] = {{MIB(1), 256, 32}, {MIB(2), 512, 64}, {MIB(32), 8192, 1024}, {MIB(256), 65536, 8192}};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
        struct geometry g = geometry(TIB(1), rows[i].block_size, 512, true);
        assert_int_equal(bitmap_slice_bytes(&g), rows[i].bytes512);
        uint64_t last = (UINT64_C(1) << g.chunk_shift) - 1;
        assert_int_equal(bitmap_slice_offset(&g, last) + bitmap_slice_bytes(&g), BITMAP_BLOCK_BYTES);
        assert_int_equal(bitmap_slice_offset(&g, last + 1), 0);
        g = geometry(TIB(1), rows[i].block_size, 4096, true);
        assert_int_equal(bitmap_slice_bytes(&g), rows[i].bytes4096);
    }
}

static void the_last_block_may_be_partly_visible(void **state)
{
    struct geometry g = geometry(MIB(3), MIB(2), 512, false);

    (void)state;
    assert_int_equal(block_visible_bytes(&g, 0), MIB(2));
    assert_int_equal(block_visible_bytes(&g, 1), MIB(1));
    g = geometry(MIB(4), MIB(2), 512, false);
    assert_int_equal(block_visible_bytes(&g, 1), MIB(2));
}

/* ---- entries ---- */

/* The examples of 5.3. */
static void entry_examples(void **state)
{
    static const struct {
        uint8_t raw[8];
        unsigned state;
        uint64_t file_offset;
        bool owns_space;
    } examples[] = {
        {{0x06, 0x00, 0x40}, PAYLOAD_FULLY_PRESENT, MIB(4), true},
        {{0x02}, PAYLOAD_ZERO, 0, false},
        {{0x03, 0x00, 0x40, 0x24}, PAYLOAD_UNMAPPED, MIB(580), true},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(examples); i++) {
        uint64_t raw = le64_get(examples[i].raw);
        struct bat_entry e = bat_entry_decode(raw);
        assert_int_equal(e.state, examples[i].state);
        assert_int_equal(e.file_offset, examples[i].file_offset);
        assert_true(e.reserved_is_zero);
        assert_int_equal(payload_owns_space(&e), examples[i].owns_space);
        assert_true(bat_entry_encode(e.state, e.file_offset) == raw);
    }
}

static void entry_bits_are_told_apart(void **state)
{
    (void)state;
    for (unsigned bit = 0; bit < 64; bit++) {
        struct bat_entry e = bat_entry_decode(UINT64_C(1) << bit);
        assert_int_equal(e.state, bit < 3 ? 1u << bit : 0);
        assert_int_equal(e.reserved_is_zero, bit < 3 || bit >= 20);
        assert_true(e.file_offset == (bit >= 20 ? UINT64_C(1) << bit : 0));
    }
}

static void space_is_owned_by_data_and_anchors(void **state)
{
    static const bool with_offset[8] = {false, true, false, true, false, false, true, true};

    (void)state;
    for (unsigned s = 0; s < 8; s++) {
        struct bat_entry e = {.state = s, .file_offset = MIB(5), .reserved_is_zero = true};
        assert_int_equal(payload_owns_space(&e), with_offset[s]);
        e.file_offset = 0;
        assert_int_equal(payload_owns_space(&e), s == 6 || s == 7);
    }
}

static void states_have_names(void **state)
{
    (void)state;
    for (unsigned s = 0; s < 8; s++)
        for (unsigned t = 0; t < s; t++)
            assert_string_not_equal(payload_state_name(s), payload_state_name(t));
    assert_string_equal(payload_state_name(PAYLOAD_PARTIALLY_PRESENT), "partially-present");
    assert_string_equal(payload_state_name(8), "invalid");
}

/* Rows 78 and 85. */
static void states_are_judged_by_disk_type(void **state)
{
    static const struct {
        unsigned state;
        bool alone, with_parent;
    } rows[] = {{0, true, true},   {1, true, true},   {2, true, true}, {3, true, true},
                {4, false, false}, {5, false, false}, {6, true, true}, {7, false, true}};

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
        for (int has_parent = 0; has_parent < 2; has_parent++) {
            struct geometry g = geometry(GIB(1), MIB(32), 512, has_parent);
            uint64_t raw = bat_entry_encode(rows[i].state, MIB(4));
            int result = payload_entry_check(&g, 5, raw, 0x300028, MIB(36), NULL);
            if (has_parent ? rows[i].with_parent : rows[i].alone)
                assert_succeeds(result);
            else
                assert_fails(result, VHDX_E_BAT, "BAT entry at 0x300028 (block 5)");
        }
    }
}

/* Row 77. */
static void reserved_bits_are_refused(void **state)
{
    struct geometry g = geometry(GIB(1), MIB(32), 512, true);

    (void)state;
    for (unsigned bit = 3; bit < 20; bit++) {
        for (unsigned s = 0; s < 8; s += 6) {
            uint64_t raw = bat_entry_encode(s, s ? MIB(4) : 0);
            assert_succeeds(payload_entry_check(&g, 0, raw, 0, MIB(36), NULL));
            assert_succeeds(bitmap_entry_check(&g, 0, raw, 0, MIB(36)));
            raw |= UINT64_C(1) << bit;
            assert_fails(payload_entry_check(&g, 0, raw, 0, MIB(36), NULL), VHDX_E_BAT, "reserved bits");
            assert_fails(bitmap_entry_check(&g, 0, raw, 0, MIB(36)), VHDX_E_BAT, "reserved bits");
        }
    }
}

/* Row 79. */
static void data_needs_an_offset(void **state)
{
    struct geometry g = geometry(GIB(1), MIB(32), 512, true);

    (void)state;
    for (unsigned s = 0; s < 8; s++) {
        int result = payload_entry_check(&g, 0, s, 0x300000, MIB(36), NULL);
        if (s >= 6)
            assert_fails(result, VHDX_E_BAT, "needs an offset");
        else if (s <= 3)
            assert_succeeds(result);
    }
    assert_fails(bitmap_entry_check(&g, 0, BITMAP_PRESENT, 0x300400, MIB(36)), VHDX_E_BAT, "needs an offset");
}

/* Rows 80 and 81. */
static void space_must_lie_in_the_file(void **state)
{
    static const struct {
        unsigned state;
        uint64_t file_offset;
        int code;
    } rows[] = {
        {6, MIB(4), 0},
        {6, MIB(5), VHDX_E_TRUNCATED},
        {6, MIB(36), VHDX_E_TRUNCATED},
        {6, TIB(100), VHDX_E_TRUNCATED},
        {7, MIB(5), VHDX_E_TRUNCATED},
        {1, MIB(4), 0},
        {1, MIB(5), VHDX_E_TRUNCATED}, /* soft anchors are judged alike */
        {3, MIB(5), VHDX_E_TRUNCATED},
        {0, MIB(500), 0}, /* where states 0 and 2 point means nothing */
        {2, MIB(500), 0},
        {6, UINT64_MAX - MIB(1) + 1, VHDX_E_BAT}, /* overflows 64 bits */
        {3, UINT64_MAX - MIB(1) + 1, VHDX_E_BAT},
        {6, UINT64_C(1) << 63, VHDX_E_BAT},                   /* no off_t */
        {6, INT64_MAX - MIB(1) + 1, VHDX_E_BAT},              /* ends beyond it */
        {6, (UINT64_C(1) << 63) - MIB(33), VHDX_E_TRUNCATED}, /* ends below it */
    };
    struct geometry g = geometry(GIB(1), MIB(32), 512, true);

    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
        bool short_block = true;
        int result = payload_entry_check(&g, 31, bat_entry_encode(rows[i].state, rows[i].file_offset),
                                         0x3000f8, MIB(36), &short_block);
        if (rows[i].code == 0)
            assert_succeeds(result);
        else
            assert_fails(result, rows[i].code, "(block 31)");
        assert_false(short_block);
    }
}

/* 10.3: a file of QEMU's ends where the disk does, inside its last block. */
static void a_last_block_may_be_cut_short(void **state)
{
    struct geometry g = geometry(MIB(100), MIB(8), 512, false);
    uint64_t last = g.nr_blocks - 1;
    uint64_t raw = bat_entry_encode(PAYLOAD_FULLY_PRESENT, MIB(104));
    bool short_block = false;

    (void)state;
    assert_succeeds(payload_entry_check(&g, last, raw, 0, MIB(108), &short_block));
    assert_true(short_block);
    assert_succeeds(payload_entry_check(&g, last, raw, 0, MIB(108), NULL));
    assert_succeeds(payload_entry_check(&g, last, raw, 0, MIB(112) - 1, &short_block));
    assert_true(short_block);
    assert_succeeds(payload_entry_check(&g, last, raw, 0, MIB(112), &short_block));
    assert_false(short_block);
    assert_fails(payload_entry_check(&g, last, raw, 0, MIB(108) - 1, &short_block), VHDX_E_TRUNCATED,
                 "the end of the file at 0x6bfffff");
    assert_false(short_block);
    assert_fails(payload_entry_check(&g, last - 1, raw, 0, MIB(108), &short_block), VHDX_E_TRUNCATED,
                 "(block 11)");
}

/* Rows 78 to 81 for bitmaps. */
static void bitmap_entries_are_judged(void **state)
{
    struct geometry g = geometry(GIB(5), MIB(32), 512, true);

    (void)state;
    for (unsigned s = 0; s < 8; s++) {
        int result = bitmap_entry_check(&g, 1, bat_entry_encode(s, MIB(4)), 0x300808, MIB(5));
        if (s == BITMAP_NOT_PRESENT || s == BITMAP_PRESENT)
            assert_succeeds(result);
        else
            assert_fails(result, VHDX_E_BAT, "BAT entry at 0x300808 (bitmap of chunk 1)");
    }
    uint64_t raw = bat_entry_encode(BITMAP_PRESENT, MIB(4));
    assert_fails(bitmap_entry_check(&g, 1, raw, 0x300808, MIB(5) - 1), VHDX_E_TRUNCATED,
                 "(bitmap of chunk 1)");
    raw = bat_entry_encode(BITMAP_PRESENT, UINT64_MAX - MIB(1) + 1);
    assert_fails(bitmap_entry_check(&g, 1, raw, 0x300808, MIB(5)), VHDX_E_BAT, "beyond what any file");
    assert_succeeds(
        bitmap_entry_check(&g, 1, bat_entry_encode(BITMAP_NOT_PRESENT, TIB(9)), 0x300808, MIB(5)));
}

/* ---- sector bitmaps ---- */

static bool bit_of(const uint8_t *bits, uint64_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

static uint64_t slow_run(const uint8_t *bits, uint64_t first, uint64_t end, bool *value)
{
    uint64_t i = first;

    *value = first < end && bit_of(bits, first);
    while (i < end && bit_of(bits, i) == *value)
        i++;
    return i - first;
}

static void expect_run(const uint8_t *bits, uint64_t first, uint64_t end)
{
    bool value, expected_value;
    uint64_t expected = slow_run(bits, first, end, &expected_value);

    assert_int_equal(bitmap_run(bits, first, end, &value), expected);
    assert_int_equal(value, expected_value);
}

static void runs_count_from_the_least_significant_bit(void **state)
{
    static const uint8_t bits[] = {0xf8, 0xff, 0x01};
    bool value;

    (void)state;
    assert_int_equal(bitmap_run(bits, 0, 24, &value), 3);
    assert_false(value);
    assert_int_equal(bitmap_run(bits, 3, 24, &value), 14);
    assert_true(value);
    assert_int_equal(bitmap_run(bits, 17, 24, &value), 7);
    assert_false(value);
    assert_int_equal(bitmap_run(bits, 3, 5, &value), 2);
    assert_int_equal(bitmap_run(bits, 4, 4, &value), 0);
}

/* Two runs in each bitmap, every border, every beginning, every end. */
static void runs_end_at_every_place(void **state)
{
    enum { BITS = 200 };

    (void)state;
    for (uint64_t end = 1; end <= BITS; end += 3) {
        size_t bytes = (end + 7) / 8;
        uint8_t *bits = exact_bytes(bytes); /* sanitizers see a read beyond */
        for (uint64_t border = 0; border <= end; border++) {
            for (int inverted = 0; inverted < 2; inverted++) {
                for (uint64_t i = 0; i < 8 * bytes; i++) {
                    bool set = (i < border) != inverted;
                    bits[i / 8] = (uint8_t)((bits[i / 8] & ~(1 << i % 8)) | set << i % 8);
                }
                for (uint64_t first = 0; first < end; first += 5)
                    expect_run(bits, first, end);
            }
        }
        free(bits);
    }
}

/* Nothing before the byte of first_bit is read either. */
static void runs_of_random_bits(void **state)
{
    uint64_t random = 1;

    (void)state;
    for (int round = 0; round < 3000; round++) {
        size_t bytes = random_next(&random) % 100 + 1;
        uint64_t lead = random_next(&random) % 50; /* bytes that are not there */
        uint8_t *there = exact_bytes(bytes);
        const uint8_t *bits = (const uint8_t *)((uintptr_t)there - lead);
        uint64_t keep = random_next(&random) % 64; /* how rough */
        for (size_t i = 0; i < bytes; i++)
            there[i] =
                random_next(&random) % 64 < keep ? (uint8_t)random_next(&random) : (i ? there[i - 1] : 0);
        uint64_t first = 8 * lead + random_next(&random) % 8;
        for (uint64_t end = 8 * (lead + bytes); first < end;) {
            bool value;
            expect_run(bits, first, end);
            first += bitmap_run(bits, first, end, &value);
        }
        free(there);
    }
}

static void a_whole_slice_is_one_run(void **state)
{
    uint8_t *bits = exact_bytes(65536);
    bool value;

    (void)state;
    assert_int_equal(bitmap_run(bits, 0, 524288, &value), 524288);
    assert_false(value);
    memset(bits, 0xff, 65536);
    assert_int_equal(bitmap_run(bits, 1, 524287, &value), 524286);
    assert_true(value);
    free(bits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(worked_numbers),
        cmocka_unit_test(entries_per_page),
        cmocka_unit_test(index_examples),
        cmocka_unit_test(indices_invert),
        cmocka_unit_test(slices),
        cmocka_unit_test(the_last_block_may_be_partly_visible),
        cmocka_unit_test(entry_examples),
        cmocka_unit_test(entry_bits_are_told_apart),
        cmocka_unit_test(space_is_owned_by_data_and_anchors),
        cmocka_unit_test(states_have_names),
        cmocka_unit_test(states_are_judged_by_disk_type),
        cmocka_unit_test(reserved_bits_are_refused),
        cmocka_unit_test(data_needs_an_offset),
        cmocka_unit_test(space_must_lie_in_the_file),
        cmocka_unit_test(a_last_block_may_be_cut_short),
        cmocka_unit_test(bitmap_entries_are_judged),
        cmocka_unit_test(runs_count_from_the_least_significant_bit),
        cmocka_unit_test(runs_end_at_every_place),
        cmocka_unit_test(runs_of_random_bits),
        cmocka_unit_test(a_whole_slice_is_one_run),
    };
    return cmocka_run_group_tests_name("format/bat", tests, NULL, NULL);
}
