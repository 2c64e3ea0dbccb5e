# SPDX-License-Identifier: MIT
# What test_guest_nbd.py's guest does: its disks are block devices by the kernel's NBD client, of servers on the host.
# guest-init.sh reads this file.  recipe.sh has commands from docs/serving.md as functions, addresses being the host's:
# load, connect, connect_once (without -C), connect_4096 (to /dev/nbd1), attach (mount), detach (unmount and disconnect).
# shellcheck shell=dash
# shellcheck disable=SC1091,SC2154 # recipe.sh; port and sum are guest-init.sh's
. /recipe.sh

run() {
    "$@" || fail "$*"
}

wait_for_device() { # NAME: here is no udev to look for partitions, so it is opened until the kernel has
    local tries=0
    until [ -b "/dev/$1" ]; do
        head -c 512 /dev/nbd0 >/dev/null
        [ "$tries" -lt 100 ] || fail "no /dev/$1"
        tries=$((tries + 1))
        sleep 0.1
    done
}

# raw_write DEVICE BYTES [BYTES]: random content from its beginning; the second, or only, number of these bytes is to stay
raw_write() {
    local stays=${3:-$2}
    run dd if=/dev/urandom of=/tmp/raw bs=65536 count="$(($2 / 65536))" 2>/dev/null
    sum=$(head -c "$stays" /tmp/raw | sha256sum) || fail "sha256sum"
    run dd if=/tmp/raw of="$1" bs=1M conv=fsync 2>/dev/null
    say raw "$1" "$stays" "${sum%% *}"
}

files() {
    local path
    for path in /mnt/files/*; do
        sum=$(sha256sum "$path") || fail "$path"
        say "$1" "${path#/mnt/}" "$(stat -c %s "$path")" "${sum%% *}"
    done
}

# A file system and a raw partition, by four connections; half of each is discarded.
first_time() {
    run connect
    wait_for_device nbd0p1
    wait_for_device nbd0p2
    run mkfs.ext4 -q /dev/nbd0p1
    run attach
    run mkdir /mnt/files
    for size in 0 1 511 4097 100000 3000001; do
        run new_file "/mnt/files/$size" "$size"
    done
    run new_file /mnt/lost 8000000
    raw_write /dev/nbd0p2 4194304 2097152
    wait_for_host written
    run rm /mnt/lost
    run sync
    run fstrim /mnt
    run blkdiscard -o 2097152 -l 2097152 /dev/nbd0p2
    run sync
    wait_for_host trimmed
    files file
    run detach
}

# The same by one connection: all is there.
second_time() {
    run connect_once
    wait_for_device nbd0p1
    run attach
    files again
    run detach
}

sectors_4096() {
    run connect_4096
    say sector "$(blockdev --getss /dev/nbd1)"
    raw_write /dev/nbd1 1048576
    run nbd-client -d /dev/nbd1
}

run modprobe virtio_net
run ip link set eth0 up
run ip addr add 10.0.2.15/24 dev eth0
run mkdir /mnt
run load
first_time
second_time
sectors_4096
