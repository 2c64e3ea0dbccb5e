#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measure the hot paths side by side with their peers, in one run, and print the ratios.

    bench.py [--size MIB] [--rounds N] [--folder DIR] [--writes N] [--sync-ms MS] [read] [convert] [huge] [write]

read     vhdx_pread of allocated blocks against pread of a raw file, page cache warm
convert  "vhdx convert" to raw against "cp --sparse=always" and "qemu-img convert" (of the same image)
huge     64 TiB with 1 MiB blocks: info, map, convert of an empty and a nearly empty disk; "qemu-img info" of one as
         large, made by qemu-img (with --qemu-huge: it takes half a gigabyte)

write    writes of 64 KiB, a flush after every 64, to blocks of 1, 2 and 32 MiB: vhdx_pwrite and vhdx_flush, pwrite and fdatasync
         on a sparse raw file, and QEMU's driver by "qemu-img bench" (in its process, one request at a time, as the others);
         all three write the same places in the same order, first to space that must be allocated, then over it again. Then
         how often a guest's flush syncs the file, counted by strace, and the memory that writes anywhere on 64 TiB take.
         Where syncing costs next to nothing, as on many virtual machines, this shows little of what a device makes of it.
         --sync-ms=MS lets each fdatasync and fsync of all three programs wait that much longer (bench/slow-sync.c, preloaded);
         QEMU's driver syncs several times for each allocation, so take fewer --writes.

