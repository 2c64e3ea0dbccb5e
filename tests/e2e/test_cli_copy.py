# SPDX-License-Identifier: MIT
"""vhdx convert and compare: what they write and refuse, and that no unfinished copy stays behind."""
import os
import pathlib
import resource
import signal
import stat
import subprocess

import pytest

from cli_support import chain, dynamic, orphan, overlapping, raw_copy, run_on_terminal
from conftest import run_program
from vhdxbuild import Image, MiB, Pattern, TiB


# ---- compare

def test_compare_equal(vhdx, dynamic, raw_copy):
    assert vhdx("compare", "-F", "raw", dynamic.path, raw_copy, rc=0).out == "Images are identical.\n"
    assert vhdx("compare", "-f", "raw", raw_copy, dynamic.path, rc=0).err == ""
    assert vhdx("compare", "--json", "--b-format=raw", dynamic.path, raw_copy, rc=0).json() == \
        {"identical": True, "first-difference": None}


def test_compare_different(vhdx, dynamic, raw_copy, tmp_path):
    other = tmp_path / "other.raw"
    other.write_bytes(raw_copy.read_bytes())
    with open(other, "r+b") as file:
        file.seek(50 * MiB + 77)
        file.write(b"x")
    result = vhdx("compare", "-F", "raw", dynamic.path, other, rc=1)
    assert result.out == f"Content mismatch at offset {50 * MiB + 77}!\n"
    assert vhdx("compare", "--json", "-F", "raw", dynamic.path, other, rc=1).json() == \
        {"identical": False, "first-difference": 50 * MiB + 77}
    assert vhdx("compare", "-q", "-F", "raw", dynamic.path, other, rc=1).out == ""


def test_compare_takes_unknown_files_as_raw_with_a_warning(vhdx, dynamic, raw_copy, tmp_path):
    result = vhdx("compare", dynamic.path, raw_copy, rc=0)
    assert result.err.startswith(f"vhdx compare: {raw_copy}: warning: ") and "-F raw" in result.err
    assert "-f raw" in vhdx("compare", raw_copy, dynamic.path, rc=0).err
    assert vhdx("compare", "-q", dynamic.path, raw_copy, rc=0).err == ""


def test_compare_does_not_take_other_formats_as_raw(vhdx, qemu_img, dynamic, tmp_path):
    other = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", other, "64M")
    assert "QCOW" in vhdx("compare", dynamic.path, other, rc=2).err.upper()


def test_compare_sizes(vhdx, dynamic, raw_copy, tmp_path):
    longer = tmp_path / "longer.raw"
    longer.write_bytes(raw_copy.read_bytes())
    os.truncate(longer, 65 * MiB)
    result = vhdx("compare", "-F", "raw", dynamic.path, longer, rc=0)
    assert "identical" in result.out and "sizes differ" in result.err
    assert vhdx("compare", "-q", "-F", "raw", dynamic.path, longer, rc=0).err == ""
    assert "Sizes differ" in vhdx("compare", "-s", "-F", "raw", dynamic.path, longer, rc=1).out
    assert vhdx("compare", "--strict", "--json", "-F", "raw", dynamic.path, longer, rc=1).json() == \
        {"identical": False, "first-difference": 64 * MiB}
    with open(longer, "r+b") as file:
        file.seek(64 * MiB + 5)
        file.write(b"x")
    assert f"offset {64 * MiB + 5}!" in vhdx("compare", "-F", "raw", dynamic.path, longer, rc=1).out


