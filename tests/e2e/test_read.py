# SPDX-License-Identifier: MIT
"""Reading: every geometry, state and log, judged by the independent builder; and the wrong answers that other readers are
known to give, each by its name."""
import copy
import hashlib
import os
import random
import subprocess

import pytest
from cli_support import held_by_qemu
from reading import assert_reads_as_built, file_sha256, map_of
from vhdxbuild import *

# ---- real images -----------------------------------------------------------------------------------------------------


def test_real_images_read_to_their_known_checksums(vhdx, tmp_path, real_images, real_image_sha256):
    assert real_images, "there is a folder, but no image in it"
    for name, path in real_images.items():
        before = file_sha256(path)
        vhdx("convert", "--force", path, tmp_path / "out.raw", rc=0, timeout=300)
        assert file_sha256(tmp_path / "out.raw") == real_image_sha256[name], name
        assert vhdx("check", "-q", path, rc=0).out == ""
        assert file_sha256(path) == before


# ---- geometry --------------------------------------------------------------------------------------------------------

GEOMETRIES = [
    # size, block size, logical, physical sector
    (512, MiB, 512, 512),
    (4096, 256 * MiB, 4096, 4096),
    (1 * MiB, MiB, 512, 4096),
    (1 * MiB + 512, MiB, 512, 512),
    (3 * MiB, 2 * MiB, 512, 512),
    (100 * MiB - 4096, 32 * MiB, 4096, 4096),
    (300 * MiB, 256 * MiB, 512, 4096),
    (4 * GiB, MiB, 512, 4096),
    (4 * GiB + 512, MiB, 512, 4096),
    (127 * GiB, 2 * MiB, 512, 4096),
    (127 * GiB + 512, 32 * MiB, 512, 4096),
    (40 * GiB, 32 * MiB, 4096, 4096),
    (64 * TiB, MiB, 512, 4096),
    (64 * TiB, 256 * MiB, 4096, 4096),
]


@pytest.mark.parametrize("size, block_size, lss, pss", GEOMETRIES)
@pytest.mark.parametrize("kind", ["dynamic", "fixed", "differencing"])
def test_geometry(vhdx, tmp_path, size, block_size, lss, pss, kind):
    if kind == "fixed" and size > GiB:
        pytest.skip("a fixed disk of this size would need a table of its own size on disk")
    parent = None
    if kind == "differencing":
        base = Image(size, block_size=32 * MiB, lss=lss, pss=pss, seed=1)
        scatter(base, 50, 1)
        parent = base.build(tmp_path / "base.vhdx")
    image = Image(size, block_size=block_size, lss=lss, pss=pss, kind=kind if not parent else None, parent=parent, seed=2)
    scatter(image, 60, 2)
    built = image.build(tmp_path / "disk.vhdx")
    assert vhdx("check", built.path).rc == 0
    assert_probes(vhdx, built, tmp_path)


