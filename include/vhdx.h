/* SPDX-License-Identifier: MIT */
/*
 * libvhdx: read and write VHDX (Hyper-V virtual hard disk v2) images.
 *
 * LIFECYCLE
 *   vhdx_open() gives a handle to a virtual disk: an image file and, for a differencing image, all its
 *   parents.  vhdx_pread(), vhdx_pwrite(), vhdx_map() and the getters work on the handle; vhdx_close() ends
 *   it.  vhdx_check() and vhdx_dump() take a path, because they also judge files that cannot be opened, and
 *   vhdx_create() makes the file.
 *
 * THREADS
 *   Every call that takes a handle may be made from any thread, many at once, except vhdx_close(), which
 *   must be the last call.  There is no global state.
 *
 * ERRORS
 *   Calls return 0 (or a count where they say so) or a negative code: -errno for what the system said, or a
 *   VHDX_E_* code for what the format said.  vhdx_error_message() gives the explanation of the calling
 *   thread's last failed call in one line that names structure, file offset and values; vhdx_strerror()
 *   names any code; vhdx_errno() maps any code to a positive errno.  The library never prints and never
 *   exits.  After a failure output arguments hold nothing of use unless the call says otherwise.
 *
 * UNITS
 *   Offsets and lengths are bytes in 64 bits.  "guest" offsets count from the start of the virtual disk,
 *   "file" offsets from the start of an image file.
 *
 * An image that is opened for reading never changes by a byte: a dirty log is replayed in memory.
 */
#ifndef VHDX_H
#define VHDX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(VHDX_BUILDING_LIBRARY)
#define VHDX_API __attribute__((visibility("default")))
#else
#define VHDX_API
#endif

/* ---- errors ------------------------------------------------------------------------------------------ */

enum vhdx_error {
    VHDX_E_NOT_VHDX         = -20001, /* the signature "vhdxfile" is missing; the message says what it is */
    VHDX_E_TRUNCATED        = -20002, /* the file ends before a structure that it must contain */
    VHDX_E_HEADER           = -20003, /* no usable header, or header fields impossible */
    VHDX_E_REGION           = -20004, /* both region tables unusable, or region entries impossible */
    VHDX_E_METADATA         = -20005, /* metadata table or item malformed, missing or out of range */
    VHDX_E_BAT              = -20006, /* block allocation table too small, impossible entry, overlap */
    VHDX_E_BITMAP           = -20007, /* sector bitmap missing or inconsistent */
    VHDX_E_LOG              = -20008, /* the log must be replayed and cannot be */
    VHDX_E_LOG_DIRTY        = -20009, /* replay is needed and VHDX_OPEN_REFUSE_DIRTY forbids it */
    VHDX_E_UNSUPPORTED      = -20010, /* well-formed, but needs a feature unknown to this code */
    VHDX_E_INCOMPLETE       = -20011, /* the file is marked as not fully created */
    VHDX_E_PARENT_NOT_FOUND = -20012, /* no file at any place where the parent was looked for */
    VHDX_E_PARENT_MISMATCH  = -20013, /* candidates exist, none has the identity that the child records */
    VHDX_E_PARENT_POLICY    = -20014, /* the recorded path leads where the path policy does not allow */
    VHDX_E_CHAIN            = -20015, /* cycle, depth or geometry conflict in a chain of images */
    VHDX_E_LIMIT            = -20016, /* exceeds a documented limit of this library */
    VHDX_E_LOCKED           = -20017, /* another process uses the file in a way that excludes this use */
};

/* The message of the last failed call in this thread, one line without a newline, UTF-8, never NULL ("" if
 * none failed yet).  Valid until the thread's next call into the library.  Any thread.  Since 0.1. */
VHDX_API const char *vhdx_error_message(void);

/* A short static text for any code that a call here can return, for 0 too.  Any thread.  Since 0.1. */
VHDX_API const char *vhdx_strerror(int code);

/* The positive errno closest to a negative code, for NBD and FUSE: EINVAL, EIO, ...; 0 for 0.  Since 0.1. */
VHDX_API int vhdx_errno(int code);

/* The library's version, "MAJOR.MINOR.PATCH".  Static.  Since 0.1. */
VHDX_API const char *vhdx_version(void);

/* ---- identities -------------------------------------------------------------------------------------- */

/* A GUID as its 16 bytes lie in the file (MS-VHDX order).  Compare as bytes. */
struct vhdx_guid {
    uint8_t bytes[16];
};

#define VHDX_GUID_TEXT_BYTES 37

/* Write guid in text form, lower case with dashes, NUL-terminated.  Since 0.1. */
VHDX_API void vhdx_guid_format(const struct vhdx_guid *guid, char text[VHDX_GUID_TEXT_BYTES]);

/* Read a GUID from text: 36 characters, any case, with or without braces around it.  0, or -EINVAL.
 * Since 0.1. */
VHDX_API int vhdx_guid_parse(const char *text, struct vhdx_guid *guid);

/* ---- opening ----------------------------------------------------------------------------------------- */

/* One virtual disk: an image and its parents, or a raw file. */
typedef struct vhdx_disk vhdx_disk;

enum vhdx_open_flags {
    /* Take no locks: the content may then change while it is read, as with "qemu-img -U". */
    VHDX_OPEN_FORCE_SHARE = 1u << 0,
    /* Follow recorded parent paths that are absolute or lead out of the child's folder. */
    VHDX_OPEN_ALLOW_PARENT_PATH = 1u << 1,
    /* Do not look for the parent.  What only the parent holds then fails with VHDX_E_PARENT_NOT_FOUND. */
    VHDX_OPEN_NO_PARENT = 1u << 2,
    /* Fail with VHDX_E_LOG_DIRTY rather than replay a dirty log in memory. */
    VHDX_OPEN_REFUSE_DIRTY = 1u << 3,
    /* Skip the check of the whole block allocation table, so that a damaged image opens; entries are still
     * judged one by one when they are used. */
    VHDX_OPEN_UNVERIFIED = 1u << 4,
    /* The file is a raw disk, not a VHDX. */
    VHDX_OPEN_RAW = 1u << 5,
    /* Open for reading and writing. */
    VHDX_OPEN_WRITE = 1u << 6,
    /* If a parent cannot be found or used, open the images below it: vhdx_chain_problem() says why, and what only the parent
     * holds fails with VHDX_E_PARENT_NOT_FOUND.  Not for writing. */
    VHDX_OPEN_BROKEN_CHAIN = 1u << 7,
    /* The path is an NBD URI (nbd://, nbds://, nbd+unix://, ...): open what that server exports.  Never follow a URI that
     * somebody else made up: it can name files with keys, and hosts. */
    VHDX_OPEN_NBD = 1u << 8,
    /* Take what is no VHDX, and shows no sign of another image format, as a raw disk.  Whoever can write to a raw disk can make
     * it look like an image, and so choose what is read: leave this out where that matters, or look at what was found
     * (vhdx_get_info()). */
    VHDX_OPEN_DETECT = 1u << 9,
};

