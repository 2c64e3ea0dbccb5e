# SPDX-License-Identifier: MIT
"""include/vhdx.h and the library's symbols: the header stands alone, and declares what the library exports."""
import re
import subprocess

import pytest

from conftest import find_tool, run_program

STRICT = ["-pedantic-errors", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wundef", "-Werror", "-fsyntax-only"]
LANGUAGES = {
    "gcc": ["-x", "c", "-std=c17", "-Wstrict-prototypes"],
    "clang": ["-x", "c", "-std=c17", "-Wstrict-prototypes"],
    "g++": ["-x", "c++", "-std=c++17"],
    "clang++": ["-x", "c++", "-std=c++17"],
}
# Everything a program needs besides the library itself (design: libc, ISA-L, threads).
ALLOWED_LIBRARIES = re.compile(r"(libc|libpthread|libisal|ld-linux[-\w]*)\.so\.\d+$")


@pytest.fixture(scope="module")
def declared(source_root):
    header = (source_root / "include" / "vhdx.h").read_text(encoding="utf-8")
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    header = re.sub(r"^[ \t]*#.*$", "", header, flags=re.MULTILINE)
    names = re.findall(r"\bVHDX_API\b[^;(]*?\b(\w+)\s*\(", header)
    assert names, "no VHDX_API declarations found: the test cannot read the header any more"
    assert len(names) == len(set(names)), "declared twice"
    assert len(names) == len(re.findall(r"\bVHDX_API\b", header)), "a VHDX_API that is no function"
    return set(names)


@pytest.fixture(scope="module")
def mapped(source_root):
    text = (source_root / "lib" / "libvhdx.map").read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/|#[^\n]*", "", text, flags=re.DOTALL)
    names = []
    for section in re.findall(r"global:(.*?)(?:local:|\})", text, re.DOTALL):
        names += re.findall(r"[\w*]+", section)
    assert names, "no global symbols found: the test cannot read the map any more"
    assert not [name for name in names if "*" in name], "wildcards would export what nobody declared"
    assert re.search(r"local:\s*\*\s*;", text), "without local: * everything is exported"
    return set(names)


@pytest.fixture(scope="module")
def exported(library):
    nm = find_tool("nm")
    if nm is None:
        pytest.skip("nm is not installed (Debian package binutils)")
    listing = run_program([nm, "-D", "--defined-only", library], rc=0).out
    symbols = {}
    for line in listing.splitlines():
        kind, name = line.split()[-2:]
        if kind != "A":  # the version's own name
            name, _, version = name.partition("@@")
            symbols[name] = version
    return symbols


def compiler_or_skip(compiler):
    if find_tool(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    return find_tool(compiler)


@pytest.mark.parametrize("compiler", LANGUAGES)
def test_header_compiles_alone_and_twice(compiler, source_root, tmp_path):
    source = tmp_path / "includes-only-the-header"
    source.write_text('#include "vhdx.h"\n#include "vhdx.h"\nint main(void);\nint main(void)\n{\n    return 0;\n}\n')
    run_program([compiler_or_skip(compiler), *LANGUAGES[compiler], *STRICT, f"-I{source_root / 'include'}", source], rc=0)


@pytest.mark.parametrize("compiler", ["gcc", "g++"])
def test_option_initialisers_set_their_own_size(compiler, source_root, tmp_path):
    header = (source_root / "include" / "vhdx.h").read_text(encoding="utf-8")
    initialisers = re.findall(r"#define\s+(VHDX_\w+)_INIT\b", header)
    assert initialisers
    lines = ['#include "vhdx.h"', "#include <assert.h>", "int main(void)", "{"]
    for macro in initialisers:
        lines += [f"    struct {macro.lower()} {macro.lower()}_ = {macro}_INIT;",
                  f"    assert({macro.lower()}_.struct_bytes == sizeof({macro.lower()}_));"]
    source = tmp_path / "initialisers"
    source.write_text("\n".join([*lines, "    return 0;", "}"]) + "\n")
    program = tmp_path / "program"
    flags = [flag for flag in STRICT if flag != "-fsyntax-only"]
    run_program([compiler_or_skip(compiler), *LANGUAGES[compiler], *flags, f"-I{source_root / 'include'}", source,
                 "-o", program], rc=0)
    run_program([program], rc=0)


def test_map_lists_what_the_header_declares(declared, mapped):
    assert declared == mapped


def test_library_exports_what_the_header_declares(declared, exported):
    assert declared == set(exported)


def test_every_symbol_has_a_version(exported):
    assert [name for name, version in exported.items() if not re.fullmatch(r"VHDX_\d+\.\d+", version)] == []


def test_library_needs_only_libc_threads_and_isal(library):
    readelf = find_tool("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed (Debian package binutils)")
    dynamic = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert needed
    assert [name for name in needed if not ALLOWED_LIBRARIES.match(name)] == []


def test_layers_leave_no_symbols_that_can_be_preempted(library):
    """Calls inside the library reach the library's own functions, whatever the program defines."""
    readelf = find_tool("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed (Debian package binutils)")
    relocations = run_program([readelf, "--relocs", "--wide", library], rc=0).out
    undefined_own = re.findall(r"R_\w+_JUMP_SLOT.*\b(vhdx_\w+)", relocations)
    assert undefined_own == []
