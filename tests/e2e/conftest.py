# SPDX-License-Identifier: MIT
"""What every end-to-end test may ask for.

Programs:  vhdx, qemu_img (both: callable -> Result), qemu_io (commands for it), tool (path of any other program, or skip)
Images:    real_images, real_image_sha256
Needs:     need_root, need_ordinary_user, need_fuse, need_loop (skip with the reason where the machine cannot)
Places:    source_root, build_root, library

A test that cannot run here skips and says what is missing; it never passes silently.  "meson test" sets VHDX,
VHDX_LIB, VHDX_BUILD_ROOT and VHDX_SANITIZE; by hand, "pytest tests/e2e" takes the build in build/.
"""
import bz2
import ctypes
import gzip
import json
import lzma
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

# What runs in the background or under nohup ignores signals, and so would every program under test: begin as usual.
for _number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(_number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def _keep_mounts_to_ourselves():
    """Whoever runs programs with mounts of their own (unshare), as other tests do, gives them a copy of each mount there is, in
    which it lives on when it is unmounted here; its server and its loop device do, too.  So no test mounts anything where others
    see it."""
    clone_newns, ms_rec, ms_slave = 0x20000, 0x4000, 0x80000
    libc = ctypes.CDLL(None)
    if os.geteuid() == 0 and libc.unshare(clone_newns) == 0:
        libc.mount(b"none", b"/", None, ctypes.c_ulong(ms_rec | ms_slave), None)


_keep_mounts_to_ourselves()
SOURCE_ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD_ROOT = pathlib.Path(os.environ.get("VHDX_BUILD_ROOT", SOURCE_ROOT / "build"))

sys.path.insert(0, str(SOURCE_ROOT / "tests" / "support"))


# ---- running programs ------------------------------------------------------------------------------------

class Result:
    """What a program did: rc, out and err (text), out_bytes (exact), json().  A signal shows as a negative rc."""

    def __init__(self, argv, rc, out_bytes, err_bytes):
        self.argv = argv
        self.rc = rc
        self.out_bytes = out_bytes
        self.out = out_bytes.decode("utf-8", "backslashreplace")
        self.err = err_bytes.decode("utf-8", "backslashreplace")

    def json(self):
        try:
            return json.loads(self.out)
        except json.JSONDecodeError as error:
            pytest.fail(f"stdout is not JSON ({error}):\n{self.describe()}", pytrace=False)

    def expect(self, rc):
        """Fail the test unless the exit status is rc; returns self, so that calls can be chained."""
        if self.rc != rc:
            pytest.fail(f"exit status {self.rc}, expected {rc}:\n{self.describe()}", pytrace=False)
        return self

    def describe(self):
        out = self.out if len(self.out) <= 4000 else self.out[:4000] + f"... ({len(self.out)} characters)"
        return f"$ {shlex.join(self.argv)}\nexit status {self.rc}\n-- stdout --\n{out}\n-- stderr --\n{self.err}"

    def __repr__(self):  # what pytest shows when "assert result.rc == 0" fails
        return f"<{shlex.join(self.argv)} -> {self.rc}, stderr {self.err.strip()!r}>"


def run_program(argv, *, rc=None, stdin=b"", timeout=300, cwd=None, env=None):
    """Run argv to its end.  rc: the exit status that the test expects, None for any.  env adds to the environment."""
    argv = [os.fspath(arg) if isinstance(arg, os.PathLike) else str(arg) for arg in argv]
    try:
        done = subprocess.run(argv, input=stdin.encode() if isinstance(stdin, str) else stdin, capture_output=True,
                              timeout=timeout, cwd=cwd, env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
                              check=False)
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"still running after {timeout} s:\n$ {shlex.join(argv)}\n{(late.stderr or b'').decode()}",
                    pytrace=False)
    result = Result(argv, done.returncode, done.stdout, done.stderr)
    print(result.describe())  # pytest shows it if the test fails
    return result if rc is None else result.expect(rc)


@pytest.fixture(scope="session")
def vhdx_path():
    """Path of the vhdx command under test."""
    path = pathlib.Path(os.environ.get("VHDX", BUILD_ROOT / "tools" / "vhdx"))
    if not os.access(path, os.X_OK):
        pytest.fail(f"{path} is not there: build it, or set VHDX to the command to test", pytrace=False)
    return path


@pytest.fixture(scope="session")
def vhdx(vhdx_path):
    """vhdx("info", path, "--json") -> Result with any exit status; vhdx(..., rc=0) also demands that status.
    Further keywords: stdin, timeout, cwd, env (as run_program)."""
    def run(*args, **keywords):
        return run_program([vhdx_path, *args], **keywords)
    return run


