# SPDX-License-Identifier: MIT
"""Writing into images as other programs lay them out (format section 10): what they do oddly is no obstacle, and the next session
finds it mended where that is possible."""
import os
import struct

import pytest
from vhdxbuild import *
from writing import KiB, Chain, Model

SIZE = 20 * MiB


def cut_short():
    """QEMU, fixed: the file ends where the disk does, inside the last block."""
    return qemu(SIZE, "fixed", block_state_zero=False, block_size=8 * MiB).set_block(2, data=Pattern(3))


def headers(path):
    with open(path, "rb") as file:
        raw = file.read(0x21000)
    return [raw[at:at + 4096] for at in (0x10000, 0x20000)]


def sequence_numbers(path):
    return sorted(struct.unpack_from("<Q", raw, 8)[0] for raw in headers(path))


@pytest.mark.parametrize("image, warnings", [
    pytest.param(lambda: windows(SIZE), [], id="windows"),
    pytest.param(lambda: qemu(SIZE), [], id="qemu"),
    pytest.param(lambda: qemu(SIZE, "fixed", file_length=64 * MiB), [71], id="qemu-fixed"),     # a block without space
    pytest.param(cut_short, [], id="qemu-cut-short"),
    pytest.param(lambda: disk2vhd(SIZE).set_block(3, data=Pattern(3)), [], id="disk2vhd"),
    pytest.param(lambda: Image(SIZE, block_size=2 * MiB, headers=[Header(0), Header(1)]), [], id="numbered-from-0"),
])
def test_layouts_of_other_writers(vhdx, image, warnings, tmp_path):
    built = image().build(tmp_path / "a.vhdx")
    model = Model(built.expected(0, SIZE))
    first = sequence_numbers(built.path)[1] + 1
    for session in range(2):
        vhdx("io", built.path, stdin="\n".join([
            model.write(SIZE - 512 - session * KiB, 512, 7 + session),          # in the last block
            model.write(3 * MiB - KiB, 2 * KiB, 9 + session),
            model.zero(8 * MiB + session * MiB, MiB)]).encode(), rc=0)
        Chain([built.path]).judge(vhdx, model, tmp_path)
        # Both copies were written, one after the other (2.4), and say the same.
        numbers, copies = sequence_numbers(built.path), headers(built.path)
        assert numbers[0] >= first and numbers[1] == numbers[0] + 1
        assert copies[0][16:] == copies[1][16:]
        assert os.stat(built.path).st_size % MiB == 0
        first = numbers[1] + 1
    findings = vhdx("check", "--json", built.path).json()["findings"]
    assert [finding["rule"] for finding in findings if finding["severity"] in ("warning", "error")] == warnings
