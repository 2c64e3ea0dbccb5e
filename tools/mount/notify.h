/* SPDX-License-Identifier: MIT */
/* Telling a service manager how far we are, as sd_notify(3) describes it. */
#ifndef MOUNT_NOTIFY_H
#define MOUNT_NOTIFY_H

/* Send state, such as "READY=1", if $NOTIFY_SOCKET says where to.  That it does not arrive is no failure of ours. */
void notify_manager(const char *state);

#endif
