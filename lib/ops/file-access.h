/* SPDX-License-Identifier: MIT */
/* Who may use a file, and what else the file system notes beside its content. */
#ifndef VHDX_OPS_FILE_ACCESS_H
#define VHDX_OPS_FILE_ACCESS_H

/* Whoever may use the file behind `from` may use the one behind `to`, and nobody else: owner, permissions, access control list,
 * security label, users' attributes.  What we may not set, or what the file system does not take, stays away, and then rather
 * fewer people get in: without the right to give the file its old group, the one that it has gets nothing. */
int file_access_inherit(int to, int from);

#endif
