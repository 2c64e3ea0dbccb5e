# SPDX-License-Identifier: MIT
"""vhdx create --parent: what a child records and takes over (format sections 7.2, 8.2, 9.1), where its parent is found again, and what
is refused.  Parents never change."""
import os
import shutil
import subprocess
import uuid

import pytest
from reading import file_sha256
from vhdxbuild import *
from vhdxbuild import make_dirty, reader
from writing import Held

NO_LINKAGE = "{00000000-0000-0000-0000-000000000000}"


def base(path, size=8 * MiB, **keywords):
    return Image(size, block_size=MiB, **keywords).write(0, 3 * MiB, Pattern(1)).build(path)


def data_of(vhdx, path, *options):
    return vhdx("info", "--json", *options, path, rc=0).json()["format-specific"]["data"]


def test_what_a_child_records(vhdx, tmp_path):
    parent = base(tmp_path / "parent.vhdx", pss=512)
    before = file_sha256(parent.path)
    result = vhdx("create", "--parent", parent.path, tmp_path / "child.vhdx", rc=0)
    assert result.out == f"Created {tmp_path}/child.vhdx: differencing, 8 MiB (8388608 bytes), child of {parent.path}\n" and not result.err
    made, theirs = (data_of(vhdx, path) for path in (tmp_path / "child.vhdx", parent.path))
    assert made["subformat"] == "differencing" and made["block-size"] == 2 * MiB
    for name in ("logical-sector-size", "physical-sector-size", "disk-id"):
        assert made[name] == theirs[name], name
    assert len({made["data-write-guid"], theirs["data-write-guid"], made["file-write-guid"], theirs["file-write-guid"]}) == 4
    assert vhdx("check", "--json", tmp_path / "child.vhdx", rc=0).json()["findings"] == []
    with reader.Reader(parent.path) as p, reader.Reader(tmp_path / "child.vhdx", p) as child:
        assert child.locator() == {"parent_linkage": "{" + theirs["data-write-guid"] + "}", "relative_path": ".\\parent.vhdx",
                                   "parent_linkage2": NO_LINKAGE}
        assert child.file_flags == 2 and child.size == p.size
        for offset in range(0, 8 * MiB, MiB // 2 + 512):
            assert child.read(offset, 4096) == parent.expected(offset, 4096)
    assert file_sha256(parent.path) == before


@pytest.mark.parametrize("lss", [512, 4096])
@pytest.mark.parametrize("block", [None, MiB, 32 * MiB, 256 * MiB])
def test_geometry(vhdx, tmp_path, lss, block):
    """A disk over several chunks: the table has an entry for the bitmap block of each, the last one included."""
    parent = base(tmp_path / "parent.vhdx", size=9 * GiB + lss, lss=lss)
    vhdx("create", *(["--block-size", block] if block else []), "--parent", parent.path, tmp_path / "child.vhdx", rc=0)
    with reader.Reader(parent.path) as p, reader.Reader(tmp_path / "child.vhdx", p) as child:
        assert (child.lss, child.block_size) == (lss, block or 2 * MiB)
        for offset in (0, 2 * MiB, 4 * GiB, 9 * GiB):
            assert child.read(offset, lss) == parent.expected(offset, lss)
    assert vhdx("check", "--json", tmp_path / "child.vhdx", rc=0).json()["findings"] == []
    assert vhdx("compare", parent.path, tmp_path / "child.vhdx", rc=0)


def test_items_of_the_disk_are_taken_over(vhdx, tmp_path):
    """Also those that nobody here knows, and the user's; what belongs to the parent's file is not."""
    guids = [uuid.uuid5(uuid.NAMESPACE_OID, f"item {n}") for n in range(5)]
    wanted = [Item("a", b"user data" * 100, guid=guids[0].bytes_le, flags=3), Item("b", b"", guid=guids[1].bytes_le, flags=2),
              Item("c", b"\1\2\3", guid=guids[2].bytes_le, flags=2), Item("d", bytes(range(256)) * 4096, guid=guids[3].bytes_le, flags=3)]
    image = Image(8 * MiB, block_size=MiB)
    image.items += wanted + [Item("e", b"the file's", guid=guids[4].bytes_le, flags=1)]
    parent = image.build(tmp_path / "parent.vhdx")
    vhdx("create", "--parent", parent.path, tmp_path / "child.vhdx", rc=0)
    with reader.Reader(parent.path) as p, reader.Reader(tmp_path / "child.vhdx", p) as child:
        for item in wanted:
            assert child.items[(uuid.UUID(bytes_le=item.guid), item.flags & 1)] == item.data
        assert not any(guid == guids[4] for guid, _ in child.items)
    findings = vhdx("check", "--json", tmp_path / "child.vhdx", rc=0).json()["findings"]
    assert {finding["severity"] for finding in findings} == {"info"}


def test_grandchildren(vhdx, tmp_path):
    parent = base(tmp_path / "a.vhdx")
    vhdx("create", "--parent", tmp_path / "a.vhdx", tmp_path / "b.vhdx", rc=0)
    vhdx("create", "--parent", tmp_path / "b.vhdx", "--block-size=1M", tmp_path / "c.vhdx", rc=0)
    assert vhdx("compare", parent.path, tmp_path / "c.vhdx", rc=0)
    assert [layer["filename"] for layer in vhdx("info", "--chain", "--json", tmp_path / "c.vhdx", rc=0).json()] == \
        [str(tmp_path / name) for name in ("c.vhdx", "b.vhdx", "a.vhdx")]
    assert vhdx("check", "--json", tmp_path / "c.vhdx", rc=0).json()["findings"] == []


def test_dirty_parent(vhdx, tmp_path):
    """Its log is replayed in memory for the child's identity and content, and stays as it is."""
    image = Image(8 * MiB, block_size=MiB).write(0, 3 * MiB, Pattern(1))
    make_dirty(image, ("bat", "metadata"))
    parent = image.build(tmp_path / "parent.vhdx")
    before = file_sha256(parent.path)
    vhdx("create", "--parent", parent.path, tmp_path / "child.vhdx", rc=0)
    assert vhdx("info", "--json", parent.path, rc=0).json()["dirty-flag"]
    assert vhdx("compare", parent.path, tmp_path / "child.vhdx", rc=0)
    assert file_sha256(parent.path) == before


# ---- sizes

@pytest.mark.parametrize("size, says", [(8 * MiB, None), (20 * MiB, "larger"), (5 * MiB + 512, "smaller")])
def test_other_sizes(vhdx, tmp_path, size, says):
    parent = base(tmp_path / "parent.vhdx")
    result = vhdx("create", "--parent", parent.path, tmp_path / "child.vhdx", size, rc=0)
    assert (says in result.err) if says else not result.err
    with reader.Reader(parent.path) as p, reader.Reader(tmp_path / "child.vhdx", p) as child:
        assert child.size == size
    vhdx("convert", tmp_path / "child.vhdx", tmp_path / "raw", rc=0)
    with open(tmp_path / "raw", "rb") as file:
        assert file.read() == parent.expected(0, min(size, 8 * MiB)).ljust(size, b"\0")


# ---- paths

@pytest.mark.parametrize("child, parent, relative", [
    ("child.vhdx", "parent.vhdx", ".\\parent.vhdx"),
    ("child.vhdx", "below/it/parent.vhdx", ".\\below\\it\\parent.vhdx"),
    ("one/two/child.vhdx", "parent.vhdx", "..\\..\\parent.vhdx"),
    ("one/two/child.vhdx", "one/three/parent.vhdx", "..\\three\\parent.vhdx"),
    ("sub/child.vhdx", "subway/parent.vhdx", "..\\subway\\parent.vhdx"),
    ("child.vhdx", "Größe 日本.vhdx", ".\\Größe 日本.vhdx"),
])
def test_relative_paths(vhdx, tmp_path, child, parent, relative):
    for name in (child, parent):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    parent = base(tmp_path / parent)
    result = vhdx("create", "--parent", os.path.relpath(parent.path, tmp_path), child, rc=0, cwd=tmp_path)
    with reader.Reader(parent.path) as p, reader.Reader(tmp_path / child, p) as made:
        assert made.locator()["relative_path"] == relative
    outside = relative.startswith("..")
    assert ("--parent-dir" in result.err) == outside
    vhdx("compare", *(["--parent-dir", tmp_path] if outside else []), parent.path, tmp_path / child, rc=0)
    assert (vhdx("compare", parent.path, tmp_path / child).rc == 0) == (not outside)
    moved = tmp_path / "elsewhere"      # both together, wherever that is
    shutil.copytree(tmp_path, moved, ignore=lambda folder, names: ["elsewhere"])
    vhdx("compare", *(["--parent-dir", moved] if outside else []), parent.path, moved / child, rc=0)


def test_links_are_followed(vhdx, tmp_path):
    """The path leads from where the child really is to where its parent really is."""
    for name in ("parents", "children"):
        (tmp_path / name).mkdir()
    parent = base(tmp_path / "parents" / "v7.vhdx")
    (tmp_path / "latest.vhdx").symlink_to("parents/v7.vhdx")
    (tmp_path / "link").symlink_to("children")
    vhdx("create", "--parent", tmp_path / "latest.vhdx", tmp_path / "link" / "child.vhdx", rc=0)
    with reader.Reader(parent.path) as p, reader.Reader(tmp_path / "children" / "child.vhdx", p) as made:
        assert made.locator()["relative_path"] == "..\\parents\\v7.vhdx"
    vhdx("info", "--chain", "--parent-dir", tmp_path, tmp_path / "link" / "child.vhdx", rc=0)


def test_windows_path_on_request(vhdx, tmp_path):
    parent = base(tmp_path / "parent.vhdx")
    path = "D:\\VMs\\parent.vhdx"
    vhdx("create", "--parent", parent.path, "--parent-windows-path", path, tmp_path / "child.vhdx", rc=0)
    with reader.Reader(parent.path) as p, reader.Reader(tmp_path / "child.vhdx", p) as made:
        assert made.locator()["absolute_win32_path"] == path
    with open(tmp_path / "child.vhdx", "rb") as file:
        content = file.read(3 * MiB)
    assert str(tmp_path).encode("utf-16-le") not in content, "the child tells where it was made"


@pytest.mark.parametrize("name", [b"back\\slash.vhdx", b"stream:x.vhdx", b"new\nline.vhdx", b"latin1 \xe9.vhdx"])
def test_names_that_cannot_be_recorded(vhdx, tmp_path, name):
    parent = base(tmp_path / "parent.vhdx")
    bad = os.fsencode(tmp_path) + b"/" + name
    os.rename(parent.path, bad)
    assert "record" in vhdx("create", "--parent", os.fsdecode(bad), tmp_path / "child.vhdx", rc=1).err
    assert not (tmp_path / "child.vhdx").exists()


# ---- refusals

def test_replacing_its_own_chain(vhdx, tmp_path):
    parent = base(tmp_path / "a.vhdx")
    vhdx("create", "--parent", tmp_path / "a.vhdx", tmp_path / "b.vhdx", rc=0)
    before = {name: file_sha256(tmp_path / name) for name in ("a.vhdx", "b.vhdx")}
    os.link(parent.path, tmp_path / "hardlink.vhdx")
    for target in ("a.vhdx", "b.vhdx", "hardlink.vhdx"):
        assert "of the new image" in vhdx("create", "--force", "--parent", tmp_path / "b.vhdx", tmp_path / target, rc=1).err
    vhdx("create", "--parent", tmp_path / "a.vhdx", tmp_path / "b.vhdx", rc=1)
    assert before == {name: file_sha256(tmp_path / name) for name in before}


def test_other_sector_sizes(vhdx, tmp_path):
    parent = base(tmp_path / "parent.vhdx")
    child = tmp_path / "child.vhdx"
    assert "logical sectors" in vhdx("create", "--parent", parent.path, "--logical-sector-size=4096", child, rc=1).err
    assert "physical sectors" in vhdx("create", "--parent", parent.path, "--physical-sector-size=512", child, rc=1).err
    assert "multiple" in vhdx("create", "--parent", parent.path, child, "4097", rc=1).err
    vhdx("create", "--parent", parent.path, "--logical-sector-size=512", "--physical-sector-size=4096", child, rc=0)


@pytest.mark.parametrize("options, says", [
    (["--fixed"], "neither fixed"), (["--preallocate=full"], "neither fixed"), (["--subformat=fixed"], "neither fixed"),
    (["--block-size=3M"], "block size"),
])
def test_options_that_do_not_fit(vhdx, tmp_path, options, says):
    parent = base(tmp_path / "parent.vhdx")
    result = vhdx("create", "--parent", parent.path, *options, tmp_path / "child.vhdx")
    assert result.rc in (1, 2) and says in result.err
    assert not (tmp_path / "child.vhdx").exists()


def test_parents_that_are_none(vhdx, tmp_path):
    for name, content in (("empty", b""), ("raw", bytes(4 * MiB)), ("short", b"vhdxfile")):
        (tmp_path / name).write_bytes(content)
        vhdx("create", "--parent", tmp_path / name, tmp_path / "child.vhdx", rc=1)
    assert "No such file" in vhdx("create", "--parent", tmp_path / "nothing", tmp_path / "child.vhdx", rc=1).err
    vhdx("create", "--parent", tmp_path, tmp_path / "child.vhdx", rc=1)
    parent = base(tmp_path / "parent.vhdx")
    vhdx("create", "--parent", parent.path, tmp_path / "middle.vhdx", rc=0)
    os.unlink(parent.path)
    assert "parent" in vhdx("create", "--parent", tmp_path / "middle.vhdx", tmp_path / "child.vhdx", rc=1).err
    assert not (tmp_path / "child.vhdx").exists()


def test_parent_that_is_being_written(vhdx, vhdx_path, tool, tmp_path):
    """Its identity would change under our hands.  Nor is it written while a child is open."""
    vhdx("create", tmp_path / "parent.vhdx", "8M", rc=0)
    with Held(vhdx_path, tmp_path / "parent.vhdx") as held:
        held.do("write 0 4K")
        assert "open for writing" in vhdx("create", "--parent", tmp_path / "parent.vhdx", tmp_path / "child.vhdx", rc=1).err
        held.end()
    vhdx("create", "--parent", tmp_path / "parent.vhdx", tmp_path / "child.vhdx", rc=0)
    with Held(vhdx_path, "-r", tmp_path / "child.vhdx") as held:
        held.do("read 0 4K")
        vhdx("io", tmp_path / "parent.vhdx", "-c", "write 0 4K", rc=1)
        done = subprocess.run([tool("qemu-io"), "-f", "vhdx", "-c", "write 0 4k", tmp_path / "parent.vhdx"], capture_output=True, check=False)
        assert b"lock" in done.stderr, done
        held.end()
    vhdx("info", "--chain", tmp_path / "child.vhdx", rc=0)


def test_depth(vhdx, tmp_path):
    """256 images, and no more."""
    built = None
    for depth in range(250):
        built = Image(MiB, block_size=MiB, parent=built, seed=depth).build(tmp_path / f"{depth}.vhdx")
    for depth in range(250, 256):
        vhdx("create", "-q", "--parent", tmp_path / f"{depth - 1}.vhdx", tmp_path / f"{depth}.vhdx", rc=0)
    assert len(vhdx("info", "--chain", "--json", tmp_path / "255.vhdx", rc=0).json()) == 256
    assert "256" in vhdx("create", "--parent", tmp_path / "255.vhdx", tmp_path / "256.vhdx", rc=1).err
    assert not (tmp_path / "256.vhdx").exists()


def test_json(vhdx, tmp_path):
    """All that info says, wherever the parent lies."""
    (tmp_path / "one").mkdir()
    parent = base(tmp_path / "parent.vhdx")
    made = vhdx("create", "-q", "--json", "--parent", parent.path, tmp_path / "one" / "child.vhdx", rc=0).json()
    assert made["format-specific"]["data"]["subformat"] == "differencing"
    assert made["backing-filename"] == "..\\parent.vhdx" and made["full-backing-filename"] == str(parent.path)
