# SPDX-License-Identifier: MIT
"""Random chains, written at every level before the next child is made, with blocks and disks of all sizes and logs that a kill left dirty,
against a model of the disk: by "vhdx check", by what vhdx reads and by a second reader.

VHDX_SEEDS says how many seeds (from 0), or which ("4000-4999"); a failure names its seed, so that
VHDX_SEEDS=4711-4711 runs it again."""
import random

import pytest
from reading import file_fingerprint, seeds
from vhdxbuild import *
from writing import Chain, Held, Model, random_commands


@pytest.mark.parametrize("seed", seeds("5"))
def test_chain(vhdx, vhdx_path, tmp_path, seed):
    generator = random.Random(seed)
    folder = tmp_path
    lss, nr_levels = generator.choice(((512, 2), (512, 3), (4096, 3), (4096, 2), (512, 5)))
    size = generator.choice((7, 12, 20)) * MiB + generator.choice((0, 4096, MiB // 2))
    vhdx("create", "-q", "--block-size", generator.choice(("1M", "2M")), "--logical-sector-size", lss, folder / "0", size, rc=0)
    model = Model(bytes(size))
    paths, before = [folder / "0"], {}
    for level in range(nr_levels):
        if level:
            block = generator.choice((1, 2, 2, 32, 256)) * MiB
            size = max(MiB, size + generator.choice((0, 0, 2 * MiB, -2 * MiB)))
            vhdx("create", "-q", "--block-size", block, "--parent", paths[-1], folder / str(level), size, rc=0)
            paths.append(folder / str(level))
            model = Model(bytes(model.content[:size]).ljust(size, b"\0"))
        lines = random_commands(generator, model, MiB, 14, source=folder / "source")
        if generator.random() < 0.4:        # killed when all is durable: the log stays dirty
            with Held(vhdx_path, paths[-1]) as held:
                held.do(*lines, "flush")
                held.kill()
            assert vhdx("info", "--json", paths[-1], rc=0).json()["dirty-flag"]
        else:
            vhdx("io", paths[-1], stdin="\n".join(lines).encode(), rc=0)
        Chain(paths).judge(vhdx, model, folder)
        for path, fingerprint in before.items():
            assert file_fingerprint(path) == fingerprint, f"{path} was changed through a child"
        before[paths[-1]] = file_fingerprint(paths[-1])
