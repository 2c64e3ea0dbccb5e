# SPDX-License-Identifier: MIT
"""vhdx check on whole images: no false alarm on good ones, no crash and no lie on broken ones, and what it costs.

What each rule finds is in test_check_rules.py, what is said of parents in test_check_chain.py."""
import json
import os
import random
import resource
import struct
import subprocess

import pytest
from cli_support import held_by_qemu

from vhdxbuild import (FULLY_PRESENT, GiB, Image, MiB, PARTIALLY_PRESENT, Patch, Pattern, TiB, ZERO, disk2vhd,
                       make_dirty, qemu, windows)


def check(vhdx, path, rc=None, **keywords):
    result = vhdx("check", "--json", path, rc=rc, **keywords)
    return result.json()


def found(document):
    return {(finding["rule"], finding["severity"]) for finding in document["findings"]}


# ---- good images -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, allocated, end", [("btrfs.vhdx", 2, 68 * MiB), ("iotest-dynamic-1G.vhdx", 3, 100 * MiB)])
def test_images_made_by_windows(vhdx, real_images, name, allocated, end):
    document = check(vhdx, real_images[name], 0)
    assert found(document) == {(44, "info")}        # the stale entry behind the metadata table
    assert document["allocated-clusters"] == allocated and document["total-clusters"] == 32
    assert document["image-end-offset"] == end and document["leaked-bytes"] == 0
    assert document["usable"] and not document["replay-needed"]


# What QEMU does differently (format section 10.3), none of it an error or a leak.
QEMU_HABITS = {(7, "warning"), (24, "info"), (62, "warning"), (64, "warning"), (71, "warning"), (73, "info"),
               (74, "info"), (75, "info"), (76, "warning")}


@pytest.mark.parametrize("size, options", [
    ("1G", ""), ("100M", "block_size=1M"), ("63M", "block_size=8M"), ("100M", "block_size=256M"), ("1G", "log_size=8M"),
    ("1G", "block_state_zero=off"), ("100M", "subformat=fixed"), ("3M", "subformat=fixed,block_size=2M"),
    ("100M", "subformat=fixed,block_state_zero=off,block_size=8M"), ("10T", ""), ("10T", "block_size=1M"), ("64T", ""),
])
def test_images_made_by_qemu(vhdx, qemu_img, tool, tmp_path, size, options):
    path = tmp_path / "a.vhdx"
    qemu_img("create", "-f", "vhdx", *(["-o", options] if options else []), path, size)
    document = check(vhdx, path, 0)
    assert found(document) <= QEMU_HABITS and document["leaked-bytes"] == 0

    io = [tool("qemu-io"), "-f", "vhdx", "-c", "write -P 1 0 1M", "-c", "write -P 2 2M 1M", path]
    os.spawnv(os.P_WAIT, io[0], [str(word) for word in io])
    document = check(vhdx, path, 0)
    assert found(document) <= QEMU_HABITS and document["leaked-bytes"] == 0
    assert document["allocated-clusters"] >= 1


@pytest.mark.parametrize("options", ["", "block_size=1M", "subformat=fixed", "subformat=fixed,block_state_zero=off"])
def test_images_converted_by_qemu(vhdx, qemu_img, tmp_path, options):
    with open(tmp_path / "raw", "wb") as raw:
        raw.write(Pattern(1).read(0, 20 * MiB))
        raw.seek(31 * MiB)
        raw.write(b"end")
        raw.truncate(37 * MiB + 512)
    qemu_img("convert", "-f", "raw", "-O", "vhdx", *(["-o", options] if options else []), tmp_path / "raw",
             tmp_path / "a.vhdx")
    document = check(vhdx, tmp_path / "a.vhdx", 0)
    assert found(document) <= QEMU_HABITS and document["leaked-bytes"] == 0


@pytest.mark.parametrize("image, habits", [
    (windows(1 * GiB), {(44, "info")}),
    (windows(1 * GiB).write(0, 100 * MiB, Pattern(1)), {(44, "info")}),
    (windows(100 * MiB, kind="fixed"), {(44, "info")}),
    (qemu(100 * MiB).write(0, 9 * MiB, Pattern(1)), {(7, "warning"), (24, "info"), (73, "info")}),
    (disk2vhd(20 * MiB), {(6, "warning"), (74, "info"), (75, "info")}),
], ids=["windows-fresh", "windows", "windows-fixed", "qemu", "disk2vhd"])
def test_layouts_of_other_makers(vhdx, tmp_path, image, habits):
    document = check(vhdx, image.build(tmp_path / "a.vhdx").path, 0)
    assert found(document) == habits


