"""Measuring on devices: which cores, what else the device did, and what is measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.benchmark import bench, run, targets
from edgekit.benchmark.targets import DeviceHost, Plan, fast_cores, measure_on, where
from edgekit.benchmark.watch import DeviceWatch, State, energy_joules, parse
from edgekit.devices.probe import Core
from edgekit.errors import RuntimeUnavailable, UsageError
from edgekit.strict import ranges
from tests.support.shell_connection import ShellConnection
from tests.support.tiny_models import linear_bundle

BIG_LITTLE = [Core(i, 1800.0 if i < 4 else 2400.0 if i < 7 else 3000.0) for i in range(8)]


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [
        (BIG_LITTLE, 1, [7]),
        (BIG_LITTLE, 2, [4, 5, 6, 7]),
        (BIG_LITTLE, 5, [0, 1, 2, 3, 4, 5, 6, 7]),
        ([Core(i, 2400.0) for i in range(4)], 1, [0, 1, 2, 3]),
        ([Core(0, None), Core(1, 2400.0)], 1, []),
        ([], 1, []),
    ],
)
def test_runners_are_kept_on_fast_cores(cores: list[Core], threads: int, expected: list[int]) -> None:
    assert fast_cores(cores, threads) == expected


def test_cores_are_spelled_as_ranges() -> None:
    assert ranges([7, 4, 5, 0, 6]) == "0,4-7"
    assert ranges([3]) == "3"
    assert ranges([]) == ""


def answer(user: int, idle: int, stolen: int, own: int, temperature: int, events: int, flags: str = "0x50000") -> str:
    """What a device says with 100 ticks a second."""
    return (
        f"@@ 100\ncpu  {user} 0 0 {idle} 0 0 0 {stolen} 0 0\n7 (a (b) c) S 1 7 7 0 -1 0 0 0 0 0 {own} 0 0 0\n"
        f"@@\n{temperature}\n999999\n-5\n@@\n{events}\n{flags}\n"
    )


def test_the_watch_tells_the_runners_work_from_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = iter([answer(1000, 5000, 0, 500, 40000, 3), answer(2500, 5900, 100, 1500, 61500, 5, "0x50004")])
    clock = iter([100.0, 110.0])
    connection = ShellConnection(tmp_path)
    monkeypatch.setattr(connection, "text", lambda script: next(answers))
    monkeypatch.setattr("edgekit.benchmark.watch.time.monotonic", lambda: next(clock))
    watch = DeviceWatch(connection, [7], cores=4)
    found = watch.disturbance()
    assert found.others == pytest.approx(0.5)  # 15 s busy, 10 of them the runner's, in 10 s
    assert found.stolen == pytest.approx(1 / 10 / 4)
    assert found.throttled == 3  # two events, and the flag of now; what happened since boot is no matter
    assert (watch.before.temperature, watch.after.temperature) == (40.0, 61.5)


def state(counters: str, governor: str = "ondemand") -> State:
    return parse(f"{answer(0, 0, 0, 0, 40000, 0)}@@\n{governor}\n@@\n{counters}", 0.0)


def test_battery_and_energy_are_told_where_something_counts_them() -> None:
    before = state("capacity 87\ncharge_counter 3000000\ncharge_counter 5\nenergy_now 11000000\nother words\n")
    after = state("capacity 86\ncharge_counter 2998500\nenergy_now 10990000\n")
    assert (before.battery, before.charge_uah, before.governor) == (87, 3_000_000, "ondemand")
    assert energy_joules(before, after) == pytest.approx(36.0)  # 10 mWh
    assert energy_joules(after, before) is None, "it was charged"
    assert energy_joules(state("energy_uj 5000000"), state("energy_uj 7500000\nenergy_now 9")) == 2.5
    assert energy_joules(state(""), after) is None and state("").battery is None and state("").charge_uah is None
    found = where("ssh:a", facts_of(), "4-7", watched(before, after))
    assert (found.conditions.battery_before, found.conditions.battery_after) == (87, 86)
    assert found.conditions.charge_used_mah == 1.5
    assert found.reasons == () and found.conditions.governor == "ondemand"


def test_a_governor_that_changed_makes_rows_invalid() -> None:
    found = where("ssh:a", facts_of(), "", watched(state(""), state("", "powersave\nperformance")))
    assert found.reasons == ("the governor changed from ondemand to powersave, performance",)


def facts_of() -> Any:
    return type("Facts", (), {"cores": (Core(0, 1.0),), "emulated": ""})()


def watched(before: State, after: State) -> Any:
    return type("Watch", (), {"before": before, "after": after})()


def test_a_device_that_tells_nothing_can_be_watched(tmp_path: Path) -> None:
    connection = ShellConnection(tmp_path)
    watch = DeviceWatch(connection, [99999999], cores=1)
    assert watch.disturbance().throttled >= 0


def test_what_is_invalid_is_measured_once_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    attempts: list[int] = []

    class Row:
        valid, bundle, phase = False, "b", "latency"

    def measured(*arguments: Any) -> Any:
        attempts.append(1)
        return [], [Row()], "1.29.0"

    facts = type("Facts", (), {"cores": (Core(0, 1.0),), "emulated": "", "target": "ssh:here"})()
    monkeypatch.setattr(targets, "_measured", measured)
    monkeypatch.setattr(targets, "probe", lambda connection: facts)
    monkeypatch.setattr(targets, "deploy", lambda connection, bundle, progress: None)
    plan = Plan((linear_bundle(tmp_path / "b"),), (1,), 1, 1, 5)

    def rows() -> int:
        host = DeviceHost(ShellConnection(tmp_path), plan, lambda what, share: None)
        return len(measure_on(host, plan, lambda what, share: None).rows)

    assert rows() == 1 and len(attempts) == 2
    facts.emulated = "qemu"
    assert rows() == 1 and len(attempts) == 3


def test_more_threads_than_a_device_has_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(targets, "probe", lambda connection: facts_of())
    plan = Plan((linear_bundle(tmp_path / "b"),), (2,), 1, 1, 5)
    with pytest.raises(UsageError, match="ssh:here: 2 threads asked for, the device has 1 cores"):
        DeviceHost(ShellConnection(tmp_path), plan, lambda what, share: None)


def test_a_device_out_of_reach_is_a_failure_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(target: Any) -> Any:
        raise RuntimeUnavailable(f"{target.text}: gone")

    monkeypatch.setattr(run, "open_connection", refuse)
    result = bench([linear_bundle(tmp_path / "b")], targets=["local", "ssh:a"])
    assert not result.valid and result.failures == {"ssh:a": "ssh:a: gone"} and len(result.rows) == 1
    assert "ssh:a: no answer: ssh:a: gone" in list(result.lines())
    assert set(result.versions) == {"python", "onnxruntime"}
