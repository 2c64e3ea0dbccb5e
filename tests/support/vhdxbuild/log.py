# SPDX-License-Identifier: MIT
"""The log: entries of every shape in a ring (format section 4).

Offsets in descriptors may be symbolic references (see Plan.where); they and the pages that Data() leaves open
are filled in when the image is built.
"""
import struct
from dataclasses import dataclass, field
from typing import Any

from .content import Raw
from .crc32c import crc32c
from .encode import MiB, NO_GUID, PAGE, seeded_int

_SECTOR = 4096
_ENTRY_HEADER = 64
_DESCRIPTOR = 32


@dataclass
class Data:
    """A data descriptor with its data sector.  page=None: what the finished image holds at offset."""
    offset: Any
    page: bytes | None = None
    signature: bytes = b"desc"
    seq: int | None = None
    leading: bytes | None = None
    trailing: bytes | None = None
    sector_signature: bytes = b"data"
    sector_seq_high: int | None = None
    sector_seq_low: int | None = None


@dataclass
class Zero:
    """A zero descriptor."""
    offset: Any
    length: int
    signature: bytes = b"zero"
    seq: int | None = None
    reserved: int = 0


@dataclass(eq=False)
class Entry:
    """A log entry; everything has a sensible default.

    at       log offset; None: directly behind the entry before it in the list (the first one: 0)
    seq      None: one more than the entry before it (the first one: from the seed)
    tail     log offset, or an Entry, or "self"; None: the entry at which the run began, a run being entries that
             follow each other in the list with default seq, default at and the same GUID
    guid     None: the log's
    flushed  FlushedFileOffset; None: the file's length rounded down to 1 MiB
    last     LastFileOffset; None: the end of the last structure
    torn     only the first so many bytes reach the ring; lost: these 4 KiB sectors of the entry (numbers) do not
    patches  [(offset in the entry, bytes)], before the checksum; late_patches: after it
    The remaining fields are raw values for the header.
    """
    descriptors: list = field(default_factory=list)
    at: int | None = None
    seq: int | None = None
    tail: Any = None
    guid: bytes | None = None
    flushed: int | None = None
    last: int | None = None
    torn: int | None = None
    lost: tuple = ()
    patches: list = field(default_factory=list)
    late_patches: list = field(default_factory=list)
    signature: bytes = b"loge"
    checksum: int | None = None
    entry_length: int | None = None
    descriptor_count: int | None = None
    reserved: int = 0

    def data_count(self):
        return sum(isinstance(descriptor, Data) for descriptor in self.descriptors)

    def length(self):
        """Bytes that the entry takes in the ring."""
        return _SECTOR * (-(-(_ENTRY_HEADER + _DESCRIPTOR * len(self.descriptors)) // _SECTOR) + self.data_count())


@dataclass
class Log:
    """The log region.  guid is also what the headers name, unless a Header says otherwise; the zero GUID (default)
    means a clean log.  junk: content that fills the ring before entries are written into it."""
    length: int = MiB
    at: int | None = None
    guid: bytes = NO_GUID
    entries: list = field(default_factory=list)
    junk: Any = None
    first_seq: int | None = None


@dataclass
class PlacedEntry:
    """Where an entry ended up."""
    entry: Entry
    at: int           # log offset
    length: int
    seq: int
    tail: int
    guid: bytes


def place(log, seed):
    """Positions, sequence numbers and tails of all entries."""
    placed, by_identity = [], {}
    position = 0
    seq = seeded_int(seed, "log sequence", 62) if log.first_seq is None else log.first_seq - 1
    run_start, run_guid = None, None
    for entry in log.entries:
        guid = log.guid if entry.guid is None else entry.guid
        at = position if entry.at is None else entry.at
        if at % _SECTOR or at >= log.length:
            raise ValueError(f"log offset {at:#x} is not a sector of a log of {log.length:#x} bytes")
        length = entry.length()
        if length > log.length:
            raise ValueError(f"an entry of {length:#x} bytes does not fit a log of {log.length:#x} bytes")
        if run_start is None or entry.at is not None or entry.seq is not None or guid != run_guid:
            run_start, run_guid = at, guid
        seq = seq + 1 if entry.seq is None else entry.seq
        by_identity[id(entry)] = at
        placed.append(PlacedEntry(entry, at, length, seq, run_start, guid))
        position = (at + length) % log.length
    for item in placed:
        tail = item.entry.tail
        if tail == "self":
            item.tail = item.at
        elif isinstance(tail, Entry):
            item.tail = by_identity[id(tail)]
        elif tail is not None:
            item.tail = tail
    return placed


def _encode_descriptor(descriptor, seq, offset, page):
    own_seq = seq if descriptor.seq is None else descriptor.seq
    if isinstance(descriptor, Zero):
        return struct.pack("<4sIQQQ", descriptor.signature, descriptor.reserved, descriptor.length, offset, own_seq)
    leading = page[:8] if descriptor.leading is None else descriptor.leading
    trailing = page[-4:] if descriptor.trailing is None else descriptor.trailing
    return struct.pack("<4s4s8sQQ", descriptor.signature, trailing, leading, offset, own_seq)


def _encode_sector(descriptor, seq, page):
    high = seq >> 32 if descriptor.sector_seq_high is None else descriptor.sector_seq_high
    low = seq & 0xFFFFFFFF if descriptor.sector_seq_low is None else descriptor.sector_seq_low
    return descriptor.sector_signature + struct.pack("<I", high) + page[8:-4] + struct.pack("<I", low)


def encode_entry(item, plan):
    """The bytes of one placed entry; plan gives offsets, page contents and the file's length."""
    entry = item.entry
    descriptors, sectors = [], []
    for descriptor in entry.descriptors:
        offset = plan.where(descriptor.offset)
        if isinstance(descriptor, Zero):
            descriptors.append(_encode_descriptor(descriptor, item.seq, offset, None))
            continue
        page = plan.final.read(offset, PAGE) if descriptor.page is None else descriptor.page.ljust(PAGE, b"\0")
        descriptors.append(_encode_descriptor(descriptor, item.seq, offset, page))
        sectors.append(_encode_sector(descriptor, item.seq, page))
    flushed = plan.file_length // MiB * MiB if entry.flushed is None else entry.flushed
    last = plan.structures_end if entry.last is None else entry.last
    count = len(descriptors) if entry.descriptor_count is None else entry.descriptor_count
    stated_length = item.length if entry.entry_length is None else entry.entry_length
    head = struct.pack("<4sIIIQII16sQQ", entry.signature, 0, stated_length, item.tail, item.seq, count,
                       entry.reserved, item.guid, flushed, last)
    body = bytearray((head + b"".join(descriptors)).ljust(item.length - _SECTOR * len(sectors), b"\0"))
    body += b"".join(sectors)
    for offset, data in entry.patches:
        body[offset:offset + len(data)] = data
    if entry.patches:
        body[4:8] = bytes(4)
    struct.pack_into("<I", body, 4, crc32c(body) if entry.checksum is None else entry.checksum)
    for offset, data in entry.late_patches:
        body[offset:offset + len(data)] = data
    return bytes(body)


def put_in_ring(store, log_at, log_length, item, body):
    """Writes an entry's sectors into the ring; sectors that are torn off or lost keep what was there."""
    limit = len(body) if item.entry.torn is None else item.entry.torn
    for number in range(item.length // _SECTOR):
        start = number * _SECTOR
        if number in item.entry.lost or start >= limit:
            continue
        sector = body[start:min(start + _SECTOR, limit)]
        position = log_at + (item.at + start) % log_length
        store.put(position, len(sector), Raw(sector))


def repair_in_ring(store, log_at, log_length, item):
    """Recomputes the checksum of an entry from what the ring holds now."""
    first = min(item.length, log_length - item.at)
    body = bytearray(store.read(log_at + item.at, first) + store.read(log_at, item.length - first))
    body[4:8] = bytes(4)
    store.put_bytes(log_at + item.at + 4, struct.pack("<I", crc32c(body)))
