/* SPDX-License-Identifier: MIT */
/* Changing metadata items: any list of them becomes any other, as one; after a crash it is the old one or the new one. */
#include "image-test.h"

#include <stdlib.h>

#include "format/parent-locator.h"
#include "image/items.h"
#include "image/writer.h"

static const char *const locator[][2] = {
    {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
    {"relative_path", ".\\parent.vhdx"},
};

/* An image in memory with so many MiB for metadata. */
static struct storage *new_image(struct image_plan *plan, uint32_t metadata_mib)
{
    image_plan_init(plan, MIB(64), (uint32_t)MIB(1), 512, locator, 2);
    plan->metadata_offset = plan->bat_offset + plan->bat_length; /* behind the BAT there is room */
    plan->metadata_length = (uint32_t)MIB(metadata_mib);
    plan->file_length = plan->metadata_offset + plan->metadata_length;
    return build_memory_image(plan);
}

static struct image *begin_writing(struct storage *s)
{
    struct image *img = MUST_OPEN(s, IMAGE_WRITABLE);

    assert_succeeds(writer_begin_invisible(img));
    return img;
}

/* ---- what there should be ---- */

enum { NR_NAMES = 12 };

/* Items of the test: name n is {n, ...}; even ones are the user's.  length UINT32_MAX: not there. */
struct model {
    uint32_t length[NR_NAMES];
    uint8_t value[NR_NAMES];
};

static guid name_of(unsigned n)
{
    return (guid){{(uint8_t)(n + 1), 't', 'e', 's', 't'}};
}

static uint32_t flags_of(unsigned n)
{
    return n % 2 == 0 ? VHDX_METADATA_USER : VHDX_METADATA_VIRTUAL_DISK;
}

static void fill(uint8_t *bytes, uint32_t length, uint8_t value)
{
    for (uint32_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)(value + i / 509);
}

static void model_clear(struct model *m)
{
    memset(m, 0, sizeof *m);
    for (unsigned n = 0; n < NR_NAMES; n++)
        m->length[n] = UINT32_MAX;
}

static const struct metadata_entry *find(const struct image *img, unsigned n)
{
    for (uint32_t i = 0; i < img->nr_items; i++) {
        guid id = name_of(n);
        if (guid_equal(&img->items[i].id, &id))
            return &img->items[i];
    }
    return NULL;
}

/* NULL, or what is not as m says. */
static const char *differs(struct image *img, const struct model *m)
{
    static uint8_t found[MIB(1)], wanted[MIB(1)];
    uint32_t nr = 0;

    for (unsigned n = 0; n < NR_NAMES; n++) {
        const struct metadata_entry *e = find(img, n);
        if ((m->length[n] == UINT32_MAX) != (e == NULL))
            return e ? "an item too many" : "an item is missing";
        if (!e)
            continue;
        nr++;
        if (e->length != m->length[n] || e->flags != flags_of(n))
            return "another length or other flags";
        fill(wanted, e->length, m->value[n]);
        assert_succeeds(image_pread(img, found, e->length, img->metadata->file_offset + e->offset));
        if (memcmp(found, wanted, e->length) != 0)
            return "other bytes";
    }
    return img->nr_items == nr + 6 ? NULL : "not so many items";
}

static void must_be(struct storage *s, const struct model *m)
{
    struct image *img = MUST_OPEN(s, 0);
    const char *difference = differs(img, m);

    if (difference) {
        print_error("%s\n", difference);
        assert_null(difference);
    }
    assert_int_equal(img->values.virtual_size, MIB(64));
    image_close(img);
}

/* ---- changing ---- */

struct changes {
    struct item_change list[NR_NAMES];
    uint8_t *bytes[NR_NAMES];
    size_t nr;
};

static void add_change(struct changes *c, struct model *m, unsigned n, uint32_t length, uint8_t value)
{
    uint8_t *bytes = exact_bytes(length == UINT32_MAX ? 0 : length);

    fill(bytes, length == UINT32_MAX ? 0 : length, value);
    c->list[c->nr] = (struct item_change){
        .id = name_of(n), .flags = flags_of(n), .remove = length == UINT32_MAX, .bytes = bytes, .length = length};
    c->bytes[c->nr++] = bytes;
    m->length[n] = length;
    m->value[n] = value;
}

static int make_changes(struct image *img, struct changes *c)
{
    int r = image_change_items(img, c->list, c->nr);

    while (c->nr > 0)
        free(c->bytes[--c->nr]);
    return r;
}

/* One item in so many becomes anything. */
static void add_random_changes(struct changes *c, struct model *m, uint64_t *random, uint32_t longest, unsigned one_in)
{
    for (unsigned n = 0; n < NR_NAMES; n++) {
        uint64_t kind = random_next(random) % 8;
        uint32_t length = kind == 0 ? UINT32_MAX : kind == 1 ? 0 : (uint32_t)(random_next(random) % longest);
        if (random_next(random) % one_in == 0)
            add_change(c, m, n, length, (uint8_t)random_next(random));
    }
}

static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= random_cases(20); seed++) {
        uint64_t random = seed;
        struct image_plan plan;
        struct model m;
        struct changes c = {0};
        model_clear(&m);
        struct storage *s = new_image(&plan, 4);
        for (unsigned session = 0; session < 3; session++) {
            struct image *img = begin_writing(s);
            for (unsigned n = 0; n < 5; n++) {
                add_random_changes(&c, &m, &random, seed % 2 ? 20000 : 150000, 3);
                assert_succeeds(make_changes(img, &c));
                if (random_next(&random) % 2)
                    assert_succeeds(writer_commit(img));
            }
            assert_succeeds(image_close(img));
            must_be(s, &m);
        }
        storage_close(s);
    }
}

