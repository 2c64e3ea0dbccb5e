/* SPDX-License-Identifier: MIT */
/* What the user can do, as the last words of a message about a structure (H6). */
#ifndef VHDX_FORMAT_HINT_H
#define VHDX_FORMAT_HINT_H

#define HINT_DAMAGED     "the image is damaged: run 'vhdx check' on it, or restore it from a backup"
#define HINT_TRUNCATED   "the file was cut short: copy it again, or restore it from a backup"
#define HINT_UNSUPPORTED "open it with the program that wrote it, or a newer release of this one"

#endif