/* Fill with VHDX_OPEN_OPTIONS_INIT, then set what differs.  All pointers stay the caller's and are not used
 * after the call that takes them. */
struct vhdx_open_options {
    size_t struct_bytes;              /* sizeof, so that later releases can add members */
    uint32_t flags;                   /* enum vhdx_open_flags */
    uint32_t max_chain_depth;         /* images in a chain, 1..256; 0 means 256 */
    const char *parent;               /* the first image's parent: this file, whatever the child records; its
                                       * identity is still checked.  NULL: as the child records it */
    const char *const *parent_dirs;   /* folders where parents may also lie */
    size_t nr_parent_dirs;
};

#define VHDX_OPEN_OPTIONS_INIT { sizeof(struct vhdx_open_options), 0, 0, NULL, NULL, 0 }

/* Open the image at path, for reading unless VHDX_OPEN_WRITE is given, with its parents for reading.
 *
 * Parents are looked for at the recorded relative path, and by name, in the child's own folder and below and
 * in parent_dirs; absolute recorded paths need VHDX_OPEN_ALLOW_PARENT_PATH.  Every parent must have the data
 * write GUID that its child records.  A dirty log is replayed in memory; with VHDX_OPEN_WRITE it is replayed
 * into the file.  A shared lock (QEMU's image locks) keeps writers out until vhdx_close(), an exclusive one
 * everybody.  Opening for writing changes no byte of a clean image before the first change is asked for.
 *
 * With VHDX_OPEN_NBD the content of an NBD export is opened, as a VHDX or with VHDX_OPEN_RAW as the disk itself.  The
 * protocol has no locks.  Images are read through it, but not written (-ENOTSUP), because an export cannot grow; raw disks
 * are.  Parents of an image behind NBD are looked for in parent_dirs only.  Such a handle has a thread and a connection, so
 * it cannot be used across fork(2).
 *
 * options may be NULL.  On success *disk is the caller's, to be ended by vhdx_close(); after a failure it is
 * NULL.  Errors: -ENOENT, -EACCES, -ENOMEM and what else the system says; -EINVAL for options that make no
 * sense; any VHDX_E_* code.  Format sections 2 to 8.  Since 0.1. */
VHDX_API int vhdx_open(const char *path, const struct vhdx_open_options *options, vhdx_disk **disk);

/* End a handle and free everything it owns, whatever is returned.  NULL is allowed.  No other call may use disk at
 * the same time or afterwards.  A disk that was written is flushed and left clean: 0 says that all of it is durable
 * and in place; an error, that the image's log has to bring back what was flushed, as after a crash.  Since 0.1. */
VHDX_API int vhdx_close(vhdx_disk *disk);

/* ---- the virtual disk -------------------------------------------------------------------------------- */

/* Size of the virtual disk in bytes.  Never fails.  Since 0.1. */
VHDX_API uint64_t vhdx_size(const vhdx_disk *disk);

/* Read count bytes at guest_offset, any alignment, into buf.  Parents are read through; what no image holds
 * reads as zeros.  0: all of it was read.  -EINVAL: the range leaves the disk.  -EIO and other errno: a file
 * could not be read.  VHDX_E_BAT, VHDX_E_BITMAP, VHDX_E_TRUNCATED: a table points somewhere impossible.
 * VHDX_E_PARENT_NOT_FOUND: opened with VHDX_OPEN_NO_PARENT and the data is the parent's.  After a failure buf
 * holds rubbish.  Any thread, many at once.  Format section 5.6.  Since 0.1. */
VHDX_API int vhdx_pread(vhdx_disk *disk, void *buf, size_t count, uint64_t guest_offset);

/* The same into nr_iov buffers, one after the other; their total may not exceed SSIZE_MAX.  Since 0.1. */
VHDX_API int vhdx_preadv(vhdx_disk *disk, const struct iovec *iov, int nr_iov, uint64_t guest_offset);

enum vhdx_write_flags {
    VHDX_FUA       = 1u << 0, /* durable when the call returns */
    VHDX_NO_HOLE   = 1u << 1, /* vhdx_zero() only: the range keeps its space, or gets it if it has none */
    VHDX_FAST_ZERO = 1u << 2, /* vhdx_zero() only: fail at once with -EOPNOTSUPP rather than write zeros as data */
};

/* Write count bytes at guest_offset, any alignment, from buf, which stays the caller's.  Blocks that have no space yet get
 * it.  Visible at once, durable after vhdx_flush() or with VHDX_FUA: after a crash each sector reads as it was at the
 * last flush or as some later write left it.  0: all was written.  -EINVAL: the range leaves the disk, or unknown
 * flags.  -EROFS: opened for reading.  -ENOSPC: part may have been written; the image is as good as before and works
 * on when there is space.  -EIO: also after an earlier failure that leaves the file's state unknown; then nothing
 * more is written, reads go on, and opening the image anew recovers what was flushed.  Any thread, many at once; of
 * overlapping concurrent writes each sector keeps one.  Format section 9.4.  Since 0.1. */
VHDX_API int vhdx_pwrite(vhdx_disk *disk, const void *buf, size_t count, uint64_t guest_offset, uint32_t flags);

/* The same from nr_iov buffers, one after the other; their total may not exceed SSIZE_MAX.  Since 0.1. */
VHDX_API int vhdx_pwritev(vhdx_disk *disk, const struct iovec *iov, int nr_iov, uint64_t guest_offset,
                          uint32_t flags);

