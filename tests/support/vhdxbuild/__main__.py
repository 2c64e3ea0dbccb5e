# SPDX-License-Identifier: MIT
"""A few images by hand: python3 tests/support/vhdxbuild windows 1G out.vhdx --write 5M:64K:1 --dirty bat"""
import argparse
import pathlib
import sys

if not __package__:   # run as a folder
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    __package__ = "vhdxbuild"

from vhdxbuild import PRESETS, Pattern, make_dirty


def number(text):
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    return int(text[:-1], 0) << units[text[-1].upper()] if text[-1].upper() in units else int(text, 0)


def main():
    parser = argparse.ArgumentParser(prog="vhdxbuild", description="Builds a VHDX image for tests.")
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("size", type=number)
    parser.add_argument("path")
    parser.add_argument("--block-size", type=number)
    parser.add_argument("--sector-size", type=number, default=512)
    parser.add_argument("--write", action="append", default=[], metavar="OFFSET:LENGTH:SEED")
    parser.add_argument("--dirty", action="append", default=[], metavar="PAGES", help="as make_dirty's what")
    parser.add_argument("--raw", metavar="PATH", help="also write the guest's disk as a raw file")
    arguments = parser.parse_args()
    keywords = {"lss": arguments.sector_size}
    if arguments.block_size:
        keywords["block_size"] = arguments.block_size
    image = PRESETS[arguments.preset](arguments.size, **keywords)
    for text in arguments.write:
        offset, length, seed = map(number, text.split(":"))
        image.write(offset, length, Pattern(seed))
    if arguments.dirty:
        make_dirty(image, arguments.dirty)
    built = image.build(arguments.path)
    if arguments.raw:
        built.write_raw(arguments.raw)


main()
