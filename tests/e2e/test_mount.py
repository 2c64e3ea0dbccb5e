# SPDX-License-Identifier: MIT
"""vhdx mount and umount: the disk as a file.  Partitions are in test_mount_partitions.py, file systems in test_mount_fs.py."""
import contextlib
import errno
import mmap
import os
import random
import select
import shutil
import signal
import stat
import subprocess
import threading
import time

import pytest

from conftest import run_program
from mount_support import MiB, as_user, foreground, insist, mounter, mounts_below, server_pid  # noqa: F401 (fixtures)
from reading import file_sha256
from vhdxbuild import Image, Pattern, make_dirty, windows
from waiting import SECONDS, is_gone, pending_signals, wait_until

TiB = 1 << 40


@pytest.fixture
def image(vhdx, tmp_path):
    path = tmp_path / "disk.vhdx"
    vhdx("create", "--block-size=1M", path, "24M", rc=0)
    return path


def content_of(vhdx, image, folder):
    raw = folder / "content.raw"
    vhdx("convert", "--force", image, raw, rc=0)
    return raw.read_bytes()


def expect_clean(vhdx, image):
    assert vhdx("info", "--json", image, rc=0).json()["dirty-flag"] is False
    vhdx("check", image, rc=0)


@contextlib.contextmanager
def opened(path, flags):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def expect_errno(number, call, *arguments):
    with pytest.raises(OSError) as error:
        call(*arguments)
    assert error.value.errno == number, error.value


# ---- what is shown

@pytest.mark.parametrize("options, mode", [((), 0o600), (("-r",), 0o400), (("-o", "umask=027"), 0o640),
                                           (("-o", "ro,umask=022"), 0o444)])
