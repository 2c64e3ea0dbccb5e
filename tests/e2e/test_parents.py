# SPDX-License-Identifier: MIT
"""Chains as users meet them (format section 8, H4): where parents are found, where they are not looked for and what is
said then, and locators that lie.  The structure of the locator itself is in test_hostile_parents.py, what
check says in test_check_chain.py."""
import os
import re
import shutil
import socket
import stat
import subprocess

import pytest
from cli_support import find_strace, held_by_qemu
from hostile_support import api, code_is, hostile  # noqa: F401 (fixtures)
from reading import file_sha256
from vhdxbuild import *

VOLUME = "\\\\?\\Volume{5e0bd954-71b2-4bff-a928-082af7ab0f8f}"
ALLOW = "--allow-parent-path"


@pytest.fixture
def here(tmp_path):
    """The child's folder; outside of it nothing may be opened unasked."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def make_base(path, seed=1, **keywords):
    """A disk without parent, in folders that are made for it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    image = Image(8 * MiB, block_size=MiB, seed=seed, **keywords)
    return image.write(0, 3 * MiB, Pattern(seed)).build(path)


def make_child(path, parent, relative=None, *, seed=50, absolute=None, volume=None, linkage=None, linkage2=None,
               **keywords):
    """A child that records these paths and no others; linkage: text."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    image = Image(8 * MiB, block_size=MiB, seed=seed, parent=parent, **keywords)
    linkage = braced(parent.data_write_guid) if linkage is None else linkage
    pairs = [("parent_linkage", linkage), ("parent_linkage2", linkage2), ("relative_path", relative),
             ("volume_path", volume), ("absolute_win32_path", absolute)]
    image.locator = Locator([(key, value) for key, value in pairs if value is not None])
    return image.write(MiB + 512 * seed, 4096, Pattern(seed)).build(path)


def refuses(hostile, child, says, *options, check=2):
    """Not read, for the parent's sake: info still tells all of the child, check calls it corrupt."""
    message = hostile.refuses(child.path, says, options=options, info=0, check=check)
    info = hostile("info", *options, child.path, rc=0)
    assert "warning: described without its parents: " in info.err or "warning: the chain is broken: " in info.err
    assert guid_text(child.data_write_guid).encode() in info.stdout
    return message


def found_as(vhdx, child, *options):
    return os.path.realpath(vhdx("info", "--json", *options, child.path, rc=0).json()["full-backing-filename"])


# ---- found without a question ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place, recorded", [
    ("parent.vhdx", ".\\parent.vhdx"),
    ("parent.vhdx", "parent.vhdx"),
    ("parent.vhdx", "./parent.vhdx"),
    ("parent.vhdx", ".\\.\\\\parent.vhdx"),
    ("sub/parent.vhdx", ".\\sub\\parent.vhdx"),
    ("sub/deep/parent.vhdx", "sub\\deep/parent.vhdx"),
    ("parent.vhdx", "sub\\..\\parent.vhdx"),
    ("parent.vhdx", "..\\here\\parent.vhdx"),                   # out and in again
    ("parent.vhdx", "..\\somewhere else\\parent.vhdx"),         # moved here together with its child
    ("a b.c d", ".\\a b.c d"),
    ("-x.vhdx", "-x.vhdx"),
    ("%s%n.vhdx", ".\\%s%n.vhdx"),
    ("gr\u00f6\u00dfe \u78c1\u76d8 \U0001f4be.vhdx", ".\\gr\u00f6\u00dfe \u78c1\u76d8 \U0001f4be.vhdx"),
    ("x" * 255, "x" * 255),
    ("/".join(["d"] * 100) + "/p", "\\".join(["d"] * 100) + "\\p"),
])
def test_parent_beside_or_below_its_child(hostile, vhdx, here, place, recorded):
    (here / "sub").mkdir()
    parent = make_base(here / place)
    child = make_child(here / "child.avhdx", parent, recorded)
    hostile.reads(child, here)
    assert found_as(vhdx, child) == os.path.realpath(parent.path)


@pytest.mark.parametrize("more", [{}, {"absolute": "C:\\VMs\\parent.vhdx"}])
def test_a_renamed_parent_is_found_by_rebase_and_the_message_says_so(vhdx, here, more):
    """No folder that could be named would help."""
    parent = make_base(here / "parent.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx", **more)
    os.rename(parent.path, here / "renamed.vhdx")
    result = vhdx("map", child.path, rc=1)
    assert "'vhdx rebase --find DIR'" in result.err and result.err.count("\n") == 1
    vhdx("rebase", "--find", here, child.path, rc=0)
    vhdx("map", child.path, rc=0)


