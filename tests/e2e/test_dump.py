# SPDX-License-Identifier: MIT
"""vhdx dump: structures decoded, damaged ones as far as they can be."""
import os
import random

import pytest

from vhdxbuild import (AUTO, Data, Entry, GiB, Image, Item, MiB, NO_GUID, PARTIALLY_PRESENT, Patch, Pattern, TiB,
                       UNMAPPED, ZERO, Zero, guid_text, make_dirty, windows)


def dump(vhdx, path, *options, rc=0):
    return vhdx("dump", "--json", *options, path, rc=rc).json()


def disk(**keywords):
    return windows(64 * MiB, block_size=2 * MiB, stale_item_entry=False, **keywords).write(0, 5 * MiB, Pattern(1))


def errors_in(tree):
    """All texts named "error"."""
    if isinstance(tree, dict):
        return [value for name, value in tree.items() if name == "error"] + \
               [error for value in tree.values() for error in errors_in(value)]
    return [error for value in tree for error in errors_in(value)] if isinstance(tree, list) else []


def item(tree, name):
    [found] = [entry for entry in tree["metadata"]["items"] if entry["name"] == name]
    return found


# ---- sound images ------------------------------------------------------------------------------------------

def test_image_made_by_windows(vhdx, real_images):
    tree = dump(vhdx, real_images["btrfs.vhdx"])
    assert errors_in(tree) == []
    assert tree["file"] == {"length": 68 * MiB, "log-dirty": False, "log-replayed": False}
    assert tree["identifier"]["creator"] == "Microsoft Windows 10.0.15063.0"
    assert [header["sequence-number"] for header in tree["headers"]] == [18, 19]
    assert [header["current"] for header in tree["headers"]] == [False, True]
    assert [table["current"] for table in tree["region-tables"]] == [True, False]
    for table in tree["region-tables"]:
        assert table["checksum"] == 0xC66B8CAE
        assert [(region["kind"], region["offset"]) for region in table["regions"]] == [("BAT", 3 * MiB),
                                                                                      ("metadata", 2 * MiB)]
    assert item(tree, "File Parameters")["block-size"] == 32 * MiB
    assert item(tree, "Virtual Disk Size")["virtual-size"] == 1 * GiB
    assert item(tree, "Physical Sector Size")["physical-sector-size"] == 4096
    assert item(tree, "Virtual Disk ID")["virtual-disk-id"] == "d38d4f63-596a-467e-b103-506dab1b3208"
    assert tree["log"]["entries"][0]["log-guid"] == "38a97bab-d10c-42aa-8cb4-6ef35aff12c4"
    assert not any(entry["active"] for entry in tree["log"]["entries"])
    assert tree["bat"]["total-blocks"] == 32
    assert [block["block"] for block in tree["bat"]["blocks"] if block["state-name"] == "fully-present"]


def test_parts_can_be_chosen(vhdx, tmp_path):
    path = disk().build(tmp_path / "a.vhdx").path
    assert set(dump(vhdx, path)) == {"file", "identifier", "headers", "region-tables", "metadata", "log", "bat"}
    assert set(dump(vhdx, path, "--headers")) == {"file", "identifier", "headers"}
    assert set(dump(vhdx, path, "--metadata", "--log")) == {"file", "metadata", "log"}


def test_text_is_a_tree(vhdx, tmp_path):
    lines = vhdx("dump", disk().build(tmp_path / "a.vhdx").path, rc=0).out.splitlines()
    assert "identifier:" in lines and "  creator: Microsoft Windows 10.0.20348.0" in lines
    assert "  - block: 0" in [line[2:] for line in lines] and all(line.strip() for line in lines)


