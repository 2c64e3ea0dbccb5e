/* SPDX-License-Identifier: MIT */
/* A file that gets its name when it is complete, so that under that name there is the whole image or what was there
 * before, whatever happens meanwhile.
 *
 * Where the file system can (O_TMPFILE) the file has no name at all until then, so even SIGKILL leaves nothing behind;
 * elsewhere it is .vhdx-RANDOM.tmp in the same folder. */
#ifndef VHDX_OPS_NEW_FILE_H
#define VHDX_OPS_NEW_FILE_H

#include <limits.h>
#include <stdbool.h>

struct storage;

enum { NEW_FILE_TEMPORARY_BYTES = 32 };

/* What becomes of a file that is there already. */
enum new_file_old {
    OLD_FILE_STAYS,   /* under its name, so nothing is done */
    OLD_FILE_GOES,    /* with its content, unless another image rests on that */
    OLD_FILE_DROPPED, /* with its content; the caller knows what rests on that */
    OLD_FILE_IS_KEPT, /* under another name that the caller gives it before */
};

struct new_file {
    struct storage *file; /* owned; empty at first, writable */
    struct storage *old;  /* owned; what is to be replaced, locked so that nobody opens it; NULL: nothing */
    int folder;           /* descriptor of the folder that the name is in */
    char name[NAME_MAX + 1];
    char temporary[NEW_FILE_TEMPORARY_BYTES]; /* its name until it is complete; "": it has none */
};

/* Begin a file for path.  If there is something: -EEXIST if that stays, else VHDX_E_LOCKED if a program uses it as an image,
 * -EACCES, -EPERM or -EROFS if it is not to be kept and we may not write it, VHDX_E_CHAIN and others if it is to go and another
 * image rests on it (see orphans_refuse()), -EISDIR, -EINVAL for what is no regular file.  If there is nothing: -ENOENT if that
 * should be kept or dropped.  Unless it stays a link is followed.  After 0 new_file_end() must come. */
int new_file_begin(struct new_file *f, const char *path, enum new_file_old old);

/* Give the file, which is durable already, its name, durably.  -EEXIST: something has come there since new_file_begin(). */
int new_file_publish(struct new_file *f);

/* Close everything; remove what was not published. */
void new_file_end(struct new_file *f);

/* Is it such a .vhdx-RANDOM.tmp, being written or left behind by a crash?  Whatever it holds, it is nobody's file yet. */
bool new_file_is_temporary(const char *name);

#endif