def test_child_named_in_several_ways(hostile, here):
    parent = make_base(here / "sub" / "parent.vhdx")
    make_child(here / "child.vhdx", parent, ".\\sub\\parent.vhdx")
    for cwd, name in ((here, "child.vhdx"), (here, "./child.vhdx"), (here / "sub", "../child.vhdx"),
                      ("/", here / "child.vhdx"), (here.parent, "here/child.vhdx"), (here, "sub/.././child.vhdx")):
        hostile("map", name, rc=0, cwd=cwd)


def test_child_named_by_a_link_from_elsewhere(hostile, here, outside):
    """Its parent is looked for where it lies, not only where the link does."""
    child = make_child(here / "child.vhdx", make_base(here / "parent.vhdx"), ".\\parent.vhdx")
    (outside / "link.vhdx").symlink_to(child.path)
    hostile("map", outside / "link.vhdx", rc=0)


@pytest.mark.parametrize("place, recorded", [("parent.vhdx", "PARENT.VHDX"),
                                             ("Sub/Deep/Parent.VHDX", ".\\sUB\\deep\\parent.vhdx")])
def test_name_in_another_case(hostile, vhdx, here, place, recorded):
    parent = make_base(here / place)
    child = make_child(here / "child.vhdx", parent, recorded)
    hostile.reads(child, here)
    assert found_as(vhdx, child) == os.path.realpath(parent.path)


def test_name_in_another_case_that_two_files_have(hostile, code_is, here):
    parent = make_base(here / "Parent.vhdx")
    shutil.copy(parent.path, here / "pArent.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx")
    refuses(hostile, child, "recorded as .*parent.vhdx")
    code_is(child.path, "PARENT_NOT_FOUND")


def test_exact_name_goes_before_another_case(hostile, vhdx, here):
    parent = make_base(here / "parent.vhdx")
    make_base(here / "PARENT.vhdx", seed=9)
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx")
    hostile.reads(child, here)
    assert found_as(vhdx, child) == os.path.realpath(parent.path)


@pytest.mark.parametrize("key", ["absolute", "volume"])
def test_parent_that_lies_beside_a_child_with_foreign_paths_only(hostile, here, key):
    """Files that were copied here together."""
    path = ("C:\\vms" if key == "absolute" else VOLUME) + "\\disks\\parent.vhdx"
    hostile.reads(make_child(here / "child.vhdx", make_base(here / "parent.vhdx"), **{key: path}), here)


def test_any_path_that_leads_to_the_parent_will_do(hostile, vhdx, here):
    """The first key leads to another disk, the second nowhere, the third to the parent."""
    make_base(here / "other.vhdx", seed=9)
    parent = make_base(here / "parent.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\other.vhdx", volume=VOLUME + "\\gone.vhdx",
                       absolute="C:\\x\\parent.vhdx")
    hostile.reads(child, here)
    assert found_as(vhdx, child) == os.path.realpath(parent.path)


@pytest.mark.parametrize("text", [str.upper, str.lower, str.title, lambda text: text.strip("{}"),
                                  lambda text: text.strip("{}").upper()],
                         ids=["upper", "lower", "mixed", "bare", "bare-upper"])
def test_linkage_in_any_spelling(hostile, here, text):
    parent = make_base(here / "parent.vhdx", data_write_guid=guid("fedcba98-7654-3210-abcd-ef0123456789"))
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx", linkage=text(braced(parent.data_write_guid)))
    hostile.reads(child, here)


# ---- chains over folders ---------------------------------------------------------------------------------------------


def test_each_path_counts_from_the_folder_of_the_image_that_records_it(hostile, here):
    base = make_base(here / "sub" / "deep" / "base.vhdx")
    middle = make_child(here / "sub" / "middle.avhdx", base, ".\\deep\\base.vhdx", seed=51)
    hostile.reads(make_child(here / "child.avhdx", middle, ".\\sub\\middle.avhdx", seed=52), here)


def test_parent_in_a_sub_folder_whose_own_parent_is_above_it(hostile, here):
    """..\\base.vhdx leads out of the middle's folder, but not out of the one of the image that was named."""
    base = make_base(here / "base.vhdx")
    middle = make_child(here / "sub" / "middle.avhdx", base, "..\\base.vhdx", seed=51)
    hostile.reads(make_child(here / "child.avhdx", middle, ".\\sub\\middle.avhdx", seed=52), here)
    refuses(hostile, middle, re.escape("..\\base.vhdx"))


def test_chain_that_goes_on_in_a_folder_named_by_the_user(hostile, here, outside):
    base = make_base(outside / "base.vhdx")
    middle = make_child(outside / "middle.avhdx", base, ".\\base.vhdx", seed=51)
    child = make_child(here / "child.avhdx", middle, "..\\elsewhere\\middle.avhdx", seed=52)
    refuses(hostile, child, re.escape("..\\elsewhere\\middle.avhdx"))
    hostile.reads(child, here, options=["--parent-dir", outside])


