# SPDX-License-Identifier: MIT
"""The nbdkit plugin, as NBD clients see the disk: every flag of the protocol, every border, block status, filters, parameters."""
import json
import os
import random

import pytest

from cli_support import chain
from conftest import find_tool, run_program
from nbd_support import block_status, client, map_of, nbdinfo, nbdkit, nbd, plugin, raw_content, serve
from reading import file_sha256
from vhdxbuild import ZERO, Fill, Image, MiB, Pattern, windows
from waiting import wait_until
from writing import KiB, expect_no_errors, on_disk


@pytest.fixture
def image(tmp_path):
    """64 MiB in blocks of 1 MiB: data in blocks 2 (partly) and 5, zeros said of block 7."""
    description = Image(64 * MiB, block_size=MiB)
    description.write(2 * MiB + 512, 4096, Pattern(1))
    description.write(5 * MiB, MiB, Pattern(2))
    description.set_block(7, ZERO)
    return description.build(tmp_path / "disk.vhdx").path


# ---- what the server says of itself

def test_dump_plugin(plugin):
    told = dict(line.split("=", 1) for line in run_program([find_tool("nbdkit"), "--dump-plugin", plugin], rc=0).out.splitlines())
    assert told["name"] == "vhdx" and told["thread_model"] == "parallel" and told["magic_config_key"] == "file"
    assert told["vhdx_library_version"] == told["version"]


def test_what_clients_may_do(serve, image, tool):
    for options, writable in (((), True), (("-r",), False)):
        with serve(image, *options) as server:
            told = json.loads(nbdinfo(tool, "--json", "--no-content", server.uri))["exports"][0]
            assert told["export-size"] == 64 * MiB and told["description"] == "VHDX disk, dynamic"
            assert told["is_read_only"] is not writable
            for name in ("can_trim", "can_zero", "can_fast_zero"):
                assert told[name] is writable, name
            for name in ("can_cache", "can_df", "can_flush", "can_multi_conn"):
                assert told[name] is True, name
            assert (told["block_size_minimum"], told["block_size_preferred"]) == (1, 4096)
            assert told["block_size_maximum"] >= 32 * MiB
            assert nbdinfo(tool, "--can", "fua", server.uri) == "" if writable else True


def test_list_of_exports(serve, image, tool):
    with serve(image, "-r") as server:
        told = json.loads(nbdinfo(tool, "--list", "--json", server.uri))["exports"]
        assert [(export["export-name"], export["description"]) for export in told] == [("", "VHDX disk, dynamic")]


# ---- reading and writing at every border

BORDERS = [0, 1, 511, 512, 4095, 4096]


@pytest.mark.parametrize("kind, sector", [("dynamic", 512), ("dynamic", 4096), ("fixed", 512), ("child", 512)])
def test_unaligned_requests_at_every_border(serve, nbd, vhdx, tmp_path, kind, sector):
    size = 8 * MiB + 3 * sector
    parent = None
    if kind == "child":
        parent = Image(size, block_size=MiB, lss=sector)
        parent.write(MiB, 4 * MiB, Pattern(2))
        parent = parent.build(tmp_path / "parent.vhdx")
        before = file_sha256(parent.path)
        description = windows(size, parent=parent, block_size=MiB)
    else:
        description = Image(size, block_size=MiB, kind=kind, lss=sector)
    description.write(0, 3 * MiB, Pattern(1))
    path = description.build(tmp_path / "disk.vhdx").path
    model = bytearray(raw_content(vhdx, path, tmp_path))
    generator = random.Random(4711)
    places = [*BORDERS, *(block * MiB + border + sign * border for block in (1, 3, 4) for border in BORDERS for sign in (-1, 1)),
              *(block * MiB - border for block in (3, 4) for border in BORDERS), *(size - border - 1 for border in BORDERS)]
    with serve(path) as server:
        handle = client(nbd, server.uri)
        for number, offset in enumerate(places):
            for length in (1, 511, 512, 513, 4096, 5000, MiB):
                length = min(length, size - offset)
                what = (number + length) % 7
                if what < 4:
                    data = generator.randbytes(length)
                    handle.pwrite(data, offset, nbd.CMD_FLAG_FUA if what == 0 else 0)
                    model[offset:offset + length] = data
                elif what == 4:
                    handle.trim(length, offset)
                    model[offset:offset + length] = bytes(length)
                else:
                    handle.zero(length, offset, nbd.CMD_FLAG_NO_HOLE if what == 5 else 0)
                    model[offset:offset + length] = bytes(length)
                start = max(0, offset - 600)
                end = min(size, offset + length + 600)
                assert handle.pread(end - start, start) == model[start:end], (offset, length, what)
        handle.shutdown()
        assert server.end()[0] == 0
    assert raw_content(vhdx, path, tmp_path) == model
    expect_no_errors(vhdx, path)
    assert parent is None or file_sha256(parent.path) == before


