/* SPDX-License-Identifier: MIT */
#include "ops/file-access.h"

#include <errno.h>
#include <linux/limits.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/error.h"
#include "base/le.h"

#define ACCESS_LIST "system.posix_acl_access"
#define NFS_LIST "system.nfs4_acl"

/* Not those that describe the content, such as security.ima, or belong to a layer of the file system. */
static bool is_inherited(const char *name)
{
    static const char *const names[] = {ACCESS_LIST, NFS_LIST, "security.selinux", "security.SMACK64"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0)
            return true;
    }
    return strncmp(name, "user.", 5) == 0;
}

/* What the list grants the group of the file, it grants no other. */
static void shut_out_group(char *list, size_t length)
{
    for (size_t at = sizeof(struct posix_acl_xattr_header); at + sizeof(struct posix_acl_xattr_entry) <= length;
         at += sizeof(struct posix_acl_xattr_entry)) {
        uint8_t *entry = (uint8_t *)list + at;
        if (le16_get(entry + offsetof(struct posix_acl_xattr_entry, e_tag)) == ACL_GROUP_OBJ)
            le16_put(entry + offsetof(struct posix_acl_xattr_entry, e_perm), 0);
    }
}

static void copy_attribute(int to, int from, const char *name, char *value, bool same_group)
{
    ssize_t length = fgetxattr(from, name, value, XATTR_SIZE_MAX);

    if (length >= 0 && !same_group && strcmp(name, ACCESS_LIST) == 0)
        shut_out_group(value, (size_t)length);
    if (length >= 0 && fsetxattr(to, name, value, (size_t)length, 0) < 0)
        return; /* nobody promised that */
}

static int copy_attributes(int to, int from, bool same_group)
{
    char *names = malloc(XATTR_LIST_MAX + XATTR_SIZE_MAX);

    if (!names)
        return fail_memory("the attributes of a file");
    ssize_t length = flistxattr(from, names, XATTR_LIST_MAX);
    for (ssize_t at = 0; at < length; at += (ssize_t)strlen(names + at) + 1) {
        if (is_inherited(names + at) && (same_group || strcmp(names + at, NFS_LIST) != 0))
            copy_attribute(to, from, names + at, names + XATTR_LIST_MAX, same_group);
    }
    free(names);
    return 0;
}

static bool may_not_be_given(int error)
{
    return error == EPERM || error == EINVAL || error == ENOTSUP;
}

/* Who is not root gives no file away, but may give it any group that he is in. */
static int inherit_owner(int to, const struct stat *old, bool *same_group)
{
    struct stat st;

    if (fchown(to, old->st_uid, old->st_gid) < 0 &&
        (!may_not_be_given(errno) || (fchown(to, (uid_t)-1, old->st_gid) < 0 && !may_not_be_given(errno))))
        return fail_errno("cannot give the new file the owner of the old one");
    if (fstat(to, &st) < 0)
        return fail_errno("cannot look at the new file");
    *same_group = st.st_gid == old->st_gid;
    return 0;
}

int file_access_inherit(int to, int from)
{
    bool same_group = false;
    struct stat st;

    int r = fstat(from, &st) < 0 ? fail_errno("cannot look at the old file") : inherit_owner(to, &st, &same_group);
    if (r < 0)
        return r;
    /* A list from the folder's defaults is not the old file's; it may be that there are none here. */
    if (fremovexattr(to, ACCESS_LIST) < 0 && errno != ENODATA && errno != ENOTSUP && errno != EPERM && errno != ENOSYS)
        return fail_errno("cannot take from the new file what its folder gave it");
    /* With a list the group's bits are the most that anybody on it gets; without, the group would get that.  The list brings
     * them. */
    mode_t mode = st.st_mode & (same_group && fgetxattr(from, ACCESS_LIST, NULL, 0) <= 0 ? 0777 : 0707);
    if (fchmod(to, mode) < 0 && errno != EPERM && errno != ENOTSUP)
        return fail_errno("cannot give the new file the permissions of the old one");
    return copy_attributes(to, from, same_group);
}
