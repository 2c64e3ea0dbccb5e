# SPDX-License-Identifier: MIT
"""vhdx snapshot: states of a disk that can be gone back to.  What dying in between leaves is in tests/unit/test_ops_snapshot.c."""
import hashlib
import os
import pathlib
import shutil
import subprocess

import pytest
from cli_support import find_strace

from vhdxbuild import *


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def write(vhdx, path, pattern, where="1M 64k"):
    vhdx("io", path, "-c", f"write -P {pattern} {where}", "-c", "flush", rc=0)


def holds(vhdx, path, pattern, where="1M 64k"):
    vhdx("io", path, "-r", "-c", f"read -P {pattern} {where}", rc=0)


def states(vhdx, path):
    return [(entry["name"], entry["current"]) for entry in vhdx("snapshot", "--list", "--json", path, rc=0).json()]


@pytest.fixture
def disk(vhdx, tmp_path):
    path = tmp_path / "web.vhdx"
    vhdx("create", path, "64M", rc=0)
    write(vhdx, path, 1)
    return path


def test_keep_and_go_back(vhdx, disk, tmp_path):
    before = sha256(disk)
    assert vhdx("snapshot", disk, "clean install", rc=0).out == f"{tmp_path}/web.clean install.vhdx\n"
    assert sha256(tmp_path / "web.clean install.vhdx") == before
    assert states(vhdx, disk) == [("clean install", True)]
    write(vhdx, disk, 2)
    vhdx("snapshot", disk, "two", rc=0)
    write(vhdx, disk, 3)
    assert states(vhdx, disk) == [("clean install", False), ("two", True)]
    assert sorted(os.listdir(tmp_path)) == ["web.clean install.vhdx", "web.two.avhdx", "web.vhdx"]
    vhdx("snapshot", "--revert", "--force", disk, rc=0)
    holds(vhdx, disk, 2)
    vhdx("snapshot", "-a", "--force", disk, "clean install", rc=0)
    holds(vhdx, disk, 1)
    assert states(vhdx, disk) == [("clean install", True), ("two", False)]
    vhdx("snapshot", "-a", "--force", disk, "two", rc=0)
    holds(vhdx, disk, 2)
    assert sha256(tmp_path / "web.clean install.vhdx") == before
    for name in os.listdir(tmp_path):
        vhdx("check", tmp_path / name, rc=0)


def test_json(vhdx, disk, tmp_path):
    state = {"name": "s x", "filename": str(tmp_path / "web.s x.vhdx")}
    assert vhdx("snapshot", "--json", disk, "s x", rc=0).json() == state
    assert vhdx("snapshot", "--json", "--revert", "--force", disk, rc=0).json() == state
    assert vhdx("snapshot", "--json", "--delete", disk, "s x", rc=0).json() == state
    assert vhdx("snapshot", "--json", "-q", disk, "t", rc=0).json()["name"] == "t"


def test_drop_states(vhdx, disk, tmp_path):
    for number, name in ((2, "one"), (3, "two"), (4, "three")):
        vhdx("snapshot", disk, name, rc=0)
        write(vhdx, disk, number)
    vhdx("snapshot", "--delete", disk, "two", rc=0)
    assert states(vhdx, disk) == [("one", False), ("three", True)]
    holds(vhdx, disk, 4)
    holds(vhdx, tmp_path / "web.three.avhdx", 3)
    holds(vhdx, tmp_path / "web.one.vhdx", 1)
    vhdx("snapshot", "-d", disk, "three", rc=0)
    holds(vhdx, disk, 4)
    vhdx("snapshot", "-d", disk, "one", rc=0)
    assert states(vhdx, disk) == [] and os.listdir(tmp_path) == ["web.vhdx"]
    holds(vhdx, disk, 4)
    assert vhdx("info", "--json", disk, rc=0).json()["format-specific"]["data"]["subformat"] == "dynamic"
    vhdx("check", disk, rc=0)