/* Make length bytes at guest_offset read as zeros.  Whole blocks give up their space, except in fixed images and with
 * VHDX_NO_HOLE, after which writing into the range needs no space any more.  -EOPNOTSUPP: VHDX_FAST_ZERO, and the file
 * system cannot make zeros without writing them, or a block would first have to get space; nothing has changed, or at
 * worst a part of the range reads as zeros.  Other errors as vhdx_pwrite().  Any thread.  Format section 9.6.  Since 0.1. */
VHDX_API int vhdx_zero(vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags);

/* The guest needs these bytes no more: they read as zeros, and the file gives up their space as far as it can, except
 * in fixed images.  Errors as vhdx_pwrite().  Any thread.  Format section 9.6.  Since 0.1. */
VHDX_API int vhdx_discard(vhdx_disk *disk, uint64_t guest_offset, uint64_t length, uint32_t flags);

/* Make everything durable that had been written before this call began.  0: it is.  Errors as vhdx_pwrite().  Any thread.
 * Format section 9.5.  Since 0.1. */
VHDX_API int vhdx_flush(vhdx_disk *disk);

enum vhdx_extent_flags {
    VHDX_EXTENT_DATA    = 1u << 0, /* bytes are stored: file_offset says where */
    VHDX_EXTENT_ZERO    = 1u << 1, /* reads as zeros without looking at stored bytes */
    VHDX_EXTENT_PRESENT = 1u << 2, /* some image of the chain defines this range (data, zero or unmapped) */
};

struct vhdx_extent {
    uint64_t guest_offset; /* bytes */
    uint64_t length;       /* bytes, > 0 */
    uint64_t file_offset;  /* bytes, in image `depth`; 0 unless VHDX_EXTENT_DATA */
    uint32_t flags;        /* enum vhdx_extent_flags */
    uint32_t depth;        /* the image that decides: 0 is the one opened, 1 its parent, ... */
};

/* Return 0 to go on; anything else ends the walk, and vhdx_map() returns it. */
typedef int vhdx_extent_fn(void *opaque, const struct vhdx_extent *extent);

/* Call fn for every extent of [guest_offset, guest_offset + length), ascending, without gaps, neighbours of one
 * kind merged.  Costs time in proportion to the extents and to the parts of the tables that exist on disk, no
 * memory in proportion to anything.  What others write meanwhile may be seen or not, and what they discard gives its space to
 * other blocks: then only vhdx_pread() finds a range's data, not a file_offset of before.  Errors as vhdx_pread().  Any thread.
 * Since 0.1. */
VHDX_API int vhdx_map(vhdx_disk *disk, uint64_t guest_offset, uint64_t length, vhdx_extent_fn *fn, void *opaque);

enum vhdx_diff_flags {
    VHDX_DIFF_VERIFY = 1u << 0, /* read what the tables call different, and leave out what has equal content */
};

/* Called now and then during a long operation, from one thread at a time, with how much is done; both count the
 * same unit of work and total may be 0 if unknown.  Return 0 to go on; anything else cancels, and the operation
 * returns -ECANCELED after leaving things as its description says. */
typedef int vhdx_progress_fn(void *opaque, uint64_t done, uint64_t total);

/* Call fn, as vhdx_map() does, for every extent of the range in which disk may differ from its parent at depth `since`: what the
 * images above that define, unless both sides are known to be zeros.  So the tables alone tell what an incremental backup must
 * read.  With VHDX_DIFF_VERIFY differences are exact to 4 KiB.  What lies behind the parent's end counts as zeros there. progress
 * may be NULL.  -EINVAL: `since` is no parent's: 0, or not in the chain.  Other errors as vhdx_pread().  Any thread.  Since 0.1.
 */
VHDX_API int vhdx_diff(vhdx_disk *disk, uint32_t since, uint64_t guest_offset, uint64_t length, uint32_t flags,
                       vhdx_extent_fn *fn, void *opaque, vhdx_progress_fn *progress, void *progress_opaque);

/* ---- what an image is -------------------------------------------------------------------------------- */

enum vhdx_subformat { VHDX_FIXED, VHDX_DYNAMIC, VHDX_DIFFERENCING, VHDX_RAW };

/* Payload block states as they stand in the block allocation table (format section 5.4). */
enum { VHDX_NR_BLOCK_STATES = 8 };

#define VHDX_USAGE_UNKNOWN UINT64_MAX

struct vhdx_info {
    size_t struct_bytes; /* set by the caller to sizeof */
    enum vhdx_subformat subformat;
    bool log_dirty; /* the log holds changes that are not in place yet */
    bool has_parent;
    uint64_t virtual_size;  /* bytes */
    uint64_t file_size;     /* bytes, as the file system says */
    uint64_t disk_usage;    /* bytes that the host file system stores for it; VHDX_USAGE_UNKNOWN behind NBD */
    uint32_t block_size;    /* bytes */
    uint32_t logical_sector_size;
    uint32_t physical_sector_size;
    uint32_t log_size; /* bytes */
    uint64_t header_sequence_no;
    struct vhdx_guid disk_id;
    struct vhdx_guid file_write_guid;
    struct vhdx_guid data_write_guid;
    struct vhdx_guid parent_linkage;  /* all zero without parent */
    struct vhdx_guid parent_linkage2; /* all zero if absent */
    char creator[1024];               /* UTF-8, cleaned for display */
};

/* How many images the chain has: 1 without parents.  Never fails.  Since 0.1. */
VHDX_API uint32_t vhdx_chain_length(const vhdx_disk *disk);

/* Why the last image's parent was left out by VHDX_OPEN_BROKEN_CHAIN: the code that vhdx_open() would have returned, and in
 * *message, which may be NULL, the explanation, valid as long as the handle.  0, and NULL: the chain is whole, or nobody looked
 * for the parent.  Never fails.  Since 0.1. */
VHDX_API int vhdx_chain_problem(const vhdx_disk *disk, const char **message);

/* Facts about image depth (0 is the one opened) into *info, whose struct_bytes the caller has set.  -EINVAL:
 * depth out of range.  Since 0.1. */
