# SPDX-License-Identifier: MIT
"""Builds VHDX images for tests: every shape the format allows, and as many that it forbids.

An Image is a description: a dataclass with lists and dicts that a test fills in and changes freely.  build(path)
writes a sparse file and returns a Built, which knows, without reading the file, what a guest must see.  Everything
is written from the format reference alone, so that it can judge the C library; nothing is shared with that.
Everything is deterministic: GUIDs, sequence numbers and patterns depend on seeds only.  Two images without a parent
and with the same seed (0 unless told) have the same GUIDs: give seeds where they must differ.

    from vhdxbuild import *

1. A dynamic image, compared through the command under test:

    image = Image(100 * MiB, block_size=2 * MiB, lss=512)
    image.write(5 * MiB + 512, 4096, Pattern(1))            # guest offset, length, content; allocates blocks
    image.write(0, 5, b"hello")
    image.set_block(7, ZERO)                                # any state; Block's fields as keywords
    image.set_block(9, UNMAPPED, at=AUTO, junk=Pattern(9))  # soft anchor with old data that must not show
    image.set_block(3, at=5 * GiB, data=Pattern(2))         # where you like (the file is sparse)
    built = image.build(tmp_path / "a.vhdx")
    vhdx("convert", built.path, raw_path, rc=0)
    assert built.first_difference(raw_path) is None         # also: built.expected(offset, length), built.sha256(),
                                                            # built.probes(), built.difference(offset, bytes_read)

2. A differencing image with a dirty log:

    child = windows(100 * MiB, parent=built)                # presets: windows, qemu, disk2vhd; locator by itself
    child.write(1 * MiB, 512, Pattern(3))                   # part of a block: PARTIALLY_PRESENT, bit set
    child.set_block(4, PARTIALLY_PRESENT, present=[(0, 8), (100, 1)], data=Pattern(4), junk=0xEE)
    child.set_block(5, UNDEFINED, present="all")            # stale bits
    make_dirty(child, ["bat", "bitmap"], start=child.log.length - 8192)   # entries wrap around the ring's end
    child.build(tmp_path / "b.vhdx")                        # expected() includes the parent

3. Damage:

    image.headers[1].damage = "torn"                        # or "crc", "signature", "zero", "junk"
    image.region_tables[0].damage = "crc"
    image.declared["file_parameters"] = 0                   # metadata value that lies (block size; flags: file_flags)
    image.items.append(Item("mine", b"data", flags=IS_USER, offset=0x10101))
    image.item("parent_locator").declared_length = 7
    image.regions.append(Region("other", required=0, at=700 * GiB, length=3 * MiB))
    image.set_block(8, raw=6 | 5 << 3)                      # any BAT entry; image.bat_raw[index] for any slot
    image.log.guid = guid("01234567-...")                   # named by the headers
    image.log.entries = [Entry([Data("bat"), Zero("bitmap:0", MiB)], at=0x3000, seq=5, tail="self"), Entry(torn=512)]
    image.patches.append(Patch(("header1", 66), b"\\2\\0", repair=True))    # last step, checksum made right again
    image.file_length = 7 * MiB                             # cut; image.trailing = 512 appends

Offsets of parts can be written as names ("header1", "entry:5", ("metadata", 0x10000), ...): Plan.where lists them,
and built.where(name) and image.plan().where(name) resolve them.  Images can be copied with copy.deepcopy.

Where to look for more: image.py has the fields of Image, Header, Region, RegionTable, Item, Block, Bitmap, Patch;
log.py those of Log, Entry, Data, Zero; locator.py Locator; presets.py the layouts; dirty.py make_dirty; guest.py
what Built can tell about the guest's view (extents() has depth, state and file offset of every range); content.py
Pattern, Fill, describe.  reader.Reader is a strict little reader for a second look at any file.

What a guest sees follows from Block.state and the data given, not from raw overrides, patches or log entries written
by hand: describe the state after replay, and put what the file holds meanwhile in image.home (make_dirty does both).
State 7 without a parent counts as present (tolerant readers), states 4 and 5 as zeros; Block.reads overrides.
Data beyond a cut file's end reads as zeros.

By hand: python3 tests/support/vhdxbuild --help.
"""
from .built import Built
from .content import Fill, Pattern, Raw, describe
from .crc32c import crc32c, with_checksum
from .dirty import make_dirty
from .encode import (FULLY_PRESENT, IS_REQUIRED, IS_USER, IS_VIRTUAL_DISK, ITEM_GUIDS, LOCATOR_TYPE_VHDX, NO_GUID,
                     NOT_PRESENT, PARTIALLY_PRESENT, REGION_GUIDS, SB_NOT_PRESENT, SB_PRESENT, UNDEFINED, UNMAPPED,
                     ZERO, Geometry, GiB, KiB, MiB, TiB, guid, guid_text, seeded_guid)
from .image import AUTO, Bitmap, Block, Header, Image, Item, Patch, Region, RegionTable
from .locator import Locator, LocatorEntry, braced
from .log import Data, Entry, Log, Zero
from .presets import PRESETS, disk2vhd, qemu, windows

__all__ = [
    "AUTO", "Bitmap", "Block", "Built", "Data", "Entry", "FULLY_PRESENT", "Fill", "Geometry", "GiB", "Header",
    "IS_REQUIRED", "IS_USER", "IS_VIRTUAL_DISK", "ITEM_GUIDS", "Image", "Item", "KiB", "LOCATOR_TYPE_VHDX", "Locator",
    "LocatorEntry", "Log", "MiB", "NOT_PRESENT", "NO_GUID", "PARTIALLY_PRESENT", "PRESETS", "Patch", "Pattern",
    "REGION_GUIDS", "Raw", "Region", "RegionTable", "SB_NOT_PRESENT", "SB_PRESENT", "TiB", "UNDEFINED", "UNMAPPED",
    "ZERO", "Zero", "braced", "crc32c", "describe", "disk2vhd", "guid", "guid_text", "make_dirty", "qemu",
    "seeded_guid", "windows", "with_checksum",
]
