# SPDX-License-Identifier: MIT
"""vhdx snapshot: what it says of states that something is wrong with."""
import fcntl
import os
import struct

import pytest

from vhdxbuild import *


@pytest.fixture
def disk(vhdx, tmp_path):
    """Two states, and the disk rests on the second."""
    path = tmp_path / "web.vhdx"
    vhdx("create", "-q", path, "8M", rc=0)
    for name in ("one", "two"):
        vhdx("snapshot", "-q", path, name, rc=0)
    return path


def listed(vhdx, path, rc):
    """Each state by its name, whether it is whole, and the standard error."""
    result = vhdx("snapshot", "--list", "--json", path, rc=rc)
    return {entry["name"]: entry["whole"] for entry in result.json()}, result.err


def destroy(path, offsets):
    with open(path, "r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(b"xxxx")


# ---- --list

@pytest.mark.parametrize("offsets", [[0], [64 * KiB, 128 * KiB]], ids=["signature", "headers"])
@pytest.mark.parametrize("name, others", [("one.vhdx", "two"), ("two.avhdx", "one")])
def test_destroyed_state_is_not_called_whole(vhdx, disk, tmp_path, name, others, offsets):
    destroy(tmp_path / f"web.{name}", offsets)
    found, err = listed(vhdx, disk, 1)
    assert found[name.split(".", maxsplit=1)[0]] is False and err.count("\n") >= 1
    assert others not in found or found[others] is True
    assert others in found or f"web.{others}" in err
    line = [line for line in vhdx("snapshot", "--list", disk, rc=1).out.splitlines() if "UNREADABLE: " in line]
    assert len(line) == 1 and name.split(".", maxsplit=1)[0] in line[0]


def test_destroyed_state_that_nothing_rests_on(vhdx, disk, tmp_path):
    vhdx("snapshot", "--revert", "--force", disk, "one", rc=0)
    destroy(tmp_path / "web.two.avhdx", [64 * KiB, 128 * KiB])
    assert listed(vhdx, disk, 1)[0] == {"one": True, "two": False}
    destroy(tmp_path / "web.two.avhdx", [0])
    found, err = listed(vhdx, disk, 1)
    assert found["one"] is True and not found.get("two") and "web.two.avhdx" in err


def test_state_that_may_not_be_read(vhdx, disk, tmp_path, need_ordinary_user):
    (tmp_path / "web.two.avhdx").chmod(0)
    found, err = listed(vhdx, disk, 1)
    assert found.get("two") is not True and "web.two.avhdx" in err


@pytest.mark.parametrize("name", ["one.vhdx", "two.avhdx"])
def test_state_that_is_gone(vhdx, disk, tmp_path, name):
    """Whatever is listed then is not all."""
    os.rename(tmp_path / f"web.{name}", tmp_path / "elsewhere")
    assert f"web.{name}" in listed(vhdx, disk, 1)[1]


def test_another_disk_is_no_state_and_no_trouble(vhdx, disk, tmp_path):
    vhdx("create", "-q", tmp_path / "web.data.vhdx", "8M", rc=0)
    assert listed(vhdx, disk, 0) == ({"one": True, "two": True}, "")
    (tmp_path / "web.notes.vhdx").write_text("mine")
    found, err = listed(vhdx, disk, 1)
    assert found == {"one": True, "two": True} and "web.notes.vhdx" in err


# ---- a snapshot that was interrupted: its second name is completed by the same command, or has to be removed

@pytest.fixture
def single(vhdx, tmp_path):
    path = tmp_path / "d.vhdx"
    vhdx("create", "-q", path, "8M", rc=0)
    return path


def only_removal_is_advised(vhdx, path, arguments, name):
    err = vhdx("snapshot", *arguments, rc=1).err
    assert "interrupted" in err and f"remove the name {path.parent}/{name}" in err, err
    assert "completes it" not in err and "take another name" not in err
    return err


@pytest.mark.parametrize("state", ["c", "z"])
def test_leftover_of_a_child_that_is_none_any_more(vhdx, single, tmp_path, state):
    """A snapshot would give the file another name now."""
    vhdx("create", "-q", "--parent", single, tmp_path / "e.vhdx", rc=0)
    os.link(tmp_path / "e.vhdx", tmp_path / "e.c.avhdx")
    vhdx("rebase", "-b", "", tmp_path / "e.vhdx", rc=0)
    only_removal_is_advised(vhdx, single, [tmp_path / "e.vhdx", state], "e.c.avhdx")
    only_removal_is_advised(vhdx, single, ["--revert", "--force", tmp_path / "e.vhdx", "c"], "e.c.avhdx")
    assert "completes it" not in vhdx("snapshot", "--list", tmp_path / "e.vhdx", rc=0).out
    os.remove(tmp_path / "e.c.avhdx")
    vhdx("snapshot", tmp_path / "e.vhdx", "c", rc=0)


def test_two_leftovers(vhdx, single, tmp_path):
    """None can be completed as long as there is the other one."""
    for state in "ce":
        os.link(single, tmp_path / f"d.{state}.vhdx")
    only_removal_is_advised(vhdx, single, [single, "c"], "d.e.vhdx")
    only_removal_is_advised(vhdx, single, [single, "e"], "d.c.vhdx")
    only_removal_is_advised(vhdx, single, [single, "z"], "d.c.vhdx")
    os.remove(tmp_path / "d.e.vhdx")
    assert "completes it" in vhdx("snapshot", single, "z", rc=1).err
    vhdx("snapshot", single, "c", rc=0)


# ---- images that are in use

def test_image_that_is_being_written(vhdx, single):
    """There is no --force-share to be advised here."""
    with open(single, "r+b") as file:
        for byte in (100, 101, 103, 201, 203):
            fcntl.fcntl(file, 37, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        err = vhdx("snapshot", single, "s", rc=1).err
    assert "open for writing; close it there first" in err and "force-share" not in err
    vhdx("snapshot", single, "s", rc=0)