def test_message_names_the_image_whose_parent_is_missing(hostile, here):
    base = make_base(here / "base.vhdx")
    middle = make_child(here / "middle.avhdx", base, ".\\base.vhdx", seed=51)
    child = make_child(here / "child.avhdx", middle, ".\\middle.avhdx", seed=52)
    os.unlink(base.path)
    message = refuses(hostile, child, guid_text(base.data_write_guid))
    assert "middle.avhdx" in message and "base.vhdx" in message


# ---- out of the folder: asked for, or refused ------------------------------------------------------------------------


def test_upward_path(hostile, code_is, here, outside):
    child = make_child(here / "child.vhdx", make_base(outside / "parent.vhdx"), "..\\outside\\parent.vhdx")
    message = refuses(hostile, child, "--parent-dir.*--allow-parent-path")
    assert "..\\outside\\parent.vhdx" in message
    code_is(child.path, "PARENT_POLICY")
    for options in (["--parent-dir", outside], [ALLOW], ["--parent-dir", here.parent], [ALLOW, "--parent-dir", here],
                    ["--parent-dir", here / "missing", "--parent-dir", here, "--parent-dir", outside]):
        hostile.reads(child, here, options=options)
    refuses(hostile, child, "--parent-dir.*--allow-parent-path", "--parent-dir", here)


def looks_only_where_it_may(tool, vhdx_path, here, *arguments):
    """Run the command; what it does with names outside of its folder, or through the link `way`, must be judged by RESOLVE_BENEATH."""
    trace = here.parent / "trace"
    done = subprocess.run([find_strace(tool), "-f", "-qq", "-y", "-o", trace, "-e", "trace=%file,openat2", vhdx_path, *arguments],
                          capture_output=True, check=False)
    calls = trace.read_text().splitlines()
    assert any("child.vhdx" in call for call in calls)
    for call in calls:
        if ("readlink" in call and f'{here}/way"' in call) or ('"way"' in call and "NOFOLLOW" in call) or "S_IFLNK" in call:
            continue  # what the link in the user's own folder is and says, not what is there
        if "outside" in call or "way" in call or "none.vhdx" in call:
            assert "RESOLVE_BENEATH" in call, call
    return done.returncode


LEADING_OUT = pytest.mark.parametrize("recorded", ["..\\outside\\parent.vhdx", "..\\outside\\none.vhdx", "way\\parent.vhdx",
                                                   "sub\\..\\way\\none.vhdx"])


@LEADING_OUT
def test_what_may_not_be_opened_is_not_looked_at(tool, vhdx_path, here, outside, recorded):
    """No automount, no dead server, no word of what exists: names that lead out are judged without the file system (rule 11)."""
    child = make_child(here / "child.vhdx", make_base(outside / "parent.vhdx"), recorded)
    (here / "sub").mkdir()
    (here / "way").symlink_to(outside)
    for command in ("map", "check"):
        assert looks_only_where_it_may(tool, vhdx_path, here, command, child.path) != 0


@LEADING_OUT
def test_nor_when_the_parent_is_elsewhere(tool, vhdx_path, here, outside, recorded):
    """The parent lies beside its child, so what was recorded of another place is only remarked on."""
    make_base(outside / "parent.vhdx")
    child = make_child(here / "child.vhdx", make_base(here / "parent.vhdx"), recorded, absolute="C:\\x\\parent.vhdx")
    (here / "sub").mkdir()
    (here / "way").symlink_to(outside)
    for command in (["check", child.path], ["chain", here]):
        assert looks_only_where_it_may(tool, vhdx_path, here, *command) in (0, 3)


def test_folder_that_was_renamed(hostile, vhdx, here, outside):
    """The name alone, in the folder that the user names."""
    parent = make_base(outside / "parent.vhdx")
    child = make_child(here / "child.vhdx", parent, "..\\base images\\2019\\parent.vhdx")
    hostile.reads(child, here, options=["--parent-dir", outside])
    assert found_as(vhdx, child, "--parent-dir", outside) == os.path.realpath(parent.path)
    refuses(hostile, child, re.escape("..\\base images\\2019\\parent.vhdx"), ALLOW)


