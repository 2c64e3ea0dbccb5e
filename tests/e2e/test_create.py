# SPDX-License-Identifier: MIT
"""vhdx create: images of every geometry, as our checker, an independent reader and QEMU judge them; what stands in the way;
and that nothing half made stays behind."""
import os
import pathlib
import re
import resource
import signal
import struct
import subprocess
import time
import uuid

import pytest

from cli_support import held_by_qemu, wait_for_open_file
from conftest import run_program
from vhdxbuild import GiB, MiB, TiB, reader

KiB = 1024


def expect_sound(vhdx, path, *, nr_warnings=0):
    """No finding at all, not even a note."""
    result = vhdx("check", "--json", path, rc=0).json()
    assert len(result["findings"]) == nr_warnings, result["findings"]
    return result


def on_disk(path):
    return os.stat(path).st_blocks * 512


def names_in(folder):
    return sorted(os.listdir(folder))


# ---- geometry

GEOMETRIES = [
    # size, block size, logical, physical, log size
    (512, MiB, 512, 512, MiB),
    (4096, MiB, 4096, 4096, MiB),
    (3 * MiB, 2 * MiB, 512, 4096, MiB),
    (MiB - 512, MiB, 512, 512, MiB),
    (MiB + 512, MiB, 512, 4096, 3 * MiB),
    (100 * MiB, 256 * MiB, 512, 4096, MiB),
    (GiB, 32 * MiB, 512, 4096, MiB),
    (4 * GiB, 32 * MiB, 512, 4096, MiB),
    (4 * GiB + 512, 32 * MiB, 512, 512, MiB),
    (127 * GiB + 512, 32 * MiB, 512, 4096, MiB),
    (127 * GiB, 2 * MiB, 512, 4096, 64 * MiB),
    (127 * GiB, 32 * MiB, 4096, 4096, MiB),
    (256 * GiB, MiB, 512, 4096, GiB),
    (TiB + 4096, MiB, 4096, 512, MiB),
    (64 * TiB, 256 * MiB, 512, 4096, MiB),
    (64 * TiB, 2 * MiB, 512, 4096, MiB),
    (64 * TiB - 4096, 32 * MiB, 4096, 4096, MiB),
]