VHDX_API int vhdx_get_info(vhdx_disk *disk, uint32_t depth, struct vhdx_info *info);

/* The path by which image depth was opened; valid as long as the handle.  NULL if depth is out of range.
 * Since 0.1. */
VHDX_API const char *vhdx_image_path(const vhdx_disk *disk, uint32_t depth);

/* Count the payload blocks of image depth by their state.  Reads the block allocation table as far as it exists
 * on disk and was not read when the image was opened.  Errors as vhdx_pread(), but entries that point somewhere impossible are counted by their state.
 * Since 0.1. */
VHDX_API int vhdx_count_blocks(vhdx_disk *disk, uint32_t depth, uint64_t counts[VHDX_NR_BLOCK_STATES]);

/* One entry of the parent locator, UTF-8.  Return 0 to go on. */
typedef int vhdx_locator_fn(void *opaque, const char *key, const char *value);

/* Call fn for each key of image depth's parent locator, in file order; not at all if there is none.  Strings are
 * valid during the call only.  Format section 8.1.  Since 0.1. */
VHDX_API int vhdx_parent_locator(vhdx_disk *disk, uint32_t depth, vhdx_locator_fn *fn, void *opaque);

enum vhdx_metadata_flags {
    VHDX_METADATA_USER         = 1u << 0,
    VHDX_METADATA_VIRTUAL_DISK = 1u << 1,
    VHDX_METADATA_REQUIRED     = 1u << 2,
};

struct vhdx_metadata_item {
    struct vhdx_guid id;
    uint32_t flags;  /* enum vhdx_metadata_flags */
    uint32_t length; /* bytes */
};

typedef int vhdx_metadata_fn(void *opaque, const struct vhdx_metadata_item *item);

/* Call fn for each metadata item of image depth, in table order.  Format section 7.  Since 0.1. */
VHDX_API int vhdx_metadata_list(vhdx_disk *disk, uint32_t depth, vhdx_metadata_fn *fn, void *opaque);

/* Read a metadata item of image depth (user says from which of the two name spaces) into buf of buf_bytes.
 * Returns the item's length; if that exceeds buf_bytes nothing was stored.  -ENOENT: no such item.
 * Since 0.1. */
VHDX_API int64_t vhdx_metadata_read(vhdx_disk *disk, uint32_t depth, const struct vhdx_guid *id, bool user,
                                    void *buf, size_t buf_bytes);

/* What a file looks like, by its first and last bytes. */
enum vhdx_file_kind {
    VHDX_KIND_UNKNOWN, VHDX_KIND_VHDX, VHDX_KIND_VHD, VHDX_KIND_QCOW, VHDX_KIND_VMDK, VHDX_KIND_VDI,
    VHDX_KIND_QED, VHDX_KIND_EWF, VHDX_KIND_COMPRESSED, VHDX_KIND_EMPTY,
};

/* Say what kind of image the file at path is.  Returns an enum vhdx_file_kind or a negative code.
 * Since 0.1. */
VHDX_API int vhdx_probe(const char *path);

/* ---- whole-disk operations --------------------------------------------------------------------------- */

struct vhdx_copy_options {
    size_t struct_bytes;
    uint32_t nr_threads;   /* 0: one per processor, at most 8 */
    uint32_t sparse_bytes; /* runs of zeros this long or longer get no space, power of two >= 512; 0: all of the target does */
    int reflink;           /* enum vhdx_reflink */
    bool target_is_zero;   /* the target reads as zeros already: nothing need be written for zeros */
    vhdx_progress_fn *progress;
    void *opaque;
    bool *target_failed;   /* may be NULL; set to true if what failed was the target's, else left as it is */
};

enum vhdx_reflink { VHDX_REFLINK_AUTO, VHDX_REFLINK_ALWAYS, VHDX_REFLINK_NEVER };

#define VHDX_COPY_OPTIONS_INIT { sizeof(struct vhdx_copy_options), 0, 4096, VHDX_REFLINK_AUTO, false, NULL, NULL, NULL }

/* Copy the whole virtual disk to a seekable file or block device at fd, which stays the caller's and is open for reading
 * and writing.  The target is locked for this alone, as an image that is written; the lock lasts until fd is closed.
 * VHDX_E_LOCKED: another program uses it.  VHDX_E_CHAIN and others: it is an image on which another one beside it rests, as in
 * vhdx_create(), whatever other names it has.  Then progress is called for the first time, with nothing done, and then a regular
 * file is given the disk's size.  Not flushed: call fsync(2) for that.  -ENOSPC: a block device is too small, or the file system
 * is full.  -EOPNOTSUPP: VHDX_REFLINK_ALWAYS and the file systems cannot.  A failure or cancellation before that first call has
 * changed nothing; after one later a regular file is empty, a device holds part of the disk.
 * Of a disk that is written through the same handle meanwhile, the copy has each sector as it was at some moment, not all at
 * the same.  Since 0.1. */
VHDX_API int vhdx_copy_to_file(vhdx_disk *disk, int fd, const struct vhdx_copy_options *options);

/* Copy the whole virtual disk to a new raw file at path, which it gets as its name when it is complete and durable.
 * What is there already is -EEXIST.  After a failure there is nothing.  Other errors as vhdx_copy_to_file() and those of
 * creating a file.  Since 0.1. */
VHDX_API int vhdx_copy_to_new_file(vhdx_disk *disk, const char *path, const struct vhdx_copy_options *options);

/* Write the whole virtual disk in order to fd, which need not be seekable (a pipe).  -EPIPE if the reader went
 * away (the caller decides about SIGPIPE).  Since 0.1. */
VHDX_API int vhdx_copy_to_stream(vhdx_disk *disk, int fd, const struct vhdx_copy_options *options);

/* Copy the whole virtual disk source into target, which was opened for writing: an image, or a raw file, block device or NBD
 * export.  It has to be as large at least (else -ENOSPC, and nothing is changed); what lies behind source's end stays as it
 * is.  All before that is replaced, zeros included: a dynamic image first gives up the space of its blocks, and keeps none for
 * blocks of zeros.  Not flushed: call vhdx_flush().
 * -EINVAL: target is one of source's files.  -EROFS: opened for reading.  After a failure or cancellation the target is in
 * order, and holds part of the disk.  Other errors as vhdx_pread() and vhdx_pwrite().  Since 0.1. */
