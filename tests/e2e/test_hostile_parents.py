# SPDX-License-Identifier: MIT
"""Hostile parent locators and chains (format section 11, rows 90 to 104).  Chains as users meet them are in
test_parents.py."""
import os
import socket

from hostile_support import *
from vhdxbuild import *

rows = Rows()
refused = rows.refused
test_refused, _ = rows.tests()


@refused(90, "locator without header", "METADATA", "parent locator at 0x210028", 1, 16, 19, child=True)
def locator_short(image, value):
    image.item("parent_locator").declared_length = value


@refused(91, "KeyValueCount 0", "METADATA", "parent locator at 0x210028: KeyValueCount is 0", child=True)
def no_pairs(image):
    image.locator.count = 0


@refused(91, "KeyValueCount", "LIMIT", "parent locator at 0x210028: KeyValueCount", 257, 0xFFFF, child=True)
def too_many_pairs(image, value):
    image.locator.count = value


@refused(91, "table of pairs behind the item", "METADATA", "parent locator at 0x210028: 256 entries", 256, child=True)
def pairs_beyond_item(image, value):
    image.locator.count = value


def change_pair(image, **fields):
    image.locator.entries_override = image.locator.entries()
    image.locator.entries_override[1] = image.locator.entries_override[1]._replace(**fields)


@refused(92, "offset of a key", "METADATA", "parent locator at 0x210028, entry 1 at 0x210048: the key", 0, 1, 20, 55,
         500, 0x7FFFFFFF, 0xFFFFFFFE, child=True)
def key_offset(image, value):
    change_pair(image, key_offset=value)


@refused(92, "length of a key", "METADATA", "parent locator at 0x210028, entry 1 at 0x210048: the key", 0, 1, 27,
         0xFFFE, 0xFFFF, child=True)
def key_length(image, value):
    change_pair(image, key_length=value)


@refused(92, "offset of a value", "METADATA", "entry 1 at 0x210048: the value", 0, 19, 500, 0xFFFFFFFE, 0x80000000,
         child=True)
def value_offset(image, value):
    change_pair(image, value_offset=value)


@refused(92, "length of a value", "METADATA", "entry 1 at 0x210048: the value", 0, 13, 0xFFFE, 0xFFFF, child=True)
def value_length(image, value):
    change_pair(image, value_length=value)


BAD_UTF16 = [b"a\0\0\xd8", b"\0\xdca\0", b"\0\xd8a\0", b"a\0\0\0b\0", b"\0\0"]


@refused(93, "text of a value", "METADATA", "entry 1 at 0x210048: the value", *BAD_UTF16, child=True)
def value_text(image, value):
    image.locator.set("relative_path", value)


@refused(93, "text of a key", "METADATA", "entry 3 at 0x210060: the key", *BAD_UTF16, child=True)
def key_text(image, value):
    image.locator.pairs.append((value, "x"))


@refused(94, "key twice", "METADATA", "parent locator at 0x210028: entries 1 and 3 have the same key", child=True)
def key_twice(image):
    image.locator.pairs.append(("relative_path", ".\\other.vhdx"))


@refused(95, "LocatorType", "UNSUPPORTED", "parent locator at 0x210028: LocatorType [0-9a-f-]{36}", bytes(16),
         bytes(range(16)), child=True)
def locator_type(image, value):
    image.locator.type = value


@refused(96, "parent_linkage missing", "METADATA", "parent locator at 0x210028: .*parent_linkage is missing",
         child=True)
def no_linkage(image):
    image.locator.drop("parent_linkage")


@refused(96, "parent_linkage is no GUID", "METADATA", "parent locator at 0x210028: .*parent_linkage at 0x", "{}", "x",
         "{" + "0" * 36 + "}", "{00000000-0000-0000-0000-00000000000}", "{00000000-0000-0000-0000-000000000000",
         "00000000-0000-0000-0000-0000000000000", "{00000000-0000-0000-0000-00000000000g}", "\U0001f4a9" * 19,
         "a" * 30000, child=True)
def bad_linkage(image, value):
    image.locator.set("parent_linkage", value)


@refused(97, "no path", "PARENT_NOT_FOUND", "parent.*[0-9a-f-]{36}", child=True, info=0)
def no_path(image):
    for key in ("relative_path", "absolute_win32_path", "volume_path"):
        image.locator.drop(key)


@refused(98, "path out of the folder", "PARENT_POLICY", "--parent-dir.*--allow-parent-path", "..\\x.vhdx",
         "..\\..\\..\\..\\..\\etc\\passwd", "sub\\..\\..\\x.vhdx", "C:\\Windows\\x.vhdx", "c:x.vhdx",
         "\\\\server\\share\\x.vhdx", "\\\\?\\UNC\\server\\share\\x.vhdx", "\\\\?\\C:\\x.vhdx",
         "\\\\?\\Volume{5e0bd954-71b2-4bff-a928-082af7ab0f8f}\\x.vhdx", "\\\\.\\PhysicalDrive0", "/etc/passwd",
         "\\etc\\passwd", "//server/share/x.vhdx", "x.vhdx:stream", "sub\\x.vhdx:$DATA", "x\x01.vhdx", "x\x1b[2J.vhdx",
         "a" * 256, "a\\" * 3000 + "x.vhdx", "\\\\?\\", "\\", "C:", "..", ".", "\\\\", "\\\\?\\UNC\\", "con:\\x",
         child=True, info=0)
