/* SPDX-License-Identifier: MIT */
/* Walking the extents of a chain (format section 5.6), against chain-model.c. */
#include "image-test.h"

#include "chain-model.h"

/* ---- comparing with the model ---- */

struct walked {
    const struct chain_model *m;
    uint64_t at; /* where the next extent must begin */
    struct vhdx_extent last;
    uint64_t nr, stop_after;
};

/* Each sector of the extent must be what the model says, and extents must not be in pieces. */
static int check_extent(void *opaque, const struct vhdx_extent *e)
{
    struct walked *w = opaque;

    assert_int_equal(e->guest_offset, w->at);
    assert_true(e->length > 0);
    for (uint64_t at = e->guest_offset; at < e->guest_offset + e->length;
         at += MODEL_SECTOR - at % MODEL_SECTOR) {
        const struct model_sector *s = &w->m->sectors[at / MODEL_SECTOR];
        assert_int_equal(e->flags, s->flags);
        assert_int_equal(e->depth, s->depth);
        if (s->flags & VHDX_EXTENT_DATA)
            assert_int_equal(e->file_offset + (at - e->guest_offset), s->file_offset + at % MODEL_SECTOR);
        else
            assert_int_equal(e->file_offset, 0);
    }
    if (w->nr > 0)
        assert_false(
            w->last.flags == e->flags && w->last.depth == e->depth &&
            (!(e->flags & VHDX_EXTENT_DATA) || w->last.file_offset + w->last.length == e->file_offset));
    w->at += e->length;
    w->last = *e;
    return ++w->nr == w->stop_after ? 1234 : 0;
}

static void check_map(const struct chain_model *m, uint64_t guest_offset, uint64_t length)
{
    struct walked w = {.m = m, .at = guest_offset};

    assert_succeeds(disk_map(m->disk, guest_offset, length, check_extent, &w));
    assert_int_equal(w.at, guest_offset + length);
}

/* Sectors that a child has, but its parent is too short for. */
static uint64_t nr_behind_a_parent(const struct chain_model *m)
{
    uint64_t nr = 0;

    for (uint64_t s = 0; s < m->size / MODEL_SECTOR; s++)
        nr += s * MODEL_SECTOR >= m->disk->layers[m->sectors[s].depth].size;
    return nr;
}

static void map_tells_who_decides_each_sector(void **state)
{
    uint64_t random = 0xd15c, nr_behind = 0;

    (void)state;
    for (unsigned no = 0; no < 24; no++) {
        struct chain_model m;
        const struct chain_model_options o = {
            .nr_layers = no % 12 + 1, .sector_size = no % 3 ? 512 : 4096, .max_bytes = MIB(4)};
        chain_model_make(&m, &o, &random);
        check_map(&m, 0, m.size);
        nr_behind += nr_behind_a_parent(&m);
        for (unsigned i = 0; i < 40; i++) {
            uint64_t at = random_next(&random) % m.size;
            check_map(&m, at, random_next(&random) % (i % 2 ? m.size - at + 1 : min_u64(m.size - at, 3000)));
        }
        disk_close(m.disk);
        chain_model_free(&m);
    }
    assert_true(nr_behind > 1000);
}

/* However the walk is cut into steps, each step must be right. */
static void a_cursor_goes_in_steps_of_any_length(void **state)
{
    uint64_t random = 0xd15d;

    (void)state;
    for (unsigned no = 0; no < 12; no++) {
        struct chain_model m;
        const struct chain_model_options o = {.nr_layers = no + 1, .sector_size = 512, .max_bytes = MIB(3)};
        struct extent_cursor c;
        struct vhdx_extent e;
        uint64_t at = random_next(&random) % MIB(1), max_length;
        int r;
        chain_model_make(&m, &o, &random);
        assert_succeeds(extent_cursor_init(&c, m.disk, at, m.size - at));
        while (max_length = 1 + random_next(&random) % 70000,
               (r = extent_cursor_next(&c, max_length, &e)) > 0) {
            struct walked w = {.m = &m, .at = at};
            assert_in_range(e.length, 1, max_length);
            check_extent(&w, &e);
            at += e.length;
            assert_int_equal(c.at, at);
        }
        assert_int_equal(r, 0);
        assert_int_equal(at, m.size);
        extent_cursor_done(&c);
        disk_close(m.disk);
        chain_model_free(&m);
    }
}

