/* SPDX-License-Identifier: MIT */
/* Where "vhdx serve" is reached.
 *
 * The sockets are made here and handed to nbdkit the way systemd does it, not by nbdkit: so a port that is taken and a path that
 * exists are our errors in our words, port 0 works, and whoever reads the URI can connect at once. */
#ifndef SERVE_TRANSPORT_H
#define SERVE_TRANSPORT_H

#include <stdbool.h>
#include <sys/types.h>

enum { TRANSPORT_MAX_SOCKETS = 16 };

struct transport {
    int fds[TRANSPORT_MAX_SOCKETS]; /* listening; none for standard input and output */
    int nr_fds;
    char *uri;         /* owned */
    char *socket_path; /* owned; of a Unix socket, absolute */
    unsigned port;     /* of a TCP socket */
    bool remove;       /* socket_path is ours, */
    int socket_handle; /* as long as this is it; open, so that no other file can have its number.  If remove */
    char *folder; /* owned; made for the socket, to be removed with it */
};

/* Each returns 0, or -1 after saying what is wrong.  End with transport_end() either way. */

/* A Unix socket at path, where nothing may be yet. */
int transport_unix(struct transport *t, const char *path, bool tls);

/* A Unix socket in a folder of its own that only this user can enter. */
int transport_private(struct transport *t, bool tls);

/* TCP.  address: NULL for this machine only, "*" for all addresses; port: 0 for any. */
int transport_tcp(struct transport *t, const char *address, unsigned port, bool tls);

/* Sockets that systemd, or who acts like it, has opened for us: how many; and taking them. */
int transport_nr_inherited(void);
int transport_inherited(struct transport *t, bool tls);

/* Close the sockets in this process; the server has its own. */
void transport_close_sockets(struct transport *t);

/* Remove names from the file system and free everything. */
void transport_end(struct transport *t);

#endif
