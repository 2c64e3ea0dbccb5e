# SPDX-License-Identifier: MIT
"""Hostile region tables (format section 11, rows 44 to 54)."""
from hostile_support import *
from vhdxbuild import *

rows = Rows()
refused, tolerated = rows.refused, rows.tolerated
test_refused, test_tolerated = rows.tests()


@refused(44, "both region tables", "REGION", "region tables at 0x30000 and 0x40000", "crc", "signature", "torn", "zero",
         "junk")
def region_tables(image, value):
    for table in image.region_tables:
        table.damage = value


@tolerated(44, "one region table", (0, "torn"), (1, "torn"), (0, "signature"))
def region_table(image, value):
    image.region_tables[value[0]].damage = value[1]


@refused(45, "region EntryCount", "REGION", "region tables at 0x30000", 2048, 0x10002, 0xFFFFFFFF)
def region_count(image, value):
    for table in image.region_tables:
        table.count = value


@refused(45, "region EntryCount takes in what lies behind", "REGION", "region table entry 2 at 0x30050", 3, 2047)
def region_count_too_large(image, value):
    for table in image.region_tables:
        table.count = value


@refused(46, "region twice", "REGION", "region table at 0x30000: region [0-9a-f-]{36} is listed twice", "bat",
         "metadata")
def region_twice(image, value):
    image.regions.append(Region("again", guid=REGION_GUIDS[value], at=40 * MiB))


@refused(46, "unknown region twice", "REGION", "listed twice")
def unknown_region_twice(image):
    image.regions += [Region(name, guid=bytes(range(16)), required=0) for name in "ab"]


@refused(47, "region FileOffset", "REGION", "region table entry 0 at 0x30010 .BAT.: FileOffset {}", 0, 1, 512 * KiB,
         3 * MiB + 4096, 0xFFF)
def region_offset(image, value):
    image.region("bat").declared_at = value


@refused(47, "unknown region FileOffset", "REGION", "FileOffset {}", 0, 20 * MiB + 1)
def unknown_region_offset(image, value):
    image.regions.append(Region("other", required=0, at=20 * MiB, declared_at=value))


@refused(48, "region Length", "REGION", "region table entry 1 at 0x30030 .metadata.: Length {}", 0, 1, 65536,
         MiB + 4096, 0xFFFFFFFF)
def region_length(image, value):
    image.region("metadata").declared_length = value


@refused(49, "region FileOffset overflows", "REGION", "FileOffset {}", 2 ** 63, 2 ** 64 - MiB, 2 ** 63 - MiB)
def region_overflow(image, value):
    image.region("bat").declared_at = value


@refused(49, "unknown region FileOffset overflows", "REGION", "FileOffset {}", 2 ** 63 - MiB, 2 ** 64 - MiB)
def unknown_region_overflow(image, value):
    image.regions.append(Region("other", required=0, at=20 * MiB, declared_at=value))


@refused(49, "region behind the end of the file", "TRUNCATED", "region at {}", 12 * MiB, 2 ** 62)
def region_behind_end(image, value):
    image.region("metadata").declared_at = value


@refused(49, "region half behind the end of the file", "TRUNCATED", "length {}", 10 * MiB, 0xFFF00000)
def region_half_behind_end(image, value):
    image.region("bat").declared_length = value


@tolerated(49, "unknown region behind the end of the file")
def unknown_region_behind_end(image):
    image.regions.append(Region("other", required=0, at=20 * MiB, declared_at=2 ** 62, length=MiB))


@refused(50, "regions overlap", "REGION", "overlaps what lies at", "bat", "log", "metadata")
def regions_overlap(image, value):
    image.regions.append(Region("other", required=0, at=30 * MiB, declared_at=image.plan().where(value)))


@refused(50, "the two regions are one", "REGION", "overlaps what lies at 0x200000")
def regions_are_one(image):
    image.region("bat").declared_at = 2 * MiB


@refused(50, "region reaches over all others", "REGION", "overlaps what lies at")
def region_over_all(image):
    image.regions.append(Region("other", required=0, at=30 * MiB, declared_at=MiB, declared_length=0xFFF00000))


@refused(51, "unknown required region", "UNSUPPORTED", "region table entry 2 at 0x30050 .[0-9a-f-]{36}.: .*required", 1,
         0xFFFFFFFF)
def unknown_required_region(image, value):
    image.regions.append(Region("other", required=value))


@tolerated(51, "unknown optional region", 0, 0xFFFFFFFE)
def unknown_optional_region(image, value):
    image.regions.append(Region("other", required=value))


@refused(52, "no such region", "REGION", "region table at 0x30000: no {} region", "BAT", "metadata")
def region_missing(image, value):
    image.region(value.lower()).listed = False


@refused(52, "no regions at all", "REGION", "among its 0 entries")
def no_regions(image):
    for region in image.regions:
        region.listed = False


@tolerated(53, "BAT region of nearly 4 GiB")
def huge_bat_region(image):
    image.region("bat").length = 0xFFF00000


@refused(54, "metadata region length", "LIMIT", "metadata region at 0x200000: length {}", 129 * MiB, 0xFFF00000)
def huge_metadata_region(image, value):
    image.region("metadata").length = value


@tolerated(54, "metadata region of 128 MiB")
def large_metadata_region(image):
    image.region("metadata").length = 128 * MiB
