/* SPDX-License-Identifier: MIT */
#include "cmd.h"

#include <inttypes.h>

#include "output.h"

bool print_survey_gaps(const char *name, const vhdx_survey *survey)
{
    uint64_t skipped = vhdx_survey_skipped(survey), elsewhere = vhdx_survey_elsewhere(survey);

    if (skipped > 0)
        print_warning(name, "%" PRIu64 " folders could not be looked into", skipped);
    if (elsewhere > 0)
        print_warning(name, "%" PRIu64 " folders on other file systems (or subvolumes) were not looked into; name them to have that done",
                      elsewhere);
    return skipped > 0;
}
