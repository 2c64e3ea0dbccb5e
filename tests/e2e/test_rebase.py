# SPDX-License-Identifier: MIT
"""vhdx rebase: links that are repaired by path and by identity, and those that must not be."""
import hashlib
import os
import shutil
import subprocess

import pytest
from cli_support import find_strace

from vhdxbuild import *
from vhdxbuild.reader import Reader


def disk(path, seed, size=8 * MiB, **keywords):
    return Image(size, block_size=MiB, seed=seed, **keywords).write(0, 3 * MiB, Pattern(seed)).build(path)


def child_of(parent, path, seed, locator=None, **keywords):
    image = Image(keywords.pop("size", 8 * MiB), block_size=MiB, seed=seed, parent=parent, **keywords)
    if locator is not None:
        image.locator = locator
    return image.write(MiB, 512, Pattern(seed)).build(path)


def info(vhdx, path):
    return vhdx("info", "--json", path, rc=0).json()


def locator(vhdx, path):
    return info(vhdx, path)["format-specific"]["data"]["parent-locator"]


def data_write_guid(vhdx, path):
    return info(vhdx, path)["format-specific"]["data"]["data-write-guid"]


def sha256(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()


def is_sound(vhdx, path):
    vhdx("check", path, rc=0)


@pytest.fixture
def moved(vhdx, tmp_path):
    """A child whose parent went to another folder and got another name."""
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2)
    (tmp_path / "there").mkdir()
    os.rename(base.path, tmp_path / "there" / "golden image.vhdx")
    vhdx("convert", child.path, "-", rc=1)
    return child


# ---- repaired

def test_by_path(vhdx, moved, tmp_path):
    parent = tmp_path / "there" / "golden image.vhdx"
    before = sha256(parent)
    assert vhdx("rebase", "--parent", parent, moved.path, rc=0).out == ""
    assert sha256(parent) == before
    assert locator(vhdx, moved.path) == {
        "parent_linkage": braced(moved.image.parent.data_write_guid),
        "relative_path": ".\\there\\golden image.vhdx",
        "parent_linkage2": "{00000000-0000-0000-0000-000000000000}"}
    vhdx("convert", moved.path, tmp_path / "out.raw", rc=0)
    assert moved.first_difference(tmp_path / "out.raw") is None
    assert data_write_guid(vhdx, moved.path) == guid_text(moved.image.data_write_guid)
    is_sound(vhdx, moved.path)
    assert Reader(moved.path, Reader(parent)).read(MiB, 512) == moved.expected(MiB, 512)


def test_children_of_the_child_stay_valid(vhdx, moved, tmp_path):
    kid = child_of(moved, tmp_path / "kid.avhdx", 5)
    vhdx("rebase", "-b", tmp_path / "there" / "golden image.vhdx", moved.path, rc=0)
    vhdx("convert", kid.path, tmp_path / "out.raw", rc=0)
    assert kid.first_difference(tmp_path / "out.raw") is None


def test_found_by_identity(vhdx, moved, tmp_path):
    disk(tmp_path / "there" / "another.vhdx", 9)
    (tmp_path / "there" / "fifo.vhdx").exists() or os.mkfifo(tmp_path / "there" / "fifo.vhdx")
    before = sha256(moved.path)
    found = vhdx("rebase", "--find", tmp_path, "-n", moved.path, rc=0).out
    assert found == f"{tmp_path}/there/golden image.vhdx\n" and sha256(moved.path) == before
    assert vhdx("rebase", "--find", tmp_path, moved.path, rc=0).out == found
    vhdx("convert", moved.path, tmp_path / "out.raw", rc=0)
    assert moved.first_difference(tmp_path / "out.raw") is None


def test_found_twice(vhdx, moved, tmp_path):
    shutil.copy(tmp_path / "there" / "golden image.vhdx", tmp_path / "there" / "copy.vhdx")
    result = vhdx("rebase", "--find", tmp_path, moved.path, rc=0)
    assert result.out == f"{tmp_path}/there/copy.vhdx\n" and "golden image.vhdx has the parent's identity as well" in result.err


