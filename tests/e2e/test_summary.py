# SPDX-License-Identifier: MIT
"""The test runner's own bookkeeping: what pytest_tap_stream reports, Meson understands and scripts/summary.py adds
up.  A small project is run through all of it, with a program for each way in which a test can end."""
import os
import pathlib
import subprocess
import sys

import pytest

from conftest import SOURCE_ROOT, find_tool, run_program

PYTEST_FILE = '''
import os
import pytest

def test_passes():
    print("not ok 99 - printed by a test")
    os.system("echo not ok 98 - printed by a child")

def test_fails():
    assert 1 + 1 == 3, "sums differ # here"

def test_fails_with_control_characters():
    print("bell \\a")
    assert "escape \\x1b[1m" == "null \\0"

def test_skips():
    pytest.skip("no such\\nmachine")

@pytest.mark.parametrize("text", ["a#b", "c d"])
def test_names(text):
    pass

@pytest.fixture
def late():
    yield
    raise OSError("teardown broke")

def test_teardown(late):
    pass
'''
CMOCKA_FILE = '''
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "skip.h"

static void passes(void **state) { (void)state; print_message("not TAP\\n"); }
static void skips(void **state) { (void)state; skip_because("no such machine"); }
static void skips_silently(void **state) { (void)state; skip(); }

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(passes), cmocka_unit_test(skips),
                                        cmocka_unit_test(skips_silently) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
'''
PROGRAMS = {
    "good": "echo 1..2; echo ok 1 - a; echo ok 2 - b",
    "bad": "echo 1..2; echo ok 1 - a; echo not ok 2 - b",
    "absent": "echo '1..0 # SKIP no tape drive'",
    "silent": "exit 0",
    "crash": "echo 1..2; echo ok 1 - a; kill -SEGV $$",
    "leak": "echo 1..1; echo ok 1 - a; exit 99",
    "bells": r"echo 1..2; echo ok 1 - a; printf 'not ok 2 - b\n# \033[1m bell \a\n'",
    "slow": "echo 1..2; echo ok 1 - a; exec sleep 300",
}
# Each fails when it is run for the first time.
TIMING_PROGRAMS = {
    "late": "echo 1..2; echo ok 1 - a; test -e $0.ran && echo ok 2 - b || { echo not ok 2 - b; echo '# too late'; }; touch $0.ran",
    "broken": "echo 1..1; echo not ok 1 - c; test -e $0.ran && echo '# for good' || echo '# at first'; touch $0.ran",
    "racy": "echo 1..1; test -e $0.ran && echo ok 1 - d || { echo not ok 1 - d; echo '# WARNING: ThreadSanitizer: data race'; }; touch $0.ran",
    "fatal": "echo 1..1; echo ok 1 - e; test -e $0.ran || { touch $0.ran; kill -SEGV $$; }",
    "absent_later": "test -e $0.ran && echo '1..0 # SKIP no tape drive' || { touch $0.ran; echo 1..1; echo not ok 1 - f; }",
    "fewer_later": "test -e $0.ran && { echo 1..1; echo ok 1 - g; } || { touch $0.ran; echo 1..2; echo ok 1 - g; echo not ok 2 - h; }",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A built project with those tests, and how to run them."""
    meson = find_tool("meson")
    if meson is None:
        pytest.skip("meson is not installed")
    source = tmp_path_factory.mktemp("project")
    (source / "test_ends.py").write_text(PYTEST_FILE)
    (source / "test_whole.py").write_text('import pytest\npytest.skip("whole file", allow_module_level=True)\n')
    (source / "test_import.py").write_text("import no_such_module\n")
    lines = ["project('ends')", "sh = find_program('sh')", f"python = find_program('{sys.executable}')"]
    for name, script in PROGRAMS.items():
        (source / f"{name}.sh").write_text(script + "\n")
        lines.append(f"test('{name}', sh, args: '{source / name}.sh', protocol: 'tap', suite: 'sh', timeout: {10 if name == 'slow' else 300})")
    for name, script in TIMING_PROGRAMS.items():
        (source / f"{name}.sh").write_text(script + "\n")
        lines.append(f"test('{name}', sh, args: '{source / name}.sh', protocol: 'tap', suite: ['sh', 'timing'], timeout: 60)")
    for name in ("test_ends", "test_whole", "test_import"):
        lines.append(f"test('{name}', python, args: ['-m', 'pytest', '-p', 'pytest_tap_stream', '-p', "
                     f"'no:cacheprovider', '{source / name}.py'], protocol: 'tap', suite: 'py', timeout: 300)")
    (source / "meson.build").write_text("\n".join(lines) + "\n")
    build = source / "build"
    # This test runs inside a "meson test" itself: the inner one must not see the outer one's variables.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MESON", "MAKE", "VHDX"))}
    environment["PYTHONPATH"] = str(SOURCE_ROOT / "tests" / "support")
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    subprocess.run([meson, "setup", build, source], check=True, capture_output=True, env=environment)

    def run(logbase, *tests):
        subprocess.run([meson, "test", "-C", build, "--logbase", logbase, *tests], check=False, capture_output=True,
                       env=environment)
        return build / "meson-logs" / logbase

    def check(*tests):
        for mark in source.glob("*.ran"):
            mark.unlink()
        script = '. "$0/scripts/test-runs.sh"; cd "$1"; run_tests plain "$@"; summarise'
        done = subprocess.run(["bash", "-c", script, SOURCE_ROOT, build, *tests], check=False, capture_output=True, text=True,
                              env=environment)
        print(done.stdout, done.stderr)
        return done.returncode, done.stdout.splitlines()
    run.check = check
    return run


def summary(*arguments):
    done = subprocess.run([SOURCE_ROOT / "scripts" / "summary.py", *arguments], capture_output=True, text=True,
                          check=False)
    print(done.stdout, done.stderr)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_all_passed(project):
    status, lines = summary(f"one={project('good', 'good')}")
    assert status == 0
    assert lines[-1] == "2 passed, 0 failed, 0 skipped"


def test_runs_are_added_up(project):
    log = project("good-again", "good")
    status, lines = summary(f"one={log}", f"two={log}")
    assert (status, lines[-1]) == (0, "4 passed, 0 failed, 0 skipped")


def test_skips_are_listed_with_their_reason(project):
    status, lines = summary(f"run={project('skips', 'absent', 'test_whole')}")
    assert (status, lines[-1]) == (0, "0 passed, 0 failed, 2 skipped")
    assert "  [run] absent: no tape drive" in lines
    assert "  [run] test_whole: test_whole.py: whole file" in lines


@pytest.mark.parametrize("program, counts, why", [
    ("bad", "1 passed, 1 failed, 0 skipped", "bad: b"),
    ("bells", "1 passed, 1 failed, 0 skipped", "bells: b: ?[1m bell"),
    ("silent", "0 passed, 1 failed, 0 skipped", "silent: reported no test at all"),
    ("crash", "1 passed, 1 failed, 0 skipped", "crash: error, exit status -11"),
    ("leak", "1 passed, 1 failed, 0 skipped", "leak: error, exit status 99"),
    ("slow", "1 passed, 1 failed, 0 skipped", "slow: timeout"),
    ("test_import", "0 passed, 1 failed, 0 skipped", "test_import: test_import.py"),
])
def test_every_bad_end_counts_as_a_failure(project, program, counts, why):
    status, lines = summary(f"run={project(program, program)}")
    assert (status, lines[-1]) == (1, counts)
    assert any(line.startswith(f"  [run] {why}") for line in lines)


def test_pytest_ends_are_told_apart(project):
    log = project("ends", "test_ends")
    status, lines = summary(f"run={log}")
    assert (status, lines[-1]) == (1, "3 passed, 3 failed, 1 skipped")
    assert "  [run] test_ends: test_fails: AssertionError: sums differ # here; assert (1 + 1) == 3" in lines
    assert "  [run] test_ends: test_teardown: OSError: teardown broke" in lines
    assert "  [run] test_ends: test_skips: no such machine" in lines
    details = pathlib.Path(f"{log}.txt").read_text(encoding="utf-8")
    assert "sums differ # here" in details and "teardown broke" in details
    assert "printed by a" not in details, "what a passing test prints is noise"


def test_skipped_cmocka_tests_are_no_failures(tool, tmp_path):
    (tmp_path / "program.c").write_text(CMOCKA_FILE)
    support = SOURCE_ROOT / "tests" / "support"
    run_program([tool("gcc"), "-Wall", "-Werror", f"-I{support}", tmp_path / "program.c", support / "skip.c",
                 "-lcmocka", "-o", tmp_path / "program"], rc=0)
    output = run_program([tmp_path / "program"], rc=0, env={"CMOCKA_MESSAGE_OUTPUT": "TAP"}).out
    assert output.splitlines() == ["1..3", "# not TAP", "ok 1 - passes", "ok 2 - skips # SKIP no such machine",
                                   "ok 3 - skips_silently # SKIP no reason given", "# ok - tests"]


def test_a_run_that_left_no_results_counts_as_a_failure(tmp_path):
    status, lines = summary(f"asan={tmp_path / 'nothing'}")
    assert (status, lines[-1]) == (1, "0 passed, 1 failed, 0 skipped")


@pytest.mark.parametrize("junit, log", [("<testsuites>", ""), ("<testsuites/>", "{"), ("", ""), ("<a/>", "[1]\n")])
def test_a_run_with_broken_results_counts_as_a_failure(junit, log, tmp_path):
    (tmp_path / "log.junit.xml").write_text(junit)
    (tmp_path / "log.json").write_text(log)
    status, lines = summary(f"tsan={tmp_path / 'log'}")
    assert (status, lines[-1]) == (1, "0 passed, 1 failed, 0 skipped")


def test_a_run_without_tests_counts_as_a_failure(tmp_path):
    (tmp_path / "log.junit.xml").write_text('<testsuites tests="0" errors="0" failures="0"/>')
    (tmp_path / "log.json").write_text("")
    status, lines = summary(f"tsan={tmp_path / 'log'}")
    assert (status, lines[-1]) == (1, "0 passed, 1 failed, 0 skipped")
    assert "  [tsan] tsan: no test ran" in lines


def test_a_build_that_failed_counts_as_a_failure(project):
    status, lines = summary("--broken", "clang: the build failed", f"one={project('good-third', 'good')}")
    assert (status, lines[-1]) == (1, "2 passed, 1 failed, 0 skipped")
    assert "  [clang] clang: the build failed" in lines


def test_what_depends_on_timing_gets_a_second_chance(project):
    status, lines = project.check("good", "late")
    assert (status, lines[-1]) == (0, "4 passed, 0 failed, 0 skipped")
    assert any(line.startswith("Unstable ") for line in lines)
    assert "  [plain] late: b: too late" in lines


def test_a_second_chance_is_the_last(project):
    status, lines = project.check("late", "broken")
    assert (status, lines[-1]) == (1, "2 passed, 1 failed, 0 skipped")
    for line in ("  [plain] late: b: too late", "  [plain] broken: c: at first", "  [plain] broken: c: for good"):
        assert line in lines


def test_no_second_chance_when_others_fail(project):
    """What is broken is broken; and nothing that judges data is ever asked twice."""
    status, lines = project.check("late", "bad")
    assert (status, lines[-1]) == (1, "2 passed, 2 failed, 0 skipped")
    assert not any(line.startswith("Unstable ") for line in lines)


@pytest.mark.parametrize("program, counts", [("racy", "2 passed, 1 failed, 0 skipped"), ("fatal", "3 passed, 1 failed, 0 skipped")])
def test_no_second_chance_for_findings(project, program, counts):
    status, lines = project.check("good", program)
    assert (status, lines[-1]) == (1, counts)
    assert not any(line.startswith("Unstable ") for line in lines)


@pytest.mark.parametrize("program", ["absent_later", "fewer_later"])
def test_what_failed_has_to_pass(project, program):
    status, lines = project.check(program)
    assert status == 1 and ", 1 failed, " in lines[-1]
    assert any("did not pass when it ran again" in line for line in lines)


def test_no_run_counts_as_a_failure():
    status, lines = summary()
    assert (status, lines[-1]) == (1, "0 passed, 1 failed, 0 skipped")
