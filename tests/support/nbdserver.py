# SPDX-License-Identifier: MIT
"""NBD servers for tests: nbdkit with its plugins and filters, and qemu-nbd, each on a socket of its own."""
import contextlib
import pathlib
import re
import subprocess
import tempfile

import pytest

from conftest import find_tool
from waiting import is_listening, wait_until


class Server:
    """A running server: uri, process, and what its log filter wrote."""

    def __init__(self, process, path, log):
        self.process = process
        self.socket = path
        self.log_path = log
        self.uri = f"nbd+unix:///?socket={path}"

    def export(self, name):
        return f"nbd+unix:///{name}?socket={self.socket}"

    def requests(self, kind):
        """(offset, count) of each request of a kind, Read, Write, Zero, Flush ..., by nbdkit's log filter."""
        found = re.findall(rf" {kind} id=\d+(?: offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+))?", self.log_path.read_text())
        return [(int(offset or "0", 16), int(count or "0", 16)) for offset, count in found]

    def bytes_of(self, kind):
        return sum(count for _, count in self.requests(kind))


def _wait_until_listening(process, is_ready):
    def ready():
        if process.poll() is not None:
            pytest.fail(f"the NBD server ended with status {process.returncode}")
        return is_ready()
    wait_until(ready, "the NBD server listens")


@contextlib.contextmanager
def _running(argv, is_ready):
    with subprocess.Popen([str(word) for word in argv]) as process:
        try:
            _wait_until_listening(process, is_ready)
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def nbdkit(*words, options=(), filters=(), log=True):
    """nbdkit with options, filters (outermost first), and the words plugin and its parameters."""
    path = find_tool("nbdkit") or pytest.skip("nbdkit is not installed")
    with tempfile.TemporaryDirectory(prefix="nbd-") as folder:  # a short path: a socket's name holds 107 bytes
        folder = pathlib.Path(folder)
        # The log sees what arrives, before any other filter changes it.
        logging = ["--filter=log"] if log else []
        parameters = [f"logfile={folder}/log"] if log else []
        argv = [path, "-f", "-U", folder / "socket", "-P", folder / "ready", *options, *logging,
                *(f"--filter={name}" for name in filters), *words, *parameters]
        with _running(argv, (folder / "ready").exists) as process:  # written when it listens
            yield Server(process, folder / "socket", folder / "log")


@contextlib.contextmanager
def qemu_nbd(*words):
    path = find_tool("qemu-nbd") or pytest.skip("qemu-nbd is not installed (Debian package qemu-utils)")
    with tempfile.TemporaryDirectory(prefix="nbd-") as folder:
        folder = pathlib.Path(folder)
        with _running([path, "-k", folder / "socket", *words], lambda: is_listening(folder / "socket")) as process:
            yield Server(process, folder / "socket", None)
