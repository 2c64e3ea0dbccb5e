# SPDX-License-Identifier: MIT
"""Random damage (H1): some bytes of an image changed, checksums mostly made right again."""
import os
import random
import struct

import pytest
from hostile_support import *
from reading import file_sha256
from vhdxbuild import *

ROUNDS = int(os.environ.get("VHDX_MUTATIONS", "20"))    # for each of 16 seeds; many more to look for trouble
INTERESTING = [0, 1, 2, 3, 4, 5, 6, 7, 0x7F, 0x80, 0xFF, 0xFFF, 0x1000, 0xFFFF, 0x10000, 0xFFFFF, MiB, 2 * MiB, 3 * MiB,
               4 * MiB, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFF00000, 2 ** 32, 2 ** 50, 2 ** 62, 2 ** 63 - MiB,
               2 ** 63 - 1, 2 ** 63, 2 ** 64 - MiB, 2 ** 64 - 1]


def mutation_subject(kind, folder):
    image = sound_child(folder) if kind == "child" else sound()
    image.regions.append(Region("other", required=0, at=30 * MiB))
    image.items.append(Item("mine", b"user data", flags=IS_USER))
    image.set_block(5, UNMAPPED, at=AUTO, junk=Pattern(5))
    image.log.entries = [Entry([Data("bat", BAT_JUNK)], at=0x40000, seq=2 ** 62, tail="self")]
    if kind != "clean":
        make_dirty(image, ["bat", "metadata"] + (["bitmap"] if kind == "child" else []), per_entry=3, start=MiB - 8192,
                   closing=True)
    return image.build(folder / "disk.vhdx")


def mutation_targets(built):
    """(start, length, what repairs its checksum): everything that has a meaning."""
    plan, metadata, bat = built.plan, built.where("metadata"), built.where("bat")
    targets = [(0, 520, None)]
    targets += [(slot, 96, (slot, 4096)) for slot in (0x10000, 0x20000)]
    targets += [(slot, 16 + 32 * 4, (slot, 65536)) for slot in (0x30000, 0x40000)]
    targets += [(metadata, 32 + 32 * 8, None)]
    targets += [(metadata + offset, length, None) for offset, length, _ in plan.item_places.values()]
    targets += [(bat, 10 * 8, None), (bat + 2048 * 8, 8, None)]
    targets += [(at, 256, None) for at in plan.bitmap_at.values()]
    for number, entry in enumerate(plan.log_entries):
        at = built.where(f"logentry:{number}")
        targets += [(at, 64 + 32 * 5, number)] * 2
        if entry.length > 4096:
            targets.append((at + 4096, 100, number))
    return targets


class Mutant:
    """A file with some bytes changed, until restore()."""

    def __init__(self, built, generator):
        self.built, self.saved = built, []
        self.file = open(built.path, "r+b", buffering=0)
        targets = mutation_targets(built)
        for _ in range(generator.choice((1, 1, 1, 2, 4))):
            start, length, repair = generator.choice(targets)
            self.change(start + generator.randrange(length), generator)
            if repair is not None and generator.random() < 0.8:
                self.repair(repair)

    def read(self, offset, length):
        return os.pread(self.file.fileno(), length, offset)

    def write(self, offset, data):
        self.saved.append((offset, self.read(offset, len(data))))
        os.pwrite(self.file.fileno(), data, offset)

    def change(self, offset, generator):
        width = generator.choice((1, 2, 4, 8))
        how = generator.randrange(5)
        if how == 0:
            data = bytes([self.read(offset, 1)[0] ^ 1 << generator.randrange(8)])
        elif how == 1:
            data = generator.randbytes(generator.randrange(1, 17))
        elif how == 2:
            old = int.from_bytes(self.read(offset // width * width, width), "little")
            offset = offset // width * width
            new = old + generator.choice((-4096, -512, -1, 1, 8, 512, 4096, MiB))
            data = (new & (1 << 8 * width) - 1).to_bytes(width, "little")
        else:
            offset = offset // width * width
            data = (generator.choice(INTERESTING) & (1 << 8 * width) - 1).to_bytes(width, "little")
        self.write(offset, data)

    def repair(self, what):
        if isinstance(what, tuple):
            slot, length = what
            body = self.read(slot, length)
            self.write(slot + 4, struct.pack("<I", crc32c(body[:4] + bytes(4) + body[8:])))
            return
        at, length = self.built.where("log"), self.built.image.log.length
        entry = self.built.plan.log_entries[what]
        stated = struct.unpack("<I", self.read(at + entry.at + 8, 4))[0]
        ring = self.read(at, length)
        body = (ring[entry.at:] + ring[:entry.at])[:stated if 0 < stated <= length else entry.length]
        self.write(at + entry.at + 4, struct.pack("<I", crc32c(body[:4] + bytes(4) + body[8:])))

    def restore(self):
        for offset, data in reversed(self.saved):
            os.pwrite(self.file.fileno(), data, offset)
        self.file.close()


@pytest.mark.parametrize("seed", range(16))
def test_random_damage(hostile, quick, seed):
    kind = ("dirty", "child", "clean", "child")[seed % 4]
    built = mutation_subject(kind, quick)
    hostile.reads(built, quick)
    generator = random.Random(seed)
    before = file_sha256(built.path)
    nr_refused = 0
    for number in range(ROUNDS):
        mutant = Mutant(built, generator)
        try:
            nr_refused += judge_mutant(hostile, built.path, quick)
        except AssertionError as error:
            places = [(hex(at), len(old)) for at, old in mutant.saved]
            raise AssertionError(f"seed {seed}, mutation {number}: {places}\n{error}") from error
        mutant.restore()
    assert file_sha256(built.path) == before, "the test itself does not clean up"
    assert ROUNDS < 10 or 0 < nr_refused < ROUNDS, "mutations are all harmless or all deadly: not a good mixture"


def judge_mutant(hostile, path, folder):
    """Whatever happens, it is no crash and no contradiction.  Returns whether the image was refused."""
    raw = folder / "out.raw"
    raw.unlink(missing_ok=True)
    converted = hostile("convert", path, raw).returncode
    mapped = hostile("map", path).returncode
    info = hostile("info", "--json", path).returncode
    hostile("dump", "--json", path)
    check = hostile("check", path, rc=(0, 1, 2, 3)).returncode
    assert mapped == converted, f"map says {mapped}, convert {converted}"
    if check in (0, 3):
        assert converted == 0 and info == 0, f"check says {check}, but convert {converted} and info {info}"
    return converted
