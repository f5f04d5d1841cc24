"""What all tests share: the same examples on every run, no network, one thread of torch, nothing skipped in CI."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # small networks are slowed down by a second one, and workers share the cores

settings.register_profile("edgekit", derandomize=True, deadline=None, print_blob=True, database=None)
settings.load_profile("edgekit")


LACKING = ("this processor has no ", "no AVX512-VNNI", "no CUDA device")
"""What no package brings: beginnings of the reasons for which CI may skip a test."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing is skipped that the machine could have."""
    report = yield
    if report.skipped and os.environ.get("CI") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(LACKING):
            report.outcome, report.longrepr = (
                "failed",
                f"{item.nodeid}: skipped in CI, where that counts as failed: {reason}",
            )
    return report