Files lie in a temporary folder of --folder: by default on /dev/shm, where no disk adds noise, but in /var/tmp for "write",
which is about a real file system. The programs come from the environment: VHDX, BENCH_READ, BENCH_WRITE, and for --sync-ms
BENCH_SLOW_SYNC. Numbers are from this machine at this moment: compare ratios, not times.
"""
import argparse
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "support"))
MIB = 1 << 20


def run(*command):
    """Wall seconds and peak memory in MiB of a command, which must succeed.  time(1) stands between, because the peak that
    the kernel tells of a process begins with the one that it was forked from."""
    start = time.perf_counter()
    done = subprocess.run(["/usr/bin/time", "-q", "-f", "%M", *map(str, command)], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"bench.py: {' '.join(map(str, command))} failed with status {done.returncode}: {done.stderr}")
    return seconds, int(done.stderr.split()[-1]) / 1024


def best(rounds, commands):
    """Run the commands in turn, rounds times; the median seconds and the highest memory of each."""
    seconds, memory = [[] for _ in commands], [0] * len(commands)
    for _ in range(rounds):
        for i, command in enumerate(commands):
            before = command[0] if callable(command[0]) else None
            if before:
                before()
            s, m = run(*(command[1:] if before else command))
            seconds[i].append(s)
            memory[i] = max(memory[i], m)
    return [statistics.median(s) for s in seconds], memory


def make_raw(path, size):
    """Random bytes with a hole of zeros of 64 KiB in every MiB, as file systems have them."""
    block = random.Random(1).randbytes(MIB - 65536)
    with open(path, "wb") as f:
        for i in range(size // MIB):
            f.write(i.to_bytes(8, "little") + block[8:] + bytes(65536))


def bench_read(o, folder):
    print("\n## Reading allocated blocks (vhdx_pread / pread on the raw file; page cache warm)\n")
    print("| block size | read | order | threads | ours us | raw us | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    raw = os.path.join(folder, "disk.raw")
    make_raw(raw, o.size * MIB)
    for block in ("1M", "32M"):
        image = os.path.join(folder, f"read-{block}.vhdx")
        subprocess.run(["qemu-img", "convert", "-S", "0", "-O", "vhdx", "-o", f"block_size={block}", raw, image], check=True)
        for size, reads, order, threads in ((4096, 100000, "random", 1), (4096, 100000, "random", 4),
                                            (65536, 20000, "random", 1), (MIB, 1000, "sequential", 1),
                                            (MIB, 1000, "sequential", 4)):
            out = subprocess.run([o.bench_read, image, raw, str(size), str(reads // threads), str(threads),
                                  str(o.rounds * 3), order], check=True, capture_output=True, text=True).stdout.split()
            print(f"| {block} | {size} | {order} | {threads} | {out[0]} | {out[1]} | {out[2]} |", flush=True)
        os.unlink(image)


def bench_convert(o, folder):
    print("\n## Converting to raw\n")
    print("| image | vhdx convert s | cp --sparse=always of the raw s | qemu-img convert s | ours / cp | ours / qemu |")
    print("| --- | --- | --- | --- | --- | --- |")
    raw, out = os.path.join(folder, "disk.raw"), os.path.join(folder, "out.raw")
    if not os.path.exists(raw):
        make_raw(raw, o.size * MIB)

    def clean():
        if os.path.exists(out):
            os.unlink(out)

    for block in ("1M", "32M"):
        image = os.path.join(folder, f"convert-{block}.vhdx")
        subprocess.run(["qemu-img", "convert", "-O", "vhdx", "-o", f"block_size={block}", raw, image], check=True)
        (ours, cp, qemu), _ = best(o.rounds, [
            (clean, o.vhdx, "convert", "-q", image, out),
            (clean, "cp", "--sparse=always", raw, out),
            (clean, "qemu-img", "convert", "-O", "raw", image, out)])
        clean()
        print(f"| {o.size} MiB, {block} blocks | {ours:.3f} | {cp:.3f} | {qemu:.3f} | {ours / cp:.2f} | {ours / qemu:.2f} |",
              flush=True)
        os.unlink(image)


def bench_huge(o, folder):
    from vhdxbuild import Image, Pattern, TiB
    print("\n## 64 TiB with 1 MiB blocks\n")
    print("| what | image | ms | peak MiB |")
    print("| --- | --- | --- | --- |")
    out = os.path.join(folder, "huge.raw")
    for name, blocks in (("empty", 0), ("1000 blocks", 1000)):
        image = os.path.join(folder, "huge.vhdx")
        description = Image(64 * TiB, block_size=MIB, lss=512)
        for i in range(blocks):
            description.write(i * (64 * TiB // 1000 // MIB) * MIB, 4096, Pattern(i))
        description.build(image)
        commands = [(o.vhdx, "info", image), (o.vhdx, "map", "--json", image),
                    (o.vhdx, "convert", "-q", "--force", image, out)]
        seconds, memory = best(o.rounds * 3, commands)
        for command, s, m in zip(commands, seconds, memory):
            print(f"| vhdx {command[1]} | {name} | {s * 1000:.1f} | {m:.1f} |", flush=True)
        os.unlink(image)
    os.unlink(out)
    image = os.path.join(folder, "qemu.vhdx")
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", image, "64T"], check=True)
    commands = [("qemu-img", "info", image), (o.vhdx, "info", image)]
    seconds, memory = best(o.rounds, commands)
    for command, s, m in zip(commands, seconds, memory):
        print(f"| {os.path.basename(command[0])} info | made by qemu-img, 512 MiB of BAT | {s * 1000:.1f} | {m:.1f} |")


WRITE_BYTES, WRITES_PER_FLUSH = 65536, 64
WRITE_SIZE = 8192 * MIB


class Writer:
    """One of those compared: seconds of the load, on an image or raw file of its own."""

    # Farther than a block and prime to the number of slots, so that places seem to be random and never come twice; QEMU
    # takes steps below 2 GiB.
    STEP = (WRITE_SIZE // WRITE_BYTES * 236 // 1000 | 1) * WRITE_BYTES

    def __init__(self, o, kind, folder, block):
        self.o, self.kind, self.block = o, kind, block
        self.path = os.path.join(folder, f"write-{kind}")

    def create(self):
        if os.path.exists(self.path):
            os.unlink(self.path)
        if self.kind == "raw":
            with open(self.path, "wb") as f:
                f.truncate(WRITE_SIZE)
        elif self.kind == "child":
            parent = self.path + "-parent"  # whose tables say that it has data everywhere
            if not os.path.exists(parent):
                subprocess.run([self.o.vhdx, "create", "-q", "--fixed", parent, str(WRITE_SIZE)], check=True)
            subprocess.run([self.o.vhdx, "create", "-q", "--parent", parent, "--block-size", self.block, self.path], check=True)
        else:
            subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", "-o", f"block_size={self.block}", self.path,
                            str(WRITE_SIZE)], check=True)
        os.sync()

    def command(self, per_flush):
        if self.kind == "qemu":
            return ["qemu-img", "bench", "-f", "vhdx", "-w", "-t", "writeback", "-d", "1", "-c", str(self.o.writes),
                    "-s", str(WRITE_BYTES), "-S", str(self.STEP), *([f"--flush-interval={per_flush}"] if per_flush else []),
                    self.path]
        return [self.o.bench_write, "raw" if self.kind == "raw" else "vhdx", self.path, str(WRITE_SIZE), str(WRITE_BYTES),
                str(self.o.writes), str(per_flush), str(self.STEP)]

    def microseconds(self):
        """Of one write."""
        environment = dict(os.environ)
        if self.o.sync_ms:
            environment |= {"LD_PRELOAD": self.o.slow_sync, "VHDX_SLOW_SYNC_US": str(round(self.o.sync_ms * 1000))}
        out = subprocess.run(self.command(WRITES_PER_FLUSH), check=True, capture_output=True, text=True, env=environment).stdout
        if self.kind == "qemu":
            return float(re.search(r"Run completed in ([\d.]+) seconds", out).group(1)) * 1e6 / self.o.writes
        return float(out.split()[0])

    def syncs(self, per_flush):
        """How often files were synced, from opening to closing."""
        trace = self.path + ".strace"
        subprocess.run(["strace", "-f", "-qq", "-e", "trace=fdatasync,fsync,sync_file_range", "-o", trace,
                        *self.command(per_flush)], check=True, stdout=subprocess.DEVNULL)
        with open(trace, encoding="utf-8") as f:
            return sum("sync(" in line or "sync_file_range(" in line for line in f)


def bench_write(o, folder):
    print(f"\n## Writing: {o.writes} times 64 KiB, a flush after every {WRITES_PER_FLUSH}\n")
    if o.sync_ms:
        print(f"SIMULATED DEVICE: every fdatasync and fsync of all three programs takes {o.sync_ms:g} ms longer than on this "
              "machine.\n")
    print("| block size | writes | ours us | raw us | qemu us | our child us | ours / raw | ours / qemu | qemu / ours | child / raw |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for block in ("1M", "2M", "32M"):
        writers = [Writer(o, kind, folder, block) for kind in ("ours", "raw", "qemu", "child")]
        times = {}
        for _ in range(o.rounds):
            for writer in writers:
                writer.create()
                for what in ("allocating", "in place"):
                    times.setdefault((what, writer.kind), []).append(writer.microseconds())
                os.unlink(writer.path)
        for what in ("allocating", "in place"):
            ours, raw, qemu, child = (statistics.median(times[what, writer.kind]) for writer in writers)
            print(f"| {block} | {what} | {ours:.1f} | {raw:.1f} | {qemu:.1f} | {child:.1f} | {ours / raw:.2f} | {ours / qemu:.3f} "
                  f"| {qemu / ours:.1f} | {child / raw:.2f} |", flush=True)
    count_syncs(o, folder)
    memory_of_writes(o, folder)


def count_syncs(o, folder):
    if shutil.which("strace") is None:
        print("\nNo strace, so syncs were not counted.")
        return
    nr_flushes = o.writes // WRITES_PER_FLUSH
    print("\n| who | writes | syncs for a flush | other syncs, from open to close |")
    print("| --- | --- | --- | --- |")
    for kind in ("ours", "raw", "qemu", "child"):
        writer = Writer(o, kind, folder, "1M")
        for what in ("allocating", "in place"):
            if what == "allocating":
                writer.create()
            flushed = writer.syncs(WRITES_PER_FLUSH)
            if what == "allocating":
                writer.create()
            rest = writer.syncs(0)
            print(f"| {kind} | {what} | {(flushed - rest) / nr_flushes:.2f} | {rest} |", flush=True)
        os.unlink(writer.path)


def memory_of_writes(o, folder):
    from vhdxbuild import Image, TiB
    print(f"\n| disk | {o.writes * 4} writes of 4 KiB anywhere, us each | peak MiB |")
    print("| --- | --- | --- |")
    path = os.path.join(folder, "write-huge")
    for size, block in ((TiB // 64, 1), (64 * TiB, 1), (64 * TiB, 32)):
        Image(size, block_size=block * MIB, lss=512).build(path)
        out = subprocess.run([o.bench_write, "vhdx", path, str(size), "4096", str(o.writes * 4), str(WRITES_PER_FLUSH), "0"],
                             check=True, capture_output=True, text=True).stdout.split()
        print(f"| {size // (TiB // 64) * 16} GiB, {block} MiB blocks | {out[0]} | {out[1]} |", flush=True)
        os.unlink(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["read", "convert", "huge", "write", []], help="default: all")
    parser.add_argument("--size", type=int, default=1024, help="MiB of data (default 1024)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--writes", type=int, default=4096, help="how many, of \"write\" (default 4096)")
    parser.add_argument("--sync-ms", type=float, default=0, metavar="MS",
                        help="of \"write\": let each sync take so much longer, for all programs")
    parser.add_argument("--folder", help="where the files go")
    o = parser.parse_args()
    o.vhdx = os.environ.get("VHDX", "vhdx")
    o.bench_read = os.environ.get("BENCH_READ", "bench-read")
    o.bench_write = os.environ.get("BENCH_WRITE", "bench-write")
    o.slow_sync = os.environ.get("BENCH_SLOW_SYNC", "")
    if o.sync_ms and not os.path.exists(o.slow_sync):
        sys.exit("bench.py: --sync-ms needs BENCH_SLOW_SYNC, the path of slow-sync.so in the build folder")
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    for name, fn, place in (("read", bench_read, memory), ("convert", bench_convert, memory), ("huge", bench_huge, memory),
                            ("write", bench_write, "/var/tmp")):
        if o.what and name not in o.what:
            continue
        folder = tempfile.mkdtemp(prefix="vhdx-bench-", dir=o.folder or place)
        try:
            fn(o, folder)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
