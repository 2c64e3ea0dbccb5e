# SPDX-License-Identifier: MIT
"""Where bytes come from (Pattern, Fill, Raw), and Store, a sparse byte space made of such sources.

A Store is how the builder thinks of a file or of a guest disk: only what is not zero is recorded, and
patterns are generated when they are read, so nothing here costs memory in proportion to an image.
"""
import bisect
import functools
import hashlib
import struct

UNIT = 512
PIECE_UNITS = 128   # of patterns that are kept, since tests build and compare the same ones again and again
_UNIT_HEAD = struct.Struct("<4sIQ")
_UNIT_MAGIC = b"vPAT"


class Pattern:
    """Recognisable bytes, a function of (seed, guest offset) alone.

    Each 512-byte unit begins with b"vPAT", the seed (u32) and the unit number (u64), so a sector that turns up
    in the wrong place tells where it belongs (see describe()); the other 496 bytes are hash output.
    """

    def __init__(self, seed):
        self.seed = seed & 0xFFFFFFFF

    def __repr__(self):
        return f"Pattern({self.seed})"

    def origin(self, guest_offset):
        return guest_offset

    def unit(self, number):
        head = _UNIT_HEAD.pack(_UNIT_MAGIC, self.seed, number)
        return head + hashlib.shake_128(head).digest(UNIT - len(head))

    def read(self, position, length):
        first = position // UNIT
        end = -(-(position + length) // UNIT)
        if end - first < PIECE_UNITS // 2:
            data = self.units(first, end)
        else:
            first = first // PIECE_UNITS * PIECE_UNITS
            data = b"".join([_pattern_piece(self.seed, start) for start in range(first, end, PIECE_UNITS)])
        skip = position - first * UNIT
        return data[skip:skip + length]

    def units(self, first, end):
        return b"".join([self.unit(number) for number in range(first, end)])


@functools.lru_cache(maxsize=512)
def _pattern_piece(seed, first):
    return Pattern(seed).units(first, first + PIECE_UNITS)


class Fill:
    """One byte value, repeated."""

    def __init__(self, byte):
        self.byte = byte

    def __repr__(self):
        return f"Fill({self.byte:#x})"

    def origin(self, guest_offset):
        return 0

    def read(self, position, length):
        return bytes([self.byte]) * length


class Raw:
    """Given bytes; reading past their end gives zeros."""

    def __init__(self, data):
        self.data = bytes(data)

    def __repr__(self):
        return f"Raw({len(self.data)} bytes)"

    def origin(self, guest_offset):
        return 0

    def read(self, position, length):
        return self.data[position:position + length].ljust(length, b"\0")


class Computed:
    """Bytes from a function (position, length) -> bytes; used for tables too large to hold."""

    def __init__(self, function):
        self.function = function

    def origin(self, guest_offset):
        return 0

    def read(self, position, length):
        return self.function(position, length)


def as_content(value):
    """Contents as test authors write them: a content object, bytes, or an int for Fill."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Raw(value)
    if isinstance(value, int):
        return Fill(value)
    return value


def describe(data):
    """What a 512-byte unit is, for messages of failed comparisons."""
    data = bytes(data)
    if not data.strip(b"\0"):
        return "zeros"
    magic, seed, number = _UNIT_HEAD.unpack_from(data.ljust(16, b"\0"))
    if magic == _UNIT_MAGIC:
        intact = data[:UNIT] == Pattern(seed).unit(number)[:len(data)]
        return f"Pattern({seed}) of guest offset {number * UNIT:#x}{'' if intact else ' (altered)'}"
    return f"bytes {data[:16].hex(' ')}..."


class Store:
    """A sparse byte space: segments (start, end, content, position in the content), disjoint and sorted."""

    def __init__(self):
        self._starts = []
        self._segments = []

    def put(self, start, length, content, position=0):
        if length <= 0:
            return
        self.clear(start, start + length)
        if isinstance(content, Fill) and content.byte == 0:
            return
        index = bisect.bisect_left(self._starts, start)
        self._starts.insert(index, start)
        self._segments.insert(index, (start, start + length, content, position))

    def put_bytes(self, start, data):
        self.put(start, len(data), Raw(data))

    def clear(self, start, end):
        """Makes [start, end) zero."""
        low = bisect.bisect_right(self._starts, start) - 1
        if low < 0 or self._segments[low][1] <= start:
            low += 1
        high = low
        keep = []
        while high < len(self._segments) and self._segments[high][0] < end:
            first, last, content, position = self._segments[high]
            if first < start:
                keep.append((first, start, content, position))
            if last > end:
                keep.append((end, last, content, position + end - first))
            high += 1
        self._segments[low:high] = keep
        self._starts[low:high] = [segment[0] for segment in keep]

    def overlay(self, other):
        """Writes everything of another store over this one."""
        for start, end, content, position in other.segments():
            self.put(start, end - start, content, position)

    def copy(self):
        result = Store()
        result._starts = list(self._starts)
        result._segments = list(self._segments)
        return result

    def segments(self, start=0, end=None):
        """Segments that touch [start, end), clipped to it."""
        index = max(bisect.bisect_right(self._starts, start) - 1, 0)
        while index < len(self._segments):
            first, last, content, position = self._segments[index]
            index += 1
            if end is not None and first >= end:
                return
            if last <= start:
                continue
            low = max(first, start)
            high = last if end is None else min(last, end)
            yield low, high, content, position + low - first

    def read(self, start, length):
        result = bytearray(length)
        for low, high, content, position in self.segments(start, start + length):
            result[low - start:high - start] = content.read(position, high - low)
        return bytes(result)

    def end(self):
        return self._segments[-1][1] if self._segments else 0
