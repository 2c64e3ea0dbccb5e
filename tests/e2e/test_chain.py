# SPDX-License-Identifier: MIT
"""vhdx chain: which images belong together, and which links are broken and why.  What info --chain tells of the same."""
import ctypes
import errno
import fcntl
import hashlib
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import tempfile
import time

import pytest

from conftest import run_program
from reading import Library
from vhdxbuild import *

F_OFD_SETLK = 37


def disk(path, seed, **keywords):
    return Image(8 * MiB, block_size=MiB, seed=seed, **keywords).write(0, MiB, Pattern(seed)).build(path)


def child_of(parent, path, seed, relative=None, **keywords):
    """A child that records parent's name, or relative, or with "" no relative path."""
    image = Image(keywords.pop("size", 8 * MiB), block_size=MiB, seed=seed, parent=parent, **keywords)
    relative = f".\\{os.path.basename(parent.path)}" if relative is None else relative
    image.locator = Locator.relative(parent.data_write_guid, relative)
    return image.write(MiB, 512, Pattern(seed)).build(path)


def survey(vhdx, path, *options, rc=0):
    """By file name."""
    return {os.path.relpath(entry["filename"], path if os.path.isdir(path) else os.path.dirname(path)): entry
            for entry in vhdx("chain", "--json", *options, path, rc=rc).json()}


def statuses(images):
    return {name: entry["link"]["status"] if "link" in entry else "none" for name, entry in images.items()}


@pytest.fixture
def family(tmp_path):
    """base - middle - two children, and a disk that is nobody's."""
    base = disk(tmp_path / "base.vhdx", 1)
    middle = child_of(base, tmp_path / "middle.avhdx", 2)
    child_of(middle, tmp_path / "kid1.avhdx", 3)
    child_of(middle, tmp_path / "kid2.avhdx", 4)
    disk(tmp_path / "other.vhdx", 5)
    return tmp_path


# ---- chains that are whole

def test_folder(vhdx, family):
    entries = vhdx("chain", "--json", family, rc=0).json()
    names = [(os.path.basename(entry["filename"]), entry["depth"]) for entry in entries]
    assert names == [("base.vhdx", 0), ("middle.avhdx", 1), ("kid1.avhdx", 2), ("kid2.avhdx", 2), ("other.vhdx", 0)]
    assert [entry["link"]["status"] for entry in entries[1:4]] == ["ok"] * 3
    assert entries[1]["link"]["found"] == entries[0]["filename"]
    assert entries[1]["link"]["relative-path"] == ".\\base.vhdx"
    assert entries[1]["link"]["parent-linkage"] == entries[0]["data-write-guid"]
    assert entries[0]["disk-id"] == entries[3]["disk-id"] != entries[4]["disk-id"]
    assert entries[0]["virtual-size"] == 8 * MiB and entries[0]["subformat"] == "dynamic"
    assert "link" not in entries[0] and all("remark" not in entry["link"] for entry in entries[1:4])


def test_drawn(vhdx, family):
    out = vhdx("chain", family, rc=0).out
    lines = [line for line in out.splitlines() if "hdx  [" in line]
    assert [line.split("  [")[0].replace(f"{family}/", "") for line in lines] == [
        "base.vhdx", "`-- middle.avhdx", "    |-- kid1.avhdx", "    `-- kid2.avhdx", "other.vhdx"]
    assert "BROKEN" not in out
    assert all(len(line) < 200 for line in out.splitlines())


def test_image_shows_its_relatives_only(vhdx, family):
    result = vhdx("chain", family / "kid1.avhdx", rc=0).out
    assert "kid1.avhdx *" in result and "kid2.avhdx" in result and "other.vhdx" not in result
    assert set(survey(vhdx, family / "other.vhdx")) == {"other.vhdx"}


def test_names_as_typed(vhdx, family):
    for cwd, path, name in ((family, ".", "base.vhdx"), (family, "./", "./base.vhdx"), (family.parent, f"{family.name}//",
                            f"{family.name}/base.vhdx"), (family, "base.vhdx", "base.vhdx")):
        names = [entry["filename"] for entry in vhdx("chain", "--json", path, cwd=cwd, rc=0).json()]
        assert os.path.normpath(name) in [os.path.normpath(n) for n in names]
        assert all(os.path.exists(os.path.join(cwd, n)) for n in names)


