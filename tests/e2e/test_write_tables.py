# SPDX-License-Identifier: MIT
"""Tables that were changed in memory and are not in their places in the file yet."""
import os

import pytest
from vhdxbuild import GiB, Image, MiB


def test_changed_table_pages_are_seen_over_holes_of_the_file(vhdx, tmp_path):
    """Where the file has a hole instead of a table page, walking the table jumps; but not over pages that live in memory
    only.  On tmpfs a page that was set aside and not written stays a hole."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    path = os.path.join(folder, f"vhdx-test-tables-{os.getpid()}.vhdx")
    try:
        Image(8 * GiB, block_size=MiB).build(path)
        out = vhdx("io", path, "-c", "write -P 9 3000M 4k", "-c", "map", rc=0).out
        assert f"{3000 * MiB:#x}" in out or f"{3000 * MiB}" in out, out
        assert any(extent["data"] and extent["start"] == 3000 * MiB
                   for extent in vhdx("map", "--json", path, rc=0).json())
    except OSError as error:
        pytest.skip(f"no room for a sparse file: {error}")
    finally:
        if os.path.exists(path):
            os.unlink(path)
