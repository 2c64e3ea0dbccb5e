# SPDX-License-Identifier: MIT
"""Partitions as files of a mount: which there are, that they show the right bytes, and what hostile tables do."""
import os
import re
import struct
import subprocess
import zlib

import pytest

from conftest import find_tool
from mount_support import MiB, mounter, mounts_below  # noqa: F401 (fixture)
from waiting import wait_until

EBR_TYPE, LINUX_TYPE = 0x05, 0x83


# ---- tables made by hand

def mbr(*entries):
    """A boot record with (type, start, length) in sectors; None is an empty entry."""
    table = b"".join(bytes(16) if e is None else struct.pack("<B3xB3xII", 0, *e) for e in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def gpt(disk_sectors, sector, entries, nr_entries=128):
    """The first sectors of a disk with these (first, last) entries, with good checksums whatever they say."""
    array = b"".join(bytes(range(16)) + bytes([i] * 16) + struct.pack("<QQQ", first, last, 0) + bytes(72)
                     for i, (first, last) in enumerate(entries, 1))
    array = array.ljust(min(nr_entries, 1000) * 128, b"\0")

    def header(checksum):
        return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, checksum, 0, 1, disk_sectors - 1, 34,
                           disk_sectors - 34, b"\x11" * 16, 2, nr_entries, 128, zlib.crc32(array))
    sectors = [mbr((0xee, 1, min(disk_sectors - 1, 0xffffffff))), header(zlib.crc32(header(0)))]
    return b"".join(s.ljust(sector, b"\0") for s in sectors) + array


@pytest.fixture
def disk_with(vhdx, tmp_path):
    """disk_with({offset: bytes}, size=, sector=) -> an image with that content."""
    def build(pieces, size="64M", sector=512):
        image = tmp_path / "disk.vhdx"
        vhdx("create", "--force", "--block-size=1M", f"--logical-sector-size={sector}", image, size, rc=0)
        script = []
        for number, (offset, piece) in enumerate(pieces.items()):
            source = tmp_path / f"piece{number}"
            source.write_bytes(piece)
            script.append(f"write -q -s {source} {offset} {len(piece)}")
        vhdx("io", image, stdin="\n".join(script) + "\n", rc=0)
        return image
    return build


def shown(folder):
    return {name: os.stat(folder / name).st_size for name in os.listdir(folder) if name != "disk"}


# ---- tables made by others

SFDISK = {
    "dos": ("label: dos\nstart=2048, size=20480\nstart=22528, size=10240\nstart=32768, size=40960, type=5\n"
            "start=34816, size=8192\nstart=45056, size=6144\nstart=53248, size=4096\nstart=90112, size=2048\n"),
    "gpt": "label: gpt\nfirst-lba: 34\nstart=40, size=100\nstart=2048, size=20480\nstart=40960, size=10000, name=third\n",
}


def sfdisk_table(device):
    """Name -> (start, size) in 512-byte units, as sfdisk sees it; containers of logical partitions left out."""
    out = subprocess.run([find_tool("sfdisk"), "--dump", device], capture_output=True, text=True, check=True).stdout
    return {f"p{number}": (int(start), int(size)) for number, start, size in
            re.findall(r"^\S*?p?(\d+) : start=\s*(\d+), size=\s*(\d+), type=(?!5,?\b)", out, re.MULTILINE)}


@pytest.mark.parametrize("label", SFDISK)
def test_partitions_are_those_of_sfdisk(mounter, vhdx, tool, tmp_path, label):
    sfdisk, raw, image = tool("sfdisk"), tmp_path / "disk.raw", tmp_path / "disk.vhdx"
    raw.touch()
    os.truncate(raw, 64 * MiB)
    subprocess.run([sfdisk, "--quiet", raw], input=SFDISK[label], text=True, check=True)
    table = sfdisk_table(raw)
    assert len(table) == (6 if label == "dos" else 3)
    with open(raw, "r+b") as file:
        for number, (start, size) in enumerate(table.values()):
            os.pwrite(file.fileno(), bytes([number + 1]) * size * 512, start * 512)
    vhdx("convert", "-f", "raw", "-O", "vhdx", "--block-size=1M", raw, image, rc=0)
    content = raw.read_bytes()
    with mounter.mounted(image) as folder:
        assert shown(folder) == {name: size * 512 for name, (start, size) in table.items()}
        assert sorted(os.listdir(folder)) == sorted(["disk", *table])
        for name, (start, size) in table.items():
            assert (folder / name).read_bytes() == content[start * 512:(start + size) * 512]


