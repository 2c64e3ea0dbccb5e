# SPDX-License-Identifier: MIT
# /init of the initramfs: load the modules for QEMU's disks, find the partition called "vhdx-root", go on from there.
# shellcheck shell=dash
/bin/busybox mkdir -p /dev /proc /sys /disk
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

while read -r module; do
    insmod "/modules/$module" || echo "init: cannot load $module"
done </modules/order

root=
tries=0
while [ -z "$root" ] && [ "$tries" -lt 600 ]; do # SCSI disks turn up a moment after their driver
    for uevent in /sys/class/block/*/uevent; do
        if grep -q '^PARTNAME=vhdx-root$' "$uevent"; then
            root=/dev/$(sed -n 's/^DEVNAME=//p' "$uevent")
        fi
    done
    [ -n "$root" ] || sleep 0.1
    tries=$((tries + 1))
done
if ! mount -t ext4 -o discard "${root:-nothing}" /disk; then
    echo 'init: no partition "vhdx-root" that can be mounted'
    poweroff -f
fi
mount --move /dev /disk/dev
mount --move /proc /disk/proc
mount --move /sys /disk/sys
exec switch_root /disk /sbin/init
