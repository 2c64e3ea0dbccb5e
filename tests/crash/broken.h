/* SPDX-License-Identifier: MIT */
/* A writer that breaks one rule: faults put between the library's files by the linker (--wrap), to see that the crash tests
 * find what they are there to find. */
#ifndef VHDX_TESTS_BROKEN_H
#define VHDX_TESTS_BROKEN_H

struct image;

enum broken_rule {
    BROKEN_NONE,
    BROKEN_HOME_BEFORE_LOG,   /* W3, D1: table pages are written home before their entry is durable */
    BROKEN_HOME_NEVER,        /* W5, D6: the tail passes entries whose pages are not home */
    BROKEN_TAIL_NOT_PUBLISHED, /* W4: the ring is reused, entries name the tail of long ago */
    BROKEN_NO_FLUSH_BEFORE_ENTRY, /* W6, D2: space with foreign data is logged before it was made zeros durably */
    BROKEN_FOREIGN_AS_ZEROS,  /* D2: space with foreign data is taken for zeros */
    BROKEN_NO_PUNCH,          /* D2: freed space is taken for clean without having been punched */
    BROKEN_REUSE_AT_ONCE,     /* W7, D3: freed space is given away before the loss is durable */
    BROKEN_GUID_BEFORE_ENTRY, /* W2, D7: the headers name the log before it has an entry */
    BROKEN_ONE_HEADER,        /* D7: the second header is not written */
    BROKEN_NO_FLUSH,          /* D4: the flush at the end of a commit is left out */
    BROKEN_CUT_EARLY,         /* D11: the file is cut while the log is still named */
    BROKEN_LAST_OFFSET,       /* W9, D11: LastFileOffset leaves out what was allocated last */
    /* Children: */
    BROKEN_STALE_BITS,        /* rule 2 of section 6: bits of an earlier life are taken for this one's */
    BROKEN_BITS_BEFORE_DATA,  /* W6, D2: bits are logged before their sectors are written */
    BROKEN_ZERO_TO_PARTIAL,   /* 5.7: a block that read as zeros becomes partially present */
    BROKEN_TRIM_TO_PARENT,    /* 9.6: a discarded block is not present afterwards */
    BROKEN_PROMOTION,         /* rule 4 of section 6: promoted with sectors missing */
    BROKEN_ZEROS_BELOW,       /* D2: what the parents hold is taken for zeros */
    BROKEN_NO_MERGE,          /* a sector that was written in part is present without the rest of it */
    BROKEN_REST_NOT_ZERO,     /* rule 4: what lies behind the disk's end is not made zeros */
    NR_BROKEN,
};

extern enum broken_rule broken_rule;
extern struct image *broken_image; /* the one that breaks it */

#endif
