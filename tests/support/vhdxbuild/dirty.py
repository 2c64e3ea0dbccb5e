# SPDX-License-Identifier: MIT
"""make_dirty(): moves the truth about chosen pages from their home places into the log."""
import random

from .content import Pattern, as_content
from .encode import MiB, NO_GUID, PAGE, REGION_TABLE_OFFSETS, TABLE_SIZE, seeded_guid, seeded_int
from .log import Data, Entry, Zero

_JUNK = Pattern(0xD127)


def make_dirty(image, what=("bat",), *, home="zero", per_entry=None, start=0, first_seq=None, opening=True,
               supersede=False, shuffle=False, closing=False, guid=None):
    """Changes image (and returns it) so that only log replay shows the right content.

    what       pages to move: "bat", "bitmap", "metadata", "regions" (all their pages that are not zero), "bat:3"
               (one 4 KiB page of the BAT region, likewise "metadata:0"), "bitmap:2" (the bitmap block of a chunk),
               "region1", "region2", "block:7" (the payload block: legal, if unusual), or file offsets of pages
    home       what the file holds there meanwhile: "zero" (as if never written), "junk", or bytes for every page.
               A page that is zero in truth gets junk at home and a zero descriptor in the log.
    per_entry  pages per log entry; None: as many as fit in one entry of half the log
    start      ring offset of the first entry (put it near the end of the ring to have entries wrap)
    opening    begin with an empty entry whose tail is itself, as Windows does; the others do not include it
    supersede  log every page twice: first with junk, then, in later entries, with the truth
    shuffle    pages in random order, zero and data descriptors mixed
    closing    end with an empty entry that has the same tail
    A bitmap block is logged as one zero descriptor of 1 MiB and the data pages over it, in this order in one entry,
    if it fits.  The image must be clean; its log's GUID becomes non-zero.  Entries that the log had already stay as
    stale ones of another session.
    """
    plan = image.plan()
    groups = [group for name in ([what] if isinstance(what, (str, int)) else what) for group in _pages(plan, name)]
    if not groups:
        raise ValueError(f"{what!r} has no pages that could be moved into the log")
    log = image.log
    if log.guid != NO_GUID:
        raise ValueError("the image is dirty already: its stale pages would lose their entries")
    if shuffle:
        _shuffle(groups, random.Random(image.seed))
    for entry in log.entries:
        entry.guid = seeded_guid(image.seed, "earlier session") if entry.guid is None else entry.guid
    log.guid = guid or seeded_guid(image.seed, "log session")
    seq = seeded_int(image.seed, "dirty log", 60) + 1 if first_seq is None else first_seq
    limit = per_entry or max(1, log.length // PAGE // 2 - 3)
    entries = []
    if supersede:
        entries += _entries(groups, limit, wrong=True)
    entries += _entries(groups, limit, wrong=False)
    for entry in entries:
        entry.tail = entries[0]
    if closing:
        entries.append(Entry(tail=entries[0]))
    if opening:
        entries.insert(0, Entry(tail="self"))
    entries[0].at, entries[0].seq = start, seq
    total = sum(entry.length() for entry in entries)
    if total > log.length:
        raise ValueError(f"the entries need {total:#x} bytes: set image.log.length (now {log.length:#x}) higher")
    log.entries += entries
    for group in groups:
        image.home += _stale(plan, group, home)
    return image


def _shuffle(groups, generator):
    generator.shuffle(groups)
    for group in groups:
        if not any(isinstance(descriptor, Zero) and descriptor.length > PAGE for descriptor in group):
            generator.shuffle(group)   # nothing in it overlaps, so the order is free


def _pages(plan, name):
    """Groups of descriptors (all of a group go into one entry), by reference, so that they survive a new layout."""
    if isinstance(name, int):
        return [[_descriptor(plan, name)]]
    kind, _, which = name.partition(":")
    if kind in ("bat", "metadata"):
        start, length = plan.regions[kind]
        if which:
            return [[_descriptor(plan, (kind, int(which, 0) * PAGE))]]
        return [[Data((kind, page - start))] for page in plan.pages(start, length)]
    if kind == "bitmap":
        chunks = [int(which, 0)] if which else sorted(plan.bitmap_at)
        return [_whole(plan, f"bitmap:{chunk}", MiB) for chunk in chunks]
    if kind == "block":
        return [_whole(plan, name, plan.image.block_size)]
    if kind in ("regions", "region1", "region2"):
        copies = [0, 1] if kind == "regions" else [int(kind[-1]) - 1]
        return [[_descriptor(plan, page) for copy in copies
                 for page in range(REGION_TABLE_OFFSETS[copy], REGION_TABLE_OFFSETS[copy] + TABLE_SIZE, PAGE)]]
    raise ValueError(f"unknown pages: {name!r}")


def _descriptor(plan, reference):
    if any(plan.final.read(plan.where(reference), PAGE)):
        return Data(reference)
    return Zero(reference, PAGE)


def _whole(plan, name, length):
    start = plan.where(name)
    return [Zero(name, length)] + [Data((name, page - start)) for page in plan.pages(start, length)]


def _entries(groups, limit, wrong):
    entries, room = [], 0
    for group in groups:
        size = sum(isinstance(descriptor, Data) for descriptor in group) or 1
        if not entries or size > room:
            entries.append(Entry())
            room = limit
        room -= size
        entries[-1].descriptors += [_wrong(descriptor) for descriptor in group] if wrong else group
    return entries


def _wrong(descriptor):
    if isinstance(descriptor, Zero):
        return Zero(descriptor.offset, descriptor.length)
    return Data(descriptor.offset, page=_JUNK.read(0x5000, PAGE))


def _stale(plan, group, home):
    result = []
    for descriptor in group:
        if isinstance(descriptor, Zero):
            result.append((descriptor.offset, (descriptor.length, _JUNK)))
        elif home == "zero":
            result.append((descriptor.offset, bytes(PAGE)))
        elif home == "junk":
            result.append((descriptor.offset, (PAGE, _JUNK)))
        else:
            result.append((descriptor.offset, (PAGE, as_content(home))))
    return result
