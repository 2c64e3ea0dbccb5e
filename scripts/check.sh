#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Run every test: the plain build, a clang build, address and undefined behaviour sanitizers, thread sanitizer,
# valgrind, and a little fuzzing.  Whatever breaks, the rest still runs; the last line is "N passed, N failed, N skipped".
#
# BUILD (build/) names the plain build folder, the others stand beside it.  VHDX_REAL_IMAGES: a folder with images made
# by Windows.  VHDX_FUZZ_SECONDS: how long each fuzzer runs (10), VHDX_FUZZ_SEED: with which seed (1; 0: any).
# RUNS: only these, as "gcc asan".
set -euo pipefail
# shellcheck source=scripts/test-runs.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/test-runs.sh"
trap 'exit 130' INT

"$SOURCE_ROOT/scripts/install-deps.sh" check
export VHDX_GUEST_KERNEL=${VHDX_GUEST_KERNEL:-$BUILD-guest-kernel}
"$SOURCE_ROOT/scripts/fetch-guest-kernel.sh" || warn 'no kernel for guests: the tests that boot one will skip'
export VHDX_FUZZ_SECONDS=${VHDX_FUZZ_SECONDS:-10}
export VHDX_FUZZ_SEED=${VHDX_FUZZ_SEED:-1} # what fails is what a change has broken; check-long.sh looks for more

RUNS=${RUNS:-gcc clang asan tsan valgrind fuzz}
plain_is_built=
plain_is_there() {
    [[ -n $plain_is_built ]] || build "$1" "$BUILD" gcc --buildtype=debugoptimized && plain_is_built=yes
}

for run in $RUNS; do
    case $run in
    gcc) # everything, as users build it
        if plain_is_there gcc; then
            run_tests gcc "$BUILD"
        fi
        ;;
    clang) # another compiler's warnings, and what only optimising finds
        if build clang "$BUILD-clang" clang --buildtype=release; then
            run_tests clang "$BUILD-clang" --suite unit
        fi
        ;;
    asan) # memory errors, leaks, undefined behaviour
        if build asan "$BUILD-asan" clang "${sanitize_memory[@]}"; then
            run_tests asan "$BUILD-asan" --timeout-multiplier 3 --no-suite api --no-suite tree --no-suite long --no-suite slow
        fi
        ;;
    tsan) # data races
        if build tsan "$BUILD-tsan" clang "${sanitize_threads[@]}"; then
            run_tests tsan "$BUILD-tsan" --timeout-multiplier 3 --suite threads
        fi
        ;;
    valgrind) # uninitialised memory, in the plain build
        if plain_is_there valgrind; then
            run_tests valgrind "$BUILD" --setup valgrind --suite unit
        fi
        ;;
    fuzz) # the fuzzers for a moment; check-long.sh gives them time
        if plain_is_there fuzz; then
            run_tests fuzz "$BUILD" --suite fuzz
        fi
        ;;
    *) die "no such run: $run (gcc, clang, asan, tsan, valgrind, fuzz)" ;;
    esac
done

summarise
