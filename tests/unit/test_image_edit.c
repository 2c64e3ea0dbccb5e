/* SPDX-License-Identifier: MIT */
/* Changing metadata through the log: identities, several pages at once or none of them, room in the dirty set. */
#include "image-test.h"

#include <stdlib.h>

#include "image/writer.h"

static const char *const locator[][2] = {
    {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
    {"relative_path", ".\\parent.vhdx"},
};

static void make_plan(struct image_plan *plan)
{
    image_plan_init(plan, MIB(64), (uint32_t)MIB(1), 512, locator, 2);
}

static bool same_guid(guid a, guid b)
{
    return guid_equal(&a, &b);
}

/* What nobody can see leaves the identity that children rely on; what can be seen after all changes it, once. */
static void test_identities(void **state)
{
    struct image_plan plan;

    (void)state;
    make_plan(&plan);
    struct storage *s = build_memory_image(&plan);
    struct image *img = MUST_OPEN(s, IMAGE_WRITABLE);
    assert_true(same_guid(writer_header(img).file_write_guid, plan.header.file_write_guid));
    assert_succeeds(writer_begin_invisible(img));
    struct header first = writer_header(img);
    assert_false(same_guid(first.file_write_guid, plan.header.file_write_guid));
    assert_true(same_guid(first.data_write_guid, plan.header.data_write_guid));
    assert_false(guid_is_zero(&first.log_guid));
    assert_succeeds(writer_begin_invisible(img));
    assert_int_equal(writer_header(img).sequence_no, first.sequence_no);

    assert_succeeds(writer_begin(img));
    struct header second = writer_header(img);
    assert_true(same_guid(second.file_write_guid, first.file_write_guid));
    assert_true(same_guid(second.log_guid, first.log_guid)); /* the log goes on */
    assert_false(same_guid(second.data_write_guid, first.data_write_guid));
    assert_succeeds(writer_begin(img));
    assert_succeeds(writer_begin_invisible(img));
    assert_int_equal(writer_header(img).sequence_no, second.sequence_no);

    guid mine = {"chosen by hand"};
    assert_succeeds(writer_begin_as(img, &mine));
    assert_true(same_guid(writer_header(img).data_write_guid, mine));
    assert_succeeds(image_close(img));
    img = MUST_OPEN(s, 0);
    assert_true(same_guid(img->header.data_write_guid, mine));
    assert_true(same_guid(img->header.file_write_guid, first.file_write_guid));
    assert_true(guid_is_zero(&img->header.log_guid));
    image_close(img);
    storage_close(s);
}

/* A chosen identity also as the first change of all. */
static void test_begin_as_first(void **state)
{
    struct image_plan plan;
    guid mine = {"chosen by hand"};

    (void)state;
    make_plan(&plan);
    struct storage *s = build_memory_image(&plan);
    struct image *img = MUST_OPEN(s, IMAGE_WRITABLE);
    assert_succeeds(writer_begin_as(img, &mine));
    assert_succeeds(writer_begin(img));
    assert_true(same_guid(writer_header(img).data_write_guid, mine));
    assert_false(same_guid(writer_header(img).file_write_guid, plan.header.file_write_guid));
    assert_succeeds(image_close(img));
    storage_close(s);
}

enum { NR_EDITS = 3, EDIT_BYTES = 600 };

/* Three places, one of them across two pages. */
static void make_edits(const struct image_plan *plan, uint8_t value, uint8_t bytes[EDIT_BYTES], struct metadata_edit edits[NR_EDITS])
{
    static const uint64_t places[NR_EDITS] = {0x20000, 0x21e00, 0x30010};

    memset(bytes, value, EDIT_BYTES);
    for (unsigned i = 0; i < NR_EDITS; i++)
        edits[i] = (struct metadata_edit){plan->metadata_offset + places[i], bytes, EDIT_BYTES};
}

/* All of them say value?  At most `newest` of them may; they must agree. */
static uint8_t value_of(struct image *img, const struct metadata_edit edits[NR_EDITS])
{
    uint8_t found[EDIT_BYTES], value = 0;

    for (unsigned i = 0; i < NR_EDITS; i++) {
        assert_succeeds(image_pread(img, found, EDIT_BYTES, edits[i].file_offset));
        if (i == 0)
            value = found[0];
        for (unsigned k = 0; k < EDIT_BYTES; k++)
            assert_int_equal(found[k], value);
    }
    return value;
}

/* Whenever the power fails: all three places or none, and what was committed is there. */
static void test_all_or_none(void **state)
{
    enum { NR_ROUNDS = 6 };
    struct image_plan plan;
    struct recording recording;
    struct storage *recorder;
    struct metadata_edit edits[NR_EDITS];
    uint8_t bytes[EDIT_BYTES];
    size_t committed[NR_ROUNDS + 1] = {0};

    (void)state;
    make_plan(&plan);
    struct storage *s = build_memory_image(&plan);
    assert_succeeds(recording_init(&recording, s));
    assert_succeeds(recorder_wrap(&recording, s, &recorder));
    struct image *img = MUST_OPEN(recorder, IMAGE_WRITABLE);
    assert_succeeds(writer_begin_invisible(img));
    for (unsigned n = 1; n <= NR_ROUNDS; n++) {
        uint8_t now[EDIT_BYTES];
        make_edits(&plan, (uint8_t)n, bytes, edits);
        assert_succeeds(image_edit_metadata(img, edits, NR_EDITS));
        for (unsigned i = 0; i < NR_EDITS; i++) {
            assert_succeeds(image_read_metadata(img, now, EDIT_BYTES, edits[i].file_offset));
            assert_memory_equal(now, bytes, EDIT_BYTES);
        }
        assert_succeeds(writer_commit(img));
        committed[n] = recording_nr_steps(&recording);
    }
    assert_succeeds(image_close(img));
    storage_close(recorder);
    for (size_t step = 0; step <= recording.nr_steps; step++) {
        for (uint64_t seed = 0; seed < 8; seed++) {
            struct storage *left;
            unsigned at_least = 0;
            assert_succeeds(powerloss_random(&recording, step, step * 100 + seed, &left));
            img = MUST_OPEN(left, 0);
            uint8_t value = value_of(img, edits);
            for (unsigned n = 1; n <= NR_ROUNDS; n++)
                at_least = committed[n] <= step ? n : at_least;
            assert_in_range(value, at_least, NR_ROUNDS);
            image_close(img);
            storage_close(left);
        }
    }
    recording_destroy(&recording);
    storage_close(s);
}

/* More changed pages than an entry takes: older ones are committed to make room, and none is lost. */
static void test_room(void **state)
{
    enum { NR_PAGES = 240, PER_EDIT = PAGE_SET_MAX };
    struct image_plan plan;
    struct metadata_edit edit;
    uint8_t *bytes = malloc((size_t)PER_EDIT * PAGE_BYTES);

    (void)state;
    make_plan(&plan);
    struct storage *s = build_memory_image(&plan);
    struct image *img = MUST_OPEN(s, IMAGE_WRITABLE);
    uint64_t base = plan.metadata_offset + METADATA_TABLE_RAW_BYTES;
    assert_succeeds(writer_begin_invisible(img));
    base += PAGE_BYTES; /* the items stay */
    for (uint64_t page = 0; page + PER_EDIT <= NR_PAGES; page += PER_EDIT) {
        memset(bytes, (int)(1 + page / PER_EDIT), (size_t)PER_EDIT * PAGE_BYTES);
        edit = (struct metadata_edit){base + page * PAGE_BYTES, bytes, (size_t)PER_EDIT * PAGE_BYTES};
        assert_succeeds(image_edit_metadata(img, &edit, 1));
    }
    edit = (struct metadata_edit){base, bytes, (size_t)PER_EDIT * PAGE_BYTES - 1};
    edit.file_offset += 100; /* one page too many */
    edit.length = (size_t)PER_EDIT * PAGE_BYTES - 50;
    assert_fails(image_edit_metadata(img, &edit, 1), -E2BIG, "pages");
    assert_succeeds(image_close(img));
    img = MUST_OPEN(s, 0);
    for (uint64_t page = 0; page + PER_EDIT <= NR_PAGES; page++) {
        assert_succeeds(image_pread(img, bytes, PAGE_BYTES, base + page * PAGE_BYTES));
        assert_int_equal(bytes[0], 1 + page / PER_EDIT);
        assert_int_equal(bytes[PAGE_BYTES - 1], 1 + page / PER_EDIT);
    }
    image_close(img);
    storage_close(s);
    free(bytes);
}

/* Writing the new DataWriteGuid fails half-way: which one counts is in doubt, so nothing more is written (D9). */
static void test_failed_announcement(void **state)
{
    struct image_plan plan;
    uint8_t byte = 1;

    (void)state;
    make_plan(&plan);
    struct storage *s = build_memory_image(&plan);
    struct image *img = MUST_OPEN(s, IMAGE_WRITABLE);
    assert_succeeds(writer_begin_invisible(img));
    fault_arm(&test_fault, &(struct fault_plan){.kind = FAULT_FLUSH, .nth = 2, .error = -EIO});
    assert_fails(writer_begin(img), -EIO, "");
    fault_arm(&test_fault, NULL);
    struct metadata_edit edit = {plan.metadata_offset + 0x20000, &byte, 1};
    assert_fails(image_edit_metadata(img, &edit, 1), -EIO, "earlier write");
    assert_fails(writer_begin(img), -EIO, "earlier write");
    assert_int_equal(image_close(img), -EIO);
    img = MUST_OPEN(s, 0);
    image_close(img);
    storage_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identities),
        cmocka_unit_test(test_begin_as_first),
        cmocka_unit_test(test_all_or_none),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_failed_announcement),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