def test_dirty_image_is_judged_as_it_will_be_after_replay(vhdx, tmp_path):
    image = windows(1 * GiB, stale_item_entry=False).write(0, 70 * MiB, Pattern(1))
    built = make_dirty(image, ["bat", "metadata", "regions"], home="junk").build(tmp_path / "a.vhdx")
    before = open(built.path, "rb").read()
    document = check(vhdx, built.path, 0)
    assert found(document) == {(13, "info")}
    assert document["replay-needed"] and document["usable"] and document["allocated-clusters"] == 3
    assert open(built.path, "rb").read() == before


# ---- what is printed ---------------------------------------------------------------------------------------

def leaky(tmp_path):
    image = Image(64 * MiB, block_size=2 * MiB, stale_item_entry=False).write(0, 6 * MiB, Pattern(1))
    image.patches.append(Patch("entry:1", bytes(8)))
    return image.build(tmp_path / "leaky.vhdx")


def test_leaked_space_is_counted_and_gives_status_3(vhdx, tmp_path):
    document = check(vhdx, leaky(tmp_path).path, 3)
    assert document["leaks"] == 1 and document["leaked-bytes"] == 2 * MiB and document["corruptions"] == 0
    assert document["total-clusters"] == 32 and document["allocated-clusters"] == 2
    [finding] = document["findings"]
    assert finding["rule"] == 73 and finding["offset"] == 6 * MiB


def test_findings_name_places(vhdx, tmp_path):
    image = Image(64 * MiB, block_size=2 * MiB).set_block(3, raw=6 | 1 * TiB)
    built = image.build(tmp_path / "a.vhdx")
    document = check(vhdx, built.path, 2)
    [finding] = [finding for finding in document["findings"] if finding["severity"] == "error"]
    assert finding["offset"] == built.where("entry:3")
    for part in ("block 3", hex(built.where("entry:3")), hex(1 * TiB)):
        assert part in finding["message"]


def test_findings_come_in_the_order_of_the_structures(vhdx, tmp_path):
    image = Image(64 * MiB, block_size=2 * MiB)
    image.set_block(3, raw=4)
    image.headers[0].damage = "crc"
    image.region_tables[0].damage = "crc"
    image.item("virtual_disk_id").flags = 4
    document = check(vhdx, image.build(tmp_path / "a.vhdx").path, 2)
    rules = [finding["rule"] for finding in document["findings"]]
    assert rules == sorted(rules) == [5, 20, 36, 44, 59]


def test_file_that_is_no_vhdx(vhdx, tmp_path, qemu_img):
    for name, content in {"empty": b"", "short": b"vhdx", "raw": Pattern(1).read(0, 2 * MiB)}.items():
        (tmp_path / name).write_bytes(content)
        result = vhdx("check", tmp_path / name, rc=1)
        assert result.out == "" and len(result.err.splitlines()) == 1
    qemu_img("create", "-f", "qcow2", tmp_path / "a.qcow2", "1G")
    assert "QCOW2" in vhdx("check", tmp_path / "a.qcow2", rc=1).err
    vhdx("check", tmp_path / "missing", rc=1)
    vhdx("check", tmp_path, rc=1)


# ---- broken images -----------------------------------------------------------------------------------------

def test_long_lists_are_cut_but_counted(vhdx, tmp_path):
    image = Image(4 * GiB, block_size=2 * MiB, stale_item_entry=False)
    for number in range(1000):
        image.set_block(number, raw=6 | TiB + number * MiB)
    document = check(vhdx, image.build(tmp_path / "a.vhdx").path, 2)
    assert document["corruptions"] == 1000
    assert len(document["findings"]) == 101
    assert "900 more" in document["findings"][-1]["message"]


def rich_image(tmp_path):
    """Something of everything."""
    parent = windows(40 * MiB, block_size=2 * MiB).write(0, 9 * MiB, Pattern(1)).build(tmp_path / "parent.vhdx")
    image = windows(40 * MiB, parent=parent, seed=2)
    image.write(1 * MiB, 6 * MiB + 512, Pattern(2))
    image.set_block(9, PARTIALLY_PRESENT, present=[(0, 8)], data=Pattern(3))
    return make_dirty(image, ["bat", "bitmap", "metadata"]).build(tmp_path / "child.vhdx")


def survives(vhdx, path):
    """The check ends with a verdict, and a verdict of "usable" is no lie."""
    result = vhdx("check", "--json", path, timeout=300)
    assert result.rc in (0, 1, 2, 3), result.describe()
    assert "Sanitizer" not in result.err and "runtime error" not in result.err
    if result.rc in (0, 3):
        vhdx("info", path, rc=0)
        vhdx("map", path, rc=0)


