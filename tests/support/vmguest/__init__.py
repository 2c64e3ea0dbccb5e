# SPDX-License-Identifier: MIT
"""A small Linux system on a disk, put together from Debian packages without root, and the virtual machine that runs it.

system.py builds the disk, machine.py runs QEMU, oracle.py says what a raw partition may hold after a power cut.
initramfs-init.sh, guest-init.sh, guest-nbd.sh and worker.c run inside the guest; toolbox.py hands it programs and kernel modules
that only one test needs.
"""