def test_folders_below(vhdx, tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "web" / "checkpoints").mkdir(parents=True)
    base = disk(tmp_path / "templates" / "golden.vhdx", 1)
    child_of(base, tmp_path / "web" / "checkpoints" / "web.avhdx", 2, "..\\..\\templates\\golden.vhdx")
    assert statuses(survey(vhdx, tmp_path)) == {"templates/golden.vhdx": "none", "web/checkpoints/web.avhdx": "ok"}
    assert survey(vhdx, tmp_path, "--no-recurse") == {}
    assert statuses(survey(vhdx, tmp_path / "web", rc=1)) == {"checkpoints/web.avhdx": "blocked"}
    found = survey(vhdx, tmp_path / "web", "--parent-dir", tmp_path / "templates")
    assert found["checkpoints/web.avhdx"]["link"]["status"] == "ok"
    assert found["../templates/golden.vhdx"]["wanted"] is False
    assert "../templates/golden.vhdx" in survey(vhdx, tmp_path / "web", "--allow-parent-path")


def test_empty_folder(vhdx, tmp_path):
    result = vhdx("chain", tmp_path, rc=0)
    assert result.out == "" and "no images here" in result.err
    assert vhdx("chain", "--json", tmp_path, rc=0).json() == []


def test_link_to_an_image_shows_its_relatives(vhdx, family):
    (family / "links").mkdir()
    (family / "links" / "kid.avhdx").symlink_to("../kid1.avhdx")
    disk(family / "links" / "beside.vhdx", 6)
    images = survey(vhdx, family / "links" / "kid.avhdx")
    assert set(images) == {"kid.avhdx", "../base.vhdx", "../middle.avhdx", "../kid2.avhdx"}
    assert images["kid.avhdx"]["link"]["found"] == str(family / "middle.avhdx")
    child = child_of(disk(family / "links" / "by identity.vhdx", 7), family / "renamed.avhdx", 8, ".\\gone.vhdx")
    (family / "links" / "renamed").symlink_to(child.path)
    assert statuses(survey(vhdx, family / "links" / "renamed", rc=1)) == {"renamed": "moved", "by identity.vhdx": "none"}


def test_hard_links_are_one_image(vhdx, family):
    """Called by the shortest name, which is not the one that an interrupted snapshot added, or as it was asked for."""
    os.link(family / "other.vhdx", family / "other.state.vhdx")
    os.link(family / "base.vhdx", family / "abase.vhdx")
    images = survey(vhdx, family)
    assert len(images) == 5 and {"other.vhdx", "base.vhdx"} < set(images)
    os.link(family / "abase.vhdx", family / "b.vhdx")
    assert "b.vhdx" in survey(vhdx, family)
    assert set(survey(vhdx, family / "other.state.vhdx")) == {"other.state.vhdx"}


