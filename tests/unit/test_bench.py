"""Benchmarks: the protocol, the statistics, and the rules that make a row INVALID."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgekit.benchmark import bench, machine
from edgekit.benchmark.machine import Disturbance, Watch
from edgekit.benchmark.protocol import Series, measure
from edgekit.benchmark.results import BenchResult, Ratio
from edgekit.benchmark.rows import compare, invalid_reasons, row
from edgekit.benchmark.statistics import percentile, ratio, spread
from edgekit.devices import runner
from edgekit.devices.job import Job
from edgekit.errors import BundleError, UsageError
from edgekit.lowbit.library import load_library
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tiny_models import broken_graph, linear_bundle

QUIET = Disturbance(others=0.0, stolen=0.0, throttled=0)
STEADY = [1.0, 1.01, 0.99, 1.0, 1.0]


def test_measures_a_decoder_and_compares_two(tmp_path: Path) -> None:
    first, second = (decoder_bundle(tmp_path / name) for name in ("a", "b"))
    result = bench([first, second.directory], prompt_tokens=16, new_tokens=8)
    assert [(r.bundle, r.phase) for r in result.rows] == [
        (str(b.directory), phase) for b in (first, second) for phase in ("prefill", "decode")
    ]
    for found in result.rows:
        assert found.kernel == "FusedMatMul×10"
        assert 0 < found.p50_ms <= found.p90_ms <= found.p99_ms
        assert found.tokens_per_second == pytest.approx({"prefill": 16, "decode": 1}[found.phase] * 1e3 / found.p50_ms)
        assert found.rss_base_mb < found.rss_peak_mb
        assert found.load_ms > 0
        assert found.first_run_ms > 0
    assert result.rows[1].samples == 5 * 8
    # On a busy machine rows are INVALID, and then not compared.
    valid = [all(row.valid for row in result.rows if row.phase == phase) for phase in ("prefill", "decode")]
    assert [(r.phase, r.bundle, r.than) for r in result.ratios] == [
        (phase, str(first.directory), str(second.directory))
        for phase, quiet in zip(("prefill", "decode"), valid, strict=True)
        if quiet
    ]
    assert all(r.low <= r.times_as_fast <= r.high for r in result.ratios)


def test_measures_latency_of_other_models(tmp_path: Path) -> None:
    result = bench([linear_bundle(tmp_path / "b", "t2")])
    (found,) = result.rows
    assert (found.phase, found.tokens_per_second) == ("latency", None)
    library = load_library()
    assert library is not None
    assert found.kernel == f"TernaryMatMul: native operator ({library.isa})×1"
    assert found.rounds == 5 and found.valid == (not found.invalid_reason)
    report = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert report["schema_version"] == 1
    assert report["rows"][0]["p50_ms"] == found.p50_ms
    assert "tokens_per_second" not in report["rows"][0]
    assert report["machine"]["cores"] == machine.usable_cores()
    assert ("INVALID: " in "\n".join(result.lines())) == (not found.valid)
    assert report["versions"].keys() == {"onnxruntime", "python"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": (0,)}, r"threads \[0\]: give numbers from 1 to"),
        ({"threads": (4096,)}, "the cores of this machine"),
        ({"threads": ()}, r"threads \[\]"),
        ({"rounds": 4}, "rounds 4: fewer than 5 are too few to be quoted; give 5 or more"),
        ({"new_tokens": 0}, "prompt_tokens 128, new_tokens 0: each must be at least 1"),
        ({"bundles": ()}, "bundles: none given"),
        ({"prompt_tokens": 60}, r"60 \+ 64 tokens; the context holds 64"),
    ],
)
def test_calls_that_cannot_be_measured(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench(**{"bundles": [decoder_bundle(tmp_path / "b")], **changes})


def test_targets_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="target 'pi': is none of local, ssh:"):
        bench([linear_bundle(tmp_path / "b")], targets=["pi"])
    with pytest.raises(UsageError, match="targets: none given"):
        bench([linear_bundle(tmp_path / "b")], targets=[])


def test_a_runners_error_is_the_callers(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path / "b")
    broken_graph(bundle.directory)
    with pytest.raises(BundleError, match=r"ONNX Runtime .* refuses it"):
        bench([bundle.directory])


SCRIPTED = """
import json, sys
name, order = sys.argv[1], open(sys.argv[2], "a")
print('{"runner": 1, "pid": 1}', flush=True)
memory = {"peak": 3.0, "private": 2.0, "file": 1.0}
for line in sys.stdin:
    what = json.loads(line)["do"]
    order.write(f"{name}:{what} "); order.flush()
    answer = {"ms": 5.0, "before": memory, "after": memory}
    if what == "round": answer = {"times": {"latency": [2.0, 2.0] if name == "a" else [3.0, 3.0]}}
    if what == "finish": answer = {"memory": memory, "kernel": name}
    print(json.dumps(answer), flush=True)
