# SPDX-License-Identifier: MIT
"""NBD servers as source, as target, and as the place of an image: what is transferred, and what happens when they fail."""
import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import threading

import pytest

from cli_support import chain, dynamic, raw_copy
from nbdserver import nbdkit, qemu_nbd
from vhdxbuild import MiB, TiB
from waiting import SECONDS, wait_until

KiB = 1024
SIZE = 64 * MiB


@pytest.fixture(scope="module")
def sparse_raw(tmp_path_factory):
    """64 MiB with data at three places, not all of it on block borders."""
    path = tmp_path_factory.mktemp("sparse") / "disk.raw"
    generator = random.Random(7)
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for offset, length in ((0, 100 * KiB), (20 * MiB, 3 * MiB), (SIZE - 4096, 4096)):
            file.seek(offset)
            file.write(generator.randbytes(length))
    return path


@pytest.fixture
def noise(tmp_path):
    """A file full of what must be overwritten."""
    path = tmp_path / "noise.raw"
    path.write_bytes(b"\xa5" * SIZE)
    return path


# ---- as source

@pytest.mark.parametrize("filters", [[], ["noextents"], ["noparallel"], ["multi-conn"]])
def test_convert_from_a_server(vhdx, sparse_raw, filters, tmp_path):
    parameters = ["multi-conn-mode=disable"] if filters == ["multi-conn"] else []
    with nbdkit("file", sparse_raw, *parameters, options=["-r"], filters=filters) as server:
        vhdx("convert", "-O", "vhdx", "--block-size=1M", server.uri, tmp_path / "out.vhdx", rc=0)
        read = server.bytes_of("Read")
    vhdx("compare", "-F", "raw", tmp_path / "out.vhdx", sparse_raw, rc=0)
    vhdx("check", tmp_path / "out.vhdx", rc=0)
    # Holes are not transferred, unless the server does not tell where they are.  (The beginning of each block with data is
    # read twice, to look for data and to copy it.)
    assert SIZE <= read < SIZE + 4 * MiB if filters == ["noextents"] else read < 6 * MiB, read


def test_formats_and_facts_of_a_raw_export(vhdx, sparse_raw):
    with nbdkit("file", sparse_raw, options=["-r"]) as server:
        facts = vhdx("info", "--json", server.uri, rc=0).json()
        assert (facts["format"], facts["virtual-size"], facts["filename"]) == ("raw", SIZE, server.uri)
        assert "actual-size" not in facts
        assert "disk usage" not in vhdx("info", server.uri, rc=0).out
        assert "no \"vhdxfile\"" in vhdx("info", "-f", "vhdx", server.uri, rc=1).err
        extents = vhdx("map", "--json", server.uri, rc=0).json()
        assert extents[0]["data"] and sum(e["length"] for e in extents) == SIZE
        assert sum(e["length"] for e in extents if e["data"]) < 4 * MiB
        local = vhdx("map", "-f", "raw", "--json", sparse_raw, rc=0).json()
        assert [(e["start"], e["length"], e["data"]) for e in extents] == [(e["start"], e["length"], e["data"]) for e in local]
        result = vhdx("compare", "-F", "raw", server.uri, sparse_raw, rc=0)
        assert result.out == "Images are identical.\n" and result.err == ""
        vhdx("check", server.uri, rc=1)


def test_an_export_with_another_format_is_not_raw_unless_said(vhdx, qemu_img, tmp_path):
    qemu_img("create", "-f", "qcow2", tmp_path / "disk.qcow2", "64M")
    with nbdkit("file", tmp_path / "disk.qcow2", options=["-r"]) as server:
        assert "QCOW" in vhdx("convert", "-O", "vhdx", server.uri, tmp_path / "out.vhdx", rc=1).err.upper()
        vhdx("info", "-f", "raw", server.uri, rc=0)