@pytest.mark.parametrize("label", SFDISK)
def test_partitions_of_disks_with_4096_byte_sectors(mounter, vhdx, need_loop, tool, tmp_path, label):
    sfdisk, losetup, image = tool("sfdisk"), tool("losetup"), tmp_path / "disk.vhdx"
    vhdx("create", "--block-size=1M", "--logical-sector-size=4096", image, "600M", rc=0)
    with mounter.mounted(image) as folder:
        assert shown(folder) == {}
        loop = subprocess.run([losetup, "--find", "--show", "--sector-size", "4096", folder / "disk"], capture_output=True,
                              text=True, check=True).stdout.strip()
        subprocess.run([sfdisk, "--quiet", "--no-reread", loop], input=SFDISK[label], text=True, check=True)
        table = sfdisk_table(loop)
        subprocess.run([losetup, "--detach", loop], check=True)
        wait_until(lambda: vhdx("umount", folder).rc == 0, "the device is gone, as when its last opener is")
        folder = mounter.mount(image, folder=folder)
        assert shown(folder) == {name: size * 4096 for name, (start, size) in table.items()}
        with open(folder / "p2", "r+b", buffering=0) as part, open(folder / "disk", "rb", buffering=0) as disk:
            part.write(b"second")
            assert os.pread(disk.fileno(), 6, table["p2"][0] * 4096) == b"second"


# ---- ranges

def test_partition_files_are_ranges_of_the_disk(mounter, vhdx, disk_with, tmp_path):
    """The same bytes by both names at once, nothing beyond the border, and everything that the disk can."""
    image = disk_with({0: mbr((LINUX_TYPE, 3 * 2048 + 5, 4 * 2048), (LINUX_TYPE, 7 * 2048 + 5, 2048))})
    start, end = (3 * 2048 + 5) * 512, (7 * 2048 + 5) * 512
    with mounter.mounted(image) as folder:
        disk, p1, p2 = (os.open(folder / name, os.O_RDWR) for name in ("disk", "p1", "p2"))
        os.pwrite(disk, b"d" * (end - start + 2000), start - 1000)
        assert os.pread(p1, 10 * MiB, 0) == b"d" * 4 * MiB
        os.pwrite(p1, b"one", 4 * MiB - 3)
        assert os.pwrite(p1, b"two...", 4 * MiB - 3) == 3
        for i in range(300):  # whatever either has read before
            os.pwrite(p1, b"%03d" % i, 5000)
            assert os.pread(disk, 3, start + 5000) == b"%03d" % i
            os.pwrite(disk, b"%03d" % i, start + 6000)
            assert os.pread(p1, 3, 6000) == b"%03d" % i
        os.pwrite(p2, b"three", 0)
        assert os.pread(disk, 8, end - 3) == b"twothree"
        os.fsync(p1)
        fallocate = find_tool("fallocate")
        subprocess.run([fallocate, "-p", "-o", "0", "-l", "100M", folder / "p1"], check=True)
        assert os.pread(disk, 1002, start - 1000) == b"d" * 1000 + bytes(2)
        assert os.pread(disk, 5, end) == b"three"
        assert os.lseek(p1, 0, os.SEEK_DATA) == 0  # the block is the neighbour's too
        assert os.lseek(p1, MiB, os.SEEK_DATA) == 7 * MiB - start
        assert os.stat(folder / "p1").st_blocks * 512 == 4 * MiB - start + 5 * 512
        assert os.lseek(p1, 100 * 512, os.SEEK_HOLE) == 4 * MiB - start
        for fd in (disk, p1, p2):
            os.close(fd)
    vhdx("check", image, rc=0)


# ---- hostile and odd tables

def test_entries_that_leave_the_disk(mounter, vhdx, disk_with):
    image = disk_with({0: mbr((LINUX_TYPE, 64 * 2048 - 8, 100), (LINUX_TYPE, 64 * 2048, 8), (LINUX_TYPE, 0xfffffff0, 0xffffffff),
                              (LINUX_TYPE, 2048, 0))})
    folder = mounter.new_folder()
    result = vhdx("mount", image, folder, rc=0)
    assert shown(folder) == {"p1": 8 * 512}
    assert "partition 1 ends behind the end" in result.err
    assert "partition 2 begins behind the end" in result.err and "partition 3 begins behind the end" in result.err
    assert (folder / "p1").read_bytes() == bytes(4096)
    mounter.umount(folder)


def test_entries_that_overlap(mounter, disk_with):
    image = disk_with({0: mbr((LINUX_TYPE, 2048, 8192), (LINUX_TYPE, 4096, 8192), (LINUX_TYPE, 1, 64 * 2048 - 1))})
    with mounter.mounted(image) as folder:
        assert shown(folder) == {"p1": 4 * MiB, "p2": 4 * MiB, "p3": 64 * MiB - 512}
        with open(folder / "p1", "r+b", buffering=0) as p1, open(folder / "p2", "rb", buffering=0) as p2:
            os.pwrite(p1.fileno(), b"both", MiB)
            assert p2.read(4) == b"both"


