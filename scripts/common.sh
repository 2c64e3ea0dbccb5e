# SPDX-License-Identifier: MIT
# Sourced by the other scripts: where things are, and how they speak.
# shellcheck shell=bash

# Debian's own programs first: a python3 or meson from elsewhere lacks what the packages bring.
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
export PATH

SOURCE_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
BUILD=${BUILD:-$SOURCE_ROOT/build}
case $BUILD in
/*) ;;
*) BUILD=$PWD/$BUILD ;;
esac
export SOURCE_ROOT BUILD

if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
    BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' CYAN=$'\e[36m' PLAIN=$'\e[0m'
else
    BOLD='' DIM='' RED='' GREEN='' CYAN='' PLAIN=''
fi
export BOLD DIM RED GREEN CYAN PLAIN

say() {
    printf '%s==>%s %s%s%s\n' "$CYAN" "$PLAIN" "$BOLD" "$*" "$PLAIN"
}

warn() {
    printf '%swarning:%s %s\n' "$RED" "$PLAIN" "$*" >&2
}

die() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 1
}

# show_if_failing COMMAND...: run quietly; if it fails, show all it said and return its status.
show_if_failing() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    if ((status != 0)); then
        cat -- "$log"
        printf '%sfailed (status %d):%s %s\n' "$RED" "$status" "$PLAIN" "$*"
    fi
    rm -f -- "$log"
    return "$status"
}

# patiently COMMAND...: run what needs the network; if it fails try again, three times, after longer and longer pauses.
patiently() {
    local pause
    for pause in 5 20 60; do
        if "$@"; then
            return
        fi
        warn "trying again in $pause s: $*"
        sleep "$pause"
    done
    "$@"
}

# configure FOLDER MESON-OPTIONS...: set up a build folder, or bring an existing one up to date.
configure() {
    local folder=$1
    shift
    if [[ -f $folder/meson-private/coredata.dat ]]; then
        if show_if_failing meson setup --reconfigure "$@" -- "$folder" "$SOURCE_ROOT"; then
            return
        fi
        say "Setting up $folder afresh"
        show_if_failing meson setup --wipe "$@" -- "$folder" "$SOURCE_ROOT"
    else
        show_if_failing meson setup "$@" -- "$folder" "$SOURCE_ROOT"
    fi
}
