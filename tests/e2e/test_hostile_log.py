# SPDX-License-Identifier: MIT
"""Hostile logs (format section 11, rows 18 to 43): what is no log entry, and what entries say.

@no_entry is damage that makes a log entry none: alone it leaves no sequence, behind a good entry it changes nothing.
"""
import os
import random
import struct

import pytest
from hostile_support import *
from reading import file_sha256
from vhdxbuild import *

rows = Rows()
refused, tolerated = rows.refused, rows.tolerated
test_refused, test_tolerated = rows.tests()
NO_ENTRY = []


def no_entry(row, title, *variants, late=False):
    """late: the damage comes after the checksum."""
    def decorate(function):
        add_case(NO_ENTRY, row, title, variants or (None,), lambda variant: (function, variant, late))
        return function
    return decorate


# ---- rows 18 to 28: what is no log entry -----------------------------------------------------------------------------


def seal(built, body, ring_offset):
    """Put an entry into the ring, its checksum made right over the length that it states if the ring has that."""
    at, length = built.where("log"), built.image.log.length
    stated = struct.unpack_from("<I", body, 8)[0]
    ring = bytearray(read_file(built, at, length))
    for offset in range(0, len(body), 4096):
        place = (ring_offset + offset) % length
        ring[place:place + 4096] = body[offset:offset + 4096]
    ring[ring_offset + 4:ring_offset + 8] = bytes(4)
    covered = bytes(ring[ring_offset:] + ring[:ring_offset])[:stated if 0 < stated <= length else len(body)]
    ring[ring_offset + 4:ring_offset + 8] = struct.pack("<I", crc32c(covered))
    change_file(built, at, ring)


def spoilt_entry(folder, alone, wrapping, function, variant, late):
    """An image whose log's only, or second, entry puts junk into the BAT unless it is no entry."""
    image = sound()
    bat = image.plan().where("bat")
    good = Entry([Data("bat")], tail="self", at=MiB - 12288 if wrapping else 0)
    junk = Entry([Data("bat", BAT_JUNK), Zero(bat + 4096, 4096), Data(("bat", 8192), BAT_JUNK)], tail=good)
    if alone:
        junk.tail, junk.at = "self", MiB - 4096 if wrapping else 0
    dirty(image, *([junk] if alone else [good, junk]))
    image.home = [("bat", bytes(4096))]
    built = image.build(folder / "disk.vhdx")
    placed = built.plan.log_entries[-1]
    first = min(12288, MiB - placed.at)
    body = bytearray(read_file(built, built.where("log") + placed.at, first)
                     + read_file(built, built.where("log"), 12288 - first))
    if not late and function:
        function(body, *([] if variant is None else [variant]))
    seal(built, body, placed.at)
    if late:
        at = (placed.at + variant) % MiB + built.where("log")
        change_file(built, at, bytes([read_file(built, at, 1)[0] ^ 0x10]))
    return built


@pytest.mark.parametrize("function, variant, late", NO_ENTRY)
def test_no_entry(hostile, tmp_path, function, variant, late):
    built = spoilt_entry(tmp_path, True, False, function, variant, late)
    hostile.refuses(built.path, "log at 0x100000: .*none of its 0 intact entries")
    hostile.reads(spoilt_entry(tmp_path, False, True, function, variant, late), tmp_path)   # passes the ring's end


@pytest.mark.parametrize("alone, wrapping", [(True, False), (False, False), (True, True), (False, True)])
def test_the_entry_without_its_damage_counts(hostile, tmp_path, alone, wrapping):
    """If it did not, the test above would show nothing."""
    built = spoilt_entry(tmp_path, alone, wrapping, None, None, False)
    hostile.refuses(built.path, "BAT entry at 0x300000")


@no_entry(18, "EntryLength", 0, 4095, 4097, 8191, 12289, MiB + 4096, 0xFFFFF000)
def entry_length(body, value):
    put(body, 8, "I", value)


@no_entry(19, "DescriptorCount", 383, 0x7FFFFFE, 0x8000000, 0x8000003, 0xFFFFFFFF)
def descriptor_count(body, value):
    put(body, 24, "I", value)


@no_entry(20, "Tail", 1, 4095, MiB, 0xFFFFF000, 0xFFFFFFFF)
def tail(body, value):
    put(body, 12, "I", value)


@no_entry(21, "SequenceNumber 0")
def sequence_zero(body):
    for offset in (16, 64 + 24, 96 + 24, 128 + 24):
        put(body, offset, "Q", 0)
    for sector in (4096, 8192):
        put(body, sector + 4, "I", 0)
        put(body, sector + 4092, "I", 0)


@no_entry(22, "checksum", 4, 12, 70, 3000, 4200, 12291 - 4096, 8200, late=True)
def checksum():
    raise AssertionError("never called: one bit is turned after sealing")


@no_entry(23, "LogGuid", bytes(16), bytes(range(16)))
def log_guid(body, value):
    body[32:48] = value


