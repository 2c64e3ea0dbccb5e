#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Build without debugging aids and run what bench/ registers as benchmarks.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

"$SOURCE_ROOT/scripts/install-deps.sh" bench
say "Building in $BUILD-bench"
CC=${CC:-gcc} configure "$BUILD-bench" --buildtype=release -Dtools=enabled
ninja -C "$BUILD-bench" --quiet
meson test -C "$BUILD-bench" --no-rebuild --benchmark --verbose
