/* SPDX-License-Identifier: MIT */
/* The options that say what a new image is like, for each command that makes one. */
#ifndef CREATE_SETTINGS_H
#define CREATE_SETTINGS_H

#include <stdbool.h>

#include "options.h"
#include "vhdx.h"

extern const struct option options_create[];

/* Was any of them given? */
bool create_settings_used(void);

/* Fill options as they say.  An exit status; what is wrong has been reported. */
int create_settings_fill(struct vhdx_create_options *options, const struct command *command);

#endif