/* The change that is being made when the power fails is made or not; those before it are. */
static void crash_at_every_step(uint32_t longest, unsigned nr_changes, unsigned one_in)
{
    struct model models[16];
    size_t committed[16];
    struct image_plan plan;
    struct recording recording;
    struct storage *recorder;
    struct changes c = {0};
    uint64_t random = longest;

    model_clear(&models[0]);
    struct storage *s = new_image(&plan, 4);
    assert_succeeds(recording_init(&recording, s));
    assert_succeeds(recorder_wrap(&recording, s, &recorder));
    struct image *img = begin_writing(recorder);
    for (unsigned n = 1; n <= nr_changes; n++) {
        models[n] = models[n - 1];
        add_random_changes(&c, &models[n], &random, longest, one_in);
        assert_succeeds(make_changes(img, &c));
        assert_succeeds(writer_commit(img));
        committed[n] = recording_nr_steps(&recording);
    }
    assert_succeeds(image_close(img));
    storage_close(recorder);
    unsigned least = 0;
    const size_t stride = 20 / random_cases(20);
    for (size_t step = 0; step <= recording.nr_steps; step += stride) {
        while (least < nr_changes && committed[least + 1] <= step)
            least++;
        for (uint64_t seed = 0; seed < 4; seed++) {
            struct storage *left;
            assert_succeeds(powerloss_random(&recording, step, step * 100 + seed, &left));
            img = MUST_OPEN(left, 0);
            if (differs(img, &models[least])) {
                assert_in_range(least, 0, nr_changes - 1);
                assert_null(differs(img, &models[least + 1]));
            }
            image_close(img);
            storage_close(left);
        }
    }
    recording_destroy(&recording);
    storage_close(s);
}

static void test_crash_small(void **state)
{
    (void)state;
    crash_at_every_step(600, 12, 3);
}

/* Items of many pages: several entries of the log, of which only the last shows. */
static void test_crash_large(void **state)
{
    (void)state;
    crash_at_every_step(140000, 5, 3);
    crash_at_every_step(140001, 5, 1);
}

/* ---- limits ---- */

static void test_longest_item(void **state)
{
    struct image_plan plan;
    struct model m;
    struct changes c = {0};

    (void)state;
    model_clear(&m);
    struct storage *s = new_image(&plan, 4);
    struct image *img = begin_writing(s);
    add_change(&c, &m, 0, (uint32_t)MIB(1), 7);
    add_change(&c, &m, 1, (uint32_t)MIB(1), 8);
    assert_succeeds(make_changes(img, &c));
    struct model same = m;
    add_change(&c, &same, 2, (uint32_t)MIB(1) + 1, 9);
    assert_fails(make_changes(img, &c), VHDX_E_LIMIT, "1 MiB");
    assert_succeeds(image_close(img));
    must_be(s, &m);
    storage_close(s);
}