@pytest.mark.parametrize("key, recorded, place", [
    ("absolute", "C:\\vms\\disks\\parent.vhdx", "vms/disks/parent.vhdx"),
    ("absolute", "c:\\vms\\disks\\parent.vhdx", "C/vms/disks/parent.vhdx"),
    ("absolute", "\\\\?\\D:\\vms\\parent.vhdx", "D/vms/parent.vhdx"),
    ("absolute", "\\\\?\\D:\\vms\\parent.vhdx", "vms/parent.vhdx"),
    ("absolute", "C:/vms/parent.vhdx", "vms/parent.vhdx"),
    ("absolute", "C:\\VMs\\Parent.vhdx", "vms/parent.VHDX"),
    ("volume", VOLUME + "\\vms\\parent.vhdx", "vms/parent.vhdx"),
    ("absolute", "\\\\server\\share\\vms\\parent.vhdx", "vms/parent.vhdx"),
    ("absolute", "\\\\?\\UNC\\server\\share\\vms\\parent.vhdx", "vms/parent.vhdx"),
    ("relative", "C:\\vms\\parent.vhdx", "vms/parent.vhdx"),
    ("relative", "\\\\server\\share\\vms\\parent.vhdx", "vms/parent.vhdx"),
])
def test_foreign_path_below_a_folder_of_the_user(hostile, code_is, here, outside, key, recorded, place):
    parent = make_base(outside / place)
    child = make_child(here / "child.vhdx", parent, **{key: recorded})
    message = refuses(hostile, child, "--parent-dir.*--allow-parent-path")
    assert recorded in message
    code_is(child.path, "PARENT_POLICY")
    hostile.reads(child, here, options=[ALLOW, "--parent-dir", outside])
    refuses(hostile, child, re.escape(recorded), ALLOW)                             # nowhere to map it to
    refuses(hostile, child, re.escape(recorded), "--parent-dir", outside)           # not followed, and not by its name


def test_absolute_path_of_this_system(hostile, here, outside):
    parent = make_base(outside / "parent.vhdx")
    for key in ("relative", "absolute", "volume"):
        child = make_child(here / "child.vhdx", parent, **{key: parent.path})
        refuses(hostile, child, re.escape(parent.path) + ".*--allow-parent-path")
        hostile.reads(child, here, options=[ALLOW])
        hostile.reads(child, here, options=["--parent-dir", outside])               # by its name


def test_dots_in_a_foreign_path_do_not_lead_out_of_the_folder_that_it_is_mapped_to(hostile, here, outside):
    parent = make_base(outside / "parent.vhdx")
    (here / "map" / "x").mkdir(parents=True)
    for recorded in ("C:\\x\\..\\..\\..\\outside\\parent.vhdx", "C:\\..\\..\\outside\\parent.vhdx",
                     "\\\\s\\s\\..\\..\\outside\\parent.vhdx"):
        child = make_child(here / "child.vhdx", parent, absolute=recorded)
        refuses(hostile, child, re.escape(recorded), ALLOW, "--parent-dir", here / "map")


def test_stream_of_a_file_is_never_opened(hostile, code_is, here, outside):
    for place in (here, outside):
        parent = make_base(place / "parent.vhdx")
        shutil.copy(parent.path, place / "parent.vhdx:stream")
        shutil.copy(parent.path, place / "stream")
    for recorded in (".\\parent.vhdx:stream", "parent.vhdx:stream", "C:\\x\\parent.vhdx:stream",
                     ".\\parent.vhdx:stream:$DATA"):
        child = make_child(here / "child.vhdx", parent, recorded)
        refuses(hostile, child, "recorded as " + re.escape(recorded))
        code_is(child.path, "PARENT_POLICY")
        refuses(hostile, child, "recorded as " + re.escape(recorded), ALLOW, "--parent-dir", outside)


# ---- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["file", "absolute file", "folder", "link to a link", "dangling up"])
def test_link_out_of_the_folder(hostile, code_is, here, outside, how):
    parent = make_base(outside / "parent.vhdx")
    recorded = ".\\sub\\parent.vhdx" if how == "folder" else ".\\parent.vhdx"
    child = make_child(here / "child.vhdx", parent, recorded)
    if how == "folder":
        (here / "sub").symlink_to("../outside")
    elif how == "link to a link":
        (here / "one").symlink_to("../outside/parent.vhdx")
        (here / "parent.vhdx").symlink_to("one")
    else:
        (here / "parent.vhdx").symlink_to(parent.path if how == "absolute file" else "../outside/parent.vhdx")
    refuses(hostile, child, "--parent-dir.*--allow-parent-path")
    code_is(child.path, "PARENT_POLICY")
    for options in ([ALLOW], ["--parent-dir", outside]):
        hostile.reads(child, here, options=options)


@pytest.mark.parametrize("target", ["sub/real.vhdx", "./sub/../sub/real.vhdx", "absolute"])
def test_link_that_stays_in_the_folder(hostile, here, target):
    parent = make_base(here / "sub" / "real.vhdx")
    (here / "parent.vhdx").symlink_to(parent.path if target == "absolute" else target)
    hostile.reads(make_child(here / "child.vhdx", parent, ".\\parent.vhdx"), here)


