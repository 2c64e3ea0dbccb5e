# SPDX-License-Identifier: MIT
"""What the tests of mounts share: mounts that are gone after the test whatever happened, and ordinary users."""
import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile

import pytest

from conftest import find_tool, run_program
from waiting import SECONDS, is_gone, wait_until

MiB = 1 << 20
NOBODY = 65534


def mounts_below(folder):
    """(mount point, type, source) of everything mounted at or below folder, or that comes from a file below it; topmost last."""
    found = []
    for line in pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, right = line.split(" - ", 1)
        place, (kind, source) = left.split()[4], right.split()[:2]
        if f"{place}/".startswith(f"{folder}/") or source.startswith(f"{folder}/"):
            found.append((place, kind, source))
    return found


def loops_on(folder):
    """The loop devices whose file lies below folder."""
    found = []
    for entry in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if entry.read_text(encoding="utf-8").startswith(f"{folder}/"):
                found.append(f"/dev/{entry.parts[3]}")
    return found


def server_pid(folder):
    """The process that serves the mount at folder."""
    return int(re.match(r"pid (\d+)", pathlib.Path(folder, ".vhdx-mount").read_text(encoding="utf-8")).group(1))


def insist(pid):
    """Send SIGTERM until the process has ended: one that comes soon after the first does not count."""
    def ended():
        if is_gone(pid):
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        return False
    wait_until(ended, "the server does not wait any longer")


def instead_of(folder, name, script):
    """The environment in which this shell script is run as the program name."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (tools / name).chmod(0o755)
    return {"PATH": f"{tools}:{os.environ['PATH']}"}


def clean_up(folder):
    """Take down what a test has left mounted: file systems first, then what they lie on."""
    for place, kind, source in reversed(mounts_below(folder)):
        if kind != "fuse.vhdx":
            subprocess.run(["umount", "-l", place], capture_output=True, check=False)
    for device in loops_on(folder):
        subprocess.run([find_tool("losetup"), "-d", device], capture_output=True, check=False)
    for place, kind, source in reversed(mounts_below(folder)):
        command = ["umount", "-l", place] if os.geteuid() == 0 else ["fusermount3", "-uz", place]
        subprocess.run(command, capture_output=True, check=False)


class Mounter:
    """mount(image, *options) -> the folder, mounted; umount(folder)."""

    def __init__(self, vhdx, folder):
        self.vhdx, self.folder, self.count = vhdx, folder, 0

    def new_folder(self):
        self.count += 1
        folder = self.folder / f"mnt{self.count}"
        folder.mkdir()
        return folder

    def mount(self, image, *options, folder=None, env=None):
        folder = folder or self.new_folder()
        self.vhdx("mount", *options, image, folder, rc=0, env=env)
        return folder

    def umount(self, folder, rc=0, env=None):
        return self.vhdx("umount", folder, rc=rc, env=env)

    @contextlib.contextmanager
    def mounted(self, image, *options):
        folder = self.mount(image, *options)
        yield folder
        self.umount(folder)


@pytest.fixture
def mounter(vhdx, need_fuse, tmp_path):
    yield Mounter(vhdx, tmp_path)
    clean_up(tmp_path)


@pytest.fixture
def as_user(vhdx_path, need_fuse):
    """as_user(script) -> Result: a shell script run by an ordinary user in a folder of its own, where $VHDX is the command.
    Root becomes nobody for it, with a /dev/fuse of its own that everybody may use, as udev makes it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="vhdx-user-"))
    as_root = os.geteuid() == 0
    prefix = []
    if as_root:
        for name in ("unshare", "setpriv"):
            if find_tool(name) is None:
                pytest.skip(f"{name} is not installed (Debian package util-linux)")
        os.chown(folder, NOBODY, NOBODY)
        device = folder / "fuse"
        os.mknod(device, stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
        device.chmod(0o666)
        prefix = [find_tool("unshare"), "--mount", "sh", "-c",
                  f'mount --bind {device} /dev/fuse && exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "$@"', "sh"]
        if subprocess.run([*prefix, "test", "-r", vhdx_path, "-a", "-w", "/dev/fuse"], check=False).returncode != 0:
            shutil.rmtree(folder)
            pytest.skip(f"an ordinary user cannot reach {vhdx_path} or a device of its own")
    yield lambda script, **keywords: run_program([*prefix, "sh", "-uc", script], cwd=folder,
                                                 env={"VHDX": os.fspath(vhdx_path)}, **keywords)
    clean_up(folder)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def foreground(vhdx_path, folder, *arguments):
    """vhdx mount --foreground, ready; yields the process, with stderr to be read."""
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(f"{place}/notify")
        notified.settimeout(SECONDS)
        process = subprocess.Popen([vhdx_path, "mount", "--foreground", *arguments, folder], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "NOTIFY_SOCKET": f"{place}/notify"})
        try:
            assert notified.recv(100) == b"READY=1"
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
