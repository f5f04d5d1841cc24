"""Distillation: a student learns from a teacher's probabilities as well as from the data (Hinton et al., arXiv
1503.02531).

    loss = (1 - w) CE(data) + w T^2 KL(teacher_T || student_T)

The teacher answers each example once; its ``top`` most probable classes lie on disk (``cached``), what is left over
counts as one more class, in teacher and student alike. With ``top`` as large as the vocabulary that is the whole
distribution.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import CheckFailed, EdgekitError, UnsupportedError, UsageError
from edgekit.methods.example_files import digest
from edgekit.methods.examples import Batch, Examples, Objective, device_of, most_rows, outputs
from edgekit.spec.names import LABELS
from edgekit.spec.progress import Progress

INDICES, LOGS = "teacher_indices", "teacher_logs"
KINDS = ((INDICES, np.int32), (LOGS, np.float16))
ANSWER_BYTES = sum(np.dtype(kind).itemsize for _, kind in KINDS)
"""Of one class of one answer."""
CACHE = "cache.json"
VERSION = 1
STUDENTS = ("none", "bitnet", "backslash", "prune", "2:4")


@dataclass(frozen=True)
class Distillation:
    """Who teaches and how.

    teacher: a model as `edgekit compress` takes it, with the student's vocabulary; left out, it is the model itself as
    it was before. student: what constrains the student meanwhile, by the section of that method. weight: of the
    teacher, w.
    temperature: T, of both. top: classes kept of each answer. cache: where the teacher's answers are kept, for further
    runs; left out, they go when the model is there.
    """

    teacher: str = ""
    student: str = "none"
    weight: float = 0.5
    temperature: float = 2.0
    top: int = 32
    cache: str = ""

    def __post_init__(self) -> None:
        if self.student not in STUDENTS:
            raise UsageError(f"student: '{self.student}' is not one of {', '.join(STUDENTS)}")
        check_targets(self.weight, self.temperature, self.top)
        if not self.teacher and self.student == "none":
            raise UsageError("teacher: missing; a model that nothing constrains has nothing to learn from itself")


def check_targets(weight: float, temperature: float, top: int) -> None:
    """Raises UsageError for what no soft targets can be made with."""
    if not 0 <= weight <= 1 or not 0 < temperature <= 100 or top < 1:
        raise UsageError(
            f"weight {weight}, temperature {temperature}, top {top}: the weight is a share, the temperature above 0 "
            "and at most 100, top at least 1"
        )


def predictions(objective: Objective, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits float32 [N, V] of every prediction in a batch, and what was to be predicted, int64 [N].

    Raises UnsupportedError for models that do not predict classes.
    """
    plain = {name: array for name, array in batch.items() if name not in (INDICES, LOGS)}
    if objective.name == "language":
        ids = plain["input_ids"]
        return outputs(model, {"input_ids": ids})[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()
    if objective.name == "classes":
        return outputs(model, Objective.inputs(plain)).float(), plain[LABELS]
    raise UnsupportedError(
        f"{type(model).__name__}: gives {objective.name}, no classes; soft targets are for language models and "
        "classifiers (an encoder learns from its own embeddings with every method)"
    )


def soft_cross_entropy(logits: Tensor, indices: Tensor, logs: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross entropy of a teacher's distribution and the student's at ``temperature``, [N].

    ``logits`` [N, V] are the student's; the teacher's are ``logs`` [N, k], log probabilities of the classes ``indices``
    [N, k]; all others count as one.
    """
    log_p, q = functional.log_softmax(logits / temperature, dim=-1), logs.exp()
    nats = -(q * log_p.gather(-1, indices)).sum(-1)
    if indices.shape[-1] < logits.shape[-1]:
        others = log_p.scatter(-1, indices, float("-inf")).logsumexp(-1)
        nats = nats - (1 - q.sum(-1)).clamp(min=0) * others
    return nats


def entropy(logs: Tensor, complete: bool = False) -> Tensor:
    """Entropy [N] of a teacher whose ``logs`` [N, k] are given; mass outside its top k counts as one class, unless
    ``logs`` is ``complete``."""
    q = logs.exp()
    nats = -(q * logs).sum(-1)
    rest = (1 - q.sum(-1)).clamp(min=0)
    return nats if complete else nats - torch.xlogy(rest, rest)


def distilled(objective: Objective, settings: Distillation) -> Objective:
    """The same objective with the loss of this module; batches hold a teacher's answers (:func:`with_targets`)."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits, wanted = predictions(objective, model, batch)
        return distillation_loss(logits, wanted, *targets(batch), settings)

    return replace(objective, loss=loss)


def targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """A batch's teacher's answers: indices int64 [N, k] and log probabilities float32 [N, k]."""
    top = batch[INDICES].shape[-1]
    return batch[INDICES].reshape(-1, top).long(), batch[LOGS].reshape(-1, top).float()


def distillation_loss(logits: Tensor, wanted: Tensor, indices: Tensor, logs: Tensor, settings: Distillation) -> Tensor:
    """Mean over [N] of (1 - w) CE + w T^2 KL."""
    heat, complete = settings.temperature, indices.shape[-1] == logits.shape[-1]
    divergence = soft_cross_entropy(logits, indices, logs, heat) - entropy(logs, complete)
    hard = functional.cross_entropy(logits, wanted)
    return (1 - settings.weight) * hard + settings.weight * heat**2 * divergence.mean()


def with_targets(examples: Examples, answers: Mapping[str, Tensor]) -> Examples:
    """Examples with a teacher's answers beside them."""
    return Examples({**examples.arrays, **answers})


def cached(
    directory: Path,
    teacher: nn.Module,
    objective: Objective,
    examples: Examples,
    top: int,
    temperature: float,
    *,
    name: str = "",
    batch_size: int = 16,
    progress: Progress = lambda what, share: None,
) -> dict[str, Tensor]:
    """A teacher's answers to all examples, mapped from ``directory``; computed there first unless they are there.

    Returns ``teacher_indices`` int32 and ``teacher_logs`` float16, [n, T - 1, k] for texts and [n, 1, k] for classes.
    ``name`` tells one teacher from another. Written beside and renamed, so an interrupted call leaves nothing half
    done. Raises UsageError for a directory that holds something else, CheckFailed when it cannot be written.
    """
    belongs = {
        "version": VERSION,
        "teacher": name,
        "weights": weights_digest(teacher),
        "examples": digest(examples),
        "top": top,
        "temperature": temperature,
    }
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory}: is a file; a teacher's answers are kept in a directory")
    if directory.exists() and any(directory.iterdir()) and not (directory / CACHE).is_file():
        raise UsageError(f"{directory}: holds something else than a teacher's answers; give another cache directory")
    if not _matches(directory, belongs):
        part = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            few = min(batch_size, most_rows(teacher, examples))
            _compute(part, teacher, objective, examples, top, temperature, few, name, progress)
            (part / CACHE).write_text(json.dumps(belongs), encoding="utf-8")
            shutil.rmtree(directory, ignore_errors=True)
            part.rename(directory)
        except OSError as error:
            raise CheckFailed(
                f"{directory}: cannot be written ({error.strerror}); make room or give another"
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return {key: torch.from_numpy(np.load(directory / f"{key}.npy", mmap_mode="c")) for key in (INDICES, LOGS)}


def weights_digest(model: nn.Module) -> str:
    """A checksum of all parameters and buffers, and of the configuration."""
    config: Any = getattr(model, "config", None)
    text = config.to_json_string() if hasattr(config, "to_json_string") else ""
    state = {name: tensor.detach().float().cpu().reshape(1, -1) for name, tensor in model.state_dict().items()}
    return digest(Examples({**state, "config": torch.tensor([[*text.encode()]], dtype=torch.float32)}))


def _matches(directory: Path, belongs: Mapping[str, Any]) -> bool:
    try:
        stored = json.loads((directory / CACHE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(stored == belongs) and all((directory / f"{key}.npy").is_file() for key in (INDICES, LOGS))


def _mapped(path: Path, kind: type, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new array in a file whose place on disk is taken: writing into a hole of a full disk would kill the process."""
    array = np.lib.format.open_memmap(path, "w+", kind, shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@torch.no_grad()
def _compute(
    directory: Path,
    teacher: nn.Module,
    objective: Objective,
    examples: Examples,
    top: int,
    temperature: float,
    batch_size: int,
    name: str,
    progress: Progress,
) -> None:
    training, done, answers = teacher.training, 0, {}
    teacher.eval()
    for batch in examples.batches(batch_size, device_of(teacher)):
        try:
            logits, wanted = predictions(objective, teacher, batch)
        except EdgekitError:
            raise
        except Exception as error:  # a model fails on wrong input in any way
            what = f"examples {done} to {done + batch_size - 1}: {' '.join(str(error).split())[:200]}"
            raise UsageError(
                f"teacher {name or type(teacher).__name__}: does not run on {what}; give one with the same inputs and "
                "tokens"
            ) from error
        rows = len(next(iter(batch.values())))
        classes = min(top, logits.shape[-1])
        if not done:
            shape = len(examples), len(wanted) // rows, classes
            answers = {key: _mapped(directory / f"{key}.npy", kind, shape) for key, kind in KINDS}
        values, indices = functional.log_softmax(logits / temperature, dim=-1).topk(classes, dim=-1)
        answers[INDICES][done : done + rows] = indices.reshape(rows, -1, classes).cpu().numpy()
        answers[LOGS][done : done + rows] = values.reshape(rows, -1, classes).cpu().numpy()
        done += rows
        progress("ask the teacher", done / len(examples))
    for array in answers.values():
        array.flush()
    teacher.train(training)
