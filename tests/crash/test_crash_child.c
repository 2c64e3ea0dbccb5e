/* SPDX-License-Identifier: MIT */
/* What is left of a child when the power fails at any moment: it opens on its parents, and every sector reads as D5 says: never
 * the parent's where the child had something durable, never what somebody else left in the file.  With the argument "long" each
 * workload runs for VHDX_SEEDS seeds. */
#include "crash-sessions.h"

#include "base/math.h"

static const struct crash_setup small = {.sector_size = 512, .block_mib = 1, .log_mib = 1, .virtual_mib = 64, .nr_blocks = 5,
                                         .block_stride = 1, .nr_parents = 1, .parent_block_mib = 2};

static const struct crash_budget every_subset = {.exhaustive = 8192, .random = 4, .open_every = 128};
static const struct crash_budget by_chance = {.random = 10, .open_every = 64};
static const struct crash_budget few = {.random = 10, .open_every = 16};

/* Bits of earlier lives, and free space with data of blocks long gone. */
#define LEFT_BEHIND .cannot_punch = true, .foreign_space = true, .stale_bits = true

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        /* every subset of what was not flushed */
        sessions_test(test_every_subset, {.nr_blocks = 3}, 4, 14, &every_subset, 1),
        sessions_test(test_every_subset_4096, {.nr_blocks = 3, .sector_size = 4096, .stale_bits = true}, 4, 14, &every_subset, 1),
        sessions_test(test_every_subset_left_behind, {.nr_blocks = 3, LEFT_BEHIND}, 4, 14, &every_subset, 1),

        /* by chance */
        sessions_test(test_child, {0}, 3, 70, &by_chance, 1),
        sessions_test(test_child_4096, {.sector_size = 4096}, 3, 70, &by_chance, 1), /* the parents complete parts of sectors */
        sessions_test(test_no_punch, {.cannot_punch = true}, 3, 70, &by_chance, 1),
        sessions_test(test_left_behind, {LEFT_BEHIND}, 2, 70, &by_chance, 1),
        sessions_test(test_left_behind_4096, {.sector_size = 4096, LEFT_BEHIND}, 2, 70, &by_chance, 1),

        /* the disk ends inside its last block, which is soon complete */
        sessions_test(test_short_block, {.short_by = MIB(1) - KIB(16), .nr_blocks = 2}, 2, 60, &by_chance, 4),
        sessions_test(test_short_block_left_behind, {.short_by = MIB(1) - KIB(16), .nr_blocks = 2, LEFT_BEHIND}, 2, 60, &by_chance, 4),

        /* each block in a chunk of its own: bitmap blocks are allocated again and again, also where others were */
        sessions_test(test_many_bitmap_blocks, {.block_stride = 4096, .nr_blocks = 8, .virtual_mib = 8 * 4096}, 2, 70, &by_chance, 1),
        sessions_test(test_many_bitmap_blocks_in_foreign_space,
                      {.block_stride = 4096, .nr_blocks = 8, .virtual_mib = 8 * 4096, .cannot_punch = true, .foreign_space = true}, 2,
                      70, &by_chance, 1),

        sessions_test(test_deeper_chains, {.nr_parents = 3, .parent_block_mib = 1, .block_mib = 2, .nr_blocks = 3}, 2, 70, &by_chance, 1),
        /* slices of several pages */
        sessions_test(test_large_blocks, {.block_mib = 32, .parent_block_mib = 1, .virtual_mib = 256, .nr_blocks = 2, .stale_bits = true},
                      2, 20, &few, 1),
    };

    (void)argv;
    long_run = argc > 1;
    if (long_run)
        nr_seeds = crash_seeds(20, &first_seed);
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    print_message("# %" PRIu64 " crash states in all\n", all_states);
    return r;
}
