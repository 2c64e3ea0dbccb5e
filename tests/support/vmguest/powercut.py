# SPDX-License-Identifier: MIT
"""What an image could be after a power cut, from powercut.c's record of what was done to it.

Durable is every step that had returned before some flush began that has completed.  Each later one by itself is there, is
not, or is there in part, by sectors.  As in powerloss.c; but no order is changed and only what a guest really did comes up.
"""
import ctypes
import os
import struct

STEP_WRITE, STEP_TRUNCATE, STEP_FALLOCATE, STEP_FLUSH = range(1, 5)
SECTOR_BYTES = 512
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
_HEADER = struct.Struct("<5Q")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def environment(library, image, log):
    return {"LD_PRELOAD": os.fspath(library), "VHDX_POWERCUT_IMAGE": os.fspath(image), "VHDX_POWERCUT_LOG": os.fspath(log)}


def read_log(log):
    """[(kind, offset, bytes, mode, covers, data)]; a record that is not complete belongs to a call that never returned."""
    steps = []
    with open(log, "rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            kind, offset, length, mode, covers = _HEADER.unpack(header)
            data = file.read(length) if kind == STEP_WRITE else b""
            if kind == STEP_WRITE and len(data) < length:
                break
            steps.append((kind, offset, length, mode, covers, data))
    return steps


def nr_durable(steps):
    return max([step[4] for step in steps if step[0] == STEP_FLUSH], default=0)


def without_flushes(steps):
    """The same, done by a server that flushes nothing."""
    return [step for step in steps if step[0] != STEP_FLUSH]


def _fallocate(fd, mode, offset, length):
    if _libc.fallocate64(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def _apply(fd, step, start=None, length=None):
    kind, offset, whole, mode, _, data = step
    start = offset if start is None else start
    length = whole if length is None else length
    if kind == STEP_WRITE:
        os.pwrite(fd, data[start - offset:start - offset + length], start)
    elif kind == STEP_TRUNCATE:
        os.ftruncate(fd, offset)
    elif kind == STEP_FALLOCATE:
        _fallocate(fd, mode, start, length)


def _tear(fd, step, random):
    """About half of its sectors; many sectors in longer pieces."""
    offset, length = step[1], step[2]
    unit = SECTOR_BYTES
    while length // unit > 1024:
        unit *= 2
    start = offset
    while start < offset + length:
        end = min((start // unit + 1) * unit, offset + length)
        if random.randrange(2):
            _apply(fd, step, start, end - start)
        start = end


def cut(image, steps, random, fate_of_all="any"):
    """Make of image, a copy from before the first step, what could be found after a cut behind the last one.  fate_of_all: of the
    steps that are not durable: "keep", "drop", "tear", each its own (None), or any of these."""
    durable = nr_durable(steps)
    if fate_of_all == "any":
        fate_of_all = random.choice(("keep", "drop", "tear", None, None, None))
    fd = os.open(image, os.O_RDWR)
    try:
        for step in steps[:durable]:
            _apply(fd, step)
        for step in steps[durable:]:
            fate = fate_of_all or random.choice(("keep", "drop", "tear"))
            if fate == "keep" or fate == "tear" and step[0] == STEP_TRUNCATE and random.randrange(2):
                _apply(fd, step)
            elif fate == "tear" and step[0] in (STEP_WRITE, STEP_FALLOCATE):
                _tear(fd, step, random)
    finally:
        os.close(fd)
    print(f"{len(steps)} steps, {durable} of them durable, fate of the others: {fate_of_all or 'each its own'}")
