# SPDX-License-Identifier: MIT
"""Hostile files, headers and identifiers (format section 11, rows 1 to 17, 88 and 105 to 107): what they say, and where the
file ends."""
import os
import re
import socket
import struct

import pytest
from hostile_support import *
from vhdxbuild import *

rows = Rows()
refused, tolerated = rows.refused, rows.tolerated
test_refused, test_tolerated = rows.tests()


@refused(1, "file length below the header area", "TRUNCATED", "only {} bytes", 8, 520, 64 * KiB, 0x30000, 0x4FFFF,
         MiB - 1)
def file_length(image, value):
    image.file_length = value


@refused(1, "file length below the signature", "NOT_VHDX", "at offset 0", 0, 1, 7, check=1)
def no_file_length(image, value):
    image.file_length = value


@row(2)
@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "socket"])
def test_row_002_file_type(hostile, tmp_path, kind):
    path = tmp_path / "image.vhdx"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        socket.socket(socket.AF_UNIX).bind(os.fspath(path))
    for command in ("info", "map", "dump", "check", "convert"):
        message = hostile(command, path, *(["-"] if command == "convert" else []), rc=1).err
        assert kind in message


@refused(3, "identifier signature", "NOT_VHDX", 'no "vhdxfile" at offset 0', b"vhdxfilE", b"VHDXFILE", b"conectix",
         bytes(8))
def signature(image, value):
    image.signature = value


@tolerated(4, "creator string", b"\xff" * 512, "A".encode("utf-16-le") * 256, b"\0\xd8" * 256, b"\0\xdc", b"A",
           b"\x1b\0[\0002\0J\0", b"\n\0\r\0\x07\0", b"\x2e\x20" + b"a\0", b"")
def creator(image, value):
    image.creator = value


@row(4)
def test_row_004_creator_string_is_shown_cleaned(vhdx, tmp_path):
    image = sound(creator="a\x1b[2J\nb\u202ec\ud800d" + "e" * 300)
    path = image.build(tmp_path / "disk.vhdx").path
    for command in ("info", "dump"):
        assert vhdx(command, path, rc=0).out.replace("\n", "").isprintable()
        vhdx(command, "--json", path, rc=0).json()
    creator_shown = vhdx("info", "--json", path, rc=0).json()["format-specific"]["data"]["creator"]
    assert "\ud800" not in creator_shown and creator_shown.startswith("a")


@refused(5, "both headers damaged", "HEADER", "no usable header: copy 1 at 0x10000 .*copy 2 at 0x20000", "crc",
         "signature", "torn", "zero", "junk")
def headers_damaged(image, value):
    both(image, damage=value)


@tolerated(5, "one header damaged", (0, "crc"), (1, "crc"), (0, "zero"), (1, "zero"), (1, "torn"))
def header_damaged(image, value):
    image.headers[value[0]].damage = value[1]


@refused(6, "header checksum over the defined bytes only", "HEADER", "wrong checksum")
def header_checksum_scope(image):
    both(image, reserved=b"x")

    def short_checksum(built):
        for slot in (0x10000, 0x20000):
            body = bytearray(read_file(built, slot, 80))
            body[4:8] = bytes(4)
            change_file(built, slot + 4, struct.pack("<I", crc32c(body)))
    return short_checksum


@refused(6, "header changed behind the defined bytes", "HEADER", "wrong checksum", 80, 3000, 4095)
def header_reserved_changed(image, value):
    image.patches += [Patch((name, value), b"x") for name in ("header1", "header2")]


@refused(7, "equal sequence numbers", "HEADER", "0x10000 and 0x20000 .*sequence number [01],", 0, 1)
def equal_sequence(image, value):
    image.headers = [Header(value), Header(value, file_write_guid=bytes(range(16)))]


@tolerated(7, "equal sequence numbers and all else")
def identical_headers(image):
    image.headers = [Header(5), Header(5)]


@tolerated(8, "last sequence number", (2 ** 64 - 2, 2 ** 64 - 1), (2 ** 64 - 1, 2 ** 64 - 2), (2 ** 64 - 1, 0))
def last_sequence_number(image, value):
    """Reading is all that there is yet, and it updates nothing."""
    image.headers = [Header(value[0]), Header(value[1])]


@refused(9, "Version", "UNSUPPORTED", "Version is", 0, 2, 0xFFFF)
def version(image, value):
    """The older header, which has version 1, is none to fall back to."""
    image.headers[1].version = value


@tolerated(9, "Version of the older header", 2)
def older_version(image, value):
    image.headers[0].version = value


@refused(10, "LogVersion of a dirty log", "UNSUPPORTED", "LogVersion is", 1, 0xFFFF)
def log_version(image, value):
    make_dirty(image)
    both(image, log_version=value)


@tolerated(10, "LogVersion of a clean log", 1)
def clean_log_version(image, value):
    both(image, log_version=value)


@refused(11, "dirty log without length", "HEADER", "LogLength is 0")
def no_log_length(image):
    both(dirty(image), log_length=0)


@tolerated(11, "no log at all")
def no_log(image):
    both(image, log_length=0, log_offset=0)


@refused(12, "LogOffset", "HEADER", "LogOffset {}", 0, 512 * KiB, MiB + 4096, MiB + 1, 0xFFF)
def log_offset(image, value):
    make_dirty(image)
    both(image, log_offset=value)


