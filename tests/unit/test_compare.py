"""Several machines: what they answer, whether they agree, and where they part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.devices import Target
from edgekit.devices.local import Local, open_local
from edgekit.errors import RuntimeUnavailable, UsageError
from edgekit.parity import compare, verify_on
from edgekit.parity.bisect import bisect_between
from edgekit.parity.measure import measure_between
from edgekit.parity.replayer import Replayer
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tiny_models import linear_bundle
from tests.unit.test_verify import faulty


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Targets by text: the bundle that runs there instead of the one given, or the error that opening it raises."""
    known: dict[str, Any] = {}

    @contextmanager
    def open_backend(target: Target, bundle: Bundle, progress: object) -> Iterator[Local]:
        found = known.get(target.text, bundle)
        if isinstance(found, Exception):
            raise found
        yield open_local(found)

    monkeypatch.setattr(compare, "open_backend", open_backend)
    return known


def answers_of(bundle: Bundle) -> list[Any]:
    return Replayer(open_local(bundle), 1).answers([vector for _, vector in bundle.vectors()])


def test_machines_that_agree(tmp_path: Path, backends: dict[str, Any]) -> None:
    bundle = decoder_bundle(tmp_path / "b")
    found = verify_on(bundle, ["local", "ssh:a", "adb:b"])
    assert found.passed and found.verdict == "PASS" and found.failures == {}
    assert [r.target for r in found.reports] == ["local", "ssh:a", "adb:b"]
    assert [(a.target, a.than) for a in found.agreement] == [("ssh:a", "local"), ("adb:b", "local")]
    assert all(c.value == 0.0 for a in found.agreement for c in a.section.checks if c.metric == "max_abs")
    text = list(found.lines())
    assert text[0].split() == ["target", "parity", "accuracy", "agrees", "with", "local", "kernel"]
    assert text[2].startswith("ssh:a  PASS (") and "PASS (200.0 dB)" in text[2] and "FusedMatMul" in text[2]
    assert text[-1] == "verdict: PASS"
    document = found.to_json()
    assert document["passed"] is True and len(document["targets"]) == 3 and document["agreement"][0]["than"] == "local"


def test_a_machine_that_answers_otherwise_is_traced_to_its_layer(tmp_path: Path, backends: dict[str, Any]) -> None:
    bundle, other = decoder_bundle(tmp_path / "b"), decoder_bundle(tmp_path / "o", graph_weights=faulty(1))
    backends["ssh:a"] = other
    found = verify_on(bundle, ["local", "ssh:a"])
    assert not found.passed and found.verdict == "FAIL"
    (agreement,) = found.agreement
    assert [layer.layer for layer in agreement.layers if layer.first] == ["layers.1"]
    text = "\n".join(found.lines())
    assert "ssh:a and local do not agree" in text and "verdict: FAIL" in text


def test_samples_are_compared_by_their_outputs(tmp_path: Path, backends: dict[str, Any]) -> None:
    bundle = linear_bundle(tmp_path / "b")
    assert verify_on(bundle, ["local", "ssh:a"]).passed
    answers = answers_of(bundle)
    shifted = [{name: array + 1 for name, array in answer.items()} for answer in answers]
    measured = measure_between(bundle, [v for _, v in bundle.vectors()], answers, shifted, 0.0)
    assert measured.metrics["max_abs"] == pytest.approx(1.0, abs=1e-5)


def test_an_original_that_was_asked_afresh_says_which_tokens_are_compared(tmp_path: Path) -> None:
    bundle = decoder_bundle(tmp_path / "b")
    (vector,) = (v for _, v in bundle.vectors())
    afresh = {**vector, "original.top_indices": np.ascontiguousarray(vector["original.top_indices"][:, ::-1])}
    (own,), (asked,) = (Replayer(open_local(bundle), 1).answers([v]) for v in (vector, afresh))
    np.testing.assert_array_equal(asked["at.original"], own["at.original"][:, ::-1])


def test_a_device_out_of_reach_stops_no_other(tmp_path: Path, backends: dict[str, Any]) -> None:
    backends["ssh:a"] = RuntimeUnavailable("ssh:a: gone")
    found = verify_on(decoder_bundle(tmp_path / "b"), ["ssh:a", "local", "ssh:b"])
    assert not found.passed and found.failures == {"ssh:a": "ssh:a: gone"}
    assert [(a.target, a.than) for a in found.agreement] == [("ssh:b", "local")]
    assert "ssh:a: no answer: ssh:a: gone" in list(found.lines())


def test_nobody_in_reach(tmp_path: Path, backends: dict[str, Any]) -> None:
    backends["ssh:a"] = backends["ssh:b"] = RuntimeUnavailable("gone")
    found = verify_on(decoder_bundle(tmp_path / "b"), ["ssh:a", "ssh:b"])
    assert not found.passed and found.reports == () and len(found.failures) == 2
    assert list(found.lines())[-1] == "verdict: FAIL"


def test_a_target_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="targets local, local: one is given twice"):
        verify_on(decoder_bundle(tmp_path / "b"), ["local", "local"])


def test_vectors_without_taps_are_not_bisected(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path / "b")
    vectors = [{k: v for k, v in vector.items() if not k.startswith("tap.")} for _, vector in bundle.vectors()]
    assert bisect_between(vectors, (Replayer(open_local(bundle), 1), Replayer(open_local(bundle), 1)), {}) == ()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("logits", None, "the runner answered nothing for 'logits', "),
        ("nll", np.zeros(3), r"the runner answered \[3\] for 'nll', \[39\] expected"),
    ],
)
def test_answers_of_another_shape_are_refused(tmp_path: Path, name: str, change: Any, message: str) -> None:
    bundle = decoder_bundle(tmp_path / "b")
    (vector,) = (v for _, v in bundle.vectors())
    (answer,) = answers_of(bundle)
    device = Replayer(open_local(bundle), 1)
    assert device._checked(vector, dict(answer)).keys() == dict(answer).keys()
    wrong = {**answer, name: change} if change is not None else {k: v for k, v in answer.items() if k != name}
    with pytest.raises(RuntimeUnavailable, match=message):
        device._checked(vector, wrong)
