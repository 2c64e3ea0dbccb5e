#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Add up the results of several "meson test" runs.

Usage: summary.py [--broken "RUN: why"]... [--again RUN=BUILD/meson-logs/LOGBASE]... RUN=BUILD/meson-logs/LOGBASE...
       summary.py --failed-in SUITE BUILD/meson-logs/LOGBASE

For each run Meson leaves LOGBASE.junit.xml, which has every single test but neither timeouts nor crashes of a test
program, and LOGBASE.json, which has those for a program as a whole.  A run that left neither, or that ran no test at
all, counts as one failure: silence is no success.  Prints every skip with its reason, a table of the runs, every failure
(last, since often only the end of a log is kept), and as the last line "N passed, N failed, N skipped".  Exit status 1 if anything failed.

Programs that were run again (--again) count as they ended then, if all that had failed passes; how it failed before is printed all the
same.  --failed-in prints which programs to run again, one a line: those that failed, if they are few, all of that suite, and
failed as something that was late does: a crash, or what a sanitizer finds, is never bad luck.
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
MAX_AGAIN = 3  # more failures at a time have another cause than bad luck
FINDING = re.compile("(Address|Leak|Thread|UndefinedBehavior)Sanitizer|runtime error: ")
BAD_RESULTS = {"FAIL", "ERROR", "TIMEOUT", "INTERRUPT", "UNEXPECTEDPASS"}


class Run:
    def __init__(self, name, log=""):
        self.name = name
        self.log = log  # where to read more
        self.passed = []    # tests
        self.failed = []    # (test, why)
        self.unstable = []  # the same, in programs that were run again
        self.skipped = []   # (test, reason)
        self.seconds = 0.0

    def nr_tests(self):
        return len(self.passed) + len(self.failed) + len(self.skipped)


def short_name(program):
    """Meson's "vhdx:unit / bat" -> "bat"."""
    return program.rsplit(" / ", 1)[-1]


def suites(program):
    """Meson's "vhdx:e2e+slow / test_x" -> {"e2e", "slow"}."""
    return set(program.rpartition(" / ")[0].partition(":")[2].split("+"))


def case_name(name):
    """"3 - test_x", as Meson writes a TAP test, -> "test_x"."""
    return re.sub(r"^\d+\s*(-\s*)?", "", name) or name


def read_cases(run, junit, counts, why):
    """Count the single tests of every program that counts and reported any; returns the programs seen, True where one failed.
    why(program, number) explains a failure."""
    programs = {}
    text = CONTROL_CHARACTERS.sub("?", junit.read_text(encoding="utf-8", errors="replace"))
    for suite in xml.etree.ElementTree.fromstring(text).iter("testsuite"):
        _, dot, program = suite.get("name", "").partition(".")
        if not dot or not counts(program):  # without a dot: an exit status only, which read_programs() counts
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
                run.passed.append(test)
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
            run.passed.append(short_name(name))


def read_json(logbase):
    """What Meson wrote about each program, by its name."""
    lines = pathlib.Path(f"{logbase}.json").read_text(encoding="utf-8", errors="replace").splitlines()
    return {program["name"]: program for program in map(json.loads, lines)}


def read_logs(run, logbase, counts=lambda program: True):
    programs = {name: program for name, program in read_json(logbase).items() if counts(name)}
    programs_seen = read_cases(run, pathlib.Path(f"{logbase}.junit.xml"), counts, lambda program, number: explain_failure(
        programs.get(program, {}).get("stdout") or "", number))
    read_programs(run, programs, programs_seen)


def read_run(name, logbase, logbase_again=None):
    run, first, second = Run(name, f"{logbase}.txt"), Run(name), Run(name)
    try:
        again = read_json(logbase_again) if logbase_again else {}
        read_logs(run, logbase, lambda program: program not in again)
        read_logs(first, logbase, lambda program: program in again)
        run.unstable, run.seconds = first.failed, run.seconds + first.seconds
        if again:
            read_logs(second, logbase_again)
    except (OSError, KeyError, TypeError, ValueError, xml.etree.ElementTree.ParseError) as error:
        run.failed.append((name, f"its results cannot be read, the run broke before its end: {error}"))
        return run
    good_programs = {short_name(program) for program, end in again.items() if end["result"] == "OK"}
    run.passed, run.skipped, run.seconds = run.passed + second.passed, run.skipped + second.skipped, run.seconds + second.seconds
    run.failed += second.failed
    run.failed += [(test, f"it failed, and did not pass when it ran again: {why}") for test, why in first.failed
                   if test not in second.passed and test not in good_programs and test not in dict(second.failed)]
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
        print(f"{run.name:<{width}}  {len(run.passed):6}  {len(run.failed):6}  {len(run.skipped):7}  {run.seconds:7.0f}",
              file=out)


def report(runs, out):
    print_rows("Skipped", runs, "skipped", out)
    print_table(runs, out)
    print_rows("Unstable (failed, and what counts is how they ended when they ran again alone)", runs, "unstable", out)
    print_rows("Failed", runs, "failed", out)
    for run in runs:
        if (run.failed or run.unstable) and run.log:
            print(f"  [{run.name}] details in {run.log}", file=out)
    print(file=out)
    passed, failed, skipped = (sum(len(run.passed) for run in runs), sum(len(run.failed) for run in runs),
                               sum(len(run.skipped) for run in runs))
    print(f"{passed} passed, {failed} failed, {skipped} skipped", file=out)
    return failed


def print_failed_programs(suite, logbase):
    try:
        failed = {name: program for name, program in read_json(logbase).items() if program["result"] in BAD_RESULTS}
        was_late = [program["result"] in ("FAIL", "TIMEOUT") and not FINDING.search(f"{program.get('stdout')}{program.get('stderr')}")
                    for program in failed.values()]
    except (OSError, KeyError, TypeError, ValueError):
        return  # read_run() will say so
    if len(failed) <= MAX_AGAIN and all(was_late) and all(suite in suites(name) for name in failed):
        print(*map(short_name, failed), sep="\n", end="\n" if failed else "")


def main():
    parser = argparse.ArgumentParser(description="add up the results of several meson test runs")
    parser.add_argument("--broken", action="append", default=[], metavar="RUN: WHY", help="a run that did not happen")
    parser.add_argument("--again", action="append", default=[], metavar="RUN=LOGBASE", help="programs that were run again")
    parser.add_argument("--failed-in", nargs=2, metavar=("SUITE", "LOGBASE"), help="print what to run again, and nothing else")
    parser.add_argument("runs", nargs="*", metavar="RUN=LOGBASE")
    arguments = parser.parse_args()
    if arguments.failed_in:
        print_failed_programs(*arguments.failed_in)
        return
    again = dict(run.split("=", 1) for run in arguments.again)
    runs = [read_run(name, logbase, again.get(name)) for name, logbase in (run.split("=", 1) for run in arguments.runs)]
    if not runs and not arguments.broken:
        runs = [Run("none")]
        runs[0].failed.append(("none", "there was no run"))
    for broken in arguments.broken:
        name, why = broken.split(": ", 1)
        run = Run(name)
        run.failed.append((name, why))
        runs.append(run)
    sys.exit(1 if report(runs, sys.stdout) else 0)


if __name__ == "__main__":
    main()
