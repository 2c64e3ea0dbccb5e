# SPDX-License-Identifier: MIT
"""The image builder that other tests judge by, itself judged: by golden bytes of real images, by QEMU, and by a
second look at its files with a simple reader."""
import copy
import hashlib
import itertools
import os
import random
import re
import shutil
import struct
import time

import pytest

from vhdxbuild import (AUTO, FULLY_PRESENT, GiB, IS_USER, KiB, MiB, NO_GUID, NOT_PRESENT, PARTIALLY_PRESENT, TiB,
                       UNDEFINED, UNMAPPED, ZERO, Bitmap, Block, Data, Entry, Geometry, Header, Image, Item, Locator,
                       Patch, Pattern, Region, Zero, crc32c, describe, disk2vhd, guid, make_dirty, qemu, windows)
from vhdxbuild.encode import header
from vhdxbuild.reader import Reader, Unreadable


def file_bytes(built, offset, length):
    with open(built.path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def check_by_reader(built, parent=None):
    """Everything that matters of a disk, as the simple reader sees it, against the builder's own account."""
    with Reader(built.path, parent) as reader:
        assert reader.size == built.size
        for start, length in built.probes():
            message = built.difference(start, reader.read(start, length))
            assert message is None, message
        for extent in built.extents():
            if extent.kind == "data" and extent.length <= 4 * MiB:
                message = built.difference(extent.start, reader.read(extent.start, extent.length))
                assert message is None, message
        return reader


# ---- golden bytes ----------------------------------------------------------------------------------------

def test_crc32c_check_values():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(4096)) == 0x98F94189
    data = Pattern(1).read(0, 9000) + bytes(20000) + b"end"
    assert crc32c(data) == crc32c(data[12345:], crc32c(data[:12345]))


BAT_ENTRY = "66 77 c2 2d 23 f6 00 42 9d 64 11 5e 9b fd 4a 08 00 00 %s 00 00 00 00 00 00 00 10 00 %s 00 00 00"
METADATA_ENTRY = "06 a2 7c 8b 90 47 9a 4b b8 fe 57 5f 05 0f 88 6e 00 00 %s 00 00 00 00 00 00 00 10 00 %s 00 00 00"


@pytest.mark.parametrize("preset, checksum, entries", [
    (windows, 0xC66B8CAE, [BAT_ENTRY % ("30", "01"), METADATA_ENTRY % ("20", "01")]),
    (qemu, 0x2C6FCE83, [BAT_ENTRY % ("20", "00"), METADATA_ENTRY % ("30", "00")]),
    (disk2vhd, 0x1C142859, [METADATA_ENTRY % ("20", "01"), BAT_ENTRY % ("30", "01")]),
], ids=["windows", "qemu", "disk2vhd"])
def test_region_table_of_real_images(tmp_path, preset, checksum, entries):
    built = preset(256 * MiB).build(tmp_path / "a.vhdx")
    table = b"regi" + struct.pack("<III", checksum, 2, 0) + b"".join(map(bytes.fromhex, entries))
    for offset in (0x30000, 0x40000):
        assert file_bytes(built, offset, 65536) == table.ljust(65536, b"\0")


GOLDEN_HEADER = bytes.fromhex("""
    68 65 61 64 bf 95 9a ef 09 00 00 00 00 00 00 00 bc 91 87 b9 d8 45 5b 44 ad e6 5c be 55 0f 22 90
    b8 9d bc 8f fd 2c b8 45 96 88 1c 6f ed bc 72 30 3c 74 fc e6 ed 81 e8 4f bf 54 69 8e d5 7b a0 b8
    00 00 01 00 00 00 10 00 00 00 10 00 00 00 00 00""")


def test_header_of_a_real_image(tmp_path):
    image = windows(1 * GiB, file_write_guid=GOLDEN_HEADER[16:32], data_write_guid=GOLDEN_HEADER[32:48])
    image.log.guid = guid("e6fc743c-81ed-4fe8-bf54-698ed57ba0b8")
    built = image.build(tmp_path / "a.vhdx")
    assert file_bytes(built, 0x20000, 4096) == GOLDEN_HEADER.ljust(4096, b"\0")
    assert file_bytes(built, 0x10008, 8) == struct.pack("<Q", 8)
    assert header(seq=9, file_write_guid=GOLDEN_HEADER[16:32], data_write_guid=GOLDEN_HEADER[32:48],
                  log_guid=image.log.guid, log_length=MiB, log_offset=MiB)[:80] == GOLDEN_HEADER


def test_metadata_table_of_a_real_image(tmp_path):
    built = windows(1 * GiB).build(tmp_path / "a.vhdx")
    table = bytes.fromhex("6d65746164617461 0000 0500" + "00" * 20 + """
        3767a1ca36fa434db3b633f0aa44e76b 00000100 08000000 04000000 00000000
        2442a52f1bcd7648b2115dbed83bf4b8 08000100 08000000 06000000 00000000
        1dbf41816fa90947ba47f233a8faab5f 10000100 04000000 06000000 00000000
        c748a3cd5d4471449cc9e9885251c556 14000100 04000000 06000000 00000000
        ab12cabee6b2234593efc309e000c746 18000100 10000000 06000000 00000000
        ab12cabee6b2234593efc309e000c746 18000100 10000000 06000000 00000000""")
    assert file_bytes(built, 2 * MiB, 0x10000) == table.ljust(0x10000, b"\0")
    items = struct.pack("<IIQII", 32 * MiB, 0, 1 * GiB, 512, 4096) + built.image.disk_id
    assert file_bytes(built, 2 * MiB + 0x10000, 4096) == items.ljust(4096, b"\0")