def test_cut_at_any_place(vhdx, tmp_path):
    built = rich_image(tmp_path)
    content = open(built.path, "rb").read()
    path = tmp_path / "cut.vhdx"
    ends = [0, 8, 519, 0x10000, 0x10FFF, 0x11000, 0x21000, 0x30000, 0x4FFFF, 0x50000, MiB]
    for end in ends + [end * MiB + more for end in range(1, len(content) // MiB) for more in (0, 4096)]:
        path.write_bytes(content[:end])
        survives(vhdx, path)


def test_any_byte_changed(vhdx, tmp_path):
    built = rich_image(tmp_path)
    random.seed(20)
    places = {"identifier": 520, "header1": 80, "header2": 80, "region1": 80, "log": 0x9000, "metadata": 0x180,
              ("metadata", 0x10000): 0x300, "bat": 0x100, "sbentry:0": 8, "bitmap:0": 4096}
    with open(built.path, "r+b", buffering=0) as file:
        for reference, length in places.items():
            for _ in range(12):
                at = built.where(reference) + random.randrange(length)
                [old] = os.pread(file.fileno(), 1, at)
                os.pwrite(file.fileno(), bytes([old ^ 1 << random.randrange(8)]), at)
                survives(vhdx, built.path)
                os.pwrite(file.fileno(), bytes([old]), at)


def test_table_of_random_entries(vhdx, tmp_path):
    """2^20 entries, wrong in every way at once."""
    image = Image(1 * TiB, block_size=1 * MiB, stale_item_entry=False)
    built = image.build(tmp_path / "a.vhdx")
    random.seed(21)
    with open(built.path, "r+b") as file:
        file.seek(built.where("bat"))
        for _ in range(8):
            file.write(b"".join(struct.pack("<Q", random.getrandbits(24)) for _ in range(1 << 17)))
    start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    document = check(vhdx, built.path, 2)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start < 60
    assert document["corruptions"] > 1000000 and len(document["findings"]) < 2000


# ---- cost --------------------------------------------------------------------------------------------------

@pytest.fixture
def limited(vhdx, vhdx_path, sanitizer):
    """check() with 64 MiB of memory and 10 s of processor time."""
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (64 * MiB, 64 * MiB))
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))

    def run(path, rc):
        if sanitizer not in ("none", ""):
            return check(vhdx, path, rc)    # their shadow memory needs terabytes of addresses
        done = subprocess.run([vhdx_path, "check", "--json", path], preexec_fn=limit, capture_output=True, timeout=300,
                              check=False)
        assert done.returncode == rc, done.stderr
        return json.loads(done.stdout)
    return run


def test_cost_follows_what_is_there_and_not_what_is_claimed(limited, tmp_path):
    """64 TiB in blocks of 1 MiB: a BAT of 513 MiB, nearly all of it a hole."""
    image = Image(64 * TiB, block_size=1 * MiB, stale_item_entry=False)
    for number in (0, 1, 1 << 20, (1 << 26) - 1):
        image.set_block(number, FULLY_PRESENT, data=Pattern(1))
    document = limited(image.build(tmp_path / "a.vhdx").path, 0)
    assert found(document) == set()
    assert document["total-clusters"] == 1 << 26 and document["allocated-clusters"] == 4


def test_file_that_claims_an_enormous_length(limited, tmp_path):
    image = Image(1 * GiB, block_size=1 * MiB, stale_item_entry=False).write(0, 3 * MiB, Pattern(1))
    image.set_block(9, at=8 * TiB)
    document = limited(image.build(tmp_path / "a.vhdx").path, 0)
    assert document["leaked-bytes"] == 0 and found(document) == {(73, "info")}, "a hole of 8 TiB costs nobody anything"


def test_metadata_that_claims_everything(limited, tmp_path):
    image = Image(64 * MiB, block_size=1 * MiB, default_state=ZERO)
    image.region("metadata").declared_length = 0xFFF00000
    image.region("bat").declared_length = 0xFFF00000
    image.file_length = 8 * GiB
    document = limited(image.build(tmp_path / "a.vhdx").path, 2)
    assert {rule for rule, severity in found(document) if severity == "error"} == {27, 33}


# ---- other users -------------------------------------------------------------------------------------------

def test_image_in_use_cannot_be_checked(vhdx, tmp_path, tool):
    built = windows(1 * GiB).build(tmp_path / "a.vhdx")
    with held_by_qemu(tool("qemu-io"), built.path):
        assert vhdx("check", built.path).rc == 1
        vhdx("check", "--force-share", built.path, rc=0)
