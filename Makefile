# SPDX-License-Identifier: MIT
# The commands that people type; scripts/ and Meson do the work. "make help" lists them.
BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=
export BUILD

.DEFAULT_GOAL := build
.PHONY: help build demo check check-long bench install clean

help:
	@echo 'make demo         build, then open a real VHDX disk (IMAGE=file.vhdx: yours)'
	@echo 'make check        build and run every test, with sanitizers and valgrind'
	@echo 'make check-long   fuzz, crash and model runs: SECONDS=600 for each fuzzer, SEEDS=1000 for each random test'
	@echo 'make bench        measure'
	@echo 'make build        build the library and the vhdx command in $(BUILD)/'
	@echo 'make install      install under PREFIX ($(PREFIX)), staged in DESTDIR'
	@echo 'make clean        remove everything that was built'

build:
	@scripts/build.sh --prefix=$(PREFIX)

demo:
	@scripts/demo.sh

check:
	@scripts/check.sh

check-long:
	@VHDX_SEEDS='$(SEEDS)' VHDX_FUZZ_SECONDS='$(SECONDS)' scripts/check-long.sh

bench:
	@scripts/bench.sh

install: build
	@meson install -C $(BUILD) --no-rebuild $(if $(DESTDIR),--destdir '$(abspath $(DESTDIR))')
	@$(if $(DESTDIR),:,test "$$(id -u)" != 0 || ldconfig) # so that programs find the library at once

clean:
	@rm -rf $(foreach variant,-asan -bench -clang -fuzz -guest-kernel -tsan,"$(BUILD)$(variant)") "$(BUILD)"
