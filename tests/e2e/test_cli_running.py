# SPDX-License-Identifier: MIT
"""Long commands: how they show their progress, and how signals stop them."""
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import termios
import time

import pytest

from cli_support import arguments_for, dynamic, find_strace, run_on_terminal
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
    """Short is what takes less than half a second, which no machine promises."""
    start = time.monotonic()
    rc, err, _ = run_on_terminal([vhdx_path, "convert", dynamic.path, tmp_path / "out.raw"])
    was_short = time.monotonic() - start < 0.5
    assert rc == 0 and (err == "" or not was_short)


def test_progress_without_a_terminal_is_plain_lines(vhdx, dynamic, tmp_path):
    err = vhdx("convert", "--progress", dynamic.path, tmp_path / "out.raw", rc=0).err
    assert re.fullmatch(r"(vhdx convert: \d+ %, .* of 64 MiB, [\d.]+ \w+/s(, .* left)?\n)+", err)
    assert "\nvhdx convert: 100 %, 64 MiB of 64 MiB" in "\n" + err
    assert vhdx("convert", dynamic.path, tmp_path / "out2.raw", rc=0).err == ""


def test_progress_of_nothing_is_only_complete(vhdx, tmp_path):
    (tmp_path / "empty.raw").write_bytes(b"")
    err = vhdx("convert", "--progress", "-f", "raw", tmp_path / "empty.raw", tmp_path / "out.raw", rc=0).err
    assert err == "vhdx convert: 100 %\n"


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


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture
def interrupted(vhdx_path, tool, tmp_path_factory):
    """interrupted(number, call, when, *arguments) -> exit status, stdout, stderr, and the calls as strace shows them.  The
    command gets the signal in its so many-th call of that name, so nothing depends on who is quick.  Each thread's calls are
    counted by themselves: -m 1 where a second signal would be one too many."""
    strace = find_strace(tool)
    trace = tmp_path_factory.mktemp("trace") / "calls"

    def run(number, call, when, *arguments, ignore=None):
        words = [strace, "-f", "-qq", "-o", trace, "-e", f"trace={call}", "-e", f"inject={call}:signal={number}:when={when}"]
        done = subprocess.run([*words, vhdx_path, *arguments], capture_output=True, text=True, timeout=300, check=False,
                              preexec_fn=lambda: ignore and signal.signal(ignore, signal.SIG_IGN))
        return done.returncode, done.stdout, done.stderr, trace.read_text()
    return run


def wait_until(process, condition):
    """While the process runs."""
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)


@pytest.mark.parametrize("number, status", SIGNALS)
def test_a_signal_stops_convert_before_anything_has_the_name(interrupted, filled, tmp_path, number, status):
    target = tmp_path / "out.raw"
    rc, _, err, calls = interrupted(number, "pwrite64", 3, "convert", "--reflink=never", "-m", "1", filled.path, target)
    assert rc == status and not list(tmp_path.iterdir())
    assert err == f"vhdx convert: {target}: stopped by a signal; nothing was created\n"
    assert calls.count("pwrite64(") < 40  # of 128


def test_a_signal_stops_all_threads(vhdx_path, tool, tmp_path):
    """Each begins a piece of 4 MiB by waiting 3 s, so that there is far more left to do than time for it."""
    source, target, trace = [tmp_path / name for name in ("source.raw", "out.raw", "trace")]
    source.write_bytes(b"x" * (64 * MiB))
    words = [find_strace(tool), "-f", "-qq", "-o", trace, "-e", "trace=pwrite64", "-e",
             "inject=pwrite64:delay_enter=3000000:when=1+16", vhdx_path, "convert", "-f", "raw", "--reflink=never", "-m", "2",
             source, target]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(process, lambda: trace.exists() and re.search(r" = \d", trace.read_text()))
        assert not target.exists()
        os.kill(int(trace.read_text().split()[0]), signal.SIGTERM)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 143 and not target.exists()
    assert err.decode() == f"vhdx convert: {target}: stopped by a signal; nothing was created\n"


def test_killed_convert_leaves_nothing_that_looks_like_a_copy(interrupted, filled, tmp_path):
    target = tmp_path / "out.raw"
    rc, *_ = interrupted(signal.SIGKILL, "pwrite64", 3, "convert", "--reflink=never", filled.path, target)
    assert rc in (-signal.SIGKILL, 128 + signal.SIGKILL) and not target.exists()
    assert all(name.name.endswith(".tmp") for name in tmp_path.iterdir())   # only where no file is without a name