def test_locator_of_a_real_image():
    locator = Locator.windows(
        guid("f88d4d92-6fcc-408d-9bef-9b7c89f15c89"), "C:\\Projects\\dfvfs\\test_data\\fat-parent.vhdx",
        ".\\fat-parent.vhdx",
        "\\\\?\\Volume{5e0bd954-71b2-4bff-a928-082af7ab0f8f}\\Projects\\dfvfs\\test_data\\fat-parent.vhdx")
    item = locator.encode()
    assert item[:80] == bytes.fromhex("""
        b7ef4ab09ed1814ab78925b8e9445913 0000 0500
        50000000 6c000000 1c00 4c00   b8000000 de000000 2600 5600   34010000 4e010000 1a00 2200
        70010000 86010000 1600 b200   38020000 56020000 1e00 4c00""")
    assert len(item) == 674
    assert item[108:184].decode("utf-16-le") == "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"


def test_windows_child_has_its_locator_where_windows_has_it(tmp_path):
    parent = windows(64 * MiB).build(tmp_path / "p.vhdx")
    child = windows(64 * MiB, parent=parent).build(tmp_path / "c.vhdx")
    assert child.image.disk_id == parent.image.disk_id and child.data_write_guid != parent.data_write_guid
    assert child.where("item:parent_locator") == 2 * MiB + 0x10028
    with Reader(parent.path) as below, Reader(child.path, below) as reader:
        assert reader.locator()["relative_path"] == ".\\p.vhdx"
        assert guid(reader.locator()["parent_linkage"]) == below.data_write_guid


def test_log_entry_of_a_real_image(tmp_path):
    """The entry of format section 4.3, down to the checksum that Windows computed: its page has block 0 at 4 MiB and
    blocks 3, 9 and 31 as ZERO (format appendix B)."""
    image = windows(1 * GiB)
    image.log.guid = guid("e6fc743c-81ed-4fe8-bf54-698ed57ba0b8")
    image.set_block(0).set_block(3, ZERO).set_block(9, ZERO).set_block(31, ZERO)
    image.log.entries = [Entry([Data("bat")], at=0x7000, seq=0x011CA264063FE557, tail=0x5000)]
    built = image.build(tmp_path / "a.vhdx")
    entry = file_bytes(built, 0x107000, 8192)
    assert entry[:96] == bytes.fromhex("""
        6c 6f 67 65  9f b1 67 a9  00 20 00 00  00 50 00 00  57 e5 3f 06 64 a2 1c 01   01 00 00 00  00 00 00 00
        3c 74 fc e6 ed 81 e8 4f bf 54 69 8e d5 7b a0 b8  00 00 40 02 00 00 00 00   00 00 40 02 00 00 00 00
        64 65 73 63  00 00 00 00  06 00 40 00 00 00 00 00  00 00 30 00 00 00 00 00   57 e5 3f 06 64 a2 1c 01""")
    assert entry[4096:4104] == bytes.fromhex("64 61 74 61 64 a2 1c 01") and entry[-4:] == bytes.fromhex("57 e5 3f 06")


@pytest.mark.parametrize("size, block_size, lss, expected", [
    (3 * MiB, 2 * MiB, 512, (2048, 2, 1, 2, 2049)),
    (4 * GiB + 512, 32 * MiB, 512, (128, 129, 2, 130, 258)),
    (127 * GiB, 2 * MiB, 512, (2048, 65024, 32, 65055, 65568)),
    (127 * GiB, 32 * MiB, 4096, (1024, 4064, 4, 4067, 4100)),
    (64 * TiB, 256 * MiB, 512, (16, 262144, 16384, 278527, 278528)),
    (64 * TiB, 1 * MiB, 4096, (32768, 67108864, 2048, 67110911, 67110912)),
])
def test_geometry_of_the_reference(size, block_size, lss, expected):
    plain, child = (Geometry(size, block_size, lss, differencing) for differencing in (False, True))
    assert (plain.chunk_ratio, plain.blocks, plain.chunks, plain.entries, child.entries) == expected


def test_index_examples_of_the_reference():
    geometry = Geometry(127 * GiB, 2 * MiB, 512, True)
    assert (geometry.payload_index(2560), geometry.bitmap_index(1)) == (2561, 4097)
    assert (geometry.payload_index(65023), geometry.bitmap_index(31)) == (65054, 65567)
    assert Geometry(10 * GiB, 32 * MiB, 512, False).payload_index(319) == 321


# ---- by QEMU ---------------------------------------------------------------------------------------------

