/* SPDX-License-Identifier: MIT */
#include "mount/client.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mount/loop.h"
#include "mount/protocol.h"
#include "output.h"

/* Wait for the server to say that.  0; or -1: it has ended, and said why. */
static int await(int server_fd, enum message_kind kind, struct message *message)
{
    do {
        if (message_receive(server_fd, message) <= 0)
            return -1;
    } while (message->kind != kind);
    return 0;
}

static void list_numbers(const struct partition_list *list, char *text, size_t text_bytes)
{
    size_t used = 0;

    text[0] = '\0';
    for (uint32_t i = 0; i < list->count && used < text_bytes; i++)
        used += (size_t)snprintf(text + used, text_bytes - used, "%s%" PRIu32, i ? ", " : "", list->partitions[i].number);
}

/* The name of the file that holds the file system.  0; or -1, reported. */
static int choose_file(const struct mount_plan *plan, const struct partition_list *list, char *name, size_t name_bytes)
{
    char numbers[256];

    snprintf(name, name_bytes, "disk");
    if (plan->partition == PARTITION_NONE || (plan->partition == PARTITION_ANY && list->count == 0))
        return 0;
    for (uint32_t i = 0; i < list->count; i++) {
        if (plan->partition == (int64_t)list->partitions[i].number || (plan->partition == PARTITION_ANY && list->count == 1)) {
            snprintf(name, name_bytes, "p%" PRIu32, list->partitions[i].number);
            return 0;
        }
    }
    list_numbers(list, numbers, sizeof numbers);
    if (plan->partition == PARTITION_ANY)
        print_error(plan->image, "the disk has partitions %s: say which one to mount, with --partition", numbers);
    else if (list->count == 0)
        print_error(plan->image, "there is no partition %" PRId64 ": the disk has none (--partition 0 is the whole disk)",
                    plan->partition);
    else
        print_error(plan->image, "there is no partition %" PRId64 ", only %s", plan->partition, numbers);
    return -1;
}

static int mount_fs(const struct mount_plan *plan, const struct partition_list *list, uint32_t sector_bytes)
{
    char name[16], device[LOOP_DEVICE_BYTES], *file;

    if (choose_file(plan, list, name, sizeof name) < 0)
        return -1;
    if (asprintf(&file, "%s/%s", plan->fuse_dir, name) < 0) {
        print_error(plan->image, "out of memory");
        return -1;
    }
    int loop_fd = loop_attach(file, sector_bytes, plan->read_only, device);
    free(file);
    if (loop_fd < 0) {
        print_error(plan->image, "no loop device can be had for %s: %s", name, strerror(-loop_fd));
        return -1;
    }
    int code = mount_device(plan, device);
    close(loop_fd); /* the mounted file system keeps the device from now on */
    return code;
}

int client_run(const struct mount_plan *plan, int server_fd)
{
    struct message *message = calloc(1, sizeof *message), *found = calloc(1, sizeof *found);
    char *disk = NULL;
    int code = -1;

    if (!message || !found || asprintf(&disk, "%s/disk", plan->fuse_dir) < 0) {
        print_error(plan->image, "out of memory");
        goto out;
    }
    if (await(server_fd, MESSAGE_LIVE, message) < 0)
        goto out;
    uint32_t sector_bytes = message->sector_bytes;
    partitions_read(disk, plan->image, message->disk_bytes, sector_bytes, &found->partitions);
    found->kind = MESSAGE_PARTITIONS;
    if (message_send(server_fd, found) < 0 || await(server_fd, MESSAGE_SHOWN, message) < 0)
        goto out;
    if (plan->fs_dir && mount_fs(plan, &found->partitions, sector_bytes) < 0)
        goto out;
    found->kind = MESSAGE_READY;
    if (message_send(server_fd, found) < 0 || await(server_fd, MESSAGE_BYE, message) < 0)
        goto out;
    code = 0;
out:
    free(disk);
    free(found);
    free(message);
    return code;
}