def test_magic_links_of_proc(hostile, here, outside):
    """They lead to whatever the process has open, past all names."""
    parent = make_base(outside / "parent.vhdx")
    for target in ("/proc/self/root" + parent.path, "/proc/self/cwd/parent.vhdx", "/proc/self/fd/0", "/proc/self/exe"):
        link = here / "parent.vhdx"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx")
        refuses(hostile, child, re.escape(".\\parent.vhdx"))
        hostile("convert", ALLOW, child.path, "-", rc=1, cwd=outside)


def test_link_in_a_folder_of_the_user_does_not_lead_out_of_it(hostile, here, outside, tmp_path):
    parent = make_base(outside / "parent.vhdx")
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "parent.vhdx").symlink_to("../outside/parent.vhdx")
    child = make_child(here / "child.vhdx", parent, "..\\gone\\parent.vhdx")
    refuses(hostile, child, "--parent-dir", "--parent-dir", tmp_path / "named")


def test_links_that_go_round(hostile, here):
    parent = make_base(here / "real.vhdx")
    (here / "parent.vhdx").symlink_to("parent.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx")
    refuses(hostile, child, "parent.vhdx, cannot be opened.*[Tt]oo many", check=1)


# ---- what is no file -------------------------------------------------------------------------------------------------


def make_special(path, kind):
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))      # /dev/zero
            open(path, "rb").close()
        except OSError as error:
            pytest.skip(f"device nodes cannot be made or opened here: {error}")


@pytest.mark.parametrize("kind", ["FIFO", "folder", "socket", "device"])
def test_parent_that_is_no_regular_file(hostile, code_is, here, outside, kind):
    """None of them may block, end, or be read for ever."""
    parent = make_base(outside / "real.vhdx")
    make_special(here / "parent.vhdx", kind)
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx")
    for options in ([], [ALLOW], ["--parent-dir", here]):
        refuses(hostile, child, "recorded as .*parent.vhdx, is not a regular file", *options)
    code_is(child.path, "PARENT_POLICY")
    assert "parent.vhdx" in hostile("convert", "--parent", here / "parent.vhdx", child.path, "-", rc=1).err


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/random", "/dev/tty", "/dev/null"])
def test_link_to_a_device(hostile, here, outside, device):
    (here / "parent.vhdx").symlink_to(device)
    child = make_child(here / "child.vhdx", make_base(outside / "real.vhdx"), ".\\parent.vhdx")
    refuses(hostile, child, "--allow-parent-path")
    refuses(hostile, child, "not a regular file", ALLOW)
    child = make_child(here / "child.vhdx", make_base(outside / "real.vhdx"), device)
    refuses(hostile, child, "not a regular file", ALLOW)
    hostile("convert", "--parent", device, child.path, "-", rc=1)


def test_special_files_do_not_hide_the_parent(hostile, here, outside):
    make_special(here / "parent.vhdx", "FIFO")
    child = make_child(here / "child.vhdx", make_base(outside / "parent.vhdx"), ".\\parent.vhdx")
    hostile.reads(child, here, options=["--parent-dir", outside])


# ---- whose identity it is --------------------------------------------------------------------------------------------


def test_another_disk_of_that_name(hostile, vhdx, code_is, here, outside):
    parent = make_base(outside / "parent.vhdx")
    other = make_base(here / "parent.vhdx", seed=9)
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx")
    message = refuses(hostile, child, "parent.*parent.vhdx")
    assert guid_text(parent.data_write_guid) in message and guid_text(other.data_write_guid) in message
    assert os.fspath(here / "parent.vhdx") in message
    code_is(child.path, "PARENT_MISMATCH")
    hostile.reads(child, here, options=["--parent-dir", outside])
    assert found_as(vhdx, child, "--parent-dir", outside) == os.path.realpath(parent.path)


def test_parent_that_was_written_after_the_child_was_made(hostile, code_is, here):
    parent = make_base(here / "parent.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx")
    make_base(here / "parent.vhdx", data_write_guid=seeded_guid(77, "changed"))
    refuses(hostile, child, guid_text(seeded_guid(77, "changed")))
    code_is(child.path, "PARENT_MISMATCH")


def test_virtual_disk_id_is_no_identity(hostile, code_is, here):
    parent = make_base(here / "parent.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx", linkage=braced(parent.image.disk_id))
    refuses(hostile, child, guid_text(parent.image.disk_id))
    code_is(child.path, "PARENT_MISMATCH")