def test_a_link_that_leads_to_its_parent_stays(vhdx, tmp_path):
    """However many copies come before it, in the same folder or in others."""
    base = disk(tmp_path / "zgolden.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2,
                     Locator.windows(base.data_write_guid, "C:\\vm\\zgolden.vhdx", ".\\zgolden.vhdx", "\\\\?\\Volume{x}\\zgolden.vhdx"))
    (tmp_path / "backup").mkdir()
    shutil.copy(base.path, tmp_path / "backup" / "golden.vhdx")
    shutil.copy(base.path, tmp_path / "a copy.vhdx")
    before = sha256(child.path)
    for find in (tmp_path, tmp_path / "backup"):
        for options in ([], ["-n"]):
            result = vhdx("rebase", "--find", find, *options, child.path, rc=0)
            assert result.out == f"{base.path}\n" and "nothing is to be done" in result.err and sha256(child.path) == before
    assert "golden.vhdx has the parent's identity as well" in result.err
    (tmp_path / "link.vhdx").symlink_to("child.avhdx")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "child.vhdx").symlink_to("../child.avhdx")
    for name in ("link.vhdx", "links/child.vhdx"):
        assert "nothing is to be done" in vhdx("rebase", "--find", tmp_path / "backup", tmp_path / name, rc=0).err
    assert "nothing is" not in vhdx("rebase", "--find", tmp_path, "-q", child.path, rc=0).err and sha256(child.path) == before
    vhdx("rebase", "--find", tmp_path, "--parent-windows-path", "D:\\zgolden.vhdx", child.path, rc=0)
    assert locator(vhdx, child.path)["relative_path"] == ".\\zgolden.vhdx"
    assert locator(vhdx, child.path)["absolute_win32_path"] == "D:\\zgolden.vhdx"


def test_a_link_out_of_the_folder_stays(vhdx, tmp_path):
    """Whoever names the folder that it leads into need not fear for it either."""
    for folder in ("backup", "base", "vm"):
        (tmp_path / folder).mkdir()
    base = disk(tmp_path / "base" / "golden.vhdx", 1)
    child = child_of(base, tmp_path / "vm" / "child.avhdx", 2, Locator.relative(base.data_write_guid, "..\\base\\golden.vhdx"))
    shutil.copy(base.path, tmp_path / "backup" / "golden.vhdx")
    result = vhdx("rebase", "--find", tmp_path, child.path, rc=0)
    assert result.out == f"{base.path}\n" and "nothing is to be done" in result.err


def test_which_of_several(vhdx, tmp_path):
    """In the child's folder before elsewhere, called as recorded before otherwise, then by path."""
    for folder in ("a", "b", "vm"):
        (tmp_path / folder).mkdir()
    base = disk(tmp_path / "a" / "other.vhdx", 1)
    child = child_of(base, tmp_path / "vm" / "child.avhdx", 2, Locator.relative(base.data_write_guid, "..\\old\\Golden.vhdx"))
    places = ["a/other.vhdx", "a/zz.vhdx", "b/golden.vhdx", "vm/another.vhdx", "vm/golden.vhdx"]
    for place in places[1:]:
        shutil.copy(base.path, tmp_path / place)
    (tmp_path / "vm" / "child.vhdx").symlink_to("child.avhdx")
    for expected in ("vm/golden.vhdx", "vm/another.vhdx", "b/golden.vhdx", "a/other.vhdx", "a/zz.vhdx"):
        result = vhdx("rebase", "--find", ".", "-n", "vm/child.vhdx", cwd=tmp_path, rc=0)
        assert result.out == f"{expected}\n"
        places.remove(expected)
        assert all(f"{place} has the parent's identity as well; taking {expected}" in result.err for place in places)
        (tmp_path / expected).unlink()


def test_a_parent_found_beside_the_child_only_by_its_name_is_recorded(vhdx, tmp_path):
    base = disk(tmp_path / "golden.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2, Locator.relative(base.data_write_guid, ".\\old\\golden.vhdx"))
    vhdx("map", child.path, rc=0)
    result = vhdx("rebase", "--find", tmp_path, child.path, rc=0)
    assert result.err == "" and locator(vhdx, child.path)["relative_path"] == ".\\golden.vhdx"


def test_a_part_of_a_merge_wins_over_a_link_that_leads_elsewhere(vhdx, tmp_path):
    copy = disk(tmp_path / "a copy.vhdx", 3)
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2, Locator.relative(copy.data_write_guid, ".\\a copy.vhdx", linkage2=base.data_write_guid))
    result = vhdx("rebase", "--find", tmp_path, child.path, rc=0)
    assert result.out == f"{base.path}\n" and "a copy.vhdx has the parent's identity as well" in result.err
    assert locator(vhdx, child.path)["relative_path"] == ".\\base.vhdx"