def test_children_of_another_size_and_linkage2_are_remarked(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child_of(base, tmp_path / "longer.avhdx", 2, size=16 * MiB)
    merging = Image(8 * MiB, block_size=MiB, seed=3, parent=base)
    merging.locator = Locator.relative(seeded_guid(9, "old"), ".\\base.vhdx", linkage2=base.data_write_guid)
    merging.build(tmp_path / "merging.avhdx")
    images = survey(vhdx, tmp_path)
    assert "zeros" in images["longer.avhdx"]["link"]["remark"]
    assert "merge" in images["merging.avhdx"]["link"]["remark"]


def test_stale_path_is_remarked(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child_of(base, tmp_path / "kid.avhdx", 2, "..\\gone\\base.vhdx")
    assert "does not lead" in survey(vhdx, tmp_path)["kid.avhdx"]["link"]["remark"]


# ---- broken links

def test_missing(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child_of(base, tmp_path / "kid.avhdx", 2)
    os.unlink(base.path)
    image = survey(vhdx, tmp_path, rc=1)["kid.avhdx"]
    assert image["link"]["status"] == "missing" and guid_text(base.data_write_guid) in image["link"]["remark"]
    assert "BROKEN: parent missing" in vhdx("chain", tmp_path, rc=1).out


def test_renamed(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child_of(base, tmp_path / "kid.avhdx", 2)
    (tmp_path / "below").mkdir()
    os.rename(base.path, tmp_path / "below" / "no name at all")
    images = survey(vhdx, tmp_path, rc=1)
    assert images["kid.avhdx"]["link"]["status"] == "moved"
    assert images["kid.avhdx"]["link"]["found"] == str(tmp_path / "below" / "no name at all")
    assert images["kid.avhdx"]["depth"] == 1


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_renamed_into_a_parent_dir(vhdx, tmp_path, kind):
    base = disk(tmp_path / "base.vhdx", 1)
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    child = child_of(base, tmp_path / "here" / "kid.avhdx", 2)
    os.rename(base.path, tmp_path / "there" / "other name.vhdx")
    path = child.path if kind == "file" else tmp_path / "here"
    images = survey(vhdx, path, "--parent-dir", tmp_path / "there", rc=1)
    assert images["kid.avhdx"]["link"]["status"] == "moved" and len(images) == 2


def test_changed(vhdx, tmp_path):
    """A parent that was written to behind its child's back."""
    base = disk(tmp_path / "base.vhdx", 1)
    child = child_of(base, tmp_path / "kid.avhdx", 2)
    vhdx("io", base.path, "-c", "write -P 7 0 4k", rc=0)
    link = survey(vhdx, tmp_path, rc=1)["kid.avhdx"]["link"]
    assert link["status"] == "changed" and link["instead"] == base.path
    assert "mismatch in the identifiers" in link["remark"] and "written to" in link["remark"]
    assert guid_text(base.data_write_guid) in link["remark"]
    err = vhdx("convert", child.path, "-", rc=1).err
    assert "mismatch in the identifiers" in err and "rebase --find" in err


def test_another_disk_in_its_place(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child_of(base, tmp_path / "kid.avhdx", 2)
    disk(tmp_path / "base.vhdx", 3)
    link = survey(vhdx, tmp_path, rc=1)["kid.avhdx"]["link"]
    assert link["status"] == "changed" and "another disk" in link["remark"]


def test_wrong_one_in_its_place_and_right_one_elsewhere(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child_of(base, tmp_path / "kid.avhdx", 2)
    os.rename(base.path, tmp_path / "saved.vhdx")
    disk(tmp_path / "base.vhdx", 3)
    link = survey(vhdx, tmp_path, rc=1)["kid.avhdx"]["link"]
    assert link["status"] == "moved"
    assert link["found"].endswith("saved.vhdx") and link["instead"].endswith("base.vhdx")


@pytest.mark.parametrize("recorded", ["..\\outside\\base.vhdx", "C:\\images\\base.vhdx", "/outside/base.vhdx",
                                      "\\\\server\\share\\base.vhdx", "base.vhdx:stream", "\\\\.\\PhysicalDrive0"])
def test_blocked(vhdx, tmp_path, recorded):
    (tmp_path / "here").mkdir()
    (tmp_path / "outside").mkdir()
    base = disk(tmp_path / "outside" / "base.vhdx", 1)
    child_of(base, tmp_path / "here" / "kid.avhdx", 2, recorded)
    assert statuses(survey(vhdx, tmp_path / "here", rc=1)) == {"kid.avhdx": "blocked"}


def test_link_out_of_the_folder_is_not_followed(vhdx, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "outside").mkdir()
    base = disk(tmp_path / "outside" / "base.vhdx", 1)
    child_of(base, tmp_path / "here" / "kid.avhdx", 2)
    (tmp_path / "here" / "base.vhdx").symlink_to("../outside/base.vhdx")
    assert statuses(survey(vhdx, tmp_path / "here", rc=1)) == {"kid.avhdx": "blocked"}


def test_unreadable_parent(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child_of(base, tmp_path / "kid.avhdx", 2)
    with open(base.path, "r+b") as file:
        file.write(bytes(MiB))
    images = survey(vhdx, tmp_path, rc=1)
    assert images["kid.avhdx"]["link"]["status"] == "unreadable"
    assert images["kid.avhdx"]["link"]["instead"] == base.path
    assert "not a VHDX" in images["base.vhdx"]["problem"]


def test_parent_that_is_no_file(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child_of(base, tmp_path / "kid.avhdx", 2)
    os.unlink(base.path)
    os.mkfifo(base.path)
    link = survey(vhdx, tmp_path, rc=1)["kid.avhdx"]["link"]
    assert link["status"] == "unreadable" and "no regular file" in link["remark"]


def test_sector_sizes(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    child_of(base, tmp_path / "kid.avhdx", 2, lss=4096)
    link = survey(vhdx, tmp_path, rc=1)["kid.avhdx"]["link"]
    assert link["status"] == "sector-size" and "4096" in link["remark"]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_circle(vhdx, tmp_path, length):
    base = disk(tmp_path / "base.vhdx", 1)
    guids = [seeded_guid(number, "circle") for number in range(length)]
    for number in range(length):
        image = Image(8 * MiB, block_size=MiB, parent=base, seed=51 + number, data_write_guid=guids[number])
        following = (number + 1) % length
        image.locator = Locator.relative(guids[following], f".\\{following}.vhdx")
        image.build(tmp_path / f"{number}.vhdx")
    images = survey(vhdx, tmp_path, rc=1)
    assert len(images) == length + 1
    assert sorted(statuses(images).values()) == sorted(["none", "cycle"] + ["ok"] * (length - 1))


def test_deepest_chain_and_one_more(vhdx, tmp_path):
    image = disk(tmp_path / "000.vhdx", 1)
    for depth in range(1, 257):
        child = Image(8 * MiB, block_size=MiB, seed=depth, parent=image)
        child.locator = Locator.relative(image.data_write_guid, f".\\{os.path.basename(image.path)}")
        image = child.build(tmp_path / f"{depth:03}.avhdx")
    entries = survey(vhdx, tmp_path, rc=1)
    assert entries["255.avhdx"]["link"]["status"] == "ok" and entries["255.avhdx"]["depth"] == 255
    assert entries["256.avhdx"]["link"]["status"] == "depth"
    vhdx("chain", tmp_path, rc=1)
    assert len(vhdx("info", "--chain", "--json", tmp_path / "255.avhdx", rc=0).json()) == 256


# ---- folders that hold anything

def test_what_else_lies_in_folders(vhdx, family):
    """Nothing that is no regular file is opened, nothing waits, no link is followed, no loop is walked."""
    os.mkfifo(family / "fifo.vhdx")
    (family / "loop").symlink_to(".")
    (family / "up.vhdx").symlink_to("..")
    (family / "dangling.vhdx").symlink_to("nothing")
    (family / "link.vhdx").symlink_to("base.vhdx")
    (family / "text.vhdx").write_text("hello")
    (family / "empty.avhdx").touch()
    (family / "text").write_text("vhdx")
    (family / "folder.vhdx").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(family / "socket.vhdx"))
        images = survey(vhdx, family, rc=1)
    assert set(images) == {"base.vhdx", "middle.avhdx", "kid1.avhdx", "kid2.avhdx", "other.vhdx", "text.vhdx", "empty.avhdx"}
    assert "not a VHDX" in images["text.vhdx"]["problem"]
    assert "unreadable" in vhdx("chain", family, rc=1).out


def test_devices_are_not_touched(vhdx, need_root, family):
    os.mknod(family / "null.vhdx", 0o600 | 0o020000, os.makedev(1, 3))
    os.mknod(family / "disk.vhdx", 0o600 | 0o060000, os.makedev(7, 200))
    assert len(survey(vhdx, family)) == 5


def test_files_that_may_not_be_read(vhdx, need_ordinary_user, family):
    (family / "middle.avhdx").chmod(0)
    images = survey(vhdx, family, rc=1)
    assert "cannot open: Permission denied" in images["middle.avhdx"]["problem"]
    assert images["kid1.avhdx"]["link"]["status"] == "unreadable"


@pytest.mark.parametrize("mode", [0o400, 0o100, 0])
def test_folders_that_may_not_be_read(vhdx_path, need_root, tool, mode):
    """Readable and not to be entered, the other way round, and neither: what is in it is unknown, which is no success."""
    with tempfile.TemporaryDirectory() as name:  # pytest's are for their owner alone
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        disk(folder / "open.vhdx", 5)
        (folder / "closed").mkdir()
        disk(folder / "closed" / "base.vhdx", 6)
        words = [tool("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"]
        if subprocess.run([*words, "test", "-x", vhdx_path], check=False).returncode != 0:
            pytest.skip(f"an ordinary user cannot reach {vhdx_path}")
        os.chown(folder / "closed", 65534, 65534)
        (folder / "closed").chmod(mode)
        result = run_program([*words, vhdx_path, "chain", "--json", folder], rc=1)
        assert len(result.json()) == 1 and "1 folders could not be looked into" in result.err
        result = run_program([*words, vhdx_path, "chain", folder / "closed"], rc=1)
        assert result.out == "" and ("Permission denied" in result.err or "1 folders could not be looked into" in result.err)


def test_too_few_descriptors(vhdx_path, tool, family):
    """What cannot be opened for want of them is not missing, nor is it unreadable."""
    results = [run_program([tool("prlimit"), f"--nofile={number}", vhdx_path, "chain", "--json", family]) for number in range(4, 16)]
    for result in results:
        if result.rc == 0:
            assert len(result.json()) == 5 and result.err == ""
        else:
            assert result.out == "" and "Too many open files" in result.err
    assert {result.rc for result in results} == {0, 1}


def test_other_file_systems(vhdx, need_root, family):
    (family / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", family / "below"], check=True)
    try:
        disk(family / "below" / "base.vhdx", 6)
        result = vhdx("chain", "--json", family, rc=0)
        assert len(result.json()) == 5 and "1 folders on other file systems" in result.err
        assert vhdx("chain", "--no-recurse", family, rc=0).err == ""
    finally:
        subprocess.run(["umount", family / "below"], check=True)


def test_names_that_terminals_obey(vhdx, tmp_path):
    disk(tmp_path / "a\x1b[2Jb\nc.vhdx", 1)
    result = vhdx("chain", tmp_path, rc=0)
    assert "\x1b" not in result.out and len(result.out.splitlines()) == 3
    assert vhdx("chain", "--json", tmp_path, rc=0).json()[0]["filename"] == str(tmp_path / "a\x1b[2Jb\nc.vhdx")


def test_many_files(vhdx, tmp_path):
    """Other files cost a look at their first bytes each."""
    for number in range(3000):
        (tmp_path / f"{number}.txt").write_bytes(b"x")
    disk(tmp_path / "base.vhdx", 1)
    assert len(survey(vhdx, tmp_path)) == 1


def orphans(folder, count):
    """Children of nothing here, which name three places each."""
    parent = disk(folder / "gone.vhdx", 1)
    image = Image(8 * MiB, block_size=MiB, seed=2, parent=parent)
    image.locator = Locator.windows(parent.data_write_guid, "C:\\images\\gone too.vhdx", ".\\images\\gone.vhdx",
                                    "\\\\?\\Volume{1f2e3d4c-0000-0000-0000-100000000000}\\images\\gone as well.vhdx")
    built = image.build(folder / "0.avhdx")
    os.unlink(parent.path)
    for number in range(1, count):
        shutil.copyfile(built.path, folder / f"{number}.avhdx")


def test_many_orphans(vhdx_path, tool, tmp_path):
    """Looking for a parent whatever its case lists the folder: once, and not for each place that each image names."""
    trace = tmp_path / "trace"
    (tmp_path / "images").mkdir()
    orphans(tmp_path / "images", 100)
    words = [*strace(tool, "-e", "trace=getdents64", "-o", trace), vhdx_path, "chain", "--json", tmp_path / "images"]
    result = run_program(words, rc=1)
    assert [image["link"]["status"] for image in result.json()] == ["missing"] * 100
    assert len(trace.read_text().splitlines()) < 20


def test_the_search_for_parents_can_be_stopped(library, source_root, sanitizer, tmp_path):
    if sanitizer != "none":
        pytest.skip("Python cannot load a library with sanitizers")
    (tmp_path / "images").mkdir()
    orphans(tmp_path / "images", 10)
    api = Library(library, source_root / "include" / "vhdx.h")
    calls = []
    step = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)(
        lambda _, done, total: calls.append((done, total)) or len(calls) == 15)
    survey_handle = ctypes.c_void_p()
    code = api.lib.vhdx_survey_new(os.fsencode(tmp_path / "images"), None, ctypes.c_uint32(0), step, None, ctypes.byref(survey_handle))
    assert (code, len(calls), calls[-1]) == (-errno.ECANCELED, 15, (10, 0))


def test_too_much_to_know(vhdx, tmp_path):
    """A folder of enormous locators costs bounded memory, and what to do about it depends on what was asked for."""
    base = disk(tmp_path / "base.vhdx", 1)
    for number in range(260):
        image = Image(8 * MiB, block_size=MiB, seed=2 + number, parent=base)
        image.locator = Locator.relative(base.data_write_guid, ".\\base.vhdx")
        image.locator.padding = bytes(MiB - 1000)
        image.build(tmp_path / f"{number}.avhdx")
    for path, way_out in ((tmp_path, "name a folder further down"), (base.path, "move the image and its relatives to a folder")):
        err = vhdx("chain", path, rc=1).err
        assert "locators of" in err and way_out in err and err.count("\n") == 1
    assert "move the image and its relatives to a folder" in vhdx("snapshot", base.path, "saved.vhdx", rc=1).err


def test_deep_folders(vhdx, tmp_path):
    folder = tmp_path.joinpath(*["d"] * 70)
    folder.mkdir(parents=True)
    disk(folder / "deep.vhdx", 1)
    result = vhdx("chain", "--json", tmp_path, rc=1)
    assert result.json() == [] and "1 folders could not be looked into" in result.err
    assert len(vhdx("chain", "--json", tmp_path.joinpath(*["d"] * 20), rc=0).json()) == 1


def test_images_that_are_being_written(vhdx, family):
    """The writer is not disturbed, and what it writes is shown as far as it can be read."""
    with open(family / "kid1.avhdx", "r+b") as file:
        for byte in (100, 101, 103, 201, 203):
            fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        images = survey(vhdx, family)
        assert [name for name, image in images.items() if image["in-use"]] == ["kid1.avhdx"]
        assert images["kid1.avhdx"]["link"]["status"] == "ok"
        assert "open for writing elsewhere" in vhdx("chain", family, rc=0).out
        assert not any(image["in-use"] for image in survey(vhdx, family, "-U").values())


def strace(tool, *options):
    """Words that run a command under strace; skips where that cannot be."""
    no_leaks = f"ASAN_OPTIONS={os.environ.get('ASAN_OPTIONS', '')}:detect_leaks=0"  # looking for them is tracing, too
    words = [tool("strace"), "-f", "-E", no_leaks, *options]
    if subprocess.run([*words, "-o", "/dev/null", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("strace cannot trace here")
    return words


def test_nobody_notices_the_look(vhdx_path, tool, family, tmp_path):
    """A lock, however short, would turn away a machine that is started in this moment."""
    trace = tmp_path / "trace"
    run_program([*strace(tool, "-e", "trace=fcntl,flock", "-o", trace), vhdx_path, "chain", family], rc=0)
    assert "F_OFD_GETLK" in trace.read_text()
    assert not [line for line in trace.read_text().splitlines() if "SETLK" in line or "flock(" in line]


def test_what_was_out_of_step_is_looked_at_again(vhdx_path, tool, family):
    path = family / "kid1.avhdx"
    failure = [word for call in ("pread64:error=EIO:when=5", "preadv:error=EIO:when=1") for word in ("-e", f"inject={call}")]
    words = [*strace(tool, "-o", "/dev/null", "-P", path, *failure), vhdx_path, "chain", family]
    assert "kid1.avhdx  [unreadable" in run_program(words, rc=1).out
    with open(path, "r+b") as file:
        fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0))
        assert "unreadable" not in run_program(words, rc=0).out


def test_dirty_logs(vhdx, tmp_path):
    base = disk(tmp_path / "base.vhdx", 1)
    image = Image(8 * MiB, block_size=MiB, seed=2, parent=base)
    image.locator = Locator.relative(base.data_write_guid, ".\\base.vhdx")
    image.write(MiB, 512, Pattern(2))
    make_dirty(image, ["bat", "bitmap"])
    image.build(tmp_path / "kid.avhdx")
    images = survey(vhdx, tmp_path)
    assert images["kid.avhdx"]["dirty-flag"] is True and images["kid.avhdx"]["link"]["status"] == "ok"


def test_nothing_changes(vhdx, family):
    def hashes():
        return {path.name: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) for path in family.iterdir()}
    before = hashes()
    vhdx("chain", family, rc=0)
    assert hashes() == before


@pytest.mark.parametrize("path", ["nothing", "nothing/disk.vhdx"])
def test_path_that_is_not_there(vhdx, tmp_path, path):
    assert "No such file or directory" in vhdx("chain", tmp_path / path, rc=1).err


def test_image_that_cannot_be_read(vhdx, tmp_path):
    (tmp_path / "x.vhdx").write_bytes(bytes(4 * MiB))
    assert "not a VHDX" in vhdx("chain", tmp_path / "x.vhdx", rc=1).err
    os.mkfifo(tmp_path / "fifo")
    vhdx("chain", tmp_path / "fifo", rc=1)


# ---- info --chain

def test_info_shows_the_chain_up_to_the_break(vhdx, family):
    os.unlink(family / "base.vhdx")
    result = vhdx("info", "--chain", "--json", family / "kid1.avhdx", rc=1)
    child, middle = result.json()
    assert child["full-backing-filename"] == str(family / "middle.avhdx") and "backing-problem" not in child
    assert "not in the child's folder" in middle["backing-problem"] and "full-backing-filename" not in middle
    assert "the chain is broken: " in result.err
    human = vhdx("info", "--chain", family / "kid1.avhdx", rc=1).out
    assert human.count("data write guid:") == 2 and "not opened; recorded as .\\base.vhdx" in human
    assert vhdx("info", family / "kid1.avhdx", rc=0).err.count("warning") == 1