def test_the_disk_is_a_file(mounter, vhdx, image, options, mode):
    with mounter.mounted(image, *options) as folder:
        assert os.listdir(folder) == ["disk"]
        st = os.stat(folder / "disk")
        assert (stat.S_ISREG(st.st_mode), st.st_mode & 0o777, st.st_size) == (True, mode, 24 * MiB)
        assert (st.st_uid, st.st_gid) == (os.geteuid(), os.getegid())
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o500 | (mode & 0o044) | (mode & 0o044) >> 2
        fs = os.statvfs(folder)
        assert (fs.f_bsize, fs.f_blocks) == (4096, 24 * MiB // 4096)
    assert os.listdir(folder) == []
    expect_clean(vhdx, image)


def test_owner_can_be_chosen(mounter, need_root, image):
    with mounter.mounted(image, "-o", "uid=1234,gid=77", "-o", "umask=007") as folder:
        st = os.stat(folder / "disk")
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (1234, 77, 0o660)


def test_times_are_those_of_the_image_and_of_the_last_write(mounter, image):
    os.utime(image, (10**9, 10**9))
    with mounter.mounted(image) as folder:
        assert os.stat(folder / "disk").st_mtime == 10**9
        with opened(folder / "disk", os.O_WRONLY) as fd:
            os.pwrite(fd, b"x", 0)
        assert os.stat(folder / "disk").st_mtime > 10**9


def test_names_may_hold_anything(mounter, vhdx, tmp_path):
    for name in ("with space", "a,b=c,ro", "back\\slash", "new\nline", "ümlaut #1"):
        (tmp_path / name).mkdir()
        vhdx("create", tmp_path / name / name, "1M", rc=0)
        target = tmp_path / name / "on"
        target.mkdir()
        mounter.mount(tmp_path / name / name, folder=target)
        with opened(target / "disk", os.O_WRONLY) as fd:
            os.pwrite(fd, name.encode(), 0)
        vhdx("umount", target, rc=0)
        assert content_of(vhdx, tmp_path / name / name, tmp_path).startswith(name.encode())


def test_relative_names(mounter, vhdx, image, tmp_path):
    (tmp_path / "here").mkdir()
    vhdx("mount", "disk.vhdx", "here", cwd=tmp_path, rc=0)
    assert (tmp_path / "here" / "disk").exists()
    vhdx("umount", "../tmp/here" if tmp_path.name == "tmp" else "here", cwd=tmp_path, rc=0)
    expect_clean(vhdx, image)


# ---- reading and writing

@pytest.mark.parametrize("sector", [512, 4096])
def test_content_both_ways(mounter, vhdx, tmp_path, sector):
    image, size, rng = tmp_path / "disk.vhdx", 24 * MiB, random.Random(sector)
    vhdx("create", "--block-size=1M", f"--logical-sector-size={sector}", image, "24M", rc=0)
    model = bytearray(size)
    with mounter.mounted(image) as folder, opened(folder / "disk", os.O_RDWR) as fd:
        for _ in range(60):
            offset = rng.randrange(size)
            piece = rng.randbytes(min(rng.choice([1, 511, 4096, 70000, 3 * MiB]), size - offset))
            assert os.pwrite(fd, piece, offset) == len(piece)
            model[offset:offset + len(piece)] = piece
            offset = rng.randrange(size)
            length = rng.choice([1, 513, 5 * MiB])
            assert os.pread(fd, length, offset) == model[offset:offset + length]
    expect_clean(vhdx, image)
    assert content_of(vhdx, image, tmp_path) == model
    with mounter.mounted(image, "-r") as folder:
        assert (folder / "disk").read_bytes() == model


def test_the_end_is_that_of_a_block_device(mounter, image):
    with mounter.mounted(image) as folder, opened(folder / "disk", os.O_RDWR) as fd:
        assert os.pread(fd, 100, 24 * MiB - 10) == bytes(10)
        assert os.pread(fd, 100, 24 * MiB) == b""
        assert os.pwrite(fd, bytes(100), 24 * MiB - 10) == 10
        expect_errno(errno.ENOSPC, os.pwrite, fd, b"x", 24 * MiB)


def test_many_threads_write_side_by_side(mounter, vhdx, image, tmp_path):
    pieces = {i: random.Random(i).randbytes(100_001) for i in range(64)}
    with mounter.mounted(image) as folder, opened(folder / "disk", os.O_RDWR) as fd:
        def write(numbers):
            for i in numbers:
                os.pwrite(fd, pieces[i], i * 300_000)
        threads = [threading.Thread(target=write, args=(range(t, 64, 8),)) for t in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, piece in pieces.items():
            assert os.pread(fd, len(piece), i * 300_000) == piece
    content = content_of(vhdx, image, tmp_path)
    assert all(content[i * 300_000:i * 300_000 + len(piece)] == piece for i, piece in pieces.items())


def test_a_read_only_mount_of_a_dirty_chain_changes_nothing(mounter, vhdx, tmp_path):
    base = Image(64 * MiB, block_size=2 * MiB, seed=1)
    base.write(2 * MiB, 2 * MiB, Pattern(1))
    base = base.build(tmp_path / "base.vhdx")
    child = windows(64 * MiB, parent=base, seed=3)
    child.write(2 * MiB + 512, 512, Pattern(3))
    make_dirty(child, ["bat", "bitmap"])
    child = child.build(tmp_path / "child.avhdx")
    before = [file_sha256(path) for path in (base.path, child.path)]
    with mounter.mounted(child.path, "--read-only") as folder:
        assert (folder / "disk").read_bytes() == content_of(vhdx, child.path, tmp_path)
        expect_errno(errno.EROFS, os.open, folder / "disk", os.O_RDWR)
        with opened(folder / "disk", os.O_RDONLY) as fd:
            os.fsync(fd)
            with mmap.mmap(fd, 64 * MiB, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
                assert mapped[2 * MiB + 512:2 * MiB + 1024] == os.pread(fd, 512, 2 * MiB + 512)
    assert [file_sha256(path) for path in (base.path, child.path)] == before


def test_a_child_is_written_and_its_parent_is_not(mounter, vhdx, tmp_path):
    base, child = tmp_path / "base.vhdx", tmp_path / "child.avhdx"
    vhdx("create", "--block-size=1M", base, "8M", rc=0)
    vhdx("io", base, "-c", "write -P 1 0 8M", rc=0)
    vhdx("create", "--parent", base, child, rc=0)
    before = file_sha256(base)
    expected = bytearray(b"\1" * 8 * MiB)
    with mounter.mounted(child) as folder, opened(folder / "disk", os.O_RDWR) as fd:
        os.pwrite(fd, b"x" * 5000, 3 * MiB - 700)
        os.fsync(fd)
        expected[3 * MiB - 700:3 * MiB + 4300] = b"x" * 5000
        subprocess.run(["fallocate", "-p", "-o", str(6 * MiB), "-l", str(MiB), folder / "disk"], check=True)
        expected[6 * MiB:7 * MiB] = bytes(MiB)
        assert os.pread(fd, 8 * MiB, 0) == expected
    assert file_sha256(base) == before
    expect_clean(vhdx, child)
    assert content_of(vhdx, child, tmp_path) == expected


def test_a_mount_for_writing_that_nobody_writes_changes_nothing(mounter, image):
    before = file_sha256(image)
    with mounter.mounted(image) as folder:
        assert (folder / "disk").read_bytes() == bytes(24 * MiB)
        with opened(folder / "disk", os.O_RDWR) as fd:
            os.fsync(fd)
    assert file_sha256(image) == before


def test_parents_are_found_as_everywhere(mounter, vhdx, tmp_path):
    (tmp_path / "parents").mkdir()
    base = Image(8 * MiB, seed=1)
    base.write(0, 4096, Pattern(1))
    base = base.build(tmp_path / "parents" / "base.vhdx")
    child = Image(8 * MiB, parent=base, seed=2).build(tmp_path / "child.avhdx")
    os.rename(base.path, tmp_path / "parents" / "renamed.vhdx")
    folder = mounter.new_folder()
    assert "parent" in vhdx("mount", "-r", child.path, folder, rc=1).err
    mounter.mount(child.path, "-r", "--parent", tmp_path / "parents" / "renamed.vhdx", folder=folder)
    with opened(folder / "disk", os.O_RDONLY) as fd:
        assert os.pread(fd, 4096, 0) != bytes(4096)
    mounter.umount(folder)


# ---- what is durable

@pytest.mark.parametrize("flags, sync", [(0, True), (os.O_DSYNC, False), (os.O_SYNC, False)])
def test_what_was_synced_survives_the_death_of_the_server(mounter, vhdx, image, tmp_path, flags, sync):
    folder, data = mounter.mount(image), os.urandom(200_000)
    fd = os.open(folder / "disk", os.O_RDWR | flags)
    os.pwrite(fd, data, 5 * MiB + 3)
    if sync:
        os.fsync(fd)
    pid = server_pid(folder)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid), "the server has gone")
    for call in (lambda: os.pread(fd, 10, 0), lambda: os.pwrite(fd, b"x", 0), lambda: os.listdir(folder),
                 lambda: os.stat(folder / "disk")):
        with pytest.raises(OSError) as error:  # at once, for whoever asks
            call()
        assert error.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    os.close(fd)
    assert "died" in vhdx("mount", image, folder).expect(1).err
    assert "had died" in mounter.umount(folder, rc=1).err
    assert mounts_below(tmp_path) == []
    assert content_of(vhdx, image, tmp_path)[5 * MiB + 3:5 * MiB + 3 + len(data)] == data
    with mounter.mounted(image):
        pass
    expect_clean(vhdx, image)


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_server_dies_when_umount_asks_it(mounter, vhdx_path, image, tmp_path, slash):
    folder = mounter.mount(image)
    pid = server_pid(folder)
    os.kill(pid, signal.SIGSTOP)
    with subprocess.Popen([vhdx_path, "umount", f"{folder}{slash}"], stderr=subprocess.PIPE, text=True) as process:
        time.sleep(0.5)  # in which it asks; should it be later, it finds a server that is dead
        os.kill(pid, signal.SIGKILL)
        err = process.communicate()[1]
    assert process.returncode == 1 and "had died" in err, err
    assert mounts_below(tmp_path) == []


def test_a_read_only_server_that_died_has_lost_nothing(mounter, image):
    folder = mounter.mount(image, "-r")
    pid = server_pid(folder)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid), "the server has gone")
    assert mounter.umount(folder).err == ""


