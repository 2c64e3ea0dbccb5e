# SPDX-License-Identifier: MIT
"""vhdx check: one damage at a time, and exactly the findings that format section 12 asks for.

Each function below takes a sound image (or child of a sound parent), which has no findings at all, and breaks it;
@breaks says what must be found then, as {rule: severity}, or {rule: {severities}} where there are several.
"""
import struct

import pytest

from vhdxbuild import (AUTO, IS_REQUIRED, IS_USER, NO_GUID, PARTIALLY_PRESENT, UNMAPPED, ZERO, Bitmap, Data, Entry,
                       GiB, Header, Image, Item, KiB, Locator, MiB, Patch, Pattern, Region, TiB, Zero, braced, guid,
                       make_dirty)

SAFE = {5, 7, 8, 12, 13, 16, 19, 20, 22, 23, 24, 31, 34, 36, 38, 51, 60, 64, 67, 68, 69, 70, 72, 74}
DISK, CHILD = [], []


def breaks(expected, *, rc=None, usable=None, child=False, options=()):
    """rc and usable: what follows from the findings unless said otherwise."""
    def register(function):
        (CHILD if child else DISK).append(pytest.param(function, expected, rc, usable, options, id=function.__name__))
        return function
    return register


def sound(**keywords):
    fields = {"block_size": 2 * MiB, "seed": 1, "stale_item_entry": False, **keywords}
    image = Image(fields.pop("size", 64 * MiB), **fields)
    if image.kind == "dynamic":
        image.write(0, 5 * MiB, Pattern(1))     # blocks 0, 1, 2
        image.set_block(9, data=Pattern(2))
    return image


def findings_of(document):
    return {(finding["rule"], finding["severity"]) for finding in document["findings"]}


def flat(expected):
    return {(rule, severity) for rule, severities in expected.items()
            for severity in ([severities] if isinstance(severities, str) else severities)}


def run_check(vhdx, path, expected, rc, usable, options):
    wanted = flat(expected)
    severities = {severity for _, severity in wanted}
    if usable is None:
        usable = "error" not in severities
    if rc is None:
        rc = 2 if not usable else 3 if "leak" in severities else 0
    result = vhdx("check", "--json", *options, path, rc=rc)
    document = result.json()
    assert findings_of(document) == wanted, result.describe()
    assert document["usable"] is usable
    for finding in document["findings"]:
        assert "\n" not in finding["message"] and len(finding["message"]) > 20
        if finding["severity"] != "error" and finding["rule"] in SAFE:
            assert finding["repairable"], finding
        if finding["severity"] == "error":
            assert not finding["repairable"], finding
    # What check calls usable opens, and what has errors in its structures does not.
    if usable:
        vhdx("info", *options, path, rc=0)
    return document


@pytest.mark.parametrize("damage, expected, rc, usable, options", DISK)
def test_disk(vhdx, tmp_path, damage, expected, rc, usable, options):
    image = sound()
    image = damage(image) or image
    run_check(vhdx, image.build(tmp_path / "disk.vhdx").path, expected, rc, usable, options)


@pytest.mark.parametrize("damage, expected, rc, usable, options", CHILD)
def test_child(vhdx, tmp_path, damage, expected, rc, usable, options):
    parent = sound(seed=7).build(tmp_path / "parent.vhdx")
    child = sound(seed=8, parent=parent)
    child.write(3 * MiB, 64 * KiB, Pattern(3))              # part of block 1
    child = damage(child) or child
    run_check(vhdx, child.build(tmp_path / "child.vhdx").path, expected, rc, usable, options)


def both_headers(image, **fields):
    for header in image.headers:
        for name, value in fields.items():
            setattr(header, name, value)


# ---- identifier and headers --------------------------------------------------------------------------------

@breaks({})
def nothing(image):
    pass


@breaks({1: "error"})
def signature_gone(image):
    image.signature = b"VHDXfile"


@breaks({2: "info"})
def creator_is_no_text(image):
    image.creator = b"A\0\x00\xd8B\0"


