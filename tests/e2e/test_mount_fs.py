# SPDX-License-Identifier: MIT
"""File systems on partitions of a mounted disk: made, filled, checked, through the files and with vhdx mount --fs."""
import contextlib
import filecmp
import os
import pathlib
import random
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from conftest import find_tool, run_program
from mount_support import (MiB, clean_up, foreground, insist, instead_of, loops_on, mounter, mounts_below,  # noqa: F401 (fixture)
                           server_pid)
from reading import file_sha256
from waiting import SECONDS, is_gone, pending_signals, wait_until

RUNTIME = pathlib.Path("/run/vhdx")

MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-b", "4096"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "vfat": ["mkfs.vfat"],
    "ntfs": ["mkfs.ntfs", "-F", "-q"],
}
FSCK = {
    "ext4": ["e2fsck", "-f", "-n"],
    "xfs": ["xfs_repair", "-n", "-f"],
    "btrfs": ["btrfs", "check", "--readonly"],
    "vfat": ["fsck.vfat", "-n"],
    "ntfs": ["ntfsfix", "-n"],
}
SIZE = {"ext4": "64M", "xfs": "320M", "btrfs": "128M", "vfat": "64M", "ntfs": "64M"}  # little more than the least


def run(*argv, **keywords):
    done = subprocess.run([os.fspath(arg) for arg in argv], capture_output=True, text=True, check=False, **keywords)
    if done.returncode != 0:
        pytest.fail(f"$ {' '.join(map(str, argv))}\nexit status {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout


@pytest.fixture
def stack(vhdx, mounter, tmp_path):
    """stack(fs, sector=) -> an image with one partition that holds an empty file system."""
    before = set(RUNTIME.iterdir()) if RUNTIME.is_dir() else set()

    def build(fs, sector=512):
        for command in (MKFS[fs], FSCK[fs], ["sfdisk"], ["losetup"]):
            if find_tool(command[0]) is None:
                pytest.skip(f"{command[0]} is not installed")
        image = tmp_path / "disk.vhdx"
        vhdx("create", "--block-size=1M", f"--logical-sector-size={sector}", image, SIZE[fs], rc=0)
        first = 2048 * 512 // sector
        with mounter.mounted(image) as folder:
            (tmp_path / "table").write_text(f"label: dos\nunit: sectors\nstart={first}\n", encoding="utf-8")
            if sector == 512:
                with open(tmp_path / "table", encoding="utf-8") as table:
                    run(find_tool("sfdisk"), "--quiet", folder / "disk", stdin=table)
            else:  # sfdisk takes the sectors of a file for 512 bytes
                entry = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + first.to_bytes(4, "little") + \
                    (os.stat(folder / "disk").st_size // sector - first).to_bytes(4, "little")
                with open(folder / "disk", "r+b", buffering=0) as disk:
                    disk.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        with mounter.mounted(image) as folder:
            run(find_tool(MKFS[fs][0]), *MKFS[fs][1:], folder / "p1")
        return image
    yield build
    clean_up(tmp_path)
    for folder in (set(RUNTIME.iterdir()) if RUNTIME.is_dir() else set()) - before:
        clean_up(folder)
        with contextlib.suppress(OSError):
            folder.rmdir()


def expect_nothing_left(vhdx, tmp_path, image, clean=True, folders=True):
    """No mount, no loop device, no folder, no lock."""
    assert mounts_below(tmp_path) == [] and mounts_below(RUNTIME) == []
    # With a server that is dead, or whose end nobody waits for, the kernel closes the device and the server removes its folder
    # a moment later.
    wait_until(lambda: loops_on(RUNTIME) == [], "there is no loop device")
    if folders:
        wait_until(lambda: not RUNTIME.is_dir() or list(RUNTIME.iterdir()) == [], "there is no folder")
    if clean:
        assert vhdx("info", "--json", image, rc=0).json()["dirty-flag"] is False
        vhdx("check", image, rc=0)
    else:
        vhdx("info", image, rc=0)


def make_tree(folder, seed):
    """Files of many sizes, one sparse."""
    rng = random.Random(seed)
    for i in range(25):
        path = folder / f"d{i % 5}" / f"file {i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice([0, 1, 4096, 100_000, 700_000])))
    with open(folder / "d0" / "sparse", "wb") as sparse:
        sparse.seek(3 * MiB)
        sparse.write(b"end")


def same_tree(a, b):
    names = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert names
    different = [name for name in names if not (b / name).is_file() or not filecmp.cmp(a / name, b / name, shallow=False)]
    assert different == []


def expect_sound(vhdx, mounter, image, fs, tmp_path):
    """The file system has no errors, and the partition is the same bytes in a raw copy of the disk."""
    raw = tmp_path / "disk.raw"
    vhdx("convert", "--force", image, raw, rc=0)
    with mounter.mounted(image, "-r") as folder:
        run(find_tool(FSCK[fs][0]), *FSCK[fs][1:], folder / "p1")
        run("cmp", "--ignore-initial", f"0:{MiB}", folder / "p1", raw)


# ---- with --fs

@pytest.mark.parametrize("fs, sector", [("ext4", 512), ("ext4", 4096), ("xfs", 512), ("btrfs", 512), ("ntfs", 512)])
def test_file_systems_inside(vhdx, mounter, need_loop, stack, tool, tmp_path, fs, sector):
    if fs == "ntfs":
        tool("mount.ntfs")
    source = tmp_path / "source"
    make_tree(source, fs)
    image = stack(fs, sector)
    folder = mounter.mount(image, "--fs", "--partition", "1")
    assert mounts_below(folder)[-1][1] == ("fuseblk" if fs == "ntfs" else fs)
    run("cp", "-r", f"{source}/.", folder)
    same_tree(source, folder)
    mounter.umount(folder)
    expect_nothing_left(vhdx, tmp_path, image)
    expect_sound(vhdx, mounter, image, fs, tmp_path)
    before = file_sha256(image)
    with mounter.mounted(image, "-r", "--fs") as folder:
        same_tree(source, folder)
        with pytest.raises(OSError):
            (folder / "new").touch()
    expect_nothing_left(vhdx, tmp_path, image)
    assert file_sha256(image) == before


@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_fstrim_makes_the_image_smaller_while_it_is_mounted(vhdx, mounter, need_loop, stack, tool, tmp_path, fs):
    fstrim, image = tool("fstrim"), stack(fs)
    with mounter.mounted(image, "--fs") as folder:
        (folder / "kept").write_bytes(os.urandom(4 * MiB))
        (folder / "gone").write_bytes(os.urandom(24 * MiB))
        run("sync", "-f", folder)
        kept, full = (folder / "kept").read_bytes(), os.stat(image).st_blocks * 512
        (folder / "gone").unlink()
        run("sync", "-f", folder)

        def is_smaller():
            run(fstrim, folder)  # again: XFS frees in the background, and until then has nothing to trim
            return os.stat(image).st_blocks * 512 < full - 20 * MiB

        # Not every file system flushes the device after discards; then the server does, a little later.
        wait_until(is_smaller, "the image has become smaller")
        assert (folder / "kept").read_bytes() == kept
    expect_nothing_left(vhdx, tmp_path, image)
    expect_sound(vhdx, mounter, image, fs, tmp_path)
    with mounter.mounted(image, "-r", "--fs") as folder:
        assert (folder / "kept").read_bytes() == kept


def test_a_disk_without_partitions_holds_a_file_system(vhdx, mounter, need_loop, tool, tmp_path):
    mkfs, image = tool("mkfs.ext4"), tmp_path / "disk.vhdx"
    vhdx("create", "--block-size=1M", image, "64M", rc=0)
    with mounter.mounted(image) as folder:
        run(mkfs, "-q", folder / "disk")
    for options in (["--fs"], ["--fs", "--partition=0"]):
        with mounter.mounted(image, *options, "-o", "noatime") as folder:
            (folder / "file").write_bytes(b"content")
            assert "noatime" in pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").split(f" {folder} ")[1]
    expect_nothing_left(vhdx, tmp_path, image)


# ---- the end of a stack

def test_a_plain_umount_ends_everything(vhdx, mounter, need_loop, stack, tmp_path):
    image = stack("ext4")
    folder = mounter.mount(image, "--fs")
    (folder / "file").write_bytes(b"content")
    pid = server_pid(mounts_below(RUNTIME)[0][0])
    run("umount", folder)
    wait_until(lambda: is_gone(pid), "the server has ended")
    expect_nothing_left(vhdx, tmp_path, image)
    expect_sound(vhdx, mounter, image, "ext4", tmp_path)


def test_a_file_system_in_use_stays(vhdx, mounter, need_loop, stack, tmp_path):
    image = stack("ext4")
    folder = mounter.mount(image, "--fs")
    with open(folder / "file", "wb") as file:
        assert "in use" in mounter.umount(folder, rc=1).err
        file.write(b"content")
    mounter.umount(folder)
    expect_nothing_left(vhdx, tmp_path, image)
    with mounter.mounted(image, "-r", "--fs") as folder:
        assert (folder / "file").read_bytes() == b"content"


def test_what_others_mounted_there_since_stays(vhdx, mounter, need_loop, stack, tmp_path):
    image, other = stack("ext4"), tmp_path / "other.vhdx"
    shutil.copyfile(image, other)
    folder = mounter.mount(image, "--fs")
    below = mounts_below(RUNTIME)[0][0]
    pid = server_pid(below)
    with open(folder / "file", "wb") as file:
        file.write(b"content")
        vhdx("umount", "--lazy", folder, rc=0)
        mounter.mount(other, "--fs", folder=folder)
        (folder / "kept").write_bytes(b"kept")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: below not in [place for place, _, _ in mounts_below(RUNTIME)], "the signal is seen")
        assert (folder / "kept").read_bytes() == b"kept"
    wait_until(lambda: is_gone(pid), "the server has ended")
    assert (folder / "kept").read_bytes() == b"kept"
    mounter.umount(folder)
    expect_nothing_left(vhdx, tmp_path, other)
    expect_nothing_left(vhdx, tmp_path, image)


TRANSLATED_UMOUNT = """text=$(PATH=/usr/sbin:/usr/bin:/sbin:/bin umount "$@" 2>&1) && exit 0
status=$?
test "$LC_ALL" = C || text=$(echo "$text" | sed 's/target is busy/Das Ziel wird gerade benutzt/')
echo "$text" >&2
exit $status"""


def test_a_file_system_in_use_is_told_in_any_language(vhdx, mounter, need_loop, stack, tmp_path):
    image, env = stack("ext4"), instead_of(tmp_path, "umount", TRANSLATED_UMOUNT)
    folder = mounter.mount(image, "--fs", env=env)
    pid = server_pid(mounts_below(RUNTIME)[0][0])
    with open(folder / "file", "wb") as file:
        err = mounter.umount(folder, rc=1, env=env).err
        assert "in use" in err and "--lazy" in err and err.count("\n") == 1
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: mounts_below(folder) == [], "the file system is detached")
        file.write(b"content")
    wait_until(lambda: is_gone(pid), "the server has ended")
    expect_nothing_left(vhdx, tmp_path, image)
    with mounter.mounted(image, "-r", "--fs") as folder:
        assert (folder / "file").read_bytes() == b"content"