def test_block_range(vhdx, tmp_path):
    image = disk().set_block(9, UNMAPPED, at=AUTO).set_block(10, ZERO)
    built = image.build(tmp_path / "a.vhdx")
    blocks = dump(vhdx, built.path, "--blocks", "8-10")["bat"]["blocks"]
    assert blocks == [
        {"block": 8, "entry-offset": built.where("entry:8"), "state": 0, "state-name": "not-present", "offset": 0},
        {"block": 9, "entry-offset": built.where("entry:9"), "state": 3, "state-name": "unmapped",
         "offset": built.where("block:9")},
        {"block": 10, "entry-offset": built.where("entry:10"), "state": 2, "state-name": "zero", "offset": 0},
    ]
    assert [block["block"] for block in dump(vhdx, built.path, "--bat")["bat"]["blocks"]] == list(range(32))
    assert dump(vhdx, built.path, "--blocks", "31-99")["bat"]["blocks"][-1]["block"] == 31
    for arguments, first in ((("--block", "32"), 32), (("--blocks", "99999999-100000000"), 99999999)):
        bat = dump(vhdx, built.path, *arguments)["bat"]
        assert bat["total-blocks"] == 32 and bat["blocks"] == []
        assert bat["error"] == f"block {first} is beyond the end of the disk, which has 32 blocks"


def test_long_list_joins_what_is_alike(vhdx, tmp_path):
    image = Image(64 * TiB, block_size=1 * MiB, stale_item_entry=False)
    image.set_block(5000)
    image.set_block((1 << 26) - 1, at=TiB)
    image.set_block((1 << 26) - 2, raw=TiB | 6)
    tree = dump(vhdx, image.build(tmp_path / "a.vhdx").path, "--bat")
    blocks = [(block["block"], block.get("blocks", 1), block["state"]) for block in tree["bat"]["blocks"]]
    assert blocks == [(0, 5000, 0), (5000, 1, 6), (5001, (1 << 26) - 5003, 0), ((1 << 26) - 2, 1, 6),
                      ((1 << 26) - 1, 1, 6)]


def test_child(vhdx, tmp_path):
    parent = disk().build(tmp_path / "parent.vhdx")
    child = disk(seed=2, parent=parent).set_block(9, PARTIALLY_PRESENT, present=[(0, 8)])
    built = child.build(tmp_path / "child.vhdx")
    os.unlink(parent.path)      # nobody looks for it
    tree = dump(vhdx, built.path)
    assert errors_in(tree) == []
    pairs = {pair["key"]: pair["value"] for pair in item(tree, "Parent Locator")["pairs"]}
    assert pairs["parent_linkage"] == "{" + guid_text(parent.data_write_guid) + "}"
    assert pairs["relative_path"] == ".\\parent.vhdx"
    [bitmap] = tree["bat"]["bitmaps"]
    assert bitmap["chunk"] == 0 and bitmap["state-name"] == "present"
    assert bitmap["offset"] == built.where("bitmap:0") and bitmap["entry-offset"] == built.where("sbentry:0")
    assert tree["bat"]["blocks"][9]["state-name"] == "partially-present"


# ---- log ---------------------------------------------------------------------------------------------------

def test_dirty_log(vhdx, tmp_path):
    image = disk()
    image.log.entries = [Entry([Data("bat")], at=0x10000), Entry(at=0x80000)]       # of another session
    built = make_dirty(image, ["bat"], closing=True, start=0x20000).build(tmp_path / "a.vhdx")
    tree = dump(vhdx, built.path)
    assert errors_in(tree) == [] and tree["file"]["log-dirty"] and tree["file"]["log-replayed"]

    log = tree["log"]
    assert [entry["active"] for entry in log["entries"]] == [False, False, True, True, False]
    assert [entry["log-offset"] for entry in log["entries"]] == [0x10000, 0x20000, 0x21000, 0x23000, 0x80000]
    head = log["entries"][3]
    assert head["log-guid"] == log["log-guid"] == guid_text(built.image.log.guid)
    assert log["entries"][4]["log-guid"] == log["entries"][0]["log-guid"] != log["log-guid"]
    [descriptor] = log["entries"][2]["descriptors"]
    assert descriptor["kind"] == "data" and descriptor["offset"] == built.where("bat")
    assert log["replay"]["head"] == head["log-offset"] and log["replay"]["tail"] == head["tail"]
    [change] = log["replay"]["changes"]
    assert change["offset"] == built.where("bat") and change["data-sector"] == descriptor["data-sector"]