@pytest.mark.parametrize("links", [[(1, 0)], [(1, 1)], [(1, 2), (2, 1)]], ids=["container", "itself", "ring"])
def test_chains_of_logical_partitions_without_end(mounter, disk_with, links):
    base = 2048
    pieces = {0: mbr((EBR_TYPE, base, 60000))}
    pieces[base * 512] = mbr((LINUX_TYPE, 10, 10), (EBR_TYPE, 100, 1000))
    for here, there in links:
        pieces[(base + here * 100) * 512] = mbr((LINUX_TYPE, 10, 10), (EBR_TYPE, there * 100, 1000))
    with mounter.mounted(disk_with(pieces)) as folder:
        assert set(shown(folder)) >= {"p5"} and len(shown(folder)) < 10


def test_more_partitions_than_anybody_needs(mounter, vhdx, disk_with):
    """A chain of 3000 links, which costs libblkid quadratic time."""
    base, area = 2048, bytearray(3001 * 1024)
    for i in range(3000):
        area[i * 1024:i * 1024 + 512] = mbr((LINUX_TYPE, 1, 1), (EBR_TYPE, (i + 1) * 2, 2))
    folder = mounter.new_folder()
    result = vhdx("mount", disk_with({0: mbr((EBR_TYPE, base, 120000)), base * 512: bytes(area)}), folder, rc=0)
    assert "more than 256 partitions" in result.err
    assert len(shown(folder)) == 256
    mounter.umount(folder)


def test_a_table_that_takes_too_long_is_given_up(mounter, vhdx, disk_with):
    """A chain long enough that reading it to its end would take minutes."""
    base, nr_links = 2048, 100_000
    area = bytearray(nr_links * 1024)
    for i in range(nr_links):
        area[i * 1024:i * 1024 + 512] = mbr((LINUX_TYPE, 1, 1), (EBR_TYPE, (i + 1) * 2, 2))
    folder = mounter.new_folder()
    result = vhdx("mount", disk_with({0: mbr((EBR_TYPE, base, 1 << 22)), base * 512: bytes(area)}, size="200M"), folder, rc=0)
    assert "given up" in result.err
    assert shown(folder) == {} and os.stat(folder / "disk").st_size == 200 * MiB
    mounter.umount(folder)


@pytest.mark.parametrize("nr_entries, nr_shown", [(128, 2), (1000, 2), (0xffffff, 0), (0x1000000, 0)])
def test_gpt_that_claims_any_number_of_entries(mounter, disk_with, nr_entries, nr_shown):
    image = disk_with({0: gpt(64 * 2048, 512, [(4096, 8191), (8192, 16383)], nr_entries=nr_entries)})
    with mounter.mounted(image) as folder:
        assert shown(folder) == dict([("p1", 2 * MiB), ("p2", 4 * MiB)][:nr_shown])


def test_gpt_whose_first_copy_is_damaged(mounter, vhdx, tool, disk_with):
    sfdisk, image = tool("sfdisk"), disk_with({})
    with mounter.mounted(image) as folder:
        subprocess.run([sfdisk, "--quiet", folder / "disk"], input="label: gpt\nsize=8192\n", text=True, check=True)
        with open(folder / "disk", "r+b", buffering=0) as disk:
            os.pwrite(disk.fileno(), bytes(512), 512)
    with mounter.mounted(image) as folder:
        assert shown(folder) == {"p1": 4 * MiB}


def test_a_file_system_without_table_is_no_table(mounter, vhdx, tool, disk_with):
    mkfs = tool("mkfs.vfat")
    image = disk_with({})
    with mounter.mounted(image) as folder:
        subprocess.run([mkfs, folder / "disk"], check=True, stdout=subprocess.DEVNULL)
    with mounter.mounted(image) as folder:
        assert shown(folder) == {}


def test_tables_are_read_only_once(mounter, vhdx, tool, disk_with):
    """What is written into `disk` later changes no file that somebody may have open."""
    image = disk_with({0: mbr((LINUX_TYPE, 2048, 2048))})
    with mounter.mounted(image) as folder:
        with open(folder / "disk", "r+b", buffering=0) as disk:
            disk.write(mbr((LINUX_TYPE, 4096, 8192)))
        assert shown(folder) == {"p1": MiB}
    with mounter.mounted(image) as folder:
        assert shown(folder) == {"p1": 4 * MiB}
    assert mounts_below(folder) == []
