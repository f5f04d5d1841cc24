"""Distillation: its formula, the teacher's answers on disk, and that a student learns from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError, UsageError
from edgekit.methods.distill import (
    INDICES,
    LOGS,
    Distillation,
    cached,
    distillation_loss,
    distilled,
    entropy,
    predictions,
    soft_cross_entropy,
    targets,
    with_targets,
)
from edgekit.methods.examples import CLASSES, EMBEDDINGS, LANGUAGE, Examples
from edgekit.methods.resume import Checkpoint
from edgekit.methods.training import Run, Training
from tests.support.tiny_decoders import build


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def top(logits: np.ndarray, count: int, heat: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and log probabilities of a teacher with these logits."""
    order = np.argsort(-logits, -1)[:, :count]
    return torch.from_numpy(order), torch.from_numpy(np.log(np.take_along_axis(softmax(logits / heat), order, -1)))


def classifier(seed: int) -> nn.Module:
    torch.manual_seed(seed)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)  # type: ignore[no-any-return]

    return Net()


def points(count: int = 64) -> Examples:
    random = torch.Generator().manual_seed(0)
    return Examples(
        {"x": torch.randn(count, 2, generator=random), "labels": torch.randint(0, 3, (count,), generator=random)}
    )


def texts() -> Examples:
    return Examples({"input_ids": torch.randint(3, 97, (10, 12), generator=torch.Generator().manual_seed(0))})


@pytest.mark.parametrize("heat", [1.0, 2.5])
def test_the_loss_against_numpy(heat: float) -> None:
    """With all classes kept: (1 - w) CE + w T^2 KL, in float64, from the definition."""
    random = np.random.default_rng(0)
    student, teacher, wanted = random.normal(0, 2, (7, 11)), random.normal(0, 2, (7, 11)), random.integers(0, 11, 7)
    q, p = softmax(teacher / heat), softmax(student / heat)
    divergence = (q * np.log(q / p)).sum(1)
    hard = -np.log(softmax(student)[np.arange(7), wanted])
    want = (0.7 * hard + 0.3 * heat**2 * divergence).mean()
    found = distillation_loss(
        torch.from_numpy(student), torch.from_numpy(wanted), *top(teacher, 11, heat), Distillation("t", weight=0.3, temperature=heat)
    )  # fmt: skip
    assert float(found) == pytest.approx(want, rel=1e-12)


def test_what_is_left_over_is_one_class() -> None:
    random = np.random.default_rng(1)
    student, teacher = random.normal(0, 2, (5, 9)), random.normal(0, 2, (5, 9))
    indices, logs = top(teacher, 4, 1.0)
    q, p = softmax(teacher), softmax(student)
    for row in range(5):
        kept = indices[row].numpy()
        own = np.append(p[row, kept], 1 - p[row, kept].sum())
        theirs = np.append(q[row, kept], 1 - q[row, kept].sum())
        assert float(soft_cross_entropy(torch.from_numpy(student), indices, logs)[row]) == pytest.approx(
            -(theirs * np.log(own)).sum()
        )
        assert float(entropy(logs)[row]) == pytest.approx(-(theirs * np.log(theirs)).sum())
    same = distillation_loss(
        torch.from_numpy(teacher), indices[:, 0], indices, logs, Distillation("t", weight=1.0, temperature=1.0)
    )
    assert abs(float(same)) < 1e-12  # nothing to learn from oneself


def test_the_answers_on_disk(tmp_path: Path) -> None:
    teacher, examples = build("Llama", {}), texts()
    calls: list[float] = []
    found = cached(
        tmp_path / "answers",
        teacher,
        LANGUAGE,
        examples,
        8,
        2.0,
        name="t",
        batch_size=4,
        progress=lambda _, s: calls.append(s),
    )
    assert found[INDICES].shape == found[LOGS].shape == (10, 11, 8) and found[INDICES].dtype == torch.int32
    assert calls == [0.4, 0.8, 1.0] and not teacher.training
    with torch.no_grad():
        logits = teacher(input_ids=examples.arrays["input_ids"]).logits[:, :-1]
    values, indices = torch.log_softmax(logits / 2, -1).topk(8)
    assert torch.equal(indices.int(), found[INDICES])
    torch.testing.assert_close(found[LOGS].float(), values, atol=4e-3, rtol=0)
    assert {p.name for p in tmp_path.iterdir()} == {"answers"}
    again: list[float] = []
    cached(tmp_path / "answers", teacher, LANGUAGE, examples, 8, 2.0, name="t", progress=lambda _, s: again.append(s))
    assert not again  # they were there
    for parameter in teacher.parameters():
        parameter.data.mul_(1.01)
    cached(tmp_path / "answers", teacher, LANGUAGE, examples, 8, 2.0, name="t", progress=lambda _, s: again.append(s))
    assert again  # another teacher
    assert json.loads((tmp_path / "answers" / "cache.json").read_text())["top"] == 8


