# SPDX-License-Identifier: MIT
"""Hostile metadata (format section 11, rows 55 to 75 and 108): the table, the items, what users put there."""
import random

from hostile_support import *
from vhdxbuild import *

rows = Rows()
refused, tolerated = rows.refused, rows.tolerated
test_refused, test_tolerated = rows.tests()


@refused(55, "metadata signature", "METADATA", "metadata table at 0x200000: the signature", b"metadatA", bytes(8),
         b"regi\0\0\0\0")
def metadata_signature(image, value):
    image.metadata_signature = value


@refused(56, "metadata EntryCount", "METADATA", "metadata table at 0x200000: EntryCount", 2048, 0xFFFF)
def metadata_count(image, value):
    image.metadata_count = value


@refused(57, "item inside the table", "METADATA", "entry 5 at 0x2000c0", 1, 32, 65535)
def item_in_table(image, value):
    image.items.append(Item("mine", b"data", flags=IS_USER, declared_offset=value))


@refused(58, "item longer than 1 MiB", "METADATA", "entry 5 at 0x2000c0", MiB + 1, 0x7FFFFFFF, 0xFFFFFFFF)
def item_too_long(image, value):
    image.items.append(Item("mine", b"data", flags=IS_USER, declared_length=value))


@refused(59, "item outside of the region", "METADATA", "entry 5 at 0x2000c0", (MiB, 4), (MiB - 3, 4), (0xFFFFFFFC, 8),
         (0xFFF00000, MiB), (0x80000000, 0x100000), (65536, MiB))
def item_outside(image, value):
    image.items.append(Item("mine", b"data", flags=IS_USER, declared_offset=value[0], declared_length=value[1]))


@refused(60, "empty item with an offset", "METADATA", "entry 5 at 0x2000c0", 1, 65536, 0xFFFFFFFF)
def empty_item_with_offset(image, value):
    image.items.append(Item("mine", b"", flags=IS_USER, declared_offset=value))


@refused(61, "items overlap", "METADATA", "metadata table at 0x200000: the item at 0x10027", 0x10027)
def items_overlap(image, value):
    image.items.append(Item("mine", b"data", flags=IS_USER, declared_offset=value))


@refused(61, "item around another", "METADATA", "metadata table at 0x200000: the item at 0x", 0x10000)
def item_around(image, value):
    image.items.append(Item("mine", b"data", flags=IS_USER, declared_offset=value, declared_length=0x100))


@refused(62, "item twice", "METADATA", "metadata table at 0x200000: item [0-9a-f-]{36} is listed twice",
         "virtual_disk_size", "file_parameters")
def item_twice(image, value):
    image.items.append(Item(value))


@refused(62, "user item twice", "METADATA", "listed twice")
def user_item_twice(image):
    image.items += [Item("mine", data, flags=IS_USER) for data in (b"a", b"")]


@tolerated(62, "one name for a user and a system item")
def item_and_user_item(image):
    image.items += [Item("mine", b"a", flags=flags) for flags in (IS_USER, 0)]
    image.items.append(Item("virtual_disk_size", b"not me!!", flags=IS_USER))


@refused(63, "too many user items", "METADATA", "1025 user items", 1025)
def too_many_user_items(image, value):
    image.items += [Item(f"mine {number}", b"", flags=IS_USER) for number in range(value)]


@tolerated(63, "as many user items as may be", 1024)
def all_user_items(image, value):
    too_many_user_items(image, value)


@refused(64, "items of one kind too long together", "LIMIT", "metadata table at 0x200000: 429", IS_USER, 0)
def items_too_long(image, value):
    image.region("metadata").length = 64 * MiB
    image.items += [Item(f"mine {number}", b"", flags=value, declared_offset=(number + 1) * MiB, declared_length=MiB)
                    for number in range(41)]


@refused(65, "unknown required item", "UNSUPPORTED", "entry 5 at 0x2000c0", IS_REQUIRED, IS_REQUIRED | IS_VIRTUAL_DISK,
         IS_REQUIRED | IS_USER)
def unknown_required_item(image, value):
    image.items.append(Item("mine", b"data", flags=value))


@tolerated(65, "unknown optional item", 0, IS_VIRTUAL_DISK, IS_USER, IS_USER | IS_VIRTUAL_DISK)
def unknown_optional_item(image, value):
    image.items.append(Item("mine", b"data", flags=value))


