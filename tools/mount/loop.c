/* SPDX-License-Identifier: MIT */
#include "mount/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mount/mounts.h"
#include "output.h"

/* How often another program may take the device that was free. */
enum { MAX_TRIES = 64 };

/* With direct I/O the device sends its requests at once, many at a time; otherwise one after the other.  Autoclear: a plain
 * umount(8) of the file system ends the loop device too, and with it the mount below. */
static int configure(int loop_fd, int file_fd, const char *file, uint32_t sector_bytes, bool read_only)
{
    struct loop_config config = {
        .fd = (uint32_t)file_fd,
        .block_size = sector_bytes,
        .info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO | (read_only ? LO_FLAGS_READ_ONLY : 0),
    };

    snprintf((char *)config.info.lo_file_name, sizeof config.info.lo_file_name, "%s", file);
    return ioctl(loop_fd, LOOP_CONFIGURE, &config) < 0 ? -errno : 0;
}

int loop_attach(const char *file, uint32_t sector_bytes, bool read_only, char device[LOOP_DEVICE_BYTES])
{
    int mode = read_only ? O_RDONLY : O_RDWR, code = -EBUSY;
    int control_fd = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int file_fd = open(file, mode | O_CLOEXEC | O_NOFOLLOW), file_error = errno;

    if (control_fd < 0 || file_fd < 0) {
        code = control_fd < 0 ? -ENODEV : -file_error;
        goto out;
    }
    for (int tries = 0; tries < MAX_TRIES && code == -EBUSY; tries++) {
        int number = ioctl(control_fd, LOOP_CTL_GET_FREE);
        if (number < 0) {
            code = -errno;
            break;
        }
        snprintf(device, LOOP_DEVICE_BYTES, "/dev/loop%d", number);
        int loop_fd = open(device, mode | O_CLOEXEC);
        if (loop_fd < 0) {
            code = -errno;
            break;
        }
        code = configure(loop_fd, file_fd, file, sector_bytes, read_only);
        if (code == 0)
            code = loop_fd;
        else
            close(loop_fd);
    }
out:
    if (file_fd >= 0)
        close(file_fd);
    if (control_fd >= 0)
        close(control_fd);
    return code;
}

/* ---- mount(8) ---- */

static int run_mount(const struct mount_plan *plan, const char *device, const char *more_options, int error_fd)
{
    char *options = NULL;
    int status = -ENOMEM;

    /* With the helper umount.vhdx in place, umount(8) too waits until the image is closed. */
    if (asprintf(&options, "%s,helper=vhdx%s%s%s%s", plan->read_only ? "ro" : "rw", *plan->fs_options ? "," : "", plan->fs_options,
                 *more_options ? "," : "", more_options) >= 0) {
        const char *argv[] = {"mount", "-o", options, "--", device, plan->fs_dir, NULL};
        status = run_program(argv, error_fd);
    }
    free(options);
    return status;
}

static void report_mount(const struct mount_plan *plan, int status, int error_fd)
{
    char text[2048];
    ssize_t n = pread(error_fd, text, sizeof text - 1, 0);

    if (status < 0) {
        print_error(plan->image, "mount(8) cannot be run: %s", strerror(-status));
        return;
    }
    text[n > 0 ? n : 0] = '\0';
    text[strcspn(text, "\n")] = '\0'; /* what follows tells to look at dmesg */
    print_error(plan->image, "the file system cannot be mounted: %s", *text ? text : "mount(8) failed");
}

/* File systems with a journal that was not written out want to replay it, for which a read-only device gives no leave.  These
 * options, each for some of them, show what is there without that. */
static const char *const without_replay[] = {"norecovery", "rescue=nologreplay"};

int mount_device(const struct mount_plan *plan, const char *device)
{
    int error_fd = memfd_create("vhdx-mount-errors", MFD_CLOEXEC);

    if (error_fd < 0) {
        print_error(plan->image, "%s", strerror(errno));
        return -1;
    }
    int status = run_mount(plan, device, "", error_fd);
    for (size_t i = 0; status > 0 && plan->read_only && i < sizeof without_replay / sizeof *without_replay; i++) {
        int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
        if (run_mount(plan, device, without_replay[i], null) == 0) {
            print_warning(plan->image, "the file system was not unmounted properly and is shown without its journal (%s): what "
                                       "was written last may be missing or wrong", without_replay[i]);
            status = 0;
        }
        close(null);
    }
    if (status != 0)
        report_mount(plan, status, error_fd);
    close(error_fd);
    return status == 0 ? 0 : -1;
}
