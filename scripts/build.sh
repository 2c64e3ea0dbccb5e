#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Configure and build. Usage: build.sh [MESON-OPTIONS...]; BUILD names the folder (build/), CC the compiler.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

"$SOURCE_ROOT/scripts/install-deps.sh" build
say "Building in $BUILD"
configure "$BUILD" "$@"
if [[ -t 1 ]]; then
    ninja -C "$BUILD" # a line that counts up
else
    show_if_failing ninja -C "$BUILD" --quiet
fi
