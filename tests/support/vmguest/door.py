# SPDX-License-Identifier: MIT
"""The NBD door between a guest and its disk: "vhdx serve"."""
import itertools
import os
import pathlib
import select
import signal
import subprocess

SERVER_SECONDS = 300
_numbers = itertools.count()


class DoorError(Exception):
    pass


def _descendants(pid):
    """All processes that it has started, and they in turn, the deepest first."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended, the latter while it is read
            continue
        for child in map(int, children):
            found += [*_descendants(child), child]
    return found


class Door:
    """Runs "vhdx serve IMAGE" on a Unix socket: a new one in folder, or the one that is given.  env: more for its
    environment.  Use it in "with"."""

    def __init__(self, vhdx, plugin, image, folder, socket=None, env=None):
        self.socket = socket or pathlib.Path(folder) / f"nbd{next(_numbers)}.sock"  # one that is killed leaves its own behind
        self.argv = [os.fspath(vhdx), "serve", "--socket", str(self.socket), os.fspath(image)]
        self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env={**os.environ, "VHDX_NBDKIT_PLUGIN": os.fspath(plugin), **(env or {})})
        self.uri = self.process.stdout.readline().decode().strip()
        if not self.uri:
            raise DoorError(f"$ {' '.join(self.argv)}\nstatus {self.process.wait()}\n"
                            f"{self.process.stderr.read().decode(errors='replace')}")

    def stop(self):
        """As systemd would: the image is closed, and the exit status says whether that went well."""
        self.process.send_signal(signal.SIGTERM)
        errors = self.process.communicate(timeout=SERVER_SECONDS)[1].decode(errors="replace")
        if self.process.returncode != 0:
            raise DoorError(f"$ {' '.join(self.argv)}\nstatus {self.process.returncode}\n{errors}")

    def kill(self):
        """SIGKILL to nbdkit and all else that "vhdx serve" has started, then to itself, whose end would be a polite request to
        nbdkit; returns when all are gone, and the image is free."""
        pids = [*_descendants(self.process.pid), self.process.pid]
        handles = [os.pidfd_open(pid) for pid in pids]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for handle in handles:
            select.select([handle], [], [])
            os.close(handle)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
        if not self.process.stderr.closed:
            print(f"$ {' '.join(self.argv)}\n{self.process.stderr.read().decode(errors='replace')}")
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()


def drive(socket, *more):
    """QEMU's short way to say where the disk is; test_guest.py has the long one from docs/serving.md."""
    return ["-drive", ",".join([f"file=nbd+unix:///?socket={socket}", "format=raw", "if=none", "id=disk", *more])]