VHDX_API int vhdx_copy_to_disk(vhdx_disk *source, vhdx_disk *target, const struct vhdx_copy_options *options);

struct vhdx_compare_result {
    bool identical;
    uint64_t first_difference; /* guest offset in bytes, meaningful unless identical */
    uint64_t size_a, size_b;   /* bytes */
};

/* Compare the guest content of two disks.  If sizes differ, the surplus of the longer must read as zeros, as in
 * "qemu-img compare".  What both know to be zeros is not read.  Since 0.1. */
VHDX_API int vhdx_compare(vhdx_disk *a, vhdx_disk *b, struct vhdx_compare_result *result,
                          vhdx_progress_fn *progress, void *opaque);

/* ---- creating images --------------------------------------------------------------------------------- */

/* What happens to the space of a fixed image's blocks. */
enum vhdx_preallocation {
    VHDX_PREALLOC_OFF,    /* nothing: the file is sparse, and writing to it can run out of space */
    VHDX_PREALLOC_FALLOC, /* the file system reserves it */
    VHDX_PREALLOC_FULL,   /* zeros are written */
};

struct vhdx_create_options {
    size_t struct_bytes;
    enum vhdx_subformat subformat;         /* VHDX_DYNAMIC, VHDX_FIXED or VHDX_DIFFERENCING */
    enum vhdx_preallocation preallocation; /* fixed images only */
    uint64_t virtual_size;                 /* bytes, one sector to 64 TiB, a multiple of logical_sector_size */
    uint32_t block_size;                   /* bytes, power of two from 1 MiB to 256 MiB; 0: 32 MiB, of a child 2 MiB */
    uint32_t logical_sector_size;          /* bytes, 512 or 4096; 0: 512 */
    uint32_t physical_sector_size;         /* bytes, 512 or 4096; 0: 4096 */
    uint32_t log_size;                     /* bytes, multiple of 1 MiB up to 1 GiB; 0: 1 MiB */
    bool replace;                          /* an existing file of that name goes */
    const struct vhdx_guid *disk_id;       /* what the guest sees as the disk's identity; NULL: a random one */
    vhdx_progress_fn *progress;            /* of VHDX_PREALLOC_FULL, which takes long */
    void *opaque;
    /* VHDX_DIFFERENCING only: */
    const char *parent;                           /* the file of the parent */
    const struct vhdx_open_options *parent_open;  /* how to open it, for its own parents' sake; NULL: the defaults */
    const char *parent_windows_path;              /* recorded too, as absolute_win32_path; NULL: none */
};

#define VHDX_CREATE_OPTIONS_INIT \
    { sizeof(struct vhdx_create_options), VHDX_DYNAMIC, VHDX_PREALLOC_OFF, 0, 0, 0, 0, 0, false, NULL, NULL, NULL, NULL, NULL, NULL }

/* Create an empty image at path; it reads as zeros, or as its parent.
 *
 * A child (VHDX_DIFFERENCING) records the parent's present identity (its data write GUID) and the relative path to it, so
 * from then on the parent must not be written: the child would not open any more.  It has the parent's sector sizes and
 * disk id, which the options may repeat but not change, and every metadata item that belongs to the disk.  virtual_size 0
 * is the parent's; of a larger one what lies behind the parent's end reads as zeros.  The parent, which may itself have
 * parents and a dirty log, is locked against writers meanwhile, and not changed.
 *
 * The file gets its name when it is complete and durable, and never in place of something else: what is there already
 * is -EEXIST.  With replace a regular file there is replaced in one step (its owner, permissions, access control list and
 * security label are kept as far as we may set them; where its group cannot be kept, no group gets in; further hard links keep
 * the old content), unless another program has it open as an image (VHDX_E_LOCKED) or we may not write it (-EACCES, -EPERM if it
 * is immutable, -EROFS); folders, devices and pipes are -EISDIR and -EINVAL.  After a failure there is what was there before.
 *
 * -EINVAL: options make no sense; path is a file of the parent's chain; the parent's path cannot be recorded.  VHDX_E_CHAIN: the
 * parent has 255 parents already, or holds a part of a child in its folder whose merge did not come to its end (children called
 * .vhdx or .avhdx, or as the parent up to the first dot, are seen); or what is to be replaced is an image on which another one
 * rests, seen likewise, that would be lost.  That is one whose recorded path leads there (of several hard links, to this one),
 * or, without such a path, the recorded identity, which no other image beside it has.  What is called .vhdx or .avhdx and cannot
 * be read, though not damaged, counts if its name begins as that of the image, up to the first dot and with a dot or an
 * underscore behind.  VHDX_E_LIMIT, -EMFILE: there are too many to be looked at.  Whatever vhdx_open() says of the parent.
 * -ENOTSUP: the file system cannot reserve space.  -ENOSPC, -EFBIG: the file system is full, or holds no files of that length.
 * -ECANCELED by progress.  Format section 9.1.  Since 0.1. */
VHDX_API int vhdx_create(const char *path, const struct vhdx_create_options *options);

/* Copy the whole virtual disk, its parents' content included, into a new image at path.  The file comes into being as by
 * vhdx_create(), under create_options, dynamic or fixed, of which virtual_size 0 is the disk's size, rounded up to a sector, and
 * sector sizes 0 are the disk's (of a raw one the defaults).  A larger virtual_size adds zeros.  Blocks of a dynamic image that
 * hold nothing but zeros get no space, unless sparse_bytes is 0; those with space lie in guest order.  target_is_zero and the
 * progress of create_options are not looked at; copy_options may be NULL.  -EINVAL: also if path is one of the disk's files, or
 * virtual_size is too small.  Other errors as vhdx_create(), vhdx_pread() and vhdx_copy_to_file().  Since 0.1. */
VHDX_API int vhdx_copy_to_image(vhdx_disk *disk, const char *path, const struct vhdx_create_options *create_options,
                                const struct vhdx_copy_options *copy_options);

