# SPDX-License-Identifier: MIT
"""vhdx merge as users meet it.  What a crash leaves is in tests/crash/test_merge.c."""
import fcntl
import hashlib
import os
import pathlib
import struct
import subprocess

import pytest
from cli_support import find_strace

from vhdxbuild import *


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def merge(vhdx, child, *options, rc=0):
    result = vhdx("merge", "--json", *options, child.path if hasattr(child, "path") else child, rc=rc)
    return result.json() if rc == 0 else result.err


def must_read(vhdx, path, built, tmp_path):
    """The file has the content that built was made with."""
    out = tmp_path / "content.raw"
    vhdx("convert", "--force", path, out, rc=0)
    assert built.first_difference(out) is None
    vhdx("check", path, rc=0)


def info(vhdx, path):
    return vhdx("info", "--json", path, rc=0).json()["format-specific"]["data"]


def child_of(parent, path, seed, **keywords):
    size = keywords.pop("size", parent.image.size)
    image = Image(size, block_size=keywords.pop("block_size", MiB), lss=parent.image.lss, seed=seed, parent=parent, **keywords)
    image.locator = Locator.relative(parent.data_write_guid, ".\\" + os.path.relpath(parent.path, os.path.dirname(path)).replace("/", "\\"))
    return image


@pytest.fixture
def pair(tmp_path):
    base = Image(24 * MiB, block_size=2 * MiB, seed=1).write(0, 10 * MiB, Pattern(1)).build(tmp_path / "base.vhdx")
    child = child_of(base, tmp_path / "child.avhdx", 2)
    child.write(MiB + 512, 4096, Pattern(2)).write(12 * MiB, 3 * MiB, Pattern(3)).set_block(5, ZERO).set_block(6, UNMAPPED)
    return base, child.build(tmp_path / "child.avhdx")


# ---- content

def test_child_into_parent(vhdx, pair, tmp_path):
    base, child = pair
    before = sha256(child.path)
    done = merge(vhdx, child, "--delete", "-n")
    assert sha256(child.path) == before and done["copy-bytes"] == 3 * MiB + 4096 and done["zero-bytes"] == 2 * MiB
    assert done["space-bytes"] == 4 * MiB and done["was-complete"] is False
    assert done["target"] == [base.path] and done["merged"] == [child.path] and done["moved"] == []
    assert merge(vhdx, child, "--delete") == done
    assert not os.path.exists(child.path)
    must_read(vhdx, base.path, child, tmp_path)
    assert info(vhdx, base.path)["data-write-guid"] == guid_text(child.data_write_guid)


def test_files_stay_unless_told(vhdx, pair, tmp_path):
    base, child = pair
    merge(vhdx, child)
    must_read(vhdx, base.path, child, tmp_path)
    must_read(vhdx, child.path, child, tmp_path)
    again = merge(vhdx, child, "--delete")
    assert again["was-complete"] is True and again["copy-bytes"] == 0
    assert not os.path.exists(child.path)
    must_read(vhdx, base.path, child, tmp_path)


@pytest.mark.parametrize("levels", [1, 2])
def test_child_that_stayed_is_used_further(vhdx, pair, tmp_path, levels):
    """The parent is whole without it, so nothing keeps them together; and what was written since is merged, too."""
    base, child = pair
    top = child.path
    if levels == 2:
        top = tmp_path / "top.avhdx"
        vhdx("create", "-q", "--parent", child.path, top, rc=0)
    merge(vhdx, top, "--into", base.path)
    link = next(image for image in vhdx("chain", "--json", base.path, rc=0).json() if image["filename"] == child.path)["link"]
    assert link["status"] == "ok" and link.get("remark") is None and "interrupted" not in vhdx("check", child.path).out
    vhdx("rebase", "--parent", base.path, child.path, rc=0)
    recorded = info(vhdx, child.path)["parent-locator"]
    assert recorded["parent_linkage"].lower() == "{6f33030a-5a13-4be0-8f3b-4c546809c88e}"
    assert recorded["parent_linkage2"] == "{" + info(vhdx, base.path)["data-write-guid"] + "}"
    assert merge(vhdx, top, "--into", base.path)["was-complete"] is True
    vhdx("io", top, "-c", "write -P 7 1M 64k", "-c", "flush", rc=0)
    vhdx("create", "-q", "--parent", base.path, tmp_path / "new.avhdx", rc=0)
    must_read(vhdx, tmp_path / "new.avhdx", child, tmp_path)
    os.remove(tmp_path / "new.avhdx")
    assert merge(vhdx, top, "--into", base.path)["was-complete"] is False
    vhdx("io", base.path, "-r", "-c", "read -P 7 1M 64k", rc=0)
    vhdx("rebase", "--parent", "", child.path, rc=0)