def test_identity_is_that_of_the_current_header(hostile, here):
    parent = make_base(here / "parent.vhdx", headers=[Header(8, data_write_guid=seeded_guid(1, "old")), Header(9)])
    hostile.reads(make_child(here / "child.vhdx", parent, ".\\parent.vhdx"), here)
    refuses(hostile, make_child(here / "child.vhdx", parent, ".\\parent.vhdx", linkage=braced(seeded_guid(1, "old"))),
            guid_text(parent.data_write_guid))


def test_second_linkage(hostile, here):
    """What a merge leaves when it is interrupted: one of the two must match."""
    parent = make_base(here / "parent.vhdx")
    other, own = braced(bytes(range(16))), braced(parent.data_write_guid)
    hostile.reads(make_child(here / "child.vhdx", parent, ".\\parent.vhdx", linkage=other, linkage2=own), here)
    hostile.reads(make_child(here / "child.vhdx", parent, ".\\parent.vhdx", linkage=own, linkage2=other), here)
    hostile.reads(make_child(here / "child.vhdx", parent, ".\\parent.vhdx", linkage=own, linkage2="garbage"), here)
    neither = make_child(here / "child.vhdx", parent, ".\\parent.vhdx", linkage=other, linkage2="garbage")
    refuses(hostile, neither, other[1:-1])


def test_second_linkage_of_zero_matches_nothing(hostile, code_is, here):
    parent = make_base(here / "parent.vhdx", data_write_guid=NO_GUID)
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx", linkage=braced(bytes(range(16))),
                       linkage2=braced(NO_GUID))
    refuses(hostile, child, guid_text(bytes(range(16))))
    code_is(child.path, "PARENT_MISMATCH")


# ---- named by the user -----------------------------------------------------------------------------------------------


def test_parent_option(hostile, vhdx, here, outside):
    parent = make_base(outside / "renamed.vhdx")
    other = make_base(outside / "other.vhdx", seed=9)
    for recorded in (".\\gone.vhdx", "C:\\gone.vhdx", "..\\outside\\other.vhdx", "x:y:z", None):
        child = make_child(here / "child.vhdx", parent, recorded)
        hostile.reads(child, here, options=["--parent", parent.path])
        assert found_as(vhdx, child, "--parent", parent.path) == os.path.realpath(parent.path)
    message = refuses(hostile, child, re.escape(other.path), "--parent", other.path)
    assert guid_text(parent.data_write_guid) in message and guid_text(other.data_write_guid) in message
    refuses(hostile, child, "missing.vhdx.*No such file", "--parent", outside / "missing.vhdx", check=1)
    refuses(hostile, child, guid_text(parent.data_write_guid), "--parent", child.path)


def test_parent_option_is_for_the_first_image_only(hostile, here, outside):
    base = make_base(outside / "base.vhdx")
    middle = make_child(outside / "middle.vhdx", base, ".\\base.vhdx", seed=51)
    child = make_child(here / "child.vhdx", middle, ".\\gone.vhdx", seed=52)
    hostile.reads(child, here, options=["--parent", middle.path])
    refuses(hostile, child, guid_text(middle.data_write_guid), "--parent", base.path)


def test_parent_option_that_a_disk_without_parent_does_not_need(hostile, here):
    base = make_base(here / "base.vhdx")
    hostile("map", "--parent", here / "missing", base.path)


# ---- missing ---------------------------------------------------------------------------------------------------------


def test_missing_parent(hostile, vhdx, code_is, here):
    parent = make_base(here / "parent.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx", absolute="C:\\vms\\parent.vhdx")
    os.unlink(parent.path)
    message = refuses(hostile, child, re.escape(".\\parent.vhdx") + ".*--parent-dir", ALLOW)
    assert guid_text(parent.data_write_guid) in message
    assert guid_text(parent.data_write_guid) in hostile("convert", ALLOW, child.path, "-", rc=1).err
    info = vhdx("info", "--json", child.path, rc=0).json()
    assert info["backing-filename"] == ".\\parent.vhdx" and "full-backing-filename" not in info
    data = info["format-specific"]["data"]
    assert data["parent-linkage"] == guid_text(parent.data_write_guid) and data["subformat"] == "differencing"
    assert data["parent-locator"]["absolute_win32_path"] == "C:\\vms\\parent.vhdx"
    assert data["blocks"]["partially-present"] == 1
    assert info["virtual-size"] == 8 * MiB
    assert ".\\parent.vhdx" in vhdx("info", child.path, rc=0).out
    hostile("info", "--chain", child.path, rc=1)
    hostile("dump", child.path, rc=0)


def test_missing_parent_alone(hostile, code_is, here):
    parent = make_base(here / "parent.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\sub\\parent.vhdx")
    os.unlink(parent.path)
    message = refuses(hostile, child, "recorded as " + re.escape(".\\sub\\parent.vhdx"))
    assert guid_text(parent.data_write_guid) in message and "--parent-dir" in message
    code_is(child.path, "PARENT_NOT_FOUND")