static void the_callback_can_stop_the_walk(void **state)
{
    uint64_t random = 0xd15e;
    struct chain_model m;
    const struct chain_model_options o = {
        .nr_layers = 5, .sector_size = 512, .max_bytes = MIB(8), .same_size = true};

    (void)state;
    chain_model_make(&m, &o, &random);
    struct walked all = {.m = &m};
    assert_succeeds(disk_map(m.disk, 0, m.size, check_extent, &all));
    assert_true(all.nr > 5);
    for (uint64_t stop = 1; stop <= all.nr; stop++) {
        struct walked w = {.m = &m, .stop_after = stop};
        assert_int_equal(disk_map(m.disk, 0, m.size, check_extent, &w), 1234);
        assert_int_equal(w.nr, stop);
    }
    struct walked last = {.m = &m, .at = m.size - 1, .stop_after = 1}; /* the very last extent too */
    assert_int_equal(disk_map(m.disk, m.size - 1, 1, check_extent, &last), 1234);
    disk_close(m.disk);
    chain_model_free(&m);
}

static void ranges_must_lie_inside_the_disk(void **state)
{
    uint64_t random = 0xd15f;
    struct chain_model m;
    const struct chain_model_options o = {
        .nr_layers = 2, .sector_size = 512, .max_bytes = MIB(1), .same_size = true};
    struct walked w = {.m = &m};

    (void)state;
    chain_model_make(&m, &o, &random);
    assert_fails(disk_map(m.disk, 0, MIB(1) + 1, check_extent, &w), -EINVAL, "1048576 bytes");
    assert_fails(disk_map(m.disk, MIB(1), 1, check_extent, &w), -EINVAL, "1 bytes at 1048576");
    assert_int_equal(disk_map(m.disk, UINT64_MAX, 2, check_extent, &w), -EINVAL);
    assert_int_equal(disk_map(m.disk, 2, UINT64_MAX, check_extent, &w), -EINVAL);
    assert_int_equal(disk_map(m.disk, MIB(1) + 1, 0, check_extent, &w), -EINVAL);
    assert_succeeds(disk_map(m.disk, MIB(1), 0, check_extent, &w));
    assert_succeeds(disk_map(m.disk, 0, 0, check_extent, &w));
    assert_int_equal(w.nr, 0);
    disk_close(m.disk);
    chain_model_free(&m);
}

/* What only a parent holds that was left out cannot be mapped; all else can. */
static void a_parent_that_was_left_out_is_missed(void **state)
{
    uint64_t random = 0xd160, nr_missed = 0, nr_found = 0;

    (void)state;
    for (uint32_t nr_layers = 1; nr_layers < 4; nr_layers++) {
        struct chain_model m;
        const struct chain_model_options o = {.nr_layers = nr_layers,
                                              .sector_size = 512,
                                              .max_bytes = MIB(6),
                                              .same_size = true,
                                              .leave_parent_out = true};
        chain_model_make(&m, &o, &random);
        for (uint64_t at = 0; at < m.size; at += 37 * MODEL_SECTOR) {
            struct walked w = {.m = &m, .at = at};
            if (m.sectors[at / MODEL_SECTOR].depth < nr_layers) {
                assert_succeeds(disk_map(m.disk, at, 1, check_extent, &w));
                nr_found++;
            } else {
                assert_fails(disk_map(m.disk, at, 1, check_extent, &w), VHDX_E_PARENT_NOT_FOUND, "layer: ");
                nr_missed++;
            }
        }
        disk_close(m.disk);
        chain_model_free(&m);
    }
    assert_true(nr_missed > 50 && nr_found > 50);
}

/* ---- cost ---- */

static int count_extent(void *opaque, const struct vhdx_extent *e)
{
    (void)e;
    ++*(uint64_t *)opaque;
    return 0;
}

/* 64 TiB over 64 TiB, blocks of 1 MiB, hardly anything on disk. */
static void huge_empty_chains_cost_little(void **state)
{
    static const char *const locator[][2] = {{"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"}};
    struct vhdx_disk *d = exact_bytes(sizeof *d);
    struct storage *files[3];
    uint64_t nr = 0;

    (void)state;
    d->layers = exact_bytes(3 * sizeof *d->layers);
    d->nr_layers = 3;
    d->size = TIB(64);
    for (uint32_t i = 0; i < 3; i++) {
        struct image_plan p;
        image_plan_init(&p, TIB(64), MIB(1), 512, i < 2 ? locator : NULL, i < 2 ? 1 : 0);
        p.file_length += MIB(1);
        files[i] = build_memory_image(&p);
        build_block(&p, files[i], 1000000 + i * 20000000, PAYLOAD_FULLY_PRESENT, p.file_length - MIB(1));
        d->layers[i] =
            (struct layer){.img = MUST_OPEN(files[i], 0), .path = strdup("layer"), .size = TIB(64)};
    }
    fault_arm(&test_fault, NULL);
    assert_succeeds(disk_map(d, 0, TIB(64), count_extent, &nr));
    assert_int_equal(nr, 7);
    assert_true(fault_count(&test_fault, FAULT_ANY) < 500);
    disk_close(d);
    for (uint32_t i = 0; i < 3; i++)
        storage_close(files[i]);
}