def test_not_found(vhdx, moved, tmp_path):
    (tmp_path / "empty").mkdir()
    before = sha256(moved.path)
    err = vhdx("rebase", "--find", tmp_path / "empty", moved.path, rc=1).err
    assert guid_text(moved.image.parent.data_write_guid) in err and sha256(moved.path) == before
    assert "No such file" in vhdx("rebase", "--find", tmp_path / "nothing", moved.path, rc=1).err


def test_where_it_was_not_looked_for(vhdx, moved, tmp_path):
    """Who reads that it is not there is told where it may be all the same."""
    (tmp_path / "there" / "golden image.vhdx").unlink()
    assert "warning" not in vhdx("rebase", "--find", tmp_path, moved.path, rc=1).err
    tmp_path.joinpath(*["d"] * 70).mkdir(parents=True)
    (tmp_path / "text.vhdx").write_text("hello")
    err = vhdx("rebase", "--find", tmp_path, moved.path, rc=1).err
    assert "1 folders could not be looked into" in err and "1 images could not be read" in err
    assert "has the parent's data write GUID" in err.splitlines()[-1]


def test_not_found_on_this_file_system(vhdx, moved, need_root, tmp_path):
    (tmp_path / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "below"], check=True)
    try:
        shutil.move(tmp_path / "there" / "golden image.vhdx", tmp_path / "below")
        assert "1 folders on other file systems" in vhdx("rebase", "--find", tmp_path, moved.path, rc=1).err
        vhdx("rebase", "--find", tmp_path / "below", moved.path, rc=0)
    finally:
        subprocess.run(["umount", tmp_path / "below"], check=True)


def test_found_deep_in_a_chain_that_names_parents_oddly(vhdx, tmp_path):
    """--find also where only the second linkage fits, as in an interrupted merge, whose only mark it is: it stays."""
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2,
                     Locator.relative(seeded_guid(3, "old"), ".\\gone.vhdx", linkage2=base.data_write_guid))
    vhdx("rebase", "--find", tmp_path, child.path, rc=0)
    found = locator(vhdx, child.path)
    assert found["parent_linkage"] == braced(seeded_guid(3, "old"))
    assert found["parent_linkage2"] == braced(base.data_write_guid) and found["relative_path"] == ".\\base.vhdx"


@pytest.mark.parametrize("which", ["first", "second"])
def test_mark_of_an_interrupted_merge_stays(vhdx, tmp_path, which):
    """Before the parent's identity changes it is the first of two, afterwards the second."""
    base = disk(tmp_path / "base.vhdx", 1)
    other = seeded_guid(3, "other")
    ids = (base.data_write_guid, other) if which == "first" else (other, base.data_write_guid)
    child = child_of(base, tmp_path / "child.avhdx", 2, Locator.relative(ids[0], ".\\gone.vhdx", linkage2=ids[1]))
    remarks = [entry["link"].get("remark") for entry in vhdx("chain", "--json", tmp_path).json() if "link" in entry]
    assert "rebase --parent" in remarks[0] and "merge of it was interrupted" in remarks[0]
    vhdx("rebase", "--parent", base.path, child.path, rc=0)
    found = locator(vhdx, child.path)
    assert (found["parent_linkage"], found["parent_linkage2"]) == (braced(ids[0]), braced(ids[1]))
    remarks = [entry["link"].get("remark") for entry in vhdx("chain", "--json", tmp_path, rc=0).json() if "link" in entry]
    assert "merge of it was interrupted" in remarks[0]
    vhdx("merge", "--delete", child.path, rc=0)
    vhdx("convert", base.path, tmp_path / "out.raw", rc=0)
    assert child.first_difference(tmp_path / "out.raw") is None


