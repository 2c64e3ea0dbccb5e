# SPDX-License-Identifier: MIT
"""What another image rests on is not replaced, even if not everything about the two can be known; and nothing else is kept."""
import os
import resource
import shutil
import subprocess

import pytest
from cli_support import find_strace
from conftest import run_program
from vhdxbuild import *


def disk(path, seed=1, **keywords):
    return Image(8 * MiB, block_size=MiB, seed=seed, **keywords).write(0, MiB, Pattern(seed))


def child_of(parent, path, seed=2, relative=None):
    image = disk(path, seed, parent=parent)
    image.locator = Locator.relative(parent.data_write_guid, relative or f".\\{os.path.basename(parent.path)}")
    return image


def without_replay(image):
    """The log must be replayed and has nothing to replay."""
    image.log.guid = seeded_guid(1, "no entry has it")
    return image


def with_unknown_region(image):
    image.regions.append(Region("what is to come", length=MiB))
    return image


def with_huge_log(image):
    for header in image.headers:
        header.log_length = 2 << 30
    return image


CANNOT_BE_READ = {"log": without_replay, "unknown region": with_unknown_region, "limit": with_huge_log}


def read_file(path):
    with open(path, "rb") as file:
        return file.read()


def overwriting(path):
    """The arguments that write a raw disk over the file."""
    source = path.parent / "raw" / "source"
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(bytes(MiB))
    return ["convert", "-q", "-n", "-O", "raw", "-f", "raw", source, path]


def is_kept(vhdx, path, *words):
    """Neither command replaces it; all of the words are in the message of each."""
    before = read_file(path)
    for command in (["create", "--force", path, "8M"], overwriting(path)):
        result = vhdx(*command, rc=1)
        assert result.err.startswith(f"vhdx {command[0]}: {path}: ") and result.err.count("\n") == 1
        for word in (*words, "remove"):
            assert word in result.err
        assert read_file(path) == before


def is_replaced(vhdx, path):
    before = read_file(path)
    vhdx("create", "-q", "--force", path, "8M", rc=0)
    assert read_file(path) != before


