# SPDX-License-Identifier: MIT
"""Waiting for what other programs bring about, on a machine that may let any of them stand still for seconds."""
import pathlib
import re
import time

import pytest

SECONDS = 150  # ends tests that have failed; what is right takes far less, however slow the machine


def wait_until(condition, what, seconds=SECONDS):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"after {seconds} s still not: {what}", pytrace=False)
        time.sleep(0.01)


def status_of(pid):
    """/proc/PID/status; "" when there is no such process any more."""
    try:
        return pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):  # the latter if it goes just now
        return ""


def is_gone(pid):
    """The process has ended, as far as files and locks go: its parent may not have looked yet.  While a thread of it is left
    so are they, even if the first one is a zombie already."""
    status = status_of(pid)
    return not status or bool(re.search(r"^State:\s+[ZX]", status, re.MULTILINE) and re.search(r"^Threads:\s+[01]$", status, re.MULTILINE))


def pending_signals(pid):
    """Those that the process has been sent and not taken yet."""
    mask = int((re.findall(r"^ShdPnd:\s+([0-9a-f]+)$", status_of(pid), re.MULTILINE) or ["0"])[0], 16)
    return {number for number in range(1, 65) if mask >> number - 1 & 1}


def is_listening(path):
    """Somebody accepts connections on that Unix socket, whose name is there a moment before.  It is only looked at: some servers
    count their clients."""
    listening = pathlib.Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace")
    # flags 00010000: it accepts connections
    return bool(re.search(rf" 00010000 0001 01 \s*\d+ {re.escape(str(path))}$", listening, re.MULTILINE))
