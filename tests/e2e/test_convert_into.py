# SPDX-License-Identifier: MIT
"""vhdx convert -n: into the disk of an image that exists."""
import hashlib
import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

from cli_support import chain, dynamic, raw_copy
from vhdxbuild import Image, MiB, Pattern, make_dirty

SIZE = 64 * MiB


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def expect_sound(vhdx, qemu_img, path):
    assert vhdx("check", "--json", path, rc=0).json()["leaks"] == 0
    qemu_img("check", "-f", "vhdx", path)


@pytest.fixture
def old(vhdx, tmp_path):
    """Make an image full of something else."""
    def make(size=SIZE, options=()):
        path = tmp_path / "old.vhdx"
        vhdx("create", *options, path, str(size), rc=0)
        vhdx("io", "-q", "-c", f"write -P 165 0 {size}", path, rc=0)
        return path
    return make


@pytest.mark.parametrize("options", [["--block-size=1M"], ["--block-size=32M"], ["--fixed", "--block-size=2M"]])
@pytest.mark.parametrize("copy", [["-m", "1"], ["-m", "8"], ["-S", "0"], ["-S", "512"]])
def test_everything_is_replaced(vhdx, qemu_img, dynamic, raw_copy, old, options, copy):
    target = old(options=options)
    before = vhdx("info", "--json", target, rc=0).json()["format-specific"]["data"]
    assert vhdx("convert", "-n", "-O", "vhdx", *copy, dynamic.path, target, rc=0).err == ""
    vhdx("compare", "-s", "-F", "raw", target, raw_copy, rc=0)
    expect_sound(vhdx, qemu_img, target)
    after = vhdx("info", "--json", target, rc=0).json()["format-specific"]["data"]
    for name in ("disk-id", "subformat", "block-size"):
        assert after[name] == before[name]
    assert after["data-write-guid"] != before["data-write-guid"]
    if "--block-size=1M" in options and "-S" not in copy: # 4 KiB and 2 MiB of data
        assert after["blocks"]["fully-present"] == 3
        assert os.stat(target).st_blocks * 512 < 16 * MiB
    if "0" in copy:
        assert after["blocks"]["fully-present"] == -(-SIZE // after["block-size"])
        assert os.stat(target).st_blocks * 512 > SIZE
    qemu_img("compare", "-f", "vhdx", "-F", "raw", target, raw_copy)


def test_from_a_raw_disk_and_from_a_chain(vhdx, raw_copy, chain, old, tmp_path):
    target = old()
    vhdx("convert", "-n", "-f", "raw", "-O", "vhdx", raw_copy, target, rc=0)
    vhdx("compare", "-s", "-F", "raw", target, raw_copy, rc=0)
    vhdx("convert", "-n", "-O", "vhdx", chain[0].path, target, rc=0)
    vhdx("compare", "-s", target, chain[0].path, rc=0)


def test_into_an_image_of_qemu_and_a_dirty_one(vhdx, qemu_img, dynamic, tmp_path):
    qemu_img("create", "-f", "vhdx", tmp_path / "qemu.vhdx", "64M")
    image = Image(SIZE, block_size=2 * MiB, seed=9)
    image.write(10 * MiB, 3 * MiB, Pattern(5))
    make_dirty(image, ["bat"])
    dirty = image.build(tmp_path / "dirty.vhdx").path
    for target in (tmp_path / "qemu.vhdx", dirty):
        vhdx("convert", "-n", "-O", "vhdx", dynamic.path, target, rc=0)
        vhdx("compare", "-s", target, dynamic.path, rc=0)
        expect_sound(vhdx, qemu_img, target)


def test_size(vhdx, dynamic, raw_copy, old, tmp_path):
    small = old(SIZE - 512)
    before = sha256(small)
    assert f"needs {SIZE}\n" in vhdx("convert", "-n", "-O", "vhdx", dynamic.path, small, rc=1).err
    assert sha256(small) == before
    os.unlink(small)
    large = old(SIZE + MiB)
    assert f"{MiB} bytes stay" in vhdx("convert", "-n", "-O", "vhdx", dynamic.path, large, rc=0).err
    vhdx("convert", large, tmp_path / "large.raw", rc=0)
    assert (tmp_path / "large.raw").read_bytes() == raw_copy.read_bytes() + b"\xa5" * MiB


def test_what_is_refused_changes_nothing(vhdx, dynamic, chain, raw_copy, old, tmp_path):
    target = old()
    before = sha256(target)
    (tmp_path / "no-image").write_bytes(bytes(MiB))
    cases = [
        (["-O", "vhdx", dynamic.path, tmp_path / "none"], "No such file"),
        (["-O", "vhdx", dynamic.path, tmp_path / "no-image"], "vhdxfile"),
        (["-O", "vhdx", target, target], "same file"),
        (["-O", "vhdx", chain[0].path, chain[2].path], "parent of the source"),
        ([dynamic.path, target], "-O vhdx writes into its disk"),
        (["-f", "raw", "-O", "vhdx", "-", target], "standard input"),
        (["-O", "vhdx", dynamic.path, tmp_path], ""),
    ]
    for arguments, complaint in cases:
        result = vhdx("convert", "-n", "-q", *arguments, rc=1)
        assert complaint in result.err and result.err.count("\n") == 1, arguments
    assert "not for -n" in vhdx("convert", "-n", "-O", "vhdx", "--log-size=2M", dynamic.path, target, rc=2).err
    assert sha256(target) == before


def test_a_target_that_somebody_has_open(vhdx, vhdx_path, tool, dynamic, old):
    target = old()
    before = sha256(target)
    with subprocess.Popen([vhdx_path, "io", "-q", "-r", target], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        reader.stdin.write(b"length\n")
        reader.stdin.flush()
        reader.stdout.readline()
        result = vhdx("convert", "-n", "-O", "vhdx", dynamic.path, target, rc=1)
        assert result.err.startswith(f"vhdx convert: {target}: another program")
        reader.stdin.close()
    assert sha256(target) == before


def test_shared_blocks_cannot_be_demanded(vhdx, dynamic, old):
    assert "reflink" in vhdx("convert", "-n", "-O", "vhdx", "--reflink=always", dynamic.path, old(), rc=1).err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle(vhdx, vhdx_path, qemu_img, old, number, tmp_path):
    """What is left is a sound image, with old and new content."""
    source = tmp_path / "source.raw"
    source.write_bytes(random.Random(1).randbytes(SIZE))
    target = old(options=["--block-size=1M"])
    os.utime(target, (0, 0))
    with subprocess.Popen([vhdx_path, "convert", "-n", "-f", "raw", "-O", "vhdx", "-m", "2", source, target],
                          stderr=subprocess.PIPE) as process:
        while os.stat(target).st_mtime == 0 and process.poll() is None:     # its first change renews the header
            time.sleep(0.001)
        time.sleep(0.03)
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
    assert process.returncode in (128 + number, -number, 0) # 0: it was quicker
    if process.returncode == 130:
        assert b"only part of the disk" in err
    assert vhdx("check", target).rc in (0, 3)
    vhdx("convert", "-n", "-f", "raw", "-O", "vhdx", source, target, rc=0)
    vhdx("compare", "-s", "-F", "raw", target, source, rc=0)
    expect_sound(vhdx, qemu_img, target)