def test_what_umount_says_is_one_line(vhdx, mounter, need_loop, stack, tmp_path):
    image = stack("ext4")
    folder = mounter.mount(image, "--fs")
    env = instead_of(tmp_path, "umount", 'echo "umount: $3: must be superuser to unmount." >&2; echo "       see dmesg(1)" >&2; exit 1')
    assert mounter.umount(folder, rc=1, env=env).err == (
        f"vhdx umount: {folder}: {folder} cannot be unmounted: must be superuser to unmount\n")
    mounter.umount(folder)


def test_the_mount_below_is_not_ended_under_a_file_system(vhdx, mounter, need_loop, stack, tmp_path):
    image = stack("ext4")
    folder = mounter.mount(image, "--fs")
    below = mounts_below(RUNTIME)[0][0]
    assert "in use" in mounter.umount(below, rc=1).err
    mounter.umount(folder)
    expect_nothing_left(vhdx, tmp_path, image)


def test_what_was_mounted_by_hand_is_ended_by_hand(vhdx, mounter, need_loop, stack, tmp_path):
    image = stack("ext4")
    files, folder = mounter.mount(image), mounter.new_folder()
    run("mount", "-o", "loop", files / "p1", folder)
    (folder / "file").write_bytes(b"content")
    assert "by hand" in mounter.umount(folder, rc=1).err
    assert "in use" in mounter.umount(files, rc=1).err
    run("umount", folder)
    wait_until(lambda: vhdx("umount", files).rc == 0, "the loop device has let go")
    expect_nothing_left(vhdx, tmp_path, image)


