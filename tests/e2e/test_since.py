# SPDX-License-Identifier: MIT
"""vhdx map --since: what an incremental backup has to read."""
import ctypes
import os

import pytest

from cli_support import chain
from reading import Library
from vhdxbuild import *

UNIT = 4096


def extents_since(vhdx, image, since, *options):
    return vhdx("map", "--json", "--since", since.path, *options, image.path, rc=0).json()


def differing_units(image, since):
    """Numbers of the 4 KiB pieces whose content differs; behind since's end it holds zeros."""
    result = set()
    for at in range(0, image.size, MiB):
        mine = image.expected(at, min(MiB, image.size - at))
        theirs = since.expected(at, min(MiB, since.size - at)) if at < since.size else b""
        theirs = theirs.ljust(len(mine), b"\0")
        if mine != theirs:
            result |= {(at + n) // UNIT for n in range(0, len(mine), UNIT) if mine[n:n + UNIT] != theirs[n:n + UNIT]}
    return result


def units(extents):
    return {unit for e in extents for unit in range(e["start"] // UNIT, -(-(e["start"] + e["length"]) // UNIT))}


def make_chain(folder, lss=512, block_sizes=(MiB, 2 * MiB, 4 * MiB), sizes=(24 * MiB, 24 * MiB, 24 * MiB)):
    """Base, middle, child with every state a block can have, and content that equals the parent's."""
    base = Image(sizes[0], block_size=block_sizes[0], lss=lss, seed=1)
    base.write(0, 10 * MiB, Pattern(1)).write(16 * MiB, min(3 * MiB, sizes[0] - 16 * MiB), Pattern(2))
    base = base.build(folder / "base.vhdx")
    middle = Image(sizes[1], block_size=block_sizes[1], lss=lss, seed=2, parent=base)
    middle.write(MiB, 4096 * 3, Pattern(3)).write(2 * MiB, 2 * MiB, Pattern(1))   # the second is what the base has there
    middle.set_block(8 * MiB // block_sizes[1], ZERO)
    middle = middle.build(folder / "middle.avhdx")
    child = Image(sizes[2], block_size=block_sizes[2], lss=lss, seed=3, parent=middle)
    child.write(MiB + 4096, 4096, Pattern(4))
    child.set_block(3, ZERO)                        # the base has nothing there
    child.set_block(4, UNMAPPED, at=AUTO, junk=0xEE)
    child = child.build(folder / "child.avhdx")
    return base, middle, child


@pytest.mark.parametrize("lss", [512, 4096])
@pytest.mark.parametrize("sizes", [(24, 24, 24), (20, 24, 24), (24, 20, 24), (24, 24, 20), (20, 18, 24)])
def test_nothing_is_missed_and_verified_nothing_is_too_much(vhdx, tmp_path, lss, sizes):
    base, middle, child = make_chain(tmp_path, lss, sizes=[size * MiB for size in sizes])
    for image, since in ((child, base), (child, middle), (middle, base)):
        wanted = differing_units(image, since)
        candidates, verified = extents_since(vhdx, image, since), extents_since(vhdx, image, since, "--verify")
        assert wanted <= units(candidates)
        assert wanted == units(verified)
        for extents in (candidates, verified):
            ends = [e["start"] + e["length"] for e in extents]
            assert all(e["start"] >= end for e, end in zip(extents[1:], ends))
            assert all(e["start"] % lss == 0 for e in extents)


def test_tables_alone_leave_out_what_is_zeros_on_both_sides(vhdx, tmp_path):
    base, middle, child = make_chain(tmp_path)
    starts = [(e["start"], e["length"]) for e in extents_since(vhdx, child, base)]
    assert not any(start <= 12 * MiB < start + length for start, length in starts)
    assert any(start == 16 * MiB and length == 3 * MiB for start, length in starts)     # unmapped over data


def test_extents_are_those_of_map(vhdx, chain):
    child, middle, base = chain
    whole = vhdx("map", "--json", child.path, rc=0).json()
    assert extents_since(vhdx, child, base) == [e for e in whole if e["depth"] < 2]
    assert extents_since(vhdx, child, middle) == [e for e in whole if e["depth"] < 1]


def test_range(vhdx, chain):
    child, _, base = chain
    part = extents_since(vhdx, child, base, "-s", "8M", "-l", "1M")
    assert [(e["start"], e["length"]) for e in part] == [(8 * MiB, MiB)]
    assert extents_since(vhdx, child, base, "-s", "100G") == []


def test_table_shows_zeros(vhdx, tmp_path):
    base, _, child = make_chain(tmp_path)
    out = vhdx("map", "--since", base.path, child.path, rc=0).out
    assert any(line.split()[:3] == ["0x1000000", "0x300000", "zeros"] for line in out.splitlines())


def test_not_a_parent(vhdx, chain, tmp_path):
    other = Image(64 * MiB, seed=9).build(tmp_path / "other.vhdx")
    assert "is none of its parents" in vhdx("map", "--since", other.path, chain[0].path, rc=1).err
    assert "is none of its parents" in vhdx("map", "--since", chain[0].path, chain[2].path, rc=1).err
    for image in chain:  # what differs nowhere would be taken for a backup of nothing
        result = vhdx("map", "--json", "--since", image.path, image.path, rc=1)
        assert "the image itself" in result.err and result.out == ""
    assert "No such file" in vhdx("map", "--since", tmp_path / "nothing", chain[0].path, rc=1).err
    assert "--since" in vhdx("map", "--verify", chain[0].path, rc=2).err


@pytest.mark.parametrize("since", [1, 2])
@pytest.mark.parametrize("damage", ["table", "payload"])
def test_errors_name_the_file_that_has_them(library, source_root, sanitizer, tmp_path, damage, since):
    if sanitizer != "none":
        pytest.skip("Python cannot load a library with sanitizers")
    images = [Image(8 * MiB, block_size=MiB, seed=1).write(0, MiB, Pattern(1)).build(tmp_path / "0.vhdx")]
    for number in (1, 2):
        child = Image(8 * MiB, block_size=MiB, seed=1 + number, parent=images[-1])
        if number == 2:
            child.write(0, MiB, Pattern(number))
        images.append(child.build(tmp_path / f"{number}.avhdx"))
    if damage == "table":
        bad = Image(8 * MiB, block_size=MiB, seed=1)
        bad.set_block(0, raw=1 << 40 | FULLY_PRESENT)
        bad.build(tmp_path / "0.vhdx")
    api = Library(library, source_root / "include" / "vhdx.h")
    code, disk = api.open(images[-1].path, flags=api.flags["UNVERIFIED"])
    assert code == 0, api.message()
    if damage == "payload":
        os.truncate(images[0].path, 4 * MiB)
    fn = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda *_: 0)
    code = api.lib.vhdx_diff(disk, ctypes.c_uint32(since), ctypes.c_uint64(0), ctypes.c_uint64(8 * MiB), ctypes.c_uint32(1), fn, None,
                             None, None)
    assert code < 0 and api.message().startswith(f"parent {images[0].path}: "), api.message()
    api.lib.vhdx_close(disk)


def test_incremental_backup(vhdx, tmp_path):
    """A copy of the parent's disk becomes the child's by what map --since lists."""
    base, _, child = make_chain(tmp_path)
    base.write_raw(tmp_path / "backup.raw")
    with open(tmp_path / "backup.raw", "r+b") as backup:
        for extent in extents_since(vhdx, child, base):
            backup.seek(extent["start"])
            if extent["zero"]:
                backup.write(bytes(extent["length"]))
                continue
            with open(extent["filename"], "rb") as image:
                image.seek(extent["offset"])
                backup.write(image.read(extent["length"]))
    assert child.first_difference(tmp_path / "backup.raw") is None
