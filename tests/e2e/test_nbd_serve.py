# SPDX-License-Identifier: MIT
"""vhdx serve: how clients reach it, how it ends, and what it says about that."""
import contextlib
import os
import pathlib
import re
import resource
import select
import signal
import socket
import stat
import subprocess
import sys

import pytest

from conftest import find_tool, run_program
from nbd_support import Serve, children, client, nbd, on_a_port, plugin, raw_content, serve
from reading import file_sha256
from vhdxbuild import Image, MiB, Pattern
from waiting import SECONDS, is_gone, wait_until
from writing import expect_no_errors

CLEAN = re.compile(r"vhdx serve: [^\n]*: closed cleanly after \d+ connections?(, [^\n]*)?\n")


@pytest.fixture
def image(tmp_path):
    description = Image(16 * MiB, block_size=MiB)
    description.write(2 * MiB, 4096, Pattern(1))
    return description.build(tmp_path / "disk.vhdx").path


def expect_closed(vhdx, image):
    assert not vhdx("info", "--json", image, rc=0).json()["dirty-flag"]
    expect_no_errors(vhdx, image)


# ---- where it is reached

def test_without_options_the_socket_is_in_a_new_private_folder(vhdx_path, plugin, nbd, image, tmp_path):
    with Serve([vhdx_path, "serve", image], {"XDG_RUNTIME_DIR": str(tmp_path)}) as server:
        path = pathlib.Path(re.fullmatch(r"nbd\+unix:///\?socket=(.*)", server.uri).group(1))
        assert path.parent.parent == tmp_path
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert client(nbd, server.uri).pread(512, 2 * MiB) == Pattern(1).read(2 * MiB, 512)
        assert server.end()[0] == 0
        assert not path.parent.exists()


@pytest.mark.parametrize("runtime", ["a file", "missing", "a long name", "relative"])
def test_the_private_folder_is_made_where_it_can_be(vhdx_path, plugin, nbd, image, tmp_path, runtime):
    """XDG_RUNTIME_DIR may be another user's, after su, or have gone with his session."""
    place = {"a file": str(image), "missing": str(tmp_path / "no"), "a long name": str(tmp_path / ("x" * 100)), "relative": "here"}[runtime]
    if runtime == "a long name":
        os.mkdir(place)
    with Serve([vhdx_path, "serve", image], {"XDG_RUNTIME_DIR": place, "TMPDIR": place}) as server:
        assert server.uri.startswith("nbd+unix:///?socket=/tmp/vhdx-")
        assert client(nbd, server.uri).get_size() == 16 * MiB
        assert server.end()[0] == 0


def test_a_socket_with_a_difficult_name(vhdx_path, plugin, nbd, image, tmp_path):
    path = tmp_path / "a b%?&#\N{LATIN SMALL LETTER U WITH DIAERESIS}"
    with Serve([vhdx_path, "serve", "--socket", path.name, image], cwd=tmp_path) as server:
        assert re.fullmatch(r"[\w+:/?=.%~-]+", server.uri)
        assert client(nbd, server.uri).get_size() == 16 * MiB
        assert server.end()[0] == 0
    assert not path.exists()


def test_what_stands_where_the_socket_should_be_is_left_alone(vhdx, serve, image, tmp_path):
    other = Image(MiB, block_size=MiB).build(tmp_path / "other.vhdx").path
    dead, file = tmp_path / "dead", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    file.write_text("precious")
    with serve(image) as server:
        live = server.uri.split("=")[1]
        for path, says in ((live, "a server listens there"), (dead, "nobody listens there"), (file, "something else")):
            result = vhdx("serve", "--socket", path, other, rc=1)
            assert says in result.err and result.err.count("\n") == 1
            assert os.path.exists(path)
    assert file.read_text() == "precious"
    assert "longer than" in vhdx("serve", "--socket", "x" * 200, image, rc=1).err
    assert "No such file" in vhdx("serve", "--socket", tmp_path / "no" / "s", image, rc=1).err


