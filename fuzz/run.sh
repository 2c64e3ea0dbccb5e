#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Fuzz for a while, with clang, address and undefined behaviour sanitizers.
#
# Usage: run.sh TARGET SECONDS [SEED]; "all" for TARGET runs each in turn for so long.  The exit status is not 0 if
# something was found; the last lines say where the input lies.  What a run learns stays in the build folder, BUILD-fuzz
# (build-fuzz/), and the next run begins with it.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../scripts/common.sh"

TARGETS=(fuzz-format fuzz-log-replay fuzz-open-read fuzz-write)

(($# == 2 || $# == 3)) || die "usage: run.sh TARGET SECONDS [SEED] (targets: ${TARGETS[*]}, all)"
[[ $2 =~ ^[0-9]+$ ]] || die "SECONDS must be a number, not \"$2\""
target=$1 seconds=$2 seed=${3:-0}
folder=$BUILD-fuzz
if [[ $target != all ]]; then
    [[ " ${TARGETS[*]} " == *" $target "* ]] || die "no such target: $target (${TARGETS[*]}, all)"
    TARGETS=("$target")
fi
command -v clang >/dev/null || die "fuzzing needs clang"

# Several may be started at a time, and each builds first.
mkdir -p -- "$folder"
exec {lock}>"$folder/lock"
flock "$lock"
say "Building the fuzzers in $folder"
CC=clang configure "$folder" -Dfuzzers=true -Dtools=disabled -Dman=disabled -Db_sanitize=address,undefined -Db_lundef=false
show_if_failing ninja -C "$folder" "${TARGETS[@]/#/fuzz/}"
exec {lock}>&-

# fuzz_one TARGET
fuzz_one() {
    local name=$1 learned=$folder/fuzz-corpus/$1 finds=$folder/fuzz-finds/$1 log=$folder/fuzz-logs/$1.log find
    mkdir -p -- "$learned" "$finds" "${log%/*}"
    say "Fuzzing: $name, $seconds s"
    # The limits are promises too: no input may cost more memory, or time (H2).  -timeout is by the wall clock and for
    # what never ends; the targets themselves allow 10 s of processor time (require.h).
    if ASAN_OPTIONS=quarantine_size_mb=16 UBSAN_OPTIONS=print_stacktrace=1 "$folder/fuzz/$name" \
        -max_total_time="$seconds" -seed="$seed" -max_len=2048 -timeout=120 -malloc_limit_mb=256 -rss_limit_mb=1024 \
        -print_final_stats=1 -artifact_prefix="$finds/" "$learned" "$SOURCE_ROOT/fuzz/corpus/$name" >"$log" 2>&1; then
        grep -E 'DONE|number_of_executed_units' -- "$log" || true
        return
    fi
    grep -vE '^#[0-9]+[[:space:]]' -- "$log" | grep -vE '^INFO:' | head -n 60
    find=$(sed -n 's/.*Test unit written to //p' -- "$log" | tail -n 1)
    printf '%sFOUND:%s %s %s\n' "$RED" "$PLAIN" "$name" "${find:-(no input was written, see the log)}"
    printf 'again:    %s %s\n' "$folder/fuzz/$name" "${find:-INPUT}"
    printf 'minimise: %s -minimize_crash=1 -runs=20000 %s\n' "$folder/fuzz/$name" "${find:-INPUT}"
    printf 'log:      %s\n' "$log"
    return 1
}

status=0
for name in "${TARGETS[@]}"; do
    fuzz_one "$name" || status=1
done
exit "$status"
