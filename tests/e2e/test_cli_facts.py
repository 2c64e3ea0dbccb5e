# SPDX-License-Identifier: MIT
"""vhdx info, map, dump and check: what they say of images, sound and damaged, to people and to programs."""
import json
import os
import re
import resource
import struct
import subprocess

import pytest

from cli_support import chain, dynamic, orphan, overlapping, raw_copy, run_on_terminal
from vhdxbuild import Patch, FULLY_PRESENT, ZERO, Image, Item, MiB, Pattern, TiB, guid_text, windows

GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


# ---- info

def settled(path):
    """Path, when the file system has given the file all the space that it will: not before what is written lies on disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return path


def test_info_json_of_a_dynamic_image(vhdx, dynamic):
    settled(dynamic.path)
    info = vhdx("info", "--json", dynamic.path, rc=0).json()
    assert list(info) == ["filename", "format", "virtual-size", "actual-size", "dirty-flag", "format-specific"]
    assert (info["filename"], info["format"]) == (dynamic.path, "vhdx")
    assert (info["virtual-size"], info["dirty-flag"]) == (64 * MiB, False)
    assert info["actual-size"] == os.stat(dynamic.path).st_blocks * 512
    assert info["format-specific"]["type"] == "vhdx"
    data = info["format-specific"]["data"]
    assert data["subformat"] == "dynamic"
    assert (data["block-size"], data["log-size"]) == (2 * MiB, MiB)
    assert (data["logical-sector-size"], data["physical-sector-size"]) == (512, 4096)
    assert data["file-size"] == os.path.getsize(dynamic.path)
    assert data["creator"] == dynamic.image.creator
    assert data["blocks"] == {"not-present": 29, "undefined": 0, "zero": 1, "unmapped": 0, "fully-present": 2,
                              "partially-present": 0}
    for name in ("disk-id", "file-write-guid", "data-write-guid"):
        assert GUID.fullmatch(data[name])
    assert data["data-write-guid"] == guid_text(dynamic.data_write_guid)
    assert "parent-locator" not in data


def test_output_json_is_json(vhdx, dynamic):
    assert vhdx("info", "--output=json", dynamic.path).out == vhdx("info", "--json", dynamic.path).out
    assert vhdx("info", "--output", "human", dynamic.path).out == vhdx("info", dynamic.path).out


def test_info_for_people(vhdx, dynamic):
    out = vhdx("info", dynamic.path, rc=0).out
    fields = dict(re.split(r":\s+", line, maxsplit=1) for line in out.splitlines())
    assert fields["image"] == dynamic.path
    assert fields["format"] == "vhdx, dynamic"
    assert fields["virtual size"] == "64 MiB (67108864 bytes)"
    assert fields["logical sector"] == "512 bytes"
    assert fields["log"] == "clean, 1 MiB (1048576 bytes)"
    assert fields["blocks"] == "32: 29 not-present, 1 zero, 2 fully-present"
    assert len({re.match(r".*?:\s+", line).end() for line in out.splitlines()}) == 1  # one column


@pytest.mark.parametrize("keywords, subformat", [({"kind": "fixed"}, "fixed"), ({}, "dynamic")])
def test_info_subformats(vhdx, keywords, subformat, tmp_path):
    path = Image(8 * MiB, **keywords).build(tmp_path / "x.vhdx").path
    assert vhdx("info", "--json", path, rc=0).json()["format-specific"]["data"]["subformat"] == subformat


def test_info_of_the_parent(vhdx, chain):
    info = vhdx("info", "--json", chain[0].path, rc=0).json()
    data = info["format-specific"]["data"]
    assert data["subformat"] == "differencing" and info["dirty-flag"] is True
    assert info["backing-filename"] == data["parent-locator"]["relative_path"] == ".\\middle.avhdx"
    assert os.path.samefile(info["full-backing-filename"], chain[1].path)
    assert data["parent-linkage"] == guid_text(chain[1].data_write_guid)
    assert "backing-problem" not in info
    out = vhdx("info", chain[0].path, rc=0).out
    assert "dirty (replayed in memory for reading)" in out and "middle.avhdx" in out


def test_info_chain(vhdx, chain):
    infos = vhdx("info", "--chain", "--json", chain[0].path, rc=0).json()
    assert [os.path.basename(info["filename"]) for info in infos] == ["child.avhdx", "middle.avhdx", "base.vhdx"]
    assert [info["dirty-flag"] for info in infos] == [True, False, False]
    assert "backing-filename" not in infos[2]
    assert len(vhdx("info", "--chain", chain[0].path, rc=0).out.split("\n\n")) == 3
    assert len(vhdx("info", "--chain", "--json", chain[2].path, rc=0).json()) == 1


def test_info_without_the_parent(vhdx, orphan):
    result = vhdx("info", "--json", orphan, rc=0)
    info = result.json()
    assert "--parent-dir" in info["backing-problem"] and "full-backing-filename" not in info
    assert info["backing-filename"] == ".\\middle.avhdx"
    assert result.err.startswith(f"vhdx info: {orphan}: warning: ") and info["backing-problem"] in result.err
    assert "not opened; recorded as .\\middle.avhdx" in vhdx("info", orphan, rc=0).out


def test_info_chain_without_the_parent_is_a_failure(vhdx, orphan):
    result = vhdx("info", "--chain", "--json", orphan, rc=1)
    assert len(result.json()) == 1 and "backing-problem" in result.json()[0]


def test_info_finds_the_parent_where_it_is_told_to_look(vhdx, orphan, chain):
    folder = os.path.dirname(chain[1].path)
    for option in (["--parent-dir", folder], ["--parent-dir=/", f"--parent-dir={folder}"], ["--parent", chain[1].path]):
        info = vhdx("info", "--json", *option, orphan, rc=0).json()
        assert os.path.samefile(info["full-backing-filename"], chain[1].path)


def test_info_with_a_wrong_parent(vhdx, orphan, chain):
    info = vhdx("info", "--json", "--parent", chain[2].path, orphan, rc=0).json()
    assert "backing-problem" in info and "full-backing-filename" not in info


def test_info_with_a_damaged_parent(vhdx, tmp_path):
    parent = Image(8 * MiB)
    built = parent.build(tmp_path / "parent.vhdx")
    child = windows(8 * MiB, parent=built).build(tmp_path / "child.avhdx")
    parent.headers = [None, None]
    parent.build(tmp_path / "parent.vhdx")
    assert "backing-problem" in vhdx("info", "--json", child.path, rc=0).json()


def test_info_of_a_damaged_image(vhdx, overlapping):
    result = vhdx("info", "--json", overlapping.path, rc=1)
    info = result.json()
    assert info["virtual-size"] == 64 * MiB
    assert info["format-specific"]["data"]["blocks"]["fully-present"] == 2
    assert result.err == f"vhdx info: {overlapping.path}: {info['problem']}\n"
    assert "64 MiB" in vhdx("info", overlapping.path, rc=1).out


def test_info_of_an_image_that_tells_nothing(vhdx, tmp_path):
    image = Image(8 * MiB)
    image.headers = [None, None]
    result = vhdx("info", "--json", image.build(tmp_path / "x.vhdx").path, rc=1)
    assert result.out == "" and result.err.count("\n") == 1


def test_info_of_a_raw_disk(vhdx, raw_copy):
    info = vhdx("info", "--json", "-f", "raw", settled(raw_copy), rc=0).json()
    assert info == {"filename": str(raw_copy), "format": "raw", "virtual-size": 64 * MiB,
                    "actual-size": os.stat(raw_copy).st_blocks * 512, "dirty-flag": False}
    assert "raw" in vhdx("info", "--source-format=raw", raw_copy, rc=0).out


# ---- map

def check_gapless(extents, start, end):
    for extent in extents:
        assert extent["start"] == start and extent["length"] > 0
        start += extent["length"]
    assert start == end


def test_map_json(vhdx, dynamic):
    extents = vhdx("map", "--json", dynamic.path, rc=0).json()
    check_gapless(extents, 0, 64 * MiB)
    data = [extent for extent in extents if extent["data"]]
    assert [(extent["start"], extent["length"]) for extent in data] == [(2 * MiB, 2 * MiB), (8 * MiB, 2 * MiB)]
    for extent in data:
        assert list(extent) == ["start", "length", "depth", "present", "zero", "data", "offset", "filename"]
        with open(extent["filename"], "rb") as file:
            stored = os.pread(file.fileno(), extent["length"], extent["offset"])
        assert stored == dynamic.expected(extent["start"], extent["length"])
    for extent in extents:
        if not extent["data"]:
            assert list(extent) == ["start", "length", "depth", "present", "zero", "data"] and extent["zero"]
    assert [extent["start"] for extent in extents if extent["present"] and extent["zero"]] == [12 * MiB]


def test_map_of_a_chain(vhdx, chain):
    extents = vhdx("map", "--json", chain[0].path, rc=0).json()
    check_gapless(extents, 0, 64 * MiB)
    names = {extent["depth"]: os.path.basename(extent["filename"]) for extent in extents if extent["data"]}
    assert names == {0: "child.avhdx", 1: "middle.avhdx", 2: "base.vhdx"}


def test_map_for_people_has_the_columns_of_qemu_img(vhdx, qemu_img, tmp_path):
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "1M")
    head = qemu_img("map", path).out
    image = Image(64 * MiB, block_size=2 * MiB)
    image.write(4 * MiB, 2 * MiB, Pattern(1))
    image = image.build(tmp_path / "disk.vhdx")
    out = vhdx("map", image.path, rc=0).out
    assert out.startswith(head)
    place = next(extent.file_offset for extent in image.extents() if extent.file_offset)
    assert out[len(head):] == f"{4 * MiB:<#16x}{2 * MiB:<#16x}{place:<#16x}{image.path}\n"


@pytest.mark.parametrize("start, length, expected", [
    ("3M", None, (3 * MiB, 64 * MiB)), (None, "3M", (0, 3 * MiB)), ("3M", "512", (3 * MiB, 3 * MiB + 512)),
    ("63M", "10M", (63 * MiB, 64 * MiB)), ("1", "1", (1, 2)),
])
def test_map_of_a_range(vhdx, dynamic, start, length, expected):
    options = (["--start-offset", start] if start else []) + (["--max-length", length] if length else [])
    check_gapless(vhdx("map", "--json", *options, dynamic.path, rc=0).json(), *expected)


def test_map_of_an_empty_range(vhdx, dynamic):
    assert vhdx("map", "--json", "--max-length=0", dynamic.path, rc=0).json() == []
    assert vhdx("map", "--json", "--start-offset=64M", dynamic.path, rc=0).json() == []


def test_map_that_fails_midway_is_no_json_document(vhdx, tmp_path):
    image = Image(300_000 * MiB, block_size=MiB, default_state=ZERO)  # more blocks than opening looks at
    image.write(10 * MiB, MiB, Pattern(1))
    image.set_block(250_000, raw=3 * TiB | FULLY_PRESENT)  # behind the end of the file
    path = image.build(tmp_path / "x.vhdx").path
    result = vhdx("map", "--json", path, rc=1)
    assert '"start": 0' in result.out
    with pytest.raises(json.JSONDecodeError):
        json.loads(result.out)
    assert result.err.startswith(f"vhdx map: {path}: ") and result.err.count("\n") == 1
    assert len(vhdx("map", "--json", "--max-length=200000M", path, rc=0).json()) == 3


def test_map_of_the_largest_disk_takes_no_memory(vhdx_path, tmp_path, sanitizer):
    if sanitizer != "none":
        pytest.skip("memory limits do not work with sanitizers")
    image = Image(64 * TiB, block_size=MiB)
    for block in range(0, 200_000, 2):
        image.set_block(block, ZERO)
    path = image.build(tmp_path / "large.vhdx").path
    limit = 64 * MiB
    done = subprocess.run([vhdx_path, "map", "--json", path], capture_output=True, check=False,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    assert (done.returncode, done.stderr) == (0, b"")
    check_gapless(json.loads(done.stdout), 0, 64 * TiB)


# ---- dump

def test_dump_shows_all_parts(vhdx, chain):
    document = vhdx("dump", "--json", chain[0].path, rc=0).json()
    text = vhdx("dump", chain[0].path, rc=0).out
    for name in document:
        assert re.search(rf"^{name}:", text, re.MULTILINE)
    assert len(document) >= 5


def test_dump_for_people_is_a_tree(vhdx, dynamic):
    out = vhdx("dump", "--headers", "--block=1", dynamic.path, rc=0).out
    assert re.search(r"^headers:\n  - offset: 0x10000\n    valid: yes\n(    .*\n)+  - offset: 0x20000\n    valid: yes\n",
                     out, re.MULTILINE)
    assert re.search(r"^  blocks:\n    - block: 1\n      entry-offset: 0x[0-9a-f]+\n      state: 6\n", out, re.MULTILINE)
    assert re.search(r"^    log-length: 1 MiB \(1048576 bytes\)$", out, re.MULTILINE)


@pytest.mark.parametrize("part", ["headers", "regions", "metadata", "log", "bat"])
def test_dump_of_one_part_is_a_part_of_the_whole(vhdx, chain, part):
    whole = vhdx("dump", "--json", chain[0].path, rc=0).json()
    document = vhdx("dump", "--json", f"--{part}", chain[0].path, rc=0).json()
    assert 0 < len(document) < len(whole)
    if part != "bat":
        for name, value in document.items():
            assert whole[name] == value


def listed_blocks(document):
    """Every "block" number anywhere in a dump."""
    if isinstance(document, dict):
        return ([document["block"]] if "block" in document else []) + \
            [number for value in document.values() for number in listed_blocks(value)]
    if isinstance(document, list):
        return [number for value in document for number in listed_blocks(value)]
    return []


@pytest.mark.parametrize("options, blocks", [
    ([], range(16)), (["--bat"], range(32)), (["--block", "4"], [4]), (["--blocks=3-5"], range(3, 6)),
    (["--blocks", "7"], [7]), (["--headers", "--block=2"], [2]), (["--blocks=30-1000"], [30, 31]), (["--headers"], []),
])
def test_dump_of_blocks(vhdx, dynamic, options, blocks):
    assert listed_blocks(vhdx("dump", "--json", *options, dynamic.path, rc=0).json()) == list(blocks)


def test_dump_raw_shows_the_file_before_replay(vhdx, chain):
    replayed = vhdx("dump", "--json", "--block=1", chain[0].path, rc=0).out
    assert vhdx("dump", "--json", "--block=1", "--raw", chain[0].path, rc=0).out != replayed


def test_dump_of_what_is_no_vhdx(vhdx, raw_copy):
    result = vhdx("dump", "--json", raw_copy, rc=1)
    assert result.out == "" and "vhdxfile" in result.err


def test_dump_of_damage_goes_on(vhdx, tmp_path):
    image = Image(8 * MiB)
    image.headers = [None, None]
    path = image.build(tmp_path / "x.vhdx").path
    assert '"error"' in vhdx("dump", "--json", path, rc=0).out
    assert "error:" in vhdx("dump", path, rc=0).out


@pytest.fixture(scope="module")
def with_item(tmp_path_factory):
    image = Image(8 * MiB)
    image.items.append(Item("mine", b"\x00user data\xff" * 3))
    return image.build(tmp_path_factory.mktemp("item") / "x.vhdx")


def test_dump_item_writes_its_bytes(vhdx, with_item):
    item = with_item.image.items[-1]
    assert vhdx("dump", "--item", guid_text(item.guid), with_item.path, rc=0).out_bytes == item.data
    assert vhdx("dump", "--item", "{" + guid_text(item.guid).upper() + "}", with_item.path, rc=0).out_bytes == item.data
    document = vhdx("dump", "--json", "--item", guid_text(item.guid), with_item.path, rc=0).json()
    assert document == {"id": guid_text(item.guid), "length": len(item.data), "hex": item.data.hex()}


def test_dump_item_of_the_format(vhdx, with_item):
    out = vhdx("dump", "--item=2fa54224-cd1b-4876-b211-5dbed83bf4b8", with_item.path, rc=0).out_bytes
    assert out == struct.pack("<Q", 8 * MiB)  # virtual disk size


def test_dump_item_on_a_terminal_is_hexadecimal(vhdx_path, with_item):
    item = with_item.image.items[-1]
    rc, out, _ = run_on_terminal([vhdx_path, "dump", "--item", guid_text(item.guid), with_item.path], stdout=True)
    assert rc == 0
    assert out.splitlines()[0] == f"00000000  {item.data[:16].hex(' ')}  |.user data..user|"


def test_dump_item_that_is_not_there(vhdx, with_item):
    result = vhdx("dump", "--item=01234567-89ab-cdef-0123-456789abcdef", with_item.path, rc=1)
    assert result.out == "" and "01234567-89ab-cdef-0123-456789abcdef" in result.err


# ---- check

CHECK_MEMBERS = {"filename", "format", "check-errors", "corruptions", "leaks", "corruptions-fixed", "leaks-fixed",
                 "image-end-offset", "total-clusters", "allocated-clusters", "findings"}


def test_check_of_a_clean_image(vhdx, dynamic):
    result = vhdx("check", "--json", dynamic.path, rc=0).json()
    assert CHECK_MEMBERS <= result.keys()
    assert (result["filename"], result["format"]) == (dynamic.path, "vhdx")
    for name in ("check-errors", "corruptions", "leaks", "corruptions-fixed", "leaks-fixed"):
        assert result[name] == 0
    assert (result["total-clusters"], result["allocated-clusters"]) == (32, 2)
    assert 0 < result["image-end-offset"] <= os.path.getsize(dynamic.path)
    for finding in result["findings"]:
        assert finding.keys() == {"rule", "severity", "offset", "message", "repairable"}
        assert finding["severity"] in ("info", "warning")
    out = vhdx("check", dynamic.path, rc=0).out
    assert "No errors were found on the image" in out and "usable as it is" in out


def test_check_of_a_dirty_image(vhdx, chain):
    assert "usable after replay" in vhdx("check", chain[0].path, rc=0).out
    assert vhdx("check", "--json", chain[0].path, rc=0).json()["replay-needed"] is True


def test_check_of_corruption(vhdx, overlapping):
    result = vhdx("check", "--json", overlapping.path, rc=2).json()
    assert result["corruptions"] > 0 and result["usable"] is False
    errors = [finding for finding in result["findings"] if finding["severity"] == "error"]
    assert errors and isinstance(errors[0]["rule"], int)
    out = vhdx("check", overlapping.path, rc=2).out
    assert re.search(rf"^error: rule {errors[0]['rule']} at {errors[0]['offset']:#x}: ", out, re.MULTILINE)
    assert "damaged" in out


@pytest.fixture
def leaking(tmp_path):
    image = Image(64 * MiB, block_size=2 * MiB)
    image.write(0, 8 * MiB, Pattern(1))
    image.patches += [Patch("entry:1", bytes(8)), Patch("entry:2", bytes(8))]
    return image.build(tmp_path / "leaking.vhdx")


def test_check_of_leaks(vhdx, leaking):
    result = vhdx("check", "--json", leaking.path, rc=3).json()
    assert result["corruptions"] == 0 and result["leaks"] > 0 and result["leaked-bytes"] >= 4 * MiB
    assert "leak" in vhdx("check", leaking.path, rc=3).out


def test_check_quiet_prints_what_decides_the_status(vhdx, dynamic, leaking, overlapping, chain):
    assert vhdx("check", "-q", dynamic.path, rc=0).out == ""
    assert vhdx("check", "--quiet", chain[0].path, rc=0).out == ""
    for path, rc in ((leaking.path, 3), (overlapping.path, 2)):
        lines = vhdx("check", "-q", path, rc=rc).out.splitlines()
        assert lines and all(line.startswith(("leak: ", "error: ")) for line in lines)


def test_check_of_what_cannot_be_checked(vhdx, raw_copy, dynamic):
    for form in ([], ["--json"]):
        result = vhdx("check", *form, raw_copy, rc=1)
        assert result.out == "" and "vhdxfile" in result.err
    assert "raw" in vhdx("check", "-f", "raw", raw_copy, rc=1).err
    vhdx("check", "-f", "vhdx", dynamic.path, rc=0)
