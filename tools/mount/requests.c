/* SPDX-License-Identifier: MIT */
/* The FUSE requests: a folder with the disk and its partitions as files, each a range of the disk.
 *
 * The files of a disk that can be written are open with FOPEN_DIRECT_IO: every request comes here and none is answered from
 * pages of the kernel.  `disk` and `p1` show the same bytes, and the kernel would cache them twice and notice nothing when one
 * of them is written; a loop device has its own page cache above and would double every page; and a write that this process
 * has seen is one that fsync(2) and a crash are judged by.  The price is a request for each small read, and no shared mmap(2).
 * A disk that nobody can write is cached by the kernel as any file. */
#define FUSE_USE_VERSION 312

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <time.h>

#include "mount/mounts.h"
#include "mount/report.h"
#include "mount/server.h"
#include "mount/status.h"

enum {
    FIRST_FILE_INO = FUSE_ROOT_ID + 1,
    STATUS_INO = 1 << 20,
    BLOCK_BYTES = 4096, /* of stat(2) and statvfs(3); a loop device takes it as the granularity of discards */
    SECTOR_BYTES = 512, /* what st_blocks counts in */
    MAX_BACKGROUND = 128,
    MAX_REPORTED_FAILURES = 100,
};

static const double FOREVER = 86400;

/* ---- what is there ---- */

static struct server *server_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

static const struct shown_file *file_of(const struct server *server, fuse_ino_t ino)
{
    uint32_t count = atomic_load(&server->nr_files);

    return ino >= FIRST_FILE_INO && ino - FIRST_FILE_INO < count ? &server->files[ino - FIRST_FILE_INO] : NULL;
}

static bool is_cached(const struct server *server)
{
    return server->plan->read_only && server->plan->may_cache;
}

static double attribute_timeout(const struct server *server)
{
    return is_cached(server) ? FOREVER : 0;
}

/* 0 or ENOENT. */
static int fill_stat(struct server *server, fuse_ino_t ino, struct stat *st)
{
    const struct mount_plan *plan = server->plan;
    const struct shown_file *file = file_of(server, ino);
    int64_t changed_ns = atomic_load(&server->changed_ns);

    *st = (struct stat){.st_ino = ino, .st_nlink = 1, .st_uid = plan->uid, .st_gid = plan->gid, .st_blksize = BLOCK_BYTES};
    st->st_mtim = (struct timespec){.tv_sec = changed_ns / 1000000000, .tv_nsec = changed_ns % 1000000000};
    st->st_atim = st->st_ctim = st->st_mtim;
    if (ino == FUSE_ROOT_ID) {
        st->st_mode = S_IFDIR | (0555 & ~plan->umask);
        st->st_nlink = 2;
    } else if (ino == STATUS_INO) {
        st->st_mode = S_IFREG | 0400;
        st->st_size = (off_t)strlen(server->status_text);
    } else if (file) {
        st->st_mode = S_IFREG | ((plan->read_only ? 0444 : 0666) & ~plan->umask);
        st->st_size = (off_t)file->length;
        st->st_blocks = (blkcnt_t)((usage_count(&server->usage, file->start, file->length) + SECTOR_BYTES - 1) / SECTOR_BYTES);
    } else {
        return ENOENT;
    }
    return 0;
}

static fuse_ino_t find_name(const struct server *server, const char *name)
{
    uint32_t count = atomic_load(&server->nr_files);

    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(server->files[i].name, name) == 0)
            return FIRST_FILE_INO + i;
    }
    return strcmp(name, STATUS_FILE) == 0 ? STATUS_INO : 0;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct server *server = server_of(req);
    struct fuse_entry_param entry = {
        .ino = parent == FUSE_ROOT_ID ? find_name(server, name) : 0,
        .entry_timeout = FOREVER, /* names come (which is why their absence is not cached) but never go */
        .attr_timeout = attribute_timeout(server),
    };

    if (entry.ino == 0 || fill_stat(server, entry.ino, &entry.attr) != 0)
        fuse_reply_err(req, ENOENT);
    else
        fuse_reply_entry(req, &entry);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct server *server = server_of(req);
    struct stat st;
    int error = fill_stat(server, ino, &st);

    (void)fi;
    if (error)
        fuse_reply_err(req, error);
    else
        fuse_reply_attr(req, &st, attribute_timeout(server));
}

