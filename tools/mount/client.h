/* SPDX-License-Identifier: MIT */
/* The process that uses a mount first: reads the partition table, mounts the file system inside. */
#ifndef MOUNT_CLIENT_H
#define MOUNT_CLIENT_H

#include "mount/plan.h"

/* Do so until the mount is ready.  server_fd: the socket to the server.  0; or -1 after a failure, which has been reported here
 * or by the server. */
int client_run(const struct mount_plan *plan, int server_fd);

#endif
