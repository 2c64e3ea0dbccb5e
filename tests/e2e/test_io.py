# SPDX-License-Identifier: MIT
"""vhdx io as people and scripts use it: the commands, where they come from, what they print, and how a run ends.  That what
is written arrives is tested in test_write.py."""
import os
import pathlib
import pty
import re
import signal
import subprocess
import time

import pytest

from conftest import run_program
from reading import file_sha256
from vhdxbuild import Image, MiB, Pattern
from writing import Held, expect_no_errors, guids


@pytest.fixture
def image(tmp_path):
    description = Image(8 * MiB, block_size=MiB)
    description.write(2 * MiB, 4096, Pattern(1))
    return description.build(tmp_path / "disk.vhdx").path


def commands(lines):
    return [word for line in lines for word in ("-c", line)]


# ---- the commands are qemu-io's

SAME_AS_QEMU = [
    ["write -P 7 1M 64k", "read -P 7 1M 64k", "read -v 1M 40", "length"],
    ["write 4096 1.5k", "read -v 4096 16", "read -P 0xcd 4k 1536"],
    ["w -P 0x41 3 5", "r -v 0 20", "l"],
    ["write -z 1M 1M", "write -z -u 3M 1M", "read -P 0 1M 1M", "discard 2M 1M"],
    ["write -q -P 1 0 512", "read -q -P 1 0 512", "flush", "discard -q 0 512"],
    ["write -f -P 9 512 512", "read -P 9 -s 512 -l 100 0 4k"],
    ["write -P 255 0 4M", "read -v 4194300 9", "quit", "length"],
    ["read 0 0", "sleep 1", "q"],
]


def untimed(text):
    return re.sub(r"ops; .*", "ops; TIME", text)


