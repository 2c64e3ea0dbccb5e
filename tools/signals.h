/* SPDX-License-Identifier: MIT */
/* Stopping long commands by SIGINT, SIGTERM and SIGHUP, with the exit status 128 + signal.  Signals that are
 * ignored from the start (nohup, background jobs) stay ignored. */
#ifndef SIGNALS_H
#define SIGNALS_H

/* From now on the first signal asks the work to stop at its next step, so that it leaves nothing half made
 * (D13); a second one does not wait for that. */
void signals_catch(void);

/* From now on a signal ends the process at once: for work that leaves nothing behind and may wait on a pipe
 * without end. */
void signals_exit(void);

/* If the work has not stopped so many seconds after the first signal, go on as if there had been a second one: for work that may
 * wait for a server without end.  0, once the work has stopped: no such limit. */
void signals_limit(unsigned seconds);

/* The signal that asks to stop; 0: none. */
int signals_caught(void);

/* What a second signal has to do about an unfinished output file before it ends the process: empty fd, unless that is -1. */
void signals_set_cleanup(int fd);

#endif