def test_a_survey_passes_by_a_mount_without_server(mounter, vhdx, image, tmp_path):
    folder = mounter.mount(image, "-r")
    pid = server_pid(folder)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid), "the server has gone")
    result = vhdx("chain", "--json", tmp_path, rc=0)
    assert [entry["filename"] for entry in result.json()] == [str(image)] and "1 folders on other file systems" in result.err
    assert vhdx("chain", image, rc=0).err == ""
    mounter.umount(folder)


def test_users_may_be_killed(mounter, vhdx, image, tmp_path):
    with mounter.mounted(image) as folder:
        for _ in range(5):
            writers = [subprocess.Popen(["dd", "if=/dev/urandom", f"of={folder}/disk", "bs=1M", "count=24", "conv=notrunc"],
                                        stderr=subprocess.DEVNULL) for _ in range(3)]
            wait_until(lambda: os.stat(folder / "disk").st_blocks, "something is written")
            for writer in writers:
                writer.kill()
            for writer in writers:
                writer.wait()
        with opened(folder / "disk", os.O_RDWR) as fd:
            os.pwrite(fd, b"alive", 0)
            assert os.pread(fd, 5, 0) == b"alive"
    expect_clean(vhdx, image)
    assert content_of(vhdx, image, tmp_path)[:5] == b"alive"