def test_a_signal_leaves_an_overwritten_file_empty(interrupted, filled, tmp_path):
    target = tmp_path / "out.raw"
    target.write_bytes(b"old")
    rc, _, err, _ = interrupted(signal.SIGINT, "pwrite64", 3, "convert", "--reflink=never", "-m", "1", "--force", filled.path,
                                target)
    assert rc == 130 and target.read_bytes() == b"" and "left empty" in err


@pytest.mark.parametrize("option", [[], ["--force"]])
def test_a_second_signal_does_not_wait_and_cleans_up_too(vhdx_path, tool, filled, tmp_path, option):
    """Both come while it is stopped, so before its next step."""
    target, trace = tmp_path / "out.raw", tmp_path / "trace"
    if option:
        target.write_bytes(b"old")
    words = [find_strace(tool), "-f", "-qq", "-o", trace, "-e", "trace=pwrite64", "-e", "inject=pwrite64:signal=SIGSTOP:when=3",
             vhdx_path, "convert", "--reflink=never", "-m", "1", *option, filled.path, target]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(process, lambda: trace.exists() and "--- stopped by SIGSTOP ---" in trace.read_text())
        pid = int(trace.read_text().split()[0])
        assert target.stat().st_size == 32 * MiB if option else not target.exists()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            os.kill(pid, number)
        _, err = process.communicate(timeout=300)
    assert process.returncode in (130, 143) and err == b""
    assert target.read_bytes() == b"" if option else not target.exists()


def test_ignored_signals_stay_ignored(interrupted, filled, tmp_path):
    target = tmp_path / "out.raw"
    rc, _, _, calls = interrupted(signal.SIGHUP, "pwrite64", 3, "convert", "--reflink=never", filled.path, target,
                                  ignore=signal.SIGHUP)
    assert rc == 0 and "--- SIGHUP" in calls and filled.first_difference(target) is None


def is_full(pipe):
    """As full as it gets: a writer that brings more than there is room for waits for all of it."""
    waiting = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return waiting == fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


@pytest.mark.parametrize("number, status", SIGNALS)
def test_a_signal_stops_convert_that_waits_for_its_reader(vhdx_path, filled, number, status):
    process = subprocess.Popen([vhdx_path, "convert", filled.path, "-"], stdout=subprocess.PIPE)
    assert process.stdout.read(1)  # it is under way, and will wait as soon as the pipe is full
    wait_until(process, lambda: is_full(process.stdout))
    process.send_signal(number)
    assert process.wait(timeout=300) == status
    process.stdout.close()


def test_a_signal_stops_map_that_waits_for_its_reader(vhdx_path, tmp_path):
    image = Image(64 * TiB, block_size=MiB)
    for block in range(0, 20_000, 2):
        image.set_block(block, ZERO)
    process = subprocess.Popen([vhdx_path, "map", "--json", image.build(tmp_path / "x.vhdx").path],
                               stdout=subprocess.PIPE)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 143
    process.stdout.close()


def place_of_last_read(calls):
    return int(re.findall(r"pread64\(.*, (\d+)\) += \d+", calls)[-1])


def test_a_signal_stops_check_and_its_document_says_so(interrupted, tmp_path):
    path = Image(300_000 * MiB, block_size=MiB, default_state=ZERO).build(tmp_path / "x.vhdx").path
    rc, out, err, calls = interrupted(signal.SIGINT, "pread64", 30, "check", "--json", path)
    assert 3 * MiB < place_of_last_read(calls) < 5 * MiB # among the block table
    assert rc == 130 and err.count("\n") == 1
    assert json.loads(out)["check-errors"] == 1  # Windows' stale metadata entry was found before


def test_a_signal_stops_compare(interrupted, filled, tmp_path):
    other = tmp_path / "other.raw"
    filled.write_raw(other)
    rc, out, err, calls = interrupted(signal.SIGINT, "pread64", 50, "compare", "-F", "raw", filled.path, other)
    assert 2 * MiB < place_of_last_read(calls) < 30 * MiB # among the blocks
    assert (rc, out) == (130, "") and err.count("\n") == 1
