/* SPDX-License-Identifier: MIT */
/* nbdkit-vhdx-plugin: what nbdkit calls.  vhdx.h allows every call from every thread, so requests go straight through. */
#include "plugin.h"

#include <errno.h>
#include <stdio.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* ---- life ---- */

static void plugin_dump(void)
{
    printf("vhdx_library_version=%s\n", vhdx_version());
    printf("vhdx_formats=fixed dynamic differencing\n");
    printf("vhdx_access=auto read write\n");
}

static void plugin_unload(void)
{
    served_close(); /* if nbdkit gave up between .get_ready and serving */
    served_free();
    parameters_free();
}

static int plugin_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
    (void)readonly;
    (void)is_tls; /* nothing here is a secret */
    return nbdkit_add_export(exports, "", served_description());
}

/* Every export name gives the same disk, as with nbdkit's other plugins; nbdkit-exportname-filter(1) is for those who want more.
 */
static void *plugin_open(int readonly)
{
    return served_connect(readonly);
}

static void plugin_close(void *handle)
{
    served_disconnect(handle);
}

/* ---- negotiation ---- */

static int64_t plugin_get_size(void *handle)
{
    const struct connection *c = handle;
    return (int64_t)c->size; /* 64 TiB at most */
}

static const char *plugin_export_description(void *handle)
{
    (void)handle;
    return served_description();
}

/* Any byte may be asked for.  Less than a physical sector, or a page of the host, costs somebody a read before the write.  The
 * maximum is nbdkit's own for requests with data. */
static int plugin_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
    const struct connection *c = handle;

    *minimum = 1;
    *preferred = c->physical_sector_size > 4096 ? c->physical_sector_size : 4096;
    *maximum = UINT32_C(64) << 20;
    return 0;
}

static int plugin_can_write(void *handle)
{
    const struct connection *c = handle;
    return c->writable;
}

/* Also where nothing can be written: there is never anything that a flush would have to wait for. */
static int plugin_can_flush(void *handle)
{
    (void)handle;
    return 1;
}

static int plugin_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

/* Only success has to be fast, or failure: see plugin_zero(). */
static int plugin_can_fast_zero(void *handle)
{
    const struct connection *c = handle;
    return c->writable;
}

static int plugin_can_multi_conn(void *handle)
{
    (void)handle;
    return 1; /* one disk for all of them: served.c */
}

/* Reading is what brings data into the host's page cache, and nothing else can: which bytes of which file they are is not known
 * here, and what the disk has no data for needs no cache. */
static int plugin_can_cache(void *handle)
{
    (void)handle;
    return NBDKIT_CACHE_EMULATE;
}

/* ---- requests ---- */

static uint32_t write_flags(uint32_t flags)
{
    return flags & NBDKIT_FLAG_FUA ? VHDX_FUA : 0;
}

