# SPDX-License-Identifier: MIT
"""The served disk under the programs that people use, and under load: nbdcopy, qemu-img, fio, sixteen connections at once, and a
server that is killed in the middle."""
import os
import random
import threading

import pytest

from conftest import find_tool, run_program
from nbd_support import block_status, client, map_of, nbd, plugin, raw_content, serve
from vhdxbuild import Image, MiB
from waiting import wait_until
from writing import KiB, expect_no_errors, on_disk

SIZE = 64 * MiB


@pytest.fixture
def image(tmp_path):
    return Image(SIZE, block_size=MiB).build(tmp_path / "disk.vhdx").path


@pytest.fixture
def raw(tmp_path):
    """A raw disk with data here and there."""
    path = tmp_path / "source.raw"
    generator = random.Random(1)
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for offset in (0, 3 * MiB + 4096, 20 * MiB, SIZE - 70 * KiB):
            file.seek(offset)
            file.write(generator.randbytes(70 * KiB))
    return path


# ---- programs

def test_nbdcopy_both_ways_is_sparse(serve, vhdx, image, raw, tool, tmp_path):
    with serve(image) as server:
        run_program([tool("nbdcopy"), "--flush", raw, server.uri], rc=0)
        run_program([tool("nbdcopy"), server.uri, tmp_path / "out.raw"], rc=0)
        assert server.end()[0] == 0
    assert (tmp_path / "out.raw").read_bytes() == raw.read_bytes()
    assert on_disk(tmp_path / "out.raw") < 8 * MiB and on_disk(image) < 8 * MiB
    assert [length for _, length, zero in map_of(vhdx, image) if not zero] == [MiB, MiB, MiB, MiB]
    expect_no_errors(vhdx, image)


def test_nbdcopy_overwrites_what_was_there(serve, vhdx, image, raw, tool, tmp_path):
    """Zeros of the source must arrive, too: nothing shows through."""
    vhdx("io", image, "-c", "write -P 0xee 0 64M", rc=0)
    with serve(image) as server:
        run_program([tool("nbdcopy"), "--flush", "--allocated", raw, server.uri], rc=0)
    assert raw_content(vhdx, image, tmp_path) == raw.read_bytes()
    with serve(image) as server:
        run_program([tool("nbdcopy"), "--flush", raw, server.uri], rc=0)
    assert raw_content(vhdx, image, tmp_path) == raw.read_bytes()
    assert on_disk(image) < 8 * MiB


def test_qemu_img_and_qemu_io(serve, vhdx, qemu_img, image, raw, tool, tmp_path):
    with serve(image) as server:
        qemu_img("convert", "-n", "-f", "raw", "-O", "raw", raw, server.uri)
        assert qemu_img("compare", "-f", "raw", "-F", "raw", raw, server.uri).out == "Images are identical.\n"
        qemu_img("convert", "-f", "raw", "-O", "raw", server.uri, tmp_path / "out.raw")
        run_program([tool("qemu-io"), "-f", "raw", "-c", "write -P 7 5000 70000", "-c", "write -z 20M 1M", "-c", "discard 3M 1M",
                     "-c", "flush", "-c", "read -P 7 5000 70000", "-c", "read -P 0 20M 1M", "-c", "read -P 0 3M 1M", server.uri], rc=0)
        assert server.end()[0] == 0
    assert (tmp_path / "out.raw").read_bytes() == raw.read_bytes()
    vhdx("io", "-r", image, "-c", "read -P 7 5000 70000", "-c", "read -P 0 20M 1M", rc=0)
    qemu_img("check", "-f", "vhdx", image)
    expect_no_errors(vhdx, image)


def test_vhdx_speaks_to_vhdx(serve, vhdx, image, raw, tmp_path):
    with serve(image) as server:
        if "NBD" in vhdx("convert", "-n", "-f", "raw", raw, server.uri).err:
            pytest.skip("the command was built without libnbd")
        vhdx("compare", "-f", "raw", "-F", "raw", raw, server.uri, rc=0)
    assert raw_content(vhdx, image, tmp_path) == raw.read_bytes()


@pytest.mark.parametrize("kind", ["random", "sequential"])
def test_fio_with_verification(serve, vhdx, image, kind, tmp_path):
    fio = find_tool("fio")
    if fio is None:
        pytest.skip("fio is not installed")
    if "nbd" not in run_program([fio, "--enghelp"]).out.split():
        pytest.skip("this fio has no nbd engine")
    job = {"random": ["--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=1", "--iodepth=16", "--norandommap=0"],
           "sequential": ["--rw=write", "--bs=1M", "--iodepth=4"]}[kind]
    with serve(image) as server:
        result = run_program([fio, "--name=x", "--ioengine=nbd", f"--uri={server.uri}", f"--size={SIZE // 2}", *job, "--verify=crc32c",
                              "--verify_fatal=1", "--do_verify=1", "--fsync=64", "--randrepeat=1"], cwd=tmp_path)
        assert result.rc == 0, result.describe()
        assert server.end()[0] == 0
    expect_no_errors(vhdx, image)


# ---- sixteen connections

