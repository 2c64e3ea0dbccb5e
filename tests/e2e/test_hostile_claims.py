# SPDX-License-Identifier: MIT
"""Images that claim much, which may cost neither memory nor time (H2), and files cut off anywhere."""
import os
import re
import struct

import pytest
from hostile_support import *
from vhdxbuild import *


# ---- claims that cost nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size, lss", [(MiB, 512), (MiB, 4096), (256 * MiB, 512), (256 * MiB, 4096)])
@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_claim_of_the_largest_disk(hostile, huge, block_size, lss, kind):
    parent = None
    if kind == "differencing":
        parent = Image(64 * TiB, block_size=32 * MiB, lss=lss, seed=1).build(huge / "parent.vhdx")
    image = Image(64 * TiB, block_size=block_size, lss=lss, seed=2, parent=parent)
    image.write(64 * TiB - 4096, 4096, Pattern(1))
    hostile.reads(image.build(huge / "disk.vhdx"), huge)


def test_claim_of_2047_regions(hostile, tmp_path):
    image = sound()
    image.regions += [Region(f"other {number}", required=0, at=(100 + 4096 * number) * MiB, length=0xFFF00000)
                      for number in range(2045)]
    image.file_length = 12 * MiB
    hostile.reads(image.build(tmp_path / "disk.vhdx"), tmp_path)


def test_claim_of_2047_items(hostile, tmp_path):
    image = sound()
    image.region("metadata").length = 128 * MiB
    for first, flags, count in ((MiB, IS_USER, 1024), (64 * MiB, 0, 1018)):
        image.items += [Item(f"{flags} {number}", b"", flags=flags, declared_offset=first + number * 40000,
                             declared_length=40000) for number in range(count)]
    hostile.reads(image.build(tmp_path / "disk.vhdx"), tmp_path)


def test_locator_of_256_pairs(hostile, tmp_path):
    image = sound_child(tmp_path)
    image.locator.pairs += [(f"key{number:04}" * 200, "v" * 600) for number in range(253)]
    hostile.reads(image.build(tmp_path / "disk.vhdx"), tmp_path)


def test_locator_whose_keys_share_their_bytes(hostile, tmp_path):
    """256 keys of nearly 64 KiB in the same 100 KiB, any two alike nearly to their ends: to compare all is bearable."""
    image = sound_child(tmp_path)
    locator = image.locator
    count = len(locator.pairs) + 253
    locator.gap = bytes(12 * 253)
    entries = locator.entries()
    shared = entries[-1].value_offset + entries[-1].value_length
    entries += [LocatorEntry(shared + 2 * number, shared, 65534, 65534) for number in range(253)]
    strings = b"".join(text.encode("utf-16-le") for pair in locator.pairs for text in pair)
    table = b"".join(struct.pack("<IIHH", *entry) for entry in entries)
    locator.raw = (locator.type + struct.pack("<HH", 0, count) + table + strings
                   + b"a\0" * 32700 + b"b\0" + b"a\0" * 400)
    hostile.reads(image.build(tmp_path / "disk.vhdx"), tmp_path)


def test_log_of_1_gib_that_is_all_hole(hostile, huge):
    image = sound()
    image.log.length = GiB
    make_dirty(image, start=GiB - 4096)
    hostile.reads(image.build(huge / "disk.vhdx"), huge)


def test_log_of_1_gib_without_an_entry(hostile, huge):
    image = dirty(sound())
    image.log.length = GiB
    hostile.refuses(image.build(huge / "disk.vhdx").path, "log at 0x100000")