def test_raw_shows_what_is_on_disk(vhdx, tmp_path):
    built = make_dirty(disk(), ["bat"]).build(tmp_path / "a.vhdx")
    assert dump(vhdx, built.path)["bat"]["blocks"][0]["state"] == 6
    tree = dump(vhdx, built.path, "--raw")
    assert tree["bat"]["blocks"][0]["state"] == 0 and not tree["file"]["log-replayed"]


def test_long_entry_is_cut(vhdx, tmp_path):
    image = disk()
    image.log.guid = bytes(range(16))
    image.log.entries = [Entry([Zero("bat", 4096)] * 1000)]
    entry = dump(vhdx, image.build(tmp_path / "a.vhdx").path, "--log")["log"]["entries"][0]
    assert entry["descriptor-count"] == 1000
    assert len(entry["descriptors"]) + entry["descriptors-left-out"] == 1000


def test_long_log_is_cut(vhdx, tmp_path):
    image = disk()
    image.log.length = 32 * MiB
    make_dirty(image, ["bat"])
    first = image.log.entries[0]
    places = [Zero(64 * MiB + 8192 * number, 4096) for number in range(126 * 40)]
    image.log.entries += [Entry(places[126 * number:][:126], tail=first, last=128 * MiB) for number in range(40)]
    image.log.entries += [Entry(tail=first, last=128 * MiB) for _ in range(4100)]
    log = dump(vhdx, image.build(tmp_path / "a.vhdx").path, "--log")["log"]
    assert len(log["entries"]) == 4096
    assert log["entries-left-out"] == len(image.log.entries) - 4096
    assert len(log["replay"]["changes"]) == 4096
    assert log["replay"]["changes-left-out"] >= len(places) - 4096


def test_log_that_cannot_be_replayed(vhdx, tmp_path):
    image = disk()
    image.log.guid = bytes(range(16))
    image.log.entries = [Entry([Zero("header1", 4096)])]
    tree = dump(vhdx, image.build(tmp_path / "a.vhdx").path)
    assert len(errors_in(tree)) == 3        # the file's, the descriptor's, the replay's
    assert "error" in tree["log"]["entries"][0]["descriptors"][0]
    assert tree["bat"]["blocks"][0]["state"] == 6


# ---- damage ------------------------------------------------------------------------------------------------

def test_damaged_copies_are_shown(vhdx, tmp_path):
    image = disk()
    image.headers[1].damage = "crc"
    image.region_tables[0].damage = "crc"
    tree = dump(vhdx, image.build(tmp_path / "a.vhdx").path)
    assert [header["valid"] for header in tree["headers"]] == [True, False]
    assert tree["headers"][1]["sequence-number"] == 9
    assert [table["valid"] for table in tree["region-tables"]] == [False, True]
    assert [table["current"] for table in tree["region-tables"]] == [False, True]
    assert tree["bat"]["blocks"][0]["state"] == 6


def test_everything_is_reported_in_its_place(vhdx, tmp_path):
    image = disk().set_block(3, raw=4).set_block(4, raw=6 | 1 * TiB)
    image.item("virtual_disk_id").declared_length = 5
    image.items.append(Item("other", b"data", flags=4))
    tree = dump(vhdx, image.build(tmp_path / "a.vhdx").path)
    assert "Length is 5" in item(tree, "Virtual Disk ID")["error"]
    assert "required" in item(tree, "unknown")["error"]
    assert "error" in tree["bat"] and "blocks" not in tree["bat"]      # no geometry: one of its items is bad


def test_bad_entries(vhdx, tmp_path):
    image = disk().set_block(3, raw=4).set_block(4, raw=6 | 1 * TiB)
    blocks = dump(vhdx, image.build(tmp_path / "a.vhdx").path)["bat"]["blocks"]
    assert [block["block"] for block in blocks if "error" in block] == [3, 4]
    assert blocks[3]["state-name"] == "reserved-4"