def test_tcp(vhdx_path, vhdx, plugin, nbd, image):
    with Serve([vhdx_path, "serve", "--port", "0", image]) as server:
        port = int(re.fullmatch(r"nbd://localhost:(\d+)", server.uri).group(1))
        assert client(nbd, server.uri).get_size() == 16 * MiB
        assert client(nbd, f"nbd://127.0.0.1:{port}").get_size() == 16 * MiB
        result = vhdx("serve", "-r", "-U", "--port", port, image, rc=1)
        assert f"port {port}" in result.err and "in use" in result.err
        assert server.end()[0] == 0
    port, server = on_a_port(lambda port: [vhdx_path, "serve", "--port", port, "--bind", "127.0.0.1", image])
    with server:
        assert server.uri == f"nbd://127.0.0.1:{port}"
        assert client(nbd, server.uri).get_size() == 16 * MiB
    with Serve([vhdx_path, "serve", "--port", "0", "--bind", "*", image]) as server:
        assert client(nbd, server.uri.replace("localhost", "127.0.0.1")).get_size() == 16 * MiB


def test_a_name_that_has_its_address_twice(vhdx_path, plugin, nbd, need_unshare, image, tool, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost twice\n127.0.0.1 twice\n127.0.0.2 twice\n")
    script = f'mount --bind {hosts} /etc/hosts && exec "$0" serve --bind twice --port "$1" "$2"'

    def serve_on(port):
        return [tool("unshare"), "--mount", "sh", "-c", script, vhdx_path, port, image]
    for start in (lambda: on_a_port(serve_on), lambda: (None, Serve(serve_on(0)))):
        wanted, server = start()
        with server:
            given = int(re.fullmatch(r"nbd://twice:(\d+)", server.uri).group(1))
            assert wanted in (given, None)
            for address in ("127.0.0.1", "127.0.0.2"):
                assert client(nbd, f"nbd://{address}:{given}").get_size() == 16 * MiB
            assert server.end()[0] == 0


def test_no_free_port_is_no_port_of_the_users(vhdx, image):
    result = vhdx("serve", "--port", "0", "--bind", "192.0.2.1", image, rc=1)
    assert "any port of 192.0.2.1" in result.err


def test_only_this_machine_can_connect_by_default(vhdx_path, plugin, image):
    if find_tool("ss") is None:
        pytest.skip("ss is not installed (Debian package iproute2)")
    with Serve([vhdx_path, "serve", "--port", "0", image]) as server:
        listening = [line.split()[3] for line in run_program([find_tool("ss"), "-Hltn"], rc=0).out.splitlines()]
        port = server.uri.rsplit(":", 1)[1]
        assert {address.rsplit(":", 1)[0] for address in listening if address.endswith(f":{port}")} <= {"127.0.0.1", "[::1]"}


def test_stdio(vhdx_path, vhdx, plugin, nbd, image):
    handle = nbd.NBD()
    handle.connect_command([str(vhdx_path), "serve", "-q", "--stdio", image])
    handle.pwrite(b"\7" * 5000, MiB + 1)
    assert handle.pread(5000, MiB + 1) == b"\7" * 5000
    handle.shutdown()
    del handle  # which waits for the command
    vhdx("io", "-r", image, "-c", f"read -P 7 {MiB + 1} 5000", rc=0)
    expect_closed(vhdx, image)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("how", ["signal", "end of input"])
def test_stdio_ends(vhdx_path, vhdx, plugin, image, kind, how):
    """nbdkit waits for a request: a signal has to end that, too."""
    ours, theirs = socket.socketpair()
    channel = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} if kind == "pipe" else {"stdin": theirs, "stdout": theirs}
    process = subprocess.Popen([vhdx_path, "serve", "--stdio", image], stderr=subprocess.PIPE, **channel)
    theirs.close()
    assert (process.stdout.read(8) if kind == "pipe" else ours.recv(8)) == b"NBDMAGIC"
    if how == "signal":
        process.terminate()
    elif kind == "pipe":
        process.stdin.close()
    else:
        ours.shutdown(socket.SHUT_WR)
    assert process.wait(SECONDS) == 0
    assert CLEAN.fullmatch(process.stderr.read().decode())
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()
    ours.close()
    expect_closed(vhdx, image)


def test_stdio_by_pipes_carries_large_writes(vhdx_path, vhdx, plugin, nbd, image, tmp_path):
    """A shell between makes pipes of libnbd's socket."""
    data = os.urandom(8 * MiB)
    handle = nbd.NBD()
    handle.connect_command(["/bin/sh", "-c", 'cat | "$0" serve -q --stdio "$1" | cat', str(vhdx_path), image])
    handle.pwrite(data, 12345)
    assert handle.pread(8 * MiB, 12345) == data
    handle.shutdown()
    del handle
    assert raw_content(vhdx, image, tmp_path)[12345:12345 + 8 * MiB] == data