@pytest.mark.parametrize("fields", [{}, {"count": (256 * MiB - 64) // 32}, {"entry_length": 8192, "count": 1},
                                    {"entry_length": 4096}], ids=str)
def test_log_with_many_entries_that_could_be(hostile, huge, fields):
    """Of 64 MiB each sector looks like the start of an entry, some as long as the log."""
    image = dirty(sound())
    image.log.length = 256 * MiB
    built = image.build(huge / "disk.vhdx")
    fill_ring(built, 64 * MiB, **fields)
    hostile.refuses(built.path, "log at 0x100000")


def test_log_of_1_gib_with_many_entries_that_could_be(hostile, huge):
    image = dirty(sound())
    image.log.length = GiB
    built = image.build(huge / "disk.vhdx")
    fill_ring(built, 64 * MiB)
    hostile("map", built.path, rc=1)
    hostile("check", built.path, rc=2)
    hostile("dump", built.path)


@pytest.mark.parametrize("length", [MiB, 64 * MiB])
def test_log_in_which_each_sector_is_another_session(hostile, tmp_path, length):
    image = dirty(sound())
    image.log.length = length
    built = image.build(tmp_path / "disk.vhdx")
    fill_ring(built, length, guids=[seeded_guid(number, "session") for number in range(length // 4096)])
    hostile.refuses(built.path, "log at 0x100000")
    both(image, log_guid=bytes(16))
    built = image.build(tmp_path / "disk.vhdx")
    fill_ring(built, length, guids=[seeded_guid(number, "session") for number in range(length // 4096)])
    hostile.reads(built, tmp_path)


def test_log_of_16384_good_entries(hostile, tmp_path):
    """64 MiB full of empty entries, in one run that covers the ring."""
    image = dirty(sound())
    image.log.length = 64 * MiB
    built = image.build(tmp_path / "disk.vhdx")
    behind = Appended(bytes(4096 - 64))
    ring = bytearray(64 * MiB)
    for number in range(16384):
        head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, 4096, 0, number + 1, 0, 0, SESSION, MiB, 12 * MiB)
        at = 4096 * number
        ring[at:at + 64] = head[:4] + struct.pack("<I", behind(crc32c(head))) + head[8:]
    change_file(built, MiB, ring)
    hostile.reads(built, tmp_path)


def test_zeros_of_enormous_length(hostile, huge):
    """Legal, and as cheap as any: nothing owns the space."""
    image = sound()
    image.file_length = 2 ** 50
    dirty(image, Entry([Zero(64 * MiB, 2 ** 50 - 64 * MiB)] * 100, tail="self"))
    hostile.reads(image.build(huge / "disk.vhdx"), huge)


def test_growth_of_enormous_length(hostile, tmp_path):
    """The same in a file that is to grow: replay in memory extends nothing."""
    image = dirty(sound(), Entry([Zero(64 * MiB, 2 ** 50 - 64 * MiB)] * 100, last=2 ** 50))
    built = image.build(tmp_path / "disk.vhdx")
    hostile.reads(built, tmp_path)
    assert os.stat(built.path).st_size == 12 * MiB


# ---- files cut off anywhere ------------------------------------------------------------------------------------------


def cut_points(built):
    """The begin, the middle and the end of everything, and a byte to each side."""
    plan = built.plan
    ranges = [(0, 520), (0x10000, 4096), (0x20000, 4096), (0x30000, 65536), (0x40000, 65536), (0, MiB)]
    ranges += [(plan.where("log"), built.image.log.length)] + list(plan.regions.values())
    ranges += [(built.where("metadata") + offset, length) for offset, length, _ in plan.item_places.values()]
    ranges += [(built.where("metadata"), 65536), (built.where("bat"), built.image.geometry.entries * 8)]
    ranges += [(plan.where("log") + entry.at, entry.length) for entry in plan.log_entries]
    ranges += [(at, built.image.block_size) for at in plan.block_at.values()]
    ranges += [(at, MiB) for at in plan.bitmap_at.values()]
    points = set()
    for start, length in ranges:
        for point in (start, start + length // 2, start + length):
            points |= {point - 1, point, point + 1}
    return sorted((point for point in points if 0 <= point < os.stat(built.path).st_size), reverse=True)


@pytest.mark.parametrize("kind", ["clean", "dirty", "child", "dirty child"])
def test_cut_anywhere(hostile, tmp_path, kind):
    image = sound_child(tmp_path) if "child" in kind else sound()
    if "dirty" in kind:
        make_dirty(image, ["bat", "metadata"] + (["bitmap"] if "child" in kind else []), per_entry=2)
    built = image.build(tmp_path / "disk.vhdx")
    hostile.reads(built, tmp_path)
    points = cut_points(built)
    assert len(points) > 60
    for number, point in enumerate(points):
        os.truncate(built.path, point)
        message = hostile("convert", built.path, "-", rc=1).err
        assert re.search(r"0x[0-9a-f]+|at offset 0", message), f"cut to {point}: {message}"
        hostile("check", built.path, rc=1 if point < 8 else 2)
        if number % 3 == 0:
            hostile("info", built.path, rc=1)
            hostile("dump", built.path)


def test_parent_cut_anywhere(hostile, tmp_path):
    built = sound_child(tmp_path).build(tmp_path / "disk.vhdx")
    for point in cut_points(built.image.parent)[::7]:
        os.truncate(built.image.parent.path, point)
        message = hostile("convert", built.path, "-", rc=1).err
        assert "parent" in message, f"cut to {point}: {message}"
        hostile("info", built.path, rc=0)
        hostile("check", built.path, rc=(0, 2))     # of parents it judges that their structures can be read