def scatter(image, count, seed):
    """Sector-aligned writes at the borders of blocks and chunks and at random places."""
    lss, size, bs = image.lss, image.size, image.block_size
    chunk = (1 << 23) * lss
    generator = random.Random(seed)
    places = {0, size - lss}
    for border in (bs, 2 * bs, chunk, 2 * chunk, size // bs * bs):
        places |= {border - lss, border}
    for _ in range(count):
        places.add(generator.randrange(size // lss) * lss)
    for number, place in enumerate(sorted(places)):
        if 0 <= place < size:
            length = min(generator.choice((lss, 2 * lss, 7 * lss, 64 * lss)), size - place)
            image.write(place, length, Pattern(seed * 1000 + number))


def assert_probes(vhdx, built, folder):
    """Compare what a small disk holds whole; of a big one what the map calls data, and that the map calls nothing else."""
    if built.size <= 2 * GiB:
        assert_reads_as_built(vhdx, built, folder)
        return
    raw = os.path.join(folder, "out.raw")
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else folder  # holds files of 64 TiB, which ext4 does not
    raw = os.path.join(shm, f"vhdx-test-{os.getpid()}.raw")
    try:
        vhdx("convert", "--force", built.path, raw, rc=0, timeout=300)
        difference = built.first_difference(raw)
        assert difference is None, difference
    finally:
        if os.path.exists(raw):
            os.unlink(raw)


@pytest.mark.parametrize("place", [5 * GiB, 2 * TiB + 7 * MiB, 15 * TiB])
def test_files_larger_than_4_gib_and_2_tib(vhdx, tmp_path, place):
    image = windows(100 * MiB)
    image.set_block(1, at=place, data=Pattern(5))
    image.write(0, 4096, Pattern(6))
    try:
        built = image.build(tmp_path / "far.vhdx")
    except OSError as error:
        pytest.skip(f"the file system holds no such file: {error}")
    assert_reads_as_built(vhdx, built, tmp_path)
    assert any(extent.get("offset") == place for extent in map_of(vhdx, built.path))


@pytest.mark.parametrize("order", ["descending", "shuffled"])
def test_blocks_in_any_physical_order(vhdx, tmp_path, order):
    image = Image(64 * MiB, block_size=MiB, payload_order=order, block_gap=MiB)
    image.write(0, 64 * MiB, Pattern(1))
    assert_reads_as_built(vhdx, image.build(tmp_path / "a.vhdx"), tmp_path)


@pytest.mark.parametrize("preset", ["windows", "qemu", "disk2vhd"])
def test_layouts_of_other_writers(vhdx, tmp_path, preset):
    image = PRESETS[preset](70 * MiB)
    if preset != "disk2vhd":
        image.write(3 * MiB + 512, 5 * MiB, Pattern(2))
    else:
        image.set_block(3, data=Pattern(3))
    built = image.build(tmp_path / "a.vhdx")
    assert_reads_as_built(vhdx, built, tmp_path)
    assert vhdx("check", built.path).rc == 0


def test_unknown_optional_region_and_items_are_ignored(vhdx, tmp_path):
    image = windows(64 * MiB)
    image.regions.append(Region("other", required=0, length=3 * MiB, content=Pattern(7)))
    image.items.append(Item("user thing", b"some data", flags=IS_USER))
    image.items.append(Item("system thing", b"\1\2\3", flags=0, offset=0x10801))
    image.write(33 * MiB, 70000, Pattern(1))
    built = image.build(tmp_path / "a.vhdx")
    assert_reads_as_built(vhdx, built, tmp_path)
    assert vhdx("check", built.path).rc == 0
    item = vhdx("dump", "--item", guid_text(image.item("user thing").guid), built.path, rc=0)
    assert item.out_bytes == b"some data"


def test_last_block_cut_short_reads_zeros_behind_the_end(vhdx, tmp_path):
    image = qemu(100 * MiB, "fixed", block_state_zero=False, block_size=8 * MiB)
    image.set_block(12, data=Pattern(3))
    built = image.build(tmp_path / "short.vhdx")
    assert os.stat(built.path).st_size % (8 * MiB) != 0
    assert_reads_as_built(vhdx, built, tmp_path)
    assert vhdx("check", built.path).rc == 0


# ---- states ----------------------------------------------------------------------------------------------------------

STATES = [NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULLY_PRESENT]


def test_every_state_in_a_dynamic_image(vhdx, tmp_path):
    image = Image(20 * MiB, block_size=MiB)
    for number, state in enumerate(STATES):
        image.set_block(number, state, data=Pattern(number) if state == FULLY_PRESENT else ())
    image.set_block(8, UNMAPPED, at=AUTO, junk=Pattern(8))
    image.set_block(9, UNDEFINED, at=AUTO, junk=Pattern(9))
    image.set_block(10, NOT_PRESENT, raw=12 << 20 | NOT_PRESENT)  # the place is to be ignored in states 0 and 2
    image.set_block(11, ZERO, raw=13 << 20 | ZERO)
    built = image.build(tmp_path / "a.vhdx")
    assert_reads_as_built(vhdx, built, tmp_path)
    by_start = {extent["start"] // MiB: extent for extent in map_of(vhdx, built.path)}
    assert not by_start[0]["present"] and by_start[1]["present"] and by_start[4]["data"]


def test_UNMAPPED_UNDEFINED_and_ZERO_in_a_child_do_not_fall_through_to_the_parent(vhdx, tmp_path):
    base = Image(16 * MiB, block_size=2 * MiB, seed=1)
    base.write(0, 16 * MiB, Pattern(1))
    parent = base.build(tmp_path / "base.vhdx")
    image = Image(16 * MiB, block_size=MiB, parent=parent, seed=2)
    for number, state in enumerate((UNDEFINED, ZERO, UNMAPPED)):
        image.set_block(number, state)
        image.set_block(number + 8, state, present="none")
    image.set_block(4, UNMAPPED, at=AUTO, junk=Pattern(9))
    built = image.build(tmp_path / "child.vhdx")
    assert_reads_as_built(vhdx, built, tmp_path)
    extents = map_of(vhdx, built.path)
    assert extents[0] == {"start": 0, "length": 3 * MiB, "depth": 0, "present": True, "zero": True, "data": False}
    assert extents[1]["depth"] == 1 and extents[1]["data"]


def test_child_blocks_that_are_not_present_read_as_the_parents_not_as_zeros(vhdx, tmp_path):
    base = Image(16 * MiB, block_size=MiB, seed=1)
    base.write(0, 16 * MiB, Pattern(1))
    parent = base.build(tmp_path / "base.vhdx")
    built = Image(16 * MiB, block_size=2 * MiB, parent=parent, seed=2).build(tmp_path / "child.vhdx")
    assert_reads_as_built(vhdx, built, tmp_path)
    assert all(extent["depth"] == 1 and extent["data"] for extent in map_of(vhdx, built.path))


def test_bits_count_only_in_partially_present_blocks(vhdx, tmp_path):
    base = Image(8 * MiB, block_size=MiB, seed=1)
    base.write(0, 8 * MiB, Pattern(1))
    parent = base.build(tmp_path / "base.vhdx")
    image = Image(8 * MiB, block_size=MiB, parent=parent, seed=2)
    image.set_block(0, FULLY_PRESENT, data=Pattern(2), present="none")
    image.set_block(1, NOT_PRESENT, present="all")
    image.set_block(2, ZERO, present=[(3, 9)])
    image.set_block(3, PARTIALLY_PRESENT, data=Pattern(3), present=[(0, 1), (7, 2), (2047, 1)], junk=0xEE)
    image.set_block(4, PARTIALLY_PRESENT, data=Pattern(4), present="all")
    image.set_block(5, PARTIALLY_PRESENT, data=Pattern(5), present="none", junk=0xDD)
    assert_reads_as_built(vhdx, image.build(tmp_path / "child.vhdx"), tmp_path)


def test_bitmap_interleave_past_4_gib(vhdx, tmp_path):
    """From the second chunk on, bitmap entries shift the payload entries: readers that forget it show other blocks."""
    for lss, chunk in ((512, 4 * GiB), (4096, 32 * GiB)):
        base = Image(3 * chunk, block_size=32 * MiB, lss=lss, seed=1)
        image = Image(3 * chunk, block_size=2 * MiB, lss=lss, seed=2, parent=None, kind="dynamic")
        for number in range(4):
            for place in (number * chunk // 2, number * chunk // 2 + 33 * MiB):
                base.write(place, 65536, Pattern(number))
                image.write(place, 65536, Pattern(number + 10))
        parent = base.build(tmp_path / "base.vhdx")
        assert_probes(vhdx, image.build(tmp_path / "dynamic.vhdx"), tmp_path)
        child = Image(3 * chunk, block_size=2 * MiB, lss=lss, seed=3, parent=parent)
        for number in range(6):
            child.write(number * chunk // 2 + 5 * lss, 3 * lss, Pattern(number + 20))
        assert_probes(vhdx, child.build(tmp_path / "child.vhdx"), tmp_path)


def test_reads_that_start_mid_block_and_cross_its_end(tmp_path, vhdx_path, request):
    """Through the library, byte by byte at every border: no alignment may matter."""
    read = request.getfixturevalue("pread")
    image = Image(8 * MiB, block_size=MiB, payload_order="descending")
    for number in (0, 1, 3, 4, 6):
        image.set_block(number, data=Pattern(number))
    image.set_block(2, ZERO)
    built = image.build(tmp_path / "a.vhdx")
    generator = random.Random(7)
    requests = [(border + shift, length) for border in range(0, 8 * MiB + 1, MiB)
                for shift in (-4097, -513, -512, -1, 0, 1, 511, 4095) for length in (1, 2, 512, 513, 4096, 70000, MiB + 3)
                if 0 <= border + shift and border + shift + length <= 8 * MiB]
    requests += [(offset, generator.randrange(1, 8 * MiB - offset + 1)) for offset in
                 (generator.randrange(8 * MiB) for _ in range(40))]
    for offset, length in requests:
        assert read(built.path, offset, length) == built.expected(offset, length), (offset, length)


@pytest.fixture
def pread(library, sanitizer):
    """Read through the library itself."""
    if sanitizer != "none":
        pytest.skip(f"a library built with {sanitizer} cannot be loaded into Python")
    import ctypes
    lib = ctypes.CDLL(str(library))
    lib.vhdx_error_message.restype = ctypes.c_char_p
    handles = {}

    def read(path, offset, length):
        if path not in handles:
            handle = ctypes.c_void_p()
            assert lib.vhdx_open(os.fsencode(path), None, ctypes.byref(handle)) == 0, lib.vhdx_error_message()
            handles[path] = handle
        buf = ctypes.create_string_buffer(length)
        result = lib.vhdx_pread(handles[path], buf, ctypes.c_size_t(length), ctypes.c_uint64(offset))
        assert result == 0, lib.vhdx_error_message()
        return buf.raw
    yield read
    for handle in handles.values():
        lib.vhdx_close(handle)


# ---- chains ----------------------------------------------------------------------------------------------------------


def chain(tmp_path, depth, size=64 * MiB, seed=0, dirty=()):
    """A chain of depth images with varying blocks and sizes, each with random partial writes."""
    generator = random.Random(seed)
    parent = None
    for number in range(depth):
        bs = generator.choice((1, 2, 4, 32)) * MiB
        image = Image(size, block_size=bs, parent=parent, seed=seed * 1000 + number, pss=generator.choice((512, 4096)))
        for _ in range(4):
            offset = generator.randrange(size // 512) * 512
            length = min(generator.choice((512, 4096, 70 * 1024, 3 * MiB)), size - offset)
            image.write(offset, length, Pattern(number * 100 + generator.randrange(100)))
        free = [block for block in range(size // bs) if block not in image.blocks]
        if free and number:
            image.set_block(generator.choice(free), generator.choice((ZERO, UNMAPPED, UNDEFINED)))
        if number in dirty:
            make_dirty(image, ["bat"] + (["bitmap"] if parent else []))
        parent = image.build(tmp_path / f"layer{number}.{'a' if number else ''}vhdx")
    return parent


@pytest.mark.parametrize("depth", [2, 3, 16])
@pytest.mark.parametrize("seed", range(3))
def test_chains(vhdx, tmp_path, depth, seed):
    built = chain(tmp_path, depth, seed=seed)
    assert_reads_as_built(vhdx, built, tmp_path)
    info = vhdx("info", "--chain", "--json", built.path, rc=0).json()
    assert len(info) == depth and info[0]["filename"] == built.path
    map_of(vhdx, built.path)


def test_chain_of_256_and_refusal_of_257(vhdx, tmp_path):
    parent = None
    for number in range(257):
        image = Image(4 * MiB, block_size=MiB, parent=parent, seed=number)
        image.write(number % 8 * 512 * 1024 + number * 512, 512, Pattern(number))
        if number == 256:
            assert_reads_as_built(vhdx, parent, tmp_path)
        parent = image.build(tmp_path / f"{number}.vhdx")
    result = vhdx("convert", parent.path, "-", rc=1)
    assert "256" in result.err


def test_dirty_logs_all_through_a_chain(vhdx, tmp_path):
    assert_reads_as_built(vhdx, chain(tmp_path, 4, seed=5, dirty=(0, 1, 2, 3)), tmp_path)


@pytest.mark.parametrize("parent_size", [8 * MiB, 8 * MiB + 512, 13 * MiB, 40 * MiB])
def test_child_larger_or_smaller_than_its_parent(vhdx, tmp_path, parent_size):
    base = Image(parent_size, block_size=4 * MiB, seed=1)
    base.write(0, parent_size, Pattern(1))
    child = Image(20 * MiB, block_size=MiB, parent=base.build(tmp_path / "base.vhdx"), seed=2)
    child.write(7 * MiB + 512, 2 * MiB, Pattern(2))
    built = child.build(tmp_path / "child.vhdx")
    assert_reads_as_built(vhdx, built, tmp_path)
    assert vhdx("info", "--json", built.path, rc=0).json()["virtual-size"] == 20 * MiB


# ---- logs ------------------------------------------------------------------------------------------------------------


def dirty_image(**keywords):
    image = Image(200 * MiB, block_size=MiB, seed=3, **keywords)
    for number in range(0, 200, 7):
        image.write(number * MiB + 512 * number, 66000, Pattern(number))
    return image


@pytest.mark.parametrize("shape", [
    {}, {"home": "junk"}, {"start": MiB - 4096}, {"start": MiB - 8192, "closing": True}, {"per_entry": 1},
    {"supersede": True, "per_entry": 1}, {"shuffle": True, "home": "junk"}, {"opening": False}, {"first_seq": 2 ** 63},
    {"first_seq": 2 ** 32 - 1, "per_entry": 1},
], ids=str)
@pytest.mark.parametrize("what", [["bat"], ["bat", "metadata"], ["regions", "bat", "metadata"]], ids=str)
def test_log_ignored_without_a_word(vhdx, tmp_path, shape, what):
    """Without replay the tables of these images are wrong, so a reader that ignores the log is found out."""
    image = make_dirty(dirty_image(), what, **shape)
    built = image.build(tmp_path / "dirty.vhdx")
    assert_reads_as_built(vhdx, built, tmp_path)
    assert vhdx("info", "--json", built.path, rc=0).json()["dirty-flag"] is True
    assert vhdx("check", built.path).rc == 0


def test_log_replay_of_bitmaps_in_a_child(vhdx, tmp_path):
    base = Image(200 * MiB, block_size=32 * MiB, seed=1)
    base.write(0, 60 * MiB, Pattern(1))
    child = dirty_image(parent=base.build(tmp_path / "base.vhdx"))
    make_dirty(child, ["bat", "bitmap"], home="junk", start=MiB - 12288)
    assert_reads_as_built(vhdx, child.build(tmp_path / "child.vhdx"), tmp_path)


def test_log_replay_over_a_payload_block(vhdx, tmp_path):
    image = dirty_image()
    image.log.length = 8 * MiB
    make_dirty(image, ["bat", "block:7"], home="junk")
    assert_reads_as_built(vhdx, image.build(tmp_path / "a.vhdx"), tmp_path)


def test_data_sectors_counted_by_descriptor_number_in_entries_that_mix_zero_and_data_descriptors(vhdx, tmp_path):
    image = dirty_image()
    plan = image.plan()
    bat = plan.where("bat")
    image.log.guid = seeded_guid(3, "session")
    image.log.entries = [Entry([Zero(bat + 4096, 4096), Data("bat"), Zero(bat + 8192, 8192), Data("metadata"),
                                Data(("metadata", 0x10000))], tail="self")]
    image.home = [("bat", b"\xff" * 4096), (bat + 4096, b"\xee" * 12288), (("metadata", 0x10000), b"\x55" * 4096)]
    assert_reads_as_built(vhdx, image.build(tmp_path / "a.vhdx"), tmp_path)


def test_later_entries_win_and_nothing_before_the_tail_is_replayed(vhdx, tmp_path):
    image = dirty_image()
    image.log.guid = seeded_guid(3, "session")
    junk = b"\x07" * 4096
    image.log.entries = [Entry([Data("bat", junk)], tail="self"),   # before the tail: applied long ago
                         Entry([Data("bat", junk)]), Entry([Data("bat")]), Entry([])]
    tail = image.log.entries[1]
    for entry in image.log.entries[1:]:
        entry.tail = tail
    image.home = [("bat", b"\0" * 4096)]
    assert_reads_as_built(vhdx, image.build(tmp_path / "a.vhdx"), tmp_path)


def test_torn_last_entry_ends_the_sequence_before_it(vhdx, tmp_path):
    for torn in (512, 4096, 4096 + 512, 8191):
        image = dirty_image()
        image.log.guid = seeded_guid(3, "session")
        first = Entry([Data("bat")], tail="self")
        image.log.entries = [first, Entry([Data("bat", b"\x07" * 4096)], tail=first, torn=torn),
                             Entry([Data("bat", b"\x06" * 4096)], tail=first)]
        image.home = [("bat", b"\0" * 4096)]
        assert_reads_as_built(vhdx, image.build(tmp_path / "a.vhdx"), tmp_path)


def test_stale_entries_of_earlier_sessions_are_not_replayed(vhdx, tmp_path):
    image = dirty_image()
    image.log.entries = [Entry([Data("bat", b"\x07" * 4096)], at=0x40000, seq=2 ** 62, tail="self",
                               guid=seeded_guid(9, "old"))]
    make_dirty(image, ["bat"])
    assert_reads_as_built(vhdx, image.build(tmp_path / "a.vhdx"), tmp_path)


def test_clean_header_means_that_the_log_is_ignored_whatever_it_holds(vhdx, tmp_path):
    image = dirty_image()
    image.log.entries = [Entry([Data("bat", b"\x07" * 4096)], tail="self", guid=seeded_guid(9, "old"))]
    built = image.build(tmp_path / "a.vhdx")
    assert_reads_as_built(vhdx, built, tmp_path)
    assert vhdx("info", "--json", built.path, rc=0).json()["dirty-flag"] is False


def test_only_empty_entries_is_a_valid_dirty_log(vhdx, tmp_path):
    image = dirty_image()
    image.log.guid = seeded_guid(3, "session")
    image.log.entries = [Entry([], tail="self"), Entry([])]
    assert_reads_as_built(vhdx, image.build(tmp_path / "a.vhdx"), tmp_path)


def test_file_shorter_than_last_file_offset_reads_zeros_there(vhdx, tmp_path):
    """A crash may lose the growth of the file; the log says how long it is meant to be."""
    image = Image(20 * MiB, block_size=4 * MiB)
    image.set_block(0, data=Pattern(1))
    image.set_block(1, reads="zero")
    make_dirty(image, ["bat"])
    end = image.plan().structures_end
    for entry in image.log.entries:
        entry.flushed = 4 * MiB
        entry.last = end
    image.file_length = end - 4 * MiB
    assert_reads_as_built(vhdx, image.build(tmp_path / "a.vhdx"), tmp_path)


def test_first_header_taken_instead_of_the_newer(vhdx, tmp_path):
    """The older copy says that the log is clean, and has another identity."""
    for seqs in ((8, 9), (9, 8)):
        image = dirty_image()
        make_dirty(image, ["bat"])
        old = 0 if seqs[0] < seqs[1] else 1
        image.headers = [Header(seqs[0]), Header(seqs[1])]
        image.headers[old].log_guid = bytes(16)
        image.headers[old].data_write_guid = seeded_guid(99, "old")
        built = image.build(tmp_path / "a.vhdx")
        assert_reads_as_built(vhdx, built, tmp_path)
        data = vhdx("info", "--json", built.path, rc=0).json()["format-specific"]["data"]
        assert data["data-write-guid"] == guid_text(image.data_write_guid)


# ---- damage that must not matter ------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["crc", "signature", "torn", "zero", "junk"])
@pytest.mark.parametrize("which", [0, 1])
def test_one_damaged_header_or_region_table_does_not_matter(vhdx, tmp_path, damage, which):
    for part in ("headers", "region_tables"):
        image = dirty_image()
        getattr(image, part)[which].damage = damage
        built = image.build(tmp_path / "a.vhdx")
        assert_reads_as_built(vhdx, built, tmp_path)
        assert vhdx("check", built.path).rc == 0  # a warning: everything is there once more


def test_equal_sequence_numbers_with_identical_headers(vhdx, tmp_path):
    image = dirty_image(headers=[Header(1), Header(1)])
    built = image.build(tmp_path / "a.vhdx")
    assert_reads_as_built(vhdx, built, tmp_path)
    assert vhdx("check", built.path).rc == 0


# ---- another program as judge -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", ["1M", "2M", "32M", "256M"])
@pytest.mark.parametrize("subformat, zero", [("dynamic", "on"), ("fixed", "on"), ("fixed", "off")])
def test_images_made_and_written_by_qemu(vhdx, qemu_img, tool, tmp_path, block_size, subformat, zero):
    image, raw = tmp_path / "q.vhdx", tmp_path / "q.raw"
    qemu_img("create", "-q", "-f", "vhdx", "-o",
             f"subformat={subformat},block_size={block_size},block_state_zero={zero}", image, "150M")
    generator = random.Random(f"{block_size}{subformat}{zero}")
    for _ in range(2):  # several sessions, sequential and random
        commands = []
        for _ in range(8):
            offset = generator.randrange(149 * MiB // 512) * 512
            length = min(generator.choice((512, 4096, 100 * 1024, 3 * MiB)), 150 * MiB - offset)
            commands += ["-c", f"write -P {generator.randrange(1, 256)} {offset} {length // 512 * 512}"]
        subprocess.run([tool("qemu-io"), "-f", "vhdx", *commands, str(image)], check=True, capture_output=True)
    qemu_img("convert", "-f", "vhdx", "-O", "raw", image, raw)
    ours = tmp_path / "ours.raw"
    before = file_sha256(image)
    vhdx("convert", image, ours, rc=0)
    assert file_sha256(ours) == file_sha256(raw)
    assert vhdx("check", image).rc == 0
    assert vhdx("compare", "-F", "raw", image, raw, rc=0).rc == 0
    assert file_sha256(image) == before


def test_qemu_killed_in_the_middle_of_writing(vhdx, qemu_img, tool, tmp_path):
    """What its dirty exit leaves must read as QEMU itself reads it after its own replay."""
    image = tmp_path / "q.vhdx"
    qemu_img("create", "-q", "-f", "vhdx", "-o", "block_size=1M", image, "200M")
    commands = [argument for number in range(60) for argument in ("-c", f"write -P {number + 1} {number * 3}M 64k")]
    killed = subprocess.run([tool("qemu-io"), "-f", "vhdx", *commands, "-c", "sigraise 9", image], capture_output=True,
                            check=False)
    assert killed.returncode == -9
    ours = tmp_path / "ours.raw"
    vhdx("convert", image, ours, rc=0)
    replayed = tmp_path / "copy.vhdx"
    replayed.write_bytes(image.read_bytes())
    qemu_img("check", "-q", "-r", "all", replayed, rc=None)
    theirs = tmp_path / "theirs.raw"
    qemu_img("convert", "-O", "raw", replayed, theirs)
    assert file_sha256(ours) == file_sha256(theirs)


# ---- where output goes ------------------------------------------------------------------------------------------------


def test_convert_to_a_pipe_a_sparse_file_and_a_block_device(vhdx, vhdx_path, tmp_path, need_loop):
    image = dirty_image()
    built = image.build(tmp_path / "a.vhdx")
    expected = built.sha256()
    done = subprocess.run(f"'{vhdx_path}' convert '{built.path}' - | sha256sum", shell=True, capture_output=True, text=True)
    assert done.stdout.split()[0] == expected
    raw = tmp_path / "a.raw"
    vhdx("convert", built.path, raw, rc=0)
    assert file_sha256(raw) == expected
    assert os.stat(raw).st_blocks * 512 < 8 * MiB, "zeros were written"
    backing = tmp_path / "device"
    backing.write_bytes(b"\xaa" * (201 * MiB))
    loop = subprocess.run(["losetup", "--find", "--show", backing], check=True, capture_output=True, text=True).stdout.strip()
    try:
        vhdx("convert", "-n", built.path, loop, rc=0)
        with open(loop, "rb") as device:
            digest = hashlib.sha256()
            for _ in range(200):
                digest.update(device.read(MiB))
        assert digest.hexdigest() == expected
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_a_copy_of_the_description_is_a_deep_copy():
    image = dirty_image()
    assert copy.deepcopy(image).plan().structures_end == image.plan().structures_end


# ---- locking ----------------------------------------------------------------------------------------------------------


def test_an_image_that_qemu_writes_is_not_read_unless_forced(vhdx, qemu_img, tool, tmp_path):
    image = tmp_path / "q.vhdx"
    qemu_img("create", "-q", "-f", "vhdx", image, "64M")
    with held_by_qemu(tool("qemu-io"), image):
        refused = vhdx("convert", image, "-", rc=1)
        assert "force-share" in refused.err
        vhdx("convert", "--force-share", image, "-", rc=0)
    vhdx("convert", image, "-", rc=0)