def test_found_is_what_needs_the_child(vhdx, tmp_path):
    """A copy of the parent from before the interrupted merge fits as well, and comes first, but can do without."""
    backup = disk(tmp_path / "a backup.vhdx", 3)
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2, Locator.relative(backup.data_write_guid, ".\\gone.vhdx", linkage2=base.data_write_guid))
    found = [entry["link"]["found"] for entry in vhdx("chain", "--json", tmp_path).json() if "link" in entry]
    assert found == [base.path]
    result = vhdx("rebase", "--find", tmp_path, child.path, rc=0)
    assert result.out == f"{base.path}\n" and "a backup.vhdx has the parent's identity as well" in result.err


def test_what_makes_a_parent_whole_keeps_it(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2, Locator.relative(seeded_guid(3, "old"), ".\\base.vhdx", linkage2=base.data_write_guid))
    before = sha256(child.path)
    assert "did not come to its end" in vhdx("rebase", "--parent", "", child.path, rc=1).err
    other = disk(tmp_path / "other.vhdx", 7)
    assert "did not come to its end" in vhdx("rebase", "--parent", other.path, child.path, rc=1).err
    assert sha256(child.path) == before
    vhdx("merge", child.path, rc=0) # complete, though the child is still there
    vhdx("rebase", "--parent", "", child.path, rc=0)


