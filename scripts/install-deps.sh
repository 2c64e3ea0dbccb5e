#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Install the Debian packages that a job needs, if any is missing.
# Usage: install-deps.sh build|demo|check|bench...
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

build_packages=(
    gcc libblkid-dev libc6-dev libfuse3-dev libisal-dev libjansson-dev libnbd-dev make meson nbdkit-plugin-dev ninja-build pkgconf
)
demo_packages=(e2fsprogs fuse3 libnbd-bin nbdkit qemu-utils)
check_packages=(
    "${demo_packages[@]}"
    btrfs-progs busybox-static clang cpio dosfstools fdisk fio g++ git gnutls-bin iproute2 kmod libclang-rt-14-dev libcmocka-dev
    libvirt-clients libxml2-utils llvm man-db mandoc mtools nbd-client ntfs-3g ovmf python3 python3-libnbd python3-pytest
    qemu-system-x86 shellcheck socat strace systemd systemd-boot-efi util-linux valgrind xfsprogs
)
bench_packages=(fio fuse3 libnbd-bin nbdkit python3 qemu-system-common qemu-utils)

wanted=("${build_packages[@]}")
for job in "$@"; do
    case $job in
    build) ;;
    demo) wanted+=("${demo_packages[@]}") ;;
    check) wanted+=("${check_packages[@]}") ;;
    bench) wanted+=("${bench_packages[@]}") ;;
    *) die "install-deps.sh: no such job: $job (build, demo, check, bench)" ;;
    esac
done

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    warn "this is not Debian: what is needed must be there already (Debian calls it: ${wanted[*]})"
    exit 0
fi

declare -A installed=()
while read -r package status; do
    if [[ $status == installed ]]; then
        installed[$package]=1
    fi
done < <(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null || true)

missing=()
for package in "${wanted[@]}"; do
    if [[ -z ${installed[$package]:-} ]]; then
        missing+=("$package")
        installed[$package]=1 # named once, even if two jobs want it
    fi
done
if ((${#missing[@]} == 0)); then
    exit 0
fi

as_root=()
if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
        die "packages are missing, and there is neither root nor sudo. As root: apt-get install ${missing[*]}"
    fi
    as_root=(sudo)
fi

say "Installing ${missing[*]}"
as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
install_missing() {
    "${as_root[@]}" update && "${as_root[@]}" install -y --no-install-recommends "${missing[@]}"
}
patiently show_if_failing install_missing </dev/null ||
    die "apt-get could not install them: see above; then run this again"
