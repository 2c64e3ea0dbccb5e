#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Add up the results of several "meson test" runs.

Usage: summary.py [--broken "RUN: why"]... RUN=BUILD/meson-logs/LOGBASE...

For each run Meson leaves LOGBASE.junit.xml, which has every single test but neither timeouts nor crashes of a test
program, and LOGBASE.json, which has those for a program as a whole.  A run that left neither, or that ran no test at
all, counts as one failure: silence is no success.  Prints every skip with its reason, a table of the runs, every failure
(last, since often only the end of a log is kept), and as the last line "N passed, N failed, N skipped".  Exit status 1 if anything failed.
"""
import argparse
import json
import pathlib
import re
import sys
import xml.etree.ElementTree

# Control characters: Meson copies what a test printed into its XML as it is, where they are not allowed, and a terminal
# would obey them.
CONTROL_CHARACTERS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
BAD_RESULTS = {"FAIL", "ERROR", "TIMEOUT", "INTERRUPT", "UNEXPECTEDPASS"}


class Run:
    def __init__(self, name, log=""):
        self.name = name
        self.log = log  # where to read more
        self.passed = 0
        self.failed = []   # (test, why)
        self.skipped = []  # (test, reason)
        self.seconds = 0.0

    def nr_tests(self):
        return self.passed + len(self.failed) + len(self.skipped)


def short_name(program):
    """Meson's "vhdx:unit / bat" -> "bat"."""
    return program.rsplit(" / ", 1)[-1]


def case_name(name):
    """"3 - test_x", as Meson writes a TAP test, -> "test_x"."""
    return re.sub(r"^\d+\s*(-\s*)?", "", name) or name


def read_cases(run, junit, why):
    """Count the single tests of every program that reported any; returns the programs seen, True where one failed.
    why(program, number) explains a failure."""
    programs = {}
    text = CONTROL_CHARACTERS.sub("?", junit.read_text(encoding="utf-8", errors="replace"))
    for suite in xml.etree.ElementTree.fromstring(text).iter("testsuite"):
        _, dot, program = suite.get("name", "").partition(".")
        if not dot:  # programs that have an exit status only: read_programs() counts them
            continue
        programs[program] = False
        for case in suite.iter("testcase"):
            test = f"{short_name(program)}: {case_name(case.get('name'))}"
            if case.find("failure") is not None or case.find("error") is not None:
                run.failed.append((test, why(program, case.get("name").split()[0])))
                programs[program] = True
            elif case.find("skipped") is not None:
                run.skipped.append((test, (case.findtext("system-out") or "").strip()))
            else:
                run.passed += 1
    return programs


def explain_failure(stdout, number):
    """The comment below "not ok NUMBER" that says most: pytest's "E" lines, or else the first lines."""
    match = re.search(rf"^not ok {number}\b.*\n((?:#.*\n?)*)", stdout, re.MULTILINE)
    lines = [line.lstrip("# ").rstrip() for line in match.group(1).splitlines()] if match else []
    lines = [line for line in lines if line and not re.search(r" failed in (setup|call|teardown):$", line)]
    errors = [line.removeprefix("E").strip() for line in lines if re.match(r"E\s", line)]
    return "; ".join((errors or lines)[:2])


def read_programs(run, programs, programs_seen):
    """Add what the single tests do not show: crashes, timeouts, programs that reported nothing."""
    for name, program in programs.items():
        result, status = program["result"], program.get("returncode")
        stdout = program.get("stdout") or ""
        run.seconds += program.get("duration") or 0.0
        if name in programs_seen:
            if result in BAD_RESULTS and not programs_seen[name]:
                run.failed.append((short_name(name), f"{result.lower()}, exit status {status}"))
        elif result in BAD_RESULTS:
            run.failed.append((short_name(name), f"{result.lower()}, exit status {status}"))
        elif result == "SKIP":
            plan = re.search(r"^1\.\.0\s*#\s*skip\S*\s*(.*)", stdout, re.IGNORECASE | re.MULTILINE)
            if plan or status == 77:
                reason = plan.group(1) if plan else stdout.strip().rpartition("\n")[2]
                run.skipped.append((short_name(name), reason))
            else:
                run.failed.append((short_name(name), "reported no test at all"))
        else:
            run.passed += 1


def read_logs(run, junit, log):
    programs = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        program = json.loads(line)
        programs[program["name"]] = program
    programs_seen = read_cases(run, junit, lambda program, number: explain_failure(
        programs.get(program, {}).get("stdout") or "", number))
    read_programs(run, programs, programs_seen)


def read_run(name, logbase):
    run = Run(name, f"{logbase}.txt")
    try:
        read_logs(run, pathlib.Path(f"{logbase}.junit.xml"), pathlib.Path(f"{logbase}.json"))
    except (OSError, KeyError, TypeError, ValueError, xml.etree.ElementTree.ParseError) as error:
        run.failed.append((name, f"its results cannot be read, the run broke before its end: {error}"))
        return run
    if run.nr_tests() == 0:
        run.failed.append((name, "no test ran"))
    return run


def print_rows(title, runs, attribute, out):
    rows = [(run.name, *row) for run in runs for row in getattr(run, attribute)]
    if rows:
        print(f"\n{title}:", file=out)
    for name, test, why in rows:
        if not why and attribute == "skipped":
            why = "no reason given"
        print(CONTROL_CHARACTERS.sub("?", f"  [{name}] {test}" + (f": {why}" if why else "")), file=out)


def print_table(runs, out):
    width = max([len(run.name) for run in runs] + [3])
    print(f"\n{'run':<{width}}  passed  failed  skipped  seconds", file=out)
    for run in runs:
        print(f"{run.name:<{width}}  {run.passed:6}  {len(run.failed):6}  {len(run.skipped):7}  {run.seconds:7.0f}",
              file=out)


def report(runs, out):
    print_rows("Skipped", runs, "skipped", out)
    print_table(runs, out)
    print_rows("Failed", runs, "failed", out)
    for run in runs:
        if run.failed and run.log:
            print(f"  [{run.name}] details in {run.log}", file=out)
    print(file=out)
    passed, failed, skipped = (sum(run.passed for run in runs), sum(len(run.failed) for run in runs),
                               sum(len(run.skipped) for run in runs))
    print(f"{passed} passed, {failed} failed, {skipped} skipped", file=out)
    return failed


def main():
    parser = argparse.ArgumentParser(description="add up the results of several meson test runs")
    parser.add_argument("--broken", action="append", default=[], metavar="RUN: WHY", help="a run that did not happen")
    parser.add_argument("runs", nargs="*", metavar="RUN=LOGBASE")
    arguments = parser.parse_args()
    runs = [read_run(*run.split("=", 1)) for run in arguments.runs]
    for broken in arguments.broken:
        name, why = broken.split(": ", 1)
        run = Run(name)
        run.failed.append((name, why))
        runs.append(run)
    sys.exit(1 if report(runs, sys.stdout) else 0)


if __name__ == "__main__":
    main()