static void errors_in_a_parent_name_the_parent(void **state)
{
    uint64_t random = 0xd161;
    struct chain_model m;
    const struct chain_model_options o = {.nr_layers = 1, .sector_size = 512, .max_bytes = MIB(2)};
    struct image_plan p;
    uint64_t nr = 0;

    (void)state;
    chain_model_make(&m, &o, &random); /* a disk whose second layer is broken */
    image_plan_init(&p, MIB(2), MIB(1), 512, NULL, 0);
    struct storage *s = build_memory_image(&p);
    build_block(&p, s, 0, 5, 0);
    m.disk->layers = realloc(m.disk->layers, 2 * sizeof *m.disk->layers);
    assert_non_null(m.disk->layers);
    m.disk->layers[1] = m.disk->layers[0];
    m.disk->layers[1].path = strdup("/some/where.vhdx");
    free(m.disk->layers[0].path);
    image_close(m.disk->layers[1].img);
    m.disk->layers[1].img = MUST_OPEN(s, IMAGE_UNVERIFIED);
    static const char *const locator[][2] = {{"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"}};
    image_plan_init(&p, MIB(2), MIB(1), 512, locator, 1);
    struct storage *child = build_memory_image(&p);
    m.disk->layers[0] = (struct layer){.img = MUST_OPEN(child, 0), .path = strdup("child"), .size = MIB(2)};
    m.disk->nr_layers = 2;
    m.disk->size = MIB(2);
    assert_fails(disk_map(m.disk, 0, MIB(2), count_extent, &nr), VHDX_E_BAT,
                 "parent /some/where.vhdx: BAT entry");
    disk_close(m.disk);
    chain_model_free(&m);
    storage_close(s);
    storage_close(child);
}

/* ---- raw disks ---- */

static struct vhdx_disk *raw_disk(struct storage *s, uint64_t size)
{
    struct vhdx_disk *d = exact_bytes(sizeof *d);

    d->layers = exact_bytes(sizeof *d->layers);
    d->layers[0] = (struct layer){.raw = s, .path = strdup("raw"), .size = size};
    d->nr_layers = 1;
    d->size = size;
    return d;
}

static void holes_of_a_raw_disk_are_zeros(void **state)
{
    struct storage *s;
    struct vhdx_extent e;
    struct extent_cursor c;
    static const uint64_t lengths[] = {KIB(128), KIB(64), MIB(1) - KIB(192)};

    (void)state;
    assert_succeeds(storage_memory_new(NULL, 0, &s));
    assert_succeeds(storage_truncate(s, MIB(1)));
    build_fill(s, KIB(128), 1, KIB(64));
    struct vhdx_disk *d = raw_disk(s, MIB(1));
    assert_succeeds(extent_cursor_init(&c, d, 0, MIB(1)));
    uint64_t at = 0;
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(extent_cursor_next(&c, UINT64_MAX, &e), 1);
        assert_int_equal(e.length, lengths[i]);
        assert_int_equal(e.flags, (i == 1 ? VHDX_EXTENT_DATA : VHDX_EXTENT_ZERO) | VHDX_EXTENT_PRESENT);
        assert_int_equal(e.file_offset, i == 1 ? at : 0);
        at += e.length;
    }
    assert_int_equal(extent_cursor_next(&c, UINT64_MAX, &e), 0);
    extent_cursor_done(&c);

    assert_succeeds(storage_truncate(s, KIB(512))); /* row 106: what is gone is no hole */
    assert_succeeds(extent_cursor_init(&c, d, KIB(600), 10));
    assert_fails(extent_cursor_next(&c, UINT64_MAX, &e), VHDX_E_TRUNCATED, "shrank from 1048576 to 524288");
    extent_cursor_done(&c);
    disk_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(map_tells_who_decides_each_sector),
        cmocka_unit_test(a_cursor_goes_in_steps_of_any_length),
        cmocka_unit_test(the_callback_can_stop_the_walk),
        cmocka_unit_test(ranges_must_lie_inside_the_disk),
        cmocka_unit_test(a_parent_that_was_left_out_is_missed),
        cmocka_unit_test(huge_empty_chains_cost_little),
        cmocka_unit_test(errors_in_a_parent_name_the_parent),
        cmocka_unit_test(holes_of_a_raw_disk_are_zeros),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