/* A disk has the size, the owner and the mode that it has; "changing" the size to what it is already is no change. */
static void do_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
    const struct shown_file *file = file_of(server_of(req), ino);

    if (file && (to_set & ~(FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW | FUSE_SET_ATTR_CTIME)) == FUSE_SET_ATTR_SIZE &&
        (uint64_t)attr->st_size == file->length)
        do_getattr(req, ino, fi);
    else
        fuse_reply_err(req, EPERM);
}

static void do_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    struct server *server = server_of(req);
    uint64_t count = 2 + (uint64_t)atomic_load(&server->nr_files);
    char *buf = malloc(size);
    size_t used = 0;

    (void)fi;
    if (ino != FUSE_ROOT_ID || !buf) {
        fuse_reply_err(req, buf ? ENOTDIR : ENOMEM);
        free(buf);
        return;
    }
    for (uint64_t i = (uint64_t)offset; i < count; i++) {
        struct stat st = {.st_ino = i < 2 ? FUSE_ROOT_ID : FIRST_FILE_INO + i - 2, .st_mode = i < 2 ? S_IFDIR : S_IFREG};
        const char *name = i == 0 ? "." : i == 1 ? ".." : server->files[i - 2].name;
        size_t n = fuse_add_direntry(req, buf + used, size - used, name, &st, (off_t)i + 1);

        if (n > size - used)
            break;
        used += n;
    }
    fuse_reply_buf(req, buf, used);
    free(buf);
}

static void do_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct server *server = server_of(req);
    const struct statvfs st = {
        .f_bsize = BLOCK_BYTES,
        .f_frsize = BLOCK_BYTES,
        .f_blocks = (vhdx_size(server->disk) + BLOCK_BYTES - 1) / BLOCK_BYTES,
        .f_files = atomic_load(&server->nr_files),
        .f_namemax = sizeof server->files[0].name - 1,
    };

    (void)ino;
    fuse_reply_statfs(req, &st);
}

/* ---- open and close ---- */

/* Without FOPEN_PARALLEL_DIRECT_WRITES the kernel (since 6.2, the first to know it) passes one write of a file at a time.
 * libfuse can say it only since 3.15, so the answer is the kernel's own structure, which any libfuse passes on. */
static int reply_open_direct(fuse_req_t req)
{
    const struct fuse_open_out answer = {.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES};

    return fuse_reply_buf(req, (const char *)&answer, sizeof answer);
}

static void count_release(struct server *server)
{
    if (atomic_fetch_sub(&server->nr_open, 1) == 1 && atomic_load(&server->leave_when_unused))
        control_wake(server);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct server *server = server_of(req);
    bool writes = (fi->flags & O_ACCMODE) != O_RDONLY;
    int code;

    if (!file_of(server, ino) && ino != STATUS_INO) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    if (writes && (server->plan->read_only || ino == STATUS_INO)) {
        fuse_reply_err(req, EROFS);
        return;
    }
    /* Whoever cuts a file expects that what it does not write afterwards is zeros: not as if nothing had been asked. */
    if (fi->flags & O_TRUNC) {
        fuse_reply_err(req, EPERM);
        return;
    }
    if (ino != STATUS_INO)
        atomic_fetch_add(&server->nr_open, 1);
    if (ino != STATUS_INO && is_cached(server)) {
        fi->keep_cache = 1;
        code = fuse_reply_open(req, fi);
    } else {
        code = reply_open_direct(req);
    }
    if (code == -ENOENT && ino != STATUS_INO) /* the open was interrupted: there will be no release */
        count_release(server);
}

static void do_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct server *server = server_of(req);

    (void)fi;
    fuse_reply_err(req, 0);
    if (ino != STATUS_INO)
        count_release(server);
}

/* ---- reading and writing ---- */

static _Thread_local struct {
    char *bytes;
    size_t size;
} thread_buffer;
static pthread_key_t thread_buffer_key; /* frees it when the thread ends */
static pthread_once_t thread_buffer_once = PTHREAD_ONCE_INIT;

static void create_buffer_key(void)
{
    pthread_key_create(&thread_buffer_key, free);
}