@breaks({3: "info"})
def identifier_reserved(image):
    image.patches.append(Patch(60000, b"x"))


@breaks({4: "error"})
def no_header(image):
    both_headers(image, damage="crc")


@breaks({5: "warning"})
def older_header_torn(image):
    image.headers[0].damage = "torn"


@breaks({5: "warning"})
def newer_header_without_signature(image):
    image.headers[1].damage = "signature"


@breaks({6: "warning"})
def headers_identical(image):
    image.headers = [Header(1), Header(1)]


@breaks({6: "error"})
def headers_differ_with_one_number(image):
    image.headers = [Header(1), Header(1, file_write_guid=bytes(range(16)))]


@breaks({7: "info"})
def headers_differ(image):
    image.headers[0].file_write_guid = bytes(range(16))


@breaks({7: "warning"})
def headers_differ_in_data_write_guid(image):
    image.headers[0].data_write_guid = bytes(range(16))


@breaks({8: "info"})
def header_reserved(image):
    image.headers[1].reserved = b"\0\0\1"


@breaks({9: "error"})
def version_2(image):
    both_headers(image, version=2)


@breaks({10: "warning"})
def log_version_of_clean_log(image):
    both_headers(image, log_version=1)


@breaks({10: "error", 13: "info"})
def log_version_of_dirty_log(image):
    both_headers(image, log_version=1)
    make_dirty(image, opening=False)


@breaks({11: "warning", 73: "info"})     # the log's own MiB is nobody's now
def clean_log_unaligned(image):
    both_headers(image, log_offset=MiB + 4096)


@breaks({11: "warning", 73: "info"})     # the log's own MiB is nobody's now
def clean_log_behind_the_end(image):
    both_headers(image, log_offset=1 * GiB)


@breaks({11: "warning", 73: "info"}, usable=False)
def clean_log_of_2_gib(image):
    both_headers(image, log_length=2 * GiB)


@breaks({11: "error", 13: "info"})
def dirty_log_behind_the_end(image):
    both_headers(image, log_offset=1 * GiB, log_guid=bytes(range(16)))


@breaks({11: "error", 13: "info"})
def dirty_log_of_no_length(image):
    both_headers(image, log_length=0, log_guid=bytes(range(16)))


@breaks({12: "info"})
def no_log(image):
    image.log.length = 0
    both_headers(image, log_offset=0)


@breaks({78: "warning"})
def sequence_number_near_its_end(image):
    image.headers = [Header(2**64 - 2**31), Header(2**64 - 2**31 + 1)]


@breaks({79: "warning"})
def write_guids_zero(image):
    image.file_write_guid = image.data_write_guid = NO_GUID


# ---- log ---------------------------------------------------------------------------------------------------

@breaks({13: "info"})
def dirty(image):
    make_dirty(image, ["bat", "metadata", "regions"], start=MiB - 8192, supersede=True)


@breaks({13: "info", 14: "error"})
def dirty_without_entries(image):
    image.log.guid = bytes(range(16))


@breaks({13: "info", 14: "error"})
def dirty_with_broken_head(image):
    make_dirty(image, closing=True)
    image.log.entries[-1].tail = 0x80000


@breaks({13: "info", 15: "error"})
def cut_below_flushed_length(image):
    make_dirty(image, opening=False)
    image.log.entries[-1].flushed = 1 * GiB


@breaks({13: "info", 16: "warning"})
def cut_below_last_length(image):
    make_dirty(image)
    plan = image.plan()
    image.file_length = plan.structures_end - MiB
    for entry in image.log.entries:
        entry.flushed, entry.last = MiB, plan.structures_end


@breaks({13: "info", 17: "info"})
def log_reserved(image):
    make_dirty(image, opening=False)
    image.log.entries[-1].reserved = 1
    image.log.entries[-1].flushed = MiB + 512


@breaks({13: "info", 18: "error"})
def log_targets_header(image):
    image.log.guid = bytes(range(16))
    image.log.entries = [Entry([Zero("header1", 4096)])]


