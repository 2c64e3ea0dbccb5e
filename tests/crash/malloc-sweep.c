/* SPDX-License-Identifier: MIT */
#include "../unit/unit.h"
#include "malloc-sweep.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../support/doubles.h"
#include "../support/malloc-fault.h"
#include "ops/ops.h"

/* One failure; false: act made fewer than n allocations. */
static bool sweep_once(const struct malloc_sweep *sweep, void *opaque, uint64_t n, bool forever)
{
    int64_t memory = malloc_fault_outstanding();
    unsigned files = scratch_nr_open();

    if (sweep->prepare)
        sweep->prepare(opaque);
    malloc_fault_arm(n, forever);
    int r = sweep->act(opaque);
    bool struck = malloc_fault_disarm() > 0;
    if (r != 0 && (!struck || r != -ENOMEM || !*error_message())) {
        print_error("allocation %" PRIu64 "%s failing: the result is %d (%s)\n", n,
                    forever ? " and later ones" : "", r, error_message());
        _fail(__FILE__, __LINE__);
    }
    if (sweep->judge)
        sweep->judge(opaque, r);
    if (malloc_fault_outstanding() != memory || scratch_nr_open() != files) {
        print_error("allocation %" PRIu64 "%s failing: %" PRId64
                    " pieces of memory and %d files are left over\n",
                    n, forever ? " and later ones" : "", malloc_fault_outstanding() - memory,
                    (int)(scratch_nr_open() - files));
        _fail(__FILE__, __LINE__);
    }
    return struck;
}

uint64_t malloc_sweep(const struct malloc_sweep *sweep, void *opaque)
{
    uint64_t nr_failures = 0;

    for (int forever = 0; forever < 2; forever++) {
        for (uint64_t n = 1; sweep_once(sweep, opaque, n, forever); n++)
            nr_failures++;
    }
    print_message("# %" PRIu64 " failed allocations\n", nr_failures);
    assert_true(nr_failures > 0);
    return nr_failures;
}

void malloc_sweep_folder(char path[SCRATCH_PATH_BYTES])
{
    struct stat st;

    if (!getenv("TMPDIR") && stat("/dev/shm", &st) == 0 && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    scratch_make(path);
}

void copy_file(const char *from, const char *to)
{
    struct storage *source, *target;
    int fd = open(to, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_succeeds(storage_posix_open(from, 0, &source));
    assert_succeeds(storage_posix_from_fd(fd, true, false, &target));
    assert_succeeds(double_copy(source, target));
    storage_close(source);
    storage_close(target);
}

static void show(void *opaque, const struct vhdx_finding *finding)
{
    (void)opaque;
    if (finding->severity > VHDX_INFO)
        print_message("# rule %u: %s\n", finding->rule, finding->message);
}

void assert_sound(const char *path)
{
    struct vhdx_check_result result = {.struct_bytes = sizeof result};

    assert_succeeds(ops_check(path, NULL, show, NULL, &result, NULL, NULL));
    assert_true(result.usable);
    assert_int_equal(result.nr_errors, 0);
    assert_int_equal(result.nr_warnings, 0);
    assert_int_equal(result.leaked_bytes, 0);
}