def test_requests_beyond_the_end_are_refused(serve, nbd, image):
    with serve(image) as server:
        handle = client(nbd, server.uri)
        handle.set_strict_mode(0)
        for request in (lambda: handle.pread(2, 64 * MiB - 1), lambda: handle.pwrite(b"xx", 64 * MiB - 1),
                        lambda: handle.trim(512, 64 * MiB), lambda: handle.zero(MiB, 64 * MiB - 512)):
            with pytest.raises(nbd.Error):
                request()
        assert handle.pread(1, 64 * MiB - 1) == b"\0", "the connection lives on"


def test_largest_request(serve, nbd, image, vhdx, tmp_path):
    data = random.Random(1).randbytes(32 * MiB)
    with serve(image) as server:
        handle = client(nbd, server.uri)
        handle.pwrite(data, 1000)
        assert handle.pread(32 * MiB, 1000) == data
    assert raw_content(vhdx, image, tmp_path)[1000:32 * MiB + 1000] == data


# ---- flags

REQUESTS = {"write": (lambda nbd, h, flags: h.pwrite(b"\1" * 4096, 5 * MiB + 1, flags), 1, 5 * MiB + 1, 4096),
            "write into a new block": (lambda nbd, h, flags: h.pwrite(b"\1" * 4096, 10 * MiB + 1, flags), 1, 10 * MiB + 1, 4096),
            "zero": (lambda nbd, h, flags: h.zero(MiB, 5 * MiB, flags), 0, 5 * MiB, MiB),
            "zero with space": (lambda nbd, h, flags: h.zero(4096, 5 * MiB, flags | nbd.CMD_FLAG_NO_HOLE), 0, 5 * MiB, 4096),
            "trim": (lambda nbd, h, flags: h.trim(MiB, 5 * MiB, flags), 0, 5 * MiB, MiB)}


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("how", ["fua", "flush", "flush of another connection"])
def test_fua_and_flush_are_durable(serve, nbd, vhdx, image, request_name, how):
    """The server is killed right after: what it had promised is in the image or its log."""
    request, pattern, offset, length = REQUESTS[request_name]
    server = serve(image)
    handle = client(nbd, server.uri)
    request(nbd, handle, nbd.CMD_FLAG_FUA if how == "fua" else 0)
    if how != "fua":
        (handle if how == "flush" else client(nbd, server.uri)).flush()
    os.kill(server.nbdkit, 9)
    status, err = server.wait()
    assert status == 1 and "signal 9" in err and "log" in err
    vhdx("io", image, "-c", f"read -P {pattern} {offset} {length}", rc=0)
    expect_no_errors(vhdx, image, leaks=True)


def test_trim_reads_zeros_and_gives_space_back(serve, nbd, vhdx, image):
    with serve(image) as server:
        handle = client(nbd, server.uri)
        handle.pwrite(b"\7" * (32 * MiB), 16 * MiB)
        handle.flush()
        full = on_disk(image)
        handle.trim(30 * MiB + 999, 17 * MiB + 1)
        assert handle.pread(MiB + 1, 16 * MiB) == b"\7" * (MiB + 1)
        assert handle.pread(30 * MiB + 999, 17 * MiB + 1) == bytes(30 * MiB + 999)
        for _ in range(3):
            handle.flush()
        assert on_disk(image) < full - 28 * MiB, "while it is being served"


