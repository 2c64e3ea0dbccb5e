#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Show the main jobs on a real disk: look into a VHDX, check it, turn it into a raw disk, have other programs confirm that
# nothing got lost; then make a checkpoint of it and use that as a disk, over NBD and mounted.
#
# IMAGE=file.vhdx shows your own disk; it is only read.  KEEP=1 leaves the working folder in place.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

IMAGE=${IMAGE:-}
if [[ -n $IMAGE ]]; then
    [[ -r $IMAGE && -f $IMAGE ]] || die "IMAGE=$IMAGE is not a file that can be read"
    IMAGE=$(realpath -- "$IMAGE")
fi

"$SOURCE_ROOT/scripts/install-deps.sh" build demo
"$SOURCE_ROOT/scripts/build.sh"
PATH=$BUILD/tools:$PATH

folder=$(mktemp -d "${TMPDIR:-/tmp}/vhdx-demo.XXXXXX")
mounted=
cleanup() {
    if [[ -n $mounted ]]; then
        vhdx umount "$mounted" || true
    fi
    if [[ -n ${KEEP:-} ]]; then
        printf '\nKept: %s\n' "$folder"
    else
        rm -rf -- "$folder"
    fi
}
trap cleanup EXIT
trap 'exit 130' INT
cd -- "$folder"

section_no=0
section() {
    section_no=$((section_no + 1))
    printf '\n%s%s %d  %s %s\n' "$BOLD" "$CYAN" "$section_no" "$1" "$PLAIN"
    if [[ -n ${2:-} ]]; then
        printf '    %s%s%s\n' "$DIM" "$2" "$PLAIN"
    fi
}

# prompt COMMAND...: as it would be typed.
prompt() {
    local word
    printf '\n  %s$%s%s' "$GREEN" "$PLAIN" "$BOLD"
    for word in "$@"; do
        if [[ $word =~ ^[-[:alnum:]_./=:+,@%]+$ ]]; then
            printf ' %s' "$word"
        else
            printf ' %s' "${word@Q}"
        fi
    done
    printf '%s\n' "$PLAIN"
}

# show COMMAND...: the command and what it prints.
show() {
    prompt "$@"
    "$@" 2>&1 | sed 's/^/    /'
}

# show_live COMMAND...: straight to the terminal, so that a progress bar can move.
show_live() {
    prompt "$@"
    "$@"
}

# show_some LINES COMMAND...: only so many lines of what it prints.
show_some() {
    local lines=$1 nr
    shift
    prompt "$@"
    "$@" >output.txt
    nr=$(wc -l <output.txt)
    head -n "$lines" output.txt | sed 's/^/    /'
    if ((nr > lines)); then
        printf '    %s... %d more lines%s\n' "$DIM" $((nr - lines)) "$PLAIN"
    fi
}

confirm() {
    printf '    %sok%s %s\n' "$GREEN" "$PLAIN" "$*"
}

make_files() {
    mkdir -p files/photos files/documents
    printf 'Hello from inside a VHDX.\n' >files/hello.txt
    cp -- "$SOURCE_ROOT/LICENSE" files/documents/
    cp -- "$SOURCE_ROOT/include/vhdx.h" files/documents/
    head -c 20M /dev/urandom >files/photos/holiday.raw
    head -c 5M /dev/urandom >files/photos/garden.raw
    (cd files && find . -type f -print0 | sort -z | xargs -0 sha256sum) >sums.txt
}

if [[ -z $IMAGE ]]; then
    section 'A disk made by other programs' 'an ext4 file system with a few files, put into a dynamic VHDX by QEMU'
    make_files
    truncate -s 512M original.raw
    show mkfs.ext4 -q -L demo -d files original.raw
    show qemu-img convert -f raw -O vhdx -o subformat=dynamic original.raw disk.vhdx
    name=disk.vhdx
else
    section 'Your disk'
    needed=$(du --block-size=1 -- "$IMAGE" | cut -f 1)
    free=$(df --block-size=1 --output=avail . | tail -n 1)
    if ((needed > free)); then
        die "copying $IMAGE needs $needed bytes in $folder, $free are free: set TMPDIR to a folder with more room"
    fi
    name=$IMAGE