def test_state_that_two_rest_on_stays(vhdx, disk):
    vhdx("snapshot", disk, "one", rc=0)
    write(vhdx, disk, 2)
    vhdx("snapshot", disk, "two", rc=0)
    vhdx("snapshot", "-a", "--force", disk, "one", rc=0)
    assert "it has to stay: web.two.avhdx, web.vhdx" in vhdx("snapshot", "-d", disk, "one", rc=1).err
    assert "no image here rests on" in vhdx("snapshot", "-d", disk, "two", rc=1).err
    assert states(vhdx, disk) == [("one", True), ("two", False)]


def test_disk_that_has_a_parent_and_other_states_beside_it(vhdx, tmp_path):
    base = Image(16 * MiB, seed=1).write(0, 4 * MiB, Pattern(1)).build(tmp_path / "golden.vhdx")
    (tmp_path / "vm").mkdir()
    for name in ("web.vhdx", "web2.vhdx"):
        vhdx("create", "-q", "--parent", base.path, tmp_path / "vm" / name, rc=0)
        vhdx("snapshot", "--parent-dir", tmp_path, tmp_path / "vm" / name, "s", rc=0)
    assert sorted(os.listdir(tmp_path / "vm")) == ["web.s.avhdx", "web.vhdx", "web2.s.avhdx", "web2.vhdx"]
    listed = vhdx("snapshot", "-l", "--json", "--parent-dir", tmp_path, tmp_path / "vm" / "web.vhdx", rc=0).json()
    assert [entry["name"] for entry in listed] == ["s"]
    vhdx("convert", "--parent-dir", tmp_path, tmp_path / "vm" / "web.vhdx", tmp_path / "out.raw", rc=0)
    assert base.first_difference(tmp_path / "out.raw") is None


def test_dirty_log_is_settled_first(vhdx, tmp_path):
    image = Image(16 * MiB, seed=1).write(0, 4 * MiB, Pattern(1))
    make_dirty(image, ["bat"])
    image = image.build(tmp_path / "web.vhdx")
    vhdx("snapshot", image.path, "s", rc=0)
    assert vhdx("info", "--json", tmp_path / "web.s.vhdx", rc=0).json()["dirty-flag"] is False
    vhdx("convert", image.path, tmp_path / "out.raw", rc=0)
    assert image.first_difference(tmp_path / "out.raw") is None


def test_by_a_link(vhdx, disk, tmp_path):
    """The state lies beside the file, and the link stays one."""
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "disk0"
    link.symlink_to(disk)
    assert vhdx("snapshot", link, "s", rc=0).out == f"{tmp_path}/web.s.vhdx\n"
    assert link.is_symlink() and os.listdir(tmp_path / "links") == ["disk0"]
    holds(vhdx, link, 1)
    assert states(vhdx, link) == [("s", True)]


def test_permissions_go_along(vhdx, disk):
    disk.chmod(0o640)
    vhdx("snapshot", disk, "s", rc=0)
    assert disk.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a:b", "a\\b", "a\nb", "x" * 250, b"a\xff"])
def test_names_that_are_none(vhdx, disk, tmp_path, name):
    before = sha256(disk)
    err = vhdx("snapshot", disk, name, rc=1).err
    assert len(name) > 100 or ("cannot be the name of a state" in err and "colon" in err and "parent" not in err)
    assert sha256(disk) == before and os.listdir(tmp_path) == ["web.vhdx"]


@pytest.mark.parametrize("options, names", [([], ["s"]), (["--list"], []), (["--revert", "--force"], []), (["--delete"], ["s"])])
def test_folder(vhdx, disk, tmp_path, options, names):
    result = vhdx("snapshot", *options, tmp_path, *names, rc=1)
    assert "this is a folder" in result.err and result.out == ""


def test_name_that_is_taken(vhdx, disk, tmp_path):
    vhdx("snapshot", disk, "s", rc=0)
    (tmp_path / "web.t.avhdx").write_text("mine")
    before = sha256(disk)
    assert "there is a file web.t.avhdx already" in vhdx("snapshot", disk, "t", rc=1).err
    assert sha256(disk) == before and (tmp_path / "web.t.avhdx").read_text() == "mine"


