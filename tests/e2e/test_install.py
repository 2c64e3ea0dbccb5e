# SPDX-License-Identifier: MIT
"""What "meson install" puts where, and that programs can be built against it with pkg-config."""
import json
import os
import pathlib
import re
import shlex

import pytest

from conftest import find_tool, run_program


@pytest.fixture(scope="module")
def options(build_root):
    told = json.loads((build_root / "meson-info" / "intro-buildoptions.json").read_text(encoding="utf-8"))
    return {option["name"]: option["value"] for option in told}


@pytest.fixture(scope="module")
def version(build_root):
    return json.loads((build_root / "meson-info" / "intro-projectinfo.json").read_text(encoding="utf-8"))["version"]


@pytest.fixture(scope="module")
def staged(build_root, options, tmp_path_factory):
    """The prefix inside a DESTDIR that "meson install" has filled."""
    destdir = tmp_path_factory.mktemp("destdir")
    meson = find_tool("meson")
    if meson is None:
        pytest.skip("meson is not installed")
    run_program([meson, "install", "-C", build_root, "--no-rebuild", "--destdir", destdir], rc=0)
    return destdir / options["prefix"].lstrip("/")


@pytest.fixture(scope="module")
def environment(staged, options):
    """What makes the staged library the one that programs are run with."""
    return {"LD_LIBRARY_PATH": str(staged / options["libdir"])}


@pytest.fixture(scope="module")
def pkg_config(staged, options):
    """pkg_config("--libs") -> what pkg-config says about libvhdx as it lies in its staging folder."""
    path = find_tool("pkg-config")
    if path is None:
        pytest.skip("pkg-config is not installed (Debian package pkgconf)")

    def ask(*questions):
        return run_program([path, f"--define-variable=prefix={staged}", *questions, "libvhdx"], rc=0,
                           env={"PKG_CONFIG_PATH": str(staged / options["libdir"] / "pkgconfig")}).out.strip()
    return ask


def destdir_of(staged, options):
    """The DESTDIR: not everything goes into the prefix."""
    return pathlib.Path(str(staged).removesuffix(options["prefix"]))


def installed_files(staged):
    return sorted(str(path.relative_to(staged)) for path in staged.rglob("*") if not path.is_dir())


def test_library_header_and_command_are_installed(staged, options, version):
    files = installed_files(staged)
    libdir = options["libdir"]
    for wanted in ("bin/vhdx", "include/vhdx.h", f"{libdir}/libvhdx.so", f"{libdir}/libvhdx.so.0",
                   f"{libdir}/libvhdx.so.{version}", f"{libdir}/pkgconfig/libvhdx.pc"):
        assert wanted in files


def test_the_public_header_is_the_only_one(staged):
    assert [name for name in installed_files(staged) if name.endswith(".h")] == ["include/vhdx.h"]


def test_nothing_of_the_inner_layers_is_installed(staged):
    assert [name for name in installed_files(staged) if name.endswith(".a")] == []


def test_every_manual_page_of_the_tree_is_installed(staged, source_root, options):
    pages = sorted(path.name for path in (source_root / "man").glob("*.[1-9]"))
    assert "vhdx.1" in pages
    mandir = staged / options["mandir"]
    installed = sorted(re.sub(r"\.gz$", "", path.name) for path in mandir.rglob("*") if path.is_file())
    left_out = [] if os.environ.get("VHDX_FUSE", "1") == "1" else ["vhdx-mount.1", "vhdx-umount.1"]
    assert [page for page in pages if page not in installed] == left_out


def test_installed_command_says_the_projects_version(staged, environment, version):
    assert version in run_program([staged / "bin" / "vhdx", "--version"], env=environment, rc=0).out


def test_nbdkit_loads_the_installed_plugin(staged, options, environment, version):
    """It lies where nbdkit looks, or in the prefix if that is not the system's; with its manual page."""
    nbdkit = find_tool("nbdkit")
    if nbdkit is None:
        pytest.skip("nbdkit is not installed")
    (plugin,) = destdir_of(staged, options).rglob("nbdkit-vhdx-plugin.so")
    config = dict(line.split("=", 1) for line in run_program([nbdkit, "--dump-config"], rc=0).out.splitlines() if "=" in line)
    if options["prefix"] in ("/usr", "/usr/local") and not options["nbdkit-plugindir"]:
        assert f"/{plugin.parent.relative_to(destdir_of(staged, options))}" == config["plugindir"]
    told = run_program([nbdkit, "--dump-plugin", plugin], env=environment, rc=0).out
    assert f"version={version}\n" in told and f"vhdx_library_version={version}\n" in told
    assert list((staged / options["mandir"]).rglob("nbdkit-vhdx-plugin.1*"))


def test_the_installed_command_knows_where_the_plugin_went(staged, options, environment, tmp_path):
    plugins = list(destdir_of(staged, options).rglob("nbdkit-vhdx-plugin.so"))
    if not plugins:
        pytest.skip("the nbdkit plugin was not built")
    result = run_program([staged / "bin" / "vhdx", "serve", tmp_path / "no.vhdx"], env={**environment, "VHDX_NBDKIT": "/bin/false"})
    place = "/" + str(plugins[0].relative_to(destdir_of(staged, options)))
    assert place in result.err or os.path.exists(place), "staged, it is looked for where it would be"


def test_systemd_units_run_the_installed_command(staged, options):
    units = list(staged.rglob("vhdx-serve@*"))
    if not units:
        pytest.skip("the nbdkit plugin was not built, so there is nothing to serve with")
    assert sorted(unit.name for unit in units) == ["vhdx-serve@.service", "vhdx-serve@.socket"]
    assert f"ExecStart={options['prefix']}/bin/vhdx serve " in units[0].read_text() + units[1].read_text()


def test_pkg_config_knows_version_and_flags(pkg_config, version):
    assert pkg_config("--modversion") == version
    assert "-lvhdx" in pkg_config("--libs").split()


@pytest.fixture(scope="module", params=["gcc -x c -std=c17", "g++ -x c++ -std=c++17"], ids=["C17", "C++17"])
def program(request, pkg_config, source_root, tmp_path_factory):
    """tests/api/program.c, built as a stranger would build it."""
    compiler, *language = shlex.split(request.param)
    if find_tool(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    flags = pkg_config("--cflags", "--libs").split()
    path = tmp_path_factory.mktemp("program") / "program"
    run_program([find_tool(compiler), *language, "-pedantic-errors", "-Wall", "-Wextra", "-Werror",
                 source_root / "tests" / "api" / "program.c", "-x", "none", *flags, "-o", path], rc=0)
    return path


def test_program_links_and_runs(program, environment, version):
    assert run_program([program], env=environment, rc=0).out == f"{version}\n"


def test_program_reads_a_disk(program, environment, qemu_img, tmp_path):
    content = os.urandom(3 << 20)
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vhdx"
    raw.write_bytes(content)
    qemu_img("convert", "-f", "raw", "-O", "vhdx", raw, image)
    offset = (1 << 20) + 77
    result = run_program([program, image, offset, 100], env=environment, rc=0)
    assert result.out == f"{len(content)} {content[offset:offset + 100].hex()}\n"


def test_program_gets_an_explanation_for_a_missing_file(program, environment, tmp_path):
    result = run_program([program, tmp_path / "no-such.vhdx", 0, 1], env=environment, rc=1)
    code, name, message = result.err.strip().split(": ", 2)
    assert (code, name) == ("2", "No such file or directory")
    assert message, "vhdx_error_message() has nothing to say"
