/* SPDX-License-Identifier: MIT */
#include "storage/libnbd.h"

#include <dlfcn.h>
#include <errno.h>

#include "base/error.h"

/* The name carries the version of the binary interface that libnbd.h describes. */
#define LIBRARY "libnbd.so.0"

int libnbd_load(struct libnbd *api)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

    if (!library)
        return fail(-ENOTSUP, "NBD servers are used through libnbd, which cannot be loaded (%s); install it (Debian package libnbd0)",
                    dlerror());
#define LOAD(name)                                                                                                            \
    api->name = (__typeof__(api->name))dlsym(library, "nbd_" #name);                                                          \
    if (!api->name)                                                                                                           \
        return fail(-ENOTSUP, "%s is too old: it has no nbd_%s; install libnbd 1.4 or later", LIBRARY, #name);
    LIBNBD_FUNCTIONS(LOAD)
#undef LOAD
    return 0;
}
