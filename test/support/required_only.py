"""Plugin of ``make test-core``: skips what needs an extra, since none is installed."""

from __future__ import annotations

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """Skip a test file whose imports need an extra."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and "ModuleNotFoundError" in str(report.longrepr):
        reason = str(report.longrepr).strip().splitlines()[-1]
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {reason}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip a test that an absent extra ends."""
    outcome = yield
    report = outcome.get_result()
    if not report.failed or call.excinfo is None:
        return
    text = report.longreprtext
    if "MissingExtraError" in text or "ModuleNotFoundError" in text:
        report.outcome = "skipped"
        report.longrepr = (
            str(item.path),
            0,
            f"Skipped: {call.excinfo.exconly()[:200]}",
        )