def test_a_guest_cannot_choose_how_its_disk_is_read(vhdx, dynamic, tmp_path):
    """Whoever may write to a raw disk can make an image of its first sectors; a backup must not hold what that says."""
    with nbdkit("file", dynamic.path, options=["-r"]) as server:
        for command in (["convert", "-O", "vhdx", server.uri, "out.vhdx"], ["convert", server.uri, "out.raw"], ["map", server.uri],
                        ["io", "-r", "-c", "read 0 1M", server.uri]):
            result = vhdx(*command, rc=1, cwd=tmp_path)
            assert "-f" in result.err and "begins like a VHDX" in result.err and result.err.count("\n") == 1
        assert "begins like" in vhdx("compare", dynamic.path, server.uri, rc=2).err
        assert not (tmp_path / "out.vhdx").exists() and not (tmp_path / "out.raw").exists()
        vhdx("convert", "-f", "raw", server.uri, "out.raw", rc=0, cwd=tmp_path)
    assert (tmp_path / "out.raw").read_bytes() == pathlib.Path(dynamic.path).read_bytes()


def test_a_server_for_one_client_is_asked_once(vhdx, sparse_raw, tmp_path):
    """qemu-nbd without --persistent ends with its first client."""
    with qemu_nbd("-f", "raw", "-r", sparse_raw) as server:
        vhdx("convert", "-O", "vhdx", server.uri, tmp_path / "out.vhdx", rc=0)
        assert server.process.wait(SECONDS) == 0
    vhdx("compare", "-F", "raw", tmp_path / "out.vhdx", sparse_raw, rc=0)


def test_a_large_sparse_export(vhdx, tmp_path):
    """The protocol tells of 4 GiB at a time, which costs nbdkit about a millisecond."""
    with nbdkit("memory", "3T") as server:
        vhdx("io", "-q", "-c", f"write -P 9 {2 * TiB + 12345} 70000", server.uri, rc=0)
        assert [e["data"] for e in vhdx("map", "--json", server.uri, rc=0).json()] == [False, True, False]
        vhdx("convert", "-O", "vhdx", server.uri, tmp_path / "out.vhdx", rc=0)
        assert vhdx("info", "--json", tmp_path / "out.vhdx", rc=0).json()["actual-size"] < 48 * MiB
        vhdx("compare", server.uri, tmp_path / "out.vhdx", rc=0)


def test_a_fragmented_export_is_asked_little(vhdx, tmp_path):
    """One answer tells of many extents: a question for each of them would take minutes over a real network."""
    path = tmp_path / "comb.raw"
    with open(path, "wb") as file:
        for i in range(1000):
            file.seek(i * 64 * KiB)
            file.write(b"x" * 4096)
        file.truncate(SIZE)
    with nbdkit("file", path, options=["-r"]) as server:
        vhdx("compare", "-F", "raw", server.uri, path, rc=0)
        assert len(server.requests("Extents")) < 20


# ---- as target

@pytest.mark.parametrize("filters", [[], ["nozero"], ["noparallel"]])
def test_convert_into_a_server(vhdx, dynamic, raw_copy, noise, filters):
    """What the export held is replaced, zeros too, and zeros are not transferred if the server can make them."""
    with nbdkit("file", noise, filters=filters) as server:
        assert vhdx("convert", dynamic.path, server.uri, rc=0).err == ""
        written, flushes = server.bytes_of("Write"), len(server.requests("Flush"))
    assert noise.read_bytes() == raw_copy.read_bytes()
    assert written == SIZE if filters == ["nozero"] else written < 5 * MiB, written
    assert flushes > 0


def test_convert_from_server_to_server(vhdx, sparse_raw, noise):
    with nbdkit("file", sparse_raw, options=["-r"]) as source, qemu_nbd("-f", "raw", "-t", noise) as target:
        vhdx("convert", "-m", "4", source.uri, target.uri, rc=0)
        vhdx("compare", "-s", source.uri, target.uri, rc=0)
        assert "the same" in vhdx("convert", target.uri, target.uri, rc=1).err
    assert noise.read_bytes() == sparse_raw.read_bytes()


def test_an_export_is_not_copied_onto_itself_by_another_name(vhdx, dynamic):
    """What is in the image would be written over the image."""
    before = pathlib.Path(dynamic.path).read_bytes()
    with nbdkit("file", dynamic.path) as server:
        name = server.uri.replace("/", "%2f").replace("nbd+unix:%2f%2f%2f", "nbd+unix://")
        assert "the same" in vhdx("convert", "-f", "vhdx", server.uri, name, rc=1).err
    assert pathlib.Path(dynamic.path).read_bytes() == before