@breaks({13: "info", 18: "error"})
def log_targets_itself(image):
    image.log.guid = bytes(range(16))
    image.log.entries = [Entry([Data(("log", 0x8000), page=bytes(4096))])]


@breaks({13: "info", 18: "error"})
def log_targets_behind_everything(image):
    image.log.guid = bytes(range(16))
    image.log.entries = [Entry([Zero(1 * TiB, 4096)])]


@breaks({13: "info", 16: "warning", 18: "error"})
def log_promises_absurd_length(image):
    image.log.guid = bytes(range(16))
    image.log.entries = [Entry(last=1 << 62, flushed=MiB)]


@breaks({13: "info", 19: "warning"})
def older_tail_inside_an_entry(image):
    image.log.guid = bytes(range(16))
    first = Entry([Data("bat")])
    image.log.entries = [first, Entry(tail=4096), Entry(tail=first)]


# ---- region tables -----------------------------------------------------------------------------------------

@breaks({20: "warning"})
def region_table_1(image):
    image.region_tables[0].damage = "crc"


@breaks({21: "error"})
def region_tables(image):
    image.region_tables[0].damage = "crc"
    image.region_tables[1].count = 2048


@breaks({21: "error"})
def no_bat_region(image):
    image.region("bat").listed = False


@breaks({21: "error"})
def no_metadata_region(image):
    image.region("metadata").listed = False


@breaks({22: "warning"})
def region_table_2(image):
    image.region_tables[1].damage = "torn"


@breaks({22: "warning"})
def region_tables_differ(image):
    image.region_tables[1].behind = b"x"


@breaks({23: "warning"})
def region_reserved(image):
    for table in image.region_tables:
        table.reserved = 5
    image.region("bat").required = 3


@breaks({24: "info"})
def regions_not_required(image):
    image.region("bat").required = 0


@breaks({25: "error", 29: "info"})
def region_listed_twice(image):
    image.regions.append(Region("other", required=0))
    image.regions.append(Region("again", guid=image.regions[-1].guid, required=0))


@breaks({26: "error"})
def region_unaligned(image):
    image.region("bat").declared_at = 3 * MiB + 4096


@breaks({26: "error"})
def region_of_no_length(image):
    image.region("metadata").declared_length = 0


@breaks({26: "error"})
def region_in_header_area(image):
    image.region("bat").declared_at = 0


@breaks({26: "error"})
def region_behind_the_end(image):
    image.region("bat").declared_at = 1 * TiB


@breaks({26: "error"})
def region_behind_all_files(image):
    image.region("bat").declared_at = 2**64 - MiB


@breaks({27: "error", 29: "info", 73: "info"})
def regions_overlap(image):
    image.regions.append(Region("other", required=0, declared_at=image.plan().where("metadata")))


@breaks({27: "error", 73: "info"})
def log_overlaps_region(image):
    both_headers(image, log_offset=image.plan().where("metadata"))


@breaks({28: "error"})
def region_unknown_required(image):
    image.regions.append(Region("other", required=1))


@breaks({29: "info"})
def region_unknown(image):
    image.regions.append(Region("other", required=0))


# ---- metadata ----------------------------------------------------------------------------------------------

@breaks({30: "error"})
def metadata_signature(image):
    image.metadata_signature = b"metadatA"


@breaks({30: "error"})
def metadata_count(image):
    image.metadata_count = 2048


@breaks({31: "warning"})
def metadata_reserved(image):
    image.patches.append(Patch(("metadata", 12), b"x"))


@breaks({31: "warning"})
def item_reserved(image):
    image.item("virtual_disk_id").reserved = 1


@breaks({32: "error"})
def item_outside(image):
    image.items.append(Item("mine", b"data", declared_offset=MiB - 1))


@breaks({32: "error"})
def items_overlap(image):
    image.items.append(Item("mine", b"data", declared_offset=0x10003))


@breaks({32: "error"})
def item_listed_twice(image):
    image.items.append(Item("mine", b"data"))
    image.items.append(Item("mine too", b"data", guid=image.items[-1].guid))


@breaks({32: "error"})
def item_in_the_table(image):
    image.items.append(Item("mine", b"data", declared_offset=4096))


