/* SPDX-License-Identifier: MIT */
/* What the tests of lib/image and lib/disk share: opening an image in memory that outlives its handle. */
#ifndef VHDX_TESTS_IMAGE_TEST_H
#define VHDX_TESTS_IMAGE_TEST_H

#include "unit.h"

#include <errno.h>

#include "base/le.h"
#include "base/math.h"
#include "doubles.h"
#include "image-builder.h"
#include "image/image.h"
#include "image/page-cache.h"
#include "storage/storage.h"

/* Counts what all images opened here do to their files; arm it to make something fail. */
static struct fault test_fault;

static inline int init_test_fault(void **state)
{
    (void)state;
    fault_init(&test_fault);
    return 0;
}

/* Open the image in s, which stays the caller's. */
static inline int open_image(struct storage *s, unsigned flags, struct image **img)
{
    struct storage *wrapped;

    assert_succeeds(fault_wrap(&test_fault, s, &wrapped));
    int r = image_open(wrapped, flags, 64, img);
    assert_true((r == 0) == (*img != NULL));
    return r;
}

static inline struct image *must_open(struct storage *s, unsigned flags, const char *file, int line)
{
    struct image *img;

    expect_success(open_image(s, flags, &img), file, line);
    return img;
}

#define MUST_OPEN(s, flags) must_open((s), (flags), __FILE__, __LINE__)

/* Opening must fail with this code, and the message must contain both texts. */
static inline void expect_refused(struct storage *s, unsigned flags, int code, const char *text,
                                  const char *where, const char *file, int line)
{
    struct image *img;
    int r = open_image(s, flags, &img);

    image_close(img);
    expect_failure(r, code, text, file, line);
    expect_failure(r, code, where, file, line);
}

#define EXPECT_REFUSED(s, flags, code, text, where)                                                          \
    expect_refused((s), (flags), (code), (text), (where), __FILE__, __LINE__)

/* Payload bytes as a guest would get them. */
static inline int read_payload(struct image *img, void *buf, size_t bytes, uint64_t file_offset)
{
    struct iovec iov = {buf, bytes};
    return image_preadv_payload(img, &iov, 1, file_offset);
}

#endif