@pytest.mark.parametrize("lss, blocks", [(512, (1, 2, 32)), (4096, (32, 1, 2)), (512, (2, 256, 1)), (4096, (256, 2, 256))])
def test_stretch_with_mixed_blocks(vhdx, tmp_path, lss, blocks):
    base = Image(300 * MiB, block_size=blocks[0] * MiB, lss=lss, seed=1)
    base.write(0, 3 * MiB, Pattern(1)).write(255 * MiB, 3 * MiB, Pattern(2))
    base = base.build(tmp_path / "base.vhdx")
    middle = child_of(base, tmp_path / "middle.avhdx", 2, block_size=blocks[1] * MiB)
    middle.write(MiB, 64 * 1024, Pattern(3)).write(256 * MiB - 4096, 8192, Pattern(4)).write(100 * MiB, 4096, Pattern(5))
    middle = middle.build(tmp_path / "middle.avhdx")
    child = child_of(middle, tmp_path / "child.avhdx", 3, block_size=blocks[2] * MiB)
    child.write(MiB + 4096, 4096, Pattern(6)).write(299 * MiB, MiB, Pattern(7)).write(64 * MiB, 4096, Pattern(8))
    child.set_block((150 * MiB) // (blocks[2] * MiB), ZERO)
    child = child.build(tmp_path / "child.avhdx")
    merge(vhdx, child, "--into", base.path, "--delete")
    assert os.listdir(tmp_path) == ["base.vhdx"]
    must_read(vhdx, base.path, child, tmp_path)


def test_sixteen_deep(vhdx, tmp_path):
    images = [Image(16 * MiB, block_size=MiB, seed=100).write(0, 8 * MiB, Pattern(100)).build(tmp_path / "00.vhdx")]
    for depth in range(1, 16):
        image = child_of(images[-1], tmp_path / f"{depth:02}.avhdx", depth, block_size=[MiB, 2 * MiB, 4 * MiB][depth % 3])
        image.write((depth * 700 * 1024) // 4096 * 4096, 300 * 1024, Pattern(depth))
        if depth == 9:
            make_dirty(image, ["bat", "bitmap"])
        images.append(image.build(tmp_path / f"{depth:02}.avhdx"))
    done = merge(vhdx, images[15], "--into", images[0].path, "--delete")
    assert len(done["merged"]) == 15 and os.listdir(tmp_path) == ["00.vhdx"]
    must_read(vhdx, images[0].path, images[15], tmp_path)


def test_zeros_replace_data(vhdx, tmp_path):
    """Stored zeros, holes in the child's file, and states that mean zeros."""
    base = Image(16 * MiB, block_size=4 * MiB, seed=1).write(0, 16 * MiB, Pattern(1)).build(tmp_path / "base.vhdx")
    child = child_of(base, tmp_path / "child.avhdx", 2)
    child.write(0, MiB, Fill(0)).write(MiB, 8192, Fill(0)).write(2 * MiB + 4096, 4096, Pattern(2))
    for number, state in ((4, ZERO), (5, ZERO), (6, UNMAPPED), (7, UNDEFINED), (9, ZERO)):
        child.set_block(number, state)
    child = child.build(tmp_path / "child.avhdx")
    before = os.stat(base.path).st_blocks
    merge(vhdx, child, "--delete")
    must_read(vhdx, base.path, child, tmp_path)
    assert info(vhdx, base.path)["blocks"]["fully-present"] == 3        # block 1 of the target became zeros whole
    assert os.stat(base.path).st_blocks <= before


@pytest.mark.parametrize("preallocation", ["off", "full"])
def test_into_a_fixed_image(vhdx, tmp_path, preallocation):
    path = tmp_path / "base.vhdx"
    vhdx("create", "--fixed", "--preallocate", preallocation, path, "16M", rc=0)
    vhdx("create", "--parent", path, tmp_path / "child.avhdx", rc=0)
    base_id = info(vhdx, path)["data-write-guid"]
    child = Image(16 * MiB, block_size=MiB, kind="differencing", disk_id=guid(info(vhdx, path)["disk-id"]), seed=2)
    child.locator = Locator.relative(guid(base_id), ".\\base.vhdx")
    child.write(MiB + 512, 4096, Pattern(2)).set_block(9, ZERO)
    child = child.build(tmp_path / "child.avhdx")
    merge(vhdx, child, "--delete")
    must_read(vhdx, path, child, tmp_path)
    assert info(vhdx, path)["subformat"] == "fixed"


def test_dirty_logs(vhdx, tmp_path):
    base = Image(16 * MiB, block_size=2 * MiB, seed=1).write(0, 4 * MiB, Pattern(1))
    make_dirty(base, ["bat"])
    base = base.build(tmp_path / "base.vhdx")
    middle = child_of(base, tmp_path / "middle.avhdx", 2).write(MiB, 512, Pattern(2))
    make_dirty(middle, ["bat", "bitmap"])
    middle = middle.build(tmp_path / "middle.avhdx")
    child = child_of(middle, tmp_path / "child.avhdx", 3).write(MiB + 512, 512, Pattern(3))
    make_dirty(child, ["bat", "bitmap"])
    child = child.build(tmp_path / "child.avhdx")
    merge(vhdx, child, "--into", base.path)
    must_read(vhdx, base.path, child, tmp_path)
    must_read(vhdx, child.path, child, tmp_path)


def test_stretch_in_the_middle_leaves_what_is_below_alone(vhdx, tmp_path):
    """Into a parent that has a parent itself."""
    root = Image(16 * MiB, block_size=2 * MiB, seed=1).write(0, 4 * MiB, Pattern(1)).build(tmp_path / "root.vhdx")
    base = child_of(root, tmp_path / "base.avhdx", 2).write(2 * MiB, MiB, Pattern(2)).build(tmp_path / "base.avhdx")
    child = child_of(base, tmp_path / "child.avhdx", 3).write(MiB + 512, 512, Pattern(3)).write(9 * MiB, 512, Pattern(4))
    child = child.set_block(2, ZERO).set_block(0, UNMAPPED).build(tmp_path / "child.avhdx")
    before = sha256(root.path)
    merge(vhdx, child, "--delete")
    assert sha256(root.path) == before
    must_read(vhdx, base.path, child, tmp_path)


def test_metadata_of_the_disk_goes_along(vhdx, tmp_path):
    """IsVirtualDisk items of the parent go, the child's come; the others stay (format section 7.2)."""
    base = Image(8 * MiB, seed=1)
    base.items += [Item("old", b"goes", flags=IS_USER | IS_VIRTUAL_DISK), Item("same", b"a", flags=IS_USER | IS_VIRTUAL_DISK),
                   Item("file", b"stays", flags=IS_USER), Item("big", b"x" * 300000, flags=IS_USER | IS_VIRTUAL_DISK)]
    base = base.build(tmp_path / "base.vhdx")
    child = child_of(base, tmp_path / "child.avhdx", 2, pss=512)
    child.items += [Item("new", b"comes", flags=IS_USER | IS_VIRTUAL_DISK), Item("same", b"longer", flags=IS_USER | IS_VIRTUAL_DISK),
                    Item("childs own", b"not taken", flags=IS_USER), Item("big", b"y" * 200000, flags=IS_USER | IS_VIRTUAL_DISK)]
    child = child.build(tmp_path / "child.avhdx")
    merge(vhdx, child, "--delete")
    out = vhdx("dump", "--metadata", base.path, rc=0).out
    for name, there in (("old", False), ("same", True), ("file", True), ("new", True), ("childs own", False), ("big", True)):
        assert (guid_text(seeded_guid(0, "item " + name)) in out) == there, name
    assert info(vhdx, base.path)["physical-sector-size"] == 512
    vhdx("check", base.path, rc=0)


# ---- relatives

@pytest.fixture
def family(tmp_path):
    """base - middle - two children of middle, one of them in another folder."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "c").mkdir(parents=True)
    base = Image(16 * MiB, block_size=2 * MiB, seed=1).write(0, 4 * MiB, Pattern(1)).build(tmp_path / "a" / "base.vhdx")
    middle = child_of(base, tmp_path / "a" / "middle.avhdx", 2).write(MiB, MiB, Pattern(2)).build(tmp_path / "a" / "middle.avhdx")
    kid = child_of(middle, tmp_path / "a" / "kid.avhdx", 3).write(5 * MiB, 512, Pattern(3)).build(tmp_path / "a" / "kid.avhdx")
    far = child_of(middle, tmp_path / "b" / "c" / "far.avhdx", 4).write(6 * MiB, 512, Pattern(4))
    far = far.build(tmp_path / "b" / "c" / "far.avhdx")
    return base, middle, kid, far


def test_children_in_the_folder_come_along(vhdx, family, tmp_path):
    base, middle, kid, _ = family
    done = merge(vhdx, middle, "--delete")
    assert done["moved"] == [kid.path] and not os.path.exists(middle.path)
    must_read(vhdx, kid.path, kid, tmp_path)
    assert info(vhdx, kid.path)["parent-locator"]["relative_path"] == ".\\base.vhdx"
    assert info(vhdx, kid.path)["data-write-guid"] == guid_text(kid.data_write_guid)


@pytest.mark.parametrize("how", ["named", "found"])
def test_children_elsewhere(vhdx, family, tmp_path, how):
    base, middle, kid, far = family
    options = ["--child", far.path] if how == "named" else ["--find", tmp_path / "b"]
    done = merge(vhdx, middle, "--delete", *options)
    assert sorted(done["moved"]) == sorted([kid.path, far.path])
    must_read(vhdx, kid.path, kid, tmp_path)
    out = vhdx("convert", "--parent-dir", tmp_path, far.path, tmp_path / "far.raw", rc=0)
    assert far.first_difference(tmp_path / "far.raw") is None, out
    assert info(vhdx, far.path)["parent-locator"]["relative_path"] == "..\\..\\a\\base.vhdx"


def test_child_that_nobody_named_is_found_again_by_its_identity(vhdx, family, tmp_path):
    base, middle, _, far = family
    merge(vhdx, middle, "--delete")
    vhdx("convert", "--parent-dir", tmp_path / "a", far.path, "-", rc=1)
    assert vhdx("rebase", "--find", tmp_path, far.path, rc=0).out == f"{base.path}\n"
    vhdx("convert", "--parent-dir", tmp_path, far.path, tmp_path / "far.raw", rc=0)
    assert far.first_difference(tmp_path / "far.raw") is None


def test_child_of_an_image_between_that_nobody_found_refuses(vhdx, family, tmp_path):
    """Rather than show a mixture of two states."""
    base, middle, kid, far = family
    merge(vhdx, kid, "--into", base.path)
    must_read(vhdx, kid.path, kid, tmp_path)
    must_read(vhdx, base.path, kid, tmp_path)
    assert "mismatch in the identifiers" in vhdx("convert", "--parent-dir", tmp_path, far.path, "-", rc=1).err


def test_children_after_an_interrupted_merge(vhdx, family, tmp_path):
    """Everything was copied, one of two children led to the target, then the power failed."""
    base, middle, kid, far = family
    merge(vhdx, middle, "--child", far.path)
    done = merge(vhdx, middle, "--find", tmp_path, "--delete")
    assert done["was-complete"] is True
    must_read(vhdx, kid.path, kid, tmp_path)
    vhdx("convert", "--parent-dir", tmp_path, far.path, tmp_path / "far.raw", rc=0)
    assert far.first_difference(tmp_path / "far.raw") is None


def test_no_child_named_that_is_none(vhdx, family, tmp_path):
    base, middle, kid, far = family
    other = Image(16 * MiB, seed=9).build(tmp_path / "other.vhdx")
    before = [sha256(image.path) for image in family]
    for path in (other.path, base.path, middle.path, tmp_path / "nothing"):
        merge(vhdx, middle, "--child", path, rc=1)
    assert [sha256(image.path) for image in family] == before


@pytest.mark.parametrize("which", ["target", "between"])
def test_other_children_are_not_orphaned(vhdx, family, tmp_path, which):
    base, middle, kid, far = family
    if which == "target":
        child_of(base, tmp_path / "a" / "brother.avhdx", 7).write(0, 512, Pattern(7)).build(tmp_path / "a" / "brother.avhdx")
        arguments = [middle.path]
        name = "brother.avhdx"
    else:
        arguments = ["--into", base.path, kid.path, "--find", tmp_path / "b"]
        name = "far.avhdx"
    before = [sha256(image.path) for image in family]
    err = vhdx("merge", *arguments, rc=1).err
    assert name in err and "would lose the content" in err
    assert [sha256(image.path) for image in family] == before


def test_other_child_in_use_is_named(vhdx, family, tmp_path):
    """That somebody uses it, and its parent with it, is not all that is in the way."""
    base, middle, _, _ = family
    brother = child_of(base, tmp_path / "a" / "brother.avhdx", 7).build(tmp_path / "a" / "brother.avhdx")
    with open(brother.path, "rb") as file, open(base.path, "rb") as parent:
        for f in (file, parent):
            for number in (100, 201, 203):
                fcntl.fcntl(f, 37, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, number, 1, 0))
        err = merge(vhdx, middle, rc=1)
    assert "brother.avhdx" in err and "would lose the content" in err


def test_what_is_refused_keeps_its_dirty_logs(vhdx, tmp_path):
    base = Image(16 * MiB, block_size=2 * MiB, seed=1).write(0, 4 * MiB, Pattern(1))
    make_dirty(base, ["bat"])
    base = base.build(tmp_path / "base.vhdx")
    middle = child_of(base, tmp_path / "middle.avhdx", 2).write(MiB, 512, Pattern(2))
    make_dirty(middle, ["bat", "bitmap"])
    middle = middle.build(tmp_path / "middle.avhdx")
    child_of(base, tmp_path / "brother.avhdx", 3).build(tmp_path / "brother.avhdx")
    before = [sha256(image.path) for image in (base, middle)]
    assert "brother.avhdx" in merge(vhdx, middle, rc=1)
    assert [sha256(image.path) for image in (base, middle)] == before


def test_link_of_a_merged_child_is_mended(vhdx, pair, tmp_path):
    """It accepts a parent with its own identity, but is not its own parent, whatever name it finds itself under."""
    base, child = pair
    merge(vhdx, child)
    (tmp_path / "there").mkdir()
    os.rename(base.path, tmp_path / "there" / "base.vhdx")
    os.rename(child.path, tmp_path / "base.vhdx")
    link = [entry["link"] for entry in vhdx("chain", "--json", tmp_path, rc=1).json() if "link" in entry]
    assert [entry["status"] for entry in link] == ["moved"]
    assert vhdx("rebase", "--find", tmp_path, tmp_path / "base.vhdx", rc=0).out == f"{tmp_path}/there/base.vhdx\n"
    must_read(vhdx, tmp_path / "base.vhdx", child, tmp_path)


def test_mark_of_another_interrupted_merge_stays(vhdx, tmp_path):
    """What goes down is whole only under its child, and then so is the target."""
    base = Image(16 * MiB, block_size=MiB, seed=1).write(0, 4 * MiB, Pattern(1)).build(tmp_path / "base.vhdx")
    middle = child_of(base, tmp_path / "middle.avhdx", 2).write(MiB, 4096, Pattern(2)).build(tmp_path / "middle.avhdx")
    kid = child_of(middle, tmp_path / "kid.avhdx", 3).write(2 * MiB, 4096, Pattern(3))
    before = seeded_guid(4, "before")
    kid.locator = Locator.relative(before, ".\\middle.avhdx", linkage2=middle.data_write_guid)
    kid = kid.build(tmp_path / "kid.avhdx")
    for times in range(2): # the second finds a child that was led to the target already
        merge(vhdx, middle)
        found = info(vhdx, kid.path)["parent-locator"]
        assert (found["parent_linkage"], found["parent_linkage2"]) == (braced(before), braced(middle.data_write_guid))
        assert found["relative_path"] == ".\\base.vhdx"
    must_read(vhdx, kid.path, kid, tmp_path)
    assert "did not come to its end" in vhdx("create", "--parent", base.path, tmp_path / "new.avhdx", rc=1).err
    merge(vhdx, middle, "--delete")
    merge(vhdx, kid, "--delete")
    assert sorted(os.listdir(tmp_path)) == ["base.vhdx", "content.raw"]
    must_read(vhdx, base.path, kid, tmp_path)


# ---- refused

def test_sizes_differ(vhdx, tmp_path):
    base = Image(8 * MiB, seed=1).build(tmp_path / "base.vhdx")
    child = child_of(base, tmp_path / "child.avhdx", 2, size=16 * MiB).build(tmp_path / "child.avhdx")
    before = sha256(base.path), sha256(child.path)
    assert "sizes equal" in merge(vhdx, child, rc=1)
    assert before == (sha256(base.path), sha256(child.path))


def test_no_parent(vhdx, pair):
    assert "no parent" in merge(vhdx, pair[0], rc=1)


def test_into_what_is_no_parent(vhdx, pair, tmp_path):
    other = Image(24 * MiB, seed=9).build(tmp_path / "other.vhdx")
    for path in (other.path, pair[1].path):
        assert "none of the image's parents" in merge(vhdx, pair[1], "--into", path, rc=1)
    assert "No such file" in merge(vhdx, pair[1], "--into", tmp_path / "nothing", rc=1)


def test_broken_chain(vhdx, pair):
    base, child = pair
    vhdx("io", base.path, "-c", "write 0 4k", rc=0)
    before = sha256(base.path)
    assert "mismatch in the identifiers" in merge(vhdx, child, rc=1)
    assert sha256(base.path) == before


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("byte, says", [((100, 201, 203), "open for reading"), ((100, 101, 103, 201, 203), "open for writing")])
def test_files_in_use(vhdx, pair, which, byte, says):
    before = [sha256(image.path) for image in pair]
    with open(pair[which].path, "r+b") as file:
        for number in byte:
            fcntl.fcntl(file, 37, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, number, 1, 0))
        assert says in merge(vhdx, pair[1], rc=1)
        assert [sha256(image.path) for image in pair] == before


def test_links_are_not_what_gets_removed(vhdx, pair, tmp_path):
    base, child = pair
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "c.avhdx").symlink_to(child.path)
    merge(vhdx, tmp_path / "links" / "c.avhdx", "--delete")
    assert not os.path.exists(child.path) and (tmp_path / "links" / "c.avhdx").is_symlink()
    must_read(vhdx, base.path, child, tmp_path)


# ---- running

def test_what_people_see(vhdx, pair):
    dry = vhdx("merge", "-n", pair[1].path, rc=0).out
    assert "up to 4 MiB" in dry and "3 MiB" in dry and pair[0].path in dry
    assert vhdx("merge", "-q", pair[1].path, rc=0).out == ""


def test_killed_and_done_again(vhdx, vhdx_path, tmp_path):
    """SIGKILL at some moments: the child shows what it did, and the merge can be completed."""
    base = Image(64 * MiB, block_size=2 * MiB, seed=1).write(0, 8 * MiB, Pattern(1)).build(tmp_path / "base.vhdx")
    child = child_of(base, tmp_path / "child.avhdx", 2, block_size=MiB).write(4 * MiB, 24 * MiB, Pattern(2))
    child = child.build(tmp_path / "child.avhdx")
    for delay in (0.001, 0.01, 0.03, 0.06):
        with subprocess.Popen([vhdx_path, "merge", "-q", "-m", "1", child.path]) as process:
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
        out = tmp_path / "content.raw"
        vhdx("convert", "--force", child.path, out, rc=0)
        assert child.first_difference(out) is None
    merge(vhdx, child, "--delete")
    must_read(vhdx, base.path, child, tmp_path)


def test_stopped_by_a_signal(vhdx, vhdx_path, tool, tmp_path):
    base = Image(512 * MiB, block_size=2 * MiB, seed=1).build(tmp_path / "base.vhdx")
    child = child_of(base, tmp_path / "child.avhdx", 2, block_size=MiB)
    for number in range(0, 400):
        child.write(number * MiB + 4096, 8192, Pattern(number))
    child = child.build(tmp_path / "child.avhdx")
    before = info(vhdx, base.path)["data-write-guid"]
    done = subprocess.run([find_strace(tool), "-qq", "-o", "/dev/null", "-e", "trace=pwrite64", "-e",
                           "inject=pwrite64:signal=SIGINT:when=200", vhdx_path, "merge", "-m", "1",
                           "--reflink=never", child.path],
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 130 and "completes the merge" in done.stderr, done.stderr
    assert info(vhdx, base.path)["data-write-guid"] != before
    must_read(vhdx, child.path, child, tmp_path)
    assert merge(vhdx, child, "--delete")["was-complete"] is False
    must_read(vhdx, base.path, child, tmp_path)


@pytest.mark.parametrize("reflink", ["auto", "never"])
def test_reflinks(vhdx, pair, tmp_path, reflink):
    base, child = pair
    merge(vhdx, child, "--reflink", reflink, "--delete")
    must_read(vhdx, base.path, child, tmp_path)


# ---- the end of a merge whose child stays

@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
def test_whenever_it_dies_the_child_shows_the_same_and_the_merge_completes(vhdx, vhdx_path, tool, pair, tmp_path, call):
    """To the last change of the child's link: the parent is whole then, also when the child goes on to change."""
    strace, (base, child) = find_strace(tool), pair
    before = {built.path: pathlib.Path(built.path).read_bytes() for built in pair}
    nr_deaths, died = 0, True
    while died and nr_deaths < 100:
        for path, content in before.items():
            pathlib.Path(path).write_bytes(content)
        done = subprocess.run([strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                               f"inject={call}:error=EIO:signal=SIGKILL:when={nr_deaths + 1}", vhdx_path, "merge", child.path],
                              capture_output=True, timeout=300, check=False)
        died = done.returncode != 0
        nr_deaths += died
        must_read(vhdx, child.path, child, tmp_path)
        merge(vhdx, child)
        must_read(vhdx, base.path, child, tmp_path)
        vhdx("io", child.path, "-c", "write -P 9 0 4k", rc=0)
        vhdx("create", "--force", "--parent", base.path, tmp_path / "other.avhdx", rc=0)
        (tmp_path / "other.avhdx").unlink()
    assert not died and nr_deaths > 10