@breaks({33: "error"})
def item_too_long(image):
    image.region("metadata").length = 4 * MiB
    image.items.append(Item("mine", b"data", declared_length=MiB + 1))


@breaks({33: "error"})
def too_many_user_items(image):
    image.items += [Item(f"mine {i}", b"") for i in range(1025)]


@breaks({33: "warning"}, usable=False)
def too_many_bytes_of_items(image):
    image.region("metadata").length = 64 * MiB
    image.items += [Item(f"mine {i}", b"", declared_offset=MiB * (i + 1), declared_length=MiB) for i in range(41)]


@breaks({34: "warning"}, usable=False)
def user_item_required(image):
    image.items.append(Item("mine", b"data", flags=IS_USER | IS_REQUIRED))


@breaks({35: "error"})
def item_missing(image):
    image.drop_item("virtual_disk_id")


@breaks({35: "error"})
def item_of_wrong_length(image):
    image.item("virtual_disk_size").declared_length = 4


@breaks({36: "warning"})
def item_flags(image):
    image.item("virtual_disk_size").flags = IS_REQUIRED


@breaks({37: "error"})
def block_size_no_power_of_two(image):
    image.declared["file_parameters"] = 3 * MiB


@breaks({37: "error"})
def block_size_zero(image):
    image.declared["file_parameters"] = 0


@breaks({38: "warning"})
def parameters_reserved(image):
    image.file_flags = 0x80


@breaks({39: "error"})
def logical_sector_size(image):
    image.declared["logical_sector_size"] = 520


@breaks({39: "error"})
def physical_sector_size(image):
    image.declared["physical_sector_size"] = 0


@breaks({40: "error"})
def virtual_size_zero(image):
    image.declared["virtual_disk_size"] = 0


@breaks({40: "error"})
def virtual_size_above_64_tib(image):
    image.declared["virtual_disk_size"] = 64 * TiB + 512


@breaks({40: "error"})
def virtual_size_no_multiple(image):
    image.declared["virtual_disk_size"] = 64 * MiB - 1


@breaks({40: "error"})
def virtual_size_no_multiple_of_4096(image):
    big = sound(lss=4096)
    big.declared["virtual_disk_size"] = 64 * MiB - 512
    return big


@breaks({41: "warning"})
def disk_id_zero(image):
    image.disk_id = NO_GUID


@breaks({42: "error"})
def item_unknown_required(image):
    image.items.append(Item("other", b"data", flags=IS_REQUIRED))


@breaks({42: "error"})
def image_unfinished(image):
    image.items.append(Item("incomplete_file", b""))


@breaks({43: "info"})
def item_unknown(image):
    image.items.append(Item("other", b"data", flags=0))


@breaks({})
def item_of_the_user(image):
    image.items.append(Item("mine", b"data"))


@breaks({44: "info"})
def stale_entry(image):
    image.stale_item_entry = True


# ---- parent locator ----------------------------------------------------------------------------------------

@breaks({}, child=True)
def child_nothing(child):
    pass


@breaks({45: "error"}, child=True)
def locator_missing(child):
    child.drop_item("parent_locator")


@breaks({45: "warning"})
def locator_superfluous(image):
    image.items.append(Item("parent_locator", b"anything"))


def locator(child, **keywords):
    return Locator.windows(child.parent.data_write_guid, "C:\\x\\parent.vhdx", ".\\parent.vhdx",
                           "\\\\?\\Volume{5e0bd954-71b2-4bff-a928-082af7ab0f8f}\\parent.vhdx", **keywords)


@breaks({46: "error"}, child=True)
def locator_cut(child):
    child.locator = Locator(raw=locator(child).encode()[:100])


@breaks({46: "error"}, child=True)
def locator_of_no_text(child):
    child.locator = locator(child).set("relative_path", b"\x00\xd8")


@breaks({46: "error"}, child=True)
def locator_of_300_pairs(child):
    child.locator = Locator([(f"k{i}", "v") for i in range(300)])


