"""SALT: both stages' losses, the choice of sequences, and that a stopped run goes on across the transition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import UsageError
from edgekit.methods.distill import INDICES, LOGS, cached
from edgekit.methods.examples import LANGUAGE, Examples
from edgekit.methods.resume import Checkpoint
from edgekit.methods.salt import Salt, Staged, Transition, challenge, hardest, salt_loss, salted
from edgekit.methods.training import Run, Training, epoch_order
from tests.support.tiny_decoders import build


def texts(count: int = 20) -> Examples:
    return Examples({"input_ids": torch.randint(3, 97, (count, 12), generator=torch.Generator().manual_seed(0))})


def test_the_first_stage_against_numpy() -> None:
    """(1 - w) CE(data) + w CE(Q, student), Q a softmax of the teacher's logits at its own temperature."""
    random = np.random.default_rng(0)
    student, teacher, wanted = random.normal(0, 2, (6, 9)), random.normal(0, 2, (6, 9)), random.integers(0, 9, 6)
    powers = np.exp(teacher / 0.5)
    q = powers / powers.sum(1, keepdims=True)
    log_p = student - np.log(np.exp(student).sum(1, keepdims=True))
    want = (-(1 / 3) * log_p[np.arange(6), wanted] - 2 / 3 * (q * log_p).sum(1)).mean()
    logs, indices = torch.log_softmax(torch.from_numpy(teacher) / 0.5, -1).topk(9)
    found = salt_loss(torch.from_numpy(student), torch.from_numpy(wanted), indices, logs, 2 / 3)
    assert float(found) == pytest.approx(want, rel=1e-12)