def test_sockets_from_systemd(vhdx_path, vhdx, plugin, nbd, image, tool, tmp_path):
    out = tmp_path / "out.raw"
    run_program([tool("nbdcopy"), "--", "[", vhdx_path, "serve", "-r", image, "]", out], rc=0)
    assert out.read_bytes() == raw_content(vhdx, image, tmp_path)
    pipe = run_program(["sh", "-c", '"$0" -- [ "$1" serve -r "$2" ] - | sha256sum', tool("nbdcopy"), vhdx_path, image], rc=0)
    assert pipe.out.split()[0] == file_sha256(out), "nothing but the disk goes to standard output"
    activate = find_tool("systemd-socket-activate")
    if activate is None:
        pytest.skip("systemd-socket-activate is not installed (Debian package systemd)")
    path = tmp_path / "s"
    with subprocess.Popen([activate, "-l", path, vhdx_path, "serve", image], stderr=subprocess.PIPE) as process:
        assert b"Listening" in process.stderr.readline()
        assert client(nbd, f"nbd+unix:///?socket={path}").pread(512, 2 * MiB) == Pattern(1).read(2 * MiB, 512)
        process.terminate()
        assert process.wait(SECONDS) == 0
    expect_closed(vhdx, image)


@pytest.mark.parametrize("options, says", [
    (["--socket=s", "--port=0"], "exclude each other"), (["--stdio", "--port=0"], "exclude each other"),
    (["--bind=::1"], "--bind needs --port"), (["--port=65536"], "up to 65535"), (["--port=-1"], "up to 65535"),
    (["--port=x"], "up to 65535"), (["--stdio", "--run=true"], "not --stdio"), (["--tls-verify-peer"], "needs --tls-certificates"),
    (["--force-share"], "give --read-only too")])
def test_wrong_usage(vhdx, image, options, says):
    result = vhdx("serve", *options, image, rc=2)
    assert says in result.err and result.err.count("\n") == 1


# ---- TLS

@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    certtool = find_tool("certtool")
    if certtool is None:
        pytest.skip("certtool is not installed (Debian package gnutls-bin)")
    folder = tmp_path_factory.mktemp("pki")

    def make(name, template, *how):
        (folder / f"{name}.info").write_text(template)
        run_program([certtool, "--generate-privkey", "--ecc", "--outfile", folder / f"{name}-key.pem"], rc=0)
        run_program([certtool, *how, "--load-privkey", folder / f"{name}-key.pem", "--template", folder / f"{name}.info",
                     "--outfile", folder / f"{name}-cert.pem"], rc=0)
    authority = ("--load-ca-certificate", folder / "ca-cert.pem", "--load-ca-privkey", folder / "ca-key.pem")
    make("ca", "cn = Test\nca\ncert_signing_key\n", "--generate-self-signed")
    make("server", "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nencryption_key\nsigning_key\n",
         "--generate-certificate", *authority)
    make("client", "cn = client\ntls_www_client\nencryption_key\nsigning_key\n", "--generate-certificate", *authority)
    (folder / "stranger").mkdir()
    (folder / "stranger" / "ca-cert.pem").write_bytes((folder / "ca-cert.pem").read_bytes())
    return folder


def tls_client(nbd, uri, certificates):
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_REQUIRE)
    handle.set_tls_certificates(str(certificates))
    handle.connect_uri(uri)
    return handle


def test_tls(vhdx_path, vhdx, plugin, nbd, image, certificates):
    with Serve([vhdx_path, "serve", "--port", "0", "--tls-certificates", certificates, image]) as server:
        assert server.uri.startswith("nbds://localhost:")
        handle = tls_client(nbd, server.uri, certificates)
        assert handle.get_tls_negotiated()
        handle.pwrite(b"\5" * 70000, 3)
        assert handle.pread(70000, 3) == b"\5" * 70000
        plain = nbd.NBD()
        with pytest.raises(nbd.Error):
            plain.connect_uri(server.uri.replace("nbds://", "nbd://"))
        assert server.end()[0] == 0, "with the client still there"
    expect_closed(vhdx, image)


