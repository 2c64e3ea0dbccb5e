# SPDX-License-Identifier: MIT
"""Long commands: how they show their progress, and how signals stop them."""
import json
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from cli_support import arguments_for, dynamic, run_on_terminal
from conftest import find_tool
from vhdxbuild import ZERO, Image, MiB, Pattern, TiB


# ---- progress

BAR = re.compile(r"\r\x1b\[K\[#* *\] +\d+ %, [\d.]+ \w+ of 64 MiB, [\d.]+ \w+/s")


@pytest.mark.parametrize("command", ["convert", "compare"])
def test_progress_bar_on_a_terminal(vhdx_path, command, dynamic, tmp_path):
    rc, err, _ = run_on_terminal([vhdx_path, command, "-p", *arguments_for(command, dynamic.path, tmp_path)])
    assert rc == 0
    assert BAR.search(err) and "100 %, 64 MiB of 64 MiB" in err and err.endswith("\n")
    assert max(len(line) for line in re.split(r"[\r\n]", err.replace("\x1b[K", ""))) < 100


def test_progress_bar_on_a_narrow_terminal(vhdx_path, dynamic, tmp_path):
    rc, err, _ = run_on_terminal([vhdx_path, "convert", "-p", dynamic.path, tmp_path / "out.raw"], columns=20)
    assert rc == 0 and "100 %" in err
    assert max(len(line) for line in re.split(r"[\r\n]", err.replace("\x1b[K", ""))) < 20


def test_progress_of_check(vhdx_path, dynamic):
    rc, err, out = run_on_terminal([vhdx_path, "check", "-p", dynamic.path])
    assert rc == 0 and "100 %" in err and "No errors" in out


def test_short_commands_show_no_progress_unasked(vhdx_path, dynamic, tmp_path):
    assert run_on_terminal([vhdx_path, "convert", dynamic.path, tmp_path / "out.raw"])[:2] == (0, "")


def test_progress_without_a_terminal_is_plain_lines(vhdx, dynamic, tmp_path):
    err = vhdx("convert", "--progress", dynamic.path, tmp_path / "out.raw", rc=0).err
    assert re.fullmatch(r"(vhdx convert: \d+ %, .* of 64 MiB, [\d.]+ \w+/s(, .* left)?\n)+", err)
    assert "\nvhdx convert: 100 %, 64 MiB of 64 MiB" in "\n" + err
    assert vhdx("convert", dynamic.path, tmp_path / "out2.raw", rc=0).err == ""


def test_progress_on_a_dumb_terminal_is_plain_lines(vhdx_path, dynamic, tmp_path):
    rc, err, _ = run_on_terminal([vhdx_path, "convert", "-p", dynamic.path, tmp_path / "out.raw"],
                                 environment={"TERM": "dumb"})
    assert rc == 0 and "\x1b" not in err and "100 %" in err


def test_quiet_silences_progress(vhdx_path, dynamic, tmp_path):
    assert run_on_terminal([vhdx_path, "convert", "-p", "-q", dynamic.path, tmp_path / "out.raw"])[:2] == (0, "")


# ---- signals

@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """An image full of data, so that copying it takes many calls."""
    image = Image(32 * MiB, block_size=2 * MiB)
    image.write(0, 32 * MiB, Pattern(5))
    return image.build(tmp_path_factory.mktemp("filled") / "filled.vhdx")


WRITES, READS = "pwrite64,pwritev,pwritev2,copy_file_range", "pread64,preadv,preadv2"


