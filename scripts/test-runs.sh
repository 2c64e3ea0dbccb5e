# SPDX-License-Identifier: MIT
# Sourced by check.sh and check-long.sh: building and testing one variant after the other, whatever breaks on the way.
# shellcheck shell=bash
# shellcheck source=scripts/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

strict=(-Dwerror=true -Dtests=enabled -Dtools=enabled)
sanitize_memory=('-Db_sanitize=address,undefined' -Db_lundef=false)
sanitize_threads=(-Db_sanitize=thread -Db_lundef=false)
export strict sanitize_memory sanitize_threads
results=() # for summary.py

# build NAME FOLDER COMPILER MESON-OPTIONS...
build() {
    local name=$1 folder=$2 compiler=$3
    shift 3
    say "Building: $name"
    if CC=$compiler configure "$folder" "${strict[@]}" "$@" && show_if_failing ninja -C "$folder" --quiet; then
        return
    fi
    results+=(--broken "$name: the build failed")
    return 1
}

# run_tests NAME FOLDER MESON-TEST-OPTIONS...
run_tests() {
    local name=$1 folder=$2 setup='' again
    shift 2
    if [[ " $* " == *" --setup $name "* ]]; then # Meson then adds the setup's name
        setup=-$name
    fi
    local log=$folder/meson-logs/$name$setup log_again=$folder/meson-logs/$name-again$setup
    say "Testing: $name"
    rm -f -- {"$log","$log_again"}.{junit.xml,json,txt} # results of an earlier time
    # One more than there are processors: some tests wait for guests, disks and servers most of the time.
    meson test -C "$folder" --no-rebuild --print-errorlogs --num-processes $(($(nproc) + 1)) --logbase "$name" "$@" || true
    results+=("$name=$log")
    mapfile -t again < <("$SOURCE_ROOT/scripts/summary.py" --failed-in timing "$log")
    if ((${#again[@]} > 0)); then
        say "Testing again, alone: $name ${again[*]}"
        meson test -C "$folder" --no-rebuild --print-errorlogs --num-processes 1 --logbase "$name-again" "$@" "${again[@]}" || true
        results+=(--again "$name=$log_again")
    fi
}

# Prints everything that was skipped or failed and, last, the counts; its status is that of all the tests.
summarise() {
    "$SOURCE_ROOT/scripts/summary.py" "${results[@]}"
}
