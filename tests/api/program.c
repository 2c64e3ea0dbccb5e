/* SPDX-License-Identifier: MIT */
/*
 * A program as a user of the library writes it, compiled as C17 and as C++17 against the installed header and linked
 * by pkg-config.  "program IMAGE GUEST-OFFSET COUNT" prints the disk's size and that many bytes in hex.
 */
#include <vhdx.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static int print_bytes(vhdx_disk *disk, uint64_t guest_offset, size_t count)
{
    unsigned char bytes[512];
    int rc;

    if (count > sizeof(bytes))
        count = sizeof(bytes);
    rc = vhdx_pread(disk, bytes, count, guest_offset);
    if (rc < 0)
        return rc;
    printf("%" PRIu64 " ", vhdx_size(disk));
    for (size_t i = 0; i < count; i++)
        printf("%02x", bytes[i]);
    printf("\n");
    return 0;
}

int main(int argc, char **argv)
{
    struct vhdx_open_options options = VHDX_OPEN_OPTIONS_INIT;
    vhdx_disk *disk = NULL;
    int rc;

    if (argc == 1) {
        printf("%s\n", vhdx_version());
        return 0;
    }
    if (argc != 4) {
        fprintf(stderr, "usage: program [IMAGE GUEST-OFFSET COUNT]\n");
        return 2;
    }

    rc = vhdx_open(argv[1], &options, &disk);
    if (rc == 0)
        rc = print_bytes(disk, strtoull(argv[2], NULL, 0), (size_t)strtoul(argv[3], NULL, 0));
    if (rc < 0)
        fprintf(stderr, "%d: %s: %s\n", vhdx_errno(rc), vhdx_strerror(rc), vhdx_error_message());
    vhdx_close(disk);
    return rc < 0;
}
