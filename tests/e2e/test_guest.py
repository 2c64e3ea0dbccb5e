# SPDX-License-Identifier: MIT
"""A real guest on a VHDX: a small Linux that boots from it over the NBD door, writes, discards, and is killed.

The guest says over a serial port what it has written and what it has fsynced; afterwards the disk is taken apart from
outside.  By emulation a guest takes five seconds to boot, from firmware on ten.
VHDX_SEEDS says how often a guest is killed, and with which seeds, as in test_random_images.py."""
import contextlib
import hashlib
import random
import re
import shutil
import time

import pytest
from conftest import SOURCE_ROOT, run_program
from guest_support import end_of_write, guest_system, plugin  # pylint: disable=unused-import # fixtures
from reading import seeds
from vmguest import oracle, powercut
from vmguest.disk import FileSystems, assert_durable_files_there, assert_reported_files_there, durable_in, raw_partition
from vmguest.door import Door, drive
from vmguest.machine import Machine, accelerator
from vmguest.system import find

MiB = 1 << 20
SEEDS = seeds("4" if accelerator() == "kvm" else "2")


# ---- the system, once for all tests

@pytest.fixture(scope="module")
def installed(guest_system, vhdx_path):
    """The system on a dynamic VHDX, for all tests: copy it, or make children of it."""
    image = guest_system.folder / "installed.vhdx"
    if not image.exists():
        run_program([vhdx_path, "convert", "-q", "-f", "raw", "-O", "vhdx", "--block-size=1M", guest_system.disk, image], rc=0)
    return image


@pytest.fixture
def image(installed, tmp_path):
    copy = tmp_path / "disk.vhdx"
    shutil.copyfile(installed, copy)
    return copy


# ---- looking at images

def raw_of(vhdx, image, name="after.raw"):
    raw = image.parent / name
    vhdx("convert", "-q", "--force", "-O", "raw", image, raw, rc=0)
    return raw


def assert_closed_cleanly(vhdx, image):
    vhdx("check", "-q", image, rc=0)
    assert vhdx("info", "--json", image, rc=0).json()["dirty-flag"] is False


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def look(guest_system, vhdx_path, plugin, image, folder, **machine):
    """Boot from the image; returns what the guest says about its files."""
    with Door(vhdx_path, plugin, image, folder) as door:
        with Machine(guest_system, folder, drive(door.socket), "look", **machine) as guest:
            lines = guest.finish()
        door.stop()
    return lines


def files_of(lines):
    return {line[1]: line[3] for line in lines if line[0] == "file"}


# ---- a guest that ends well

def write_in_guest(guest_system, vhdx_path, plugin, image, folder, **machine):
    """Boot from the image, write, discard, power off; returns what end_of_write() does."""
    with Door(vhdx_path, plugin, image, folder) as door:
        with Machine(guest_system, folder, drive(door.socket, "discard=unmap"), "write", **machine) as guest:
            result = end_of_write(guest, image)
        door.stop()
    return result


def assert_written(vhdx, image, lines, given_back):
    # 8 MB in files were deleted, and up to 32 MiB of the raw partition given back.
    assert given_back > 8 * MiB, f"the guest discarded, and the file shrank by no more than {given_back} bytes"
    assert_closed_cleanly(vhdx, image)
    raw = raw_of(vhdx, image)
    inside = FileSystems(raw)
    inside.assert_clean()
    assert len(files_of(lines)) == 12
    assert_reported_files_there(inside.files(), lines)
    assert not any(raw_partition(raw)), "the raw partition was discarded"


def test_guest_writes_discards_and_powers_off(guest_system, vhdx, vhdx_path, plugin, image, tmp_path):
    lines, given_back = write_in_guest(guest_system, vhdx_path, plugin, image, tmp_path, seed=1, device="virtio-scsi")
    assert_written(vhdx, image, lines, given_back)