def test_compare_strictly_tells_size_and_content(vhdx, tmp_path):
    """The difference that comes first, be it in the content or where the smaller disk ends."""
    a, b = tmp_path / "a.vhdx", tmp_path / "b.vhdx"
    vhdx("create", a, "64M", rc=0)
    vhdx("create", b, "128M", rc=0)
    sizes = f"Sizes differ: {64 * MiB} and {128 * MiB} bytes.\n"

    def result(*args):
        return vhdx("compare", "-s", *args, a, b, rc=1)
    assert result().out == sizes and result().err == ""
    assert result("--json").json() == {"identical": False, "first-difference": 64 * MiB}
    vhdx("io", b, "-q", "-c", "write 100M 4k", rc=0)
    assert result().out == sizes + f"Content mismatch at offset {100 * MiB}!\n"
    assert result("--json").json() == {"identical": False, "first-difference": 64 * MiB}
    vhdx("io", a, "-q", "-c", "write 5M 4k", rc=0)
    assert result().out == sizes + f"Content mismatch at offset {5 * MiB}!\n"
    assert result("--json").json() == {"identical": False, "first-difference": 5 * MiB}
    assert result("-q").out == ""


def test_compare_trouble(vhdx, dynamic, orphan, tmp_path):
    assert vhdx("compare", dynamic.path, orphan, rc=2).out == ""
    assert vhdx("compare", dynamic.path, tmp_path / "none", rc=2).out == ""
    vhdx("compare", dynamic.path, rc=2)


# ---- convert

@pytest.mark.parametrize("options", [[], ["-O", "raw"], ["-m", "1"], ["-m4"], ["-S", "0"], ["-S", "64K"],
                                     ["--reflink=never"], ["-p"], ["-q"], ["-f", "vhdx"]])
def test_convert_writes_the_guests_disk(vhdx, dynamic, options, tmp_path):
    target = tmp_path / "out.raw"
    assert vhdx("convert", *options, dynamic.path, target, rc=0).out == ""
    assert dynamic.first_difference(target) is None
    assert target.stat().st_size == 64 * MiB
    stored = target.stat().st_blocks * 512
    assert stored >= 64 * MiB if "0" in options else stored < 8 * MiB


def test_convert_flattens_a_chain(vhdx, chain, tmp_path):
    vhdx("convert", chain[0].path, tmp_path / "out.raw", rc=0)
    assert chain[0].first_difference(tmp_path / "out.raw") is None


def test_convert_from_raw(vhdx, dynamic, raw_copy, tmp_path):
    vhdx("convert", "-f", "raw", raw_copy, tmp_path / "out.raw", rc=0)
    assert dynamic.first_difference(tmp_path / "out.raw") is None


def test_convert_to_standard_output(vhdx, dynamic, raw_copy):
    assert vhdx("convert", dynamic.path, "-", rc=0).out_bytes == raw_copy.read_bytes()


