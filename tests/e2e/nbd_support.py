# SPDX-License-Identifier: MIT
"""What the tests of the NBD door share: nbdkit with the plugin that was built, "vhdx serve", and clients by libnbd."""
import contextlib
import os
import pathlib
import random
import signal
import subprocess

import pytest

from conftest import BUILD_ROOT, find_tool, run_program
from waiting import SECONDS, wait_until

PLUGIN = BUILD_ROOT / "plugins" / "nbdkit" / "nbdkit-vhdx-plugin.so"


@pytest.fixture(scope="session")
def plugin(sanitizer):
    """Path of the plugin; skips where nbdkit cannot load it."""
    if find_tool("nbdkit") is None:
        pytest.skip("nbdkit is not installed (Debian package nbdkit)")
    if not PLUGIN.exists():
        pytest.skip("the nbdkit plugin was not built (Debian package nbdkit-plugin-dev)")
    if sanitizer != "none":
        pytest.skip("nbdkit is built without sanitizers, so it cannot load a plugin that has them")
    return PLUGIN


@pytest.fixture(scope="session")
def nbd():
    return pytest.importorskip("nbd", reason="libnbd for Python is not installed (Debian package python3-libnbd)")


def percent(path):
    return str(path).replace("%", "%25").replace(" ", "%20").replace("?", "%3F")


def children(pid):
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                found += map(int, (task / "children").read_text().split())
    return found


class Serve:
    """A running "vhdx serve", or what other command line is given, which prints its URI first."""

    def __init__(self, argv, environment=None, uri=None, **keywords):
        self.process = subprocess.Popen([str(arg) for arg in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env={**os.environ, **(environment or {})}, **keywords)
        self.uri = uri or self.process.stdout.readline().decode().rstrip("\n")
        if not self.uri:
            _, err = self.process.communicate(timeout=SECONDS)
            pytest.fail(f"it did not begin to serve (status {self.process.returncode}): {err.decode()}", pytrace=False)

    @property
    def nbdkit(self):
        """Process ID of the server that vhdx runs."""
        return children(self.process.pid)[0]

    def end(self, signal_no=signal.SIGTERM):
        """Stop it; returns exit status and stderr."""
        self.process.send_signal(signal_no)
        return self.wait()

    def wait(self):
        out, err = self.process.communicate(timeout=SECONDS)
        assert out == b""
        return self.process.returncode, err.decode()

    def hang_up(self):
        pass  # vhdx serve does it

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.hang_up()
            self.process.terminate()
            try:
                self.process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()


def on_a_port(argv_on):
    """argv_on(port) -> a command line.  The port that it serves on, and the running Serve: none of those that the kernel gives to
    anybody who does not say which, and again if somebody has it nevertheless."""
    for port in random.sample(range(20000, 32768), 20):
        try:
            return port, Serve(argv_on(port))
        except pytest.fail.Exception as failure:
            if "in use" not in str(failure):
                raise
    return pytest.fail("others have all the ports", pytrace=False)


@pytest.fixture
def serve(vhdx_path, plugin, tmp_path):
    """serve(image, options...) -> a running Serve on a socket in tmp_path."""
    running = []

    def start(image, *options, **keywords):
        name = tmp_path / f"{len(running)}.sock"
        running.append(Serve([vhdx_path, "serve", "--socket", name, *options, image], **keywords))
        return running[-1]
    yield start
    for server in running:
        server.__exit__()


class Nbdkit(Serve):
    """nbdkit itself, with the plugin and such filters and parameters."""

    def __init__(self, plugin, socket, *arguments, filters=(), options=()):
        pidfile = f"{socket}.pid"  # appears when it serves
        argv = [find_tool("nbdkit"), "-f", "-U", socket, "-P", pidfile, *options, *(f"--filter={name}" for name in filters), plugin, *arguments]
        super().__init__(argv, uri=f"nbd+unix:///?socket={percent(socket)}")
        wait_until(lambda: os.path.exists(pidfile) or self.process.poll() is not None, "nbdkit")

    nbdkit = property(lambda self: self.process.pid)

    def hang_up(self):
        """nbdkit by itself, asked to end, waits for clients to do that."""
        for handle in CLIENTS.pop(self.uri, []):
            if handle.aio_is_ready():
                handle.shutdown()


@pytest.fixture
def nbdkit(plugin, tmp_path):
    """nbdkit(image, parameters..., filters=, options=) -> a running server."""
    running = []

    def start(*arguments, **keywords):
        running.append(Nbdkit(plugin, tmp_path / f"nbdkit-{len(running)}.sock", *arguments, **keywords))
        return running[-1]
    yield start
    for server in running:
        server.__exit__()


CLIENTS = {}  # by URI


def client(nbd, uri, *, contexts=True):
    """A connected handle."""
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    if contexts:
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(uri)
    CLIENTS.setdefault(uri, []).append(handle)
    return handle


def block_status(nbd, handle, offset=0, length=None, flags=0):
    """[(start, length, is zero)], neighbours merged, over a range in as many requests as it takes."""
    found, answers = [], []
    end = handle.get_size() if length is None else offset + length

    def take(context, where, entries, error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and error.value == 0
        answers.append(list(zip(entries[::2], entries[1::2])))
    while offset < end:
        answers.clear()
        handle.block_status(min(end - offset, 0xfffffe00), offset, take, flags)
        assert len(answers) == 1 and answers[0]
        for size, kind in answers[0]:
            assert kind in (0, nbd.STATE_HOLE | nbd.STATE_ZERO) and size > 0
            zero = kind != 0
            size = min(size, end - offset)
            if found and found[-1][2] == zero:
                found[-1] = (found[-1][0], found[-1][1] + size, zero)
            else:
                found.append((offset, size, zero))
            offset += size
    return found


def map_of(vhdx, image, *options):
    """The same from "vhdx map"."""
    found = []
    for e in vhdx("map", "--json", *options, image, rc=0).json():
        if found and found[-1][2] == e["zero"]:
            found[-1] = (found[-1][0], found[-1][1] + e["length"], e["zero"])
        else:
            found.append((e["start"], e["length"], e["zero"]))
    return found


def raw_content(vhdx, image, folder, *options):
    out = pathlib.Path(folder) / "as-read.raw"
    vhdx("convert", "-q", "--force", *options, image, out, rc=0)
    content = out.read_bytes()
    out.unlink()
    return content


def nbdinfo(tool, *arguments):
    return run_program([tool("nbdinfo"), *arguments], rc=0).out
