/* SPDX-License-Identifier: MIT */
/* What the server and the client of a mount tell each other, over a socket pair that keeps messages apart.  If either goes
 * away, the other sees the end of it. */
#ifndef MOUNT_PROTOCOL_H
#define MOUNT_PROTOCOL_H

#include <stdint.h>

#include "mount/partitions.h"

enum message_kind {
    MESSAGE_LIVE = 1,   /* server: requests are answered; `disk` is there */
    MESSAGE_PARTITIONS, /* client: these are the partitions */
    MESSAGE_SHOWN,      /* server: their files are there */
    MESSAGE_READY,      /* client: all is set up; the server may leave the terminal */
    MESSAGE_BYE,        /* server: has left it, the client may end with success */
};

struct message {
    uint32_t kind;
    uint32_t sector_bytes; /* of MESSAGE_LIVE */
    uint64_t disk_bytes;   /* of MESSAGE_LIVE */
    struct partition_list partitions; /* of MESSAGE_PARTITIONS */
};

/* 0, or a negative errno. */
int message_send(int fd, const struct message *message);

/* 1: there is one; 0: the other side is gone; or a negative errno. */
int message_receive(int fd, struct message *message);

#endif