@no_entry(24, "EntryLength against the counts", 4096, 8192, 16384, MiB)
def entry_length_and_counts(body, value):
    put(body, 8, "I", value)


@no_entry(24, "DescriptorCount against EntryLength", 0, 1, 2)
def fewer_descriptors(body, value):
    put(body, 24, "I", value)


@no_entry(25, "descriptor signature", b"DESC", b"data", b"loge", bytes(4))
def descriptor_signature(body, value):
    body[128:132] = value


@no_entry(26, "descriptor sequence number", 64, 96, 128)
def descriptor_sequence(body, value):
    put(body, value + 24, "Q", struct.unpack_from("<Q", body, 16)[0] + 1)


@no_entry(27, "data sector signature", 4096, 8192)
def sector_signature(body, value):
    body[value:value + 4] = b"dat\0"


@no_entry(27, "data sector sequence halves", 4096 + 4, 4096 + 4092, 8192 + 4, 8192 + 4092)
def sector_sequence(body, value):
    put(body, value, "I", struct.unpack_from("<I", body, value)[0] ^ 1)


@no_entry(28, "more data descriptors than data sectors", 96, 160)
def too_many_data_descriptors(body, value):
    body[value:value + 32] = body[64:96]
    put(body, 24, "I", max(3, (value - 32) // 32))


# ---- rows 29 to 43: what entries say ---------------------------------------------------------------------------------


@refused(29, "FileOffset of data", "LOG", "log descriptor at 0x100040: target {}", 0x300001, 0x300200, 0x300FFF)
def data_offset(image, value):
    dirty(image, Entry([Data(value, BAT_JUNK)]))


@refused(29, "FileOffset of zeros", "LOG", "log descriptor at 0x100040: target {}", 0x300001, 0x300200)
def zero_offset(image, value):
    dirty(image, Entry([Zero(value, 4096)]))


@refused(30, "ZeroLength", "LOG", "log descriptor at 0x100040: .*length {}", 1, 512, 4097, 2 ** 64 - 1, 2 ** 63 + 512)
def zero_length(image, value):
    dirty(image, Entry([Zero("bat", value)]))


@refused(31, "end of the target overflows", "LOG", "log descriptor at 0x100040: target", (2 ** 64 - 8192, 12288),
         (MiB, 2 ** 64 - MiB), (2 ** 64 - 4096, 4096), (2 ** 64 - 4096, 2 ** 64 - 4096), (2 ** 63, 2 ** 63))
def target_overflow(image, value):
    dirty(image, Entry([Zero(*value)]))


@refused(31, "data at the end of all numbers", "LOG", "target 0xfffffffffffff000")
def data_overflow(image):
    dirty(image, Entry([Data(2 ** 64 - 4096, BAT_JUNK)]))


@refused(32, "target in identifier or headers", "LOG", "target {}.*identifier or the headers", 0, 0x10000, 0x20000,
         0x2F000)
def target_header(image, value):
    dirty(image, Entry([Data(value, bytes(4096))]))


@refused(32, "zeros reach into the headers", "LOG", "target {}.*identifier or the headers", 0, 0x1000, 0x2F000)
def zeros_over_header(image, value):
    dirty(image, Entry([Zero(value, 0x40000 - value)]))


@refused(33, "target in the log", "LOG", "target {}.*in the log itself at 0x100000", 0x100000, 0x1FF000)
def target_log(image, value):
    dirty(image, Entry([Data(value, bytes(4096))]))


@refused(33, "zeros over the log", "LOG", "in the log itself", (0x50000, 2 * MiB), (0xFF000, 8192), (0x1FF000, 8192))
def zeros_over_log(image, value):
    dirty(image, Entry([Zero(*value)]))


@refused(34, "target behind the end", "LOG", "target {}.*ends behind 0xc00000", 12 * MiB, TiB, 2 ** 62)
def target_behind_end(image, value):
    dirty(image, Entry([Data(value, BAT_JUNK)]))


@refused(34, "zeros reach behind the end", "LOG", "ends behind 0xc00000", (12 * MiB - 4096, 8192), (4 * MiB, 2 ** 62))
def zeros_behind_end(image, value):
    dirty(image, Entry([Zero(*value)]))


@tolerated(34, "a later entry says that the file goes on")
def target_in_growth(image):
    dirty(image, Entry([Zero(100 * MiB, MiB)], tail="self", last=12 * MiB), Entry(last=128 * MiB))
    image.log.entries[1].tail = image.log.entries[0]


@refused(35, "LastFileOffset", "LOG|LIMIT", "LastFileOffset {}", 2 ** 50 + MiB, 2 ** 62, 2 ** 63 - MiB, 2 ** 63,
         2 ** 64 - MiB)
def last_file_offset(image, value):
    dirty(image, Entry(last=value))


@refused(35, "LastFileOffset of an older entry", "LOG|LIMIT", "LastFileOffset {}", 2 ** 62)
def older_last_file_offset(image, value):
    first = Entry(last=value, tail="self")
    dirty(image, first, Entry([Zero(2 ** 61, 4096)], tail=first))


@refused(36, "FlushedFileOffset", "TRUNCATED", "at least {} bytes, but it has 0xc00000", 13 * MiB, 2 ** 62,
         2 ** 64 - MiB)
def flushed_file_offset(image, value):
    dirty(image, Entry(flushed=value))


@refused(37, "newest entry lies over the oldest of its run", "LOG", "log at 0x100000: .*none of its 255 intact entries")
def entry_over_tail(image):
    first = Entry(tail="self")
    others = [Entry(tail=first) for _ in range(254)]
    dirty(image, first, *others, Entry([Data("bat", BAT_JUNK)], tail=first))


@tolerated(37, "run as long as the ring")
@tolerated(38, "scan ends though the run covers the ring")
def full_ring(image):
    first = Entry([Data("bat")], tail="self")
    dirty(image, first, *[Entry(tail=first) for _ in range(254)])
    image.home = [("bat", bytes(4096))]


@tolerated(38, "scan ends though the run covers the ring from its middle")
def full_ring_from_middle(image):
    full_ring(image)
    image.log.entries[0].at = 0x70000


@refused(39, "entries inside each other", "LOG", "log at 0x100000: its entries lie inside each other")
def nested_entries(image):
    """Each of 8192 sectors could begin an entry as long as the ring."""
    dirty(image)
    image.log.length = 32 * MiB
    return lambda built: fill_ring(built, 32 * MiB)


@refused(40, "two newest entries", "LOG", "log offsets 0x0 and 0x8000 both claim")
def two_heads(image):
    dirty(image, Entry(at=0, tail="self", seq=77), Entry(at=0x8000, tail="self", seq=77))


@tolerated(40, "two old entries with one number and a newer one")
def two_older_heads(image):
    dirty(image, Entry([Data("bat", BAT_JUNK)], at=0, tail="self", seq=77),
          Entry([Data("bat", BAT_JUNK)], at=0x8000, tail="self", seq=77), Entry(at=0x10000, tail="self", seq=78))


@refused(41, "dirty log without an entry", "LOG", "log at 0x100000: .*none of its 0 intact entries")
def nothing_to_replay(image):
    dirty(image)


@refused(41, "newest run is broken", "LOG", "none of its 2 intact entries")
def broken_run(image):
    dirty(image, Entry([Data("bat")], tail=0x8000), Entry(tail=0x8000))


@row(42)
def test_row_042_replay_writes_nothing(hostile, tmp_path):
    image = make_dirty(sound(), ["bat", "metadata", "regions"], home="junk", per_entry=20)
    built = image.build(tmp_path / "disk.vhdx")
    os.chmod(built.path, 0o444)
    before = file_sha256(built.path)
    hostile.reads(built, tmp_path)
    assert file_sha256(built.path) == before


@row(42)
def test_row_042_replay_can_be_refused(api, tmp_path):
    built = make_dirty(sound()).build(tmp_path / "disk.vhdx")
    assert api.open_code(built.path, flags=api.flags["REFUSE_DIRTY"]) == api.codes["LOG_DIRTY"]
    assert "log at 0x100000" in api.message()


@tolerated(43, "zero ranges over and over", 20, 40000)
def many_zero_ranges(image, value):
    """Over space that nothing owns, so the disk stays as it was; each entry has as many as one sector holds."""
    image.file_length = 512 * GiB
    generator = random.Random(value)
    entries = []
    for number in range(-(-value // 126)):
        ranges = []
        for _ in range(126):
            start = generator.randrange(64 * MiB, 512 * GiB, 4096)
            ranges.append(Zero(start, generator.randrange(0, 512 * GiB - start + 1, 4096)))
        entries.append(Entry(ranges, tail=entries[0] if entries else "self"))
    dirty(image, *entries)
    image.log.length = 2 * MiB


@refused(43, "more changes than any writer logs", "LIMIT", "log at 0x100000: more than")
def too_many_changes(image):
    """2^19 + 1 zero descriptors in one entry."""
    image.log.length = 20 * MiB
    dirty(image)

    def write(built):
        nr_sectors, seq = 4097, 9
        count = 126 + 128 * (nr_sectors - 1)
        head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, 4096 * nr_sectors, 0, seq, count, 0, SESSION, MiB, 64 * MiB)
        zeros = struct.pack("<4sIQQQ", b"zero", 0, 4096, 40 * MiB, seq)
        checksum, behind = crc32c(head + zeros * 126), Appended(zeros * 128)
        for _ in range(nr_sectors - 1):
            checksum = behind(checksum)
        change_file(built, MiB, head[:4] + struct.pack("<I", checksum) + head[8:] + zeros * count)
    return write