def test_tls_with_clients_that_must_show_a_certificate(vhdx_path, plugin, nbd, image, certificates, tmp_path):
    with Serve([vhdx_path, "serve", "--socket", tmp_path / "s", "--tls-certificates", certificates, "--tls-verify-peer", image]) as server:
        assert server.uri.startswith("nbds+unix://")
        uri = server.uri.replace("unix:///", "unix://localhost/")
        handle = nbd.NBD()
        handle.set_tls(nbd.TLS_REQUIRE)
        handle.set_tls_certificates(str(certificates))
        handle.set_tls_verify_peer(False)  # a path is no host name
        handle.connect_uri(server.uri)
        assert handle.get_size() == 16 * MiB
        with pytest.raises(nbd.Error):
            tls_client(nbd, uri, certificates / "stranger").pread(512, 0)


def test_missing_certificates(vhdx, image, tmp_path):
    result = vhdx("serve", "--tls-certificates", tmp_path, image, "--run", "true", rc=1)
    assert "ca-cert.pem" in result.err and result.err.count("\n") == 1


# ---- --run

def test_run(vhdx, plugin, image, tool):
    out = vhdx("serve", image, "--run", f'{tool("nbdinfo")} --size "$uri"; test "$uri" = "$nbd"; test -S "$unixsocket"; echo $?/$port/',
               rc=0).out
    assert out == f"{16 * MiB}\n0//\n", "the command's output, and nothing else"
    assert re.fullmatch(r"\d+\n", vhdx("serve", "--port", "0", image, "--run", "echo $port", rc=0).out)
    vhdx("serve", image, "--run", "exit 7", rc=7)
    vhdx("serve", image, "--run", "kill -9 $$", rc=137)
    vhdx("serve", image, "--run", "no-such-command-at-all", rc=127)
    result = vhdx("serve", "-q", image, "--run", "true", rc=0)
    assert result.out == result.err == ""


def ended_clean(err):
    """The signal reaches the shell's "sleep" too, and the shell may say so."""
    return CLEAN.fullmatch(err.decode().removeprefix("Terminated\n"))