def test_zero_without_holes_keeps_space(serve, nbd, image):
    """NBD_CMD_FLAG_NO_HOLE: what is zeroed has space afterwards; without, whole blocks lose it."""
    with serve(image) as server:
        handle = client(nbd, server.uri)
        handle.pwrite(b"\7" * (4 * MiB), 16 * MiB)
        handle.zero(4 * MiB, 18 * MiB, nbd.CMD_FLAG_NO_HOLE)
        assert block_status(nbd, handle, 16 * MiB, 8 * MiB) == [(16 * MiB, 6 * MiB, False), (22 * MiB, 2 * MiB, True)]
        assert handle.pread(4 * MiB, 18 * MiB) == bytes(4 * MiB)
        handle.zero(4 * MiB, 18 * MiB)
        assert block_status(nbd, handle, 16 * MiB, 8 * MiB) == [(16 * MiB, 2 * MiB, False), (18 * MiB, 6 * MiB, True)]


def can_zero_range(folder):
    """Whether the file system there makes zeros by fallocate(2)."""
    path = os.path.join(folder, "probe")
    with open(path, "wb") as file:
        file.write(b"x" * 8192)
    result = run_program([find_tool("fallocate"), "-z", "-n", "-l", "4096", path])
    os.unlink(path)
    return result.rc == 0


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_fast_zero_is_fast_or_fails(serve, nbd, vhdx, tmp_path, kind, place):
    folder = tmp_path
    if place == "memory":
        if not os.path.isdir("/dev/shm"):
            pytest.skip("there is no /dev/shm")
        folder = "/dev/shm"
    path = os.path.join(folder, f"vhdx-fast-zero-{os.getpid()}.vhdx")
    description = Image(16 * MiB, block_size=MiB, kind=kind)
    description.write(0, 4 * MiB, Fill(7))
    try:
        description.build(path)
        can_zero = can_zero_range(folder)
        with serve(path) as server:
            handle = client(nbd, server.uri)
            fast = nbd.CMD_FLAG_FAST_ZERO

            def is_done(length, offset, flags):
                try:
                    handle.zero(length, offset, flags)
                except nbd.Error as error:
                    assert error.errno == "ENOTSUP", error.string
                    assert handle.pread(length, offset) == (b"\7" * length if offset < 4 * MiB else bytes(length))
                    return False
                assert handle.pread(length, offset) == bytes(length)
                return True
            assert is_done(1, 4 * MiB - 1, fast | nbd.CMD_FLAG_NO_HOLE) == can_zero
            if kind == "dynamic":
                assert not is_done(512, 10 * MiB, fast | nbd.CMD_FLAG_NO_HOLE), "it has no space yet"
                assert is_done(5 * MiB, 8 * MiB + 512, fast)
                assert is_done(MiB, MiB, fast)
                assert is_done(4096, 512, fast), "every file system here can punch"
            else:
                assert is_done(MiB, MiB, fast) == can_zero
                assert is_done(4096, 512, fast) == can_zero
            handle.zero(4 * MiB, 0)
            assert handle.pread(4 * MiB, 0) == bytes(4 * MiB)
        expect_no_errors(vhdx, path)
    finally:
        if os.path.exists(path):
            os.unlink(path)


def test_cache_is_a_hint_that_works(serve, nbd, image):
    with serve(image, "-r") as server:
        handle = client(nbd, server.uri)
        handle.cache(8 * MiB, 0)
        handle.cache(1, 64 * MiB - 1)


# ---- block status

def test_block_status_is_what_map_says(serve, nbd, vhdx, image, chain):
    for path, options in ((image, ()), (chain[0].path, ("-r",))):
        expected = map_of(vhdx, path, *options)
        with serve(path, *options) as server:
            handle = client(nbd, server.uri)
            assert block_status(nbd, handle) == expected
            for start, length, zero in expected:
                for offset in (start, start + 1, start + length - 1):
                    one = block_status(nbd, handle, offset, 1)
                    assert one == [(offset, 1, zero)]


