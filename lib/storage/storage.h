/* SPDX-License-Identifier: MIT */
/* A byte-addressed file, whatever it lies on.
 *
 * A driver fills struct storage_ops; callers use the storage_*() functions, which check arguments and give errors
 * their text.  Every operation may be called from many threads at once.  Operations return 0 or a negative
 * code and have recorded a message when they fail.  Messages do not name the file: who knows its name puts it in front
 * with fail_in().
 *
 * A range that ends behind INT64_MAX is -EOVERFLOW; changing a storage that is not writable is -EROFS. */
#ifndef VHDX_STORAGE_STORAGE_H
#define VHDX_STORAGE_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/uio.h>

struct storage;

struct storage_identity {
    uint64_t device, inode; /* equal for two handles iff they are the same file */
};

static inline bool is_same_file(const struct storage_identity *a, const struct storage_identity *b)
{
    return a->device == b->device && a->inode == b->inode;
}

/* The same of what stat(2) has said of a file, if that is a regular one. */
static inline bool is_file_of(const struct stat *st, const struct storage_identity *id)
{
    return id->device == st->st_dev && id->inode == st->st_ino;
}

#define STORAGE_USAGE_UNKNOWN UINT64_MAX

enum storage_lock {
    STORAGE_LOCK_NONE,
    STORAGE_LOCK_SHARED,    /* reads; nobody may write or resize meanwhile */
    STORAGE_LOCK_EXCLUSIVE, /* writes; nobody may rely on or change the content meanwhile */
};

struct storage_ops {
    const char *name;

    /* Read nr_iov buffers from offset on.  *got is how many bytes there were: less than asked for only at the end of
     * the file.  Interrupted and short system calls are retried inside.  iov is not changed. */
    int (*preadv)(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset, size_t *got);

    /* Write all of it, extending the file if needed; not durable before flush.  After a failure any part of it may
     * have been written. */
    int (*pwritev)(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset);

    /* Everything whose write, truncate or punch had returned before this call began is durable when it returns 0; so
     * is the file's length.  After a failure nothing is known and the caller must not try again (D9). */
    int (*flush)(struct storage *s);

    /* Length in bytes.  Block devices and NBD exports: their size. */
    int (*length)(struct storage *s, uint64_t *bytes);

    /* Set the length; new bytes read as zeros.  -ENOTSUP on a block device or NBD export. */
    int (*truncate)(struct storage *s, uint64_t bytes);

    /* Give the range's space back; it reads as zeros, the length stays.  -ENOTSUP: cannot, write zeros instead. */
    int (*punch)(struct storage *s, uint64_t offset, uint64_t bytes);

    /* Make sure that writing into the range, which lies inside the file, finds space; its content stays.  May be NULL: there is
     * nothing to reserve. */
    int (*reserve)(struct storage *s, uint64_t offset, uint64_t bytes);

    /* Make the range read as zeros, keeping its space, the length stays.  -ENOTSUP: cannot, write zeros. */
    int (*zero)(struct storage *s, uint64_t offset, uint64_t bytes);

    /* The first range at or after offset that may hold other bytes than zeros: [*start, *end).  At the end of the file
     * *start == *end == length.  A driver that does not know says [offset, length). */
    int (*next_data)(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end);

    /* Bytes that the file system stores for the file; STORAGE_USAGE_UNKNOWN where nobody can tell. */
    int (*usage)(struct storage *s, uint64_t *bytes);

    /* Change from the present lock to this one, without waiting.  VHDX_E_LOCKED if somebody else is in the way. */
    int (*lock)(struct storage *s, enum storage_lock lock);

    void (*close)(struct storage *s);
};

/* The beginning of every driver's own struct. */
struct storage {
    const struct storage_ops *ops;
    struct storage_identity identity;
    bool writable;
    int fd; /* for copy_file_range and reflinks; -1 if there is none */
};

/* Read exactly bytes; VHDX_E_TRUNCATED, with the offsets, if the file ends before. */
int storage_pread(struct storage *s, void *buf, size_t bytes, uint64_t offset);

/* Read what there is of bytes and fill the rest with zeros.  *got (may be NULL) is how much there was. */
int storage_pread_zero_fill(struct storage *s, void *buf, size_t bytes, uint64_t offset, size_t *got);

/* As the operations of the same name. */
int storage_preadv(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset, size_t *got);
int storage_pwrite(struct storage *s, const void *buf, size_t bytes, uint64_t offset);
int storage_pwritev(struct storage *s, const struct iovec *iov, int nr_iov, uint64_t offset);
int storage_flush(struct storage *s);
int storage_length(struct storage *s, uint64_t *bytes);
int storage_truncate(struct storage *s, uint64_t bytes);
int storage_punch(struct storage *s, uint64_t offset, uint64_t bytes);
int storage_zero(struct storage *s, uint64_t offset, uint64_t bytes);
int storage_reserve(struct storage *s, uint64_t offset, uint64_t bytes);
int storage_next_data(struct storage *s, uint64_t offset, uint64_t *start, uint64_t *end);
int storage_usage(struct storage *s, uint64_t *bytes);
int storage_lock(struct storage *s, enum storage_lock lock);

/* Release everything; NULL is allowed. */
void storage_close(struct storage *s);

/* Drivers -------------------------------------------------------------------------------------------------- */

enum posix_open_flags { POSIX_OPEN_WRITABLE = 1 };

/* A regular file or block device by path, in posix.c.  Other file types: -EISDIR for a folder, -EINVAL for the rest,
 * without blocking on a FIFO.  *s is the caller's; the descriptor is close-on-exec. */
int storage_posix_open(const char *path, unsigned flags, struct storage **s);

/* The same, and lock it.  Who replaces a file holds its lock until the new one has the name, so a lock may come when the file
 * lies there no more: then what path leads to by now is opened instead, since changes to the old one would be lost. */
int storage_posix_open_locked(const char *path, unsigned flags, enum storage_lock lock, struct storage **s);

/* The same for a descriptor, which the storage owns from then on, also when this fails.  allow_device: take block
 * devices too. */
int storage_posix_from_fd(int fd, bool writable, bool allow_device, struct storage **s);

/* Is such a file locked so that STORAGE_LOCK_SHARED would be refused?  Asked without locking anything, so nobody who opens the
 * file meanwhile is sent away because of it. */
int storage_posix_is_written(struct storage *s, bool *written);

/* An export of an NBD server by its URI, in nbd.c; -ENOTSUP in a build without it.  One connection, on which the requests of all
 * threads are under way together, and a thread that serves it; so not to be used across fork().  The protocol has no
 * locks: storage_lock() succeeds and keeps nobody out. */
int storage_nbd_open(const char *uri, bool writable, struct storage **s);

/* A growable file in memory, in memory.c; stored in pieces of 64 KiB, so holes cost nothing and a length may be claimed
 * that no memory could hold.  Writable.  flush does nothing.  bytes of data (may be NULL) are the content. */
int storage_memory_new(const void *data, size_t bytes, struct storage **s);

#endif
