# SPDX-License-Identifier: MIT
"""What the tests of the command line share: images, and running the command on a terminal."""
import contextlib
import fcntl
import os
import pathlib
import pty
import select
import struct
import subprocess
import termios
import time

import pytest

from vhdxbuild import FULLY_PRESENT, ZERO, Image, MiB, Pattern, make_dirty, windows

COMMANDS = ["info", "map", "check", "dump", "create", "convert", "compare", "io", "chain", "rebase", "merge", "snapshot", "serve"]
if os.environ.get("VHDX_FUSE", "1") == "1":  # the build has them
    COMMANDS += ["mount", "umount"]
READERS = [command for command in COMMANDS if command not in ("create", "umount")]  # take an image that is there

TROUBLE = {"compare": 2}


def arguments_for(command, image, tmp_path):
    if command == "mount":
        (tmp_path / "mnt").mkdir()
    if command == "rebase":
        return ["--find", tmp_path, image]
    second = {"convert": tmp_path / "out.raw", "compare": image, "mount": tmp_path / "mnt",
              "snapshot": "state"}
    return [image, second[command]] if command in second else [image]


# ---- other programs

@contextlib.contextmanager
def held_by_qemu(qemu_io, path, *options):
    """qemu-io has the image open, for writing unless options say otherwise.  It has said so itself: to try with our own command,
    whose lock would be in its way, could keep it out."""
    with subprocess.Popen([qemu_io, "-f", "vhdx", *options, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            holder.stdin.write(b"length\n")
            holder.stdin.flush()
            seen = b""
            while b"iB" not in seen:
                piece = os.read(holder.stdout.fileno(), 4096)
                assert piece, "qemu-io cannot open the image"
                seen += piece
            yield holder
        finally:
            holder.communicate(b"quit\n", timeout=300)


def find_strace(tool):
    if os.environ.get("VHDX_SANITIZE", "none") != "none":
        pytest.skip("strace and sanitizers do not go together")
    strace = tool("strace")
    if subprocess.run([strace, "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("strace may not trace here")
    return strace


# ---- images

@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    """A dynamic image of 64 MiB with data in blocks 1 (ends inside it) and 4, and zeros said of block 6."""
    image = Image(64 * MiB, block_size=2 * MiB)
    image.write(2 * MiB + 512, 4096, Pattern(1))
    image.write(8 * MiB, 2 * MiB, Pattern(2))
    image.set_block(6, ZERO)
    return image.build(tmp_path_factory.mktemp("dynamic") / "disk.vhdx")


@pytest.fixture(scope="module")
def raw_copy(dynamic, tmp_path_factory):
    path = tmp_path_factory.mktemp("raw") / "disk.raw"
    dynamic.write_raw(path)
    return path


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Child (dirty log), parent and grandparent in one folder, child first."""
    folder = tmp_path_factory.mktemp("chain")
    base = Image(64 * MiB, block_size=2 * MiB, seed=1)
    base.write(2 * MiB, 2 * MiB, Pattern(1))
    base = base.build(folder / "base.vhdx")
    middle = windows(64 * MiB, parent=base, seed=2)
    middle.write(8 * MiB, 2 * MiB, Pattern(2))
    middle = middle.build(folder / "middle.avhdx")
    child = windows(64 * MiB, parent=middle, seed=3)
    child.write(2 * MiB + 512, 512, Pattern(3))
    make_dirty(child, ["bat", "bitmap"])
    return [child.build(folder / "child.avhdx"), middle, base]


@pytest.fixture
def orphan(chain, tmp_path):
    """The child alone in a folder."""
    path = tmp_path / "orphan.avhdx"
    path.write_bytes(pathlib.Path(chain[0].path).read_bytes())
    return path


@pytest.fixture
def overlapping(tmp_path):
    """Two blocks in the same place: not to be opened, but all else about it is known."""
    image = Image(64 * MiB, block_size=2 * MiB)
    image.set_block(0, at=8 * MiB, data=Pattern(1))
    image.set_block(5, raw=8 * MiB | FULLY_PRESENT)
    return image.build(tmp_path / "overlapping.vhdx")


# ---- terminals

def run_on_terminal(argv, *, stdout=False, columns=100, environment=None):
    """Run argv with stderr, or with stdout, on a terminal.  Returns status, what came there, what came on the other."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 25, columns, 0, 0))
    streams = {"stdout": slave, "stderr": subprocess.PIPE} if stdout else {"stdout": subprocess.PIPE, "stderr": slave}
    env = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **(environment or {})}
    with subprocess.Popen([str(arg) for arg in argv], **streams, env=env) as process:
        os.close(slave)
        other = (process.stderr if stdout else process.stdout).fileno()
        texts = {master: b"", other: b""}
        waiting = set(texts)
        while waiting:
            for descriptor in select.select(list(waiting), [], [], 60)[0]:
                try:
                    piece = os.read(descriptor, 65536)
                except OSError:  # the terminal's last user has gone
                    piece = b""
                texts[descriptor] += piece
                if not piece:
                    waiting.remove(descriptor)
    os.close(master)
    return process.returncode, texts[master].decode().replace("\r\n", "\n"), texts[other].decode("utf-8", "replace")


# ---- programs at work

def wait_for_open_file(pid, folder):
    """Until the program has a file of that folder open, with or without a name."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except FileNotFoundError:
                continue
            if target.startswith(f"{folder}/"):
                return
        time.sleep(0.01)
    pytest.fail(f"process {pid} opened nothing in {folder}")
