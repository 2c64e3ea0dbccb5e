# SPDX-License-Identifier: MIT
"""Hostile block allocation tables (format section 11, rows 76 to 87), and requests outside of the disk (row 89)."""
import ctypes
import re

from hostile_support import *
from vhdxbuild import *

rows = Rows()
refused, tolerated = rows.refused, rows.tolerated
test_refused, test_tolerated = rows.tests()


@refused(76, "BAT region too small", "BAT", "BAT at 0x[0-9a-f]+: 1048576 bytes", (256 * GiB, MiB), (64 * TiB, MiB),
         (64 * TiB, 256 * MiB))
def bat_too_small(image, value):
    small = Image(value[0], block_size=value[1], seed=1)
    small.region("bat").length = MiB
    return small


@refused(77, "reserved bits of a block", "BAT", "BAT entry at 0x300028 .block 5.", 3, 8, 19)
def reserved_bits(image, value):
    image.bat_raw[5] = 20 * MiB | FULLY_PRESENT | 1 << value
    image.file_length = 30 * MiB


@refused(77, "reserved bits of a block without data", "BAT", "BAT entry at 0x300028", 0, 2)
def reserved_bits_no_data(image, value):
    image.bat_raw[5] = value | 1 << 10


@refused(77, "reserved bits of a bitmap", "BAT", "BAT entry at 0x304000 .bitmap of chunk 0.", 3, 19, child=True)
def reserved_bits_bitmap(image, value):
    image.bitmaps[0] = Bitmap(at=20 * MiB, raw=20 * MiB | SB_PRESENT | 1 << value)


@refused(78, "reserved state of a block", "BAT", "BAT entry at 0x300028 .block 5.: .*reserved state", 4, 5)
def reserved_state(image, value):
    image.bat_raw[5] = value


@refused(78, "reserved state of a bitmap", "BAT|BITMAP", "BAT entry (2048 )?at 0x304000 .bitmap of chunk 0.", 1, 2, 3,
         4, 5, 7, child=True)
def reserved_state_bitmap(image, value):
    image.bitmaps[0] = Bitmap(at=20 * MiB, raw=20 * MiB | value)


@tolerated(78, "any bitmap entry in an image without parent", 7, 20 * MiB | 6, 2 ** 64 - 1, 0xFFFFFFFFFFF00006)
def stray_bitmap_entry(image, value):
    """QEMU leaves them (10.3)."""
    large = Image(8 * GiB, block_size=2 * MiB, seed=1)
    large.write(5 * GiB, 4096, Pattern(3))
    large.bat_raw[2048] = value
    return large


@refused(79, "block with data but no place", "BAT", "BAT entry at 0x300028 .block 5.", 6)
def no_place(image, value):
    image.bat_raw[5] = value


@refused(79, "block with data but no place", "BAT", "BAT entry at 0x300028 .block 5.", 6, 7, child=True)
def no_place_child(image, value):
    image.bat_raw[5] = value


@refused(79, "bitmap without place", "BAT", "BAT entry at 0x304000 .bitmap of chunk 0.", child=True)
def no_place_bitmap(image):
    image.bitmaps[0] = Bitmap(raw=SB_PRESENT)


@refused(80, "block beyond any file", "BAT", "BAT entry at 0x300028 .block 5.: {}", 0xFFFFFFFFFFF00006,
         0x8000000000000006, 0x7FFFFFFFFFF00006, 0xFFFFFFFFFFF00003, 0xFFFFFFFFFFF00001)
def place_overflow(image, value):
    image.bat_raw[5] = value


@refused(80, "bitmap beyond any file", "BAT", "BAT entry at 0x304000", 0xFFFFFFFFFFF00006, 0x7FFFFFFFFFF00006,
         child=True)
def place_overflow_bitmap(image, value):
    image.bitmaps[0] = Bitmap(raw=value)


@refused(81, "block behind the end of the file", "TRUNCATED", "BAT entry at 0x300028 .block 5.: its space at {}",
         11 * MiB, 12 * MiB, 2 ** 62)
def behind_end(image, value):
    image.bat_raw[5] = value | FULLY_PRESENT


@refused(81, "bitmap behind the end of the file", "TRUNCATED", "BAT entry at 0x304000 .*its space at {}", 2 ** 40,
         child=True)
def bitmap_behind_end(image, value):
    image.bitmaps[0] = Bitmap(raw=value | SB_PRESENT)


@refused(81, "last block cut below the disk's end", "TRUNCATED", "BAT entry at 0x300018 .block 3.")
def last_block_cut(image):
    cut = Image(7 * MiB, block_size=2 * MiB, kind="fixed", seed=1)
    cut.file_length = cut.plan().structures_end - MiB - 512
    return cut


@tolerated(81, "last block cut behind the disk's end", 0, 512, MiB - 512)
def last_block_short(image, value):
    cut = Image(7 * MiB, block_size=2 * MiB, kind="fixed", seed=1)
    cut.set_block(3, data=Pattern(3))
    cut.file_length = cut.plan().structures_end - MiB + value
    return cut


@refused(82, "two blocks in one place", "BAT", "BAT entry 5 at 0x300028: .*BAT entry 0 too", 0)
def same_place(image, value):
    image.bat_raw[5] = image.plan().where("block:0") + value | FULLY_PRESENT


