# SPDX-License-Identifier: MIT
"""Copying must never write into what it copies, nor into what it was not given."""
import ctypes
import hashlib
import fcntl
import os
import struct
import subprocess

import pytest
from conftest import run_program
from vhdxbuild import Image, MiB, Pattern


@pytest.fixture
def chain(tmp_path):
    base = Image(8 * MiB, block_size=MiB, seed=1)
    base.write(0, 4 * MiB, Pattern(1))
    child = Image(8 * MiB, block_size=MiB, parent=base.build(tmp_path / "base.vhdx"), seed=2)
    return child.build(tmp_path / "child.avhdx")


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def test_the_library_does_not_copy_a_disk_onto_a_file_of_its_chain(chain, library, sanitizer, tmp_path):
    if sanitizer != "none":
        pytest.skip(f"a library built with {sanitizer} cannot be loaded into Python")
    lib = ctypes.CDLL(str(library))
    lib.vhdx_error_message.restype = ctypes.c_char_p
    os.link(tmp_path / "base.vhdx", tmp_path / "another name")
    disk = ctypes.c_void_p()
    assert lib.vhdx_open(os.fsencode(chain.path), None, ctypes.byref(disk)) == 0
    for name in ("child.avhdx", "base.vhdx", "another name"):
        before = digest(tmp_path / name)
        fd = os.open(tmp_path / name, os.O_RDWR)
        assert lib.vhdx_copy_to_file(disk, fd, None) == -22
        assert b"same file" in lib.vhdx_error_message()
        os.close(fd)
        assert digest(tmp_path / name) == before
    lib.vhdx_close(disk)


FORCED = {"create": ("create", "--force", "{}", "8M"),
          "convert -O vhdx": ("convert", "-O", "vhdx", "--force", "-f", "raw", "{source}", "{}"),
          "convert - ": ("convert", "-O", "vhdx", "--force", "-f", "raw", "-", "{}"),
          "convert": ("convert", "-q", "--force", "-f", "raw", "{source}", "{}"),
          "convert -n": ("convert", "-q", "-n", "-O", "raw", "-f", "raw", "{source}", "{}")}


@pytest.mark.parametrize("how", FORCED)
def test_a_parent_is_not_replaced(chain, vhdx, tmp_path, how):
    """Not even by its other name, as long as the child is beside it."""
    (tmp_path / "raw").mkdir()
    source, other = tmp_path / "raw" / "source", tmp_path / "another name"
    source.write_bytes(bytes(MiB))
    os.symlink("base.vhdx", other)
    before = digest(tmp_path / "base.vhdx")
    for name in (tmp_path / "base.vhdx", other):
        words = [word.format(name, source=source) for word in FORCED[how]]
        result = vhdx(*words, rc=1, stdin=bytes(MiB))
        assert result.err.startswith(f"vhdx {words[0]}: {name}: ") and "child.avhdx has the image that is there as its parent" in result.err
        assert "merge or rebase" in result.err and result.err.count("\n") == 1
        assert digest(tmp_path / "base.vhdx") == before
    assert sorted(os.listdir(tmp_path)) == ["another name", "base.vhdx", "child.avhdx", "raw"]
    os.unlink(chain.path)
    vhdx(*words, rc=0, stdin=bytes(MiB))
    assert digest(tmp_path / "base.vhdx") != before


def test_what_only_begins_like_an_image_is_replaced(vhdx, tmp_path):
    path = tmp_path / "damaged.vhdx"
    path.write_bytes(b"vhdxfile" + bytes(MiB))
    vhdx("create", "--force", path, "8M", rc=0)


F_OFD_SETLK = 37    # <fcntl.h>


def hold(path, *lock_bytes):
    """Open path and lock bytes of it as QEMU does; returns the descriptor."""
    fd = os.open(path, os.O_RDWR)
    for byte in lock_bytes:
        fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    return fd


# 100: "I read", 101: "I write", 201: "nobody else may write"
USERS = {"writer": (100, 101, 201, 203), "reader": (100, 201, 203)}


