# SPDX-License-Identifier: MIT
"""The vhdx command as users and scripts meet it, whichever command it is: help, usage, sizes, errors, hostile names,
completion.  What the library reads correctly is tested elsewhere."""
import json
import os
import pathlib
import re
import subprocess

import pytest

from cli_support import COMMANDS, READERS, TROUBLE, arguments_for, chain, dynamic, held_by_qemu, orphan, raw_copy
from conftest import run_program
from vhdxbuild import Locator, MiB, windows

ONE_IMAGE = ["info", "map", "check", "dump"]


# ---- help, version, usage

def test_help_lists_every_command_and_no_other(vhdx):
    out = vhdx("--help", rc=0).out
    listed = re.search(r"^Commands:\n((?:  .*\n)+)", out, re.MULTILINE).group(1)
    assert [line.split()[0] for line in listed.splitlines()] == COMMANDS
    assert vhdx("-h", rc=0).out == out


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_is_the_projects(vhdx, option, source_root):
    version = re.search(r"version: '([\d.]+)'", (source_root / "meson.build").read_text()).group(1)
    assert vhdx(option, rc=0).out.split()[:2] == ["vhdx", version]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_of_a_command_goes_to_stdout(vhdx, command, option):
    result = vhdx(command, option, rc=0)
    assert result.out.startswith(f"usage: vhdx {command} [OPTIONS] ")
    assert result.err == ""


def test_help_wins_over_missing_arguments_and_later_mistakes(vhdx):
    assert vhdx("info", "--help", "--no-such", rc=0).out.startswith("usage: vhdx info")


def test_help_fits_a_terminal(vhdx):
    for arguments in [["--help"], *([command, "--help"] for command in COMMANDS)]:
        assert [line for line in vhdx(*arguments, rc=0).out.splitlines() if len(line) > 100] == []


WRONG_USAGE = [
    ([], "no command"),
    (["frobnicate"], "unknown command 'frobnicate'"),
    (["--frobnicate"], "unknown option '--frobnicate'"),
    (["info"], "missing argument: IMAGE"),
    (["info", "a", "b"], "too many arguments: 'b'"),
    (["info", "--frobnicate", "a"], "unknown option '--frobnicate'"),
    (["info", "-x", "a"], "unknown option '-x'"),
    (["info", "--jso", "a"], "unknown option '--jso'"),
    (["info", "--json=yes", "a"], "--json takes no value"),
    (["info", "--output"], "--output needs a value: human|json"),
    (["info", "--output=xml", "a"], "--output must be human|json, not 'xml'"),
    (["info", "-f", "qcow2", "a"], "--source-format must be auto|vhdx|raw, not 'qcow2'"),
    (["map", "--start-offset=12KB", "a"], "--start-offset needs a size"),
    (["convert", "a"], "missing argument: DST"),
    (["convert", "-m", "two", "a", "b"], "--threads needs a number, not 'two'"),
    (["convert", "-m", "65", "a", "b"], "--threads can be at most 64"),
    (["convert", "-S", "3000", "a", "b"], "power of two"),
    (["convert", "-S", "256", "a", "b"], "power of two"),
    (["convert", "-S", "0", "--reflink=always", "a", "b"], "cannot share blocks"),
    (["convert", "-O", "qcow2", "a", "b"], "--target-format must be raw|vhdx, not 'qcow2'"),
    (["convert", "--block-size=1M", "a", "b"], "need -O vhdx"),
    (["convert", "--fixed", "-O", "raw", "a", "b"], "need -O vhdx"),
    (["dump", "--block", "x", "a"], "--block needs a block number"),
    (["dump", "--blocks", "9-3", "a"], "--blocks needs a range"),
    (["dump", "--blocks=3-18446744073709551615", "a"], "--blocks needs a range"),
    (["dump", "--item", "disk", "a"], "--item needs a GUID"),
    (["create", "a"], "missing argument: SIZE"),
    (["create", "a", "1GB"], "SIZE has to be a size such as"),
    (["create", "a", "16E"], "SIZE is more than any disk can have, which is 64T: '16E'"),
    (["create", "--block-size=99999999999999999999", "a", "1G"], "--block-size is too large: '99999999999999999999'"),
    (["create", "--fixed", "--subformat=dynamic", "a", "1G"], "--fixed and --subformat=dynamic contradict each other"),
    (["convert", "-O", "vhdx", "--subformat=dynamic", "--fixed", "a", "b"], "--fixed and --subformat=dynamic contradict each other"),
    (["convert", "--subformat=dynamic", "a", "b"], "need -O vhdx"),
    (["create", "--block-size=4G", "a", "1G"], "--block-size can be at most 1G"),
    (["create", "--subformat=differencing", "a", "1G"], "--subformat must be dynamic|fixed"),
    (["create", "--preallocate=metadata", "a", "1G"], "--preallocate must be off|falloc|full"),
    (["resize", "a", "1G"], "unknown command 'resize'"),
]