def test_nbdinfo_map_is_what_map_says(serve, vhdx, image, tool):
    with serve(image, "-r") as server:
        found = json.loads(nbdinfo(tool, "--map", "--json", server.uri))
        assert [(e["offset"], e["length"], e["type"] == 3) for e in found] == map_of(vhdx, image, "-r")


def test_one_extent_only(serve, nbd, image):
    with serve(image, "-r") as server:
        handle = client(nbd, server.uri)
        answers = []
        handle.block_status(63 * MiB, 1 * MiB, lambda *answer: answers.append(answer[2]), nbd.CMD_FLAG_REQ_ONE)
        assert answers == [[MiB, nbd.STATE_HOLE | nbd.STATE_ZERO]]
        answers.clear()
        handle.block_status(63 * MiB, 512, lambda *answer: answers.append(answer[2]))
        assert answers == [[2 * MiB - 512, 3, MiB, 0, 2 * MiB, 3, MiB, 0, 57 * MiB + 512, 3]]


def test_more_extents_than_one_answer_holds(serve, nbd, vhdx, tmp_path):
    """Every other sector is in the child, the rest is zeros of a parent without data: 32,768 extents."""
    base = Image(32 * MiB, block_size=2 * MiB, seed=1).build(tmp_path / "base.vhdx")
    child = windows(32 * MiB, parent=base, seed=2)
    for offset in range(0, 32 * MiB, 2048):
        child.write(offset, 1024, Fill(5))
    path = child.build(tmp_path / "child.avhdx").path
    with serve(path, "-r") as server:
        handle = client(nbd, server.uri)
        answers = []
        handle.block_status(32 * MiB, 0, lambda *answer: answers.append(answer[2]))
        assert 1000 < len(answers[0]) // 2 < 32768, "the answer is bounded"
        assert block_status(nbd, handle) == map_of(vhdx, path)


def test_without_structured_replies(serve, nbd, image):
    with serve(image, "-r") as server:
        handle = nbd.NBD()
        handle.set_request_structured_replies(False)
        handle.connect_uri(server.uri)
        assert not handle.get_structured_replies_negotiated()
        assert handle.pread(4096, 2 * MiB + 512) == Pattern(1).read(2 * MiB + 512, 4096)


# ---- images that are only read

def test_read_only_exports_never_change_a_byte(serve, nbdkit, nbd, vhdx, chain, tmp_path):
    """A dirty chain through vhdx serve -r, nbdkit -r, access=read, and under the cow filter, to which clients write."""
    before = [file_sha256(image.path) for image in chain]
    content = raw_content(vhdx, chain[0].path, tmp_path)
    servers = [lambda: serve(chain[0].path, "-r"), lambda: nbdkit(chain[0].path, options=["-r"]),
               lambda: nbdkit(chain[0].path, "access=read"), lambda: nbdkit(chain[0].path, filters=["cow"])]
    for number, start in enumerate(servers):
        with start() as server:
            handle = client(nbd, server.uri)
            assert handle.pread(32 * MiB, 0) + handle.pread(32 * MiB, 32 * MiB) == content
            if number == 3:
                handle.pwrite(b"\1" * 70000, 2 * MiB + 5)
                assert handle.pread(70000, 2 * MiB + 5) == b"\1" * 70000
                handle.trim(MiB, 8 * MiB)
                handle.flush()
            else:
                assert handle.is_read_only()
                handle.flush()
                handle.set_strict_mode(0)
                for request in (lambda h=handle: h.pwrite(b"x", 0), lambda h=handle: h.trim(512, 0), lambda h=handle: h.zero(512, 0)):
                    with pytest.raises(nbd.Error):
                        request()
        assert [file_sha256(image.path) for image in chain] == before, number