@pytest.mark.parametrize("option", ["--force", "-n"])
@pytest.mark.parametrize("user", USERS)
def test_a_raw_disk_in_use_is_not_overwritten(chain, vhdx, tmp_path, option, user):
    raw = tmp_path / "guest.raw"
    raw.write_bytes(b"precious" * (chain.size // 8))
    before = digest(raw)
    fd = hold(raw, *USERS[user])
    result = vhdx("convert", option, chain.path, raw, rc=1)
    assert result.err.startswith(f"vhdx convert: {raw}: ") and "another program" in result.err
    assert digest(raw) == before
    os.close(fd)
    vhdx("convert", option, chain.path, raw, rc=0)
    assert chain.first_difference(raw) is None


def test_a_raw_disk_of_qemu_is_not_overwritten(chain, vhdx, tool, tmp_path):
    raw = tmp_path / "guest.raw"
    raw.write_bytes(bytes(8 * MiB))
    with subprocess.Popen([tool("qemu-io"), "-f", "raw", raw], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        user.stdin.write(b"write -P 7 0 512\n")
        user.stdin.flush()
        assert b"wrote" in user.stdout.readline()
        before = digest(raw)
        assert "another program" in vhdx("convert", "--force", chain.path, raw, rc=1).err
        user.communicate(b"quit\n", timeout=300)
    assert digest(raw) == before


def test_a_device_in_use_is_not_overwritten(chain, vhdx, tool, need_loop, tmp_path):
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xff" * (9 * MiB))
    device = run_program([tool("losetup"), "--find", "--show", backing], rc=0).out.strip()
    try:
        fd = hold(device, *USERS["writer"])     # a QEMU guest has it; no O_EXCL tells the kernel
        assert "another program" in vhdx("convert", chain.path, device, rc=1).err
        os.close(fd)
        with open(device, "rb") as file:
            assert file.read() == b"\xff" * (9 * MiB)
        vhdx("convert", chain.path, device, rc=0)
    finally:
        run_program([tool("losetup"), "--detach", device])


def test_qemu_cannot_write_what_is_being_written(chain, vhdx_path, tool, qemu_img, tmp_path):
    """The lock lasts from before the first byte to the end."""
    strace = tool("strace")
    raw, log = tmp_path / "out.raw", tmp_path / "trace"
    raw.write_bytes(b"old")
    trace = "fcntl,ftruncate,pwrite64,pwritev,ioctl,fsync,close"
    done = subprocess.run([strace, "-f", "-o", log, "-e", f"trace={trace}", vhdx_path, "convert", "--force", "-m", "1",
                           "--reflink=never", chain.path, raw], capture_output=True, check=False,
                          env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0
    calls = [line.split(None, 1)[1] for line in log.read_text().splitlines()]
    fd = next(c for c in calls if c.startswith("ftruncate("))[len("ftruncate("):].split(",")[0]
    locked = next(n for n, c in enumerate(calls) if c.startswith(f"fcntl({fd}, F_OFD_SETLK") and "l_start=201" in c)
    written = [n for n, c in enumerate(calls) if c.startswith((f"ftruncate({fd},", f"pwrite64({fd},", f"pwritev({fd},"))]
    synced = [n for n, c in enumerate(calls) if c.startswith("fsync(")]
    unlocked = [n for n, c in enumerate(calls) if "F_OFD_SETLK" in c and "F_UNLCK" in c and n > locked]
    assert locked < written[0] and written[-1] < synced[-1] and not unlocked


def test_a_new_raw_file_is_durable_before_it_has_its_name(chain, vhdx_path, tool, tmp_path):
    log = tmp_path / "trace"
    done = subprocess.run([tool("strace"), "-f", "-o", log, "-e", "trace=ftruncate,pwrite64,pwritev,fsync,fdatasync,linkat,renameat2",
                           vhdx_path, "convert", "-m", "1", "--reflink=never", chain.path, tmp_path / "out.raw"],
                          capture_output=True, check=False, env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0
    calls = [line.split(None, 1)[1] for line in log.read_text().splitlines()]
    fd = next(c for c in calls if c.startswith("ftruncate("))[len("ftruncate("):].split(",")[0]
    last = max(n for n, c in enumerate(calls) if c.startswith((f"ftruncate({fd},", f"pwrite64({fd},", f"pwritev({fd},")))
    synced = [n for n, c in enumerate(calls) if c.startswith((f"fdatasync({fd})", f"fsync({fd})"))]
    [named] = [n for n, c in enumerate(calls) if c.startswith(("linkat(", "renameat2("))]
    folder = [n for n, c in enumerate(calls) if c.startswith("fsync(") and n > named]
    assert last < synced[0] < named and folder


def test_a_pipe_that_does_not_block_gets_everything(chain, vhdx_path, tmp_path):
    """Its writer gets EAGAIN whenever it is full, and has to wait."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen([vhdx_path, "convert", chain.path, "-"], stdout=writer) as process:
        os.close(writer)
        (tmp_path / "out.raw").write_bytes(b"".join(iter(lambda: os.read(reader, 4096), b"")))
        os.close(reader)
        assert process.wait(timeout=300) == 0
    assert chain.first_difference(tmp_path / "out.raw") is None


def test_closed_standard_descriptors_do_not_become_the_target(chain, vhdx_path, tmp_path):
    raw = tmp_path / "out.raw"
    subprocess.run(f"'{vhdx_path}' convert -p --force '{chain.path}' '{raw}' <&- >&- 2>&-", shell=True, check=False)
    assert chain.first_difference(raw) is None