def check_by_qemu(qemu_img, built, tmp_path):
    raw = tmp_path / "qemu.raw"
    qemu_img("convert", "-f", "vhdx", "-O", "raw", built.path, raw)
    assert built.first_difference(raw) is None
    if built.size <= 128 * MiB:
        assert hashlib.sha256(raw.read_bytes()).hexdigest() == built.sha256()
    qemu_img("check", "-f", "vhdx", built.path)


def some_writes(image, seed=1):
    """A few writes around block borders and at the disk's ends."""
    for number, offset in enumerate([0, image.block_size - 1536, 3 * image.block_size, image.size - 512]):
        if 0 <= offset < image.size:
            image.write(offset, min(3072, image.size - offset), Pattern(seed + number))
    return image


def all_states(image):
    image.set_block(1, ZERO)
    image.set_block(2, UNMAPPED, at=AUTO, junk=Pattern(77))
    image.set_block(4, UNDEFINED)
    image.set_block(5, data=[(512, 512, b"x" * 512), (MiB - 512, 512, 0xA5)])
    image.set_block(6, at=AUTO, data=Pattern(9))
    return image


QEMU_IMAGES = {
    "dynamic": lambda: all_states(Image(30 * MiB + 512)),
    "one-sector": lambda: Image(512).write(0, 512, Pattern(1)),
    "one-mib-blocks": lambda: some_writes(Image(9 * MiB, block_size=1 * MiB)),
    "large-blocks": lambda: some_writes(Image(1 * GiB, block_size=256 * MiB)),
    "fixed": lambda: some_writes(Image(20 * MiB, kind="fixed")),
    "fixed-odd": lambda: some_writes(Image(21 * MiB + 1024, kind="fixed", block_size=4 * MiB)),
    "shuffled": lambda: some_writes(Image(64 * MiB, kind="fixed", payload_order="shuffled")),
    "descending": lambda: some_writes(Image(64 * MiB, kind="fixed", payload_order="descending", block_gap=MiB)),
    "windows": lambda: some_writes(windows(100 * MiB)),
    "qemu": lambda: some_writes(qemu(100 * MiB)),
    "qemu-fixed": lambda: some_writes(qemu(100 * MiB, "fixed")),
    "disk2vhd": lambda: some_writes(disk2vhd(50 * MiB)),
    "chunks": lambda: Image(9 * GiB, block_size=32 * MiB).write(4 * GiB - 512, 1024, Pattern(1))
                                                         .write(8 * GiB, 512, Pattern(2)),
    "far": lambda: Image(64 * MiB).set_block(3, at=5 * GiB, data=Pattern(1)).set_block(0, at=3 * TiB, data=b"far"),
    "regions-far": lambda: some_writes(Image(64 * MiB, regions=[
        Region("metadata", at=6 * GiB), Region("bat", at=5 * GiB), Region("other", required=0, content=Pattern(5))])),
}


@pytest.mark.parametrize("name", QEMU_IMAGES)
def test_qemu_reads_what_is_built(qemu_img, tmp_path, name):
    check_by_qemu(qemu_img, QEMU_IMAGES[name]().build(tmp_path / "a.vhdx"), tmp_path)


def test_qemu_preset_is_what_qemu_makes(qemu_img, tmp_path):
    """Byte for byte except GUIDs, sequence numbers and checksums of headers."""
    ours = qemu(100 * MiB).build(tmp_path / "ours.vhdx")
    qemu_img("create", "-f", "vhdx", tmp_path / "theirs.vhdx", "100M")
    theirs = (tmp_path / "theirs.vhdx").read_bytes()
    for offset, length in [(0x30000, 0x20000), (ours.where("bat"), MiB), (ours.where("metadata"), 0x10010),
                           (ours.where("metadata") + 0x10020, MiB - 0x10020)]:
        assert file_bytes(ours, offset, length) == theirs[offset:offset + length]
    assert file_bytes(ours, 0x10040, 16) == theirs[0x10040:0x10050]


@pytest.mark.parametrize("block_state_zero", [True, False])
def test_qemu_fixed_preset_is_what_qemu_makes(qemu_img, tmp_path, block_state_zero):
    option = "subformat=fixed,block_size=8M" + ("" if block_state_zero else ",block_state_zero=off")
    qemu_img("create", "-f", "vhdx", "-o", option, tmp_path / "theirs.vhdx", "100M")
    ours = qemu(100 * MiB, "fixed", block_state_zero).build(tmp_path / "ours.vhdx")
    theirs = (tmp_path / "theirs.vhdx").read_bytes()
    bat = ours.where("bat")
    assert file_bytes(ours, bat, MiB) == theirs[bat:bat + MiB]
    assert os.stat(ours.path).st_size == len(theirs)


