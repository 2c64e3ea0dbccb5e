# SPDX-License-Identifier: MIT
"""What another image rests on is not replaced, even if not everything about the two can be known; and nothing else is kept."""
import pytest
from cli_support import find_strace
from conftest import run_program
from vhdxbuild import *


def disk(path, seed=1, **keywords):
    return Image(8 * MiB, block_size=MiB, seed=seed, **keywords).write(0, MiB, Pattern(seed))


@pytest.mark.parametrize("name, opened", [(".d.vhdx", [".d.state", ".d"]), ("a.img", ["a.state", "A"])])
def test_what_can_be_no_relative_by_its_name_is_not_opened(vhdx_path, tool, tmp_path, name, opened):
    others = [".e.state", ".dd", "abc", "film.iso", "d.state"]
    disk(tmp_path / name).build(tmp_path / name)
    for other in opened + others:
        (tmp_path / other).write_bytes(bytes(MiB))
    log = tmp_path / "log of calls"
    strace = [find_strace(tool), "-y", "-qq", "-o", log, "-e", "trace=openat"]
    run_program([*strace, vhdx_path, "create", "-q", "--force", tmp_path / name, "8M"], rc=0)
    lines = [line for line in log.read_text().splitlines() if "O_PATH" not in line]
    seen = [other for other in opened + others if any(f"/{other}>" in line for line in lines)]
    assert seen == opened
