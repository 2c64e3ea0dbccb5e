# SPDX-License-Identifier: MIT
"""What the tests of hostile and damaged input (H1, H2) share; each file test_hostile_*.py has an area of format section 11.

Rows stand in two tables of each file, and as functions marked @row where they need more than one image:
  @refused     nothing may read such an image; the message says why
  @tolerated   it looks odd and reads as built
Their functions take an image and change it, or return another one; what else they return is called with what was built,
to change the file.
"""
import os
import pathlib
import re
import struct
import tempfile

import pytest
from conftest import SOURCE_ROOT
from reading import Hostile, Library
from vhdxbuild import *

__all__ = ["Appended", "BAT_JUNK", "ROWS", "Rows", "SESSION", "add_case", "api", "both", "change_file", "code_is", "dirty",
           "fill_ring", "hostile", "huge", "put", "quick", "read_file", "row", "sound", "sound_child"]

ROWS = set()            # that have a test
SESSION = seeded_guid(5, "hostile session")
BAT_JUNK = b"\x0f" * 4096   # a BAT page that nobody accepts
SANITIZED = os.environ.get("VHDX_SANITIZE", "none") != "none"


# ---- rows ------------------------------------------------------------------------------------------------------------


def row(number):
    """A test function of its own."""
    ROWS.add(number)
    return lambda function: function


def add_case(table, number, title, variants, make):
    """One case of a row for each variant, None being the only one where there are none."""
    ROWS.add(number)
    if SANITIZED and len(variants) > 2:     # each run takes ten times as long; the fuzzers try all values
        variants = (variants[0], variants[-1])
    for variant in variants:
        shown = f"{variant:#x}" if isinstance(variant, int) else str(variant)
        name = f"{number:03}-{title.replace(' ', '-')}" + ("" if variant is None else f"-{shown[:40]}")
        table.append(pytest.param(*make(variant), id=name))


class Rows:
    """The tables of one file, and the tests that go through them."""

    def __init__(self):
        self.refused_cases, self.tolerated_cases = [], []

    def refused(self, number, title, code, says, *variants, child=False, check=2, info=1):
        """code: VHDX_E_ without its prefix, several by |; says: what the message has to say, {} being the variant."""
        def decorate(function):
            def make(variant):
                value = f"{variant:#x}" if isinstance(variant, int) else str(variant)
                return function, variant, code, says.replace("{}", re.escape(value)), child, check, info
            add_case(self.refused_cases, number, title, variants or (None,), make)
            return function
        return decorate

    def tolerated(self, number, title, *variants, child=False, check=(0, 3)):
        def decorate(function):
            add_case(self.tolerated_cases, number, title, variants or (None,),
                     lambda variant: (function, variant, child, check))
            return function
        return decorate

    def tests(self):
        """The functions that a file gives the names test_refused and test_tolerated."""
        @pytest.mark.parametrize("function, variant, code, says, child, check, info", self.refused_cases)
        def test_refused(hostile, code_is, tmp_path, function, variant, code, says, child, check, info):
            built = build(function, variant, child, tmp_path)
            hostile.refuses(built.path, says, check=check, info=info)
            code_is(built.path, *code.split("|"))

        @pytest.mark.parametrize("function, variant, child, check", self.tolerated_cases)
        def test_tolerated(hostile, tmp_path, function, variant, child, check):
            hostile.reads(build(function, variant, child, tmp_path), tmp_path, check=check)
        return test_refused, test_tolerated


# ---- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(vhdx_path, sanitizer):
    return Hostile(vhdx_path, sanitizer)


@pytest.fixture
def api(library, sanitizer):
    if sanitizer not in ("", "none"):
        pytest.skip("a library with sanitizers cannot be loaded into Python")
    return Library(library, SOURCE_ROOT / "include" / "vhdx.h")


