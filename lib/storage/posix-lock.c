/* SPDX-License-Identifier: MIT */
/* QEMU's image locking, so that its programs and this library keep out of each other's way (I4).
 *
 * A program may use an image in several ways, each with a number p, and says of each whether others may do it
 * meanwhile.  Both is written down as open-file-description locks of one byte, always read locks, so that any
 * number of programs can make the same statement:
 *
 *     byte 100 + p is locked   "I do p"
 *     byte 200 + p is locked   "nobody else may do p"
 *
 *     p  0  read consistent content    1  write    3  change the length
 *
 * Who wants in takes its own bytes first and then looks, by asking whether a write lock would be possible,
 * for others who do what it does not allow or forbid what it does.  Two who come at the same moment may both
 * be sent away, never both be let in.
 *
 * Locks of this kind belong to the open file description: two handles in one process conflict like two
 * processes, and closing one handle does not drop the locks of another. */
#include "storage/posix.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>

#include "base/error.h"
#include "vhdx.h"

enum {
    DO_READ = 1 << 0,
    DO_WRITE = 1 << 1,
    DO_RESIZE = 1 << 3,
    NR_USES = 4,

    USED_BYTE = 100,
    FORBIDDEN_BYTE = 200,
};

static const struct posix_claim claims[] = {
    [STORAGE_LOCK_NONE] = {0, 0},
    [STORAGE_LOCK_SHARED] = {DO_READ, DO_WRITE | DO_RESIZE},
    [STORAGE_LOCK_EXCLUSIVE] = {DO_READ | DO_WRITE | DO_RESIZE, DO_WRITE | DO_RESIZE},
};

/* Inside this file only: the file system keeps no locks. */
enum { NO_LOCKS_HERE = 1 };

static int lock_call(int fd, int command, struct flock *lock)
{
    int r;

    do
        r = fcntl(fd, command, lock);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        return 0;
    if (errno == ENOLCK || errno == EINVAL || errno == ENOTSUP || errno == EOPNOTSUPP || errno == ENOSYS)
        return NO_LOCKS_HERE;
    if (errno == EAGAIN || errno == EACCES)
        return fail(VHDX_E_LOCKED,
                    "another program holds a write lock on byte %" PRId64
                    " of the file; close it there first",
                    (int64_t)lock->l_start);
    return fail_errno("cannot lock byte %" PRId64 " of the file", (int64_t)lock->l_start);
}

static struct flock one_byte(int type, int base, int use)
{
    return (struct flock){.l_type = (short)type, .l_whence = SEEK_SET, .l_start = base + use, .l_len = 1};
}

static int set_bytes(int fd, int type, int base, unsigned uses)
{
    int r = 0;

    for (int use = 0; use < NR_USES && r == 0; use++) {
        struct flock lock = one_byte(type, base, use);

        if (uses & 1u << use)
            r = lock_call(fd, F_OFD_SETLK, &lock);
    }
    return r;
}

/* A byte that cannot be given back keeps others out until the file is closed, and that is all. */
static void drop(int fd, struct posix_claim claim)
{
    struct error_text message;

    error_save(&message);
    set_bytes(fd, F_UNLCK, USED_BYTE, claim.uses);
    set_bytes(fd, F_UNLCK, FORBIDDEN_BYTE, claim.forbids);
    error_restore(&message);
}

/* *held: somebody else has one of these bytes. */
static int probe(int fd, int base, unsigned uses, bool *held)
{
    *held = false;
    for (int use = 0; use < NR_USES && !*held; use++) {
        struct flock lock = one_byte(F_WRLCK, base, use);

        if (!(uses & 1u << use))
            continue;
        int r = lock_call(fd, F_OFD_GETLK, &lock);
        if (r != 0)
            return r;
        *held = lock.l_type != F_UNLCK;
    }
    return 0;
}

static int refuse(enum storage_lock wanted, const char *other)
{
    return fail(VHDX_E_LOCKED, "another program %s; close it there%s", other,
                wanted == STORAGE_LOCK_SHARED ? ", or use --force-share to read anyway" : " first");
}

/* Forbidden uses come first: a writer forbids as well, and "open for writing" says more. */
static int look_for_conflict(int fd, enum storage_lock wanted)
{
    const struct posix_claim *claim = &claims[wanted];
    bool held;
    int r = probe(fd, USED_BYTE, claim->forbids, &held);

    if (r == 0 && held)
        return refuse(wanted, "has the image open for writing");
    if (r == 0)
        r = probe(fd, FORBIDDEN_BYTE, claim->uses & (DO_WRITE | DO_RESIZE), &held);
    if (r == 0 && held)
        return refuse(wanted, "has the image open for reading");
    if (r == 0)
        r = probe(fd, FORBIDDEN_BYTE, claim->uses & DO_READ, &held);
    if (r == 0 && held)
        return refuse(wanted, "is rebuilding the image and lets nobody read it");
    return r;
}

int storage_posix_is_written(struct storage *s, bool *written)
{
    const struct posix_claim *reader = &claims[STORAGE_LOCK_SHARED];
    int r = probe(s->fd, USED_BYTE, reader->forbids, written);

    if (r == 0 && !*written)
        r = probe(s->fd, FORBIDDEN_BYTE, reader->uses, written);
    if (r != NO_LOCKS_HERE)
        return r;
    *written = false;
    return 0;
}

int posix_lock(struct storage *s, enum storage_lock lock)
{
    struct posix *p = posix_of(s);

    assert(lock <= STORAGE_LOCK_EXCLUSIVE);
    pthread_mutex_lock(&p->lock_mutex);
    struct posix_claim old = p->held, new = claims[lock];
    struct posix_claim more = {new.uses & ~old.uses, new.forbids & ~old.forbids};
    struct posix_claim less = {old.uses & ~new.uses, old.forbids & ~new.forbids};

    int r = set_bytes(s->fd, F_RDLCK, USED_BYTE, more.uses);
    if (r == 0)
        r = set_bytes(s->fd, F_RDLCK, FORBIDDEN_BYTE, more.forbids);
    if (r == 0)
        r = look_for_conflict(s->fd, lock);
    if (r != 0)
        drop(s->fd, more);
    if (r == NO_LOCKS_HERE) { /* nobody can be kept out, so work goes on without, as in QEMU */
        drop(s->fd, old);
        p->held = claims[STORAGE_LOCK_NONE];
        r = 0;
    } else if (r == 0) {
        drop(s->fd, less);
        p->held = new;
    }
    pthread_mutex_unlock(&p->lock_mutex);
    return r;
}
