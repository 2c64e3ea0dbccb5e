/* SPDX-License-Identifier: MIT */
/* Changing the two headers (format section 2.4, D7): always the copy that does not count, one higher, flushed; then once
 * more the other, so that the loss of one never brings old identities or an old log back. */
#ifndef VHDX_IMAGE_HEADER_PAIR_H
#define VHDX_IMAGE_HEADER_PAIR_H

#include "format/header.h"

struct storage;

struct header_pair {
    struct header current;
    unsigned slot; /* of the current one */
};

/* Make wanted the content of both headers; its sequence number, versions and reserved bytes are set here.  After a failure
 * the file still has a valid header, but which is unknown: write nothing more (D9). */
int header_pair_write(struct storage *file, struct header_pair *pair, const struct header *wanted);

#endif