@pytest.fixture
def code_is(request, sanitizer):
    """code_is(path, "LOG", ...): opening gives one of these VHDX_E_* codes; not looked at in builds with sanitizers."""
    if sanitizer not in ("", "none"):
        return lambda *_, **__: None
    api = request.getfixturevalue("api")

    def judge(path, *names, **keywords):
        code = api.open_code(path, **keywords)
        assert code in [api.codes[name] for name in names], f"{code}: {api.message()}"
        return api.message()
    return judge


@pytest.fixture
def quick(tmp_path):
    """A folder in memory where there is one."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="vhdx-test-") as place:
            yield pathlib.Path(place)


@pytest.fixture
def huge(quick):
    """A folder for files of any apparent length."""
    try:
        with open(quick / "probe", "wb") as probe:
            probe.truncate(1 << 51)
    except OSError as error:
        pytest.skip(f"no file system here holds files of 2 PiB: {error}")
    os.unlink(quick / "probe")
    return quick


# ---- images ----------------------------------------------------------------------------------------------------------


def sound(**keywords):
    """16 MiB in 2 MiB blocks; 0, 1, 2 and 6 have data."""
    image = Image(keywords.pop("size", 16 * MiB), **{"block_size": 2 * MiB, "seed": 1, **keywords})
    image.write(0, 5 * MiB, Pattern(image.seed))
    return image.write(13 * MiB, 512, Pattern(image.seed + 1))


def sound_child(folder, **keywords):
    """Over a parent in parent.vhdx; block 3 is its own, of 4 it has a part."""
    parent = sound(seed=7).build(folder / "parent.vhdx")
    image = Image(16 * MiB, **{"block_size": 2 * MiB, "seed": 8, "parent": parent, **keywords})
    image.locator = Locator.relative(parent.data_write_guid, ".\\parent.vhdx")
    image.write(6 * MiB, 2 * MiB, Pattern(8))
    return image.write(9 * MiB, 64 * KiB, Pattern(9))


def both(image, **fields):
    """The same in both headers."""
    for header in image.headers:
        for name, value in fields.items():
            setattr(header, name, value)


def dirty(image, *entries):
    image.log.guid = SESSION
    image.log.entries = list(entries)
    return image


def build(function, variant, child, folder):
    image = sound_child(folder) if child else sound()
    made = function(image, variant) if variant is not None else function(image)
    if isinstance(made, Image):
        image, made = made, None
    built = image.build(folder / "disk.vhdx")
    if made:
        made(built)
    return built


# ---- bytes -----------------------------------------------------------------------------------------------------------


def put(body, offset, form, value):
    struct.pack_into("<" + form, body, offset, value)


def change_file(built, offset, data):
    with open(built.path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def read_file(built, offset, length):
    with open(built.path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def fill_ring(built, length, guids=None, **fields):
    """Write plausible entry headers (format section 4.4, E1 to E6) into every sector of the first length bytes."""
    head = {"entry_length": built.image.log.length, "tail": 0, "seq": 5, "count": 0, **fields}
    packed = struct.pack("<4sIIIQII", b"loge", 0, head["entry_length"], head["tail"], head["seq"], head["count"], 0)
    guids = guids or [SESSION]
    sectors = [(packed + guid_ + struct.pack("<QQ", MiB, MiB)).ljust(4096, b"\0") for guid_ in guids]
    piece = b"".join(sectors) * max(1, 256 // len(sectors))
    for offset in range(0, length, len(piece)):
        change_file(built, built.where("log") + offset, piece[:length - offset])


class Appended:
    """What the same bytes, appended, do to a checksum: an affine map, so doing it often is cheap."""

    def __init__(self, data):
        self.base = crc32c(data, 0)
        self.bits = [crc32c(data, 1 << bit) ^ self.base for bit in range(32)]

    def __call__(self, crc):
        result = self.base
        for bit, change in enumerate(self.bits):
            if crc >> bit & 1:
                result ^= change
        return result