def test_name_is_taken_by_a_state_of_the_other_kind(vhdx, disk, tmp_path):
    """The first state of a disk is no child, all later ones are."""
    vhdx("snapshot", disk, "daily", rc=0)
    write(vhdx, disk, 2)
    before = sha256(disk)
    assert "web.daily.vhdx" in vhdx("snapshot", disk, "daily", rc=1).err
    assert sha256(disk) == before and sorted(os.listdir(tmp_path)) == ["web.daily.vhdx", "web.vhdx"]


def test_two_states_of_one_name(vhdx, disk, tmp_path):
    vhdx("snapshot", disk, "daily", rc=0)
    write(vhdx, disk, 2)
    vhdx("snapshot", disk, "x", rc=0)
    write(vhdx, disk, 3)
    os.rename(tmp_path / "web.x.avhdx", tmp_path / "web.daily.avhdx")
    vhdx("rebase", "--parent", tmp_path / "web.daily.avhdx", disk, rc=0)
    before = {name: sha256(tmp_path / name) for name in os.listdir(tmp_path)}
    for option in ("--revert", "--delete"):
        err = vhdx("snapshot", option, "--force", disk, "daily", rc=1).err
        assert "web.daily.vhdx" in err and "web.daily.avhdx" in err
    assert {name: sha256(tmp_path / name) for name in os.listdir(tmp_path)} == before
    vhdx("snapshot", "--revert", "--force", disk, "web.daily.avhdx", rc=0)
    holds(vhdx, disk, 2)
    vhdx("snapshot", "--delete", disk, "web.daily.avhdx", rc=0)
    assert sorted(os.listdir(tmp_path)) == ["web.daily.vhdx", "web.vhdx"]
    holds(vhdx, disk, 2)


def test_going_back_wants_to_be_sure(vhdx, vhdx_path, disk):
    vhdx("snapshot", disk, "s", rc=0)
    write(vhdx, disk, 2)
    assert "--force" in vhdx("snapshot", "-a", disk, rc=1).err
    holds(vhdx, disk, 2)
    assert "there is no state 'x'" in vhdx("snapshot", "-a", "--force", disk, "x", rc=1).err
    assert "there is no state 'x'" in vhdx("snapshot", "-d", disk, "x", rc=1).err


def test_no_state_to_go_back_to(vhdx, disk):
    assert "on no state" in vhdx("snapshot", "-a", "--force", disk, rc=1).err
    assert vhdx("snapshot", "-l", disk, rc=0).out == ""
    holds(vhdx, disk, 1)


def test_disk_that_others_rest_on(vhdx, disk, tmp_path):
    vhdx("create", "-q", "--parent", disk, tmp_path / "clone.vhdx", rc=0)
    before = sha256(disk)
    assert "clone.vhdx has this image as its parent" in vhdx("snapshot", disk, "s", rc=1).err
    assert sha256(disk) == before


@pytest.mark.parametrize("where", [["clones"], ["vm", "more"]])
def test_children_in_other_folders_are_found_on_demand(vhdx, tmp_path, where):
    """There too where they lie below the disk's own folder."""
    disk, clones = tmp_path / "vm" / "web.vhdx", tmp_path.joinpath(*where)
    clones.mkdir(parents=True)
    disk.parent.mkdir(exist_ok=True)
    vhdx("create", disk, "8M", rc=0)
    vhdx("snapshot", disk, "s", rc=0)
    write(vhdx, disk, 2)
    vhdx("create", "-q", "--parent", disk, clones / "clone.avhdx", rc=0)
    before = sha256(disk)
    for arguments in (["--revert", "--force", disk], [disk, "t"]):
        assert "clone.avhdx has this image as its parent" in vhdx("snapshot", "--find", clones, *arguments, rc=1).err
    assert sha256(disk) == before
    os.remove(clones / "clone.avhdx")
    vhdx("snapshot", "--find", tmp_path, "--revert", "--force", disk, rc=0)
    assert sha256(disk) != before