@breaks({47: "error"}, child=True)
def locator_type(child):
    child.locator = locator(child, type=bytes(range(16)))


@breaks({48: "error"}, child=True)
def linkage_missing(child):
    child.locator = locator(child).drop("parent_linkage")


@breaks({48: "error"}, child=True)
def linkage_no_guid(child):
    child.locator = locator(child).set("parent_linkage", "{nobody}")


@breaks({49: "info"}, child=True)
def linkage2_no_guid(child):
    child.locator = locator(child).set("parent_linkage2", "nothing")


@breaks({49: "warning"}, child=True)
def linkage2_set(child):
    child.locator = locator(child).set("parent_linkage2", braced(bytes(range(16))))


@breaks({50: "error", 52: "error"}, child=True)
def no_path(child):
    child.locator = locator(child).drop("relative_path").drop("volume_path").drop("absolute_win32_path")


# ---- BAT ---------------------------------------------------------------------------------------------------

@breaks({57: "error"})
def bat_too_small(image):
    image.declared["virtual_disk_size"] = 1 * TiB           # 512 Ki blocks, and a BAT of 1 MiB


@breaks({58: "error"})
def bat_reserved_bits(image):
    image.patches.append(Patch(("entry:9", 1), b"\x10"))


@breaks({59: "error"})
@breaks({59: "error"}, child=True)
def reserved_state(image):
    image.set_block(20, raw=4)


@breaks({59: "error"})
def partially_present_without_parent(image):
    image.set_block(20, PARTIALLY_PRESENT)


@breaks({60: "warning"})
def zero_block_with_offset(image):
    image.set_block(20, raw=ZERO | 700 * MiB)


@breaks({61: "error"})
def present_block_without_offset(image):
    image.set_block(20, raw=6)


@breaks({62: "error"})
def block_behind_the_end(image):
    image.set_block(20, raw=6 | 1 * TiB)


@breaks({62: "error"})
def block_behind_all_files(image):
    image.set_block(20, raw=6 | 0xFFFFFFFFFFF00000)


@breaks({62: "error"})
def anchor_behind_the_end(image):
    image.set_block(20, raw=UNMAPPED | 1 * TiB)


@breaks({62: "warning"})
def last_block_cut_short(image):
    short = sound(size=63 * MiB)
    short.set_block(31, data=Pattern(5))
    short.file_length = short.plan().structures_end - MiB
    return short


@breaks({63: "error"})
def two_blocks_overlap(image):
    image.patches.append(Patch("entry:20", struct.pack("<Q", 6 | image.plan().where("block:9") + MiB)))
    image.trailing = MiB


@breaks({63: "error", 76: "error"})
def neighbours_in_one_place(image):
    image.patches.append(Patch("entry:10", struct.pack("<Q", 6 | image.plan().where("block:9"))))


def lay_block_over(image, reference):
    image.patches.append(Patch("entry:20", struct.pack("<Q", 6 | image.plan().where(reference))))


@breaks({63: "error"})
def block_over_the_metadata(image):
    lay_block_over(image, "metadata")


@breaks({63: "error"})
def block_over_the_log(image):
    lay_block_over(image, "log")


@breaks({63: "error"})
def anchor_over_a_block(image):
    image.patches.append(Patch("entry:20", struct.pack("<Q", UNMAPPED | image.plan().where("block:9"))))


@breaks({})
def anchors(image):
    image.set_block(20, UNMAPPED, at=AUTO, junk=Pattern(4))


def bitmap_slot(image, raw):
    """A disk of two chunks, so that there is a bitmap's entry between payload entries."""
    big = sound(size=5 * GiB)
    big.bat_raw[big.geometry.bitmap_index(0)] = raw
    return big


@breaks({64: "warning", 76: "warning"})
def bitmap_entry_from_qemu(image):
    return bitmap_slot(image, ZERO)


@breaks({64: "warning"})
def bitmap_entry_of_no_use(image):
    return bitmap_slot(image, 1 << 20)


@breaks({65: "error"}, child=True)
def bitmap_state(child):
    child.bat_raw[child.geometry.bitmap_index(0)] = child.plan().where("bitmap:0") | 5