def test_size_of_the_target(vhdx, dynamic, raw_copy, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"\xa5" * (SIZE - 512))
    large.write_bytes(b"\xa5" * (SIZE + 8192))
    with nbdkit("file", small) as server:
        assert f"{SIZE - 512} bytes" in vhdx("convert", dynamic.path, server.uri, rc=1).err
    assert small.read_bytes() == b"\xa5" * (SIZE - 512)
    with nbdkit("file", large) as server:
        assert "8192 bytes stay" in vhdx("convert", dynamic.path, server.uri, rc=0).err
        assert vhdx("convert", "-q", dynamic.path, server.uri, rc=0).err == ""
    assert large.read_bytes() == raw_copy.read_bytes() + b"\xa5" * 8192


def test_what_cannot_be_a_target(vhdx, dynamic, noise):
    with nbdkit("file", noise, options=["-r"]) as server:
        assert "for reading only" in vhdx("convert", dynamic.path, server.uri, rc=1).err
        assert "cannot grow" in vhdx("convert", "-O", "vhdx", dynamic.path, server.uri, rc=1).err
        assert "-n" in vhdx("convert", "--fixed", dynamic.path, server.uri, rc=2).err + \
            vhdx("convert", "-n", "-O", "vhdx", "--fixed", dynamic.path, "any.vhdx", rc=2).err
        assert "needs a file" in vhdx("create", server.uri, "1G", rc=1).err


# ---- block sizes

@pytest.mark.parametrize("minimum", [1, 512, 4096, 65536])
def test_block_sizes_are_kept_to(vhdx, minimum, tmp_path):
    """Unaligned commands at every edge; the filter answers what breaks its rules with an error."""
    model = bytearray(os.urandom(MiB))
    path = tmp_path / "disk.raw"
    path.write_bytes(model)
    script = []
    generator = random.Random(minimum)
    for pattern in range(1, 60):
        offset = generator.randrange(MiB)
        length = min(generator.choice((1, 511, 4096, 5000, 65536, 200000)), MiB - offset)
        zero = generator.random() < 0.3
        model[offset:offset + length] = bytes([0 if zero else pattern]) * length
        script.append(f"write -q {'-z' if zero else f'-P {pattern}'} {offset} {length}")
        script.append(f"read -q -P {0 if zero else pattern} {offset} {length}")
    with nbdkit("file", path, f"blocksize-minimum={minimum}", "blocksize-preferred=65536", "blocksize-maximum=131072",
                "blocksize-error-policy=error", filters=["blocksize-policy"]) as server:
        vhdx("io", server.uri, stdin="\n".join([*script, "flush"]) + "\n", rc=0)
        vhdx("compare", "-F", "raw", server.uri, path, rc=0)
    assert path.read_bytes() == model


def test_neighbours_in_one_minimal_block_keep_their_bytes(vhdx_path, tmp_path):
    """convert writes from several threads at once; where its pieces are smaller than the server's blocks, each has to be read,
    changed and written without losing what another thread has written beside it."""
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    content = bytearray(random.Random(3).randbytes(8 * MiB))
    for at in range(0, len(content), 3 * 512):  # zeros that -S 512 leaves out, so that what is written is in small pieces
        content[at:at + 512] = bytes(512)
    source.write_bytes(content)
    target.write_bytes(bytes(len(content)))
    with nbdkit("file", target, "blocksize-minimum=65536", "blocksize-preferred=65536",
                "blocksize-error-policy=error", filters=["blocksize-policy"]) as server:
        subprocess.run([vhdx_path, "convert", "-q", "-f", "raw", "-m", "8", "-S", "512", source, server.uri], check=True, timeout=SECONDS)
    assert target.read_bytes() == content


