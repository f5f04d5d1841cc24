"""Damage at random: a bundle opens or is refused with a BundleError; nothing else may happen, and nothing may take long."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgekit.bundle import Bundle
from edgekit.errors import BundleError
from edgekit.inspection import inspect
from tests.support.tiny_bundle import decoder_bundle

SECONDS = 10.0  # of the processor, whatever else the machine does
FILES = ("model.onnx", "manifest.json", "vectors/text.safetensors", "tokenizer.json")
fuzz = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# One edit: at which share of the file, bytes to put there, how many to remove.
edits = st.lists(
    st.tuples(st.floats(0, 1), st.binary(max_size=12), st.sampled_from([0, 0, 1, 1, 4, 1000])), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_bundle(tmp_path_factory.mktemp("good") / "b").directory


def damaged(data: bytes, changes: list[tuple[float, bytes, int]]) -> bytes:
    for share, new, removed in changes:
        at = int(share * len(data))
        data = data[:at] + new + data[at + removed :]
    return data


def copy(good: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(good, target))


def read_all(directory: Path) -> None:
    """What every verb does with a bundle before ONNX Runtime sees it."""
    began = time.process_time()
    with contextlib.suppress(BundleError):
        bundle = Bundle.open(directory)
        list(inspect(bundle).lines())
        json.dumps(inspect(bundle).to_json(), allow_nan=False)
        for name in list(bundle._tensors):
            bundle.tensor(name).sum()
        bundle.vectors()
        bundle.check_hashes()
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("name", FILES)
@fuzz
@given(changes=edits)
@example(changes=[(0.0, b"", 1 << 30)])
def test_damaged_file(good: Path, tmp_path: Path, name: str, changes: list[tuple[float, bytes, int]]) -> None:
    bundle = copy(good, tmp_path / "b")
    data = damaged((good / name).read_bytes(), changes)
    (bundle / name).write_bytes(data)
    if name != "manifest.json":  # let it through to the parsers
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        next(f for f in manifest["files"] if f["path"] == name)["bytes"] = len(data)
        (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    read_all(bundle)


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**80), 2**80), st.floats(allow_nan=False), st.text(max_size=8),
    st.sampled_from(["../x", "model.onnx", "batch", "text"]), st.just([]), st.just({}), st.just([[]]),
)  # fmt: skip


@fuzz
@given(data=st.data())
def test_manifest_with_any_value_anywhere(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    bundle = copy(good, tmp_path / "b")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    place = manifest
    while True:
        key = data.draw(
            st.sampled_from(sorted(place)) if isinstance(place, dict) else st.sampled_from(range(len(place)))
        )
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.integers(0, 4)) == 0:
            break
        place = inner
    place[key] = data.draw(leaves)
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    read_all(bundle)
