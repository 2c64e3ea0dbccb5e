/* SPDX-License-Identifier: MIT */
/* Small reads through chains of all kinds, by the short way and by the long one: both give what the model says. */
#include "image-test.h"

#include "chain-model.h"
#include "disk/shortcut.h"
#include "image/writer.h"

/* Reads inside one MiB, often the same ones again, so that what is remembered is used. */
static void read_small_pieces(struct chain_model *m, uint64_t *random, unsigned nr)
{
    static uint8_t buf[65536];

    for (unsigned n = 0; n < nr; n++) {
        uint64_t at = random_next(random) % m->size, bytes = 1 + random_next(random) % sizeof buf;
        bytes = min_u64(bytes, min_u64(m->size - at, MIB(1) - at % MIB(1)));
        memset(buf, 0xa5, sizeof buf);
        assert_succeeds(disk_pread(m->disk, buf, bytes, at));
        assert_memory_equal(buf, m->bytes + at, bytes);
    }
}

/* From each layer on: the first that says anything, as their tables have it; asked twice, so that what is remembered answers too.
 */
static unsigned check_below(struct vhdx_disk *disk, uint64_t at)
{
    unsigned nr_found = 0;

    for (unsigned n = 0; n < 2 * disk->nr_layers; n++) {
        uint32_t from = n % disk->nr_layers, wanted = from;
        struct bat_entry e = {0};
        struct shortcut s;
        if (from == 0 || !shortcut_below(disk, from, at, 512, &s))
            continue;
        for (; wanted < disk->nr_layers; wanted++) {
            struct image *img = disk->layers[wanted].img;
            assert_succeeds(bat_lookup(img, at >> img->geometry.block_shift, &e));
            if (e.state != PAYLOAD_NOT_PRESENT)
                break;
        }
        wanted = min_u64(wanted, disk->nr_layers - 1);
        assert_int_equal(s.first_layer, wanted);
        if (s.file_offset != 0)
            assert_int_equal(s.file_offset, e.file_offset + (at & (disk->layers[wanted].img->geometry.block_size - 1)));
        nr_found++;
    }
    return nr_found;
}

static void test_chains(void **state)
{
    unsigned nr_short = 0, nr_direct = 0, nr_below = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        uint64_t random = seed * 104729;
        struct chain_model_options options = {.nr_layers = 2 + (uint32_t)(seed % 7),
                                              .sector_size = seed % 2 ? 512 : 4096,
                                              .max_bytes = MIB(6) + 4096 * (seed % 3),
                                              .same_size = seed % 4 == 0};
        struct chain_model m;
        chain_model_make(&m, &options, &random);
        for (unsigned n = 0; n < 3; n++)
            read_small_pieces(&m, &random, 60);
        for (uint64_t at = 0; at < m.size; at += MIB(1)) {
            struct shortcut s;
            bool found = shortcut_find(m.disk, at, 512, &s);
            nr_short += found;
            nr_below += check_below(m.disk, at);
            nr_direct += found && s.file_offset != 0;
            assert_true(!found || (s.first_layer >= 1 && s.first_layer < m.disk->nr_layers));
        }
        disk_close(m.disk);
        chain_model_free(&m);
    }
    assert_in_range(nr_short, 20, 1000); /* the test sees what it is there to see */
    assert_in_range(nr_direct, 10, 1000);
    assert_in_range(nr_below, 100, 10000);
}

static void test_what_is_not_found(void **state)
{
    struct chain_model_options options = {.nr_layers = 3, .sector_size = 512, .max_bytes = MIB(4), .same_size = true};
    struct chain_model m;
    struct shortcut s;
    uint64_t random = 5;

    (void)state;
    chain_model_make(&m, &options, &random);
    assert_false(shortcut_find(m.disk, 0, 0, &s));
    assert_false(shortcut_find(m.disk, m.size, 1, &s));
    assert_false(shortcut_find(m.disk, UINT64_MAX, 2, &s));
    for (uint64_t at = MIB(1) - 256; at < m.size; at += MIB(1))
        assert_false(at + 512 <= m.size && m.disk->layers[0].img->geometry.block_size == MIB(1) && shortcut_find(m.disk, at, 512, &s));
    disk_close(m.disk);
    chain_model_free(&m);

    options.leave_parent_out = true; /* nobody knows what the last one leaves to it */
    chain_model_make(&m, &options, &random);
    assert_null(m.disk->shortcuts);
    disk_close(m.disk);
    chain_model_free(&m);
}

/* What is remembered of the parents stays true while the first image is written. */
static void test_while_written(void **state)
{
    static const char *const locator[][2] = {
        {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"}, {"relative_path", ".\\parent.vhdx"}};
    struct image_plan plan;
    uint8_t buf[4096], wanted[4096];

    (void)state;
    image_plan_init(&plan, MIB(4), (uint32_t)MIB(1), 512, NULL, 0);
    struct storage *parent = build_memory_image(&plan);
    build_fill(parent, MIB(8), 7, MIB(1));
    build_block(&plan, parent, 1, PAYLOAD_FULLY_PRESENT, MIB(8));
    image_plan_init(&plan, MIB(4), (uint32_t)MIB(2), 512, locator, 2);
    struct storage *child = build_memory_image(&plan);
    struct layer layers[] = {{.img = MUST_OPEN(child, IMAGE_WRITABLE), .size = MIB(4), .path = (char *)"child"},
                             {.img = MUST_OPEN(parent, 0), .size = MIB(4), .path = (char *)"parent"}};
    struct vhdx_disk disk = {.layers = layers, .nr_layers = 2, .size = MIB(4)};
    shortcut_init(&disk);
    for (unsigned round = 0; round < 3; round++) {
        struct shortcut s;
        memset(wanted, 7, sizeof wanted);
        assert_succeeds(disk_pread(&disk, buf, sizeof buf, MIB(1) + 65536));
        assert_memory_equal(buf, wanted, sizeof buf);
        assert_int_equal(shortcut_find(&disk, MIB(1) + 65536, 512, &s), round == 0);
        memset(wanted, 9, sizeof wanted);
        struct iovec iov = {wanted, sizeof wanted};
        assert_succeeds(disk_pwritev(&disk, &iov, 1, MIB(1) + 4096 * round, 0));
        assert_succeeds(disk_pread(&disk, buf, sizeof buf, MIB(1) + 4096 * round));
        assert_memory_equal(buf, wanted, sizeof buf);
    }
    free(disk.shortcuts);
    assert_succeeds(image_close(layers[0].img));
    image_close(layers[1].img);
    storage_close(child);
    storage_close(parent);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chains),
        cmocka_unit_test(test_what_is_not_found),
        cmocka_unit_test(test_while_written),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
