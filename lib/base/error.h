/* SPDX-License-Identifier: MIT */
/* The text that goes with an error code.
 *
 * The function that knows the cause calls fail() once; everybody above passes the code on, at most adding the
 * name of the file with fail_in().  The text is the thread's own, so no lock and no handle is needed; a worker
 * thread hands it to its caller with error_save() and error_restore(). */
#ifndef VHDX_BASE_ERROR_H
#define VHDX_BASE_ERROR_H

enum { ERROR_TEXT_BYTES = 1024 };

struct error_text {
    char text[ERROR_TEXT_BYTES];
};

/* Record the message and return code.  One line, no newline; name structure, file offset and values (H6). */
int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* Record -errno with the message followed by ": strerror".  Returns -errno. */
int fail_errno(const char *format, ...) __attribute__((format(printf, 1, 2), cold));

/* Put "name: " before the recorded message and return code unchanged. */
int fail_in(int code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* Record -ENOMEM for so many bytes of something. */
int fail_memory(const char *what) __attribute__((cold));

const char *error_message(void);
void error_save(struct error_text *to);
void error_restore(const struct error_text *from);

#endif