@pytest.mark.parametrize("arguments, complaint", WRONG_USAGE, ids=[" ".join(case[0]) or "none" for case in WRONG_USAGE])
def test_wrong_usage_is_one_line_with_a_hint(vhdx, arguments, complaint):
    result = vhdx(*arguments, rc=2)
    assert result.out == ""
    assert complaint in result.err
    assert result.err.count("\n") == 1 and re.search(r"; try 'vhdx( \w+)? --help'$", result.err.rstrip())
    command = f"vhdx {arguments[0]}: " if arguments and arguments[0] in COMMANDS else "vhdx: "
    assert result.err.startswith(command)


def test_wrong_usage_of_check_is_not_the_status_of_corruption(vhdx):
    vhdx("check", rc=1)
    vhdx("check", "--repair", "x", rc=1)


def test_options_may_be_joined_follow_arguments_and_end_with_two_dashes(vhdx, dynamic, tmp_path):
    plain = vhdx("map", "--start-offset", "2M", "--max-length", "1M", dynamic.path, rc=0).out
    assert vhdx("map", dynamic.path, "-Ul1M", "-s", "2M", rc=0).out == plain
    (tmp_path / "--json").write_bytes(b"")
    result = vhdx("map", "--", "--json", cwd=tmp_path, rc=1)
    assert result.err.startswith("vhdx map: --json: ")


@pytest.mark.parametrize("option", [["-r"], ["--read-only"], ["-U"], ["--force-share"], ["--parent-dir", "/"],
                                    ["--parent-dir=/", "--parent-dir=/usr"], ["--allow-parent-path"]])
@pytest.mark.parametrize("command", ONE_IMAGE)
def test_every_command_takes_the_options_for_images(vhdx, command, option, dynamic):
    vhdx(command, *option, dynamic.path, rc=0)


# ---- sizes

@pytest.mark.parametrize("text, size", [
    ("1048576", 1 << 20), ("1M", 1 << 20), ("1m", 1 << 20), ("1MiB", 1 << 20), ("1mib", 1 << 20), ("1024K", 1 << 20),
    ("1024KiB", 1 << 20), ("0x100000", 1 << 20), ("1048576B", 1 << 20), ("0.5K", 512), ("1.5M", 3 << 19), ("0", 0),
    ("0G", 0),
])
def test_sizes(vhdx, dynamic, text, size):
    extents = vhdx("map", "--json", "--start-offset", text, dynamic.path, rc=0).json()
    assert extents[0]["start"] == size


@pytest.mark.parametrize("text", ["", "M", "1KB", "1MB", "1Ki", "1 M", " 1M", "-1", "+1", "1.5", "1.M", "1,5M", "0x", "0xg",
                                  "1Z", "1MM"])
def test_what_is_no_size(vhdx, dynamic, text):
    assert "needs a size" in vhdx("map", f"--start-offset={text}", dynamic.path, rc=2).err


@pytest.mark.parametrize("text", ["18446744073709551616", "16E", "16777216T", "0x10000000000000000"])
def test_what_is_no_number_of_bytes_any_more(vhdx, dynamic, text):
    assert f"--start-offset is too large: '{text}'" in vhdx("map", f"--start-offset={text}", dynamic.path, rc=2).err
    assert f"'{text}' is too large" in vhdx("io", "-r", dynamic.path, "-c", f"read {text} 0", rc=1).err


@pytest.mark.parametrize("text", ["15.99E", "16383P", "1T"])
def test_sizes_beyond_the_disk_leave_nothing_to_map(vhdx, dynamic, text):
    assert vhdx("map", "--json", "--start-offset", text, dynamic.path, rc=0).json() == []


# ---- errors

@pytest.mark.parametrize("command", READERS)
def test_missing_file(vhdx, command, tmp_path):
    if command == "serve" and os.environ.get("VHDX_SANITIZE", "none") != "none":
        pytest.skip("nbdkit cannot load a plugin with sanitizers")
    result = vhdx(command, *arguments_for(command, tmp_path / "no-such.vhdx", tmp_path), rc=TROUBLE.get(command, 1))
    assert result.out == ""
    assert result.err == f"vhdx {command}: {tmp_path}/no-such.vhdx: cannot open: No such file or directory\n"
    assert not (tmp_path / "out.raw").exists()


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("uri", ["nbd://host/export", "nbds://host", "nbd+unix:///export?socket=/run/s"])
def test_nbd_uris_are_refused_by_name(vhdx, command, uri, tmp_path):
    result = vhdx(command, *arguments_for(command, uri, tmp_path), rc=TROUBLE.get(command, 1))
    assert "NBD" in result.err and result.err.count("\n") == 1