@refused(82, "blocks overlap", "BAT", "BAT entry 5 at 0x300028: .*BAT entry [01] too", MiB, 3 * MiB)
def overlapping_place(image, value):
    image.bat_raw[5] = image.plan().where("block:0") + value | FULLY_PRESENT


@row(82)
def test_row_082_overlap_far_into_a_table_is_not_searched_for_without_end(hostile, tmp_path):
    image = Image(40_000 * MiB, block_size=MiB, default_state=ZERO)
    image.write(0, MiB, Pattern(1))
    for index in (30_000, 30_100):
        image.bat_raw[index] = image.plan().where("block:0") + 8 * MiB | FULLY_PRESENT
    image.file_length = 64 * MiB
    hostile.refuses(image.build(tmp_path / "disk.vhdx").path, "BAT entry 30100 at 0x.*another BAT entry too")


@refused(83, "block over a structure", "BAT", "BAT entry at 0x300028: payload block 5 .*overlaps", "log", "metadata",
         "bat", "region:other")
def block_over(image, value):
    image.regions.append(Region("other", required=0, at=30 * MiB))
    image.file_length = 40 * MiB
    image.bat_raw[5] = image.plan().where(value) | FULLY_PRESENT


@refused(83, "bitmap over a structure", "BAT", "BAT entry at 0x304000: sector bitmap block 0 .*overlaps", "log",
         "metadata", "bat", child=True)
def bitmap_over(image, value):
    image.bitmaps[0] = Bitmap(raw=image.plan().where(value) | SB_PRESENT)


@refused(84, "anchor over a structure", "BAT", "BAT entry at 0x300028: payload block 5 .*overlaps", UNDEFINED, UNMAPPED)
def anchor_over_structure(image, value):
    image.bat_raw[5] = 2 * MiB | value


@refused(84, "anchor over a block", "BAT", "BAT entry 5 at 0x300028: .*BAT entry 0 too", UNDEFINED, UNMAPPED)
def anchor_over_block(image, value):
    image.bat_raw[5] = image.plan().where("block:0") | value


@refused(84, "anchor behind the end of the file", "TRUNCATED", "BAT entry at 0x300028", UNDEFINED, UNMAPPED)
def anchor_behind_end(image, value):
    image.bat_raw[5] = 2 ** 41 | value


@tolerated(84, "place of a block that owns none", NOT_PRESENT, ZERO)
def place_without_meaning(image, value):
    image.bat_raw[5] = image.plan().where("block:0") | value


@refused(85, "partially present without parent", "BAT", "BAT entry at 0x300028 .block 5.: .*no parent")
def partial_without_parent(image):
    image.bat_raw[5] = 20 * MiB | PARTIALLY_PRESENT
    image.file_length = 30 * MiB


@refused(86, "partially present without bitmap", "BITMAP", "BAT entry 2048 at 0x304000: chunk 0", child=True)
def no_bitmap(image):
    image.bitmaps[0] = Bitmap(SB_NOT_PRESENT)


@refused(87, "bitmap over a block", "BAT", "BAT entry 2048 at 0x304000: .*BAT entry [34] too", 0, MiB, child=True)
def bitmap_over_block(image, value):
    image.bitmaps[0] = Bitmap(raw=image.plan().where("block:3") + value | SB_PRESENT)


@refused(87, "one bitmap for two chunks", "BAT", "BAT entry 4097 at 0x308008: .*BAT entry 2048 too", child=True)
def bitmap_shared(image):
    large = Image(8 * GiB, block_size=2 * MiB, seed=8, parent=image.parent)
    large.write(MiB, 4096, Pattern(1))
    large.write(5 * GiB, 4096, Pattern(1))
    large.bitmaps = {0: Bitmap(at=40 * MiB), 1: Bitmap(raw=40 * MiB | SB_PRESENT)}
    return large


@row(89)
def test_row_089_requests_outside_of_the_disk(api, tmp_path):
    built = sound().build(tmp_path / "disk.vhdx")
    code, handle = api.open(built.path)
    assert code == 0
    top = 2 ** 64
    for offset, length in [(16 * MiB, 1), (16 * MiB - 1, 2), (16 * MiB + 1, 0), (0, 16 * MiB + 1), (top - 1, 1),
                           (top - 1, 2), (top - 512, 1024), (2 ** 63, 512)]:
        code, _ = api.pread(handle, offset, length)
        assert code == -22, (offset, length, code)
        assert re.search(r"\d", api.message())
    for offset, length in [(0, 0), (16 * MiB, 0), (16 * MiB - 1, 1), (1, 1), (511, 2), (0, 16 * MiB)]:
        code, data = api.pread(handle, offset, length)
        assert (code, data) == (0, built.expected(offset, length)), (offset, length)
    visit = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda *_: 0)
    for offset, length in [(0, 16 * MiB + 1), (16 * MiB, 1), (top - 1, 2), (1, top - 1), (2 ** 63, 2 ** 63)]:
        code = api.lib.vhdx_map(handle, ctypes.c_uint64(offset), ctypes.c_uint64(length), visit, None)
        assert code == -22, (offset, length, code)
    buffers = (ctypes.c_size_t * 4)(1, 2 ** 63 - 1, 1, 1)    # two iovecs whose lengths do not add up in a ssize_t
    for count in (-1, 2, 1 << 30):
        assert api.lib.vhdx_preadv(handle, buffers, ctypes.c_int(count), ctypes.c_uint64(0)) == -22, count
    api.lib.vhdx_close(handle)
