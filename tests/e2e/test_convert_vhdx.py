# SPDX-License-Identifier: MIT
"""vhdx convert -O vhdx: what lands in the new image, and where; what is refused; and that no unfinished image is ever seen
under its name."""
import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

from cli_support import chain, dynamic, orphan, overlapping, raw_copy, wait_for_open_file
from conftest import run_program
from vhdxbuild import GiB, Image, MiB, Pattern, reader

KiB = 1024
SIZE = 37 * MiB + 3 * 512


def names_in(folder):
    return sorted(os.listdir(folder))


def expect_sound(vhdx, path):
    """No finding at all, not even a note."""
    assert vhdx("check", "--json", path, rc=0).json()["findings"] == []


def expect_content(vhdx, path, raw):
    """By our reader, and by one that shares nothing with it."""
    vhdx("compare", "-s", "-F", "raw", path, raw, rc=0)
    content = pathlib.Path(raw).read_bytes()
    with reader.Reader(path) as disk:
        assert disk.size == len(content)
        for offset in range(0, len(content), MiB):
            piece = content[offset:offset + MiB]
            assert disk.read(offset, len(piece)) == piece, f"at {offset}"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Data, stored zeros and holes, so that blocks of 1 MiB are of every kind."""
    path = tmp_path_factory.mktemp("source") / "disk.raw"
    rng = random.Random(7)
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for offset, length in [(0, 512), (3 * MiB, 2 * MiB), (6 * MiB + 700 * KiB, 4 * KiB), (9 * MiB - 512, 1024),
                               (20 * MiB, 5 * MiB), (36 * MiB, MiB + 3 * 512)]:
            file.seek(offset)
            file.write(rng.randbytes(length))
        for offset, length in [(12 * MiB, 3 * MiB), (22 * MiB, MiB)]:
            file.seek(offset)
            file.write(bytes(length))
    return path


DATA_BLOCKS = [0, 3, 4, 6, 8, 9, 20, 21, 23, 24, 36, 37]  # of 1 MiB; 12, 13, 14 and 22 are stored zeros

WAYS = [[], ["-m", "1"], ["-m", "7"], ["--block-size=1M"], ["--block-size=1M", "-m", "7"], ["--block-size=256M"],
        ["--fixed"], ["--fixed", "--block-size=1M", "-m", "5"], ["--subformat=fixed", "--preallocate=full", "--block-size=2M"],
        ["--log-size=4M"], ["--physical-sector-size=512"], ["-S", "0", "--block-size=1M"], ["-S", "64K"], ["--reflink=never"]]


@pytest.mark.parametrize("options", WAYS, ids=" ".join)
def test_from_raw(vhdx, qemu_img, raw, tmp_path, options):
    path = tmp_path / "disk.vhdx"
    result = vhdx("convert", "-f", "raw", "-O", "vhdx", *options, raw, path, rc=0)
    assert (result.out, result.err) == ("", "") and names_in(tmp_path) == ["disk.vhdx"]
    expect_sound(vhdx, path)
    expect_content(vhdx, path, raw)
    assert "No errors" in qemu_img("check", "-f", "vhdx", path).out
    assert "identical" in qemu_img("compare", "-f", "vhdx", "-F", "raw", path, raw).out


@pytest.mark.parametrize("options", [o for o in WAYS if "--preallocate=full" not in o], ids=" ".join)
def test_from_standard_input(vhdx, qemu_img, raw, tmp_path, options):
    path = tmp_path / "disk.vhdx"
    result = vhdx("convert", "-f", "raw", "-O", "vhdx", *options, "-", path, stdin=raw.read_bytes(), rc=0)
    assert (result.out, result.err) == ("", "") and names_in(tmp_path) == ["disk.vhdx"]
    expect_sound(vhdx, path)
    expect_content(vhdx, path, raw)
    assert "No errors" in qemu_img("check", "-f", "vhdx", path).out
    assert "identical" in qemu_img("compare", "-f", "vhdx", "-F", "raw", path, raw).out


def test_only_blocks_with_data_are_stored_in_guest_order(vhdx, raw, tmp_path):
    path = tmp_path / "disk.vhdx"
    for options, stored in [(["-m", "8"], DATA_BLOCKS), (["-S", "0"], range(38))]:
        vhdx("convert", "--force", "-f", "raw", "-O", "vhdx", "--block-size=1M", *options, raw, path, rc=0)
        with reader.Reader(path) as disk:
            places = {number: disk.bat(number) for number in range(38)}
        wanted = {number: (6, 4 * MiB + place * MiB) for place, number in enumerate(stored)}
        assert places == {number: wanted.get(number, (0, 0)) for number in range(38)}
        assert path.stat().st_size == (4 + len(stored)) * MiB


def test_zeros_inside_blocks_stay_holes(vhdx, tmp_path):
    source, path = tmp_path / "disk.raw", tmp_path / "disk.vhdx"
    with open(source, "wb") as file:
        file.write(bytes(64 * MiB))
        file.seek(40 * MiB)
        file.write(b"x")
    vhdx("convert", "-f", "raw", "-O", "vhdx", source, path, rc=0)
    assert path.stat().st_size == 36 * MiB and path.stat().st_blocks * 512 < MiB


def test_a_chain_is_flattened(vhdx, chain, tmp_path):
    path = tmp_path / "disk.vhdx"
    vhdx("convert", "-O", "vhdx", chain[0].path, path, rc=0)
    expect_sound(vhdx, path)
    vhdx("compare", "-s", chain[0].path, path, rc=0)
    vhdx("convert", path, tmp_path / "out.raw", rc=0)
    assert chain[0].first_difference(tmp_path / "out.raw") is None
    info = vhdx("info", "--json", path, rc=0).json()
    assert "backing-filename" not in info and info["format-specific"]["data"]["subformat"] == "dynamic"


def test_many_small_extents(vhdx, tmp_path):
    """Sectors that alternate between child and parent."""
    base = Image(4 * MiB, block_size=MiB, seed=1)
    base.write(0, 4 * MiB, Pattern(1))
    base = base.build(tmp_path / "base.vhdx")
    child = Image(4 * MiB, block_size=MiB, seed=2, parent=base)
    for sector in range(0, 8192, 3):
        child.write(sector * 512, 512, Pattern(2))
    child = child.build(tmp_path / "child.avhdx")
    vhdx("convert", "-O", "vhdx", "-m", "4", "--block-size=2M", child.path, tmp_path / "disk.vhdx", rc=0)
    expect_sound(vhdx, tmp_path / "disk.vhdx")
    vhdx("convert", tmp_path / "disk.vhdx", tmp_path / "out.raw", rc=0)
    assert child.first_difference(tmp_path / "out.raw") is None


def test_geometry_is_the_sources_and_the_identity_is_not(vhdx, tmp_path):
    source = tmp_path / "source.vhdx"
    vhdx("create", "--block-size=1M", "--logical-sector-size=4096", source, "100M", rc=0)
    vhdx("convert", "-O", "vhdx", source, tmp_path / "a.vhdx", rc=0)
    vhdx("convert", "-O", "vhdx", "--logical-sector-size=512", "--physical-sector-size=512", source, tmp_path / "b.vhdx", rc=0)
    data = [vhdx("info", "--json", path, rc=0).json()["format-specific"]["data"]
            for path in (source, tmp_path / "a.vhdx", tmp_path / "b.vhdx")]
    sizes = [(d["block-size"], d["logical-sector-size"], d["physical-sector-size"]) for d in data]
    assert sizes == [(MiB, 4096, 4096), (32 * MiB, 4096, 4096), (32 * MiB, 512, 512)]
    assert len({d[name] for d in data for name in ("disk-id", "file-write-guid", "data-write-guid")}) == 9


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("stdin", [False, True])
def test_odd_lengths_are_padded_with_a_note(vhdx, tmp_path, sector, stdin):
    source, path = tmp_path / "disk.raw", tmp_path / "disk.vhdx"
    content = b"x" * (MiB + 100)
    source.write_bytes(content)
    result = vhdx("convert", "-f", "raw", "-O", "vhdx", f"--logical-sector-size={sector}", "-" if stdin else source, path,
                  stdin=content if stdin else b"", rc=0)
    padding = sector - 100
    assert f"{padding} zeros were added" in result.err and result.err.count("\n") == 1
    expect_sound(vhdx, path)
    with reader.Reader(path) as disk:
        assert disk.size == len(content) + padding
        assert disk.read(0, disk.size) == content + bytes(padding)
    vhdx("convert", "-q", "--force", "-f", "raw", "-O", "vhdx", source, path, rc=0)


def test_empty_sources_are_refused(vhdx, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert "at least one sector" in vhdx("convert", "-f", "raw", "-O", "vhdx", "-", tmp_path / "a.vhdx", rc=1).err
    assert "one sector" in vhdx("convert", "-f", "raw", "-O", "vhdx", tmp_path / "empty", tmp_path / "a.vhdx", rc=1).err
    assert names_in(tmp_path) == ["empty"]


def test_a_round_trip_through_qemu(vhdx, qemu_img, raw, tmp_path):
    qemu_img("convert", "-f", "raw", "-O", "vhdx", raw, tmp_path / "qemu.vhdx")
    vhdx("convert", "-O", "vhdx", "--block-size=1M", tmp_path / "qemu.vhdx", tmp_path / "ours.vhdx", rc=0)
    expect_sound(vhdx, tmp_path / "ours.vhdx")
    qemu_img("convert", "-f", "vhdx", "-O", "raw", tmp_path / "ours.vhdx", tmp_path / "back.raw")
    assert (tmp_path / "back.raw").read_bytes()[:SIZE] == raw.read_bytes()


def test_real_images(vhdx, real_images, tmp_path):
    for name, path in real_images.items():
        vhdx("convert", "-O", "vhdx", "--block-size=1M", path, tmp_path / name, rc=0)
        expect_sound(vhdx, tmp_path / name)
        vhdx("compare", "-s", path, tmp_path / name, rc=0)


# ---- what is refused

def test_what_cannot_be_is_refused(vhdx, raw, dynamic, tmp_path):
    (tmp_path / "old.vhdx").write_bytes(b"precious")
    target = tmp_path / "disk.vhdx"
    cases = [
        (["-n", "-f", "raw", raw, target], "No such file"),
        (["-f", "raw", raw, "-"], "standard output"),
        (["-f", "raw", raw, "/dev/null"], "regular file"),
        (["-f", "raw", "--force", raw, tmp_path], "folder"),
        (["-f", "raw", raw, tmp_path / "old.vhdx"], "exists already"),
        (["-f", "raw", "--block-size=3M", raw, target], "block size"),
        (["-f", "raw", "--preallocate=full", raw, target], "only fixed images"),
        (["-f", "raw", "--fixed", "--preallocate=full", "-", target], "cannot be preallocated"),
        (["-", target], "-f raw"),
        (["-f", "vhdx", "-", target], "-f raw"),
        (["-f", "raw", raw, "nbd://host/export"], "NBD"),
        (["-S", "4K", raw, target], "-f raw"),
        ([dynamic.path, tmp_path / "none" / "disk.vhdx"], "No such file"),
    ]
    for arguments, complaint in cases:
        result = vhdx("convert", "-O", "vhdx", *arguments, rc=1)
        assert complaint in result.err and result.err.count("\n") == 1
    assert names_in(tmp_path) == ["old.vhdx"] and (tmp_path / "old.vhdx").read_bytes() == b"precious"


def test_never_onto_its_own_chain(vhdx, chain, tmp_path):
    before = [pathlib.Path(image.path).read_bytes() for image in chain]
    link = tmp_path / "link"
    os.link(chain[0].path, link)
    for target in (chain[0].path, link, chain[1].path, chain[2].path):
        for options in ([], ["-U"]):
            assert "source" in vhdx("convert", "--force", "-O", "vhdx", *options, chain[0].path, target, rc=1).err
    assert [pathlib.Path(image.path).read_bytes() for image in chain] == before


def test_damaged_sources_leave_nothing(vhdx, overlapping, orphan, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for source in (overlapping.path, orphan):
        result = vhdx("convert", "-O", "vhdx", source, folder / "disk.vhdx", rc=1)
        assert result.err.startswith(f"vhdx convert: {source}: ")
    assert names_in(folder) == []


def test_a_block_that_cannot_be_read_leaves_the_old_file(vhdx, tmp_path):
    """Found in the middle of the work: an entry that points behind the file, in a table too large to be judged at once."""
    image = Image(300 * GiB, block_size=MiB)
    image.write(0, MiB, Pattern(1))
    image.set_block(200000, raw=6 | 1 << 40)
    for number in range(0, 300000, 500):  # so that all of the table exists
        image.set_block(number + 1, raw=2)
    source, path = image.build(tmp_path / "source.vhdx").path, tmp_path / "disk.vhdx"
    path.write_bytes(b"old")
    result = vhdx("convert", "--force", "-O", "vhdx", source, path, rc=1)
    assert result.err.startswith(f"vhdx convert: {source}: ") and path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["disk.vhdx", "source.vhdx"]


# ---- replacing, and coming too late

def test_force_replaces_at_the_end_only(vhdx_path, vhdx, raw, tmp_path):
    path = tmp_path / "disk.vhdx"
    path.write_bytes(b"old")
    content = raw.read_bytes()
    with subprocess.Popen([vhdx_path, "convert", "--force", "-f", "raw", "-O", "vhdx", "-", path],
                          stdin=subprocess.PIPE) as process:
        process.stdin.write(content[:20 * MiB])
        process.stdin.flush()
        assert path.read_bytes() == b"old"
        process.stdin.write(content[20 * MiB:])
        process.stdin.close()
        assert process.wait(300) == 0
    expect_content(vhdx, path, raw)
    assert names_in(tmp_path) == ["disk.vhdx"]


def test_a_file_that_appears_meanwhile_is_left_alone(vhdx_path, tmp_path):
    path = tmp_path / "disk.vhdx"
    with subprocess.Popen([vhdx_path, "convert", "-f", "raw", "-O", "vhdx", "-", path], stdin=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        wait_for_open_file(process.pid, tmp_path)
        path.write_bytes(b"theirs")
        err = process.communicate(b"x" * MiB, timeout=300)[1]
    assert process.returncode == 1 and b"meanwhile" in err
    assert path.read_bytes() == b"theirs" and names_in(tmp_path) == ["disk.vhdx"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("old", [False, True])
def test_stopping_leaves_what_was_there(vhdx_path, tmp_path, number, old):
    path = tmp_path / "disk.vhdx"
    if old:
        path.write_bytes(b"old")
    with subprocess.Popen([vhdx_path, "convert", "--force", "-f", "raw", "-O", "vhdx", "-", path], stdin=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        wait_for_open_file(process.pid, tmp_path)
        process.stdin.write(b"x" * (3 * MiB))
        process.stdin.flush()
        process.send_signal(number)
        assert process.wait(300) == (-number if number == signal.SIGKILL else 128 + number)
        err = process.stderr.read()
        process.stdin.close()
    assert number == signal.SIGKILL or b"nothing was created" in err
    left = [name for name in names_in(tmp_path) if not (number == signal.SIGKILL and name.endswith(".tmp"))]
    assert left == (["disk.vhdx"] if old else []) and (not old or path.read_bytes() == b"old")


def test_killed_at_any_moment_there_is_no_half_image(vhdx_path, vhdx, raw, tmp_path):
    path = tmp_path / "disk.vhdx"
    for tries in range(25):
        with subprocess.Popen([vhdx_path, "convert", "-f", "raw", "-O", "vhdx", "--block-size=1M", raw, path]) as process:
            time.sleep(tries * 0.002)
            process.kill()
        if path.exists():
            expect_sound(vhdx, path)
            expect_content(vhdx, path, raw)
            path.unlink()


# ---- no space

def test_full_file_systems_leave_nothing(vhdx, raw, tool, need_root, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    result = run_program([tool("mount"), "-t", "tmpfs", "-o", "size=6M", "none", folder])
    if result.rc != 0:
        pytest.skip(f"may not mount: {result.err.strip()}")
    try:
        for options in (["--block-size=1M"], ["--fixed"], ["-m", "1"]):
            for source, stdin in ((raw, b""), ("-", raw.read_bytes())):
                result = vhdx("convert", "-f", "raw", "-O", "vhdx", *options, source, folder / "disk.vhdx", stdin=stdin, rc=1)
                assert "No space left" in result.err and names_in(folder) == []
                free = os.statvfs(folder)
                assert free.f_bavail * free.f_bsize == 6 * MiB
    finally:
        run_program([tool("umount"), folder], rc=0)


# ---- sharing blocks

def test_reflinks(vhdx, tool, need_loop, raw, tmp_path):
    """On Btrfs the copy shares the source's blocks."""
    backing, folder = tmp_path / "device", tmp_path / "mnt"
    folder.mkdir()
    with open(backing, "wb") as file:
        file.truncate(512 * MiB)
    run_program([tool("mkfs.btrfs"), "-q", backing], rc=0)
    result = run_program([tool("mount"), "-o", "loop", backing, folder])
    if result.rc != 0:
        pytest.skip(f"may not mount: {result.err.strip()}")
    try:
        vhdx("convert", "-f", "raw", "-O", "vhdx", "--block-size=1M", raw, folder / "a.vhdx", rc=0)
        vhdx("convert", "-O", "vhdx", "--reflink=always", "--block-size=2M", folder / "a.vhdx", folder / "b.vhdx", rc=0)
        vhdx("convert", "-O", "vhdx", "--reflink=always", "--fixed", folder / "b.vhdx", folder / "c.vhdx", rc=0)
        vhdx("convert", "-O", "vhdx", "-S", "0", "--fixed", "--block-size=1M", folder / "b.vhdx", folder / "d.vhdx", rc=0)
        for name in ("a", "b", "c", "d"):
            expect_sound(vhdx, folder / f"{name}.vhdx")
            expect_content(vhdx, folder / f"{name}.vhdx", raw)
        run_program([tool("sync"), "-f", folder], rc=0)
        assert (folder / "d.vhdx").stat().st_blocks * 512 > raw.stat().st_size, "fully allocated"
        shared = ["shared" in run_program([tool("filefrag"), "-v", folder / f"{name}.vhdx"], rc=0).out for name in ("c", "d")]
        assert shared == [True, False]
    finally:
        run_program([tool("umount"), folder], rc=0)


def test_reflinks_that_must_be_and_cannot(vhdx, dynamic, tmp_path):
    if run_program(["cp", "--reflink=always", dynamic.path, tmp_path / "probe"]).rc == 0:
        pytest.skip("this file system shares blocks")
    (tmp_path / "probe").unlink(missing_ok=True)
    assert "--reflink=auto" in vhdx("convert", "-O", "vhdx", "--reflink=always", dynamic.path, tmp_path / "a.vhdx", rc=1).err
    assert names_in(tmp_path) == []
