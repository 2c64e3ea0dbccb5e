/* SPDX-License-Identifier: MIT */
#include "base/zero.h"

#include <isa-l/mem_routines.h>
#include <stdint.h>

bool memory_is_zero(const void *p, size_t length)
{
    return length == 0 || isal_zero_detect((void *)(uintptr_t)p, length) == 0;
}