"""


def test_rounds_take_turns_and_reverse(tmp_path: Path) -> None:
    log = tmp_path / "order"
    commands = {name: [sys.executable, "-c", SCRIPTED, name, str(log)] for name in "ab"}
    with Job("a", commands["a"]) as a, Job("b", commands["b"]) as b:
        series, disturbance = measure([a, b], 3, lambda what, share: None, lambda pids: Watch([]))
    order = log.read_text(encoding="utf-8").split()
    assert order[:4] == ["a:load", "a:first", "b:load", "b:first"]
    assert order[4:8] == ["a:round"] * 2 + ["b:round"] * 2, "warm-up ends when a round is like the one before"
    assert order[8:14] == ["a:round", "b:round", "b:round", "a:round", "a:round", "b:round"]
    assert disturbance.others >= 0
    assert (series[0].base_mb, series[0].peak_mb, series[1].kernel) == (3.0, 3.0, "b")
    (found,) = compare(series, 1)
    assert (found.bundle, found.times_as_fast, found.low, found.high) == ("a", 1.5, 1.5, 1.5)


def test_another_engine_keeps_stray_output_out_of_its_answers() -> None:
    script = (
        "import os\nfrom benchmarks.llm.peer_worker import serve\n"
        "class Noisy:\n    def load(self): print('noise'); os.write(1, b'more noise\\n')\n"
        "serve(lambda settings: Noisy(), ['{}'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], input='{"do": "load"}\n', capture_output=True, text=True, check=True
    )
    hello, loaded = map(json.loads, run.stdout.splitlines())
    assert hello["runner"] == runner.PROTOCOL and set(loaded) == {"ms", "before", "after"}


def test_rows_that_are_invalid_are_not_compared() -> None:
    def rows(valid: bool) -> BenchResult:
        series = [Series(name, 1.0, 2.0, 3.0) for name in "ab"]
        for one in series:
            for _ in range(5):
                one.add({"decode": [2.0, 2.0]})
        found = [replace(row(one, "decode", 1, 128, QUIET), valid=valid or one.name == "a") for one in series]
        ratios = [Ratio("a", "b", "decode", 1, 1.0, 1.0, 1.0)] if valid else []
        return BenchResult(tuple(found), tuple(ratios), machine.describe(), 128, 64, {})

    assert list(rows(True).lines())[-1] == "decode, 1 thread: a is 1.000 (1.000 to 1.000) times as fast as b"
    assert list(rows(False).lines())[-1] == "decode, 1 thread: a and b are not compared, a row is INVALID"


def test_what_makes_a_row_invalid() -> None:
    assert invalid_reasons(STEADY, 50, 1, QUIET) == []
    assert invalid_reasons(STEADY[:4], 50, 1, QUIET)[0].startswith("50 samples in 4 rounds")
    assert invalid_reasons(STEADY, 9, 1, QUIET)[0].startswith("9 samples in 5 rounds")
    assert invalid_reasons([1.0, 2.0, 1.0, 2.0, 1.0], 50, 1, QUIET)[0].startswith("rounds differ by 100%")
    cores = os.cpu_count() or 1
    assert invalid_reasons(STEADY, 50, cores, Disturbance(0.3, 0, 0))[0].startswith("other processes kept 0.30 cores")
    assert invalid_reasons(STEADY, 50, cores, Disturbance(0.2, 0, 0)) == []
    assert invalid_reasons(STEADY, 50, 1, Disturbance(0, 0.05, 0)) == ["the hypervisor took 5% of the machine away"]
    assert invalid_reasons(STEADY, 50, 1, Disturbance(0, 0, 2)) == ["the processor was throttled (2 events)"]


def test_one_odd_round_does_not_spoil_the_others() -> None:
    assert spread([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0]) == 0.0
    assert spread([1.0, 1.0, 1.2, 1.2]) == pytest.approx(0.2 / 1.1)


def test_rows_come_from_medians() -> None:
    series = Series("x", 1.0, 2.0, 3.0)
    for times in ([4.0, 4.0, 100.0], [2.0, 4.0, 4.0]):
        series.add({"prefill": times})
    found = row(series, "prefill", 1, 128, QUIET)
    assert found.p50_ms == 4.0
    assert found.tokens_per_second == 128 / 4.0 * 1e3
    assert found.p99_ms > found.p90_ms


def test_ratios_and_their_intervals() -> None:
    random = np.random.default_rng(0)
    drift = np.exp(random.normal(size=30) * 0.5)  # disturbs both of a round alike
    found = ratio((2.0 * drift * np.exp(random.normal(size=30) * 0.01)).tolist(), drift.tolist())
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(2.0, rel=0.01)
    assert found.high / found.low < 1.03
    assert percentile([1, 2, 3, 4, 5], 0.5) == 3


@pytest.mark.parametrize(("seconds", "runs"), [(0.07, 5), (9.0, 2), (0.0, 200)])
def test_repetitions_are_bounded_and_prepared(monkeypatch: pytest.MonkeyPatch, seconds: float, runs: int) -> None:
    prepared, clock = [], [0.0]
    monkeypatch.setattr("edgekit.devices.runner.time.perf_counter", lambda: sum(clock))
    times = runner.repeated(lambda: clock.append(seconds), 0.3, 200, lambda: prepared.append(1))
    assert times == pytest.approx([seconds * 1e3] * runs)
    assert len(prepared) == runs


def test_the_watch_sees_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second by the clock that it is given, and in it what a process really used that is stopped before we look."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            process, clock = psutil.Process(other.pid), iter([0.0, 0.0, 1.0, 1.0])
            monkeypatch.setattr("edgekit.benchmark.machine.time.perf_counter", lambda: next(clock))
            everyone, counted = Watch([]), Watch([other.pid])
            used = process.cpu_times().user
            while (spent := process.cpu_times().user - used) < 0.5:
                time.sleep(0.02)
            process.suspend()
            now = psutil.cpu_times()
            monkeypatch.setattr("edgekit.benchmark.machine.psutil.cpu_times", lambda: now)
            seen, without = everyone.disturbance().others, counted.disturbance().others
            assert seen >= spent - 0.1  # the system counts in ticks
            assert seen - without >= spent - 0.1
        finally:
            other.kill()


def test_machine_and_memory_without_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "STATUS", Path("missing"))
    monkeypatch.setattr(machine, "CPU", Path("missing"))
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    found = runner.memory()
    assert found["peak"] > 10
    assert (found["private"], found["file"]) == (None, None)
    assert machine.describe().governor == ""
    assert machine.describe().on_battery is None