/* The thread's own, kept from request to request.  NULL: no memory. */
static char *get_buffer(size_t size)
{
    if (size > thread_buffer.size) {
        pthread_once(&thread_buffer_once, create_buffer_key);
        pthread_setspecific(thread_buffer_key, NULL);
        free(thread_buffer.bytes);
        thread_buffer.size = 0;
        thread_buffer.bytes = aligned_alloc(BLOCK_BYTES, (size + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES);
        if (!thread_buffer.bytes)
            return NULL;
        thread_buffer.size = size;
        pthread_setspecific(thread_buffer_key, thread_buffer.bytes);
    }
    return thread_buffer.bytes;
}

/* Users get an errno; the reason goes where somebody may look for it, unless there are too many. */
static void reply_failure(fuse_req_t req, int code, const char *what, uint64_t guest_offset)
{
    struct server *server = server_of(req);
    unsigned nr_before = atomic_fetch_add(&server->nr_reported, 1);

    if (nr_before < MAX_REPORTED_FAILURES)
        report(LOG_ERR, server->plan->image, "%s at byte %llu failed: %s%s", what, (unsigned long long)guest_offset,
               vhdx_error_message(), nr_before + 1 == MAX_REPORTED_FAILURES ? " (no further failures will be reported)" : "");
    fuse_reply_err(req, vhdx_errno(code));
}

/* How much of [offset, offset + size) is in the file. */
static uint64_t clip(const struct shown_file *file, off_t offset, uint64_t size)
{
    if (offset < 0 || (uint64_t)offset >= file->length)
        return 0;
    uint64_t left = file->length - (uint64_t)offset;
    return size < left ? size : left;
}

static void read_status(fuse_req_t req, size_t size, off_t offset)
{
    const char *text = server_of(req)->status_text;
    size_t length = strlen(text), start = (uint64_t)offset < length ? (size_t)offset : length;

    fuse_reply_buf(req, text + start, size < length - start ? size : length - start);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    struct server *server = server_of(req);
    const struct shown_file *file = file_of(server, ino);

    (void)fi;
    if (!file) {
        read_status(req, size, offset);
        return;
    }
    size_t n = (size_t)clip(file, offset, size);
    char *buf = get_buffer(n);
    if (n > 0 && !buf) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    uint64_t guest_offset = file->start + (n > 0 ? (uint64_t)offset : 0);
    int code = n > 0 ? vhdx_pread(server->disk, buf, n, guest_offset) : 0;
    if (code < 0)
        reply_failure(req, code, "reading", guest_offset);
    else
        fuse_reply_buf(req, buf, n);
}

static void changed(struct server *server, uint64_t guest_offset, uint64_t length)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    atomic_store_explicit(&server->changed_ns, (int64_t)now.tv_sec * 1000000000 + now.tv_nsec, memory_order_relaxed);
    usage_changed(&server->usage, guest_offset, length);
    if (!atomic_load_explicit(&server->unflushed, memory_order_relaxed) && !atomic_exchange(&server->unflushed, true))
        control_wake(server);
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t offset, struct fuse_file_info *fi)
{
    struct server *server = server_of(req);
    const struct shown_file *file = file_of(server, ino);
    size_t n = file ? (size_t)clip(file, offset, size) : 0;

    if (n == 0) { /* as at the end of a block device */
        fuse_reply_err(req, size == 0 ? 0 : ENOSPC);
        return;
    }
    uint64_t guest_offset = file->start + (uint64_t)offset;
    /* The kernel leaves it to us to make such writes durable. */
    int code = vhdx_pwrite(server->disk, buf, n, guest_offset, fi->flags & O_DSYNC ? VHDX_FUA : 0);
    changed(server, guest_offset, n); /* after a failure too: part may have been written */
    if (code < 0)
        reply_failure(req, code, "writing", guest_offset);
    else
        fuse_reply_write(req, n);
}

static void do_fsync(fuse_req_t req, fuse_ino_t ino, int data_only, struct fuse_file_info *fi)
{
    struct server *server = server_of(req);

    (void)ino, (void)data_only, (void)fi;
    int code = server->plan->read_only ? 0 : server_flush(server);
    if (code < 0)
        reply_failure(req, code, "flushing", 0);
    else
        fuse_reply_err(req, 0);
}

