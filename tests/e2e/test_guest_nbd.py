# SPDX-License-Identifier: MIT
"""The kernel's NBD client as docs/serving.md has it: nbd.ko and nbd-client in a guest, which reaches "vhdx serve --port" on
this machine through QEMU's user network.  No root, and no module in this machine's kernel."""
import hashlib
import re

import pytest
from conftest import SOURCE_ROOT, run_program
from guest_support import end_of_write, guest_system, plugin  # pylint: disable=unused-import # fixtures
from nbd_support import Serve
from vmguest.machine import Machine
from vmguest.system import HERE, Missing, MiB, find
from vmguest.toolbox import Toolbox

FILE_SYSTEM = (1, 100)  # first MiB, MiBs
RAW = (101, 26)
HOST = "10.0.2.2"  # the name that QEMU's user network has for this machine
NETWORK = ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]


# ---- what the guest gets

def documented_recipe(port, port_4096):
    """docs/serving.md's commands, but for the server's: that runs here, so clients get an address instead of a socket."""
    page = (SOURCE_ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    section = page.split("## The kernel's NBD client\n")[1].split("\n## ")[0]
    commands = [command for line in re.findall(r"^    # (.*)$", section, re.MULTILINE) for command in line.split("; ")]
    load, serve, connect, attach, *detach, end = commands
    assert serve.startswith("vhdx serve --socket /run/disk.sock ") and end == "kill %1", commands
    assert " -unix /run/disk.sock " in connect and connect.endswith(" -C 4"), connect
    connect = connect.replace("-unix /run/disk.sock", f"{HOST} {port}")
    functions = {
        "load": load, "connect": connect, "attach": attach, "detach": " && ".join(detach),
        "connect_once": connect.removesuffix(" -C 4"),
        "connect_4096": connect.replace(f" {port} ", f" {port_4096} ").replace("nbd0", "nbd1").replace(" 512", " 4096"),
    }
    return "".join(f"{name}() {{\n    {command}\n}}\n" for name, command in functions.items())


@pytest.fixture
def toolbox(guest_system, tmp_path):
    """toolbox(recipe) -> QEMU's options for the disk with all that this guest has and others have not."""
    modules = guest_system.modules
    if not (modules / "kernel/drivers/net/virtio_net.ko").exists():
        pytest.skip(f"no network in guests: {modules.parents[2]} is older than this test; remove it, and "
                    "scripts/fetch-guest-kernel.sh makes a new one")

    def make(recipe):
        try:
            with Toolbox(tmp_path / "toolbox.tar") as box:
                box.add_program("nbd-client")
                box.add_program("mkfs.ext4")
                box.add_modules(modules, "nbd", "virtio_net")
                box.add_file(HERE / "guest-nbd.sh", "job.sh")
                box.add_text(recipe, "recipe.sh")
        except Missing as missing:
            pytest.skip(f"no NBD client for the guest: {missing} (Debian package nbd-client)")
        return box.options()
    return make


# ---- images

@pytest.fixture
def image(vhdx, tmp_path):
    """A disk with two partitions and nothing in them."""
    raw = tmp_path / "empty.raw"
    with open(raw, "wb") as file:
        file.truncate(128 * MiB)
    table = "label: gpt\n" + "".join(f"start={start}MiB, size={length}MiB\n" for start, length in (FILE_SYSTEM, RAW))
    run_program([find("sfdisk"), "--quiet", raw], stdin=table, rc=0)
    vhdx("convert", "-q", "-f", "raw", "-O", "vhdx", "--block-size=1M", raw, tmp_path / "disk.vhdx", rc=0)
    return tmp_path / "disk.vhdx"


@pytest.fixture
def image_4096(vhdx, tmp_path):
    vhdx("create", "-q", "--logical-sector-size=4096", tmp_path / "4096.vhdx", "64M", rc=0)
    return tmp_path / "4096.vhdx"


def content_of(vhdx, image):
    vhdx("check", "-q", image, rc=0)
    assert vhdx("info", "--json", image, rc=0).json()["dirty-flag"] is False
    raw = image.with_suffix(".raw")
    vhdx("convert", "-q", "-O", "raw", image, raw, rc=0)
    return raw.read_bytes()


def files_in(content, folder):
    """[[name, size, SHA-256]] of what lies in its folder "files"; the file system must have no errors."""
    partition = folder / "partition"
    partition.write_bytes(content)
    run_program([find("e2fsck"), "-f", "-n", partition], rc=0)
    run_program([find("debugfs"), "-R", f"rdump /files {folder}", partition], rc=0)
    return sorted([f"files/{path.name}", str(path.stat().st_size), hashlib.sha256(path.read_bytes()).hexdigest()]
                  for path in (folder / "files").iterdir())


# ---- the test

def run_guest(guest_system, folder, options, image):
    """Returns what the guest said, and how many bytes its discards gave back."""
    boot = ["-drive", f"file={guest_system.disk},format=raw,if=none,id=disk,snapshot=on"]
    with Machine(guest_system, folder, [*boot, *options, *NETWORK], "more", device="virtio-scsi") as guest:
        return end_of_write(guest, image)


def test_kernel_client(guest_system, toolbox, vhdx, vhdx_path, plugin, image, image_4096, tmp_path):
    def serve(path):
        return Serve([vhdx_path, "serve", "--port", "0", path], {"VHDX_NBDKIT_PLUGIN": str(plugin)})
    with serve(image) as server, serve(image_4096) as server_4096:
        recipe = documented_recipe(*(one.uri.rpartition(":")[2] for one in (server, server_4096)))
        lines, given_back = run_guest(guest_system, tmp_path, toolbox(recipe), image)
        ends = [one.end() for one in (server, server_4096)]
    assert [status for status, _ in ends] == [0, 0], ends
    assert "closed cleanly after 5 connections" in ends[0][1], "four, and then one"
    assert "closed cleanly after 4 connections" in ends[1][1]
    assert given_back >= 9 * MiB, f"8 MB in a file and 2 MiB were discarded, and the image shrank by {given_back} bytes"

    def said(word):
        return sorted(line[1:] for line in lines if line[0] == word)
    content = content_of(vhdx, image)
    file_system, raw = (content[start * MiB:(start + length) * MiB] for start, length in (FILE_SYSTEM, RAW))
    assert len(said("file")) == 6
    assert said("again") == said("file"), "seen by one connection"
    assert files_in(file_system, tmp_path) == said("file")
    (_, nr_bytes, sha256), (_, nr_bytes_4096, sha256_4096) = said("raw")
    kept = int(nr_bytes)
    assert hashlib.sha256(raw[:kept]).hexdigest() == sha256 and not any(raw[kept:])
    assert said("sector") == [["4096"]]
    assert hashlib.sha256(content_of(vhdx, image_4096)[:int(nr_bytes_4096)]).hexdigest() == sha256_4096
