# SPDX-License-Identifier: MIT
"""The guest's disk: GPT with an EFI system partition (systemd-boot, kernel, initramfs), a root file system (busybox and
the scripts beside this file), a data file system, and a raw partition.  Nothing here needs root or a loop device."""
import os
import pathlib
import shutil
import subprocess

MiB = 1 << 20
HERE = pathlib.Path(__file__).resolve().parent
DISK_BYTES = 1024 * MiB
# name -> (first MiB, MiBs).  The data partition ends where the disk does, but for the second GPT.
PARTITIONS = {"vhdx-esp": (1, 63), "vhdx-root": (64, 64), "vhdx-raw": (128, 32), "vhdx-data": (160, 863)}
ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
# In the order in which they are loaded, after what they need.
MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod")
CONSOLE = "console=ttyS0 panic=-1"


class Missing(Exception):
    """Something that the machine does not have; the text says what to do about it."""


def find(program):
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise Missing(f"{program} is not installed")
    return path


def run(*argv, **keywords):
    argv = [find(argv[0]), *map(str, argv[1:])]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **keywords)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout.decode(errors='replace')}")
    return done.stdout


def partition_range(name):
    start, length = PARTITIONS[name]
    return start * MiB, length * MiB


def install_script(source, target, interpreter):
    target.write_text(f"{interpreter}\n{source.read_text(encoding='utf-8')}", encoding="utf-8")
    target.chmod(0o755)


def module_files(folder, wanted):
    """The kernel modules wanted, of those in folder (lib/modules/VERSION), and those that they need, the needed ones first."""
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        name, _, others = line.partition(":")
        needs[pathlib.PurePath(name).stem] = [name, *others.split()]
    order = []
    for module in wanted:
        for name in reversed(needs.get(module, [])):  # one that is not there is built in
            if name not in order:
                order.append(name)
    return [folder / name for name in order]


class System:
    """Builds into folder.  kernel_folder: what scripts/fetch-guest-kernel.sh made; worker: worker.c, compiled.
    Then: kernel, initramfs, and disk, a raw image, which belongs to all tests: copy it, or better convert it."""

    def __init__(self, folder, kernel_folder, worker):
        self.folder = pathlib.Path(folder)
        self.worker = pathlib.Path(worker)
        if not self.worker.exists():
            raise Missing(f"{self.worker} was not built: the C library cannot be linked statically")
        self.kernel = pathlib.Path(kernel_folder, "vmlinuz")
        if not self.kernel.exists():
            raise Missing(f"{self.kernel} is not there: scripts/fetch-guest-kernel.sh fetches a kernel for guests")
        self.modules = next(pathlib.Path(kernel_folder, "lib/modules").iterdir())
        self.busybox = self._static_busybox()
        self.initramfs = self._build_initramfs()
        self.disk = self._build_disk()

    @staticmethod
    def _static_busybox():
        path = find("busybox")
        with open(path, "rb") as file:
            dynamic = b"/ld-linux" in file.read(4096)
        if dynamic:
            raise Missing(f"{path} is not statically linked (Debian package busybox-static)")
        return path

    # ---- initramfs

    def _build_initramfs(self):
        root = self.folder / "initramfs"
        (root / "bin").mkdir(parents=True)
        (root / "modules").mkdir()
        shutil.copy(self.busybox, root / "bin/busybox")
        install_script(HERE / "initramfs-init.sh", root / "init", "#!/bin/busybox sh")
        files = module_files(self.modules, MODULES)
        for file in files:
            shutil.copy(file, root / "modules")
        (root / "modules/order").write_text("".join(f"{file.name}\n" for file in files))
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        archive = subprocess.run([find("cpio"), "-o", "-H", "newc", "--quiet", "-R", "0:0"], cwd=root, check=True,
                                 input="".join(f"{name}\n" for name in names).encode(), stdout=subprocess.PIPE)
        path = self.folder / "initramfs.gz"
        path.write_bytes(subprocess.run([find("gzip"), "-1"], input=archive.stdout, stdout=subprocess.PIPE,
                                        check=True).stdout)
        return path

    # ---- partitions

    def _build_root(self):
        root = self.folder / "root"
        for name in ("bin", "sbin", "data", "dev", "proc", "sys", "var", "tmp"):
            (root / name).mkdir(parents=True)
        shutil.copy(self.busybox, root / "bin/busybox")
        for applet in run(self.busybox, "--list").decode().split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        shutil.copy(self.worker, root / "bin/worker")
        install_script(HERE / "guest-init.sh", root / "sbin/init", "#!/bin/sh")
        return root

    def _fill_esp(self, disk, offset):
        """As a Hyper-V machine of generation 2 boots: firmware, boot loader and kernel all come from the disk."""
        loader = pathlib.Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
        if not loader.exists():
            raise Missing(f"{loader} is not there (Debian package systemd-boot-efi)")
        conf = self.folder / "loader.conf"
        conf.write_text("timeout 0\n")
        entry = self.folder / "linux.conf"
        entry.write_text(f"title Linux\nlinux /vmlinuz\ninitrd /initramfs.gz\noptions {CONSOLE} job=look\n")
        esp = f"{disk}@@{offset}"
        run("mmd", "-i", esp, "::EFI", "::EFI/BOOT", "::loader", "::loader/entries")
        for source, target in ((loader, "EFI/BOOT/BOOTX64.EFI"), (self.kernel, "vmlinuz"),
                               (self.initramfs, "initramfs.gz"), (conf, "loader/loader.conf"),
                               (entry, "loader/entries/linux.conf")):
            run("mcopy", "-i", esp, source, f"::{target}")

    def _build_disk(self):
        disk = self.folder / "disk.raw"
        with open(disk, "wb") as file:
            file.truncate(DISK_BYTES)
        table = ["label: gpt"]
        for name, (start, length) in PARTITIONS.items():
            kind = ESP_TYPE if name == "vhdx-esp" else "linux"
            table.append(f"start={start}MiB, size={length}MiB, type={kind}, name={name}")
        run("sfdisk", "--quiet", disk, input="\n".join(table).encode())
        esp = partition_range("vhdx-esp")
        run("mkfs.vfat", "-F", "32", "-s", "1", "-n", "ESP", "--offset", esp[0] // 512, disk, esp[1] // 1024)
        self._fill_esp(disk, esp[0])
        for name, more in (("vhdx-root", ["-d", self._build_root()]), ("vhdx-data", [])):
            start, length = partition_range(name)
            run("mkfs.ext4", "-q", "-F", "-E", f"offset={start},root_owner=0:0,nodiscard", *more, disk,
                f"{length // 1024}k")
        return disk