@pytest.mark.parametrize("damage, parts", [
    (lambda image: [setattr(header, "damage", "zero") for header in image.headers], {"file", "log"}),
    (lambda image: [setattr(table, "damage", "junk") for table in image.region_tables], {"metadata", "bat"}),
    (lambda image: setattr(image, "metadata_signature", b"nothing!"), {"metadata", "bat"}),
    (lambda image: setattr(image, "file_length", 0x30000), {"metadata", "bat", "log", "region-tables"}),
    (lambda image: setattr(image, "file_length", 600), {"file", "metadata", "bat", "log", "headers", "region-tables"}),
], ids=["headers", "region-tables", "metadata", "cut-at-192K", "cut-at-600"])
def test_missing_structures(vhdx, tmp_path, damage, parts):
    image = disk()
    damage(image)
    tree = dump(vhdx, image.build(tmp_path / "a.vhdx").path)
    assert {name for name, part in tree.items() if errors_in(part)} == parts


def test_signature_gone(vhdx, tmp_path):
    tree = dump(vhdx, disk(signature=b"VHDXFILE").build(tmp_path / "a.vhdx").path)
    assert tree["identifier"]["signature-valid"] is False and errors_in(tree) == []


def test_no_vhdx(vhdx, tmp_path):
    (tmp_path / "raw").write_bytes(Pattern(1).read(0, 2 * MiB))
    result = vhdx("dump", tmp_path / "raw", rc=1)
    assert result.out == "" and len(result.err.splitlines()) == 1


def test_any_garbage_gives_a_document(vhdx, tmp_path):
    """Only the identifier's signature is sure."""
    parent = disk().build(tmp_path / "parent.vhdx")
    image = disk(seed=2, parent=parent).set_block(9, PARTIALLY_PRESENT, present=[(0, 8)])
    built = make_dirty(image, ["bat", "bitmap"]).build(tmp_path / "a.vhdx")
    random.seed(30)
    areas = [(8, 0x50000 - 8), (MiB, 0xA000), (built.where("metadata"), 0x10400), (built.where("bat"), 0x200)]
    with open(built.path, "r+b", buffering=0) as file:
        for _ in range(60):
            changes = []
            for _ in range(random.choice((1, 1, 3, 30))):
                start, length = random.choice(areas)
                at = start + random.randrange(length) // random.choice((1, 64, 512))
                changes.append((at, os.pread(file.fileno(), 8, at)))
                os.pwrite(file.fileno(), random.randbytes(random.choice((1, 2, 8))), at)
            for option in ((), ("--raw", "--bat")):
                tree = dump(vhdx, built.path, *option)
                assert tree["file"]["length"] == os.path.getsize(built.path)
            for at, old in reversed(changes):
                os.pwrite(file.fileno(), old, at)
    assert errors_in(dump(vhdx, built.path)) == [] and built.image.log.guid != NO_GUID


def test_patched_checksum_shows_absurd_values(vhdx, tmp_path):
    image = disk()
    image.patches += [Patch(("header2", 68), b"\xff" * 12, repair=True),
                      Patch(("region1", 8), b"\xff\x07\0\0", repair=True),
                      Patch(("metadata", 10), b"\xff\x07")]
    tree = dump(vhdx, image.build(tmp_path / "a.vhdx").path)
    assert tree["region-tables"][0]["entry-count"] == 2047
    assert len(tree["region-tables"][0]["regions"]) == 2047
    assert len(tree["metadata"]["items"]) == 2047
    assert "error" in tree["log"]


def test_many_entries_for_one_item_show_it_once(vhdx, tmp_path):
    """The table has room for thousands, and a parent locator may be large."""
    image = disk()
    plan = image.plan()
    for name, length in (("file_parameters", 8), ("virtual_disk_id", 16)):
        for _ in range(700):
            image.items.append(Item(name, b"", declared_offset=plan.where(f"item:{name}") - plan.where("metadata"),
                                    declared_length=length))
    out = vhdx("dump", image.build(tmp_path / "disk.vhdx").path, rc=0).out
    assert out.count("not decoded") == 1400
    assert out.count("has-parent") <= 1 and out.count("virtual-disk-id") <= 1
