# SPDX-License-Identifier: MIT
"""What the raw partition may hold after a power cut, given how far the worker (worker.c) got.

Every sector must read as it did after the last fsync that the guest reported, or as some later operation on that
sector made it; a later one is at most one of the batch that may have been under way.  A discard leaves the old content or
zeros.  Everything is by sector: a write may be torn between any two.
"""
import struct

SECTOR_BYTES = 512
PAGE_BYTES = 4096
SECTORS_PER_PAGE = PAGE_BYTES // SECTOR_BYTES
BLOCK_PAGES = 256
PAGES_MAX = 256
WRITE, ZERO, DISCARD = range(3)
ZEROS = None  # as content; written content is the number of its operation
_M = (1 << 64) - 1
_ZERO_SECTOR = bytes(SECTOR_BYTES)
_ZERO_PAGE = bytes(PAGE_BYTES)


def _mix(x):
    x = (x + 0x9e3779b97f4a7c15) & _M
    x = ((x ^ (x >> 30)) * 0xbf58476d1ce4e5b9) & _M
    x = ((x ^ (x >> 27)) * 0x94d049bb133111eb) & _M
    return x ^ (x >> 31)


def nth_op(seed, n, device_pages):
    """(kind, first page, number of pages, whether an fsync follows) as nth_op() in worker.c."""
    base = (_mix(seed) + n * 8) & _M
    which = _mix(base) % 16
    kind = WRITE if which < 11 else ZERO if which < 13 else DISCARD
    large = _mix((base + 1) & _M) % (8 if kind == WRITE else 2) == 0
    nr_pages = 1 + _mix((base + 2) & _M) % (PAGES_MAX if large else 8)
    if large and kind != WRITE:
        nr_pages = BLOCK_PAGES * (1 + _mix((base + 2) & _M) % 3)
    page = _mix((base + 3) & _M) % (device_pages - nr_pages + 1)
    if nr_pages >= BLOCK_PAGES:
        page -= page % BLOCK_PAGES
    return kind, page, nr_pages, _mix((base + 4) & _M) % 6 == 0


def allowed(seed, durable, device_pages, may_be_under_way=True):
    """For each page the set of contents that any of its sectors may show, once operations below durable are."""
    pages = [{ZEROS} for _ in range(device_pages)]
    for n in range(durable):
        kind, first, count, _ = nth_op(seed, n, device_pages)
        for page in range(first, first + count):
            pages[page] = {n} if kind == WRITE else {ZEROS} if kind == ZERO else pages[page] | {ZEROS}
    n, ends = durable, not may_be_under_way
    while not ends:
        kind, first, count, ends = nth_op(seed, n, device_pages)
        for page in range(first, first + count):
            pages[page] = pages[page] | {n if kind == WRITE else ZEROS}
        n += 1
    return pages


def _content(sector, seed, sector_no):
    """Number of the operation that wrote these bytes here; a text about what is wrong with them otherwise."""
    if sector == _ZERO_SECTOR:
        return ZEROS
    record = sector[:32]
    its_seed, n, its_sector, complement = struct.unpack("<4Q", record)
    if sector != record * 16 or n ^ complement != _M or its_seed != seed:
        return f"holds foreign or torn data: {record.hex()}..."
    if its_sector != sector_no:
        return f"holds what belongs to sector {its_sector} (operation {n})"
    return n


def problems(data, seed, durable, may_be_under_way=True, most=10):
    """Texts about sectors of the partition's content (bytes) that show what they must not."""
    found = []
    pages = allowed(seed, durable, len(data) // PAGE_BYTES, may_be_under_way)
    for page, contents in enumerate(pages):
        start = page * PAGE_BYTES
        if ZEROS in contents and data[start:start + PAGE_BYTES] == _ZERO_PAGE:
            continue
        for sector_no in range(page * SECTORS_PER_PAGE, (page + 1) * SECTORS_PER_PAGE):
            at = sector_no * SECTOR_BYTES
            content = _content(data[at:at + SECTOR_BYTES], seed, sector_no)
            if content not in contents:
                wanted = sorted("zeros" if c is ZEROS else f"operation {c}" for c in contents)
                shows = content if isinstance(content, str) else "reads as zeros" if content is ZEROS \
                    else f"shows operation {content}"
                found.append(f"sector {sector_no} {shows}, allowed: {', '.join(wanted)} ({durable} are durable)")
                if len(found) == most:
                    return found
    return found
