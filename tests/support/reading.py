# SPDX-License-Identifier: MIT
"""What the end-to-end tests of reading share."""
import ctypes
import hashlib
import os
import re
import subprocess
import tempfile


def seeds(normally):
    """What VHDX_SEEDS asks for: a number of them, or FIRST-LAST."""
    wanted = os.environ.get("VHDX_SEEDS") or normally
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", wanted)
    if not match:
        raise ValueError(f"VHDX_SEEDS={wanted}: neither a number nor FIRST-LAST")
    first, last = match.groups()
    return range(int(first), int(last) + 1) if last else range(int(first))


def file_sha256(path):
    """Of the bytes as they lie on disk."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def file_fingerprint(path):
    """As good as file_sha256() for telling whether a file was changed, and quick for long sparse ones."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        length, position = os.fstat(file.fileno()).st_size, 0
        digest.update(str(length).encode())
        while position < length:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # only a hole is left
                break
            end = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            digest.update(f"{position}-{end}".encode())
            while position < end:
                piece = os.pread(file.fileno(), min(1 << 20, end - position), position)
                digest.update(piece)
                position += len(piece)
    return digest.hexdigest()


def assert_reads_as_built(vhdx, built, folder, *options):
    """Converting to raw gives exactly what the builder says that a guest sees, and changes no byte of any file."""
    raw = os.path.join(folder, "out.raw")
    files, layer = [], built
    while layer is not None:
        files.append((layer.path, file_fingerprint(layer.path)))
        layer = layer.image.parent
    vhdx("convert", "--force", *options, built.path, raw, rc=0, timeout=300)
    assert os.stat(raw).st_size == built.size
    difference = built.first_difference(raw)
    assert difference is None, difference
    for path, before in files:
        assert before == file_fingerprint(path), f"{path} was changed by reading"


def map_of(vhdx, path, *options):
    """The extents of an image, after checking what every map must keep: ascending, no gaps, the flags exclusive."""
    extents = vhdx("map", "--json", *options, path, rc=0).json()
    position = 0
    for extent in extents:
        assert extent["start"] == position and extent["length"] > 0, extent
        assert extent["zero"] != extent["data"], extent
        assert ("offset" in extent) == extent["data"], extent
        position += extent["length"]
    return extents