def test_folder_in_the_middle_of_the_path_is_a_file(hostile, code_is, here):
    parent = make_base(here / "base.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\base.vhdx\\parent.vhdx")
    refuses(hostile, child, "recorded as .*parent.vhdx")
    code_is(child.path, "PARENT_NOT_FOUND")


def existing(kind, path):
    if kind == "parent":
        make_base(path)
    elif kind == "other disk":
        make_base(path, seed=9)
    elif kind == "garbage":
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"secret")
    elif kind == "folder":
        os.makedirs(path)
    elif kind == "FIFO":
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkfifo(path)
    elif kind == "unreadable":
        existing("garbage", path)
        os.chmod(path, 0)


@pytest.mark.parametrize("recorded", ["..\\outside\\secret.vhdx", "sub\\..\\..\\outside\\secret.vhdx", "{absolute}",
                                      "link\\secret.vhdx", "file-link.vhdx", "absolute-link.vhdx", "C:{absolute}",
                                      "..\\OUTSIDE\\Secret.vhdx"])
@pytest.mark.parametrize("named", [False, True], ids=["", "parent-dir"])
def test_nothing_is_said_of_what_lies_outside(hostile, tmp_path, recorded, named):
    """The same words whether there is nothing, the parent, another disk, or anything else."""
    told = {}
    for kind in ("nothing", "no folder", "parent", "other disk", "folder", "FIFO", "unreadable"):
        root = tmp_path / "root"
        secret = root / "outside" / "secret.vhdx"
        (root / "here" / "sub").mkdir(parents=True)
        (root / "named").mkdir()
        if kind != "no folder":
            (root / "outside").mkdir()
        (root / "here" / "link").symlink_to("../outside")
        (root / "here" / "file-link.vhdx").symlink_to("../outside/secret.vhdx")
        (root / "here" / "absolute-link.vhdx").symlink_to(secret)
        existing(kind, secret)
        parent = make_base(root / "elsewhere" / "parent.vhdx")
        child = make_child(root / "here" / "child.vhdx", parent, recorded.replace("{absolute}", os.fspath(secret)))
        options = ["--parent-dir", root / "named"] if named else []
        runs = [hostile("convert", *options, child.path, "-", rc=1), hostile("info", *options, child.path, rc=0),
                hostile("check", *options, child.path, rc=2)]
        told[kind] = [(re.sub(rb"disk usage: .*", b"", done.stdout), done.err) for done in runs]   # the host's affair
        shutil.rmtree(root)
    for kind, texts in told.items():
        assert texts == told["nothing"], f"with {kind} outside: {texts}\nwith nothing: {told['nothing']}"


# ---- what is no parent -----------------------------------------------------------------------------------------------

