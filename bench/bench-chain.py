#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What chains cost: reading through one, and merging one.

    bench-chain.py [--size MIB] [--depth N] [--rounds N] [--reads N] [--folder DIR] [read] [merge]

read   vhdx_pread of 4 KiB, 64 KiB and 1 MiB through a chain of --depth images against the flattened image and against pread of
       a raw file with the same content, and of the chain's own files at places known beforehand, page cache warm; blocks of 2 MiB, each image with its share of whole blocks, and
       the same with parts of blocks only
merge  "vhdx merge" of a child with --size MIB of data into its parent, against cp(1) of a raw file with so much data, both
       on --folder, each followed by sync(1) of what it wrote; with reflinks where the file system has them, and without

Programs come from the environment: VHDX, BENCH_READ.  Numbers are from this machine at this moment: compare ratios, not times.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "support"))
from vhdxbuild import Image, Locator, MiB, Pattern  # noqa: E402

VHDX = os.environ.get("VHDX", "vhdx")
BENCH_READ = os.environ.get("BENCH_READ", "bench-read")


def run(*command):
    start = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench-chain.py: {' '.join(map(str, command))}: {done.stderr}")
    return time.perf_counter() - start, done.stdout


def child_of(parent, path, seed, size, block):
    image = Image(size, block_size=block, seed=seed, parent=parent)
    image.locator = Locator.relative(parent.data_write_guid, ".\\" + os.path.basename(parent.path))
    return image


def make_chain(folder, o, whole):
    """Every image holds blocks of its own; the last of them hide nothing of each other."""
    size, block = o.size * MiB, 2 * MiB
    images = [Image(size, block_size=block, seed=1).write(0, size, Pattern(1)).build(os.path.join(folder, "00.vhdx"))]
    for depth in range(1, o.depth):
        path = os.path.join(folder, f"{depth:02}.avhdx")
        image = child_of(images[-1], path, depth + 1, size, block)
        for number in range(depth, size // block, o.depth):
            image.write(number * block, block if whole else 256 * 1024, Pattern(depth + 1))
        images.append(image.build(path))
    return images[-1].path


def bench_read(o, folder):
    print(f"\n## Reading through {o.depth} images (microseconds per read; ratios of medians)\n")
    print("| blocks | read | chain us | flat us | raw us | chain's files us | chain/raw | flat/raw | chain/its files |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for whole in (True, False):
        place = os.path.join(folder, "whole" if whole else "parts")
        os.mkdir(place)
        top = make_chain(place, o, whole)
        flat, raw = os.path.join(place, "flat.vhdx"), os.path.join(place, "flat.raw")
        run(VHDX, "convert", "-q", "-O", "vhdx", "--block-size", "2M", top, flat)
        run(VHDX, "convert", "-q", "-S", "0", top, raw)
        for size in (4096, 65536, MiB):
            reads = o.reads if size < MiB else max(o.reads // 20, 1)
            results = [run(BENCH_READ, image, raw, size, reads, 1, o.rounds, "random")[1].split() for image in (top, flat)]
            (chain_us, raw_us, chain_ratio, files_us, files_ratio), (flat_us, _, flat_ratio, _, _) = results
            print(f"| {'whole' if whole else 'parts'} | {size // 1024} KiB | {chain_us} | {flat_us} | {raw_us} | {files_us} | {chain_ratio} "
                  f"| {flat_ratio} | {files_ratio} |")
        shutil.rmtree(place)


def bench_merge(o, folder):
    print(f"\n## Merging {o.size} MiB into a parent, against cp (best of {o.rounds})\n")
    print("| parent | reflink | vhdx merge s | cp s | cp/merge |")
    print("| --- | --- | --- | --- | --- |")
    size = 2 * o.size * MiB
    for kind in ("empty", "full"):
        base = Image(size, block_size=2 * MiB, seed=1)
        if kind == "full":
            base.write(0, size, Pattern(1))
        base = base.build(os.path.join(folder, "base"))
        child = child_of(base, os.path.join(folder, "child"), 2, size, 2 * MiB).write(0, o.size * MiB, Pattern(2))
        child = child.build(os.path.join(folder, "child"))
        run(VHDX, "convert", "-q", "--force", "-S", "0", child.path, os.path.join(folder, "raw"))
        os.truncate(os.path.join(folder, "raw"), o.size * MiB)
        for reflink in ("auto", "never"):
            merges, copies = [], []
            for _ in range(o.rounds):
                for name in ("base", "child"):
                    run("cp", "--reflink=auto", "--sparse=always", os.path.join(folder, name), os.path.join(folder, f"{name}.vhdx"))
                fix_link(folder)
                run("sync")
                merges.append(run(VHDX, "merge", "-q", "--reflink", reflink, os.path.join(folder, "child.vhdx"))[0])
                run("rm", "-f", os.path.join(folder, "copy"))
                run("sync")
                copies.append(run("sh", "-c", f"cp --reflink={reflink} \"$1\" \"$2\" && sync \"$2\"", "sh",
                                  os.path.join(folder, "raw"), os.path.join(folder, "copy"))[0])
            merge, copy = min(merges), min(copies)
            print(f"| {kind} | {reflink} | {merge:.3f} | {copy:.3f} | {copy / merge:.2f} |")


def fix_link(folder):
    run(VHDX, "rebase", "--parent", os.path.join(folder, "base.vhdx"), os.path.join(folder, "child.vhdx"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="MiB")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=200000)
    parser.add_argument("--folder", default=None)
    parser.add_argument("what", nargs="*", default=[])
    o = parser.parse_args()
    for name, function, place in (("read", bench_read, "/dev/shm"), ("merge", bench_merge, "/var/tmp")):
        if o.what and name not in o.what:
            continue
        with tempfile.TemporaryDirectory(dir=o.folder or place) as folder:
            function(o, folder)


if __name__ == "__main__":
    main()