def test_convert_to_a_named_pipe(vhdx_path, dynamic, raw_copy, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([vhdx_path, "convert", dynamic.path, pipe]) as process:
        content = pipe.read_bytes()
    assert process.returncode == 0 and content == raw_copy.read_bytes() and stat.S_ISFIFO(pipe.stat().st_mode)


def test_convert_not_to_a_terminal(vhdx_path, dynamic):
    rc, out, err = run_on_terminal([vhdx_path, "convert", dynamic.path, "-"], stdout=True)
    assert rc == 1 and out == "" and "terminal" in err


def test_convert_to_a_reader_that_goes_away(vhdx_path, dynamic):
    """SIGPIPE ends it as any filter; where that is ignored, the error is said."""
    for ignored, expected in ((False, -signal.SIGPIPE), (True, 1)):
        process = subprocess.Popen([vhdx_path, "convert", dynamic.path, "-"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, restore_signals=not ignored)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait() == expected
        assert (b"Broken pipe" in err) == ignored


def test_convert_warns_of_a_misleading_name(vhdx, dynamic, tmp_path):
    assert "-O vhdx" in vhdx("convert", dynamic.path, tmp_path / "out.vhdx", rc=0).err
    assert dynamic.first_difference(tmp_path / "out.vhdx") is None
    assert vhdx("convert", "-q", dynamic.path, tmp_path / "quiet.vhdx", rc=0).err == ""


def test_convert_does_not_overwrite_unasked(vhdx, dynamic, tmp_path):
    target = tmp_path / "out.raw"
    target.write_bytes(b"precious")
    result = vhdx("convert", dynamic.path, target, rc=1)
    assert "--force" in result.err and target.read_bytes() == b"precious"
    vhdx("convert", "--force", dynamic.path, target, rc=0)
    assert dynamic.first_difference(target) is None


def test_convert_overwriting_keeps_file_and_links(vhdx, dynamic, tmp_path):
    target, link = tmp_path / "out.raw", tmp_path / "link.raw"
    target.write_bytes(b"x" * (70 * MiB))
    target.chmod(0o640)
    link.symlink_to(target)
    inode = target.stat().st_ino
    vhdx("convert", "--force", dynamic.path, link, rc=0)
    assert dynamic.first_difference(target) is None
    assert (target.stat().st_size, target.stat().st_ino, target.stat().st_mode & 0o777) == (64 * MiB, inode, 0o640)
    assert link.is_symlink()


def test_convert_into_an_existing_file(vhdx, dynamic, tmp_path):
    target = tmp_path / "out.raw"
    assert "No such file" in vhdx("convert", "-n", dynamic.path, target, rc=1).err
    assert not target.exists()
    target.write_bytes(b"x" * (64 * MiB))
    vhdx("convert", "-n", dynamic.path, target, rc=0)
    assert dynamic.first_difference(target) is None


def test_convert_keeps_the_size_of_an_existing_file(vhdx, qemu_img, dynamic, raw_copy, tmp_path):
    """As qemu-img -n: what is too short is refused, what is longer keeps its end."""
    target = tmp_path / "out.raw"
    target.write_bytes(b"x" * (64 * MiB - 512))
    assert f"{64 * MiB - 512} bytes" in vhdx("convert", "--no-create", dynamic.path, target, rc=1).err
    qemu_img("convert", "-n", "-f", "raw", "-O", "raw", raw_copy, target, rc=1)
    assert target.read_bytes() == b"x" * (64 * MiB - 512)
    target.write_bytes(b"x" * (64 * MiB + 512))
    result = vhdx("convert", "-n", dynamic.path, target, rc=0)
    assert "512 bytes stay" in result.err
    assert target.read_bytes() == raw_copy.read_bytes() + b"x" * 512
    target.write_bytes(b"x" * (64 * MiB + 512))
    qemu_img("convert", "-n", "-f", "raw", "-O", "raw", raw_copy, target)
    assert target.read_bytes() == raw_copy.read_bytes() + b"x" * 512


@pytest.mark.parametrize("options", [["--force"], ["-n"]])
def test_convert_never_onto_its_own_chain(vhdx, chain, tmp_path, options):
    before = [pathlib.Path(image.path).read_bytes() for image in chain]
    link = tmp_path / "link"
    os.link(chain[0].path, link)
    for target in (chain[0].path, link, chain[1].path, chain[2].path):
        result = vhdx("convert", *options, chain[0].path, target, rc=1)
        assert "source" in result.err
    assert [pathlib.Path(image.path).read_bytes() for image in chain] == before


def test_convert_refuses_odd_targets(vhdx, dynamic, tmp_path):
    assert "directory" in vhdx("convert", "--force", dynamic.path, tmp_path, rc=1).err
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for options in ([], ["--force"], ["-O", "vhdx"], ["-O", "vhdx", "--force"]):
        assert "leads nowhere" in vhdx("convert", *options, dynamic.path, tmp_path / "link", rc=1).err
    assert "No such file" in vhdx("convert", dynamic.path, tmp_path / "none" / "out.raw", rc=1).err


def test_convert_to_a_character_device(vhdx, dynamic):
    vhdx("convert", dynamic.path, "/dev/null", rc=0)
    result = vhdx("convert", dynamic.path, "/dev/full", rc=1)
    assert result.err.startswith("vhdx convert: /dev/full: ") and "No space left" in result.err


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MiB, 4 * MiB))


def test_convert_that_does_not_fit_leaves_nothing(vhdx_path, dynamic, tmp_path):
    target = tmp_path / "out.raw"
    done = subprocess.run([vhdx_path, "convert", dynamic.path, target], preexec_fn=limit_file_size, capture_output=True,
                          check=False)
    assert done.returncode == 1 and not target.exists()
    assert done.stderr.decode().startswith(f"vhdx convert: {target}: ") and b"File too large" in done.stderr
    assert b"limit of 4194304 bytes that was set for this process (ulimit -f)" in done.stderr and b"file system" not in done.stderr