class Worker(threading.Thread):
    """One connection, with stretches of the disk of its own and a model of each."""

    STRETCH = 40 * KiB + 512  # stretches of neighbours share blocks, pages and sectors' pages

    def __init__(self, handle, no, nr, seed, count, nbd_module):
        super().__init__()
        self.handle, self.count, self.nbd = handle, count, nbd_module
        self.random = random.Random(f"{seed}/{no}")
        self.starts = range(no * self.STRETCH, SIZE - self.STRETCH, nr * self.STRETCH)
        self.model = {start: bytes(self.STRETCH) for start in self.starts}
        self.error = None

    def change(self, start, offset, data):
        old = self.model[start]
        self.model[start] = old[:offset] + data + old[offset + len(data):]

    def step(self):
        start = self.random.choice(self.starts)
        offset = self.random.randrange(self.STRETCH - 1)
        length = self.random.randrange(1, self.STRETCH - offset + 1)
        what = self.random.randrange(10)
        if what < 5:
            data = self.random.randbytes(length)
            self.handle.pwrite(data, start + offset, self.nbd.CMD_FLAG_FUA if what == 0 else 0)
            self.change(start, offset, data)
        elif what == 5:
            self.handle.trim(length, start + offset)
            self.change(start, offset, bytes(length))
        elif what == 6:
            self.handle.zero(length, start + offset, self.random.choice((0, self.nbd.CMD_FLAG_NO_HOLE)))
            self.change(start, offset, bytes(length))
        elif what == 7:
            self.handle.flush()
        elif what == 8:
            block_status(self.nbd, self.handle, start, self.STRETCH)
        else:
            assert self.handle.pread(length, start + offset) == self.model[start][offset:offset + length]

    def run(self):
        try:
            for _ in range(self.count):
                self.step()
            for start, content in self.model.items():
                assert self.handle.pread(self.STRETCH, start) == content
        except Exception as error:  # pylint: disable=broad-except
            self.error = error


def test_sixteen_connections_at_once(serve, vhdx, nbd, image, tmp_path):
    with serve(image) as server:
        workers = [Worker(client(nbd, server.uri), no, 16, 4711, 120, nbd) for no in range(16)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.error for worker in workers if worker.error] == []
        reader = client(nbd, server.uri)
        assert server.nbdkit and reader.pread(512, 0) == workers[0].model[0][:512]
        status, err = server.end()
        assert status == 0 and "after 17 connections" in err
    content = raw_content(vhdx, image, tmp_path)
    for worker in workers:
        for start, expected in worker.model.items():
            assert content[start:start + worker.STRETCH] == expected
    expect_no_errors(vhdx, image)


# ---- killed in the middle

class Writer(threading.Thread):
    """Writes sectors of its own, each with a number that grows, some with FUA or else with a flush after some, and notes what is
    durable by that, until the server is gone."""

    NR_SECTORS = 64

    def __init__(self, handle, no, fua, nbd_module):
        super().__init__()
        self.handle, self.no, self.fua, self.nbd = handle, no, fua, nbd_module
        self.begun, self.durable = {}, {}
        self.random = random.Random(no)

    def place(self, sector):
        """Spread over all blocks, side by side with those of the others."""
        return (sector * (SIZE // self.NR_SECTORS) // 512 + self.no) * 512

    def content(self, sector, number):
        return f"{self.no} {sector} {number} ".encode() * 128

    def run(self):
        number = 0
        finished = {}
        try:
            while True:
                number += 1
                sector = self.random.randrange(self.NR_SECTORS)
                fua = self.fua and self.random.random() < 0.1
                self.begun[sector] = number
                self.handle.pwrite(self.content(sector, number)[:512], self.place(sector), self.nbd.CMD_FLAG_FUA if fua else 0)
                finished[sector] = number
                if fua:
                    self.durable[sector] = number
                elif not self.fua and self.random.random() < 0.1:
                    self.handle.flush()
                    self.durable.update(finished)
        except self.nbd.Error:
            pass

    def judge(self, content):
        """What survived is the last that was durable, or something that came later."""
        nr_judged = 0
        for sector, durable in self.durable.items():
            found = content[self.place(sector):self.place(sector) + 512]
            words = found.split()
            assert words[:2] == [b"%d" % self.no, b"%d" % sector], (self.no, sector, found[:40])
            number = int(words[2])
            assert found == self.content(sector, number)[:512]
            assert durable <= number <= self.begun[sector], (self.no, sector, durable, number)
            nr_judged += 1
        return nr_judged


def test_killed_and_restarted_under_load(serve, vhdx, nbd, image, tmp_path):
    for life in range(3):
        server = serve(image)
        writers = [Writer(client(nbd, server.uri), no, life % 2 == 1, nbd) for no in range(8)]
        for writer in writers:
            writer.start()
        wait_until(lambda: sum(len(writer.durable) for writer in writers) >= 100 * (life + 1), "writes")
        os.kill(server.nbdkit, 9)
        for writer in writers:
            writer.join()
        assert server.wait()[0] == 1
        content = raw_content(vhdx, image, tmp_path, "-r")  # the log replayed in memory
        assert sum(writer.judge(content) for writer in writers) >= 100
        with serve(image) as again:  # and into the file
            handle = client(nbd, again.uri)
            found = b"".join(handle.pread(32 * MiB, offset) for offset in range(0, SIZE, 32 * MiB))
            assert found == content
            assert again.end()[0] == 0
        expect_no_errors(vhdx, image, leaks=True)  # what grew unlogged is cut off by the first change