def test_nbd_uri_as_target(vhdx, dynamic):
    assert "NBD" in vhdx("convert", dynamic.path, "nbd://host/export", rc=1).err
    assert "NBD" in vhdx("create", "nbd://host/export", "1G", rc=1).err


@pytest.mark.parametrize("command", READERS)
def test_standard_input_is_no_image(vhdx, command, tmp_path):
    result = vhdx(command, *arguments_for(command, "-", tmp_path), rc=TROUBLE.get(command, 1))
    assert "standard input" in result.err


@pytest.mark.parametrize("command", ["info", "map", "convert"])
def test_other_formats_are_named_and_raw_is_offered_for_none(vhdx, qemu_img, command, tmp_path):
    other = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", other, "1M")
    result = vhdx(command, *arguments_for(command, other, tmp_path), rc=1)
    assert "QCOW" in result.err.upper() and "-f raw" not in result.err


@pytest.mark.parametrize("command", [command for command in READERS if command != "compare"])
def test_an_iso_is_named(vhdx, command, tmp_path):
    """It begins with zeros, and says what it is far behind them."""
    if command == "serve" and os.environ.get("VHDX_SANITIZE", "none") != "none":
        pytest.skip("nbdkit cannot load a plugin with sanitizers")
    path = tmp_path / "install.iso"
    path.write_bytes(bytes(32768) + b"\x01CD001\x01" + bytes(MiB))
    result = vhdx(command, *arguments_for(command, path, tmp_path))
    assert result.rc != 0 and "ISO 9660" in result.err


@pytest.mark.parametrize("command", ["info", "map", "convert"])
def test_unknown_files_get_the_hint_to_f_raw(vhdx, command, raw_copy, tmp_path):
    result = vhdx(command, *arguments_for(command, raw_copy, tmp_path), rc=1)
    assert "vhdxfile" in result.err and result.err.endswith("say so with -f raw\n")


def test_a_parent_that_is_no_vhdx_gets_no_hint_to_f_raw(vhdx, orphan, raw_copy):
    result = vhdx("map", "--parent", raw_copy, orphan, rc=1)
    assert "-f raw" not in result.err