@pytest.fixture
def bound(vhdx_path, tool):
    """The command by a user who may not read everything."""
    drop = [tool("setpriv"), "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    return lambda *words, **keywords: run_program([*drop, vhdx_path, *words], **keywords)


@pytest.mark.parametrize("damage", CANNOT_BE_READ)
def test_a_parent_that_cannot_be_read(vhdx, tmp_path, damage):
    """It may be by another program; without a child it is anybody's to replace."""
    path = tmp_path / "base.vhdx"
    base = disk(path).build(path)
    child_of(base, tmp_path / "child.avhdx").build(tmp_path / "child.avhdx")
    CANNOT_BE_READ[damage](disk(path)).build(path)
    is_kept(vhdx, path, "child.avhdx", "cannot be read")
    os.unlink(tmp_path / "child.avhdx")
    is_replaced(vhdx, path)


LIKELY = [("disk.one.avhdx", True), ("disk_0A1B.avhdx", True), ("disk2.vhdx", False), ("other.vhdx", False)]


@pytest.mark.parametrize("damage", [*CANNOT_BE_READ, "permission"])
@pytest.mark.parametrize("name, likely", LIKELY)
def test_a_neighbour_that_cannot_be_read(bound, tmp_path, damage, name, likely):
    path, other = tmp_path / "disk.vhdx", tmp_path / name
    child = child_of(disk(path).build(path), other)
    CANNOT_BE_READ.get(damage, lambda image: image)(child).build(other)
    if damage == "permission":
        other.chmod(0)
    if likely:
        is_kept(bound, path, name, "cannot be read")
        os.unlink(other)
    is_replaced(bound, path)


def test_a_neighbour_that_nobody_can_read(vhdx, tmp_path):
    path, other = tmp_path / "disk.vhdx", tmp_path / "disk.one.avhdx"
    disk(path).build(path)
    other.write_bytes(b"vhdxfile" + bytes(MiB))
    is_replaced(vhdx, path)
    other.write_bytes(bytes(MiB))
    is_replaced(vhdx, path)


def test_no_children_are_known_of_without_a_look(vhdx_path, tmp_path):
    """With too few descriptors the search ends somewhere; nothing is taken for the answer."""
    path = tmp_path / "disk.vhdx"
    child_of(disk(path).build(path), tmp_path / "child.avhdx").build(tmp_path / "child.avhdx")
    before, messages = read_file(path), []
    for limit in range(4, 16):
        done = subprocess.run([vhdx_path, "create", "--force", path, "8M"], capture_output=True, timeout=300, check=False,
                              preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
        assert done.returncode != 0 and read_file(path) == before
        messages.append(done.stderr)
    words = (b"cannot find out whether another image rests on what is there: ", b"remove the file first")
    assert any(all(word in message for word in words) for message in messages), messages
    assert b"as its parent" in messages[-1]


def test_another_hard_link_keeps_the_parent(vhdx, tmp_path):
    """Unless it is the name that is replaced that a child records; and not if the file itself is written."""
    path, kept, child = (tmp_path / name for name in ("disk.vhdx", "s1.vhdx", "child.vhdx"))
    disk(path).build(path)
    os.link(path, kept)
    vhdx("create", "-q", "--parent", kept, child, rc=0)
    result = vhdx("create", "--force", kept, "8M", rc=1)
    assert "child.vhdx has the image that is there as its parent" in result.err
    result = vhdx(*overwriting(path), rc=1)
    assert "child.vhdx has the image that is there as its parent" in result.err
    is_replaced(vhdx, path)
    vhdx("compare", kept, child, rc=0)


def test_a_copy_is_no_parent_as_long_as_there_is_another(vhdx, tmp_path):
    """Images that only the identity leads to: the last one stays."""
    path = tmp_path / "disk.vhdx"
    base = disk(path).build(path)
    child_of(base, tmp_path / "child.avhdx", relative="..\\elsewhere\\base.vhdx").build(tmp_path / "child.avhdx")
    shutil.copy(path, tmp_path / "copy.vhdx")
    is_replaced(vhdx, tmp_path / "copy.vhdx")
    is_kept(vhdx, path, "child.avhdx", "elsewhere", "identity")
    shutil.copy(path, tmp_path / "copy.vhdx")
    is_replaced(vhdx, path)


def test_the_child_is_no_copy_of_its_parent(vhdx, tmp_path):
    """After an interrupted merge it may have the same identity."""
    path = tmp_path / "disk.vhdx"
    base = disk(path).build(path)
    child = child_of(base, tmp_path / "child.avhdx", relative=".\\gone.vhdx")
    for header in child.headers:
        header.data_write_guid = base.data_write_guid
    child.build(tmp_path / "child.avhdx")
    is_kept(vhdx, path, "child.avhdx", "identity")


@pytest.mark.parametrize("name, opened", [(".d.vhdx", [".d.state", ".d"]), ("a.img", ["a.state", "A"])])
def test_what_can_be_no_relative_by_its_name_is_not_opened(vhdx_path, tool, tmp_path, name, opened):
    others = [".e.state", ".dd", "abc", "film.iso", "d.state"]
    disk(tmp_path / name).build(tmp_path / name)
    for other in opened + others:
        (tmp_path / other).write_bytes(bytes(MiB))
    log = tmp_path / "log of calls"
    strace = [find_strace(tool), "-y", "-qq", "-o", log, "-e", "trace=openat"]
    run_program([*strace, vhdx_path, "create", "-q", "--force", tmp_path / name, "8M"], rc=0)
    lines = [line for line in log.read_text().splitlines() if "O_PATH" not in line]
    seen = [other for other in opened + others if any(f"/{other}>" in line for line in lines)]
    assert seen == opened