@pytest.mark.parametrize("what", [["bat"], ["bat", "metadata"], ["metadata"], ["block:3"]], ids="+".join)
@pytest.mark.parametrize("home", ["zero", "junk"])
def test_qemu_replays_what_is_built_dirty(qemu_img, tmp_path, what, home):
    image = make_dirty(some_writes(Image(64 * MiB)), what, home=home, opening=False)
    built = image.build(tmp_path / "a.vhdx")
    copy_path = tmp_path / "copy.vhdx"
    shutil.copyfile(built.path, copy_path)
    # Read-only, so that QEMU cannot replay: it must refuse, or the image is not dirty.
    refused = qemu_img("info", "-f", "vhdx", copy_path, rc=None)
    assert refused.rc != 0 and "log" in refused.err
    qemu_img("check", "-f", "vhdx", "-r", "all", copy_path)
    qemu_img("convert", "-f", "vhdx", "-O", "raw", copy_path, tmp_path / "qemu.raw")
    assert built.first_difference(tmp_path / "qemu.raw") is None


# ---- by the simple reader --------------------------------------------------------------------------------

def test_reader_reads_real_images(real_images, real_image_sha256):
    """The second judge, judged by images that Windows made."""
    for name, path in real_images.items():
        digest = hashlib.sha256()
        with Reader(path) as reader:
            for offset in range(0, reader.size, 4 * MiB):
                digest.update(reader.read(offset, min(4 * MiB, reader.size - offset)))
        assert digest.hexdigest() == real_image_sha256[name], name


GEOMETRIES = [(1 * MiB, 512), (2 * MiB, 512), (8 * MiB, 4096), (32 * MiB, 512), (256 * MiB, 4096)]