/* The same with the raw disk that fd gives, a pipe or what else can be read, until its end.  The disk is as long as that,
 * rounded up to a sector, unless create_options say more.  progress gets the bytes read, with total 0 until the end.
 * -EINVAL: also for no bytes at all, for more than the disk can have, and for preallocation.  Since 0.1. */
VHDX_API int vhdx_copy_stream_to_image(int fd, const char *path, const struct vhdx_create_options *create_options,
                                       const struct vhdx_copy_options *copy_options);

/* ---- links between images ----------------------------------------------------------------------------- */

struct vhdx_rebase_options {
    size_t struct_bytes;
    const char *parent;                          /* the file that is to be the parent */
    const struct vhdx_open_options *parent_open; /* how the parent and its own parents are opened; NULL: as by vhdx_open() */
    const char *parent_windows_path;             /* recorded too, as absolute_win32_path; NULL: none */
    bool force;                                  /* take a parent that has not the recorded identity */
};

#define VHDX_REBASE_OPTIONS_INIT { sizeof(struct vhdx_rebase_options), NULL, NULL, NULL, false }

/* Record in the differencing image at path where its parent lies: its relative path, and what identity it has.  Other recorded
 * paths go, being stale; unknown keys stay.
 *
 * A parent with the identity that the image records changes nothing that anybody can see: the image keeps its data write GUID, so
 * its own children stay valid, and the mark of an interrupted merge.  Any other is VHDX_E_PARENT_MISMATCH, or with force the
 * image's parent from now on: what the image does not hold itself is then read from there, whatever it is, and the image gets a
 * new data write GUID.  Nothing is written if everything is recorded already.  After a crash the old link stands or the new one.
 *
 * VHDX_E_CHAIN: sector sizes differ, or the sizes of a forced one; a forced one is whole only under another image, whose merge was
 * interrupted; the image is among the parent's own parents; too many parents.  -EINVAL: the image has no parent, or path and parent's path cannot be recorded.  Other errors as vhdx_open().  Format
 * section 9.11. Since 0.1. */
VHDX_API int vhdx_rebase(const char *path, const struct vhdx_rebase_options *options);

struct vhdx_flatten_options {
    size_t struct_bytes;
    const struct vhdx_open_options *open; /* how the chain is opened; may be NULL */
    uint32_t nr_threads;                  /* 0: one per processor, at most 8 */
    int reflink;                          /* enum vhdx_reflink */
    vhdx_progress_fn *progress;           /* bytes of the disk; NULL */
    void *opaque;
};

#define VHDX_FLATTEN_OPTIONS_INIT { sizeof(struct vhdx_flatten_options), NULL, 0, VHDX_REFLINK_AUTO, NULL, NULL }

/* Make the differencing image at path a dynamic one that needs no parent: what its parents hold is copied into it.  Its content
 * and identity stay, so its own children stay valid; the parents are only read.  After a crash it is the one or the other, and
 * shows the same; calling this again completes it.  -EINVAL: it has no parent.  VHDX_E_CHAIN: a merge of it did not come to its
 * end, and the parent is whole only under it.  -ECANCELED by progress, as after a crash.  Other errors as vhdx_open() and
 * vhdx_pwrite().  Format section 9.12.  Since 0.1. */
VHDX_API int vhdx_flatten(const char *path, const struct vhdx_flatten_options *options);

struct vhdx_snapshot_options {
    size_t struct_bytes;
    const struct vhdx_open_options *open; /* how the chain is opened; may be NULL */
    uint32_t block_size;                  /* of the new child, bytes; 0: 2 MiB */
    bool search_below;                    /* images that rest on path may lie in folders below open's parent_dirs, and below its own, too */
    bool ignore_unreadable;               /* go back although something in the folders cannot be read, which may rest on path */
    vhdx_progress_fn *progress;           /* files looked at; NULL */
    void *opaque;
};

#define VHDX_SNAPSHOT_OPTIONS_INIT { sizeof(struct vhdx_snapshot_options), NULL, 0, false, false, NULL, NULL }

/* Keep the present state of the image at path: its file becomes `name`, a file name in the same folder, and path a fresh child of
 * it, which from now on takes the changes.
 *
 * At every moment path is a whole image with the same content: the file gets its second name first, then the child takes the
 * first one's place in one step.  Calling this again after a crash in between completes it.  A dirty log is brought into place
 * before; else no byte of the file changes.
 *
 * -EEXIST: there is something else of that name; or the file has another one in the folder as well, such as this call leaves when
 * it dies, and that has to be completed first, or the name removed.  -EINVAL: it is no file name that an image can record.
 * VHDX_E_CHAIN: images in the folder, or in open's parent_dirs, have it as their parent under its present name; or the chain is
 * too long.  VHDX_E_LOCKED: it is in use.  -EOPNOTSUPP: the file system has no hard links.  -EPERM: the file is immutable, or
 * another user's and not writable.  -ECANCELED by progress, which is asked up to the last moment: it is as it was.  Other errors
 * as vhdx_create().  Since 0.1. */
VHDX_API int vhdx_snapshot(const char *path, const char *name, const struct vhdx_snapshot_options *options);

/* Go back: drop what the image at path, which has a parent, holds, and make it a fresh child of the image at snapshot_path, which
 * must be another state of the same disk (its disk id tells).  In one step; what was there is gone.  VHDX_E_CHAIN also: a merge
 * of path, or one into the image at snapshot_path, did not come to its end, so that one of a pair alone would be a mixture of two
 * states.  And, since images that rest on path would be lost with it: there is one in a folder looked at that cannot be read, so
 * that nobody knows.  -EACCES: the same of a folder.  With ignore_unreadable neither counts; a survey of these folders with
 * VHDX_SURVEY_UNREADABLE tells what it is.  Images in other folders are not seen.  -EACCES, -EPERM if it is immutable, -EROFS:
 * path may not be written.  Other errors as vhdx_snapshot().  Since 0.1. */
VHDX_API int vhdx_snapshot_revert(const char *path, const char *snapshot_path, const struct vhdx_snapshot_options *options);

/* What becomes of a file in a merge. */
enum vhdx_merge_role {
    VHDX_MERGE_TARGET, /* it takes the content */
    VHDX_MERGE_MERGED, /* its content goes into the target */
    VHDX_MERGE_MOVED,  /* a child of the uppermost merged one: its link is moved to the target */
};