@refused(66, "Incomplete marker", "INCOMPLETE", "entry 5 at 0x2000c0")
def incomplete(image):
    image.items.append(Item("incomplete_file"))


FIXED = {"file_parameters": 8, "virtual_disk_size": 8, "logical_sector_size": 4, "physical_sector_size": 4,
         "virtual_disk_id": 16}


@refused(67, "File Parameters length", "METADATA", "entry 0 at 0x200020", 4, 7, 9, 16)
def parameters_length(image, value):
    image.item("file_parameters").declared_length = value
    image.items[1].offset = 0x11000     # so that a longer one overlaps nothing


@refused(68, "BlockSize", "METADATA", "File Parameters.*{}|File Parameters", 0, 1, 512 * KiB, MiB - 1, 3 * MiB,
         512 * MiB, 0x80000000, 0xFFFFFFFF)
def block_size(image, value):
    image.declared["file_parameters"] = value


@refused(69, "logical sector size", "METADATA", "Logical Sector Size: ", 0, 1, 256, 513, 1024, 8192, 0x80000000)
def logical_sector_size(image, value):
    image.declared["logical_sector_size"] = value


@refused(70, "physical sector size", "METADATA", "Physical Sector Size: ", 0, 1, 1024, 8192, 0xFFFFFFFF)
def physical_sector_size(image, value):
    image.declared["physical_sector_size"] = value


@refused(71, "no virtual disk size", "METADATA", "Virtual Disk Size: 0x0 ")
def no_size(image):
    image.declared["virtual_disk_size"] = 0


@refused(72, "virtual disk size in parts of sectors", "METADATA", "Virtual Disk Size: {}", 1, 16 * MiB + 1,
         16 * MiB - 511)
def size_unaligned(image, value):
    image.declared["virtual_disk_size"] = value


@refused(72, "virtual disk size in parts of large sectors", "METADATA", "Virtual Disk Size: {}", 16 * MiB + 512)
def size_unaligned_4k(image, value):
    return sound(lss=4096, declared={"virtual_disk_size": value})


@refused(73, "virtual disk size", "METADATA", "Virtual Disk Size: {}", 64 * TiB + 512, 2 ** 63, 2 ** 64 - 512)
def size_beyond(image, value):
    image.declared["virtual_disk_size"] = value


@refused(74, "length of a fixed item", "METADATA", "metadata .*entry [0-4] at 0x2000",
         *[(name, length + step) for name, length in FIXED.items() for step in (-1, 1, 8) if name != "file_parameters"])
def item_length(image, value):
    for number, item in enumerate(image.items):
        item.offset = 0x10000 + 0x100 * number
    image.item(value[0]).declared_length = value[1]


@refused(74, "fixed item without bytes", "METADATA", "metadata .*entry [0-4] at 0x2000", *FIXED)
def item_empty(image, value):
    image.item(value).declared_length = 0
    image.item(value).declared_offset = 0


@refused(74, "fixed item missing", "METADATA", "metadata table at 0x200000: the item .* is missing", *FIXED)
def item_missing(image, value):
    image.drop_item(value)


@refused(75, "parent without locator", "METADATA", "metadata table at 0x200000: .*Parent Locator", 2, 3)
def no_locator(image, value):
    image.file_flags = value


@refused(75, "parent with an empty locator", "METADATA", "Parent Locator", child=True)
def empty_locator(image):
    image.item("parent_locator").declared_length = 0
    image.item("parent_locator").declared_offset = 0


@tolerated(75, "locator without parent", child=True)
def locator_without_parent(image):
    other = sound()
    other.items.append(Item("parent_locator", image.locator.encode()))
    return other


@tolerated(108, "content of user items", b"", b"\0", b"vhdxfile" * 100, b"\xff" * MiB, b"\x1b]0;x\x07\n" * 100)
def user_item(image, value):
    image.items.append(Item("mine", value, flags=IS_USER))


@row(108)
def test_row_108_user_item_comes_out_as_it_went_in(hostile, vhdx, tmp_path):
    image = sound()
    data = random.Random(1).randbytes(MiB)
    image.items.append(Item("mine", data, flags=IS_USER))
    built = image.build(tmp_path / "disk.vhdx")
    assert vhdx("dump", "--item", guid_text(image.item("mine").guid), built.path, rc=0).out_bytes == data
    hostile("dump", "--json", built.path, rc=0)