def test_opened_for_writing_but_not_written_stays_as_it_is(serve, nbd, image):
    before = file_sha256(image)
    with serve(image) as server:
        handle = client(nbd, server.uri)
        handle.pread(64 * KiB, 0)
        handle.flush()
        assert server.end()[0] == 0
    assert file_sha256(image) == before


# ---- parameters

def test_parameters_in_help_and_manual_are_the_same(plugin, source_root):
    told = run_program([find_tool("nbdkit"), plugin, "--help"], rc=0).out
    page = (source_root / "plugins" / "nbdkit" / "nbdkit-vhdx-plugin.1").read_text(encoding="utf-8").replace("\\-", "-")
    from_help = {line.split("=")[0].removeprefix("[file") or "file" for line in told.splitlines()
                 if line[:1] in "[abcdefghijklmnopqrstuvwxyz" and "=" in line.split(" ")[0]}
    for name in ("parent", "parent-dir", "allow-parent-path", "force-share", "access", "control-fd", "remove-at-end"):
        assert name in from_help and f".BR {name}= " in page or f".BI {name}= " in page, name


def nbdkit_says(plugin, *arguments, options=()):
    """The last words of an nbdkit that refuses to begin."""
    result = run_program([find_tool("nbdkit"), "-f", "-U", "-", *options, plugin, *arguments, "--run", "true"])
    assert result.rc == 1
    return result.err


def test_wrong_parameters(plugin, image, tmp_path):
    (tmp_path / "raw.img").write_bytes(bytes(MiB))
    for arguments, says in (((), "which image?"), ((image, image), "given twice"), ((image, "colour=blue"), "unknown parameter"),
                            ((image, "access=maybe"), "auto, read or write"), ((image, "force-share=perhaps"), "perhaps"),
                            ((image, "force-share=1", "access=write"), "for reading"), ((image, "control-fd=99"), "not an open socket"),
                            ((tmp_path / "no.vhdx",), "No such file"), ((tmp_path / "raw.img",), "not a VHDX")):
        assert says in nbdkit_says(plugin, *arguments), arguments


def test_parents_by_parameters(nbdkit, nbd, plugin, chain, tmp_path):
    for name in ("moved", "elsewhere"):
        (tmp_path / name).mkdir()
    orphan = tmp_path / "moved" / "child.avhdx"
    orphan.write_bytes(open(chain[0].path, "rb").read())
    assert "middle.avhdx" in nbdkit_says(plugin, orphan)
    folder = os.path.dirname(chain[1].path)
    for arguments in ((f"parent-dir={tmp_path}/elsewhere", f"parent-dir={folder}"), (f"parent={chain[1].path}", f"parent-dir={folder}")):
        with nbdkit(orphan, *arguments, options=["-r"]) as server:
            assert client(nbd, server.uri).pread(512, 8 * MiB) == Pattern(2).read(8 * MiB, 512)


def test_relative_paths_and_the_background(plugin, nbd, chain, tmp_path):
    """nbdkit goes into the background and changes its folder before anything is served."""
    socket, pidfile = tmp_path / "s", tmp_path / "pid"
    run_program([find_tool("nbdkit"), "-r", "-U", socket, "-P", pidfile, plugin, os.path.basename(chain[0].path)], rc=0,
                cwd=os.path.dirname(chain[0].path))
    wait_until(lambda: pidfile.exists() and pidfile.read_text().endswith("\n"), "nbdkit in the background")
    pid = int(pidfile.read_text())
    try:
        handle = client(nbd, f"nbd+unix:///?socket={socket}")
        assert handle.pread(512, 8 * MiB) == Pattern(2).read(8 * MiB, 512)
        handle.shutdown()
    finally:
        os.kill(pid, 15)


def test_mandoc_finds_nothing_to_complain_about(source_root, tool):
    page = source_root / "plugins" / "nbdkit" / "nbdkit-vhdx-plugin.1"
    assert run_program([tool("mandoc"), "-Tlint", "-W", "warning", page], rc=0).out == ""


# ---- locks