def find_tool(name):
    """Path of a program; also where Debian keeps administrators' programs, which are not on everybody's PATH."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")


@pytest.fixture(scope="session")
def tool():
    """tool("mkfs.ext4") -> its path; skips the test if it is not installed."""
    def find(name):
        path = find_tool(name)
        if path is None:
            pytest.skip(f"{name} is not installed")
        return path
    return find


@pytest.fixture(scope="session")
def qemu_img():
    """qemu_img("create", ...) -> Result; unlike vhdx() it demands exit status 0 unless rc= says otherwise (rc=None:
    any), because here it is a tool to work with and not what is tested."""
    path = find_tool("qemu-img")
    if path is None:
        pytest.skip("qemu-img is not installed (Debian package qemu-utils)")

    def run(*args, rc=0, **keywords):
        return run_program([path, *args], rc=rc, **keywords)
    return run


@pytest.fixture(scope="session")
def qemu_io(tool):
    """qemu_io(image, ["read 0 1"], "-r", rc=0): commands of qemu-io, one after the other."""
    path = tool("qemu-io")

    def run(image, lines, *options, rc=0):
        commands = [word for line in lines for word in ("-c", line)]
        return run_program([path, "-f", "vhdx", *options, *commands, image], rc=rc)
    return run


# ---- images ----------------------------------------------------------------------------------------------

_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def _real_images_folder():
    folder = os.environ.get("VHDX_REAL_IMAGES")
    if not folder:
        pytest.skip("VHDX_REAL_IMAGES is not set: no folder with images made by Windows")
    if not os.path.isdir(folder):
        pytest.skip(f"VHDX_REAL_IMAGES={folder} is not a folder")
    return pathlib.Path(folder)


def _unpack(source, target):
    opener = _OPENERS.get(source.suffix, open)
    with opener(source, "rb") as packed, open(target, "wb") as plain:
        while piece := packed.read(1 << 20):
            if piece.count(0) == len(piece):
                plain.seek(len(piece), os.SEEK_CUR)  # keep the copy sparse
            else:
                plain.write(piece)
        plain.truncate()


@pytest.fixture(scope="session")
def real_images(tmp_path_factory):
    """Images made by Windows, from the folder VHDX_REAL_IMAGES: a dict from name ("btrfs.vhdx") to the path of an
    unpacked copy.  Shared by all tests of a file: copy before changing one."""
    folder = _real_images_folder()
    unpacked = tmp_path_factory.mktemp("real-images")
    images = {}
    for source in sorted(folder.iterdir()):
        name = source.name.removesuffix(source.suffix) if source.suffix in _OPENERS else source.name
        if name.endswith((".vhdx", ".avhdx")):
            images[name] = unpacked / name
            _unpack(source, images[name])
    if not images:
        pytest.skip(f"VHDX_REAL_IMAGES={folder} holds no .vhdx files")
    return images


@pytest.fixture(scope="session")
def real_image_sha256():
    """Name of a real image -> SHA-256 of its virtual disk's content, as the table in that folder's README.md says."""
    readme = _real_images_folder() / "README.md"
    if not readme.is_file():
        pytest.skip(f"{readme} is missing: nothing says what the images hold")
    sums = {}
    for line in readme.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\|\s*([^|\s]+)\s*\|.*\|\s*([0-9a-f]{64})\s*\|", line)
        if match:
            name = pathlib.PurePath(match.group(1))
            sums[name.stem if name.suffix in _OPENERS else name.name] = match.group(2)
    return sums


# ---- what the machine must be able to do -----------------------------------------------------------------

@pytest.fixture(scope="session")
def need_root():
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="session")
def need_ordinary_user():
    if os.geteuid() == 0:
        pytest.skip("needs an ordinary user: root may read everything")


@pytest.fixture(scope="session")
def need_fuse():
    if os.environ.get("VHDX_FUSE", "1") != "1":
        pytest.skip("needs FUSE: the build has no mount command (libfuse3 and libblkid were not found)")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs FUSE: /dev/fuse is missing or not accessible")
    if find_tool("fusermount3") is None:
        pytest.skip("needs FUSE: fusermount3 is not installed (Debian package fuse3)")


@pytest.fixture(scope="session")
def need_loop(need_root):
    losetup = find_tool("losetup")
    if losetup is None:
        pytest.skip("needs loop devices: losetup is not installed (Debian package mount)")
    free = subprocess.run([losetup, "--find"], capture_output=True, text=True, check=False)
    if free.returncode != 0:
        pytest.skip(f"needs loop devices: {free.stderr.strip()}")


@pytest.fixture(scope="session")
def need_unshare(need_root):
    """Mounts for one program alone."""
    unshare = find_tool("unshare")
    if unshare is None:
        pytest.skip("needs mounts of its own: unshare is not installed (Debian package util-linux)")
    tried = subprocess.run([unshare, "--mount", "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"needs mounts of its own: {tried.stderr.strip()}")


# ---- places ----------------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def source_root():
    return SOURCE_ROOT


@pytest.fixture(scope="session")
def build_root():
    if not (BUILD_ROOT / "meson-info").is_dir():
        pytest.skip(f"{BUILD_ROOT} is not a Meson build folder (set VHDX_BUILD_ROOT)")
    return BUILD_ROOT


@pytest.fixture(scope="session")
def library(build_root):
    """The shared library that was built."""
    path = pathlib.Path(os.environ.get("VHDX_LIB", build_root / "lib" / "libvhdx.so"))
    if not path.exists():
        pytest.skip(f"{path} is not there: the build has no shared library")
    return path


@pytest.fixture(scope="session")
def sanitizer():
    """Which sanitizers the build has ("none", "address,undefined", "thread"): memory limits do not work with them."""
    return os.environ.get("VHDX_SANITIZE", "none")