def test_a_teacher_is_known_by_its_buffers_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    teacher.forward = lambda x: nn.Sequential.forward(teacher, x)  # type: ignore[method-assign, no-untyped-call]
    first = cached(tmp_path / "answers", teacher, CLASSES, points(), 3, 1.0)[INDICES].clone()
    teacher[1].running_mean += torch.linspace(-9, 9, 8)  # type: ignore[operator]
    assert not torch.equal(cached(tmp_path / "answers", teacher, CLASSES, points(), 3, 1.0)[INDICES], first)


def test_teachers_that_do_not_run(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"teacher small: does not run on examples 0 to 15: .*; give one with the same inputs"
    ):
        cached(tmp_path / "answers", nn.Linear(5, 3), CLASSES, points(), 3, 1.0, name="small")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="file: is a file; a teacher's answers are kept in a directory"):
        cached(tmp_path / "file", nn.Linear(5, 3), CLASSES, points(), 3, 1.0)


def test_an_interrupted_cache_leaves_nothing(tmp_path: Path) -> None:
    def stop(what: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "answers", build("Llama", {}), LANGUAGE, texts(), 8, 1.0, progress=stop)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    with pytest.raises(UsageError, match="mine: holds something else than a teacher's answers"):
        cached(tmp_path / "mine", build("Llama", {}), LANGUAGE, texts(), 8, 1.0)


def test_a_student_comes_closer_to_its_teacher_and_resumes(tmp_path: Path) -> None:
    teacher, examples = classifier(1), points()
    settings = Distillation("t", weight=1.0, temperature=2.0, top=3)
    found = cached(tmp_path / "answers", teacher, CLASSES, examples, 3, 2.0)
    assert found[INDICES].shape == (64, 1, 3)
    training = Training(steps=40, batch_size=16, learning_rate=0.02, checkpoint_every=17)

    def run() -> Run:
        return Run(classifier(2), distilled(CLASSES, settings), with_targets(examples, found), training)

    whole, first, second = run(), run(), run()
    losses = whole.go().losses
    assert losses[-1] < 0.1 * losses[0]
    checkpoint = Checkpoint(tmp_path / "state", {})

    def stop(what: str, share: float) -> None:
        if first.step == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.go(checkpoint=checkpoint, progress=stop)
    second.resume(checkpoint)
    assert second.go().losses == losses
    one, two = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="student: 'int4' is not one of none, bitnet, backslash, prune, 2:4"):
        Distillation("t", student="int4")
    with pytest.raises(UsageError, match=r"weight 1\.5, temperature 2\.0, top 32: the weight is a share"):
        Distillation("t", weight=1.5)
    with pytest.raises(
        UsageError, match="teacher: missing; a model that nothing constrains has nothing to learn from itself"
    ):
        Distillation()
    with pytest.raises(
        UnsupportedError, match="Net: gives embeddings, no classes; soft targets are for language models"
    ):
        predictions(EMBEDDINGS, classifier(0), points().arrays)


