#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Random tests and fuzzers for as long as wanted, with sanitizers.
#
# VHDX_SEEDS: how many seeds each random test tries (1000), or which ("4000-4999"); VHDX_FUZZ_SECONDS: how long each
# fuzzer runs (600); VHDX_GUEST_SEEDS: how often each test that kills a virtual machine does so (50).  What the fuzzers
# learn stays in BUILD-fuzz/ and is where the next run begins.
set -euo pipefail
# shellcheck source=scripts/test-runs.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/test-runs.sh"
trap 'exit 130' INT

"$SOURCE_ROOT/scripts/install-deps.sh" check
export VHDX_GUEST_KERNEL=${VHDX_GUEST_KERNEL:-$BUILD-guest-kernel}
"$SOURCE_ROOT/scripts/fetch-guest-kernel.sh" || warn 'no kernel for guests: the tests that boot one will skip'
export VHDX_SEEDS=${VHDX_SEEDS:-1000} VHDX_FUZZ_SECONDS=${VHDX_FUZZ_SECONDS:-600}

if build long "$BUILD-asan" clang "${sanitize_memory[@]}"; then
    run_tests long "$BUILD-asan" --suite long --no-suite guest --timeout-multiplier 0
fi
if build guests "$BUILD" gcc --buildtype=debugoptimized; then # nbdkit loads no plugin with sanitizers
    VHDX_SEEDS=${VHDX_GUEST_SEEDS:-50} run_tests guests "$BUILD" --suite guest --timeout-multiplier 0
fi
summarise
