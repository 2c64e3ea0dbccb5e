#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Fetch the Linux kernel that tests/e2e/test_guest*.py boot in a virtual machine: Debian's own package, unpacked into a
# folder and not installed, so that neither this machine's kernel nor its boot loader is touched.
# Usage: fetch-guest-kernel.sh [FOLDER]       (build-guest-kernel; tests look into VHDX_GUEST_KERNEL if that is set)
#
# The folder then holds vmlinuz and lib/modules/VERSION/ with modules.dep.  A folder that is complete stays as it is.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

folder=${1:-${VHDX_GUEST_KERNEL:-$BUILD-guest-kernel}}
if [[ -e $folder/vmlinuz ]]; then
    exit 0
fi
[[ $(dpkg --print-architecture 2>/dev/null) == amd64 ]] ||
    die "the kernel for guests is fetched on Debian for amd64 only: set VHDX_GUEST_KERNEL to a folder with one"

mkdir -p -- "$folder"
folder=$(cd -- "$folder" && pwd -P)
unpacked=$(mktemp -d "$folder/unpacking.XXXXXX")
trap 'rm -rf -- "$unpacked"' EXIT

# Debian's linux-image-cloud-amd64 is empty and depends on the newest version: small, and knows QEMU's devices.
download() {
    local package
    package=$(apt-cache depends --no-recommends --no-suggests linux-image-cloud-amd64 |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1) &&
        [[ -n $package ]] && (cd -- "$unpacked" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$package")
}

say "Fetching a kernel for guests"
if ! download >/dev/null 2>&1; then # the lists of packages are missing, or older than the archive
    as_root=()
    if ((EUID != 0)); then
        as_root=(sudo)
    fi
    patiently "${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 update || true
    patiently show_if_failing download || die "apt-get could not download linux-image-cloud-amd64: see above"
fi
dpkg-deb -x "$unpacked"/linux-image-*.deb "$unpacked"
modules=("$unpacked"/lib/modules/*/kernel)
rm -rf -- "${modules[0]}"/{sound,drivers/{gpu,infiniband}} # with what follows 60 of 90 MB
find "${modules[0]}"/{net,drivers/net} -type f ! -name virtio_net.ko ! -name net_failover.ko ! -name failover.ko -delete
depmod -b "$unpacked" "$(basename -- "$unpacked"/lib/modules/*)" 2>/dev/null # warns that modules.builtin is all there is
rm -rf -- "${folder:?}/lib"
mv -- "$unpacked/lib" "$folder/lib"
mv -- "$unpacked"/boot/vmlinuz-* "$folder/vmlinuz" # last: it says that all is there
