# SPDX-License-Identifier: MIT
"""What tests with guests share: the system that they boot, and the end of what it does."""
import os

import pytest
from nbd_support import plugin  # pylint: disable=unused-import # a fixture
from vmguest.system import Missing, System, find


@pytest.fixture(scope="module")
def guest_system(tmp_path_factory, build_root, plugin):  # no guest without a door
    kernel = os.environ.get("VHDX_GUEST_KERNEL", f"{build_root}-guest-kernel")
    try:
        for program in ("qemu-system-x86_64", "e2fsck", "debugfs"):
            find(program)
        return System(tmp_path_factory.mktemp("guest"), kernel, build_root / "tests/support/vmguest/guest-worker")
    except Missing as missing:
        pytest.skip(f"no guest: {missing}")


def stored(image):
    return os.stat(image).st_blocks * 512


def end_of_write(guest, image):
    """The last part of the guest's jobs that write: all lines, and how many bytes the discards gave back."""
    lines = guest.wait_for("written")
    before = stored(image)
    guest.tell()
    lines += guest.wait_for("trimmed")
    after = stored(image)
    guest.tell()
    return lines + guest.finish(), before - after