class Slowed:
    """The command under strace, which delays its writes of files, or other calls, by so many milliseconds each: the first one
    and all that follow it, or those from another one on."""

    def __init__(self, vhdx_path, arguments, milliseconds, calls=WRITES, first=1, ignore=None):
        argv = [find_tool("strace"), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e",
                f"inject={calls}:delay_enter={milliseconds * 1000}:when={first}+", vhdx_path, *arguments]
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # which needs ptrace for itself
        self.process = subprocess.Popen([str(arg) for arg in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env=environment, preexec_fn=lambda: ignore and signal.signal(ignore, signal.SIG_IGN))
        self.pid = self.wait_for(self.child)

    @staticmethod
    def wait_for(what):
        for _ in range(3000):
            found = what()
            if found:
                return found
            time.sleep(0.01)
        pytest.fail("waited in vain for 30 s")

    def child(self):
        """The command's process, once it runs the command and not a copy of strace."""
        tracer = self.process.pid
        for pid in pathlib.Path(f"/proc/{tracer}/task/{tracer}/children").read_text().split():
            try:
                if os.readlink(f"/proc/{pid}/exe").endswith("/vhdx"):
                    return int(pid)
            except FileNotFoundError:  # strace tries out what it can with short-lived processes
                pass
        return None

    def reads_at(self):
        """The file offset of the pread() that the command is in, or -1."""
        call = pathlib.Path(f"/proc/{self.pid}/syscall").read_text().split()
        return int(call[4], 16) if call[0] in ("17", "67") else -1  # its number on x86-64, and on arm64 and riscv64

    def end(self):
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out.decode(), err.decode()


@pytest.fixture
def slowed(vhdx_path):
    strace = find_tool("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    if subprocess.run([strace, "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("strace may not trace here")
    processes = []

    def start(*arguments, milliseconds=50, **keywords):
        processes.append(Slowed(vhdx_path, arguments, milliseconds, **keywords))
        return processes[-1]
    yield start
    for process in processes:
        if process.process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.process.communicate()


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def under_way(run):
    """The command has opened a file for reading and writing, and something is stored in that."""
    def looked_at():
        for link in pathlib.Path(f"/proc/{run.pid}/fd").iterdir():
            try:
                info = (link.parent.parent / "fdinfo" / link.name).read_text()
                if int(re.search(r"flags:\s*([0-7]+)", info)[1], 8) & 3 == os.O_RDWR and link.stat().st_blocks:
                    return True
            except FileNotFoundError:
                pass
        return False
    run.wait_for(looked_at)


@pytest.mark.parametrize("number, status", SIGNALS)
def test_a_signal_stops_convert_before_anything_has_the_name(slowed, filled, tmp_path, number, status):
    target = tmp_path / "out.raw"
    run = slowed("convert", "--reflink=never", "-m", "2", filled.path, target)
    under_way(run)
    assert not target.exists()
    os.kill(run.pid, number)
    rc, _, err = run.end()
    assert rc == status and not list(tmp_path.iterdir())
    assert err == f"vhdx convert: {target}: stopped by a signal; nothing was created\n"


def test_killed_convert_leaves_nothing_that_looks_like_a_copy(slowed, filled, tmp_path):
    target = tmp_path / "out.raw"
    run = slowed("convert", "--reflink=never", filled.path, target)
    under_way(run)
    os.kill(run.pid, signal.SIGKILL)
    run.end()
    assert not target.exists()
    assert all(name.name.endswith(".tmp") for name in tmp_path.iterdir())   # only where no file is without a name


def test_a_signal_leaves_an_overwritten_file_empty(slowed, filled, tmp_path):
    target = tmp_path / "out.raw"
    target.write_bytes(b"old")
    run = slowed("convert", "--reflink=never", "--force", filled.path, target)
    run.wait_for(lambda: target.stat().st_size == 32 * MiB and target.stat().st_blocks)
    os.kill(run.pid, signal.SIGINT)
    rc, _, err = run.end()
    assert rc == 130 and target.read_bytes() == b"" and "left empty" in err


@pytest.mark.parametrize("option", [None, "--force"])
def test_a_second_signal_does_not_wait_and_cleans_up_too(slowed, filled, tmp_path, option):
    target = tmp_path / "out.raw"
    if option:
        target.write_bytes(b"old")
    run = slowed("convert", "--reflink=never", "-m", "1", *([option] if option else []), filled.path, target, milliseconds=500)
    if option:
        run.wait_for(lambda: target.stat().st_size == 32 * MiB)
    else:
        under_way(run)
    os.kill(run.pid, signal.SIGSTOP)  # so that both come before the next step
    os.kill(run.pid, signal.SIGINT)
    os.kill(run.pid, signal.SIGTERM)
    os.kill(run.pid, signal.SIGCONT)
    rc, _, err = run.end()
    assert rc in (130, 143) and err == ""
    assert target.read_bytes() == b"" if option else not target.exists()


def test_ignored_signals_stay_ignored(slowed, filled, tmp_path):
    target = tmp_path / "out.raw"
    run = slowed("convert", "--reflink=never", filled.path, target, milliseconds=2, ignore=signal.SIGHUP)
    under_way(run)
    os.kill(run.pid, signal.SIGHUP)
    assert run.end()[0] == 0 and filled.first_difference(target) is None


@pytest.mark.parametrize("number, status", SIGNALS)
def test_a_signal_stops_convert_that_waits_for_its_reader(vhdx_path, filled, number, status):
    process = subprocess.Popen([vhdx_path, "convert", filled.path, "-"], stdout=subprocess.PIPE)
    assert process.stdout.read(1)  # it is under way, and will wait as soon as the pipe is full
    time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(timeout=30) == status
    process.stdout.close()


def test_a_signal_stops_map_that_waits_for_its_reader(vhdx_path, tmp_path):
    image = Image(64 * TiB, block_size=MiB)
    for block in range(0, 20_000, 2):
        image.set_block(block, ZERO)
    process = subprocess.Popen([vhdx_path, "map", "--json", image.build(tmp_path / "x.vhdx").path],
                               stdout=subprocess.PIPE)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    process.stdout.close()


def test_a_signal_stops_check_and_its_document_says_so(slowed, tmp_path):
    image = Image(300_000 * MiB, block_size=MiB, default_state=ZERO)
    run = slowed("check", "--json", image.build(tmp_path / "x.vhdx").path, calls=READS, first=20)
    run.wait_for(lambda: run.reads_at() > 3 * MiB)  # among the block table
    os.kill(run.pid, signal.SIGINT)
    rc, out, err = run.end()
    assert rc == 130 and err.count("\n") == 1
    assert json.loads(out)["check-errors"] == 1  # Windows' stale metadata entry was found before


def test_a_signal_stops_compare(slowed, filled, tmp_path):
    other = tmp_path / "other.raw"
    filled.write_raw(other)
    run = slowed("compare", "-F", "raw", filled.path, other, calls=READS, first=20)
    run.wait_for(lambda: run.reads_at() > 4 * MiB)  # among the blocks
    os.kill(run.pid, signal.SIGINT)
    rc, out, err = run.end()
    assert (rc, out) == (130, "") and err.count("\n") == 1
