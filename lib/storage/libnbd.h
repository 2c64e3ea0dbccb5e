/* SPDX-License-Identifier: MIT */
/* libnbd, loaded when the first NBD server is used: it brings a TLS library and others along, which would cost every program
 * that starts with this library milliseconds, and make them all depend on it. */
#ifndef VHDX_STORAGE_LIBNBD_H
#define VHDX_STORAGE_LIBNBD_H

#include <libnbd.h>

/* clang-format off */
#define LIBNBD_FUNCTIONS(F) \
    F(create) F(close) F(connect_uri) F(get_error) F(get_errno) \
    F(set_uri_allow_local_file) F(add_meta_context) F(can_meta_context) \
    F(get_size) F(get_block_size) F(is_read_only) F(can_flush) F(can_zero) \
    F(aio_pread) F(aio_pwrite) F(aio_flush) F(aio_zero) F(aio_block_status) F(aio_disconnect) \
    F(aio_get_fd) F(aio_get_direction) F(aio_notify_read) F(aio_notify_write) F(aio_is_dead) F(aio_is_closed)
/* clang-format on */

struct libnbd {
#define LIBNBD_MEMBER(name) __typeof__(nbd_##name) *name;
    LIBNBD_FUNCTIONS(LIBNBD_MEMBER)
#undef LIBNBD_MEMBER
};

/* Fill *api.  -ENOTSUP if the library is not installed.  It stays loaded: it has threads' data that outlive its users. */
int libnbd_load(struct libnbd *api);

#endif
