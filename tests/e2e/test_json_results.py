# SPDX-License-Identifier: MIT
"""--json of the commands that change something: one document that says what was done, and nothing else on standard output."""
import os

import pytest

from vhdxbuild import *


@pytest.fixture
def base(tmp_path):
    return Image(8 * MiB, block_size=MiB, seed=1).write(0, 3 * MiB, Pattern(1)).build(tmp_path / "base.vhdx")


def child_of(parent, path, recorded=None):
    image = Image(8 * MiB, block_size=MiB, seed=2, parent=parent)
    if recorded:
        image.locator = Locator.relative(parent.data_write_guid, recorded)
    return image.write(MiB, 512, Pattern(2)).build(path)


@pytest.mark.parametrize("options, expected", [
    ([], {"format": "raw", "virtual-size": 8 * MiB}),
    (["-O", "vhdx"], {"format": "vhdx", "subformat": "dynamic", "virtual-size": 8 * MiB}),
    (["-O", "vhdx", "--fixed"], {"format": "vhdx", "subformat": "fixed", "virtual-size": 8 * MiB})])
def test_convert(vhdx, base, tmp_path, options, expected):
    out = tmp_path / "out"
    result = vhdx("convert", "--json", *options, base.path, out, rc=0)
    assert result.json() == {"source": base.path, "target": str(out), **expected, "bytes": 8 * MiB, "actual-size": os.stat(out).st_blocks * 512}
    assert result.err == ""
    again = vhdx("convert", "--output=json", "-q", "--force", *options, base.path, out, rc=0).json()
    assert {**again, "actual-size": 0} == {**result.json(), "actual-size": 0}


def test_convert_into_what_exists(vhdx, base, tmp_path):
    vhdx("create", "-q", tmp_path / "out.vhdx", "16M", rc=0)
    result = vhdx("convert", "--json", "-n", "-O", "vhdx", base.path, tmp_path / "out.vhdx", rc=0)
    document = result.json()
    assert (document["format"], document["subformat"], document["virtual-size"], document["bytes"]) == ("vhdx", "dynamic", 16 * MiB, 8 * MiB)
    assert "stay as they are" in result.err
    (tmp_path / "out.raw").write_bytes(bytes(9 * MiB))
    document = vhdx("convert", "--json", "-n", base.path, tmp_path / "out.raw", rc=0).json()
    assert (document["format"], document["virtual-size"], document["bytes"]) == ("raw", 9 * MiB, 8 * MiB) and "subformat" not in document


def test_convert_pads_a_disk(vhdx, tmp_path):
    (tmp_path / "disk.raw").write_bytes(b"x" * 1000)
    for source, options in ((tmp_path / "disk.raw", {}), ("-", {"stdin": b"x" * 1000})):
        document = vhdx("convert", "--json", "--force", "-f", "raw", "-O", "vhdx", source, tmp_path / "out.vhdx", rc=0, **options).json()
        assert (document["source"], document["virtual-size"]) == (str(source), 1024)


def test_convert_to_standard_output(vhdx, base, tmp_path):
    for target in ("-", "/dev/stdout"):
        result = vhdx("convert", "--json", base.path, target, rc=2)
        assert result.out == "" and "standard output" in result.err


def test_convert_that_fails(vhdx, base, tmp_path):
    (tmp_path / "out.raw").write_bytes(b"")
    assert vhdx("convert", "--json", base.path, tmp_path / "out.raw", rc=1).out == ""


def test_rebase(vhdx, base, tmp_path):
    child = child_of(base, tmp_path / "child.vhdx", ".\\old.vhdx")
    linkage = guid_text(base.data_write_guid)
    expected = {"child": child.path, "parent": base.path, "linkage-before": linkage, "linkage-after": linkage}
    changed = {"changed": True, "would-change": True, "dry-run": False}
    same = {"changed": False, "would-change": False, "dry-run": False}
    assert vhdx("rebase", "--json", "--find", tmp_path, "-n", child.path, rc=0).json() == {
        **expected, "changed": False, "would-change": True, "dry-run": True}
    assert vhdx("rebase", "--json", "-b", base.path, child.path, rc=0).json() == {**expected, **changed}
    assert vhdx("rebase", "--json", "-b", base.path, child.path, rc=0).json() == {**expected, **same}
    for options in ([], ["-q"]):
        assert vhdx("rebase", "--output=json", *options, "--find", tmp_path, child.path, rc=0).json() == {**expected, **same}
    assert vhdx("rebase", "--json", "--find", tmp_path, "-n", child.path, rc=0).json() == {**expected, **same, "dry-run": True}
    vhdx("io", base.path, "-c", "write -P 7 4M 64k", rc=0)
    assert vhdx("rebase", "--json", "-b", base.path, child.path, rc=1).out == ""
    new = vhdx("info", "--json", base.path, rc=0).json()["format-specific"]["data"]["data-write-guid"]
    assert vhdx("rebase", "--json", "--force", "-b", base.path, child.path, rc=0).json() == {
        **expected, "linkage-after": new, **changed}


def test_rebase_to_no_parent(vhdx, base, tmp_path):
    child = child_of(base, tmp_path / "child.vhdx")
    before = os.stat(child.path).st_blocks * 512
    assert vhdx("rebase", "--json", "-b", "", child.path, rc=0).json() == {
        "child": child.path, "parent": None, "linkage-before": guid_text(base.data_write_guid), "linkage-after": None,
        "changed": True, "would-change": True, "dry-run": False,
        "actual-size-before": before, "actual-size": os.stat(child.path).st_blocks * 512}