def test_an_export_that_no_request_can_reach_the_end_of(vhdx):
    with nbdkit("memory", "1000001", "blocksize-minimum=4096", filters=["blocksize-policy"]) as server:
        assert "4096" in vhdx("info", server.uri, rc=1).err
    with nbdkit("memory", "1000001") as server: # odd, but nothing forbids it
        vhdx("io", "-q", "-c", "write -P 5 999990 11", "-c", "read -P 5 999990 11", server.uri, rc=0)


# ---- images behind NBD

def test_an_image_behind_nbd(vhdx, dynamic, raw_copy, tmp_path):
    before = pathlib.Path(dynamic.path).read_bytes()
    with nbdkit("file", dynamic.path) as server:
        facts = vhdx("info", "--json", server.uri, rc=0).json()
        local = vhdx("info", "--json", dynamic.path, rc=0).json()
        for name in ("actual-size", "filename"):
            facts.pop(name, None), local.pop(name, None)
        assert facts == local
        assert vhdx("map", "--json", "-f", "vhdx", server.uri, rc=0).json() == \
            [{**e, **({"filename": server.uri} if e["data"] else {})} for e in vhdx("map", "--json", dynamic.path, rc=0).json()]
        vhdx("check", server.uri, rc=0)
        assert vhdx("dump", "--headers", server.uri, rc=0).out == vhdx("dump", "--headers", dynamic.path, rc=0).out
        vhdx("convert", "-f", "vhdx", server.uri, tmp_path / "out.raw", rc=0)
        assert dynamic.first_difference(tmp_path / "out.raw") is None
        vhdx("compare", "-s", "-f", "vhdx", server.uri, dynamic.path, rc=0)
        vhdx("compare", "-s", "-f", "raw", "-F", "raw", server.uri, dynamic.path, rc=0)
        vhdx("io", "-q", "-r", "-f", "vhdx", "-c", "read 0 1M", server.uri, rc=0)
        assert "cannot grow" in vhdx("io", "-c", "write 0 512", server.uri, rc=1).err
        assert server.requests("Write") == []
    assert pathlib.Path(dynamic.path).read_bytes() == before


def test_a_child_behind_nbd_has_no_folder(vhdx, chain, tmp_path):
    child, middle = chain[0], chain[1]
    folder = pathlib.Path(middle.path).parent
    with nbdkit("file", child.path, options=["-r"]) as server:
        assert "--parent-dir" in vhdx("convert", "-f", "vhdx", server.uri, tmp_path / "out.raw", rc=1, cwd=folder).err
        vhdx("convert", "-f", "vhdx", "--parent-dir", folder, server.uri, tmp_path / "out.raw", rc=0)
        assert child.first_difference(tmp_path / "out.raw") is None


# ---- failures

@pytest.mark.parametrize("fault, text", [("EIO", "Input/output error"), ("ENOSPC", "No space left on device")])
@pytest.mark.parametrize("operation", ["pwrite", "zero"])
def test_errors_of_the_target_are_said_with_its_name(vhdx, dynamic, noise, fault, text, operation):
    filters = ["error"] + (["nozero"] if operation == "pwrite" else [])
    written = operation == "zero" and fault != "ENOSPC" # zeros that cannot be made are written, which needs as much space
    with nbdkit("file", noise, f"error-{operation}={fault}", f"error-{operation}-rate=100%", filters=filters) as server:
        result = vhdx("convert", dynamic.path, server.uri, rc=0 if written else 1)
    if not written:
        assert result.err.startswith(f"vhdx convert: {server.uri}: ") and result.err.count("\n") == 1
        assert f"the NBD server answers: {text}" in result.err
    else:
        vhdx("compare", "-F", "raw", dynamic.path, noise, rc=0)


def test_a_flush_that_fails(vhdx, dynamic):
    with nbdkit("eval", f"get_size=echo {SIZE}", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null", "can_flush=exit 0",
                "zero=exit 0", "flush=echo ENOSPC no >&2; exit 1") as server:
        result = vhdx("convert", dynamic.path, server.uri, rc=1)
        assert result.err.startswith(f"vhdx convert: {server.uri}: cannot flush") and "No space left" in result.err