/* The end of a request for which served_request() said yes. */
static int finish(struct connection *c, int code, atomic_uint_fast64_t *requests, atomic_uint_fast64_t *bytes, uint32_t nr)
{
    if (code < 0) {
        atomic_fetch_add_explicit(&c->counts.failures, 1, memory_order_relaxed);
        report_error(code);
        nbdkit_set_error(vhdx_errno(code));
    } else {
        atomic_fetch_add_explicit(requests, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(bytes, nr, memory_order_relaxed);
    }
    served_answer(c);
    return code < 0 ? -1 : 0;
}

static int plugin_pread(void *handle, void *buf, uint32_t nr, uint64_t offset, uint32_t flags)
{
    struct connection *c = handle;

    (void)flags;
    if (!served_request(c))
        return -1;
    return finish(c, vhdx_pread(c->disk, buf, nr, offset), &c->counts.reads, &c->counts.read_bytes, nr);
}

static int plugin_pwrite(void *handle, const void *buf, uint32_t nr, uint64_t offset, uint32_t flags)
{
    struct connection *c = handle;

    if (!served_request(c))
        return -1;
    int code = vhdx_pwrite(c->disk, buf, nr, offset, write_flags(flags));
    return finish(c, code, &c->counts.writes, &c->counts.write_bytes, nr);
}

static int plugin_flush(void *handle, uint32_t flags)
{
    struct connection *c = handle;

    (void)flags;
    if (!served_request(c))
        return -1;
    return finish(c, c->writable ? vhdx_flush(c->disk) : 0, &c->counts.flushes, &c->counts.write_bytes, 0);
}

static int plugin_trim(void *handle, uint32_t nr, uint64_t offset, uint32_t flags)
{
    struct connection *c = handle;

    if (!served_request(c))
        return -1;
    int code = vhdx_discard(c->disk, offset, nr, write_flags(flags));
    return finish(c, code, &c->counts.trims, &c->counts.trim_bytes, nr);
}

/* Without MAY_TRIM (NBD_CMD_FLAG_NO_HOLE) the client wants space for what it will write here.  FAST_ZERO must fail at once where
 * zeros would have to be written; the client then does what it thinks best, so this is no error to report. */
static int plugin_zero(void *handle, uint32_t nr, uint64_t offset, uint32_t flags)
{
    struct connection *c = handle;
    uint32_t how = write_flags(flags) | (flags & NBDKIT_FLAG_MAY_TRIM ? 0 : VHDX_NO_HOLE) |
                   (flags & NBDKIT_FLAG_FAST_ZERO ? VHDX_FAST_ZERO : 0);

    if (!served_request(c))
        return -1;
    int code = vhdx_zero(c->disk, offset, nr, how);
    if (code == -EOPNOTSUPP && flags & NBDKIT_FLAG_FAST_ZERO) {
        nbdkit_debug("no fast zero: %s", vhdx_error_message());
        nbdkit_set_error(EOPNOTSUPP);
        served_answer(c);
        return -1;
    }
    return finish(c, code, &c->counts.zeros, &c->counts.zero_bytes, nr);
}

static int plugin_extents(void *handle, uint32_t nr, uint64_t offset, uint32_t flags, struct nbdkit_extents *extents)
{
    struct connection *c = handle;

    if (!served_request(c))
        return -1;
    int code = extents_collect(c->disk, offset, nr, flags & NBDKIT_FLAG_REQ_ONE, extents);
    int r = finish(c, code < 0 ? code : 0, &c->counts.questions, &c->counts.questions, 0);
    return code == 0 ? r : -1;
}

static struct nbdkit_plugin plugin = {
    .name = "vhdx",
    .longname = "VHDX plugin for nbdkit",
    .version = VHDX_VERSION,
    .description = "Serve VHDX (Hyper-V virtual hard disk v2) images: fixed, dynamic, differencing.",
    .config_help = parameters_help,
    .magic_config_key = "file",
    .dump_plugin = plugin_dump,
    .config = parameters_take,
    .config_complete = parameters_complete,
    .get_ready = served_open,
    .after_fork = served_begin,
    .cleanup = served_close,
    .unload = plugin_unload,
    .list_exports = plugin_list_exports,
    .open = plugin_open,
    .close = plugin_close,
    .get_size = plugin_get_size,
    .export_description = plugin_export_description,
    .block_size = plugin_block_size,
    .can_write = plugin_can_write,
    .can_flush = plugin_can_flush,
    .can_trim = plugin_can_write,
    .can_zero = plugin_can_write,
    .can_fast_zero = plugin_can_fast_zero,
    .can_fua = plugin_can_fua,
    .can_multi_conn = plugin_can_multi_conn,
    .can_cache = plugin_can_cache,
    .pread = plugin_pread,
    .pwrite = plugin_pwrite,
    .flush = plugin_flush,
    .trim = plugin_trim,
    .zero = plugin_zero,
    .extents = plugin_extents,
    .errno_is_preserved = 0, /* nbdkit_set_error() says it */
};

struct nbdkit_plugin *plugin_init(void);
NBDKIT_REGISTER_PLUGIN(plugin)
