"""Pytest plugin of `make test`, which runs pytest twice: the closing line of the second pass counts the tests of both.

The first pass writes its reports (`--write-reports FILE`), the second reads them (`--add-reports FILE`). Failures of
the first pass are listed again by the second, whose exit status stays its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

COUNTED = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("two passes")
    group.addoption("--write-reports", type=Path, metavar="FILE", help="write the reports of this pass to FILE")
    group.addoption("--add-reports", type=Path, metavar="FILE", help="count the reports in FILE as part of this pass")


def pytest_configure(config: pytest.Config) -> None:
    source = config.getoption("add_reports")
    if source and not source.is_file():
        raise pytest.UsageError(f"--add-reports {source}: no such file; the first pass writes it (--write-reports)")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    stats = terminalreporter.stats
    if target := config.getoption("write_reports"):
        written = {
            name: [config.hook.pytest_report_to_serializable(config=config, report=report) for report in stats[name]]
            for name in COUNTED
            if name in stats
        }
        target.write_text(json.dumps(written))
    if source := config.getoption("add_reports"):
        added = json.loads(source.read_text())
        for name, reports in added.items():
            stats.setdefault(name, []).extend(
                config.hook.pytest_report_from_serializable(config=config, data=report) for report in reports
            )
        count = sum(map(len, added.values()))
        terminalreporter.write_line(f"The closing line counts the {count} tests of the first pass, without its time.")
