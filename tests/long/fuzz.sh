#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# One fuzzer, the one named, for VHDX_FUZZ_SECONDS (60) seconds, as TAP. VHDX_FUZZ_SEED: begin with this seed (0: any).
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
target=$1
seconds=${VHDX_FUZZ_SECONDS:-60}

if ! command -v clang >/dev/null; then
    echo '1..0 # SKIP clang is not installed'
    exit 0
fi

log=$(mktemp)
trap 'rm -f -- "$log"' EXIT
echo '1..1'
if "$root/fuzz/run.sh" "$target" "$seconds" "${VHDX_FUZZ_SEED:-0}" >"$log" 2>&1; then
    echo "ok 1 - $target, $seconds s"
else
    echo "not ok 1 - $target, $seconds s"
    tail -n 80 -- "$log" >&2
fi
sed 's/^/# /' "$log"
