/* SPDX-License-Identifier: MIT */
/* Replaying a dirty log in memory (format sections 4.7 and 4.8). */
#ifndef VHDX_IMAGE_LOG_REPLAY_H
#define VHDX_IMAGE_LOG_REPLAY_H

#include <stdint.h>

#include "format/header.h"

struct overlay;
struct storage;

/* Judge the dirty log that h names, whole, before anything relies on it, and build the overlay that shows the file as it
 * will be after replay.  No byte of the file changes (D12).  VHDX_E_LOG, VHDX_E_TRUNCATED (the file is shorter than
 * the log promises), VHDX_E_LIMIT. */
int log_replay_overlay(struct storage *file, const struct header *h, uint64_t file_length, struct overlay **o);

#endif
