/* SPDX-License-Identifier: MIT */
#include "mount/protocol.h"

#include <errno.h>
#include <sys/socket.h>

int message_send(int fd, const struct message *message)
{
    ssize_t n;

    do {
        n = send(fd, message, sizeof *message, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

int message_receive(int fd, struct message *message)
{
    ssize_t n;

    do {
        n = recv(fd, message, sizeof *message, 0);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == ECONNRESET ? 0 : -errno;
    if (n == 0)
        return 0;
    return n == sizeof *message && message->partitions.count <= MAX_PARTITIONS ? 1 : -EPROTO;
}