def test_no_way_back_where_something_is_unreadable(vhdx, disk, tmp_path):
    """It may rest on what would be dropped."""
    vhdx("snapshot", disk, "s", rc=0)
    write(vhdx, disk, 2)
    (tmp_path / "notes.vhdx").write_text("no image: nobody's child")
    (tmp_path / "damaged.avhdx").write_bytes(b"vhdxfile" + bytes(MiB))
    before = sha256(disk)
    err = vhdx("snapshot", "--revert", "--force", disk, rc=1).err
    assert "damaged.avhdx cannot be read" in err and "would be lost" in err and "--ignore-unreadable" in err
    assert sha256(disk) == before
    os.remove(tmp_path / "damaged.avhdx")
    vhdx("snapshot", "--revert", "--force", disk, rc=0)
    holds(vhdx, disk, 1)


def test_way_back_past_what_is_unreadable(vhdx, disk, tmp_path):
    """On demand, and after it was named: in all folders that are looked into."""
    vhdx("snapshot", disk, "s", rc=0)
    write(vhdx, disk, 2)
    for folder in (tmp_path, tmp_path / "below", tmp_path / "below" / "found"):
        folder.mkdir(exist_ok=True)
        (folder / f"damaged-{folder.name}.vhdx").write_bytes(b"vhdxfile" + bytes(MiB))
    names = [f"damaged-{folder}.vhdx" for folder in (tmp_path.name, "below", "found")]
    for options, named in (([], names[:1]), (["--find", tmp_path / "below" / "found"], names)):
        err = vhdx("snapshot", "--revert", "--ignore-unreadable", *options, disk, rc=1).err
        assert [name for name in names if name in err] == named and "not looked at" in err and "--force" in err
        holds(vhdx, disk, 2)
    vhdx("create", "-q", "--parent", disk, tmp_path / "clone.vhdx", rc=0)
    assert "clone.vhdx has" in vhdx("snapshot", "--revert", "--force", "--ignore-unreadable", disk, rc=1).err # readable, so it counts
    os.remove(tmp_path / "clone.vhdx")
    assert names[0] in vhdx("snapshot", "--revert", "--force", "--ignore-unreadable", disk, rc=0).err
    holds(vhdx, disk, 1)


@pytest.mark.parametrize("how", ["snapshot", "merge"])
def test_what_a_crash_left_is_in_nobodys_way(vhdx, disk, tmp_path, how):
    """A child of the state that was complete, but had not got its name."""
    vhdx("snapshot", disk, "s", rc=0)
    vhdx("create", "-q", "--parent", tmp_path / "web.s.vhdx", tmp_path / ".vhdx-0123456789abcdef.tmp", rc=0)
    vhdx("create", "-q", "--parent", disk, tmp_path / ".vhdx-fedcba9876543210.tmp", rc=0)
    write(vhdx, disk, 2)
    if how == "snapshot":
        vhdx("snapshot", "--delete", disk, "s", rc=0)
    else:
        vhdx("merge", disk, rc=0)
        holds(vhdx, tmp_path / "web.s.vhdx", 2)
    holds(vhdx, disk, 2)
    vhdx("snapshot", disk, "t", rc=0)
    assert not [entry for entry in vhdx("chain", "--json", tmp_path, rc=0).json() if entry["filename"].endswith(".tmp")]


def test_delete_of_what_is_no_state(vhdx, disk, tmp_path):
    """Another disk that happens to be called as a state would be: nobody is told to remove it."""
    vhdx("create", "-q", tmp_path / "web.data.vhdx", "8M", rc=0)
    vhdx("snapshot", disk, "s", rc=0)
    before = {name: sha256(tmp_path / name) for name in os.listdir(tmp_path)}
    err = vhdx("snapshot", "--delete", disk, "data", rc=1).err
    assert "is no state of this disk" in err and "remove" not in err
    assert {name: sha256(tmp_path / name) for name in os.listdir(tmp_path)} == before


# ---- a snapshot that died when the file had its second name, before the child was in place

