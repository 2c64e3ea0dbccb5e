#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Write the seeds in corpus/: descriptions of files (describe.h), one for each thing that a fuzzer should not have to
find out by itself, and raw structures for fuzz-format.

Usage: make-corpus.py [CORPUS-FOLDER]
"""
import pathlib
import struct
import sys

DYNAMIC, DIFFERENCING, FIXED, EMPTY = range(4)
DIRTY, SECTORS_4K = 4, 8
REPAIR_TABLES, REPAIR_LOG, REPAIR_IDENTITY, UNVERIFIED, REFUSE_DIRTY = 1, 2, 4, 8, 16
TWO_LAYERS, HIDE_HOLES, SMALL_CACHE, RAW_PARENT, BY_NAME = 32, 64, 128, 256, 512
REPAIR = REPAIR_TABLES | REPAIR_LOG | REPAIR_IDENTITY
(IDENTIFIER, HEADER_0, HEADER_1, REGIONS_0, REGIONS_1, LOG, METADATA, ITEMS, BAT, BITMAP, PAYLOAD,
 ANYWHERE, ADD_ENTRY, BAT_ENTRY, HEADERS, REGION_TABLES) = range(16)
REPEAT, OF_PARENT = 64, 128


def shape(kind, block=0, size=0, extra=0):
    return kind | extra | block << 4 | size << 6


def image(child, *changes, parent=0, flags=REPAIR, length=(0, 0), fault=0):
    return struct.pack("<BBHBIB", child, parent, flags, *length, fault) + b"".join(changes)


def put(place, offset, data, page=None, repeat=None, parent=False):
    what = place | (REPEAT if repeat else 0) | (OF_PARENT if parent else 0)
    return (bytes([what]) + (struct.pack("<I", page) if place == ANYWHERE else b"")
            + struct.pack("<HB", offset, len(data)) + (struct.pack("<H", repeat - 1) if repeat else b"") + data)


def bat(state, no, mib, bitmap=False, parent=False):
    return struct.pack("<BBHH", BAT_ENTRY | (OF_PARENT if parent else 0), state | (8 if bitmap else 0), no, mib)


def zeros(place, pages, page=None, skip=None, mib=False):
    what = place | 16 | (32 if skip is not None else 0) | (64 if mib else 0)
    return (bytes([what]) + (struct.pack("<I", page) if place == ANYWHERE else b"")
            + (bytes([skip]) if skip is not None else b"") + struct.pack("<H", pages))


def page_of(place, at=0, data=b"", page=None, skip=None):
    what = place | (32 if skip is not None else 0)
    return (bytes([what]) + (struct.pack("<I", page) if place == ANYWHERE else b"")
            + (bytes([skip]) if skip is not None else b"") + struct.pack("<HB", at, len(data)) + data)


def entry(*descriptors, position=None, step=None, tail=None, own_tail=False, lengths=None):
    what = ((position is not None) | (step is not None) << 1 | (tail is not None) << 2 | own_tail << 3
            | (lengths is not None) << 4)
    return (bytes([ADD_ENTRY, what, len(descriptors)])
            + (bytes([position]) if position is not None else b"") + (struct.pack("<b", step) if step is not None else b"")
            + (bytes([tail]) if tail is not None else b"") + (struct.pack("<BH", *lengths) if lengths else b"")
            + b"".join(descriptors))


def u32(n):
    return struct.pack("<I", n)


def u64(n):
    return struct.pack("<Q", n)


def image_seeds():
    for name, kind in [("dynamic", DYNAMIC), ("differencing", DIFFERENCING), ("fixed", FIXED)]:
        for block in range(4):
            yield f"{name}-block{block}", image(shape(kind, block, block))
        yield f"{name}-4k", image(shape(kind, 0, 1, SECTORS_4K))
        yield f"{name}-odd-size", image(shape(kind, 1, 1))
        yield f"{name}-dirty", image(shape(kind, 0, 0, DIRTY))
        yield f"{name}-dirty-refused", image(shape(kind, 0, 0, DIRTY), flags=REFUSE_DIRTY)
        yield f"{name}-cut", image(shape(kind), length=(1, 0x1800))
        yield f"{name}-far-cut", image(shape(kind), length=(5, 7))
        yield f"{name}-longer", image(shape(kind), length=(2, 12345))
        yield f"{name}-absurd", image(shape(kind), length=(7, 0))
        yield f"{name}-tiny", image(shape(kind), length=(3, 0x50000))
        yield f"{name}-no-holes", image(shape(kind, 0, 2), flags=REPAIR | HIDE_HOLES | SMALL_CACHE)
        yield f"{name}-bat-damaged", image(shape(kind), bat(6, 1, 5), bat(5, 2, 0), bat(7, 4, 9))
        yield f"{name}-bat-unverified", image(shape(kind), bat(6, 1, 5), bat(6, 2, 3), flags=REPAIR | UNVERIFIED)
    yield "empty", image(EMPTY)
    for n in (1, 4, 9, 12, 15, 20):
        yield f"read-{n}-fails", image(shape(DIFFERENCING, 0, 0, DIRTY), parent=DYNAMIC, flags=TWO_LAYERS, fault=n)

    yield "chain", image(DIFFERENCING, parent=DYNAMIC, flags=TWO_LAYERS)
    yield "chain-of-children", image(DIFFERENCING, parent=DIFFERENCING, flags=TWO_LAYERS)
    yield "chain-raw", image(DIFFERENCING, parent=DYNAMIC, flags=TWO_LAYERS | RAW_PARENT)
    yield "chain-dirty-parent", image(shape(DIFFERENCING, 0, 0, DIRTY), parent=shape(FIXED, 1, 1, DIRTY), flags=TWO_LAYERS)
    yield "chain-short-parent", image(shape(DIFFERENCING, 1, 0), parent=shape(DYNAMIC, 0, 1), flags=TWO_LAYERS)
    yield "chain-huge", image(shape(DIFFERENCING, 2, 3), parent=shape(DYNAMIC, 3, 3), flags=TWO_LAYERS)
    for name, parent in [("chain", DYNAMIC), ("cycle", DIFFERENCING), ("other-sectors", shape(DYNAMIC, 0, 0, SECTORS_4K))]:
        yield f"by-name-{name}", image(DIFFERENCING, parent=parent, flags=TWO_LAYERS | BY_NAME)
    yield "by-name-no-parent", image(DIFFERENCING, flags=BY_NAME)
    yield "by-name-alone", image(DYNAMIC, flags=BY_NAME)
    yield "by-name-mismatch", image(DIFFERENCING, put(HEADERS, 32, b"other", parent=True), parent=DYNAMIC,
                                    flags=REPAIR | TWO_LAYERS | BY_NAME)
    for path in (".\\..\\up.vhdx", "\\\\?\\C:\\x", "\\\\host\\x\\y", "/etc/passwd", "a:b", "sub\\p.vhdx"):
        # relative_path's key and value stand behind those of parent_linkage, in an item of four pairs at 40
        at = 40 + 20 + 4 * 12 + 2 * (len("parent_linkage") + 38 + len("relative_path"))
        yield f"by-name-path-{path.strip('./').replace('/', '-')[:3].encode().hex()}", image(
            DIFFERENCING, put(ITEMS, at, path.encode("utf-16le")), put(ITEMS, 40 + 20 + 12 + 10, bytes([2 * len(path), 0])),
            parent=DYNAMIC, flags=REPAIR | TWO_LAYERS | BY_NAME)
    yield "bitmap-stripes", image(DIFFERENCING, put(BITMAP, 0, b"\x55\xaa\xff\x00", repeat=64), parent=FIXED,
                                  flags=REPAIR | TWO_LAYERS)
    yield "bitmap-missing", image(DIFFERENCING, bat(0, 0, 0, bitmap=True), flags=REPAIR | UNVERIFIED)
    yield "bitmaps-two", image(shape(DIFFERENCING, 2, 2), bat(7, 128, 300), bat(6, 1, 4, bitmap=True),
                               bat(0, 0, 0, bitmap=True), bat(2, 0, 0), bat(2, 3, 0))
    yield "bat-wide", image(shape(DYNAMIC, 0, 3), put(BAT, 4096, u64(2), repeat=900), put(BAT, 0x8000, u64(3), repeat=700))
    yield "bat-shared", image(shape(DIFFERENCING, 0, 2), put(BAT, 64, u64(7 | 5 << 20), repeat=40), flags=REPAIR | UNVERIFIED)
    yield "chain-short-parent-absent", image(shape(DIFFERENCING, 1, 0), bat(0, 3, 0), bat(0, 4, 0), bat(0, 5, 0), bat(0, 0, 0, parent=True),
                                             bat(0, 3, 0, parent=True), bat(0, 4, 0, parent=True),
                                             parent=shape(DYNAMIC, 0, 1), flags=REPAIR | TWO_LAYERS)
    for name, mib in [("log", 1), ("metadata", 2), ("bat", 3), ("nowhere", 0)]:
        yield f"block-in-{name}", image(DYNAMIC, bat(6, 2, mib), flags=REPAIR | UNVERIFIED)
    yield "block-at-the-end", image(DYNAMIC, bat(6, 2, 10))
    yield "block-behind-the-end", image(DYNAMIC, bat(6, 2, 11))
    yield "block-half-behind-the-end", image(shape(DYNAMIC, 1), bat(6, 2, 16))
    yield "last-block-short", image(shape(DYNAMIC, 1, 1), bat(6, 5, 17), length=(1, 0x1ff000))

    yield "header-0-bad", image(DYNAMIC, put(HEADER_0, 4, b"!!!!"), flags=0)
    yield "header-both-bad", image(DYNAMIC, put(HEADERS, 4, b"!!!!"), flags=0)
    yield "header-version", image(DYNAMIC, put(HEADERS, 66, b"\x02"))
    yield "headers-equal-number", image(DYNAMIC, put(HEADERS, 8, u64(9)), put(HEADER_0, 16, b"other"))
    yield "log-huge", image(shape(DYNAMIC, 0, 0, DIRTY), put(HEADERS, 68, u32(1 << 30)), length=(4, 5000))
    yield "log-too-huge", image(DYNAMIC, put(HEADERS, 68, u32(3 << 30)))
    yield "log-elsewhere", image(shape(DYNAMIC, 0, 0, DIRTY), put(HEADERS, 72, u64(3 << 20)))
    yield "log-version", image(shape(DYNAMIC, 0, 0, DIRTY), put(HEADERS, 64, b"\x01"))
    yield "regions-0-bad", image(DYNAMIC, put(REGIONS_0, 4, b"!!!!"), flags=0)
    yield "regions-both-bad", image(DYNAMIC, put(REGION_TABLES, 4, b"!!!!"), flags=0)
    yield "region-unknown", image(DYNAMIC, put(REGION_TABLES, 8, u32(3)), put(REGION_TABLES, 80, b"some other guid!"
                                  + u64(7 << 20) + u32(1 << 20) + u32(0)))
    yield "region-required", image(DYNAMIC, put(REGION_TABLES, 8, u32(3)), put(REGION_TABLES, 80, b"some other guid!"
                                   + u64(7 << 20) + u32(1 << 20) + u32(1)))
    yield "region-overlap", image(DYNAMIC, put(REGION_TABLES, 32, u64(2 << 20)))
    yield "region-moved", image(DYNAMIC, put(REGION_TABLES, 32, u64(9 << 20)))
    yield "region-bat-small-for-disk", image(DYNAMIC, put(ITEMS, 8, u64(64 << 40)))
    yield "item-block-size", image(DYNAMIC, put(ITEMS, 0, u32(3 << 20)))
    yield "item-sector-size", image(DYNAMIC, put(ITEMS, 32, u32(520)))
    yield "item-parent-flag", image(DYNAMIC, put(ITEMS, 4, u32(2)))
    yield "item-count", image(DYNAMIC, put(METADATA, 10, b"\x08\x00"))
    yield "item-overlap", image(DYNAMIC, put(METADATA, 32 + 5 * 32 + 16, u32(0x10001)))
    yield "item-huge", image(DYNAMIC, put(METADATA, 32 + 5 * 32 + 16, u32(0x11000) + u32(0xE0000)))
    yield "item-incomplete", image(DYNAMIC, put(METADATA, 32 + 5 * 32, bytes.fromhex("f085cc71691b284e9558c3bf83ae75d3")
                                   + u32(0) + u32(0) + u32(4)))
    yield "locator-type", image(DIFFERENCING, put(ITEMS, 40, b"?"))
    yield "locator-count", image(DIFFERENCING, put(ITEMS, 58, b"\x05"))
    yield "locator-offset", image(DIFFERENCING, put(ITEMS, 60, u32(0xfffffff0)))
    yield "not-vhdx", image(DYNAMIC, put(IDENTIFIER, 0, b"conectix"))
    yield "qcow", image(EMPTY, put(IDENTIFIER, 0, b"QFI\xfb\0\0\0\3"), length=(3, 65536))


def log_seeds():
    dirty = shape(DYNAMIC, 0, 0, DIRTY)
    yield "template", image(dirty)
    yield "template-differencing", image(shape(DIFFERENCING, 0, 0, DIRTY))
    yield "more", image(dirty, entry(page_of(BAT, 0, b"\3")), entry(zeros(PAYLOAD, 3), page_of(ITEMS, 9, b"x")))
    yield "empty-entry", image(dirty, entry())
    yield "own-tail", image(dirty, entry(page_of(PAYLOAD, 0, b"last one"), own_tail=True))
    yield "wraps", image(dirty, entry(page_of(PAYLOAD, 0, b"a"), zeros(PAYLOAD, 1), page_of(PAYLOAD, 1, b"b", skip=1),
                                      position=254, own_tail=True))
    yield "overwrites", image(dirty, entry(zeros(PAYLOAD, 40)), entry(page_of(PAYLOAD, 5, b"in", skip=7)),
                              entry(zeros(PAYLOAD, 2, skip=6)), entry(page_of(PAYLOAD, 6, b"again", skip=7)))
    yield "zeros-of-all-sizes", image(dirty, entry(*[zeros(PAYLOAD, n * n, skip=n) for n in range(20)]))
    yield "two-sectors-of-descriptors", image(dirty, entry(*[zeros(PAYLOAD, n % 5, skip=n * 7 % 256) for n in range(200)]))
    yield "many-pages", image(dirty, entry(*[page_of(PAYLOAD, 4090 + n % 6, bytes([n]), skip=n) for n in range(40)]))
    yield "zeros-wide", image(dirty, entry(zeros(PAYLOAD, 5, mib=True)), entry(page_of(PAYLOAD, 0, b"x", skip=200)))
    yield "zeros-far", image(dirty, entry(zeros(ANYWHERE, 60000, page=0x800, mib=True), lengths=(5, 65535)))
    yield "grows", image(dirty, entry(page_of(ANYWHERE, 3, b"behind the end", page=0x3000), lengths=(5, 200)))
    yield "grows-absurdly", image(dirty, entry(page_of(BAT)), put(LOG, 56, u64(1 << 62)))
    yield "flushed-behind-end", image(dirty, entry(page_of(BAT), lengths=(255, 255)))
    yield "end-not-page", image(dirty, entry(zeros(ANYWHERE, 1, page=0xaff)), length=(1, 777))
    yield "flushed-just-behind-end", image(dirty, entry(page_of(BAT), lengths=(12, 12)))
    yield "flushed-at-end", image(dirty, entry(page_of(BAT), lengths=(11, 11)))
    yield "wide-entry", image(dirty, entry(*[page_of(PAYLOAD, 0, bytes([n]), skip=n) for n in range(130)], own_tail=True))
    yield "data-behind-zeros", image(shape(DYNAMIC, 0, 0, DIRTY), entry(zeros(ANYWHERE, 1, page=0xc00), page_of(ANYWHERE, 9, b"data", page=0xd00),
                                                        lengths=(4, 20)))
    yield "longer-than-ring", image(dirty, *[entry(*[page_of(PAYLOAD, 0, bytes([n]), skip=k) for k in range(60)], own_tail=(n == 0))
                                             for n in range(5)])
    yield "into-header", image(dirty, entry(page_of(HEADER_0, 8, b"\xff")))
    yield "into-log", image(dirty, entry(page_of(LOG)))
    yield "into-regions", image(dirty, entry(page_of(REGIONS_0, 8, b"\x03")))
    yield "behind-bound", image(dirty, entry(page_of(ANYWHERE, page=0xffffffff)))
    yield "gap-in-numbers", image(dirty, entry(page_of(BAT), step=2))
    yield "number-again", image(dirty, entry(page_of(BAT), position=9, step=0, own_tail=True))
    yield "older-chain", image(dirty, entry(page_of(BAT), position=30, step=-60, own_tail=True), entry(page_of(BAT)))
    yield "newer-chain", image(dirty, entry(page_of(BAT), position=30, step=60, own_tail=True), entry(zeros(BAT, 1)))
    yield "two-chains-equal", image(dirty, entry(own_tail=True, position=30, step=60), entry(own_tail=True, position=60, step=0))
    yield "tail-outside", image(dirty, entry(page_of(BAT), tail=77))
    yield "tail-in-the-middle", image(dirty, entry(page_of(BAT)), entry(zeros(PAYLOAD, 1), tail=2))
    yield "nested", image(dirty, entry(page_of(BAT), own_tail=True), put(LOG, 0x5000, b"loge" + bytes(4) + u32(0x1000)
                          + u32(0x5000) + u64(200)))
    yield "ring-full", image(dirty, *[entry(*[zeros(PAYLOAD, 1)] * 5, position=n, own_tail=(n == 0)) for n in range(256)][:60])
    yield "number-at-the-end", image(dirty, put(LOG, 16, u64(2**64 - 1)), put(LOG, 0x3000 + 16, u64(2**64 - 1)))
    yield "guid-unknown", image(dirty, put(HEADERS, 48, b"another log's id"), flags=REPAIR_TABLES)
    yield "count-absurd", image(dirty, put(LOG, 24, u32(0xffffffff)))
    yield "length-absurd", image(dirty, put(LOG, 8, u32(0xfffff000)))
    yield "torn", image(dirty, put(LOG, 0x1100, b"torn"), flags=0)
    yield "huge-log", image(dirty, put(HEADERS, 68, u32(1 << 30)), length=(4, 3000))
    yield "no-holes", image(dirty, entry(zeros(BAT, 1)), flags=REPAIR | HIDE_HOLES)
    for n in (1, 2, 3, 5):
        yield f"read-{n}-fails", image(dirty, entry(zeros(BAT, 1)), fault=n)


def u16(n):
    return struct.pack("<H", n)


def utf16(text):
    return text.encode("utf-16le")


def locator(*pairs, kind="b7ef4ab09ed1814ab78925b8e9445913", count=None):
    table, texts, at = b"", b"", 20 + 12 * len(pairs)
    for key, value in pairs:
        table += u32(at) + u32(at + len(utf16(key))) + u16(len(utf16(key))) + u16(len(utf16(value)))
        texts += utf16(key) + utf16(value)
        at = 20 + 12 * len(pairs) + len(texts)
    return bytes.fromhex(kind) + u16(0) + u16(len(pairs) if count is None else count) + table + texts


def format_seeds():
    """The first byte is the number of a function in fuzz-format.c, what follows is that function's."""
    (header, regions, table, locator_item, locator_encode, bat_entries, bitmap, descriptor, log_entry, sector, identifier,
     texts, mib_set) = (bytes([n]) for n in range(13))
    known = {"bat": "6677c22d23f600429d64115e9bfd4a08", "metadata": "06a27c8b90479a4bb8fe575f050f886e"}
    items = ["3767a1ca36fa434db3b633f0aa44e76b", "2442a52f1bcd7648b2115dbed83bf4b8", "ab12cabee6b2234593efc309e000c746",
             "1dbf41816fa90947ba47f233a8faab5f", "c748a3cd5d4471449cc9e9885251c556", "2d5fd3a80bb34d45abf7d3d84834ab0c",
             "bcd702da3a3d3c42ac882a36ab21479b", "8aaee1104b7e4169a40fcd70de928393", "f085cc71691b284e9558c3bf83ae75d3"]
    head = b"head" + bytes(4) + u64(5) + bytes(48) + u16(0) + u16(1) + u32(1 << 20) + u64(1 << 20)
    yield "header", header + bytes([9]) + u64(9 << 20) + head
    yield "header-twice", header + bytes([0x0f]) + u64(9 << 20) + head
    yield "header-differs", header + bytes([0x0b]) + u64(1 << 20) + head
    for name, guid in known.items():
        yield f"region-{name}", regions + u64(9 << 20) + u16(1) + bytes(16) + bytes.fromhex(guid) + u64(3 << 20) + u32(1 << 20) + u32(1)
    yield "region-many", regions + u64(9 << 20) + u16(2047) + bytes(16)
    for n, guid in enumerate(items):
        length = [8, 8, 16, 4, 4, 100, 8, 9, 0][n]
        yield f"item-{n}", table + u32(1 << 20) + bytes(10) + u16(1) + bytes(20) + bytes.fromhex(guid) + u32(0x10000 if length else 0) + u32(length) + u32(4) + u32(0)
    linkage = ("parent_linkage", "{7A7A7566-7265-7327-2064-617461206964}")
    yield "locator", locator_item + b"\0" + locator(linkage, ("relative_path", ".\\p.vhdx"))
    yield "locator-many", locator_item + b"\0" + locator(linkage, *[(f"k{n}", "v") for n in range(40)])
    yield "locator-long", locator_item + b"\0" + locator(linkage, ("\U0001f4be", "\u00e4" * 300))
    yield "locator-count", locator_item + b"\0" + locator(linkage, count=300)
    yield "locator-encode", locator_encode + bytes([2]) + u16(400) + b"".join(bytes([len(t)]) + t for t in
                                                   ("k\u00e4y".encode(), "\U0001f4be".encode(), b"two", b"\xed\xa0\x80"))
    for name, shifts, flags, size in [("small", 20, 0, 6 << 20), ("child", 21 | 32, 2, (9 << 30) + 4096), ("huge", 28, 2, 64 << 40)]:
        yield f"bat-{name}", bat_entries + bytes([shifts, flags]) + u64(size) + b"".join(
            u64(n) + u64(state | 8 | 7 << 20) + u64(length << 20) for n, state, length in
            [(0, 6, 8), (3, 7, 900), (5, 6, 7), (77, 3, 300), (1, 0, 5), (2, 4, 5)])
    for first, end, fill in [(0, 0, 0), (3, 5, 0), (0, 19999, 255), (13, 8000, 0), (64, 128, 0x55)]:
        yield f"bitmap-{first}-{end}", bitmap + u16(first) + u16(end) + bytes([2, fill]) + u16(999) + u16(5000)
    yield "descriptor-zero", descriptor + bytes([0]) + u64(1 << 40) + bytes([0, 1]) + bytes(8) + u64(1 << 21) + u64(5 << 20) + u64(9)
    yield "descriptor-data", descriptor + bytes([0]) + u64(1 << 40) + bytes([0, 0]) + bytes(4) + b"trailead" + u64(5 << 20) + u64(9)
    yield "log-entry", log_entry + bytes([0, 0]) + b"loge" + bytes(4) + u32(8192) + u32(0) + u64(9) + u32(1) + u32(0) + bytes(16) + u64(0) + u64(1 << 22)
    yield "data-sector", sector + u64(0x0102030405060708) + bytes(range(256))
    yield "identifier", identifier + u16(600) + u16(0) + b"vhdxfile" + utf16("creator \ud83d\udcbe".encode("utf-16", "surrogatepass").decode("utf-16"))
    for magic in (b"conectix", b"QFI\xfb", b"KDMV", b"<<< Oracle", b"QED\0", b"EVF\x09", b"\x1f\x8b", b"PK\3\4", b"7z\xbc\xaf", b"\xfd7zXZ", b"(\xb5/\xfd", b"BZh"):
        yield f"identifier-{magic[:2].hex()}", identifier + u16(512) + u16(512) + magic + bytes(512 - len(magic)) + magic
    yield "text", texts + u16(9) + utf16("a\u00e4\u20ac\U0001f4be")
    yield "text-guid", texts + u16(99) + utf16("{b04aefb7-d19e-4a81-b789-25b8e9445913}")
    yield "text-broken", texts + u16(99) + b"\x00\xd8a\0"
    yield "mib-set", mib_set + u32(69999) + u32(5) + u16(300) + u32(32760) + u16(20) + u32(300) + u16(9) + u32(69990) + u16(100)


