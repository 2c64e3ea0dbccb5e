#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measure the files that "vhdx mount" shows against qemu-storage-daemon's FUSE export of the same image and against the raw file.

    bench-mount.py [--size MIB] [--seconds S] [--rounds N] [--folder DIR] [JOB...]

All are read and written by fio, in turn, each job --rounds times; the median counts:

    read-4k-1       4 KiB random reads, one at a time
    read-4k-32      the same, 32 under way (libaio, O_DIRECT)
    read-4k-4x8     the same by 4 processes with 8 under way each
    read-1m-1       1 MiB sequential reads, one at a time
    read-1m-8       the same, 8 under way
    write-...       the same with writes over allocated blocks, not flushed
    sync-4k         4 KiB random writes, fdatasync after each 32

"raw" is the file below without anything between: with its page cache for the read of one at a time, since no program would do
without it. "ours -r" is a read-only mount, which the kernel caches. Files lie in --folder, by default on /dev/shm, where no disk adds
noise. The programs come from the environment (VHDX) or PATH. Numbers are from this machine at this moment: compare ratios.
"""
import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20

JOBS = {}
for op in ("read", "write"):
    JOBS[f"{op}-4k-1"] = [f"--rw=rand{op}", "--bs=4k", "--ioengine=psync"]
    JOBS[f"{op}-4k-32"] = [f"--rw=rand{op}", "--bs=4k", "--ioengine=libaio", "--direct=1", "--iodepth=32"]
    JOBS[f"{op}-4k-4x8"] = [f"--rw=rand{op}", "--bs=4k", "--ioengine=libaio", "--direct=1", "--iodepth=8", "--numjobs=4"]
    JOBS[f"{op}-1m-1"] = [f"--rw={op}", "--bs=1m", "--ioengine=psync"]
    JOBS[f"{op}-1m-8"] = [f"--rw={op}", "--bs=1m", "--ioengine=libaio", "--direct=1", "--iodepth=8"]
JOBS["sync-4k"] = ["--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fdatasync=32"]


def make_raw(path, size):
    block = random.Random(1).randbytes(MIB)
    with open(path, "wb") as file:
        for i in range(size // MIB):
            file.write(i.to_bytes(8, "little") + block[8:])


def wait_for(condition, what):
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"bench-mount.py: {what} does not come up")
        time.sleep(0.02)


@contextlib.contextmanager
def ours(o, image, folder, *options):
    subprocess.run([o.vhdx, "mount", *options, image, folder], check=True)
    try:
        yield os.path.join(folder, "disk")
    finally:
        subprocess.run([o.vhdx, "umount", folder], check=True)


@contextlib.contextmanager
def qemu(o, image, folder):
    """QEMU mounts on a file, not in a folder."""
    path = os.path.join(folder, "export")
    with open(path, "wb"):
        pass
    daemon = subprocess.Popen(["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=file,filename={image}",
                               "--blockdev", "driver=vhdx,node-name=disk,file=file",
                               "--export", f"type=fuse,id=e,node-name=disk,mountpoint={path},writable=on"])
    try:
        wait_for(lambda: os.stat(path).st_size > 0 or daemon.poll() is not None, "qemu-storage-daemon")
        yield path
    finally:
        daemon.terminate()
        daemon.wait()
        os.unlink(path)


@contextlib.contextmanager
def raw(path):
    yield path


def fio(o, path, job):
    """Operations in a second."""
    command = ["fio", "--name=job", f"--filename={path}", "--output-format=json", "--group_reporting", "--time_based", "--thread",
               f"--runtime={o.seconds}", f"--size={o.size}m", "--allow_file_create=0", "--fallocate=none", "--norandommap",
               "--randseed=7", "--end_fsync=0", "--overwrite=1", *JOBS[job]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench-mount.py: {' '.join(command)}\n{done.stdout}{done.stderr}")
    result = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    return result["read"]["iops"] + result["write"]["iops"]


def measure(o, folder):
    raw_path, image = os.path.join(folder, "disk.raw"), os.path.join(folder, "disk.vhdx")
    mountpoint = os.path.join(folder, "mnt")
    os.mkdir(mountpoint)
    make_raw(raw_path, o.size * MIB)
    subprocess.run([o.vhdx, "convert", "-q", "-f", "raw", "-O", "vhdx", "-S", "0", f"--block-size={o.block}", raw_path, image],
                   check=True)
    who = {"ours": lambda: ours(o, image, mountpoint), "ours -r": lambda: ours(o, image, mountpoint, "-r"),
           "raw": lambda: raw(raw_path)}
    if shutil.which("qemu-storage-daemon"):
        who["qemu"] = lambda: qemu(o, image, folder)
    else:
        print("\nNo qemu-storage-daemon (Debian package qemu-system-common), so nothing is compared with it.")
    results = {}
    for _ in range(o.rounds):
        for name, opened in who.items():
            with opened() as path:
                for job in o.jobs:
                    if name != "ours -r" or job.startswith("read"):
                        results.setdefault((job, name), []).append(fio(o, path, job))
    return {key: statistics.median(values) for key, values in results.items()}


def ratio(a, b):
    return f"{a / b:.2f}" if a and b else "-"


def print_results(o, results):
    print(f"\n## The files of a mount: {o.size} MiB, {o.block} blocks, by fio; operations in a second, higher is better\n")
    print("| job | ours | ours -r | qemu | raw | ours / qemu | ours / raw |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for job in o.jobs:
        row = {name: results.get((job, name)) for name in ("ours", "ours -r", "qemu", "raw")}
        numbers = " | ".join(f"{value:.0f}" if value else "-" for value in row.values())
        print(f"| {job} | {numbers} | {ratio(row['ours'], row['qemu'])} | {ratio(row['ours'], row['raw'])} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="default: all")
    parser.add_argument("--size", type=int, default=512, help="MiB of data (default 512)")
    parser.add_argument("--block", default="32M", help="block size of the image (default 32M)")
    parser.add_argument("--seconds", type=int, default=2, help="for each job (default 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default="/dev/shm" if os.path.isdir("/dev/shm") else None, help="where the files go")
    o = parser.parse_args()
    o.jobs = o.jobs or list(JOBS)
    o.vhdx = os.environ.get("VHDX", "vhdx")
    if unknown := set(o.jobs) - set(JOBS):
        parser.error(f"no such job: {', '.join(sorted(unknown))}")
    if shutil.which("fio") is None:
        sys.exit("bench-mount.py: fio is not installed")
    folder = tempfile.mkdtemp(prefix="vhdx-bench-", dir=o.folder)
    try:
        print_results(o, measure(o, folder))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
