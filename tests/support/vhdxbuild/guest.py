# SPDX-License-Identifier: MIT
"""What a guest must see: one Layer per image, with its parent, computed from what the test author asked for.

A Layer never looks at the file that was built.
"""
import bisect
import hashlib
import os
from dataclasses import dataclass
from typing import Any

from .content import Store, describe

PIECE = 1 << 20
_ZEROS = bytes(PIECE)


@dataclass(frozen=True)
class Extent:
    """A range of the guest disk and where it comes from: layer 0 is the image itself, 1 its parent and so on.

    kind is "data" (stored at file_offset of that layer's file) or "zero".  state is the BAT state of the block
    that decided; None beyond the end of a parent that is shorter than its child.
    """
    start: int
    length: int
    kind: str
    depth: int
    state: int | None
    file_offset: int | None
    layer: Any


@dataclass
class LayerBlock:
    mode: str                      # "data", "zero", "parent" or "partial"
    state: int
    file_offset: int | None = None
    present: tuple = ()            # for "partial": disjoint sorted (first sector in the block, end sector)


class Layer:
    def __init__(self, size, block_size, lss, parent=None, default_mode="zero", default_state=0):
        self.size = size
        self.block_size = block_size
        self.lss = lss
        self.parent = parent
        self.default_mode = default_mode
        self.default_state = default_state
        self.blocks = {}
        self.data = Store()        # by guest offset; only data that this layer shows
        self._order = None

    def extents(self, offset=0, length=None, depth=0):
        """Extents of a range, in order, without holes; they do not span blocks that were specified."""
        end = min(self.size, self.size if length is None else offset + length)
        if self._order is None or len(self._order) != len(self.blocks):
            self._order = sorted(self.blocks)
        order = self._order
        index = bisect.bisect_left(order, offset // self.block_size)
        while offset < end:
            if index < len(order) and order[index] == offset // self.block_size:
                block = self.blocks[order[index]]
                stop = min(end, (order[index] + 1) * self.block_size)
                index += 1
            else:
                block = LayerBlock(self.default_mode, self.default_state)
                stop = min(end, order[index] * self.block_size if index < len(order) else end)
            yield from self._block_extents(block, offset, stop, depth)
            offset = stop

    def _block_extents(self, block, offset, end, depth):
        if block.mode == "partial":
            yield from self._partial_extents(block, offset, end, depth)
        elif block.mode == "parent" and self.parent is not None:
            yield from self._parent_extents(offset, end, depth)
        elif block.mode == "data":
            place = None if block.file_offset is None else block.file_offset + offset % self.block_size
            yield Extent(offset, end - offset, "data", depth, block.state, place, self)
        else:
            yield Extent(offset, end - offset, "zero", depth, block.state, None, self)

    def _parent_extents(self, offset, end, depth):
        inside = max(offset, min(end, self.parent.size))
        if offset < inside:
            yield from self.parent.extents(offset, inside - offset, depth + 1)
        if inside < end:
            yield Extent(inside, end - inside, "zero", depth + 1, None, None, self.parent)

    def _partial_extents(self, block, offset, end, depth):
        base = offset // self.block_size * self.block_size
        whole = LayerBlock("data", block.state, block.file_offset)
        absent = LayerBlock("parent" if self.parent is not None else "zero", block.state)
        for first, last in block.present:
            low, high = base + first * self.lss, base + last * self.lss
            if high <= offset:
                continue
            if low >= end:
                break
            if offset < low:
                yield from self._block_extents(absent, offset, low, depth)
                offset = low
            yield from self._block_extents(whole, offset, min(high, end), depth)
            offset = min(high, end)
        if offset < end:
            yield from self._block_extents(absent, offset, end, depth)

    def pieces(self, offset=0, length=None):
        """(start, length, Store or None): None is zeros; a Store holds the bytes at the same guest offsets."""
        for extent in self.extents(offset, length):
            position, end = extent.start, extent.start + extent.length
            if extent.kind == "data":
                for low, high, _, _ in extent.layer.data.segments(position, end):
                    if position < low:
                        yield position, low - position, None
                    yield low, high - low, extent.layer.data
                    position = high
            if position < end:
                yield position, end - position, None

    def expected(self, offset, length):
        """The guest's bytes."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"range {offset:#x}+{length:#x} is not inside the disk of {self.size:#x} bytes")
        result = bytearray(length)
        for start, count, store in self.pieces(offset, length):
            if store is not None:
                result[start - offset:start - offset + count] = store.read(start, count)
        return bytes(result)

    def chunks(self, offset=0, length=None):
        """The guest's bytes as (start, bytes) of at most 1 MiB; zeros always come as the same buffer."""
        for start, count, store in self.pieces(offset, length):
            end = start + count
            while start < end:
                step = min(PIECE, end - start)
                if store is not None:
                    yield start, store.read(start, step)
                else:
                    yield start, _ZEROS if step == PIECE else _ZEROS[:step]
                start += step

    def sha256(self, limit=64 << 30):
        """Hex digest of the whole disk.  A GiB takes a second or two even where it is zero, hence the limit."""
        if self.size > limit:
            raise ValueError(f"a disk of {self.size:#x} bytes is too large to hash: compare probes() instead")
        digest = hashlib.sha256()
        for _, data in self.chunks():
            digest.update(data)
        return digest.hexdigest()

    def probes(self, span=4096):
        """Ranges worth reading on disks too large to read: both sides of every border, and the disk's end."""
        borders = {0, self.size, min(self.size, 1 << 32)}
        for start, length, _ in self.pieces():
            borders.update((start, start + length))
        for number in self.blocks:
            borders.update((number * self.block_size, min(self.size, (number + 1) * self.block_size)))
        result = []
        for border in sorted(borders):
            low, high = max(0, border - span), min(self.size, border + span)
            if result and low <= result[-1][0] + result[-1][1]:
                result[-1] = (result[-1][0], max(high, result[-1][0] + result[-1][1]) - result[-1][0])
            elif high > low:
                result.append((low, high - low))
        return result

    def first_difference(self, raw_path):
        """None if a raw file holds exactly this disk, else a sentence about the first difference.

        Holes of the raw file are not read where zeros are expected.
        """
        with open(raw_path, "rb", buffering=0) as raw:
            length = os.fstat(raw.fileno()).st_size
            if length != self.size:
                return f"length {length}, expected {self.size}"
            for start, count, store in self.pieces():
                ranges = _data_ranges(raw.fileno(), start, start + count) if store is None else [(start, start + count)]
                for low, high in ranges:
                    message = self._compare_range(raw.fileno(), low, high, store)
                    if message:
                        return message
        return None

    def _compare_range(self, descriptor, low, high, store):
        while low < high:
            step = min(PIECE, high - low)
            want = _ZEROS[:step] if store is None else store.read(low, step)
            message = self.difference(low, os.pread(descriptor, step, low), want)
            if message:
                return message
            low += step
        return None

    def difference(self, offset, got, want=None):
        """None if got is what the guest must see at offset, else a sentence about the first difference."""
        want = self.expected(offset, len(got)) if want is None else want
        if got == want:
            return None
        if len(got) != len(want):
            return f"{len(got)} bytes at guest offset {offset:#x}, expected {len(want)}"
        at = next(i for i, pair in enumerate(zip(got, want)) if pair[0] != pair[1])
        unit = (offset + at) // 512 * 512 - offset
        unit = max(unit, 0)
        return (f"guest offset {offset + at:#x}: got {describe(got[unit:unit + 512])}, "
                f"expected {describe(want[unit:unit + 512])}")


def _data_ranges(descriptor, start, end):
    position = start
    while position < end:
        try:
            low = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            return
        if low >= end:
            return
        high = min(os.lseek(descriptor, low, os.SEEK_HOLE), end)
        yield low, high
        position = high