@pytest.mark.parametrize("in_front", [False, True])
def test_signals_end_a_stack(vhdx, vhdx_path, mounter, need_loop, stack, tmp_path, in_front):
    image, folder = stack("ext4"), mounter.new_folder()
    if in_front:
        with foreground(vhdx_path, folder, "--fs", image) as server:
            (folder / "file").write_bytes(b"content")
            server.terminate()
            out, err = server.communicate()
            assert (server.returncode, out, err) == (0, "", "")
    else:
        mounter.mount(image, "--fs", folder=folder)
        (folder / "file").write_bytes(b"content")
        pid = server_pid(mounts_below(RUNTIME)[0][0])
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: is_gone(pid), "the server has ended")
    expect_nothing_left(vhdx, tmp_path, image)
    with mounter.mounted(image, "-r", "--fs") as folder:
        assert (folder / "file").read_bytes() == b"content"


def test_the_kernel_may_let_go_of_the_mount_after_the_last_close(vhdx, vhdx_path, mounter, need_loop, stack, tool, tmp_path):
    """The server hears of the close first: that is no user who stays."""
    image, folder, trace = stack("ext4"), mounter.new_folder(), tmp_path / "trace"
    with foreground(vhdx_path, folder, "--fs", image) as server:
        threads = [word for number in os.listdir(f"/proc/{server.pid}/task") for word in ("-p", number)]
        with subprocess.Popen([tool("strace"), "-o", trace, "-e", "trace=umount2", "-e", "inject=umount2:error=EBUSY:when=1", *threads],
                              stderr=subprocess.PIPE, text=True) as tracer:  # not umount(8)'s
            for _ in range(len(threads) // 2):
                line = tracer.stderr.readline()
                if "attached" not in line:
                    tracer.kill()
                    pytest.skip(f"strace cannot attach: {line.strip()}")
            server.terminate()
            out, err = server.communicate()
        assert (server.returncode, out, err) == (0, "", "")
    assert "INJECTED" in trace.read_text()
    expect_nothing_left(vhdx, tmp_path, image)


def test_a_second_signal_does_not_wait_for_umount(vhdx, vhdx_path, mounter, need_loop, stack, tmp_path):
    image, folder = stack("ext4"), mounter.new_folder()
    env = instead_of(tmp_path, "umount", f"touch {tmp_path}/called; exec sleep 1000")
    mounter.mount(image, "--fs", folder=folder, env=env)
    pid = server_pid(mounts_below(RUNTIME)[0][0])
    os.kill(pid, signal.SIGTERM)
    wait_until((tmp_path / "called").exists, "umount(8) is called")
    insist(pid)
    run("umount", "-l", folder)  # which nobody has done
    wait_until(lambda: loops_on(RUNTIME) == [], "the loop device is gone")
    expect_nothing_left(vhdx, tmp_path, image)


@pytest.mark.parametrize("in_use", [False, True])
@pytest.mark.parametrize("other", [signal.SIGHUP, signal.SIGINT])
def test_two_signals_at_once_lose_nothing(vhdx, mounter, need_loop, stack, tmp_path, other, in_use):
    """As a session that ends sends them: what the file system has not written yet is written."""
    image = stack("ext4")
    folder = mounter.mount(image, "--fs")
    pid, content = server_pid(mounts_below(RUNTIME)[0][0]), os.urandom(8 * MiB)
    (folder / "file").write_bytes(content)
    with open(folder / "held" if in_use else "/dev/null", "wb") as held:
        os.kill(pid, signal.SIGSTOP)  # so that it finds both
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, other)
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: mounts_below(folder) == [], "the file system is detached")
        held.write(b"until the end")
    wait_until(lambda: is_gone(pid), "the server has ended")
    expect_nothing_left(vhdx, tmp_path, image)
    expect_sound(vhdx, mounter, image, "ext4", tmp_path)
    with mounter.mounted(image, "-r", "--fs") as folder:
        assert (folder / "file").read_bytes() == content
        assert not in_use or (folder / "held").read_bytes() == b"until the end"


