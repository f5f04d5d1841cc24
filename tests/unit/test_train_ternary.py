"""tools/train_ternary.py on a tiny text: what it writes, and that an interrupted run ends with the same bytes."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit.frontend.loading import load_module
from tools import train_ternary


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Sentences of a few words, one file held out."""
    words = [
        "the",
        "a",
        "king",
        "queen",
        "comes",
        "goes",
        "sees",
        "night",
        "day",
        "old",
        "and",
        "of",
        "to",
        "castle",
        "forest",
        "sword",
    ]
    source = random.Random(0)
    directory = tmp_path / "texts"
    directory.mkdir()
    for name, lines in (("a.txt", 300), ("b.txt", 200), (train_ternary.HELD_OUT, 60)):
        text = "\n".join(" ".join(source.choices(words, k=9)) + "." for _ in range(lines))
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def run(monkeypatch: pytest.MonkeyPatch, texts: Path, output: Path, *more: str) -> None:
    arguments = ["train_ternary", "--size", "quick", "--steps", "20", "--threads", "1", "--texts", str(texts)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(output), *more])
    train_ternary.main()


def test_an_interrupted_run_ends_with_the_same_bytes(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, texts, tmp_path / "whole")
    after = train_ternary.Log.__call__
    for name, step in (("teacher", 6), ("float", 12), ("ternary", 17)):
        with monkeypatch.context() as patch:

            def stop(self: Any, what: str, share: float, name: str = name, step: int = step) -> None:
                after(self, what, share)
                if (self.name, self.run.step) == (name, step):
                    raise MemoryError

            patch.setattr(train_ternary.Log, "__call__", stop)
            with pytest.raises(MemoryError):
                run(monkeypatch, texts, tmp_path / "parts")
    run(monkeypatch, texts, tmp_path / "parts")
    for model in ("ternary", "ternary-online", "float"):
        whole, parts = ((tmp_path / name / model / "model.safetensors").read_bytes() for name in ("whole", "parts"))
        assert whole == parts
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / n / "log.jsonl").read_text().splitlines()
        ]
        for n in ("whole", "parts")
    ]
    assert logs[0] == logs[1] and len(logs[0]) > 60
    report = json.loads((tmp_path / "parts" / "report.json").read_text())
    assert report["plan"]["steps"] == 20 and report["plan"]["teacher_steps"] == 10
    assert report["ternary"]["parameters"] == report["float"]["parameters"]
    assert report["ternary"]["bytes"] < 0.5 * report["float"]["bytes"] and 0.2 < report["ternary"]["zeros"] < 0.5
    losses = report["float"]["held_out_loss"], report["ternary"]["held_out_loss"]
    assert losses[0] < 4.6 and losses[1] < 3.7  # 5.7 untrained; in 20 steps the lower rate of the float twin shows
    assert report["gap_nats"] == pytest.approx(losses[1] - losses[0], abs=1e-3)
    assert (tmp_path / "parts" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    found = load_module(str(tmp_path / "parts" / "ternary"))
    assert sum(hasattr(m, "activation_block_size") for m in found.module.modules()) == 14
    with pytest.raises(SystemExit, match="was begun with --size quick --seed 0 --steps 20 and a teacher; give"):
        run(monkeypatch, texts, tmp_path / "parts", "--seed", "1")
    (texts / train_ternary.HELD_OUT).unlink()
    with pytest.raises(SystemExit, match=r"run sh tools/fetch_shakespeare\.sh"):
        run(monkeypatch, texts, tmp_path / "new")