def test_run_sees_the_servers_end(vhdx_path, plugin, image, tmp_path):
    """A signal goes to the command; when that has ended, so does the server."""
    script = 'trap "echo stopped; exit 5" TERM; echo $unixsocket; while :; do sleep 0.02; done'
    with subprocess.Popen([vhdx_path, "serve", image, "--run", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        path = process.stdout.readline().decode().strip()
        assert os.path.exists(path)
        process.terminate()
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (5, b"stopped\n") and ended_clean(err), err
    assert not os.path.exists(os.path.dirname(path))


def test_run_signals_what_the_shell_waits_for(vhdx_path, plugin, image, tool, tmp_path):
    """The shell does not pass signals on, and dies; the server has to be there until the program that it ran has ended."""
    program = tmp_path / "program"
    program.write_text(f"""#!/bin/sh
trap 'sleep 0.3; {tool("nbdinfo")} --size "$uri" >size; exit 0' TERM
echo ready
for i in $(seq 50000); do sleep 0.02; done
""")
    program.chmod(0o755)
    with subprocess.Popen([vhdx_path, "serve", image, "--run", f"{program}; echo never"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          cwd=tmp_path, start_new_session=True) as process:  # without a terminal
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (143, b"") and ended_clean(err), err
    assert (tmp_path / "size").read_text() == f"{16 * MiB}\n"


def test_run_without_a_server(vhdx, plugin, image, tmp_path):
    """Somebody else's signal ends nbdkit, properly, before the command can run."""
    short = tmp_path / "short"
    short.write_text(f"""#!{sys.executable}
import os, sys
os.write(next(int(word[11:]) for word in sys.argv if word.startswith("control-fd=")), b"did connections=0\\nclosed\\n")
""")
    short.chmod(0o755)
    result = vhdx("serve", image, "--run", "echo never", rc=1, env={"VHDX_NBDKIT": str(short)})
    assert result.out == "" and "before --run could begin" in result.err


def test_ctrl_c_reaches_the_command_and_spares_the_server(vhdx_path, vhdx, plugin, image, tool):
    """The terminal signals the whole foreground group; the server has to live until the command has written its last."""
    script = f"""trap '"{tool("qemu-io")}" -f raw -c "write -P 9 0 4k" "$uri"; exit 0' INT; echo ready; while :; do sleep 0.02; done"""
    with subprocess.Popen([vhdx_path, "serve", image, "--run", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          start_new_session=True) as process:
        assert process.stdout.readline() == b"ready\n"
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    vhdx("io", "-r", image, "-c", "read -P 9 0 4k", rc=0)


# ---- ends

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_signals_close_the_image_with_clients_there(serve, vhdx, nbd, image, number):
    server = serve(image)
    handles = [client(nbd, server.uri) for _ in range(3)]
    handles[0].pwrite(b"\7" * 4096, 3 * MiB)  # not flushed: closing does that
    path = server.uri.split("=")[1]
    status, err = server.end(number)
    assert status == 0 and CLEAN.fullmatch(err), err
    assert "after 3 connections, 1 write (4 KiB)" in err
    assert not os.path.exists(path)
    vhdx("io", "-r", image, "-c", "read -P 7 3M 4k", rc=0)
    expect_closed(vhdx, image)


def test_what_was_asked_before_the_end_is_answered(serve, vhdx, nbd, image):
    server = serve(image)
    handle = client(nbd, server.uri)
    data = nbd.Buffer.from_bytearray(bytearray(b"\3" * MiB))
    done = [handle.aio_pwrite(data, block * MiB) for block in range(8)]
    server.process.terminate()
    answered = []
    try:
        while handle.aio_in_flight() > 0:
            handle.poll(-1)
    except nbd.Error:
        pass  # it has hung up
    for block, cookie in enumerate(done):
        try:
            if handle.aio_command_completed(cookie):
                answered.append(block)
        except nbd.Error:
            pass
    assert server.wait()[0] == 0
    for block in answered:
        vhdx("io", "-r", image, "-c", f"read -P 3 {block}M 1M", rc=0)
    expect_closed(vhdx, image)


def test_a_client_that_takes_no_answers_does_not_hold_it_up(serve, vhdx, nbd, image):
    server = serve(image)
    handle = client(nbd, server.uri)
    for _ in range(4):
        handle.aio_pread(nbd.Buffer(8 * MiB), 0)  # and nobody reads from the socket
    assert select.select([handle.aio_get_fd()], [], [], SECONDS)[0], "an answer has begun"
    status, err = server.end()
    assert status == 0 and CLEAN.fullmatch(err) and "; 1 client did not take all answers" in err, err
    expect_closed(vhdx, image)


def test_the_server_is_killed(serve, vhdx, nbd, image):
    server = serve(image)
    client(nbd, server.uri).pwrite(b"\7" * 4096, 3 * MiB, nbd.CMD_FLAG_FUA)
    path = server.uri.split("=")[1]
    os.kill(server.nbdkit, signal.SIGKILL)
    status, err = server.wait()
    assert status == 1 and err.count("\n") == 1 and "signal 9" in err and "log brings it back" in err
    assert not os.path.exists(path)
    vhdx("io", image, "-c", "read -P 7 3M 4k", rc=0)


def test_vhdx_is_killed(serve, vhdx, nbd, image):
    """nbdkit closes the image, with clients there, and ends."""
    server = serve(image)
    handle = client(nbd, server.uri)
    handle.pwrite(b"\7" * 4096, 3 * MiB)
    nbdkit = server.nbdkit
    server.process.kill()
    server.process.wait(SECONDS)
    wait_until(lambda: is_gone(nbdkit), "nbdkit's end")
    expect_closed(vhdx, image)
    vhdx("io", "-r", image, "-c", "read -P 7 3M 4k", rc=0)
    assert not os.path.exists(server.uri.split("=")[1])


def test_vhdx_is_killed_and_the_command_ends_too(vhdx_path, plugin, image, tmp_path):
    with subprocess.Popen([vhdx_path, "serve", "--socket", tmp_path / "s", image, "--run", "echo $$; exec sleep 1000"], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as process:
        command = int(process.stdout.readline())
        process.kill()
    wait_until(lambda: is_gone(command), "the command's end")


@pytest.mark.parametrize("how", ["stopped", "vhdx is killed"])
def test_a_socket_that_took_the_place_of_ours_stays(serve, nbd, image, tmp_path, how):
    """Somebody removed the name and started another server there."""
    server = serve(image)
    path = pathlib.Path(server.uri.split("=")[1])
    nbdkit = server.nbdkit
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        if how == "stopped":
            assert server.end()[0] == 0
        else:
            server.process.kill()
            server.process.wait(SECONDS)
            wait_until(lambda: is_gone(nbdkit), "nbdkit's end")
        assert path.is_socket()


def test_what_the_caller_has_open_is_none_of_the_servers_business(serve, nbd, image):
    """A daemon that starts it may leave its own sockets open, which must not be taken for clients'."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as theirs:
        ours, _ = listener.accept()
        with ours:
            server = serve(image, pass_fds=[listener.fileno(), ours.fileno()])
            handle = client(nbd, server.uri)
            assert handle.pread(512, 2 * MiB) == Pattern(1).read(2 * MiB, 512)
            folder = pathlib.Path(f"/proc/{server.nbdkit}/fd")
            strangers = {f"socket:[{os.fstat(s.fileno()).st_ino}]" for s in (listener, ours)}
            for entry in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # it has just been closed
                    assert os.readlink(entry) not in strangers
            assert server.end()[0] == 0
            theirs.sendall(b"x")
            assert ours.recv(1) == b"x"


def test_few_descriptors(serve, nbd, image):
    server = serve(image, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48)))
    assert client(nbd, server.uri).get_size() == 16 * MiB
    assert server.end()[0] == 0


def test_a_failed_close_is_told(serve, vhdx, nbd, image, tool):
    """From the middle on every fdatasync(2) fails, with data written and not flushed."""
    strace = tool("strace")
    server = serve(image)
    handle = client(nbd, server.uri)
    handle.pwrite(b"\1" * 4096, 3 * MiB, nbd.CMD_FLAG_FUA)
    with subprocess.Popen([strace, "-f", "-p", str(server.nbdkit), "-o", "/dev/null", "-e", "trace=fdatasync", "-e",
                           "inject=fdatasync:error=EIO"], stderr=subprocess.PIPE) as tracer:
        line = tracer.stderr.readline()
        if b"attached" not in line:
            pytest.skip(f"strace may not trace here: {line.decode().strip()}")
        handle.pwrite(b"\2" * 4096, 4 * MiB)
        status, err = server.end()
        tracer.wait(SECONDS)
    assert status == 1
    assert "vhdx serve: " in err and "could not be closed cleanly" in err and "log brings back" in err
    vhdx("io", image, "-c", "read -P 1 3M 4k", rc=0)
    expect_closed(vhdx, image)


def test_nobody_reads_the_uri(vhdx_path, vhdx, plugin, image, tmp_path):
    with open("/dev/full", "wb") as full:
        result = subprocess.run([vhdx_path, "serve", "--socket", tmp_path / "s", image], stdout=full, stderr=subprocess.PIPE,
                                timeout=SECONDS, check=False)
    assert result.returncode == 1 and b"standard output" in result.stderr
    assert not (tmp_path / "s").exists()
    expect_closed(vhdx, image)


# ---- beginnings that fail

def test_what_cannot_be_served(vhdx, plugin, image, tmp_path):
    raw = tmp_path / "raw.img"
    raw.write_bytes(bytes(MiB))
    for path, says in ((tmp_path / "no.vhdx", "No such file or directory"), (raw, "vhdxfile"), (tmp_path, "folder")):
        result = vhdx("serve", "--socket", tmp_path / "s", path, rc=1)
        assert result.out == "" and result.err.startswith(f"vhdx serve: {path}: ") and result.err.count("\n") == 1
        assert says in result.err
        assert not (tmp_path / "s").exists()


def test_without_nbdkit_or_plugin(vhdx, plugin, image, tmp_path):
    before = file_sha256(image)
    result = vhdx("serve", image, rc=1, env={"VHDX_NBDKIT": "/nowhere/nbdkit"})
    assert "/nowhere/nbdkit" in result.err
    result = vhdx("serve", image, rc=1, env={"VHDX_NBDKIT_PLUGIN": "/nowhere/plugin.so"})
    assert "/nowhere/plugin.so" in result.err and "nbdkit-plugin-dev" in result.err
    if not os.path.exists("/usr/sbin/nbdkit") and not os.path.exists("/usr/local/sbin/nbdkit"):
        result = vhdx("serve", image, rc=1, env={"PATH": str(tmp_path)})
        assert "Debian package nbdkit" in result.err and result.err.count("\n") == 1
    assert file_sha256(image) == before


def test_a_signal_before_it_serves(vhdx_path, plugin, image, tmp_path):
    """nbdkit is still being started: vhdx gives up, and nothing stays behind."""
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 1000\n")
    slow.chmod(0o755)
    process = subprocess.Popen([vhdx_path, "serve", "--socket", tmp_path / "s", image], env={**os.environ, "VHDX_NBDKIT": str(slow)},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: children(process.pid), "the child")
    process.terminate()
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (143, b"", b"")
    assert not (tmp_path / "s").exists()