def test_in_a_trainer(tmp_path: Path) -> None:
    import transformers

    from edgekit.methods.soft_target_trainer import SoftTargetTrainer

    teacher, examples = build("Llama", {}), texts()
    found = cached(tmp_path / "answers", teacher, LANGUAGE, examples, 97, 1.0)
    rows = [
        {"input_ids": examples.arrays["input_ids"][i], INDICES: found[INDICES][i], LOGS: found[LOGS][i]}
        for i in range(10)
    ]
    settings = Distillation("t", weight=1.0, temperature=1.0)
    steps: list[int] = []

    def loss_at(step: int, logits: Tensor, wanted: Tensor, indices: Tensor, logs: Tensor) -> Tensor:
        steps.append(step)
        return distillation_loss(logits, wanted, indices, logs, settings)

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "t"), max_steps=2, per_device_train_batch_size=5, save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = SoftTargetTrainer(model=teacher, args=arguments, train_dataset=rows, loss_at=loss_at)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        assert abs(float(trainer.compute_loss(teacher.eval(), batch))) < 1e-3  # its own teacher
    trainer.train()
    assert steps == [0, 0, 1]
    trainer.eval_dataset = rows
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        float(trainer.compute_loss(teacher.eval(), batch).detach()), rel=1e-3
    )
    norms = []
    for size, parts in ((8, 1), (2, 4)):
        few = transformers.TrainingArguments(
            output_dir=str(tmp_path / "t"), max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=parts,
            save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=1, learning_rate=0.0,
        )  # fmt: skip
        hard = [{**row, "labels": row["input_ids"]} for row in rows]

        def half(step: int, logits: Tensor, wanted: Tensor, indices: Tensor, logs: Tensor) -> Tensor:
            return distillation_loss(logits, wanted, indices, logs, Distillation("t", weight=0.5))

        other = SoftTargetTrainer(
            model=build("Llama", {}), args=few, train_dataset=hard,
            loss_at=half,
        )  # fmt: skip
        other.train()
        norms.append(next(row["grad_norm"] for row in other.state.log_history if "grad_norm" in row))
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)  # a batch in parts is the same batch
    indices, logs = targets(batch)
    assert indices.shape == logs.shape == (110, 97) and logs.dtype == torch.float32


def pupil() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Smaller than its teacher."""
    torch.manual_seed(5)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)  # type: ignore[no-any-return]

    return Small(), {"x": torch.zeros(2, 2)}


def master() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return classifier(1), {"x": torch.zeros(2, 2)}


def wide() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 40)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)  # type: ignore[no-any-return]

    return Wide(), {"x": torch.zeros(2, 2)}


def data() -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in points(200).arrays.items()}


HERE = "tests.unit.test_distill"


def test_edgekit_compress_teaches_a_smaller_or_a_pruned_model(tmp_path: Path) -> None:
    from edgekit.compression import compress

    start = (
        f'version: 1\nmethod: distill\ndata: {{train: ["{HERE}:data"]}}\ntraining: {{steps: 40, learning_rate: 0.02}}\n'
    )
    file = tmp_path / "c.yaml"
    file.write_text(start + f'distill: {{teacher: "{HERE}:master", weight: 1.0, cache: kept}}\n')
    small = compress(f"{HERE}:pupil", file, tmp_path / "small")
    assert small.history.losses[-1] < 0.5 * small.history.losses[0]
    assert (tmp_path / "kept" / "cache.json").is_file()
    file.write_text(start + "distill: {student: prune, weight: 0.9}\nprune: {sparsity: 0.5}\n")
    pruned = compress(f"{HERE}:master", file, tmp_path / "pruned")
    assert pruned.after.total.zeros == pytest.approx(0.5, abs=0.02)
    assert pruned.settings["prune"]["sparsity"] == 0.5 and pruned.settings["distill"]["student"] == "prune"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml", "kept", "pruned", "small"]
    file.write_text(start + f'distill: {{teacher: "{HERE}:wide"}}\n')
    with pytest.raises(
        UsageError, match="pupil: has 3 classes, its teacher answers 39; give a teacher with the same ones"
    ):
        compress(f"{HERE}:pupil", file, tmp_path / "wrong")


def test_a_language_model_teaches_its_ternary_self(tmp_path: Path) -> None:
    from edgekit.compression import compress
    from edgekit.frontend.loading import load_module
    from tests.support.tiny_bundle import write_tokenizer

    build("Llama", {"vocab_size": 259}).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog. " * 30)
    (tmp_path / "c.yaml").write_text(
        "version: 1\nmethod: distill\ndistill: {student: bitnet, weight: 1.0, temperature: 1.0}\nbitnet: {sub_norms: block}\n"
        "data: {train: [t.txt], length: 32}\ntraining: {steps: 30, batch_size: 8, learning_rate: 0.005}\n"
    )
    found = compress(str(tmp_path / "model"), tmp_path / "c.yaml", tmp_path / "ternary")
    assert found.history.losses[-1] < found.history.losses[0]  # nearer to itself as it was
    assert load_module(found.exportable).architecture == "BitNetForCausalLM"