static void do_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length, struct fuse_file_info *fi)
{
    struct server *server = server_of(req);
    const struct shown_file *file = file_of(server, ino);
    bool punch = mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
    bool zero = (mode & ~FALLOC_FL_KEEP_SIZE) == FALLOC_FL_ZERO_RANGE;

    (void)fi;
    if (!file || (!punch && !zero)) { /* among them "reserve space": this format knows no such thing */
        fuse_reply_err(req, EOPNOTSUPP);
        return;
    }
    uint64_t n = clip(file, offset, (uint64_t)length);
    if (!(mode & FALLOC_FL_KEEP_SIZE) && n < (uint64_t)length) {
        fuse_reply_err(req, ENOSPC);
        return;
    }
    uint64_t guest_offset = file->start + (n > 0 ? (uint64_t)offset : 0);
    int code = 0;
    if (n > 0) {
        /* Zeroing promises that later writes find their space (fallocate(2)); punching gives it up. */
        code = punch ? vhdx_discard(server->disk, guest_offset, n, 0)
                     : vhdx_zero(server->disk, guest_offset, n, VHDX_NO_HOLE);
        changed(server, guest_offset, n);
    }
    if (code < 0)
        reply_failure(req, code, punch ? "discarding" : "zeroing", guest_offset);
    else
        fuse_reply_err(req, 0);
}

/* ---- SEEK_DATA, SEEK_HOLE ---- */

struct search {
    bool data; /* what is looked for */
    uint64_t found;
};

static int look_at_extent(void *opaque, const struct vhdx_extent *extent)
{
    struct search *search = opaque;

    if (!!(extent->flags & VHDX_EXTENT_DATA) != search->data)
        return 0;
    search->found = extent->guest_offset;
    return 1;
}

static void do_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi)
{
    struct server *server = server_of(req);
    const struct shown_file *file = file_of(server, ino);

    (void)fi;
    if (!file || (whence != SEEK_DATA && whence != SEEK_HOLE)) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    uint64_t length = clip(file, offset, UINT64_MAX);
    if (length == 0) {
        fuse_reply_err(req, ENXIO);
        return;
    }
    uint64_t guest_offset = file->start + (uint64_t)offset;
    struct search search = {.data = whence == SEEK_DATA, .found = guest_offset + length};
    int code = vhdx_map(server->disk, guest_offset, length, look_at_extent, &search);
    if (code < 0)
        reply_failure(req, code, "looking for data or holes", guest_offset);
    else if (code == 0 && search.data)
        fuse_reply_err(req, ENXIO);
    else /* there is always a hole at the end */
        fuse_reply_lseek(req, (off_t)(search.found - file->start));
}

/* ---- the session ---- */

static void do_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    /* More than the 12 that the kernel gives otherwise: the asynchronous requests of a loop device count as such. */
    conn->max_background = MAX_BACKGROUND;
    conn->congestion_threshold = MAX_BACKGROUND * 3 / 4;
    /* max_write and max_read are the largest that libfuse and the kernel agree on (1 MiB) unless something is said.  No splice:
     * the library reads into memory and writes from memory, so a pipe between would be one more copy, not one less. */
    conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE | FUSE_CAP_WRITEBACK_CACHE);
}

static const struct fuse_lowlevel_ops operations = {
    .init = do_init,
    .lookup = do_lookup,
    .getattr = do_getattr,
    .setattr = do_setattr,
    .readdir = do_readdir,
    .statfs = do_statfs,
    .open = do_open,
    .release = do_release,
    .read = do_read,
    .write = do_write,
    .fsync = do_fsync,
    .fallocate = do_fallocate,
    .lseek = do_lseek,
};

static int add_options(char **options, const struct mount_plan *plan)
{
    if (fuse_opt_add_opt(options, plan->read_only ? "default_permissions,nosuid,nodev,ro" : "default_permissions,nosuid,nodev,rw") < 0 ||
        fuse_opt_add_opt(options, "subtype=" FUSE_SUBTYPE) < 0)
        return -ENOMEM;
    if (*plan->fuse_options && fuse_opt_add_opt(options, plan->fuse_options) < 0)
        return -ENOMEM;
    char *name;
    if (asprintf(&name, "fsname=%s", plan->image_path) < 0)
        return -ENOMEM;
    int code = fuse_opt_add_opt_escaped(options, name);
    free(name);
    return code < 0 ? -ENOMEM : 0;
}

int session_create(struct server *server)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    char *options = NULL;
    int code = -ENOMEM;

    if (add_options(&options, server->plan) == 0 && fuse_opt_add_arg(&args, "vhdx mount") == 0 &&
        fuse_opt_add_arg(&args, "-o") == 0 && fuse_opt_add_arg(&args, options) == 0) {
        server->session = fuse_session_new(&args, &operations, sizeof operations, server);
        code = server->session ? 0 : -EINVAL; /* libfuse has said why */
    }
    free(options);
    fuse_opt_free_args(&args);
    return code;
}