typedef void vhdx_merge_file_fn(void *opaque, enum vhdx_merge_role role, const char *path);

struct vhdx_merge_options {
    size_t struct_bytes;
    const char *into;                     /* the image that the content goes into; NULL: the parent */
    const struct vhdx_open_options *open; /* how the chain is opened; its parent_dirs are searched for relatives as well; may be NULL */
    const char *const *children;          /* images that have the uppermost merged one as their parent */
    size_t nr_children;
    bool search_below;                    /* relatives may lie in folders below parent_dirs, too */
    bool dry_run;                         /* look at everything and change nothing */
    bool remove;                          /* remove the merged files when all is durable */
    bool take_name;                       /* in the end the target takes the name of the uppermost merged file, which so goes; in its folder */
    uint32_t nr_threads;                  /* 0: one per processor, at most 8 */
    int reflink;                          /* enum vhdx_reflink */
    vhdx_merge_file_fn *file;             /* told of each file before anything is changed; NULL */
    void *file_opaque;
    vhdx_progress_fn *progress;           /* bytes of payload; NULL */
    void *opaque;
};

#define VHDX_MERGE_OPTIONS_INIT \
    { sizeof(struct vhdx_merge_options), NULL, NULL, NULL, 0, false, false, false, false, 0, VHDX_REFLINK_AUTO, NULL, NULL, NULL, NULL }

struct vhdx_merge_result {
    size_t struct_bytes;    /* set by the caller to sizeof */
    bool was_complete;      /* an earlier merge had copied everything */
    uint64_t copy_bytes;    /* payload to be copied, or copied */
    uint64_t zero_bytes;    /* of the target that become zeros */
    uint64_t space_bytes;   /* by which the target may grow; less where its file stays sparse or shares blocks */
    uint32_t nr_merged;     /* images whose content goes into the target */
    uint32_t nr_moved;      /* children whose links move */
};

/* Merge the image at path into its parent, or it and all images between into the one of its parents that `into` names.
 *
 * Afterwards the target has the content and the identity of the image at path, and its children have the target as their parent:
 * those named, and those found in the folders of all files involved and in the open options' parent_dirs.  Other children of the
 * target, or of an image between, would lose what they rest on: if there are any in these folders nothing is done.  The merged
 * files stay, and show what they did, unless remove is set; that they were merged is recorded in them, so that the target may be
 * used without them.  The sizes of all disks must be equal.
 *
 * At every moment, also after a crash, the image at path and its children open and show what they did; calling this again
 * completes the merge.  All files are locked against every other use meanwhile.  *result (may be NULL) is filled also by a dry
 * run.
 *
 * VHDX_E_CHAIN: sizes differ, other children, `into` is none of the parents.  -EMLINK: the name to be taken is not the file's
 * only one, and its children may record another.  VHDX_E_LOCKED: a file is in use.  -ENOSPC: calling again when there is space
 * completes it.  -ECANCELED by progress, the same.  Other errors as vhdx_open() and vhdx_pwrite().  Format section 9.10.  Since
 * 0.1. */
VHDX_API int vhdx_merge(const char *path, const struct vhdx_merge_options *options, struct vhdx_merge_result *result);

/* ---- surveys: which images belong together ------------------------------------------------------------ */

/* What became of an image's link to its parent. */
enum vhdx_link {
    VHDX_LINK_NONE,       /* it has no parent */
    VHDX_LINK_OK,         /* found where vhdx_open() looks */
    VHDX_LINK_MOVED,      /* not there, but among the files looked at is one with the recorded identity */
    VHDX_LINK_MISSING,    /* nowhere */
    VHDX_LINK_CHANGED,    /* what is in its place has another identity: it was written to, or is another disk */
    VHDX_LINK_BLOCKED,    /* the recorded path leads where the path policy does not allow */
    VHDX_LINK_UNREADABLE, /* what is in its place cannot be opened */
    VHDX_LINK_SECTORS,    /* found, but with logical sectors of another size */
    VHDX_LINK_CYCLE,      /* the parents lead back to the image */
    VHDX_LINK_DEPTH,      /* beyond 256 images */
};

#define VHDX_NO_IMAGE SIZE_MAX

/* One image of a survey.  Pointers are valid as long as the survey. */
struct vhdx_survey_image {
    size_t struct_bytes;     /* set by the caller to sizeof */
    const char *path;        /* as it can be opened */
    bool wanted;             /* in the folder that was asked about, or the image itself; false: a relative from elsewhere */
    bool in_use;             /* another program has it open for writing */
    int error;               /* 0, or why it cannot be read, a code; then of info only the two sizes of the file are known */
    const char *problem;     /* the same in words; NULL */
    struct vhdx_info info;
    uint32_t depth;          /* images between it and the root of its tree as it is drawn: 0 for a root */
    enum vhdx_link link;
    const char *link_remark; /* why the link is broken and what mends it, or what is odd about it; NULL: all is well */
    size_t parent;           /* index of the parent: VHDX_LINK_OK, VHDX_LINK_MOVED; else VHDX_NO_IMAGE */
    size_t instead;          /* index of what is in the parent's place, if the link is broken and that is a VHDX */
    size_t merging;          /* index of a child of which a merge into this image was begun and did not come to its end, so that this one may
                              * be whole only under that one; else VHDX_NO_IMAGE */
    const char *relative_path, *volume_path, *absolute_win32_path; /* of the parent, as recorded, UTF-8; NULL: not recorded */
    bool relative_path_leads; /* to the parent, and not to another file or nowhere */
};

/* What is known of a folder's images. */
typedef struct vhdx_survey vhdx_survey;

enum vhdx_survey_flags {
    VHDX_SURVEY_BELOW = 1u << 0, /* look into folders below the one asked about and below parent_dirs, too, on the same file system */
    VHDX_SURVEY_UNREADABLE = 1u << 1, /* also those related to nothing that cannot be read, unless they are no VHDX or somebody writes them */
};