def run_limited(argv, memory_mib, seconds, *, file_mib=None, nr_files=None, cwd=None):
    """Run argv with limits on address space (None: without), processor time, the length of files that it writes, and
    open files; returns the completed process.  Its output goes through a file, so that the length limit holds for it too.
    A shell sets the limits: a function to run in the new process would make Python copy itself each time."""
    limits = {"v": memory_mib and memory_mib << 10, "t": seconds, "f": file_mib and file_mib << 11, "n": nr_files,
              "c": 0}
    shell = "; ".join(f"ulimit -{letter} {value}" for letter, value in limits.items() if value is not None)
    with tempfile.TemporaryFile() as out:
        done = subprocess.run(["/bin/sh", "-c", f'{shell}; exec "$@"', "sh", *[os.fspath(a) for a in argv]], stdout=out,
                              stderr=subprocess.PIPE, timeout=seconds * 4 + 280, stdin=subprocess.DEVNULL, check=False,
                              cwd=cwd, env={**os.environ, "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "2"})
        out.seek(0)
        done.stdout = out.read()
    return done


class Hostile:
    """Runs the command on images that may be anything, with the limits that no image may break, and demands of every
    run what holds for all: no signal, no sanitizer's finding, an error is one readable line, convert gives all or nothing.
    """

    MEMORY_MIB, SECONDS, PIPE_MIB = 256, 5, 64

    def __init__(self, vhdx_path, sanitizer):
        self.vhdx_path = vhdx_path
        self.sanitized = sanitizer not in ("", "none")

    def __call__(self, command, *arguments, rc=None, **limits):
        """rc: the exit status wanted, or several in a tuple; none: 0 or 1."""
        argv = [self.vhdx_path, command, *arguments]
        memory = None if self.sanitized else self.MEMORY_MIB    # their shadow memory takes terabytes of addresses
        done = run_limited(argv, memory, self.SECONDS * (10 if self.sanitized else 1),
                           file_mib=self.PIPE_MIB if "-" in arguments else None, **limits)
        told = f"$ {' '.join(map(str, argv))}\nexit status {done.returncode}\n{done.stderr.decode(errors='replace')}"
        wanted = (0, 1) if rc is None else rc if isinstance(rc, tuple) else (rc,)
        assert done.returncode in wanted, told + f"expected {wanted}"
        done.err = done.stderr.decode("utf-8")
        assert "Sanitizer" not in done.err and "runtime error" not in done.err, told
        lines = done.err.split("\n")
        assert lines.pop() == "" and all(line.startswith(f"vhdx {command}: ") for line in lines), told
        assert done.err.replace("\n", "").isprintable(), told
        if done.returncode == 1 and command != "compare":       # whose 1 is an answer
            assert lines, told + "failed without a word"
        if done.returncode == 1 and command == "convert":
            assert len(lines) == 1 and not done.stdout, told
        return done

    def refuses(self, path, says, *, options=(), check=2, info=1):
        """Nothing reads the image, and everything says so in a line that names the structure and what is wrong."""
        message = self("convert", *options, path, "-", rc=1).err
        prefix = f"vhdx convert: {path}: "
        assert message.startswith(prefix) and re.search(says, message), f"{message!r} does not say {says!r}"
        assert re.search(r"\d|recorded as ", message[len(prefix):]), f"{message!r} names neither an offset nor a value"
        if not self.sanitized:      # it runs the code of convert
            self("info", *options, path, rc=info)
        self("dump", path)
        done = self("check", *options, path, rc=check)
        assert done.returncode != 2 or b"\nerror: " in b"\n" + done.stdout or b"\nwarning: " in b"\n" + done.stdout
        return message

    def reads(self, built, folder, *, options=(), check=(0, 3)):
        """Everything reads the image, and what comes out is what the builder put in."""
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else folder) as place:
            raw = os.path.join(place, "raw")    # where the sync at the end is free
            self("convert", *options, built.path, raw, rc=0)
            assert os.stat(raw).st_size == built.size
            difference = built.first_difference(raw)
        assert difference is None, difference
        if not self.sanitized:
            self("info", *options, built.path, rc=0)
        self("map", *options, built.path, rc=0)
        self("dump", built.path, rc=0)
        self("check", *options, built.path, rc=check)


class OpenOptions(ctypes.Structure):
    """struct vhdx_open_options."""
    _fields_ = [("struct_bytes", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("max_chain_depth", ctypes.c_uint32),
                ("parent", ctypes.c_char_p), ("parent_dirs", ctypes.POINTER(ctypes.c_char_p)),
                ("nr_parent_dirs", ctypes.c_size_t)]


class Library:
    """The library itself, in this process; not for builds with sanitizers, which a foreign program cannot load.  codes
    has the VHDX_E_* of the header by their short names; flags the VHDX_OPEN_*."""

    def __init__(self, path, header):
        self.lib = ctypes.CDLL(os.fspath(path))
        self.lib.vhdx_error_message.restype = ctypes.c_char_p
        with open(header, encoding="utf-8") as file:
            text = file.read()
        self.codes = {name: int(value) for name, value in re.findall(r"\bVHDX_E_(\w+) *= *(-\d+)", text)}
        self.flags = {name: 1 << int(bit) for name, bit in re.findall(r"\bVHDX_OPEN_(\w+) *= *1u << (\d+)", text)}

    def message(self):
        return self.lib.vhdx_error_message().decode("utf-8")

    def open(self, path, *, flags=0, max_chain_depth=0):
        """Returns code and handle."""
        options = OpenOptions(ctypes.sizeof(OpenOptions), flags, max_chain_depth, None, None, 0)
        handle = ctypes.c_void_p()
        code = self.lib.vhdx_open(os.fsencode(path), ctypes.byref(options), ctypes.byref(handle))
        assert (code == 0) == bool(handle)
        return code, handle

    def open_code(self, path, **keywords):
        code, handle = self.open(path, **keywords)
        self.lib.vhdx_close(handle)
        return code

    def pread(self, handle, offset, length):
        """Returns code and bytes."""
        buf = ctypes.create_string_buffer(b"\xa5" * length, length)
        code = self.lib.vhdx_pread(handle, buf, ctypes.c_size_t(length), ctypes.c_uint64(offset))
        return code, buf.raw