def test_half_made_state_is_completed_or_dropped_first(vhdx, disk, tmp_path):
    """A state that had another one for a second name would change with it."""
    os.link(disk, tmp_path / "web.one.vhdx")
    err = vhdx("snapshot", disk, "two", rc=1).err
    assert f"'vhdx snapshot {disk} one'" in err and f"remove the name {tmp_path}/web.one.vhdx" in err
    assert sorted(os.listdir(tmp_path)) == ["web.one.vhdx", "web.vhdx"]
    for option in ("--revert", "--delete"):
        err = vhdx("snapshot", option, "--force", disk, "one", rc=1).err
        assert "interrupted" in err and f"'vhdx snapshot {disk} one'" in err and f"remove the name {tmp_path}/web.one.vhdx" in err
    write(vhdx, disk, 2)
    vhdx("snapshot", disk, "one", rc=0)
    write(vhdx, disk, 3)
    holds(vhdx, tmp_path / "web.one.vhdx", 2)
    assert states(vhdx, disk) == [("one", True)]


def test_half_made_state_is_shown(vhdx, disk, tmp_path):
    vhdx("snapshot", disk, "one", rc=0)
    os.link(disk, tmp_path / "web.two.avhdx")
    listed = vhdx("snapshot", "--list", "--json", disk, rc=0).json()
    assert [(entry["name"], entry["current"], entry["whole"], entry["unfinished"]) for entry in listed] == [
        ("one", True, True, False), ("two", False, False, True)]
    lines = vhdx("snapshot", "--list", disk, rc=0).out.splitlines()
    assert ["UNFINISHED" in line for line in lines] == [False, True]
    os.remove(tmp_path / "web.two.avhdx")
    assert states(vhdx, disk) == [("one", True)]


def test_state_with_two_names(vhdx, disk, tmp_path):
    """Somebody gave it another one: both are shown, and it is not dropped under one to live on, changed, under the other."""
    vhdx("snapshot", disk, "one", rc=0)
    write(vhdx, disk, 2)
    os.link(tmp_path / "web.one.vhdx", tmp_path / "web.two.vhdx")
    assert states(vhdx, disk) == [("one", True), ("two", True)]
    for dropped, other in (("one", "two"), ("two", "one")):
        assert f"web.{other}.vhdx" in vhdx("snapshot", "--delete", disk, dropped, rc=1).err
    assert sorted(os.listdir(tmp_path)) == ["web.one.vhdx", "web.two.vhdx", "web.vhdx"]
    holds(vhdx, tmp_path / "web.one.vhdx", 1)
    os.rename(tmp_path / "web.two.vhdx", tmp_path / "b.vhdx") # and where the shortest is not the state's
    assert states(vhdx, disk) == [("one", True)]
    write(vhdx, disk, 3)
    vhdx("snapshot", "--revert", "--force", disk, rc=0)
    holds(vhdx, disk, 1)
    write(vhdx, disk, 2)
    os.remove(tmp_path / "b.vhdx")
    vhdx("snapshot", "--delete", disk, "one", rc=0)
    holds(vhdx, disk, 2)
    assert os.listdir(tmp_path) == ["web.vhdx"]


@pytest.mark.parametrize("which", ["a state", "the disk"])
def test_child_with_two_names(vhdx, disk, tmp_path, which):
    """A snapshot that died left its name, or somebody gave it one.  What rests on the child may know it by the one that would
    lead nowhere afterwards."""
    vhdx("snapshot", disk, "one", rc=0)
    write(vhdx, disk, 2)
    if which == "a state":
        vhdx("snapshot", disk, "three", rc=0)
        os.link(tmp_path / "web.three.avhdx", tmp_path / "web.two.avhdx")
        write(vhdx, disk, 3)
    else:
        os.link(disk, tmp_path / "web.two.avhdx")
    before = {name: sha256(tmp_path / name) for name in os.listdir(tmp_path)}
    assert "has 2 names" in vhdx("snapshot", "--delete", disk, "one", rc=1).err
    assert {name: sha256(tmp_path / name) for name in os.listdir(tmp_path)} == before
    os.remove(tmp_path / "web.two.avhdx")
    vhdx("snapshot", "--delete", disk, "one", rc=0)
    holds(vhdx, disk, 3 if which == "a state" else 2)