def documented_blockdev(socket):
    """As docs/serving.md says, but for the name of the socket."""
    page = (SOURCE_ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (blockdev,) = re.findall(r"-blockdev (\S+node-name=disk\S+) ", page)
    return blockdev.replace('"$unixsocket"', str(socket))


def test_server_is_stopped_and_started_under_the_guest(guest_system, vhdx, vhdx_path, plugin, image, tmp_path):
    """A guest that is paused meanwhile notices nothing, and finds everything that it had written, flushed or not; once the
    server is killed, since pausing flushes."""
    with contextlib.ExitStack() as stack:
        door = stack.enter_context(Door(vhdx_path, plugin, image, tmp_path))
        options = ["-blockdev", documented_blockdev(door.socket) + ",reconnect-delay=300"]
        guest = stack.enter_context(Machine(guest_system, tmp_path, options, "write", seed=1))
        lines = []
        for word, times, end in (("file", 10, Door.stop), ("flushed", 5, Door.stop), ("flushed", 5, Door.kill)):
            for _ in range(times):  # among the larger files, and with direct writes
                lines += guest.wait_for(word)
            guest.command("stop")
            end(door)
            door.socket.unlink(missing_ok=True)  # one that is killed leaves it behind
            door = stack.enter_context(Door(vhdx_path, plugin, image, tmp_path, socket=door.socket))
            guest.command("cont")
        rest, given_back = end_of_write(guest, image)
        door.stop()
    assert_written(vhdx, image, lines + rest, given_back)


def test_machine_boots_from_the_disk_alone(guest_system, vhdx, vhdx_path, plugin, image, tmp_path):
    """Firmware, boot loader, kernel, initramfs, root: as a Hyper-V machine of generation 2 does it."""
    lines = look(guest_system, vhdx_path, plugin, image, tmp_path, boot="uefi", device="virtio-scsi")
    assert ["ready"] in lines  # the firmware speaks on this port, too
    assert_closed_cleanly(vhdx, image)


# ---- a guest on a child

def make_child(vhdx, parent, *options):
    child = parent.with_name(f"child of {parent.stem}.avhdx")
    vhdx("create", "-q", "--parent", parent, *options, child, rc=0)
    return child


def test_guest_on_a_child_three_levels_deep_and_merge(guest_system, vhdx, vhdx_path, plugin, image, tmp_path):
    first = make_child(vhdx, image)
    write_in_guest(guest_system, vhdx_path, plugin, first, tmp_path, seed=1)
    second = make_child(vhdx, first, "--block-size=1M")
    vhdx("io", second, "-c", "write -P 7 130M 3M", "-c", "write -P 8 140000k 4k", rc=0)  # in the raw partition
    third = make_child(vhdx, second)
    parents = (image, first, second)
    content = [sha256(parent) for parent in parents]

    lines, _ = write_in_guest(guest_system, vhdx_path, plugin, third, tmp_path, seed=2, device="virtio-scsi")
    assert [sha256(parent) for parent in parents] == content, "a parent has changed"
    for member in (*parents, third):
        assert_closed_cleanly(vhdx, member)
    flat = raw_of(vhdx, third, "flat.raw")
    inside = FileSystems(flat)
    inside.assert_clean()
    assert_reported_files_there(inside.files(), lines)
    assert not any(raw_partition(flat)), "the raw partition was discarded, yet something shows of what parents hold there"

    vhdx("merge", "-q", "--into", image, third, rc=0)
    assert_closed_cleanly(vhdx, image)
    run_program([find("cmp"), flat, raw_of(vhdx, image, "merged.raw")], rc=0)
    assert files_of(look(guest_system, vhdx_path, plugin, image, tmp_path)) == files_of(lines)


# ---- a guest that is killed

# QEMU's nvme device (seen in 7.2) tells the guest that it knows FUA and then neither passes it on nor flushes, so that ext4's
# journal is not durable when the guest thinks that it is: only with "writethrough", where QEMU gives every write FUA.
ATTACHED = [(device, cache) for device in ("virtio-blk", "virtio-scsi") for cache in ("writeback", "none", "writethrough")]
ATTACHED += [("nvme", "writethrough")]


def kill_guest(guest_system, vhdx_path, plugin, image, folder, seed, environment=None):
    """A guest killed at a moment that seed chooses, and its server; returns what it had said."""
    chance = random.Random(seed)
    device, cache = chance.choice(ATTACHED)
    nr_lines = chance.randrange(5, 150)
    with Door(vhdx_path, plugin, image, folder, env=environment) as door:
        with Machine(guest_system, folder, drive(door.socket, "discard=unmap", f"cache={cache}"), "kill", seed=seed,
                     device=device) as guest:
            lines = guest.wait_for("ready")
            while len(lines) < nr_lines:
                lines += guest.wait_for("flushed")
            time.sleep(chance.random() / 20)  # anywhere between two reports
            for victim in chance.sample((door, guest), 2):
                victim.kill()
            return lines + guest.rest()


def assert_survived(vhdx, image, lines, seed):
    check = vhdx("check", "--json", image)
    assert check.rc in (0, 3) and check.json()["corruptions"] == 0, check.describe()  # leaks: as a power cut leaves them
    raw = raw_of(vhdx, image)
    found = oracle.problems(raw_partition(raw), seed, durable_in(lines)[1])
    assert not found, "\n".join(found)
    inside = FileSystems(raw)
    inside.replay_journals()
    inside.assert_clean()
    assert_durable_files_there(inside.files(), lines)


@pytest.fixture
def victim(seed, vhdx, image):
    """The image that a guest is killed on, with odd seeds a child, whose parent must be what it was."""
    if seed % 2 == 0:
        yield image
        return
    content = sha256(image)
    yield make_child(vhdx, image)
    assert sha256(image) == content, "the parent has changed"


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_of_qemu_and_server_loses_nothing_durable(guest_system, vhdx, vhdx_path, plugin, victim, tmp_path, seed):
    lines = kill_guest(guest_system, vhdx_path, plugin, victim, tmp_path, seed)
    assert_survived(vhdx, victim, lines, seed)
    # It boots again, mends itself as after any power cut, and is then as clean as if nothing had been.
    seen = look(guest_system, vhdx_path, plugin, victim, tmp_path)
    assert_closed_cleanly(vhdx, victim)
    inside = FileSystems(raw_of(vhdx, victim, "mended.raw"))
    inside.assert_clean()
    assert_durable_files_there(inside.files(), lines)
    assert_reported_files_there(inside.files(), seen)


@pytest.mark.parametrize("seed", SEEDS)
def test_power_cut_under_the_server_loses_nothing_durable(guest_system, vhdx, vhdx_path, plugin, victim, tmp_path, build_root,
                                                          seed):
    """The same, but what the server had written and not yet flushed is gone, or only a part of it is there."""
    before, log = victim.with_name(f"before {victim.name}"), tmp_path / "steps"
    shutil.copyfile(victim, before)
    environment = powercut.environment(build_root / "tests/support/vmguest/powercut.so", victim, log)
    lines = kill_guest(guest_system, vhdx_path, plugin, victim, tmp_path, seed + 1000000, environment)
    steps = powercut.read_log(log)
    assert steps, "powercut.so saw nothing"

    after = victim.with_name(f"after {victim.name}")
    shutil.copyfile(before, after)
    powercut.cut(after, steps, random.Random(seed))
    assert_survived(vhdx, after, lines, seed + 1000000)
    if durable_in(lines)[0]:  # had the server flushed nothing, this test would have seen it
        shutil.copyfile(before, after)
        powercut.cut(after, powercut.without_flushes(steps), random.Random(seed), fate_of_all="drop")
        with pytest.raises(AssertionError):
            assert_survived(vhdx, after, lines, seed + 1000000)
