# SPDX-License-Identifier: MIT
"""More programs and kernel modules for one guest than all need: an archive that it unpacks from a second disk, see job_more in
guest-init.sh.  Other guests boot without it."""
import io
import pathlib
import re
import tarfile

from .system import find, module_files, run


def _libraries(program):
    """What it is linked with, the dynamic linker too, by the paths at which it looks for them."""
    return re.findall(r"(/\S+) \(0x", run("ldd", program).decode())


class Toolbox:
    """Archive at path with programs, by what the guest calls them, kernel modules, which modprobe finds, and job, a script
    that guest-init.sh reads.  Use it in "with", then options() are QEMU's for a disk /dev/vda."""

    def __init__(self, path):
        self._path = pathlib.Path(path)
        self._archive = tarfile.open(path, "w", format=tarfile.GNU_FORMAT, dereference=True)
        self._names = set()

    def add_file(self, source, name):
        if name not in self._names:
            self._archive.add(source, name)
            self._names.add(name)

    def add_program(self, name):
        path = find(name)
        self.add_file(path, f"sbin/{name}")
        for library in _libraries(path):
            self.add_file(library, library.lstrip("/"))

    def add_modules(self, folder, *wanted):
        """folder: lib/modules/VERSION of the guest's kernel.  Modules that its initramfs has loaded may lie there, too."""
        target = f"lib/modules/{folder.name}"
        self.add_file(folder / "modules.dep", f"{target}/modules.dep")
        for path in module_files(folder, wanted):
            self.add_file(path, f"{target}/{path.relative_to(folder)}")

    def add_text(self, text, name):
        entry = tarfile.TarInfo(name)
        content = text.encode()
        entry.size = len(content)
        self._archive.addfile(entry, io.BytesIO(content))

    def options(self):
        return ["-drive", f"file={self._path},format=raw,if=none,id=toolbox,readonly=on",
                "-device", "virtio-blk-pci,drive=toolbox"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._archive.close()