def test_errors_of_the_source_are_said_with_its_name(vhdx, sparse_raw, tmp_path):
    with nbdkit("file", sparse_raw, "error-pread=EIO", "error-pread-rate=100%", f"error-file={tmp_path / 'now'}", options=["-r"],
                filters=["error"]) as server:
        vhdx("info", server.uri, rc=0)
        (tmp_path / "now").touch()
        result = vhdx("convert", "-f", "raw", "-O", "vhdx", server.uri, tmp_path / "out.vhdx", rc=1)
        assert result.err.startswith(f"vhdx convert: {server.uri}: ") and "Input/output error" in result.err
    assert not (tmp_path / "out.vhdx").exists()


def test_a_server_that_does_not_tell_extents_after_all(vhdx, sparse_raw, tmp_path):
    """A refused question is no error of the disk: everything may then be data."""
    with nbdkit("file", sparse_raw, "error-extents=EINVAL", "error-extents-rate=100%", options=["-r"], filters=["error"]) as server:
        vhdx("convert", "-O", "vhdx", server.uri, tmp_path / "out.vhdx", rc=0)
    vhdx("compare", "-F", "raw", tmp_path / "out.vhdx", sparse_raw, rc=0)


def start_slowly(vhdx_path, tmp_path, *arguments):
    return subprocess.Popen([vhdx_path, *arguments], stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                            env={**os.environ, "LC_ALL": "C.UTF-8"})


def wait_for_requests(server, kind):
    wait_until(lambda: server.requests(kind), f"a request: {kind}")


@contextlib.contextmanager
def slow_server(direction):
    """A server that 4 GiB are copied from or to, a quarter MiB in 20 ms: for longer than any process here stands still.
    With what convert is to be given, but for a target that is a file, and the kind of request to wait for."""
    with contextlib.ExitStack() as stack:
        plugin = "pattern" if direction == "from" else "null"
        slow = stack.enter_context(nbdkit(plugin, "4G", "delay-read=20ms", "delay-write=20ms", filters=["delay"]))
        if direction == "from":
            yield slow, [slow.uri], "Read"
        else:
            yield slow, [stack.enter_context(nbdkit("pattern", "4G")).uri, slow.uri], "Write"


@pytest.mark.parametrize("direction", ["from", "to"])
def test_the_server_goes_away(vhdx_path, direction, tmp_path):
    with slow_server(direction) as (server, names, kind):
        names += ["out.raw"] if direction == "from" else []
        with start_slowly(vhdx_path, tmp_path, "convert", "-f", "raw", "-m", "4", *names) as process:
            wait_for_requests(server, kind)
            server.process.kill()
            _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1 and err.count("\n") == 1
    assert err.startswith(f"vhdx convert: {server.uri}: ") and "connection to the NBD server is lost" in err
    assert not (tmp_path / "out.raw").exists()