def test_state_whose_child_lost_its_link_is_needed(vhdx, disk, tmp_path):
    vhdx("snapshot", disk, "s", rc=0)
    write(vhdx, tmp_path / "web.s.vhdx", 5)
    err = vhdx("snapshot", "--delete", disk, "s", rc=1).err
    assert "mismatch in the identifiers" in err and "remove" not in err


# ---- signals

def signal_at(vhdx_path, tool, call, *arguments):
    """SIGTERM at the first such call."""
    strace = [find_strace(tool), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGTERM:when=1"]
    return subprocess.run([*strace, vhdx_path, "snapshot", *arguments], capture_output=True, timeout=60, check=False, text=True)


@pytest.mark.parametrize("call, options, names", [
    ("getdents64", [], ["t"]), ("linkat", [], ["t"]), ("getdents64", ["--revert", "--force"], []), ("getdents64", ["--list"], []),
    ("getdents64", ["--delete"], ["s"])])
def test_signal_stops_it_cleanly(vhdx, vhdx_path, tool, disk, tmp_path, call, options, names):
    """Up to the moment when the child takes the name."""
    vhdx("snapshot", disk, "s", rc=0)
    write(vhdx, disk, 2)
    before = {name: sha256(tmp_path / name) for name in os.listdir(tmp_path)}
    done = signal_at(vhdx_path, tool, call, *options, disk, *names)
    assert done.returncode == 143 and "stopped by a signal; nothing was changed" in done.stderr, done
    assert {name: sha256(tmp_path / name) for name in os.listdir(tmp_path)} == before


@pytest.mark.parametrize("options", [[], ["--revert", "--force"]])
def test_signal_that_comes_too_late(vhdx, vhdx_path, tool, disk, tmp_path, options):
    vhdx("snapshot", disk, "s", rc=0)
    write(vhdx, disk, 2)
    done = signal_at(vhdx_path, tool, "renameat", *options, disk, "s" if options else "t")
    assert done.returncode == 0 and done.stderr == ""
    holds(vhdx, disk, 1 if options else 2)
    assert [name for name in os.listdir(tmp_path) if name.endswith(".tmp")] == []


def test_again_after_it_was_complete(vhdx, disk, tmp_path):
    """Whoever saw the machine die does not know that it was."""
    for state, extension in (("s", "vhdx"), ("t", "avhdx")):
        vhdx("snapshot", disk, state, rc=0)
        err = vhdx("snapshot", disk, state, rc=1).err
        assert f"there is a state '{state}' already, {tmp_path}/web.{state}.{extension}" in err
        assert "if it was interrupted, it is complete" in err
    assert "is complete" not in vhdx("snapshot", disk, "s", rc=1).err # the disk was made on another one since


# ---- --delete that did not come to its end

def keep(folder, to):
    """Copy all files, holes and all."""
    shutil.rmtree(to, ignore_errors=True)
    subprocess.run(["cp", "-r", "--sparse=always", "--reflink=auto", folder, to], check=True)


def content(vhdx, path):
    """The one value that both places hold, or None."""
    for value in (1, 2, 3):
        if vhdx("io", path, "-r", "-c", f"read -P {value} 1M 64k", "-c", f"read -P {value} 40M 64k").rc == 0:
            return value
    return None


def stop_delete(disk, state, vhdx_path, tool, call, number, must=True):
    """Kill it at that call; whether it came to it."""
    strace = find_strace(tool)
    done = subprocess.run([strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                           f"inject={call}:signal=SIGKILL:when={number}", vhdx_path, "snapshot", "--delete", disk, state],
                          capture_output=True, timeout=300, check=False)
    assert done.returncode in ((-9, 137) if must else (0, -9, 137)), done.stderr
    return done.returncode != 0


def is_marked(vhdx, path):
    """How far a merge of it into its parent came: the parent has the second identity that it records, in the end its own."""
    child, parent = [image["format-specific"]["data"] for image in vhdx("info", "--json", path, "--chain", rc=0).json()][:2]
    if child["parent-locator"]["parent_linkage2"] != "{" + parent["data-write-guid"] + "}":
        return ""
    return "complete" if child["data-write-guid"] == parent["data-write-guid"] else "in part"


@pytest.fixture(params=["in the midst", "all but the name"])
def half_deleted(vhdx, vhdx_path, tool, disk, tmp_path, request):
    """web.vhdx, on state "two", which --delete merged it into in part, on state "one"."""
    vhdx("snapshot", disk, "one", rc=0)
    write(vhdx, disk, 2)
    vhdx("snapshot", disk, "two", rc=0)
    write(vhdx, disk, 3)
    write(vhdx, disk, 4, "40M 64k")
    if request.param == "all but the name":
        stop_delete(disk, "two", vhdx_path, tool, "rename", 1)
        assert is_marked(vhdx, disk) == "complete"
        return disk
    for number in range(1, 40):
        stop_delete(disk, "two", vhdx_path, tool, "fdatasync", number)
        if is_marked(vhdx, disk) == "in part":
            return disk
    pytest.fail("no moment was one in the midst")


@pytest.mark.parametrize("to", [[], ["two"], ["one"]])
def test_no_way_back_from_a_half_deleted_state(vhdx, half_deleted, tmp_path, to):
    before = {name: sha256(tmp_path / name) for name in os.listdir(tmp_path)}
    assert "did not come to its end" in vhdx("snapshot", "--revert", "--force", half_deleted, *to, rc=1).err
    assert {name: sha256(tmp_path / name) for name in os.listdir(tmp_path)} == before
    vhdx("snapshot", "--delete", half_deleted, "two", rc=0)
    assert states(vhdx, half_deleted) == [("one", True)]
    holds(vhdx, half_deleted, 3)
    holds(vhdx, half_deleted, 4, "40M 64k")
    vhdx("snapshot", "--revert", "--force", half_deleted, "one", rc=0)
    holds(vhdx, half_deleted, 1)
    for name in os.listdir(tmp_path):
        vhdx("check", tmp_path / name, rc=0)


def test_whenever_delete_dies_no_mixture_is_taken_for_a_state(vhdx, vhdx_path, tool, tmp_path):
    """What is not refused afterwards shows a state that was, and leaves the others as they were."""
    folder, before, left = [tmp_path / name for name in ("now", "before", "left")]
    folder.mkdir()
    disk, two, new = [folder / name for name in ("web.vhdx", "web.two.avhdx", "new.avhdx")]
    vhdx("create", "--block-size", "1M", disk, "64M", rc=0)
    for value, state in ((1, "one"), (2, "two"), (3, None)):
        vhdx("io", disk, "-c", f"write -P {value} 1M 64k", "-c", f"write -P {value} 40M 64k", rc=0)
        if state:
            vhdx("snapshot", disk, state, rc=0)
    died, refused = True, 0
    keep(folder, before)
    for number in range(1, 60):
        keep(before, folder)
        died = stop_delete(disk, "two", vhdx_path, tool, "fdatasync", number, must=False) and two.exists()
        if not died:
            break
        keep(folder, left)
        for arguments, shown in ((["snapshot", "--revert", "--force", disk, "two"], disk), (["create", "--parent", two, new], new),
                                 (["snapshot", "--revert", "--force", disk, "one"], two)):
            keep(left, folder)
            result = vhdx(*arguments)
            if result.rc == 0:
                assert content(vhdx, shown) in ({2} if arguments[0] == "snapshot" else {2, 3}), (number, arguments)
            else:
                assert "did not come to its end" in result.err
                refused += 1
    assert not died and refused > 10


def test_half_deleted_state_is_shown(vhdx, half_deleted):
    listed = vhdx("snapshot", "--list", "--json", half_deleted, rc=0).json()
    assert [(entry["name"], entry["whole"]) for entry in listed] == [("one", True), ("two", False)]
    lines = vhdx("snapshot", "--list", half_deleted, rc=0).out.splitlines()
    assert ["NOT WHOLE" in line for line in lines] == [False, True]


def test_no_other_image_is_led_to_a_half_deleted_state(vhdx, half_deleted, tmp_path):
    """By force, either: it would rest on a mixture."""
    complete = is_marked(vhdx, half_deleted) == "complete"
    (tmp_path / "apart").mkdir()
    base, kid = tmp_path / "apart" / "base.vhdx", tmp_path / "apart" / "kid.avhdx"
    vhdx("create", "-q", base, "64M", rc=0)
    vhdx("create", "-q", "--parent", base, kid, rc=0)
    before = sha256(kid)
    result = vhdx("rebase", "--force", "--parent", tmp_path / "web.two.avhdx", kid, rc=0 if complete else 1)
    if not complete:
        assert "did not come to its end" in result.err and sha256(kid) == before


def test_nothing_new_rests_on_a_half_deleted_state(vhdx, half_deleted, tmp_path):
    """Unless it has all of the content already."""
    complete = is_marked(vhdx, half_deleted) == "complete"
    result = vhdx("create", "-q", "--parent", tmp_path / "web.two.avhdx", tmp_path / "new.avhdx", rc=0 if complete else 1)
    if complete:
        holds(vhdx, tmp_path / "new.avhdx", 3)
    else:
        assert "did not come to its end" in result.err and not (tmp_path / "new.avhdx").exists()
    vhdx("create", "-q", "--parent", half_deleted, tmp_path / "on top.avhdx", rc=0) # whole, with what makes it so
    holds(vhdx, tmp_path / "on top.avhdx", 4, "40M 64k")


def test_who_may_make_a_state_a_mixture_is_looked_for(vhdx, vhdx_path, tool, half_deleted, tmp_path):
    """Under whatever name; but what cannot be such an image by its name is not opened, and what fails is not taken for good."""
    strace, log, two = find_strace(tool), tmp_path / "log", tmp_path / "web.two.avhdx"
    (tmp_path / "film.iso").write_bytes(bytes(MiB))
    os.rename(half_deleted, tmp_path / "web.disk")
    complete = is_marked(vhdx, tmp_path / "web.disk") == "complete"
    arguments = [vhdx_path, "create", "-q", "--parent", two, tmp_path / "new.avhdx"]
    done = subprocess.run([strace, "-y", "-qq", "-o", log, "-e", "trace=openat", *arguments], capture_output=True, timeout=300, check=False)
    assert done.returncode == (0 if complete else 1), done.stderr
    opened = [line for line in log.read_text().splitlines() if "O_PATH" not in line]
    assert [any(name in line for line in opened) for name in ("web.disk", "film.iso")] == [True, False]
    arguments[-1] = tmp_path / "newer.avhdx"
    done = subprocess.run([strace, "-qq", "-o", log, "-e", "trace=getdents64", "-e", "inject=getdents64:error=EIO", *arguments],
                          capture_output=True, timeout=300, check=False)
    assert done.returncode == 1 and b"cannot list the folder" in done.stderr


@pytest.mark.parametrize("arguments", [["disk"], ["-l", "disk", "x"], ["-l", "-a", "disk"], ["-d", "disk"], ["disk", "a", "b"]])
def test_usage(vhdx, disk, arguments):
    vhdx("snapshot", *[disk if word == "disk" else word for word in arguments], rc=2)


def test_list_of_a_state(vhdx, disk):
    assert "too many arguments: 'x'" in vhdx("snapshot", "--list", disk, "x", rc=2).err


def test_image_in_use(vhdx, disk, tmp_path):
    import fcntl
    import struct
    with open(disk, "r+b") as file:
        for byte in (100, 201):
            fcntl.fcntl(file, 37, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        assert "open for reading" in vhdx("snapshot", disk, "s", rc=1).err
    assert os.listdir(tmp_path) == ["web.vhdx"]