def test_a_served_image_is_locked(serve, nbdkit, nbd, vhdx, qemu_img, image):
    with serve(image) as server:
        assert "lock" in qemu_img("info", image, rc=1).err
        assert "another program" in vhdx("info", image, rc=1).err
        qemu_img("info", "-U", image)
        assert server.end()[0] == 0
    with serve(image, "-r"):
        qemu_img("info", image)
        vhdx("info", image, rc=0)
        assert "another program" in vhdx("io", image, "-c", "length", rc=1).err
    with nbdkit(image) as server:
        vhdx("info", image, rc=0)  # nobody is there yet
        handle = client(nbd, server.uri)
        assert "another program" in vhdx("info", image, rc=1).err
        handle.shutdown()
        assert "another program" in vhdx("info", image, rc=1).err, "until the server ends"


def test_an_image_in_use_is_not_served(serve, nbdkit, nbd, vhdx, vhdx_path, plugin, image):
    with serve(image):
        result = vhdx("serve", image, "--run", "true", rc=1)
        assert result.err.count("\n") == 1 and "another program has the image open for writing" in result.err
        assert "another program" in nbdkit_says(plugin, image)
        with serve(image, "-r", "-U") as other:
            assert client(nbd, other.uri).get_size() == 64 * MiB
    with serve(image, "-r"):
        assert "another program" in vhdx("serve", image, "--run", "true", rc=1).err
        with nbdkit(image) as server:
            with pytest.raises(nbd.Error):
                client(nbd, server.uri)
            server.process.terminate()
            assert "-r" in server.wait()[1], "the way out"


# ---- filters

def test_filters(nbdkit, nbd, vhdx, image, tmp_path):
    log = tmp_path / "log"
    content = raw_content(vhdx, image, tmp_path)
    for filters, arguments in ((["blocksize"], ["minblock=4096"]), (["readahead"], []), (["log"], [f"logfile={log}"]),
                               (["multi-conn"], ["multi-conn-mode=plugin"]), (["offset"], ["offset=1M", "range=32M"]),
                               (["cache"], []), (["error"], ["error-pread=EIO", "error-pread-rate=0%"]), (["nozero"], []),
                               (["noextents"], []), (["fua"], ["fuamode=force"]), (["exitlast"], [])):
        with nbdkit(image, *arguments, filters=filters) as server:
            handle = client(nbd, server.uri, contexts=filters != ["noextents"])
            base = MiB if filters == ["offset"] else 0
            data = random.Random(str(filters)).randbytes(10000)
            handle.pwrite(data, 30 * MiB + 100 - base)
            if handle.can_zero():
                handle.zero(5000, 31 * MiB - base)
            handle.trim(2 * MiB, 9 * MiB - base)
            handle.flush()
            assert handle.pread(10000, 30 * MiB + 100 - base) == data, filters
            assert handle.pread(4 * MiB, 2 * MiB - base) == content[2 * MiB:6 * MiB], filters
            handle.shutdown()
            if filters == ["exitlast"]:
                assert server.wait()[0] == 0
        assert raw_content(vhdx, image, tmp_path)[30 * MiB + 100:30 * MiB + 10100] == data, filters
        expect_no_errors(vhdx, image)
    assert "Write" in log.read_text()


def test_partition_filter(nbdkit, nbd, vhdx, tool, tmp_path):
    raw, path = tmp_path / "raw.img", tmp_path / "disk.vhdx"
    with open(raw, "wb") as file:
        file.truncate(16 * MiB)
    run_program([tool("sfdisk"), "-q", raw], rc=0, stdin="label: gpt\nstart=2048, size=8192\n")
    vhdx("convert", "-q", "-f", "raw", "-O", "vhdx", raw, path, rc=0)
    with nbdkit(path, "partition=1", filters=["partition"]) as server:
        handle = client(nbd, server.uri)
        assert handle.get_size() == 4 * MiB
        handle.pwrite(b"\5" * 512, 0)
        handle.shutdown()
    vhdx("io", "-r", path, "-c", "read -P 5 1M 512", rc=0)
