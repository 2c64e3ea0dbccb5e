# SPDX-License-Identifier: MIT
"""vhdx check: what it says of parents (rules 51 to 56 of format section 12)."""
import os
import shutil

import pytest
from cli_support import held_by_qemu

from vhdxbuild import Image, Locator, MiB, Patch, Pattern, braced, make_dirty


@pytest.fixture
def parent(tmp_path):
    return disk(1).build(tmp_path / "parent.vhdx")


def disk(seed, size=16 * MiB, **keywords):
    image = Image(size, seed=seed, stale_item_entry=False, **keywords)
    return image.write(0, 3 * MiB, Pattern(seed))


def check(vhdx, built_or_path, rc, *options):
    path = getattr(built_or_path, "path", built_or_path)
    document = vhdx("check", "--json", *options, path, rc=rc).json()
    return {(finding["rule"], finding["severity"]) for finding in document["findings"]}, document


def test_sound_chain(vhdx, tmp_path, parent):
    child = disk(2, parent=parent).build(tmp_path / "child.vhdx")
    grandchild = disk(3, parent=child).build(tmp_path / "grandchild.vhdx")
    found, document = check(vhdx, grandchild, 0)
    assert found == set() and document["usable"]


def test_parent_that_is_dirty_is_fine(vhdx, tmp_path):
    parent = make_dirty(disk(1), ["bat", "metadata"]).build(tmp_path / "parent.vhdx")
    found, _ = check(vhdx, disk(2, parent=parent).build(tmp_path / "child.vhdx"), 0)
    assert found == set()


def test_parent_found_by_another_path(vhdx, tmp_path, parent):
    child = disk(2, parent=parent)
    child.locator = Locator.relative(parent.data_write_guid, ".\\old\\parent.vhdx")
    found, document = check(vhdx, child.build(tmp_path / "child.vhdx"), 0)
    assert found == {(51, "warning")}
    assert document["findings"][0]["repairable"]


def test_through_a_link(vhdx, tmp_path):
    """The parent is found where the image really lies, so its path is judged from there, too."""
    (tmp_path / "real").mkdir()
    child = disk(2, parent=disk(1).build(tmp_path / "real" / "parent.vhdx")).build(tmp_path / "real" / "child.vhdx")
    (tmp_path / "here.vhdx").symlink_to("real/child.vhdx")
    (tmp_path / "folder").symlink_to("real")
    assert check(vhdx, tmp_path / "here.vhdx", 0)[0] == check(vhdx, tmp_path / "folder" / "child.vhdx", 0)[0] == set()
    assert "relative path" not in vhdx("chain", tmp_path / "here.vhdx", rc=0).out
    (tmp_path / "real" / "deep").mkdir()
    os.rename(child.path, tmp_path / "real" / "deep" / "child.vhdx")
    (tmp_path / "here.vhdx").unlink()
    (tmp_path / "here.vhdx").symlink_to("real/deep/child.vhdx")
    assert check(vhdx, tmp_path / "here.vhdx", 0, "--parent-dir", tmp_path / "real")[0] == {(51, "warning")}


def test_parent_named_by_the_user(vhdx, tmp_path, parent):
    child = disk(2, parent=parent)
    child.locator = Locator([("parent_linkage", braced(parent.data_write_guid))])     # no path at all
    built = child.build(tmp_path / "child.vhdx")
    assert check(vhdx, built, 0, "--parent", parent.path)[0] == {(50, "warning")}
    assert check(vhdx, built, 2)[0] == {(50, "error"), (52, "error")}


def test_parent_missing(vhdx, tmp_path, parent):
    child = disk(2, parent=parent).build(tmp_path / "child.vhdx")
    os.rename(parent.path, tmp_path / "elsewhere.vhdx")
    found, document = check(vhdx, child, 2)
    assert found == {(52, "error")} and not document["usable"]


def test_broken_chain_is_not_called_a_damaged_image(vhdx, tmp_path, parent):
    """Who reads "damaged" restores a good image from its backup."""
    child = disk(2, parent=parent).build(tmp_path / "child.vhdx")
    os.rename(parent.path, tmp_path / "elsewhere.vhdx")
    out = vhdx("check", child.path, rc=2).out
    assert "damaged" not in out and "image itself is sound" in out
    for remedy in ("vhdx rebase --find", "--parent-dir", "--allow-parent-path"):
        assert remedy in out.splitlines()[-1]
    disk(1, data_write_guid=bytes(range(16))).build(parent.path)
    assert "image itself is sound" in vhdx("check", child.path, rc=2).out
    child = disk(3, parent=parent)
    child.set_block(6, raw=6 | 1 << 40)
    os.unlink(parent.path)
    out = vhdx("check", child.build(tmp_path / "other.vhdx").path, rc=2).out
    assert "The image is damaged" in out and "sound" not in out


def test_parent_in_a_folder_that_the_user_names(vhdx, tmp_path, parent):
    child = disk(2, parent=parent).build(tmp_path / "child.vhdx")
    (tmp_path / "attic").mkdir()
    os.rename(parent.path, tmp_path / "attic" / "parent.vhdx")
    assert check(vhdx, child, 0, "--parent-dir", tmp_path / "attic")[0] == {(51, "warning")}


def test_parent_where_policy_forbids_to_look(vhdx, tmp_path, parent):
    (tmp_path / "sub").mkdir()
    child = disk(2, parent=parent).build(tmp_path / "sub" / "child.vhdx")             # ..\parent.vhdx
    found, document = check(vhdx, child, 2)
    assert found == {(52, "error")}
    assert "--allow-parent-path" in document["findings"][0]["message"]
    assert check(vhdx, child, 0, "--allow-parent-path")[0] == set()


