# SPDX-License-Identifier: MIT
"""What is on the guest's disk, seen from outside: a raw copy of it, its file systems, their files."""
import hashlib
import os
import pathlib
import subprocess
import tempfile

from .system import MiB, find, partition_range

FILE_SYSTEMS = {"data": "vhdx-data", "var": "vhdx-root"}  # first part of a path in the guest -> partition
PREFIX = {"data": "", "var": "/var"}                       # what it is called in that file system


class Wrong(AssertionError):
    """The disk does not hold what it must."""


def _run(*argv):
    done = subprocess.run([find(argv[0]), *map(str, argv[1:])], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False)
    return done.returncode, done.stdout.decode(errors="replace")


class FileSystems:
    """Copies of the file systems of a raw image.  They go when this object does."""

    def __init__(self, raw):
        self._folder = tempfile.TemporaryDirectory(dir=os.path.dirname(raw))
        self._of = {}
        for partition in FILE_SYSTEMS.values():
            start, length = partition_range(partition)
            self._of[partition] = os.path.join(self._folder.name, partition)
            status, text = _run("dd", f"if={raw}", f"of={self._of[partition]}", "bs=1M", f"skip={start // MiB}",
                                f"count={length // MiB}", "conv=sparse", "status=none")
            if status != 0:
                raise RuntimeError(text)

    def replay_journals(self):
        """What the kernel does when it mounts after a power cut, and no more: nothing is repaired."""
        for partition, path in self._of.items():
            status, text = _run("e2fsck", "-p", "-E", "journal_only", path)
            if status not in (0, 1):
                raise Wrong(f"the journal of {partition} cannot be replayed: status {status}\n{text}")

    def assert_clean(self):
        for partition, path in self._of.items():
            status, text = _run("e2fsck", "-f", "-n", path)
            if status != 0:
                raise Wrong(f"e2fsck finds {partition} damaged: status {status}\n{text}")

    def files(self):
        """Path in the guest, without the first slash -> its content."""
        found = {}
        for name, partition in FILE_SYSTEMS.items():
            target = pathlib.Path(self._folder.name, name)
            target.mkdir(exist_ok=True)
            _run("debugfs", "-R", f"rdump {PREFIX[name]}/files {target}", self._of[partition])
            for path in (target / "files").iterdir() if (target / "files").exists() else ():
                found[f"{name}/files/{path.name}"] = path.read_bytes()
        return found


def raw_partition(raw, name="vhdx-raw"):
    start, length = partition_range(name)
    with open(raw, "rb") as file:
        file.seek(start)
        return file.read(length)


def _sha256(files, path):
    return hashlib.sha256(files[path]).hexdigest() if path in files else "(no such file)"


def assert_reported_files_there(files, lines):
    """lines: what the guest said; each "file PATH BYTES SHA256" must be there."""
    for path, size, sha256 in (line[1:] for line in lines if line[0] == "file"):
        if _sha256(files, path) != sha256:
            raise Wrong(f"{path} ({size} bytes): SHA-256 {_sha256(files, path)}, the guest wrote {sha256}")


def durable_in(lines):
    """From "durable FOLDER N SHA256" lines: folder -> {n: sha256}, and the number of durable raw operations."""
    durable, nr_ops = {}, 0
    for line in lines:
        if line[0] == "durable":
            durable.setdefault(line[1].strip("/"), {})[int(line[2])] = line[3]
        elif line[0] == "flushed":
            nr_ops = int(line[2])
    return durable, nr_ops


FILES_KEPT = 16  # guest-init.sh removes file n-16 before it makes file n


def assert_durable_files_there(files, lines):
    """After a power cut: what the guest had fsynced, by the rules of write_files in guest-init.sh."""
    for folder, sums in durable_in(lines)[0].items():
        last = max(sums)
        for n in range(max(0, last + 2 - FILES_KEPT), last + 1):
            path = f"{folder}/files/{n}"
            if _sha256(files, path) != sums[n]:
                raise Wrong(f"/{path} was fsynced with SHA-256 {sums[n]}, now it is {_sha256(files, path)}; "
                            f"{last} is the last durable one")
        expected = "".join(f"line {n}\n" for n in range(last + 1)).encode()
        log = files.get(f"{folder}/files/log", b"")
        if log[:len(expected)] != expected:
            raise Wrong(f"/{folder}/files/log was fsynced with {last + 1} lines, now it begins {log[:200]}")
