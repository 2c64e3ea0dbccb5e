# SPDX-License-Identifier: MIT
# /sbin/init of the guest's root file system, and all of its user space: does the job that the kernel command line names
# (job=NAME, seed=N) and powers off.  Console: ttyS0.  The host is told what happened, and asked to go on, over ttyS1.
# shellcheck shell=dash
port=/dev/ttyS1

say() {
    worker report "$port" "$@"
}

wait_for_host() {
    say "$1"
    read -r _ <&3
}

fail() {
    say failed "$@"
    poweroff -f
}

partition() { # NAME: its device
    local uevent
    for uevent in /sys/class/block/*/uevent; do
        if grep -q "^PARTNAME=$1\$" "$uevent"; then
            sed -n 's,^DEVNAME=,/dev/,p' "$uevent"
            return
        fi
    done
    fail "no partition $1"
}

# new_file PATH BYTES: random content, durable when it returns; its checksum is that of what went in.
new_file() {
    sum=$(head -c "$2" /dev/urandom | tee "$1" | sha256sum) || return
    sum=${sum%% *}
    worker fsync "$1" "${1%/*}"
}

random() { # BELOW
    echo $(($(od -An -N4 -tu4 /dev/urandom) % $1))
}

# ---- jobs ----

# Files of all sizes on both file systems, half of them deleted again; everything that is free is given back.
job_write() {
    local n=0 size
    mkdir -p /data/files /var/files
    for size in 0 1 511 512 4095 4097 65536 100000 1048577 2000000 5000000; do
        new_file "/data/files/keep$n" "$size" || fail "write keep$n"
        say file "data/files/keep$n" "$size" "$sum"
        new_file "/data/files/lose$n" "$size" || fail "write lose$n"
        n=$((n + 1))
    done
    new_file /var/files/root 3000001 || fail "write root"
    say file var/files/root 3000001 "$sum"
    worker raw "$port" "$(partition vhdx-raw)" "$seed" 150 || fail "raw"
    wait_for_host written
    rm /data/files/lose*
    sync
    fstrim /data || fail 'fstrim /data'
    fstrim / || fail 'fstrim /'
    blkdiscard "$(partition vhdx-raw)" || fail blkdiscard
    sync
    wait_for_host trimmed
}

# Write until somebody pulls the plug.
job_kill() {
    local raw fs
    raw=$(partition vhdx-raw)
    worker raw "$port" "$raw" "$seed" || fail raw &
    for fs in /data /var; do
        write_files "$fs" || fail "files in $fs" &
    done
    while sleep 0.3; do
        fstrim /data || fail fstrim
    done
}

# The host knows this rule: when "durable DIR n" was said, file n is there until after "durable DIR n+15".
write_files() {
    local n=0
    mkdir -p "$1/files" && worker fsync "$1" || return
    while :; do
        [ "$n" -lt 16 ] || rm "$1/files/$((n - 16))" || return
        new_file "$1/files/$n" "$(random 300000)" || return
        echo "line $n" >>"$1/files/log" && worker fsync "$1/files/log" || return
        say durable "$1" "$n" "$sum"
        n=$((n + 1))
    done
}

# What is there? For disks that were killed, merged or converted and must still boot.
job_look() {
    local path
    for path in /data/files/* /var/files/*; do
        [ -f "$path" ] || continue
        sum=$(sha256sum "$path") || fail "$path"
        say file "${path#/}" "$(stat -c %s "$path")" "${sum%% *}"
    done
}

# What only one test's guest needs comes on a disk of its own: toolbox.py.
job_more() {
    tar -x -C / -f /dev/vda || fail toolbox
    # shellcheck disable=SC1091 # a script beside this one
    . /job.sh
}

# ---- the life of a guest ----

exec 3<>"$port" # for good: opening a port anew would throw away what has already come in
stty -F "$port" raw -echo
job=look
seed=0
# shellcheck disable=SC2013 # words are what is wanted
for word in $(cat /proc/cmdline); do
    case $word in
    job=*) job=${word#job=} ;;
    seed=*) seed=${word#seed=} ;;
    esac
done
mount -t ext4 -o discard "$(partition vhdx-data)" /data || fail 'mount /data'
say ready
"job_$job"
umount /data || fail 'umount /data'
mount -o remount,ro / || fail 'remount /'
sync
say finished
poweroff -f
