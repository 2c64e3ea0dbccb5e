/* SPDX-License-Identifier: MIT */
#include "image/header-pair.h"

#include <inttypes.h>

#include "base/error.h"
#include "storage/storage.h"

static int write_one(struct storage *file, struct header_pair *pair, const struct header *wanted)
{
    uint8_t raw[HEADER_RAW_BYTES];
    struct header next = *wanted;
    unsigned slot = 1 - pair->slot;

    next.sequence_no = pair->current.sequence_no + 1;
    next.version = 1;
    next.log_version = 0;
    header_encode(&next, raw);
    int r = storage_pwrite(file, raw, sizeof raw, HEADER_OFFSET(slot));
    if (r == 0)
        r = storage_flush(file); /* between the two as well: else one power failure could tear both */
    if (r < 0)
        return fail_in(r, "header at 0x%" PRIx64, HEADER_OFFSET(slot));
    pair->current = next;
    pair->slot = slot;
    return 0;
}

int header_pair_write(struct storage *file, struct header_pair *pair, const struct header *wanted)
{
    if (pair->current.sequence_no >= UINT64_MAX - 1)
        return fail(VHDX_E_HEADER,
                    "header at 0x%" PRIx64 ": sequence number %" PRIu64 " cannot be raised, so the image cannot be changed; "
                    "convert it into a new one",
                    HEADER_OFFSET(pair->slot), pair->current.sequence_no);
    int r = write_one(file, pair, wanted);
    return r < 0 ? r : write_one(file, pair, wanted);
}