def test_a_hangup_does_not_hurry_umount(vhdx, mounter, need_loop, stack, tmp_path):
    """Nor does it, or another signal that all processes of a session get, end umount(8) itself."""
    image, called, go = stack("ext4"), tmp_path / "called", tmp_path / "go"
    os.mkfifo(go)
    # Without another process: when a shell waits for one, it lets all signals in.
    env = instead_of(tmp_path, "umount", f"""echo $$ >{called}; read answer <{go}
PATH=/usr/sbin:/usr/bin:/sbin:/bin exec umount "$@\"""")
    folder = mounter.mount(image, "--fs", env=env)
    (folder / "file").write_bytes(b"content")
    pid = server_pid(mounts_below(RUNTIME)[0][0])
    with open(go, "r+b", buffering=0) as answer:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: called.exists() and called.read_bytes().endswith(b"\n"), "umount(8) is called")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(int(called.read_bytes()), number)
        time.sleep(2.2)  # after which another SIGTERM would not wait for it
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: signal.SIGHUP not in pending_signals(pid), "the hangup is seen")
        answer.write(b"go\n")
        wait_until(lambda: is_gone(pid), "the server has ended")
    expect_nothing_left(vhdx, tmp_path, image)
    with mounter.mounted(image, "-r", "--fs") as folder:
        assert (folder / "file").read_bytes() == b"content"


