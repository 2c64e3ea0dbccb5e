/* SPDX-License-Identifier: MIT */
/* In place of nbd.c where this library is built without an NBD client. */
#include <errno.h>
#include <stddef.h>

#include "base/error.h"
#include "storage/storage.h"

int storage_nbd_open(const char *uri, bool writable, struct storage **s)
{
    (void)uri;
    (void)writable;
    *s = NULL;
    return fail(-ENOTSUP, "this build cannot use NBD servers (it was configured with -Dnbd=disabled, or without libnbd); "
                "nbdfuse(1) or nbd-client(8) make a file or device of an export");
}