@pytest.mark.parametrize("command", ["info", "map", "dump", "check", "compare"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_full_standard_output_is_an_error(vhdx_path, command, form, dynamic, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([vhdx_path, command, *form, *arguments_for(command, dynamic.path, tmp_path)], stdout=full,
                              stderr=subprocess.PIPE, check=False)
    assert done.returncode == TROUBLE.get(command, 1)
    assert done.stderr.decode() == f"vhdx {command}: standard output: No space left on device\n"


@pytest.mark.parametrize("command", ["read -v 0 64k", "length"])
def test_full_standard_output_of_io(vhdx_path, dynamic, command):
    """Which looks after each command whether anybody still listens."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([vhdx_path, "io", "-r", dynamic.path, "-c", command], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1 and done.stderr.decode() == "vhdx io: standard output: No space left on device\n"


@pytest.mark.parametrize("command", READERS)
def test_an_empty_name(vhdx, command, tmp_path):
    result = vhdx(command, *arguments_for(command, "", tmp_path), rc=TROUBLE.get(command, 1))
    assert result.err.startswith(f"vhdx {command}: ") and "empty" in result.err and result.err.count("\n") == 1


def test_control_characters_do_not_reach_the_terminal(vhdx, dynamic, tmp_path):
    """In names given by the user and in strings from images; also what reorders text, and what is no UTF-8."""
    hostile = "a\x1b[31m\nb\x7f\u202e\u009b.vhdx"
    path = tmp_path / hostile
    os.symlink(dynamic.path, path)
    shown = "a\\x1b[31m\\x0ab\\x7f\\u{202e}\\u{9b}.vhdx"
    assert shown in vhdx("info", path, rc=0).out
    assert shown in vhdx("map", path, rc=0).out
    assert vhdx("info", "--json", path, rc=0).json()["filename"] == str(path)
    result = vhdx("info", f"{path}x", rc=1)
    assert f"{shown}x: cannot open" in result.err and result.err.count("\n") == 1


def test_file_names_that_are_no_utf8(vhdx_path, dynamic, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xc0\x80\xed\xa0\x80.vhdx"
    os.symlink(dynamic.path, path)
    done = subprocess.run([vhdx_path, "info", path], capture_output=True, check=True)
    assert rb"/\xff\xc0\x80\xed\xa0\x80.vhdx" in done.stdout
    done = subprocess.run([vhdx_path, "info", "--json", path], capture_output=True, check=True)
    assert json.loads(done.stdout)["filename"] == f"{tmp_path}/{6 * chr(0xfffd)}.vhdx"


def test_control_characters_of_a_parent_locator(vhdx, chain, tmp_path):
    hostile = windows(64 * MiB, parent=chain[2])
    hostile.locator = Locator.relative(chain[2].data_write_guid, ".\\\x1b[2J\nx.vhdx")
    hostile.locator.set('k"\n', "v\x07")
    path = hostile.build(tmp_path / "hostile.avhdx").path
    result = vhdx("info", path, rc=0)
    assert "\x1b" not in result.out + result.err and "\\x1b[2J\\x0ax.vhdx" in result.out
    assert result.err.count("\n") == 1
    locator = vhdx("info", "--json", path, rc=0).json()["format-specific"]["data"]["parent-locator"]
    assert locator['k"\n'] == "v\x07"


# ---- parents and locks

def test_absolute_parent_paths_are_followed_only_on_demand(vhdx, chain, tmp_path):
    child = windows(64 * MiB, parent=chain[2])
    child.locator = Locator.relative(chain[2].data_write_guid, chain[2].path)
    path = child.build(tmp_path / "child.avhdx").path
    assert "--allow-parent-path" in vhdx("map", path, rc=1).err
    vhdx("map", "--allow-parent-path", path, rc=0)


def test_images_in_use_are_read_only_with_force_share(vhdx, tool, dynamic, tmp_path):
    path = tmp_path / "used.vhdx"
    path.write_bytes(pathlib.Path(dynamic.path).read_bytes())
    with held_by_qemu(tool("qemu-io"), path):
        assert "--force-share" in vhdx("info", path, rc=1).err
        for command in ONE_IMAGE:
            vhdx(command, "-U", path, rc=0)
        vhdx("convert", "--force-share", path, tmp_path / "out.raw", rc=0)
        vhdx("compare", "-U", path, dynamic.path, rc=0)


# ---- completion

@pytest.fixture(scope="module")
def complete(vhdx_path, source_root, tool):
    """complete("info", "--j") -> what bash would offer for the last word."""
    bash = tool("bash")

    def run(*words, cwd=None):
        script = ('source "$1"; tool=$2; shift 2; COMP_WORDS=("$tool" "$@"); COMP_CWORD=$#; COMPREPLY=(); '
                  '_vhdx 2>/dev/null; printf "%s\\n" "${COMPREPLY[@]}"')
        out = run_program([bash, "--norc", "-c", script, "bash", source_root / "completions" / "vhdx", vhdx_path, *words],
                          rc=0, cwd=cwd).out
        return out.split()
    return run


def test_completion_of_commands(complete):
    assert complete("") == COMMANDS
    assert complete("co") == ["convert", "compare"]
    assert complete("cr") == ["create"]
    assert complete("--v") == ["--version"]


@pytest.mark.parametrize("command", COMMANDS)
def test_completion_knows_every_option(complete, vhdx, command):
    options = re.findall(r"^ +(?:-., )?(?:    )?(--[a-z-]+)", vhdx(command, "--help", rc=0).out, re.MULTILINE)
    assert len(options) >= 2 and complete(command, "--") == options


def test_completion_of_values(complete, tmp_path):
    assert complete("convert", "--reflink", "") == ["auto", "always", "never"]
    assert complete("convert", "--reflink", "=", "a") == ["auto", "always"]
    assert complete("info", "--output", "=") == ["human", "json"]
    assert complete("info", "-f", "r") == ["raw"]
    assert complete("convert", "-O", "") == ["raw", "vhdx"]
    (tmp_path / "a.vhdx").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    assert complete("info", "a", cwd=tmp_path) == ["a.vhdx"]
    assert complete("info", "--json", "a", cwd=tmp_path) == ["a.vhdx"]
    assert complete("info", "--parent-dir", "", cwd=tmp_path) == ["folder"]
    assert complete("map", "--start-offset", "", cwd=tmp_path) == []


@pytest.mark.parametrize("command", ["info", "map", "chain", "dump"])
def test_options_of_most_commands(vhdx, dynamic, command):
    """What prints only what was asked for leaves nothing out."""
    plain = vhdx(command, dynamic.path, rc=0).out
    for options in (["-q"], ["-p"], ["--quiet", "--progress"]):
        result = vhdx(command, *options, dynamic.path, rc=0)
        assert result.out == plain and (result.err == "" or "100 %" in result.err)