# ---- what goes wrong

@pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs"])
def test_the_server_dies_below_a_file_system(vhdx, mounter, need_loop, stack, tmp_path, fs):
    """Users get errors, umount clears everything, what was synced is there; then the journal has to be replayed, which a
    read-only mount does without."""
    image = stack(fs)
    folder = mounter.mount(image, "--fs")
    (folder / "synced").write_bytes(os.urandom(MiB))
    content = (folder / "synced").read_bytes()
    run("sync", "-f", folder)
    (folder / "file").write_bytes(b"content")
    pid = server_pid(mounts_below(RUNTIME)[0][0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid), "the server has gone")
    with pytest.raises(OSError):
        with open(folder / "after", "wb") as file:
            file.write(bytes(MiB))
            os.fsync(file.fileno())
    assert "had died" in mounter.umount(folder, rc=1).err
    expect_nothing_left(vhdx, tmp_path, image, clean=False)

    before = file_sha256(image)
    folder = mounter.new_folder()
    result = vhdx("mount", "-r", "--fs", image, folder, rc=0)
    if fs == "btrfs":  # what was synced needs no journal
        assert (folder / "synced").read_bytes() == content
    else:
        assert "shown without its journal" in result.err
    mounter.umount(folder)
    assert file_sha256(image) == before

    with mounter.mounted(image, "--fs") as folder:
        assert (folder / "synced").read_bytes() == content
    expect_nothing_left(vhdx, tmp_path, image)
    expect_sound(vhdx, mounter, image, fs, tmp_path)


def test_failures_leave_nothing_behind(vhdx, mounter, need_loop, stack, tmp_path):
    image, folder = stack("ext4"), mounter.new_folder()
    empty = tmp_path / "empty.vhdx"
    vhdx("create", empty, "64M", rc=0)
    for arguments, complaint in [
            ((empty,), "cannot be mounted"),
            (("--partition", "1", empty), "the disk has none"),
            (("--partition", "2", image), "there is no partition 2, only 1"),
            (("-o", "no_such_option", image), "cannot be mounted"),
            ((tmp_path / "absent.vhdx",), "No such file")]:
        result = vhdx("mount", "--fs", *arguments, folder, rc=1)
        assert complaint in result.err and result.err.count("\n") == 1, result.describe()
        expect_nothing_left(vhdx, tmp_path, image)
    result = vhdx("mount", "--fs", image, tmp_path / "absent", rc=1)
    expect_nothing_left(vhdx, tmp_path, image)