def test_a_server_that_hangs_up_while_it_is_asked(vhdx, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def greet_and_leave():
            connection, _ = listener.accept()
            listener.close()
            connection.sendall(b"NBDMAGIC")
            connection.close()

        thread = threading.Thread(target=greet_and_leave)
        thread.start() # libnbd tries again, but then nobody listens
        assert "cannot connect" in vhdx("info", f"nbd+unix:///?socket={path}", rc=1).err
        thread.join()


def test_no_server_and_no_export(vhdx, sparse_raw, tmp_path):
    assert "cannot connect" in vhdx("info", f"nbd+unix:///?socket={tmp_path}/none", rc=1).err
    with qemu_nbd("-t", "-f", "raw", "-r", "-x", "this", sparse_raw) as server:
        vhdx("info", server.export("this"), rc=0)
        assert "other" in vhdx("info", server.export("other"), rc=1).err
    assert "no NBD URI" in vhdx("info", "nbd:unix:/tmp/socket", rc=1).err
    assert "needs a file" in vhdx("create", "nbd://localhost/x", "1M", rc=1).err


@pytest.mark.parametrize("direction", ["from", "to"])
def test_sigint(vhdx_path, direction, tmp_path):
    with slow_server(direction) as (server, names, kind):
        names += ["out.vhdx", "-O", "vhdx"] if direction == "from" else []
        with start_slowly(vhdx_path, tmp_path, "convert", "-f", "raw", "-m", "1", *names) as process:
            wait_for_requests(server, kind)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130 and "stopped by a signal" in err
    assert not (tmp_path / "out.vhdx").exists()


def test_a_signal_ends_waiting_for_a_server_that_does_not_answer(vhdx_path, sparse_raw, noise, tmp_path):
    slow = {"filters": ["delay"], "log": True}
    with nbdkit("file", sparse_raw, "delay-read=1000", **slow) as source, nbdkit("file", noise, "delay-write=1000", **slow) as target:
        commands = [start_slowly(vhdx_path, tmp_path, "convert", "-f", "raw", *names)
                    for names in (["-O", "vhdx", source.uri, "out.vhdx"], [sparse_raw, target.uri])]
        try:
            wait_for_requests(source, "Read")
            wait_for_requests(target, "Write")
            for process in commands:
                process.send_signal(signal.SIGTERM)
            for process in commands:
                _, err = process.communicate(timeout=SECONDS)
                assert process.returncode == 143 and err.count("\n") == 1 and "did not answer" in err
        finally:
            for process in commands:
                process.kill()
                process.communicate()
    assert not (tmp_path / "out.vhdx").exists()


@pytest.mark.parametrize("command", [["convert", "-f", "raw", "SOURCE", "URI"], ["check", "URI"]])
def test_a_signal_ends_connecting(vhdx_path, sparse_raw, command, tmp_path):
    """The server takes the connection, and never says a word."""
    path = tmp_path / "socket"
    words = [{"SOURCE": sparse_raw, "URI": f"nbd+unix:///?socket={path}"}.get(word, word) for word in command]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with start_slowly(vhdx_path, tmp_path, *words) as process:
            connection, _ = listener.accept()
            process.send_signal(signal.SIGINT)
            try:
                process.wait(SECONDS)
            finally:
                connection.close()
    assert process.returncode == 130


def test_tcp_notices_that_a_server_is_gone(vhdx_path, tool, tmp_path):
    """Keepalive is on while an answer is waited for."""
    ss = tool("ss")
    with socket.create_server(("127.0.0.1", 0)) as listener:  # for nbdkit, to which it goes as from systemd: nobody else gets the port
        port = listener.getsockname()[1]
        activate = f'exec 3<&{listener.fileno()} && LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"'
        server = subprocess.Popen(["bash", "-c", activate, tool("nbdkit"), "-f", "--filter=delay", "pattern", "1M", "delay-read=1000"],
                                  pass_fds=[listener.fileno()])

    def has_timer():  # not that of what was sent a moment ago
        assert server.poll() is None and process.poll() is None
        timers = subprocess.run([ss, "-Htno", f"dst 127.0.0.1:{port}"], capture_output=True, text=True, check=True).stdout
        return "timer:(keepalive" in timers
    with server, start_slowly(vhdx_path, tmp_path, "convert", "-f", "raw", f"nbd://127.0.0.1:{port}", "out.raw") as process:
        try:
            wait_until(has_timer, "the kernel asks whether the server is there")
        finally:
            process.kill()
            server.kill()


def test_keys_in_a_uri(vhdx, sparse_raw, tmp_path):
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:9d4f1c6c4b1f2a7e0f3d5b6a79888796\n")
    with nbdkit("file", sparse_raw, options=["-r", "--tls=require", f"--tls-psk={keys}"]) as server:
        secure = f"nbds+unix://alice@/?socket={server.socket}&tls-psk-file={keys}"
        vhdx("compare", "-F", "raw", secure, sparse_raw, rc=0)
        assert "cannot connect" in vhdx("info", server.uri, rc=1).err


def test_without_libnbd(vhdx, sparse_raw, tmp_path):
    """It is loaded only for NBD, and its absence is said."""
    (tmp_path / "libnbd.so.0").write_bytes(b"")
    environment = {"LD_LIBRARY_PATH": str(tmp_path)}
    vhdx("info", "-f", "raw", sparse_raw, rc=0, env=environment)
    assert "libnbd" in vhdx("info", "nbd+unix:///?socket=/none", rc=1, env=environment).err