fi
show ls -lsh --time-style=+ -- "$name"

section 'What is it?'
show vhdx info "$name"

section 'Where does it keep what?' 'ranges that hold data, and where they lie in the file; all else reads as zeros'
show_some 12 vhdx map "$name"

section 'Is it sound?' 'every structure held against the rules of the format'
status=0
show vhdx check "$name" || status=$?
case $status in
0) confirm 'no corruption' ;;
3) confirm 'no corruption, some space in the file is lost' ;;
*) warn "vhdx check found problems (status $status); converting what can be read" ;;
esac

section 'Out of the box' 'the virtual disk as a raw file, sparse where it is empty'
SECONDS=0
show_live vhdx convert -O raw "$name" disk.raw
confirm "$(du -h --apparent-size disk.raw | cut -f 1) disk, $(du -h disk.raw | cut -f 1) stored, ${SECONDS} s"

section 'Do other programs agree?'
if [[ -z $IMAGE ]]; then
    show qemu-img convert -f vhdx -O raw disk.vhdx by-qemu.raw
    show sha256sum original.raw by-qemu.raw disk.raw
    cmp disk.raw by-qemu.raw
    cmp disk.raw original.raw
    confirm 'byte for byte the disk that went in, and the one that QEMU reads'
    show vhdx compare -F raw disk.vhdx original.raw
    show e2fsck -fn disk.raw
    show debugfs -R 'ls /' disk.raw
    show debugfs -R 'cat /hello.txt' disk.raw
    mkdir restored
    debugfs -R 'rdump / restored' disk.raw 2>/dev/null
    (cd restored && sha256sum --quiet --check ../sums.txt)
    confirm "all $(wc -l <sums.txt) files taken out of the raw disk have the checksums they went in with"
else
    status=0
    show qemu-img compare -f vhdx -F raw "$name" disk.raw || status=$?
    case $status in
    0) confirm 'QEMU reads the same bytes' ;;
    1) die 'QEMU reads something else: please report this, with "vhdx dump" of the image' ;;
    *) warn 'QEMU cannot read this image (it knows no differencing disks and no read-only log replay)' ;;
    esac
    blkid -p disk.raw | sed 's/^disk.raw: /    /' || true
fi

if [[ -z $IMAGE ]]; then
    section 'A checkpoint' 'a child takes all changes from now on; the disk below stays as it is'
    before=$(sha256sum <disk.vhdx)
    show vhdx create --parent disk.vhdx checkpoint.avhdx
    name=checkpoint.avhdx
fi

section 'Use it as a disk: NBD' 'for QEMU, libvirt, nbdcopy and the kernel'
# shellcheck disable=SC2016 # the shell of --run expands it
show vhdx serve -q -r --run 'nbdinfo "$uri"' "$name"

section 'Use it as a disk: a folder' 'the disk and its partitions as files, by FUSE'
mkdir mnt
if [[ ! -r /dev/fuse || ! -w /dev/fuse ]]; then
    warn 'there is no FUSE here: vhdx mount is left out'
elif [[ -z $IMAGE ]]; then
    show vhdx mount checkpoint.avhdx mnt
    mounted=mnt
    show ls -lsh --time-style=+ mnt
    printf 'Written through the mount.\n' >note.txt
    show debugfs -w -R 'write note.txt note.txt' mnt/disk
    show e2fsck -fn mnt/disk
    show vhdx umount mnt
    mounted=
    show_some 8 vhdx map checkpoint.avhdx
    [[ $(sha256sum <disk.vhdx) == "$before" ]]
    confirm 'the file is in the checkpoint, and not a byte of disk.vhdx has changed'
else
    show vhdx mount -r "$name" mnt
    mounted=mnt
    show ls -lsh --time-style=+ mnt
    show vhdx umount mnt
    mounted=
fi

printf '\n%sDone.%s The command is %s\n' "$BOLD" "$PLAIN" "$BUILD/tools/vhdx"
if [[ -z $IMAGE ]]; then
    printf 'Try your own disk: make demo IMAGE=/path/to/disk.vhdx\n'
fi