def test_parent_was_changed(vhdx, tmp_path, parent):
    child = disk(2, parent=parent).build(tmp_path / "child.vhdx")
    disk(1, data_write_guid=bytes(range(16))).build(parent.path)
    assert check(vhdx, child, 2)[0] == {(53, "error")}


def test_parent_is_damaged(vhdx, tmp_path, parent):
    child = disk(2, parent=parent).build(tmp_path / "child.vhdx")
    broken = disk(1)
    broken.patches.append(Patch("metadata", b"x"))
    broken.build(parent.path)
    found, document = check(vhdx, child, 2)
    assert found == {(52, "error")}
    assert "parent.vhdx" in document["findings"][0]["message"]


def test_parent_whose_blocks_overlap(vhdx, tmp_path, parent):
    child = disk(2, parent=parent).build(tmp_path / "child.vhdx")
    broken = disk(1)
    broken.patches.append(Patch("entry:5", (6 | parent.where("block:0")).to_bytes(8, "little")))
    broken.build(parent.path)
    assert check(vhdx, child, 2)[0] == {(52, "error")}
    assert (63, "error") in check(vhdx, parent, 2)[0]


def test_sector_sizes_differ(vhdx, tmp_path, parent):
    child = disk(2, parent=parent, lss=4096, disk_id=parent.image.disk_id).build(tmp_path / "child.vhdx")
    assert check(vhdx, child, 2)[0] == {(54, "error")}
    os.rename(parent.path, tmp_path / "elsewhere.vhdx")
    assert check(vhdx, child, 2, "--parent", tmp_path / "elsewhere.vhdx")[0] == {(54, "error")}


def test_virtual_sizes_differ(vhdx, tmp_path, parent):
    child = disk(2, size=20 * MiB, parent=parent).build(tmp_path / "child.vhdx")
    assert check(vhdx, child, 0)[0] == {(54, "warning")}


def test_image_that_is_its_own_parent(vhdx, tmp_path, parent):
    child = disk(2, parent=parent)
    child.locator = Locator.relative(child.data_write_guid, ".\\child.vhdx")
    assert check(vhdx, child.build(tmp_path / "child.vhdx"), 2)[0] == {(55, "error")}


def test_two_images_that_are_each_others_parents(vhdx, tmp_path, parent):
    a, b = disk(2, parent=parent), disk(3, parent=parent)
    a.locator = Locator.relative(b.data_write_guid, ".\\b.vhdx")
    b.locator = Locator.relative(a.data_write_guid, ".\\a.vhdx")
    a.build(tmp_path / "a.vhdx")
    assert check(vhdx, b.build(tmp_path / "b.vhdx"), 2)[0] == {(55, "error")}


def test_disk_id_differs(vhdx, tmp_path, parent):
    child = disk(2, parent=parent)
    child.disk_id = bytes(range(16))
    assert check(vhdx, child.build(tmp_path / "child.vhdx"), 0)[0] == {(56, "info")}


def test_damaged_child_still_names_its_own_damage(vhdx, tmp_path, parent):
    child = disk(2, parent=parent)
    child.set_block(6, raw=6 | 1 << 40)
    child.item("virtual_disk_id").declared_length = 4           # this one keeps it from opening
    found, _ = check(vhdx, child.build(tmp_path / "child.vhdx"), 2)
    assert found == {(35, "error"), (62, "error"), (52, "info")}


def test_bad_blocks_do_not_hide_a_missing_parent(vhdx, tmp_path, parent):
    child = disk(2, parent=parent)
    child.set_block(6, raw=6 | 1 << 40)
    built = child.build(tmp_path / "child.vhdx")
    os.unlink(parent.path)
    assert check(vhdx, built, 2)[0] == {(62, "error"), (52, "error")}


def test_locked_parent_is_no_corruption(vhdx, tmp_path, parent, tool):
    """What cannot be looked at is "could not check", not "corrupt"."""
    child = disk(2, parent=parent).build(tmp_path / "child.vhdx")
    with held_by_qemu(tool("qemu-io"), parent.path):
        assert vhdx("check", child.path).rc == 1
        vhdx("check", "--force-share", child.path, rc=0)


def test_copy_of_the_parent_next_to_it_changes_nothing(vhdx, tmp_path, parent):
    shutil.copy(parent.path, tmp_path / "copy.vhdx")
    assert check(vhdx, disk(2, parent=parent).build(tmp_path / "child.vhdx"), 0)[0] == set()


@pytest.mark.parametrize("depth", [1, 2])
def test_damaged_tables_of_parents_are_found(vhdx, tmp_path, depth):
    base = Image(16 * MiB, block_size=MiB, seed=1).write(0, 3 * MiB, Pattern(1))
    if depth == 2:
        base.bat_raw[1] = base.plan().where("block:0") | 6      # two blocks in one place
    middle = Image(16 * MiB, block_size=MiB, seed=2, parent=base.build(tmp_path / "base.vhdx"))
    middle.write(4 * MiB, 2 * MiB, Pattern(2))
    if depth == 1:
        middle.bat_raw[5] = middle.plan(tmp_path / "middle.avhdx").where("block:4") | 6
    child = Image(16 * MiB, block_size=MiB, seed=3, parent=middle.build(tmp_path / "middle.avhdx"))
    path = child.build(tmp_path / "child.avhdx").path
    damaged = tmp_path / ("middle.avhdx" if depth == 1 else "base.vhdx")
    vhdx("check", damaged, rc=2)
    result = vhdx("check", "--json", path, rc=2).json()
    [finding] = [finding for finding in result["findings"] if finding["severity"] == "error"]
    assert str(damaged) in finding["message"] and "BAT entry" in finding["message"]
    assert result["corruptions"] == 1