@pytest.mark.parametrize("lines", SAME_AS_QEMU)
def test_same_output_as_qemu_io(vhdx, qemu_img, tool, tmp_path, lines):
    outs = []
    for run in (lambda *a: run_program([tool("qemu-io"), "-f", "vhdx", *a], rc=0), lambda *a: vhdx("io", *a, rc=0)):
        path = tmp_path / "disk.vhdx"
        qemu_img("create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "8M")
        result = run(*commands(lines), path)
        assert result.err == ""
        assert all(re.fullmatch(r"[\d.]+ (bytes|[KMG]iB), 1 ops; \d\d\.\d\d sec \([\d.]+ (bytes|[KMGT]iB)/sec and [\d.]+ ops/sec\)",
                                line) or "inf" in line for line in result.out.splitlines() if "ops;" in line), result.out
        outs.append(untimed(result.out))
    assert outs[0] == outs[1]


def test_write_from_a_file(vhdx, image, tmp_path):
    (tmp_path / "source").write_bytes(b"abc")
    vhdx("io", image, "-c", f"write -s {tmp_path}/source 100 5M", rc=0)
    vhdx("convert", image, tmp_path / "out.raw", rc=0)
    content = (tmp_path / "out.raw").read_bytes()
    assert content[100:5 * MiB + 100] == (b"abc" * (2 * MiB))[:5 * MiB]
    assert content[:100] + content[5 * MiB + 100:] == bytes(3 * MiB)
    (tmp_path / "empty").write_bytes(b"")
    for name, says in (("empty", "something in it"), ("missing", "No such file"), (".", "something in it")):
        assert says in vhdx("io", image, "-c", f"write -s {tmp_path}/{name} 0 1", rc=1).err


def test_map(vhdx, image):
    assert vhdx("io", image, "-c", "map", rc=0).out == (
        "2 MiB (0x200000) bytes not allocated at offset 0 bytes (0x0)\n"
        "1 MiB (0x100000) bytes      allocated at offset 2 MiB (0x200000)\n"
        "5 MiB (0x500000) bytes not allocated at offset 3 MiB (0x300000)\n")


def test_help_lists_what_there_is(vhdx, image, source_root):
    out = vhdx("io", image, "-c", "help", rc=0).out
    names = re.findall(r"^(\w+)\b.* -- ", out, re.MULTILINE)
    assert {"read", "write", "discard", "flush", "map", "length", "sleep", "sigraise", "quit"} <= set(names)
    page = (source_root / "man" / "vhdx-io.1").read_text().split(".SS Commands")[1].split(".SH EXAMPLES")[0]
    assert [name for name in names if not re.search(rf"^(\.B|\.BI|\\fB) ?\"?{name}\b", page, re.MULTILINE)] == []


WRONG = [
    ("frobnicate", 'command "frobnicate" not found'),
    ("write", "bad argument count 0 to write, expected 2"),
    ("write 0", "bad argument count 1"),
    ("write 0 1 2", "bad argument count 3"),
    ("flush now", "bad argument count 1 to flush, expected 0"),
    ("write -P 256 0 1", "256 is not a valid pattern byte"),
    ("write -P -1 0 1", "-1 is not a valid pattern byte"),
    ("write -P", "-P needs a value"),
    ("write -P 1 -z 0 1", "exclude each other"),
    ("write -P 1 -s /dev/null 0 1", "exclude each other"),
    ("write -u 0 1", "-u requires -z"),
    ("write -v 0 1", "unknown flag -v"),
    ("write -: 0 1", "unknown flag -:"),
    ("read -f 0 1", "unknown flag -f"),
    ("read -s 5 0 512", "need a pattern"),
    ("read -P 1 -s 5 -l 508 0 512", "outside"),
    ("read -P 1 -s 513 0 512", "outside"),
    ("read 0 5x", "'5x' is not a size"),
    ("read 0 10KB", "'10KB' is not a size"),
    ("read 0 17E", "'17E' is too large"),
    ("read 8M 1", "beyond the end of the disk"),
    ("write 15E 15E", "beyond the end of the disk"),
    ("discard 8191K 1025", "beyond the end of the disk"),
    ("sleep soon", "soon is not a number"),
    ("sigraise 65", "65 is not a valid signal"),
    ("sigraise KILL", "KILL is not a valid signal"),
    (" ".join(["read"] * 65), "more than 64 words"),
]


@pytest.mark.parametrize("line, says", WRONG)
def test_wrong_commands(vhdx, image, line, says):
    before = file_sha256(image)
    for result in (vhdx("io", image, "-c", line, rc=1), vhdx("io", image, stdin=line, rc=1)):
        assert says in result.err and result.err.count("\n") == 1
        assert result.err.startswith(f"vhdx io: {image}: ") and result.out == ""
    assert file_sha256(image) == before


def test_pattern_verification(vhdx, image):
    result = vhdx("io", image, "-c", "write -q -P 5 0 5000", "-c", "write -q -P 6 4999 1", "-c", "read -P 5 0 5000", rc=1)
    assert "read -P 5 0 5000: Pattern verification failed at offset 0, 5000 bytes: byte 4999 is 0x06, not 0x05" in result.err
    assert untimed(result.out) == "read 5000/5000 bytes at offset 0\n4.883 KiB, 1 ops; TIME\n"
    vhdx("io", image, "-c", "read -P 5 -l 4999 0 5000", "-c", "read -P 6 -s 4999 0 5000", rc=0)
    vhdx("io", image, "-c", "read -P 0 5000 7M", rc=1)


# ---- where commands come from

def test_standard_input(vhdx, image):
    lines = "# a comment\n\n  length   # another\n\twrite -q -P 1 0 1M\r\nread -q -P 1 0 1M\nlength"
    assert vhdx("io", image, stdin=lines, rc=0).out == "8 MiB\n8 MiB\n"
    assert vhdx("io", image, "-c", "read -q -P 1 0 1M", stdin="write 0 1M\n", rc=0).out == ""


def test_standard_input_a_little_at_a_time(vhdx_path, image):
    with subprocess.Popen([vhdx_path, "io", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for piece in (b"len", b"gth\nle", b"ng", b"th\n# ", b"foo\nlength"):
            process.stdin.write(piece)
            process.stdin.flush()
            time.sleep(0.05)
        assert process.communicate(timeout=300)[0] == b"8 MiB\n" * 3 and process.returncode == 0


def test_a_line_without_end(vhdx, image):
    lines = "length\n" + "x" * 100000
    assert "line 2 is longer than 65536 bytes" in vhdx("io", image, stdin=lines, rc=1).err
    assert vhdx("io", image, stdin="#" * 65535 + "\nlength\n", rc=0).out == "8 MiB\n"


def test_many_lines(vhdx, image):
    lines = [f"write -q -P {i % 256} {i * 100} 100" for i in range(20000)]
    vhdx("io", image, stdin="\n".join(lines), rc=0)
    vhdx("io", image, stdin="\n".join(f"read -q -P {i % 256} {i * 100} 100" for i in range(20000)), rc=0)


@pytest.mark.parametrize("way", ["options", "input"])
def test_the_first_failure_ends_the_run(vhdx, image, way):
    lines = ["write -q -P 1 0 512", "read -q -P 2 0 512", "write -q -P 3 0 512"]
    arguments, keywords = (commands(lines), {}) if way == "options" else ([], {"stdin": "\n".join(lines)})
    result = vhdx("io", image, *arguments, rc=1, **keywords)
    assert result.err.startswith(f"vhdx io: {image}: " + ("read -q -P 2 0 512: " if way == "options" else "line 2: "))
    vhdx("io", image, "-c", "read -P 1 0 512", rc=0)
    result = vhdx("io", "--keep-going", image, *arguments, rc=1, **keywords)
    assert result.err.count("\n") == 1
    vhdx("io", image, "-c", "read -P 3 0 512", rc=0)
    expect_no_errors(vhdx, image)


def test_long_commands_are_shortened_in_messages(vhdx, image):
    result = vhdx("io", image, "-c", "read -P 1 0 " + "0" * 1000 + "512", rc=1)
    assert "...: " in result.err and len(result.err) < 400


def test_a_prompt_on_a_terminal(vhdx_path, vhdx, image):
    """Failures do not end it, but show in the exit status; the end of input does."""
    master, slave = pty.openpty()
    with subprocess.Popen([vhdx_path, "io", image], stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.close(slave)
        os.write(master, b"length\nfoo\nwrite -q -P 1 0 9\nread -P 1 0 9\n\x04")
        out, err = process.communicate(timeout=300)
    os.close(master)
    assert process.returncode == 1
    assert untimed(out.decode()) == ("vhdx> 8 MiB\nvhdx> vhdx> vhdx> read 9/9 bytes at offset 0\n9 bytes, 1 ops; TIME\nvhdx> \n")
    assert err.decode() == f"vhdx io: {image}: command \"foo\" not found; 'help' lists the commands\n"
    expect_no_errors(vhdx, image)


# ---- options

def test_quiet(vhdx, image):
    assert vhdx("io", "-q", image, "-c", "write 0 1", "-c", "read 0 1", "-c", "length", rc=0).out == "8 MiB\n"


def test_read_only(vhdx, image):
    before = file_sha256(image)
    for line in ("write 0 1", "write -z 0 1", "discard 0 1", "flush"):
        assert "opened for reading only" in vhdx("io", "-r", image, "-c", line, rc=1).err
    vhdx("io", "--read-only", image, "-c", "read 0 8M", rc=0)
    assert file_sha256(image) == before


def test_force_share_is_for_reading(vhdx, image):
    assert "--read-only" in vhdx("io", "-U", image, "-c", "length", rc=2).err
    vhdx("io", "-rU", image, "-c", "length", rc=0)


# ---- how a run ends

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("line", ["", "sleep 60000"])
def test_signals_close_the_image(vhdx_path, vhdx, image, number, line):
    with Held(vhdx_path, image) as held:
        held.do("write -q -P 1 0 1M")
        if line:
            held.process.stdin.write(f"{line}\nwrite -P 2 0 1M\n".encode())
            held.process.stdin.flush()
        time.sleep(0.1)
        held.process.send_signal(number)
        assert held.process.wait(300) == 128 + number
        assert held.process.stderr.read() == b""
    expect_no_errors(vhdx, image)
    vhdx("io", image, "-c", "read -P 1 0 1M", rc=0)


def test_a_signal_lets_the_command_finish_and_no_other_begin(vhdx, image):
    vhdx("io", image, "-c", "write -q -P 1 0 1M", "-c", "sigraise 15", "-c", "write -P 2 0 1M", rc=143)
    expect_no_errors(vhdx, image)
    vhdx("io", image, "-c", "read -P 1 0 1M", rc=0)


def test_sigraise(vhdx, image):
    result = vhdx("io", image, "-c", "length", "-c", "sigraise 9", "-c", "length", rc=-9)
    assert result.out == "8 MiB\n", "what was printed before is not lost"
    assert vhdx("io", image, "-c", "sigraise 0", "-c", "length", rc=0).out == "8 MiB\n"


@pytest.mark.parametrize("lines", [[], ["length"] * 3])
def test_output_that_cannot_be_written(vhdx_path, vhdx, image, lines):
    """A run whose output is lost stops and fails, but the image is closed as always."""
    for make in (lambda: open("/dev/full", "wb"), broken_pipe):
        with make() as out:
            done = subprocess.run([vhdx_path, "io", image, *commands(["write -P 1 0 1M", *lines])], stdout=out,
                                  stderr=subprocess.PIPE, check=False)
        assert done.returncode == 1 and b"standard output" in done.stderr
        expect_no_errors(vhdx, image)
        vhdx("io", image, "-c", "read -P 1 0 1M", "-c", "write 0 1M", rc=0)


def broken_pipe():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "wb")


def test_an_empty_run_changes_nothing(vhdx, image):
    before, identity = file_sha256(image), guids(vhdx, image)
    vhdx("io", image, stdin="", rc=0)
    vhdx("io", image, "-c", "", "-c", "# nothing", rc=0)
    assert (file_sha256(image), guids(vhdx, image)) == (before, identity)


# ---- where the image lies

def test_image_on_a_block_device(vhdx, need_loop, tool, tmp_path, image):
    """It keeps its length, and nobody knows what it holds behind the image's objects."""
    losetup, place = tool("losetup"), tmp_path / "device"
    length = os.stat(image).st_size
    place.write_bytes(pathlib.Path(image).read_bytes() + b"\xee" * (3 * MiB))
    device = run_program([losetup, "--find", "--show", place], rc=0).out.strip()
    try:
        vhdx("io", *commands(["write -P 7 4M 512", "write -P 8 7M 1M", "read -P 0 4608 4k", "discard 2M 1M"]), device, rc=0)
        vhdx("io", *commands(["read -P 7 4M 512", "read -P 0 4194816 1048064", "read -P 8 7M 1M", "read -P 0 2M 1M"]), device, rc=0)
        vhdx("io", *commands(["write -P 9 0 1M", "write -P 9 1M 1M"]), device, rc=0)
        assert "cannot grow" in vhdx("io", "-c", "write -P 9 5M 1M", device, rc=1).err
        vhdx("io", *commands(["read -P 9 0 2M", "read -P 0 2M 2M", "read -P 0 5M 1M"]), device, rc=0)
        vhdx("check", device, rc=0)
        assert vhdx("info", "--json", device, rc=0).json()["dirty-flag"] is False
    finally:
        run_program([losetup, "--detach", device], rc=0)
    assert os.stat(place).st_size == length + 3 * MiB


def test_statistics_of_nothing(vhdx, image):
    """Which takes no time."""
    assert vhdx("io", image, "-c", "read 4096 0", rc=0).out == \
        "read 0/0 bytes at offset 4096\n0 bytes, 1 ops; 00.00 sec (0 bytes/sec and 0.0000 ops/sec)\n"