def path_outside(image, value):
    os.mkdir(os.path.join(os.path.dirname(image.parent.path), "sub"))
    image.locator.set("relative_path", value)


@refused(99, "parent is no regular file", "PARENT_POLICY", "not a regular file", "FIFO", "folder", "socket", child=True,
         info=0)
def parent_no_file(image, value):
    os.unlink(image.parent.path)
    if value == "FIFO":
        os.mkfifo(image.parent.path)
    elif value == "folder":
        os.mkdir(image.parent.path)
    else:
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(image.parent.path))


@refused(100, "another disk in the parent's place", "PARENT_MISMATCH",
         "[0-9a-f-]{36}, but .*parent.vhdx has [0-9a-f-]{36}", child=True, info=0)
def parent_mismatch(image):
    return lambda built: sound(seed=99).build(built.image.parent.path)


@refused(101, "image is its own parent", "CHAIN", "leads back to .*disk.vhdx", child=True, info=0)
def own_parent(image):
    image.locator = Locator.relative(image.data_write_guid, ".\\disk.vhdx")


@refused(101, "parent is its own parent", "CHAIN", "leads back to", child=True, info=0)
def parent_own_parent(image):
    circle = Image(16 * MiB, seed=3, parent=image.parent, data_write_guid=image.parent.data_write_guid)
    circle.locator = Locator.relative(circle.data_write_guid, ".\\parent.vhdx")
    return lambda built: circle.build(built.image.parent.path)


@row(102)
def test_row_102_chain_depth(hostile, code_is, tmp_path):
    """257 images of one pattern: only GUIDs and names differ, so they are made by exchanging bytes."""
    links = [seeded_guid(number, "link") for number in range(257)]
    child = sound_child(tmp_path)
    child.locator = Locator.relative(links[0], ".\\0000.vhdx")
    template = child.build(tmp_path / "template.vhdx")
    sound(data_write_guid=links[0]).build(tmp_path / "0000.vhdx")
    for number in range(1, 257):
        locator = Locator.relative(links[number - 1], f".\\{number - 1:04}.vhdx")
        copy_linked(template, tmp_path / f"{number:04}.vhdx", locator, links[number])
    hostile("map", tmp_path / "0255.vhdx", rc=0)
    hostile.refuses(tmp_path / "0256.vhdx", "more than 256 images", info=0)
    code_is(tmp_path / "0256.vhdx", "CHAIN")


def copy_linked(template, path, locator, data_write_guid):
    """A copy of the template's tables and no more, with another locator of the same length and another DataWriteGuid."""
    pages = {page: bytearray(template.file_bytes(page, 4096)) for page in template.plan.pages(0, template.where("bat") + MiB)}
    at = template.where("item:parent_locator") % 4096
    pages[template.where("item:parent_locator") - at][at:at + len(locator.encode())] = locator.encode()
    for slot in (0x10000, 0x20000):
        pages[slot][32:48] = data_write_guid
        pages[slot] = with_checksum(pages[slot])
    with open(path, "wb") as file:
        for place, page in pages.items():
            os.pwrite(file.fileno(), page, place)
        file.truncate(template.plan.file_length)


@refused(103, "sector sizes differ in a chain", "CHAIN",
         "parent .*parent.vhdx has logical sectors of 512 bytes, its child of 4096", child=True, info=0)
def sector_sizes(image):
    other = Image(16 * MiB, seed=8, parent=image.parent, lss=4096)
    other.locator = image.locator
    return other


def long_chain(folder, length):
    built = sound(seed=1).build(folder / "0.vhdx")
    for number in range(1, length):
        built = Image(16 * MiB, seed=number + 1, parent=built).build(folder / f"{number}.vhdx")
    return built


@row(102)
def test_row_102_chain_depth_set_by_the_caller(api, tmp_path):
    path = long_chain(tmp_path, 3).path
    assert api.open_code(path, max_chain_depth=3) == 0
    assert api.open_code(path, max_chain_depth=2) == api.codes["CHAIN"]
    assert "more than 2 images" in api.message()
    assert api.open_code(path, max_chain_depth=257) == -22


@row(104)
def test_row_104_too_few_descriptors_for_a_chain(hostile, tmp_path):
    path = long_chain(tmp_path, 12).path
    hostile("map", path, rc=0)
    message = hostile("map", path, rc=1, nr_files=12).err
    assert "Too many open files" in message
    hostile("convert", path, "-", rc=1, nr_files=12)


@row(104)
def test_row_104_no_failure_keeps_a_descriptor(api, tmp_path):
    chain = long_chain(tmp_path, 4).path
    bad = [chain + ".missing", tmp_path, chain]
    os.unlink(tmp_path / "0.vhdx")
    for spoil in (lambda image: setattr(image, "signature", bytes(8)), lambda image: both(image, damage="crc"), dirty,
                  lambda image: [setattr(table, "damage", "crc") for table in image.region_tables],
                  lambda image: setattr(image, "metadata_count", 0xFFFF),
                  lambda image: image.bat_raw.update({5: image.plan().where("block:0") | FULLY_PRESENT})):
        image = sound()
        spoil(image)
        bad.append(image.build(tmp_path / f"bad{len(bad)}.vhdx").path)
    before = os.listdir("/proc/self/fd")
    for path in bad:
        assert api.open_code(path) < 0
        assert os.listdir("/proc/self/fd") == before, path
