# SPDX-License-Identifier: MIT
"""pytest plugin: report as TAP on stdout, one line as each test ends, so that "meson test" sees every test.

Load it with "-p pytest_tap_stream" and this folder on PYTHONPATH.  It takes the place of pytest's terminal
report: stdout is TAP and nothing else, diagnostics are comment lines below the "not ok" that they explain, and
stand on stderr too, because that is what "meson test --print-errorlogs" shows.
A file that is skipped as a whole, or cannot be imported, is reported as one test under the file's name, so that
neither its reason nor its failure gets lost.
"""
import os
import re

import pytest

# pytest captures file descriptors 1 and 2 while tests run; the report needs the real ones.
_stdout = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
_stderr = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def _visible(text):
    """Control characters as escapes: they would break Meson's XML, and play tricks on terminals."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", lambda match: repr(match.group())[1:-1], str(text))


def _one_line(text):
    return re.sub(r"\s+", " ", _visible(text)).strip()


def _test_name(nodeid):
    """'e2e/test_info.py::test_x[a#b]' -> 'test_x[a%23b]': the file is named by meson, and '#' starts a directive."""
    return _one_line(nodeid.split("::", 1)[-1].replace("::", ".").replace("#", "%23"))


def _skip_reason(report):
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    return _one_line(reason).removeprefix("Skipped: ") or "no reason given"


class TapReporter:
    def __init__(self):
        self.number = 0
        self.collect_reports = []
        self.details = {}  # nodeid -> what setup, call and teardown said

    def line(self, text):
        _stdout.write(text + "\n")
        _stdout.flush()

    def comment(self, text):
        for line in text.split("\n"):
            self.line("# " + line)

    def result(self, passed, name, directive="", explanation=""):
        self.number += 1
        self.line(f"{'ok' if passed else 'not ok'} {self.number} - {name}{directive}")
        if explanation:
            explanation = _visible(explanation)
            self.comment(explanation)
            _stderr.write(explanation + "\n\n")
            _stderr.flush()

    # ---- collecting: broken and wholly skipped files

    def pytest_collectreport(self, report):
        if report.failed or report.skipped:
            self.collect_reports.append(report)

    def pytest_collection_finish(self, session):
        self.line("TAP version 13")
        self.line(f"1..{len(session.items) + len(self.collect_reports)}")
        for report in self.collect_reports:
            name = _one_line(report.nodeid or "collection")
            if report.skipped:
                self.result(True, name, f" # SKIP {_skip_reason(report)}")
            else:
                self.result(False, name, explanation=report.longreprtext)

    # ---- running: one line per test, after its teardown

    def pytest_runtest_logreport(self, report):
        reports = self.details.setdefault(report.nodeid, [])
        reports.append(report)
        if report.when != "teardown":
            return
        del self.details[report.nodeid]
        name = _test_name(report.nodeid)
        failed = [r for r in reports if r.failed]
        skipped = [r for r in reports if r.skipped]
        expected = [r for r in reports if hasattr(r, "wasxfail")]
        if failed:
            self.result(False, name, explanation="\n".join(self.explain(r) for r in failed))
        elif expected:
            self.result(not skipped, name, f" # TODO {_one_line(expected[0].wasxfail)}")
        elif skipped:
            self.result(True, name, f" # SKIP {_skip_reason(skipped[0])}")
        else:
            self.result(True, name)

    @staticmethod
    def explain(report):
        parts = [f"{report.nodeid} failed in {report.when}:", report.longreprtext]
        parts += [f"-- {title} --\n{text}" for title, text in report.sections]
        return "\n".join(parts)

    def pytest_internalerror(self, excrepr):
        self.line("Bail out! pytest broke: " + _one_line(str(excrepr).splitlines()[-1] if str(excrepr) else ""))
        self.comment(_visible(excrepr))

    def pytest_keyboard_interrupt(self, excinfo):
        if not isinstance(excinfo.value, pytest.Session.Interrupted):  # that one: a file that cannot be imported
            self.line("Bail out! " + (_one_line(excinfo.value) or "interrupted"))


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        config.pluginmanager.unregister(terminal)
    config.pluginmanager.register(TapReporter(), "tap-reporter")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    # Failures are in the report; a nonzero status is left for what the report cannot say.
    collect_reports = session.config.pluginmanager.get_plugin("tap-reporter").collect_reports
    if (exitstatus == pytest.ExitCode.TESTS_FAILED
            or exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and collect_reports
            or exitstatus == pytest.ExitCode.INTERRUPTED and any(report.failed for report in collect_reports)):
        session.exitstatus = pytest.ExitCode.OK