def test_a_close_that_fails_is_told_to_umount(mounter, vhdx, image, tool, tmp_path):
    strace = tool("strace")
    folder = mounter.mount(image)
    with opened(folder / "disk", os.O_RDWR) as fd:
        os.pwrite(fd, b"x" * MiB, 0)
    # From now on the device takes no flush.
    tracer = subprocess.Popen([strace, "-f", "-o", tmp_path / "trace", "-e", "inject=fdatasync,fsync:error=EIO", "-p",
                               str(server_pid(folder))], stderr=subprocess.PIPE, text=True)
    line = tracer.stderr.readline()
    if "attached" not in line:
        tracer.wait()
        pytest.skip(f"strace cannot attach: {line.strip()}")
    result = mounter.umount(folder, rc=1)
    tracer.wait()
    assert "disk.vhdx" in result.err and "nput/output error" in result.err
    assert mounts_below(tmp_path) == []


def test_a_flush_that_found_no_space_is_tried_again(mounter, vhdx, image, tool, tmp_path):
    """What was written becomes durable when there is space, although nobody writes or flushes any more."""
    strace, data = tool("strace"), os.urandom(4096)

    def write_and_fail_to_flush(fd, pid, offset):
        os.pwrite(fd, data, offset)  # its block's entry is not in the log yet
        tracer = subprocess.Popen([strace, "-f", "-o", tmp_path / "trace", "-e", "inject=pwrite64,pwritev:error=ENOSPC", "-p",
                                   str(pid)], stderr=subprocess.PIPE, text=True)
        line = tracer.stderr.readline()
        if "attached" not in line:
            tracer.wait()
            pytest.skip(f"strace cannot attach: {line.strip()}")
        try:
            os.fsync(fd)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return tracer
        tracer.terminate()  # attaching took so long that the server has flushed by itself
        tracer.wait()
        return None

    with mounter.mounted(image) as folder, opened(folder / "disk", os.O_RDWR) as fd:
        pid = server_pid(folder)
        os.pwrite(fd, b"x" * MiB, 0)
        os.fsync(fd)
        tracer, offset = next((tracer, offset) for offset in range(5 * MiB, 24 * MiB, MiB)
                              if (tracer := write_and_fail_to_flush(fd, pid, offset)))

        def is_durable():
            shutil.copyfile(image, tmp_path / "copy.vhdx")
            return content_of(vhdx, tmp_path / "copy.vhdx", tmp_path)[offset:offset + 4096] == data

        assert not is_durable()
        tracer.terminate()
        tracer.wait()
        wait_until(is_durable, "the write is flushed")
    expect_clean(vhdx, image)


