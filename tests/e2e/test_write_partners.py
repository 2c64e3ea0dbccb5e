# SPDX-License-Identifier: MIT
"""Images that QEMU's programs and this one write in turn, also when either is killed; and the locks by which they keep out of
each other's way."""
import os
import random
import shutil
import subprocess
import time

import pytest

from conftest import find_tool, run_program
from nbdserver import qemu_nbd
from reading import file_sha256
from vhdxbuild import MiB
from writing import Held, Model, assert_disk_is, expect_no_errors, random_commands

SIZE = 40 * MiB


@pytest.fixture(params=["dynamic 1M", "fixed 2M"])
def image(request, qemu_img, tmp_path):
    subformat, block = request.param.split()
    qemu_img("create", "-q", "-f", "vhdx", "-o", f"block_size={block},subformat={subformat}", tmp_path / "disk.vhdx", SIZE)
    return tmp_path / "disk.vhdx"


def content_of(vhdx, image, raw):
    vhdx("convert", "-q", "--force", image, raw, rc=0)
    return raw


def lines_of(generator, model, nr):
    """Without discards, after which QEMU's driver may give back anything."""
    return random_commands(generator, model, MiB, nr, discards=False)


# ---- QEMU is killed

def killed_qemu_io(image, lines):
    words = [word for line in [*lines, "flush", "sigraise 9"] for word in ("-c", line)]
    path = find_tool("qemu-io") or pytest.skip("qemu-io is not installed (Debian package qemu-utils)")
    run_program([path, "-f", "vhdx", *words, image], rc=-9)


def killed_qemu_nbd(vhdx, image, lines):
    with qemu_nbd("-f", "vhdx", "-t", "--discard=unmap", image) as server:
        vhdx("io", server.uri, stdin="\n".join([*lines, "flush"]) + "\n", rc=0)
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize("program", ["qemu-io", "qemu-nbd"])
def test_what_qemu_had_flushed_when_it_was_killed(vhdx, qemu_img, qemu_io, image, program, tmp_path):
    model, generator = Model(bytes(SIZE)), random.Random(str(image.stat().st_size) + program)
    for _ in range(2):
        lines = lines_of(generator, model, 10)
        if program == "qemu-io":
            killed_qemu_io(image, lines)
        else:
            killed_qemu_nbd(vhdx, image, lines)
        before = file_sha256(image)
        model.assert_same_as(content_of(vhdx, image, tmp_path / "ours.raw"))
        expect_no_errors(vhdx, image)
        assert file_sha256(image) == before
        shutil.copyfile(image, tmp_path / "copy.vhdx")
        qemu_io(tmp_path / "copy.vhdx", ["read 0 1"])
        vhdx("compare", "-q", "-F", "raw", tmp_path / "copy.vhdx", tmp_path / "ours.raw", rc=0)
        vhdx("io", image, stdin="\n".join(lines_of(generator, model, 5)) + "\n", rc=0)
        assert not vhdx("info", "--json", image, rc=0).json()["dirty-flag"]
        model.assert_same_as(content_of(vhdx, image, tmp_path / "ours.raw"))
    assert_disk_is(vhdx, qemu_img, model, image, tmp_path, leaks=True)


CALLS = "fdatasync,pwrite64,pwritev"


def what_qemu_left(vhdx, qemu_io, image, folder):
    """Both programs must find the same in an image whose writer was killed.  Returns the content and whether the log was dirty.
    None, False: QEMU had named its log before that held anything, and the specification calls such a file corrupt (format
    section 4.9)."""
    before, ours, copy = file_sha256(image), folder / "ours.raw", folder / "copy.vhdx"
    if "none of its 0 intact entries" in vhdx("convert", "-q", "--force", image, ours).err:
        assert file_sha256(image) == before
        qemu_io(image, ["read 0 1"])                                 # its driver reads it, but does not write any more
        return None, False
    dirty = vhdx("info", "--json", image, rc=0).json()["dirty-flag"]
    check = vhdx("check", "--json", image).json()                    # replayed in memory
    assert [f for f in check["findings"] if f["severity"] == "error"] == []
    content = content_of(vhdx, image, ours).read_bytes()
    assert file_sha256(image) == before
    shutil.copyfile(image, copy)
    qemu_io(copy, ["read 0 1"])                                      # replayed by QEMU
    vhdx("compare", "-q", "-F", "raw", copy, ours, rc=0)
    vhdx("io", image, "-c", "write -q -P 7 8M 1M", rc=0)             # replayed into place
    expect_no_errors(vhdx, image, leaks=True)
    assert content_of(vhdx, image, ours).read_bytes() == content[:8 * MiB] + b"\7" * MiB + content[9 * MiB:]
    qemu_io(image, ["read -P 7 8M 1M"])
    return content, dirty


