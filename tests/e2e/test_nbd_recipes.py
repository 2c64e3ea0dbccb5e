# SPDX-License-Identifier: MIT
"""What docs/serving.md tells people to type: the QEMU command line, the libvirt XML, the systemd units, the kernel's client."""
import os
import pathlib
import re
import subprocess
import xml.etree.ElementTree

import pytest

from conftest import find_tool, run_program
from nbd_support import client, nbd, plugin, raw_content, serve
from vhdxbuild import Image, MiB, Pattern
from waiting import SECONDS, is_listening, wait_until
from writing import expect_no_errors


@pytest.fixture(scope="module")
def page(source_root):
    return (source_root / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture
def image(tmp_path):
    description = Image(16 * MiB, block_size=MiB)
    description.write(2 * MiB, 4096, Pattern(1))
    return description.build(tmp_path / "disk.vhdx").path


def test_the_qemu_command_line(vhdx, plugin, page, image, tool):
    """QEMU with exactly that -blockdev and -device; its monitor writes through them."""
    qemu = tool("qemu-system-x86_64")
    blockdev, device = re.search(r'-blockdev (\S+) \\\n +-device (virtio-blk-pci,drive=disk)', page).groups()
    backend = "/machine/peripheral/v/virtio-backend"
    monitor = "".join(f'qemu-io -d {backend} "{command}"\n' for command in ("write -P 7 1M 64k", "discard 2M 1M", "flush")) + "quit\n"
    result = vhdx("serve", image, "--run", f"exec {qemu} -M q35 -accel tcg -nodefaults -display none -S -monitor stdio "
                                           f"-blockdev {blockdev} -device {device},id=v", stdin=monitor, rc=0)
    assert "wrote 65536/65536 bytes" in result.out and "discard 1048576/1048576" in result.out
    vhdx("io", "-r", image, "-c", "read -P 7 1M 64k", "-c", "read -P 0 2M 4k", rc=0)
    expect_no_errors(vhdx, image)


@pytest.mark.parametrize("where", ["page", "manual"])
def test_the_ssh_recipe(vhdx_path, vhdx, plugin, source_root, page, image, tool, tmp_path, where):
    """Word for word, with a second shell in the place of the other machine's."""
    for name in ("socat", "nbdcopy"):
        tool(name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text('#!/bin/sh\ntest "$1" = host && shift && exec sh -c "$*"\n')
    (tmp_path / "bin" / "ssh").chmod(0o755)
    (tmp_path / "bin" / "vhdx").symlink_to(vhdx_path)
    text = page if where == "page" else (source_root / "man" / "vhdx-serve.1").read_text().replace("\\-", "-").replace("\\(aq", "'")
    relaying, copying = re.search(r"^ *(?:\$ )?(socat .*ssh host .*) &\n *(?:\$ )?(nbdcopy .*)$", text, re.MULTILINE).groups()
    path = tmp_path / "disk.sock"
    words = {"shell": True, "cwd": tmp_path, "env": {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}}
    with subprocess.Popen("exec " + relaying.replace("/tmp/disk.sock", str(path)), **words) as relay:
        wait_until(lambda: is_listening(path), "socat listens")
        subprocess.run(copying.replace("/tmp/disk.sock", str(path)), **words, timeout=SECONDS, check=True)
        assert relay.wait(SECONDS) == 0
    assert (tmp_path / "disk.raw").read_bytes() == raw_content(vhdx, image, tmp_path)


def test_no_recipe_hands_a_socket_to_ssh(source_root):
    """[ CMD ] of libnbd's programs passes a listening socket, which ends at the local ssh."""
    for path in [*source_root.glob("docs/*.md"), *source_root.glob("man/*.1"), *source_root.glob("plugins/*/*.1"), source_root / "README.md"]:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"\[ ssh (?!\.\.\.)", line), f"{path}: {line}"


def test_the_libvirt_domain(page, tmp_path):
    (text,) = re.findall(r"^```xml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    disk = xml.etree.ElementTree.fromstring(text).find("devices/disk")
    assert disk.find("source").get("protocol") == "nbd"
    validate = find_tool("virt-xml-validate")
    if validate is None or find_tool("xmllint") is None:
        pytest.skip("well-formed; not held against libvirt's schema: virt-xml-validate or xmllint is missing (libvirt-clients, libxml2-utils)")
    path = tmp_path / "domain.xml"
    path.write_text(text)
    run_program([validate, path, "domain"], rc=0)


@pytest.fixture
def units(source_root, vhdx_path, tmp_path):
    """The units, with the command that was built, for one image."""
    folder = tmp_path / "units"
    folder.mkdir()
    for name in ("vhdx-serve@.socket", "vhdx-serve@.service.in"):
        text = (source_root / "contrib" / "systemd" / name).read_text(encoding="utf-8")
        text = text.replace("@bindir@/vhdx", str(vhdx_path))
        for instance in ("", "srv-vm-disk.vhdx"):
            (folder / name.replace(".in", "").replace("@", f"@{instance}")).write_text(text)
    return folder


def test_systemd_takes_the_units(units):
    analyze = find_tool("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed (Debian package systemd)")
    result = run_program([analyze, "verify", "--man=no", units / "vhdx-serve@srv-vm-disk.vhdx.service",
                          units / "vhdx-serve@srv-vm-disk.vhdx.socket"], env={"SYSTEMD_UNIT_PATH": f"{units}:"})
    ours = [line for line in result.err.splitlines() if "vhdx" in line]
    assert ours == [], result.describe()


def test_what_the_service_runs(vhdx, units, plugin, nbd, image, tmp_path):
    """Its command line, started by a socket as systemd would."""
    activate = find_tool("systemd-socket-activate")
    if activate is None:
        pytest.skip("systemd-socket-activate is not installed (Debian package systemd)")
    line = re.search(r"^ExecStart=(.*)$", (units / "vhdx-serve@.service").read_text(), re.MULTILINE).group(1)
    argv = line.replace("$VHDX_SERVE_OPTIONS", "--read-only").replace("%f", str(image)).split()
    socket = tmp_path / "s"
    with subprocess.Popen([activate, "-l", socket, *argv], stderr=subprocess.PIPE) as process:
        assert b"Listening" in process.stderr.readline()
        handle = client(nbd, f"nbd+unix:///?socket={socket}")
        assert handle.is_read_only() and handle.pread(512, 2 * MiB) == Pattern(1).read(2 * MiB, 512)
        process.terminate()
        assert process.wait(SECONDS) == 0


def test_kernel_client(serve, vhdx, need_root, image, tool):
    nbd_client = tool("nbd-client")
    if not os.path.exists("/sys/module/nbd"):
        run_program([find_tool("modprobe") or "true", "nbd"])
    device = next((name for name in (f"/dev/nbd{i}" for i in range(16))
                   if os.path.exists(name) and not pathlib.Path(f"/sys/block/{name[5:]}/pid").exists()), None)
    if device is None:
        pytest.skip("the kernel has no NBD client here (module nbd)")
    with serve(image) as server:
        run_program([nbd_client, "-unix", server.uri.split("=")[1], device, "-block-size", "512", "-C", "4"], rc=0)
        try:
            run_program(["dd", "if=/dev/zero", f"of={device}", "bs=1M", "seek=4", "count=1", "conv=fsync"], rc=0)
            with open(device, "rb") as disk:
                disk.seek(2 * MiB)
                assert disk.read(512) == Pattern(1).read(2 * MiB, 512)
        finally:
            run_program([nbd_client, "-d", device], rc=0)
        assert server.end()[0] == 0
    expect_no_errors(vhdx, image)