def test_several_partitions_need_a_number(vhdx, mounter, need_loop, tool, tmp_path):
    image, sfdisk = tmp_path / "disk.vhdx", tool("sfdisk")
    vhdx("create", "--block-size=1M", image, "64M", rc=0)
    with mounter.mounted(image) as folder:
        subprocess.run([sfdisk, "--quiet", folder / "disk"], input="label: gpt\nsize=10M\nsize=10M\n", text=True, check=True)
    assert "1, 2" in vhdx("mount", "--fs", image, mounter.new_folder(), rc=1).err
    expect_nothing_left(vhdx, tmp_path, image)


@pytest.mark.parametrize("victim", ["client", "server", "both"])
def test_a_process_is_killed_while_the_stack_is_built(vhdx, vhdx_path, mounter, need_loop, stack, tmp_path, victim):
    """At the worst time: the loop device is there, mount(8) runs and waits for it."""
    image, folder = stack("ext4"), mounter.new_folder()
    kill = {"client": "kill -9 $PPID", "server": "kill -9 $server", "both": "kill -9 $PPID $server"}[victim]
    env = instead_of(tmp_path, "mount", f"server=$(sed -n 's/^pid //p' /run/vhdx/*/.vhdx-mount)\n{kill}\nexit 32")
    process = subprocess.run([vhdx_path, "mount", "--fs", image, folder], stdin=subprocess.DEVNULL, capture_output=True, check=False,
                             timeout=SECONDS, env={**os.environ, **env})
    assert process.returncode != 0
    if victim == "both":  # nobody is left to clear up but umount
        for place, _, _ in mounts_below(RUNTIME):
            mounter.umount(place, rc=1)
    wait_until(lambda: mounts_below(RUNTIME) == [] and loops_on(RUNTIME) == [], "nothing is mounted")
    wait_until(lambda: vhdx("io", image, "-c", "length").rc == 0, "the image is free")
    expect_nothing_left(vhdx, tmp_path, image, folders=victim != "both")
    with mounter.mounted(image, "--fs"):
        pass
    expect_sound(vhdx, mounter, image, "ext4", tmp_path)


@pytest.mark.parametrize("script", ["{mount}; kill -9 $PPID", "exec 3<$4; kill -9 $PPID; sleep 0.3; {mount}"])
def test_mount_succeeds_for_a_client_that_is_gone(vhdx, vhdx_path, mounter, need_loop, stack, tmp_path, script):
    """What the command does not report as mounted does not stay mounted: mount(8) was done when its caller was killed, or goes on."""
    image, folder = stack("ext4"), mounter.new_folder()
    env = instead_of(tmp_path, "mount", script.format(mount='PATH=/usr/sbin:/usr/bin:/sbin:/bin mount "$@"'))
    process = subprocess.run([vhdx_path, "mount", "--fs", image, folder], stdin=subprocess.DEVNULL, capture_output=True, check=False,
                             timeout=SECONDS, env={**os.environ, **env})
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: mounts_below(RUNTIME) == [] and loops_on(RUNTIME) == [], "nothing is mounted")
    wait_until(lambda: vhdx("io", image, "-c", "length").rc == 0, "the image is free")
    assert mounts_below(folder) == []
    expect_nothing_left(vhdx, tmp_path, image)
    expect_sound(vhdx, mounter, image, "ext4", tmp_path)


# ---- fstab

@pytest.fixture
def helper(vhdx_path, source_root, tmp_path):
    """mount.vhdx for the command under test, in a folder with umount.vhdx."""
    folder = tmp_path / "sbin"
    folder.mkdir()
    for name in ("mount.vhdx", "umount.vhdx"):
        text = (source_root / "tools" / "mount" / f"{name}.in").read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("@VHDX@", shlex.quote(os.fspath(vhdx_path))), encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder / "mount.vhdx"