@pytest.mark.parametrize("size, block, logical, physical, log", GEOMETRIES)
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_every_geometry(vhdx, tmp_path, size, block, logical, physical, log, subformat):
    if subformat == "fixed" and size > TiB:
        pytest.skip("a fixed image of this size does not fit into a file of ext4")
    path = tmp_path / "disk.vhdx"
    made = vhdx("create", "--json", f"--subformat={subformat}", f"--block-size={block}",
                f"--logical-sector-size={logical}", f"--physical-sector-size={physical}", f"--log-size={log}", path, size,
                rc=0).json()
    assert (made["filename"], made["virtual-size"], made["dirty-flag"]) == (str(path), size, False)
    data = made["format-specific"]["data"]
    assert (data["subformat"], data["block-size"], data["logical-sector-size"], data["physical-sector-size"],
            data["log-size"]) == (subformat, block, logical, physical, log)
    expect_sound(vhdx, path)
    with reader.Reader(path) as disk:
        assert (disk.size, disk.block_size, disk.lss, disk.log_length) == (size, block, logical, log)
        assert disk.file_flags == (1 if subformat == "fixed" else 0)
        for offset in {0, size // 2 // 512 * 512, size - 512}:
            assert disk.read(offset, 512) == bytes(512)
        blocks = -(-size // block)
        bat_end = disk.regions[reader.BAT_GUID][0] + disk.regions[reader.BAT_GUID][1]
        for number in {0, blocks // 2, blocks - 1}:
            wanted = (6, bat_end + number * block) if subformat == "fixed" else (0, 0)
            assert disk.bat(number + number // disk.ratio) == wanted
        assert disk.length == bat_end + (blocks * block if subformat == "fixed" else 0)
    vhdx("map", path, rc=0)


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("size, block", [(512, MiB), (MiB + 512, MiB), (5 * GiB, 32 * MiB), (300 * GiB + 512, 2 * MiB)])
def test_qemu_accepts_them(vhdx, qemu_img, tmp_path, subformat, size, block):
    path = tmp_path / "disk.vhdx"
    vhdx("create", "-q", f"--subformat={subformat}", f"--block-size={block}", path, size, rc=0)
    assert "No errors" in qemu_img("check", "-f", "vhdx", path).out
    info = qemu_img("info", "--output=json", "-f", "vhdx", path).json()
    assert (info["virtual-size"], info["cluster-size"], info.get("dirty-flag", False)) == (size, block, False)
    if size < GiB:
        qemu_img("convert", "-f", "vhdx", "-O", "raw", path, tmp_path / "out.raw")
        assert (tmp_path / "out.raw").read_bytes() == bytes(size)


def test_qemu_can_write_to_them(vhdx, qemu_img, tool, tmp_path):
    path = tmp_path / "disk.vhdx"
    for subformat in ("dynamic", "fixed"):
        vhdx("create", "--force", f"--subformat={subformat}", "--block-size=1M", path, "9M", rc=0)
        run_program([tool("qemu-io"), "-f", "vhdx", "-c", "write -P 0x5a 8388608 1048576", "-c", "write -P 7 512 1024", path],
                    rc=0)
        vhdx("check", path, rc=0)
        vhdx("convert", "--force", path, tmp_path / "out.raw", rc=0)
        content = (tmp_path / "out.raw").read_bytes()
        assert content[8 * MiB:] == b"\x5a" * MiB and content[512:1536] == b"\7" * 1024
        assert not any(content[1536:8 * MiB])


def test_layout_is_that_of_windows(vhdx, tmp_path):
    path = tmp_path / "disk.vhdx"
    vhdx("create", path, "10G", rc=0)
    content = path.read_bytes()
    assert len(content) == 4 * MiB
    assert content[0x30004:0x30008] == struct.pack("<I", 0xC66B8CAE)
    assert content[0x30000:0x40000] == content[0x40000:0x50000]
    assert struct.unpack_from("<Q", content, 0x10008) == (0,) and struct.unpack_from("<Q", content, 0x20008) == (1,)
    assert not any(content[0x50000:2 * MiB]) and not any(content[3 * MiB:])
    creator = content[8:520].decode("utf-16-le").rstrip("\0")
    assert re.fullmatch(r"vhdx \d+\.\d+\.\d+", creator)


def test_largest_image_costs_nothing(vhdx, tmp_path):
    path = tmp_path / "disk.vhdx"
    start = time.monotonic()
    vhdx("create", "--block-size=1M", path, "64T", rc=0)
    print(f"64 TiB in blocks of 1 MiB: created in {time.monotonic() - start:.3f} s, {on_disk(path)} bytes on disk")
    assert on_disk(path) < 2 * MiB
    assert path.stat().st_size == 516 * MiB
    expect_sound(vhdx, path)


def test_identities_are_new_each_time(vhdx, tmp_path):
    seen = set()
    for name in ("a", "b"):
        data = vhdx("create", "--json", tmp_path / name, "1G", rc=0).json()["format-specific"]["data"]
        seen |= {data["disk-id"], data["file-write-guid"], data["data-write-guid"]}
    assert len(seen) == 6 and all(uuid.UUID(text).version == 4 for text in seen)


# ---- what is said

def test_what_is_printed(vhdx, tmp_path):
    path = tmp_path / "disk.vhdx"
    result = vhdx("create", path, "10G", rc=0)
    assert result.out == f"Created {path}: dynamic, 10 GiB (10737418240 bytes)\n" and result.err == ""
    assert vhdx("create", "--force", "--fixed", path, "1M", rc=0).out == f"Created {path}: fixed, 1 MiB (1048576 bytes)\n"
    assert vhdx("create", "-q", "--force", path, "10G", rc=0).out == ""
    made = vhdx("create", "-q", "--force", "--json", path, "10G", rc=0).json()
    assert made == vhdx("info", "--json", path, rc=0).json()


@pytest.mark.parametrize("arguments, complaint", [
    (["1000"], "the next valid sizes are 512 and 1024"),
    (["511"], "the next valid size is 512"),
    (["--logical-sector-size=4096", "1G512"], None),
    (["--logical-sector-size=4096", str(GiB + 512)], f"the next valid sizes are {GiB} and {GiB + 4096}"),
    (["0"], "from one sector to 64 TiB"),
    ([str(64 * TiB + 512)], "from one sector to 64 TiB"),
    (["--block-size=3M", "1G"], "block size"),
    (["--block-size=512K", "1G"], "block size"),
    (["--block-size=512M", "1G"], "block size"),
    (["--logical-sector-size=1K", "1G"], "logical sector size"),
    (["--physical-sector-size=1K", "1G"], "physical sector size"),
    (["--log-size=1.5M", "1G"], "log size"),
    (["--log-size=1025M", "1G"], "log size"),
    (["--preallocate=falloc", "1G"], "only fixed images can be preallocated"),
    (["--preallocate=full", "1G"], "only fixed images can be preallocated"),
])
def test_what_cannot_be_is_refused(vhdx, tmp_path, arguments, complaint):
    result = vhdx("create", *arguments[:-1], tmp_path / "disk.vhdx", arguments[-1])
    assert result.rc == (2 if complaint is None else 1)
    assert result.err.count("\n") == 1 and (complaint is None or complaint in result.err)
    assert names_in(tmp_path) == []


# ---- preallocation

def test_fixed_images_are_sparse_unless_told(vhdx, tmp_path):
    path = tmp_path / "disk.vhdx"
    vhdx("create", "--fixed", path, "1G", rc=0)
    assert path.stat().st_size == 4 * MiB + GiB and on_disk(path) < 2 * MiB


@pytest.mark.parametrize("how", ["falloc", "full"])
def test_preallocation(vhdx, tmp_path, how):
    path = tmp_path / "disk.vhdx"
    result = vhdx("create", "--fixed", f"--preallocate={how}", path, "40M", rc=None)
    if result.rc == 1 and how == "falloc" and "cannot reserve space" in result.err:
        pytest.skip("this file system reserves no space")
    result.expect(0)
    assert path.stat().st_size == 68 * MiB and on_disk(path) >= 67 * MiB
    expect_sound(vhdx, path)


def test_interrupted_preallocation_leaves_nothing(vhdx_path, tmp_path):
    with subprocess.Popen([vhdx_path, "create", "--fixed", "--preallocate=full", tmp_path / "disk.vhdx", "500G"],
                          stderr=subprocess.PIPE) as process:
        wait_for_open_file(process.pid, tmp_path)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=300)[1].decode()
    assert names_in(tmp_path) == []
    assert process.returncode == 143 and "nothing was created" in err


# ---- other files

def test_existing_files_are_left_alone(vhdx, tmp_path):
    path = tmp_path / "disk.vhdx"
    path.write_bytes(b"precious")
    result = vhdx("create", path, "1G", rc=1)
    assert result.err == f"vhdx create: {path}: the file exists already; --force overwrites it\n"
    assert path.read_bytes() == b"precious" and names_in(tmp_path) == ["disk.vhdx"]


def test_force_replaces_a_file_and_keeps_its_permissions(vhdx, tmp_path):
    path, link, other = tmp_path / "disk.vhdx", tmp_path / "link", tmp_path / "hard-link"
    path.write_bytes(b"old")
    path.chmod(0o600)
    link.symlink_to("disk.vhdx")
    os.link(path, other)
    vhdx("create", "--force", link, "1G", rc=0)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o600 and other.read_bytes() == b"old"
    assert names_in(tmp_path) == ["disk.vhdx", "hard-link", "link"]
    expect_sound(vhdx, path)


def test_a_refused_geometry_does_not_cost_the_old_file(vhdx, tmp_path):
    path = tmp_path / "disk.vhdx"
    path.write_bytes(b"old")
    vhdx("create", "--force", path, "1000", rc=1)
    assert path.read_bytes() == b"old"


def test_images_in_use_are_never_replaced(vhdx, tool, tmp_path):
    path = tmp_path / "disk.vhdx"
    vhdx("create", path, "1G", rc=0)
    before = path.read_bytes()
    with held_by_qemu(tool("qemu-io"), path):
        assert "another program" in vhdx("create", "--force", path, "2G", rc=1).err
    assert path.read_bytes() == before
    vhdx("create", "--force", path, "2G", rc=0)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_what_is_no_file_is_refused(vhdx, tmp_path, force):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    before = names_in(tmp_path)
    assert "folder" in vhdx("create", *force, tmp_path / "folder", "1G", rc=1).err
    assert "regular file" in vhdx("create", *force, tmp_path / "fifo", "1G", rc=1).err
    assert "regular file" in vhdx("create", *force, "/dev/null", "1G", rc=1).err
    assert "No such file" in vhdx("create", *force, tmp_path / "none" / "disk.vhdx", "1G", rc=1).err
    assert names_in(tmp_path) == before


def test_block_devices_are_refused(vhdx, tool, need_loop, tmp_path):
    backing = tmp_path / "device"
    backing.write_bytes(b"\xff" * (8 * MiB))
    device = run_program([tool("losetup"), "--find", "--show", backing], rc=0).out.strip()
    try:
        assert "regular file" in vhdx("create", "--force", device, "1M", rc=1).err
    finally:
        run_program([tool("losetup"), "--detach", device])
    assert backing.read_bytes() == b"\xff" * (8 * MiB)


def test_relative_and_odd_names(vhdx, tmp_path):
    for name in ("disk.vhdx", "./b.vhdx", "-", "x" * 250, "a\nb"):
        target = name if name != "-" else "./-"
        vhdx("create", "-q", target, "1G", cwd=tmp_path, rc=0)
        expect_sound(vhdx, tmp_path / name)
    assert "name" in vhdx("create", "x" * 256, "1G", cwd=tmp_path, rc=1).err
    assert len(names_in(tmp_path)) == 5


# ---- no space

def limit_file_size(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.parametrize("limit", [3 * MiB, 64 * KiB, 0x30800])
def test_files_that_may_not_grow_leave_nothing(vhdx_path, tmp_path, limit):
    done = subprocess.run([vhdx_path, "create", tmp_path / "disk.vhdx", "1G"], preexec_fn=lambda: limit_file_size(limit),
                          capture_output=True, check=False)
    assert done.returncode == 1 and b"File too large" in done.stderr and names_in(tmp_path) == []
    assert b"(ulimit -f)" in done.stderr


@pytest.fixture
def small_folder(tool, need_root, tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    result = run_program([tool("mount"), "-t", "tmpfs", "-o", "size=8M", "none", folder])
    if result.rc != 0:
        pytest.skip(f"may not mount: {result.err.strip()}")
    yield folder
    run_program([tool("umount"), folder], rc=0)


@pytest.mark.parametrize("how", ["falloc", "full"])
def test_full_file_systems_leave_nothing(vhdx, small_folder, how):
    path = small_folder / "disk.vhdx"
    result = vhdx("create", "--fixed", "--block-size=1M", f"--preallocate={how}", path, "20M", rc=1)
    assert "No space left" in result.err and names_in(small_folder) == []
    free = os.statvfs(small_folder)
    assert free.f_bavail * free.f_bsize == 8 * MiB
    path.write_bytes(b"old")
    vhdx("create", "--force", "--fixed", "--block-size=1M", f"--preallocate={how}", path, "20M", rc=1)
    assert path.read_bytes() == b"old" and names_in(small_folder) == ["disk.vhdx"]
    vhdx("create", "--force", "--fixed", "--block-size=1M", f"--preallocate={how}", path, "3M", rc=0)
    expect_sound(vhdx, path)


# ---- order of durability

def test_the_name_comes_after_everything_is_durable(vhdx_path, tool, tmp_path):
    """The system calls in order: writes, fdatasync, identifier, fdatasync, name, fsync of the folder."""
    strace, trace = tool("strace"), tmp_path / "trace"
    folder = tmp_path / "folder"
    folder.mkdir()
    run_program([strace, "-f", "-o", trace, "-e", "trace=pwrite64,pwritev,fdatasync,fsync,linkat,rename,renameat,renameat2",
                 vhdx_path, "create", folder / "disk.vhdx", "1G"], rc=0,
                env={"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"})
    calls = [re.search(r"\b(\w+)\((.*)\) += ", line).groups() for line in trace.read_text().splitlines() if "(" in line]
    names = [name if name != "pwritev" else "pwrite64" for name, _ in calls]
    assert names[-5:] in (["fdatasync", "pwrite64", "fdatasync", "linkat", "fsync"],
                          ["fdatasync", "pwrite64", "fdatasync", "renameat2", "fsync"])
    assert "vhdxfile" in calls[-4][1] and calls[-4][1].endswith(", 0")
    assert set(names[:-5]) == {"pwrite64"} and not any("vhdxfile" in arguments for _, arguments in calls[:-4])
