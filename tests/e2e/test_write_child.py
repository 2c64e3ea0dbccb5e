# SPDX-License-Identifier: MIT
"""Writing into differencing images: states and sectors on chains that others made, judged by "vhdx check", by what vhdx reads and by a
second reader (random chains are in test_random_chains.py); known mistakes of other programs, each by name; and that no parent ever changes."""
import os
import random
import subprocess

import pytest
from reading import file_sha256
from vhdxbuild import *
from vhdxbuild import make_dirty, reader
from writing import Chain, Held, KiB, Model, content_of, expect_no_errors, guids, random_commands

ZERO, UNMAPPED = 2, 3


def states(disk):
    """State of each block."""
    return [disk.bat(block + block // disk.ratio)[0] for block in range(-(-disk.size // disk.block_size))]


def test_sixteen_levels(vhdx, tmp_path):
    generator = random.Random(16)
    size, paths = 5 * MiB + 512, []
    model = Model(bytes(size))
    for level in range(16):
        paths.append(tmp_path / f"{level}.vhdx")
        if level == 0:
            vhdx("create", "-q", "--block-size=1M", paths[-1], size, rc=0)
        else:
            vhdx("create", "-q", "--block-size", generator.choice(("1M", "2M", "32M")), "--parent", paths[-2], paths[-1], rc=0)
        vhdx("io", paths[-1], stdin="\n".join(random_commands(generator, model, MiB, 5)).encode(), rc=0)
    Chain(paths).judge(vhdx, model, tmp_path)


def test_parents_that_others_made(vhdx, tmp_path):
    """Every block state in the parent, in the child, and a dirty log in between."""
    base = Image(24 * MiB, block_size=2 * MiB, seed=1)
    for block, state in enumerate((0, 1, 2, 3, 6, 6, 6, 6, 0, 0, 6, 6)):
        if state == 6:
            base.write(block * 2 * MiB, 2 * MiB, Pattern(1))
        elif state:
            base.set_block(block, state)
    base = base.build(tmp_path / "base.vhdx")
    middle = Image(24 * MiB, block_size=MiB, seed=2, parent=base).write(9 * MiB + 512, 4096, Pattern(2)).write(16 * MiB, MiB, Pattern(2))
    make_dirty(middle, ("bat", "metadata"))
    middle = middle.build(tmp_path / "middle.vhdx")
    child = Image(24 * MiB, block_size=2 * MiB, seed=3, parent=middle)
    for block in range(12):
        if block % 4:
            child.set_block(block, block % 4)
    child = child.write(8 * MiB + 4096, 512, Pattern(3)).build(tmp_path / "child.vhdx")
    before = [file_sha256(layer.path) for layer in (base, middle)]
    generator = random.Random(4)
    model = Model(child.expected(0, child.size))
    for _ in range(4):
        vhdx("io", child.path, stdin="\n".join(random_commands(generator, model, 2 * MiB, 12)).encode(), rc=0)
        Chain([base.path, middle.path, child.path]).judge(vhdx, model, tmp_path)
    assert before == [file_sha256(layer.path) for layer in (base, middle)]


# ---- what becomes of blocks

@pytest.fixture
def pair(vhdx, tmp_path):
    """A parent full of ones and an empty child of 2 MiB blocks."""
    vhdx("create", "-q", "--block-size=1M", tmp_path / "parent.vhdx", "9M", rc=0)
    vhdx("io", tmp_path / "parent.vhdx", "-c", "write -q -P 1 0 8M", rc=0)
    vhdx("create", "-q", "--parent", tmp_path / "parent.vhdx", tmp_path / "child.vhdx", rc=0)
    chain = Chain([tmp_path / "parent.vhdx", tmp_path / "child.vhdx"])
    chain.model = Model(b"\1" * 8 * MiB + bytes(MiB))
    return chain


def run(vhdx, chain, *lines):
    vhdx("io", chain.paths[-1], stdin="\n".join(lines).encode(), rc=0)


@pytest.mark.parametrize("offset, length, state", [
    (0, 512, 7), (0, 2 * MiB, 6), (2 * MiB - 512, 1024, 7), (100, 3, 7), (0, 2 * MiB - 1, 6), (1, 2 * MiB - 1, 6), (0, 2 * MiB - 512, 7),
    (8 * MiB, 512, 6),      # the parent holds nothing there
    (8 * MiB, MiB, 6),      # all of the short last block
])
def test_first_write(vhdx, tmp_path, pair, offset, length, state):
    run(vhdx, pair, pair.model.write(offset, length, 7))
    disk = pair.judge(vhdx, pair.model, tmp_path)
    assert states(disk)[offset // (2 * MiB)] == state


def test_promotion(vhdx, tmp_path, pair):
    """When the last sector has come, the block is fully present; the bits stay."""
    order = list(range(0, 2 * MiB, 64 * KiB))
    random.Random(1).shuffle(order)
    run(vhdx, pair, *(pair.model.write(offset, 64 * KiB, 3) for offset in order[1:]))
    assert states(pair.judge(vhdx, pair.model, tmp_path))[0] == 7
    run(vhdx, pair, pair.model.write(order[0], 64 * KiB, 4))
    disk = pair.judge(vhdx, pair.model, tmp_path)
    assert states(disk)[0] == 6
    assert vhdx("info", "--json", pair.paths[-1]).json()["format-specific"]["data"]["blocks"]["fully-present"] == 1


def test_bytes_of_a_sector(vhdx, tmp_path):
    """Parts of sectors are completed with what the parent holds, on both kinds of sectors."""
    for lss in (512, 4096):
        parent, child = tmp_path / f"parent{lss}.vhdx", tmp_path / f"child{lss}.vhdx"
        vhdx("create", "-q", "--block-size=1M", "--logical-sector-size", lss, parent, "2M", rc=0)
        vhdx("io", parent, "-c", "write -q -P 5 0 2M", rc=0)
        vhdx("create", "-q", "--parent", parent, child, rc=0)
        model = Model(b"\5" * 2 * MiB)
        generator = random.Random(lss)
        lines = []
        for _ in range(150):
            offset = generator.randrange(40000)
            lines.append(model.write(offset, generator.choice((1, 3, 511, 513, 4095, 4097)), generator.randrange(256)))
            if generator.random() < 0.2:
                lines.append(model.zero(generator.randrange(40000), 700))
            if generator.random() < 0.2:
                lines.append(model.discard(generator.randrange(40000), 5000))
        vhdx("io", child, stdin="\n".join(lines).encode(), rc=0)
        Chain([parent, child]).judge(vhdx, model, tmp_path)


# ---- mistakes of others

def test_zero_block_does_not_become_partial(vhdx, tmp_path, pair):
    """ZERO or UNMAPPED, then a small write: partially present with one bit would let the parent's ones show through."""
    for line in (pair.model.zero(0, 2 * MiB), pair.model.discard(2 * MiB, 2 * MiB)):
        run(vhdx, pair, line)
    assert states(pair.judge(vhdx, pair.model, tmp_path))[:2] == [ZERO, UNMAPPED]
    run(vhdx, pair, pair.model.write(4096, 512, 9), pair.model.write(3 * MiB + 5, 1, 9))
    assert states(pair.judge(vhdx, pair.model, tmp_path))[:2] == [6, 6]


def test_stale_bits_after_reallocation(vhdx, tmp_path):
    """Bits of an earlier life say nothing about the next one."""
    base = Image(8 * MiB, block_size=MiB, seed=1).write(0, 8 * MiB, Pattern(1)).build(tmp_path / "base.vhdx")
    child = Image(8 * MiB, block_size=MiB, parent=base).write(0, 512, Pattern(2))
    child.bitmaps[0] = Bitmap(fill=0xff)
    child = child.build(tmp_path / "child.vhdx")
    model = Model(child.expected(0, child.size))
    vhdx("io", child.path, stdin="\n".join([model.write(3 * MiB + 8192, 512, 7), model.write(5 * MiB, 100, 8)]).encode(), rc=0)
    disk = Chain([base.path, child.path]).judge(vhdx, model, tmp_path)
    assert states(disk) == [7, 0, 0, 7, 0, 7, 0, 0]


def test_trim_does_not_bring_the_parent_back(vhdx, tmp_path, pair):
    """Whatever the block was before: data here, partly here, or only in the parent; whole blocks and parts."""
    run(vhdx, pair, pair.model.write(0, 2 * MiB, 2), pair.model.write(2 * MiB, 64 * KiB, 3))
    run(vhdx, pair, pair.model.discard(0, 6 * MiB), pair.model.discard(6 * MiB + 1000, 5000))
    disk = pair.judge(vhdx, pair.model, tmp_path)
    assert states(disk)[:4] == [UNMAPPED, UNMAPPED, UNMAPPED, 7]
    run(vhdx, pair, pair.model.discard(0, 9 * MiB))     # again: nothing to do but the rest
    assert 0 not in states(pair.judge(vhdx, pair.model, tmp_path))[:4]


def test_zeros_where_the_parent_has_none_cost_nothing(vhdx, tmp_path, pair):
    before = file_sha256(pair.paths[-1])
    run(vhdx, pair, pair.model.discard(8 * MiB, MiB))
    assert states(pair.judge(vhdx, pair.model, tmp_path))[4] == 0
    assert before != file_sha256(pair.paths[-1])    # but the identity is new: it was asked for a change


def test_identity_is_renewed_by_writes_and_not_by_replay(vhdx, vhdx_path, tmp_path, pair):
    path = pair.paths[-1]
    first = guids(vhdx, path)
    vhdx("io", path, "-c", "read 0 1M", rc=0)
    assert guids(vhdx, path) == first
    run(vhdx, pair, pair.model.write(0, 512, 7))
    second = guids(vhdx, path)
    assert second[0] != first[0] and second[1] != first[1]
    with Held(vhdx_path, path) as held:
        held.do(pair.model.write(4096, 512, 8), "flush")
        held.kill()
    third = guids(vhdx, path)
    assert third[1] != second[1]
    vhdx("io", path, "-c", "read 0 1M", rc=0)     # opened for writing: the log is replayed
    assert not vhdx("info", "--json", path).json()["dirty-flag"]
    fourth = guids(vhdx, path)
    assert fourth[0] != third[0] and fourth[1] == third[1]
    pair.judge(vhdx, pair.model, tmp_path)


def test_keys_are_case_sensitive(vhdx, tmp_path):
    """A locator with Parent_Linkage has no parent_linkage."""
    base = Image(8 * MiB, block_size=MiB).build(tmp_path / "base.vhdx")
    child = Image(8 * MiB, block_size=MiB, parent=base)
    child.locator = Locator([("Parent_Linkage", braced(base.data_write_guid)), ("relative_path", ".\\base.vhdx")])
    child = child.build(tmp_path / "child.vhdx")
    assert "parent_linkage" in vhdx("io", child.path, "-c", "write 0 512", rc=1).err


# ---- the rest of the chain

def test_parent_written_behind_the_childs_back(vhdx, tmp_path, pair):
    before = file_sha256(pair.paths[1])
    vhdx("io", pair.paths[0], "-c", "write 0 512", rc=0)
    assert "mismatch in the identifiers" in vhdx("io", pair.paths[1], "-c", "write 0 512", rc=1).err
    assert file_sha256(pair.paths[1]) == before


def test_nobody_writes_to_a_parent_in_use(vhdx, vhdx_path, tool, tmp_path, pair):
    with Held(vhdx_path, pair.paths[1]) as held:
        held.do(pair.model.write(0, 512, 7))
        assert "open for reading" in vhdx("io", pair.paths[0], "-c", "write 0 512", rc=1).err
        done = vhdx("io", pair.paths[1], "-c", "write 0 512", rc=1)
        assert "open for writing" in done.err
        other = subprocess.run([tool("qemu-io"), "-f", "vhdx", "-c", "write 0 512", pair.paths[0]], capture_output=True, check=False)
        assert b"lock" in other.stderr
        vhdx("io", "-r", pair.paths[0], "-c", "read 0 512", rc=0)     # reading it is fine
        held.end()
    pair.judge(vhdx, pair.model, tmp_path)


def test_without_its_parent(vhdx, tmp_path, pair):
    os.rename(pair.paths[0], tmp_path / "moved.vhdx")
    before = file_sha256(pair.paths[1])
    vhdx("io", pair.paths[1], "-c", "write 0 512", rc=1)
    assert file_sha256(pair.paths[1]) == before
    vhdx("io", "--parent", tmp_path / "moved.vhdx", pair.paths[1], "-c", pair.model.write(10, 10, 7), rc=0)
    os.rename(tmp_path / "moved.vhdx", pair.paths[0])
    pair.judge(vhdx, pair.model, tmp_path)


def test_map_while_it_is_written(vhdx, vhdx_path, pair):
    """One handle sees its own changes before they are durable."""
    out = vhdx("io", pair.paths[1], "-c", "write -q -P 9 4096 4096", "-c", "map", rc=0).out
    assert "4 KiB" in out or "0x1000" in out, out


def test_discarding_all_of_a_huge_disk(vhdx, tmp_path):
    """What is not there takes no time: 64 million blocks."""
    vhdx("create", "-q", "--block-size=1M", tmp_path / "parent.vhdx", "64T", rc=0)
    vhdx("create", "-q", "--block-size=1M", "--parent", tmp_path / "parent.vhdx", tmp_path / "child.vhdx", rc=0)
    for name in ("parent.vhdx", "child.vhdx"):
        if name == "child.vhdx":
            vhdx("io", tmp_path / "parent.vhdx", "-c", "write -q 5T 4k", rc=0)
            vhdx("create", "-q", "--force", "--block-size=1M", "--parent", tmp_path / "parent.vhdx", tmp_path / name, rc=0)
        vhdx("io", tmp_path / name, stdin=b"write -q 3T 1M\ndiscard -q 0 64T\nwrite -q -z 1M 63T\n", rc=0)
        states = vhdx("info", "--json", tmp_path / name, rc=0).json()["format-specific"]["data"]["blocks"]
        assert (states["fully-present"], states["unmapped"]) == (0, 1 if name == "parent.vhdx" else 2)
        expect_no_errors(vhdx, tmp_path / name)


def test_a_chain_of_256(vhdx, tmp_path):
    """The deepest there is, written at its end."""
    built = None
    for depth in range(255):
        image = Image(2 * MiB, block_size=MiB, parent=built, seed=depth)
        built = image.write(depth * 4096, 4096, Pattern(depth)).build(tmp_path / f"{depth}.vhdx")
    child = tmp_path / "child.vhdx"
    vhdx("create", "-q", "--parent", built.path, child, rc=0)
    model = Model(content_of(vhdx, child, tmp_path))
    lines = random_commands(random.Random(256), model, MiB, 12)
    vhdx("io", child, stdin="\n".join([*lines, model.write(100 * 4096 + 7, 300, 1)]).encode(), rc=0)
    assert content_of(vhdx, child, tmp_path) == model.content


def test_many_small_writes_over_many_blocks(vhdx, tmp_path):
    """More bitmap and table pages than one log entry holds."""
    vhdx("create", "-q", "--block-size=1M", tmp_path / "parent.vhdx", "64G", rc=0)
    vhdx("io", tmp_path / "parent.vhdx", stdin="\n".join(f"write -q -P 1 {n * 300}M 4k" for n in range(200)).encode(), rc=0)
    vhdx("create", "-q", "--block-size=256M", "--parent", tmp_path / "parent.vhdx", tmp_path / "child.vhdx", rc=0)
    vhdx("io", tmp_path / "child.vhdx", stdin="\n".join(f"write -q -P 2 {n * 300 * MiB + 512} 512" for n in range(200)).encode(), rc=0)
    expect_no_errors(vhdx, tmp_path / "child.vhdx")
    with reader.Reader(tmp_path / "parent.vhdx") as parent, reader.Reader(tmp_path / "child.vhdx", parent) as disk:
        for n in range(200):
            assert disk.read(n * 300 * MiB, 1536) == b"\1" * 512 + b"\2" * 512 + b"\1" * 512