def test_a_line_in_fstab(vhdx, vhdx_path, need_loop, need_unshare, stack, helper, tool, tmp_path):
    """With a /sbin in which the helpers lie, for this test alone.  Each umount has closed the image when it returns."""
    image, fstab, folder = stack("ext4"), tmp_path / "fstab", tmp_path / "data"
    folder.mkdir()
    fstab.write_text(f"{image} {folder} vhdx partition=1,noatime,nofail 0 0\n", encoding="utf-8")
    sbin = os.path.realpath("/sbin")
    script = f"""set -e
        mount -t overlay -o lowerdir={helper.parent}:{sbin} overlay {sbin} || exit 77
        mount -T {fstab} {folder}
        grep ' {folder} ' /proc/self/mountinfo | grep -q noatime
        echo content >{folder}/file
        umount {folder}
        mount -t vhdx -o ro {image} {folder}
        cat {folder}/file
        ! echo more >{folder}/file
        umount {folder}
        {vhdx_path} io {image} -c length
        mount -t vhdx {image} {folder}
        exec 3<{folder}/file
        ! umount {folder} 2>/dev/null
        umount -l {folder}
    """
    result = run_program([tool("unshare"), "--mount", "bash", "-c", script])
    if result.rc == 77:
        pytest.skip("no overlay file system to put the helper into /sbin for a moment")
    assert (result.rc, result.out) == (0, "content\n64 MiB\n"), result.describe()
    wait_until(lambda: vhdx("io", image, "-c", "length").rc == 0, "the image is free")
    expect_nothing_left(vhdx, tmp_path, image)


def test_the_helper_of_mount(vhdx, need_loop, stack, helper, tmp_path):
    image, folder = stack("ext4"), tmp_path / "data"
    folder.mkdir()
    run_program([helper, image, folder, "-f", "-o", "ro"], rc=0)
    expect_nothing_left(vhdx, tmp_path, image)
    for arguments, rc in [([], 1), ([image], 1), ([image, folder, "-N", "1"], 1), ([image, folder, "-o", "partition=9"], 32),
                          ([tmp_path / "absent", folder], 32)]:
        result = run_program([helper, *arguments], rc=rc)
        assert result.err.count("\n") == 1
        expect_nothing_left(vhdx, tmp_path, image)
    run_program([helper, image, folder, "-v", "-n", "-s", "-t", "vhdx", "-o", "rw,partition=1,,noexec"], rc=0)
    assert "noexec" in pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").split(f" {folder} ")[1].split("-")[0]
    vhdx("umount", folder, rc=0)
    expect_nothing_left(vhdx, tmp_path, image)


# ---- file systems of other programs

def test_vfat_by_mtools(vhdx, mounter, stack, tool, tmp_path):
    mcopy, source = tool("mcopy"), tmp_path / "source"
    make_tree(source, "vfat")
    image = stack("vfat")
    with mounter.mounted(image) as folder:
        run(mcopy, "-s", "-i", folder / "p1", *source.iterdir(), "::/")
    expect_sound(vhdx, mounter, image, "vfat", tmp_path)
    with mounter.mounted(image, "-r") as folder:
        (tmp_path / "back").mkdir()
        run(mcopy, "-s", "-n", "-i", folder / "p1", "::/*", tmp_path / "back")
    same_tree(source, tmp_path / "back")


def test_ntfs_by_ntfs_3g(vhdx, mounter, stack, tool, tmp_path):
    ntfs, source = tool("ntfs-3g"), tmp_path / "source"
    make_tree(source, "ntfs")
    image, files = stack("ntfs"), mounter.new_folder()
    with mounter.mounted(image) as folder:
        run(ntfs, "-o", "big_writes", folder / "p1", files)
        run("cp", "-r", f"{source}/.", files)
        run("umount", files)
        wait_until(lambda: vhdx("umount", folder).rc == 0, "ntfs-3g has let go")
        mounter.mount(image, folder=folder)
    expect_sound(vhdx, mounter, image, "ntfs", tmp_path)
    folder = mounter.mount(image, "-r")
    run(ntfs, "-o", "ro", folder / "p1", files)
    same_tree(source, files)
    run("umount", files)
    wait_until(lambda: vhdx("umount", folder).rc == 0, "ntfs-3g has let go")