@pytest.mark.parametrize("call, rc", [("fdatasync", 0), ("openat", 130), ("getdents64", 130)])
def test_signal(vhdx, vhdx_path, tool, moved, tmp_path, call, rc):
    """In the midst of the change, which comes to its end; before it, so that nothing changes."""
    strace, before = find_strace(tool), sha256(moved.path)
    done = subprocess.run([strace, "-qq", "-o", "/dev/null", "-P", tmp_path / "there", "-P", moved.path, "-e", f"trace={call}",
                           "-e", f"inject={call}:signal=SIGINT:when=1", vhdx_path, "rebase", "--find", tmp_path / "there", moved.path],
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == rc, done.stderr
    assert (sha256(moved.path) == before) == (rc != 0)
    assert ("stopped by a signal; nothing was changed" in done.stderr) == (rc != 0) and "cancelled" not in done.stderr
    if rc == 0:
        vhdx("convert", moved.path, tmp_path / "out.raw", rc=0)
        assert moved.first_difference(tmp_path / "out.raw") is None


def test_nothing_to_do_writes_nothing(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2, Locator.relative(base.data_write_guid, ".\\base.vhdx"))
    before = sha256(child.path)
    vhdx("rebase", "--parent", base.path, child.path, rc=0)
    assert sha256(child.path) == before


def test_identity_in_upper_case(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2,
                     Locator([("parent_linkage", braced(base.data_write_guid).upper()), ("relative_path", ".\\gone.vhdx")]))
    vhdx("rebase", "--parent", base.path, child.path, rc=0)
    assert locator(vhdx, child.path)["parent_linkage"] == braced(base.data_write_guid)


def test_unknown_keys_stay_and_stale_paths_go(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    pairs = Locator.windows(base.data_write_guid, "C:\\old\\base.vhdx", ".\\old.vhdx", "\\\\?\\Volume{x}\\base.vhdx")
    pairs.pairs.insert(1, ("veeam_note \U0001f4be", "größe"))
    pairs.pairs.append(("Parent_Linkage", "no key of ours: case counts"))
    child = child_of(base, tmp_path / "child.avhdx", 2, pairs)
    vhdx("rebase", "--parent", base.path, "--parent-windows-path", "D:\\new\\base.vhdx", child.path, rc=0)
    assert locator(vhdx, child.path) == {
        "parent_linkage": braced(base.data_write_guid), "veeam_note \U0001f4be": "größe", "relative_path": ".\\base.vhdx",
        "parent_linkage2": braced(NO_GUID), "Parent_Linkage": "no key of ours: case counts",
        "absolute_win32_path": "D:\\new\\base.vhdx"}


def test_dirty_log_of_child_and_parent(vhdx, tmp_path):
    base = Image(8 * MiB, block_size=MiB, seed=1).write(0, 3 * MiB, Pattern(1))
    make_dirty(base, ["bat"])
    base = base.build(tmp_path / "base.vhdx")
    child = Image(8 * MiB, block_size=MiB, seed=2, parent=base).write(MiB, 512, Pattern(2))
    make_dirty(child, ["bat", "bitmap"])
    child = child.build(tmp_path / "child.avhdx")
    os.rename(base.path, tmp_path / "moved.vhdx")
    before = sha256(tmp_path / "moved.vhdx")
    vhdx("rebase", "--parent", tmp_path / "moved.vhdx", child.path, rc=0)
    vhdx("convert", child.path, tmp_path / "out.raw", rc=0)
    assert child.first_difference(tmp_path / "out.raw") is None
    assert sha256(tmp_path / "moved.vhdx") == before and info(vhdx, child.path)["dirty-flag"] is False


def test_by_links(vhdx, moved, tmp_path):
    """What is recorded leads from where the child really lies to where the parent does."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "c.avhdx").symlink_to(moved.path)
    (tmp_path / "links" / "p.vhdx").symlink_to(tmp_path / "there" / "golden image.vhdx")
    vhdx("rebase", "--parent", "p.vhdx", "c.avhdx", cwd=tmp_path / "links", rc=0)
    assert locator(vhdx, moved.path)["relative_path"] == ".\\there\\golden image.vhdx"
    assert (tmp_path / "links" / "c.avhdx").is_symlink()


def test_a_parent_that_is_not_looked_for_unasked(vhdx, tmp_path):
    """Whoever does not learn it now learns it when the machine does not start."""
    (tmp_path / "vm").mkdir()
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "vm" / "child.avhdx", 2)
    for options in (["-b", base.path], ["--find", tmp_path]):
        err = vhdx("rebase", *options, child.path, rc=0).err
        assert f"its parent, {base.path}, is in another folder, where it is not looked for unasked: open it with --parent-dir" in err
    assert vhdx("rebase", "-q", "-b", base.path, child.path, rc=0).err == ""
    assert vhdx("rebase", "--find", tmp_path, "-n", child.path, rc=0).err.count("unasked") == 0
    vhdx("map", child.path, rc=1)
    vhdx("map", "--parent-dir", tmp_path, child.path, rc=0)


# ---- refused

@pytest.mark.parametrize("parent, error", [("nbd+unix:///?socket=/nothing", "this needs a file here, not an NBD server"),
                                           ("-", "standard input cannot be used as an image")])
def test_a_parent_that_is_no_file(vhdx, moved, parent, error):
    assert error in vhdx("rebase", "-b", parent, moved.path, rc=1).err


@pytest.fixture
def changed(vhdx, tmp_path):
    """A child whose parent was written to."""
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2, Locator.relative(base.data_write_guid, ".\\base.vhdx"))
    vhdx("io", base.path, "-c", "write -P 7 4M 64k", rc=0)
    return child


def test_mismatch_is_explained(vhdx, changed, tmp_path):
    before = sha256(changed.path)
    err = vhdx("rebase", "--parent", tmp_path / "base.vhdx", changed.path, rc=1).err
    assert "mismatch in the identifiers" in err and "--force" in err and "data write GUID" in err
    assert str(8 * MiB - 512) in err
    assert sha256(changed.path) == before


def test_forced(vhdx, changed, tmp_path):
    kid = child_of(changed, tmp_path / "kid.avhdx", 3)
    vhdx("rebase", "--parent", tmp_path / "base.vhdx", "--force", changed.path, rc=0)
    assert locator(vhdx, changed.path)["parent_linkage"] == "{" + data_write_guid(vhdx, tmp_path / "base.vhdx") + "}"
    assert data_write_guid(vhdx, changed.path) != guid_text(changed.image.data_write_guid)
    vhdx("compare", changed.path, changed.path, rc=0)
    is_sound(vhdx, changed.path)
    assert "mismatch" in vhdx("map", kid.path, rc=1).err            # as --help says: its children need the same
    vhdx("rebase", "--parent", changed.path, "--force", kid.path, rc=0)
    vhdx("map", kid.path, rc=0)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_geometry(vhdx, tmp_path, force):
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2)
    other = disk(tmp_path / "4k.vhdx", 3, lss=4096)
    longer = disk(tmp_path / "longer.vhdx", 4, size=16 * MiB)
    before = sha256(child.path)
    assert "sectors" in vhdx("rebase", "--parent", other.path, *force, child.path, rc=1).err
    assert "size" in vhdx("rebase", "--parent", longer.path, *force, child.path, rc=1).err
    assert sha256(child.path) == before


def test_child_that_is_longer_than_its_true_parent(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "child.avhdx", 2, size=16 * MiB)
    os.rename(base.path, tmp_path / "moved.vhdx")
    vhdx("rebase", "--parent", tmp_path / "moved.vhdx", child.path, rc=0)
    is_sound_or_warned = vhdx("convert", child.path, tmp_path / "out.raw", rc=0)
    assert child.first_difference(tmp_path / "out.raw") is None, is_sound_or_warned


def test_circles(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    middle = child_of(base, tmp_path / "middle.avhdx", 2)
    top = child_of(middle, tmp_path / "top.avhdx", 3)
    before = sha256(middle.path)
    assert "its own parent" in vhdx("rebase", "--force", "--parent", middle.path, middle.path, rc=1).err
    assert "among its own parents" in vhdx("rebase", "--force", "--parent", top.path, middle.path, rc=1).err
    (tmp_path / "link").symlink_to(middle.path)
    os.link(middle.path, tmp_path / "hard")
    for name in ("link", "hard"):
        assert "its own parent" in vhdx("rebase", "--force", "--parent", tmp_path / name, middle.path, rc=1).err
    assert sha256(middle.path) == before


def test_not_a_child(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    other = disk(tmp_path / "other.vhdx", 2)
    assert "has no parent" in vhdx("rebase", "--parent", base.path, other.path, rc=1).err
    assert "has no parent" in vhdx("rebase", "--find", tmp_path, other.path, rc=1).err


@pytest.mark.parametrize("what", ["fifo", "folder", "text", "nothing", "qcow"])
def test_what_cannot_be_a_parent(vhdx, moved, tmp_path, what):
    path = tmp_path / what
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what != "nothing":
        path.write_bytes({"text": b"hello" * 1000, "qcow": b"QFI\xfb" + bytes(1000)}[what])
    before = sha256(moved.path)
    vhdx("rebase", "--force", "--parent", path, moved.path, rc=1)
    assert sha256(moved.path) == before


@pytest.mark.parametrize("name", ["a:b.vhdx", "a\\b.vhdx", "a\nb.vhdx", b"\xff.vhdx".decode("utf-8", "surrogateescape")])
def test_names_that_no_image_can_record(vhdx, moved, tmp_path, name):
    os.rename(tmp_path / "there" / "golden image.vhdx", tmp_path / name)
    before = sha256(moved.path)
    vhdx("rebase", "--parent", tmp_path / name, moved.path, rc=1)
    assert sha256(moved.path) == before


def test_broken_chain_above(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    middle = child_of(base, tmp_path / "middle.avhdx", 2)
    top = child_of(middle, tmp_path / "top.avhdx", 3)
    os.unlink(base.path)
    assert "middle.avhdx" in vhdx("rebase", "--parent", middle.path, top.path, rc=1).err


def test_images_in_use(vhdx_path, vhdx, moved, tmp_path, tool):
    """An image that another program has open is not touched."""
    import fcntl
    import struct
    with open(moved.path, "r+b") as file:
        for byte in (100, 201):
            fcntl.fcntl(file, 37, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        before = sha256(moved.path)
        err = vhdx("rebase", "--parent", tmp_path / "there" / "golden image.vhdx", moved.path, rc=1).err
        assert "open for reading" in err and sha256(moved.path) == before


def test_image_that_is_being_written(vhdx, moved, tmp_path):
    """There is no --force-share to be advised here; what does not change it may look."""
    import fcntl
    import struct
    with open(moved.path, "r+b") as file:
        for byte in (100, 101, 103, 201, 203):
            fcntl.fcntl(file, 37, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        err = vhdx("rebase", "--find", tmp_path, moved.path, rc=1).err
        assert "open for writing; close it there first" in err and "force-share" not in err
        assert vhdx("rebase", "--find", tmp_path, "-n", moved.path, rc=0).out == f"{tmp_path}/there/golden image.vhdx\n"


def test_folder_without_name(vhdx, moved):
    assert vhdx("rebase", "--find", "", moved.path, rc=1).err == "vhdx rebase: the name of the folder for --find is empty\n"


@pytest.mark.parametrize("arguments", [[], ["--parent", "x", "--find", "y"], ["-n", "--parent", "x"]])
def test_usage(vhdx, moved, arguments):
    vhdx("rebase", *arguments, moved.path, rc=2)


def test_read_only_file(vhdx, moved, tmp_path, need_ordinary_user):
    os.chmod(moved.path, 0o444)
    assert "Permission denied" in vhdx("rebase", "--parent", tmp_path / "there" / "golden image.vhdx", moved.path, rc=1).err


# ---- no parent at all

@pytest.mark.parametrize("lss, blocks, size", [(512, (1, 2, 32), 70), (4096, (32, 1, 2), 70), (512, (2, 256, 4), 21), (512, (4, 2, 1), 21)])
def test_flattened(vhdx, tmp_path, lss, blocks, size):
    base = Image(size * MiB + 4096, block_size=blocks[0] * MiB, lss=lss, seed=1)
    base.write(0, 3 * MiB, Pattern(1)).write(size * MiB - 4096, 8192, Pattern(2)).write(8 * MiB, MiB, Fill(0))
    base = base.build(tmp_path / "base.vhdx")
    middle = Image(size * MiB + 4096, block_size=blocks[1] * MiB, lss=lss, seed=2, parent=base)
    middle.write(MiB, 64 * 1024, Pattern(3)).write(10 * MiB, 4096, Pattern(4))
    make_dirty(middle, ["bat", "bitmap"])
    middle = middle.build(tmp_path / "middle.avhdx")
    child = Image(size * MiB + 4096, block_size=blocks[2] * MiB, lss=lss, seed=3, parent=middle)
    child.write(MiB + 4096, 4096, Pattern(6)).write(size * MiB, 4096, Pattern(7)).set_block(3 if blocks[2] < 32 else 1, ZERO)
    child = child.build(tmp_path / "child.avhdx")
    before = sha256(base.path), sha256(middle.path)
    vhdx("rebase", "--parent", "", child.path, rc=0)
    assert before == (sha256(base.path), sha256(middle.path))
    data = info(vhdx, child.path)["format-specific"]["data"]
    assert data["subformat"] == "dynamic" and data["data-write-guid"] == guid_text(child.data_write_guid)
    assert data["blocks"]["partially-present"] == 0
    os.unlink(base.path)
    os.unlink(middle.path)
    vhdx("convert", child.path, tmp_path / "out.raw", rc=0)
    assert child.first_difference(tmp_path / "out.raw") is None
    is_sound(vhdx, child.path)
    vhdx("io", child.path, "-c", "write -P 7 0 1M", "-c", "discard 1M 1M", "-c", "flush", rc=0)
    is_sound(vhdx, child.path)


def test_flattened_keeps_its_children(vhdx, moved, tmp_path):
    kid = child_of(moved, tmp_path / "kid.avhdx", 5)
    vhdx("rebase", "--parent", "", "--parent-dir", tmp_path / "there", moved.path, rc=1)    # it has another name there
    vhdx("rebase", "--parent", tmp_path / "there" / "golden image.vhdx", moved.path, rc=0)
    vhdx("rebase", "-b", "", moved.path, rc=0)
    vhdx("convert", kid.path, tmp_path / "out.raw", rc=0)
    assert kid.first_difference(tmp_path / "out.raw") is None


def test_flattening_what_has_no_parent(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    before = sha256(base.path)
    assert "no parent" in vhdx("rebase", "--parent", "", base.path, rc=1).err
    assert sha256(base.path) == before


def test_zeros_of_the_parents_get_no_space(vhdx, tmp_path):
    base = Image(64 * MiB, block_size=MiB, seed=1).write(0, MiB, Pattern(1)).set_block(5, ZERO).build(tmp_path / "base.vhdx")
    child = Image(64 * MiB, block_size=MiB, seed=2, parent=base).write(MiB, 512, Pattern(2)).build(tmp_path / "child.avhdx")
    vhdx("rebase", "--parent", "", child.path, rc=0)
    assert info(vhdx, child.path)["format-specific"]["data"]["blocks"]["fully-present"] == 2