class Table(nn.Module):
    """Next-token logits by the token before."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.from_numpy(logits))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.logits[input_ids]


@pytest.mark.parametrize("unlearnable", ["zero", "dropped"])
def test_the_score_against_a_loop(unlearnable: str) -> None:
    random = np.random.default_rng(3)
    logits, ids = random.normal(0, 3, (12, 12)), random.integers(0, 12, (9, 8))
    found = challenge(
        Table(logits), LANGUAGE, Examples({"input_ids": torch.from_numpy(ids)}), 4, unlearnable, batch_size=4
    )
    for row in range(9):
        values = []
        for before, token in zip(ids[row, :-1], ids[row, 1:], strict=True):
            p = np.exp(logits[before]) / np.exp(logits[before]).sum()
            if token in np.argsort(-p)[:4]:
                values.append(-np.log(p[token]))
            elif unlearnable == "zero":
                values.append(0.0)
        assert float(found[row]) == pytest.approx(np.median(values) if values else 0.0, abs=1e-5)


def test_the_hardest() -> None:
    scores = torch.tensor([0.5, 3.0, 0.0, 2.0, 1.0])
    assert hardest(scores, 0.4).tolist() == [1, 3] and hardest(scores, 0.001).tolist() == [1]


def staged(tmp_path: Path, share: float = 1.0, every: int = 100) -> tuple[Run, Transition, Staged]:
    teacher, student, examples = build("Llama", {"num_hidden_layers": 1}), build("Llama", {}), texts()
    salt = Salt("teacher", steps=6, share=share)
    rows = hardest(challenge(teacher, LANGUAGE, examples, salt.within), share)
    answers = cached(tmp_path / "answers", teacher, LANGUAGE, Examples(examples.select(rows)), 97, 1.0)
    transition = Transition(student, salt.steps)
    mixed = Staged(examples.arrays, chosen=rows, answers=answers, transition=transition)
    training = Training(steps=12, batch_size=4, learning_rate=3e-3, checkpoint_every=every)
    run = Run(student, salted(LANGUAGE, salt, transition), mixed, training, constraint=transition, evaluation=texts(4))
    return run, transition, mixed


def test_the_transition_ends_the_teacher(tmp_path: Path) -> None:
    run, transition, mixed = staged(tmp_path, 0.5)
    rows = torch.arange(20)
    batch = mixed.select(rows)
    assert batch[INDICES].shape == batch[LOGS].shape == (20, 11, 97)
    chosen = mixed.arrays["input_ids"][mixed.chosen]
    assert torch.equal(batch["input_ids"], torch.cat([chosen, chosen]))  # ten for twenty
    with_teacher = run.objective.loss(run.model, batch)
    plain = LANGUAGE.loss(run.model, {"input_ids": batch["input_ids"]})
    assert abs(float((with_teacher - plain).detach())) > 1e-3
    for _ in range(6):
        transition.step()
    batch = mixed.select(rows)
    assert set(batch) == {"input_ids"} and torch.equal(batch["input_ids"], mixed.arrays["input_ids"])
    assert torch.equal(run.objective.loss(run.model, batch), LANGUAGE.loss(run.model, batch))
    transition.done = 0
    transition.hold()
    assert not transition.first


def test_the_first_stage_goes_through_what_was_chosen() -> None:
    """In its order, all of it before anything comes again: the batches of plain training where those were chosen."""
    examples, transition = texts(), Transition(nn.Linear(1, 1), 100)
    training = Training(steps=100, batch_size=4)
    order = epoch_order(training.seed, len(examples), 0)
    mixed = Staged(examples.arrays, chosen=order[:12], answers={"answer": torch.arange(12)}, transition=transition)
    plain = Run(nn.Linear(1, 1), LANGUAGE, examples, training)
    for step in range(6):
        batch = mixed.select(plain._rows())
        assert batch["answer"].tolist() == [(4 * step + i) % 12 for i in range(4)]
        assert torch.equal(batch["input_ids"], examples.arrays["input_ids"][order[batch["answer"]]])
        if step < 3:
            assert torch.equal(batch["input_ids"], examples.select(plain._rows())["input_ids"])
        transition.step()
        plain.step += 1


@pytest.mark.parametrize("stop_at", [3, 6, 9])
def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    whole, first, second = (staged(tmp_path, every=stop_at)[0] for _ in range(3))
    history, checkpoint = whole.go(), Checkpoint(tmp_path / "state", {})

    def stop(what: str, share: float) -> None:
        if first.step == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.go(checkpoint=checkpoint, progress=stop)
    second.resume(checkpoint)
    assert second.go() == history
    one, two = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"steps 0, within 10, share 1\.0: steps and within are at least 1"):
        Salt("t", steps=0)
    with pytest.raises(UsageError, match="unlearnable: 'skip' is not one of zero, dropped"):
        Salt("t", steps=1, unlearnable="skip")
    with pytest.raises(UsageError, match=r"weight -0\.1"):
        Salt("t", steps=1, weight=-0.1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small teacher, a larger student, one of another vocabulary, and a text."""
    from tests.support.tiny_bundle import write_tokenizer

    path = tmp_path_factory.mktemp("salt")
    for name, layers in (("teacher", 1), ("student", 2)):
        build("Llama", {"vocab_size": 259, "num_hidden_layers": layers}).save_pretrained(path / name)
        write_tokenizer(path / name)
    build("Llama", {"vocab_size": 300}).save_pretrained(path / "other")
    write_tokenizer(path / "other")
    file = path / "other" / "tokenizer.json"
    file.write_text(file.read_text().replace("<user>", "<person>"))
    (path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    return path


def config(pair: Path, salt: str, steps: int = 12) -> Path:
    file = pair / "salt.yaml"
    file.write_text(
        f"version: 1\nmethod: salt\nsalt: {salt}\ndata: {{train: [text.txt], length: 32}}\n"
        f"training: {{steps: {steps}, batch_size: 8, learning_rate: 0.005, checkpoint_every: 4}}\n"
    )
    return file


def test_edgekit_compress_with_a_small_teacher_resumes(pair: Path, tmp_path: Path) -> None:
    from edgekit.compression import compress

    settings = config(pair, "{teacher: teacher, steps: 6, share: 0.5, top: 16}")
    source = str(pair / "student")
    whole = compress(source, settings, tmp_path / "whole")
    seen: list[str] = []

    def stop(what: str, share: float) -> None:
        seen.append(what)
        if what.startswith("train: ") and share >= 0.75:
            raise MemoryError

    with pytest.raises(MemoryError):
        compress(source, settings, tmp_path / "parts", progress=stop)
    assert "choose examples" in seen and "ask the teacher" in seen
    parts = compress(source, settings, tmp_path / "parts", resume=True)
    assert parts.history == whole.history
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts", "whole"]  # answers and checkpoints are gone
    assert whole.settings["salt"]["steps"] == 6
    plain = compress(source, settings, tmp_path / "plain", method="none")
    assert plain.history.losses[:6] != whole.history.losses[:6]


def test_what_compress_refuses(pair: Path, tmp_path: Path) -> None:
    from edgekit.compression import compress
    from edgekit.errors import EdgekitError

    for salt, message in (
        (
            "{teacher: other, steps: 3}",
            r"other: its vocabulary is another one \(259 tokens against 259, '<person>' for example\)",
        ),
        ("{teacher: teacher, steps: 99}", r"salt\.steps: 99 is more than training\.steps, 12"),
        ("{teacher: nobody/here/at/all, steps: 3}", "nobody/here/at/all: no such file or directory"),
        ("{steps: 3}", "missing key 'teacher'"),
    ):
        with pytest.raises(EdgekitError, match=message):
            compress(str(pair / "student"), config(pair, salt), tmp_path / "out")
    file = pair / "none.yaml"
    file.write_text("version: 1\nmethod: salt\ndata: {train: [text.txt]}\n")
    with pytest.raises(EdgekitError, match=r"compress\.salt: missing; give for example \{teacher: MODEL, steps: 200\}"):
        compress(str(pair / "student"), file, tmp_path / "out")
    assert not list(tmp_path.iterdir())