def test_convert_that_fails_leaves_an_overwritten_file_empty(vhdx_path, dynamic, tmp_path):
    target = tmp_path / "out.raw"
    target.write_bytes(b"old")
    done = subprocess.run([vhdx_path, "convert", "--force", dynamic.path, target], preexec_fn=limit_file_size,
                          capture_output=True, check=False)
    assert done.returncode == 1 and target.read_bytes() == b""


def test_convert_of_a_damaged_image_leaves_nothing(vhdx, overlapping, tmp_path):
    result = vhdx("convert", overlapping.path, tmp_path / "out.raw", rc=1)
    assert result.err.startswith(f"vhdx convert: {overlapping.path}: ")
    assert not (tmp_path / "out.raw").exists()


def test_convert_of_the_largest_disk(vhdx, tmp_path):
    """It fits as a sparse file, or the error says that the file system cannot; nothing is left then."""
    image = Image(64 * TiB, block_size=256 * MiB).build(tmp_path / "large.vhdx")
    target = tmp_path / "out.raw"
    result = vhdx("convert", image.path, target)
    if result.rc == 0:
        assert target.stat().st_size == 64 * TiB
    else:
        assert result.rc == 1 and "File too large" in result.err and str(64 * TiB) in result.err
        assert not target.exists()


def test_convert_to_a_block_device(vhdx, tool, need_loop, dynamic, tmp_path):
    losetup = tool("losetup")

    def attach(size):
        backing = tmp_path / f"device-{size}"
        backing.write_bytes(b"\xff" * size)
        return run_program([losetup, "--find", "--show", backing], rc=0).out.strip(), backing
    large, backing = attach(65 * MiB)
    small, _ = attach(1 * MiB)
    try:
        vhdx("convert", dynamic.path, large, rc=0)
        assert "bytes" in vhdx("convert", dynamic.path, small, rc=1).err
        holder = os.open(large, os.O_RDWR | os.O_EXCL)
        assert "in use" in vhdx("convert", dynamic.path, large, rc=1).err
        os.close(holder)
        with open(large, "rb") as device:
            content = device.read()
        assert content[64 * MiB:] == b"\xff" * MiB
        (tmp_path / "content").write_bytes(content[:64 * MiB])
        assert dynamic.first_difference(tmp_path / "content") is None
    finally:
        run_program([losetup, "--detach", large, small])


@pytest.mark.parametrize("what", ["dense raw", "alternating sectors"])
def test_convert_asks_for_holes_once_for_each_run_of_data(vhdx_path, tool, tmp_path, what):
    if what == "dense raw":
        source, options = tmp_path / "dense.raw", ["-f", "raw"]
        source.write_bytes(b"x" * (64 * MiB))
    else:
        parent = Image(2 * MiB, block_size=MiB, seed=1)
        parent.write(0, MiB, Pattern(1))
        child = Image(2 * MiB, block_size=MiB, seed=2, parent=parent.build(tmp_path / "parent.vhdx"))
        for sector in range(0, 2048, 2):
            child.write(sector * 512, 512, Pattern(2))
        source, options = child.build(tmp_path / "child.avhdx").path, ["--parent", tmp_path / "parent.vhdx"]
    log = tmp_path / "trace"
    done = subprocess.run([tool("strace"), "-f", "-o", log, "-e", "trace=lseek", vhdx_path, "convert", "-m", "1",
                           "--reflink=never", *options, source, tmp_path / "out.raw"], capture_output=True, check=False,
                          env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    assert log.read_text().count("SEEK_") < 40
    if what != "dense raw":
        assert child_matches(vhdx_path, source, tmp_path)


def child_matches(vhdx_path, source, folder):
    """compare reads by itself, piece by piece."""
    return subprocess.run([vhdx_path, "compare", "-q", "-F", "raw", source, folder / "out.raw"], check=False).returncode == 0
