#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measure the NBD door side by side with its peers, in one run, and print the ratios.

    bench-nbd.py [--size MIB] [--seconds S] [--rounds N] [--folder DIR] [--block-size SIZE] [--only WORD]

ours   nbdkit with this project's plugin, on a VHDX whose blocks are all allocated ("vhdx serve")
file   nbdkit's file plugin on the raw file with the same content: what can be reached
qemu   qemu-nbd on the same VHDX

Clients are fio's nbd engine over a Unix socket: 4 KiB random reads and writes, 1 MiB sequential reads and writes, each with 1 and
with 32 requests under way on each of 1 and 4 connections.  The servers are measured in turn, in another order in each round; the
median counts.  Files lie in --folder, by default /dev/shm, where no disk adds noise (and writes are not flushed: the path of a
request is what is measured here, and bench.py measures flushes).

The programs come from the environment: VHDX (the command, whose nbdkit and plugin are taken).  Compare ratios, not numbers.
"""
import argparse
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


class Server:
    """One of those compared, on the socket self.uri while it runs."""

    def __init__(self, name, argv, folder):
        self.name, self.socket = name, os.path.join(folder, name + ".sock")
        self.argv = [str(word).replace("SOCKET", self.socket) for word in argv]
        self.uri = f"nbd+unix:///?socket={self.socket}"

    def __enter__(self):
        self.process = subprocess.Popen(self.argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(1000):
            if self.process.poll() is not None:
                sys.exit(f"bench-nbd.py: {self.name} did not start: {self.process.stderr.read()}")
            if os.path.exists(self.socket) and subprocess.run(["nbdinfo", "--size", self.uri], capture_output=True,
                                                              check=False).returncode == 0:
                return self
            time.sleep(0.01)
        sys.exit(f"bench-nbd.py: {self.name} does not answer")

    def __exit__(self, *exception):
        self.process.terminate()
        self.process.communicate()
        if os.path.exists(self.socket):
            os.unlink(self.socket)


def make_raw(path, size_mib):
    block = bytearray(random.Random(1).randbytes(MIB))
    with open(path, "wb") as file:
        for number in range(size_mib):
            block[:8] = number.to_bytes(8, "little")
            file.write(block)


def measure(server, o, rw, size, depth, connections):
    """Bytes per second over all connections."""
    done = subprocess.run(
        ["fio", "--output-format=json", "--name=x", "--ioengine=nbd", f"--uri={server.uri}", f"--rw={rw}", f"--bs={size}",
         f"--size={o.size}M", f"--iodepth={depth}", f"--numjobs={connections}", "--group_reporting", "--thread", "--time_based",
         f"--runtime={o.seconds}", "--ramp_time=0.5", "--randrepeat=1", "--norandommap"],
        capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench-nbd.py: fio on {server.name} failed: {done.stderr}{done.stdout[-2000:]}")
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    return job["read" if "read" in rw else "write"]["bw_bytes"]


CASES = [(rw, size, depth, connections) for rw, size in (("randread", 4096), ("randwrite", 4096), ("read", MIB), ("write", MIB))
         for depth in (1, 32) for connections in (1, 4)]


def bench(o, folder):
    raw, image = os.path.join(folder, "disk.raw"), os.path.join(folder, "disk.vhdx")
    make_raw(raw, o.size)
    subprocess.run([o.vhdx, "convert", "-q", "-f", "raw", "-O", "vhdx", "-S", "0", f"--block-size={o.block_size}", raw, image],
                   check=True)
    servers = [Server("ours", [o.vhdx, "serve", "-q", "--socket", "SOCKET", image], folder),
               Server("file", ["nbdkit", "-f", "-U", "SOCKET", "file", raw], folder),
               Server("qemu", ["qemu-nbd", "-f", "vhdx", "-e", "16", "-t", "-k", "SOCKET", image], folder)]
    cases = [case for case in CASES if not o.only or o.only in f"{case[0]}-{case[1]}-{case[2]}-{case[3]}"]
    results = {}
    for number in range(o.rounds):
        for server in servers[number % 3:] + servers[:number % 3]:
            with server:
                for case in cases:
                    results.setdefault((case, server.name), []).append(measure(server, o, *case))
    print(f"\n## NBD over a Unix socket: {o.size} MiB, blocks of {o.block_size}, median of {o.rounds} rounds of {o.seconds} s\n")
    print("| request | depth | connections | ours | file | qemu | ours / file | ours / qemu |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in cases:
        rw, size, depth, connections = case
        ours, file, qemu = (statistics.median(results[case, server.name]) for server in servers)
        unit, name = (size, "/s") if size == 4096 else (MIB, " MiB/s")
        print(f"| {rw} {'4 KiB' if size == 4096 else '1 MiB'} | {depth} | {connections} | {ours / unit:.0f}{name} | "
              f"{file / unit:.0f}{name} | {qemu / unit:.0f}{name} | {ours / file:.2f} | {ours / qemu:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="MiB of data (default 512)")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement (default 2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the files go")
    parser.add_argument("--block-size", default="32M", help="of the VHDX (default 32M)")
    parser.add_argument("--only", help="cases with this in their name, such as randread-4096-32-1")
    o = parser.parse_args()
    o.vhdx = os.environ.get("VHDX", "vhdx")
    for program in ("fio", "nbdkit", "nbdinfo", "qemu-nbd"):
        if shutil.which(program) is None:
            sys.exit(f"bench-nbd.py: {program} is not installed")
    folder = tempfile.mkdtemp(prefix="vhdx-bench-", dir=o.folder or ("/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        bench(o, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