/* Find out which images there are at path and how they hang together.
 *
 * path is a folder: all images in it.  path is an image: this one, its parents, and those in its folder that are related
 * to it.  Parents are looked for as in vhdx_open() with options, the folder counting as named; if that finds none, by identity
 * among all files looked at, those in parent_dirs included.  Symbolic links in folders are not followed, and nothing but regular
 * files is opened; a file is an image if it begins like one, and a problem if it is only called .vhdx or .avhdx.  One that has
 * several names in a folder is called by the shortest of them, or if it is the one at path, by that.  Files that
 * vhdx_create() and the like have not given their name yet, .vhdx-RANDOM.tmp, count as not there.  Payload is not read, and
 * images that are being written are looked at without their writer's noticing.
 *
 * options may be NULL; of its flags VHDX_OPEN_FORCE_SHARE and VHDX_OPEN_ALLOW_PARENT_PATH count.  progress gets the number of
 * files looked at, total 0.  On success *survey is the caller's, to be ended by vhdx_survey_free().  What is wrong with single
 * files is in the survey.  -ENOENT, -EACCES and the like: path itself cannot be read.  VHDX_E_NOT_VHDX and the like: path is a
 * file and no readable image.  VHDX_E_LIMIT: more than 100,000 images.  -EMFILE and -ENFILE: descriptors ran out.  -ECANCELED by
 * progress. Since 0.1. */
VHDX_API int vhdx_survey_new(const char *path, const struct vhdx_open_options *options, uint32_t flags,
                             vhdx_progress_fn *progress, void *opaque, vhdx_survey **survey);
VHDX_API void vhdx_survey_free(vhdx_survey *survey);

/* How many images there are.  They are numbered in the order of a drawn tree: an image, then its children by name, each followed
 * by its own.  Since 0.1. */
VHDX_API size_t vhdx_survey_count(const vhdx_survey *survey);

/* Facts about image number index into *image, whose struct_bytes the caller has set.  -EINVAL: index out of range.  Since 0.1. */
VHDX_API int vhdx_survey_get(const vhdx_survey *survey, size_t index, struct vhdx_survey_image *image);

/* How many folders could not be looked into, or not at all that is in them: for want of permission, or because they lie too deep.
 * Since 0.1. */
VHDX_API uint64_t vhdx_survey_skipped(const vhdx_survey *survey);

/* How many folders were not looked into because they are on another file system (a btrfs subvolume and a ZFS data set, too) than
 * the folder that was asked about.  Since 0.1. */
VHDX_API uint64_t vhdx_survey_elsewhere(const vhdx_survey *survey);

/* ---- check ------------------------------------------------------------------------------------------- */

enum vhdx_severity { VHDX_INFO, VHDX_WARNING, VHDX_LEAK, VHDX_ERROR };

struct vhdx_finding {
    uint32_t rule; /* number of the conformance rule, docs/format.md */
    enum vhdx_severity severity;
    bool repairable;      /* can be mended without touching guest data */
    uint64_t file_offset; /* where in the file, bytes */
    const char *message;  /* valid during the call only */
};

typedef void vhdx_finding_fn(void *opaque, const struct vhdx_finding *finding);

struct vhdx_check_result {
    size_t struct_bytes; /* set by the caller to sizeof */
    uint64_t nr_errors, nr_warnings, nr_notes;
    uint64_t leaked_bytes;      /* space in the file that nothing refers to */
    uint64_t image_end_offset;  /* end of the last structure, bytes */
    uint64_t total_blocks;      /* payload blocks of the disk */
    uint64_t allocated_blocks;  /* payload blocks with space in this file */
    bool replay_needed;         /* the log is dirty; everything was judged as it is after replay */
    bool usable;                /* nothing found keeps the image from being read */
};

/* Judge the image at path by every conformance rule that reading can judge; the log is replayed in memory.  fn is
 * called for each finding, worst problems not first but in file order of the structures.  The parents are
 * looked for as in vhdx_open() and their links judged; their own content is not, except that they open.
 * 0: the check ran to its end, whatever it found.  VHDX_E_NOT_VHDX: not a VHDX at all.  Other negative codes:
 * the check itself could not go on (I/O error, memory).  Since 0.1. */
VHDX_API int vhdx_check(const char *path, const struct vhdx_open_options *options, vhdx_finding_fn *fn,
                        void *opaque, struct vhdx_check_result *result, vhdx_progress_fn *progress,
                        void *progress_opaque);

/* ---- dump -------------------------------------------------------------------------------------------- */

/* How a number is best shown. */
enum vhdx_number_style { VHDX_DECIMAL, VHDX_HEX, VHDX_BYTES };

/* Receives decoded structures as a tree.  Names are static; values are valid during the call only.  Inside an
 * array, names are NULL.  The root is an object that is neither begun nor ended: what comes first is its member. */
struct vhdx_dump_sink {
    void (*begin)(void *opaque, const char *name, bool is_array);
    void (*end)(void *opaque);
    void (*number)(void *opaque, const char *name, uint64_t value, enum vhdx_number_style style);
    void (*text)(void *opaque, const char *name, const char *value);
    void (*boolean)(void *opaque, const char *name, bool value);
};

enum vhdx_dump_parts {
    VHDX_DUMP_HEADERS  = 1u << 0,
    VHDX_DUMP_REGIONS  = 1u << 1,
    VHDX_DUMP_METADATA = 1u << 2,
    VHDX_DUMP_LOG      = 1u << 3,
    VHDX_DUMP_BAT      = 1u << 4,
    VHDX_DUMP_ALL      = 0x1f,
};

struct vhdx_dump_options {
    size_t struct_bytes;
    uint32_t parts;           /* enum vhdx_dump_parts */
    bool raw;                 /* show the file as it is on disk, without the dirty log's changes */
    uint64_t first_block;     /* payload blocks to list */
    uint64_t nr_blocks;
};

/* Decode the on-disk structures of the image at path into sink, as far as they can be decoded; what cannot is
 * reported inside the tree as a text named "error".  Parents are not looked for.  VHDX_E_NOT_VHDX, or an errno
 * if the file cannot be read.  Since 0.1. */
VHDX_API int vhdx_dump(const char *path, const struct vhdx_open_options *options,
                       const struct vhdx_dump_options *dump, const struct vhdx_dump_sink *sink, void *opaque);

#ifdef __cplusplus
}
#endif

#endif /* VHDX_H */
