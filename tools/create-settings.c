/* SPDX-License-Identifier: MIT */
#include "create-settings.h"

#include <inttypes.h>
#include <string.h>

#include "cmd.h"
#include "output.h"

enum { CHOICE_UNSAID = -1, CHOICE_DYNAMIC, CHOICE_FIXED };

struct settings {
    int subformat; /* by the order of the choices */
    int fixed;
    int preallocation; /* enum vhdx_preallocation, which has the order of the choices */
    uint64_t block_size, logical_sector_size, physical_sector_size, log_size;
};

static const struct settings unused = {.subformat = CHOICE_UNSAID};
static struct settings settings = {.subformat = CHOICE_UNSAID};

const struct option options_create[] = {
    {0, "subformat", OPTION_CHOICE, &settings.subformat, "dynamic|fixed",
     "grow with its content, or have space for all (default dynamic)"},
    {0, "fixed", OPTION_FLAG, &settings.fixed, NULL, "the same as --subformat=fixed"},
    {0, "block-size", OPTION_SIZE, &settings.block_size, "SIZE",
     "what is allocated at a time: 1M to 256M (default 32M, child 2M)"},
    {0, "logical-sector-size", OPTION_SIZE, &settings.logical_sector_size, "SIZE", "512 or 4096 (default 512)"},
    {0, "physical-sector-size", OPTION_SIZE, &settings.physical_sector_size, "SIZE", "512 or 4096 (default 4096)"},
    {0, "log-size", OPTION_SIZE, &settings.log_size, "SIZE", "1M to 1G in steps of 1M (default 1M)"},
    {0, "preallocate", OPTION_CHOICE, &settings.preallocation, "off|falloc|full",
     "reserve a fixed image's space, or write zeros (default off)"},
    {0},
};

bool create_settings_used(void)
{
    return memcmp(&settings, &unused, sizeof settings) != 0;
}

static int fill_size(const char *name, uint64_t value, uint32_t *to, const struct command *command)
{
    if (value > UINT32_MAX) {
        print_error(NULL, "--%s can be at most 1G, not %" PRIu64 "; try 'vhdx %s --help'", name, value, command->name);
        return EXIT_USAGE;
    }
    *to = (uint32_t)value;
    return EXIT_OK;
}

int create_settings_fill(struct vhdx_create_options *o, const struct command *command)
{
    *o = (struct vhdx_create_options)VHDX_CREATE_OPTIONS_INIT;
    if (settings.fixed && settings.subformat == CHOICE_DYNAMIC) {
        print_error(NULL, "--fixed and --subformat=dynamic contradict each other; try 'vhdx %s --help'", command->name);
        return EXIT_USAGE;
    }
    o->subformat = settings.fixed || settings.subformat == CHOICE_FIXED ? VHDX_FIXED : VHDX_DYNAMIC;
    o->preallocation = (enum vhdx_preallocation)settings.preallocation;
    if (fill_size("block-size", settings.block_size, &o->block_size, command) != EXIT_OK ||
        fill_size("logical-sector-size", settings.logical_sector_size, &o->logical_sector_size, command) != EXIT_OK ||
        fill_size("physical-sector-size", settings.physical_sector_size, &o->physical_sector_size, command) != EXIT_OK ||
        fill_size("log-size", settings.log_size, &o->log_size, command) != EXIT_OK)
        return EXIT_USAGE;
    return EXIT_OK;
}
