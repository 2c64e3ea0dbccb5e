# SPDX-License-Identifier: MIT
"""Random valid images and chains, each from one seed: geometry, layout, block states, partial writes, damaged spare
structures, dirty logs.  Whatever the shape, every command must agree with what the builder put in.

VHDX_SEEDS says how many seeds (from 0), or which ("4000-4999"); a failure names its seed, so that
VHDX_SEEDS=4711-4711 runs it again."""
import random

import pytest
from reading import assert_reads_as_built, map_of, seeds
from vhdxbuild import *

LOGICAL_SECTORS = (512, 4096)


def random_image(generator, seed, size, lss, parent):
    """One image of a chain; what it holds is in the builder's model."""
    kind = None if parent else generator.choice(("dynamic", "dynamic", "fixed"))
    image = Image(size, kind=kind, parent=parent, seed=seed, lss=lss, pss=generator.choice((512, 4096)),
                  block_size=generator.choice((1, 1, 2, 4, 32, 256)) * MiB,
                  payload_order=generator.choice(("ascending", "descending", "shuffled")),
                  payload_gap=generator.randrange(3) * MiB, block_gap=generator.randrange(2) * MiB,
                  order=generator.sample(("log", "metadata", "bat"), 3))
    image.log.length = generator.choice((1, 1, 2, 8)) * MiB
    nr_blocks = -(-size // image.block_size)
    for number in range(generator.randrange(12)):
        offset = generator.randrange(size // lss) * lss
        length = min(generator.choice((1, 2, 7, 64, 2048, 5000)) * lss, size - offset)
        image.write(offset, length, Pattern(seed * 100 + number))
    if kind != "fixed":
        for block in generator.sample(range(nr_blocks), min(nr_blocks, generator.randrange(6))):
            if block not in image.blocks:
                image.set_block(block, generator.choice((NOT_PRESENT, ZERO, UNMAPPED, UNDEFINED)))
    return image


def damage_spares(generator, image):
    """Break what has an intact second copy."""
    if generator.random() < 0.3:
        image.headers[0].damage = generator.choice(("crc", "signature", "torn", "zero", "junk"))
    if generator.random() < 0.3:
        generator.choice(image.region_tables).damage = generator.choice(("crc", "signature", "torn", "zero", "junk"))


def dirty_log(generator, image, parent):
    pages = ["bat"] + (["bitmap"] if parent and image.blocks and generator.random() < 0.5 else [])
    try:
        make_dirty(image, pages, home=generator.choice(("zero", "junk")), per_entry=generator.choice((None, 1, 3)),
                   start=generator.randrange(image.log.length // 4096) * 4096, supersede=generator.random() < 0.3,
                   shuffle=generator.random() < 0.5, opening=generator.random() < 0.7, closing=generator.random() < 0.3)
    except ValueError:
        pass  # nothing there that could be moved, or more than the log can hold: the image stays clean


def random_chain(seed, folder):
    generator = random.Random(seed)
    lss = generator.choice(LOGICAL_SECTORS)
    size = generator.choice((lss, MiB, 33 * MiB + 3 * lss, 64 * MiB, 130 * MiB - lss, 300 * MiB))
    parent = None
    for depth in range(generator.choice((1, 1, 2, 3, 5))):
        image = random_image(generator, seed * 10 + depth, size, lss, parent)
        if generator.random() < 0.4:
            dirty_log(generator, image, parent)
        damage_spares(generator, image)
        parent = image.build(folder / f"{depth}.vhdx")
        if generator.random() < 0.3:
            size += generator.randrange(40) * MiB  # a child may be larger
    return parent


def assert_map_is_true(vhdx, built, raw):
    """What the map calls zero is zero; what it calls data lies where it says."""
    with open(raw, "rb") as disk:
        for extent in map_of(vhdx, built.path):
            disk.seek(extent["start"])
            content = disk.read(extent["length"])
            if extent["zero"]:
                assert not content.strip(b"\0"), f"not zero: {extent}"
            else:
                with open(extent["filename"], "rb") as file:
                    file.seek(extent["offset"])
                    stored = file.read(extent["length"])
                assert content == stored.ljust(len(content), b"\0"), f"not stored there: {extent}"


@pytest.mark.parametrize("seed", seeds("10"))
def test_seed(seed, vhdx, tmp_path):
    built = random_chain(seed, tmp_path)
    raw = tmp_path / "out.raw"
    assert_reads_as_built(vhdx, built, tmp_path)
    assert_map_is_true(vhdx, built, raw)
    assert vhdx("check", built.path).rc in (0, 3)
    vhdx("compare", "-f", "vhdx", "-F", "raw", built.path, raw, rc=0)
    chain = vhdx("info", "--chain", "--json", built.path, rc=0).json()
    assert chain[0]["virtual-size"] == built.size