@tolerated(12, "LogOffset of a clean log", 0, MiB + 4096, 2 ** 64 - 1)
def clean_log_offset(image, value):
    both(image, log_offset=value)


@refused(13, "LogLength", "HEADER", "LogLength {}", 4096, MiB + 4096, MiB - 1)
def log_length(image, value):
    make_dirty(image)
    both(image, log_length=value)


@tolerated(13, "LogLength of a clean log", 4096, MiB + 1)
def clean_log_length(image, value):
    both(image, log_length=value)


@refused(14, "LogLength beyond the limit", "LIMIT", "LogLength {}", GiB + MiB, 0xFFF00000, 0xFFFFFFFF)
def log_too_long(image, value):
    make_dirty(image)
    both(image, log_length=value)


@refused(14, "LogLength beyond the limit, clean", "LIMIT", "LogLength {}", GiB + MiB)
def clean_log_too_long(image, value):
    both(image, log_length=value)


@refused(15, "log behind the end of the file", "TRUNCATED", "log at {}", 64 * MiB, 2 ** 62, 2 ** 63 - MiB)
def log_behind_end(image, value):
    make_dirty(image)
    both(image, log_offset=value)


@refused(15, "log half behind the end of the file", "TRUNCATED", "length {}", 64 * MiB)
def log_half_behind_end(image, value):
    make_dirty(image)
    both(image, log_length=value)


@refused(16, "LogOffset beyond any file", "HEADER", "LogOffset {}", 2 ** 63, 2 ** 64 - MiB)
def log_offset_negative(image, value):
    make_dirty(image)
    both(image, log_offset=value)


@refused(17, "log over a region", "HEADER|REGION", "overlaps", "metadata", "bat")
def log_over_region(image, value):
    both(image, log_offset=image.plan().where(value))


@refused(17, "dirty log over a region", "HEADER|REGION", "0x100000..0x200000")
def dirty_log_over_region(image):
    make_dirty(image)
    image.regions.append(Region("other", required=0, at=30 * MiB, declared_at=MiB))


@refused(17, "log over a block", "BAT", "0x100000")
def log_over_block(image):
    make_dirty(image)
    image.bat_raw[5] = MiB | FULLY_PRESENT


# ---- how long the file is -------------------------------------------------------------------------------------------


@row(88)
def test_row_088_file_longer_than_any(hostile, code_is, huge):
    image = sound()
    image.file_length = 2 ** 50 + MiB
    built = image.build(huge / "disk.vhdx")
    hostile.refuses(built.path, "file is 0x4000000100000 bytes", check=(1, 2))
    code_is(built.path, "LIMIT")


@row(107)
@row(88)
@pytest.mark.parametrize("kind", ["clean", "dirty", "far block", "child"])
def test_row_107_sparse_file_of_1_PiB(hostile, huge, kind):
    image = sound_child(huge) if kind == "child" else sound()
    image.file_length = 2 ** 50
    if kind == "far block":
        image.set_block(4, at=2 ** 50 - 2 * MiB, data=Pattern(4))
    if kind == "dirty":
        make_dirty(image, ["bat", "metadata"])
    hostile.reads(image.build(huge / "disk.vhdx"), huge)


@refused(105, "end of the file inside a structure", "TRUNCATED", "ends behind the end of the file at {}", 2 * MiB + 1,
         3 * MiB - 512, 3 * MiB, 4 * MiB - 1)
def cut_structure(image, value):
    image.file_length = value


@refused(105, "end of the file inside the log", "TRUNCATED", "log at 0x100000", MiB, MiB + 4096, 2 * MiB - 1)
def cut_log(image, value):
    make_dirty(image)
    image.file_length = value


@row(106)
@pytest.mark.parametrize("kind", ["clean", "dirty", "child"])
def test_row_106_file_shrinks_while_open(api, tmp_path, kind):
    image = sound_child(tmp_path) if kind == "child" else sound()
    if kind == "dirty":
        make_dirty(image)
    built = image.build(tmp_path / "disk.vhdx")
    block = 3 if kind == "child" else 2
    code, handle = api.open(built.path)
    assert code == 0
    os.truncate(built.path, built.where(f"block:{block}") + 4096)
    code, _ = api.pread(handle, block * 2 * MiB, 64 * KiB)
    assert code == api.codes["TRUNCATED"] and re.search("shrank from 0x[0-9a-f]+ to 0x[0-9a-f]+", api.message())
    assert api.pread(handle, block * 2 * MiB, 4096) == (0, built.expected(block * 2 * MiB, 4096))
    os.truncate(built.path, 0)
    assert api.pread(handle, block * 2 * MiB, 512)[0] == api.codes["TRUNCATED"]
    api.lib.vhdx_close(handle)


@row(106)
def test_row_106_file_shrinks_while_copied(api, tmp_path):
    built = sound().build(tmp_path / "disk.vhdx")
    code, handle = api.open(built.path)
    assert code == 0
    os.truncate(built.path, built.where("block:1"))
    with open(tmp_path / "out.raw", "w+b") as out:
        assert api.lib.vhdx_copy_to_file(handle, out.fileno(), None) == api.codes["TRUNCATED"], api.message()
        assert api.lib.vhdx_copy_to_stream(handle, out.fileno(), None) == api.codes["TRUNCATED"], api.message()
    api.lib.vhdx_close(handle)
