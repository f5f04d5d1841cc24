"""One bundle on several machines at once: each one's verdict, and whether they agree with each other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.bundle import Bundle, BundleLike
from edgekit.devices import Target
from edgekit.devices.backend import on_each, open_backend
from edgekit.errors import EdgekitError, UsageError
from edgekit.metrics import Arrays
from edgekit.parity.bisect import bisect_between
from edgekit.parity.measure import measure_between
from edgekit.parity.replayer import Replayer
from edgekit.parity.report import SCHEMA_VERSION, UNPROVEN, LayerDistance, Report, Section, finite, layer_lines
from edgekit.parity.verification import Golden, judge_backend, section
from edgekit.spec.progress import Progress


@dataclass(frozen=True)
class Agreement:
    """One machine's answers against the first one's, held to the recipe's limits of parity."""

    target: str
    than: str
    section: Section
    layers: tuple[LayerDistance, ...] = ()  # filled when they do not agree

    @property
    def passed(self) -> bool:
        """No limit was missed."""
        return self.section.passed


@dataclass(frozen=True)
class Comparison:
    """The result of `verify_on`; ``failures`` are machines that gave no answer, with the reason."""

    reports: tuple[Report, ...]
    agreement: tuple[Agreement, ...]
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Every machine answered real input, within every limit, and they agree."""
        return self.verdict == "PASS"

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or UNPROVEN as a report's."""
        verdicts = {report.verdict for report in self.reports}
        if self.failures or "FAIL" in verdicts or not all(a.passed for a in self.agreement):
            return "FAIL"
        return "PASS" if verdicts == {"PASS"} else "UNPROVEN"

    def to_json(self) -> dict[str, Any]:
        """One report a target as `verify` has them, and the agreement."""
        agreement = [
            {"target": a.target, "than": a.than, **a.section.to_json(), "layers": [asdict(x) for x in a.layers]}
            for a in self.agreement
        ]
        document = {
            "schema_version": SCHEMA_VERSION, "passed": self.passed, "verdict": self.verdict,
            "targets": [report.to_json() for report in self.reports], "agreement": agreement, "failures": self.failures,
        }  # fmt: skip
        return dict(finite(document))

    def lines(self) -> Iterator[str]:
        """Reports that failed in full, then the table, one line a machine, and the verdict."""
        for report in self.reports:
            if report.verdict == "FAIL":
                yield from report.lines()
        for one in self.agreement:
            if not one.passed:
                yield f"{one.target} and {one.than} do not agree"
                yield from layer_lines(one.layers)
        yield from self._table()
        for target, reason in self.failures.items():
            yield f"{target}: no answer: {reason}"
        if self.verdict == "UNPROVEN":
            yield UNPROVEN
        yield f"verdict: {self.verdict}"

    def _table(self) -> Iterator[str]:
        beside = {one.target: one for one in self.agreement}
        width = max((len(report.target) for report in self.reports), default=6)
        than = f"agrees with {self.agreement[0].than}" if self.agreement else ""
        yield f"{'target':<{width}}  {'parity':<16} {'accuracy':<8}  {than:<24}  kernel"
        for report in self.reports:
            one = beside.get(report.target)
            agrees = "" if one is None else f"{_word(one.passed)} {_decibels(one.section)}"
            yield (
                f"{report.target:<{width}}  {_word(report.parity.passed)} {_decibels(report.parity):<11} "
                f"{_word(report.accuracy.passed):<8}  {agrees:<24}  {report.kernel}"
            )


def verify_on(
    bundle: BundleLike, targets: Sequence[str], *, threads: int = 1, progress: Progress = lambda what, share: None
) -> Comparison:
    """Verifies a bundle on several machines, devices side by side, and compares their answers with the first target's.

    A device that cannot be reached or used is among the failures and stops no other. Raises UsageError for targets that
    are none, or given twice; BundleError for a damaged bundle.
    """
    parsed = [Target.parse(text) for text in targets]
    if len({target.text for target in parsed}) != len(parsed):
        raise UsageError(f"targets {', '.join(targets)}: one is given twice")
    opened = Bundle.open(bundle)
    progress("check hashes", 0.0)
    opened.check_hashes()
    golden = Golden.of(opened)
    with contextlib.ExitStack() as stack:

        def answered(target: Target, say: Progress) -> _Answered:
            own = contextlib.ExitStack()
            stack.push(own)
            replayer = Replayer(own.enter_context(open_backend(target, opened, say)), threads)
            return _Answered(*judge_backend(golden, target, replayer, threads, say), replayer)

        results = on_each(parsed, answered, progress)
        runs = [run for run in results.values() if isinstance(run, _Answered)]
        agreement = tuple(_agreement(golden, runs[0], other, progress) for other in runs[1:])
    reports = tuple(run.report for run in runs)
    return Comparison(reports, agreement, {t: str(run) for t, run in results.items() if isinstance(run, EdgekitError)})


@dataclass(frozen=True)
class _Answered:
    report: Report
    answers: list[Arrays]
    replayer: Replayer

    @property
    def target(self) -> str:
        return self.report.target


def _agreement(golden: Golden, first: _Answered, other: _Answered, progress: Progress) -> Agreement:
    limits = golden.recipe.parity
    measured = measure_between(golden.bundle, golden.vectors, first.answers, other.answers, limits.margin)
    judged = section(first.target, measured, limits)
    layers: tuple[LayerDistance, ...] = ()
    if not judged.passed:
        progress(f"look for the first layer where {other.target} and {first.target} differ", 0.0)
        layers = bisect_between(golden.vectors, (first.replayer, other.replayer), judged.outputs)
    return Agreement(other.target, first.target, judged, layers)


def _word(passed: bool) -> str:
    return "PASS" if passed else "FAIL"


def _decibels(judged: Section) -> str:
    value = next((check.value for check in judged.checks if check.metric == "sqnr_db"), None)
    return "" if value is None else f"({value:.1f} dB)"
