# SPDX-License-Identifier: MIT
"""A virtual machine with one disk.  KVM where it works, emulation otherwise."""
import json
import os
import pathlib
import queue
import shutil
import socket
import subprocess
import threading
import time

from .system import CONSOLE, Missing, find

SILENCE_SECONDS = 300  # only a broken guest is ever silent that long, be it emulated on a slow machine that has other things to do


ACCELERATORS = {"kvm": ["-accel", "kvm", "-cpu", "host"], "tcg": ["-accel", "tcg", "-cpu", "qemu64"]}


def accelerator():
    """"kvm" or "tcg".  /dev/kvm alone says too little: where the processor has neither VMX nor SVM, as in some clouds,
    it runs none but specially made guests, and others hang."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        flags = set(file.read().split())
    return "kvm" if flags & {"vmx", "svm"} and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


class GuestError(Exception):
    """The guest did not do what it was asked to; the text has all that it said."""


# How the disk is attached: what follows "-drive ...,if=none,id=disk" or "-blockdev ...,node-name=disk".
DEVICES = {
    "virtio-blk": ["-device", "virtio-blk-pci,drive=disk"],
    "virtio-scsi": ["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk"],
    "nvme": ["-device", "nvme,drive=disk,serial=vhdx"],
}


class Machine:
    """Starts QEMU.  system: a System.  drive: QEMU's options that make a node or drive "disk".  job, seed: see
    guest-init.sh.  boot: "kernel" gives kernel and initramfs by QEMU's options, "uefi" starts what the disk holds.

    Lines that the guest sends come out of line(); tell() lets it go on after wait_for_host.  Use it in "with": leaving
    kills what is still there."""

    def __init__(self, system, folder, drive, job, seed=0, device="virtio-blk", boot="kernel"):
        self.console = pathlib.Path(folder) / "console.log"
        self.monitor = pathlib.Path(folder) / "monitor.sock"
        self.said = []  # every line so far
        argv = [find("qemu-system-x86_64"), *ACCELERATORS[accelerator()], "-machine", "q35", "-smp", "2",
                "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-serial", f"file:{self.console}", "-serial", "stdio",
                "-qmp", f"unix:{self.monitor},server=on,wait=off", *drive, *DEVICES[device]]
        if boot == "kernel":
            argv += ["-kernel", system.kernel, "-initrd", system.initramfs,
                     "-append", f"{CONSOLE} quiet job={job} seed={seed}"]
        else:
            argv += self._firmware(folder)
        self.argv = [os.fspath(arg) for arg in argv]
        self.process = subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)
        self._lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    @staticmethod
    def _firmware(folder):
        code = pathlib.Path("/usr/share/OVMF/OVMF_CODE.fd")
        if not code.exists():
            raise Missing(f"{code} is not there (Debian package ovmf)")
        variables = pathlib.Path(folder) / "OVMF_VARS.fd"
        shutil.copy(code.with_name("OVMF_VARS.fd"), variables)
        return ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
                "-drive", f"if=pflash,unit=1,format=raw,file={variables}"]

    def _read(self):
        rest = b""
        while piece := self.process.stdout.read1(65536):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._lines.put(line.decode(errors="replace").strip("\r"))
        self._lines.put(None)  # what has no newline was not said to its end

    # ---- what the guest says

    def line(self, seconds=SILENCE_SECONDS):
        """The next line as a list of words; None when QEMU has ended and all was read."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise GuestError(f"the guest said nothing for {seconds} s\n{self.describe()}") from None
        if line is None:
            self._lines.put(None)
            return None
        self.said.append(line)
        return line.split()

    def wait_for(self, word):
        """Read lines until one begins with this word; returns that line and those before it, as lists of words."""
        lines = []
        while True:
            words = self.line()
            if words is None or words[:1] == ["failed"]:
                raise GuestError(f'the guest should have said "{word}"\n{self.describe()}')
            lines.append(words)
            if words[:1] == [word]:
                return lines

    def rest(self):
        """Everything that the guest said before QEMU ended."""
        lines = []
        while (words := self.line()) is not None:
            lines.append(words)
        return lines

    # ---- what it is told

    def command(self, name):
        """A command of QEMU's monitor, as "stop" and "cont"; returns when it has been carried out."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(SILENCE_SECONDS)
            monitor.connect(str(self.monitor))
            with monitor.makefile("rw", encoding="utf-8") as stream:
                for request in ("qmp_capabilities", name):
                    stream.write(json.dumps({"execute": request}) + "\n")
                    stream.flush()
                    while "return" not in (answer := json.loads(stream.readline())):  # greeting, events
                        if "error" in answer:
                            raise GuestError(f"QEMU did not {request}: {answer}")

    def tell(self):
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def finish(self):
        """Wait for a guest that powers off by itself; returns the lines up to "finished"."""
        lines = self.wait_for("finished")
        self.rest()
        if self.process.wait(SILENCE_SECONDS) != 0:
            raise GuestError(f"QEMU ended with status {self.process.returncode}\n{self.describe()}")
        return lines

    def kill(self):
        self.process.kill()
        self.process.wait()

    def describe(self):
        console = self.console.read_text(errors="replace")[-4000:] if self.console.exists() else ""
        errors = ""
        if self.process.poll() is not None:
            errors = f"-- QEMU, status {self.process.returncode} --\n" + self.process.stderr.read().decode(errors="replace")
        return "\n".join(["$ " + " ".join(self.argv), "-- said --", *self.said[-40:], "-- console --", console, errors])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()