@breaks({65: "error"}, child=True)
def bitmap_behind_the_end(child):
    child.bat_raw[child.geometry.bitmap_index(0)] = 1 * TiB | 6


@breaks({63: "error", 68: "info"}, child=True)
def bitmap_over_a_block(child):
    child.bat_raw[child.geometry.bitmap_index(0)] = child.plan().where("block:1") | 6
    child.write(3 * MiB, 2 * MiB, b"\xff" * (2 * MiB))      # what is then read as bits is all ones


@breaks({66: "error", 73: "info"}, child=True)
def bitmap_missing(child):
    child.bat_raw[child.geometry.bitmap_index(0)] = 0


@breaks({67: "info"}, child=True)
def bitmap_idle(child):
    child.blocks.clear()
    child.bitmaps[0] = Bitmap()


@breaks({68: "info"}, child=True)
def bits_all_set(child):
    child.set_block(4, PARTIALLY_PRESENT, present="all", data=Pattern(4))


@breaks({68: "info"}, child=True)
def bits_none_set(child):
    child.set_block(4, PARTIALLY_PRESENT, present="none")


@breaks({68: "info"}, child=True)
def bits_all_set_up_to_the_end_of_the_disk(child):
    return short_child(child, present="all")


@breaks({69: "info"}, child=True)
def bits_behind_the_end_of_the_disk(child):
    return short_child(child, present=[(8, 4088)])


def short_child(child, present):
    parent = sound(size=63 * MiB, seed=7).build(child.parent.path)
    short = sound(size=63 * MiB, seed=8, parent=parent)
    return short.set_block(31, PARTIALLY_PRESENT, present=present, data=Pattern(4))


@breaks({70: "info"})
def padding_behind_the_table(image):
    image.bat_raw[image.geometry.entries + 700] = 6 | 4 * MiB


@breaks({70: "warning"}, child=True)
def padding_in_the_last_chunk(child):
    child.bat_raw[child.geometry.blocks + 3] = 6 | 4 * MiB


@breaks({71: "warning", 73: "info"})
def fixed_with_a_hole(image):
    fixed = sound(kind="fixed")
    plan = fixed.plan()
    fixed.patches.append(Patch("entry:5", bytes(8)))
    assert plan.where("block:5")
    return fixed


@breaks({71: "warning", 72: "warning"})
def fixed_and_too_short(image):
    fixed = sound(kind="fixed", default_state=ZERO)
    return fixed


@breaks({})
def fixed_and_sound(image):
    return sound(kind="fixed")


# ---- space -------------------------------------------------------------------------------------------------

@breaks({73: "info"})
def hole_between_blocks(image):
    image.block_gap = MiB
    image.file_length = image.plan().where("block:9") + 2 * MiB


@breaks({73: "leak"})
def entry_of_first_block_dropped(image):
    big = Image(64 * MiB, block_size=8 * MiB, stale_item_entry=False)
    big.write(0, 16 * MiB, Pattern(1))
    big.patches.append(Patch("entry:0", bytes(8)))
    return big


@breaks({73: "leak", 75: "info"})
def entry_of_last_block_dropped(image):
    image.patches.append(Patch("entry:9", bytes(8)))


@breaks({73: "leak", 75: "info"})
def entry_of_the_only_block_dropped(image):
    one = Image(64 * MiB, block_size=8 * MiB, stale_item_entry=False)
    one.write(0, 8 * MiB, Pattern(1))
    one.patches.append(Patch("entry:0", bytes(8)))
    return one


@breaks({73: "info"})
def gap_that_qemu_leaves(image):
    image.payload_gap = 4 * MiB


@breaks({74: "info", 75: "info"})
def trailing_sector(image):
    image.trailing = 512


def test_every_rule_has_a_test():
    """But those that cannot be broken (77) or need files around the image (51 to 56, test_check_chain.py)."""
    tested = {rule for case in DISK + CHILD for rule in case.values[1]}
    assert set(range(1, 80)) - tested == {51, 53, 54, 55, 56, 77}
