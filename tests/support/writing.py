# SPDX-License-Identifier: MIT
"""What the end-to-end tests of writing share: a model of the disk, random commands for "vhdx io" and qemu-io, and looks at the
result by every program there is."""
import os
import re
import subprocess

from vhdxbuild import MiB, reader

KiB = 1024


class Model:
    """What a guest must see: commands change it as they change the disk."""

    def __init__(self, content):
        self.content = bytearray(content)
        self.size = len(self.content)

    def write(self, offset, length, pattern):
        self.content[offset:offset + length] = bytes([pattern]) * length
        return f"write -q -P {pattern} {offset} {length}"

    def write_file(self, offset, length, path, content):
        self.content[offset:offset + length] = (content * (length // len(content) + 1))[:length]
        return f"write -q -s {path} {offset} {length}"

    def zero(self, offset, length, flags=""):
        self.content[offset:offset + length] = bytes(length)
        return f"write -q -z{flags} {offset} {length}"

    def discard(self, offset, length):
        self.content[offset:offset + length] = bytes(length)
        return f"discard -q {offset} {length}"

    def assert_same_as(self, raw):
        with open(raw, "rb") as file:
            found = file.read()
        assert len(found) == self.size
        if found != self.content:
            at = next(i for i in range(0, self.size, KiB) if found[i:i + KiB] != self.content[i:i + KiB])
            at += next(i for i in range(KiB) if found[at + i] != self.content[at + i])
            raise AssertionError(f"byte {at} ({at / MiB:.3f} MiB) is {found[at]:#x}, not {self.content[at]:#x}")


def random_range(generator, size, block_size, alignment=1):
    """Small and large, aligned and not, often at the border of a block or at the end of the disk."""
    offset = generator.randrange(size)
    if generator.random() < 0.4:
        offset = offset // block_size * block_size
    elif generator.random() < 0.3:
        offset = max(0, offset // block_size * block_size - generator.randrange(5000))
    length = generator.choice((1, 511, 512, 4096, 5000, 64 * KiB, MiB, block_size, block_size + 513, 3 * MiB))
    if generator.random() < 0.1:
        length = size
    offset = offset // alignment * alignment
    length = min(-(-length // alignment) * alignment, size - offset, 64 * MiB)
    return offset, length


def random_commands(generator, model, block_size, count, *, discards=True, source=None):
    """Lines for "vhdx io"; without discards and source those that qemu-io takes with the same meaning.  source: a file."""
    lines = []
    content = None
    if source:
        content = generator.randbytes(generator.randrange(1, 100000))
        with open(source, "wb") as file:
            file.write(content)
    for _ in range(count):
        offset, length = random_range(generator, model.size, block_size)
        kind = generator.random()
        if kind < 0.5 or (not discards and kind < 0.8):
            lines.append(model.write(offset, length, generator.randrange(256)))
            if generator.random() < 0.1:
                lines[-1] = lines[-1].replace("write", "write -f")
        elif source and kind < 0.6:
            lines.append(model.write_file(offset, length, source, content))
        elif kind < 0.7:
            lines.append(model.zero(offset, length, generator.choice(("", "u", "f", "uf"))))
        elif discards and kind < 0.85:
            lines.append(model.discard(offset, length))
        else:
            lines.append("flush")
    return lines


def expect_no_errors(vhdx, path, *, leaks=False):
    """vhdx check finds no errors, no leaks unless they are allowed, and there is no log to replay."""
    result = vhdx("check", "--json", path)
    assert result.rc in ((0, 3) if leaks else (0,)), result.describe()
    result = result.json()
    assert [f for f in result["findings"] if f["severity"] == "error"] == []
    assert not vhdx("info", "--json", path, rc=0).json()["dirty-flag"]
    return result


def assert_disk_is(vhdx, qemu_img, model, path, folder, *, qemu=True, leaks=False):
    """What vhdx and QEMU read is the model, and neither finds fault with the image."""
    raw = os.path.join(folder, "as-read.raw")
    expect_no_errors(vhdx, path, leaks=leaks)
    vhdx("convert", "-q", "--force", path, raw, rc=0)
    model.assert_same_as(raw)
    if qemu:
        qemu_img("check", "-f", "vhdx", path)
        qemu_img("convert", "-f", "vhdx", "-O", "raw", path, raw)
        model.assert_same_as(raw)
    os.unlink(raw)


def content_of(vhdx, path, folder, *options):
    raw = os.path.join(folder, "content.raw")
    vhdx("convert", "-q", "--force", *options, path, raw, rc=0)
    with open(raw, "rb") as file:
        content = file.read()
    os.unlink(raw)
    return content


class Chain:
    """The files of a chain, oldest first, by the second reader."""

    def __init__(self, paths):
        self.paths = [os.fspath(path) for path in paths]

    def top(self):
        disk = None
        for path in self.paths:
            disk = reader.Reader(path, disk)
        return disk

    def judge(self, vhdx, model, folder, *options):
        """Everybody reads what the model says."""
        checked = vhdx("check", "--json", *options, self.paths[-1])
        assert checked.rc in (0, 3), checked.describe()     # who was killed may leave the space that it meant to use
        assert not [f for f in checked.json()["findings"] if f["severity"] == "error"]
        content = content_of(vhdx, self.paths[-1], folder, *options)
        if content != model.content:
            at = next(i for i in range(model.size) if content[i] != model.content[i])
            raise AssertionError(f"byte {at} ({at / MiB:.3f} MiB) is {content[at]:#x}, not {model.content[at]:#x}")
        disk = self.top()
        step = 4 * MiB
        for offset in range(0, model.size, step):
            length = min(step, model.size - offset)
            assert disk.read(offset, length) == model.content[offset:offset + length], f"second reader, at {offset}"
        return disk


def on_disk(path):
    return os.stat(path).st_blocks * 512


def guids(vhdx, path, *options):
    data = vhdx("info", "--json", *options, path, rc=0).json()["format-specific"]["data"]
    return data["file-write-guid"], data["data-write-guid"]


class Held:
    """"vhdx io" that waits for commands.  do() sends some and returns when they are done."""

    def __init__(self, vhdx_path, *arguments, **keywords):
        self.process = subprocess.Popen([str(a) for a in (vhdx_path, "io", *arguments)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords)

    def do(self, *lines):
        self.process.stdin.write(("\n".join(lines) + "\nlength\n").encode())
        self.process.stdin.flush()
        out = b""
        while not re.search(rb"^[\d.]+ (bytes|[KMGT]iB)\n", out, re.MULTILINE):
            piece = os.read(self.process.stdout.fileno(), 65536)
            if not piece:
                raise AssertionError(f"vhdx io has ended: {self.process.stderr.read().decode()}")
            out += piece
        return out.decode()

    def end(self):
        """Close it properly; returns exit status and stderr."""
        _, err = self.process.communicate(timeout=300)
        return self.process.returncode, err.decode()

    def kill(self):
        self.process.kill()
        self.process.communicate(timeout=300)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.kill()
