# SPDX-License-Identifier: MIT
"""Writing images in place: what was written is what every reader then sees, whoever made the image and whoever else writes it;
space comes back; identities are renewed when they must be and not else; crashes, locks, full and read-only file systems.

VHDX_SEEDS says how many random scripts (from 0), or which ("4000-4999")."""
import os
import pathlib
import random
import re
import shutil
import subprocess
import tempfile
import threading
import time

import pytest

from cli_support import held_by_qemu
from conftest import run_program
from reading import file_fingerprint, file_sha256, seeds
from test_random_images import random_image
from vhdxbuild import *
from writing import (Held, Model, assert_disk_is, expect_no_errors, guids, on_disk, random_commands, random_range)

KiB = 1024


@pytest.fixture
def io(vhdx):
    """io(path, lines, *options, rc=0): run the commands."""
    def run(path, lines, *options, rc=0, **keywords):
        return vhdx("io", *options, path, rc=rc, stdin="\n".join(lines) + "\n", timeout=300, **keywords)
    return run


@pytest.fixture
def quick():
    """A folder where flushing costs nothing, for tests that do not look at the file system."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield pathlib.Path(folder)


def made_by_qemu(qemu_img, path, size, block_size, subformat="dynamic"):
    qemu_img("create", "-q", "-f", "vhdx", "-o", f"block_size={block_size},subformat={subformat}", path, size)
    return path


# ---- what was written is there

@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("block_mib", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_images_of_qemu(vhdx, io, qemu_img, quick, block_mib, subformat):
    size = (66 if block_mib == 64 else 34) * MiB + 512
    image = made_by_qemu(qemu_img, quick / "disk.vhdx", size, block_mib * MiB, subformat)
    model, generator = Model(bytes(size)), random.Random(block_mib)
    for _ in range(2):
        io(image, random_commands(generator, model, block_mib * MiB, 25, source=quick / "source"))
        assert_disk_is(vhdx, qemu_img, model, image, quick)


def with_data(image, seed):
    image.write(3 * MiB + 512 * 8, 5 * MiB, Pattern(seed))
    image.write(33 * MiB, 4096, Pattern(seed + 1))
    return image


def dirty(image, **keywords):
    return make_dirty(with_data(image, 5), ["bat"], **keywords)


BUILT = {
    "windows": lambda size: with_data(windows(size), 1),
    "windows, 4096": lambda size: with_data(windows(size, lss=4096), 1),
    "windows fixed": lambda size: with_data(windows(size, kind="fixed"), 1),
    "fixed, 4096": lambda size: with_data(Image(size, kind="fixed", lss=4096, block_size=MiB), 1),
    "disk2vhd": lambda size: with_data(disk2vhd(size), 2),
    "qemu": lambda size: with_data(qemu(size), 3),
    "blocks from the end": lambda size: with_data(Image(size, block_size=MiB, payload_order="descending", block_gap=MiB), 4),
    "log and tables far behind": lambda size: with_data(Image(size, order=["bat", "metadata", "log"], payload_gap=7 * MiB), 4),
    "dirty": lambda size: dirty(windows(size)),
    "dirty, wrapped, wrong at home": lambda size: dirty(Image(size, block_size=MiB), home="junk", start=MiB - 8192),
    "dirty, 4096": lambda size: dirty(windows(size, lss=4096), shuffle=True),
    "dirty metadata": lambda size: make_dirty(with_data(windows(size), 6), ["bat", "metadata", "regions"]),
    "one header": lambda size: one_header(with_data(windows(size), 7)),
    "soft anchors": lambda size: anchors(with_data(Image(size, block_size=MiB), 8)),
    "behind the end": lambda size: with_data(Image(size, trailing=3 * MiB + 5), 9),
}


def one_header(image):
    image.headers[0].damage = "zero"
    return image


def anchors(image):
    for number, state in ((20, UNMAPPED), (21, UNDEFINED), (22, UNMAPPED), (40, ZERO)):
        image.set_block(number, state, at=AUTO if state != ZERO else None, **({"junk": Pattern(99)} if state != ZERO else {}))
    return image


@pytest.mark.parametrize("name", sorted(BUILT))
def test_images_of_others(vhdx, io, qemu_img, quick, name):
    size = 42 * MiB + 4096
    built = BUILT[name](size).build(quick / "disk.vhdx")
    model, generator = Model(built.expected(0, size)), random.Random(name)
    assert any(model.content)
    for _ in range(2):
        io(built.path, random_commands(generator, model, built.image.block_size, 25, source=quick / "source"))
        assert_disk_is(vhdx, qemu_img, model, built.path, quick, qemu=built.image.lss == 512)


@pytest.mark.parametrize("seed", seeds("10"))
def test_seed(seed, vhdx, io, qemu_img, quick):
    generator = random.Random(seed)
    lss = generator.choice((512, 512, 4096))
    size = generator.choice((lss, MiB, 33 * MiB + 3 * lss, 64 * MiB - lss))
    image = random_image(generator, seed, size, lss, None)
    if generator.random() < 0.4:
        try:
            make_dirty(image, ["bat"], home=generator.choice(("zero", "junk")), start=generator.randrange(256) * 4096)
        except ValueError:
            pass
    built = image.build(quick / "disk.vhdx")
    model = Model(built.expected(0, size))
    for _ in range(generator.randrange(1, 4)):
        io(built.path, random_commands(generator, model, image.block_size, generator.randrange(40), source=quick / "source"))
        assert_disk_is(vhdx, qemu_img, model, built.path, quick, qemu=lss == 512)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_programs_take_turns(vhdx, io, qemu_io, qemu_img, quick, seed, subformat):
    generator, size = random.Random(seed), 40 * MiB + 512
    image = made_by_qemu(qemu_img, quick / "disk.vhdx", size, 2 * MiB, subformat)
    model = Model(bytes(size))
    for _ in range(3):
        io(image, random_commands(generator, model, 2 * MiB, 12))
        qemu_io(image, random_commands(generator, model, 2 * MiB, 12, discards=False))
        assert_disk_is(vhdx, qemu_img, model, image, quick)


def test_reads_see_writes_at_once(io, qemu_img, quick):
    image = made_by_qemu(qemu_img, quick / "disk.vhdx", 8 * MiB, MiB)
    io(image, ["write -P 3 1000 3M", "read -P 3 1000 3M", "read -P 0 0 1000", "discard 1M 1M", "read -P 0 1M 1M",
               "write -P 4 1536k 1", "read -P 4 1536k 1", "read -P 0 1M 512k", "write -z 1000 8", "read -P 0 1000 8",
               "read -P 3 1008 1k"])


# ---- borders

@pytest.mark.parametrize("lss", [512, 4096])
@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_disk_of_one_sector(vhdx, io, qemu_img, quick, lss, kind):
    built = Image(lss, kind=kind, lss=lss).build(quick / "disk.vhdx")
    model = Model(bytes(lss))
    io(built.path, [model.write(0, lss, 1), model.write(17, 9, 2), "flush", model.zero(20, 2), "read -P 1 0 17"])
    assert_disk_is(vhdx, qemu_img, model, built.path, quick, qemu=lss == 512)
    io(built.path, [model.discard(0, lss)])
    assert_disk_is(vhdx, qemu_img, model, built.path, quick, qemu=lss == 512)
    assert "beyond the end" in io(built.path, [f"write 1 {lss}"], rc=1).err


def test_last_block_that_the_disk_ends_in(vhdx, io, qemu_img, quick):
    size = 5 * MiB + 512
    image = made_by_qemu(qemu_img, quick / "disk.vhdx", size, 2 * MiB)
    model = Model(bytes(size))
    io(image, [model.write(size - 700, 700, 5)])
    assert_disk_is(vhdx, qemu_img, model, image, quick)
    for beyond in (f"write {size - 1} 2", f"write {size} 1", f"discard {size - 512} 513", f"write -z 0 {size + 1}"):
        assert "beyond the end of the disk" in io(image, [beyond], rc=1).err
    io(image, [f"write {size} 0", model.discard(4 * MiB, MiB + 512)])
    assert_disk_is(vhdx, qemu_img, model, image, quick)
    counts = vhdx("info", "--json", image, rc=0).json()["format-specific"]["data"]["blocks"]
    assert counts["fully-present"] == 0, "the visible part of the last block is all of it"


@pytest.mark.parametrize("block_size", [MiB, 32 * MiB])
def test_64_tib(vhdx, io, qemu_img, tmp_path, block_size):
    built = Image(64 * TiB, block_size=block_size, lss=4096).build(tmp_path / "disk.vhdx")
    generator, writes = random.Random(64), {}
    while len(writes) < 300:
        writes[generator.randrange(64 * TiB // (64 * KiB)) * 64 * KiB] = generator.randrange(1, 256)
    writes[64 * TiB - 64 * KiB] = 77
    lines = [f"write -q -P {pattern} {offset} 64k" for offset, pattern in writes.items()]
    io(built.path, [line for i, line in enumerate(lines) for line in ([line, "flush"] if i % 64 == 0 else [line])])
    io(built.path, [f"read -q -P {pattern} {offset} 64k" for offset, pattern in writes.items()], "-r")
    result = expect_no_errors(vhdx, built.path)
    assert result["allocated-clusters"] == len({offset // block_size for offset in writes})
    assert on_disk(built.path) < 400 * 64 * KiB + 20 * MiB + 301 * 8 * KiB
    offsets = list(writes)
    io(built.path, [f"discard -q {offset // block_size * block_size} {block_size}" for offset in offsets[:150]])
    gone = {offset // block_size for offset in offsets[:150]}
    io(built.path, [f"read -q -P {0 if offset // block_size in gone else pattern} {offset} 64k"
                    for offset, pattern in writes.items()], "-r")
    expect_no_errors(vhdx, built.path)


# ---- space

@pytest.mark.parametrize("command, state", [("discard", "unmapped"), ("write -z", "zero"), ("write -zu", "unmapped")])
def test_whole_blocks_give_their_space_back(vhdx, io, qemu_img, tmp_path, command, state):
    image = made_by_qemu(qemu_img, tmp_path / "disk.vhdx", 64 * MiB, MiB)
    io(image, ["write -P 1 0 32M"])
    full = on_disk(image)
    assert full >= 32 * MiB
    before = vhdx("info", "--json", image, rc=0).json()["format-specific"]["data"]["blocks"]
    io(image, [f"{command} 4M 20M"])
    after = vhdx("info", "--json", image, rc=0).json()["format-specific"]["data"]["blocks"]
    assert before["fully-present"] == 32 and after["fully-present"] == 12
    assert after[state] - before[state] == 20
    assert on_disk(image) <= full - 19 * MiB
    io(image, [f"{command} 0 64M"])
    assert on_disk(image) < 8 * MiB
    assert vhdx("info", "--json", image, rc=0).json()["format-specific"]["data"]["blocks"]["fully-present"] == 0
    expect_no_errors(vhdx, image)
    assert os.stat(image).st_size < 16 * MiB, "what lies behind the last object is cut off"


def test_space_comes_back_while_the_image_is_open(vhdx_path, vhdx, qemu_img, tmp_path):
    image = made_by_qemu(qemu_img, tmp_path / "disk.vhdx", 64 * MiB, MiB)
    with Held(vhdx_path, image) as held:
        held.do("write -P 1 0 32M", "flush")
        full = on_disk(image)
        held.do("discard 0 32M", "flush", "flush", "flush")
        assert on_disk(image) <= full - 31 * MiB
        length = os.stat(image).st_size
        held.do("write -P 2 32M 32M", "flush")
        assert os.stat(image).st_size == length, "new blocks go where the old ones were"
        assert held.end() == (0, "")
    vhdx("io", "-r", image, "-c", "read -P 0 0 32M", "-c", "read -P 2 32M 32M", rc=0)
    expect_no_errors(vhdx, image)


def test_parts_of_blocks_give_space_back_by_discard(vhdx, io, qemu_img, tmp_path):
    image = made_by_qemu(qemu_img, tmp_path / "disk.vhdx", 64 * MiB, 32 * MiB)
    io(image, ["write -P 1 0 32M"])
    full = on_disk(image)
    io(image, ["write -z 1M 4M"])
    kept = on_disk(image)
    assert kept >= full - MiB, "zeroing keeps the space of what stays"
    io(image, ["discard 8M 20M"])
    assert on_disk(image) <= kept - 19 * MiB
    io(image, ["read -P 1 0 1M", "read -P 0 1M 4M", "read -P 1 5M 3M", "read -P 0 8M 20M", "read -P 1 28M 4M"], "-r")
    assert vhdx("info", "--json", image, rc=0).json()["format-specific"]["data"]["blocks"]["fully-present"] == 1


@pytest.mark.parametrize("command", ["discard 0 64M", "write -z 0 64M", "write -zu 3M 5M", "discard 5000 1"])
def test_fixed_images_keep_their_space(vhdx, io, tmp_path, command):
    image = Image(64 * MiB, kind="fixed", block_size=2 * MiB)
    image.write(0, 64 * MiB, Fill(7))
    built = image.build(tmp_path / "disk.vhdx")
    before, length = on_disk(built.path), os.stat(built.path).st_size
    places = [e["offset"] for e in vhdx("map", "--json", built.path, rc=0).json()]
    io(built.path, [command, "read -P 0 " + " ".join(command.split()[-2:])])
    assert on_disk(built.path) >= before and os.stat(built.path).st_size == length
    assert [e["offset"] for e in vhdx("map", "--json", built.path, rc=0).json()] == places
    expect_no_errors(vhdx, built.path)


def test_zeros_for_what_has_no_space_take_none(vhdx, io, qemu_img, tmp_path):
    image = made_by_qemu(qemu_img, tmp_path / "disk.vhdx", 64 * MiB, 2 * MiB)
    before = on_disk(image)
    io(image, ["write -z 0 64M", "write -z 1000 5M", "discard 0 64M", "discard 7 7M"])
    assert vhdx("info", "--json", image, rc=0).json()["format-specific"]["data"]["blocks"]["fully-present"] == 0
    assert on_disk(image) <= before + 2 * MiB


# ---- identities

CLEAN = ["windows", "windows fixed", "windows, 4096", "disk2vhd", "qemu", "one header", "behind the end"]


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("lines", [[], ["read 0 1M", "map", "length"], ["flush"], ["write 0 0", "discard 5 0", "write -z 0 0"],
                                   ["write 0 1T"]])
def test_opening_for_writing_changes_nothing(vhdx, io, tmp_path, name, lines):
    built = BUILT[name](66 * MiB + 4096).build(tmp_path / "disk.vhdx")
    with open(built.path, "rb") as file:
        os.fsync(file.fileno())  # else the file system may give it blocks for what is still in memory meanwhile
    before, status = file_sha256(built.path), os.stat(built.path)
    identity = guids(vhdx, built.path)
    io(built.path, lines, rc=None)
    assert file_sha256(built.path) == before
    after = os.stat(built.path)
    assert (after.st_mtime_ns, after.st_blocks) == (status.st_mtime_ns, status.st_blocks)
    assert guids(vhdx, built.path) == identity


def test_replay_keeps_the_identity_of_the_content(vhdx, io, tmp_path):
    built = BUILT["dirty"](66 * MiB).build(tmp_path / "disk.vhdx")
    file_guid, data_guid = guids(vhdx, built.path)
    io(built.path, ["length"])
    assert not vhdx("info", "--json", built.path, rc=0).json()["dirty-flag"]
    new_file_guid, new_data_guid = guids(vhdx, built.path)
    assert new_file_guid != file_guid and new_data_guid == data_guid
    raw = tmp_path / "out.raw"
    vhdx("convert", built.path, raw, rc=0)
    assert built.first_difference(raw) is None


def test_a_read_only_open_replays_nothing(vhdx, io, tmp_path):
    built = BUILT["dirty"](66 * MiB).build(tmp_path / "disk.vhdx")
    before = file_fingerprint(built.path)
    io(built.path, ["read -q 0 1M"], "-r")
    assert file_fingerprint(built.path) == before


@pytest.mark.parametrize("first", ["write 0 1", "discard 0 2M", "write -z 0 1M", "write -f 5M 1"])
@pytest.mark.parametrize("name", ["windows", "windows fixed", "disk2vhd", "qemu"])
def test_the_first_change_renews_identities_once(vhdx, vhdx_path, tmp_path, name, first):
    built = BUILT[name](66 * MiB).build(tmp_path / "disk.vhdx")
    before = guids(vhdx, built.path)
    with Held(vhdx_path, built.path) as held:
        held.do("read 0 1M", "flush")
        assert guids(vhdx, built.path, "-U") == before
        held.do(first)
        renewed = guids(vhdx, built.path, "-U")
        assert renewed[0] != before[0] and renewed[1] != before[1]
        held.do("write 9M 1", "flush", "discard 0 66M", "flush", "write 0 66M", "write -f 0 9")
        assert guids(vhdx, built.path, "-U") == renewed
        assert held.end() == (0, "")
    assert guids(vhdx, built.path) == renewed


# ---- crashes

@pytest.mark.parametrize("block_size", [MiB, 32 * MiB])
@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_flushed_data_outlives_a_crash(vhdx, io, qemu_img, qemu_io, quick, kind, block_size):
    image = made_by_qemu(qemu_img, quick / "disk.vhdx", 66 * MiB, block_size, kind)
    model = Model(bytes(66 * MiB))
    generator = random.Random(block_size)
    for turn in range(4):
        lines = random_commands(generator, model, block_size, 12)
        last = ["flush"] if turn % 2 else [model.write(1234, 5678, turn + 9).replace("write", "write -f")]
        io(image, [*lines, *last, "sigraise 9"], rc=-9)
        assert vhdx("info", "--json", image, rc=0).json()["dirty-flag"]
        check = vhdx("check", "--json", image).json()   # a crash may leave space that nobody owns, and nothing worse
        assert [f for f in check["findings"] if f["severity"] == "error"] == []
        vhdx("convert", "-q", "--force", image, quick / "out.raw", rc=0)
        model.assert_same_as(quick / "out.raw")
        if turn == 2:   # QEMU replays our log
            copy = quick / "copy.vhdx"
            shutil.copyfile(image, copy)
            qemu_io(copy, ["read -P 1 0 0"])
            assert_disk_is(vhdx, qemu_img, model, copy, quick, leaks=True)
    io(image, ["length"])                       # replays, and changes nothing else
    assert_disk_is(vhdx, qemu_img, model, image, quick, leaks=True)
    io(image, [model.write(0, 1, 99)])          # takes back what the crash left behind
    assert_disk_is(vhdx, qemu_img, model, image, quick)


def test_a_crash_before_anything_was_flushed(vhdx, io, quick):
    built = BUILT["windows"](66 * MiB).build(quick / "disk.vhdx")
    io(built.path, ["write -P 9 0 1M", "sigraise 9"], rc=-9)
    check = vhdx("check", "--json", built.path).json()
    assert [f for f in check["findings"] if f["severity"] == "error"] == []
    content = io(built.path, ["read -v 0 1M"]).out
    assert set(re.findall(r"\b[0-9a-f]{2}\b", " ".join(re.findall(r"^[0-9a-f]{8}:(.{48})", content, re.M)))) <= {"00", "09"}


class History:
    """What each 4 KiB unit of the disk held, to judge what a crash left: every sector as it was when the last flush that is
    known to have finished began, or as a later command made it."""

    UNIT = 4096

    def __init__(self, size):
        self.size, self.units, self.lines, self.flushes = size, {}, [], []

    def random_line(self, generator, block_size):
        kind = generator.random()
        if kind < 0.15:
            self.flushes.append(len(self.lines))
            self.lines += ["flush", "length"]    # whose output says that the flush is over
            return
        offset, length = random_range(generator, self.size, block_size, self.UNIT)
        length = min(length, 2 * MiB)
        pattern = 0 if kind > 0.8 else generator.randrange(1, 256)
        for unit in range(offset // self.UNIT, (offset + length) // self.UNIT):
            self.units.setdefault(unit, [(-1, 0)]).append((len(self.lines), pattern))
        self.lines.append(f"write -q -P {pattern} {offset} {length}" if pattern else
                          generator.choice((f"discard -q {offset} {length}", f"write -q -z {offset} {length}")))

    def judge(self, raw, nr_flushes):
        safe = self.flushes[nr_flushes - 1] if nr_flushes else -1
        with open(raw, "rb") as file:
            content = file.read()
        for number in range(self.size // self.UNIT):
            events = self.units.get(number, [(-1, 0)])
            durable = max(i for i, (when, _) in enumerate(events) if when <= safe)
            allowed = {bytes([pattern]) * 512 for _, pattern in events[durable:]}
            unit = content[number * self.UNIT:(number + 1) * self.UNIT]
            for sector in range(0, self.UNIT, 512):
                assert unit[sector:sector + 512] in allowed, \
                    f"sector at {number * self.UNIT + sector}: {unit[sector]:#x}, allowed " \
                    f"{[(w, hex(p)) for w, p in events[durable:]]} with flush {nr_flushes} at line {safe}"


@pytest.mark.parametrize("seed", range(6))
def test_killed_in_the_middle(vhdx, vhdx_path, qemu_img, qemu_io, quick, seed):
    generator = random.Random(seed)
    block_size = generator.choice((1, 2, 32)) * MiB
    image = made_by_qemu(qemu_img, quick / "disk.vhdx", 48 * MiB, block_size, generator.choice(("dynamic", "fixed")))
    history = History(48 * MiB)
    # So few that the log does not come round, since QEMU refuses one whose newest entry is the first in its ring.
    while len(history.lines) < 700:
        history.random_line(generator, block_size)
    with Held(vhdx_path, image) as held:
        feeder = threading.Thread(target=feed, args=(held.process.stdin, history.lines), daemon=True)
        feeder.start()
        seen = b""
        wanted = generator.randrange(1, 30)
        while seen.count(b"48 MiB\n") < wanted:
            piece = os.read(held.process.stdout.fileno(), 4096)
            assert piece, held.process.stderr.read()
            seen += piece
        time.sleep(generator.random() / 50)
        held.process.kill()  # at the latest while it waits for more lines
        seen += held.process.stdout.read()
        assert held.process.wait() == -9
        feeder.join()
    nr_flushes = seen.count(b"48 MiB\n")
    check = vhdx("check", "--json", image).json()
    assert [f for f in check["findings"] if f["severity"] == "error"] == []
    vhdx("convert", "-q", image, quick / "ours.raw", rc=0)
    history.judge(quick / "ours.raw", nr_flushes)
    copy = quick / "copy.vhdx"
    shutil.copyfile(image, copy)
    qemu_io(copy, ["read -P 1 0 0"])     # replays
    vhdx("compare", "-F", "raw", copy, quick / "ours.raw", rc=0)
    qemu_img("check", "-f", "vhdx", copy)
    vhdx("io", image, "-c", "write -q -P 1 0 4k", rc=0)
    expect_no_errors(vhdx, image)


def feed(stream, lines):
    try:
        stream.write(("\n".join(lines) + "\n").encode())
        stream.flush()
    except OSError:     # it was killed, as it should
        pass


# ---- others at the same image

def test_others_are_kept_out_while_it_is_written(vhdx, vhdx_path, qemu_io, qemu_img, tmp_path):
    image = made_by_qemu(qemu_img, tmp_path / "disk.vhdx", 8 * MiB, MiB)
    with Held(vhdx_path, image) as held:
        for line in ("length", "write -P 1 0 1M"):
            held.do(line)
            for result in (qemu_io(image, ["read 0 1"], rc=1), qemu_io(image, ["read 0 1"], "-r", rc=1)):
                assert "lock" in result.err.lower()
            for arguments in (["io"], ["io", "-r"], ["info"], ["map"]):
                assert "another program has the image open" in vhdx(*arguments, image, rc=1, stdin="").err
        vhdx("info", "-U", image, rc=0)
        assert held.end() == (0, "")
    qemu_io(image, ["read -P 1 0 1M"])
    vhdx("io", image, "-c", "read -P 1 0 1M", rc=0)


@pytest.mark.parametrize("options", [[], ["-r"]])
def test_it_keeps_out_of_others_way(vhdx, tool, qemu_img, tmp_path, options):
    image = made_by_qemu(qemu_img, tmp_path / "disk.vhdx", 8 * MiB, MiB)
    with held_by_qemu(tool("qemu-io"), image, *options):
        before = file_sha256(image)
        message = vhdx("io", image, "-c", "write 0 1M", rc=1).err
        assert message.count("\n") == 1 and "another program has the image open for " + ("reading" if options else "writing") in message
        assert file_sha256(image) == before
        vhdx("io", "-r", image, "-c", "length", rc=0 if options else 1)
    vhdx("io", image, "-c", "write 0 1M", rc=0)


# ---- what cannot be written

def test_a_file_without_permission(vhdx, need_ordinary_user, tmp_path):
    built = BUILT["windows"](64 * MiB).build(tmp_path / "disk.vhdx")
    os.chmod(built.path, 0o444)
    assert "Permission denied" in vhdx("io", built.path, "-c", "write 0 1", rc=1).err
    vhdx("io", "-r", built.path, "-c", "read 0 1", rc=0)


@pytest.fixture
def small_file_system(need_root, tool, tmp_path):
    """mount(options): a tmpfs with them; skips where mounting is not allowed."""
    place = tmp_path / "mounted"
    place.mkdir()

    def mount(options):
        done = subprocess.run([tool("mount"), "-t", "tmpfs", "-o", options, "none", place], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
        return place
    yield mount
    subprocess.run(["umount", place], capture_output=True, check=False)


def test_a_read_only_file_system(vhdx, small_file_system, tool):
    place = small_file_system("size=64M")
    built = BUILT["windows"](64 * MiB).build(place / "disk.vhdx")
    run_program([tool("mount"), "-o", "remount,ro", place], rc=0)
    assert "Read-only file system" in vhdx("io", built.path, "-c", "write 0 1", rc=1).err
    vhdx("io", "-r", built.path, "-c", "read 0 1", rc=0)


@pytest.mark.parametrize("command", ["io", "serve", "mount"])
def test_what_may_only_be_read_is_not_said_to_be_closed(vhdx, small_file_system, tool, tmp_path, command):
    """These open for writing unless told otherwise, which who wants to read does not expect."""
    if command == "serve" and (not tool("nbdkit") or os.environ.get("VHDX_SANITIZE", "none") != "none"):
        pytest.skip("nbdkit cannot load a plugin with sanitizers")
    if command == "mount" and os.environ.get("VHDX_FUSE", "1") != "1":
        pytest.skip("the build has no mount command")
    place = small_file_system("size=64M")
    built = BUILT["windows"](64 * MiB).build(place / "disk.vhdx")
    (tmp_path / "mnt").mkdir()
    run_program([tool("mount"), "-o", "remount,ro", place], rc=0)
    arguments = {"io": ["-c", "read 0 1"], "serve": [], "mount": [tmp_path / "mnt"]}[command]
    result = vhdx(command, built.path, *arguments, rc=1)
    assert result.err == f"vhdx {command}: {built.path}: cannot open for writing: Read-only file system; -r opens it for reading only\n"


def test_a_file_of_somebody_else(vhdx_path, need_root, tool):
    with tempfile.TemporaryDirectory() as name:  # pytest's are for their owner alone
        os.chmod(name, 0o755)
        built = BUILT["windows"](64 * MiB).build(pathlib.Path(name) / "disk.vhdx")
        words = [tool("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"]
        if subprocess.run([*words, "test", "-x", vhdx_path], check=False).returncode != 0:
            pytest.skip(f"an ordinary user cannot reach {vhdx_path}")
        words += [vhdx_path, "io", built.path, "-c", "read 0 1"]
        os.chmod(built.path, 0o644)
        assert "cannot open for writing: Permission denied; -r opens it" in run_program(words, rc=1).err
        run_program([*words, "-r"], rc=0)
        os.chmod(built.path, 0o600)
        assert run_program(words, rc=1).err.endswith("cannot open: Permission denied\n")


@pytest.mark.parametrize("dirtied", [False, True])
def test_no_space_left(vhdx, vhdx_path, qemu_img, small_file_system, tmp_path, dirtied):
    """The write fails, nothing is lost, and with space it works again: in the same session, and after it."""
    place = small_file_system("size=24M")
    image, ballast = place / "disk.vhdx", place / "ballast"
    made_by_qemu(qemu_img, image, 64 * MiB, MiB)
    model = Model(bytes(64 * MiB))
    ballast.write_bytes(bytes(10 * MiB))
    with Held(vhdx_path, "--keep-going", image) as held:
        held.do(model.write(0, 3 * MiB, 1), "flush")
        if dirtied:
            held.do(model.write(40 * MiB, 5000, 2))
        for _ in range(2):
            held.do("write -P 3 16M 20M", "flush")
        held.do("read -P 1 0 3M", model.write(1000, 1000, 4))
        ballast.unlink()
        held.do(model.write(16 * MiB, 10 * MiB, 5), model.discard(26 * MiB, 10 * MiB), "flush")
        rc, err = held.end()
    lines = err.splitlines()
    assert rc == 1 and len(lines) == 2, err
    assert all(": write failed: " in line and "No space left on device" in line for line in lines), err
    expect_no_errors(vhdx, image)
    vhdx("convert", "-q", image, tmp_path / "out.raw", rc=0)
    model.assert_same_as(tmp_path / "out.raw")


def test_no_space_left_for_tables(vhdx, vhdx_path, small_file_system):
    """Tables that are holes of the file: a write that needs one fails, so that no flush ever has to."""
    place = small_file_system("size=24M")
    image, ballast = Image(64 * TiB, block_size=MiB).build(place / "disk.vhdx").path, place / "ballast"
    with Held(vhdx_path, "--keep-going", image) as held:
        held.do("write -P 1 5T 4k", "flush")
        fill(ballast)
        for i in range(4):
            held.do(f"write -P 2 {i + 10}T 4k", "flush")
        held.do("write -P 3 5T 4k", "flush", "read -P 3 5T 4k", "read -P 0 10T 4k")
        ballast.unlink()
        held.do(*(f"write -P 4 {i + 10}T 4k" for i in range(4)), "flush")
        rc, err = held.end()
    lines = err.splitlines()
    assert rc == 1 and len(lines) == 4, err
    assert all(": write failed: " in line and "No space left on device" in line for line in lines), err
    vhdx("io", "-r", image, "-c", "read -P 3 5T 4k", *(w for i in range(4) for w in ("-c", f"read -P 4 {i + 10}T 4k")), rc=0)
    expect_no_errors(vhdx, image)


def fill(path):
    """Take all space that is left."""
    with open(path, "wb", buffering=0) as file:
        for size in (MiB, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass


def test_closing_without_space(vhdx, qemu_img, small_file_system, tmp_path):
    """A run that ends while the file system is full: an error, or a clean image; in no case damage."""
    place = small_file_system("size=24M")
    image = place / "disk.vhdx"
    made_by_qemu(qemu_img, image, 64 * MiB, MiB)
    (place / "ballast").write_bytes(bytes(10 * MiB))
    lines = ["write -P 1 0 2M", "flush", "write -P 2 2M 60M"]
    assert "No space left on device" in vhdx("io", image, stdin="\n".join(lines), rc=1).err
    assert [f for f in vhdx("check", "--json", image).json()["findings"] if f["severity"] == "error"] == []
    (place / "ballast").unlink()
    vhdx("io", image, "-c", "read -P 1 0 2M", "-c", "discard 2M 62M", "-c", "write -P 7 5M 1M", rc=0)
    expect_no_errors(vhdx, image)


# ---- failing media

@pytest.fixture
def strace(tool):
    path = tool("strace")
    if subprocess.run([path, "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("strace may not trace here")
    return path


def count_syncs(strace, vhdx_path, image, lines, tmp_path):
    trace = tmp_path / "trace"
    run_program([strace, "-f", "-qq", "-o", trace, "-e", "trace=fdatasync,fsync", vhdx_path, "io", image],
                stdin="\n".join(lines), env={"ASAN_OPTIONS": "detect_leaks=0"})
    return len(re.findall(r"sync\(", trace.read_text()))


def test_a_flush_of_changed_tables_syncs_once(strace, vhdx_path, qemu_img, tmp_path):
    counts = []
    for nr_flushes in (0, 1, 11):
        image = made_by_qemu(qemu_img, tmp_path / "disk.vhdx", 64 * MiB, MiB)
        lines = ["write 0 1"] + [line for i in range(nr_flushes) for line in (f"write {i}M 64k", "flush")]
        counts.append(count_syncs(strace, vhdx_path, image, [*lines, "sigraise 9"], tmp_path))
    assert counts[2] - counts[1] == 10
    assert counts[1] - counts[0] == 1


@pytest.mark.parametrize("where", ["flush", "close"])
def test_a_sync_that_fails(strace, vhdx, vhdx_path, qemu_img, tmp_path, where):
    image = made_by_qemu(qemu_img, tmp_path / "disk.vhdx", 64 * MiB, MiB)
    vhdx("io", image, "-c", "write -P 1 0 1M", rc=0)
    copy = tmp_path / "copy.vhdx"
    shutil.copyfile(image, copy)
    nr_good = count_syncs(strace, vhdx_path, copy, ["write 5M 1", "flush", "sigraise 9"], tmp_path)
    lines = ["write -P 2 5M 1M", "flush", "write -P 3 7M 1M"]
    if where == "flush":
        lines += ["flush", "write -P 4 9M 1M", "flush", "read -P 1 0 1M", "read -P 3 7M 1M"]
    result = run_program([strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e",
                          f"inject=fdatasync:error=EIO:when={nr_good + 1}+", vhdx_path, "io", "-q", "--keep-going", image],
                         stdin="\n".join(lines), env={"ASAN_OPTIONS": "detect_leaks=0"}, rc=1)
    errors = result.err.splitlines()
    if where == "flush":
        assert [re.search(r"line (\d)|$", line).group(1) for line in errors] == ["4", "5", "6", None]
        assert "open it again" in errors[1]
    else:
        assert len(errors) == 1 and errors[0].startswith(f"vhdx io: {image}: ") and "Input/output error" in errors[0]
    assert vhdx("info", "--json", image, rc=0).json()["dirty-flag"]
    vhdx("io", image, "-c", "read -P 1 0 1M", "-c", "read -P 2 5M 1M", rc=0)
    expect_no_errors(vhdx, image)