def test_qemu_killed_at_each_of_its_steps(vhdx, qemu_img, qemu_io, tool, tmp_path):
    """Its driver empties the log after each allocation, so only a kill inside of one leaves a dirty log behind."""
    strace, program = tool("strace"), tool("qemu-io")
    if subprocess.run([strace, "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("strace may not trace here")
    base, image, size = tmp_path / "base.vhdx", tmp_path / "disk.vhdx", 12 * MiB
    qemu_img("create", "-q", "-f", "vhdx", "-o", "block_size=1M", base, size)
    qemu_io(base, ["write -q -P 1 3M 2M"])
    nr_killed, nr_dirty, nr_bare, number, survived = 0, 0, 0, 0, 0
    while survived < 5: # strace counts for each thread by itself, and QEMU's are as many as it likes
        number += 1
        shutil.copyfile(base, image)
        done = subprocess.run([strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + CALLS, "-e",
                               f"inject={CALLS}:signal=SIGKILL:when={number}", program, "-f", "vhdx", "-c",
                               "write -q -P 2 4608k 1M", image], capture_output=True, timeout=300, check=False)
        survived += done.returncode == 0
        nr_killed += done.returncode != 0
        content, dirty = what_qemu_left(vhdx, qemu_io, image, tmp_path)
        nr_dirty += dirty
        if content is None:
            assert done.returncode != 0
            qemu_io(image, ["read -P 1 3M 1536k"])
            nr_bare += 1
            continue
        for at in range(0, size, 512):                               # old, or as it was to be written
            old = 1 if 3 * MiB <= at < 5 * MiB else 0
            new = 2 if 4608 * 1024 <= at < 5632 * 1024 else old
            assert content[at:at + 512] in (bytes([old]) * 512, bytes([new]) * 512), at
    print(f"{nr_killed} killed, {nr_dirty} dirty logs, {nr_bare} that hold nothing")
    assert nr_killed > 0
    if nr_dirty == 0:
        pytest.skip("QEMU was never killed between a log entry and the table that it changes")


@pytest.mark.parametrize("milliseconds", [0, 3, 10, 50])
def test_qemu_killed_in_the_middle(vhdx, vhdx_path, qemu_io, image, milliseconds, tmp_path):
    """Nobody knows how far it came, but both must find the same, and nothing but what was written."""
    patterns = {}       # of each MiB
    lines = []
    for i in range(400):
        patterns.setdefault(i * 769 % 39, {0}).add(1 + i % 250)
        lines.append(f"write -q -P {1 + i % 250} {i * 769 % 39 * MiB} 256k")
    with qemu_nbd("-f", "vhdx", "-t", image) as server:
        with subprocess.Popen([vhdx_path, "io", "-q", server.uri], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
            try:
                writer.stdin.write("\n".join(lines[:200]).encode())
                writer.stdin.flush()
                time.sleep(milliseconds / 1000)
                server.process.kill()
                writer.stdin.write(("\n" + "\n".join(lines[200:])).encode())
                writer.stdin.close()
            except BrokenPipeError:
                pass
            writer.wait(300)
    content, _ = what_qemu_left(vhdx, qemu_io, image, tmp_path)
    if content is not None:
        for at in range(0, SIZE, 4096):
            allowed = patterns.get(at // MiB, {0}) if at % MiB < 256 * 1024 else {0}
            assert content[at] in allowed and content[at:at + 4096] == content[at:at + 1] * 4096, at


# ---- this program is killed

def test_qemu_repairs_what_we_left(vhdx, qemu_img, image, tmp_path):
    """Its check replays our log, in place, and finds nothing else to mend."""
    model, generator = Model(bytes(SIZE)), random.Random(5)
    for _ in range(3):
        lines = random_commands(generator, model, MiB, 12)
        vhdx("io", image, stdin="\n".join([*lines, "flush", "sigraise 9"]) + "\n", rc=-9)
        assert vhdx("info", "--json", image, rc=0).json()["dirty-flag"]
        qemu_img("check", "-q", "-f", "vhdx", "-r", "all", image)
        assert not vhdx("info", "--json", image, rc=0).json()["dirty-flag"]
        expect_no_errors(vhdx, image)
        model.assert_same_as(content_of(vhdx, image, tmp_path / "after.raw"))


# ---- locks

def is_refused(result):
    return result.rc in (1, 2) and ("lock" in result.err.lower() or "another program has the image open" in result.err)


def start_of_qemu_nbd(image, *options):
    """(status, stderr) of an attempt to serve the image; 0 if it listens."""
    path = find_tool("qemu-nbd") or pytest.skip("qemu-nbd is not installed (Debian package qemu-utils)")
    return run_program([path, "-f", "vhdx", "--fork", "-k", image.parent / "nbd.socket", "--pid-file", image.parent / "nbd.pid",
                        *options, image])


def stop_qemu_nbd(image):
    os.kill(int((image.parent / "nbd.pid").read_text()), 9)


def test_qemu_is_kept_out(vhdx_path, qemu_img, qemu_io, image, tmp_path):
    with Held(vhdx_path, image) as held:
        held.do("length")
        for arguments in (["info"], ["check"], ["check", "-r", "all"], ["convert", "-O", "raw", image, tmp_path / "x"],
                          ["compare", image, image], ["bench", "-c", "1"]):
            names = [] if image in arguments else [image]
            assert is_refused(qemu_img(arguments[0], "-f", "vhdx", *arguments[1:], *names, rc=None)), arguments
        assert is_refused(qemu_io(image, ["read 0 1"], rc=None)) and is_refused(qemu_io(image, ["read 0 1"], "-r", rc=None))
        assert is_refused(start_of_qemu_nbd(image)) and is_refused(start_of_qemu_nbd(image, "-r"))
        qemu_img("info", "-U", "-f", "vhdx", image)
        assert held.end() == (0, "")
    qemu_io(image, ["write -P 1 0 512"])


def test_qemu_may_read_what_we_read(vhdx_path, qemu_img, qemu_io, image):
    with Held(vhdx_path, image, "-r") as held:
        held.do("length")
        qemu_img("info", "-f", "vhdx", image)
        qemu_img("check", "-f", "vhdx", image)
        qemu_io(image, ["read 0 1"], "-r")
        assert is_refused(qemu_img("check", "-r", "all", "-f", "vhdx", image, rc=None))
        assert is_refused(qemu_io(image, ["write 0 512"], rc=None))
        assert is_refused(start_of_qemu_nbd(image))
        assert start_of_qemu_nbd(image, "-r").rc == 0
        stop_qemu_nbd(image)
        assert held.end() == (0, "")


@pytest.mark.parametrize("options", [[], ["-r"]])
def test_we_keep_out_of_the_way_of_qemu_nbd(vhdx, image, options, tmp_path):
    before = file_sha256(image)
    with qemu_nbd("-f", "vhdx", "-t", *options, image) as server:
        vhdx("info", server.uri, rc=0)
        readers = (["info"], ["map"], ["check"], ["dump"], ["convert", image, tmp_path / "x.raw"], ["io", "-r", "-c", "length"])
        for arguments in readers:
            result = vhdx(*arguments, *([] if image in arguments else [image]))
            assert (result.rc == 0) if options else is_refused(result), arguments
            (tmp_path / "x.raw").unlink(missing_ok=True)
        for arguments in (["io", "-c", "length", image], ["convert", "-n", "-O", "vhdx", "-f", "raw", "/dev/null", image],
                          ["create", "--force", image, "1M"]):
            assert is_refused(vhdx(*arguments)), arguments
        vhdx("info", "-U", image, rc=0)
    assert file_sha256(image) == before or not options