FOREIGN = {
    "VHD": (b"conectix" + bytes(504), "Virtual PC|VHD"),
    "qcow2": (b"QFI\xfb" + bytes(508), "(?i)qcow"),
    "zeros": (bytes(MiB), "not a VHDX"),
    "text": (b"hello\n" * 100, "not a VHDX"),
    "empty": (b"", "(?i)empty"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_parent_of_another_format(hostile, code_is, here, outside, kind):
    parent = make_base(outside / "parent.vhdx")
    content, says = FOREIGN[kind]
    (here / "parent.vhdx").write_bytes(content)
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx")
    message = refuses(hostile, child, says)
    assert "parent" in message and os.fspath(here / "parent.vhdx") in message and "-f raw" not in message
    code_is(child.path, "NOT_VHDX")
    hostile.reads(child, here, options=["--parent-dir", outside])


def test_damaged_parent(hostile, here):
    damaged = Image(8 * MiB, block_size=MiB, seed=1)
    for table in damaged.region_tables:
        table.damage = "crc"
    parent = damaged.build(here / "parent.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx")
    message = refuses(hostile, child, "region tables at 0x30000")
    assert os.fspath(here / "parent.vhdx") in message


def test_dirty_parent_is_replayed_in_memory(hostile, here):
    image = Image(8 * MiB, block_size=MiB, seed=1)
    image.write(0, 5 * MiB, Pattern(1))
    parent = make_dirty(image, ["bat", "metadata"], home="junk").build(here / "parent.vhdx")
    before = file_sha256(parent.path)
    hostile.reads(make_child(here / "child.vhdx", parent, ".\\parent.vhdx"), here)
    assert file_sha256(parent.path) == before


@pytest.mark.parametrize("lss", [(512, 4096), (4096, 512)])
def test_sector_sizes_that_differ(hostile, code_is, here, outside, lss):
    parent = make_base(here / "parent.vhdx", lss=lss[0])
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx", lss=lss[1], seed=48)
    refuses(hostile, child, f"logical sectors of {lss[0]} bytes, its child of {lss[1]}")
    refuses(hostile, child, "logical sectors", "--parent", parent.path)
    code_is(child.path, "CHAIN")


def test_parent_of_another_size_and_block_size(hostile, here):
    for size in (3 * MiB + 512, 64 * MiB):
        parent = Image(size, block_size=32 * MiB, seed=1).write(0, 3 * MiB, Pattern(1)).build(here / "parent.vhdx")
        hostile.reads(make_child(here / "child.vhdx", parent, ".\\parent.vhdx"), here)


# ---- circles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_circle(hostile, code_is, here, length):
    base = make_base(here / "base.vhdx")
    guids = [seeded_guid(number, "circle") for number in range(length)]
    images = [make_child(here / f"{number}.vhdx", base, f".\\{(number + 1) % length}.vhdx", seed=51 + number,
                         data_write_guid=guids[number], linkage=braced(guids[(number + 1) % length]))
              for number in range(length)]
    for image in images:
        refuses(hostile, image, "leads back to " + re.escape(image.path))
        code_is(image.path, "CHAIN")


def test_circle_behind_the_first_image(hostile, here):
    base = make_base(here / "base.vhdx")
    guids = [seeded_guid(number, "circle") for number in range(3)]
    for number, following in ((0, 1), (1, 2), (2, 1)):
        image = make_child(here / f"{number}.vhdx", base, f".\\{following}.vhdx", data_write_guid=guids[number],
                           linkage=braced(guids[following]), seed=51 + number)
        first = image if number == 0 else first
    refuses(hostile, first, "leads back to .*1.vhdx")


@pytest.mark.parametrize("link", ["hard", "symbolic"])
def test_circle_under_another_name(hostile, code_is, here, link):
    base = make_base(here / "base.vhdx")
    own = seeded_guid(1, "own")
    child = make_child(here / "child.vhdx", base, ".\\parent.vhdx", data_write_guid=own, linkage=braced(own))
    if link == "hard":
        os.link(child.path, here / "parent.vhdx")
    else:
        (here / "parent.vhdx").symlink_to("child.vhdx")
    refuses(hostile, child, "leads back to")
    code_is(child.path, "CHAIN")


def test_circle_of_copies_ends_too(hostile, here):
    """Each names a copy of itself, all with one identity: a circle that has no end but the number of files."""
    base = make_base(here / "base.vhdx")
    own = seeded_guid(1, "own")
    for number in range(5):
        make_child(here / f"{number}.vhdx", base, f".\\{(number + 1) % 5}.vhdx", data_write_guid=own,
                   linkage=braced(own))
    hostile("convert", here / "0.vhdx", "-", rc=1)


def test_path_to_itself_without_its_identity_is_no_circle(hostile, here):
    parent = make_base(here / "sub" / "child.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\child.vhdx", absolute="C:\\vms\\child.vhdx")
    refuses(hostile, child, guid_text(parent.data_write_guid))
    hostile.reads(child, here, options=["--parent-dir", here / "sub"])


# ---- locks -----------------------------------------------------------------------------------------------------------


def test_parent_that_qemu_writes(hostile, tool, here):
    parent = make_base(here / "parent.vhdx")
    child = make_child(here / "child.vhdx", parent, ".\\parent.vhdx")
    with held_by_qemu(tool("qemu-io"), parent.path):
        message = hostile("convert", child.path, "-", rc=1).err
        assert "force-share" in message and "parent.vhdx" in message
        hostile("check", child.path, rc=1)
        hostile("info", child.path, rc=0)
        hostile("convert", "--force-share", child.path, "-", rc=0)
    hostile.reads(child, here)


def test_one_parent_of_several_children_at_once(hostile, vhdx_path, here):
    """Readers do not keep each other out, and a parent may be reached twice."""
    parent = make_base(here / "parent.vhdx")
    first = make_child(here / "a.vhdx", parent, ".\\parent.vhdx", seed=51)
    second = make_child(here / "b.vhdx", parent, ".\\parent.vhdx", seed=52)
    hostile("compare", first.path, second.path, rc=1)
    hostile("compare", first.path, first.path, rc=0)
    reading, writing = os.pipe()
    with subprocess.Popen([vhdx_path, "convert", first.path, "-"], stdout=writing) as waiting:   # until the pipe is read
        os.close(writing)
        hostile.reads(second, here)
        with os.fdopen(reading, "rb") as pipe:
            content = pipe.read()
        assert waiting.wait() == 0
    assert first.difference(0, content) is None