def test_no_space_is_an_error_like_others(mounter, vhdx, need_root, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", small], check=True)
    image = small / "disk.vhdx"
    vhdx("create", "--block-size=1M", image, "24M", rc=0)
    (small / "ballast").write_bytes(bytes(2 * MiB))
    with mounter.mounted(image) as folder, opened(folder / "disk", os.O_RDWR) as fd:
        with pytest.raises(OSError) as error:
            for i in range(24):
                os.pwrite(fd, b"a" * MiB, i * MiB)
        assert error.value.errno == errno.ENOSPC
        os.unlink(small / "ballast")
        os.pwrite(fd, b"b" * MiB, 23 * MiB)
        os.fsync(fd)
        assert os.pread(fd, 1, 23 * MiB) == b"b"
    expect_clean(vhdx, image)


# ---- space

def extents(vhdx, image):
    return [(e["start"], e["length"], e["data"]) for e in vhdx("map", "-U", "--json", image, rc=0).json()]


def test_holes_and_data_are_those_of_the_map(mounter, vhdx, image):
    with mounter.mounted(image) as folder, opened(folder / "disk", os.O_RDWR) as fd:
        for offset, length in [(0, 1), (3 * MiB - 1, 2), (10 * MiB, 2 * MiB), (23 * MiB, MiB)]:
            os.pwrite(fd, b"d" * length, offset)
        os.fsync(fd)
        assert os.stat(folder / "disk").st_blocks * 512 == 6 * MiB
        found, position = [], 0
        while position < 24 * MiB:
            try:
                data = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                break
            position = os.lseek(fd, data, os.SEEK_HOLE)
            found.append((data, position - data))
        for position in (24 * MiB, 24 * MiB + 1, TiB):
            expect_errno(errno.ENXIO, os.lseek, fd, position, os.SEEK_HOLE)
        assert os.lseek(fd, 0, os.SEEK_END) == 24 * MiB
    data = [(start, length) for start, length, is_data in extents(vhdx, image) if is_data]
    merged = []
    for start, length in data:  # the map also tells where in the file
        if merged and sum(merged[-1]) == start:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((start, length))
    assert found == merged == [(0, MiB), (2 * MiB, 2 * MiB), (10 * MiB, 2 * MiB), (23 * MiB, MiB)]


def test_fallocate_discards_and_zeroes(mounter, vhdx, image, tool, tmp_path):
    fallocate = tool("fallocate")
    with mounter.mounted(image) as folder, opened(folder / "disk", os.O_RDWR) as fd:
        disk = folder / "disk"
        for i in range(24):
            os.pwrite(fd, b"x" * MiB, i * MiB)
        os.fsync(fd)
        full = os.stat(image).st_blocks
        subprocess.run([fallocate, "--punch-hole", "--offset", str(4 * MiB + 100), "--length", str(6 * MiB), disk], check=True)
        subprocess.run([fallocate, "--zero-range", "--keep-size", "--offset", str(15 * MiB), "--length", str(20 * MiB), disk],
                       check=True)
        os.fsync(fd)
        assert os.stat(disk).st_blocks * 512 == (24 - 5) * MiB  # zeroed ranges keep their space
        wait_until(lambda: os.stat(image).st_blocks <= full - 5 * MiB // 512, "the file on the host has become smaller")
        for arguments in (["--length", "1M"], ["--zero-range", "--offset", "20M", "--length", "20M"], ["--keep-size", "--length", "1M"]):
            assert subprocess.run([fallocate, *arguments, disk], capture_output=True, check=False).returncode != 0
        expected = bytearray(b"x" * 24 * MiB)
        expected[4 * MiB + 100:10 * MiB + 100] = bytes(6 * MiB)
        expected[15 * MiB:] = bytes(9 * MiB)
        assert disk.read_bytes() == expected
    expect_clean(vhdx, image)
    assert content_of(vhdx, image, tmp_path) == expected


def test_allocated_space_of_a_huge_disk(mounter, vhdx, tmp_path):
    image = tmp_path / "huge.vhdx"
    vhdx("create", "--block-size=1M", image, "64T", rc=0)
    with mounter.mounted(image) as folder, opened(folder / "disk", os.O_RDWR) as fd:
        for n, offset in enumerate([0, 4 * TiB - 1, 33 * TiB, 64 * TiB - 1], 1):
            os.pwrite(fd, b"x", offset)
            # One question takes a bounded time; a slow machine may need several.
            wait_until(lambda: os.stat(folder / "disk").st_blocks * 512 == n * MiB, "all of it is counted")
        assert os.lseek(fd, 5 * TiB, os.SEEK_DATA) == 33 * TiB


# ---- what a disk cannot

def test_it_cannot_be_cut_or_changed_as_a_file(mounter, vhdx, image, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"")
    with mounter.mounted(image) as folder:
        disk = folder / "disk"
        with opened(disk, os.O_WRONLY) as fd:
            os.pwrite(fd, b"kept", 0)
            os.ftruncate(fd, 24 * MiB)  # is no change
            for size in (0, 24 * MiB - 1, 24 * MiB + 1):
                expect_errno(errno.EPERM, os.ftruncate, fd, size)
        expect_errno(errno.EPERM, os.truncate, disk, 0)
        expect_errno(errno.EPERM, os.open, disk, os.O_WRONLY | os.O_TRUNC)
        expect_errno(errno.EPERM, os.chmod, disk, 0o777)
        for call in (lambda: os.open(folder / "new", os.O_CREAT | os.O_WRONLY), lambda: os.unlink(disk),
                     lambda: os.rename(disk, folder / "new"), lambda: os.mkdir(folder / "new"),
                     lambda: os.link(disk, folder / "new"), lambda: os.symlink("x", folder / "new")):
            with pytest.raises(OSError):
                call()
        assert os.listdir(folder) == ["disk"]
        assert subprocess.run(["cp", other, disk], capture_output=True, check=False).returncode == 1
        with opened(disk, os.O_RDONLY) as fd:
            assert os.pread(fd, 4, 0) == b"kept"
        with opened(disk, os.O_RDWR) as fd:
            with pytest.raises(OSError) as error:
                mmap.mmap(fd, 4096, mmap.MAP_SHARED)
            assert error.value.errno == errno.ENODEV
            with mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ) as private:
                assert private[:4] == b"kept"


# ---- who else

def test_an_image_is_mounted_once_for_writing(mounter, vhdx, image):
    with mounter.mounted(image):
        second = mounter.new_folder()
        for options in ((), ("-r",)):
            assert "open" in vhdx("mount", *options, image, second, rc=1).err
        vhdx("io", image, "-c", "length", rc=1)
    with mounter.mounted(image, "-r"), mounter.mounted(image, "-r"):
        assert "open" in vhdx("mount", image, second, rc=1).err


def test_what_is_in_use_stays_mounted(mounter, vhdx, image, tmp_path):
    folder = mounter.mount(image)
    fd = os.open(folder / "disk", os.O_RDWR)
    assert "in use" in mounter.umount(folder, rc=1).err
    os.pwrite(fd, b"still", 0)
    mounter_pid = server_pid(folder)
    vhdx("umount", "--lazy", folder, rc=0)
    assert os.listdir(folder) == []
    os.pwrite(fd, b"there", 0)
    os.close(fd)
    wait_until(lambda: is_gone(mounter_pid), "the server has ended")
    expect_clean(vhdx, image)
    assert content_of(vhdx, image, tmp_path)[:5] == b"there"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_unmount(mounter, vhdx_path, vhdx, image, tmp_path, number):
    folder = mounter.new_folder()
    with foreground(vhdx_path, folder, image) as server:
        with opened(folder / "disk", os.O_RDWR) as fd:
            os.pwrite(fd, b"written", 0)
        server.send_signal(number)
        out, err = server.communicate()
        assert (server.returncode, out, err) == (0, "", "")
    assert mounts_below(tmp_path) == []
    expect_clean(vhdx, image)
    assert content_of(vhdx, image, tmp_path)[:7] == b"written"


@pytest.mark.parametrize("twice", [False, True])
def test_a_signal_lets_users_finish_and_a_second_does_not(mounter, vhdx_path, vhdx, image, tmp_path, twice):
    folder = mounter.new_folder()
    with foreground(vhdx_path, folder, image) as server:
        fd = os.open(folder / "disk", os.O_RDWR)
        os.pwrite(fd, b"first", 0)
        server.terminate()
        assert "still in use" in server.stderr.readline()
        assert os.listdir(folder) == []
        os.pwrite(fd, b"other", 0)
        if twice:
            insist(server.pid)
        else:
            os.close(fd)
        server.communicate()
        assert server.returncode == 0
        if twice:
            expect_errno(errno.ENOTCONN, os.pread, fd, 1, 0)
            os.close(fd)
    assert mounts_below(tmp_path) == []
    expect_clean(vhdx, image)
    assert content_of(vhdx, image, tmp_path)[:5] == b"other"


def test_a_signal_during_a_long_flush_does_not_insist(mounter, vhdx_path, vhdx, image, tool, tmp_path):
    """When it came, next to the first or long after, is not known: users keep the mount."""
    folder, slow = mounter.new_folder(), tmp_path / "slow"
    slow.write_text(f"""#!/bin/sh
exec {tool("strace")} -f -o /dev/null -e inject=fdatasync,fsync:delay_enter=2200000:when=1 \\
    -E ASAN_OPTIONS=detect_leaks=0 {vhdx_path} "$@"
""", encoding="utf-8")
    slow.chmod(0o755)
    with foreground(slow, folder, image) as server:
        pid = server_pid(folder)
        with opened(folder / "disk", os.O_RDWR) as fd:
            os.pwrite(fd, b"written", 0)
            os.kill(pid, signal.SIGTERM)
            assert "still in use" in server.stderr.readline()
            os.kill(pid, signal.SIGINT)
            wait_until(lambda: signal.SIGINT not in pending_signals(pid), "the other signal is seen")
            time.sleep(0.3)  # in which it would end
            os.pwrite(fd, b"still", 0)
        assert server.communicate()[1] == ""
        assert server.returncode == 0
    expect_clean(vhdx, image)
    assert content_of(vhdx, image, tmp_path)[:7] == b"stillen"


def test_an_end_in_the_midst_of_reading_a_request_is_an_end(mounter, vhdx_path, vhdx, image, tool, tmp_path):
    """The kernel then says ECONNABORTED instead of ENODEV, which libfuse takes for a failure."""
    folder, aborted = mounter.new_folder(), tmp_path / "aborted"
    aborted.write_text(f"""#!/bin/sh
exec {tool("strace")} -f -o /dev/null -P /dev/fuse -e trace=read -e inject=read:error=ECONNABORTED:when=100+ \\
    -E ASAN_OPTIONS=detect_leaks=0 {vhdx_path} "$@"
""", encoding="utf-8")
    aborted.chmod(0o755)
    with foreground(aborted, folder, image) as server:
        with contextlib.suppress(OSError):
            while True:
                with opened(folder / "disk", os.O_RDWR) as fd:
                    os.pwrite(fd, b"written", 0)
        assert server.communicate()[1] == ""
        assert server.returncode == 0
    assert mounts_below(tmp_path) == []
    expect_clean(vhdx, image)


def test_a_signal_that_is_heard_late_does_not_insist(mounter, vhdx_path, vhdx, image, tmp_path):
    """It came soon after the first, but the server was not let run until long after that."""
    is_soon = False
    while not is_soon:  # unless it is this program that is not let run
        folder = mounter.new_folder()
        with foreground(vhdx_path, folder, image) as server, opened(folder / "disk", os.O_RDWR) as fd:
            begun = time.monotonic()
            server.terminate()
            assert "still in use" in server.stderr.readline()
            os.kill(server.pid, signal.SIGSTOP)
            os.kill(server.pid, signal.SIGINT)
            is_soon = time.monotonic() - begun < 1.9
            if is_soon:
                time.sleep(2.2)
                os.kill(server.pid, signal.SIGCONT)
                wait_until(lambda: signal.SIGINT not in pending_signals(server.pid), "the other signal is seen")
                time.sleep(0.3)  # in which it would end
                os.pwrite(fd, b"still", 0)
                insist(server.pid)
                assert server.communicate() == ("", "")
    expect_clean(vhdx, image)
    assert content_of(vhdx, image, tmp_path)[:5] == b"still"


@pytest.mark.parametrize("in_use", [False, True])
def test_what_others_mounted_there_since_stays(mounter, vhdx_path, vhdx, image, tmp_path, in_use):
    """A server whose mount was detached leaves that of another alone, at the first signal and at the second."""
    other, folder = tmp_path / "other.vhdx", mounter.new_folder()
    vhdx("create", "--block-size=1M", other, "8M", rc=0)
    with foreground(vhdx_path, folder, image) as server, opened(folder / "disk", os.O_RDWR) as fd:
        os.pwrite(fd, b"written", 0)
        vhdx("umount", "--lazy", folder, rc=0)
        mounter.mount(other, folder=folder)
        pid = server_pid(folder)
        with opened(folder / "disk" if in_use else "/dev/null", os.O_RDONLY):
            server.terminate()
            wait_until(lambda: signal.SIGTERM not in pending_signals(server.pid), "the first signal is seen")
            assert "still in use" in server.stderr.readline()
            os.pwrite(fd, b"still", 0)
            insist(server.pid)
            assert server.communicate()[1] == ""
        assert server.returncode == 0
        assert os.stat(folder / "disk").st_size == 8 * MiB and server_pid(folder) == pid
    mounter.umount(folder)
    assert mounts_below(tmp_path) == []
    expect_clean(vhdx, image)
    assert content_of(vhdx, image, tmp_path)[:7] == b"stillen"


def test_a_server_that_dies_before_it_has_mounted(mounter, vhdx_path, vhdx, image, tool, tmp_path):
    other, folder = tmp_path / "other.vhdx", mounter.mount(image)
    vhdx("create", "--block-size=1M", other, "8M", rc=0)
    pid = server_pid(folder)
    done = subprocess.run([tool("strace"), "-f", "-o", "/dev/null", "-e", "inject=mount:error=EPERM:signal=KILL", "-E",
                           "ASAN_OPTIONS=detect_leaks=0", vhdx_path, "mount", other, folder], capture_output=True, text=True, timeout=SECONDS,
                          check=False)
    if "ended by signal 9" not in done.stderr:
        pytest.skip(f"strace cannot kill the server when it mounts: {done.stderr.strip()}")
    assert server_pid(folder) == pid and os.stat(folder / "disk").st_size == 24 * MiB
    mounter.umount(folder)
    assert mounts_below(tmp_path) == []


def test_the_usual_unmount_does_too(mounter, vhdx, image, tmp_path):
    folder = mounter.mount(image)
    with opened(folder / "disk", os.O_RDWR) as fd:
        os.pwrite(fd, b"written", 0)
    pid = server_pid(folder)
    subprocess.run(["fusermount3", "-u", folder], check=True)
    wait_until(lambda: is_gone(pid), "the server has ended")
    expect_clean(vhdx, image)
    assert content_of(vhdx, image, tmp_path)[:7] == b"written"


def test_the_server_holds_nothing_of_its_caller(mounter, vhdx_path, image, tmp_path):
    """No pipe, no lock, no folder: the caller's end when they would end without it."""
    folder = mounter.new_folder()
    here = tmp_path / "here"
    here.mkdir()
    reader, writer = os.pipe()
    done = subprocess.run([vhdx_path, "mount", image, folder], pass_fds=[writer], cwd=here, capture_output=True, timeout=SECONDS, check=False)
    os.close(writer)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    ready, _, _ = select.select([reader], [], [], SECONDS)  # at once, unless the server has the other end
    assert ready and os.read(reader, 1) == b""
    os.close(reader)
    pid = server_pid(folder)
    assert os.readlink(f"/proc/{pid}/cwd") == "/" and os.getsid(pid) == pid
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
    mounter.umount(folder)


# ---- what goes wrong

def test_failures_leave_nothing_behind(mounter, vhdx, image, tmp_path):
    folder, junk = mounter.new_folder(), tmp_path / "junk"
    junk.write_bytes(b"junk" * 1000)
    for arguments, rc, complaint in [
            ((tmp_path / "absent.vhdx", folder), 1, "No such file"),
            ((junk, folder), 1, "not a VHDX"),
            ((image, tmp_path / "absent"), 1, "No such file"),
            ((image, junk), 1, "Not a directory"),
            (("-o", "nonsense", image, folder), 1, "nonsense"),
            (("-o", "uid=me", image, folder), 2, "uid"),
            (("-U", image, folder), 2, "--read-only"),
            (("--partition", "1", image, folder), 2, "--fs"),
            ((image,), 2, "DIR")]:
        result = vhdx("mount", *arguments)
        assert (result.rc, complaint in result.err) == (rc, True), result.describe()
        assert result.err.startswith("vhdx mount: ") and result.err.count("\n") == 1, result.err
    assert mounts_below(tmp_path) == [] and os.listdir(folder) == []
    vhdx("io", image, "-c", "write 0 512", rc=0)  # nobody holds it


def test_umount_ends_only_what_is_ours(mounter, vhdx, need_root, tmp_path):
    folder = mounter.new_folder()
    assert "nothing is mounted" in mounter.umount(folder, rc=1).err
    assert "No such file" in mounter.umount(tmp_path / "absent", rc=1).err
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    assert "not by 'vhdx mount'" in mounter.umount(folder, rc=1).err
    assert mounts_below(tmp_path) != []


# ---- ordinary users

def test_ordinary_users_mount_for_themselves(as_user):
    as_user("""
        set -e
        mkdir mnt; $VHDX create --block-size=1M disk.vhdx 8M >/dev/null
        $VHDX mount disk.vhdx mnt
        test "$(stat -c %a:%u mnt/disk)" = "600:$(id -u)"
        printf mine | dd of=mnt/disk conv=notrunc status=none
        ! $VHDX mount disk.vhdx mnt 2>/dev/null
        exec 3<mnt/disk
        ! $VHDX umount mnt 2>err
        grep -q 'in use' err
        exec 3<&-
        $VHDX umount mnt
        $VHDX check -q disk.vhdx
        test "$($VHDX convert disk.vhdx - | head -c 4)" = mine
        $VHDX mount --read-only disk.vhdx mnt
        test "$(head -c 4 mnt/disk)" = mine
        $VHDX umount mnt
        ! $VHDX mount --fs disk.vhdx mnt 2>err
        grep -q root err
    """, rc=0)


def test_a_survey_passes_by_the_mount_of_another_user(as_user, need_root, vhdx_path, tool):
    """Which not even root may look into."""
    pid, folder = as_user("""
        set -e
        mkdir mnt; $VHDX create --block-size=1M disk.vhdx 8M >/dev/null
        $VHDX mount --read-only disk.vhdx mnt
        sed -n 's/^pid //p' mnt/.vhdx-mount; pwd
    """, rc=0).out.split()
    try:
        result = run_program([tool("nsenter"), f"--mount=/proc/{pid}/ns/mnt", vhdx_path, "chain", "--json", folder], rc=0)
        assert len(result.json()) == 1 and "1 folders on other file systems" in result.err
    finally:
        os.kill(int(pid), signal.SIGTERM)
        wait_until(lambda: is_gone(int(pid)), "the server has ended")


def test_the_server_of_an_ordinary_user_dies(as_user):
    as_user("""
        set -e
        mkdir mnt; $VHDX create --block-size=1M disk.vhdx 8M >/dev/null
        $VHDX mount disk.vhdx mnt
        printf mine | dd of=mnt/disk conv=notrunc,fsync status=none
        pid=$(sed -n 's/^pid //p' mnt/.vhdx-mount)
        kill -9 $pid
        while grep -qs '^State:.[RSD]' /proc/$pid/status; do :; done
        ! ls mnt 2>/dev/null
        ! $VHDX umount mnt 2>err
        grep -q 'had died' err
        ! grep -q "$PWD/mnt" /proc/self/mountinfo
        test "$($VHDX convert disk.vhdx - | head -c 4)" = mine
    """, rc=0)
