# SPDX-License-Identifier: MIT
"""The source tree's own rules: layers, licence lines, no traces of one machine, no test or source left out of the
build, shell scripts that shellcheck accepts."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from conftest import SOURCE_ROOT, find_tool, run_program

# Files without a place for a comment, or whose licence stands beside them.
WITHOUT_LICENCE_LINE = (".md", ".json", ".txt", ".gitignore", "LICENSE")
OUTSIDE_THE_TREE = re.compile(r"/\.git/|/build[^/]*/|/__pycache__/|/\.pytest_cache/")


def tree_files():
    """Every file that git knows or would add; where git cannot say, every file outside the build folders."""
    git = find_tool("git")
    if git is not None:
        listing = subprocess.run([git, "-C", SOURCE_ROOT, "ls-files", "-z", "--cached", "--others",
                                  "--exclude-standard"], capture_output=True, check=False)
        if listing.returncode == 0 and listing.stdout:
            names = listing.stdout.decode().rstrip("\0").split("\0")
            return [path for path in sorted(SOURCE_ROOT / name for name in set(names)) if path.is_file()]
    return sorted(path for path in SOURCE_ROOT.rglob("*")
                  if path.is_file() and not OUTSIDE_THE_TREE.search(f"/{path.relative_to(SOURCE_ROOT)}"))


def shown(path):
    return str(path.relative_to(SOURCE_ROOT))


@pytest.fixture(scope="module")
def texts():
    """Path -> text of every file of the tree that is text."""
    found = {}
    for path in tree_files():
        content = path.read_bytes()
        if b"\0" not in content:
            try:
                found[path] = content.decode("utf-8")
            except UnicodeDecodeError:
                if not re.match(r"fuzz/corpus/|tests/images/", shown(path)):
                    pytest.fail(f"{shown(path)} is neither UTF-8 nor binary")
    assert SOURCE_ROOT / "Makefile" in found, "the tree was not found"
    return found


# ---- layers

def check_layers(root):
    return subprocess.run([sys.executable, SOURCE_ROOT / "tests" / "check-layers.py", root],
                          capture_output=True, text=True, check=False)


def test_layers_include_only_what_their_readme_allows():
    result = check_layers(SOURCE_ROOT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("file, line, complaint", [
    ("lib/format/header.c", '#include "storage/storage.h"', "may not include storage/"),
    ("lib/base/le.h", '#  include "format/bat.h"', "may not include format/"),
    ("lib/disk/chain.c", '#include "ops/copy.h"', "may not include ops/"),
    ("lib/format/bat.c", "#include <isa-l.h>", "ISA-L"),
    ("lib/image/image.c", '#include "image.h"', "layer/file.h"),
    ("lib/image/image.c", '#include "../disk/disk.h"', "layer/file.h"),
    ("lib/disk/read.c", "#include <image/image.h>", "in quotes"),
    ("tools/main.c", '#include "base/le.h"', "may not include base/"),
    ("plugins/nbdkit/plugin.c", '#include "image/image.h"', "may not include image/"),
])
def test_layer_check_finds_a_wrong_include(file, line, complaint, tmp_path):
    shutil.copytree(SOURCE_ROOT / "lib", tmp_path / "lib")
    target = tmp_path / file
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    result = check_layers(tmp_path)
    assert result.returncode == 1
    assert file in result.stdout and complaint in result.stdout


def test_layer_check_finds_rules_that_go_in_a_ring(tmp_path):
    shutil.copytree(SOURCE_ROOT / "lib", tmp_path / "lib")
    (tmp_path / "lib/base/README.md").write_text("May include: every layer.\n")
    result = check_layers(tmp_path)
    assert result.returncode == 1 and "in a ring" in result.stdout


def test_layer_check_finds_a_layer_without_a_rule(tmp_path):
    shutil.copytree(SOURCE_ROOT / "lib", tmp_path / "lib")
    (tmp_path / "lib/extra").mkdir()
    result = check_layers(tmp_path)
    assert result.returncode == 1 and "lib/extra/README.md" in result.stdout


# ---- texts

def test_every_source_file_names_its_licence(texts):
    missing = [shown(path) for path, text in texts.items()
               if not path.name.endswith(WITHOUT_LICENCE_LINE)
               and not re.match(r"(fuzz/corpus|tests/images|tests/golden)/", shown(path))
               and "SPDX-License-Identifier: MIT" not in "\n".join(text.splitlines()[:3])]
    assert missing == []


def test_c_files_name_their_licence_first(texts):
    line = "/* SPDX-License-Identifier: MIT */\n"
    assert [shown(path) for path, text in texts.items()
            if path.suffix in (".c", ".h", ".cc") and not text.startswith(line)] == []


# Where somebody's machine shows through. Put together from pieces, so that this file does not match itself.
SHARED_FOLDER = ".." + "/shared"
MACHINE_PATHS = re.compile("|".join([
    r"(?<![\w.~-])/" + r"work/",
    r"(?<![\w.~-])/" + r"root/",
    r"(?<![\w.~-])/" + r"home/\w",
    r"/" + r"tmp/(build-|brief)",
    re.escape(SHARED_FOLDER),
]))


def machine_paths(path, text):
    for number, line in enumerate(text.splitlines(), 1):
        for match in MACHINE_PATHS.finditer(line):
            # The one place that may look beside the checkout for images to test with.
            if match.group() == SHARED_FOLDER and path == ".ci/run":
                continue
            yield f"{path}:{number}: {line.strip()}"
        if len(SOURCE_ROOT.parts) > 2 and str(SOURCE_ROOT) in line:
            yield f"{path}:{number}: {line.strip()}"


def test_no_file_names_a_place_on_somebodys_machine(texts):
    assert [found for path, text in texts.items() for found in machine_paths(shown(path), text)] == []


@pytest.mark.parametrize("path, text, nr_found", [
    ("x.c", "/" + "work/x", 1),
    ("x.c", "see /" + "root/.cache", 1),
    ("x.c", "a\n/" + "home/me/disk.vhdx", 1),
    ("x.c", SHARED_FOLDER + "/format.md", 1),
    ("README.md", SHARED_FOLDER + "/real-images", 1),
    (".ci/run", SHARED_FOLDER + "/real-images", 0),
    ("x.c", "lib/" + "work/x and homework/y and ./" + "root/z", 0),
])
def test_machine_paths_are_found(path, text, nr_found):
    assert len(list(machine_paths(path, text))) == nr_found


def test_lines_end_cleanly(texts):
    """No carriage returns, no blanks at line ends, a newline at the end of the file."""
    unclean = [f"{shown(path)}:{number}" for path, text in texts.items()
               if path.suffix in (".c", ".h", ".py", ".sh", ".build") or path.name == "Makefile"
               for number, line in enumerate(text.split("\n"), 1) if line != line.rstrip()]
    unclean += [shown(path) for path, text in texts.items()
                if path.suffix in (".c", ".h", ".py", ".sh", ".build") and not text.endswith("\n")]
    assert unclean == []


# ---- scripts

def shell_scripts(texts):
    return [path for path, text in texts.items()
            if path.suffix == ".sh" or re.match(r"#!.*\b(ba|da)?sh\b", text)]


def test_shellcheck_accepts_every_shell_script(texts):
    shellcheck = find_tool("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    scripts = shell_scripts(texts)
    assert scripts
    run_program([shellcheck, "--external-sources", *scripts], rc=0, cwd=SOURCE_ROOT)


def test_scripts_that_name_an_interpreter_are_executable_and_strict(texts):
    for path, text in texts.items():
        if text.startswith("#!"):
            assert os.access(path, os.X_OK), f"{shown(path)} has #! but may not be executed"
    for path in shell_scripts(texts):
        if texts[path].startswith("#!"):
            assert "\nset -euo pipefail\n" in texts[path], f"{shown(path)} goes on after errors"


# ---- nothing left out of the build

def introspect(build_root, what):
    return json.loads((build_root / "meson-info" / f"intro-{what}.json").read_text(encoding="utf-8"))


def test_every_e2e_file_is_run_by_meson(build_root):
    run = {pathlib.Path(arg).name for test in introspect(build_root, "tests") for arg in test["cmd"]}
    files = {path.name for path in (SOURCE_ROOT / "tests" / "e2e").glob("test_*.py")}
    assert files - run == set(), "run: meson setup --reconfigure"


def test_every_c_file_is_compiled_by_some_target(build_root, texts):
    compiled = {pathlib.Path(source) for target in introspect(build_root, "targets")
                for group in target["target_sources"] for source in group["sources"]}
    folders = ("lib", "tools", "plugins", "tests/unit", "tests/support")
    files = {path for path in texts if path.suffix == ".c" and shown(path).startswith(folders)}
    assert files
    assert sorted(shown(path) for path in files - compiled) == []


def test_every_test_executable_is_run_by_meson(build_root):
    run = {pathlib.Path(arg).name for test in introspect(build_root, "tests") for arg in test["cmd"]}
    built = {pathlib.Path(target["filename"][0]).name for target in introspect(build_root, "targets")
             if target["type"] == "executable"
             and shown(pathlib.Path(target["defined_in"])).startswith("tests/unit")}
    assert built - run == set()