def random_disk(seed, lss, block_size, parent_model=None, **keywords):
    """A small disk with random writes of any alignment, and the same in a plain bytearray."""
    generator = random.Random(seed)
    size = generator.randrange(1, 12 * MiB // lss) * lss
    if parent_model is not None and seed % 2:
        size = len(parent_model)
    image = Image(size, block_size=block_size, lss=lss, seed=seed, **keywords)
    model = bytearray((bytes(parent_model) if parent_model is not None else b"").ljust(size, b"\0")[:size])
    for number in range(12):
        offset = generator.randrange(size)
        length = min(size - offset, generator.choice([1, 511, 512, 4096, 70000, 3 * MiB]))
        if parent_model is not None:   # a partial block has whole sectors
            offset = offset // lss * lss
            length = min(size - offset, -(-length // lss) * lss)
        content = Pattern(seed * 100 + number)
        image.write(offset, length, content)
        model[offset:offset + length] = content.read(offset, length)
    return image, model


@pytest.mark.parametrize("block_size, lss", GEOMETRIES)
@pytest.mark.parametrize("seed", range(4))
def test_expected_is_a_plain_disk(tmp_path, seed, block_size, lss):
    """Random writes through three layers, against plain bytes and against what the files hold."""
    built, readers, model = None, [None], None
    for depth in range(3):
        image, model = random_disk(seed + 10 * depth, lss, block_size, model, parent=built,
                                   payload_order="shuffled")
        if depth == 1:
            make_dirty(image, ["bat", "bitmap"] if image.plan().bitmap_at else "bat")
        built = image.build(tmp_path / f"{depth}.vhdx")
        assert built.expected(0, built.size) == model
        assert built.sha256() == hashlib.sha256(model).hexdigest()
        readers.append(Reader(built.path, readers[-1]))
        assert readers[-1].read(0, built.size) == model
    for reader in readers[1:]:
        reader.close()


def test_every_state_in_a_child(tmp_path):
    parent = Image(40 * MiB)
    parent.write(0, 40 * MiB, Pattern(1))
    parent = parent.build(tmp_path / "p.vhdx")
    child = Image(40 * MiB, parent=parent, seed=2)
    child.set_block(0, NOT_PRESENT)
    child.set_block(1, UNDEFINED, at=AUTO, junk=Pattern(66), present="all")
    child.set_block(2, ZERO, present="all")
    child.set_block(3, UNMAPPED, present=[(0, 100)])
    child.set_block(4, FULLY_PRESENT, data=Pattern(2), present="none")
    child.set_block(5, PARTIALLY_PRESENT, data=Pattern(2), present=[(0, 1), (7, 2), (4095, 1)], junk=0xEE)
    child.set_block(6, PARTIALLY_PRESENT, present="none", junk=0xEE)
    child.set_block(7, PARTIALLY_PRESENT, present="all", junk=0xEE)
    child.set_block(19, PARTIALLY_PRESENT, data=[(0, 512, b"b" * 512), (2 * MiB - 512, b"e" * 512)])
    child.bitmaps[0] = Bitmap(fill=0xFF)
    built = child.build(tmp_path / "c.vhdx")
    with Reader(parent.path) as below:
        check_by_reader(built, below)
    base, zeros, old, new = 2 * MiB, bytes(2 * MiB), Pattern(1).read, Pattern(2).read
    assert built.expected(0, base) == old(0, base)
    for number in (1, 2, 3, 7):
        assert built.expected(number * base, base) == zeros
    assert built.expected(4 * base, base) == new(4 * base, base)
    place = 5 * base
    assert built.expected(place, base) == (
        new(place, 512) + old(place + 512, 6 * 512) + new(place + 7 * 512, 1024) +
        old(place + 9 * 512, 4086 * 512) + new(place + 4095 * 512, 512))
    assert built.expected(6 * base, base) == old(6 * base, base)
    bitmap = file_bytes(built, built.where("bitmap:0"), MiB)
    assert bitmap[:512] == b"\xff" * 512                  # block 0 says nothing: the fill value
    assert bitmap[4 * 512:5 * 512] == bytes(512)
    assert bitmap[5 * 512:6 * 512] == b"\x81\x01" + bytes(509) + b"\x80"
    assert bitmap[19 * 512:20 * 512] == b"\x01" + bytes(510) + b"\x80"
    kinds = {(extent.start // base, extent.depth, extent.state) for extent in built.extents() if extent.kind == "data"}
    assert {(4, 0, 6), (5, 0, 7), (5, 1, 6), (0, 1, 6), (10, 1, 6)} <= kinds
    whole = next(extent for extent in built.extents() if extent.start == 4 * base)
    assert (whole.length, whole.file_offset) == (base, built.where("block:4"))


def test_parent_shorter_than_child(tmp_path):
    parent = Image(3 * MiB + 512).write(3 * MiB - 512, 1024, Pattern(1)).build(tmp_path / "p.vhdx")
    child = Image(9 * MiB, parent=parent).write(2 * MiB, 512, Pattern(2)).build(tmp_path / "c.vhdx")
    assert child.expected(3 * MiB, 1024) == Pattern(1).read(3 * MiB, 512) + bytes(512)
    with Reader(parent.path) as below:
        check_by_reader(child, below)


def test_several_chunks_with_bitmaps_between_payload(tmp_path):
    parent = Image(13 * GiB, block_size=32 * MiB).write(4 * GiB, 4096, Pattern(1)).build(tmp_path / "p.vhdx")
    child = Image(13 * GiB, block_size=64 * MiB, parent=parent)
    for offset in (0, 4 * GiB - 512, 4 * GiB, 8 * GiB + 512, 13 * GiB - 512):
        child.write(offset, 512, Pattern(2))
    child.payload_order = [64, "bitmap:0", 0, "bitmap:3", "bitmap:1"]
    built = child.build(tmp_path / "c.vhdx")
    assert built.where("block:64") < built.where("bitmap:0") < built.where("block:0") < built.where("bitmap:3")
    assert struct.unpack("<Q", file_bytes(built, built.where("entry:64"), 8))[0] == built.where("block:64") | 7
    assert built.where("sbentry:1") - built.where("bat") == 8 * (2 * 64 + 1)
    with Reader(parent.path) as below:
        check_by_reader(built, below)


DIRTY_SHAPES = [
    {}, {"home": "junk"}, {"per_entry": 1}, {"start": MiB - 4096}, {"start": MiB - 8192, "opening": False},
    {"supersede": True, "per_entry": 2}, {"shuffle": True, "closing": True}, {"first_seq": 0xFFFFFFFF},
    {"start": 0xF0000, "supersede": True, "shuffle": True, "per_entry": 3, "home": "junk", "closing": True},
]


@pytest.mark.parametrize("shape", DIRTY_SHAPES, ids=lambda shape: "-".join(shape) or "plain")
@pytest.mark.parametrize("what", [["bat"], ["bitmap"], ["metadata"], ["regions"], ["bat:0", "metadata:16", "block:3"],
                                  ["bat", "bitmap", "metadata", "regions"]], ids="+".join)
def test_only_replay_shows_the_truth(tmp_path, what, shape):
    parent = some_writes(Image(20 * MiB)).build(tmp_path / "p.vhdx")
    child = some_writes(Image(20 * MiB, parent=parent), seed=50)
    make_dirty(child, what, **shape)
    built = child.build(tmp_path / "c.vhdx")
    with Reader(parent.path) as below:
        reader = check_by_reader(built, below)
        assert reader.replayed
        clean = copy.deepcopy(child)
        for one in clean.headers:
            one.log_guid = NO_GUID
        stale = clean.build(tmp_path / "stale.vhdx")
        try:
            with Reader(stale.path, below) as reader:
                assert any(built.difference(start, reader.read(start, length)) for start, length in built.probes())
        except Unreadable:
            pass


def test_log_entries_by_hand(tmp_path):
    """Several sequences, stale entries, a torn one behind the head, a tail inside the run, a full ring."""
    image = some_writes(Image(20 * MiB))
    image.log.guid = guid("11111111-2222-3333-4444-555555555555")
    stale = guid("99999999-2222-3333-4444-555555555555")
    first = Entry([Data("bat", page=b"wrong")], at=0x8000, seq=100, tail="self")
    second = Entry([Zero("bat", 4096), Data("bat"), Zero("bat", 0)])
    second.tail = second
    image.log.entries = [
        Entry([Data("bat", page=b"stale")], guid=stale, seq=10000),
        Entry([Data("bat", page=b"older")], at=0x40000, seq=50, tail="self"),
        first, Entry([Data("bat", page=b"wrong too")]), second,
        Entry([Data("bat", page=b"torn")], torn=4096 + 512),
    ]
    image.home.append(("bat", b"\x05" * 4096))
    built = image.build(tmp_path / "a.vhdx")
    reader = check_by_reader(built)
    assert reader.replayed == [0xC000]

    image.log.entries = [Entry(at=0x5000, tail="self", seq=7)] + [Entry() for _ in range(253)] + [Entry([Data("bat")])]
    built = image.build(tmp_path / "b.vhdx")
    reader = check_by_reader(built)
    assert len(reader.replayed) == 255 and reader.replayed[:2] == [0x5000, 0x6000]

    image.log.entries[-1].lost = (1,)
    with pytest.raises(Unreadable):     # the head is gone; what is left does not mend the BAT
        check_by_reader(image.build(tmp_path / "c.vhdx"))


def test_log_entry_defaults_and_overrides(tmp_path):
    """Where entries go, and what their headers say, field by field."""
    image = Image(4 * MiB).set_block(0)
    image.log.first_seq = 7
    one, two = guid("11111111-2222-3333-4444-555555555555"), guid("99999999-2222-3333-4444-555555555555")
    image.log.guid = one
    named = Entry()
    image.log.entries = [
        Entry(tail="self"), named, Entry(), Entry(guid=two), Entry(guid=two, tail=named), Entry(tail=0x7000),
        Entry(seq=1 << 40, flushed=0, last=1 << 60), Entry(at=0x20000, tail="self"),
        Entry([Zero(5, 6, reserved=9), Data(7, page=b"p" * 4096, leading=b"LEADING!", seq=3, sector_seq_low=4)],
              signature=b"LOGE", entry_length=1, descriptor_count=2, reserved=3, checksum=4),
    ]
    built = image.build(tmp_path / "a.vhdx")
    ring = file_bytes(built, MiB, MiB)
    heads = []
    for at in [0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x20000]:
        length, tail, seq, count = struct.unpack_from("<IIQI", ring, at + 8)
        assert (ring[at:at + 4], length, count) == (b"loge", 4096, 0)
        heads.append((tail, seq, ring[at + 32:at + 48], *struct.unpack_from("<QQ", ring, at + 48)))
    end = os.stat(built.path).st_size
    assert heads == [
        (0, 7, one, end, end), (0, 8, one, end, end), (0, 9, one, end, end), (0x3000, 10, two, end, end),
        (0x1000, 11, two, end, end), (0x7000, 12, one, end, end), (0x6000, 1 << 40, one, 0, 1 << 60),
        (0x20000, (1 << 40) + 1, one, end, end)]
    assert ring[0x21000:0x21020] == b"LOGE" + struct.pack("<IIIQII", 4, 1, 0x20000, (1 << 40) + 2, 2, 3)
    assert ring[0x21040:0x21060] == b"zero" + struct.pack("<IQQQ", 9, 6, 5, (1 << 40) + 2)
    assert ring[0x21060:0x21080] == b"descppppLEADING!" + struct.pack("<QQ", 7, 3)
    assert ring[0x22000:0x23000] == b"data" + struct.pack("<I", 256) + b"p" * 4084 + struct.pack("<I", 4)
    assert end == 6 * MiB
    image.log.entries = [Entry(at=MiB)]
    with pytest.raises(ValueError, match="log offset"):
        image.plan()


def test_what_is_placed_automatically_keeps_clear_of_the_rest():
    image = Image(64 * MiB, kind="fixed", block_size=4 * MiB, regions=[
        Region("bat"), Region("metadata", at=1 * MiB), Region("other", at=30 * MiB, length=3 * MiB)])
    image.log.at = 20 * MiB
    image.set_block(3, at=11 * MiB).set_block(5, at=50 * MiB)
    plan = image.plan()
    extents = [(0, MiB), (plan.log_at, MiB), *plan.regions.values()]
    extents += [(at, 4 * MiB) for at in plan.block_at.values()]
    extents.sort()
    assert len(plan.block_at) == 16
    assert all(low + length <= high for (low, length), (high, _) in itertools.pairwise(extents))
    assert plan.file_length == max(at + length for at, length in extents)


def test_large_log_and_large_entry(tmp_path):
    image = Image(256 * MiB, block_size=1 * MiB)
    image.log.length = 5 * MiB
    image.write(0, 256 * MiB, b"")      # all blocks present, all zero
    image.write(100 * MiB, 4096, Pattern(1))
    image.log.guid = guid("11111111-2222-3333-4444-555555555555")
    pages = [Data("bat")] + [Data(("region:other", page * 4096)) for page in range(1023)]
    image.regions.append(Region("other", required=0, length=4 * MiB, content=Pattern(3)))
    image.log.entries = [Entry(at=4 * MiB, tail="self"), Entry(pages)]
    image.home.append(("region:other", bytes(4 * MiB)))
    start = time.process_time()
    built = image.build(tmp_path / "a.vhdx")
    assert time.process_time() - start < 20
    reader = check_by_reader(built)
    assert reader._bytes(built.where("region:other"), 4092 * KiB) == Pattern(3).read(0, 4092 * KiB)


def test_replay_extends_the_file(tmp_path):
    image = Image(20 * MiB).set_block(0, data=Pattern(1)).set_block(1)
    make_dirty(image)
    image.file_length = 6 * MiB         # block 1 was never written to the file
    built = image.build(tmp_path / "a.vhdx")
    assert os.stat(built.path).st_size == 6 * MiB
    assert check_by_reader(built).length == 8 * MiB


def test_cut_file_reads_zeros_behind_its_end(tmp_path):
    image = Image(4 * MiB, data_write_guid=NO_GUID).write(0, 4 * MiB, Pattern(1))
    image.file_length = 7 * MiB + 1024
    built = image.build(tmp_path / "a.vhdx")
    assert os.stat(built.path).st_size == 7 * MiB + 1024
    assert built.expected(3 * MiB, MiB) == Pattern(1).read(3 * MiB, 1024) + bytes(MiB - 1024)


def test_enormous_disks_are_sparse_and_quick(tmp_path):
    start = time.process_time()
    image = Image(64 * TiB, block_size=1 * MiB)
    for offset in (0, 4 * GiB - 512, 40 * TiB, 64 * TiB - 512):
        image.write(offset, 512, Pattern(1))
    image.set_block(5, at=6 * TiB, data=Pattern(5))
    built = image.build(tmp_path / "a.vhdx")
    assert built.plan.regions["bat"][1] == 513 * MiB
    assert os.stat(built.path).st_blocks * 512 < 4 * MiB
    check_by_reader(built)
    parent = built
    child = Image(64 * TiB, block_size=256 * MiB, parent=parent).write(40 * TiB + 512, 512, Pattern(2))
    built = child.build(tmp_path / "b.vhdx")
    with Reader(parent.path) as below:
        check_by_reader(built, below)
    full = qemu(64 * TiB).build(tmp_path / "c.vhdx")       # a million ZERO entries
    assert file_bytes(full, full.where("entry:1048575"), 8) == bytes([ZERO]) + bytes(7)
    assert file_bytes(full, full.where("sbentry:3"), 8) == bytes(8)
    assert time.process_time() - start < 20
    with pytest.raises(ValueError):
        built.sha256()


# ---- damage and overrides --------------------------------------------------------------------------------

@pytest.mark.parametrize("damage", ["crc", "signature", "torn", "zero", "junk"])
def test_damaged_copies(tmp_path, damage):
    image = some_writes(Image(20 * MiB))
    image.headers[1].damage = damage
    image.region_tables[0].damage = damage
    check_by_reader(image.build(tmp_path / "a.vhdx"))
    image.headers[0].damage = damage
    with pytest.raises(Unreadable, match="header"):
        check_by_reader(image.build(tmp_path / "b.vhdx"))
    image.headers[0].damage = image.headers[1].damage = None
    image.region_tables[1].damage = damage
    with pytest.raises(Unreadable, match="region table"):
        check_by_reader(image.build(tmp_path / "c.vhdx"))


def test_header_order_and_equal_sequence(tmp_path):
    other = guid("77777777-2222-3333-4444-555555555555")
    image = Image(4 * MiB, headers=[Header(20, data_write_guid=other), Header(19)])
    built = image.build(tmp_path / "a.vhdx")
    assert check_by_reader(built).data_write_guid == built.data_write_guid == other
    image.headers[1].seq = 20
    with pytest.raises(Unreadable, match="same sequence"):
        check_by_reader(image.build(tmp_path / "b.vhdx"))
    image.headers[1].data_write_guid = other
    check_by_reader(image.build(tmp_path / "c.vhdx"))


@pytest.mark.parametrize("where, start, length", [
    (("header1", 66), 0x10000, 4096),
    (("header2", 4000), 0x20000, 4096),
    (("region1", 60000), 0x30000, 65536),
    (("region2", 12), 0x40000, 65536),
    (("logentry:0", 300), MiB + 0x3000, 4096),
    (("logentry:1", 4000), 2 * MiB - 4096, 8192),
    (("log", 100), 2 * MiB - 4096, 8192),           # the second sector of entry 1, which wraps around the ring's end
])
def test_patches_with_and_without_repair(tmp_path, where, start, length):
    image = Image(20 * MiB)
    image.log.entries = [Entry(at=0x3000), Entry([Data("bat", page=b"1" * 4096)], at=MiB - 4096)]
    image.log.guid = guid("11111111-2222-3333-4444-555555555555")
    for repair in (False, True):
        image.patches = [Patch(where, b"\x5a", repair)]
        built = image.build(tmp_path / "a.vhdx")
        first = min(length, max(4096, 2 * MiB - start)) if start >= MiB else length
        body = file_bytes(built, start, first) + file_bytes(built, MiB, length - first)
        assert file_bytes(built, built.where(where), 1) == b"\x5a"
        stored, = struct.unpack_from("<I", body, 4)
        assert (stored == crc32c(body[:4] + bytes(4) + body[8:])) == repair
    with pytest.raises(ValueError, match="checksum"):
        image.patches = [Patch(("bat", 0), b"x", repair=True)]
        image.plan()


def test_metadata_overrides(tmp_path):
    image = some_writes(Image(20 * MiB))
    image.items.append(Item("mine", b"user data", offset=0x10101))
    image.items.append(Item("big", Pattern(1).read(0, MiB), flags=4))
    image.items.append(Item("empty", b"", flags=IS_USER))
    image.items[:5] = image.items[4::-1]
    image.table_order = ["empty", "big"] + [item.name for item in image.items[:6]]
    built = image.build(tmp_path / "a.vhdx")
    reader = check_by_reader(built)
    values = sorted(reader.items.values(), key=len)
    assert values[0] == b"" and values[-1] == Pattern(1).read(0, MiB) and b"user data" in values
    assert built.plan.regions["metadata"][1] == 2 * MiB
    table = file_bytes(built, built.where("metadata"), 4096)
    assert struct.unpack_from("<H", table, 10)[0] == 8
    assert table[32 + 8 * 32:32 + 9 * 32] == table[32 + 7 * 32:32 + 8 * 32]     # the stale entry
    image.declared = {"file_parameters": 0}
    with pytest.raises(Unreadable, match="block size"):
        check_by_reader(image.build(tmp_path / "b.vhdx"))
    image.declared = {"virtual_disk_size": 1 << 62, "logical_sector_size": b"\1\2"}
    built = image.build(tmp_path / "c.vhdx")
    assert file_bytes(built, built.where("item:virtual_disk_size"), 8) == struct.pack("<Q", 1 << 62)
    assert struct.unpack("<I", file_bytes(built, built.where("itementry:logical_sector_size") + 20, 4))[0] == 2
    image.metadata_count = 2048
    with pytest.raises(Unreadable, match="metadata table"):
        check_by_reader(image.build(tmp_path / "d.vhdx"))


def test_raw_bat_entries(tmp_path):
    image = Image(20 * MiB, block_size=1 * MiB)
    image.set_block(3, raw=(77 << 20) | (1 << 7) | 6)
    image.set_block(4, state=ZERO, raw=(99 << 20) | 2)
    image.bat_raw[40] = 0xFEDCBA9876543210
    built = image.build(tmp_path / "a.vhdx")
    bat = struct.unpack("<41Q", file_bytes(built, built.where("bat"), 41 * 8))
    assert (bat[3], bat[4], bat[40]) == ((77 << 20) | (1 << 7) | 6, (99 << 20) | 2, 0xFEDCBA9876543210)
    assert os.stat(built.path).st_size == 4 * MiB
    with pytest.raises(ValueError, match="no place"):
        Image(MiB, blocks={0: Block(ZERO, data=b"x")}).plan()


def test_locator_overrides(tmp_path):
    parent = Image(4 * MiB).build(tmp_path / "p.vhdx")
    locator = Locator.relative(parent.data_write_guid, ".\\p.vhdx").set("parent_linkage", "nonsense")
    locator.set("extra", b"\x00\xd8")          # an unpaired surrogate
    locator.entries_override = locator.entries()
    locator.entries_override[1] = locator.entries_override[1]._replace(key_length=3)
    locator.count = 77
    item = locator.encode()
    assert struct.unpack_from("<H", item, 18)[0] == 77
    assert struct.unpack_from("<H", item, 20 + 12 + 8)[0] == 3
    assert item.endswith(b"\x00\xd8")
    built = Image(4 * MiB, parent=parent, locator=locator).build(tmp_path / "c.vhdx")
    assert file_bytes(built, built.where("item:parent_locator"), len(item)) == item


# ---- the tools for comparing -----------------------------------------------------------------------------

def test_building_is_deterministic(tmp_path):
    for name in "ab":
        make_dirty(all_states(Image(30 * MiB, payload_order="shuffled", seed=3)), shuffle=True).build(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    all_states(Image(30 * MiB, seed=4)).build(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_differences_are_found_and_explained(tmp_path):
    built = some_writes(Image(20 * MiB)).build(tmp_path / "a.vhdx")
    raw = tmp_path / "a.raw"
    built.write_raw(raw)
    assert built.first_difference(raw) is None
    for offset, message in [(6 * MiB + 700, r"Pattern\(3\) of guest offset 0x600200 \(altered\)"), (11 * MiB, "zeros"),
                            (20 * MiB - 1, "0x13fffff")]:
        with open(raw, "r+b") as file:
            file.seek(offset)
            before = file.read(1)
            file.seek(offset)
            file.write(bytes([before[0] ^ 1]))
        found = built.first_difference(raw)
        assert found is not None and hex(offset) in found and re.search(message, found)
        with open(raw, "r+b") as file:
            file.seek(offset)
            file.write(before)
    os.truncate(raw, 19 * MiB)
    assert "length" in built.first_difference(raw)
    assert built.difference(0, bytes(512)) is not None and built.difference(10 * MiB, bytes(512)) is None


def test_pattern_tells_where_it_belongs():
    sector = Pattern(7).read(0x4000, 512)
    assert describe(sector) == "Pattern(7) of guest offset 0x4000"
    assert Pattern(7).read(0x4001, 600) == Pattern(7).read(0x4000, 1024)[1:601]
    units = {Pattern(seed).read(number * 512, 512) for seed, number in itertools.product(range(20), range(20))}
    assert len(units) == 400
