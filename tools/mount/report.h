/* SPDX-License-Identifier: MIT */
/* Messages of the mount's server: to stderr, and once it has left the terminal to syslog. */
#ifndef MOUNT_REPORT_H
#define MOUNT_REPORT_H

/* From now on to syslog. */
void report_to_syslog(void);

/* level: of syslog(3).  image may be NULL.  Any thread. */
void report(int level, const char *image, const char *format, ...) __attribute__((format(printf, 3, 4), cold));

#endif