(WRITE, _, ZERO, DISCARD, WHOLE_ZERO, WHOLE_DISCARD, ACROSS, FLUSH, REOPEN, CRASH, READ, FAULT) = range(12)


def write_seeds():
    """fuzz-write: geometry, use, seed, operations."""
    def seed(*operations, geometry=0, use=0x2d, number=1):
        return struct.pack("<BBH", geometry, use, number) + b"".join(bytes(o) for o in operations)

    flush, crash, read, reopen = (FLUSH,), (CRASH,), (READ,), (REOPEN,)
    writes = [(WRITE, block | at << 3, 3 | at << 3) for block in range(4) for at in range(3)]
    churn = [*writes[:4], flush, (WHOLE_DISCARD, 8), *writes[6:], (ZERO, 1, 4), flush, (DISCARD, 0x42, 5), (ACROSS, 1, 3), read]
    for name, geometry in (("dynamic", 0), ("sectors-4k", 1), ("fixed", 2), ("no-punch", 4), ("log-2m", 8), ("blocks-2m", 16),
                           ("sparse-tables", 96), ("all", 0x5d), ("child", 0x80), ("child-stale-bits", 0x82),
                           ("child-4k-no-punch", 0x85)):
        yield f"{name}", seed(*churn, crash, *churn, geometry=geometry)
    halves = [(WRITE, 0, 7), (WRITE, 0x40, 7), flush, (WHOLE_DISCARD, 0), (WRITE, 0, 7), (ZERO, 0x40, 7), flush]
    yield "child-made-whole", seed(*halves, crash, *halves, geometry=0x80, use=0xad, number=3)
    yield "nothing", b""
    yield "untouched", seed(read, flush, reopen, read)
    yield "reopened", seed(*writes[:3], reopen, *writes[3:6], reopen, (WHOLE_ZERO, 0), flush)
    yield "fua", seed((WRITE, 0, 0x83), (ZERO, 1, 0x83), (WHOLE_DISCARD, 0x80), crash, (WRITE, 0, 0x80))
    yield "space-again", seed(*writes[:6], flush, (WHOLE_DISCARD, 24), flush, *writes[6:], flush, crash, *writes)
    for name, what in (("write", 0), ("flush", 1), ("truncate", 2), ("punch", 3), ("zero", 4)):
        for error, bits in (("eio", 0), ("enospc", 0x40), ("for-good", 0x80)):
            yield f"{name}-{error}", seed(*writes[:3], flush, (FAULT, what | bits, 1), *churn, read, flush, crash, *writes)
    # One block gives its space to the other before that is durable: a crash would show one's data in the other.
    yield "freed-at-once", seed(*[(WRITE, at << 3, 3 | at << 3) for at in range(4)], flush, (WHOLE_DISCARD, 0),
                                *[(WRITE, 1 | at << 3, 3 | at << 3) for at in range(4)], crash, read, geometry=4, use=0x19)
    yield "torn-writes", seed(*writes[:2], (FAULT, 0, 0x42), *writes, flush, flush, crash, *writes)
    yield "crashes", seed(*writes, flush, crash, *writes[:5], crash, (WHOLE_ZERO, 16), flush, *writes, crash, *writes)


def main():
    corpus = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "corpus")
    images, logs = dict(image_seeds()), dict(log_seeds())
    both = images | {f"log-{name}": seed for name, seed in logs.items()}
    for target, seeds in {"fuzz-open-read": both, "fuzz-log-replay": logs, "fuzz-format": dict(format_seeds()),
                          "fuzz-write": dict(write_seeds())}.items():
        folder = corpus / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, seed in seeds.items():
            (folder / name).write_bytes(seed)


if __name__ == "__main__":
    main()
