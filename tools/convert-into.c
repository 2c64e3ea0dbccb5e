/* SPDX-License-Identifier: MIT */
#include "convert-into.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>

#include "cmd.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "target.h"

/* Opened alone, so nobody else uses it: --force-share is for what is read. */
static int open_target(const char *name, uint32_t flags, vhdx_disk **target)
{
    struct vhdx_open_options options;

    open_options_fill(&options, flags | VHDX_OPEN_WRITE);
    options.flags &= ~(uint32_t)VHDX_OPEN_FORCE_SHARE;
    options.parent = NULL;
    int code = vhdx_open(name, &options, target);
    if (code < 0)
        print_library_error(name, code);
    return code;
}

/* What is behind the end of a smaller disk stays, as with qemu-img, so it had better be known. */
static void tell_of_rest(const char *name, uint64_t target_bytes, uint64_t source_bytes)
{
    if (target_bytes > source_bytes && !common.quiet)
        print_warning(name, "the target is larger than the disk: its last %" PRIu64 " bytes stay as they are",
                      target_bytes - source_bytes);
}

static int copy(vhdx_disk *source, const char *source_name, vhdx_disk *target, const char *target_name,
                struct vhdx_copy_options *copy_options)
{
    bool target_failed = false;

    copy_options->target_failed = &target_failed;
    progress_begin(true);
    int code = vhdx_copy_to_disk(source, target, copy_options);
    if (code == 0 && (code = vhdx_flush(target)) < 0)
        target_failed = true;
    progress_end(code == 0);
    if (code == -ECANCELED && signals_caught()) {
        print_error(target_name, "stopped by a signal; only part of the disk was written");
        return 128 + signals_caught();
    }
    if (code < 0)
        print_library_error(target_failed ? target_name : source_name, code);
    return code < 0 ? EXIT_TROUBLE : EXIT_OK;
}

int convert_into(vhdx_disk *source, const char *source_name, const char *target_name, uint32_t flags,
                 struct vhdx_copy_options *copy_options)
{
    vhdx_disk *target;

    signal(SIGXFSZ, SIG_IGN); /* so that a limit on file sizes is an error like others */
    signals_exit(); /* connecting may take long, and nothing is written yet */
    if (open_target(target_name, flags, &target) < 0)
        return EXIT_TROUBLE;
    signals_catch();
    limit_waiting_for(source_name);
    limit_waiting_for(target_name);
    if (vhdx_size(target) >= vhdx_size(source))
        tell_of_rest(target_name, vhdx_size(target), vhdx_size(source));
    int status = copy(source, source_name, target, target_name, copy_options);
    int code = vhdx_close(target);
    if (code < 0 && status == EXIT_OK) {
        print_library_error(target_name, code);
        status = EXIT_TROUBLE;
    }
    return status;
}