/* A full region: what fits is made, what does not changes nothing; what is replaced in one entry may use its own space. */
static void test_full_region(void **state)
{
    struct image_plan plan;
    struct model m;
    struct changes c = {0};
    const uint32_t all = (uint32_t)(MIB(1) - KIB(64) - 2 * PAGE_BYTES), small = (uint32_t)(all - KIB(100));

    (void)state;
    model_clear(&m);
    struct storage *s = new_image(&plan, 1);
    struct image *img = begin_writing(s);
    add_change(&c, &m, 0, small, 7);
    assert_succeeds(make_changes(img, &c));
    struct model same = m;
    add_change(&c, &same, 1, (uint32_t)KIB(120), 8);
    assert_fails(make_changes(img, &c), -ENOSPC, "no room");
    add_change(&c, &m, 2, (uint32_t)KIB(90), 1);
    assert_succeeds(make_changes(img, &c));
    add_change(&c, &m, 2, (uint32_t)KIB(91), 2);
    assert_succeeds(make_changes(img, &c));
    assert_succeeds(image_close(img));
    must_be(s, &m);

    img = begin_writing(s);
    add_change(&c, &m, 0, UINT32_MAX, 0);
    assert_succeeds(make_changes(img, &c));
    add_change(&c, &m, 1, small, 9);
    assert_succeeds(make_changes(img, &c));
    assert_succeeds(image_close(img));
    must_be(s, &m);
    storage_close(s);
}

static void test_full_table(void **state)
{
    struct image_plan plan;
    struct item_change change = {.flags = VHDX_METADATA_USER, .bytes = "x", .length = 1};

    (void)state;
    struct storage *s = new_image(&plan, 1);
    struct image *img = begin_writing(s);
    for (unsigned n = 1; n <= MAX_USER_ITEMS; n++) {
        le16_put(change.id.bytes, (uint16_t)n);
        assert_succeeds(image_change_items(img, &change, 1));
    }
    le16_put(change.id.bytes, MAX_USER_ITEMS + 1);
    assert_fails(image_change_items(img, &change, 1), VHDX_E_LIMIT, "items");
    assert_succeeds(image_close(img));
    img = MUST_OPEN(s, 0);
    assert_int_equal(img->nr_items, MAX_USER_ITEMS + 6);
    image_close(img);
    storage_close(s);
}

/* ---- known items ---- */

static void test_parent_locator(void **state)
{
    struct image_plan plan;
    uint8_t item[2048];
    const char *const longer[][2] = {
        {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
        {"relative_path", ".\\a much longer name for a parent than the one before.vhdx"},
        {"parent_linkage2", "{00000000-0000-0000-0000-000000000000}"},
    };

    (void)state;
    struct storage *s = new_image(&plan, 1);
    struct image *img = begin_writing(s);
    struct item_change c = item_change_known(METADATA_PARENT_LOCATOR, item, locator_encode(longer, 3, item, sizeof item));
    assert_succeeds(image_change_items(img, &c, 1));
    assert_int_equal(img->locator_length, c.length);
    assert_memory_equal(img->locator, item, c.length);
    assert_succeeds(image_close(img));
    img = MUST_OPEN(s, 0);
    assert_int_equal(img->locator_length, c.length);
    assert_memory_equal(img->locator, item, c.length);
    assert_int_equal(img->nr_items, 6);
    assert_true(guid_equal(&img->header.data_write_guid, &plan.header.data_write_guid));
    image_close(img);
    storage_close(s);
}

/* A table that cannot be read in the middle of it: nothing is changed, and it works when it can. */
static void test_read_error(void **state)
{
    struct image_plan plan;
    struct model m;
    struct changes c = {0};

    (void)state;
    model_clear(&m);
    struct storage *s = new_image(&plan, 4);
    struct image *img = begin_writing(s);
    struct model same = m;
    add_change(&c, &same, 3, (uint32_t)KIB(200), 5);
    fault_arm(&test_fault, &(struct fault_plan){.kind = FAULT_READ, .nth = 3, .forever = true, .error = -EIO});
    assert_fails(make_changes(img, &c), -EIO, "");
    fault_arm(&test_fault, NULL);
    assert_int_equal(img->nr_items, 6);
    add_change(&c, &m, 3, (uint32_t)KIB(200), 6);
    assert_succeeds(make_changes(img, &c));
    assert_succeeds(image_close(img));
    must_be(s, &m);
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_crash_small),
        cmocka_unit_test(test_crash_large),
        cmocka_unit_test(test_longest_item),
        cmocka_unit_test(test_full_region),
        cmocka_unit_test(test_full_table),
        cmocka_unit_test(test_parent_locator),
        cmocka_unit_test(test_read_error),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
